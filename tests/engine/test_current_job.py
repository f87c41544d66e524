"""What a task may ask for while it runs, by ``current_job()``: who it is, progress, log lines, follow-up jobs."""

import asyncio
import contextlib
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Collection
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import pytest

from durableq import (
    CollectorClosed,
    ConfigurationError,
    CurrentJob,
    DurableQ,
    InvalidArguments,
    InvalidTask,
    Job,
    JobConflict,
    JobNotFound,
    JobState,
    NoCurrentJob,
    Progress,
    Secret,
    Snooze,
    Unique,
    call,
    current_job,
)
from durableq.engine import follow_ups
from durableq.engine.notes import LINE_CHARACTERS, LOG_LINES
from durableq.events import LeaseLost
from durableq.storage.sqlite.group import Effects
from durableq.storage.sqlite.lookout import Lookout
from durableq.storage.sqlite.store import SqliteStorage
from tests.engine.helpers import AT_ONCE, Gate, collect, finished, in_state, sql
from tests.support import eventually, eventually_sync

# -- who it is -----------------------------------------------------------------------------------------------


def test_outside_of_a_task_there_is_no_current_job() -> None:
    with pytest.raises(NoCurrentJob, match="no job is running here"):
        current_job()


@pytest.mark.parametrize("runner", ["loop", "thread"])
async def test_a_task_knows_its_job(dq: DurableQ, runner: str) -> None:
    def describe(number: int, names: list[str] | None = None) -> dict[str, Any]:
        job = current_job()
        if job.attempt == 1:
            raise ConnectionError("once more")
        return {
            "id": job.id,
            "task": job.task,
            "queue": job.queue,
            "attempt": job.attempt,
            "max_attempts": job.max_attempts,
            "args": job.args,
            "key": job.idempotency_key,
            "tags": job.tags,
            "headers": job.headers,
            "cancelled": job.cancelled,
        }

    async def describe_async(number: int, names: list[str] | None = None) -> dict[str, Any]:
        return describe(number, names)

    task = dq.task(name="describe", queue="mail", max_attempts=7, retry=AT_ONCE)(
        describe if runner == "thread" else describe_async
    )
    async with dq.running():
        job = await dq.add_task(task.options(tags=["a", "b"], headers={"tenant": "t"}), 5, names=["x"])
        told = (await finished(dq, job)).result
        plain = await dq.add_task(task, 6)
        plainly = (await finished(dq, plain)).result
    assert told == {
        "id": job.id,
        "task": "describe",
        "queue": "mail",
        "attempt": 2,
        "max_attempts": 7,
        "args": {"number": 5, "names": ["x"]},
        "key": job.id,
        "tags": ["a", "b"],
        "headers": {"tenant": "t"},
        "cancelled": False,
    }
    assert (plainly["tags"], plainly["headers"], plainly["args"]) == ([], {}, {"number": 6})


@pytest.mark.fault("F5")
@pytest.mark.foreign_bug(11)
async def test_the_idempotency_key_is_the_same_for_every_attempt_and_another_for_every_job(dq: DurableQ) -> None:
    keys: list[str] = []

    @dq.task(name="pay", max_attempts=3, retry=AT_ONCE)
    async def pay() -> None:
        keys.append(current_job().idempotency_key)
        raise ConnectionError("refused")

    async with dq.running():
        jobs = await dq.add_tasks([call(pay), call(pay)])
        for job in jobs:
            await finished(dq, job)
    assert sorted(keys) == sorted([job.id for job in jobs] * 3)


async def test_what_a_task_awaits_starts_and_calls_has_its_job(dq: DurableQ) -> None:
    @dq.task(name="spread")
    async def spread() -> list[str]:
        async with asyncio.TaskGroup() as group:
            in_task = group.create_task(_id_here())
        return [
            await _id_here(),
            in_task.result(),
            *await asyncio.gather(_id_here(), _id_here()),
            await asyncio.to_thread(lambda: current_job().id),
        ]

    async with dq.running():
        job = await finished(dq, await dq.add_task(spread))
    assert job.result == [job.id] * 5


async def _id_here() -> str:
    await asyncio.sleep(0)
    return current_job().id


