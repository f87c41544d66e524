"""What every backend promises about when a unique key is given up, and who may claim it again."""

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Final

import pytest

from durableq.engine.decisions import before_start
from durableq.errors import DuplicateJob, JobConflict
from durableq.models import (
    COVERS,
    Cancelled,
    JobFilter,
    JobState,
    Lease,
    Outcome,
    Released,
    Retried,
    Snoozed,
)
from durableq.storage.protocol import Storage
from tests.storage.contract_unique import RUNNING, SECOND, is_free, live, numbered, unique_job
from tests.storage.support import (
    BOOM,
    DEAD,
    DONE,
    HEARTBEAT,
    LEASE,
    Backend,
    claim,
    runs_again,
    settle,
    stored,
)

End = Callable[[Backend, Storage, str], Awaitable[None]]
"""Brings a waiting job to its end."""

SUCCEEDED: Final = COVERS[JobState.SUCCEEDED]
DIED: Final = COVERS[JobState.DEAD]
CANCELLED: Final = COVERS[JobState.CANCELLED]


def settled_as(outcome: Outcome) -> End:
    async def end(backend: Backend, storage: Storage, job_id: str) -> None:
        [lease] = await claim(storage)
        await settle(storage, [(lease, outcome)])

    return end


async def cancelled_while_it_waits(backend: Backend, storage: Storage, job_id: str) -> None:
    await storage.cancel(job_id, who="ann")


async def cancelled_while_it_runs(backend: Backend, storage: Storage, job_id: str) -> None:
    [lease] = await claim(storage)
    await storage.cancel(job_id, who="ann")
    await settle(storage, [(lease, Retried(BOOM, run_at=None))])


async def expired(backend: Backend, storage: Storage, job_id: str) -> None:
    backend.clock.advance(61)
    assert len(await storage.give_up_overdue(before_start, 10)) == 1


