"""Begins write transactions of the application, by hand or for a whole SQLAlchemy engine."""

import contextlib
import sqlite3
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final, overload

from durableq.errors import ConfigurationError, TransactionRefused
from durableq.outbox.carriers import (
    AiosqliteConnection,
    act_through_sqlalchemy,
    is_aiosqlite,
    is_async,
    same_transaction,
)
from durableq.outbox.held import Hold, note_hold
from durableq.outbox.locking import READ_ONLY, Request, as_we_read_it, file_of, on_its_thread, take_lock

SAFETY_CHECKPOINT_PAGES: Final = 10_000
"""The queue's writer takes the log in long before; where no queue runs, this keeps it at some 40 MB."""
_IN_MEMORY: Final = "expected an engine on a file, got one in memory, which cannot share the queue's file"
_PREPARED: Final = "durableq_file"
_HOLD: Final = "durableq_hold"


@overload
def begin(connection: sqlite3.Connection) -> None: ...
@overload
def begin(connection: AiosqliteConnection) -> Awaitable[None]: ...
def begin(connection: "sqlite3.Connection | AiosqliteConnection") -> Awaitable[None] | None:
    """Begin a write transaction on a connection of one's own, at the next boundary between durableq's groups.

    Under full load that takes a few milliseconds, where SQLite's own waiting can take seconds; a sync connection
    blocks its thread meanwhile. Raises `StorageBusy` after 5 s, `TransactionRefused` when a transaction is open
    already. A cancelled await leaves none open. End it as any other; on a connection with ``autocommit=True``,
    whose ``commit()`` does nothing, by ``execute("COMMIT")``.
    """
    if isinstance(connection, sqlite3.Connection):
        begun = _begin(connection, Request())
        note_hold(with_children=False).begun(*begun)
        return None
    if not is_aiosqlite(connection):
        remedy = "; durableq.outbox.configure(engine) is for SQLAlchemy" if is_async(connection) else ""
        raise TransactionRefused(f"expected a sqlite3 or aiosqlite connection, got {connection!r}{remedy}")
    return _begin_async(connection, note_hold(with_children=False))


def configure(engine: Any) -> None:
    """Make a SQLAlchemy engine, sync or async, fit to share durableq's file: call it once, right after making it.

    Its transactions then begin with ``BEGIN IMMEDIATE`` at the next boundary between durableq's groups, so they never
    fail in the middle for want of the write lock; ``synchronous`` is FULL, and checkpoints are left to durableq. A
    transaction holds the write lock from its first statement to its end, so end it soon: in FastAPI, give the
    session's dependency ``scope="function"``. One that only reads can say so, and takes no lock:
    ``engine.execution_options(durableq_read_only=True)``, or the same on a connection. What is set to
    ``isolation_level="AUTOCOMMIT"`` is left alone. Raises `ConfigurationError` for an engine that is not SQLite's, or
    is in memory.
    """
    from sqlalchemy import event

    sync_engine = getattr(engine, "sync_engine", engine)
    dialect = getattr(sync_engine, "dialect", None)
    if dialect is None:
        raise ConfigurationError(f"expected a SQLAlchemy engine, got {engine!r}")
    if dialect.name != "sqlite" or dialect.driver not in ("pysqlite", "aiosqlite"):
        raise ConfigurationError(
            f"expected an engine for sqlite+pysqlite or sqlite+aiosqlite, got {dialect.name}+{dialect.driver}"
        )
    if sync_engine.url.database in (None, "", ":memory:"):
        raise ConfigurationError(_IN_MEMORY)
    if not event.contains(sync_engine, "begin", _on_begin):
        event.listen(sync_engine, "begin", _on_begin)


def _begin(connection: sqlite3.Connection, request: Request) -> tuple[Path, Callable[[], bool]]:
    if connection.in_transaction and not _is_always_in_transaction(connection):
        raise TransactionRefused("a transaction is open already on this connection; commit it first, or roll it back")
    take_lock(connection, request)
    return file_of(connection), same_transaction(connection)


async def _begin_async(connection: AiosqliteConnection, hold: Hold) -> None:
    try:
        begun = await on_its_thread(connection, _begin)
    except BaseException:
        hold.failed()
        raise
    hold.begun(*begun)


def _is_always_in_transaction(connection: sqlite3.Connection) -> bool:
    return getattr(connection, "autocommit", None) is False  # since Python 3.12


# -- for an engine -------------------------------------------------------------------------------------------


def _on_begin(connection: Any) -> None:
    """SQLAlchemy's event: a connection begins a transaction, and leaves it to us how."""
    options, info = connection.get_execution_options(), connection.info
    level = options.get("isolation_level") or getattr(connection.dialect, "_on_connect_isolation_level", None)
    if _PREPARED not in info:
        info[_PREPARED] = act_through_sqlalchemy(connection, _prepare)
    if level == "AUTOCOMMIT":
        return
    if options.get(READ_ONLY):
        act_through_sqlalchemy(connection, _begin_to_read)
        return
    act_through_sqlalchemy(connection, take_lock)
    hold = info[_HOLD] = note_hold(with_children=False)
    hold.begun(info[_PREPARED], partial(_is_in_it, connection, hold))


def _is_in_it(connection: Any, hold: Hold) -> bool:
    return bool(connection.in_transaction()) and connection.info.get(_HOLD) is hold


def _prepare(connection: sqlite3.Connection, _: Request) -> Path:
    """Set what belongs to a connection, once; return its file."""
    with as_we_read_it(connection):
        path = file_of(connection)
        if not path.name:
            raise ConfigurationError(_IN_MEMORY)
        if getattr(connection, "autocommit", None) is True:
            raise ConfigurationError("expected a connection that has transactions, got one with autocommit=True")
        with _between_transactions(connection):
            _set(connection, "journal_mode", "wal")
            _set(connection, "synchronous", 2)
            _set(connection, "wal_autocheckpoint", SAFETY_CHECKPOINT_PAGES)
    return path


@contextlib.contextmanager
def _between_transactions(connection: sqlite3.Connection) -> Iterator[None]:
    """Leave the transaction in which some drivers are from the start: there, nothing can be set."""
    always: Any = connection if _is_always_in_transaction(connection) else None
    if always is not None:
        always.autocommit = True
    elif connection.in_transaction:
        connection.commit()
    try:
        yield
    finally:
        if always is not None:
            always.autocommit = False


def _set(connection: sqlite3.Connection, pragma: str, value: object) -> None:
    connection.execute(f"PRAGMA {pragma}={value}").fetchall()
    found = connection.execute(f"PRAGMA {pragma}").fetchone()[0]
    if found != value:
        raise ConfigurationError(f"expected SQLite to take {pragma}={value}, it reports {found!r}")


def _begin_to_read(connection: sqlite3.Connection, _: Request) -> None:
    if not connection.in_transaction:
        connection.execute("BEGIN")
