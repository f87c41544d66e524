"""Reads, on connections of their own: aiosqlite, read-only, never in the writer's way.

Each read is one call, so that no read transaction spans an await. A connection whose read was cancelled is closed:
its thread may still hold a cursor, and with it an old snapshot that would keep the log from being taken in.
"""

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final
from urllib.parse import quote

import aiosqlite

from durableq.errors import DurableQError, QueueNotRunning
from durableq.storage.sqlite.connection import Location, readable, translated

_CONNECTIONS: Final = 2
_BUSY_SECONDS: Final = 5.0
_READING_SECONDS: Final = 0.15
"""How long the end waits for what is being read."""
_INTERRUPTED_SECONDS: Final = 0.1
"""How long it then waits for what it has interrupted."""
_LOOK_SECONDS: Final = 0.001
_AGAIN_SECONDS: Final = 0.02
"""After this long what was left is interrupted once more: it may not have begun the first time."""


class Reader:
    """A few read-only connections, opened when first needed, bound to the loop they are used on."""

    def __init__(self, location: Location) -> None:
        self._location = location
        self._idle: list[aiosqlite.Connection] = []
        self._slots = asyncio.Semaphore(_CONNECTIONS)
        self._at_work: set[aiosqlite.Connection] = set()
        self._left: list[aiosqlite.Connection] = []
        self._is_closed = False
        self._is_over = False
        """Whether it is so long closed that nothing is read to its end."""

    async def fetch(self, sql: str, values: Mapping[str, Any] | None = None) -> list[Any]:
        """Return all rows of one statement. Raises `StorageError`, and `QueueNotRunning` once it is closed."""
        async with self._slots:
            self._refuse(self._is_closed)
            connection = self._idle.pop() if self._idle else self._new()
            self._at_work.add(connection)
            try:
                if connection._connection is None:
                    await _open(connection)
                    self._refuse(self._is_over)
                rows = await connection.execute_fetchall(sql, dict(values or {}))
            except BaseException as error:
                self._leave(connection)  # also when cancelled while it opens: nobody else would close it
                if isinstance(error, sqlite3.Error):
                    raise self._told(error) from error
                raise
            finally:
                self._at_work.discard(connection)
            self._keep(connection)
            return list(rows)

    async def close(self) -> None:
        """End all connections. What is being read has a moment to come to its end, and is interrupted then.

        Waits for their threads, which have an answer to give to the event loop: it may be closed after us.
        Cancelled, it interrupts them and waits no longer.
        """
        self._is_closed = True
        while self._idle:
            self._leave(self._idle.pop())
        try:
            await self._wait_for_threads(_READING_SECONDS, self._busy)
        finally:
            self._is_over = True
            for connection in self._at_work:
                _interrupt(connection)
        await self._wait_for_threads(_INTERRUPTED_SECONDS, lambda: [*self._at_work, *self._busy()])

    async def _wait_for_threads(self, seconds: float, in_vain: Callable[[], Iterable[aiosqlite.Connection]]) -> None:
        """Wait for all of them. What is ``in_vain`` is interrupted, again and again: it may begin late."""
        give_up = time.monotonic() + seconds
        while (self._at_work or self._busy()) and time.monotonic() < give_up:
            for connection in in_vain():
                _interrupt(connection)
            await asyncio.sleep(_LOOK_SECONDS)

    def _refuse(self, when: bool) -> None:
        if when:
            raise QueueNotRunning(f"the queue on {self._location.path} is not running")

    def _told(self, error: sqlite3.Error) -> DurableQError:
        if self._is_over and getattr(error, "sqlite_errorname", "") == "SQLITE_INTERRUPT":
            return QueueNotRunning(f"the queue on {self._location.path} has stopped while it was read")
        return translated(error, self._location)

    def _new(self) -> aiosqlite.Connection:
        uri = f"file:{quote(str(self._location.path))}?mode=ro"
        connection = aiosqlite.connect(uri, uri=True, timeout=_BUSY_SECONDS, isolation_level=None)
        connection._thread.daemon = True  # an unclosed reader must never hold the process
        return connection

    def _keep(self, connection: aiosqlite.Connection) -> None:
        if self._is_closed:  # meanwhile
            self._leave(connection)
        else:
            self._idle.append(connection)

    def _leave(self, connection: aiosqlite.Connection) -> None:
        """Close a connection without awaiting it: we may be in the middle of being cancelled."""
        connection.stop()
        self._left = [*self._busy(), connection]
        self._interrupt_the_left()

    def _interrupt_the_left(self) -> None:
        """Until they have ended: they may be searching still, for somebody who has given up."""
        if busy := self._busy():
            for connection in busy:
                _interrupt(connection)
            asyncio.get_running_loop().call_later(_AGAIN_SECONDS, self._interrupt_the_left)

    def _busy(self) -> list[aiosqlite.Connection]:
        """Those that were left, and whose thread has not come to its end."""
        return [connection for connection in self._left if connection._thread.is_alive()]


async def _open(connection: aiosqlite.Connection) -> None:
    await connection
    connection.text_factory = readable
    await connection.execute_fetchall("PRAGMA query_only=ON")


def _interrupt(connection: aiosqlite.Connection) -> None:
    raw = connection._connection
    if raw is not None:
        with contextlib.suppress(sqlite3.ProgrammingError):  # its thread has just closed it
            raw.interrupt()
