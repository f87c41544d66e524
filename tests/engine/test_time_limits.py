"""How long a job may wait, and how long an attempt may take: expiry, timeout, deadline."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest
from fastapi import Depends
from tenacity import wait_fixed

from durableq import AttemptTimedOut, DurableQ, Job, JobState, RetryPolicy, call, current_job
from durableq.engine import executor
from durableq.events import AttemptOverran, JobCancelled, JobDied, JobRetried
from durableq.testing import ManualClock
from tests.engine.helpers import AT_ONCE, Gate, collect, finished, in_state, sql
from tests.support import eventually

TIMED_OUT = "durableq.AttemptTimedOut"


async def for_ever() -> None:
    await asyncio.Event().wait()


# -- the timeout of an attempt -------------------------------------------------------------------------------


async def test_an_attempt_that_takes_too_long_is_stopped_and_tried_again(database: Path) -> None:
    dq = DurableQ(database)
    retried = collect(dq.events, JobRetried)
    cleaned_up: list[int] = []

    @dq.task(name="hang_once", timeout=0.05, retry=AT_ONCE)
    async def hang_once() -> str:
        try:
            if current_job().attempt == 1:
                await for_ever()
        finally:
            await asyncio.sleep(0)
            cleaned_up.append(current_job().attempt)
        return "done"

    async with dq.running():
        job = await finished(dq, await dq.add_task(hang_once))
        [attempt] = await dq.attempts(job)
    assert (job.state, job.attempt, job.result, job.error) == (JobState.SUCCEEDED, 2, "done", None)
    assert (attempt.attempt, attempt.error_type) == (1, TIMED_OUT)
    assert attempt.error_message == "attempt 1 was stopped: it took longer than its timeout of 0.05 s"
    assert attempt.duration >= timedelta(seconds=0.05)
    assert cleaned_up == [1, 2]
    assert [type(one.error) for one in retried] == [AttemptTimedOut]


async def test_the_traceback_of_a_timeout_says_where_the_task_hung(database: Path) -> None:
    dq = DurableQ(database)

    @dq.task(name="hang", timeout=0.05, max_attempts=1)
    async def hang() -> None:
        await for_ever()

    async with dq.running():
        [attempt] = await dq.attempts(await finished(dq, await dq.add_task(hang)))
    assert "in for_ever\n    await asyncio.Event().wait()" in attempt.traceback
    assert attempt.traceback.rstrip().endswith("its timeout of 0.05 s")
    assert "CancelledError" not in attempt.traceback, "nobody cancelled anything"


async def test_a_timeout_goes_through_the_retry_policy(database: Path) -> None:
    dq = DurableQ(database)

    @dq.task(name="hang", timeout=0.02, max_attempts=3, retry=AT_ONCE)
    async def hang() -> None:
        await for_ever()

    @dq.task(name="never_again", timeout=0.02, give_up_on=TimeoutError)
    async def never_again() -> None:
        await for_ever()

    async with dq.running():
        tried_on = await finished(dq, await dq.add_task(hang))
        given_up = await finished(dq, await dq.add_task(never_again))
    assert (tried_on.state, tried_on.attempt) == (JobState.DEAD, 3)
    assert (given_up.state, given_up.attempt) == (JobState.DEAD, 1)
    assert tried_on.error is not None
    assert tried_on.error.type == TIMED_OUT


async def test_an_attempt_within_its_time_is_left_alone(database: Path) -> None:
    dq = DurableQ(database)
    overran = collect(dq.events, AttemptOverran)

    @dq.task(name="brief", timeout=30)
    async def brief() -> str:
        await asyncio.sleep(0.01)
        return "fine"

    async with dq.running():
        job = await finished(dq, await dq.add_task(brief))
    assert (job.result, overran) == ("fine", [])


async def test_a_task_that_returns_all_the_same_has_succeeded(database: Path) -> None:
    dq = DurableQ(database)
    died, retried = collect(dq.events, JobDied), collect(dq.events, JobRetried)

    @dq.task(name="save_what_there_is", timeout=0.05)
    async def save_what_there_is() -> str:
        try:
            await for_ever()
        except asyncio.CancelledError:
            await asyncio.sleep(0)
        return "half of it"

    async with dq.running():
        job = await finished(dq, await dq.add_task(save_what_there_is))
    assert (job.state, job.attempt, job.result, died, retried) == (JobState.SUCCEEDED, 1, "half of it", [], [])


async def test_what_a_task_raises_when_it_is_stopped_is_told_with_the_timeout(database: Path) -> None:
    dq = DurableQ(database)

    @dq.task(name="complain", timeout=0.05, max_attempts=1)
    async def complain() -> None:
        try:
            await for_ever()
        finally:
            raise OSError("the socket is gone")

    async with dq.running():
        job = await finished(dq, await dq.add_task(complain))
        [attempt] = await dq.attempts(job)
    assert attempt.error_type == TIMED_OUT
    assert "OSError: the socket is gone" in attempt.traceback
    assert "direct cause" in attempt.traceback


@pytest.mark.parametrize("own", ["asyncio.timeout", "raised"])
async def test_a_timeout_of_the_tasks_own_is_not_ours(database: Path, own: str) -> None:
    dq = DurableQ(database)

    @dq.task(name="ask", timeout=30, max_attempts=1)
    async def ask() -> None:
        if own == "raised":
            raise TimeoutError("the other side does not answer")
        async with asyncio.timeout(0.01):
            await for_ever()

    async with dq.running():
        job = await finished(dq, await dq.add_task(ask))
    assert job.error is not None
    assert (job.state, job.error.type) == (JobState.DEAD, "TimeoutError")


async def test_an_inner_timeout_that_is_longer_does_not_take_ours_for_its_own(database: Path) -> None:
    dq = DurableQ(database)
    saw: list[type[BaseException]] = []

    @dq.task(name="ask", timeout=0.05, max_attempts=1)
    async def ask() -> None:
        try:
            async with asyncio.timeout(30):
                await for_ever()
        except BaseException as error:
            saw.append(type(error))
            raise

    async with dq.running():
        job = await finished(dq, await dq.add_task(ask))
    assert job.error is not None
    assert (saw, job.error.type) == ([asyncio.CancelledError], TIMED_OUT)


# -- tasks that do not stop ----------------------------------------------------------------------------------


class Stubborn:
    """A task body that swallows every cancellation until it is released."""

    def __init__(self) -> None:
        self.has_ended = False
        self._released = asyncio.Event()

    async def __call__(self) -> None:
        while not self._released.is_set():
            try:
                await self._released.wait()
            except asyncio.CancelledError:
                continue
        self.has_ended = True

    def release(self) -> None:
        self._released.set()


async def test_a_task_that_does_not_stop_is_left_behind_and_its_end_counts_for_nothing(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor, "OVERRUN_SECONDS", 0.1)
    dq = DurableQ(database)
    overran, died = collect(dq.events, AttemptOverran), collect(dq.events, JobDied)
    body = Stubborn()

    @dq.task(name="stubborn", timeout=0.05, max_attempts=1)
    async def stubborn() -> str:
        await body()
        return "too late"

    async with dq.running():
        job = await finished(dq, await dq.add_task(stubborn))
        assert job.error is not None
        assert (job.state, job.error.type, body.has_ended) == (JobState.DEAD, TIMED_OUT, False)
        assert [(one.lease.id, one.runner, one.left_behind) for one in overran] == [(job.id, "loop", 1)]
        body.release()
        await eventually(lambda: body.has_ended)
        await dq.drain()
        after = await dq.get(job)
    assert (after.state, after.result, len(died)) == (JobState.DEAD, None, 1)


async def test_what_is_left_behind_keeps_its_slot_until_it_ends(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor, "OVERRUN_SECONDS", 0.05)
    dq = DurableQ(database, concurrency=1)
    body = Stubborn()
    started: list[str] = []

    @dq.task(name="stubborn", timeout=0.02, max_attempts=1)
    async def stubborn() -> None:
        await body()

    @dq.task(name="next")
    async def next_one() -> None:
        started.append("next")

    async with dq.running():
        await finished(dq, await dq.add_task(stubborn))
        waiting = await dq.add_task(next_one)
        await asyncio.sleep(0.3)  # a worker that had a slot would have taken it by now
        assert started == []
        body.release()
        assert (await finished(dq, waiting)).state is JobState.SUCCEEDED


@pytest.mark.foreign_bug(69)
async def test_what_is_left_behind_does_not_hold_up_the_end(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(executor, "OVERRUN_SECONDS", 0.05)
    dq = DurableQ(database, grace=0.1)
    body = Stubborn()

    @dq.task(name="stubborn", timeout=0.02, max_attempts=1)
    async def stubborn() -> None:
        await body()

    async with dq.running():
        await finished(dq, await dq.add_task(stubborn))
        stopped_at = time.monotonic()
    assert time.monotonic() - stopped_at < 2
    body.release()
    await eventually(lambda: body.has_ended)


async def test_a_cancellation_wins_over_a_timeout_that_nobody_obeys(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(executor, "OVERRUN_SECONDS", 0.1)
    dq = DurableQ(database)
    retried, cancelled = collect(dq.events, JobRetried), collect(dq.events, JobCancelled)
    body = Stubborn()

    @dq.task(name="stubborn", timeout=0.5, retry=AT_ONCE)
    async def stubborn() -> None:
        await body()

    async with dq.running():
        job = await dq.add_task(stubborn)
        await in_state(dq, job, JobState.RUNNING)
        await dq.cancel(job)
        assert (await finished(dq, job)).state is JobState.CANCELLED
        await eventually(lambda: len(cancelled) == 1)
        body.release()
    assert retried == []


# -- threads -------------------------------------------------------------------------------------------------


@pytest.mark.fault("F13")
async def test_a_thread_that_takes_too_long_goes_on_but_nobody_waits_for_it(database: Path) -> None:
    dq = DurableQ(database)
    overran = collect(dq.events, AttemptOverran)
    release, ended = threading.Event(), threading.Event()

    @dq.task(name="block", timeout=0.05, max_attempts=1)
    def block() -> str:
        release.wait()
        ended.set()
        return "too late"

    async with dq.running():
        job = await finished(dq, await dq.add_task(block))
        assert job.error is not None
        assert (job.state, job.error.type, ended.is_set()) == (JobState.DEAD, TIMED_OUT, False)
        assert [(one.lease.id, one.runner, one.left_behind) for one in overran] == [(job.id, "thread", 1)]
        release.set()
        await eventually(ended.is_set)
        await dq.drain()
        assert (await dq.get(job)).result is None


async def test_a_thread_sees_that_its_time_is_over(database: Path) -> None:
    dq = DurableQ(database)
    ended = threading.Event()

    @dq.task(name="look_often", timeout=0.05, max_attempts=1)
    def look_often() -> None:
        while not current_job().cancelled:
            time.sleep(0.005)
        ended.set()

    async with dq.running():
        job = await finished(dq, await dq.add_task(look_often))
        await eventually(ended.is_set)
    assert job.error is not None
    assert job.error.type == TIMED_OUT, "nobody waits for what it does then"


@pytest.mark.fault("F13")
async def test_the_slots_of_overrunning_threads_are_replaced_but_not_without_end(database: Path) -> None:
    """As many threads again as there are slots; beyond that, jobs wait."""
    dq = DurableQ(database, threads=1)
    overran = collect(dq.events, AttemptOverran)
    releases = {name: threading.Event() for name in ("first", "second")}
    ran = threading.Event()

    @dq.task(name="block", timeout=0.05, max_attempts=1)
    def block(name: str) -> None:
        releases[name].wait()

    @dq.task(name="brief")
    def brief() -> None:
        ran.set()

    async with dq.running():
        try:
            await finished(dq, await dq.add_task(block, "first"))
            assert (await finished(dq, await dq.add_task(brief))).state is JobState.SUCCEEDED, "the slot is replaced"
            await finished(dq, await dq.add_task(block, "second"))
            ran.clear()
            waiting = await dq.add_task(brief)
            await asyncio.sleep(0.3)  # a worker that had a slot would have taken it by now
            assert not ran.is_set(), "two threads are enough for one slot"
            assert [one.left_behind for one in overran] == [1, 2]
            releases["first"].set()
            assert (await finished(dq, waiting)).state is JobState.SUCCEEDED
        finally:
            for release in releases.values():
                release.set()


@pytest.mark.fault("F13")
async def test_threads_that_overrun_do_not_hold_up_the_end(database: Path) -> None:
    dq = DurableQ(database, grace=0.1)
    release = threading.Event()

    @dq.task(name="block", timeout=0.05, max_attempts=1)
    def block() -> None:
        release.wait()

    async with dq.running():
        await dq.add_tasks([call(block) for _ in range(3)])
        await dq.drain(timeout=10)
        stopped_at = time.monotonic()
    assert time.monotonic() - stopped_at < 2
    release.set()


async def test_a_job_whose_time_is_over_before_it_came_to_its_thread_leaves_no_thread_behind(database: Path) -> None:
    dq = DurableQ(database)
    overran = collect(dq.events, AttemptOverran)
    torn_down: list[bool] = []
    ran: list[bool] = []

    async def slow() -> AsyncIterator[int]:
        try:
            await for_ever()
            yield 1
        finally:
            torn_down.append(True)

    @dq.task(name="wants", timeout=0.05, max_attempts=1)
    def wants(value: int = Depends(slow)) -> None:
        ran.append(True)

    async with dq.running():
        job = await finished(dq, await dq.add_task(wants))
    assert job.error is not None
    assert (job.error.type, torn_down, ran, overran) == (TIMED_OUT, [True], [], [])


# -- timeout and deadline together ---------------------------------------------------------------------------


async def test_the_shorter_of_timeout_and_deadline_counts(database: Path) -> None:
    dq = DurableQ(database)
    died = collect(dq.events, JobDied)

    @dq.task(name="hang", retry=AT_ONCE, max_attempts=2)
    async def hang() -> None:
        await for_ever()

    async with dq.running():
        by_timeout = await finished(dq, await dq.add_task(hang.options(timeout=0.05, deadline=30)))
        by_deadline = await finished(dq, await dq.add_task(hang.options(timeout=30).options(deadline=0.5)))
        [only] = await dq.attempts(by_deadline)
    assert (by_timeout.state, by_timeout.attempt) == (JobState.DEAD, 2), "a timeout is retried"
    assert (by_deadline.state, by_deadline.attempt) == (JobState.DEAD, 1), "a deadline is not"
    assert only.error_type == TIMED_OUT
    assert only.error_message.startswith("attempt 1 was stopped at the job's deadline, after 0.")
    assert [type(one.error) for one in died] == [AttemptTimedOut] * 2


async def test_a_deadline_ends_the_job_even_if_the_wall_clock_is_behind_the_timer(database: Path) -> None:
    """It may be slewed, or stand still; a retry at once would only be stopped again."""
    dq = DurableQ(database, clock=ManualClock())

    @dq.task(name="hang", deadline=0.1, retry=AT_ONCE)
    async def hang() -> None:
        await for_ever()

    async with dq.running():
        job = await finished(dq, await dq.add_task(hang))
    assert (job.state, job.attempt) == (JobState.DEAD, 1)


# -- the deadline between attempts ---------------------------------------------------------------------------


async def test_a_retry_that_would_come_after_the_deadline_is_not_waited_for(database: Path) -> None:
    dq = DurableQ(database)

    @dq.task(name="fail", deadline=60, retry=RetryPolicy(wait=wait_fixed(61)))
    async def fail() -> None:
        raise ConnectionError("refused")

    async with dq.running():
        job = await finished(dq, await dq.add_task(fail))
    assert job.error is not None
    assert (job.state, job.attempt, job.error.type) == (JobState.DEAD, 1, "ConnectionError")


async def test_a_job_that_waits_when_its_deadline_passes_is_dead(database: Path) -> None:
    clock = ManualClock()
    dq = DurableQ(database, clock=clock)
    died = collect(dq.events, JobDied)
    ran: list[int] = []

    @dq.task(name="fail", retry=RetryPolicy(wait=wait_fixed(50)))
    async def fail() -> None:
        ran.append(current_job().attempt)
        raise ConnectionError("refused")

    async with dq.running():
        retrying = await dq.add_task(fail.options(deadline=60))
        scheduled = await dq.add_task(fail.options(deadline=60, run_at=clock.now + timedelta(seconds=3600)))
        assert (await in_state(dq, retrying, JobState.SCHEDULED)).deadline_at == clock.now + timedelta(seconds=60)
        clock.advance(3600)
        for job in (await finished(dq, retrying), await finished(dq, scheduled)):
            assert job.error is not None
            assert (job.state, job.error.type) == (JobState.DEAD, "durableq.DeadlinePassed")
        assert (await dq.attempts(retrying))[0].error_type == "ConnectionError", "its history is kept"
    assert ran == [1]
    assert {one.lease.id for one in died} == {retrying.id, scheduled.id}
    assert {type(one.error) for one in died} == {AttemptTimedOut}


async def test_a_job_that_is_retried_by_hand_has_its_time_anew(database: Path) -> None:
    clock = ManualClock()
    dq = DurableQ(database, clock=clock)
    seen: list[float] = []

    @dq.task(name="work", deadline=60)
    async def work() -> None:
        job = await dq.get(current_job().id)
        assert job.deadline_at is not None
        seen.append((job.deadline_at - clock.now).total_seconds())

    producer = DurableQ(database, clock=clock, worker=False)
    producer.task(name="work", deadline=60)(work.function)
    async with producer.running():
        job = await producer.add_task(work.function)
    clock.advance(3600)
    async with dq.running():
        assert (await finished(dq, job)).state is JobState.DEAD
        await dq.retry(job)
        assert (await finished(dq, job)).state is JobState.SUCCEEDED
    assert seen == [60.0]


# -- expiry --------------------------------------------------------------------------------------------------


async def _expired(dq: DurableQ, job: Job[None]) -> None:
    ended = await finished(dq, job)
    assert ended.error is not None
    assert (ended.state, ended.error.type) == (JobState.CANCELLED, "durableq.Expired")


async def test_a_job_that_expired_while_no_worker_was_there_is_never_started(database: Path) -> None:
    clock = ManualClock()
    producer, dq = DurableQ(database, clock=clock, worker=False), DurableQ(database, clock=clock)
    cancelled = collect(dq.events, JobCancelled)
    ran: list[str] = []

    async def work(name: str) -> None:
        ran.append(name)

    tasks = [one.task(name="work", expires=60)(work) for one in (producer, dq)]
    async with producer.running():
        late = await producer.add_task(work, "late")
        patient = await producer.add_task(tasks[0].options(expires=None), "patient")
        assert late.expires_at == clock.now + timedelta(seconds=60)
        clock.advance(61)
        await asyncio.sleep(0.5)  # nobody there looks for it
        assert (await producer.get(late)).state is JobState.QUEUED
    async with dq.running():
        await _expired(dq, late)
        assert (await finished(dq, patient)).state is JobState.SUCCEEDED
    assert ran == ["patient"]
    assert [one.lease.id for one in cancelled] == [late.id]


async def test_a_job_that_no_slot_was_free_for_in_time_is_cancelled(database: Path) -> None:
    dq = DurableQ(database, concurrency=1)
    gate = Gate()
    ran: list[str] = []

    @dq.task(name="hold")
    async def hold() -> None:
        await gate()

    @dq.task(name="work", expires=0.1)
    async def work() -> None:
        ran.append("work")

    async with dq.running():
        await dq.add_task(hold)
        await eventually(lambda: gate.inside == 1)
        late = await dq.add_task(work)
        await _expired(dq, late)
        gate.open()
        await dq.drain()
    assert ran == []


async def test_a_job_that_was_started_in_time_does_not_expire_any_more(database: Path) -> None:
    clock = ManualClock()
    dq = DurableQ(database, clock=clock)

    @dq.task(name="flaky", expires=60, retry=RetryPolicy(wait=wait_fixed(3600)))
    async def flaky() -> str:
        if current_job().attempt == 1:
            raise ConnectionError("refused")
        return "done"

    async with dq.running():
        job = await dq.add_task(flaky)
        await in_state(dq, job, JobState.SCHEDULED)
        clock.advance(3600)
        assert (await finished(dq, job)).result == "done"


async def test_a_job_that_is_claimed_just_when_it_expires_is_not_started(database: Path) -> None:
    """Nobody has looked for late jobs since: the worker itself sees it before it starts one."""
    clock = ManualClock()
    dq = DurableQ(database, concurrency=1, clock=clock)
    ran: list[str] = []

    @dq.task(name="work")
    async def work(name: str) -> None:
        ran.append(name)
        clock.advance(61)  # the next one's time is over before the loop has come round again

    async with dq.running():
        await dq.add_tasks([call(work, "first"), call(work.options(expires=60), "late")])
        await dq.drain(timeout=10)
        [late] = [job for job in (await dq.list()).jobs if job.args["name"] == "late"]
        await _expired(dq, late)
    assert ran == ["first"]


# -- per call ------------------------------------------------------------------------------------------------


async def test_a_timeout_given_with_the_call_rides_in_the_row(database: Path) -> None:
    """The worker may be another deployment, whose task says something else."""
    producer, dq = DurableQ(database, worker=False), DurableQ(database)

    async def hang() -> None:
        await for_ever()

    here = producer.task(name="hang", max_attempts=1)(hang)
    dq.task(name="hang", max_attempts=1, timeout=30)(hang)
    async with producer.running():
        job = await producer.add_task(here.options(timeout=0.05))
        assert (await producer.get(job)).timeout == timedelta(seconds=0.05)
    async with dq.running():
        ended = await finished(dq, job)
    assert ended.error is not None
    assert ended.error.message.endswith("its timeout of 0.05 s")


async def test_without_one_the_timeout_of_the_deployed_task_counts(database: Path) -> None:
    producer, dq = DurableQ(database, worker=False), DurableQ(database)

    async def hang() -> None:
        await for_ever()

    here = producer.task(name="hang", max_attempts=1)(hang)
    dq.task(name="hang", max_attempts=1, timeout=0.05)(hang)
    async with producer.running():
        jobs = [await producer.add_task(here), await producer.add_task(here.options(tags=["a"]))]
    async with dq.running():
        for job in jobs:
            ended = await finished(dq, job)
            assert ended.error is not None
            assert ended.error.type == TIMED_OUT


async def test_an_attempt_whose_stored_settings_are_damaged_fails_and_is_not_held_for_ever(database: Path) -> None:
    producer, dq = DurableQ(database, worker=False), DurableQ(database, concurrency=1)

    async def work() -> str:
        return "done"

    here = producer.task(name="work", max_attempts=1)(work)
    dq.task(name="work")(work)
    async with producer.running():
        job = await producer.add_task(here.options(timeout=60))
    sql(database, "UPDATE durableq_jobs SET settings = '{' WHERE id = ?", job.id)
    async with dq.running():
        await eventually(lambda: sql(database, "SELECT state FROM durableq_jobs") == [("dead",)])
        assert (await finished(dq, await dq.add_task(work))).result == "done", "its slot is free"
