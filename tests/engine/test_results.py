"""Waiting for a job's end, and getting what it returned, in whatever process it ran."""

import asyncio
import gc
import statistics
import threading
import time
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import pytest
from pydantic import BaseModel
from tenacity import wait_fixed

from durableq import (
    DurableQ,
    Job,
    JobFailed,
    JobNotFound,
    JobState,
    JobWasCancelled,
    QueueNotRunning,
    ResultUnavailable,
    RetryPolicy,
    StorageError,
    call,
    current_job,
)
from durableq.testing import ManualClock
from tests.engine.helpers import AT_ONCE, Gate, finished, sql
from tests.engine.processes import program
from tests.support import eventually


def waiting_tasks() -> list[str]:
    return [task.get_name() for task in asyncio.all_tasks() if task.get_name() == "durableq-waiting"]


# -- by declared type ----------------------------------------------------------------------------------------


class Person(BaseModel):
    name: str
    born: date
    friends: list["Person"] = []


@dataclass
class Point:
    x: int
    label: bytes = b""


class Pair(NamedTuple):
    left: int
    right: datetime


class Colour(Enum):
    RED = "red"


VALUES: list[tuple[Any, Any]] = [
    (int, 5),
    (str, "gr\N{LATIN SMALL LETTER U WITH DIAERESIS}n \0"),
    (float, 1.0),
    (bool, False),
    (datetime, datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC)),
    (datetime, datetime(2026, 1, 2)),
    (date, date(2026, 1, 2)),
    (timedelta, timedelta(days=1, microseconds=3)),
    (Decimal, Decimal("1.10")),
    (UUID, UUID(int=7)),
    (bytes, b"\xff\x00"),
    (list[bytes], [b"abc", b""]),
    (tuple[int, str], (1, "a")),
    (set[int], {1, 2}),
    (dict[int, date], {1: date(2026, 1, 2)}),
    (Person, Person(name="Ada", born=date(1815, 12, 10), friends=[Person(name="Mary", born=date(1780, 12, 26))])),
    (list[Person], [Person(name="Ada", born=date(1815, 12, 10))]),
    (Point, Point(1, b"abc")),
    (dict[str, Point], {"a": Point(1, b"\xff")}),
    (Pair, Pair(1, datetime(2026, 1, 2, tzinfo=UTC))),
    (Colour, Colour.RED),
    (int | None, None),
    (None, None),
    (Person | None, Person(name="Ada", born=date(1815, 12, 10))),
    (Any, {"plain": [1, None, "x"]}),
    (dict[str, Any], {"plain": [1, None, "x"]}),
]


@pytest.mark.parametrize(("declared", "value"), VALUES)
@pytest.mark.parametrize("runner", ["loop", "thread"])
async def test_a_result_comes_back_as_the_type_that_the_task_declares(
    dq: DurableQ, declared: Any, value: Any, runner: str
) -> None:
    async def give_async() -> Any:
        return value

    def give() -> Any:
        return value

    function: Any = give_async if runner == "loop" else give
    function.__annotations__["return"] = declared
    task: Any = dq.task(name="give")(function)
    async with dq.running():
        result = await dq.result(await dq.add_task(task), timeout=5)
    assert (type(result), result) == (type(value), value)


async def test_a_result_without_a_declared_type_comes_back_as_json_has_it(dq: DurableQ) -> None:
    @dq.task(name="give")
    async def give():  # type: ignore[no-untyped-def]
        return {"when": date(2026, 1, 2), "pair": (1, 2)}

    @dq.task(name="odd")
    async def odd() -> threading.Event:  # no type for JSON
        return [1]  # type: ignore[return-value]

    async with dq.running():
        assert await dq.result(await dq.add_task(give), timeout=5) == {"when": "2026-01-02", "pair": [1, 2]}
        assert await dq.result((await dq.add_task(odd)).id, timeout=5) == [1]


