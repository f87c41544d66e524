"""Starts that are due later, clocks that are set, and what is deleted when its time is over."""

import asyncio
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest

from durableq import DurableQ, JobNotFound, JobState, RetryPolicy, call
from durableq.events import WorkerEvicted, WorkerReaped
from durableq.testing import ManualClock
from tests.engine.helpers import Gate, collect, finished, in_state
from tests.support import eventually

DAY = timedelta(days=1)
A_LOOK_SECONDS = 0.35
"""A queue notices that its clock was moved within a quarter of a second."""


@pytest.mark.parametrize("how", ["delay", "run_at"])
async def test_a_job_with_a_delay_starts_when_it_is_due_and_never_before(database: Path, how: str) -> None:
    dq = DurableQ(database)
    started: list[float] = []

    @dq.task(name="note")
    async def note() -> None:
        started.append(time.time())

    async with dq.running():
        await dq.add_task(note)  # so that the name is known, and the time measured is that of the timer alone
        await dq.drain()
        due = time.time() + 0.4
        later = note.options(run_at=datetime.fromtimestamp(due, UTC)) if how == "run_at" else note.options(delay=0.4)
        job = await dq.add_task(later)
        assert job.state is JobState.SCHEDULED
        await finished(dq, job)
    assert -0.001 <= started[1] - due <= 0.15


async def test_a_job_due_in_the_past_runs_at_once(database: Path) -> None:
    dq = DurableQ(database)

    @dq.task(name="note", run_at=datetime(2020, 1, 1, tzinfo=UTC))
    async def note() -> None: ...

    async with dq.running():
        assert (await finished(dq, await dq.add_task(note))).state is JobState.SUCCEEDED


async def test_jobs_become_due_in_the_order_of_their_times_not_of_their_coming(database: Path) -> None:
    clock = ManualClock()
    dq = DurableQ(database, clock=clock, concurrency=1)
    order: list[int] = []

    @dq.task(name="note")
    async def note(minute: int) -> None:
        order.append(minute)

    async with dq.running():
        for minute in (3, 1, 2):
            await dq.add_task(note.options(delay=60 * minute), minute)
        for minute in (1, 2, 3):
            clock.advance(60)
            await eventually(partial(order.__contains__, minute))
    assert order == [1, 2, 3]


async def test_what_became_due_while_nothing_ran_runs_at_the_next_start(database: Path) -> None:
    clock = ManualClock()
    dq = DurableQ(database, clock=clock)

    @dq.task(name="note")
    async def note() -> None: ...

    async with dq.running():
        job = await dq.add_task(note.options(delay=3600))
    clock.advance(2 * DAY)
    async with dq.running():
        assert (await finished(dq, job)).attempt == 1


# -- the host's clock is set ---------------------------------------------------------------------------------


@pytest.mark.fault("F36")
@pytest.mark.parametrize("step", [DAY, -DAY, timedelta(days=400), timedelta(days=-400)])
async def test_a_step_of_the_wall_clock_loses_and_doubles_nothing(database: Path, step: timedelta) -> None:
    clock = ManualClock()
    dq = DurableQ(database, clock=clock, lease=30)
    gate = Gate()
    runs: Counter[str] = Counter()
    evicted, reaped = collect(dq.events, WorkerEvicted), collect(dq.events, WorkerReaped)

    @dq.task(name="wait")
    async def wait() -> None:
        runs["running"] += 1
        await gate()

    @dq.task(name="note", retry=RetryPolicy())
    async def note(name: str) -> None:
        runs[name] += 1
        if name == "retried" and runs[name] == 1:
            raise RuntimeError("no")

    async with dq.running():
        running = await dq.add_task(wait)
        retried = await dq.add_task(note, "retried")
        scheduled = await dq.add_tasks([call(note.options(delay=hour * 3600), f"{hour} h") for hour in range(1, 11)])
        await in_state(dq, retried, JobState.SCHEDULED)
        await eventually(lambda: gate.inside == 1)
        clock.step_wall(step)
        await asyncio.sleep(2 * A_LOOK_SECONDS)
        assert (await dq.get(running)).state is JobState.RUNNING
        queued = await dq.add_task(note, "queued after the step")
        assert (await finished(dq, queued)).state is JobState.SUCCEEDED
        gate.open()
        await finished(dq, running)
        # Wherever the clock was set, all of it is due when it has come past the latest of the times.
        clock.step_wall(-step)
        clock.advance(11 * 3600)
        for job in [*scheduled, retried]:
            assert (await finished(dq, job)).state is JobState.SUCCEEDED
    names = {f"{hour} h" for hour in range(1, 11)} | {"running", "queued after the step"}
    assert runs == Counter({"retried": 2} | dict.fromkeys(names, 1))
    assert (evicted, reaped) == ([], []), "leases are measured in another clock"


