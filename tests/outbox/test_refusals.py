"""What could not keep the promise is refused, in words that say what to do; the caller's work stays as it was."""

import contextlib
import sqlite3
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import aiosqlite
import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session, sessionmaker

from durableq import DurableQ, Task, outbox
from durableq.errors import ConfigurationError, TransactionRefused
from tests.outbox.support import Disk, Kind, OrmSession, make_tables

BY_PYTHON_3_12 = pytest.mark.skipif(sys.version_info < (3, 12), reason="the attribute came with Python 3.12")


@pytest.fixture
def send(dq: DurableQ) -> Task[[int], int]:
    @dq.task(name="send")
    def send(x: int) -> int:
        return x

    return send


@pytest.fixture
def connect(disk: Disk) -> Iterator[Callable[..., sqlite3.Connection]]:
    with contextlib.ExitStack() as stack:
        yield lambda **options: stack.enter_context(contextlib.closing(sqlite3.connect(disk.path, **options)))


async def test_a_transaction_on_another_file_is_refused(
    dq: DurableQ, send: Task[[int], int], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    other = tmp_path / "other.db"
    make_tables(other)
    kind = OrmSession(other)
    async with kind.opened(), kind.transaction() as transaction:
        await transaction.insert(1)
        with pytest.raises(TransactionRefused, match=r"app\.db, got one to .*other\.db; a transaction covers one file"):
            await transaction.add(dq, send, 1)
        await transaction.commit()
    assert Disk(other).mine == [1]


async def test_a_transaction_in_memory_is_refused(dq: DurableQ, send: Task[[int], int]) -> None:
    with contextlib.closing(sqlite3.connect(":memory:")) as connection:
        with pytest.raises(TransactionRefused, match="got one to a database in memory"):
            dq.within(connection).add_task(send, 1)
        assert not connection.in_transaction


async def test_the_queues_file_under_another_name_is_the_same_file(
    dq: DurableQ, send: Task[[int], int], disk: Disk, tmp_path: Path
) -> None:
    link = tmp_path / "link.db"
    link.symlink_to(disk.path)
    with contextlib.closing(sqlite3.connect(link)) as connection:
        dq.within(connection).add_task(send, 1)
        with pytest.raises(TransactionRefused):
            await dq.add_task(send, 2)
        connection.commit()
    assert disk.jobs == [1]


async def test_the_queues_file_beside_another_is_refused(
    dq: DurableQ, send: Task[[int], int], disk: Disk, tmp_path: Path
) -> None:
    """A commit over several files in WAL mode is not atomic when the power fails."""
    with contextlib.closing(sqlite3.connect(tmp_path / "main.db")) as connection:
        connection.execute("ATTACH ? AS jobs", (str(disk.path),))
        with pytest.raises(TransactionRefused, match="one file only"):
            dq.within(connection).add_task(send, 1)


async def test_a_connection_that_commits_each_statement_is_refused(
    dq: DurableQ, send: Task[[int], int], disk: Disk, connect: Callable[..., sqlite3.Connection]
) -> None:
    connection = connect(isolation_level=None)
    with pytest.raises(TransactionRefused, match=r"begin one first: durableq\.outbox\.begin"):
        dq.within(connection).add_task(send, 1)
    async with aiosqlite.connect(disk.path, isolation_level=None) as async_connection:
        with pytest.raises(TransactionRefused, match=r"begin one first"):
            await dq.within(async_connection).add_task(send, 1)
    engine = create_engine(f"sqlite:///{disk.path}", isolation_level="AUTOCOMMIT")
    with Session(engine) as session, pytest.raises(TransactionRefused, match="begin one first"):
        dq.within(session).add_task(send, 1)
    engine.dispose()
    assert disk.jobs == []
    outbox.begin(connection)
    dq.within(connection).add_task(send, 2)
    connection.execute("COMMIT")
    assert disk.jobs == [2]


async def test_a_lower_synchronous_than_the_queues_is_refused(
    dq: DurableQ, send: Task[[int], int], disk: Disk, connect: Callable[..., sqlite3.Connection]
) -> None:
    connection = connect()
    for level, name in ((0, "OFF"), (1, "NORMAL")):
        connection.execute(f"PRAGMA synchronous={level}")
        with pytest.raises(TransactionRefused, match=f"expected synchronous=FULL or more.*got {name}.*configure"):
            dq.within(connection).add_task(send, 1)
    for level in (2, 3):
        connection.execute(f"PRAGMA synchronous={level}")
        dq.within(connection).add_task(send, level)
        connection.commit()
    assert disk.jobs == [2, 3]


async def test_a_transaction_that_has_read_what_is_old_by_now_is_refused(
    dq: DurableQ, send: Task[[int], int], disk: Disk, connect: Callable[..., sqlite3.Connection]
) -> None:
    connection, other = connect(isolation_level=None), connect(isolation_level=None)
    connection.execute("BEGIN")
    connection.execute("SELECT * FROM mine").fetchall()
    other.execute("INSERT INTO mine VALUES (1)")
    with pytest.raises(TransactionRefused, match=r"began by reading, .* cannot write any more; .*configure\(engine\)"):
        dq.within(connection).add_task(send, 1)
    assert connection.execute("SELECT * FROM mine").fetchall() == [], "it still reads as it did"
    connection.execute("ROLLBACK")
    connection.execute("BEGIN")
    connection.execute("SELECT * FROM mine").fetchall()
    dq.within(connection).add_task(send, 2)  # nobody has written since: it may
    connection.execute("COMMIT")
    assert disk.jobs == [2]


class _Driver(sqlite3.Connection):
    pass


def driver_of_another_library(module: str) -> Any:
    """An object as another binding to SQLite might give it."""
    return type("Connection", (), {"__module__": module, "in_transaction": True})()


@pytest.mark.fault("R5")
@pytest.mark.parametrize(
    "module", ["pysqlite3.dbapi2", "apsw", "sqlcipher3.dbapi2", "pysqlcipher3.dbapi2", "sqlean.dbapi2"]
)
async def test_another_sqlite_library_is_refused(dq: DurableQ, send: Task[[int], int], module: str) -> None:
    driver = driver_of_another_library(module)
    with pytest.raises(TransactionRefused, match=f"got {module}.Connection: two SQLite libraries in one process"):
        dq.within(driver).add_task(send, 1)


@pytest.mark.fault("R5")
async def test_another_sqlite_library_under_an_engine_is_refused(
    dq: DurableQ, send: Task[[int], int], disk: Disk, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = driver_of_another_library("pysqlite3.dbapi2")
    engine = create_engine(f"sqlite:///{disk.path}")
    with engine.connect() as connection:
        monkeypatch.setattr(type(connection.connection), "driver_connection", driver)
        with pytest.raises(TransactionRefused, match="two SQLite libraries"):
            dq.within(connection).add_task(send, 1)
        monkeypatch.undo()
    engine.dispose()
    async with aiosqlite.connect(disk.path) as async_connection:
        monkeypatch.setattr(async_connection, "_connection", driver)
        with pytest.raises(TransactionRefused, match="two SQLite libraries"):
            await dq.within(async_connection).add_task(send, 1)
        monkeypatch.undo()


async def test_a_subclass_of_pythons_own_connection_is_welcome(
    dq: DurableQ, send: Task[[int], int], disk: Disk, connect: Callable[..., sqlite3.Connection]
) -> None:
    connection = connect(factory=_Driver)
    dq.within(connection).add_task(send, 1)
    connection.commit()
    assert disk.jobs == [1]


async def test_what_is_no_transaction_is_refused_by_its_name(dq: DurableQ, send: Task[[int], int], disk: Disk) -> None:
    engine = create_engine(f"sqlite:///{disk.path}")
    async_engine = create_async_engine(f"sqlite+aiosqlite:///{disk.path}")
    for wrong in (engine, async_engine, sessionmaker(engine), "app.db", None, 1):
        with pytest.raises(TransactionRefused, match=f"expected a sqlite3 or aiosqlite .*{type(wrong).__qualname__}"):
            dq.within(wrong).add_task(send, 1)


async def test_each_kind_is_still_usable_after_a_refusal(dq: DurableQ, kind: Kind, disk: Disk, tmp_path: Path) -> None:
    elsewhere = DurableQ(tmp_path / "elsewhere.db", worker=False)
    send = elsewhere.task(name="elsewhere")(_send)
    async with elsewhere.running(), kind.transaction() as transaction:
        await transaction.insert(1)
        with pytest.raises(TransactionRefused):
            await transaction.add(elsewhere, send, 1)
        await transaction.insert(2)
        await transaction.commit()
    assert disk.mine == [1, 2]


def _send(x: int) -> int:
    return x


@BY_PYTHON_3_12
class TestAutocommitAttribute:
    async def test_with_it_off_a_transaction_is_always_open_and_carries_jobs(
        self, dq: DurableQ, send: Task[[int], int], disk: Disk, connect: Callable[..., sqlite3.Connection]
    ) -> None:
        connection = connect(autocommit=False)
        connection.execute("INSERT INTO mine VALUES (1)")
        dq.within(connection).add_task(send, 1)
        connection.commit()
        dq.within(connection).add_task(send, 2)
        connection.rollback()
        outbox.begin(connection)
        assert disk.is_locked()
        dq.within(connection).add_task(send, 3)
        connection.commit()
        assert (disk.mine, disk.jobs) == ([1], [1, 3])
        assert not disk.is_locked()

    async def test_with_it_on_only_a_transaction_begun_by_hand_carries_jobs(
        self, dq: DurableQ, send: Task[[int], int], disk: Disk, connect: Callable[..., sqlite3.Connection]
    ) -> None:
        connection = connect(autocommit=True)
        with pytest.raises(TransactionRefused, match="begin one first"):
            dq.within(connection).add_task(send, 1)
        outbox.begin(connection)
        dq.within(connection).add_task(send, 2)
        connection.execute("COMMIT")
        assert disk.jobs == [2]

    async def test_an_async_connection_with_it_off_carries_jobs(
        self, dq: DurableQ, send: Task[[int], int], disk: Disk
    ) -> None:
        options = cast("dict[str, Any]", {"autocommit": False})
        async with aiosqlite.connect(disk.path, **options) as connection:
            await outbox.begin(connection)
            await dq.within(connection).add_task(send, 1)
            await connection.commit()
        assert disk.jobs == [1]

    async def test_an_engine_with_it_off_can_be_configured_and_one_with_it_on_cannot(
        self, dq: DurableQ, send: Task[[int], int], disk: Disk
    ) -> None:
        engine = create_engine(f"sqlite:///{disk.path}", connect_args={"autocommit": False})
        outbox.configure(engine)
        with Session(engine) as session:
            session.execute(text("SELECT * FROM mine"))
            assert disk.is_locked()
            dq.within(session).add_task(send, 1)
            session.commit()
        engine.dispose()
        assert disk.jobs == [1]
        engine = create_engine(f"sqlite:///{disk.path}", connect_args={"autocommit": True})
        outbox.configure(engine)
        with Session(engine) as session, pytest.raises(ConfigurationError, match="autocommit=True"):
            session.execute(text("SELECT 1"))
        engine.dispose()
