"""What durableq checks of its own writes in production: each changes the rows it chose, or everything stops.

The writes are broken from outside, by a trigger that somebody put on durableq's tables.
"""

import asyncio
import contextlib
import logging
import sqlite3
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import pytest

from durableq import DurableQ, JobState, StorageUnusable
from durableq.errors import InvariantBroken, OutcomeUnknown
from durableq.events import JobSucceeded, StorageBroken, StorageTrouble, WorkerStopped
from durableq.models import Cancelled, JobExtras, Lease, Outcome, Released, Retried
from durableq.storage.protocol import Storage
from durableq.storage.sqlite.liveness import LEASES_REMEMBERED, LeaseNumbers
from durableq.testing import ManualClock
from tests.engine.helpers import Gate, collect, finished, sql
from tests.storage.faults import record_statements, watch_writer, write_lock
from tests.storage.support import BOOM, DEAD, DONE, Backend, claim, runs_again, settle
from tests.support import eventually

Act = Callable[[Backend, Storage], Awaitable[object]]
TABLES: Final = ("durableq_jobs", "durableq_attempts", "durableq_audit")


def eat(path: str | Path, event: str, when: str = "true") -> None:
    """Put a trigger into the database that makes some writes do nothing, in silence."""
    sql(Path(path), f"CREATE TRIGGER eat BEFORE {event} WHEN {when} BEGIN SELECT RAISE(IGNORE); END")


def content(path: str | Path) -> list[list[tuple[Any, ...]]]:
    return [sql(Path(path), f"SELECT * FROM {table} ORDER BY 1") for table in TABLES]


def update(old: str, new: str) -> tuple[str, str]:
    return "UPDATE ON durableq_jobs", f"old.state = '{old}' AND new.state = '{new}'"


async def refused(storage: Storage, backend: Backend, act: Callable[[], Awaitable[object]]) -> InvariantBroken:
    """Do what must be found out; check that it changed nothing, and that nothing is taken any more."""
    before = content(backend.url)
    with pytest.raises(InvariantBroken) as caught:
        await act()
    assert storage.trouble is caught.value
    with pytest.raises(InvariantBroken):
        storage.insert([backend.job()])
    with pytest.raises(InvariantBroken):
        await claim(storage)
    assert content(backend.url) == before, "the transaction was rolled back"
    return caught.value


def an_end_of(outcome: Outcome, count: int = 2) -> Callable[[Backend, Storage], Awaitable[Act]]:
    """Claim jobs, to be settled once the trigger is there."""

    async def prepare(backend: Backend, storage: Storage) -> Act:
        leases = await backend.claimed(storage, count)
        return lambda backend, storage: settle(storage, [(lease, outcome) for lease in leases])

    return prepare


def by_hand(state: JobState, verb: str) -> Callable[[Backend, Storage], Awaitable[Act]]:
    """Bring a job into a state, for what a person may do to it."""

    async def prepare(backend: Backend, storage: Storage) -> Act:
        if state is JobState.DEAD:
            [job] = await backend.finished(storage, DEAD)
        else:
            [job] = await backend.added(storage, delay=60 if state is JobState.SCHEDULED else 0)
        if state is JobState.RUNNING:
            await claim(storage)
        return lambda backend, storage: getattr(storage, verb)(job.id, who="somebody")

    return prepare


async def _to_add(backend: Backend, storage: Storage) -> Act:
    return lambda backend, storage: storage.insert([backend.job(), backend.job()])


async def _to_claim(backend: Backend, storage: Storage) -> Act:
    await backend.added(storage, 3)
    return lambda backend, storage: claim(storage)


async def _to_claim_with_limits(backend: Backend, storage: Storage) -> Act:
    extras = JobExtras(expires_at=backend.clock.wall() + 10**9)
    await storage.insert([_with_extras(backend, extras)])
    return lambda backend, storage: claim(storage)


async def _to_leave(backend: Backend, storage: Storage) -> Act:
    await backend.claimed(storage)
    return lambda backend, storage: storage.deregister()


async def _to_give_up_overdue(backend: Backend, storage: Storage) -> Act:
    await storage.insert([_with_extras(backend, JobExtras(expires_at=backend.clock.wall() - 1))])
    return lambda backend, storage: storage.give_up_overdue(lambda lease, now: Cancelled(BOOM), 10)


async def _to_prune(backend: Backend, storage: Storage) -> Act:
    await backend.finished(storage, DONE, 2)
    return lambda backend, storage: storage.prune(JobState.SUCCEEDED, backend.clock.now + timedelta(days=1), 10)


async def _to_reap(backend: Backend, storage: Storage) -> Act:
    await backend.claimed(storage)
    sql(Path(backend.url), "UPDATE durableq_jobs SET worker_id = 99")  # a worker that is not there any more
    return lambda backend, storage: storage.reap(runs_again)


