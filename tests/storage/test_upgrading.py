"""A file of the first schema, with jobs in every state, is brought up to date: all of it works as before, and more."""

import asyncio
import contextlib
import shutil
import sqlite3
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import pytest

from durableq.clock import from_datetime
from durableq.codec import checksum
from durableq.engine.decisions import before_start
from durableq.models import Job, JobError, JobExtras, JobFilter, JobState, Names, Progress, Retried, Succeeded
from durableq.storage.protocol import Notes, Storage
from durableq.storage.sqlite import schema
from durableq.storage.sqlite.connection import Location, connect
from durableq.testing import ManualClock
from tests.storage.contract_unique import is_free, unique_job
from tests.storage.support import BOOM, DONE, WORK, Backend, PythonProcess, claim, runs_again, settle, stored
from tests.support import eventually

OPENERS, ROUNDS, ROWS = 4, 3, 20_000
MOMENT: Final = datetime(2025, 12, 31, tzinfo=UTC)
LATER: Final = datetime(2026, 1, 1, 0, 1, tzinfo=UTC)
DEAD_WORKER: Final = 7
FAILED: Final = JobError("ValueError", "boom")


def old_job(state: JobState, **fields: Any) -> Job[Any]:
    return Job(
        id=f"old-{state}-{fields.get('crashes', 0)}",
        task=WORK,
        queue="default",
        priority=0,
        state=state,
        args_json='{"n": 1}',
        max_attempts=5,
        created_at=MOMENT,
        **({"run_at": MOMENT} | fields),
    )


OLD_JOBS: Final = {
    job.id.removeprefix("old-"): job
    for job in (
        old_job(JobState.QUEUED),
        old_job(JobState.QUEUED, crashes=1, attempt=1, error=FAILED, started_at=MOMENT),
        old_job(JobState.SCHEDULED, run_at=LATER, attempt=2, error=FAILED, started_at=MOMENT),
        old_job(JobState.RUNNING, attempt=1, started_at=MOMENT),
        old_job(JobState.SUCCEEDED, attempt=1, started_at=MOMENT, finished_at=MOMENT, result_json='"done"'),
        old_job(JobState.DEAD, attempt=5, started_at=MOMENT, finished_at=MOMENT, error=FAILED),
        old_job(JobState.CANCELLED, finished_at=MOMENT),
    )
}


def make_old_file(path: Path, monkeypatch: pytest.MonkeyPatch, *, rows: int = 0) -> None:
    """Write a file as durableq did when it knew the first migration only."""
    known = schema.migrations()
    connection = connect(Location(path))
    with contextlib.closing(connection), monkeypatch.context() as past:
        past.setattr(schema, "migrations", lambda: known[:1])
        schema.migrate(connection, now=from_datetime(MOMENT))
        for job in OLD_JOBS.values():
            connection.execute(*_insertion(job))
            connection.execute(
                "INSERT INTO durableq_attempts SELECT seq, 0, 1, 1, 1, 2, 'ValueError', 'boom', 'trace' "
                "FROM durableq_jobs WHERE id = ? AND error_type IS NOT NULL",
                (job.id,),
            )
        connection.execute("INSERT INTO durableq_queues VALUES ('default')")
        connection.execute("INSERT INTO durableq_tasks VALUES (?, NULL)", (WORK,))
        connection.execute("INSERT INTO durableq_workers VALUES (?, 1, 'manual-boot', 3600000000, 0)", (DEAD_WORKER,))
        connection.execute("INSERT INTO durableq_audit VALUES (1, 5, 'ann', 'cancel', 'old-cancelled-0', '{}')")
        connection.execute(_MANY, {"count": rows})


def _insertion(job: Job[Any]) -> tuple[str, tuple[Any, ...]]:
    columns: dict[str, Any] = {
        "id": job.id,
        "task": job.task,
        "queue": job.queue,
        "priority": job.priority,
        "state": job.state,
        "args": job.args_json,
        "checksum": checksum(job.args_json),
        "max_attempts": job.max_attempts,
        "attempt": job.attempt,
        "crashes": job.crashes,
        "lease_no": job.attempt,
        "worker_id": DEAD_WORKER if job.state is JobState.RUNNING else None,
        "created_at": from_datetime(job.created_at),
        "run_at": from_datetime(job.run_at),
        "started_at": None if job.started_at is None else from_datetime(job.started_at),
        "finished_at": None if job.finished_at is None else from_datetime(job.finished_at),
        "result": job.result_json,
        "error_type": None if job.error is None else job.error.type,
        "error_message": None if job.error is None else job.error.message,
    }
    marks = ", ".join("?" * len(columns))
    return f"INSERT INTO durableq_jobs ({', '.join(columns)}) VALUES ({marks})", tuple(columns.values())