@pytest.mark.parametrize("runner", ["loop", "thread"])
async def test_jobs_that_run_at_once_do_not_see_one_another(dq: DurableQ, runner: str) -> None:
    together = threading.Barrier(4)
    entered: list[str] = []
    all_in = asyncio.Event()

    async def on_the_loop(number: int) -> tuple[int, str]:
        entered.append(current_job().id)
        if len(entered) == 4:
            all_in.set()
        await all_in.wait()
        return current_job().args["number"], current_job().id

    def in_a_thread(number: int) -> tuple[int, str]:
        together.wait(10)
        return current_job().args["number"], current_job().id

    task: Any = dq.task(name="look")(on_the_loop if runner == "loop" else in_a_thread)
    async with dq.running():
        jobs = await dq.add_tasks([call(task, number) for number in range(4)])
        results = [(await finished(dq, job)).result for job in jobs]
    assert results == [[number, job.id] for number, job in enumerate(jobs)]


async def test_a_jobs_context_does_not_leak_to_what_the_app_does(dq: DurableQ) -> None:
    @dq.task(name="work")
    async def work() -> None:
        current_job()

    async with dq.running():
        await finished(dq, await dq.add_task(work))
        with pytest.raises(NoCurrentJob):
            current_job()


async def test_what_a_task_does_to_its_arguments_does_not_change_the_job(dq: DurableQ) -> None:
    @dq.task(name="work", max_attempts=2, retry=AT_ONCE)
    async def work(names: list[str]) -> list[str]:
        names.append("more")
        current_job().args["names"].append("more")
        if current_job().attempt == 1:
            raise ConnectionError("once more")
        return names

    async with dq.running():
        job = await finished(dq, await dq.add_task(work, ["one"]))
    assert (job.args, job.result) == ({"names": ["one"]}, ["one", "more"])


# -- progress ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("runner", ["loop", "thread"])
async def test_progress_is_seen_while_the_job_runs_and_after(dq: DurableQ, runner: str) -> None:
    gate, go_on = Gate(), threading.Event()

    async def on_the_loop() -> None:
        current_job().progress(1, 3, "first")
        current_job().progress(2, 3, "second")
        await gate()
        current_job().progress(3, 3)

    def in_a_thread() -> None:
        current_job().progress(1, 3, "first")
        current_job().progress(2, 3, "second")
        go_on.wait(10)
        current_job().progress(3, 3)

    task = dq.task(name="work")(on_the_loop if runner == "loop" else in_a_thread)
    async with dq.running():
        job = await dq.add_task(task)
        await eventually(partial(_has_progress, dq, job, Progress(2.0, 3.0, "second")))
        assert (await dq.get(job)).state is JobState.RUNNING
        gate.open()
        go_on.set()
        assert (await finished(dq, job)).progress == Progress(3.0, 3.0, None), "stored with the outcome at the latest"


async def _has_progress(dq: DurableQ, job: Job[Any], progress: Progress) -> bool:
    return (await dq.get(job)).progress == progress


async def test_the_last_word_before_a_failure_is_kept_and_the_next_attempt_may_take_it_up(dq: DurableQ) -> None:
    @dq.task(name="work", max_attempts=2, retry=AT_ONCE)
    async def work() -> None:
        before = (await dq.get(current_job().id)).progress
        current_job().progress(40 if before is None else before.done + 2, 100)
        raise ConnectionError("refused")

    async with dq.running():
        job = await finished(dq, await dq.add_task(work))
    assert (job.state, job.progress) == (JobState.DEAD, Progress(42.0, 100.0, None))


async def test_a_job_that_never_spoke_of_progress_has_none(dq: DurableQ) -> None:
    @dq.task(name="work")
    async def work() -> None: ...

    async with dq.running():
        assert (await finished(dq, await dq.add_task(work))).progress is None


@pytest.mark.parametrize(
    ("said", "stored"),
    [
        ((1, None, "lone \ud800 surrogate"), Progress(1.0, None, "lone \\ud800 surrogate")),
        ((1, None, "nul \0 byte"), Progress(1.0, None, "nul \\x00 byte")),
        ((1, None, "x" * 10_000), Progress(1.0, None, "x" * LINE_CHARACTERS)),
        ((1, None, ValueError("no text")), Progress(1.0, None, "no text")),
        ((True, 10**15), Progress(1.0, 1e15, None)),
        ((-1, 0), Progress(-1.0, 0.0, None)),
        ((5, float("inf")), Progress(5.0, None, None)),
        ((5, float("nan"), "unknown length"), Progress(5.0, None, "unknown length")),
        ((float("nan"),), None),
        ((float("inf"), 3), None),
    ],
)
async def test_whatever_is_said_of_progress_can_be_stored(
    dq: DurableQ, said: tuple[Any, ...], stored: Progress | None
) -> None:
    @dq.task(name="work", max_attempts=1)
    async def work() -> str:
        current_job().progress(*said)
        return "done"

    async with dq.running():
        job = await finished(dq, await dq.add_task(work))
    assert (job.state, job.result, job.progress) == (JobState.SUCCEEDED, "done", stored)


