"""Who waits for a lock that only he can give back is told at once; nobody else is."""

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import aiosqlite
import pytest
from sqlalchemy import Engine, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

from durableq import DurableQ, Task, call, outbox
from durableq.errors import TransactionRefused
from tests.outbox.support import Disk, Kind

AT_ONCE = 1.0
"""Seconds; the wait for the lock would be five."""
INSERT = text("INSERT INTO mine VALUES (1)")


@pytest.fixture
def send(working: DurableQ) -> Task[[int], int]:
    @working.task(name="send")
    async def send(x: int) -> int:
        return x

    return send  # type: ignore[return-value]


@contextlib.contextmanager
def refused_at_once() -> Iterator[None]:
    began = time.monotonic()
    with pytest.raises(TransactionRefused, match=r"write transaction open on .*app\.db.*dq\.within\(session\)"):
        yield
    assert time.monotonic() - began < AT_ONCE


class TestWithJobsInIt:
    @pytest.mark.fault("R9")
    async def test_adding_outside_of_it_is_refused_until_its_end(
        self, working: DurableQ, send: Task[[int], int], kind: Kind, disk: Disk
    ) -> None:
        async with kind.transaction() as transaction:
            await working.add_task(send, 0) if not disk.is_locked() else None
            await transaction.add(working, send, 1)
            with refused_at_once():
                await working.add_task(send, 2)
            with refused_at_once():
                await working.add_tasks([call(send, 2), call(send, 3)])
            await transaction.commit()
            await working.add_task(send, 4)
        await working.add_task(send, 5)
        assert [x for x in disk.jobs if x] == [1, 4, 5]

    async def test_after_a_rollback_adding_works_again(
        self, working: DurableQ, send: Task[[int], int], kind: Kind, disk: Disk
    ) -> None:
        async with kind.transaction() as transaction:
            await transaction.add(working, send, 1)
            await transaction.rollback()
            await working.add_task(send, 2)
        assert disk.jobs == [2]

    @pytest.mark.fault("R9")
    async def test_a_task_that_it_starts_is_refused_too(
        self, working: DurableQ, send: Task[[int], int], kind: Kind, disk: Disk
    ) -> None:
        async def child() -> None:
            await working.add_task(send, 2)

        async with kind.transaction() as transaction:
            await transaction.add(working, send, 1)
            with refused_at_once():
                await asyncio.create_task(child())
            with refused_at_once():
                await asyncio.gather(child(), child())
            with refused_at_once():
                await asyncio.to_thread(working.add_task_sync, send, 2)
            await transaction.commit()
            await asyncio.create_task(child())
        assert disk.jobs == [1, 2]

    async def test_another_coroutine_only_waits(
        self, working: DurableQ, send: Task[[int], int], kind: Kind, disk: Disk
    ) -> None:
        asked = asyncio.Event()

        async def another() -> None:
            await asked.wait()
            await working.add_task(send, 2)

        waiting = asyncio.create_task(another())
        async with kind.transaction() as transaction:
            await transaction.add(working, send, 1)
            asked.set()
            await asyncio.sleep(0.03)
            assert not waiting.done()
            await transaction.commit()
        await asyncio.wait_for(waiting, 5)
        assert disk.jobs == [1, 2]

    async def test_an_add_in_a_task_of_its_own_counts_as_the_callers(
        self, working: DurableQ, send: Task[[int], int], disk: Disk
    ) -> None:
        """``asyncio.gather``, and ``wait_for`` before Python 3.12, run it in a copy of the context."""
        async with aiosqlite.connect(disk.path) as connection:
            within = working.within(connection)
            await asyncio.gather(within.add_task(send, 1), within.add_task(send, 2))
            with refused_at_once():
                await working.add_task(send, 3)
            await connection.rollback()
            await asyncio.wait_for(within.add_task(send, 4), 5)
            with refused_at_once():
                await working.add_task(send, 5)
            await connection.commit()
        assert disk.jobs == [4]

    async def test_an_add_that_failed_holds_nothing(
        self, working: DurableQ, send: Task[[int], int], disk: Disk
    ) -> None:
        async with aiosqlite.connect(disk.path, isolation_level=None) as connection:
            with pytest.raises(TransactionRefused, match="begin one first"):
                await working.within(connection).add_task(send, 1)
            await connection.execute("BEGIN IMMEDIATE")
            adding = asyncio.create_task(_await(working.add_task(send, 2)))
            await connection.execute("COMMIT")
            await adding
        assert disk.jobs == [2]


async def _await(awaitable: Awaitable[Any]) -> Any:
    return await awaitable


