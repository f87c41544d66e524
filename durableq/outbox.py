"""Jobs inside the application's own transaction: its commit stores both, its rollback neither.

For `sqlite3` and `aiosqlite` connections, and SQLAlchemy's and SQLModel's sessions and connections, sync and async, on
the queue's own file. The statements run on the caller's connection, so nothing can come between its writes and its
jobs. What could not keep that promise is refused: another file, another SQLite library, a lower ``synchronous``, a
connection that commits each statement by itself.
"""

import asyncio
import contextlib
import os
import sqlite3
import sys
import time
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, ParamSpec, Protocol, TypeGuard, TypeVar, overload

from durableq.errors import ConfigurationError, StorageBusy, TransactionRefused
from durableq.jobs import JobMaker
from durableq.models import Job
from durableq.storage.protocol import Plan, Storage
from durableq.storage.sqlite.connection import BUSY_RETRY_SECONDS, is_busy
from durableq.storage.sqlite.insertion import carry_out
from durableq.storage.sqlite.sharing import giving_way

if TYPE_CHECKING:  # loaded by what reads, when a queue first runs; importing durableq stays light
    import aiosqlite

    AiosqliteConnection = aiosqlite.Connection

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

BEGIN_WITHIN_SECONDS: Final = 5.0
"""How long a transaction of the application waits for the write lock."""
READ_ONLY: Final = "durableq_read_only"
"""SQLAlchemy execution option: a transaction that only reads, and so does not take the write lock."""
_SYNCHRONOUS: Final = {"full": 2, "normal": 1}
_NAMES: Final = {0: "OFF", 1: "NORMAL", 2: "FULL", 3: "EXTRA"}
_SNAPSHOT: Final = "SQLITE_BUSY_SNAPSHOT"


class AsyncTransaction(Protocol):
    """SQLAlchemy's ``AsyncSession``, SQLModel's, and ``AsyncConnection``, as type checkers can tell them."""

    @property
    def sync_session(self) -> Any: ...


class AsyncConnection(Protocol):
    """SQLAlchemy's ``AsyncConnection``, as type checkers can tell it."""

    @property
    def sync_connection(self) -> Any: ...


@dataclass(frozen=True, slots=True)
class _Driver:
    """The driver's connection under whatever was given, and how to see its transaction's end."""

    connection: "sqlite3.Connection | AiosqliteConnection"
    is_open: Callable[[], bool]
    session: Any = None
    """SQLAlchemy's sync session, when there is one."""


