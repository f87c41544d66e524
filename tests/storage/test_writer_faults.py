"""What the writer says when SQLite or the disk fails: what is acknowledged is stored, what is refused is not."""

import asyncio
import contextlib
import json
import os
import signal
import sqlite3
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from durableq.errors import FileReplaced, NotStored, OutcomeUnknown, QueueNotRunning, StorageFull, StorageUnusable
from durableq.models import ClaimRequest, Job, JobState, Lane, Succeeded
from durableq.storage.protocol import Storage
from durableq.storage.sqlite.statements import SQL
from tests.storage.faults import FailingCommits, watch_writer, write_lock
from tests.storage.support import DEAD, DONE, REPOSITORY, WORK, Backend, PythonProcess, claim, settle, stored

BIG = json.dumps("x" * 300_000)


class PageLimit:
    """A quota on the database file, set through the writer's own connection before its next transaction."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.extra_pages: int | None = None
        watch_writer(monkeypatch, self._before)

    def _before(self, connection: sqlite3.Connection, sql: str) -> None:
        if sql == "BEGIN IMMEDIATE":
            used = connection.execute("PRAGMA page_count").fetchone()[0]
            most = 2**30 if self.extra_pages is None else used + self.extra_pages
            connection.execute(f"PRAGMA max_page_count={most}")


class TestFullDisk:
    async def test_an_add_that_does_not_fit_is_refused_as_full(
        self, backend: Backend, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        limit = PageLimit(monkeypatch)
        storage = await backend.open()
        limit.extra_pages = 10
        job = backend.job(args_json=BIG)
        with pytest.raises(StorageFull, match="free space"):
            await storage.insert([job])
        assert await storage.get(job.id) is None
        limit.extra_pages = None
        await storage.insert([job])
        assert await stored(storage, job.id) == job

    @pytest.mark.fault("F21", "R2")
    async def test_when_the_disk_is_full_each_add_of_a_group_is_told_the_truth(
        self, backend: Backend, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        limit = PageLimit(monkeypatch)
        storage = await backend.open()
        limit.extra_pages = 10
        jobs = [backend.job(args_json=BIG if number % 3 == 1 else "{}") for number in range(12)]
        results = await asyncio.gather(*(storage.insert([job]) for job in jobs), return_exceptions=True)
        for job, result in zip(jobs, results, strict=True):
            assert (await storage.get(job.id) is None) is isinstance(result, StorageFull)
        assert sum(isinstance(result, StorageFull) for result in results) >= 4

    @pytest.mark.fault("F21", "R2")
    async def test_a_full_disk_that_undoes_the_transaction_leaves_nothing_of_its_group(
        self, backend: Backend, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        limit = PageLimit(monkeypatch)
        storage = await backend.open()
        [dead] = await backend.finished(await backend.worker(), DEAD)
        limit.extra_pages = 10
        before = backend.job()
        after = backend.job()
        with write_lock(backend.url):
            first = storage.insert([before])
            editing = asyncio.ensure_future(storage.retry(dead.id, who="ann", args_json=BIG))
            await asyncio.sleep(0)
            last = storage.insert([after])
            await asyncio.sleep(0)
        results = await asyncio.gather(first, editing, last, return_exceptions=True)
        for job, result in ((before, results[0]), (after, results[2])):
            assert (await storage.get(job.id) is None) is isinstance(result, StorageFull)
        assert isinstance(results[1], StorageFull)
        assert await stored(storage, dead.id) == dead
        assert await storage.audit_trail(dead.id) == []
        limit.extra_pages = None
        await storage.insert([before, after])
        await storage.retry(dead.id, who="ann", args_json=BIG)
        assert (await storage.counts())[JobState.QUEUED] == 3

    async def test_outcomes_that_do_not_fit_can_be_settled_later(
        self, backend: Backend, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        limit = PageLimit(monkeypatch)
        storage = await backend.worker()
        leases = await backend.claimed(storage, 2)
        outcomes = [(leases[0], Succeeded(BIG)), (leases[1], DONE)]
        limit.extra_pages = 10
        with pytest.raises(StorageFull):
            await settle(storage, outcomes)
        for lease in leases:
            assert (await stored(storage, lease.id)).state is JobState.RUNNING
        limit.extra_pages = None
        assert await settle(storage, outcomes) == frozenset()
        assert (await stored(storage, leases[0].id)).result_json == BIG

    async def test_a_disk_found_full_at_commit_is_reported_as_full(
        self, backend: Backend, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        commits = FailingCommits(monkeypatch)
        storage = await backend.open()
        commits.count, commits.code = 2, sqlite3.SQLITE_FULL
        job = backend.job()
        with pytest.raises(StorageFull):
            await storage.insert([job])
        commits.count = 0
        assert await storage.get(job.id) is None
        await storage.insert([job])

    @pytest.mark.fault("F21")
    def test_a_disk_that_is_full_refuses_and_when_there_is_room_work_goes_on(self, tmp_path: Path) -> None:
        mount_and_run = 'mount -t tmpfs -o size=4m tmpfs "$1" && exec "$2" -m tests.storage.limited_disk "$1" disk'
        try:
            subprocess.run(["unshare", "-Urm", "true"], check=True, capture_output=True, timeout=10)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("needs unshare(1) and user namespaces, for a small file system of its own")
        command = ["unshare", "-Urm", "sh", "-c", mount_and_run, "sh", str(tmp_path), sys.executable]
        told = json.loads(subprocess.check_output(command, cwd=REPOSITORY, timeout=50))
        assert [answer for answer, _ in told].count("StorageFull") == 5, "the disk was never full, or not said to be"
        assert all((answer == "stored") is is_found for answer, is_found in told)
        assert told[-1] == ["stored", True]

    @pytest.mark.fault("F21", "F23")
    def test_a_file_size_limit_refuses_and_when_it_is_lifted_work_goes_on(self, tmp_path: Path) -> None:
        with PythonProcess("-m", "tests.storage.limited_disk", str(tmp_path), "file-size") as limited:
            told = limited.read()
        assert sum(answer != "stored" for answer, _ in told) == 5, "the limit was never reached"
        assert all(is_found for answer, is_found in told if answer == "stored")
        assert not any(is_found for answer, is_found in told if answer in ("NotStored", "StorageFull"))
        assert told[-1] == ["stored", True]


class TestFailingCommit:
    @pytest.mark.fault("F22")
    @pytest.mark.parametrize("hidden", [False, True])
    async def test_one_failed_commit_is_repeated_and_stores_once(
        self, backend: Backend, monkeypatch: pytest.MonkeyPatch, hidden: bool
    ) -> None:
        commits = FailingCommits(monkeypatch)
        storage = await backend.worker()
        commits.count, commits.hidden = 1, hidden
        jobs = [backend.job() for _ in range(10)]
        await asyncio.gather(*(storage.insert([job]) for job in jobs))
        assert commits.count == 0
        assert [lease.id for lease in await claim(storage)] == [job.id for job in jobs]

    @pytest.mark.fault("F22")
    @pytest.mark.parametrize("hidden", [False, True])
    async def test_two_failed_commits_are_an_unknown_outcome_that_names_the_jobs(
        self, backend: Backend, monkeypatch: pytest.MonkeyPatch, hidden: bool
    ) -> None:
        commits = FailingCommits(monkeypatch)
        storage = await backend.worker()
        commits.count, commits.hidden = 2, hidden
        jobs = [backend.job(), backend.job()]
        with pytest.raises(OutcomeUnknown) as caught:
            await storage.insert(jobs)
        assert caught.value.job_ids == tuple(job.id for job in jobs)
        assert all(job.id in str(caught.value) for job in jobs)
        await storage.insert(jobs)
        assert [lease.id for lease in await claim(storage)] == [job.id for job in jobs]

    async def test_each_add_is_told_only_of_its_own_jobs(
        self, backend: Backend, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        commits = FailingCommits(monkeypatch)
        storage = await backend.open()
        jobs = [backend.job() for _ in range(3)]
        commits.count = 2 * len(jobs)  # however they are grouped, each group's commit and its repetition fail
        results = await asyncio.gather(*(storage.insert([job]) for job in jobs), return_exceptions=True)
        commits.count = 0
        for job, result in zip(jobs, results, strict=True):
            assert isinstance(result, OutcomeUnknown)
            assert result.job_ids == (job.id,)
            assert [other.id in str(result) for other in jobs] == [other is job for other in jobs]

    @pytest.mark.fault("F22")
    @pytest.mark.parametrize("hidden", [False, True])
    async def test_a_settle_whose_commit_failed_once_is_settled_once(
        self, backend: Backend, monkeypatch: pytest.MonkeyPatch, hidden: bool
    ) -> None:
        commits = FailingCommits(monkeypatch)
        storage = await backend.worker()
        leases = await backend.claimed(storage, 2)
        commits.count, commits.hidden = 1, hidden
        await settle(storage, [(leases[0], DONE), (leases[1], DEAD)])
        states = [(await stored(storage, lease.id)).state for lease in leases]
        assert states == [JobState.SUCCEEDED, JobState.DEAD]
        assert len(await storage.attempts(leases[1].id)) == 1

    @pytest.mark.parametrize("hidden", [False, True])
    async def test_a_claim_whose_commit_failed_gives_the_leases_that_are_stored(
        self, backend: Backend, monkeypatch: pytest.MonkeyPatch, hidden: bool
    ) -> None:
        commits = FailingCommits(monkeypatch)
        storage = await backend.worker()
        [job] = await backend.added(storage)
        commits.count, commits.hidden = 1, hidden
        request = ClaimRequest(("default",), (Lane("loop", (WORK,), 1),))
        leases = (await storage.exchange([], request)).leases
        assert [lease.id for lease in leases] == ([job.id] if hidden else [])
        assert (await stored(storage, job.id)).state is (JobState.RUNNING if hidden else JobState.QUEUED)
        assert [lease.id for lease in leases or await claim(storage)] == [job.id]
        assert (await stored(storage, job.id)).attempt == 1

    async def test_what_another_worker_claimed_between_a_failed_commit_and_its_repetition_is_not_given_twice(
        self, backend: Backend, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its leases have the very numbers that the failed claim would have had."""
        commits = FailingCommits(monkeypatch)
        storage = await backend.worker()
        [job] = await backend.added(storage)
        with contextlib.closing(sqlite3.connect(backend.url, isolation_level=None, check_same_thread=False)) as another:
            seq = another.execute("SELECT seq FROM durableq_jobs").fetchone()[0]
            taken = {"seqs": json.dumps([seq]), "worker_id": 77, "now": 0}
            commits.afterwards = lambda: another.execute(SQL["take"], taken)
            commits.count = 1
            request = ClaimRequest(("default",), (Lane("loop", (WORK,), 1),))
            assert (await storage.exchange([], request)).leases == []
            assert another.execute("SELECT worker_id, lease_no FROM durableq_jobs").fetchall() == [(77, 1)]
        assert (await stored(storage, job.id)).attempt == 1


