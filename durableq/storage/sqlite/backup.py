"""Copies of a queue's file: one is taken while the queue runs, and put in its place while nothing does.

SQLite makes them, in one read transaction: a file that is copied by other means lacks what stands in its ``-wal``, and
opening it by other means would drop SQLite's locks. A copy gets its name once it is whole and on the disk.
"""

import contextlib
import os
import sqlite3
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from durableq.clock import Clock
from durableq.errors import ConfigurationError, StorageBusy, StorageUnusable
from durableq.models import Released
from durableq.storage.sqlite import host, liveness, rows, schema
from durableq.storage.sqlite.connection import Location, begin, connect, is_busy, opening, translated
from durableq.storage.sqlite.statements import SQL


def back_up(source: Path, target: Path) -> int:
    """Copy a queue's file, with all else that is in it, beside whoever works on it; return how many jobs it holds.

    What was committed before the call is in the copy, each transaction whole or not at all. The copy can be read by its
    owner only. The log of the source grows while it is read. Raises `ConfigurationError` when ``source`` is no queue or
    there is a ``target``, `StorageError` when the disk fails; then, and after a crash, there is no ``target``.
    """
    _require_queue(source)
    if target.exists():
        raise ConfigurationError(f"{target} is there already, and would be lost; give the name of a new file")
    location = Location(source)
    with _locks_of(location) as locks, _part_of(target) as part:
        with opening(locks):
            connection = connect(location)
        try:
            _copy(connection, part, source)
        finally:
            with opening(locks):
                connection.close()
        jobs = _count_jobs(part)
        host.sync(part)
        _publish(part, target)
    return jobs


def restore(backup: Path, target: Path, clock: Clock) -> Path | None:
    """Put a copy of a queue in the place of its file, which nothing may have open. Return where that is kept now.

    Jobs that were running when the copy was taken are ready to run, and that start is not counted. Raises
    `ConfigurationError` when ``backup`` is no queue, `SchemaTooNew` for one of a newer durableq, `StorageBusy` when the
    file is in use; then nothing is changed. After a crash the file is the old one or the new one; the old one is also
    there under the name that it is kept by.
    """
    _require_queue(backup)
    location = Location(target)
    with _locks_of(location) as locks, opening(locks), _part_of(target) as part:
        _refuse_if_in_use(location, locks)
        with contextlib.closing(sqlite3.connect(backup, isolation_level=None)) as connection:
            _copy(connection, part, backup)
        with contextlib.closing(sqlite3.connect(part, isolation_level=None)) as connection:
            schema.migrate(connection, clock.wall())
            _hand_back_all(connection, clock)
        host.sync(part)
        kept = _put_aside(location)
        _publish(part, target)
    return kept


@contextlib.contextmanager
def _locks_of(location: Location) -> Iterator[host.LockFile]:
    locks = host.open_lock_file(location.directory / "locks")
    try:
        yield locks
    finally:
        host.close_lock_file(locks)


def _require_queue(path: Path) -> None:
    if not path.is_file() or not schema.is_queue(path):
        raise ConfigurationError(f"expected the file of a queue, and {str(path)!r} holds none; is the path right?")


@contextlib.contextmanager
def _part_of(target: Path) -> Iterator[Path]:
    """Give an empty, private file to be filled and published. Whatever happens, none is left."""
    part = target.with_name(f"{target.name}.part")
    try:
        part.unlink(missing_ok=True)  # of one that did not come to its end
        os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        yield part
    except OSError as error:
        raise StorageUnusable(f"cannot write {target}: {error.strerror}; nothing was changed") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def _copy(connection: sqlite3.Connection, part: Path, source: Path) -> None:
    """Fill an empty file with a whole copy, and look whether it is one."""
    try:
        connection.execute("VACUUM INTO ?", (str(part),))
        with contextlib.closing(sqlite3.connect(part)) as copied:
            verdict = copied.execute("PRAGMA integrity_check(1)").fetchone()[0]
    except sqlite3.Error as error:
        raise translated(error, Location(source)) from error
    if verdict != "ok":
        raise StorageUnusable(f"the copy of {source} is damaged ({verdict}), and was thrown away")


def _publish(part: Path, target: Path) -> None:
    part.replace(target)
    host.sync(target.parent)


def _count_jobs(path: Path) -> int:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        number: int = connection.execute("SELECT count(*) FROM durableq_jobs").fetchone()[0]
    return number


def _refuse_if_in_use(location: Location, locks: host.LockFile) -> None:
    """By durableq, which its kernel locks tell; by others as far as SQLite tells, which empties the log as well.

    A damaged file is why people restore one. SQLite is not asked to write to it: it might throw the log away.
    """
    if locks.is_any_held():
        raise StorageBusy(f"{location.path} is in use by a running queue; stop it first. Nothing was changed")
    if not location.path.exists() or not schema.is_queue(location.path):
        return
    try:
        with contextlib.closing(sqlite3.connect(location.path, timeout=0, isolation_level=None)) as connection:
            connection.execute("PRAGMA journal_mode=DELETE").fetchone()
    except sqlite3.Error as error:
        if is_busy(error):
            raise StorageBusy(
                f"{location.path} is open in another program; close it first. Nothing was changed"
            ) from error
        # Else it is damaged further inside, and put aside as it is.


def _hand_back_all(connection: sqlite3.Connection, clock: Clock) -> None:
    """The workers of a copy are none of this file's."""
    begin(connection)
    holders = connection.execute("SELECT DISTINCT worker_id FROM durableq_jobs WHERE state = 'running'").fetchall()
    for (worker_id,) in holders:
        leases = rows.leases_of_worker(connection, SQL["leases_of_worker"], worker_id)
        liveness.settle(connection, [(lease, Released()) for lease in leases], clock.wall())
    connection.execute("DELETE FROM durableq_workers")
    connection.execute("COMMIT")


def _put_aside(location: Location) -> Path | None:
    """Keep what is there under another name too, and take its log away from the name that the new file will have."""
    if not location.path.exists():
        return None
    kept = location.path.with_name(f"{location.path.name}.replaced-{datetime.now():%Y%m%d-%H%M%S}")
    os.link(location.path, kept)
    for beside in (location.wal, location.shm):
        if beside.exists():
            beside.rename(beside.with_name(beside.name.replace(location.path.name, kept.name, 1)))
    host.sync(location.path.parent)
    return kept
