"""Copies of a queue's file: one is taken while the queue runs, and made a queue's file again where none is.

SQLite makes them, in one read transaction: a file that is copied by other means lacks what stands in its ``-wal``, and
opening it by other means would drop SQLite's locks. A copy gets its name once it is whole and on the disk. Neither
ever replaces a file: who wants the old one out of the way moves it, and still has it.
"""

import contextlib
import os
import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path

from durableq.clock import Clock
from durableq.errors import ConfigurationError, StorageBusy, StorageUnusable
from durableq.models import Released
from durableq.storage.sqlite import host, liveness, rows, schema
from durableq.storage.sqlite.connection import Location, begin, connect, opening, readable, translated
from durableq.storage.sqlite.statements import SQL

_BESIDE = ("", "-wal", "-shm", "-journal")
"""The endings of the files that SQLite takes for one database."""


def back_up(source: Path, target: Path) -> int:
    """Copy a queue's file, with all else that is in it, beside whoever works on it; return how many jobs it holds.

    What was committed before the call is in the copy, each transaction whole or not at all. The copy can be read by its
    owner only. The log of the source grows while it is read. Raises `ConfigurationError` when ``source`` is no queue or
    there is a ``target``, `StorageError` when the disk fails; then, and after a crash, there is no ``target``. (A crash
    may leave a file of another name, ending in ``.part``, that may be deleted.)
    """
    schema.require_queue(source)
    _require_nothing(target)
    location = Location(source)
    with _locks_of(location) as locks, _part_of(target) as part:
        with opening(locks):
            connection = connect(location)
        try:
            jobs = _copy(connection, part, source)
        finally:
            with opening(locks):
                connection.close()
        _publish(part, target)
    return jobs


def restore(backup: Path, target: Path, clock: Clock) -> int:
    """Make a copy of a queue a queue's file again, under a name that none has; return how many jobs it holds.

    Jobs that were running when the copy was taken are ready to run, and that start is not counted. Raises
    `ConfigurationError` when ``backup`` is no queue or there is a ``target``, `SchemaTooNew` for a copy of a newer
    durableq, `StorageBusy` when a queue runs under that name though its file is gone, `StorageError` when the disk
    fails; then, and after a crash, there is no ``target``.
    """
    schema.require_queue(backup)
    _require_nothing(target)
    location = Location(target)
    with _locks_of(location) as locks, opening(locks), _part_of(target) as part:
        if locks.is_any_held():
            raise StorageBusy(f"a queue runs on {target} still, though its file is gone; stop it first")
        with contextlib.closing(sqlite3.connect(backup, isolation_level=None)) as connection:
            jobs = _copy(connection, part, backup)
        with contextlib.closing(_opened(part)) as connection:
            schema.migrate(connection, clock.wall())
            _hand_back_all(connection, clock)
        _publish(part, target)
    return jobs


@contextlib.contextmanager
def _locks_of(location: Location) -> Iterator[host.LockFile]:
    locks = host.open_lock_file(location.directory / "locks")
    try:
        yield locks
    finally:
        host.close_lock_file(locks)


def _require_nothing(target: Path) -> None:
    for ending in _BESIDE:
        there = target.with_name(target.name + ending)
        if os.path.lexists(there):
            raise ConfigurationError(
                f"{there} is there already; give the name of a new file, or move it away, with its -wal and -journal, "
                "once nothing has it open"
            )


@contextlib.contextmanager
def _part_of(target: Path) -> Iterator[Path]:
    """Give an empty, private file of a name of its own, to be filled and published. Whatever happens, none is left."""
    try:
        descriptor, name = tempfile.mkstemp(prefix=f"{target.name}.", suffix=".part", dir=target.parent)
    except OSError as error:
        raise StorageUnusable(f"cannot write to {target.parent}: {error.strerror}") from error
    os.close(descriptor)
    part = Path(name)
    try:
        yield part
    except sqlite3.Error as error:
        raise translated(error, Location(target)) from error
    except OSError as error:
        raise StorageUnusable(f"cannot write {target}: {error.strerror}") from error
    finally:
        for ending in _BESIDE:
            with contextlib.suppress(OSError):
                part.with_name(part.name + ending).unlink(missing_ok=True)


def _copy(connection: sqlite3.Connection, part: Path, source: Path) -> int:
    """Fill an empty file with a copy, page by page; return how many jobs it holds. In one step: in more, every write
    of others would begin it anew.
    """
    with contextlib.closing(_opened(part)) as copy:
        connection.backup(copy, pages=-1)
        verdict = copy.execute("PRAGMA quick_check(durableq_jobs)").fetchone()[0]
        if verdict != "ok":
            raise StorageUnusable(f"the jobs in {source} are damaged ({verdict}); no copy was made")
        jobs: int = copy.execute("SELECT count(*) FROM durableq_jobs").fetchone()[0]
        copy.execute("PRAGMA journal_mode=DELETE").fetchone()  # all of it is in one file, then
    return jobs


def _opened(part: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(part, isolation_level=None)
    connection.text_factory = readable
    return connection


def _hand_back_all(connection: sqlite3.Connection, clock: Clock) -> None:
    """The workers of a copy are none of this file's."""
    begin(connection)
    holders = connection.execute("SELECT DISTINCT worker_id FROM durableq_jobs WHERE state = 'running'").fetchall()
    for (worker_id,) in holders:
        leases = rows.leases_of_worker(connection, SQL["leases_of_worker"], worker_id)
        liveness.settle(connection, [(lease, Released()) for lease in leases], clock.wall())
    connection.execute("DELETE FROM durableq_workers")
    connection.execute("COMMIT")


def _publish(part: Path, target: Path) -> None:
    """Give a file its name, on the disk, unless somebody has it by now."""
    host.sync(part)
    with host.syncing(target.parent):
        try:
            os.link(part, target)
        except FileExistsError:
            raise ConfigurationError(f"{target} was made by another meanwhile; give the name of a new file") from None
        except OSError:  # no hard links on this file system
            _require_nothing(target)
            part.rename(target)
