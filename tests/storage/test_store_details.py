"""What a queue asks of its storage: who is woken by it, who is told, and what comes back."""

import asyncio
import contextlib
import sqlite3
import threading
from collections.abc import AsyncIterator, Awaitable, Collection
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from durableq.clock import to_micros
from durableq.errors import (
    QueueNotRunning,
)
from durableq.models import Job, JobExtras, JobFilter, JobState, LeaseKey
from durableq.storage.protocol import Storage
from durableq.storage.sqlite import host, lookout
from durableq.storage.sqlite import reader as reader_module
from durableq.storage.sqlite.connection import (
    Location,
    connect,
)
from durableq.storage.sqlite.sharing import acquire_writer, release_writer
from durableq.storage.sqlite.statements import SQL
from durableq.storage.sqlite.store import SqliteStorage
from durableq.testing import ManualClock
from tests.storage.faults import record_statements
from tests.storage.support import DEAD, DONE, ENDLESS, LEASE, WORK, Backend, claim, runs_again, settle, stored
from tests.support import eventually


@pytest.fixture
def location(tmp_path: Path) -> Location:
    return Location(tmp_path / "jobs.db")


def names_in(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir()]


class Woken:
    """A worker that notes when it is woken, with what."""

    def __init__(self, backend: Backend, storage: Storage, worker_id: int, calls: list[bool]) -> None:
        self.backend, self.storage, self.worker_id, self.calls = backend, storage, worker_id, calls

    async def after(self, act: Awaitable[object]) -> list[bool]:
        """How it was woken by what is done, once all that was done before has been told."""
        await self.storage.exchange([], None)
        self.calls.clear()
        await act
        await self.storage.exchange([], None)
        return self.calls


@pytest.fixture
async def woken(backend: Backend) -> Woken:
    calls: list[bool] = []
    storage = await backend.open()
    worker_id = await storage.register(calls.append)
    return Woken(backend, storage, worker_id, calls)


async def test_a_job_that_is_retried_by_hand_wakes_the_worker(woken: Woken) -> None:
    [dead] = await woken.backend.finished(woken.storage, DEAD)
    assert await woken.after(woken.storage.retry(dead.id, who="ann")) == [False]


async def test_a_renewal_that_hands_jobs_back_wakes_the_worker_and_no_other_does(woken: Woken) -> None:
    await woken.backend.claimed(woken.storage)

    def renewal() -> Awaitable[object]:
        expires_at = woken.backend.clock.boot() + to_micros(LEASE)
        return asyncio.to_thread(woken.storage.renew, expires_at, ())

    assert await woken.after(renewal()) == [], "it may be on its way still"
    assert await woken.after(renewal()) == [False]
    assert await woken.after(renewal()) == []
    assert len(await claim(woken.storage)) == 1


