"""``durableq backup`` and ``restore``: a copy is whole whenever it is taken, and never put over a file in use."""

import asyncio
import contextlib
import os
import resource
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from durableq import DurableQ, JobState, call
from durableq.clock import SystemClock
from durableq.errors import ConfigurationError, SchemaTooNew, StorageBusy, StorageError, StorageUnusable
from durableq.storage import back_up, restore
from durableq.storage.sqlite import backup, host
from tests.engine.helpers import sql
from tests.engine.processes import program
from tests.storage.support import REPOSITORY

CLOCK = SystemClock()
SET = 3
"""Jobs that are added together, all or none."""


async def echo(value: int) -> int:
    return value


def queue_with(path: Path, jobs: int) -> Path:
    """Make a queue of so many waiting jobs, which nothing has open."""

    async def store() -> None:
        dq = DurableQ(path, worker=False)
        task = dq.task(name="echo")(echo)
        async with dq.running():
            await dq.add_tasks([call(task, number) for number in range(jobs)])

    asyncio.run(store())
    return path


def count_jobs(path: Path) -> int:
    [(number,)] = sql(path, "SELECT count(*) FROM durableq_jobs")
    return int(number)


def durableq(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "durableq", *map(str, arguments)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=30)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return queue_with(tmp_path / "app.db", 4)


# -- taking one ----------------------------------------------------------------------------------------------


@pytest.mark.fault("F30")
@pytest.mark.foreign_bug(89)
async def test_a_backup_that_is_taken_while_jobs_are_added_and_run_is_whole(tmp_path: Path) -> None:
    source, is_over, acknowledged = tmp_path / "app.db", asyncio.Event(), list[str]()
    dq = DurableQ(source)
    task = dq.task(name="echo")(echo)

    async def add() -> None:
        while not is_over.is_set():
            acknowledged.extend(job.id for job in await dq.add_tasks([call(task, n) for n in range(SET)]))

    async with dq.running():
        adding = asyncio.create_task(add())
        for number in range(3):
            before, copy = list(acknowledged), tmp_path / f"copy-{number}.db"
            ran = await asyncio.to_thread(durableq, "backup", source, copy)
            assert ran.returncode == 0, ran.stderr
            stored = {job_id for (job_id,) in sql(copy, "SELECT id FROM durableq_jobs")}
            assert stored >= set(before)
            assert len(stored) % SET == 0
            assert f"{len(stored):,} jobs, and is whole" in ran.stdout
            assert sql(copy, "PRAGMA integrity_check") == [("ok",)]
        is_over.set()
        await adding


def test_a_backup_has_what_the_application_keeps_in_the_same_file(source: Path, tmp_path: Path) -> None:
    sql(source, "CREATE TABLE orders (id INTEGER PRIMARY KEY)")
    sql(source, "INSERT INTO orders VALUES (7)")
    assert back_up(source, tmp_path / "copy.db") == 4
    assert sql(tmp_path / "copy.db", "SELECT id FROM orders") == [(7,)]


def test_a_backup_can_be_read_by_its_owner_only(source: Path, tmp_path: Path) -> None:
    back_up(source, tmp_path / "copy.db")
    assert (tmp_path / "copy.db").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("ending", ["", "-wal", "-shm", "-journal"])
def test_no_file_is_overwritten_or_taken_into_a_copy(source: Path, tmp_path: Path, ending: str) -> None:
    back_up(source, tmp_path / "copy.db")
    there = tmp_path / f"other.db{ending}"
    there.symlink_to(tmp_path / "precious")
    with pytest.raises(ConfigurationError, match=f"{there} is there already"):
        back_up(source, tmp_path / "other.db")
    with pytest.raises(ConfigurationError, match=f"{there} is there already"):
        put_back(tmp_path / "other.db")
    assert there.is_symlink()
    assert not (tmp_path / "precious").exists()


def put_back(target: Path) -> int:
    return restore(target.with_name("copy.db"), target, CLOCK)