class TestFileGone:
    @pytest.mark.fault("F28", "F29")
    @pytest.mark.foreign_bug(26)
    @pytest.mark.parametrize("suffix", ["", "-wal"])
    async def test_a_file_deleted_while_open_acknowledges_nothing_more(
        self, backend: Backend, storage: Storage, suffix: str
    ) -> None:
        await backend.added(storage)
        os.unlink(backend.url + suffix)
        with pytest.raises(FileReplaced, match="deleted or replaced"):
            await storage.insert([backend.job()])
        assert isinstance(storage.trouble, FileReplaced)
        with pytest.raises(FileReplaced):
            storage.insert([backend.job()])
        with pytest.raises(FileReplaced):
            await storage.exchange([], None)

    @pytest.mark.fault("F28")
    @pytest.mark.foreign_bug(26)
    async def test_a_file_replaced_while_open_acknowledges_nothing_more(
        self, backend: Backend, storage: Storage, tmp_path: Path
    ) -> None:
        await backend.added(storage)
        other = tmp_path / "restored.db"
        with contextlib.closing(sqlite3.connect(other)) as connection:
            connection.execute("CREATE TABLE mine (x)")
        os.replace(other, backend.url)
        with pytest.raises(FileReplaced):
            await storage.insert([backend.job()])

    async def test_the_schema_dropped_while_open_is_an_error_and_not_a_hang(
        self, backend: Backend, storage: Storage
    ) -> None:
        with contextlib.closing(sqlite3.connect(backend.url, isolation_level=None, timeout=10)) as outside:
            outside.execute("DROP TABLE durableq_jobs")
        with pytest.raises(NotStored):
            await storage.insert([backend.job()])


