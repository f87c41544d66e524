"""`durableq.outbox.configure`: an application's engine that gets the write lock soon, keeps it to its end, and is
otherwise left as it was."""

import asyncio
import contextlib
import sqlite3
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, NullPool, QueuePool, StaticPool, create_engine, event, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from sqlmodel import Field, SQLModel, select
from sqlmodel import Session as ModelSession

from durableq import DurableQ, Task, outbox
from durableq.errors import ConfigurationError, StorageBusy
from durableq.outbox import locking
from tests.outbox.support import Disk, make_tables
from tests.support import eventually

INSERT = text("INSERT INTO mine VALUES (1)")
SELECT = text("SELECT * FROM mine")


class Note(SQLModel, table=True):
    id: int | None = Field(default=None, primary_key=True)
    text: str


@pytest.fixture
def send(dq: DurableQ) -> Task[[int], int]:
    @dq.task(name="send")
    def send(x: int) -> int:
        return x

    return send


def pragma(engine: Engine, name: str) -> object:
    with engine.connect() as connection:
        return connection.exec_driver_sql(f"PRAGMA {name}").scalar()


async def test_a_transaction_has_the_write_lock_from_its_first_statement(
    dq: DurableQ, engine: Engine, disk: Disk
) -> None:
    with engine.connect() as connection:
        assert not disk.is_locked()
        connection.execute(SELECT)
        assert disk.is_locked()
        connection.rollback()
        assert not disk.is_locked()


async def test_one_of_an_async_engine_has_it_too(dq: DurableQ, async_engine: AsyncEngine, disk: Disk) -> None:
    async with async_engine.connect() as connection:
        await connection.execute(SELECT)
        assert disk.is_locked()
        await connection.rollback()
        assert not disk.is_locked()


async def test_what_reads_first_and_then_writes_never_finds_it_too_late(
    dq: DurableQ, send: Task[[int], int], engine: Engine, disk: Disk
) -> None:
    """It is what fails without: the queue commits all the time, and who has read before cannot write any more."""
    adding = asyncio.ensure_future(_add_without_pause(dq, send))

    def read_and_write() -> None:
        for _ in range(30):
            with Session(engine) as session:
                session.execute(SELECT).all()
                session.execute(INSERT)
                session.commit()

    try:
        await asyncio.to_thread(read_and_write)
    finally:
        adding.cancel()
    assert disk.mine == [1] * 30


async def _add_without_pause(dq: DurableQ, send: Task[[int], int]) -> None:
    while True:
        await dq.add_task(send, 1)