class TestConnectionsThatAreUsedAgain:
    """Somebody else's transaction on a connection that was mine is not mine."""

    async def test_from_an_engines_pool(
        self, working: DurableQ, send: Task[[int], int], async_engine: AsyncEngine, disk: Disk
    ) -> None:
        async def mine() -> None:
            async with AsyncSession(async_engine) as session:
                await working.within(session).add_task(send, 1)
                await session.commit()

        await self._check(working, send, disk, mine, lambda: AsyncSession(async_engine))

    async def _check(
        self,
        working: DurableQ,
        send: Task[[int], int],
        disk: Disk,
        mine: Callable[[], Awaitable[None]],
        session: Callable[[], AsyncSession],
    ) -> None:
        has_it, may_end = asyncio.Event(), asyncio.Event()

        async def theirs() -> None:
            async with session() as other:
                await other.execute(INSERT)
                has_it.set()
                await may_end.wait()
                await other.commit()

        holding = asyncio.create_task(theirs(), context=_empty_context())
        may_end.set()
        await holding  # has made the connection that the pool then gives to both
        has_it.clear()
        may_end.clear()
        await mine()
        holding = asyncio.create_task(theirs(), context=_empty_context())
        await has_it.wait()
        adding = asyncio.create_task(_await(working.add_task(send, 2)))
        await asyncio.sleep(0.02)
        assert not adding.done(), "it waits"
        may_end.set()
        await asyncio.wait_for(asyncio.gather(adding, holding), 5)
        assert disk.jobs == [1, 2]

    async def test_from_a_pool_of_bare_connections(self, working: DurableQ, send: Task[[int], int], disk: Disk) -> None:
        with contextlib.closing(sqlite3.connect(disk.path, isolation_level=None)) as connection:
            outbox.begin(connection)
            job = working.within(connection).add_task(send, 1)
            connection.execute("COMMIT")
            await working.result(job)  # so the queue has written since
            await working.drain(10)
            connection.execute("BEGIN IMMEDIATE")  # whoever that is
            adding = asyncio.create_task(_await(working.add_task(send, 2)))
            await asyncio.sleep(0.02)
            assert not adding.done(), "it waits"
            connection.execute("COMMIT")
            await asyncio.wait_for(adding, 5)
        assert disk.jobs == [1, 2]


def _empty_context() -> Any:
    import contextvars

    return contextvars.Context()


class TestBegunByUs:
    """A transaction that `begin` began, or an engine that was configured, has the lock, with or without jobs."""

    async def test_on_a_connection(self, working: DurableQ, send: Task[[int], int], disk: Disk) -> None:
        with contextlib.closing(sqlite3.connect(disk.path)) as connection:
            outbox.begin(connection)
            with refused_at_once():
                await working.add_task(send, 1)
            connection.commit()
            await working.add_task(send, 2)
        async with aiosqlite.connect(disk.path) as async_connection:
            await outbox.begin(async_connection)
            with refused_at_once():
                await working.add_task(send, 3)
            await async_connection.rollback()
            await working.add_task(send, 4)
        assert disk.jobs == [2, 4]

    async def test_in_a_session(
        self, working: DurableQ, send: Task[[int], int], engine: Engine, async_engine: AsyncEngine, disk: Disk
    ) -> None:
        with Session(engine) as session:
            session.execute(INSERT)
            with refused_at_once():
                await working.add_task(send, 1)
            session.commit()
            await working.add_task(send, 2)
            session.execute(INSERT)
        await working.add_task(send, 3)  # closed, and so rolled back
        async with AsyncSession(async_engine) as async_session:
            await async_session.execute(INSERT)
            with refused_at_once():
                await working.add_task(send, 4)
            await async_session.rollback()
            await working.add_task(send, 5)
            await async_session.connection(execution_options={outbox.READ_ONLY: True})
            await working.add_task(send, 6)  # reading holds no lock
        assert disk.jobs == [2, 3, 5, 6]

    async def test_in_a_thread(self, working: DurableQ, send: Task[[int], int], engine: Engine, disk: Disk) -> None:
        def route() -> None:
            with Session(engine) as session:
                session.execute(INSERT)
                with refused_at_once():
                    working.add_task_sync(send, 1)
                session.commit()
                working.add_task_sync(send, 2)

        await asyncio.to_thread(route)
        assert disk.jobs == [2]

    async def test_what_it_starts_is_on_its_own_and_waits(
        self, working: DurableQ, send: Task[[int], int], async_engine: AsyncEngine, disk: Disk
    ) -> None:
        """It may well outlive the transaction, whose end it then need only wait for."""
        async with AsyncSession(async_engine) as session:
            await session.execute(INSERT)
            started = asyncio.create_task(_add_later(working, send))
            await asyncio.sleep(0.02)
            await session.commit()
        await asyncio.wait_for(started, 5)
        assert disk.jobs == [1]


async def _add_later(working: DurableQ, send: Task[[int], int]) -> None:
    await working.add_task(send, 1)


async def test_another_queue_on_another_file_is_not_concerned(
    working: DurableQ, send: Task[[int], int], disk: Disk
) -> None:
    other = DurableQ(disk.path.with_name("other.db"), worker=False)
    task = other.task(name="send")(_send)
    async with other.running():
        with contextlib.closing(sqlite3.connect(disk.path)) as connection:
            working.within(connection).add_task(send, 1)
            await other.add_task(task, 2)
            connection.commit()
    assert Disk(disk.path.with_name("other.db")).jobs == [2]


def _send(x: int) -> int:
    return x
