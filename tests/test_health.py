"""What a queue says about how it is: true, in words, at once, and whatever is wrong with it."""

import asyncio
import contextlib
import os
import sqlite3
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from pydantic import TypeAdapter

from durableq import DurableQ, JobState
from durableq.health import LOOK_SECONDS, Health, of_worker
from durableq.settings import queue_options
from durableq.testing import ManualClock
from durableq.worker import WorkerCondition
from tests.engine.helpers import Gate, in_state, sql
from tests.storage.faults import write_lock
from tests.storage.support import Backend, PythonProcess, runs_again
from tests.support import eventually

WELL = WorkerCondition(
    worker_id=1,
    leases_held=0,
    is_evicted=False,
    is_heartbeat_late=False,
    since_heartbeat=1.0,
    since_loop_moved=0.5,
    since_loop_stalled=None,
    troubles=(),
    broken=None,
)


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "jobs.db"


@pytest.fixture
def dq(database: Path) -> DurableQ:
    return DurableQ(database)


def has_reason(health: Health, words: str) -> bool:
    return any(words in reason for reason in health.reasons)


async def test_a_queue_that_works_is_ok_and_says_with_what(dq: DurableQ, database: Path) -> None:
    gate = Gate()

    @dq.task(name="wait")
    async def wait() -> None:
        await gate()

    async with dq.running():
        await dq.add_task(wait)
        await eventually(lambda: gate.inside == 1)
        health = await dq.health()
        assert (health.status, health.reasons) == ("ok", ())
        assert (health.worker, health.worker_id, health.leases_held) == ("running", 1, 1)
        assert health.seconds_since_heartbeat is not None
        assert health.storage is not None
        assert (health.storage.software, health.storage.durability) == (f"SQLite {sqlite3.sqlite_version}", "full")
        assert health.storage.database_bytes == os.stat(database).st_size
        assert health.storage.log_bytes == os.stat(f"{database}-wal").st_size
        gate.open()


async def test_health_is_plain_values_that_pydantic_can_write_and_read_again(dq: DurableQ) -> None:
    kind = TypeAdapter(Health)
    async with dq.running():
        for health in (await dq.health(), Health(status="failing", reasons=("ill",))):
            assert kind.validate_json(kind.dump_json(health)) == health


@pytest.mark.parametrize("was_running", [False, True])
async def test_a_queue_that_does_not_run_is_failing_and_raises_nothing(dq: DurableQ, was_running: bool) -> None:
    if was_running:
        async with dq.running():
            pass
    health = await dq.health()
    assert (health.status, health.reasons, health.worker) == ("failing", ("the queue is not running",), "none")


async def test_a_queue_that_is_starting_or_stopping_says_so(dq: DurableQ) -> None:
    gate = Gate()

    @dq.task(name="wait")
    async def wait() -> None:
        await gate()

    starting = asyncio.ensure_future(dq.start())
    await asyncio.sleep(0)
    assert (await dq.health()).reasons == ("the queue is starting",)
    await starting
    await dq.add_task(wait)
    await eventually(lambda: gate.inside == 1)
    stopping = asyncio.ensure_future(dq.stop())
    await asyncio.sleep(0)
    health = await dq.health()
    assert (health.status, health.reasons) == ("failing", ("the queue is stopping",))
    gate.open()
    await stopping


async def test_looking_writes_nothing(database: Path) -> None:
    dq = DurableQ(database, worker=False)
    async with dq.running():
        with contextlib.closing(sqlite3.connect(database, isolation_level=None)) as other:
            version = "PRAGMA data_version"
            before = other.execute(version).fetchall()
            for _ in range(3):
                health = await dq.health()
            assert other.execute(version).fetchall() == before
    assert (health.status, health.worker, health.seconds_since_heartbeat) == ("ok", "none", None)


async def test_the_longest_wait_is_that_of_the_job_which_is_next_of_its_queue_and_task(database: Path) -> None:
    clock = ManualClock()
    dq = DurableQ(database, worker=False, clock=clock)

    @dq.task(name="mail")
    async def mail() -> None: ...

    @dq.task(name="report")
    async def report() -> None: ...

    async with dq.running():
        assert (await dq.health()).longest_wait_seconds is None
        for queue, task, waits in (("b", mail, 20), ("a", report, 10), ("b", report, 40), ("c", mail, 5)):
            await dq.add_task(task.options(queue=queue, delay=60 - waits))
            await dq.add_task(task.options(queue=queue, delay=3600))
        sql(database, "UPDATE durableq_jobs SET state = 'queued' WHERE seq % 2")  # as a worker does when they are due
        clock.advance(60)
        assert (await dq.health()).longest_wait_seconds == 40


async def test_jobs_that_wait_long_for_a_task_that_nobody_knows_are_told(database: Path) -> None:
    clock = ManualClock()
    before = DurableQ(database, worker=False, clock=clock)
    before.task(name="mail")(print)
    async with before.running():
        await before.add_task(print)
    async with (dq := DurableQ(database, clock=clock)).running():
        clock.advance(599)
        assert not has_reason(await dq.health(), "no code here has"), "another process may run them"
        clock.advance(1)
        health = await dq.health()
    assert (health.status, health.longest_wait_seconds) == ("degraded", 600)
    assert has_reason(health, "jobs have waited for 600 s for tasks that no code here has: mail. Was one renamed?")


