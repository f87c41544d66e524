"""Which SQLite this process has, and what is known to be wrong with it.

SQLite from 3.7.0 to 3.51.2 has the WAL-reset bug: a checkpoint that meets another connection's write at the wrong
instant leaves committed pages out for good. Our own checkpoints cannot meet it, since they are taken while a second
connection holds the write lock (`checkpoint`); those of others on the file can. Two SQLite libraries in one process
are worse: closing a file in one drops the locks of the other.
"""

import logging
import sqlite3
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Literal

from durableq.errors import StorageUnusable

logger = logging.getLogger("durableq.storage")

FIXED_IN: Final = "3.51.3 or newer (or 3.50.7 and later of 3.50, 3.44.6 and later of 3.44)"
OTHER_LIBRARIES: Final = (
    "apsw",
    "libsql",
    "libsql_experimental",
    "pysqlcipher3",
    "pysqlite2",
    "pysqlite3",
    "sqlcipher3",
    "sqlean",
)
"""Top-level modules that bring a SQLite of their own."""
_OLDEST_WAL: Final = (3, 7, 0)
_FIXED: Final = (3, 51, 3)
_BACK_PORTS: Final = ((3, 44, 6), (3, 50, 7))

_said: Final[set[str]] = set()
"""What this process has warned of already."""


def has_wal_reset_bug(version: tuple[int, ...]) -> bool:
    """Whether a SQLite of this version has the WAL-reset bug. (3.52.0 was withdrawn; it has the correction.)"""
    if any(version[:2] == fixed[:2] and version >= fixed for fixed in _BACK_PORTS):
        return False
    return _OLDEST_WAL <= version < _FIXED


def check_version(policy: Literal["allow", "refuse"]) -> None:
    """Raise `StorageUnusable` on a SQLite with the bug, when the settings refuse one."""
    if policy == "refuse" and has_wal_reset_bug(sqlite3.sqlite_version_info):
        raise StorageUnusable(
            f"this Python uses SQLite {sqlite3.sqlite_version}, which has the WAL-reset bug, and sqlite_with_wal_bug "
            f"is 'refuse'; expected {FIXED_IN}. Use a Python that links one, or allow it"
        )


def describe() -> str:
    """Return the SQLite in use in words: ``SQLite 3.40.1 (has the WAL-reset bug)``."""
    text = f"SQLite {sqlite3.sqlite_version}"
    return f"{text} (has the WAL-reset bug)" if has_wal_reset_bug(sqlite3.sqlite_version_info) else text


def other_libraries(loaded: Iterable[str] | None = None) -> tuple[str, ...]:
    """Return the modules loaded in this process that bring another SQLite than that of `sqlite3`."""
    names = sys.modules if loaded is None else frozenset(loaded)
    return tuple(name for name in OTHER_LIBRARIES if name in names)


def warn_of_other_libraries(path: Path) -> None:
    """Warn, once in a process, of a second SQLite that is loaded when a file is opened."""
    others = other_libraries()
    if others and _is_news("another library"):
        logger.warning(
            "another SQLite library is loaded beside Python's own sqlite3: %s. If it opens %s in this process too, "
            "the two break each other's locks and lose what was committed; use sqlite3 or aiosqlite for that file",
            ", ".join(others),
            path,
        )


def warn_of_sharing(path: Path) -> None:
    """Warn, once in a process, that others use a file with a SQLite that has the bug."""
    if has_wal_reset_bug(sqlite3.sqlite_version_info) and _is_news("shared with the bug"):
        logger.warning(
            "%s is shared by several processes, and SQLite %s has the WAL-reset bug: durableq's own checkpoints "
            "cannot meet it, those of other programs can damage the file. Give your own connections "
            "durableq.outbox.configure(engine), or use SQLite %s",
            path,
            sqlite3.sqlite_version,
            FIXED_IN,
        )


def _is_news(warning: str) -> bool:
    if warning in _said:
        return False
    _said.add(warning)
    return True