async def test_a_transaction_that_only_reads_takes_no_lock_and_waits_for_nobody(
    dq: DurableQ, engine: Engine, async_engine: AsyncEngine, disk: Disk
) -> None:
    with contextlib.closing(sqlite3.connect(disk.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        other.execute("INSERT INTO mine VALUES (1)")
        reading = engine.execution_options(**{outbox.READ_ONLY: True})
        with Session(reading) as session:
            assert session.execute(SELECT).all() == []
            other.execute("COMMIT")
            assert session.execute(SELECT).all() == [], "a snapshot, to its end"
            session.rollback()
            assert session.execute(SELECT).all() == [(1,)]
        other.execute("BEGIN IMMEDIATE")
        with engine.connect() as connection:
            connection = connection.execution_options(durableq_read_only=True)
            assert connection.execute(SELECT).all() == [(1,)]
        with Session(engine) as session:
            session.connection(execution_options={"durableq_read_only": True})
            assert session.execute(SELECT).all() == [(1,)]
        async with AsyncSession(async_engine) as async_session:
            await async_session.connection(execution_options={"durableq_read_only": True})
            assert (await async_session.execute(SELECT)).all() == [(1,)]
        async with AsyncSession(async_engine.execution_options(durableq_read_only=True)) as async_session:
            assert (await async_session.execute(SELECT)).all() == [(1,)]
        other.execute("ROLLBACK")
    with engine.connect() as connection:
        connection.execute(SELECT)
        assert disk.is_locked(), "the option was that connection's alone"


async def test_connections_keep_the_queues_durability(dq: DurableQ, disk: Disk) -> None:
    engine = create_engine(f"sqlite:///{disk.path}", connect_args={"timeout": 2.5})
    event.listen(engine, "connect", lambda connection, _: connection.execute("PRAGMA synchronous=OFF"))
    outbox.configure(engine)
    assert (pragma(engine, "synchronous"), pragma(engine, "journal_mode")) == (2, "wal")
    assert pragma(engine, "busy_timeout") == 2_500, "what is its own stays its own"
    engine.dispose()


async def test_connections_made_before_it_was_configured_are_configured_too(dq: DurableQ, disk: Disk) -> None:
    engine = create_engine(f"sqlite:///{disk.path}")
    with engine.connect() as connection:
        connection.exec_driver_sql("PRAGMA synchronous=OFF")
    outbox.configure(engine)
    assert pragma(engine, "synchronous") == 2
    engine.dispose()


async def test_configuring_twice_is_configuring_once(dq: DurableQ, engine: Engine, disk: Disk) -> None:
    outbox.configure(engine)
    with engine.begin() as connection:
        connection.execute(INSERT)
    assert disk.mine == [1]


async def test_autocommit_is_left_alone(dq: DurableQ, disk: Disk) -> None:
    by_default = create_engine(f"sqlite:///{disk.path}", isolation_level="AUTOCOMMIT")
    by_option = create_engine(f"sqlite:///{disk.path}")
    for engine in (by_default, by_option):
        outbox.configure(engine)
    for engine in (by_default, by_option.execution_options(isolation_level="AUTOCOMMIT")):
        with engine.connect() as connection:
            connection.execute(INSERT)
            assert not disk.is_locked()
            connection.exec_driver_sql("VACUUM")
    assert disk.mine == [1, 1]
    with by_option.connect() as connection:  # back from the pool, it has transactions again
        connection.execute(INSERT)
        assert disk.is_locked()
    assert disk.mine == [1, 1]
    for engine in (by_default, by_option):
        engine.dispose()


async def test_an_engine_that_begins_by_sqlalchemys_own_recipe_works_too(
    dq: DurableQ, send: Task[[int], int], disk: Disk
) -> None:
    for configure_first in (True, False):
        engine = create_engine(f"sqlite:///{disk.path}")
        if configure_first:
            outbox.configure(engine)
        event.listen(engine, "connect", _no_driver_transactions)
        if not configure_first:
            event.listen(engine, "begin", _begin)
            outbox.configure(engine)
        with Session(engine) as session:
            session.execute(SELECT)
            assert disk.is_locked()
            dq.within(session).add_task(send, 1)
            with session.begin_nested() as part:
                dq.within(session).add_task(send, 2)
                part.rollback()
            assert disk.jobs == []
            session.rollback()
        engine.dispose()
    assert disk.jobs == []


def _no_driver_transactions(connection: Any, _: object) -> None:
    connection.isolation_level = None


def _begin(connection: Any) -> None:
    connection.exec_driver_sql("BEGIN")


POOLS: tuple[Callable[[str], Engine], ...] = (
    lambda url: create_engine(url, poolclass=NullPool),
    lambda url: create_engine(url, poolclass=QueuePool, pool_size=1, max_overflow=0),
    lambda url: create_engine(url, poolclass=QueuePool, pool_size=4, pool_reset_on_return=None),
    lambda url: create_engine(url, pool_pre_ping=True, pool_recycle=0),
    lambda url: create_engine(url, poolclass=StaticPool, connect_args={"check_same_thread": False}),
)


@pytest.mark.parametrize("make", POOLS, ids=["none", "one", "no-reset", "pre-ping", "static"])
async def test_every_pool_works(
    dq: DurableQ, send: Task[[int], int], disk: Disk, make: Callable[[str], Engine]
) -> None:
    engine = make(f"sqlite:///{disk.path}")
    outbox.configure(engine)
    for x in range(4):
        with Session(engine) as session:
            session.execute(INSERT)
            dq.within(session).add_task(send, x)
            if x % 2:
                session.rollback()
            else:
                session.commit()
    engine.dispose()
    assert (disk.mine, disk.jobs) == ([1, 1], [0, 2])
    assert not disk.is_locked()


async def test_several_threads_at_once_take_turns(working: DurableQ, engine: Engine, disk: Disk) -> None:
    send = working.task(name="send")(_send)
    adding = asyncio.ensure_future(_add_without_pause(working, send))

    def write(number: int) -> None:
        for _ in range(20):
            with Session(engine) as session:
                [(count,)] = session.execute(text("SELECT count(*) FROM mine")).all()
                session.execute(text("INSERT INTO mine VALUES (:x)"), {"x": count})
                working.within(session).add_task(send, count)
                session.commit()

    try:
        with ThreadPoolExecutor(4) as threads:
            await asyncio.gather(*(asyncio.get_running_loop().run_in_executor(threads, write, n) for n in range(4)))
    finally:
        adding.cancel()
    assert disk.mine == list(range(80)), "each saw all that was there before it"


async def test_several_coroutines_at_once_take_turns(working: DurableQ, async_engine: AsyncEngine, disk: Disk) -> None:
    send = working.task(name="send")(_send)

    async def write() -> None:
        for _ in range(10):
            async with AsyncSession(async_engine) as session:
                [(count,)] = (await session.execute(text("SELECT count(*) FROM mine"))).all()
                await session.execute(text("INSERT INTO mine VALUES (:x)"), {"x": count})
                await working.within(session).add_task(send, count)
                await session.commit()

    await asyncio.gather(*(write() for _ in range(4)))
    assert disk.mine == list(range(40))
    assert sorted(disk.jobs) == list(range(40))


def _send(x: int) -> int:
    return x


async def test_the_models_of_sqlmodel_and_jobs_are_one_commit(
    dq: DurableQ, send: Task[[int], int], engine: Engine, disk: Disk
) -> None:
    SQLModel.metadata.create_all(engine)
    with ModelSession(engine) as session:
        note = Note(text="hello")
        session.add(note)
        session.flush()
        assert note.id is not None
        dq.within(session).add_task(send, note.id)
        session.commit()
        assert disk.jobs == [note.id]
        assert session.exec(select(Note)).one().text == "hello"


def test_an_engine_where_no_queue_runs_works_too(tmp_path: Path) -> None:
    path = tmp_path / "plain.db"
    engine = create_engine(f"sqlite:///{path}")
    outbox.configure(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE mine (x)")
    with Session(engine) as session:
        session.execute(INSERT)
        session.commit()
    engine.dispose()
    assert Disk(path).mine == [1]


async def test_one_that_cannot_have_the_lock_says_who_has_it(
    dq: DurableQ, engine: Engine, async_engine: AsyncEngine, disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(locking, "BEGIN_WITHIN_SECONDS", 0.05)
    with contextlib.closing(sqlite3.connect(disk.path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with engine.connect() as connection, pytest.raises(StorageBusy, match="this very process"):
            connection.execute(SELECT)
        async with async_engine.connect() as async_connection:
            with pytest.raises(StorageBusy, match="this very process"):
                await async_connection.execute(SELECT)
        other.execute("ROLLBACK")
    with engine.begin() as connection:  # and afterwards all is well
        connection.execute(INSERT)
    assert disk.mine == [1]


async def test_a_session_that_is_cancelled_while_it_waits_leaves_no_lock_behind(
    dq: DurableQ, async_engine: AsyncEngine, disk: Disk
) -> None:
    async def write() -> None:
        async with AsyncSession(async_engine) as session:
            await session.execute(INSERT)
            await session.commit()

    for attempt in range(15):
        with contextlib.closing(sqlite3.connect(disk.path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            writing = asyncio.ensure_future(write())
            await asyncio.sleep(0.001 * attempt)
            other.execute("COMMIT")
            writing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await writing
        await eventually(lambda: not disk.is_locked(), within=2)


def test_what_is_not_sqlites_is_refused() -> None:
    class Postgres:
        name, driver = "postgresql", "psycopg"

    class Other:
        dialect = Postgres()

    with pytest.raises(ConfigurationError, match=r"sqlite\+pysqlite .* got postgresql\+psycopg"):
        outbox.configure(Other())
    with pytest.raises(ConfigurationError, match="expected a SQLAlchemy engine"):
        outbox.configure("sqlite:///app.db")


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:"])
def test_a_database_in_memory_is_refused(url: str) -> None:
    engine = create_engine(url)
    with pytest.raises(ConfigurationError, match="in memory"):
        outbox.configure(engine)
    engine.dispose()


async def test_another_threads_session_is_begun_in_that_thread(
    dq: DurableQ, send: Task[[int], int], engine: Engine, disk: Disk
) -> None:
    """SQLAlchemy hands one pooled connection to many threads."""

    def write(x: int) -> None:
        with Session(engine) as session:
            dq.within(session).add_task(send, x)
            session.commit()

    for x in range(3):
        thread = threading.Thread(target=write, args=(x,))
        thread.start()
        thread.join()
    assert disk.jobs == [0, 1, 2]


async def test_unconfigured_engines_find_out_what_configuring_is_for(
    dq: DurableQ, send: Task[[int], int], disk: Disk
) -> None:
    """Guards the tests above: what they show does not hold by itself."""
    async_engine = create_async_engine(f"sqlite+aiosqlite:///{disk.path}", connect_args={"timeout": 0})
    async with AsyncSession(async_engine) as session:
        await session.execute(SELECT)
        assert not disk.is_locked()
        with contextlib.closing(sqlite3.connect(disk.path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(OperationalError):
                await session.execute(INSERT)
            other.execute("ROLLBACK")
    await async_engine.dispose()
    make_tables(disk.path)
