"""The statements that an application runs in a transaction of its own: its commit stores all, its rollback nothing."""

import asyncio
import contextlib
import sqlite3
from collections.abc import Iterator
from dataclasses import replace

import pytest

from durableq.errors import DuplicateJob, IdempotencyConflict, JobConflict
from durableq.models import Job, JobExtras, JobState, Lease, Names, Progress, Released, Retried
from durableq.storage.protocol import Notes, Storage
from durableq.storage.sqlite import lookout
from durableq.storage.sqlite.connection import begin
from durableq.storage.sqlite.insertion import carry_out
from durableq.testing import ManualClock
from tests.storage.contract_unique import keyed_job, live, numbered, unique_job
from tests.storage.support import BOOM, DEAD, DONE, Backend, claim, settle, stored
from tests.support import eventually


@pytest.fixture
def no_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let storages that are opened from now on not find out by themselves what others have committed."""
    monkeypatch.setattr(lookout, "LOOK_SECONDS", 60.0)


@pytest.fixture
def connection(backend: Backend, storage: Storage) -> Iterator[sqlite3.Connection]:
    """A connection of the application's, to the file that the storage has open."""
    with contextlib.closing(sqlite3.connect(backend.url, isolation_level=None, timeout=0)) as opened:
        opened.execute("CREATE TABLE IF NOT EXISTS mine (x)")
        yield opened


@contextlib.contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    begin(connection, wait_seconds=10)
    try:
        yield
    except BaseException:
        connection.execute("ROLLBACK")
        raise
    connection.execute("COMMIT")


class Undone(Exception):
    """What makes a test's transaction roll back."""


async def all_ids(storage: Storage) -> set[str]:
    return {job.id for job in await live(storage)}


