"""Connections to a file: how they are set up, what they wait for, and what they leave behind."""

import asyncio
import contextlib
import math
import os
import sqlite3
import stat
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import aiosqlite
import pytest

from durableq.errors import (
    FileReplaced,
    NotStored,
    QueueNotRunning,
    StorageBusy,
    StorageFull,
    StorageUnusable,
)
from durableq.storage.sqlite import connection, host
from durableq.storage.sqlite import reader as reader_module
from durableq.storage.sqlite.connection import (
    BUSY_RETRY_SECONDS,
    OPENING_SECONDS,
    FileGuard,
    Location,
    begin,
    connect,
    is_busy,
    is_fatal,
    is_full,
    opening,
    prepare_file,
    translated,
)
from durableq.storage.sqlite.reader import Reader
from tests.storage.support import ENDLESS
from tests.support import eventually

# -- connections ---------------------------------------------------------------------------------------------


class Waits:
    """Takes the place of `time` in a module: to sleep is to move the clock, and to do something after a while.

    It begins at the real time: other modules read that, also on a machine that was started a moment ago.
    """

    def __init__(self) -> None:
        self.began = self.now = time.monotonic()
        self.slept: list[float] = []
        self.afterwards: Callable[[], object] = lambda: None
        self.after = math.inf

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.slept.append(seconds)
        if len(self.slept) == self.after:
            self.afterwards()


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> Waits:
    waits = Waits()
    monkeypatch.setattr(connection, "time", waits)
    return waits


@pytest.fixture
def location(tmp_path: Path) -> Location:
    return Location(tmp_path / "jobs.db")


@pytest.fixture
def opened(location: Location) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(connect(location)) as opened:
        opened.execute("CREATE TABLE t (x)")
        yield opened


def error_of(code: int) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError("what SQLite says")
    error.sqlite_errorcode = code
    return error


@pytest.mark.parametrize(("durability", "synchronous"), [("full", 2), ("normal", 1)])
def test_a_connection_that_may_write_has_every_setting(tmp_path: Path, durability: str, synchronous: int) -> None:
    with contextlib.closing(connect(Location(tmp_path / "jobs.db", durability=durability))) as opened:
        found = {
            name: opened.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("journal_mode", "synchronous", "trusted_schema", "temp_store", "wal_autocheckpoint")
        }
        assert found == {
            "journal_mode": "wal",
            "synchronous": synchronous,
            "trusted_schema": 0,
            "temp_store": 2,
            "wal_autocheckpoint": 0,
        }
        assert opened.execute("PRAGMA cache_size").fetchone() == (-16_000,)
        assert opened.execute("PRAGMA busy_timeout").fetchone() == (0,)
        assert opened.isolation_level is None
        opened.execute("CREATE TABLE t (x)")
        opened.execute("INSERT INTO t VALUES (CAST(x'61ff62' AS TEXT))")
        assert opened.execute("SELECT x FROM t").fetchone() == ("a\ufffdb",), "damage must reach the checksum"


