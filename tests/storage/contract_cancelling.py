"""What every backend promises about ending a job that runs: its worker is told, and it does not go back to waiting."""

import asyncio
from collections.abc import Awaitable, Callable, Collection
from dataclasses import replace
from typing import Any

import pytest

from durableq.clock import to_micros
from durableq.errors import JobConflict
from durableq.models import (
    Cancelled,
    Job,
    JobExtras,
    JobState,
    Lease,
    LeaseKey,
    Outcome,
    Released,
    Retried,
    Snoozed,
    Succeeded,
)
from durableq.storage.protocol import Storage
from durableq.testing import ManualClock
from tests.storage.support import (
    BOOM,
    DEAD,
    DONE,
    HEARTBEAT,
    LEASE,
    WORK,
    Backend,
    PythonProcess,
    claim,
    runs_again,
    settle,
    stored,
)
from tests.support import eventually

LIMITED = JobExtras(deadline_at=2**53, timeout=1, tags=("t",))

HandBack = Callable[[Backend, Storage, Lease], Awaitable[Any]]
"""Lets a worker lose, or give back, what it holds; without a word from the worker about the job."""


async def leave(backend: Backend, storage: Storage, lease: Lease) -> None:
    await storage.deregister()


async def forget(backend: Backend, storage: Storage, lease: Lease) -> None:
    for _ in range(2):
        expires_at = backend.clock.boot() + to_micros(LEASE)
        await asyncio.to_thread(storage.renew, expires_at, set[LeaseKey]())