async def test_a_result_that_could_not_be_stored_is_unavailable_with_the_reason(dq: DurableQ) -> None:
    @dq.task(name="give")
    async def give() -> float:
        return float("nan")

    async with dq.running():
        job = await dq.add_task(give)
        with pytest.raises(ResultUnavailable, match=r"the task succeeded, but its result was not stored: .*NaN"):
            await dq.result(job, timeout=5)


async def test_a_result_that_is_not_of_the_declared_type_is_unavailable(dq: DurableQ) -> None:
    """The task has succeeded all the same: it did what it does."""

    @dq.task(name="give")
    async def give() -> Person:
        return {"name": "Ada"}  # type: ignore[return-value]

    async with dq.running():
        job = await dq.add_task(give)
        with pytest.raises(ResultUnavailable, match="not what the task declares to return"):
            await dq.result(job, timeout=5)
        assert (await dq.get(job)).state is JobState.SUCCEEDED


async def test_a_damaged_result_is_unavailable(dq: DurableQ, database: Path) -> None:
    @dq.task(name="give")
    async def give() -> int:
        return 5

    async with dq.running():
        job = await finished(dq, await dq.add_task(give))
        sql(database, "UPDATE durableq_jobs SET result = '{'")
        with pytest.raises(ResultUnavailable):
            await dq.result(job, timeout=5)


# -- how long it is kept -------------------------------------------------------------------------------------


async def test_a_result_that_shall_not_be_kept_is_never_stored(dq: DurableQ, database: Path) -> None:
    @dq.task(name="give", result_ttl=0)
    async def give() -> str:
        return "a secret"

    @dq.task(name="give_in_thread")
    def give_in_thread() -> str:
        return "a secret"

    async with dq.running():
        for task in (give, give_in_thread.options(result_ttl=0)):
            job: Job[str] = await dq.add_task(task)
            with pytest.raises(ResultUnavailable, match="was not kept"):
                await dq.result(job, timeout=5)
            assert (await dq.get(job)).state is JobState.SUCCEEDED
        assert sql(database, "SELECT result FROM durableq_jobs") == [(None,), (None,)]


async def test_a_result_is_dropped_when_its_time_is_over_and_the_job_stays(database: Path) -> None:
    clock = ManualClock()
    dq = DurableQ(database, clock=clock)

    @dq.task(name="give", result_ttl=3600)
    async def give(value: str | None) -> str | None:
        return value

    async with dq.running():
        jobs = [await finished(dq, await dq.add_task(give, value)) for value in ("x", None)]
        longer = await finished(dq, await dq.add_task(give.options(result_ttl=7200), "longer"))
    clock.advance(3500)
    async with dq.running():  # the pruner looks at each start
        await dq.drain()
        assert await dq.result(jobs[0], timeout=5) == "x"
    clock.advance(200)
    async with dq.running():
        await eventually(lambda: sql(database, "SELECT count(*) FROM durableq_jobs WHERE result IS NOT NULL") == [(1,)])
        with pytest.raises(ResultUnavailable, match="no longer"):
            await dq.result(jobs[0], timeout=5)
        assert (await dq.get(jobs[0])).state is JobState.SUCCEEDED
        assert await dq.result(longer, timeout=5) == "longer"


# -- jobs that have no result --------------------------------------------------------------------------------


async def test_a_dead_job_raises_with_the_traceback_of_its_last_attempt(dq: DurableQ) -> None:
    tries = 0

    @dq.task(name="fail", max_attempts=2, retry=AT_ONCE)
    async def fail() -> None:
        nonlocal tries
        tries += 1
        raise ConnectionError(f"refused, try {tries}")

    async with dq.running():
        job = await dq.add_task(fail)
        with pytest.raises(JobFailed) as caught:
            await dq.result(job, timeout=5)
    error = caught.value
    assert not isinstance(error, JobWasCancelled)
    assert (error.job_id, error.error_type) == (job.id, "ConnectionError")
    assert "in fail" in error.traceback
    assert error.traceback.rstrip().endswith("ConnectionError: refused, try 2")
    assert error.traceback.rstrip() in str(error), "whoever reads only the message sees it as well"
    assert f"job {job.id} of fail is dead after 2 attempts: ConnectionError: refused, try 2" in str(error)


