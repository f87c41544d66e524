"""Jobs within the application's own transaction: they share its fate, whatever it is made of."""

import asyncio
import contextlib
import sqlite3
import sys
from dataclasses import dataclass
from datetime import timedelta

import pytest

from durableq import DurableQ, JobState, RetryPolicy, Task, Unique, outbox
from durableq.errors import DuplicateJob, IdempotencyConflict, InvalidArguments, InvalidTask, QueueNotRunning
from tests.outbox.support import Disk, Kind


class Undone(Exception):
    """What makes a test's transaction roll back."""


@dataclass(frozen=True)
class Tasks:
    send: Task[[int], int]
    only: Task[[int], int]
    """At most one of the same argument; a second is refused."""
    any_one: Task[[int], int]
    """The same, but a second is the first."""


@pytest.fixture
def tasks(dq: DurableQ) -> Tasks:
    @dq.task(name="send")
    def send(x: int) -> int:
        return x

    @dq.task(name="only", unique=Unique(on_conflict="raise"))
    def only(x: int) -> int:
        return x

    @dq.task(name="any_one", unique=Unique())
    def any_one(x: int) -> int:
        return x

    return Tasks(send, only, any_one)


async def test_a_commit_stores_both_and_not_before(dq: DurableQ, tasks: Tasks, kind: Kind, disk: Disk) -> None:
    async with kind.transaction() as transaction:
        await transaction.insert(1)
        job = await transaction.add(dq, tasks.send, 2)
        await transaction.insert(3)
        assert (disk.mine, disk.jobs) == ([], [])
        await transaction.commit()
        assert (disk.mine, disk.jobs) == ([1, 3], [2])
        assert await dq.get(job) == job


async def test_a_transaction_that_begins_with_a_job_stores_both_too(
    dq: DurableQ, tasks: Tasks, kind: Kind, disk: Disk
) -> None:
    async with kind.transaction() as transaction:
        await transaction.add(dq, tasks.send, 1)
        await transaction.insert(2)
        await transaction.commit()
    assert (disk.mine, disk.jobs) == ([2], [1])


async def test_a_rollback_stores_neither(dq: DurableQ, tasks: Tasks, kind: Kind, disk: Disk) -> None:
    async with kind.transaction() as transaction:
        await transaction.insert(1)
        await transaction.add(dq, tasks.send, 2)
        await transaction.rollback()
        assert (disk.mine, disk.jobs) == ([], [])
        assert not disk.is_locked()


async def test_what_is_left_uncommitted_is_not_stored(dq: DurableQ, tasks: Tasks, kind: Kind, disk: Disk) -> None:
    async with kind.transaction() as transaction:
        await transaction.add(dq, tasks.send, 1)
    assert disk.jobs == []
    assert not disk.is_locked()


async def test_a_rolled_back_savepoint_takes_its_jobs_along(dq: DurableQ, tasks: Tasks, kind: Kind, disk: Disk) -> None:
    async with kind.transaction() as transaction:
        await transaction.insert(1)
        await transaction.add(dq, tasks.send, 2)
        with contextlib.suppress(Undone):
            async with transaction.savepoint():
                await transaction.insert(3)
                await transaction.add(dq, tasks.send, 4)
                raise Undone
        async with transaction.savepoint():
            await transaction.insert(5)
            await transaction.add(dq, tasks.send, 6)
        await transaction.commit()
    assert (disk.mine, disk.jobs) == ([1, 5], [2, 6])


async def test_transactions_one_after_another_on_one_connection_are_each_their_own(
    dq: DurableQ, tasks: Tasks, kind: Kind, disk: Disk
) -> None:
    async with kind.transaction() as transaction:
        for x in range(4):
            if kind.name.endswith("-begun") and x > 0:
                await transaction.execute("BEGIN IMMEDIATE")
            await transaction.insert(x)
            await transaction.add(dq, tasks.send, x)
            await (transaction.rollback() if x % 2 else transaction.commit())
    assert (disk.mine, disk.jobs) == ([0, 2], [0, 2])


async def test_an_error_leaves_the_transaction_whole_and_usable(
    dq: DurableQ, tasks: Tasks, kind: Kind, disk: Disk
) -> None:
    await dq.add_task(tasks.only, 1)
    async with kind.transaction() as transaction:
        await transaction.insert(1)
        await transaction.add(dq, tasks.send, 2)
        for error, fn, argument in (
            (DuplicateJob, tasks.only, 1),
            (InvalidArguments, tasks.send, "two"),
            (InvalidTask, print, 1),
        ):
            with pytest.raises(error):
                await transaction.add(dq, fn, argument)
        await transaction.insert(3)
        await transaction.add(dq, tasks.send, 4)
        await transaction.commit()
    assert (disk.mine, disk.jobs) == ([1, 3], [1, 2, 4])