async def test_a_chatty_job_costs_few_transactions(dq: DurableQ, database: Path) -> None:
    @dq.task(name="work")
    async def work() -> None:
        for number in range(2_000):
            current_job().progress(number)
            if number % 100 == 0:
                await asyncio.sleep(0.01)

    async with dq.running():
        await dq.drain()
        with contextlib.closing(sqlite3.connect(database)) as looking:
            commits = 0
            job = await dq.add_task(work)
            version = _version(looking)
            while not (ended := await dq.get(job)).is_finished:
                await asyncio.sleep(0.001)
                before, version = version, _version(looking)
                commits += version != before
    assert ended.progress == Progress(1999.0, None, None)
    assert commits <= 10, "its words are written ten times a second, not two thousand times"


def _version(connection: sqlite3.Connection) -> int:
    """Changes whenever somebody else has committed."""
    version: int = connection.execute("PRAGMA data_version").fetchone()[0]
    return version


# -- log lines -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("runner", ["loop", "thread"])
async def test_log_lines_are_seen_while_the_job_runs_and_after(dq: DurableQ, runner: str) -> None:
    gate, go_on = Gate(), threading.Event()

    async def on_the_loop() -> None:
        current_job().log("begun")
        await gate()
        current_job().log("ended")

    def in_a_thread() -> None:
        current_job().log("begun")
        go_on.wait(10)
        current_job().log("ended")

    task = dq.task(name="work")(on_the_loop if runner == "loop" else in_a_thread)
    async with dq.running():
        job = await dq.add_task(task)
        await eventually(partial(_has_logged, dq, job, ["begun"]))
        assert (await dq.get(job)).state is JobState.RUNNING
        gate.open()
        go_on.set()
        await finished(dq, job)
        begun, ended = await dq.logs(job)
    assert (begun.message, ended.message) == ("begun", "ended")
    assert begun.lease_no == ended.lease_no == 1
    assert job.created_at <= begun.at <= ended.at <= job.created_at + timedelta(seconds=20)


def _tell_a_secret(code: Annotated[str, Secret], options: dict[str, str]) -> None:
    current_job().progress(1, 2, f"with {code!r}")
    current_job().log(f"sent {code} by {options}")
    current_job().log(f"{'.' * (LINE_CHARACTERS - 3)}{code}")
    current_job().log("nothing to hide")


async def _tell_a_secret_on_the_loop(code: Annotated[str, Secret], options: dict[str, str]) -> None:
    _tell_a_secret(code, options)


@pytest.mark.parametrize("runner", ["loop", "thread", "process"])
async def test_no_secret_of_a_job_is_stored_with_what_it_says(dq: DurableQ, database: Path, runner: str) -> None:
    task: Any
    if runner == "loop":
        task = dq.task(name="tell")(_tell_a_secret_on_the_loop)
    elif runner == "thread":
        task = dq.task(name="tell", runner="thread")(_tell_a_secret)
    else:
        task = dq.task(name="tell", runner="process")(_tell_a_secret)
    async with dq.running():
        job = await finished(dq, await dq.add_task(task, "c4n4ry'5ea1", {"api_key": "k3y-0f-0urs"}))
        lines = [line.message for line in await dq.logs(job)]
    assert job.progress == Progress(1.0, 2.0, 'with "***"')
    assert lines[0] == "sent *** by {'api_key': ***}"
    assert lines[1] == "." * (LINE_CHARACTERS - 3) + "***", "not a secret's beginning either, where a line is cut"
    assert lines[2] == "nothing to hide"
    [(stored,)] = sql(database, "SELECT group_concat(message) FROM durableq_logs")
    assert "c4n4ry" not in stored
    assert "k3y-0f" not in stored


async def _has_logged(dq: DurableQ, job: Job[Any], messages: list[str]) -> bool:
    return [line.message for line in await dq.logs(job)] == messages


async def test_each_attempt_keeps_its_own_lines_in_order(dq: DurableQ) -> None:
    @dq.task(name="work", max_attempts=3, retry=AT_ONCE)
    async def work() -> None:
        for number in range(3):
            current_job().log(f"attempt {current_job().attempt}, line {number}")
        raise errors.pop(0)

    refused = ConnectionError("refused")
    errors = [refused, Snooze(0), refused, refused]
    async with dq.running():
        job = await finished(dq, await dq.add_task(work))
        lines = await dq.logs(job)
        attempts = await dq.attempts(job)
    assert [line.message for line in lines] == [
        f"attempt {attempt}, line {number}" for attempt in (1, 2, 2, 3) for number in range(3)
    ]
    assert [line.lease_no for line in lines] == [1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]
    assert [one.lease_no for one in attempts] == [1, 3, 4], "a line leads to its attempt"


