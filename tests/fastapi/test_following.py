"""What is told of a job, look by look."""

import contextlib
import sqlite3
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import pytest

from durableq import DurableQ, Job, Secret, StorageBusy, current_job
from durableq.encryption import KeyRing, new_key
from durableq.fastapi import following
from durableq.fastapi.following import Seen, follow
from durableq.fastapi.streaming import Event
from durableq.redaction import HIDDEN, Redactor

Read = list[tuple[str, dict[str, Any]]]


def show(job: Job[Any], redactor: Redactor) -> dict[str, Any]:
    return {"state": job.state.value, "progress": job.progress}


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Read:
    """Every read of a queue's jobs and lines, as it was asked for."""
    found: Read = []
    for name in ("get", "logs", "tasks"):
        verb = getattr(DurableQ, name)

        def read(self: DurableQ, *args: Any, name: str = name, verb: Any = verb, **options: Any) -> Any:
            found.append((name, options))
            return verb(self, *args, **options)

        monkeypatch.setattr(DurableQ, name, read)
    return found


async def test_a_job_that_waits_costs_one_read_for_each_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: Read
) -> None:
    monkeypatch.setattr(following, "LOOK_SECONDS", 0.02)
    monkeypatch.setattr(following, "TICK_SECONDS", 0.02)
    dq = DurableQ(tmp_path / "app.db", worker=False)

    @dq.task(name="work")
    def work() -> None: ...

    async with dq.running():
        job = await dq.add_task(work.options(delay=timedelta(days=1)))
        events = follow(dq, job, Seen(), show, lines=True)
        assert [await anext(events) for _ in range(11)][1:] == [None] * 10
        await events.aclose()
    assert [name for name, _ in reads].count("logs") == 1
    assert [name for name, _ in reads].count("tasks") == 0, "the app knows the task"
    assert 8 <= [name for name, _ in reads].count("get") <= 11


async def test_lines_are_read_once(tmp_path: Path, reads: Read) -> None:
    dq, job = await ended(tmp_path, 5)
    async with dq.running():
        told = [event async for event in follow(dq, await dq.get(job), Seen(3), show, lines=True)]
    assert [event.data["message"] for event in told if event and event.name == "log"] == ["3", "4"]
    assert [options for name, options in reads if name == "logs"] == [{"skip": 3}]


async def test_of_very_many_earlier_lines_the_latest_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "LINES", 2)
    dq, job = await ended(tmp_path, 5)
    async with dq.running():
        told = [event async for event in follow(dq, await dq.get(job), Seen(1), show, lines=True)]
    assert [(event.data.get("message"), event.id) for event in told if event and event.name == "log"] == [
        ("3", "4"), ("4", "5"),
    ]  # fmt: skip
    assert told[-1] == Event("end", {}, "5.end")


async def ended(tmp_path: Path, lines: int) -> tuple[DurableQ, Job[Any]]:
    dq = DurableQ(tmp_path / "app.db")

    @dq.task(name="talk")
    def talk() -> None:
        for line in range(lines):
            current_job().log(str(line))

    async with dq.running():
        job = await dq.add_task(talk)
        await dq.wait(job)
    return dq, job


async def test_a_job_that_is_retried_after_its_end_is_followed_anew(tmp_path: Path) -> None:
    dq = DurableQ(tmp_path / "app.db", worker=False)

    @dq.task(name="work")
    def work() -> None: ...

    async with dq.running():
        job = await dq.add_task(work)
        await dq.cancel(job)
        assert [event and event.name async for event in follow(dq, await dq.get(job), Seen(), show, lines=True)] == [
            "status", "end",
        ]  # fmt: skip
        await dq.retry(job)
        events = follow(dq, await dq.get(job), Seen(0, end=True), show, lines=True)
        first = await anext(events)
        assert first is not None
        assert first.data["state"] == "queued"
        await events.aclose()


@pytest.mark.parametrize("key", ["", "here", "elsewhere"])
async def test_lines_from_before_they_were_stored_without_secrets_are_told_without(tmp_path: Path, key: str) -> None:
    ring = KeyRing({"k": new_key()}) if key else None

    async def work(code: Annotated[str, Secret]) -> None:
        current_job().log("placeholder")
        raise ValueError("declined")

    dq = DurableQ(tmp_path / "app.db", encryption=ring)
    dq.task(name="work", max_attempts=1)(work)
    async with dq.running():
        job = await dq.wait(await dq.add_task(work, "old-c4n4ry"), timeout=20)
        with contextlib.closing(sqlite3.connect(tmp_path / "app.db", timeout=10)) as connection, connection:
            connection.execute("UPDATE durableq_logs SET message = 'sent old-c4n4ry'")
        await dq.pause("default")
        await dq.retry(job, args={"code": "new-c4n4ry"})
    looking = DurableQ(tmp_path / "app.db", worker=False, encryption=None if key == "elsewhere" else ring)
    looking.task(name="work")(work)
    async with looking.running():
        events = follow(looking, await looking.get(job.id), Seen(), show, lines=True)
        told = await anext(events)
        await events.aclose()
    assert told is not None
    assert told.data["message"] == (HIDDEN if key == "elsewhere" else "sent ***")


async def test_a_stream_ends_with_its_queue_and_says_nothing_of_an_end(tmp_path: Path) -> None:
    dq = DurableQ(tmp_path / "app.db", worker=False)

    @dq.task(name="work")
    def work() -> None: ...

    async with dq.running():
        job = await dq.add_task(work)
        events = follow(dq, job, Seen(), show, lines=True)
        await anext(events)
    assert [event async for event in events if event is not None] == []


async def test_trouble_with_the_storage_ends_the_stream_and_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    dq = DurableQ(tmp_path / "app.db", worker=False)

    @dq.task(name="work")
    def work() -> None: ...

    async def busy(*_: object, **__: object) -> Any:
        raise StorageBusy("busy")

    async with dq.running():
        job = await dq.add_task(work)
        events = follow(dq, job, Seen(), show, lines=True)
        await anext(events)
        monkeypatch.setattr(dq, "get", busy)
        assert [event async for event in events if event is not None] == []
    assert "came to an end: StorageBusy" in caplog.text