class TestAdding:
    async def test_jobs_are_there_with_the_commit_and_not_before(
        self, backend: Backend, storage: Storage, connection: sqlite3.Connection
    ) -> None:
        plain, tagged = backend.job(queue="q"), replace(backend.job(), extras=JobExtras(tags=("t",)))
        unique = unique_job(backend)
        with transaction(connection):
            connection.execute("INSERT INTO mine VALUES (1)")
            assert carry_out(connection, storage.adding([plain, tagged, unique])) == {}
            assert await all_ids(storage) == set()
        for job in (plain, tagged, unique):
            assert await stored(storage, job.id) == job
        await eventually(lambda: storage.names() == Names(frozenset({"q", "default"}), frozenset({plain.task})))
        assert {lease.id for lease in await claim(storage)} == {tagged.id, unique.id}

    async def test_a_rollback_leaves_nothing_of_them(
        self, backend: Backend, storage: Storage, connection: sqlite3.Connection
    ) -> None:
        await storage.insert([holder := unique_job(backend, args_json=numbered(1))])
        before = await stored(storage, holder.id)
        alias = unique_job(backend, on_conflict="replace", args_json=numbered(2))
        with pytest.raises(Undone), transaction(connection):
            carry_out(connection, storage.adding([backend.job(task="tasks:new", queue="new"), alias]))
            raise Undone
        assert await all_ids(storage) == {holder.id}
        assert await stored(storage, holder.id) == before
        assert await storage.get(alias.id) is None
        assert "tasks:new" not in storage.names().tasks

    async def test_the_worker_and_its_timer_hear_of_the_commit(
        self, backend: Backend, clock: ManualClock, connection: sqlite3.Connection
    ) -> None:
        woken: list[bool] = []
        storage = await backend.open()
        await storage.register(woken.append)
        with transaction(connection):
            carry_out(connection, storage.adding([backend.job(delay=60)]))
            woken.clear()
        await eventually(lambda: True in woken, within=1)  # with new names
        woken.clear()
        clock.advance(60)
        await eventually(lambda: bool(woken))
        assert len(await claim(storage)) == 1

    async def test_a_commit_is_seen_while_it_is_expected(
        self, no_looks: None, backend: Backend, connection: sqlite3.Connection
    ) -> None:
        woken: list[bool] = []
        storage = await backend.open()
        await storage.register(woken.append)
        with transaction(connection):
            carry_out(connection, storage.adding([backend.job()]))
            storage.expect_foreign_commit(lambda: connection.in_transaction)
            await asyncio.sleep(0.1)  # however long it takes
            woken.clear()
        await eventually(lambda: bool(woken), within=1)

    async def test_a_commit_is_seen_once_somebody_tells_of_it(
        self, no_looks: None, backend: Backend, connection: sqlite3.Connection
    ) -> None:
        woken: list[bool] = []
        storage = await backend.open()
        await storage.register(woken.append)
        with transaction(connection):
            carry_out(connection, storage.adding([backend.job()]))
            nudge = storage.expect_foreign_commit(lambda: False)
            await asyncio.sleep(0.1)  # until it is not expected any more
            woken.clear()
        nudge()
        await eventually(lambda: bool(woken), within=1)

    async def test_a_job_that_is_there_already_stands(
        self, backend: Backend, storage: Storage, clock: ManualClock, connection: sqlite3.Connection
    ) -> None:
        await storage.insert([holder := unique_job(backend), keyed := keyed_job(backend, args_json=numbered(1))])
        clock.advance(1)
        second, again = unique_job(backend), keyed_job(backend, args_json=numbered(1))
        with transaction(connection):
            conflicts = carry_out(connection, storage.adding([second, again]))
        assert conflicts == {second.id: holder.id, keyed.id: keyed.id}
        assert (await stored(storage, second.id)).id == holder.id
        assert await all_ids(storage) == {holder.id, keyed.id}

    async def test_a_refusal_leaves_the_transaction_to_its_owner(
        self, backend: Backend, storage: Storage, clock: ManualClock, connection: sqlite3.Connection
    ) -> None:
        await storage.insert([holder := unique_job(backend), keyed := keyed_job(backend, args_json=numbered(1))])
        clock.advance(1)
        refused: list[tuple[type[JobConflict], Job[object]]] = [
            (DuplicateJob, unique_job(backend, on_conflict="raise")),
            (IdempotencyConflict, keyed_job(backend, args_json=numbered(2))),
        ]
        with transaction(connection):
            connection.execute("INSERT INTO mine VALUES (1)")
            for error, job in refused:
                connection.execute("SAVEPOINT jobs")
                with pytest.raises(error):
                    carry_out(connection, storage.adding([backend.job(), job]))
                connection.execute("ROLLBACK TO jobs")
        assert connection.execute("SELECT count(*) FROM mine").fetchone() == (1,)
        assert await all_ids(storage) == {holder.id, keyed.id}


