"""One lease in, one outcome out: failures, dead letters, and whatever else a task may raise or return."""

import asyncio
import sys
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import NoReturn

import pytest
from tenacity import retry_if_not_exception_type, wait_fixed

from durableq import DurableQ, JobState, RetryPolicy
from durableq.events import JobDied, JobRetried
from durableq.testing import ManualClock
from tests.engine.helpers import AT_ONCE, collect, finished, in_state, sql
from tests.support import eventually


class Unstoppable(BaseException):
    """What ``except Exception`` lets pass, like SystemExit; were it to escape, it would not end the tests as well."""


# -- failures ------------------------------------------------------------------------------------------------


@pytest.mark.foreign_bug(11)
async def test_a_failed_job_is_tried_again_when_its_time_has_come_and_not_before(database: Path) -> None:
    clock = ManualClock()
    dq = DurableQ(database, clock=clock)
    tries = 0

    @dq.task(name="flaky", retry=RetryPolicy(wait=wait_fixed(60)))
    async def flaky() -> str:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise RuntimeError(f"try {tries}")
        return "done"

    async with dq.running():
        job = await dq.add_task(flaky)
        for attempt in (1, 2):
            waiting = await in_state(dq, job, JobState.SCHEDULED)
            assert (waiting.attempt, waiting.run_at - clock.now) == (attempt, timedelta(seconds=60))
            assert waiting.error is not None
            assert (waiting.error.type, waiting.error.message) == ("RuntimeError", f"try {attempt}")
            clock.advance(59)
            await asyncio.sleep(0.3)  # the queue has looked at the clock by now
            assert (await dq.get(job)).state is JobState.SCHEDULED
            clock.advance(1)
            await eventually(partial(_is_attempt, database, attempt + 1))
        done = await finished(dq, job)
    assert (done.state, done.attempt, done.result, done.error) == (JobState.SUCCEEDED, 3, "done", None)


async def test_waits_grow_from_try_to_try_by_default(database: Path) -> None:
    clock = ManualClock()
    dq = DurableQ(database, clock=clock)

    @dq.task(name="fail", max_attempts=4)
    async def fail() -> NoReturn:
        raise RuntimeError("no")

    async with dq.running():
        job = await dq.add_task(fail)
        for attempt, seconds in [(1, 1), (2, 2), (3, 4)]:
            waiting = await in_state(dq, job, JobState.SCHEDULED)
            assert waiting.attempt == attempt
            assert seconds <= (waiting.run_at - clock.now).total_seconds() <= seconds * 1.25
            clock.advance(waiting.run_at - clock.now)
            await eventually(partial(_is_attempt, database, attempt + 1))
        assert (await finished(dq, job)).state is JobState.DEAD


def _is_attempt(database: Path, number: int) -> bool:
    return sql(database, "SELECT attempt FROM durableq_jobs") == [(number,)]


async def test_a_dead_letter_keeps_the_full_traceback_of_every_attempt(database: Path) -> None:
    dq = DurableQ(database)
    tries = 0

    @dq.task(name="fail", max_attempts=3, retry=AT_ONCE)
    async def fail() -> None:
        nonlocal tries
        tries += 1
        try:
            raise KeyError(f"cause {tries}")
        except KeyError as error:
            raise ValueError(f"effect {tries}") from error

    async with dq.running():
        job = await finished(dq, await dq.add_task(fail))
        attempts = await dq.attempts(job)
    assert (job.state, job.attempt, job.crashes) == (JobState.DEAD, 3, 0)
    assert job.error is not None
    assert (job.error.type, job.error.message) == ("ValueError", "effect 3")
    assert [one.attempt for one in attempts] == [1, 2, 3]
    for number, one in enumerate(attempts, start=1):
        assert (one.error_type, one.error_message) == ("ValueError", f"effect {number}")
        assert one.traceback.count("Traceback (most recent call last)") == 2, "the cause belongs to it"
        assert f"KeyError: 'cause {number}'" in one.traceback
        assert 'raise KeyError(f"cause {tries}")\n' in one.traceback
        assert "in fail" in one.traceback
        assert "durableq/engine" not in one.traceback, "our own frames say nothing to the reader"