@pytest.mark.fault("F36")
async def test_a_clock_that_is_set_back_holds_up_only_what_waits_for_a_time(database: Path) -> None:
    clock = ManualClock()
    dq = DurableQ(database, clock=clock)

    @dq.task(name="note")
    async def note() -> None: ...

    async with dq.running():
        later = await dq.add_task(note.options(delay=60))
        clock.step_wall(-DAY)
        clock.advance(61)
        await asyncio.sleep(A_LOOK_SECONDS)
        assert (await dq.get(later)).state is JobState.SCHEDULED
        assert (await finished(dq, await dq.add_task(note))).state is JobState.SUCCEEDED
        clock.step_wall(DAY)
        assert (await finished(dq, later)).state is JobState.SUCCEEDED


@pytest.mark.foreign_bug(82, 83)
async def test_a_night_of_suspension_neither_loses_leases_nor_floods(database: Path) -> None:
    """Both clocks have gone on meanwhile, the lease ran out, and nobody else was awake to see it."""
    clock = ManualClock()
    dq = DurableQ(database, clock=clock)
    gate = Gate()
    evicted, reaped = collect(dq.events, WorkerEvicted), collect(dq.events, WorkerReaped)

    @dq.task(name="wait")
    async def wait() -> None:
        await gate()

    async with dq.running():
        job = await dq.add_task(wait)
        await eventually(lambda: gate.inside == 1)
        clock.advance(timedelta(hours=8))
        await asyncio.sleep(2 * A_LOOK_SECONDS)
        gate.open()
        assert (await finished(dq, job)).attempt == 1
    assert (gate.entered, evicted, reaped) == (1, [], [])


# -- retention -----------------------------------------------------------------------------------------------


@pytest.mark.foreign_bug(70, 73)
async def test_finished_jobs_are_deleted_when_their_time_is_over_and_dead_letters_stay(database: Path) -> None:
    clock = ManualClock()
    dq = DurableQ(database, clock=clock)

    @dq.task(name="work")
    async def work() -> None: ...

    @dq.task(name="fail", max_attempts=1)
    async def fail() -> None:
        raise RuntimeError("no")

    async with dq.running():
        succeeded = await finished(dq, await dq.add_task(work))
        dead = await finished(dq, await dq.add_task(fail))
        cancelled = await dq.cancel(await dq.add_task(work.options(delay=999)), who="me")
        waiting = await dq.add_task(work.options(delay=30 * DAY))
    clock.advance(6 * DAY)
    async with dq.running():
        clock.advance(0.5 * DAY)
        young = await finished(dq, await dq.add_task(work))
        for job in (succeeded, cancelled, dead, waiting):
            await dq.get(job)
    clock.advance(DAY)
    async with dq.running():
        await eventually(partial(_is_gone, dq, succeeded.id))
        await eventually(partial(_is_gone, dq, cancelled.id))
        assert (await dq.get(dead)).state is JobState.DEAD
        assert len(await dq.attempts(dead)) == 1
        assert (await dq.get(young)).state is JobState.SUCCEEDED
        assert (await dq.get(waiting)).state is JobState.SCHEDULED
        assert [entry.who for entry in await dq.audit_trail(cancelled)] == ["me"], "who did it outlives the job"


async def test_retention_is_a_setting_for_dead_letters_too(database: Path) -> None:
    clock = ManualClock()
    dq = DurableQ(database, clock=clock, retain_finished=None, retain_dead=DAY)

    @dq.task(name="work")
    async def work() -> None: ...

    @dq.task(name="fail", max_attempts=1)
    async def fail() -> None:
        raise RuntimeError("no")

    async with dq.running():
        succeeded = await finished(dq, await dq.add_task(work))
        dead = [await finished(dq, await dq.add_task(fail)) for _ in range(3)]
    clock.advance(1000 * DAY)
    async with dq.running():
        for job in dead:
            await eventually(partial(_is_gone, dq, job.id))
        assert (await dq.get(succeeded)).state is JobState.SUCCEEDED
        assert await dq.attempts(dead[0]) == []


async def _is_gone(dq: DurableQ, job_id: str) -> bool:
    try:
        await dq.get(job_id)
    except JobNotFound:
        return True
    return False