def test_a_file_that_somebody_makes_meanwhile_is_not_overwritten(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy = backup._copy

    def slowly(connection: sqlite3.Connection, part: Path, source: Path) -> int:
        (tmp_path / "copy.db").write_text("precious")
        return copy(connection, part, source)

    monkeypatch.setattr(backup, "_copy", slowly)
    with pytest.raises(ConfigurationError, match="was made by another meanwhile"):
        back_up(source, tmp_path / "copy.db")
    assert (tmp_path / "copy.db").read_text() == "precious"


def test_where_there_are_no_hard_links_a_copy_is_renamed(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def link(*_: object) -> None:
        raise PermissionError("not on this file system")

    monkeypatch.setattr(os, "link", link)
    assert back_up(source, tmp_path / "copy.db") == 4
    assert count_jobs(tmp_path / "copy.db") == 4


def test_a_copy_may_be_made_under_a_name_that_looks_like_that_of_an_unfinished_one(tmp_path: Path) -> None:
    source = queue_with(tmp_path / "app.db.part", 4)
    assert back_up(source, tmp_path / "app.db") == 4
    assert count_jobs(source) == 4


def test_functions_of_the_application_and_damaged_texts_are_copied_unseen(source: Path, tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(source)) as application:
        application.create_function("norm", 1, str.lower, deterministic=True)
        application.execute("CREATE TABLE people (name TEXT)")
        application.execute("CREATE INDEX by_norm ON people (norm(name))")
        application.execute("UPDATE durableq_jobs SET task = CAST(x'ff' AS TEXT) WHERE seq = 1")
        application.commit()
    assert back_up(source, tmp_path / "copy.db") == 4
    assert put_back(tmp_path / "other.db") == 4


@pytest.mark.parametrize("content", [None, b"", b"no database at all, but a text"])
def test_what_is_no_queue_is_neither_backed_up_nor_restored(tmp_path: Path, content: bytes | None) -> None:
    other = tmp_path / "other.db"
    if content is not None:
        other.write_bytes(content)
    with pytest.raises(ConfigurationError, match="is the path right"):
        back_up(other, tmp_path / "copy.db")
    with pytest.raises(ConfigurationError, match="is the path right"):
        restore(other, tmp_path / "app.db", CLOCK)
    assert [path.name for path in tmp_path.iterdir()] == ([] if content is None else ["other.db"])


def test_a_queue_that_is_cut_off_is_called_damaged_and_not_none(source: Path, tmp_path: Path) -> None:
    back_up(source, tmp_path / "copy.db")
    os.truncate(tmp_path / "copy.db", 8_192)
    with pytest.raises(StorageUnusable, match=r"copy\.db is damaged"):
        put_back(tmp_path / "other.db")
    with pytest.raises(StorageUnusable, match=r"copy\.db is damaged"):
        back_up(tmp_path / "copy.db", tmp_path / "other.db")
    assert not (tmp_path / "other.db").exists()


@contextlib.contextmanager
def files_limited_to(size: int) -> Iterator[None]:
    """Let no file grow beyond a size, as if the disk were full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_backup_for_which_there_is_no_room_leaves_nothing(tmp_path: Path) -> None:
    source = queue_with(tmp_path / "app.db", 2_000)
    with files_limited_to(100_000), pytest.raises(StorageError, match="disk"):
        back_up(source, tmp_path / "copy.db")
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["app.db"]
    assert back_up(source, tmp_path / "copy.db") == 2_000


# -- putting one back ----------------------------------------------------------------------------------------


def test_a_restored_queue_is_what_it_was(source: Path, tmp_path: Path) -> None:
    back_up(source, tmp_path / "copy.db")
    assert put_back(tmp_path / "elsewhere.db") == 4
    queue_with(tmp_path / "elsewhere.db", 3)
    assert count_jobs(tmp_path / "elsewhere.db") == 7
    assert (tmp_path / "elsewhere.db").stat().st_mode & 0o777 == 0o600
    assert count_jobs(tmp_path / "copy.db") == 4


async def test_what_ran_when_the_copy_was_taken_runs_again_and_that_start_is_not_counted(tmp_path: Path) -> None:
    source, copy, done = tmp_path / "app.db", tmp_path / "copy.db", tmp_path / "done"
    with program(source) as running:
        job_id = running.tell("until_exists", str(done))["id"]
        running.hear("started", id=job_id)
        back_up(source, copy)
    assert put_back(tmp_path / "elsewhere.db") == 1
    dq = DurableQ(tmp_path / "elsewhere.db", worker=False)
    async with dq.running():
        job = await dq.get(job_id)
    assert (job.state, job.attempt, job.crashes) == (JobState.QUEUED, 0, 0)
    done.touch()
    with program(tmp_path / "elsewhere.db") as running:
        running.hear("started", id=job_id, attempt=1)


@pytest.mark.fault("F31")
def test_a_restore_over_a_queue_in_use_is_refused(tmp_path: Path) -> None:
    source, copy = tmp_path / "app.db", tmp_path / "copy.db"
    with program(source, worker=False) as running:
        running.tell("echo", 1)
        assert durableq("backup", source, copy).returncode == 0
        ran = durableq("restore", copy, source)
        assert (ran.returncode, ran.stdout) == (2, "")
        assert f"{source} is there already; give the name of a new file, or move it away" in ran.stderr
        assert running.tell("echo", 2)["event"] == "added"
    assert count_jobs(source) == 2


@pytest.mark.fault("F31")
def test_a_restore_is_refused_while_a_queue_runs_on_a_file_that_was_moved_away(tmp_path: Path) -> None:
    source, copy, aside = tmp_path / "app.db", tmp_path / "copy.db", tmp_path / "aside"
    aside.mkdir()
    with program(source, worker=False):
        back_up(source, copy)
        for there in tmp_path.glob("app.db*"):
            if there.is_file():
                there.rename(aside / there.name)
        with pytest.raises(StorageBusy, match=f"a queue runs on {source} still, though its file is gone"):
            restore(copy, source, CLOCK)
        assert not source.exists()
    assert restore(copy, source, CLOCK) == 0


def test_a_copy_of_a_newer_durableq_is_refused_and_nothing_is_left(source: Path, tmp_path: Path) -> None:
    back_up(source, tmp_path / "copy.db")
    sql(tmp_path / "copy.db", "INSERT INTO durableq_migrations VALUES (9999, 0)")
    with pytest.raises(SchemaTooNew):
        put_back(tmp_path / "other.db")
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["app.db", "copy.db"]


def test_a_queue_whose_jobs_are_damaged_is_not_copied_as_if_it_were_whole(tmp_path: Path) -> None:
    source, copy = queue_with(tmp_path / "app.db", 2_000), tmp_path / "copy.db"
    back_up(source, copy)
    whole = copy.read_bytes()
    half = len(whole) // 8_192 * 4_096
    copy.write_bytes(whole[:half] + bytes(8_192) + whole[half + 8_192 :])
    with pytest.raises(StorageUnusable, match="damaged"):
        put_back(tmp_path / "other.db")
    assert not (tmp_path / "other.db").exists()


@pytest.mark.parametrize("step", ["_copy", "_hand_back_all", "_publish"])
def test_a_restore_that_breaks_off_leaves_nothing(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    back_up(source, tmp_path / "copy.db")

    def break_off(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(backup, step, break_off)
    with pytest.raises(KeyboardInterrupt):
        put_back(tmp_path / "other.db")
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["app.db", "copy.db"]


def test_a_lock_file_tells_whether_any_process_holds_a_byte_of_it(tmp_path: Path) -> None:
    locks = host.open_lock_file(tmp_path / "locks")
    try:
        assert locks.acquire(host.OPENING)
        assert not locks.is_any_held()
        assert locks.acquire(77)
        assert locks.is_any_held()
    finally:
        host.close_lock_file(locks)
