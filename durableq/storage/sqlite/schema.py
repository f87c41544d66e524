"""Numbered migrations, each atomic with its record.

The version is kept in a table of our own, not in ``PRAGMA user_version``, which belongs to the application when it
shares its file with us.
"""

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from importlib import resources
from pathlib import Path
from urllib.parse import quote

from durableq.errors import ConfigurationError, SchemaTooNew, StorageUnusable
from durableq.storage.sqlite.connection import Location, begin, primary_code, translated


def migrations() -> list[tuple[int, str]]:
    """Return (version, SQL) of every migration that this durableq knows, in order."""
    found = []
    for file in resources.files(__package__).joinpath("migrations").iterdir():
        match = re.fullmatch(r"(\d{4})_\w+\.sql", file.name)
        if match:
            found.append((int(match[1]), file.read_text(encoding="utf-8")))
    return sorted(found)


def current_version(connection: sqlite3.Connection) -> int:
    """Return the schema version of a file; 0 when durableq's tables are not in it yet."""
    table = connection.execute("SELECT 1 FROM sqlite_schema WHERE name = 'durableq_migrations'").fetchone()
    if table is None:
        return 0
    version: int = connection.execute("SELECT coalesce(max(version), 0) FROM durableq_migrations").fetchone()[0]
    return version


def require_queue(path: Path) -> None:
    """Raise `ConfigurationError` for what is no database with our tables, `StorageError` for what cannot be read."""
    try:
        if not path.exists():
            raise ConfigurationError(f"expected the file of a queue, and there is no {str(path)!r}; is the path right?")
        is_queue = path.is_file() and _is_queue(path)
    except OSError as error:
        raise StorageUnusable(f"cannot read {path}: {error.strerror}") from error
    if not is_queue:
        raise ConfigurationError(f"expected the file of a queue, and {str(path)!r} holds none; is the path right?")


def _is_queue(path: Path) -> bool:
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path.resolve()))}?mode=ro", uri=True)) as connection:
            return current_version(connection) > 0
    except sqlite3.Error as error:
        if primary_code(error) == sqlite3.SQLITE_NOTADB:
            return False
        raise translated(error, Location(path)) from error


def migrate(connection: sqlite3.Connection, now: int) -> None:
    """Bring the schema to the newest version, under the opening lock.

    Raises `SchemaTooNew`, changing nothing, for a file that a newer durableq wrote. After a crash the schema is
    at one version or the next, never between.
    """
    known = migrations()
    newest = known[-1][0]
    if (found := current_version(connection)) > newest:
        raise SchemaTooNew(found, newest)
    for version, script in known:
        if version > found:
            _apply(connection, version, script, now)


def _apply(connection: sqlite3.Connection, version: int, script: str, now: int) -> None:
    begin(connection)
    try:
        connection.execute(
            "CREATE TABLE IF NOT EXISTS durableq_migrations (version INTEGER PRIMARY KEY, applied_at INTEGER NOT NULL)"
        )
        if current_version(connection) < version:
            for statement in _statements(script):
                connection.execute(statement)
            connection.execute("INSERT INTO durableq_migrations VALUES (?, ?)", (version, now))
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _statements(script: str) -> Iterator[str]:
    """Split a script. (`executescript` would commit first, and so break the atomicity.)"""
    pending = ""
    for line in script.splitlines(keepends=True):
        pending += line
        if sqlite3.complete_statement(pending):
            yield pending
            pending = ""
