"""What every backend promises about jobs that are added twice on purpose, and about those that a job adds itself."""

import asyncio
from dataclasses import replace

import pytest

from durableq.errors import IdempotencyConflict, NotStored
from durableq.models import JobExtras, JobState, Names, Released, Retried, Succeeded
from durableq.storage.protocol import Storage
from durableq.testing import ManualClock
from tests.storage.contract_unique import is_free, keyed_job, live, numbered, unique_job
from tests.storage.support import BOOM, DEAD, DONE, WORK, Backend, claim, settle, stored


class IdempotencyKeys:
    async def test_the_same_call_again_is_the_same_job_and_nothing_new(
        self, backend: Backend, storage: Storage, clock: ManualClock
    ) -> None:
        await storage.insert([first := keyed_job(backend, args_json=numbered(1))])
        before = await stored(storage, first.id)
        clock.advance(1)
        again = keyed_job(backend, args_json=numbered(1), priority=9)
        assert await storage.insert([again]) == {first.id: first.id}
        assert await stored(storage, first.id) == before
        assert [lease.id for lease in await claim(storage)] == [first.id]

    @pytest.mark.foreign_bug(34)
    @pytest.mark.parametrize("outcome", [DONE, DEAD, Retried(BOOM, None), Released()])
    async def test_it_is_the_same_job_whatever_has_become_of_it(
        self, backend: Backend, storage: Storage, clock: ManualClock, outcome: Succeeded | Retried
    ) -> None:
        await storage.insert([first := keyed_job(backend)])
        [lease] = await claim(storage)
        await settle(storage, [(lease, outcome)])
        before = await stored(storage, first.id)
        clock.advance(1)
        assert await storage.insert([keyed_job(backend)]) == {first.id: first.id}
        assert await stored(storage, first.id) == before

    async def test_once_it_is_pruned_the_key_is_new(
        self, backend: Backend, storage: Storage, clock: ManualClock
    ) -> None:
        await storage.insert([first := keyed_job(backend, args_json=numbered(1))])
        await settle(storage, [(lease, DONE) for lease in await claim(storage)])
        clock.advance(1)
        await storage.prune(JobState.SUCCEEDED, clock.now, limit=10)
        again = keyed_job(backend, args_json=numbered(2))
        assert not await storage.insert([again])
        assert (await stored(storage, first.id)).args_json == numbered(2)

    @pytest.mark.parametrize("seconds_later", [0, 1])
    async def test_other_arguments_under_the_same_key_are_refused(
        self, backend: Backend, storage: Storage, clock: ManualClock, seconds_later: float
    ) -> None:
        await storage.insert([first := keyed_job(backend, args_json=numbered(1))])
        clock.advance(seconds_later)  # two processes may ask in the same microsecond
        beside = backend.job()
        with pytest.raises(IdempotencyConflict, match=first.id) as caught:
            await storage.insert([beside, keyed_job(backend, args_json=numbered(2))])
        assert caught.value.job_id == first.id
        assert await storage.get(beside.id) is None
        assert [lease.args_json for lease in await claim(storage)] == [numbered(1)]

    async def test_one_addition_with_other_arguments_under_one_key_is_refused(
        self, backend: Backend, storage: Storage
    ) -> None:
        jobs = [keyed_job(backend, args_json=numbered(number)) for number in (1, 2, 1)]
        with pytest.raises(IdempotencyConflict):
            await storage.insert(jobs)
        assert await storage.get(jobs[0].id) is None

    async def test_many_at_once_are_one_job_and_each_other_call_is_refused(
        self, backend: Backend, storage: Storage, clock: ManualClock
    ) -> None:
        other = await backend.worker()
        calls = []
        for number in range(40):
            clock.advance(0.000_001)
            odd = number % 5 == 3
            calls.append([backend.job(), keyed_job(backend, args_json=numbered(int(odd)))])
        adding = [(storage, other)[n % 2].insert(jobs) for n, jobs in enumerate(calls)]
        answers = await asyncio.gather(*adding, return_exceptions=True)
        refused = [isinstance(answer, IdempotencyConflict) for answer in answers]
        assert refused == [number % 5 == 3 for number in range(40)]
        for [plain, keyed], is_refused in zip(calls, refused, strict=True):
            assert (await storage.get(plain.id) is None) is is_refused
            assert (await stored(storage, keyed.id)).args_json == numbered(0)
        assert len(await claim(storage)) == 1 + refused.count(False)

    async def test_keys_of_two_tasks_are_two_jobs(self, backend: Backend, storage: Storage) -> None:
        jobs = [keyed_job(backend), keyed_job(backend, task="tasks:other"), keyed_job(backend, "other")]
        assert not await storage.insert(jobs)
        assert len({job.id for job in jobs}) == 3
        assert len(await claim(storage, tasks=[WORK, "tasks:other"])) == 3