@pytest.mark.parametrize(
    ("said", "stored"),
    [
        ("lone \ud800 surrogate", "lone \\ud800 surrogate"),
        ("nul \0 byte", "nul \\x00 byte"),
        ("x" * 10_000, "x" * LINE_CHARACTERS),
        ("", ""),
        ("two\nlines, größer \N{SNOWMAN} \U0001f600", "two\nlines, größer \N{SNOWMAN} \U0001f600"),
        (ValueError("no text"), "no text"),
        (None, "None"),
    ],
)
async def test_whatever_is_logged_can_be_stored(dq: DurableQ, said: Any, stored: str) -> None:
    @dq.task(name="work", max_attempts=1)
    async def work() -> None:
        current_job().log(said)

    async with dq.running():
        job = await finished(dq, await dq.add_task(work))
        assert job.state is JobState.SUCCEEDED
        assert [line.message for line in await dq.logs(job)] == [stored]


@pytest.mark.parametrize("ending", ["they end", "the queue stops"])
async def test_every_line_is_kept_of_many_talkative_jobs_that_end_at_once(database: Path, ending: str) -> None:
    dq = DurableQ(database, grace=0)
    gate, said = Gate(), asyncio.Event()

    @dq.task(name="work")
    async def work() -> None:
        await gate()
        for number in range(800):
            current_job().log(f"line {number}")
        if ending == "the queue stops":
            said.set()
            await asyncio.Event().wait()

    async with dq.running():
        jobs = await dq.add_tasks([call(work) for _ in range(5)])
        await eventually(lambda: gate.inside == 5)
        gate.open()
        if ending == "they end":
            for job in jobs:
                await finished(dq, job)
        else:
            await said.wait()
    kept = sql(database, "SELECT count(*) FROM durableq_logs GROUP BY seq ORDER BY seq")
    assert kept == [(800,)] * 5


async def test_a_job_that_never_stops_talking_is_cut_short(dq: DurableQ) -> None:
    @dq.task(name="work")
    async def work() -> None:
        for number in range(1, LOG_LINES + 500):
            current_job().log(f"line {number}")

    async with dq.running():
        job = await finished(dq, await dq.add_task(work))
        lines = [line.message for line in await dq.logs(job)]
    assert len(lines) == LOG_LINES
    assert lines[:2] == ["line 1", "line 2"]
    assert lines[-2:] == [f"line {LOG_LINES - 1}", "1,000 lines; no more is kept"]


async def test_what_others_of_a_job_is_gone_with_it(dq: DurableQ, database: Path) -> None:
    @dq.task(name="work")
    async def work() -> None:
        current_job().log("a line")

    async with dq.running():
        job = await finished(dq, await dq.add_task(work))
        assert sql(database, "SELECT count(*) FROM durableq_logs") == [(1,)]
        await dq.delete(job)
        assert sql(database, "SELECT count(*) FROM durableq_logs") == [(0,)]
        assert await dq.logs(job) == []


async def test_the_notes_of_a_lease_that_was_lost_have_no_effect(dq: DurableQ, database: Path) -> None:
    lost = collect(dq.events, LeaseLost)
    gate = Gate()

    @dq.task(name="work")
    async def work() -> None:
        await gate()
        current_job().progress(1)
        current_job().log("too late")

    async with dq.running():
        job = await dq.add_task(work)
        await eventually(lambda: gate.inside == 1)
        sql(database, "UPDATE durableq_jobs SET state = 'cancelled', worker_id = NULL, finished_at = 1")
        gate.open()
        await eventually(lambda: len(lost) == 1)
        assert (await dq.get(job)).progress is None
        assert await dq.logs(job) == []


async def test_a_thread_that_was_left_behind_may_go_on_talking(dq: DurableQ) -> None:
    """Nobody listens any more, not even an event loop; that must not matter to it."""
    go_on = threading.Event()
    errors: list[BaseException] = []
    ended = threading.Event()

    @dq.task(name="work", timeout=0.05, max_attempts=1)
    def work() -> None:
        go_on.wait()
        try:
            current_job().progress(1)
            current_job().log("is anybody there?")
        except BaseException as error:
            errors.append(error)
        ended.set()

    def run_a_loop_to_its_end() -> None:
        async def main() -> None:
            async with dq.running():
                await finished(dq, await dq.add_task(work))

        asyncio.run(main())

    await asyncio.to_thread(run_a_loop_to_its_end)
    go_on.set()
    eventually_sync(ended.is_set)
    assert errors == []


