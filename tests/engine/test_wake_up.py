"""How soon a worker hears of work, its own process's and that of others."""

import asyncio
import statistics
import time
from functools import partial
from pathlib import Path

import pytest

from durableq import DurableQ, JobState
from durableq.events import JobStarted
from tests.engine.helpers import finished
from tests.engine.processes import program
from tests.support import eventually

ROUNDS = 9


async def echo(value: int) -> int:
    return value


async def _delays(dq: DurableQ, database: Path, rounds: int, *, names_are_known: bool = True) -> list[float]:
    """Seconds from another process's commit to the start here, on a worker that is idle."""
    dq.task(name="echo")(echo)
    started: dict[str, float] = {}
    dq.events.subscribe(JobStarted, lambda event: started.update({event.lease.id: time.monotonic()}))
    delays: list[float] = []
    with program(database, worker=False) as producer:
        for number in range(rounds + names_are_known):
            await asyncio.sleep(0.05 + 0.03 * number)  # idle, and at another point of the quarter-second look
            added = await asyncio.to_thread(producer.tell, "echo", number)
            await eventually(partial(started.__contains__, added["id"]))
            delays.append(started[added["id"]] - added["at"])
    return delays[names_are_known:]


async def test_work_of_another_process_rings_an_idle_worker_out_of_bed(database: Path) -> None:
    async with (dq := DurableQ(database)).running():
        delays = await _delays(dq, database, ROUNDS)
    assert max(delays) < 0.2
    assert statistics.median(delays) < 0.05, "the quarter-second look alone would give 0.125"


@pytest.mark.foreign_bug(20)
async def test_without_the_doorbell_work_of_another_process_is_seen_within_half_a_second(database: Path) -> None:
    async with (dq := DurableQ(database)).running():
        [bell] = database.with_name("jobs.db.durableq").glob("*.sock")
        bell.unlink()
        delays = await _delays(dq, database, 4)
    assert max(delays) < 0.5


async def test_a_name_that_another_process_uses_for_the_first_time_is_learnt_within_half_a_second(
    database: Path,
) -> None:
    async with (dq := DurableQ(database)).running():
        [delay] = await _delays(dq, database, 1, names_are_known=False)
    assert delay < 0.5


async def test_what_another_process_has_scheduled_starts_on_time(database: Path) -> None:
    dq = DurableQ(database)
    dq.task(name="echo")(echo)
    async with dq.running():
        with program(database, worker=False) as producer:
            added = await asyncio.to_thread(producer.tell, "echo", 1, delay=0.8)
            job = await finished(dq, await dq.get(added["id"]))
    assert job.started_at is not None
    assert 0 <= (job.started_at - job.run_at).total_seconds() < 0.2


async def test_a_job_of_the_own_process_starts_at_once(database: Path) -> None:
    dq = DurableQ(database)
    dq.task(name="echo")(echo)
    started = asyncio.Event()
    dq.events.subscribe(JobStarted, lambda _: started.set())
    task = dq.find_task("echo")
    assert task is not None
    async with dq.running():
        delays = []
        for number in range(ROUNDS):
            started.clear()
            await dq.add_task(task, number)
            added_at = time.monotonic()
            await started.wait()
            delays.append(time.monotonic() - added_at)
            await dq.drain()
    assert statistics.median(delays) < 0.03


@pytest.mark.fault("F3", "F4")
@pytest.mark.foreign_bug(5, 10, 64)
async def test_a_dead_processs_jobs_are_run_by_the_one_that_lives(database: Path) -> None:
    """Without any other work to wake it."""
    dq = DurableQ(database, heartbeat=5)

    @dq.task(name="until_exists")
    async def take_over(path: str) -> str:
        return f"not waiting for {path}"

    with program(database) as other:
        job_id = other.tell("until_exists", "never")["id"]
        other.hear("started", id=job_id)
        async with dq.running():
            await asyncio.sleep(0.7)  # what its start stirred up is over
            died_at = time.time()
            other.kill()
            job = await finished(dq, await dq.get(job_id), within=5)
    assert job.started_at is not None
    assert (job.state, job.attempt, job.crashes) == (JobState.SUCCEEDED, 2, 1)
    assert job.started_at.timestamp() - died_at < 1.0