def test_a_setting_that_does_not_take_is_refused(location: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    class Deaf(sqlite3.Connection):
        def execute(self, sql: str, *values: object) -> sqlite3.Cursor:
            return super().execute("SELECT 7" if sql.startswith("PRAGMA synchronous") else sql, *values)  # type: ignore[arg-type]

    monkeypatch.setattr(sqlite3, "connect", partial(sqlite3.connect, factory=Deaf))
    with pytest.raises(StorageUnusable, match="did not take synchronous=FULL: expected 2, it reports 7"):
        connect(location)


def test_what_was_opened_is_closed_when_it_is_refused(location: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[sqlite3.Connection] = []
    really = sqlite3.connect

    def remember(*arguments: Any, **options: Any) -> sqlite3.Connection:
        opened.append(really(*arguments, **options))
        return opened[-1]

    monkeypatch.setattr(sqlite3, "connect", remember)
    location.path.write_bytes(b"dear diary\n" * 100)
    with pytest.raises(StorageUnusable, match="not a SQLite database"):
        connect(location)
    monkeypatch.setattr(connection, "_set", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        connect(Location(location.path.with_name("other.db")))
    assert len(opened) == 2
    for one in opened:
        with pytest.raises(sqlite3.ProgrammingError, match="closed"):
            one.execute("SELECT 1")


def test_only_files_up_to_a_size_are_checked_and_only_when_asked(
    location: Location, opened: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    checked: list[str] = []
    monkeypatch.setattr(connection, "_quick_check", lambda _, where: checked.append(where.path.name))
    size = location.path.stat().st_size
    for most, check, times in ((size, False, 0), (size, True, 1), (size - 1, True, 0)):
        monkeypatch.setattr(connection, "_QUICK_CHECK_BYTES", most)
        checked.clear()
        connect(location, check=check).close()
        assert len(checked) == times
    monkeypatch.setattr(connection, "_QUICK_CHECK_BYTES", size)
    connect(location).close()
    assert checked == [], "only when it is asked for"


def test_the_lock_is_asked_for_every_half_millisecond_for_five_seconds(
    location: Location, opened: sqlite3.Connection, waits: Waits
) -> None:
    with contextlib.closing(connect(location)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            begin(opened)
        assert set(waits.slept) == {BUSY_RETRY_SECONDS}
        assert sum(waits.slept) == pytest.approx(5.0, abs=0.002)
        waits.slept.clear()
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            begin(opened, wait_seconds=0.1)
        assert sum(waits.slept) == pytest.approx(0.1, abs=0.002)
        waits.slept.clear()
        waits.after, waits.afterwards = 3, partial(other.execute, "ROLLBACK")
        begin(opened)
        assert opened.in_transaction
        assert len(waits.slept) == 3


def test_what_is_not_busy_is_not_waited_for(opened: sqlite3.Connection, waits: Waits) -> None:
    begin(opened)
    with pytest.raises(sqlite3.OperationalError, match="within a transaction"):
        begin(opened)
    assert waits.slept == []


@pytest.mark.parametrize("times", [5, math.inf])
def test_the_switch_to_wal_waits_for_whoever_has_the_file(location: Location, waits: Waits, times: float) -> None:
    with contextlib.closing(sqlite3.connect(location.path, isolation_level=None)) as other:
        other.execute("CREATE TABLE t (x)")
        other.execute("BEGIN EXCLUSIVE")
        waits.after, waits.afterwards = times, partial(other.execute, "ROLLBACK")
        if times == 5:
            connect(location).close()
            assert len(waits.slept) == times
        else:
            with pytest.raises(StorageBusy):
                connect(location)
            assert sum(waits.slept) == pytest.approx(OPENING_SECONDS, abs=0.01)


def test_a_file_that_cannot_have_a_log_is_refused() -> None:
    with pytest.raises(StorageUnusable, match="stays in 'memory'"):
        connect(Location(Path(":memory:")))


def test_one_at_a_time_opens_and_the_lock_is_given_back(location: Location) -> None:
    location.directory.mkdir()
    locks = host.open_lock_file(location.directory / "locks")

    def holder() -> int | None:
        return host.lock_holder(locks.path, host.OPENING)

    assert holder() is None
    with contextlib.suppress(ZeroDivisionError), opening(locks):
        assert holder() == host.own_pid()
        raise ZeroDivisionError
    assert holder() is None
    host.close_lock_file(locks)


def test_the_opening_lock_is_waited_for_and_its_holder_named(
    location: Location, waits: Waits, monkeypatch: pytest.MonkeyPatch
) -> None:
    location.directory.mkdir()
    locks = host.open_lock_file(location.directory / "locks")
    free = False
    monkeypatch.setattr(locks, "acquire", lambda byte: free)
    monkeypatch.setattr(host, "lock_holder", lambda path, byte: 77 if (path, byte) == (locks.path, 0) else None)
    for seconds, said in ((OPENING_SECONDS, "30.0"), (0.25, "0.2")):
        waits.slept.clear()
        with pytest.raises(StorageBusy, match=f"held for {said} s by process 77"), opening(locks, seconds):
            pytest.fail("it was not had")
        assert sum(waits.slept) == pytest.approx(seconds, abs=0.005)
    waits.slept.clear()
    with pytest.raises(StorageBusy), opening(locks):
        pytest.fail("it was not had")
    assert sum(waits.slept) == pytest.approx(OPENING_SECONDS, abs=0.005)
    monkeypatch.setattr(host, "lock_holder", lambda path, byte: None)
    with pytest.raises(StorageBusy, match=r"process \?"), opening(locks, 0):
        pytest.fail("it was not had")
    free = True
    with opening(locks):
        pass
    host.close_lock_file(locks)


def test_the_opening_lock_of_another_thread_is_waited_for_as_long(location: Location) -> None:
    location.directory.mkdir()
    locks = host.open_lock_file(location.directory / "locks")
    with locks.opening:
        with (
            pytest.raises(StorageBusy, match=r"held for 0\.0 s by another thread of this process"),
            opening(locks, 0.01),
        ):
            pytest.fail("it was not had")
        other = host.open_lock_file(location.directory / "others")
        with opening(other, 0):
            pass
        host.close_lock_file(other)
    with opening(locks, 0):
        pass
    host.close_lock_file(locks)


def test_a_file_that_is_gone_or_another_is_noticed(location: Location, opened: sqlite3.Connection) -> None:
    guard = FileGuard(location)
    guard.check()
    assert guard.wal_bytes() == location.wal.stat().st_size > 0
    aside = location.wal.rename(location.wal.with_name("aside"))
    with pytest.raises(FileReplaced, match="deleted or replaced while it was open"):
        guard.check()
    assert guard.wal_bytes() == 0
    with pytest.raises(FileReplaced, match="while it was being opened"):
        FileGuard(location)
    location.wal.touch()
    with pytest.raises(FileReplaced):
        guard.check()
    location.wal.unlink()
    aside.rename(location.wal)
    guard.check()


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        (sqlite3.SQLITE_BUSY, StorageBusy, "held by another"),
        (sqlite3.SQLITE_BUSY_SNAPSHOT, StorageBusy, "held by another"),
        (sqlite3.SQLITE_LOCKED, StorageBusy, "held by another"),
        (sqlite3.SQLITE_FULL, StorageFull, "full"),
        (sqlite3.SQLITE_NOTADB, StorageUnusable, "not a SQLite database"),
        (sqlite3.SQLITE_CORRUPT_INDEX, StorageUnusable, "damaged"),
        (sqlite3.SQLITE_READONLY_DIRECTORY, StorageUnusable, "cannot be written"),
        (sqlite3.SQLITE_PERM, StorageUnusable, "cannot be written"),
        (sqlite3.SQLITE_CANTOPEN, StorageUnusable, "cannot be written"),
        (sqlite3.SQLITE_IOERR_WRITE, NotStored, "reported an error"),
        (sqlite3.SQLITE_CONSTRAINT_CHECK, NotStored, "refused the statement"),
    ],
)
def test_what_sqlite_says_is_put_in_words_of_the_queue(location: Location, code: int, kind: type, words: str) -> None:
    error = error_of(code)
    told = translated(error, location)
    assert type(told) is kind
    assert words in str(told)
    assert str(location.path) in str(told) or words == "refused the statement"
    assert is_fatal(error) is (kind is StorageUnusable and "cannot" not in words)
    assert is_full(error) is (kind is StorageFull)
    assert is_busy(error) is (kind is StorageBusy)


def test_an_error_without_a_number_is_none_of_the_known_ones(location: Location) -> None:
    error = sqlite3.ProgrammingError("Cannot operate on a closed database.")
    assert not is_busy(error)
    assert not is_full(error)
    assert not is_fatal(error)
    assert type(translated(error, location)) is NotStored


def test_files_beside_the_database_have_its_name(location: Location) -> None:
    names = [path.name for path in (location.directory, location.wal, location.shm)]
    assert names == ["jobs.db.durableq", "jobs.db-wal", "jobs.db-shm"]
    assert {path.parent for path in (location.directory, location.wal, location.shm)} == {location.path.parent}


def test_a_new_file_is_its_owners_alone_and_its_name_durable(
    location: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    monkeypatch.setattr(host, "sync", synced.append)
    before = os.umask(0)
    try:
        prepare_file(location)
    finally:
        os.umask(before)
    assert stat.S_IMODE(location.path.stat().st_mode) == 0o600
    assert synced == [location.path.parent]
    prepare_file(location)
    assert len(synced) == 1, "it was there"


def test_a_file_that_another_creates_meanwhile_is_taken_as_it_is(
    location: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    location.path.touch(0o600)
    synced: list[Path] = []
    monkeypatch.setattr(Path, "exists", lambda self: False)
    monkeypatch.setattr(host, "sync", synced.append)
    prepare_file(location)
    assert synced == []


def test_a_network_file_system_is_refused_unless_it_is_allowed(
    location: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = {location.path.parent: "nfs4"}
    monkeypatch.setattr(host, "network_filesystem", lambda path: kinds[path])
    with pytest.raises(StorageUnusable, match=r"network file system \(nfs4\)"):
        prepare_file(location)
    assert not location.path.exists()
    prepare_file(replace(location, allow_network_filesystem=True))
    assert location.path.exists()


@pytest.mark.parametrize("version", [(3, 36, 0), (3, 37, 0)])
def test_a_sqlite_that_is_too_old_is_refused(
    location: Location, monkeypatch: pytest.MonkeyPatch, version: tuple[int, int, int]
) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", version)
    with contextlib.ExitStack() as stack:
        if version < (3, 37, 0):
            stack.enter_context(pytest.raises(StorageUnusable, match=r"needs 3\.37 or newer"))
        prepare_file(location)


def test_rights_that_are_missing_are_told_apart(location: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare_file(location)
    needed = {location.path: os.R_OK | os.W_OK, location.path.parent: os.W_OK}
    refused: set[Path] = set()
    monkeypatch.setattr(os, "access", lambda path, mode: mode == needed[path] and path not in refused)
    prepare_file(location)
    for path, words in ((location.path.parent, "directory .* cannot be written"), (location.path, "by this user")):
        refused.add(path)
        with pytest.raises(StorageUnusable, match=words):
            prepare_file(location)


@pytest.mark.parametrize(("mode", "is_told"), [(0o600, False), (0o640, True), (0o604, True), (0o622, False)])
def test_that_others_can_read_is_told(
    location: Location, caplog: pytest.LogCaptureFixture, mode: int, is_told: bool
) -> None:
    prepare_file(location)
    location.path.chmod(mode)
    prepare_file(location)
    assert (f"{location.path} can be read by other users" in caplog.text) is is_told


# -- reading -------------------------------------------------------------------------------------------------


def reading_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if "_connection_worker_thread" in thread.name]


@contextlib.asynccontextmanager
async def reading(location: Location) -> AsyncIterator[Reader]:
    """A reader whose threads have all ended afterwards: they may not speak to a loop that is closed by then."""
    await eventually(lambda: not reading_threads())
    reader = Reader(location)
    yield reader
    await reader.close()
    await eventually(lambda: not reading_threads())


async def test_reads_share_two_connections_that_cannot_write(
    location: Location, opened: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[dict[str, Any]] = []
    really = aiosqlite.connect

    def count(*arguments: Any, **options: Any) -> aiosqlite.Connection:
        made.append(options)
        return really(*arguments, **options)

    monkeypatch.setattr(aiosqlite, "connect", count)
    slow = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n WHERE x < 20000) SELECT count(*) FROM n"
    async with reading(location) as reader:
        found = await asyncio.gather(*(reader.fetch(slow) for _ in range(6)))
        assert found == [[(20_000,)]] * 6
        assert await reader.fetch("SELECT :a", {"a": 7}) == [(7,)]
        assert len(made) == 2
        assert all(options["uri"] for options in made), "not every SQLite reads them unasked"
        with pytest.raises(StorageUnusable, match="cannot be written"):
            await reader.fetch("INSERT INTO t VALUES (1)")
        assert await reader.fetch("PRAGMA query_only") == [(1,)]
        assert await reader.fetch("PRAGMA busy_timeout") == [(5_000,)]
        opened.execute("INSERT INTO t VALUES (CAST(x'61ff62' AS TEXT))")
        assert await reader.fetch("SELECT x FROM t") == [("a\ufffdb",)]


async def test_a_file_of_any_name_is_read(tmp_path: Path) -> None:
    location = Location(tmp_path / "50% & more? #1.db")
    with contextlib.closing(connect(location)) as writing:
        writing.execute("CREATE TABLE t (x)")
    async with reading(location) as reader:
        assert await reader.fetch("SELECT count(*) FROM t") == [(0,)]


async def test_reading_what_is_not_there_says_so_and_creates_nothing(location: Location) -> None:
    async with reading(location) as reader:
        for _ in range(3):  # more often than there are connections
            with pytest.raises(StorageUnusable, match="unable to open"):
                await reader.fetch("SELECT 1")
    assert not location.path.exists()


async def test_a_read_that_fails_takes_its_connection_along_and_nothing_else(
    location: Location, opened: sqlite3.Connection
) -> None:
    async with reading(location) as reader:
        for _ in range(5):
            with pytest.raises(NotStored, match="no such table"):
                await reader.fetch("SELECT x FROM missing")
        assert await reader.fetch("SELECT count(*) FROM t") == [(0,)]
        await eventually(lambda: len(reading_threads()) == 1)
        assert all(thread.daemon for thread in reading_threads())


async def test_a_read_that_is_cancelled_ends_at_once(location: Location, opened: sqlite3.Connection) -> None:
    async with reading(location) as reader:
        await reader.fetch("SELECT 1")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.fetch(ENDLESS), 0.05)
        await eventually(lambda: not reading_threads(), within=2)
        assert await reader.fetch("SELECT 1") == [(1,)]


async def test_a_read_that_is_cancelled_while_it_connects_leaves_no_connection_behind(
    location: Location, opened: sqlite3.Connection
) -> None:
    await eventually(lambda: not reading_threads())
    for turns in range(1, 40):
        reader = Reader(location)
        reading = asyncio.ensure_future(reader.fetch("SELECT 1"))
        for _ in range(turns):
            await asyncio.sleep(0)
        reading.cancel()
        await asyncio.wait([reading])
        await reader.close()
    await eventually(lambda: not reading_threads(), within=2)


@pytest.mark.parametrize("turns", range(12))
async def test_a_read_amid_the_end_comes_to_its_own_and_leaves_no_connection_behind(
    location: Location, opened: sqlite3.Connection, turns: int
) -> None:
    await eventually(lambda: not reading_threads())
    reader = Reader(location)
    amid = asyncio.ensure_future(reader.fetch("SELECT 1"))
    for _ in range(turns):
        await asyncio.sleep(0)
    closing = asyncio.ensure_future(reader.close())
    await asyncio.sleep(0)
    late = asyncio.ensure_future(reader.fetch("SELECT 1"))
    await closing
    assert reading_threads() == []
    assert await amid == [(1,)]
    with pytest.raises(QueueNotRunning, match="is not running"):
        await late


async def test_the_end_waits_for_no_read_that_has_no_end(location: Location, opened: sqlite3.Connection) -> None:
    reader = Reader(location)
    amid = asyncio.ensure_future(reader.fetch(ENDLESS))
    await eventually(lambda: reading_threads() != [])
    await asyncio.wait_for(reader.close(), 2)
    assert reading_threads() == []
    with pytest.raises(QueueNotRunning, match="has stopped while it was read"):
        await asyncio.wait_for(amid, 2)


async def test_a_read_that_had_not_begun_when_it_was_given_up_is_ended_too(
    location: Location, opened: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite forgets an interruption that comes before the statement."""
    reader, interrupt = Reader(location), reader_module._interrupt
    await reader.fetch("SELECT 1")
    amid = asyncio.ensure_future(reader.fetch(ENDLESS))
    await asyncio.sleep(0.05)
    monkeypatch.setattr(
        reader_module, "_interrupt", lambda connection: monkeypatch.setattr(reader_module, "_interrupt", interrupt)
    )
    amid.cancel()
    await eventually(lambda: not reading_threads(), within=2)


async def test_the_end_leaves_no_read_that_opens_after_it(
    location: Location, opened: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_open = asyncio.Event()
    really = reader_module._open

    async def slowly(connection: aiosqlite.Connection) -> None:
        await may_open.wait()
        await really(connection)

    monkeypatch.setattr(reader_module, "_open", slowly)
    monkeypatch.setattr(reader_module, "_READING_SECONDS", 0.02)
    monkeypatch.setattr(reader_module, "_INTERRUPTED_SECONDS", 0.02)
    reader = Reader(location)
    late = asyncio.ensure_future(reader.fetch("SELECT 1"))
    await asyncio.sleep(0)
    await reader.close()
    may_open.set()
    with pytest.raises(QueueNotRunning, match="is not running"):
        await late
    await eventually(lambda: not reading_threads(), within=2)


@pytest.mark.parametrize(
    ("error", "kind"),
    [(error_of(sqlite3.SQLITE_CORRUPT), StorageUnusable), (sqlite3.ProgrammingError("no"), NotStored)],
)
async def test_what_fails_after_the_end_is_told_for_what_it_is(
    location: Location, monkeypatch: pytest.MonkeyPatch, error: sqlite3.Error, kind: type[Exception]
) -> None:
    may_fail = asyncio.Event()

    async def fail(connection: aiosqlite.Connection) -> None:
        await may_fail.wait()
        raise error

    for name in ("_READING_SECONDS", "_INTERRUPTED_SECONDS"):
        monkeypatch.setattr(reader_module, name, 0.01)
    monkeypatch.setattr(reader_module, "_open", fail)
    reader = Reader(location)
    late = asyncio.ensure_future(reader.fetch("SELECT 1"))
    await asyncio.sleep(0)
    await reader.close()
    may_fail.set()
    with pytest.raises(kind):
        await late
    await eventually(lambda: not reading_threads(), within=2)


async def test_an_end_that_is_cancelled_leaves_no_connection_behind(
    location: Location, opened: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    reader = Reader(location)
    await asyncio.gather(reader.fetch("SELECT 1"), reader.fetch("SELECT 2"))
    monkeypatch.setattr(reader_module, "_READING_SECONDS", 30.0)
    amid = asyncio.ensure_future(reader.fetch(ENDLESS))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(reader.close(), 0.5)
    with pytest.raises(QueueNotRunning):
        await asyncio.wait_for(amid, 2)
    await eventually(lambda: not reading_threads(), within=2)