async def left_by_a_dead_worker(backend: Backend, storage: Storage, job_id: str) -> None:
    await claim(storage)
    await storage.cancel(job_id, who="ann")
    reaper = await backend.worker()
    await reaper.reap(runs_again)
    for _ in range(LEASE // HEARTBEAT + 1):
        backend.clock.advance(HEARTBEAT)
        await reaper.reap(runs_again)


ENDS = [
    pytest.param(settled_as(DONE), JobState.SUCCEEDED, id="succeeded"),
    pytest.param(settled_as(DEAD), JobState.DEAD, id="dead"),
    pytest.param(settled_as(Cancelled(BOOM)), JobState.CANCELLED, id="cancelled by its worker"),
    pytest.param(cancelled_while_it_waits, JobState.CANCELLED, id="cancelled while it waits"),
    pytest.param(cancelled_while_it_runs, JobState.CANCELLED, id="cancelled while it runs"),
    pytest.param(expired, JobState.CANCELLED, id="expired"),
    pytest.param(left_by_a_dead_worker, JobState.CANCELLED, id="cancelled, and its worker dead"),
]


class KeysOverALife:
    @pytest.mark.parametrize("outcome", [Retried(BOOM, None), Released(), Snoozed(0)])
    async def test_a_job_that_goes_back_to_waiting_keeps_its_key(
        self, backend: Backend, storage: Storage, outcome: Outcome
    ) -> None:
        await storage.insert([job := unique_job(backend)])
        for _ in range(2):
            assert not await is_free(backend, storage)
            [lease] = await claim(storage)
            assert not await is_free(backend, storage)
            await settle(storage, [(lease, outcome)])
        assert not await is_free(backend, storage)
        assert (await stored(storage, job.id)).unique_key == "k"

    @pytest.mark.parametrize(("end", "state"), ENDS)
    async def test_a_key_is_free_once_its_job_has_left_the_states_it_covers(
        self, backend: Backend, storage: Storage, end: End, state: JobState
    ) -> None:
        job = unique_job(backend, covers=RUNNING | (SUCCEEDED | DIED | CANCELLED) & ~COVERS[state])
        job = replace(job, extras=replace(job.extras, expires_at=backend.clock.wall() + 60 * SECOND))
        await storage.insert([job])
        await end(backend, storage, job.id)
        ended = await stored(storage, job.id)
        assert (ended.state, ended.unique_key) == (state, None)
        assert await is_free(backend, storage)

    @pytest.mark.parametrize(("end", "state"), ENDS)
    async def test_a_key_is_held_in_every_state_that_it_covers(
        self, backend: Backend, storage: Storage, end: End, state: JobState
    ) -> None:
        job = unique_job(backend, covers=RUNNING | COVERS[state])
        job = replace(job, extras=replace(job.extras, expires_at=backend.clock.wall() + 60 * SECOND))
        await storage.insert([job])
        await end(backend, storage, job.id)
        ended = await stored(storage, job.id)
        assert (ended.state, ended.unique_key) == (state, "k")
        assert not await is_free(backend, storage)
        backend.clock.advance(1)
        await storage.prune(state, backend.clock.now, limit=10)
        assert await is_free(backend, storage), "at the latest, it goes with its job"

    async def test_a_key_that_does_not_cover_running_is_free_as_soon_as_its_job_starts(
        self, backend: Backend, storage: Storage
    ) -> None:
        await storage.insert([first := unique_job(backend, covers=0)])
        assert not await is_free(backend, storage)
        [lease] = await claim(storage)
        await storage.insert([second := unique_job(backend, covers=0)])
        assert (await stored(storage, second.id)).unique_key == "k"
        assert not await is_free(backend, storage)
        await settle(storage, [(lease, DONE)])
        assert [job.id for job in await live(storage)] == [second.id]
        assert (await stored(storage, first.id)).unique_key is None

    @pytest.mark.parametrize("outcome", [Retried(BOOM, None), Retried(BOOM, 2**52), Released(), Snoozed(2**52)])
    async def test_a_job_whose_key_was_given_up_goes_back_to_waiting_while_another_holds_it(
        self, backend: Backend, storage: Storage, outcome: Outcome
    ) -> None:
        leases = []
        for _ in range(3):  # several at once: each gave up the same key
            await storage.insert([unique_job(backend, covers=0)])
            leases += await claim(storage)
        await storage.insert([holder := unique_job(backend, covers=0)])
        assert await settle(storage, [(lease, outcome) for lease in leases]) == frozenset()
        waiting = await live(storage)
        assert [job.id for job in waiting] == [*(lease.id for lease in leases), holder.id]
        assert [job.unique_key for job in waiting] == [None] * 3 + ["k"]

    async def test_a_worker_that_leaves_hands_back_jobs_whose_key_others_hold(
        self, backend: Backend, storage: Storage
    ) -> None:
        other = await backend.worker()
        await storage.insert([first := unique_job(backend, covers=0)])
        await claim(storage)
        await other.insert([second := unique_job(backend, covers=0)])
        await storage.deregister()
        assert [(job.id, job.state) for job in await live(other)] == [(first.id, "queued"), (second.id, "queued")]


class KeysByHand:
    async def test_a_job_that_starts_over_claims_its_key_again(self, backend: Backend, storage: Storage) -> None:
        job = await ended(backend, storage, DEAD)
        assert await is_free(backend, storage)
        await storage.retry(job, who="ann")
        assert not await is_free(backend, storage)
        [lease] = await claim(storage)
        await settle(storage, [(lease, DONE)])
        assert await is_free(backend, storage)

    @pytest.mark.parametrize("args_json", [None, numbered(9)])
    @pytest.mark.parametrize("outcome", [DEAD, Cancelled(BOOM)])
    async def test_it_does_not_start_over_while_another_holds_its_key(
        self, backend: Backend, storage: Storage, outcome: Outcome, args_json: str | None
    ) -> None:
        job = await ended(backend, storage, outcome)
        await storage.insert([holder := unique_job(backend)])
        before = await stored(storage, job)
        with pytest.raises(DuplicateJob, match=holder.id) as caught:
            await storage.retry(job, who="ann", args_json=args_json)
        assert isinstance(caught.value, JobConflict)
        assert (caught.value.job_id, caught.value.key) == (holder.id, "k")
        assert await stored(storage, job) == before
        assert await storage.audit_trail(job) == []
        await storage.cancel(holder.id, who="ann")
        assert (await storage.retry(job, who="ann", args_json=args_json)).state is JobState.QUEUED

    async def test_a_dead_job_that_holds_its_own_key_starts_over(self, backend: Backend, storage: Storage) -> None:
        job = await ended(backend, storage, DEAD, covers=RUNNING | DIED)
        assert not await is_free(backend, storage)
        assert (await storage.retry(job, who="ann")).unique_key == "k"
        await settle(storage, [(lease, DEAD) for lease in await claim(storage)])
        assert await storage.retry_matching(JobFilter(), who="ann", limit=10) == 1
        assert (await stored(storage, job)).unique_key == "k"

    async def test_a_scheduled_job_that_gave_up_its_key_runs_now_beside_its_holder(
        self, backend: Backend, storage: Storage
    ) -> None:
        await storage.insert([unique_job(backend, covers=0)])
        [lease] = await claim(storage)
        await storage.insert([unique_job(backend, covers=0)])
        await settle(storage, [(lease, Retried(BOOM, backend.clock.wall() + 60 * SECOND))])
        assert (await storage.retry(lease.id, who="ann")).state is JobState.QUEUED

    async def test_of_dead_jobs_of_one_key_the_oldest_is_retried_and_no_other_job_is_kept_from_it(
        self, backend: Backend, storage: Storage
    ) -> None:
        same = [await ended(backend, storage, DEAD) for _ in range(3)]
        taken = await ended(backend, storage, DEAD, key="taken")
        other = await ended(backend, storage, DEAD, key="other")
        [plain] = await backend.finished(storage, DEAD)
        await storage.insert([unique_job(backend, "taken")])
        assert await storage.retry_matching(JobFilter(), who="ann", limit=10) == 3
        states = [(await stored(storage, job)).state for job in (*same, taken, other, plain.id)]
        assert states == ["queued", "dead", "dead", "dead", "queued", "queued"]
        assert [len(await storage.audit_trail(job)) for job in same] == [1, 0, 0]

    async def test_many_dead_jobs_of_one_key_do_not_hide_the_others(self, backend: Backend, storage: Storage) -> None:
        for _ in range(120):
            await ended(backend, storage, DEAD)
        [plain] = await backend.finished(storage, DEAD)
        assert await storage.retry_matching(JobFilter(), who="ann", limit=1_000) == 2
        assert (await stored(storage, plain.id)).state is JobState.QUEUED


async def ended(backend: Backend, storage: Storage, outcome: Outcome, *, key: str = "k", covers: int = RUNNING) -> str:
    """Store a job with a key, settle it, and return its id."""
    await storage.insert([unique_job(backend, key, covers=covers)])
    leases: list[Lease] = await claim(storage)
    await settle(storage, [(lease, outcome) for lease in leases])
    return leases[-1].id