async def die(backend: Backend, storage: Storage, lease: Lease) -> None:
    reaper = await backend.worker()
    await reaper.reap(runs_again)
    for _ in range(LEASE // HEARTBEAT + 1):
        backend.clock.advance(HEARTBEAT)
        await reaper.reap(runs_again)


async def asked_to_end(backend: Backend, storage: Storage, extras: JobExtras | None = None) -> Lease:
    """Store and claim a job, and ask for its end."""
    job = backend.job() if extras is None else replace(backend.job(), extras=extras)
    await storage.insert([job])
    [lease] = await claim(storage)
    await storage.cancel(job.id, who="ann")
    return lease


class CancellingWhatRuns:
    async def test_it_goes_on_running_and_the_request_is_seen(self, backend: Backend, storage: Storage) -> None:
        [lease] = await backend.claimed(storage)
        job = await storage.cancel(lease.id, who="ann")
        assert job == await stored(storage, lease.id)
        assert (job.state, job.cancel_requested, job.finished_at) == (JobState.RUNNING, True, None)
        await storage.cancel(lease.id, who="bob")
        trail = [(entry.who, entry.action, entry.detail["was"]) for entry in await storage.audit_trail(lease.id)]
        assert trail == [("ann", "cancel", "running"), ("bob", "cancel", "running")]

    @pytest.mark.parametrize("extras", [None, LIMITED])
    @pytest.mark.parametrize(
        "outcome",
        [
            Retried(BOOM, None),
            Retried(BOOM, 2**52),
            Retried(BOOM, None, crashed=True),
            Released(),
            Snoozed(0),
            Snoozed(2**52),
        ],
    )
    async def test_it_does_not_go_back_to_waiting(
        self, backend: Backend, storage: Storage, clock: ManualClock, outcome: Outcome, extras: JobExtras | None
    ) -> None:
        lease = await asked_to_end(backend, storage, extras)
        clock.advance(5)
        assert await settle(storage, [(lease, outcome)]) == frozenset()
        job = await stored(storage, lease.id)
        assert (job.state, job.finished_at) == (JobState.CANCELLED, clock.now)
        assert await claim(storage, suspects=[WORK]) == []
        assert len(await storage.attempts(lease.id)) == isinstance(outcome, Retried)
        assert await storage.finished_among([lease.id]) == {lease.id}
        clock.advance(1)
        assert await storage.prune(JobState.CANCELLED, clock.now, limit=10) == 1

    @pytest.mark.parametrize("extras", [None, LIMITED])
    @pytest.mark.parametrize(
        ("outcome", "state"),
        [(DONE, JobState.SUCCEEDED), (DEAD, JobState.DEAD), (Cancelled(BOOM), JobState.CANCELLED)],
    )
    async def test_an_end_that_came_first_stands(
        self,
        backend: Backend,
        storage: Storage,
        clock: ManualClock,
        outcome: Outcome,
        state: JobState,
        extras: JobExtras | None,
    ) -> None:
        lease = await asked_to_end(backend, storage, extras)
        clock.advance(5)
        await settle(storage, [(lease, outcome)])
        job = await stored(storage, lease.id)
        assert (job.state, job.finished_at) == (state, clock.now)
        assert not job.cancel_requested, "it does not run any more"

    async def test_only_the_jobs_that_were_asked_to_end_do(self, backend: Backend, storage: Storage) -> None:
        leases = await backend.claimed(storage, 6)
        for lease in leases[::2]:
            await storage.cancel(lease.id, who="ann")
        outcomes: list[Outcome] = [Retried(BOOM, None), Retried(BOOM, None), Released(), Released(), DONE, DONE]
        await settle(storage, list(zip(leases, outcomes, strict=True)))
        states = [(await stored(storage, lease.id)).state for lease in leases]
        assert states == ["cancelled", "queued", "cancelled", "queued", "succeeded", "succeeded"]

    @pytest.mark.parametrize("hand_back", [leave, forget, die])
    async def test_it_does_not_go_back_to_waiting_when_its_worker_loses_it(
        self, backend: Backend, storage: Storage, hand_back: HandBack
    ) -> None:
        lease = await asked_to_end(backend, storage)
        await hand_back(backend, storage, lease)
        other = await backend.worker()
        job = await stored(other, lease.id)
        assert job.state is JobState.CANCELLED
        assert job.finished_at is not None
        assert await claim(other, suspects=[WORK]) == []

    @pytest.mark.parametrize("extras", [None, LIMITED])
    @pytest.mark.parametrize("outcome", [Released(), DEAD])
    async def test_a_job_that_starts_over_is_not_asked_to_end_any_more(
        self, backend: Backend, storage: Storage, outcome: Outcome, extras: JobExtras | None
    ) -> None:
        lease = await asked_to_end(backend, storage, extras)
        await settle(storage, [(lease, outcome)])
        job = await storage.retry(lease.id, who="ann")
        assert (job.state, job.cancel_requested) == (JobState.QUEUED, False)
        [again] = await claim(storage)
        assert not (await stored(storage, lease.id)).cancel_requested
        await settle(storage, [(again, Retried(BOOM, None))])
        assert (await stored(storage, lease.id)).state is JobState.QUEUED

    async def test_a_finished_job_cannot_be_asked(self, backend: Backend, storage: Storage) -> None:
        lease = await asked_to_end(backend, storage)
        await settle(storage, [(lease, Succeeded("1"))])
        with pytest.raises(JobConflict, match="succeeded"):
            await storage.cancel(lease.id, who="ann")


class Listener:
    """What a worker remembers of what it was told to end."""

    def __init__(self) -> None:
        self.told: list[set[LeaseKey]] = []

    def cancel(self, keys: Collection[LeaseKey]) -> None:
        asyncio.get_running_loop()  # it is called on the event loop
        self.told.append(set(keys))

    @property
    def keys(self) -> set[LeaseKey]:
        return set().union(*self.told)


async def listening(backend: Backend) -> tuple[Storage, Listener]:
    """Open the database as a worker that listens."""
    listener = Listener()
    storage = await backend.open()
    await storage.register(lambda new_names: None, listener.cancel)
    return storage, listener


class BeingToldToCancel:
    async def test_a_worker_is_told_of_its_own_request(self, backend: Backend) -> None:
        storage, listener = await listening(backend)
        first, second, _ = await backend.claimed(storage, 3)
        await storage.cancel(first.id, who="ann")
        await eventually(lambda: listener.keys == {first.key}, within=1)
        await storage.cancel(second.id, who="ann")
        await eventually(lambda: listener.keys == {first.key, second.key}, within=1)

    async def test_only_the_worker_that_holds_the_job_is_told(self, backend: Backend) -> None:
        one, told_one = await listening(backend)
        other, told_other = await listening(backend)
        [lease] = await backend.claimed(one)
        await other.cancel(lease.id, who="ann")
        await eventually(lambda: told_one.keys == {lease.key}, within=1)
        [later] = await backend.claimed(other)
        await one.cancel(later.id, who="ann")
        await eventually(lambda: told_other.keys == {later.key}, within=1)
        assert told_one.keys == {lease.key}

    async def test_a_job_that_waits_is_nobodys_to_end(self, backend: Backend) -> None:
        storage, listener = await listening(backend)
        [waiting] = await backend.added(storage)
        await storage.cancel(waiting.id, who="ann")
        [lease] = await backend.claimed(storage)
        await storage.cancel(lease.id, who="ann")
        await eventually(lambda: listener.keys == {lease.key}, within=1)

    async def test_a_worker_that_has_left_is_told_nothing(self, backend: Backend) -> None:
        one, told = await listening(backend)
        other, told_other = await listening(backend)
        await one.deregister()
        [lease] = await backend.claimed(other)
        await other.cancel(lease.id, who="ann")
        await eventually(lambda: bool(told_other.told))
        assert told.told == []

    async def test_a_worker_hears_of_it_from_another_process(self, backend: Backend) -> None:
        storage, listener = await listening(backend)
        with PythonProcess("-m", "tests.storage.colleague", backend.url) as colleague:
            await asyncio.to_thread(colleague.read)
            [lease] = await backend.claimed(storage)
            colleague.write(f'["cancel", "{lease.id}"]')
            await asyncio.to_thread(colleague.read)
            await eventually(lambda: listener.keys == {lease.key}, within=1)

    async def test_a_worker_in_another_process_is_told(self, backend: Backend, storage: Storage) -> None:
        jobs: list[Job[Any]] = await backend.added(storage, 2)
        with PythonProcess("-m", "tests.storage.colleague", backend.url) as colleague:
            await asyncio.to_thread(colleague.read)
            colleague.write('["claim"]')
            assert await asyncio.to_thread(colleague.read) == ["claim", [job.id for job in jobs]]
            for job in jobs:
                await storage.cancel(job.id, who="ann")
                async with asyncio.timeout(1):
                    assert await asyncio.to_thread(colleague.read) == ["asked", [job.id]]