@dataclass(frozen=True, slots=True)
class Outbox:
    """Adds jobs within a sync transaction. Made by `DurableQ.within`."""

    _storage: Storage
    _maker: JobMaker
    _durability: str
    _transaction: Any

    @overload
    def add_task(self, fn: Callable[P, Coroutine[Any, Any, R]], /, *args: P.args, **kwargs: P.kwargs) -> Job[R]: ...
    @overload
    def add_task(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Job[R]: ...
    def add_task(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Job[Any]:
        """Write a job into the transaction: it is durable when, and if, the caller commits.

        Raises `InvalidTask`, `InvalidArguments`, `TransactionRefused`, `DuplicateJob`, and `StorageBusy` when the
        write lock could not be had in 5 s; what the caller wrote before stays as it is.
        """
        job = self._maker.new(fn, args, kwargs)
        driver = _sync_driver(self._transaction)
        conflicts = _write(self._storage, self._durability, driver, self._storage.adding((job,)))
        return replace(job, id=conflicts.get(job.id, job.id))


@dataclass(frozen=True, slots=True)
class AsyncOutbox:
    """Adds jobs within an async transaction. Made by `DurableQ.within`."""

    _storage: Storage
    _maker: JobMaker
    _durability: str
    _transaction: Any

    @overload
    async def add_task(
        self, fn: Callable[P, Coroutine[Any, Any, R]], /, *args: P.args, **kwargs: P.kwargs
    ) -> Job[R]: ...
    @overload
    async def add_task(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Job[R]: ...
    async def add_task(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Job[Any]:
        """The same as `Outbox.add_task`, on an async connection."""
        job = self._maker.new(fn, args, kwargs)
        driver = await _async_driver(self._transaction)
        conflicts = await _write_async(self._storage, self._durability, driver, self._storage.adding((job,)))
        return replace(job, id=conflicts.get(job.id, job.id))


def outbox_for(storage: Storage, maker: JobMaker, durability: str, transaction: Any) -> Outbox | AsyncOutbox:
    """Return what adds jobs within a transaction. Raises `TransactionRefused` for what cannot be one."""
    if _is_async(transaction):
        return AsyncOutbox(storage, maker, durability, transaction)
    return Outbox(storage, maker, durability, transaction)


def write_within(storage: Storage, durability: str, transaction: Any, plan: Plan[None]) -> Awaitable[None]:
    """Run a plan within a transaction: at once when it is a sync one, else when the result is awaited."""
    if _is_async(transaction):

        async def write() -> None:
            await _write_async(storage, durability, await _async_driver(transaction), plan)

        return write()
    _write(storage, durability, _sync_driver(transaction), plan)
    return _Done()


class _Done(Awaitable[None]):
    def __await__(self) -> Generator[Any, None, None]:
        return
        yield


# -- beginning -----------------------------------------------------------------------------------------------


@overload
def begin(connection: sqlite3.Connection) -> None: ...
@overload
def begin(connection: "AiosqliteConnection") -> Awaitable[None]: ...
def begin(connection: "sqlite3.Connection | AiosqliteConnection") -> Awaitable[None] | None:
    """Begin a write transaction on a connection of one's own, at the next boundary between durableq's groups.

    Under full load that takes a fraction of a millisecond, where SQLite's own waiting can take seconds. Raises
    `StorageBusy` after 5 s.
    """
    if isinstance(connection, sqlite3.Connection):
        _begin(connection)
        return None
    return _begin_async(connection)


def configure(engine: Any) -> None:
    """Make a SQLAlchemy engine, sync or async, fit to share durableq's file: call it once, right after making it.

    Its transactions then begin with ``BEGIN IMMEDIATE`` at the next boundary between durableq's groups, so they never
    fail in the middle for want of the write lock; ``synchronous`` is FULL, and checkpoints are left to durableq. A
    transaction that only reads can say so, and takes no lock:
    ``connection.execution_options(durableq_read_only=True)``. Raises `ConfigurationError` for an engine that is not
    SQLite's.
    """
    from sqlalchemy import event
    from sqlalchemy.util import await_only

    sync_engine = getattr(engine, "sync_engine", engine)
    dialect = sync_engine.dialect
    if dialect.name != "sqlite" or dialect.driver not in ("pysqlite", "aiosqlite"):
        raise ConfigurationError(
            f"expected an engine for sqlite+pysqlite or sqlite+aiosqlite, got {dialect.name}+{dialect.driver}"
        )
    path = Path(sync_engine.url.database or "")

    def pause() -> None:
        if dialect.is_async:
            await_only(asyncio.sleep(BUSY_RETRY_SECONDS))
        else:
            time.sleep(BUSY_RETRY_SECONDS)

    def on_connect(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # the driver must not begin by itself
        cursor = connection.cursor()
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "wal_autocheckpoint=0", "busy_timeout=0"):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    def on_begin(connection: Any) -> None:
        cursor = connection.connection.cursor()
        try:
            if connection.get_execution_options().get(READ_ONLY):
                cursor.execute("BEGIN")
                return
            with giving_way(path):
                for _ in _patience(path):
                    if _has_begun(cursor):
                        return
                    pause()
        finally:
            cursor.close()

    event.listen(sync_engine, "connect", on_connect)
    event.listen(sync_engine, "begin", on_begin)


def _begin(connection: sqlite3.Connection) -> None:
    path = _main_file(connection.execute(_DATABASES).fetchall())
    with giving_way(path):
        for _ in _patience(path):
            if _has_begun(connection):
                return
            time.sleep(BUSY_RETRY_SECONDS)


async def _begin_async(connection: "AiosqliteConnection") -> None:
    path = _main_file(await connection.execute_fetchall(_DATABASES))
    with giving_way(path):
        for _ in _patience(path):
            try:
                await connection.execute_fetchall(_BEGIN)
                return
            except sqlite3.OperationalError as error:
                if not is_busy(error):
                    raise
            await asyncio.sleep(BUSY_RETRY_SECONDS)


def _patience(path: Path) -> Iterator[None]:
    """Give one go after another until the time is over; then raise `StorageBusy`."""
    give_up = time.monotonic() + BEGIN_WITHIN_SECONDS
    while time.monotonic() < give_up:
        yield
    raise StorageBusy(f"the write lock of {path} could not be had in {BEGIN_WITHIN_SECONDS:.0f} s; nothing was written")


def _has_begun(cursor: Any) -> bool:
    try:
        cursor.execute(_BEGIN)
    except sqlite3.OperationalError as error:
        if is_busy(error):
            return False
        raise
    return True


_BEGIN: Final = "BEGIN IMMEDIATE"
_DATABASES: Final = "PRAGMA database_list"


# -- writing -------------------------------------------------------------------------------------------------


def _write(storage: Storage, durability: str, driver: _Driver, plan: Plan[T]) -> T:
    connection = driver.connection
    if not isinstance(connection, sqlite3.Connection):
        raise TransactionRefused(f"expected a sync sqlite3 connection, got {_kind(connection)}; await the async form")
    facts = _Facts(connection.in_transaction, connection.isolation_level, getattr(connection, "autocommit", -1))
    _require_transactions(facts)
    databases, synchronous = connection.execute(_DATABASES).fetchall(), connection.execute(_LEVEL).fetchall()
    _require_fit(storage, durability, databases, synchronous)
    if not facts.in_transaction:
        _begin(connection)
    with _in_plain_words(storage):
        connection.execute("SAVEPOINT durableq_within")
        try:
            result = carry_out(connection, plan)
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK TO durableq_within")
                connection.execute("RELEASE durableq_within")
            raise
        connection.execute("RELEASE durableq_within")
    _note_open(storage, driver)
    return result


async def _write_async(storage: Storage, durability: str, driver: _Driver, plan: Plan[T]) -> T:
    connection = driver.connection
    if not _is_aiosqlite(connection):
        raise TransactionRefused(f"expected an aiosqlite connection, got {_kind(connection)}")
    facts = _Facts(connection.in_transaction, connection.isolation_level, -1)
    _require_transactions(facts)
    databases = list(await connection.execute_fetchall(_DATABASES))
    _require_fit(storage, durability, databases, list(await connection.execute_fetchall(_LEVEL)))
    if not facts.in_transaction:
        await _begin_async(connection)
    with _in_plain_words(storage):
        await connection.execute_fetchall("SAVEPOINT durableq_within")
        try:
            result = await _carry_out_async(connection, plan)
        except BaseException:
            if connection.in_transaction:
                await connection.execute_fetchall("ROLLBACK TO durableq_within")
                await connection.execute_fetchall("RELEASE durableq_within")
            raise
        await connection.execute_fetchall("RELEASE durableq_within")
    _note_open(storage, driver)
    return result


async def _carry_out_async(connection: "AiosqliteConnection", plan: Plan[T]) -> T:
    try:
        sql, values = next(plan)
        while True:
            sql, values = plan.send(list(await connection.execute_fetchall(sql, dict(values))))
    except StopIteration as end:
        result: T = end.value
        return result


# -- what can carry jobs -------------------------------------------------------------------------------------

_LEVEL: Final = "PRAGMA synchronous"


@dataclass(frozen=True, slots=True)
class _Facts:
    in_transaction: bool
    isolation_level: str | None
    autocommit: int | bool
    """Python 3.12's attribute; -1 for the older way of `isolation_level`."""


def _require_transactions(facts: _Facts) -> None:
    if facts.in_transaction:
        return
    if facts.autocommit is True or (facts.autocommit == -1 and facts.isolation_level is None):
        raise TransactionRefused(
            "no transaction is open on this connection, and it commits each statement by itself; begin one first: "
            "durableq.outbox.begin(connection)"
        )


def _require_fit(storage: Storage, durability: str, databases: list[Any], synchronous: list[Any]) -> None:
    path = _main_file(databases)
    if not path.name or not os.path.exists(path) or not os.path.samefile(path, storage.path):
        raise TransactionRefused(
            f"expected a connection to the queue's own file {storage.path}, got one to {str(path) or 'memory'}; "
            "a transaction covers one file only"
        )
    needed, found = _SYNCHRONOUS[durability], synchronous[0][0]
    if found < needed:
        raise TransactionRefused(
            f"expected synchronous={_NAMES[needed]} or more on this connection, as the queue promises, got "
            f"{_NAMES.get(found, found)}; durableq.outbox.configure(engine) sets it"
        )


def _main_file(databases: Any) -> Path:
    return next((Path(row[2] or "") for row in databases if row[1] == "main"), Path())


@contextlib.contextmanager
def _in_plain_words(storage: Storage) -> Iterator[None]:
    try:
        yield
    except sqlite3.OperationalError as error:
        if not is_busy(error):
            raise
        if getattr(error, "sqlite_errorname", "") == _SNAPSHOT:
            raise TransactionRefused(
                "this transaction began by reading, and another has written since, so it cannot write any more; begin "
                "it as a write transaction: durableq.outbox.configure(engine), or durableq.outbox.begin(connection)"
            ) from error
        raise StorageBusy(f"the write lock of {storage.path} is held by another; nothing was written") from error


def _is_async(transaction: Any) -> bool:
    return _is_aiosqlite(transaction) or hasattr(transaction, "sync_session") or hasattr(transaction, "sync_connection")


def _sync_driver(transaction: Any) -> _Driver:
    if isinstance(transaction, sqlite3.Connection):
        return _plain(transaction)
    _require_sqlalchemy(transaction)
    session = None
    if hasattr(transaction, "get_bind"):  # a Session, or a scoped one
        session = transaction() if callable(transaction) else transaction
        transaction = session.connection()
    return _through_sqlalchemy(transaction.connection.driver_connection, session or transaction, session)


async def _async_driver(transaction: Any) -> _Driver:
    if _is_aiosqlite(transaction):
        return _plain(transaction)
    _require_sqlalchemy(transaction)
    session = getattr(transaction, "sync_session", None)
    connection = transaction if session is None else await transaction.connection()
    raw = await connection.get_raw_connection()
    return _through_sqlalchemy(raw.driver_connection, session or connection.sync_connection, session)


def _plain(connection: "sqlite3.Connection | AiosqliteConnection") -> _Driver:
    def is_open() -> bool:
        try:
            return connection.in_transaction
        except (ValueError, sqlite3.Error):  # closed
            return False

    return _Driver(connection, is_open)


def _through_sqlalchemy(driver: Any, owner: Any, session: Any) -> _Driver:
    if not (isinstance(driver, sqlite3.Connection) or _is_aiosqlite(driver)):
        raise TransactionRefused(
            f"expected Python's own sqlite3 (or aiosqlite) under the engine, got {_kind(driver)}: two SQLite libraries "
            "in one process break each other's locks on a file, and lose what was committed"
        )
    # Its transaction, not the connection's: back in the pool, that may soon be in somebody else's.
    transaction = owner.get_transaction()
    return _Driver(driver, lambda: transaction is not None and bool(transaction.is_active), session)


def _require_sqlalchemy(transaction: Any) -> None:
    is_known = any(kind.__module__.startswith("sqlalchemy.") for kind in type(transaction).__mro__)
    if not is_known or "sqlalchemy" not in sys.modules:
        raise TransactionRefused(
            "expected a sqlite3 or aiosqlite connection, or a session or connection of SQLAlchemy or SQLModel, got "
            f"{_kind(transaction)}"
        )


def _is_aiosqlite(value: object) -> "TypeGuard[AiosqliteConnection]":
    module = sys.modules.get("aiosqlite")
    return module is not None and isinstance(value, module.Connection)


def _kind(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"


# -- while it is open ----------------------------------------------------------------------------------------

_open: Final[ContextVar[tuple[tuple[Path, Callable[[], bool]], ...]]] = ContextVar("durableq_open", default=())


def _note_open(storage: Storage, driver: _Driver) -> None:
    """Be quick to see its commit, and remember that this very coroutine holds the write lock until then."""
    nudge = storage.expect_foreign_commit(driver.is_open)
    if driver.session is not None:
        from sqlalchemy import event

        event.listen(driver.session, "after_commit", lambda _: nudge(), once=True)
    still_open = tuple(one for one in _open.get() if one[1]())
    _open.set((*still_open, (storage.path, driver.is_open)))


def refuse_self_deadlock(path: Path) -> None:
    """Raise `TransactionRefused` when the caller's own transaction holds the lock that an add would wait for."""
    if any(held == path and is_open() for held, is_open in _open.get()):
        raise TransactionRefused(
            f"this code has an open transaction on {path} with jobs in it, and adding a job outside of it would wait "
            "for that transaction's own lock; use dq.within(session).add_task(...), or commit first"
        )
