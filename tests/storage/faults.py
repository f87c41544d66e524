"""Faults for the storage tests: a write lock held elsewhere, and SQLite's errors at a chosen statement."""

import contextlib
import sqlite3
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest

from durableq.storage.sqlite import writer
from durableq.storage.sqlite.connection import connect
from tests.storage.support import PythonProcess

Before = Callable[[sqlite3.Connection, str], None]

HOLD_THE_WRITE_LOCK = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
print("true", flush=True)
sys.stdin.readline()
"""


class WatchedConnection:
    """The writer's own connection; ``before`` sees each statement first, on the writer's thread, and may raise."""

    def __init__(self, connection: sqlite3.Connection, before: Before) -> None:
        self._connection = connection
        self._before = before

    def execute(self, sql: str, *values: Any) -> sqlite3.Cursor:
        self._before(self._connection, sql)
        return self._connection.execute(sql, *values)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


def watch_writer(monkeypatch: pytest.MonkeyPatch, before: Before) -> None:
    """Let ``before`` see all statements of writers that are opened from now on."""

    def connect_watched(*arguments: Any, **options: Any) -> sqlite3.Connection:
        return cast("sqlite3.Connection", WatchedConnection(connect(*arguments, **options), before))

    monkeypatch.setattr(writer, "connect", connect_watched)


def record_statements(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the list to which writers that are opened from now on append each statement."""
    statements: list[str] = []
    watch_writer(monkeypatch, lambda connection, sql: statements.append(sql))
    return statements


class FailingCommits:
    """Makes the next ``count`` commits report an I/O error; with ``hidden`` they have happened all the same."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self.code = sqlite3.SQLITE_IOERR_FSYNC
        self.hidden = False
        self.afterwards: Callable[[], object] = lambda: None
        """What happens before it is tried once more."""
        watch_writer(monkeypatch, self._before)

    def _before(self, connection: sqlite3.Connection, sql: str) -> None:
        if sql != "COMMIT" or self.count == 0:
            return
        self.count -= 1
        connection.execute("COMMIT" if self.hidden else "ROLLBACK")
        self.afterwards()
        error = sqlite3.OperationalError("an error made by the test")
        error.sqlite_errorcode = self.code
        raise error


@contextlib.contextmanager
def write_lock(path: str) -> Iterator[None]:
    """Hold the write lock of a database file through a connection of this process."""
    connection = sqlite3.connect(path, isolation_level=None, timeout=10)
    try:
        connection.execute("BEGIN IMMEDIATE")
        yield
        connection.execute("ROLLBACK")
    finally:
        connection.close()


@contextlib.contextmanager
def write_lock_elsewhere(path: str) -> Iterator[int]:
    """Hold it in another process, and give its id."""
    with PythonProcess("-c", HOLD_THE_WRITE_LOCK, path) as holder:
        assert holder.read()
        yield holder.pid