class FollowUps:
    async def test_they_are_stored_with_the_success(self, backend: Backend, storage: Storage) -> None:
        leases = await backend.claimed(storage, 2)
        plain, tagged = (
            backend.job(queue="next"),
            replace(backend.job(task="tasks:next"), extras=JobExtras(tags=("t",))),
        )
        outcomes = [(leases[0], Succeeded(None, (plain, tagged))), (leases[1], DONE)]
        assert await settle(storage, outcomes) == frozenset()
        assert await stored(storage, plain.id) == plain
        assert await stored(storage, tagged.id) == tagged
        assert storage.names() == Names(frozenset({"default", "next"}), frozenset({WORK, "tasks:next"}))

    async def test_the_exchange_that_stores_them_can_claim_them(self, backend: Backend, storage: Storage) -> None:
        [lease] = await backend.claimed(storage)
        request = backend.job()
        await settle(storage, [(lease, Succeeded(None, (request,)))])
        assert [one.id for one in await claim(storage)] == [request.id]

    async def test_a_lease_that_was_lost_adds_nothing(self, backend: Backend, storage: Storage) -> None:
        lost, held = await backend.claimed(storage, 2)
        await settle(storage, [(lost, Released())])
        unwanted, wanted = backend.job(task="tasks:next"), backend.job(task="tasks:next")
        unique = unique_job(backend, task="tasks:next")
        settled = [(lost, Succeeded(None, (unwanted, unique))), (held, Succeeded(None, (wanted,)))]
        assert await settle(storage, settled) == {lost.seq}
        assert [job.id for job in await live(storage, "tasks:next")] == [wanted.id]
        assert await is_free(backend, storage)
        assert (await stored(storage, held.id)).state is JobState.SUCCEEDED

    async def test_those_that_are_there_already_stand_and_the_success_does_too(
        self, backend: Backend, storage: Storage, clock: ManualClock
    ) -> None:
        await storage.insert([holder := unique_job(backend, task="tasks:next", delay=60)])
        await storage.insert([keyed := keyed_job(backend, task="tasks:next", args_json=numbered(1), delay=60)])
        leases = await backend.claimed(storage, 2)
        clock.advance(1)
        duplicate = unique_job(backend, task="tasks:next", on_conflict="raise")
        repeated = keyed_job(backend, task="tasks:next", args_json=numbered(2))
        plain = backend.job(task="tasks:next")
        settled = [(leases[0], Succeeded("1", (duplicate, plain))), (leases[1], Succeeded("2", (repeated,)))]
        assert await settle(storage, settled) == frozenset()
        assert [job.id for job in await live(storage, "tasks:next")] == [holder.id, keyed.id, plain.id]
        assert (await stored(storage, duplicate.id)).id == holder.id
        assert (await stored(storage, keyed.id)).args_json == numbered(1)
        assert [(await stored(storage, lease.id)).result for lease in leases] == [1, 2]

    async def test_one_may_take_over_the_key_of_the_job_that_adds_it(self, backend: Backend, storage: Storage) -> None:
        """A task that adds itself again, one at a time for ever."""
        await storage.insert([unique_job(backend)])
        for _ in range(3):
            [lease] = await claim(storage)
            following = unique_job(backend)
            await settle(storage, [(lease, Succeeded(None, (following,)))])
            assert [(job.id, job.unique_key) for job in await live(storage)] == [(following.id, "k")]

    async def test_two_of_one_key_by_two_jobs_are_one(self, backend: Backend, storage: Storage) -> None:
        leases = await backend.claimed(storage, 2)
        following = [unique_job(backend, task="tasks:next") for _ in leases]
        await settle(storage, [(lease, Succeeded(None, (job,))) for lease, job in zip(leases, following, strict=True)])
        assert len(await live(storage, "tasks:next")) == 1
        assert await stored(storage, following[0].id) == await stored(storage, following[1].id)

    async def test_one_that_cannot_be_stored_fails_the_exchange_and_settles_nothing(
        self, backend: Backend, storage: Storage
    ) -> None:
        [lease] = await backend.claimed(storage)
        with pytest.raises(NotStored):
            await settle(storage, [(lease, Succeeded(None, (backend.job(max_attempts=0),)))])
        assert (await stored(storage, lease.id)).state is JobState.RUNNING
