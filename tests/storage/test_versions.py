"""SQLite's own bugs: known by version, refused when asked for, told of once, and kept out by how we checkpoint."""

import asyncio
import contextlib
import json
import logging
import sqlite3
import sys
import threading
from pathlib import Path
from types import ModuleType

import pytest

from durableq.errors import StorageUnusable
from durableq.settings import queue_options
from durableq.storage.protocol import Storage
from durableq.storage.sqlite import checkpoint, versions
from durableq.storage.sqlite.connection import size_of
from durableq.storage.sqlite.versions import has_wal_reset_bug, other_libraries
from durableq.testing import ManualClock
from tests.storage.faults import watch_writer
from tests.storage.support import Backend, PythonProcess, runs_again

AFFECTED, FIXED = (3, 51, 2), (3, 51, 3)
STRESS_SECONDS = 2.0
STRESS_JOBS = 6_000
"""Of 4 KB each, however slow the machine is: three times what the log may grow to before a checkpoint."""
ADD_AND_CHECKPOINT = """
import asyncio, json, sys, time
from tests.storage.support import Backend

async def main():
    backend = Backend(sys.argv[1])
    storage = await backend.open()
    await storage.register(None)
    print('"ready"', flush=True)
    sys.stdin.readline()
    ids, largest, until = [], 0, time.monotonic() + float(sys.argv[2])
    while time.monotonic() < until or len(ids) < int(sys.argv[3]):
        ids += [job.id for job in await backend.added(storage, 20, args_json=json.dumps("x" * 4_000))]
        largest = max(largest, storage.condition().log_bytes)
    print(json.dumps([ids, largest]), flush=True)
    sys.stdin.readline()

asyncio.run(main())
"""