async def test_an_error_before_anything_was_written_leaves_nothing_locked(
    dq: DurableQ, tasks: Tasks, kind: Kind, disk: Disk
) -> None:
    """On a connection that begins by itself: who catches the error has no reason to commit or to roll back."""
    await dq.add_task(tasks.only, 1)
    async with kind.transaction() as transaction:
        with pytest.raises(DuplicateJob):
            await transaction.add(dq, tasks.only, 1)
        holds_by_itself = kind.name.endswith("-begun") or getattr(kind, "configured", False)
        assert disk.is_locked() == holds_by_itself
        await transaction.insert(1)
        await transaction.commit()
    assert (disk.mine, disk.jobs) == ([1], [1])


async def test_a_job_that_is_there_already_gives_its_id(dq: DurableQ, tasks: Tasks, kind: Kind, disk: Disk) -> None:
    keyed = tasks.send.options(idempotency_key="k")
    unique, idempotent = await dq.add_task(tasks.any_one, 1), await dq.add_task(keyed, 2)
    async with kind.transaction() as transaction:
        again = await transaction.add(dq, tasks.any_one, 1)
        repeated = await transaction.add(dq, keyed, 2)
        with pytest.raises(IdempotencyConflict):
            await transaction.add(dq, keyed, 3)
        await transaction.add(dq, tasks.send, 4)
        await transaction.commit()
    assert (again.id, repeated.id) == (unique.id, idempotent.id)
    assert disk.jobs == [1, 2, 4]


async def test_options_go_into_the_row(dq: DurableQ, tasks: Tasks, kind: Kind) -> None:
    later = tasks.send.options(delay=60, priority=3, tags=["a"], queue="slow", headers={"h": "v"})
    async with kind.transaction() as transaction:
        job = await transaction.add(dq, later, 1)
        await transaction.commit()
    stored = await dq.get(job)
    assert (stored.state, stored.priority, stored.tags, stored.queue) == (JobState.SCHEDULED, 3, ("a",), "slow")
    assert (stored.headers, stored.run_at - stored.created_at) == ({"h": "v"}, timedelta(seconds=60))


async def test_many_jobs_in_one_transaction_cost_no_more_than_one_each(dq: DurableQ, tasks: Tasks, disk: Disk) -> None:
    with contextlib.closing(sqlite3.connect(disk.path)) as connection:
        for x in range(3_000):  # in a second or so; it was quadratic once
            dq.within(connection).add_task(tasks.send, x)
        connection.commit()
    assert disk.jobs == list(range(3_000))


async def test_a_thread_without_an_event_loop_may_add(dq: DurableQ, tasks: Tasks, disk: Disk) -> None:
    def route() -> str:
        with contextlib.closing(sqlite3.connect(disk.path)) as connection, connection:
            return dq.within(connection).add_task(tasks.send, 1).id

    job_id = await asyncio.to_thread(route)
    assert (await dq.get(job_id)).args == {"x": 1}


async def test_a_queue_that_does_not_run_says_so(disk: Disk) -> None:
    idle = DurableQ(disk.path)
    with contextlib.closing(sqlite3.connect(disk.path)) as connection, pytest.raises(QueueNotRunning):
        idle.within(connection)


async def test_a_named_policy_and_normal_durability_work_as_everywhere(disk: Disk) -> None:
    queue = DurableQ(disk.path, worker=False, durability="normal")
    patient = queue.retry_policy("patient")
    assert isinstance(patient, RetryPolicy)
    send = queue.task(name="send")(_send)
    async with queue.running():
        with contextlib.closing(sqlite3.connect(disk.path)) as connection:
            connection.execute("PRAGMA synchronous=NORMAL")
            job = queue.within(connection).add_task(send.options(retry=patient), 1)
            connection.commit()
        assert (await queue.get(job)).extras.retry == "patient"


def _send(x: int) -> int:
    return x


async def test_importing_durableq_loads_no_driver_and_no_orm() -> None:
    code = "import sys, durableq, durableq.outbox; print([m for m in ('aiosqlite', 'sqlalchemy') if m in sys.modules])"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    assert output.strip() == b"[]"


def test_the_public_names_are_these() -> None:
    assert {"begin", "configure"} <= set(outbox.__all__)