async def test_a_cancelled_job_raises_and_says_by_what(dq: DurableQ) -> None:
    gate = Gate()

    @dq.task(name="work")
    async def work() -> None:
        await gate()

    async with dq.running():
        running = await dq.add_task(work)
        await eventually(lambda: gate.inside == 1)
        getting = asyncio.ensure_future(dq.result(running, timeout=5))
        await dq.cancel(running)
        with pytest.raises(JobWasCancelled, match="cancelled while running") as caught:
            await getting
        assert (caught.value.job_id, caught.value.error_type) == (running.id, "durableq.Cancelled")
        waiting = await dq.add_task(work.options(delay=3600))
        getting = asyncio.ensure_future(dq.result(waiting, timeout=5))
        await dq.cancel(waiting)
        with pytest.raises(JobWasCancelled, match="by request"):
            await getting
        expired = await dq.add_task(work.options(expires=0.05, run_at=datetime(2099, 1, 1, tzinfo=UTC)))
        with pytest.raises(JobWasCancelled, match="nobody started it in time"):
            await dq.result(expired, timeout=5)


async def test_an_id_that_is_not_stored_is_told_at_once(dq: DurableQ) -> None:
    async with dq.running():
        for ask in (dq.wait, dq.result):
            with pytest.raises(JobNotFound):
                await ask("nobody", timeout=30)
    assert waiting_tasks() == []


async def test_waiting_needs_a_running_queue(dq: DurableQ) -> None:
    with pytest.raises(QueueNotRunning):
        await dq.wait("anybody")


# -- waiting -------------------------------------------------------------------------------------------------


async def test_waiting_ends_after_its_time_and_leaves_the_job_alone(dq: DurableQ) -> None:
    gate = Gate()

    @dq.task(name="work")
    async def work() -> str:
        await gate()
        return "done"

    async with dq.running():
        job = await dq.add_task(work)
        for timeout in (0.05, timedelta(seconds=0.05)):
            before = time.monotonic()
            with pytest.raises(TimeoutError) as caught:
                await (
                    dq.wait(job, timeout=timeout) if isinstance(timeout, float) else dq.result(job.id, timeout=timeout)
                )
            assert str(caught.value) == f"after 0.05 s, job {job.id} is not finished; it goes on all the same"
            assert 0.04 <= time.monotonic() - before < 1
        await eventually(lambda: waiting_tasks() == [])
        gate.open()
        assert await dq.result(job, timeout=5) == "done"


async def test_what_is_finished_already_needs_no_waiting(dq: DurableQ) -> None:
    @dq.task(name="work")
    async def work() -> str:
        return "done"

    async with dq.running():
        job = await finished(dq, await dq.add_task(work))
        assert (await dq.wait(job, timeout=5)).state is JobState.SUCCEEDED
        assert await dq.result(job.id, timeout=5) == "done"
        assert waiting_tasks() == []


async def test_many_may_wait_for_one_job_and_for_many(dq: DurableQ) -> None:
    gate = Gate()

    @dq.task(name="work")
    async def work(number: int) -> int:
        await gate()
        return number

    async with dq.running():
        jobs = await dq.add_tasks([call(work, number) for number in range(20)])
        waiters = [asyncio.ensure_future(dq.result(job, timeout=10)) for job in jobs for _ in range(50)]
        await eventually(lambda: waiting_tasks() == ["durableq-waiting"])
        gate.open()
        results = await asyncio.gather(*waiters)
        assert results == [number for number in range(20) for _ in range(50)]
        await eventually(lambda: waiting_tasks() == [])


