"""Who owns a job: a slow loop keeps its lease, a hanging one loses it, and the loser notices."""

import asyncio
import os
import signal
import sqlite3
import time
from pathlib import Path

import pytest

from durableq import DurableQ, Job, JobState
from durableq.events import LeaseLost, LoopStalled, StorageTrouble, WorkerEvicted
from tests.engine.helpers import collect, finished, sql
from tests.engine.processes import program, stop_outside_of_transactions
from tests.support import eventually, eventually_sync


@pytest.mark.fault("F9")
@pytest.mark.foreign_bug(36)
async def test_a_loop_that_is_blocked_for_more_than_half_a_lease_keeps_it(database: Path) -> None:
    dq = DurableQ(database, lease=3, heartbeat=0.5)
    evicted = collect(dq.events, WorkerEvicted)

    @dq.task(name="pid")
    async def block() -> int:
        time.sleep(1.8)  # noqa: ASYNC251 - what a user does by mistake
        return os.getpid()

    async with dq.running():
        with program(database, lease=3, heartbeat=0.5, queues=["none"]) as other:
            job = await finished(dq, await dq.add_task(block))
            assert other.events("reaped") == []
    assert (job.state, job.attempt, job.result, evicted) == (JobState.SUCCEEDED, 1, os.getpid(), [])