# -- follow-up jobs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("runner", ["loop", "thread"])
async def test_follow_up_jobs_are_stored_with_the_success_and_not_before(
    dq: DurableQ, database: Path, runner: str
) -> None:
    gate, go_on = Gate(), threading.Event()
    ids: list[str] = []
    order: list[str] = []

    @dq.task(name="second")
    async def second(name: str) -> str:
        order.append(name)
        return name

    def add() -> None:
        for name in ("a", "b"):
            job = current_job().add_task(second, name)
            assert (job.task, job.args, job.state) == ("second", {"name": name}, JobState.QUEUED)
            ids.append(job.id)

    async def on_the_loop() -> None:
        add()
        await gate()

    def in_a_thread() -> None:
        add()
        go_on.wait(10)

    first = dq.task(name="first")(on_the_loop if runner == "loop" else in_a_thread)
    async with dq.running():
        job = await dq.add_task(first)
        await eventually(lambda: len(ids) == 2)
        await dq.get(job)
        with pytest.raises(JobNotFound):
            await dq.get(ids[0])
        gate.open()
        go_on.set()
        await finished(dq, job)
        assert len(sql(database, "SELECT id FROM durableq_jobs")) == 3, "they came in the same transaction"
        assert [(await finished(dq, await dq.get(one))).result for one in ids] == ["a", "b"]


async def _fail() -> None:
    raise ConnectionError("refused")


async def _snooze() -> None:
    raise Snooze(3600)


async def _be_cancelled() -> None:
    await asyncio.Event().wait()


@pytest.mark.parametrize(
    ("end", "state"),
    [(_fail, JobState.DEAD), (_snooze, JobState.SCHEDULED), (_be_cancelled, JobState.CANCELLED)],
)
async def test_an_attempt_that_does_not_succeed_leaves_no_follow_up_jobs(
    dq: DurableQ, database: Path, end: Callable[[], Any], state: JobState
) -> None:
    added = asyncio.Event()

    @dq.task(name="second")
    async def second() -> None: ...

    @dq.task(name="first", max_attempts=2, retry=AT_ONCE)
    async def first() -> None:
        current_job().add_task(second)
        added.set()
        await end()

    async with dq.running():
        job = await dq.add_task(first)
        await added.wait()
        if end is _be_cancelled:
            await dq.cancel(job)
        await in_state(dq, job, state)
        assert sql(database, "SELECT task FROM durableq_jobs") == [("first",)]


async def test_each_attempt_begins_with_no_follow_up_jobs(dq: DurableQ, database: Path) -> None:
    @dq.task(name="second")
    async def second(attempt: int) -> None: ...

    @dq.task(name="first", retry=AT_ONCE)
    async def first() -> None:
        current_job().add_task(second, current_job().attempt)
        if current_job().attempt < 3:
            raise ConnectionError("refused")

    async with dq.running():
        await finished(dq, await dq.add_task(first))
        assert sql(database, "SELECT args FROM durableq_jobs WHERE task = 'second'") == [('{"attempt":3}',)]


async def test_a_worker_that_lost_its_lease_leaves_no_follow_up_jobs(dq: DurableQ, database: Path) -> None:
    lost = collect(dq.events, LeaseLost)
    gate = Gate()

    @dq.task(name="second")
    async def second() -> None: ...

    @dq.task(name="first")
    async def first() -> None:
        current_job().add_task(second)
        await gate()

    async with dq.running():
        await dq.add_task(first)
        await eventually(lambda: gate.inside == 1)
        sql(database, "UPDATE durableq_jobs SET state = 'cancelled', worker_id = NULL, finished_at = 1")
        gate.open()
        await eventually(lambda: len(lost) == 1)
        assert sql(database, "SELECT task FROM durableq_jobs") == [("first",)]


async def test_follow_up_jobs_have_the_options_of_their_task_and_inherit_the_headers(dq: DurableQ) -> None:
    gate = Gate()
    seen: list[dict[str, str]] = []

    @dq.task(name="third")
    async def third() -> None:
        seen.append(dict(current_job().headers))

    @dq.task(name="second", queue="mail", priority=7, headers={"tenant": "of the task"})
    async def second() -> None:
        seen.append(dict(current_job().headers))
        current_job().add_task(third)

    @dq.task(name="later")
    async def later() -> None: ...

    @dq.task(name="first")
    async def first() -> list[str]:
        job = current_job().add_task(second)
        assert (job.queue, job.priority) == ("mail", 7)
        return [job.id, current_job().add_task(later.options(delay=3600, tags=["a"])).id]

    gate.open()
    async with dq.running():
        started = await dq.add_task(first.options(headers={"tenant": "t", "trace": "1"}))
        _, later_id = (await finished(dq, started)).result
        await dq.drain(timeout=10)
        scheduled = await dq.get(later_id)
    assert (scheduled.state, scheduled.tags) == (JobState.SCHEDULED, ("a",))
    assert scheduled.headers == {"tenant": "t", "trace": "1"}
    assert seen == [{"tenant": "of the task", "trace": "1"}] * 2, "and on from there"