_MANY: Final = """
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :count)
    INSERT INTO durableq_jobs (id, task, queue, priority, state, args, checksum, max_attempts, created_at, run_at,
        finished_at, result)
    SELECT 'many-' || i, 'tasks:many', 'default', 0, 'succeeded', '{}', 0, 5, i, i, i, '1' FROM n WHERE :count > 0
"""


@pytest.fixture
async def upgraded(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> Storage:
    """An old file, opened as a worker."""
    make_old_file(Path(backend.url), monkeypatch)
    return await backend.worker()


class TestWhatWasThere:
    @pytest.mark.fault("F18")
    async def test_every_job_reads_as_before(self, upgraded: Storage) -> None:
        for job in OLD_JOBS.values():
            assert await stored(upgraded, job.id) == job
        page = await upgraded.find(JobFilter(), cursor=None, limit=100)
        assert [job.id for job in reversed(page.jobs)] == [job.id for job in OLD_JOBS.values()]
        counts = await upgraded.counts()
        assert counts == {state: sum(job.state is state for job in OLD_JOBS.values()) for state in JobState}
        assert upgraded.names() == Names(frozenset({"default"}), frozenset({WORK}))

    async def test_history_is_kept(self, upgraded: Storage) -> None:
        assert [one.error_type for one in await upgraded.attempts("old-dead-0")] == ["ValueError"]
        assert [entry.who for entry in await upgraded.audit_trail("old-cancelled-0")] == ["ann"]
        assert await upgraded.logs("old-dead-0") == []

    async def test_what_waits_is_worked_off(self, upgraded: Storage, clock: ManualClock) -> None:
        ready, suspect = await claim(upgraded, suspects=[WORK])
        assert (ready.id, ready.settings, ready.expires_at, ready.deadline_at) == ("old-queued-0", None, None, None)
        assert (suspect.id, suspect.crashes, suspect.attempt) == ("old-queued-1", 1, 2)
        assert await settle(upgraded, [(ready, Succeeded("1")), (suspect, Retried(BOOM, None))]) == frozenset()
        assert (await stored(upgraded, ready.id)).result == 1
        clock.advance(timedelta(minutes=2))

        async def due_is_taken() -> bool:
            return [(lease.id, lease.attempt) for lease in await claim(upgraded)] == [("old-scheduled-0", 3)]

        await eventually(due_is_taken)

    async def test_what_a_dead_worker_held_is_taken_back(self, upgraded: Storage) -> None:
        [dead] = await upgraded.reap(runs_again)
        assert (dead.worker_id, [lease.id for lease, _ in dead.leases]) == (DEAD_WORKER, ["old-running-0"])
        job = await stored(upgraded, "old-running-0")
        assert (job.state, job.crashes) == (JobState.QUEUED, 1)
        assert len(await upgraded.attempts(job.id)) == 1

    async def test_people_can_do_to_them_what_they_could(self, upgraded: Storage, clock: ManualClock) -> None:
        for job_id in ("old-dead-0", "old-cancelled-0", "old-scheduled-0"):
            assert (await upgraded.retry(job_id, who="ann")).state is JobState.QUEUED
        assert (await upgraded.cancel("old-queued-0", who="ann")).state is JobState.CANCELLED
        await upgraded.delete("old-queued-0", who="ann")
        assert await upgraded.prune(JobState.SUCCEEDED, clock.now, limit=10) == 1
        assert await upgraded.get("old-succeeded-0") is None


class TestWhatIsNew:
    async def test_what_waits_has_no_limits_and_what_is_finished_keeps_its_result(
        self, upgraded: Storage, clock: ManualClock
    ) -> None:
        clock.advance(timedelta(days=1_000))
        assert await upgraded.give_up_overdue(before_start, 100) == []
        assert await upgraded.drop_results(100) == 0
        assert (await stored(upgraded, "old-succeeded-0")).result == "done"
        assert await upgraded.finished_among(["old-queued-0", "old-dead-0"]) == {"old-dead-0"}

    async def test_old_jobs_speak_and_can_be_asked_to_end(self, upgraded: Storage) -> None:
        [lease] = await claim(upgraded)
        await upgraded.exchange([], None, Notes([(lease.key, Progress(1, 2))], [(lease.key, 1, 0, "hello")]))
        assert (await stored(upgraded, lease.id)).progress == Progress(1, 2)
        assert [line.message for line in await upgraded.logs(lease.id)] == ["hello"]
        await upgraded.cancel(lease.id, who="ann")
        await settle(upgraded, [(lease, Retried(BOOM, None))])
        assert (await stored(upgraded, lease.id)).state is JobState.CANCELLED

    async def test_new_jobs_can_be_asked_for_everything(
        self, backend: Backend, upgraded: Storage, clock: ManualClock
    ) -> None:
        full = unique_job(backend, priority=9)
        full = replace(full, extras=replace(full.extras, tags=("t",), timeout=1, deadline_at=2**52, result_ttl=1))
        late = replace(backend.job(), extras=JobExtras(expires_at=clock.wall() + 1))
        await upgraded.insert([full, late])
        assert await stored(upgraded, full.id) == full
        assert await upgraded.insert([alias := unique_job(backend)]) == {alias.id: full.id}
        clock.advance(1)
        assert [lease.id for lease, _ in await upgraded.give_up_overdue(before_start, 10)] == [late.id]
        first, *_ = await claim(upgraded, limit=1)
        assert first.id == full.id
        await settle(upgraded, [(first, DONE)])
        assert await is_free(backend, upgraded)


class TestTheUpgradeItself:
    async def test_it_is_made_once_and_recorded(self, backend: Backend, upgraded: Storage) -> None:
        await upgraded.deregister()
        await upgraded.close()
        again = await backend.open()
        assert await stored(again, "old-dead-0") == OLD_JOBS["dead-0"]
        assert versions(Path(backend.url)) == [version for version, _ in schema.migrations()]

    @pytest.mark.fault("F6")
    def test_an_upgrade_that_fails_half_way_leaves_the_old_file(
        self, url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = Path(url)
        make_old_file(path, monkeypatch)
        known = schema.migrations()
        for statements in range(1, known[1][1].count(";") + 1):
            broken = ";".join(known[1][1].split(";")[:statements]) + ";\nINSERT INTO nowhere VALUES (1);\n"
            with contextlib.closing(connect(Location(path))) as connection, monkeypatch.context() as past:
                past.setattr(schema, "migrations", lambda broken=broken: [known[0], (2, broken)])
                with pytest.raises(sqlite3.OperationalError):
                    schema.migrate(connection, now=0)
            assert versions(path) == [1]
        with contextlib.closing(connect(Location(path))) as connection:
            schema.migrate(connection, now=0)
            assert connection.execute("SELECT count(*) FROM durableq_jobs").fetchone() == (len(OLD_JOBS),)
            assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)

    @pytest.mark.fault("F17", "F18")
    def test_processes_that_open_an_old_file_at_once_all_succeed(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        original = tmp_path / "original.db"
        make_old_file(original, monkeypatch, rows=ROWS)
        with contextlib.ExitStack() as stack:
            openers = [stack.enter_context(PythonProcess("-m", "tests.storage.first_opener")) for _ in range(OPENERS)]
            assert [opener.read() for opener in openers] == ["ready"] * OPENERS
            for number in range(ROUNDS):
                database = tmp_path / f"copy-{number}.db"
                shutil.copy(original, database)
                for opener in openers:
                    opener.write(str(database))
                assert [opener.read() for opener in openers] == [None] * OPENERS
                assert versions(database) == [version for version, _ in schema.migrations()]
                with contextlib.closing(sqlite3.connect(database)) as outside:
                    count = len(OLD_JOBS) + ROWS + OPENERS
                    assert outside.execute("SELECT count(*) FROM durableq_jobs").fetchone() == (count,)
                    assert outside.execute("PRAGMA integrity_check").fetchone() == ("ok",)

    async def test_a_script_that_only_adds_a_job_upgrades_too(
        self, backend: Backend, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        make_old_file(Path(backend.url), monkeypatch)
        await asyncio.to_thread(backend.new_storage().insert_and_wait, [job := unique_job(backend)])
        storage = await backend.open()
        assert await stored(storage, job.id) == job
        assert (await storage.counts())[JobState.QUEUED] == 3


def versions(path: Path) -> list[int]:
    with contextlib.closing(sqlite3.connect(path)) as outside:
        return [row[0] for row in outside.execute("SELECT version FROM durableq_migrations ORDER BY version")]
