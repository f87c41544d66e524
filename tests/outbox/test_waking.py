"""Whoever has to hear of a commit of the application's hears of it, and soon."""

import asyncio
import contextlib
import json
import sqlite3
import sys
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine
from sqlalchemy.orm import Session

from durableq import DurableQ, Task
from durableq.storage.sqlite import lookout
from durableq.storage.sqlite.insertion import carry_out
from tests.outbox.support import Disk, Kind, make_tables
from tests.storage.support import Backend
from tests.support import eventually

TYPICALLY = 0.02
"""10 ms typically; here the median may be twice that, for these machines do other things too."""
FAR_TOO_LATE = 0.24
"""What comes so late was found by the look that is due four times a second anyway."""


@pytest.fixture
def started_at() -> list[float]:
    return []


@pytest.fixture
def note_start(working: DurableQ, started_at: list[float]) -> Task[[int], Coroutine[Any, Any, None]]:
    @working.task(name="note_start")
    async def note_start(x: int) -> None:
        started_at.append(time.monotonic())

    return note_start


async def median_wake(
    commit: Callable[[], Coroutine[Any, Any, None]], started_at: list[float], times: int = 15
) -> float:
    waits = []
    for _ in range(times):
        known = len(started_at)
        await commit()
        committed_at = time.monotonic()
        await eventually(lambda known=known: len(started_at) > known)  # type: ignore[misc]
        waits.append(started_at[-1] - committed_at)
    return sorted(waits)[times // 2]


async def test_the_worker_starts_the_job_at_the_commit(
    working: DurableQ, note_start: Task[[int], None], kind: Kind, started_at: list[float]
) -> None:
    async def commit() -> None:
        async with kind.transaction() as transaction:
            await transaction.add(working, note_start, 1)
            await transaction.commit()

    assert await median_wake(commit, started_at) < TYPICALLY


async def test_it_starts_nothing_before_the_commit_and_nothing_after_a_rollback(
    working: DurableQ, note_start: Task[[int], None], kind: Kind, started_at: list[float]
) -> None:
    async with kind.transaction() as transaction:
        await transaction.add(working, note_start, 1)
        await asyncio.sleep(0.05)
        assert started_at == []
        await transaction.rollback()
    await working.add_task(note_start, 2)
    await working.drain(10)
    assert len(started_at) == 1


async def test_a_session_that_commits_nudges_at_once(
    working: DurableQ,
    note_start: Task[[int], None],
    engine: Engine,
    started_at: list[float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Without a look every few milliseconds, only its own event can bring the news in time."""
    monkeypatch.setattr(lookout, "_CLOSE_LOOK_SECONDS", 60.0)
    monkeypatch.setattr(lookout, "LOOK_SECONDS", 60.0)

    async def commit() -> None:
        with Session(engine) as session:
            for _ in range(3):
                with session.begin_nested():  # released, not committed: too early for the nudge
                    working.within(session).add_task(note_start, 1)
            session.commit()

    await working.add_task(note_start, 0)
    await working.drain(10)
    assert await median_wake(commit, started_at, times=5) < TYPICALLY


async def test_a_session_gets_one_listener_however_many_jobs_it_carries(dq: DurableQ, engine: Engine) -> None:
    task = dq.task(name="nothing")(_nothing)
    with Session(engine) as session:
        for _ in range(3):
            for x in range(10):
                dq.within(session).add_task(task, x)
            session.commit()
        assert len(session.dispatch.after_commit) == 1


def _nothing(x: int) -> None:
    pass


async def test_a_commit_that_takes_its_time_is_not_missed(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLite says that a transaction is over when its commit begins; the disk may take long to end it."""
    monkeypatch.setattr(lookout, "LOOK_SECONDS", 60.0)
    monkeypatch.setattr(lookout, "_AFTERWARDS_SECONDS", 10.0)  # this machine may be slower than any disk
    woken: list[bool] = []
    backend = Backend(str(disk.path))
    storage = await backend.open()
    await storage.register(woken.append)
    with contextlib.closing(sqlite3.connect(disk.path)) as connection:
        carry_out(connection, storage.adding([backend.job()]))
        storage.expect_foreign_commit(lambda: False)
        await asyncio.sleep(0.03)  # time enough to look, and to see that it is over
        woken.clear()
        connection.commit()
        await eventually(lambda: bool(woken), within=2)
    await backend.close()


async def test_a_worker_in_another_process_is_woken_too(dq: DurableQ, disk: Disk, kind: Kind) -> None:
    """By its doorbell: this process has no worker, and the other one would look only four times a second."""
    task = dq.task(name="tests.outbox.waiting_worker:note")(_nothing)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.outbox.waiting_worker",
        str(disk.path),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None and process.stdin is not None
    try:
        assert await process.stdout.readline() == b'"ready"\n'
        waits = []
        for x in range(9):
            async with kind.transaction() as transaction:
                await transaction.add(dq, task, x)
                await transaction.commit()
                committed_at = time.monotonic()
            noted = json.loads(await process.stdout.readline())
            waits.append(noted - committed_at)
        assert sorted(waits)[4] < FAR_TOO_LATE / 4, waits
    finally:
        process.stdin.close()
        await process.wait()


async def test_a_log_that_only_the_application_fills_stays_bounded(
    working: DurableQ, engine: Engine, disk: Disk
) -> None:
    """Checkpoints are the queue's, so it must see what others write as well."""
    largest = 0
    wal = Path(f"{disk.path}-wal")

    def fill() -> None:
        nonlocal largest
        with Session(engine) as session:
            for _ in range(60):
                session.connection().exec_driver_sql("INSERT INTO mine VALUES (randomblob(1000000))")
                session.commit()
                largest = max(largest, wal.stat().st_size)
                time.sleep(0.02)

    await asyncio.to_thread(fill)
    assert largest < 38_000_000, "SQLite had to do it itself, at 40 MB"


async def test_where_no_queue_runs_sqlite_keeps_the_log_bounded_itself(engine: Engine, disk: Disk) -> None:
    queue = DurableQ(disk.path)
    async with queue.running():
        make_tables(disk.path)
    with Session(engine) as session:
        for _ in range(70):
            session.connection().exec_driver_sql("INSERT INTO mine VALUES (randomblob(1000000))")
            session.commit()
    assert log_bytes(disk.path) < 55_000_000


def log_bytes(database: Path) -> int:
    return database.with_name(f"{database.name}-wal").stat().st_size