async def test_a_follow_up_job_that_is_there_already_is_that_one(dq: DurableQ, database: Path) -> None:
    """Also when it says that it minds: the code that could has ended."""

    @dq.task(name="second")
    async def second(number: int) -> None: ...

    @dq.task(name="first")
    async def first(unique: str) -> str:
        options: Unique | str = Unique(key="k", on_conflict="raise") if unique == "raise" else "k"
        return current_job().add_task(second.options(unique=options, delay=3600), 2).id

    async with dq.running():
        there = await dq.add_task(second.options(unique="k", delay=3600), 1)
        for unique in ("return", "raise"):
            job = await finished(dq, await dq.add_task(first, unique))
            assert job.state is JobState.SUCCEEDED
            assert (await dq.get(job.result)).id == there.id, "the id that was handed out leads to it"
        assert len(sql(database, "SELECT id FROM durableq_jobs WHERE task = 'second'")) == 1


async def test_what_cannot_be_a_follow_up_job_is_refused_at_the_call(dq: DurableQ, tmp_path: Path) -> None:
    other = DurableQ(tmp_path / "other.db")

    @other.task(name="foreign")
    async def foreign() -> None: ...

    @dq.task(name="second")
    async def second(number: int) -> None: ...

    @dq.task(name="first", max_attempts=1)
    async def first() -> None:
        with pytest.raises(InvalidArguments, match="'number'"):
            current_job().add_task(second, "five")  # type: ignore[call-overload]
        with pytest.raises(InvalidTask, match="another DurableQ"):
            current_job().add_task(foreign)

    async with dq.running():
        assert (await finished(dq, await dq.add_task(first))).error is None


@pytest.mark.parametrize("value", [5, None, object(), "lone \ud800 surrogate", "x" * 5_000])
async def test_headers_that_cannot_be_stored_fail_the_job_that_passes_them_on_and_no_other(
    dq: DurableQ, value: Any
) -> None:
    """Were they found out in the transaction only, nobody's outcome could be written any more."""

    @dq.task(name="second")
    async def second() -> None: ...

    @dq.task(name="first", max_attempts=1)
    async def first() -> None:
        current_job().headers["odd"] = value
        current_job().add_task(second)

    async with dq.running():
        job = await finished(dq, await dq.add_task(first))
        assert job.error is not None
        assert (job.state, job.error.type) == (JobState.DEAD, "durableq.ConfigurationError")
        assert "option 'headers'" in job.error.message
        assert (await finished(dq, await dq.add_task(second))).state is JobState.SUCCEEDED


async def test_what_a_job_adds_after_its_end_is_refused_and_not_lost_without_a_word(dq: DurableQ) -> None:
    go_on = asyncio.Event()
    refused: list[BaseException] = []
    background: list[asyncio.Task[None]] = []

    @dq.task(name="second")
    async def second() -> None: ...

    async def live_on() -> None:
        await go_on.wait()
        try:
            current_job().add_task(second)
        except CollectorClosed as error:
            refused.append(error)

    @dq.task(name="first")
    async def first() -> None:
        background.append(asyncio.get_running_loop().create_task(live_on()))

    async with dq.running():
        job = await finished(dq, await dq.add_task(first))
        go_on.set()
        await background[0]
    assert job.id in str(refused[0])
    assert "await dq.add_task(...)" in str(refused[0])


async def test_a_thread_whose_time_is_over_cannot_add_jobs_any_more(dq: DurableQ) -> None:
    go_on, ended = threading.Event(), threading.Event()
    refused: list[BaseException] = []

    @dq.task(name="second")
    async def second() -> None: ...

    @dq.task(name="first", timeout=0.05, max_attempts=1)
    def first() -> None:
        go_on.wait()
        try:
            current_job().add_task(second)
        except CollectorClosed as error:
            refused.append(error)
        ended.set()

    async with dq.running():
        await finished(dq, await dq.add_task(first))
        go_on.set()
        await eventually(ended.is_set)
    assert len(refused) == 1