@pytest.fixture
def no_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let storages that are opened from now on not find out by themselves what others have committed."""
    monkeypatch.setattr(lookout, "LOOK_SECONDS", 60.0)


async def test_all_workers_of_a_process_are_woken_until_they_leave(backend: Backend) -> None:
    storages, calls = [await backend.open() for _ in range(2)], list[int]()
    for number, storage in enumerate(storages):
        await storage.register(lambda new_names, number=number: calls.append(number))  # type: ignore[misc]
    await storages[0].exchange([], None)  # that they have come has been told
    calls.clear()
    await backend.added(storages[0])
    await eventually(lambda: {0, 1} <= set(calls))
    await storages[0].deregister()
    await storages[1].exchange([], None)
    calls.clear()
    await backend.added(storages[1])
    await eventually(lambda: bool(calls))
    assert set(calls) == {1}


async def test_a_ring_at_the_door_wakes_the_worker_for_work_alone(woken: Woken, location: Location) -> None:
    ringer = host.Ringer(location.directory)
    try:
        assert await woken.after(asyncio.to_thread(ringer.ring, woken.worker_id)) in ([], [False])
        await eventually(lambda: bool(woken.calls))
        assert set(woken.calls) == {False}
    finally:
        ringer.close()


async def test_the_next_page_holds_only_what_was_asked_for(backend: Backend, storage: Storage) -> None:
    jobs = [await backend.added(storage, queue=queue) for queue in ("mail", "other", "mail", "other", "mail")]
    wanted, cursor, pages = JobFilter(queue="mail"), None, []
    for _ in range(3):
        page = await storage.find(wanted, cursor=cursor, limit=1)
        pages += page.jobs
        cursor = page.next_cursor
    assert pages == [job for [job] in jobs[::-1] if job.queue == "mail"]
    assert cursor is None


async def test_many_jobs_are_retried_together_up_to_the_limit_and_wake_the_worker(woken: Woken) -> None:
    await woken.backend.finished(woken.storage, DEAD, count=130, task="tasks:many")

    async def retried(limit: int) -> int:
        return await woken.storage.retry_matching(JobFilter(task="tasks:many"), who="ann", limit=limit)

    assert await retried(120) == 120
    assert set(await woken.after(retried(5))) == {False}
    assert await retried(100) == 5


async def test_the_condition_tells_who_shares_the_file_and_how_large_it_is(
    backend: Backend, location: Location
) -> None:
    storage = backend.new_storage()
    condition = storage.condition()
    assert (condition.is_shared, condition.database_bytes, condition.log_bytes) == (False, None, 0)
    storage = await backend.worker()
    await backend.added(storage)
    condition = storage.condition()
    assert (condition.is_shared, condition.database_bytes) == (False, location.path.stat().st_size)
    assert condition.log_bytes == location.wal.stat().st_size
    with contextlib.closing(connect(location)) as other:
        other.execute(SQL["register_worker"], {"pid": 1, "boot_id": "boot", "expires_at": None, "now": 0})
    await eventually(lambda: storage.condition().is_shared)


async def test_a_queue_that_is_resumed_wakes_the_worker_and_one_that_was_not_paused_does_not(
    no_looks: None, woken: Woken
) -> None:
    await woken.backend.added(woken.storage)
    assert await woken.after(woken.storage.pause("default", who="ann")) == []
    for heard in ([False], []):
        assert await woken.after(woken.storage.resume("default", who="ann")) == heard


async def test_a_worker_is_told_which_of_its_jobs_were_cancelled_with_others(no_looks: None, backend: Backend) -> None:
    storage, told = await backend.open(), list[Collection[LeaseKey]]()
    await storage.register(lambda new_names: None, told.append)
    leases = await backend.claimed(storage, 2)
    await backend.claimed(storage, queue="other")
    assert await storage.cancel_matching(JobFilter(queue="default"), who="ann", limit=10) == 2
    await storage.exchange([], None)
    assert [sorted(keys) for keys in told] == [[lease.key for lease in leases]]


async def test_jobs_that_are_taken_back_wake_the_worker(no_looks: None, woken: Woken) -> None:
    [lease] = await woken.backend.claimed(woken.storage)
    with contextlib.closing(connect(Location(Path(woken.backend.url)))) as other:
        other.execute("UPDATE durableq_jobs SET worker_id = 99")  # nobody is registered by that number
    assert await woken.after(woken.storage.reap(runs_again)) == [False]
    assert (await stored(woken.storage, lease.id)).state is JobState.QUEUED


def expiring(backend: Backend) -> Job[Any]:
    """A job that should have been started by now."""
    return replace(backend.job(), extras=JobExtras(expires_at=backend.clock.wall() - 1))


@pytest.mark.parametrize("way", ["reaped", "overdue", "cancelled", "cancelled with others"])
async def test_whoever_waits_is_told_at_once_of_jobs_that_no_worker_finished(
    no_looks: None, backend: Backend, way: str
) -> None:
    storage = await backend.worker()
    [running] = await backend.claimed(storage)
    await storage.insert([waiting := expiring(backend)])
    with contextlib.closing(connect(Location(Path(backend.url)))) as other:
        other.execute("UPDATE durableq_jobs SET worker_id = 99 WHERE id = ?", (running.id,))
    looks: list[str] = []
    unwatch = storage.watch(lambda: looks.append(way))
    await storage.exchange([], None)
    looks.clear()
    if way == "reaped":
        assert await storage.reap(lambda lease, reason, charged: DEAD)
    elif way == "overdue":
        assert await storage.give_up_overdue(lambda lease, now: DEAD, 10)
    elif way == "cancelled":
        await storage.cancel(waiting.id, who="ann")
    else:
        assert await storage.cancel_matching(JobFilter(), who="ann", limit=10) == 2
    await storage.exchange([], None)
    assert looks == [way]
    unwatch()


async def test_all_queues_of_a_process_are_told_until_they_leave_and_keep_their_other_bell(
    backend: Backend, location: Location
) -> None:
    storages = [await backend.worker() for _ in range(2)]
    bells = names_in(location.directory)
    looks: list[int] = []
    unwatch = [storage.watch(partial(looks.append, number)) for number, storage in enumerate(storages)]
    await backend.finished(storages[0], DONE)
    await eventually(lambda: {0, 1} <= set(looks))
    for leave in unwatch:
        leave()
    assert sorted(names_in(location.directory)) == sorted(bells)


@pytest.mark.parametrize("leaves", ["the storage", "whoever watches"])
async def test_a_writer_that_nobody_needs_any_more_sleeps_until_it_is_woken(
    backend: Backend, location: Location, leaves: str
) -> None:
    storage = await backend.open()
    writer = acquire_writer(location, backend.clock)
    unwatch = storage.watch(lambda: None)
    found = [writer.lookout.sleep_seconds() is None]
    if leaves == "the storage":
        await storage.close()
    else:
        unwatch()
    assert [*found, writer.lookout.sleep_seconds() is None] == [False, True]
    release_writer(writer)


async def test_what_a_worker_hands_back_as_it_leaves_wakes_the_others(no_looks: None, backend: Backend) -> None:
    leaving, staying, calls = await backend.worker(), await backend.open(), list[bool]()
    await staying.register(calls.append)
    await backend.claimed(leaving)
    await staying.exchange([], None)
    calls.clear()
    await leaving.deregister()
    await staying.exchange([], None)
    assert calls == [False]
    assert len(await claim(staying)) == 1


async def test_a_worker_is_alone_once_the_others_have_left(backend: Backend) -> None:
    leaving, staying = await backend.worker(), await backend.worker()
    alone = [staying.is_alone]
    await leaving.deregister()
    assert [*alone, staying.is_alone] == [False, True]


async def test_who_leaves_without_having_come_takes_nobody_elses_place(backend: Backend, storage: Storage) -> None:
    other = await backend.open()
    await other.deregister()
    assert [worker.is_here for worker in await storage.workers()] == [True]


@contextlib.asynccontextmanager
async def held_up(storage: Storage) -> AsyncIterator[None]:
    """Have what is handed over in the block wait together, for a transaction that goes before it."""
    begun, may_go_on = threading.Event(), threading.Event()

    def hold(connection: sqlite3.Connection) -> None:
        begun.set()
        may_go_on.wait(5)

    assert isinstance(storage, SqliteStorage)
    holding = asyncio.ensure_future(storage._transact(hold))
    await asyncio.to_thread(begun.wait, 5)
    yield
    for _ in range(3):  # a task begins, and hands over at the end of its turn of the loop
        await asyncio.sleep(0)
    may_go_on.set()
    await holding


async def test_a_process_is_registered_once_whatever_becomes_of_what_is_written_beside_it(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each time it takes the lock of a new row: run once more, it would hold that of a row that is not there."""
    statements = record_statements(monkeypatch)
    storage, newcomer = await backend.worker(), await backend.open()
    [lost] = await backend.claimed(storage)
    await settle(storage, [(lost, DONE)])
    statements.clear()
    async with held_up(storage):
        registering = asyncio.ensure_future(newcomer.register(None))
        settling = asyncio.ensure_future(settle(storage, [(lost, DONE)]))
    await registering
    assert await settling == {lost.seq}
    assert statements.count(SQL["register_worker"]) == 1


