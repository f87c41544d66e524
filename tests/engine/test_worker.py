"""What a worker takes, in which order, and what it leaves alone."""

import asyncio
import os
import threading
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import pytest

from durableq import DurableQ, JobState, call
from durableq.events import JobReleased, UnknownTasks, WorkerStopped
from durableq.storage.protocol import Exchanged
from tests.engine.helpers import Gate, collect, finished, in_state, sql
from tests.engine.processes import program
from tests.support import eventually


async def greet(name: str) -> str:
    """A function without a decorator."""
    return f"hello {name}"


@pytest.mark.foreign_bug(3)
async def test_a_worker_runs_as_many_async_jobs_at_once_as_it_has_slots_and_no_more(database: Path) -> None:
    dq = DurableQ(database, concurrency=3)
    gate = Gate()

    @dq.task(name="wait")
    async def wait() -> None:
        await gate()

    async with dq.running():
        await dq.add_tasks([call(wait) for _ in range(10)])
        await eventually(lambda: gate.inside == 3)
        counts = await dq.counts()
        assert (counts[JobState.RUNNING], counts[JobState.QUEUED]) == (3, 7)
        gate.open()
        await dq.drain(timeout=10)
    assert (gate.entered, gate.most_inside) == (10, 3)


async def test_by_default_64_async_jobs_run_at_once(database: Path) -> None:
    dq = DurableQ(database)
    gate = Gate()

    @dq.task(name="wait")
    async def wait() -> None:
        await gate()

    async with dq.running():
        await dq.add_tasks([call(wait) for _ in range(100)])
        await eventually(lambda: gate.inside == 64)
        assert (await dq.counts())[JobState.QUEUED] == 36
        gate.open()
        await dq.drain(timeout=10)
    assert (gate.entered, gate.most_inside) == (100, 64)


async def test_slots_of_loop_and_threads_are_counted_apart(database: Path) -> None:
    """A runner that is full does not hold up the other, nor does it take its jobs."""
    threads = 6
    dq = DurableQ(database, concurrency=2, threads=threads)
    gate, release, blocked = Gate(), threading.Event(), threading.Semaphore(0)

    @dq.task(name="wait")
    async def wait() -> None:
        await gate()

    @dq.task(name="block")
    def block() -> None:
        blocked.release()
        release.wait()

    async with dq.running():
        await dq.add_tasks([call(block) for _ in range(threads + 3)] + [call(wait) for _ in range(5)])
        await eventually(lambda: gate.inside == 2)
        await eventually(lambda: blocked._value == threads)
        assert (await dq.counts())[JobState.RUNNING] == 2 + threads
        gate.open()
        await eventually(lambda: gate.entered == 5)
        release.set()
        await dq.drain(timeout=10)


async def test_a_freed_slot_is_filled_at_once(database: Path) -> None:
    dq = DurableQ(database, concurrency=1)

    @dq.task(name="brief")
    async def brief() -> None: ...

    async with dq.running():
        await dq.add_tasks([call(brief) for _ in range(100)])
        await dq.drain(timeout=3)  # by the quarter-second look alone it would take 25 s
        assert (await dq.counts())[JobState.SUCCEEDED] == 100


async def test_higher_priority_runs_first_and_equal_ones_in_the_order_they_came(database: Path) -> None:
    order: list[str] = []
    producer = DurableQ(database, worker=False)
    dq = DurableQ(database, concurrency=1)

    async def note(name: str) -> None:
        order.append(name)

    task = producer.task(name="note")(note)
    dq.task(name="note")(note)
    async with producer.running():
        for name, priority in [("c", 0), ("d", 0), ("a", 9), ("e", -1), ("b", 9)]:
            await producer.add_task(task.options(priority=priority), name)
    async with dq.running():
        await dq.drain(timeout=10)
    assert order == ["a", "b", "c", "d", "e"]


async def test_a_worker_serves_only_the_queues_it_is_given(database: Path) -> None:
    async def note() -> None: ...

    mail_only = DurableQ(database, queues=["mail"])
    everything = DurableQ(database)
    task = mail_only.task(name="note")(note)
    everything.task(name="note")(note)
    async with mail_only.running():
        mail = await mail_only.add_task(task.options(queue="mail"))
        other = await mail_only.add_task(task)
        assert (await finished(mail_only, mail)).state is JobState.SUCCEEDED
        await mail_only.drain(timeout=2)  # it does not wait for what it does not serve
        left = await mail_only.get(other)
        assert (left.state, left.attempt) == (JobState.QUEUED, 0)
    async with everything.running():
        assert (await finished(everything, other)).state is JobState.SUCCEEDED