class TestDamage:
    @pytest.mark.fault("F26")
    async def test_damage_met_while_running_stops_the_queue(self, backend: Backend) -> None:
        storage = await backend.open()
        await backend.added(storage, 2_000, args_json=json.dumps("x" * 10_000))
        await storage.close()
        _trash_most_pages(Path(backend.url))
        again = await backend.worker()
        with pytest.raises(StorageUnusable, match="damaged"):
            await claim(again, limit=2_000)
        assert isinstance(again.trouble, StorageUnusable)
        with pytest.raises(StorageUnusable):
            again.insert([backend.job()])


def _trash_most_pages(path: Path) -> None:
    """Overwrite what holds the arguments. (The file is closed, so opening it drops nobody's locks.)"""
    content = bytearray(path.read_bytes())
    assert len(content) > 17 * 2**20, "a smaller file is checked when it is opened"
    content[len(content) // 10 : len(content) // 2] = os.urandom(len(content) // 2 - len(content) // 10)
    path.write_bytes(content)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
class TestFork:
    @pytest.mark.fault("F16")
    async def test_a_forked_child_refuses_the_handle_and_the_parent_is_unharmed(
        self, backend: Backend, storage: Storage
    ) -> None:
        [lease] = await backend.claimed(storage)
        in_child = [backend.job()]
        assert _forked(lambda: _refused(storage, in_child)) == 0
        assert await storage.get(in_child[0].id) is None
        await backend.added(storage)
        assert await settle(storage, [(lease, DONE)]) == frozenset()

    @pytest.mark.fault("F16", "R4")
    async def test_a_forked_child_that_ends_leaves_the_parents_lock_held(
        self, backend: Backend, storage: Storage
    ) -> None:
        await backend.claimed(storage)
        assert _forked(lambda: True) == 0
        with PythonProcess("-m", "tests.storage.doomed_worker", backend.url, "0", "reap") as other:
            other.read()
            assert other.read() == [], "the parent lives, so nobody takes its jobs"


def _refused(storage: Storage, jobs: list[Job[Any]]) -> bool:
    try:
        storage.insert_and_wait(jobs)
    except QueueNotRunning as error:
        return "fork" in str(error)
    return False


def _forked(check: Callable[[], bool]) -> int:
    """Run a check in a forked child; return its exit status: 0 when the check held."""
    sys.stdout.flush()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of threads, which is our very point
        pid = os.fork()
    if pid == 0:
        status = 1
        signal.alarm(10)  # a child that hangs fails the test instead of holding it up
        try:
            status = 0 if check() else 2
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
