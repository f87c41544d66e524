"""Opens the database file: creation, checks, pragmas, and the guard against a file swapped under us.

durableq never opens the database, its ``-wal`` or its ``-shm`` by itself: closing such a descriptor would drop
SQLite's POSIX locks. `os.stat` is all it uses. (The one exception is creating a file that did not exist.)
"""

import contextlib
import logging
import os
import sqlite3
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from durableq.errors import (
    FileReplaced,
    NotStored,
    StorageBusy,
    StorageError,
    StorageFull,
    StorageUnusable,
)
from durableq.storage.sqlite import host

logger = logging.getLogger("durableq.storage")

WRITE_LOCK_BYTE: Final = 120
"""The byte of ``-shm`` that SQLite locks while a WAL transaction writes (WAL_WRITE_LOCK, walFormat.html)."""
BUSY_RETRY_SECONDS: Final = 0.0005
OPENING_SECONDS: Final = 30.0
_OLDEST_SQLITE: Final = (3, 37, 0)
_QUICK_CHECK_BYTES: Final = 16 * 1024 * 1024
"""Up to this size the file is checked at start (about 20 ms); larger ones only where they are read."""


@dataclass(frozen=True)
class Location:
    """A database file and what lies beside it."""

    path: Path
    durability: str = "full"
    allow_network_filesystem: bool = False

    @property
    def directory(self) -> Path:
        """The directory of durableq's lock file and sockets."""
        return self.path.with_name(self.path.name + ".durableq")

    @property
    def wal(self) -> Path:
        return self.path.with_name(self.path.name + "-wal")

    @property
    def shm(self) -> Path:
        return self.path.with_name(self.path.name + "-shm")


def prepare_file(location: Location) -> None:
    """Check the path and create the file (mode 0600) when there is none.

    Raises `StorageUnusable` in plain words; nothing is created then.
    """
    path = location.path
    if sqlite3.sqlite_version_info < _OLDEST_SQLITE:
        raise StorageUnusable(f"this Python uses SQLite {sqlite3.sqlite_version}; durableq needs 3.37 or newer")
    if path.is_dir():
        raise StorageUnusable(f"{path} is a directory; give the path of a file in it")
    if not path.parent.is_dir():
        raise StorageUnusable(f"the directory {path.parent} does not exist; create it first")
    kind = host.network_filesystem(path.parent)
    if kind is not None and not location.allow_network_filesystem:
        raise StorageUnusable(
            f"{path} is on a network file system ({kind}), where SQLite's locks do not hold and jobs get lost; "
            "use a local disk (allow_network_filesystem=True overrides this at your own risk)"
        )
    if path.exists():
        _check_existing(path)
    else:
        _create(path)


def _check_existing(path: Path) -> None:
    if not os.access(path, os.R_OK | os.W_OK):
        raise StorageUnusable(f"{path} cannot be written by this user; durableq needs to write it")
    if not os.access(path.parent, os.W_OK):
        raise StorageUnusable(f"the directory {path.parent} cannot be written; SQLite keeps its -wal file there")
    if path.stat().st_mode & (stat.S_IRGRP | stat.S_IROTH):
        logger.warning("%s can be read by other users, and the arguments of jobs with it; chmod 600 closes it", path)


def _create(path: Path) -> None:
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        host.sync(path.parent)
    except FileExistsError:
        return  # another process was first
    except OSError as error:
        raise StorageUnusable(f"cannot create {path}: {error.strerror}") from error


def connect(location: Location, *, check: bool = False) -> sqlite3.Connection:
    """Open a connection that may write: autocommit, no busy timeout, every pragma set and read back.

    ``check`` looks for damage, in files up to 16 MiB.

    Raises `StorageUnusable` when the file is no database, is damaged, or a setting does not take.
    """
    try:
        connection = sqlite3.connect(location.path, timeout=0, isolation_level=None, cached_statements=256)
    except sqlite3.Error as error:
        raise translated(error, location) from error
    # A flipped bit may leave what is no UTF-8. It must reach the checksum, not stop the claim of every other job.
    connection.text_factory = readable
    try:
        _configure(connection, location)
        if check and location.path.stat().st_size <= _QUICK_CHECK_BYTES:
            _quick_check(connection, location)
    except sqlite3.Error as error:
        connection.close()
        raise translated(error, location) from error
    except BaseException:
        connection.close()
        raise
    return connection


def readable(raw: bytes) -> str:
    """Decode stored text, damaged or not."""
    return raw.decode("utf-8", "replace")


def _configure(connection: sqlite3.Connection, location: Location) -> None:
    _set(connection, "trusted_schema", "OFF", 0)
    _set(connection, "temp_store", "MEMORY", 2)
    _switch_to_wal(connection)
    _set(connection, "synchronous", *(("FULL", 2) if location.durability == "full" else ("NORMAL", 1)))
    # The writer checkpoints by itself, under a guard; SQLite's own trigger would run inside users' commits.
    _set(connection, "wal_autocheckpoint", "0", 0)
    _set(connection, "cache_size", "-16000", -16000)


def _quick_check(connection: sqlite3.Connection, location: Location) -> None:
    verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if verdict != "ok":
        raise StorageUnusable(
            f"{location.path} is damaged ({verdict}); restore it from a backup, or recover what is left "
            "with the sqlite3 shell's .recover command"
        )


