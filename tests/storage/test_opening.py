"""Opening a database: what is created, with which rights, and what is refused early and in plain words."""

import asyncio
import contextlib
import json
import logging
import os
import shutil
import sqlite3
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from durableq.clock import SystemClock
from durableq.errors import ConfigurationError, SchemaTooNew, StorageUnusable
from durableq.models import JobState
from durableq.settings import QueueOptions
from durableq.storage import storage_factory
from durableq.storage.sqlite import connection, schema
from tests.storage.support import DONE, Backend, PythonProcess, claim, settle

OPENERS, ROUNDS = 8, 5


@pytest.fixture
def path(url: str) -> Path:
    return Path(url)


def mode(path: Path | str) -> int:
    return stat.S_IMODE(os.stat(path).st_mode)


def sql(path: Path, *statements: str) -> None:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None, timeout=10)) as outside:
        for statement in statements:
            outside.execute(statement)


def content(path: Path) -> bytes:
    return path.read_bytes()


def write(path: Path, text: bytes) -> None:
    path.write_bytes(text)


def entries(directory: Path) -> list[str]:
    return [file.name for file in directory.iterdir()]


@contextlib.contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


class TestRights:
    async def test_everything_that_is_created_is_the_owners_alone(self, backend: Backend, path: Path) -> None:
        with umask(0):
            storage = await backend.worker()
            await backend.added(storage)
            await asyncio.to_thread(backend.new_storage().insert_and_wait, [backend.job()])
        assert [mode(f"{path}{suffix}") for suffix in ("", "-wal", "-shm")] == [0o600] * 3
        directory = path.with_name(path.name + ".durableq")
        assert mode(directory) == 0o700
        beside = {file.name: mode(file) for file in directory.iterdir()}
        assert "locks" in beside
        assert any(name.endswith(".sock") for name in beside)
        assert set(beside.values()) == {0o600}

    async def test_an_existing_file_keeps_its_mode(self, backend: Backend, path: Path) -> None:
        sql(path, "CREATE TABLE mine (x)")
        os.chmod(path, 0o640)
        await backend.added(await backend.worker())
        assert mode(path) == 0o640

    async def test_a_file_that_others_may_read_is_warned_of(
        self, backend: Backend, path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        sql(path, "CREATE TABLE mine (x)")
        os.chmod(path, 0o644)
        with caplog.at_level(logging.WARNING, "durableq"):
            await backend.open()
        assert any(str(path) in record.getMessage() and "read" in record.getMessage() for record in caplog.records)

    async def test_a_restart_finds_all_that_was_stored(self, backend: Backend, path: Path) -> None:
        storage = await backend.worker()
        jobs = await backend.added(storage, 3)
        await storage.deregister()
        await storage.close()
        again = await backend.worker()
        assert [lease.id for lease in await claim(again)] == [job.id for job in jobs]

    async def test_a_closed_queue_leaves_no_log_behind(self, backend: Backend, path: Path) -> None:
        storage = await backend.worker()
        await backend.added(storage, 3)
        await storage.deregister()
        await storage.close()
        assert sorted(entries(path.parent)) == [path.name, f"{path.name}.durableq"]
        assert entries(path.with_name(path.name + ".durableq")) == ["locks"]

    async def test_a_socket_left_by_an_earlier_database_does_not_silence_the_doorbell(
        self, backend: Backend, path: Path
    ) -> None:
        directory = path.with_name(path.name + ".durableq")
        os.mkdir(directory, mode=0o700)
        write(directory / "1.sock", b"")
        storage = await backend.open()
        assert await storage.register(lambda new_names: None) == 1
        assert stat.S_ISSOCK(os.stat(directory / "1.sock").st_mode)


class TestRefusals:
    async def test_a_directory_is_refused(self, backend: Backend, path: Path) -> None:
        os.mkdir(path)
        with pytest.raises(StorageUnusable, match="is a directory"):
            await backend.open()

    async def test_a_missing_directory_is_refused_and_not_made(self, tmp_path: Path) -> None:
        backend = Backend(str(tmp_path / "missing" / "jobs.db"))
        with pytest.raises(StorageUnusable, match="does not exist; create it"):
            await backend.open()
        assert entries(tmp_path) == []

    @pytest.mark.fault("F26")
    @pytest.mark.parametrize("foreign", [b"dear diary\n" * 100, b"SQLite format 3", bytes(5000)])
    async def test_a_file_that_is_no_database_is_refused_untouched(
        self, backend: Backend, path: Path, foreign: bytes
    ) -> None:
        write(path, foreign)
        with pytest.raises(StorageUnusable, match="not a SQLite database"):
            await backend.open()
        assert content(path) == foreign
        assert f"{path.name}-wal" not in entries(path.parent)

    @pytest.mark.fault("F19")
    async def test_a_newer_schema_is_refused_untouched(self, backend: Backend, path: Path) -> None:
        storage = await backend.open()
        await backend.added(storage)
        await storage.close()
        sql(path, "INSERT INTO durableq_migrations VALUES (9999, 0)", "PRAGMA wal_checkpoint(TRUNCATE)")
        before = content(path)
        with pytest.raises(SchemaTooNew, match="9999") as caught:
            await backend.open()
        assert (caught.value.found, caught.value.known) == (9999, schema.migrations()[-1][0])
        assert content(path) == before
        with pytest.raises(SchemaTooNew):
            await asyncio.to_thread(backend.new_storage().insert_and_wait, [backend.job()])

    @pytest.mark.fault("F26")
    async def test_a_damaged_file_is_refused_with_the_remedy(self, backend: Backend, path: Path) -> None:
        storage = await backend.open()
        await backend.added(storage, 200, args_json=json.dumps("x" * 20_000))
        await storage.close()
        damaged = bytearray(content(path))
        third = len(damaged) // 3
        damaged[third : 2 * third] = os.urandom(third)  # arguments only: nothing that opening reads by itself
        write(path, bytes(damaged))
        with pytest.raises(StorageUnusable, match=r"(?s)damaged.*backup"):
            await backend.open()

    @pytest.mark.parametrize("url", ["", ":memory:", "file::memory:?cache=shared", "sqlite://:memory:"])
    def test_memory_is_refused_with_the_remedy(self, url: str) -> None:
        with pytest.raises(ConfigurationError, match="would not survive"):
            storage_factory(url, QueueOptions(), SystemClock())

    @pytest.mark.parametrize("url", ["postgresql://localhost/jobs", "redis://localhost", "mysql+pymysql://h/d"])
    def test_an_unknown_scheme_is_refused_by_name(self, url: str) -> None:
        with pytest.raises(ConfigurationError, match=url.partition(":")[0].replace("+", r"\+")):
            storage_factory(url, QueueOptions(), SystemClock())

    async def test_a_url_names_the_same_file_as_its_path(self, backend: Backend, path: Path) -> None:
        job = backend.job()
        await asyncio.to_thread(Backend(f"sqlite:///{path}").new_storage().insert_and_wait, [job])
        assert await (await backend.open()).get(job.id) == job

    @pytest.mark.fault("F34")
    @pytest.mark.parametrize("kind", ["nfs4", "cifs", "fuse.sshfs", "9p"])
    async def test_a_network_file_system_is_refused_unless_allowed(
        self, backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
    ) -> None:
        _mount(monkeypatch, tmp_path, kind)
        with pytest.raises(StorageUnusable, match=rf"network file system \({kind}\).*allow_network_filesystem"):
            await backend.open()
        assert entries(tmp_path) == []
        await backend.open(allow_network_filesystem=True)

    @pytest.mark.parametrize("name", ["données", "two words", "tab\tbed"])
    async def test_a_network_file_system_is_known_by_whatever_name(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
    ) -> None:
        mounted = tmp_path / name
        mounted.mkdir()
        _mount(monkeypatch, mounted, "nfs4")
        with pytest.raises(StorageUnusable, match="network file system"):
            await Backend(str(mounted / "jobs.db")).open()

    @pytest.mark.parametrize("kind", ["ext4", "btrfs", "overlay", "tmpfs", "fuseblk"])
    async def test_a_local_file_system_is_taken(
        self, backend: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
    ) -> None:
        _mount(monkeypatch, tmp_path, kind)
        await backend.open()

    @pytest.mark.fault("F23")
    @pytest.mark.parametrize("read_only", ["file", "directory", "log"])
    def test_what_cannot_be_written_is_refused(self, read_only: str) -> None:
        directory = Path(tempfile.mkdtemp(prefix="durableq-"))  # not tmp_path: nobody but root may enter that
        try:
            database = directory / "jobs.db"
            sql(database, "PRAGMA journal_mode=WAL", "CREATE TABLE mine (x)")
            database.chmod(0o444 if read_only == "file" else 0o666)
            directory.chmod(0o555 if read_only == "directory" else 0o777)
            if read_only == "log":
                (directory / "jobs.db-wal").touch(0o400)
            with PythonProcess("-m", "tests.storage.unprivileged_opener", str(database)) as opener:
                kind, text = opener.read()
            assert kind == "StorageUnusable", text
            assert "cannot be written" in text
        finally:
            directory.chmod(0o700)
            shutil.rmtree(directory)


def _mount(monkeypatch: pytest.MonkeyPatch, directory: Path, kind: str) -> None:
    """Let the kernel's table of mounts say that a directory is a file system of its own."""
    escaped = str(directory).replace(" ", r"\040").replace("\t", r"\011")
    table = (
        "22 1 254:0 / / rw,relatime shared:1 - ext4 /dev/root rw\n"
        f"60 22 0:50 / {escaped} rw,relatime shared:30 - {kind} server:/export rw\n"
        f"61 22 0:51 / {escaped}-other rw - proc proc rw\n"
    )
    read_text = Path.read_text

    def read(self: Path, encoding: str | None = None, errors: str | None = None) -> str:
        return table if str(self) == "/proc/self/mountinfo" else read_text(self, encoding, errors)

    monkeypatch.setattr(Path, "read_text", read)


class TestSharedFile:
    async def test_the_applications_own_tables_are_left_alone(self, backend: Backend, path: Path) -> None:
        sql(
            path,
            "PRAGMA user_version=42",
            "CREATE TABLE jobs (id INTEGER PRIMARY KEY, name TEXT)",
            "INSERT INTO jobs VALUES (1, 'mine')",
            "CREATE VIEW durable AS SELECT * FROM jobs",
        )
        storage = await backend.worker()
        await settle(storage, [(lease, DONE) for lease in await backend.claimed(storage, 3)])
        with contextlib.closing(sqlite3.connect(path)) as outside:
            assert outside.execute("SELECT * FROM durable").fetchall() == [(1, "mine")]
            assert outside.execute("PRAGMA user_version").fetchone() == (42,)
            ours = outside.execute("SELECT name FROM sqlite_schema WHERE name NOT LIKE 'sqlite_%'").fetchall()
        assert all(name.startswith("durableq_") for (name,) in ours if name not in ("jobs", "durable"))

    @pytest.mark.fault("F17")
    def test_processes_that_open_a_fresh_file_at_once_all_succeed(self, tmp_path: Path) -> None:
        with contextlib.ExitStack() as stack:
            openers = [stack.enter_context(PythonProcess("-m", "tests.storage.first_opener")) for _ in range(OPENERS)]
            assert [opener.read() for opener in openers] == ["ready"] * OPENERS
            for number in range(ROUNDS):
                database = tmp_path / f"fresh-{number}.db"
                for opener in openers:
                    opener.write(str(database))
                assert [opener.read() for opener in openers] == [None] * OPENERS
                with contextlib.closing(sqlite3.connect(database)) as outside:
                    assert outside.execute("SELECT count(*) FROM durableq_jobs").fetchone() == (OPENERS,)
                    assert outside.execute("PRAGMA integrity_check").fetchone() == ("ok",)

    async def test_threads_that_open_a_fresh_file_at_once_all_succeed(self, backend: Backend) -> None:
        jobs = [backend.job() for _ in range(16)]
        adding = [asyncio.to_thread(backend.new_storage().insert_and_wait, [job]) for job in jobs]
        await asyncio.gather(*adding)
        assert (await (await backend.open()).counts())[JobState.QUEUED] == 16


class TestMigrations:
    async def test_opening_again_changes_no_schema(self, backend: Backend, path: Path) -> None:
        def versions() -> list[object]:
            with contextlib.closing(sqlite3.connect(path)) as outside:
                found: list[object] = outside.execute("SELECT version, applied_at FROM durableq_migrations").fetchall()
                return found

        await (await backend.open()).close()
        before = versions()
        backend.clock.advance(60)
        await (await backend.open()).close()
        assert versions() == before
        assert len(before) == len(schema.migrations())

    @pytest.mark.fault("F6")
    def test_a_migration_that_fails_leaves_the_version_before(
        self, path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        known = schema.migrations()
        broken = (known[-1][0] + 1, "CREATE TABLE durableq_new (x);\nCREATE TABLE durableq_jobs (already_there);\n")
        writing = connection.connect(connection.Location(path))
        schema.migrate(writing, now=0)
        monkeypatch.setattr(schema, "migrations", lambda: [*known, broken])
        with pytest.raises(sqlite3.OperationalError):
            schema.migrate(writing, now=1)
        assert schema.current_version(writing) == known[-1][0]
        assert writing.execute("SELECT 1 FROM sqlite_schema WHERE name = 'durableq_new'").fetchone() is None
        writing.close()

    def test_versions_are_numbered_without_gaps(self) -> None:
        assert [version for version, _ in schema.migrations()] == list(range(1, len(schema.migrations()) + 1))
