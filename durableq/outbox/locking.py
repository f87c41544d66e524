"""The write lock for a transaction of the application, asked for so that it comes soon.

SQLite's own waiting sleeps longer and longer, and can take seconds beside a writer that never rests. Here the writer
of this process is asked to pause between two of its groups, and the lock is asked for every half millisecond.
"""

import asyncio
import contextlib
import os
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from durableq.errors import StorageBusy, TransactionRefused
from durableq.storage.sqlite.connection import BUSY_RETRY_SECONDS, is_busy, readable
from durableq.storage.sqlite.sharing import giving_way
from durableq.storage.sqlite.writer import locked_by

if TYPE_CHECKING:  # loaded by what reads, when a queue first runs; importing durableq stays light
    import aiosqlite

T = TypeVar("T")

BEGIN_WITHIN_SECONDS: Final = 5.0
"""How long a transaction of the application waits for the write lock."""
READ_ONLY: Final = "durableq_read_only"
"""SQLAlchemy execution option: a transaction that only reads, and so does not take the write lock."""
_BEGIN: Final = "BEGIN IMMEDIATE"
_TAKE: Final = "DELETE FROM durableq_queues WHERE 0"
"""Takes the write lock for a transaction that is open, and writes nothing."""


class Request:
    """One request for the write lock. Its caller may give it up meanwhile, from another thread."""

    __slots__ = ("began", "given_up")

    def __init__(self) -> None:
        self.began = False
        """Whether a transaction was begun for it."""
        self.given_up = False


Act = Callable[[sqlite3.Connection, Request], T]
"""What is done on a connection, on the thread that may use it."""


def take_lock(connection: sqlite3.Connection, request: Request) -> None:
    """Get the write lock for the transaction that is open; begin one when there is none.

    Raises `StorageBusy` after 5 s, and `TransactionRefused` for a transaction that has read what is old by now.
    """
    statement = _TAKE if connection.in_transaction else _BEGIN
    with as_we_read_it(connection), _without_waiting(connection):
        if not _succeeds(connection, statement):
            _ask_again_and_again(connection, statement, request)
    request.began = statement == _BEGIN


def _ask_again_and_again(connection: sqlite3.Connection, statement: str, request: Request) -> None:
    path = file_of(connection)
    give_up = time.monotonic() + BEGIN_WITHIN_SECONDS
    with giving_way(path):
        while time.monotonic() < give_up and not request.given_up:
            time.sleep(BUSY_RETRY_SECONDS)
            if _succeeds(connection, statement):
                return
    raise StorageBusy(
        f"the write lock of {path} could not be had in {BEGIN_WITHIN_SECONDS:.0f} s{locked_by(path)}; "
        "nothing was written"
    )


def _succeeds(connection: sqlite3.Connection, statement: str) -> bool:
    try:
        connection.execute(statement)
    except sqlite3.OperationalError as error:
        if error.sqlite_errorname == "SQLITE_BUSY_SNAPSHOT":
            raise TransactionRefused(
                "this transaction began by reading, and another has written since, so it cannot write any more; begin "
                "it as a write transaction: durableq.outbox.configure(engine), or durableq.outbox.begin(connection)"
            ) from error
        if statement == _TAKE and "no such table" in str(error):
            return True  # no queue lives in this file: nobody to get the lock from
        if not is_busy(error):
            raise
        return False
    return True


@contextlib.contextmanager
def _without_waiting(connection: sqlite3.Connection) -> Iterator[None]:
    """Have SQLite answer at once when the lock is taken."""
    [(timeout,)] = connection.execute("PRAGMA busy_timeout").fetchall()
    connection.execute("PRAGMA busy_timeout=0").fetchall()
    try:
        yield
    finally:
        connection.execute(f"PRAGMA busy_timeout={timeout:d}").fetchall()


@contextlib.contextmanager
def as_we_read_it(connection: sqlite3.Connection) -> Iterator[None]:
    """Get rows as plain tuples, whatever the application likes to get."""
    theirs = connection.row_factory, connection.text_factory
    connection.row_factory, connection.text_factory = None, readable
    try:
        yield
    finally:
        connection.row_factory, connection.text_factory = theirs


def file_of(connection: sqlite3.Connection) -> Path:
    """Return the file of a connection; ``Path("")`` for one in memory."""
    with as_we_read_it(connection):
        databases = connection.execute("PRAGMA database_list").fetchall()
    return next((Path(row[2] or "") for row in databases if row[1] == "main"), Path())


def is_same_file(one: Path, other: Path) -> bool:
    try:
        return bool(one.name) and os.path.samefile(one, other)
    except OSError:
        return False


async def on_its_thread(connection: "aiosqlite.Connection", act: Act[T]) -> T:
    """Act on an aiosqlite connection, on its own thread and in one go: nothing comes in between.

    Cancelled, it leaves no transaction open that was begun for it.
    """
    raw, request = connection._conn, Request()
    try:
        result: T = await connection._execute(act, raw, request)  # type: ignore[no-untyped-call]
    except asyncio.CancelledError:
        request.given_up = True
        with contextlib.suppress(ValueError):  # closed meanwhile
            # The same thread, so after whatever it does just now.
            await asyncio.shield(connection._execute(_undo, raw, request))  # type: ignore[no-untyped-call]
        raise
    return result


def _undo(connection: sqlite3.Connection, request: Request) -> None:
    if request.began and connection.in_transaction:
        connection.execute("ROLLBACK")