@pytest.fixture
def _nothing_was_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process that has just begun."""
    monkeypatch.setattr(versions, "_said", set())


def use_version(monkeypatch: pytest.MonkeyPatch, version: tuple[int, int, int]) -> None:
    """Let Python say that it links another SQLite than it does."""
    monkeypatch.setattr(sqlite3, "sqlite_version_info", version)


def warnings_of(caplog: pytest.LogCaptureFixture, words: str) -> list[str]:
    return [record.getMessage() for record in caplog.records if words in record.getMessage()]


@pytest.mark.fault("F25")
@pytest.mark.parametrize(
    ("version", "affected"),
    [
        ((3, 6, 23), False),
        ((3, 7, 0), True),
        ((3, 37, 0), True),
        ((3, 40, 1), True),
        ((3, 44, 5), True),
        ((3, 44, 6), False),
        ((3, 44, 7), False),
        ((3, 45, 0), True),
        ((3, 50, 6), True),
        ((3, 50, 7), False),
        ((3, 51, 0), True),
        (AFFECTED, True),
        (FIXED, False),
        ((3, 52, 0), False),
        ((3, 53, 1), False),
        ((4, 0, 0), False),
    ],
)
def test_the_versions_with_the_wal_reset_bug_are_known(version: tuple[int, ...], affected: bool) -> None:
    assert has_wal_reset_bug(version) is affected


@pytest.mark.fault("F25")
class TestRefusing:
    @pytest.mark.parametrize("version", [AFFECTED, FIXED])
    async def test_a_version_with_the_bug_is_taken_unless_it_is_to_be_refused(
        self, backend: Backend, monkeypatch: pytest.MonkeyPatch, version: tuple[int, int, int]
    ) -> None:
        use_version(monkeypatch, version)
        storage = await backend.open()
        assert storage.condition().has_known_bug is (version == AFFECTED)
        assert storage.condition().software == f"SQLite {sqlite3.sqlite_version}"

    async def test_a_version_with_the_bug_can_be_refused_before_anything_is_created(
        self, backend: Backend, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        use_version(monkeypatch, AFFECTED)
        storage = backend.new_storage(sqlite_with_wal_bug="refuse")
        for refused in (storage.open(), asyncio.to_thread(storage.insert_and_wait, [backend.job()])):
            with pytest.raises(StorageUnusable, match=r"3\.51\.3 or newer .*3\.50\.7.*3\.44\.6"):
                await refused
        assert size_of(Path(backend.url)) is None

    async def test_a_corrected_version_is_not_refused(self, backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
        use_version(monkeypatch, FIXED)
        await backend.open(sqlite_with_wal_bug="refuse")

    def test_the_environment_may_ask_for_it(self) -> None:
        options = queue_options({}, {"DURABLEQ_SQLITE_WITH_WAL_BUG": "refuse"})
        assert (options.sqlite_with_wal_bug, queue_options({}, {}).sqlite_with_wal_bug) == ("refuse", "allow")


@pytest.mark.usefixtures("_nothing_was_said")
class TestTelling:
    async def test_opening_a_file_says_which_sqlite_does_it(
        self, backend: Backend, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.INFO, "durableq.storage"):
            await backend.open()
        assert warnings_of(caplog, f"with SQLite {sqlite3.sqlite_version}")

    @pytest.mark.fault("F25")
    async def test_a_process_warns_once_that_others_share_its_file_on_a_version_with_the_bug(
        self, backend: Backend, storage: Storage, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        use_version(monkeypatch, AFFECTED)
        same_process = await backend.worker()
        await storage.reap(runs_again)
        assert warnings_of(caplog, "WAL-reset") == [], "two queues of one process have one writer"
        with PythonProcess("-m", "tests.storage.colleague", backend.url) as other:
            other.read()
            for one in (storage, same_process, storage):
                await one.reap(runs_again)
            [warning] = warnings_of(caplog, "WAL-reset")
        assert "3.51.3" in warning
        assert backend.url in warning

    @pytest.mark.fault("F25")
    async def test_what_ran_before_the_host_was_restarted_shares_nothing(
        self,
        backend: Backend,
        clock: ManualClock,
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        use_version(monkeypatch, AFFECTED)
        with PythonProcess("-m", "tests.storage.colleague", backend.url) as other:
            other.read()
        clock.reboot()
        storage = await backend.worker()
        assert await storage.reap(runs_again) == [], "it is watched first"
        assert warnings_of(caplog, "WAL-reset") == []

    async def test_a_corrected_version_may_share_its_file_in_silence(
        self, backend: Backend, storage: Storage, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        use_version(monkeypatch, FIXED)
        with PythonProcess("-m", "tests.storage.colleague", backend.url) as other:
            other.read()
            await storage.reap(runs_again)
        assert warnings_of(caplog, "WAL-reset") == []

    async def test_a_second_sqlite_in_the_process_is_told_of_once(
        self, backend: Backend, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setitem(sys.modules, "pysqlite3", ModuleType("pysqlite3"))
        await backend.open()
        await backend.open()
        [warning] = warnings_of(caplog, "another SQLite library")
        assert "pysqlite3" in warning

    def test_only_what_brings_a_sqlite_of_its_own_is_another_library(self) -> None:
        assert other_libraries(["sqlite3", "aiosqlite", "sqlalchemy", "sqlmodel"]) == ()
        assert other_libraries(["sqlean", "apsw", "apsw.ext", "sqlite3"]) == ("apsw", "sqlean")


@pytest.mark.fault("F25")
class TestCheckpoints:
    async def test_nobody_can_write_while_we_checkpoint(
        self, backend: Backend, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(checkpoint, "CHECKPOINT_PAGES", 20)
        tried, refused = threading.Event(), []

        def try_to_write(connection: sqlite3.Connection, sql: str) -> None:
            if "wal_checkpoint" in sql:
                tried.set()
                with contextlib.closing(sqlite3.connect(backend.url, timeout=0, isolation_level=None)) as other:
                    try:
                        other.execute("BEGIN IMMEDIATE")
                    except sqlite3.OperationalError as error:
                        refused.append(error.sqlite_errorcode)

        watch_writer(monkeypatch, try_to_write)
        storage = await backend.open()
        while not tried.is_set():
            await backend.added(storage, 20)
        await backend.added(storage)  # its answer comes after the checkpoint
        assert set(refused) == {sqlite3.SQLITE_BUSY}

    def test_two_processes_that_write_and_checkpoint_without_pause_lose_nothing(self, tmp_path: Path) -> None:
        """A stress, for what no test can force: the bug needs an instant that only SQLite's authors can hit at will."""
        path = tmp_path / "jobs.db"
        script = ("-c", ADD_AND_CHECKPOINT, str(path), str(STRESS_SECONDS), str(STRESS_JOBS))
        with PythonProcess(*script) as one, PythonProcess(*script) as other:
            assert (one.read(), other.read()) == ("ready", "ready")
            for process in (one, other):
                process.write("go")
            found = [process.read() for process in (one, other)]
            for process in (one, other):
                process.kill()
        acknowledged = [job_id for ids, _ in found for job_id in ids]
        assert all(ids for ids, _ in found), "both have written"
        assert max(largest for _, largest in found) < len(acknowledged) * 2_000, "they have checkpointed meanwhile"
        with contextlib.closing(sqlite3.connect(path)) as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            asked = "SELECT count(*) FROM json_each(?) JOIN durableq_jobs AS job ON job.id = value"
            assert connection.execute(asked, (json.dumps(acknowledged),)).fetchone() == (len(acknowledged),)