class TestCompleting:
    async def test_the_commit_settles_the_job_and_stores_what_follows(
        self, backend: Backend, storage: Storage, clock: ManualClock, connection: sqlite3.Connection
    ) -> None:
        job = unique_job(backend)
        job = replace(job, extras=replace(job.extras, result_ttl=1, deadline_at=2**53))
        await storage.insert([job])
        [lease] = await claim(storage)
        await storage.exchange([], None, Notes([(lease.key, Progress(1))], [(lease.key, 1, 0, "half")]))
        clock.advance(5)
        plain, same_key = backend.job(), unique_job(backend)
        with transaction(connection):
            connection.execute("INSERT INTO mine VALUES (1)")
            carry_out(connection, storage.completing(lease, '"x"', [plain, same_key]))
            assert await storage.state_of_lease(lease) is JobState.RUNNING
        assert await storage.state_of_lease(lease) is JobState.SUCCEEDED
        done = await stored(storage, lease.id)
        assert (done.result, done.finished_at, done.unique_key, done.deadline_at) == ("x", clock.now, None, None)
        assert done.progress == Progress(1)
        assert [line.message for line in await storage.logs(lease.id)] == ["half"]
        assert await all_ids(storage) == {plain.id, same_key.id}
        assert await settle(storage, [(lease, DEAD)]) == {lease.seq}, "nothing is left to settle"
        clock.advance(1)
        assert await storage.drop_results(10) == 1

    async def test_what_a_job_said_last_is_stored_by_the_commit(
        self, backend: Backend, storage: Storage, connection: sqlite3.Connection
    ) -> None:
        [lease] = await backend.claimed(storage)
        notes = Notes([(lease.key, Progress(3, 3))], [(lease.key, 1, 0, "done")])
        with transaction(connection):
            carry_out(connection, storage.completing(lease, None, [], notes))
            assert await storage.logs(lease.id) == []
        assert (await stored(storage, lease.id)).progress == Progress(3, 3)
        assert [line.message for line in await storage.logs(lease.id)] == ["done"]

    async def test_a_rollback_leaves_the_job_running(
        self, backend: Backend, storage: Storage, connection: sqlite3.Connection
    ) -> None:
        [lease] = await backend.claimed(storage)
        with pytest.raises(Undone), transaction(connection):
            carry_out(connection, storage.completing(lease, '"x"', [backend.job()]))
            raise Undone
        assert await all_ids(storage) == {lease.id}
        assert await storage.state_of_lease(lease) is JobState.RUNNING
        assert await settle(storage, [(lease, DONE)]) == frozenset()

    async def test_a_lease_that_was_lost_completes_nothing(
        self, backend: Backend, storage: Storage, connection: sqlite3.Connection
    ) -> None:
        stale: list[Lease] = []
        for outcome in (Released(), Retried(BOOM, 2**52), DONE, DEAD):
            [lease] = await backend.claimed(storage)
            await settle(storage, [(lease, outcome)])
            await claim(storage)  # what went back to waiting has a new lease
            stale.append(lease)
        before = [await stored(storage, lease.id) for lease in stale]
        with transaction(connection):
            connection.execute("INSERT INTO mine VALUES (1)")
            for lease in stale:
                with pytest.raises(JobConflict, match=lease.id):
                    carry_out(connection, storage.completing(lease, '"x"', [unique_job(backend), backend.job()]))
        assert [await stored(storage, lease.id) for lease in stale] == before
        assert {job.id for job in await live(storage)} == {job.id for job in before if not job.is_finished}

    async def test_follow_ups_that_are_there_already_stand(
        self, backend: Backend, storage: Storage, clock: ManualClock, connection: sqlite3.Connection
    ) -> None:
        [lease] = await backend.claimed(storage)
        await storage.insert([holder := unique_job(backend), keyed := keyed_job(backend, args_json=numbered(1))])
        clock.advance(1)
        refused = [unique_job(backend, on_conflict="raise"), keyed_job(backend, args_json=numbered(2))]
        with transaction(connection):
            carry_out(connection, storage.completing(lease, None, refused))
        assert await storage.state_of_lease(lease) is JobState.SUCCEEDED
        assert await all_ids(storage) == {holder.id, keyed.id}

    async def test_a_job_that_was_asked_to_end_has_still_succeeded(
        self, backend: Backend, storage: Storage, connection: sqlite3.Connection
    ) -> None:
        [lease] = await backend.claimed(storage)
        await storage.cancel(lease.id, who="ann")
        with transaction(connection):
            carry_out(connection, storage.completing(lease, '"x"', []))
        done = await stored(storage, lease.id)
        assert (done.state, done.result, done.cancel_requested) == (JobState.SUCCEEDED, "x", False)

    async def test_whoever_waits_hears_of_the_commit(
        self, backend: Backend, storage: Storage, connection: sqlite3.Connection
    ) -> None:
        [lease] = await backend.claimed(storage)
        looks: list[bool] = []
        unwatch = storage.watch(lambda: looks.append(True))
        with transaction(connection):
            carry_out(connection, storage.completing(lease, None, []))
            nudge = storage.expect_foreign_commit(lambda: connection.in_transaction)
            looks.clear()
        nudge()
        await eventually(lambda: bool(looks), within=1)
        unwatch()