async def test_a_waiter_that_is_cancelled_leaves_nothing_behind_and_the_others_waiting(dq: DurableQ) -> None:
    gate = Gate()

    @dq.task(name="work")
    async def work() -> str:
        await gate()
        return "done"

    async with dq.running():
        job = await dq.add_task(work)
        first, second = (asyncio.ensure_future(dq.result(job)) for _ in range(2))
        run = dq._life.run
        assert run is not None
        await eventually(lambda: len(run.finished_jobs._waiting.get(job.id, ())) == 2)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert len(run.finished_jobs._waiting[job.id]) == 1
        gate.open()
        assert await second == "done"
        third = asyncio.ensure_future(dq.wait(await dq.add_task(work.options(delay=3600))))
        await eventually(lambda: len(run.finished_jobs._waiting) == 1)
        third.cancel()
        await eventually(lambda: third.done() and waiting_tasks() == [])
        assert run.finished_jobs._waiting == {}
        assert run.storage._watchers == set()  # type: ignore[attr-defined]


async def test_waiting_goes_on_through_retries_to_the_end(dq: DurableQ) -> None:
    tries = 0

    @dq.task(name="work", retry=RetryPolicy(wait=wait_fixed(0.05)))
    async def work() -> str:
        nonlocal tries
        tries += 1
        if tries < 4:
            raise ConnectionError("refused")
        return "done"

    async with dq.running():
        assert await dq.result(await dq.add_task(work), timeout=5) == "done"
    assert tries == 4


async def test_a_queue_that_is_stopped_ends_the_waiting(database: Path) -> None:
    dq = DurableQ(database, grace=0)
    gate = Gate()

    @dq.task(name="work")
    async def work() -> None:
        await gate()

    async with dq.running():
        running = await dq.add_task(work)
        scheduled = await dq.add_task(work.options(delay=3600))
        waiters = [asyncio.ensure_future(dq.wait(job)) for job in (running, scheduled)]
        await eventually(lambda: waiting_tasks() != [])
    for waiter in waiters:
        with pytest.raises(QueueNotRunning, match="has been stopped"):
            await asyncio.wait_for(waiter, 5)
    await eventually(lambda: waiting_tasks() == [])


async def test_who_comes_to_wait_while_the_queue_is_stopping_is_told_so(database: Path) -> None:
    """And does not wait for ever for events that nobody sends any more."""
    dq = DurableQ(database, worker=False)

    @dq.task(name="work")
    async def work() -> None: ...

    await dq.start()
    job = await dq.add_task(work)
    first = asyncio.ensure_future(dq.wait(job))
    await eventually(lambda: waiting_tasks() != [])
    stopping = asyncio.ensure_future(dq.stop())
    late = []
    while not stopping.done():
        late.append(asyncio.ensure_future(dq.wait(job)))
        await asyncio.sleep(0)
    for waiter in (first, *late):
        with pytest.raises((QueueNotRunning, StorageError)):
            await asyncio.wait_for(waiter, 5)
    await eventually(lambda: waiting_tasks() == [])


async def test_one_may_wait_again_after_a_restart(dq: DurableQ) -> None:
    gate = Gate()

    @dq.task(name="work")
    async def work() -> str:
        await gate()
        return "done"

    async with dq.running():
        job = await dq.add_task(work.options(delay=0.2))
        waiter = asyncio.ensure_future(dq.wait(job))
        await eventually(lambda: waiting_tasks() != [])
    with pytest.raises(QueueNotRunning):
        await waiter
    gate.open()
    async with dq.running():
        assert await dq.result(job, timeout=5) == "done"


async def test_a_job_that_is_deleted_while_somebody_waits_for_it_is_told_as_gone(dq: DurableQ, database: Path) -> None:
    @dq.task(name="work")
    async def work() -> None: ...

    async with dq.running():
        job = await dq.add_task(work.options(delay=3600))
        waiter = asyncio.ensure_future(dq.wait(job))
        await eventually(lambda: waiting_tasks() != [])
        sql(database, "DELETE FROM durableq_jobs")
        with pytest.raises(JobNotFound):
            await asyncio.wait_for(waiter, 5)


