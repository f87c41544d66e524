"""How soon a worker hears of work, its own process's and that of others."""

import asyncio
import contextlib
import sqlite3
import statistics
import time
from functools import partial
from pathlib import Path

import pytest
import uvloop

from durableq import DurableQ, JobState, call
from durableq.adding import Adding
from durableq.events import JobStarted, JobSucceeded, LeaseLost, UnknownTasks
from durableq.storage.sqlite.lookout import Lookout
from durableq.storage.sqlite.statements import SQL
from tests.engine.helpers import collect, finished, in_state
from tests.engine.processes import program
from tests.storage.faults import FailingCommits, record_statements
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


async def test_a_job_added_beside_an_idle_worker_costs_two_transactions(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is stored and claimed in one, and settled in another."""
    statements = record_statements(monkeypatch)
    dq = DurableQ(database)
    dq.task(name="echo")(echo)
    async with dq.running():
        await finished(dq, await dq.add_task(echo, 1))  # the worker learns the name
        await dq.drain()
        statements.clear()
        await finished(dq, await dq.add_task(echo, 2))
        await eventually(lambda: [one for one in statements if "UPDATE" in one][-1:] == [SQL["settle"]])
        transactions = " ".join(one.split()[0] for one in statements if "PRAGMA" not in one).split("BEGIN")
    assert [one.split() for one in transactions[1:3]] == [
        ["INSERT", "SELECT", "UPDATE", "COMMIT"],
        ["UPDATE", "COMMIT"],
    ]


async def test_a_job_that_follows_soon_takes_the_end_of_the_one_before_along(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    statements = record_statements(monkeypatch)
    dq = DurableQ(database)
    dq.task(name="echo")(echo)
    ends: list[JobSucceeded] = []
    dq.events.subscribe(JobSucceeded, ends.append)
    async with dq.running():
        await finished(dq, await dq.add_task(echo, 0))  # the worker learns the name
        await dq.drain()
        statements.clear()
        for number in range(20):
            await dq.add_task(echo, number)
        await eventually(lambda: len(ends) == 21)
    assert statements.count("COMMIT") <= 35, "each in two transactions would be 40"


async def test_the_end_of_a_job_that_somebody_waits_for_waits_for_nobody(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("durableq.engine.exchanger._LINGER_SECONDS", 5.0)
    dq = DurableQ(database)
    dq.task(name="echo")(echo)
    async with dq.running():
        for number in range(ROUNDS):
            job = await dq.add_task(echo, number)
            assert await dq.result(job, timeout=2) == number


async def test_what_another_process_added_is_found_though_the_first_look_failed(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dq = DurableQ(database)
    dq.task(name="echo")(echo)
    async with dq.running():
        await finished(dq, await dq.add_task(echo, 0))
        [bell] = database.with_name("jobs.db.durableq").glob("*.sock")
        bell.unlink()  # rung by it, the worker would take the job before anybody looks
        with program(database, worker=False) as producer:
            await eventually(partial(_knows_of_others, dq))  # what the program did before is looked at already
            failures: list[Lookout] = []

            def fail(lookout: Lookout, _: sqlite3.Connection) -> bool:
                failures.append(lookout)
                raise sqlite3.OperationalError("disk I/O error")

            with monkeypatch.context() as patch:
                patch.setattr(Lookout, "_read_names", fail)
                added = await asyncio.to_thread(producer.tell, "echo", 1)
                await eventually(lambda: bool(failures))
            assert (await dq.wait(added["id"], timeout=5)).result == 1


async def _knows_of_others(dq: DurableQ) -> bool:
    health = await dq.health()
    return health.storage is not None and health.storage.is_shared


async def test_the_limits_of_a_job_begin_anew_though_nobody_waited_for_its_retry(database: Path) -> None:
    dq = DurableQ(database)
    task = dq.task(name="echo", expires=0.5)(echo)
    async with dq.running():
        await dq.pause("default")
        job = await dq.cancel(await dq.add_task(task, 1))
        retrying = asyncio.create_task(dq.retry(job))
        await asyncio.sleep(0)
        retrying.cancel()
        await in_state(dq, job, JobState.QUEUED)
        assert (await in_state(dq, job, JobState.CANCELLED, within=5)).error is not None


def test_an_end_is_stored_soon_also_on_a_loop_whose_clock_stands_still_within_a_turn(database: Path) -> None:
    async def run() -> None:
        dq = DurableQ(database)
        dq.task(name="echo")(echo)
        ends: list[JobSucceeded] = []
        dq.events.subscribe(JobSucceeded, ends.append)

        def told_of_all(number: int) -> bool:
            return len(ends) == number

        async with dq.running():
            for number in range(200):
                await dq.add_task(echo, number)
                await eventually(partial(told_of_all, number + 1), within=5)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


async def test_jobs_that_come_while_the_worker_is_on_its_way_are_not_forgotten(database: Path) -> None:
    dq = DurableQ(database, concurrency=1)
    dq.task(name="echo")(echo)
    async with dq.running():
        jobs = []
        for number in range(60):
            jobs.append(dq.add_task(echo, number))
            if number % 3 == 0:
                await asyncio.sleep(0)
        assert [await dq.result(await job, timeout=10) for job in jobs] == list(range(60))


@pytest.mark.parametrize("hidden", [False, True])
async def test_a_backlog_is_worked_off_though_a_commit_failed_on_the_way(
    database: Path, monkeypatch: pytest.MonkeyPatch, hidden: bool
) -> None:
    """The claim of that commit is not made again: who has made it has to look anew."""
    commits = FailingCommits(monkeypatch)
    dq = DurableQ(database, concurrency=2)

    @dq.task(name="fail the next commit")
    async def fail_the_next_commit(number: int) -> int:
        commits.count, commits.hidden = int(number == 1), hidden
        return number

    async with dq.running():
        jobs = await dq.add_tasks([call(fail_the_next_commit, number) for number in range(7)])
        assert [await dq.result(job, timeout=5) for job in jobs] == list(range(7))


@pytest.mark.parametrize("hidden", [False, True])
async def test_a_job_runs_at_once_though_the_commit_that_stored_and_claimed_it_failed(
    database: Path, monkeypatch: pytest.MonkeyPatch, hidden: bool
) -> None:
    commits = FailingCommits(monkeypatch)
    dq = DurableQ(database)
    dq.task(name="echo")(echo)
    async with dq.running():
        await finished(dq, await dq.add_task(echo, 1))
        await dq.drain()
        commits.count, commits.hidden = 1, hidden
        assert await dq.result(await dq.add_task(echo, 2), timeout=5) == 2


async def test_adding_nothing_at_all_stops_nobody(database: Path, caplog: pytest.LogCaptureFixture) -> None:
    dq = DurableQ(database)
    dq.task(name="echo")(echo)
    async with dq.running():
        assert await dq.add_tasks([]) == []
        assert await dq.result(await dq.add_task(echo, 1), timeout=5) == 1
        await dq.add_jobs([])
        assert await dq.result(await dq.add_task(echo, 2), timeout=5) == 2
    assert not [record for record in caplog.records if record.exc_info]


async def test_jobs_that_are_added_by_who_hears_of_an_end_take_no_slot_that_is_taken(database: Path) -> None:
    dq = DurableQ(database, concurrency=2)
    lost = collect(dq.events, LeaseLost)
    inside = most = 0

    @dq.task(name="count")
    async def count(generation: int) -> None:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        await asyncio.sleep(0)
        inside -= 1

    adding: list[Adding[None]] = []

    def add_another(event: JobSucceeded) -> None:
        if len(adding) < 300:
            adding.append(dq.add_task(count, len(adding)))

    dq.events.subscribe(JobSucceeded, add_another)
    async with dq.running():
        await dq.add_tasks([call(count, number) for number in range(8)])
        await eventually(lambda: len(adding) == 300, 20)
        for one in adding:
            await one
        await dq.drain(10)
    assert (most, lost) == (2, [])


async def test_a_job_that_is_added_as_names_are_learnt_runs_at_once(database: Path) -> None:
    """An unknown task is told while the worker sets out, and its listener adds a job: that must not set out again."""
    dq = DurableQ(database)
    dq.task(name="echo")(echo)
    adding: list[Adding[int]] = []
    async with dq.running():
        await dq.result(await dq.add_task(echo, 1), timeout=5)
        await dq.drain()
        dq.events.subscribe(UnknownTasks, lambda event: adding.append(dq.add_task(echo, 2)))
        with contextlib.closing(sqlite3.connect(database)) as other:
            other.execute("INSERT INTO durableq_tasks (name) VALUES ('of another app')")
            other.commit()
        await eventually(lambda: bool(adding))
        assert await dq.result(await adding[0], timeout=5) == 2


async def test_a_worker_leaves_new_jobs_to_others_while_its_own_loop_stands_still(database: Path) -> None:
    started: set[str] = set()
    dq = DurableQ(database)
    dq.task(name="echo")(echo)
    dq.events.subscribe(JobStarted, lambda event: started.add(event.lease.id))
    with program(database):
        async with dq.running():

            async def is_done_by_the_other_while_we_stand_still() -> bool:
                adding = dq.add_task(echo, 2)
                time.sleep(0.3)  # noqa: ASYNC251 - what a user does by mistake
                return (await dq.wait(await adding, timeout=5)).id not in started

            await eventually(is_done_by_the_other_while_we_stand_still)