async def test_a_failure_that_the_policy_does_not_retry_is_dead_at_once(database: Path) -> None:
    dq = DurableQ(database)
    retried, died = collect(dq.events, JobRetried), collect(dq.events, JobDied)

    @dq.task(name="fail", retry=RetryPolicy(retry=retry_if_not_exception_type(ValueError)))
    async def fail() -> None:
        raise ValueError("never better")

    async with dq.running():
        job = await finished(dq, await dq.add_task(fail))
    assert (job.state, job.attempt, len(retried), len(died)) == (JobState.DEAD, 1, 0, 1)


async def test_a_policy_that_raises_does_not_lose_the_job(database: Path) -> None:
    dq = DurableQ(database)

    def broken(_: object) -> NoReturn:
        raise Unstoppable("a policy of the app, broken")

    @dq.task(name="fail", max_attempts=2, retry=RetryPolicy(wait=broken))
    async def fail() -> None:
        raise RuntimeError("no")

    async with dq.running():
        waiting = await in_state(dq, await dq.add_task(fail), JobState.SCHEDULED)
        assert waiting.attempt == 1


# -- whatever a task raises ----------------------------------------------------------------------------------


def _recurse() -> NoReturn:
    _recurse()
    raise AssertionError


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text")


class Suicidal(Exception):
    def __str__(self) -> str:
        raise Unstoppable("not even this ends the server")


class Enormous(Exception):
    def __str__(self) -> str:
        return "x" * 10_000_000


def _raise(error: BaseException) -> Callable[[], NoReturn]:
    def raise_it() -> NoReturn:
        raise error

    return raise_it


RAISED = {
    "SystemExit": lambda: sys.exit(3),
    "KeyboardInterrupt": _raise(KeyboardInterrupt()),
    "GeneratorExit": _raise(GeneratorExit()),
    "asyncio.exceptions.CancelledError": _raise(asyncio.CancelledError("my own")),
    "RecursionError": _recurse,
    "MemoryError": _raise(MemoryError()),
    "BaseException": _raise(BaseException("bare")),
    "BaseExceptionGroup": _raise(BaseExceptionGroup("several", [KeyboardInterrupt(), SystemExit()])),
    "StopAsyncIteration": _raise(StopAsyncIteration()),
    "UnicodeError": _raise(UnicodeError("lone \ud800 surrogate")),
    f"{__name__}.Unprintable": _raise(Unprintable()),
    f"{__name__}.Suicidal": _raise(Suicidal()),
    f"{__name__}.Enormous": _raise(Enormous()),
}


@pytest.mark.fault("F47")
@pytest.mark.parametrize("runner", ["loop", "thread"])
@pytest.mark.parametrize("kind", RAISED)
async def test_whatever_a_task_raises_ends_its_attempt_and_nothing_else(database: Path, kind: str, runner: str) -> None:
    dq = DurableQ(database, concurrency=1, threads=1)

    async def fail_async() -> None:
        RAISED[kind]()

    def fail_sync() -> None:
        RAISED[kind]()

    async def work_async() -> str:
        return "fine"

    def work_sync() -> str:
        return "fine"

    fail = fail_async if runner == "loop" else fail_sync
    work = work_async if runner == "loop" else work_sync
    doomed = dq.task(name="doomed", max_attempts=2, retry=AT_ONCE)(fail)
    after = dq.task(name="after")(work)
    async with dq.running():
        job = await finished(dq, await dq.add_task(doomed))
        assert (job.state, job.attempt) == (JobState.DEAD, 2)
        assert job.error is not None
        assert job.error.type == kind
        assert [one.error_type for one in await dq.attempts(job)] == [kind, kind]
        # Its one slot is free again, and the worker lives.
        assert (await finished(dq, await dq.add_task(after))).result == "fine"


@pytest.mark.fault("F48")
async def test_a_task_that_cancels_itself_has_failed(database: Path) -> None:
    dq = DurableQ(database)

    @dq.task(name="give up", max_attempts=1)
    async def give_up() -> None:
        current = asyncio.current_task()
        assert current is not None
        current.cancel()
        await asyncio.sleep(0)

    async with dq.running():
        job = await finished(dq, await dq.add_task(give_up))
    assert job.error is not None
    assert (job.state, job.error.type) == (JobState.DEAD, "asyncio.exceptions.CancelledError")