async def test_an_id_that_stands_for_another_job_leads_to_its_result(dq: DurableQ) -> None:
    gate = Gate()

    @dq.task(name="work", unique="one at a time")
    async def work(number: int) -> int:
        await gate()
        return number

    async with dq.running():
        there = await dq.add_task(work, 1)
        unstored = dq.new_job(work, (2,), {})
        await dq.add_jobs([unstored])
        assert unstored.id != there.id
        waiter = asyncio.ensure_future(dq.result(unstored.id, timeout=5))
        await eventually(lambda: waiting_tasks() != [])
        gate.open()
        assert await waiter == 1
        assert (await dq.wait(unstored.id, timeout=5)).id == there.id


async def test_a_job_may_wait_for_another(dq: DurableQ) -> None:
    @dq.task(name="second")
    async def second() -> int:
        return 20

    @dq.task(name="first")
    async def first() -> int:
        return await dq.result(await dq.add_task(second), timeout=5) + 1

    async with dq.running():
        assert await dq.result(await dq.add_task(first), timeout=5) == 21


async def test_no_end_is_missed_however_the_waiting_and_the_end_fall_together(dq: DurableQ) -> None:
    @dq.task(name="work")
    async def work(number: int) -> int:
        return number

    async with dq.running():
        for number in range(200):
            assert await dq.result(await dq.add_task(work, number), timeout=5) == number
        await asyncio.gather(*[_added_and_waited(dq, partial(dq.add_task, work, number)) for number in range(200)])
        await eventually(lambda: waiting_tasks() == [])
    gc.collect()


async def _added_and_waited(dq: DurableQ, add: Any) -> None:
    job = await add()
    assert await dq.result(job, timeout=10) == job.args["number"]


FAR = datetime(2099, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("options", "asks", "state"),
    [
        ({}, "returns", JobState.SUCCEEDED),
        ({}, "raises", JobState.DEAD),
        ({}, "is cancelled", JobState.CANCELLED),
        ({"run_at": FAR}, "is cancelled", JobState.CANCELLED),
        ({"run_at": FAR, "expires": 60}, "is late", JobState.CANCELLED),
        ({"run_at": FAR, "deadline": 60}, "is late", JobState.DEAD),
    ],
)
async def test_every_way_to_an_end_is_heard_of(database: Path, options: Any, asks: str, state: JobState) -> None:
    clock = ManualClock()
    dq = DurableQ(database, clock=clock)
    gate = Gate()

    @dq.task(name="work", max_attempts=1)
    async def work() -> None:
        await gate()
        if asks == "raises":
            raise RuntimeError("no")

    async with dq.running():
        job = await dq.add_task(work.options(**options))
        if not options:
            await eventually(lambda: gate.inside == 1)
        waiter = asyncio.ensure_future(dq.wait(job, timeout=5))
        await eventually(lambda: waiting_tasks() != [])
        if asks in ("returns", "raises"):
            gate.open()
        if asks == "is cancelled":
            await dq.cancel(job)
        if asks == "is late":
            clock.advance(61)
        assert (await waiter).state is state


async def test_a_job_that_is_cancelled_at_the_very_moment_it_fails_is_heard_of(dq: DurableQ) -> None:
    """What its worker writes is a retry; the storage knows better."""

    @dq.task(name="work")
    async def work() -> None:
        cancelling.append(asyncio.ensure_future(dq.cancel(current_job().id)))
        await asyncio.sleep(0)  # the request is on its way
        raise ConnectionError("refused")

    cancelling: list[asyncio.Future[Job[Any]]] = []
    async with dq.running():
        for _ in range(10):
            assert (await dq.wait(await dq.add_task(work), timeout=5)).state is JobState.CANCELLED
        await asyncio.gather(*cancelling)


# -- how soon ------------------------------------------------------------------------------------------------


