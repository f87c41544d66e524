"""Reads, on connections of their own: aiosqlite, read-only, never in the writer's way.

Each read is one call, so that no read transaction spans an await. A connection whose read was cancelled is closed:
its thread may still hold a cursor, and with it an old snapshot that would keep the log from being taken in.
"""

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote

import aiosqlite

from durableq.storage.sqlite.connection import Location, readable, translated

_CONNECTIONS: Final = 2
_BUSY_SECONDS: Final = 5.0
_CLOSING_SECONDS: Final = 0.25
"""How long the end waits for reads that were given up."""
_LOOK_SECONDS: Final = 0.005


class Reader:
    """A few read-only connections, opened when first needed, bound to the loop they are used on."""

    def __init__(self, location: Location) -> None:
        self._location = location
        self._idle: list[aiosqlite.Connection] = []
        self._slots = asyncio.Semaphore(_CONNECTIONS)
        self._left: list[aiosqlite.Connection] = []

    async def fetch(self, sql: str, values: Mapping[str, Any] | None = None) -> list[Any]:
        """Return all rows of one statement. Raises `StorageError`."""
        async with self._slots:
            try:
                connection = self._idle.pop() if self._idle else await self._connect()
            except sqlite3.Error as error:
                raise translated(error, self._location) from error
            try:
                rows = await connection.execute_fetchall(sql, dict(values or {}))
            except BaseException as error:
                self._leave(connection)
                if isinstance(error, sqlite3.Error):
                    raise translated(error, self._location) from error
                raise
            self._idle.append(connection)
            return list(rows)

    async def close(self) -> None:
        while self._idle:
            await self._idle.pop().close()
        # They have an answer to give to the event loop, which may be closed after us.
        give_up = time.monotonic() + _CLOSING_SECONDS
        while (busy := self._busy()) and time.monotonic() < give_up:
            for connection in busy:
                _interrupt(connection)  # again: it may have begun only now
            await asyncio.sleep(_LOOK_SECONDS)

    async def _connect(self) -> aiosqlite.Connection:
        uri = f"file:{quote(str(self._location.path))}?mode=ro"
        connection = aiosqlite.connect(uri, uri=True, timeout=_BUSY_SECONDS, isolation_level=None)
        connection._thread.daemon = True  # an unclosed reader must never hold the process
        try:
            await connection
            connection.text_factory = readable
            await connection.execute_fetchall("PRAGMA query_only=ON")
        except BaseException:  # cancelled in the middle, nobody else would close it
            self._leave(connection)
            raise
        return connection

    def _leave(self, connection: aiosqlite.Connection) -> None:
        """Close a connection without awaiting it: we may be in the middle of being cancelled."""
        _interrupt(connection)  # it may be searching still, for somebody who has given up
        connection.stop()
        self._left = [*self._busy(), connection]

    def _busy(self) -> list[aiosqlite.Connection]:
        """Those that were left, and whose thread has not come to its end."""
        return [connection for connection in self._left if connection._thread.is_alive()]


def _interrupt(connection: aiosqlite.Connection) -> None:
    raw = connection._connection
    if raw is not None:
        with contextlib.suppress(sqlite3.ProgrammingError):  # its thread has just closed it
            raw.interrupt()
