"""What the tests of the outbox share: each kind of transaction behind one interface, and a look at the disk."""

import contextlib
import sqlite3
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import aiosqlite
from sqlalchemy import Connection, Engine, create_engine, text
from sqlalchemy.ext.asyncio import (
    AsyncConnection,
    AsyncEngine,
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from sqlmodel import Session as ModelSession
from sqlmodel.ext.asyncio.session import AsyncSession as AsyncModelSession
from tenacity import wait_none

from durableq import DurableQ, Job, RetryPolicy, outbox
from durableq.outbox import AsyncOutbox

AT_ONCE: Final = RetryPolicy(wait=wait_none())
"""Retries without a pause."""


def make_tables(database: Path) -> None:
    """Make the application's own table."""
    with contextlib.closing(sqlite3.connect(database, timeout=10)) as connection, connection:
        connection.execute("CREATE TABLE IF NOT EXISTS mine (x)")


@dataclass(frozen=True)
class Disk:
    """What is committed, as another program sees it."""

    path: Path

    def rows(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        with contextlib.closing(sqlite3.connect(self.path, timeout=10, isolation_level=None)) as connection:
            return connection.execute(sql, values).fetchall()

    @property
    def mine(self) -> list[Any]:
        """The application's own rows, in order."""
        return [x for (x,) in self.rows("SELECT x FROM mine ORDER BY rowid")]

    @property
    def jobs(self) -> list[Any]:
        """The first argument of each job, in the order of adding."""
        return [x for (x,) in self.rows("SELECT json_extract(args, '$.x') FROM durableq_jobs ORDER BY seq")]

    def is_locked(self) -> bool:
        with contextlib.closing(sqlite3.connect(self.path, timeout=0, isolation_level=None)) as connection:
            try:
                connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                return True
            connection.execute("ROLLBACK")
            return False


class Open(ABC):
    """A transaction at work."""

    def __init__(self, given: Any) -> None:
        self.given = given
        """What `DurableQ.within` takes."""

    @abstractmethod
    async def execute(self, sql: str) -> list[Any]:
        """Run a statement of the application's own."""

    @abstractmethod
    async def commit(self) -> None: ...

    @abstractmethod
    async def rollback(self) -> None: ...

    @abstractmethod
    def savepoint(self) -> AbstractAsyncContextManager[None]:
        """A part that is rolled back alone when an exception leaves it."""

    async def insert(self, x: int) -> None:
        await self.execute(f"INSERT INTO mine VALUES ({x})")

    async def add(self, dq: DurableQ, fn: Callable[..., Any], *args: Any) -> Job[Any]:
        within = dq.within(self.given)
        job: Job[Any] = (
            await within.add_task(fn, *args) if isinstance(within, AsyncOutbox) else within.add_task(fn, *args)
        )
        return job


class Kind(ABC):
    """One way in which an application may talk to its database."""

    name = ""

    def __init__(self, database: Path) -> None:
        self.database = database

    @contextlib.asynccontextmanager
    async def opened(self) -> AsyncIterator[None]:
        async with AsyncExitStack() as stack:
            await self.open(stack)
            yield

    @abstractmethod
    async def open(self, stack: AsyncExitStack) -> None:
        """Make what lives longer than a transaction."""

    @abstractmethod
    def transaction(self) -> AbstractAsyncContextManager[Open]:
        """Something to begin a transaction on; what is left uncommitted at the end is rolled back."""


# -- the drivers themselves ----------------------------------------------------------------------------------


class _OpenSqlite(Open):
    async def execute(self, sql: str) -> list[Any]:
        return list(self.given.execute(sql).fetchall())

    async def commit(self) -> None:
        self.given.commit()

    async def rollback(self) -> None:
        self.given.rollback()

    @contextlib.asynccontextmanager
    async def savepoint(self) -> AsyncIterator[None]:
        await self.execute("SAVEPOINT theirs")
        try:
            yield
        except BaseException:
            await self.execute("ROLLBACK TO theirs")
            raise
        finally:
            await self.execute("RELEASE theirs")


class _OpenAiosqlite(_OpenSqlite):
    async def execute(self, sql: str) -> list[Any]:
        return list(await self.given.execute_fetchall(sql))

    async def commit(self) -> None:
        await self.given.commit()

    async def rollback(self) -> None:
        await self.given.rollback()


class Sqlite(Kind):
    name = "sqlite3"

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[Open]:
        with contextlib.closing(self._connect()) as connection:
            yield _OpenSqlite(connection)

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self.database)

    async def open(self, stack: AsyncExitStack) -> None:
        pass


class SqliteByHand(Sqlite):
    """Begun by `durableq.outbox.begin`, on a connection that begins nothing by itself, and gives dicts as rows."""

    name = "sqlite3-begun"

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[Open]:
        with contextlib.closing(sqlite3.connect(self.database, isolation_level=None)) as connection:
            connection.row_factory = _as_dict
            connection.text_factory = bytes
            outbox.begin(connection)
            yield _OpenSqlite(connection)
            assert connection.row_factory is _as_dict
            assert connection.text_factory is bytes


def _as_dict(cursor: sqlite3.Cursor, row: tuple[Any, ...]) -> dict[str, Any]:
    return {column[0]: value for column, value in zip(cursor.description, row, strict=True)}


class Aiosqlite(Kind):
    name = "aiosqlite"

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[Open]:
        async with aiosqlite.connect(self.database) as connection:
            yield _OpenAiosqlite(connection)

    async def open(self, stack: AsyncExitStack) -> None:
        pass


class AiosqliteByHand(Aiosqlite):
    name = "aiosqlite-begun"

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[Open]:
        async with aiosqlite.connect(self.database, isolation_level=None) as connection:
            await outbox.begin(connection)
            yield _OpenAiosqlite(connection)


# -- SQLAlchemy and SQLModel ---------------------------------------------------------------------------------


class _OpenSync(Open):
    async def execute(self, sql: str) -> list[Any]:
        result = self.given.execute(text(sql))
        return list(result.all()) if result.returns_rows else []

    async def commit(self) -> None:
        self.given.commit()

    async def rollback(self) -> None:
        self.given.rollback()

    @contextlib.asynccontextmanager
    async def savepoint(self) -> AsyncIterator[None]:
        with self.given.begin_nested():
            yield


class _OpenAsync(Open):
    async def execute(self, sql: str) -> list[Any]:
        result = await self.given.execute(text(sql))
        return list(result.all()) if result.returns_rows else []

    async def commit(self) -> None:
        await self.given.commit()

    async def rollback(self) -> None:
        await self.given.rollback()

    @contextlib.asynccontextmanager
    async def savepoint(self) -> AsyncIterator[None]:
        async with self.given.begin_nested():
            yield


class _WithEngine(Kind):
    configured = True
    engine: Engine

    async def open(self, stack: AsyncExitStack) -> None:
        self.engine = create_engine(f"sqlite:///{self.database}")
        stack.callback(self.engine.dispose)
        if self.configured:
            outbox.configure(self.engine)


class _WithAsyncEngine(Kind):
    configured = True
    engine: AsyncEngine

    async def open(self, stack: AsyncExitStack) -> None:
        self.engine = create_async_engine(f"sqlite+aiosqlite:///{self.database}")
        stack.push_async_callback(self.engine.dispose)
        if self.configured:
            outbox.configure(self.engine)


class CoreConnection(_WithEngine):
    name = "connection"

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[Open]:
        with self.engine.connect() as connection:
            yield _OpenSync(connection)


class PlainCoreConnection(CoreConnection):
    name = "connection-unconfigured"
    configured = False


class OrmSession(_WithEngine):
    name = "session"

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[Open]:
        with Session(self.engine) as session:
            yield _OpenSync(session)


class PlainOrmSession(OrmSession):
    name = "session-unconfigured"
    configured = False


class ScopedSession(_WithEngine):
    name = "scoped-session"

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[Open]:
        scoped = scoped_session(sessionmaker(self.engine))
        try:
            yield _OpenSync(scoped)
        finally:
            scoped.remove()


class SqlmodelSession(_WithEngine):
    name = "sqlmodel-session"

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[Open]:
        with ModelSession(self.engine) as session:
            yield _OpenSync(session)


class AsyncCoreConnection(_WithAsyncEngine):
    name = "async-connection"

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[Open]:
        async with self.engine.connect() as connection:
            yield _OpenAsync(connection)


class AsyncOrmSession(_WithAsyncEngine):
    name = "async-session"

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[Open]:
        async with AsyncSession(self.engine) as session:
            yield _OpenAsync(session)


class PlainAsyncOrmSession(AsyncOrmSession):
    name = "async-session-unconfigured"
    configured = False


class AsyncScopedSession(_WithAsyncEngine):
    name = "async-scoped-session"

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[Open]:
        scoped = async_scoped_session(async_sessionmaker(self.engine), scopefunc=lambda: "one")
        try:
            yield _OpenAsync(scoped)
        finally:
            await scoped.remove()


class AsyncSqlmodelSession(_WithAsyncEngine):
    name = "sqlmodel-async-session"

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[Open]:
        async with AsyncModelSession(self.engine) as session:
            yield _OpenModelAsync(session)


class _OpenModelAsync(_OpenAsync):
    async def execute(self, sql: str) -> list[Any]:
        connection = await self.given.connection()
        result = await connection.execute(text(sql))
        return list(result.all()) if result.returns_rows else []


KINDS: Final[tuple[type[Kind], ...]] = (
    Sqlite,
    SqliteByHand,
    Aiosqlite,
    AiosqliteByHand,
    CoreConnection,
    PlainCoreConnection,
    OrmSession,
    PlainOrmSession,
    ScopedSession,
    SqlmodelSession,
    AsyncCoreConnection,
    AsyncOrmSession,
    PlainAsyncOrmSession,
    AsyncScopedSession,
    AsyncSqlmodelSession,
)

__all__ = ["AT_ONCE", "KINDS", "AsyncConnection", "Connection", "Disk", "Kind", "Open", "make_tables"]