async def test_the_end_of_a_job_is_heard_of_at_once_in_its_own_process(dq: DurableQ) -> None:
    ended_at: list[float] = []

    @dq.task(name="work")
    async def work() -> None:
        await asyncio.sleep(0.02)
        ended_at.append(time.monotonic())

    async with dq.running():
        delays = []
        for number in range(9):
            await asyncio.sleep(0.03 * number)  # at another point of the quarter-second look
            await dq.wait(await dq.add_task(work), timeout=5)
            delays.append(time.monotonic() - ended_at[-1])
    assert statistics.median(delays) < 0.06, delays


async def test_the_end_of_a_job_is_heard_of_at_once_in_another_process(database: Path) -> None:
    """From its start there to its end known here; the quarter-second look alone would give 0.125."""
    dq = DurableQ(database, worker=False)

    @dq.task(name="echo")
    async def echo(value: date) -> date:
        return value

    async with dq.running():
        with program(database) as other:
            await dq.result(await dq.add_task(echo, date(2026, 1, 1)), timeout=10)  # the names are known from now on
            delays = []
            for number in range(9):
                await asyncio.sleep(0.05 + 0.03 * number)
                job = await dq.add_task(echo, date(2026, 1, 1 + number))
                assert await dq.result(job, timeout=10) == date(2026, 1, 1 + number), "by the type declared here"
                ended_at = time.monotonic()
                delays.append(ended_at - other.hear("started", id=job.id)["at"])
    assert statistics.median(delays) < 0.08, delays


async def test_a_failure_in_another_process_is_told_with_its_traceback(database: Path) -> None:
    dq = DurableQ(database, worker=False)

    @dq.task(name="until_exists", max_attempts=1)
    async def until_exists(path: str) -> int:
        raise AssertionError("it runs elsewhere")

    async with dq.running():
        with program(database):
            job = await dq.add_task(until_exists, "x" * 5_000)  # too long for a name
            with pytest.raises(JobFailed) as caught:
                await dq.result(job, timeout=10)
    assert caught.value.error_type == "OSError"
    assert "tests/engine/program.py" in caught.value.traceback
    assert "in until_exists" in caught.value.traceback


async def test_a_job_that_nobody_here_knows_gives_its_result_as_json_has_it(database: Path) -> None:
    dq, stranger = DurableQ(database), DurableQ(database, worker=False)

    @dq.task(name="work")
    async def work() -> date:
        return date(2026, 1, 2)

    async with dq.running(), stranger.running():
        job = await dq.add_task(work)
        assert await stranger.result(job.id, timeout=5) == "2026-01-02"
        assert await dq.result(job.id, timeout=5) == date(2026, 1, 2)


async def test_several_queues_of_one_process_hear_of_one_anothers_jobs(database: Path) -> None:
    """They share one writing connection, whose own commits do not show in ``data_version``."""
    dq, other = DurableQ(database), DurableQ(database, worker=False)
    gate = Gate()

    @dq.task(name="work")
    async def work() -> str:
        await gate()
        return "done"

    async with dq.running(), other.running():
        job = await dq.add_task(work)
        waiter = asyncio.ensure_future(other.result(job.id, timeout=5))
        await eventually(lambda: waiting_tasks() != [])
        gate.open()
        assert await waiter == "done"


async def test_a_queue_in_another_thread_hears_of_it_as_well(database: Path) -> None:
    dq = DurableQ(database)
    gate = Gate()
    results: list[str] = []
    waits = threading.Event()

    @dq.task(name="work")
    async def work() -> str:
        await gate()
        return "done"

    def wait_elsewhere(job_id: str) -> None:
        async def main() -> None:
            async with (other := DurableQ(database, worker=False)).running():
                waiter = asyncio.ensure_future(other.result(job_id, timeout=5))
                await eventually(lambda: waiting_tasks() != [])
                waits.set()
                results.append(await waiter)

        asyncio.run(main())

    async with dq.running():
        job = await dq.add_task(work)
        elsewhere = threading.Thread(target=wait_elsewhere, args=(job.id,))
        elsewhere.start()
        await eventually(waits.is_set)
        gate.open()
        await eventually(lambda: not elsewhere.is_alive())
    assert results == ["done"]
