"""`durableq.outbox.begin`: a write transaction, soon, and never one that nobody knows of."""

import asyncio
import contextlib
import sqlite3
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import aiosqlite
import anyio
import pytest

from durableq import DurableQ, outbox
from durableq.errors import StorageBusy, TransactionRefused
from durableq.outbox import locking
from tests.outbox.support import Disk, make_tables


@contextlib.contextmanager
def locked(disk: Disk) -> Iterator[sqlite3.Connection]:
    """Hold the write lock, as another program might."""
    with contextlib.closing(sqlite3.connect(disk.path, isolation_level=None, check_same_thread=False)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        yield connection
        if connection.in_transaction:
            connection.execute("ROLLBACK")


def connected(disk: Disk) -> contextlib.closing[sqlite3.Connection]:
    return contextlib.closing(sqlite3.connect(disk.path, isolation_level=None, timeout=3.25))


async def test_it_takes_the_write_lock_at_once(dq: DurableQ, disk: Disk) -> None:
    with connected(disk) as connection:
        outbox.begin(connection)
        assert connection.in_transaction
        assert disk.is_locked()
        connection.execute("COMMIT")
    async with aiosqlite.connect(disk.path) as async_connection:
        await outbox.begin(async_connection)
        assert disk.is_locked()
        await async_connection.commit()
    assert not disk.is_locked()


async def test_it_waits_for_another_and_then_has_it(dq: DurableQ, disk: Disk) -> None:
    with locked(disk) as other, connected(disk) as connection:
        timer = threading.Timer(0.05, other.execute, ("COMMIT",))
        timer.start()
        outbox.begin(connection)
        assert connection.in_transaction
        connection.execute("COMMIT")
        timer.join()


async def test_an_async_one_waits_without_holding_up_the_loop(dq: DurableQ, disk: Disk) -> None:
    async with aiosqlite.connect(disk.path) as connection:
        with locked(disk) as other:
            beginning = asyncio.ensure_future(outbox.begin(connection))
            for _ in range(20):
                await asyncio.sleep(0.001)
            assert not beginning.done()
            other.execute("COMMIT")
            await asyncio.wait_for(beginning, 5)
        await connection.rollback()


@pytest.mark.parametrize("is_async", [False, True])
async def test_it_gives_up_in_words_that_name_the_holder(
    dq: DurableQ, disk: Disk, monkeypatch: pytest.MonkeyPatch, is_async: bool
) -> None:
    monkeypatch.setattr(locking, "BEGIN_WITHIN_SECONDS", 0.1)
    with locked(disk), pytest.raises(StorageBusy, match=r"transaction of this very process .* scope=.function"):
        if is_async:
            async with aiosqlite.connect(disk.path) as async_connection:
                await outbox.begin(async_connection)
        else:
            with connected(disk) as connection:
                outbox.begin(connection)


async def test_the_busy_timeout_is_the_callers_own_again(
    dq: DurableQ, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locking, "BEGIN_WITHIN_SECONDS", 0.02)
    with connected(disk) as connection:
        with locked(disk), pytest.raises(StorageBusy):
            outbox.begin(connection)
        assert connection.execute("PRAGMA busy_timeout").fetchone() == (3250,)
        outbox.begin(connection)
        assert connection.execute("PRAGMA busy_timeout").fetchone() == (3250,)


async def test_a_transaction_that_is_open_already_is_refused_and_kept(dq: DurableQ, disk: Disk) -> None:
    with connected(disk) as connection:
        connection.execute("BEGIN")
        connection.execute("INSERT INTO mine VALUES (1)")
        with pytest.raises(TransactionRefused, match="open already"):
            outbox.begin(connection)
        connection.execute("COMMIT")
    assert disk.mine == [1]


async def test_what_is_no_connection_is_refused(dq: DurableQ) -> None:
    for wrong in (None, "app.db"):
        with pytest.raises(TransactionRefused, match="expected a sqlite3 or aiosqlite connection"):
            outbox.begin(wrong)  # type: ignore[call-overload]


def test_it_works_where_no_queue_is(tmp_path: Path) -> None:
    path = tmp_path / "plain.db"
    make_tables(path)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        outbox.begin(connection)
        connection.execute("INSERT INTO mine VALUES (1)")
        connection.commit()
    assert Disk(path).mine == [1]


@pytest.mark.foreign_bug(58, 68)
@pytest.mark.parametrize("by_anyio", [False, True])
async def test_one_that_is_cancelled_leaves_no_lock_behind(dq: DurableQ, disk: Disk, by_anyio: bool) -> None:
    """The driver's thread may get the lock just when nobody waits for it any more."""
    async with aiosqlite.connect(disk.path) as connection:
        for attempt in range(20):
            with locked(disk) as other:
                if by_anyio:
                    with anyio.move_on_after(0.001 * attempt):
                        await outbox.begin(connection)
                else:
                    beginning = asyncio.ensure_future(outbox.begin(connection))
                    await asyncio.sleep(0.001 * attempt)
                    other.execute("COMMIT")
                    beginning.cancel()
                    with contextlib.suppress(asyncio.CancelledError):
                        await beginning
                        await connection.rollback()  # it came first
            await connection.execute_fetchall("SELECT 1")  # on the driver's thread, so after all that was asked of it
            assert not disk.is_locked()
            assert not connection.in_transaction


@pytest.mark.foreign_bug(58)
async def test_one_that_is_cancelled_while_it_waits_stops_waiting(dq: DurableQ, disk: Disk) -> None:
    async with aiosqlite.connect(disk.path) as connection:
        with locked(disk):
            began = time.monotonic()
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(_begin(connection), 0.05)
            assert list(await connection.execute_fetchall("SELECT 1")) == [(1,)]
            assert time.monotonic() - began < 2


async def _begin(connection: aiosqlite.Connection) -> None:
    await outbox.begin(connection)


async def test_an_add_that_is_cancelled_leaves_no_lock_behind(dq: DurableQ, disk: Disk) -> None:
    send = dq.task(name="send")(_send)
    async with aiosqlite.connect(disk.path) as connection:
        for attempt in range(20):
            adding = asyncio.ensure_future(dq.within(connection).add_task(send, attempt))
            await asyncio.sleep(0.0001 * attempt)
            adding.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await adding
                await connection.rollback()  # it came first
            await connection.execute_fetchall("SELECT 1")
            assert not disk.is_locked()
    assert disk.jobs == []


async def test_an_add_that_is_cancelled_is_whole_or_not_there(dq: DurableQ, disk: Disk) -> None:
    """In a transaction that is open already: the caller's own writes stay, and it decides."""
    send = dq.task(name="send")(_send)
    async with aiosqlite.connect(disk.path) as connection:
        for attempt in range(20):
            await connection.execute(f"INSERT INTO mine VALUES ({attempt})")
            adding = asyncio.ensure_future(dq.within(connection).add_task(send, attempt))
            await asyncio.sleep(0.0001 * attempt)
            adding.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await adding
            await connection.commit()
    assert disk.mine == list(range(20))
    assert sorted(disk.jobs) == sorted(set(disk.jobs))


def _send(x: int) -> int:
    return x
