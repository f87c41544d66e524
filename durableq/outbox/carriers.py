"""What can carry jobs: finds the driver's connection in whatever the application has at hand, and acts on it.

SQLAlchemy is looked at only when the application has loaded it.
"""

import sqlite3
import sys
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeGuard, TypeVar

from durableq.errors import TransactionRefused
from durableq.outbox.locking import Act, Request, file_of, on_its_thread
from durableq.storage.sqlite.sharing import turns_of
from durableq.storage.sqlite.versions import OTHER_LIBRARIES

if TYPE_CHECKING:  # loaded by what reads, when a queue first runs; importing durableq stays light
    import aiosqlite

    AiosqliteConnection = aiosqlite.Connection
else:
    AiosqliteConnection = Any

T = TypeVar("T")


class AsyncTransaction(Protocol):
    """SQLAlchemy's ``AsyncSession``, SQLModel's, and ``async_scoped_session``, as type checkers can tell them."""

    def flush(self) -> Coroutine[Any, Any, None]: ...


class AsyncConnection(Protocol):
    """SQLAlchemy's ``AsyncConnection``, as type checkers can tell it."""

    @property
    def sync_connection(self) -> Any: ...


@dataclass(frozen=True, slots=True)
class Carried(Generic[T]):
    """What came of acting within a transaction."""

    result: T
    is_open: Callable[[], bool]
    """Whether that very transaction is still open. May be asked from any thread."""
    session: Any = None
    """SQLAlchemy's sync session, when there is one."""


def is_async(transaction: Any) -> bool:
    """Whether adding within it has to be awaited."""
    return is_aiosqlite(transaction) or _is_of(
        transaction, "sqlalchemy.ext.asyncio", "AsyncSession", "AsyncConnection", "async_scoped_session"
    )


def carry(transaction: Any, act: Act[T]) -> Carried[T]:
    """Act within a sync transaction. Raises `TransactionRefused` for what cannot carry jobs, and what ``act`` does."""
    if isinstance(transaction, sqlite3.Connection):
        return _act_and_watch(act, transaction, Request())
    session = None
    if _is_of(transaction, "sqlalchemy.orm", "Session", "scoped_session"):
        session = transaction() if _is_of(transaction, "sqlalchemy.orm", "scoped_session") else transaction
        transaction = session.connection()
    if not _is_of(transaction, "sqlalchemy", "Connection"):
        raise TransactionRefused(_not_a_transaction(transaction))
    _require_own_library(transaction.connection.driver_connection)
    root = transaction.get_transaction() or transaction.begin()
    result = act_through_sqlalchemy(transaction, act)
    # The transaction, not the connection, which in the pool may soon be in somebody else's.
    return Carried(result, lambda: bool(root.is_active), session)


async def carry_async(transaction: Any, act: Act[T]) -> Carried[T]:
    """The same for an async one."""
    if is_aiosqlite(transaction):
        _require_own_library(transaction)
        return await on_its_thread(transaction, partial(_act_and_watch, act))
    if _is_of(transaction, "sqlalchemy.ext.asyncio", "async_scoped_session"):
        transaction = transaction()
    carried: Carried[T] = await transaction.run_sync(carry, act)
    return carried


def act_through_sqlalchemy(connection: Any, act: Act[T]) -> T:
    """Act on the driver's connection under a sync connection of SQLAlchemy; of an async engine, in its greenlet."""
    driver = connection.connection.driver_connection
    if isinstance(driver, sqlite3.Connection):
        return act(driver, Request())
    result: T = connection.connection.dbapi_connection.run_async(partial(on_its_thread, act=act))
    return result


def is_aiosqlite(value: object) -> "TypeGuard[AiosqliteConnection]":
    return _is_of(value, "aiosqlite", "Connection")


def _act_and_watch(act: Act[T], connection: sqlite3.Connection, request: Request) -> Carried[T]:
    return Carried(act(connection, request), same_transaction(connection))


def same_transaction(connection: sqlite3.Connection) -> Callable[[], bool]:
    """Return what tells, in any thread, whether the transaction that has the write lock now is still open."""
    # A connection that is used again may be in somebody else's transaction. But while this one lasts nobody else can
    # have written: once the writer has, it is over.
    turns = turns_of(file_of(connection))
    turn = turns()

    def is_open() -> bool:
        try:
            return turns() == turn and connection.in_transaction
        except sqlite3.ProgrammingError:  # closed
            return False

    return is_open


def _require_own_library(driver: Any) -> None:
    raw = driver._conn if is_aiosqlite(driver) else driver
    if not isinstance(raw, sqlite3.Connection):
        raise TransactionRefused(_another_library(raw))


def _not_a_transaction(value: object) -> str:
    library = type(value).__module__.partition(".")[0]
    if library in OTHER_LIBRARIES:
        return _another_library(value)
    return (
        "expected a sqlite3 or aiosqlite connection, or a session or connection of SQLAlchemy or SQLModel, got "
        f"{_kind(value)}"
    )


def _another_library(value: object) -> str:
    return (
        f"expected a connection of Python's own sqlite3, or of aiosqlite, got {_kind(value)}: two SQLite libraries in "
        "one process break each other's locks on a file, and lose what was committed"
    )


def _is_of(value: object, module: str, *names: str) -> bool:
    """Whether it is of a class of that module, which is not loaded for the question."""
    loaded = sys.modules.get(module)
    return loaded is not None and isinstance(value, tuple(getattr(loaded, name) for name in names))


def _kind(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}"