def _with_extras(backend: Backend, extras: JobExtras) -> Any:
    return replace(backend.job(), extras=extras)


@pytest.mark.parametrize(
    ("prepare", "eaten"),
    [
        pytest.param(_to_add, ("INSERT ON durableq_jobs", "true"), id="an added job"),
        pytest.param(_to_claim, ("UPDATE ON durableq_jobs", "new.state = 'running' AND old.seq = 2"), id="a claim"),
        pytest.param(_to_claim_with_limits, ("UPDATE OF expires_at ON durableq_jobs", "true"), id="a note of a start"),
        pytest.param(an_end_of(DONE), update("running", "succeeded"), id="a success"),
        pytest.param(an_end_of(DEAD), update("running", "dead"), id="a death"),
        pytest.param(an_end_of(Retried(BOOM, None)), ("INSERT ON durableq_attempts", "true"), id="a failure's history"),
        pytest.param(an_end_of(Released()), update("running", "queued"), id="a release"),
        pytest.param(_to_leave, update("running", "queued"), id="a release on leaving"),
        pytest.param(_to_reap, update("running", "queued"), id="what a dead worker held"),
        pytest.param(_to_give_up_overdue, update("queued", "cancelled"), id="an expiry"),
        pytest.param(_to_prune, ("DELETE ON durableq_jobs", "true"), id="a pruning"),
        pytest.param(by_hand(JobState.DEAD, "retry"), update("dead", "queued"), id="a retry"),
        pytest.param(by_hand(JobState.SCHEDULED, "retry"), update("scheduled", "queued"), id="a start ahead of time"),
        pytest.param(by_hand(JobState.QUEUED, "cancel"), update("queued", "cancelled"), id="a cancellation"),
        pytest.param(by_hand(JobState.RUNNING, "cancel"), update("running", "running"), id="a wish to cancel"),
        pytest.param(by_hand(JobState.DEAD, "delete"), ("DELETE ON durableq_jobs", "true"), id="a deletion"),
    ],
)
async def test_a_write_that_does_not_change_what_was_chosen_is_rolled_back_and_stops_everything(
    backend: Backend,
    storage: Storage,
    prepare: Callable[[Backend, Storage], Awaitable[Act]],
    eaten: tuple[str, str],
) -> None:
    act = await prepare(backend, storage)
    eat(backend.url, *eaten)
    error = await refused(storage, backend, lambda: act(backend, storage))
    assert error.found != error.expected
    assert "PRAGMA integrity_check" in str(error), "it says what to do"


async def test_due_jobs_that_cannot_be_made_ready_stop_everything_rather_than_turn_in_circles(
    backend: Backend, storage: Storage, clock: ManualClock
) -> None:
    await backend.added(storage, delay=60)
    eat(backend.url, *update("scheduled", "queued"))
    clock.advance(61)
    await eventually(lambda: isinstance(storage.trouble, InvariantBroken))