def _set(connection: sqlite3.Connection, pragma: str, value: str, expected: int) -> None:
    connection.execute(f"PRAGMA {pragma}={value}").fetchall()
    found = connection.execute(f"PRAGMA {pragma}").fetchone()[0]
    if found != expected:
        raise StorageUnusable(f"SQLite did not take {pragma}={value}: expected {expected}, it reports {found}")


def _switch_to_wal(connection: sqlite3.Connection) -> None:
    """Turn WAL mode on. SQLite's busy handler is not used here, so waiting for others is ours to do."""
    give_up = time.monotonic() + OPENING_SECONDS
    while True:
        try:
            mode = connection.execute("PRAGMA journal_mode=WAL").fetchone()[0]
        except sqlite3.OperationalError as error:
            if not is_busy(error) or time.monotonic() > give_up:
                raise
            time.sleep(0.002)
            continue
        if mode != "wal":
            raise StorageUnusable(f"expected SQLite to switch to WAL mode, it stays in {mode!r}")
        return


@contextlib.contextmanager
def opening(locks: host.LockFile, wait_seconds: float = OPENING_SECONDS) -> Iterator[None]:
    """Hold the opening lock: one process at a time creates, migrates or closes a database.

    Raises `StorageBusy` when it could not be had in time.
    """
    give_up = time.monotonic() + wait_seconds
    if not locks.opening.acquire(timeout=wait_seconds):
        raise StorageBusy(f"{locks.path} has been held for {wait_seconds:.1f} s by another thread of this process")
    try:
        _acquire_opening(locks, give_up - time.monotonic())
        try:
            yield
        finally:
            locks.release(host.OPENING)
    finally:
        locks.opening.release()


def _acquire_opening(locks: host.LockFile, wait_seconds: float) -> None:
    give_up = time.monotonic() + wait_seconds
    while not locks.acquire(host.OPENING):
        if time.monotonic() > give_up:
            holder = host.lock_holder(locks.path, host.OPENING)
            raise StorageBusy(f"{locks.path} has been held for {wait_seconds:.1f} s by process {holder or '?'}")
        time.sleep(0.002)


def begin(connection: sqlite3.Connection, wait_seconds: float = 5.0) -> None:
    """Start a write transaction, asking every half millisecond: SQLite's own busy handler can starve for seconds.

    Raises ``sqlite3.OperationalError`` (busy) when the lock could not be had in time; nothing has happened then.
    """
    give_up = time.monotonic() + wait_seconds
    while True:
        try:
            connection.execute("BEGIN IMMEDIATE")
            return
        except sqlite3.OperationalError as error:
            if not is_busy(error) or time.monotonic() > give_up:
                raise
        time.sleep(BUSY_RETRY_SECONDS)


class FileGuard:
    """Notices that the database or its ``-wal`` was deleted or replaced while open: a commit then went nowhere."""

    def __init__(self, location: Location) -> None:
        self._location = location
        self._paths = str(location.path), str(location.wal)
        self._identity = self._look()
        if self._identity is None:
            raise FileReplaced(f"{location.path} or its -wal file was deleted while it was being opened")

    def check(self) -> None:
        """Raise `FileReplaced` unless both files are still the ones that were opened."""
        if self._look() != self._identity:
            raise FileReplaced(
                f"{self._location.path} or its -wal file was deleted or replaced while it was open; nothing is "
                "acknowledged any more. Put the file back if you can, and restart"
            )

    def wal_bytes(self) -> int:
        return size_of(self._location.wal) or 0

    def _look(self) -> tuple[int, ...] | None:
        try:
            database, wal = map(os.stat, self._paths)
        except OSError:
            return None
        return database.st_dev, database.st_ino, wal.st_dev, wal.st_ino


def size_of(path: Path) -> int | None:
    """Return a file's size in bytes; None when it cannot be told."""
    try:
        return path.stat().st_size
    except OSError:
        return None


def primary_code(error: sqlite3.Error) -> int:
    code: int = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF


def is_busy(error: sqlite3.Error) -> bool:
    return primary_code(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def is_full(error: sqlite3.Error) -> bool:
    return primary_code(error) == sqlite3.SQLITE_FULL


def is_fatal(error: sqlite3.Error) -> bool:
    """Whether the file itself is beyond use, so that going on would make it worse."""
    return primary_code(error) in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def translated(error: sqlite3.Error, location: Location) -> StorageError:
    """Put SQLite's error in durableq's words. True only for errors before COMMIT: nothing was written."""
    path, code = location.path, primary_code(error)
    if is_busy(error):
        return StorageBusy(f"the write lock of {path} is held by another; nothing was stored")
    if is_full(error):
        return StorageFull(f"the disk or quota that holds {path} is full ({error}); nothing was stored, free space")
    if code == sqlite3.SQLITE_NOTADB:
        return StorageUnusable(f"{path} is not a SQLite database; nothing was changed. Give another path")
    if code == sqlite3.SQLITE_CORRUPT:
        return StorageUnusable(f"{path} is damaged ({error}); restore it from a backup")
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_CANTOPEN):
        return StorageUnusable(f"{path} cannot be written ({error}); check the file, its directory and the mount")
    if code == sqlite3.SQLITE_IOERR:
        return NotStored(f"the disk that holds {path} reported an error ({error}); nothing was stored")
    return NotStored(f"SQLite refused the statement ({error}); nothing was stored")