async def test_follow_up_jobs_are_bounded(dq: DurableQ, database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow_ups, "FOLLOW_UPS", 10)
    monkeypatch.setattr(follow_ups, "FOLLOW_UP_BYTES", 1000)

    @dq.task(name="second")
    async def second(text: str) -> None: ...

    @dq.task(name="first", max_attempts=1)
    async def first(size: int) -> int:
        for number in range(100):
            try:
                current_job().add_task(second.options(delay=3600), "x" * size)
            except ConfigurationError as error:
                assert "expected at most 10 follow-up jobs and 1,000 bytes" in str(error)
                return number
        return 100

    async with dq.running():
        assert (await finished(dq, await dq.add_task(first, 1))).result == 10
        assert (await finished(dq, await dq.add_task(first, 300))).result == 3
        assert len(sql(database, "SELECT id FROM durableq_jobs WHERE task = 'second'")) == 13


async def test_a_follow_up_job_that_was_refused_does_not_count(dq: DurableQ, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow_ups, "FOLLOW_UP_BYTES", 1000)

    @dq.task(name="second")
    async def second(text: str) -> None: ...

    @dq.task(name="first", max_attempts=1)
    async def first() -> None:
        with pytest.raises(ConfigurationError, match="1,000 bytes of arguments"):
            current_job().add_task(second, "é" * 500)
        current_job().add_task(second, "x" * 900)

    async with dq.running():
        job = await finished(dq, await dq.add_task(first))
    assert job.state is JobState.SUCCEEDED, job.error


async def test_middleware_may_add_follow_up_jobs_too(dq: DurableQ, database: Path) -> None:
    @dq.task(name="audit")
    async def audit(job_id: str) -> None: ...

    @dq.middleware
    async def audited(job: CurrentJob) -> AsyncIterator[None]:
        yield
        if job.task != "audit":
            job.add_task(audit, job.id)

    @dq.task(name="work")
    async def work() -> None: ...

    async with dq.running():
        job = await finished(dq, await dq.add_task(work))
        await dq.drain()
        assert sql(database, "SELECT args FROM durableq_jobs WHERE task = 'audit'") == [(f'{{"job_id":"{job.id}"}}',)]


# -- complete_within -----------------------------------------------------------------------------------------


class Ledger:
    """A table of the application's own in the queue's file, written in transactions of its own."""

    def __init__(self, database: Path) -> None:
        self._database = database
        sql(database, "CREATE TABLE IF NOT EXISTS ledger (job TEXT)")

    def begin(self) -> sqlite3.Connection:
        connection = sqlite3.connect(self._database, timeout=10, isolation_level=None)
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("INSERT INTO ledger VALUES (?)", (current_job().id,))
        return connection

    def rows(self) -> int:
        count: int = sql(self._database, "SELECT count(*) FROM ledger")[0][0]
        return count


async def test_a_completed_job_keeps_its_success_and_its_slot_is_free_whatever_comes_afterwards(
    database: Path,
) -> None:
    dq = DurableQ(database, concurrency=1)
    async with dq.running():
        ledger = Ledger(database)

        @dq.task(name="work", timeout=60)
        async def work(then: str) -> str:
            connection = ledger.begin()
            await current_job().complete_within(connection, result="done")
            connection.execute("COMMIT")
            connection.close()
            task = asyncio.current_task()
            assert task is not None
            if then == "raises":
                raise RuntimeError("after the fact")
            if then == "cancels itself":
                task.cancel()
            if then == "cancels itself and waits":
                task.cancel()
                await asyncio.sleep(0)
            return "another result"

        for then in ("returns", "raises", "cancels itself", "cancels itself and waits"):
            job = await finished(dq, await dq.add_task(work, then))
            assert (job.state, job.attempt, job.result) == (JobState.SUCCEEDED, 1, "done")
        await dq.drain()
        assert ledger.rows() == 4


async def test_a_cancellation_that_comes_while_a_completion_is_looked_at_changes_nothing(database: Path) -> None:
    """It is known by then what was committed, or soon will be; the job must end one way or the other."""
    dq = DurableQ(database, concurrency=1)
    async with dq.running():
        ledger = Ledger(database)

        @dq.task(name="work", max_attempts=1)
        async def work(commits: bool) -> None:
            connection = ledger.begin()
            await current_job().complete_within(connection)
            if commits:
                connection.execute("COMMIT")
            connection.close()
            task = asyncio.current_task()
            assert task is not None
            asyncio.get_running_loop().call_soon(task.cancel)

        for commits, state in ((True, JobState.SUCCEEDED), (False, JobState.DEAD)):
            job = await finished(dq, await dq.add_task(work, commits))
            assert job.state is state
        assert ledger.rows() == 1