async def test_nothing_of_a_group_is_stored_when_one_write_in_it_is_wrong(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They share a transaction: what else was in it is refused too, and is not there."""
    statements = record_statements(monkeypatch)
    storage = await backend.worker()
    leases = await backend.claimed(storage, 2)
    eat(backend.url, *update("running", "succeeded"))
    before, group = backend.job(), [backend.job(), backend.job()]
    with write_lock(backend.url):
        statements.clear()
        earlier = storage.insert([before])
        await eventually(lambda: "BEGIN IMMEDIATE" in statements)  # what comes now has to wait for the next group
        added = [storage.insert([job]) for job in group]
        ended = asyncio.ensure_future(settle(storage, [(lease, DONE) for lease in leases]))
        await asyncio.sleep(0)
    await earlier
    answers = await asyncio.gather(*added, ended, return_exceptions=True)
    assert [type(answer) for answer in answers] == [InvariantBroken] * 3
    stored = {job_id for (job_id,) in sql(Path(backend.url), "SELECT id FROM durableq_jobs")}
    assert stored == {*(lease.id for lease in leases), before.id}


async def test_jobs_that_are_there_already_are_no_wrong_write(backend: Backend, storage: Storage) -> None:
    jobs = [backend.job(), backend.job()]
    for _ in range(2):
        await storage.insert(jobs)
    await storage.insert([*jobs, backend.job()])
    assert storage.trouble is None


async def test_what_is_found_wrong_in_the_repetition_of_a_failed_commit_is_unknown_and_not_called_refused(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first COMMIT may have happened: nobody may be told that the jobs are not stored."""
    commits = 0

    def fail_and_leave_a_trigger(connection: sqlite3.Connection, statement: str) -> None:
        nonlocal commits
        if statement != "COMMIT" or commits == 0:
            return
        commits -= 1
        connection.execute("ROLLBACK")
        connection.execute(
            "CREATE TRIGGER eat BEFORE INSERT ON durableq_jobs WHEN true BEGIN SELECT RAISE(IGNORE); END"
        )
        error = sqlite3.OperationalError("an error made by the test")
        error.sqlite_errorcode = sqlite3.SQLITE_IOERR_FSYNC
        raise error

    watch_writer(monkeypatch, fail_and_leave_a_trigger)
    storage = await backend.worker()
    commits = 1
    with pytest.raises(OutcomeUnknown):
        await storage.insert([backend.job()])


class TestLeases:
    @pytest.mark.parametrize(
        "changed", ["lease_no = 0", "id = 'another'"], ids=["its number goes back", "its id changes"]
    )
    async def test_a_lease_that_cannot_be_new_is_not_handed_out(
        self, backend: Backend, storage: Storage, changed: str
    ) -> None:
        [lease] = await backend.claimed(storage)
        await settle(storage, [(lease, Released())])
        sql(Path(backend.url), f"UPDATE durableq_jobs SET {changed}")
        with pytest.raises(InvariantBroken, match=lease.id):
            await claim(storage)
        assert isinstance(storage.trouble, InvariantBroken)
        with pytest.raises(InvariantBroken):
            storage.insert([backend.job()])

    def test_only_so_many_leases_are_remembered_the_latest_of_them(self) -> None:
        numbers = LeaseNumbers()
        leases = [Lease(seq, 1, str(seq), "t", "q", "{}", 0, 1, 5, 0, 0) for seq in range(2 * LEASES_REMEMBERED + 1)]
        for lease in leases:
            numbers.check([lease])
        for known in (leases[-1], leases[-LEASES_REMEMBERED]):
            with pytest.raises(InvariantBroken, match="with a number above 1"):
                numbers.check([known])
        numbers.check([leases[0]])  # forgotten

    def test_a_job_is_not_given_twice_by_one_claim(self) -> None:
        lease = Lease(1, 1, "1", "t", "q", "{}", 0, 1, 5, 0, 0)
        with pytest.raises(InvariantBroken, match="twice"):
            LeaseNumbers().check([lease, lease._replace(lease_no=2)])


async def test_a_worker_stops_by_itself_when_its_writes_go_wrong_and_another_runs_its_jobs_later(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    database = tmp_path / "jobs.db"
    dq, gate = DurableQ(database, grace=60), Gate()
    broken, succeeded = collect(dq.events, StorageBroken), collect(dq.events, JobSucceeded)
    stopped, trouble = collect(dq.events, WorkerStopped), collect(dq.events, StorageTrouble)
    runs: list[str] = []

    @dq.task(name="quick")
    async def quick() -> None:
        runs.append("quick")

    @dq.task(name="slow")
    async def slow() -> None:
        await gate()

    async with dq.running():
        await dq.add_task(slow)
        await eventually(lambda: gate.inside == 1)
        eat(database, *update("running", "succeeded"))
        with caplog.at_level(logging.INFO, "durableq"):
            job = await dq.add_task(quick)
            await eventually(lambda: len(stopped) == 1)
        assert gate.inside == 0, "what ran was ended at once: nothing could be stored for it"
        [event] = broken
        assert isinstance(event.error, InvariantBroken)
        assert [record.levelname for record in caplog.records if "settling" in record.getMessage()] == ["CRITICAL"]
        assert not succeeded
        assert not trouble
        with pytest.raises(InvariantBroken):
            await dq.add_task(quick)
        health = await dq.health()
        assert (health.status, health.worker) == ("failing", "stopped")
        assert any("the worker has stopped" in reason and "settling" in reason for reason in health.reasons)
        assert sql(database, "SELECT DISTINCT state FROM durableq_jobs") == [("running",)]
    sql(database, "DROP TRIGGER eat")
    gate.open()
    async with dq.running():
        assert (await finished(dq, job)).state is JobState.SUCCEEDED
        assert (await dq.health()).status == "ok"
    assert runs == ["quick", "quick"]


async def test_a_worker_stops_by_itself_when_its_file_is_gone(tmp_path: Path) -> None:
    database = tmp_path / "jobs.db"
    dq = DurableQ(database)
    broken, stopped = collect(dq.events, StorageBroken), collect(dq.events, WorkerStopped)
    async with dq.running():
        database.unlink()
        await eventually(lambda: len(stopped) == 1)
        assert isinstance(broken[0].error, StorageUnusable)
        health = await dq.health()
        assert health.status == "failing"
        assert any("gone" in reason for reason in health.reasons)
    with contextlib.suppress(FileNotFoundError):
        database.with_name("jobs.db-wal").unlink()