async def test_a_file_counts_as_shared_until_the_other_process_is_found_dead(database: Path) -> None:
    backend = Backend(str(database))
    storage = await backend.worker()
    assert not storage.condition().is_shared
    with PythonProcess("-m", "tests.storage.colleague", str(database)) as other:
        other.read()
        await eventually(lambda: storage.condition().is_shared)
    await storage.reap(runs_again)
    await eventually(lambda: not storage.condition().is_shared)
    await backend.close()


async def test_storage_trouble_is_told_as_long_as_it_lasts(dq: DurableQ, database: Path) -> None:
    @dq.task(name="work")
    async def work() -> None: ...

    async def is_degraded() -> bool:
        health = await dq.health()
        return health.status == "degraded" and has_reason(health, "storage trouble while settling and claiming jobs")

    async def is_ok() -> bool:
        return (await dq.health()).status == "ok"

    async with dq.running():
        sql(
            database,
            "CREATE TRIGGER no BEFORE UPDATE ON durableq_jobs BEGIN SELECT RAISE(ABORT, 'not in the mood'); END",
        )
        job = await dq.add_task(work)
        await eventually(is_degraded)
        assert has_reason(await dq.health(), "not in the mood")
        sql(database, "DROP TRIGGER no")
        await in_state(dq, job, JobState.SUCCEEDED)
        await eventually(is_ok)


async def test_a_late_heartbeat_is_told_before_the_lease_is_lost(database: Path) -> None:
    clock = ManualClock()
    dq = DurableQ(database, clock=clock, heartbeat=5, lease=30, loop_stall_warning=3600)
    async with dq.running():
        with write_lock(str(database)):
            clock.advance(20)
            health = await dq.health()
            assert health.status == "degraded"
            assert has_reason(health, "prolonged 20 s ago, and after 30 s others take")

        async def is_ok() -> bool:
            return (await dq.health()).status == "ok"

        await eventually(is_ok)


async def test_a_loop_that_stood_still_is_told_meanwhile_from_another_loop_and_afterwards(database: Path) -> None:
    dq = DurableQ(database, queues=["elsewhere"], loop_stall_warning=0.2, heartbeat=0.1, lease=30)
    found: list[Health] = []

    @dq.task(name="waits")
    async def waits() -> None: ...

    def look_meanwhile() -> None:
        while not found or not has_reason(found[0], "the event loop"):
            found[:] = [asyncio.run(dq.health())]
            time.sleep(0.01)

    async with dq.running():
        await dq.add_task(waits)
        looking = asyncio.get_running_loop().run_in_executor(None, look_meanwhile)
        give_up = time.monotonic() + 10
        while not (found and has_reason(found[0], "the event loop")) and time.monotonic() < give_up:
            time.sleep(0.01)  # noqa: ASYNC251 - a route that blocks
        await looking
        assert (found[0].status, found[0].longest_wait_seconds) == ("degraded", None), "readers belong to their loop"
        health = await dq.health()
        assert has_reason(health, "stood still for too long")
        assert health.longest_wait_seconds is not None


async def test_a_database_that_does_not_answer_is_told_within_a_second_or_so(dq: DurableQ) -> None:
    async with dq.running():
        assert dq._life.run is not None
        reader = cast("Any", dq._life.run.storage)._reader
        async with reader._slots, reader._slots:  # all connections are taken by reads that do not end
            began = time.monotonic()
            health = await dq.health()
        assert time.monotonic() - began < LOOK_SECONDS + 1
        assert (health.status, has_reason(health, "did not answer a read")) == ("degraded", True)
        assert (await dq.health()).status == "ok"


async def test_a_database_that_cannot_be_read_is_told_and_not_raised(dq: DurableQ, database: Path) -> None:
    async with dq.running():
        sql(database, "ALTER TABLE durableq_jobs RENAME TO hidden")
        health = await dq.health()
        assert health.status != "ok"
        assert has_reason(health, "cannot be read")
        sql(database, "ALTER TABLE hidden RENAME TO durableq_jobs")


async def test_a_log_that_grows_beyond_all_measure_is_told_and_whatever_is_worse_before_it(database: Path) -> None:
    dq = DurableQ(database, worker=False)
    async with dq.running():
        os.truncate(f"{database}-wal", 65 * 2**20)  # sparse; what is behind the last commit SQLite does not look at
        health = await dq.health()
        assert (health.status, has_reason(health, "grown to 65 MiB")) == ("degraded", True)
        os.unlink(database)
        worse = await dq.health()
        assert worse.status == "failing"
        assert "gone" in worse.reasons[0], "the worst comes first"
        assert worse.reasons[1:] == health.reasons


@pytest.mark.parametrize(
    ("condition", "words"),
    [
        ({"is_evicted": True}, "taken for dead"),
        ({"is_heartbeat_late": True, "since_heartbeat": 12.0}, "prolonged 12 s ago, and after 30 s"),
        ({"since_loop_moved": 11.5}, "has not moved for 12 s"),
        ({"since_loop_stalled": 59.0}, "stood still for too long, 59 s ago"),
        ({"troubles": ("prolonging the lease: disk full",)}, "storage trouble while prolonging the lease: disk full"),
    ],
)
def test_whatever_keeps_a_worker_from_working_as_it_should_has_its_words(condition: dict[str, Any], words: str) -> None:
    [finding] = of_worker(replace(WELL, **condition), queue_options({}, {}))
    assert finding.status == "degraded"
    assert words in finding.reason


def test_a_worker_that_is_well_gives_no_reason_to_worry() -> None:
    for condition in (WELL, replace(WELL, since_loop_stalled=61.0, since_loop_moved=10.9)):
        assert list(of_worker(condition, queue_options({}, {}))) == []