@pytest.mark.fault("F9")
async def test_a_blocked_loop_is_reported_while_it_is_blocked_with_the_name_of_the_task(
    database: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dq = DurableQ(database, loop_stall_warning=0.3, heartbeat=0.1, lease=10)
    stalls: list[tuple[LoopStalled, bool]] = []
    is_blocked = False
    dq.events.subscribe(LoopStalled, lambda event: stalls.append((event, is_blocked)))

    @dq.task(name="compute")
    async def compute() -> None:
        nonlocal is_blocked
        is_blocked = True
        time.sleep(1.0)  # noqa: ASYNC251
        is_blocked = False

    async with dq.running():
        await finished(dq, await dq.add_task(compute))
    assert len(stalls) == 1, "once for each stall"
    event, was_blocked = stalls[0]
    assert was_blocked, "said by the heartbeat's thread, not by the loop once it moves again"
    assert 0.3 <= event.seconds < 1.0
    assert event.where.startswith("compute\n")
    assert "time.sleep(1.0)" in event.where
    assert "the event loop has not moved" in caplog.text


@pytest.mark.fault("F9")
async def test_a_loop_that_is_blocked_for_longer_than_its_lease_loses_it_and_what_it_did_has_no_effect(
    database: Path,
) -> None:
    dq = DurableQ(database, lease=1, heartbeat=0.5)
    lost, evicted = collect(dq.events, LeaseLost), collect(dq.events, WorkerEvicted)
    others: list[int] = []

    @dq.task(name="pid")
    async def block() -> int:
        with program(database, lease=1, heartbeat=0.5) as other:
            others.append(other.pid)
            eventually_sync(lambda: sql(database, "SELECT state FROM durableq_jobs") == [("succeeded",)])
        return os.getpid()

    async with dq.running():
        job = await dq.add_task(block)
        await eventually(lambda: evicted != [] and lost != [], within=15)
        done = await dq.get(job)
        [attempt] = await dq.attempts(job)
    assert [event.lease.lease_no for event in lost] == [1]
    assert (done.attempt, done.crashes, [done.result]) == (2, 1, others)
    assert "the worker's lease expired" in attempt.error_message


@pytest.mark.fault("F10")
@pytest.mark.foreign_bug(27)
async def test_an_evicted_worker_registers_anew_and_works_on(database: Path) -> None:
    dq = DurableQ(database, lease=2, heartbeat=0.1)
    evicted, lost = collect(dq.events, WorkerEvicted), collect(dq.events, LeaseLost)
    ended: list[str] = []

    @dq.task(name="wait")
    async def wait() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append("cancelled")

    @dq.task(name="brief")
    async def brief() -> None: ...

    async with dq.running():
        job = await dq.add_task(wait)
        await eventually(lambda: sql(database, "SELECT state FROM durableq_jobs") == [("running",)])
        # What a reaper does that takes this worker for dead.
        sql(database, "UPDATE durableq_jobs SET state = 'dead', worker_id = NULL, finished_at = 1")
        sql(database, "DELETE FROM durableq_workers")
        await eventually(lambda: evicted == [WorkerEvicted(1)])
        assert (await finished(dq, await dq.add_task(brief))).state is JobState.SUCCEEDED
        assert [event.lease.id for event in lost] == [job.id]
        assert ended == ["cancelled"]
        assert (await dq.get(job)).state is JobState.DEAD, "and its cancelled run changed nothing"
        [(worker_id, pid)] = sql(database, "SELECT id, pid FROM durableq_workers")
        assert (worker_id > 1, pid) == (True, os.getpid())


async def test_a_name_that_comes_while_a_worker_registers_anew_is_learnt(database: Path) -> None:
    dq = DurableQ(database, lease=2, heartbeat=0.1)
    added: list[Job[None]] = []

    @dq.task(name="never used before")
    async def brief() -> None: ...

    dq.events.subscribe(WorkerEvicted, lambda _: added.append(dq.add_task(brief).job))
    async with dq.running():
        sql(database, "DELETE FROM durableq_workers")
        await eventually(lambda: added != [])
        await finished(dq, await _stored(dq, added[0]), within=3)


async def _stored(dq: DurableQ, job: Job[None]) -> Job[None]:
    async def is_stored() -> bool:
        return (await dq.list()).jobs != []

    await eventually(is_stored)
    return job


async def test_a_reaped_worker_claims_nothing_before_it_has_registered_anew(database: Path) -> None:
    dq = DurableQ(database, lease=20, heartbeat=1.5)
    registered: list[bool] = []

    @dq.task(name="look")
    async def look() -> None:
        found = sql(database, "SELECT id FROM durableq_workers WHERE id IN (SELECT worker_id FROM durableq_jobs)")
        registered.append(found != [])

    async with dq.running():
        await finished(dq, await dq.add_task(look))
        sql(database, "DELETE FROM durableq_workers")
        await finished(dq, await dq.add_task(look))
    assert registered == [True, True], "nobody would take back what a worker without a row holds"


@pytest.mark.fault("F24")
@pytest.mark.foreign_bug(50)
async def test_an_eviction_while_the_file_is_locked_does_not_end_the_worker(database: Path) -> None:
    dq = DurableQ(database, lease=2, heartbeat=0.1)
    trouble = collect(dq.events, StorageTrouble)
    locker = sqlite3.connect(database, isolation_level=None, check_same_thread=False)

    def lock(_: WorkerEvicted) -> None:
        locker.execute("BEGIN IMMEDIATE")

    dq.events.subscribe(WorkerEvicted, lock)

    @dq.task(name="brief")
    async def brief() -> None: ...

    async with dq.running():
        await finished(dq, await dq.add_task(brief))
        sql(database, "DELETE FROM durableq_workers")
        await eventually(lambda: any("registering" in event.doing for event in trouble), within=15)
        locker.execute("ROLLBACK")
        assert (await finished(dq, await dq.add_task(brief))).state is JobState.SUCCEEDED
    locker.close()


@pytest.mark.fault("F10")
async def test_a_hung_worker_is_taken_over_however_short_the_heartbeat(database: Path) -> None:
    dq = DurableQ(database, lease=0.6, heartbeat=0.2)

    @dq.task(name="until_exists")
    async def take_over(path: str) -> str:
        return f"not waiting for {path}"

    with program(database, lease=0.6, heartbeat=0.2) as other:
        job_id = other.tell("until_exists", "never")["id"]
        other.hear("started", id=job_id)
        async with dq.running():
            stop_outside_of_transactions(other.pid, database)
            try:
                job = await finished(dq, await dq.get(job_id), within=5)
            finally:
                os.kill(other.pid, signal.SIGCONT)
    assert (job.attempt, job.crashes, job.result) == (2, 1, "not waiting for never")


@pytest.mark.fault("R3")
@pytest.mark.foreign_bug(9, 17)
async def test_a_job_whose_claim_was_committed_but_never_heard_of_is_handed_back_and_runs(database: Path) -> None:
    dq = DurableQ(database, lease=2, heartbeat=0.5)

    @dq.task(name="brief")
    async def brief() -> None: ...

    async with dq.running():
        job = await dq.add_task(brief.options(delay=3600))
        sql(
            database,
            "UPDATE durableq_jobs SET state = 'running', attempt = 1, lease_no = 1, started_at = 1, "
            "worker_id = (SELECT id FROM durableq_workers)",
        )
        done = await finished(dq, job, within=5)
    assert (done.state, done.attempt, done.crashes) == (JobState.SUCCEEDED, 1, 0)