async def test_what_people_do_at_one_time_is_stored_by_one_commit(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    statements = record_statements(monkeypatch)
    storage = await backend.worker()
    async with held_up(storage):
        statements.clear()
        pausing = [asyncio.ensure_future(storage.pause(queue, who="ann")) for queue in ("mail", "other")]
    await asyncio.gather(*pausing)
    assert statements.count("COMMIT") == 2, "that which went before, and theirs"


async def test_only_a_cancellation_has_workers_look_for_jobs_that_shall_end(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    statements = record_statements(monkeypatch)
    storage = await backend.worker()
    [job] = await backend.added(storage)
    for act, looks in ((storage.cancel, 1), (storage.retry, 0), (storage.cancel, 1), (storage.delete, 0)):
        statements.clear()
        await act(job.id, who="ann")
        await storage.exchange([], None)  # what a commit leads to is done before the next
        assert statements.count(SQL["cancelling"]) == looks


async def test_who_is_not_registered_claims_nothing_in_the_name_of_another(backend: Backend) -> None:
    registered, nobody = await backend.worker(), await backend.open()
    await backend.added(registered)
    assert await claim(nobody) == []
    assert len(await claim(registered)) == 1


async def test_additions_are_patient_unless_they_say_otherwise(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage, added = await backend.open(), list[bool]()
    assert isinstance(storage, SqliteStorage)
    monkeypatch.setattr(storage._outgoing, "add", lambda addition: added.append(addition.impatient))
    storage.insert([backend.job()])
    storage.insert([backend.job()], impatient=True)
    assert added == [False, True]


async def test_a_storage_that_is_not_open_says_so(backend: Backend) -> None:
    storage = await backend.open()
    await storage.close()
    with pytest.raises(QueueNotRunning, match=f"the queue on {backend.url} is not running"):
        storage.insert([backend.job()])


async def test_the_longest_wait_is_told_in_seconds_and_is_never_negative(
    backend: Backend, storage: Storage, clock: ManualClock
) -> None:
    assert await storage.waits() == {}
    await backend.added(storage)
    clock.advance(2.5)
    await backend.added(storage)
    assert await storage.waits() == {WORK: 2.5}
    clock.step_wall(-60)
    assert await storage.waits() == {WORK: 0}
    await claim(storage)
    assert await storage.waits() == {}


async def test_a_close_that_is_cancelled_gives_the_writer_back(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the file would stay open in this process for good: nothing closes it a second time."""
    monkeypatch.setattr(reader_module, "_READING_SECONDS", 30.0)
    storage = await backend.open()
    assert isinstance(storage, SqliteStorage)
    writer = storage._writer
    reading = asyncio.ensure_future(storage._reader.fetch(ENDLESS))
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(storage.close(), 0.5)
    await asyncio.wait_for(asyncio.wrap_future(writer.closed), 5)
    with pytest.raises(QueueNotRunning):
        await reading