@pytest.mark.fault("F41")
async def test_jobs_of_an_unknown_task_are_left_alone_and_visibly_so(
    database: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def later() -> str:
        return "done"

    old, new, newer = DurableQ(database, worker=False), DurableQ(database), DurableQ(database)
    task = old.task(name="later")(later)
    async with old.running():
        job = await old.add_task(task)
    unknown = collect(new.events, UnknownTasks)
    async with new.running():
        await eventually(lambda: unknown == [UnknownTasks(("later",))])
        await new.drain(timeout=10)  # it does not wait for what it cannot run
        left = await new.get(job)
        assert (left.state, left.attempt, (await new.counts())[JobState.QUEUED]) == (JobState.QUEUED, 0, 1)
    assert "are left alone, no code here has the names: later" in caplog.text

    newer.task(name="later")(later)
    async with newer.running():
        assert (await finished(newer, job)).result == "done"


async def test_the_first_job_of_a_task_may_be_a_scheduled_one(database: Path) -> None:
    dq = DurableQ(database)

    @dq.task(name="later", delay=0.2, queue="never heard of")
    async def later() -> None: ...

    async with dq.running():
        job = await dq.add_task(later)
        assert (await finished(dq, job, within=2)).state is JobState.SUCCEEDED


async def test_a_function_without_a_decorator_runs_after_a_restart(database: Path) -> None:
    before, after = DurableQ(database, worker=False), DurableQ(database)
    async with before.running():
        job = await before.add_task(greet, "you")
        assert job.task == "tests.engine.test_worker:greet"
    async with after.running():
        assert (await finished(after, job)).result == "hello you"


@pytest.mark.foreign_bug(6)
async def test_jobs_left_by_an_earlier_run_are_run_at_the_next_start(database: Path) -> None:
    dq = DurableQ(database, grace=0.01)
    gate = Gate()

    @dq.task(name="wait")
    async def wait() -> None:
        await gate()

    async with dq.running():
        job = await dq.add_task(wait)
        await eventually(lambda: gate.inside == 1)
    gate.open()
    async with dq.running():
        assert (await finished(dq, job)).attempt == 1


@pytest.mark.fault("F11")
@pytest.mark.foreign_bug(16)
async def test_stopping_gives_back_what_runs_without_counting_it(database: Path) -> None:
    dq = DurableQ(database, grace=0.05, threads=1)
    gate, release, is_blocked = Gate(), threading.Event(), threading.Event()

    @dq.task(name="wait")
    async def wait() -> None:
        await gate()

    @dq.task(name="block")
    def block() -> None:
        is_blocked.set()
        release.wait()

    released = collect(dq.events, JobReleased)
    async with dq.running():
        jobs = [await dq.add_task(wait), await dq.add_task(block)]
        await eventually(lambda: gate.inside == 1 and is_blocked.is_set())
    release.set()
    assert {event.lease.id for event in released} == {job.id for job in jobs}
    rows = sql(database, "SELECT state, attempt, crashes, worker_id FROM durableq_jobs")
    assert rows == [("queued", 0, 0, None)] * 2
    assert sql(database, "SELECT count(*) FROM durableq_attempts, durableq_workers") == [(0,)]


async def test_what_was_claimed_just_before_the_stop_is_handed_back_and_not_begun(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Begun and handed back, it would run in a thread here while another process begins it too."""
    dq = DurableQ(database)
    began, stopped = [], collect(dq.events, WorkerStopped)
    is_claimed, may_come_back = asyncio.Event(), asyncio.Event()

    @dq.task(name="work")
    def work() -> None:
        began.append(1)

    await dq.start()
    storage, worker = dq._storage_here(), dq._life.here().worker
    assert worker is not None
    exchange = storage.exchange

    def held_up(*args: Any, **kwargs: Any) -> Awaitable[Exchanged]:
        reply = exchange(*args, **kwargs)

        async def come_back() -> Exchanged:
            exchanged = await reply
            if exchanged.leases:
                is_claimed.set()
                await may_come_back.wait()
            return exchanged

        return asyncio.ensure_future(come_back())

    monkeypatch.setattr(storage, "exchange", held_up)
    await dq.add_task(work)
    await is_claimed.wait()
    stopping = asyncio.ensure_future(dq.stop())
    await eventually(lambda: worker._exchanger.is_stopping)
    may_come_back.set()
    await stopping
    assert [one.released for one in stopped] == [1]
    assert began == []
    assert sql(database, "SELECT state, attempt, lease_no FROM durableq_jobs") == [("queued", 0, 1)]


async def test_stopping_waits_for_jobs_that_end_within_the_grace(database: Path) -> None:
    dq = DurableQ(database, grace=5)

    @dq.task(name="brief")
    async def brief() -> None:
        started.set()
        await asyncio.sleep(0.2)

    started = asyncio.Event()
    async with dq.running():
        await dq.add_task(brief)
        await started.wait()
    assert sql(database, "SELECT state, attempt FROM durableq_jobs") == [("succeeded", 1)]


async def test_what_one_process_adds_another_one_runs(database: Path) -> None:
    """``worker=False`` adds; a process of its own, with a worker, runs."""
    dq = DurableQ(database, worker=False)
    task = dq.task(name="pid")(_pid)
    async with dq.running():
        job = await dq.add_task(task)
        await asyncio.sleep(0)
        assert (await dq.get(job)).state is JobState.QUEUED
        with program(database) as other:
            assert (await finished(dq, job)).result == other.pid
            again = await dq.add_task(task)
            assert (await finished(dq, again)).result == other.pid
    assert other.pid != os.getpid()


@pytest.mark.foreign_bug(22)
async def test_one_jobs_failure_never_stops_another(database: Path) -> None:
    dq = DurableQ(database, concurrency=2)

    @dq.task(name="fail", max_attempts=1)
    async def fail() -> None:
        raise RuntimeError("no")

    @dq.task(name="work")
    async def work(number: int) -> int:
        await asyncio.sleep(0.001)
        return number

    async with dq.running():
        mixed = await dq.add_tasks([one for n in range(20) for one in (call(fail), call(work, n), call(fail))])
        await dq.drain(timeout=10)
        states = [(await in_state(dq, job, JobState.SUCCEEDED, JobState.DEAD)).state for job in mixed]
    assert states == [JobState.DEAD, JobState.SUCCEEDED, JobState.DEAD] * 20


async def _pid() -> int:
    return os.getpid()