@pytest.mark.parametrize("commits", [True, False])
async def test_what_a_job_said_before_its_completion_is_kept(database: Path, commits: bool) -> None:
    dq = DurableQ(database)
    async with dq.running():
        ledger = Ledger(database)

        @dq.task(name="work", max_attempts=1)
        async def work() -> None:
            current_job().progress(1, 2, "half")
            current_job().log("first")
            current_job().log("second")
            connection = ledger.begin()
            await current_job().complete_within(connection)
            if commits:
                connection.execute("COMMIT")
            connection.close()

        job = await finished(dq, await dq.add_task(work))
        assert job.state is (JobState.SUCCEEDED if commits else JobState.DEAD)
        assert job.progress == Progress(1.0, 2.0, "half")
        assert await _has_logged(dq, job, ["first", "second"])


async def test_follow_up_jobs_are_stored_with_the_completion_and_later_ones_refused(database: Path) -> None:
    dq = DurableQ(database)
    async with dq.running():
        ledger = Ledger(database)

        @dq.task(name="second")
        async def second(name: str) -> None: ...

        @dq.task(name="first")
        async def first() -> None:
            current_job().add_task(second, "in time")
            connection = ledger.begin()
            await current_job().complete_within(connection)
            connection.execute("COMMIT")
            connection.close()
            with pytest.raises(CollectorClosed, match="has completed itself"):
                current_job().add_task(second, "too late")

        job = await finished(dq, await dq.add_task(first))
        await dq.drain()
        assert job.state is JobState.SUCCEEDED
        assert sql(database, "SELECT args FROM durableq_jobs WHERE task = 'second'") == [('{"name":"in time"}',)]


async def test_a_completion_that_is_rolled_back_leaves_nothing_and_the_job_is_tried_again(database: Path) -> None:
    dq = DurableQ(database)
    async with dq.running():
        ledger = Ledger(database)

        @dq.task(name="second")
        async def second() -> None: ...

        @dq.task(name="first", retry=AT_ONCE)
        async def first() -> None:
            current_job().add_task(second)
            connection = ledger.begin()
            await current_job().complete_within(connection)
            connection.execute("ROLLBACK" if current_job().attempt == 1 else "COMMIT")
            connection.close()

        job = await finished(dq, await dq.add_task(first))
        await dq.drain()
        assert (job.state, job.attempt, ledger.rows()) == (JobState.SUCCEEDED, 2, 1)
        assert [one.error_type for one in await dq.attempts(job)] == ["durableq.CompletionRolledBack"]
        assert len(sql(database, "SELECT id FROM durableq_jobs WHERE task = 'second'")) == 1


async def test_a_job_that_is_no_longer_this_attempts_cannot_be_completed(database: Path) -> None:
    dq = DurableQ(database)
    gate = Gate()
    refused: list[JobConflict] = []
    async with dq.running():
        ledger = Ledger(database)

        @dq.task(name="work")
        async def work() -> None:
            await gate()
            connection = ledger.begin()
            try:
                await current_job().complete_within(connection)
            except JobConflict as error:
                refused.append(error)
            connection.close()

        job = await dq.add_task(work)
        await eventually(lambda: gate.inside == 1)
        sql(database, "UPDATE durableq_jobs SET state = 'cancelled', worker_id = NULL, finished_at = 1")
        gate.open()
        await dq.drain()
        await eventually(lambda: len(refused) == 1)
        assert (refused[0].job_id, ledger.rows()) == (job.id, 0)


async def test_drain_waits_for_a_job_whose_task_was_never_heard_of_before(
    dq: DurableQ, monkeypatch: pytest.MonkeyPatch
) -> None:
    announce, asked = Lookout.announce, threading.Event()
    has_runnable = SqliteStorage.has_runnable

    def late(lookout: Lookout, effects: Effects) -> None:
        if "second" in effects.new_tasks:  # its commit can be seen already
            asked.wait(10)
        announce(lookout, effects)

    async def noted(storage: SqliteStorage, queues: Collection[str], tasks: Collection[str]) -> bool:
        found = await has_runnable(storage, queues, tasks)
        asked.set()
        return found

    monkeypatch.setattr(Lookout, "announce", late)
    monkeypatch.setattr(SqliteStorage, "has_runnable", noted)
    ran: list[str] = []

    @dq.task(name="second")
    async def second() -> None:
        ran.append("second")

    @dq.task(name="first")
    async def first() -> None:
        current_job().add_task(second)

    async with dq.running():
        await finished(dq, await dq.add_task(first))
        await dq.drain(timeout=10)
    assert ran == ["second"]
