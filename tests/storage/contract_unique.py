"""What every backend promises about keys: the unique ones, and those that make adding twice harmless."""

import asyncio
import json
from dataclasses import replace
from datetime import timedelta
from typing import Any, Final

import pytest

from durableq.codec import checksum
from durableq.engine.decisions import before_start
from durableq.errors import DuplicateJob, JobNotFound, NotStored
from durableq.ids import derived_job_id
from durableq.models import (
    COVERS,
    Cancelled,
    Job,
    JobExtras,
    JobFilter,
    JobState,
    OnConflict,
    Outcome,
    Retried,
    UniqueClaim,
)
from durableq.storage.protocol import Storage
from durableq.testing import ManualClock
from tests.storage.support import BOOM, DONE, WORK, Backend, claim, settle, stored

RUNNING: Final = COVERS[JobState.RUNNING]
SECOND: Final = 1_000_000


def unique_job(
    backend: Backend, key: str = "k", *, covers: int = RUNNING, on_conflict: OnConflict = "return", **fields: Any
) -> Job[Any]:
    """A job that shall be the only one of its key while it waits, and in the states it covers."""
    return replace(backend.job(**fields), extras=JobExtras(unique=UniqueClaim(key, covers, on_conflict)))


def keyed_job(backend: Backend, key: str = "k", **fields: Any) -> Job[Any]:
    """A job that is the same as any other of its idempotency key."""
    job_id = derived_job_id(fields.get("task", WORK), key)
    return replace(backend.job(**fields), id=job_id, extras=JobExtras(is_idempotent=True))


def numbered(number: int) -> str:
    return json.dumps({"n": number})


async def is_free(backend: Backend, storage: Storage, key: str = "k") -> bool:
    """Whether a job of this key would be stored. (It is not: it would refuse to share.)"""
    probe = unique_job(backend, key, on_conflict="raise", task="tasks:probe")
    try:
        await storage.insert([probe])
    except DuplicateJob:
        return False
    await storage.cancel(probe.id, who="probe")
    await storage.delete(probe.id, who="probe")
    return True


async def live(storage: Storage, task: str = WORK) -> list[Job[Any]]:
    """All jobs of a task that are not finished, the oldest first."""
    found = (await storage.find(JobFilter(task=task), cursor=None, limit=1_000)).jobs
    return [job for job in reversed(found) if not job.is_finished]


class UniqueKeys:
    async def test_a_second_job_of_a_key_is_not_stored_and_its_id_stands_for_the_first(
        self, backend: Backend, storage: Storage
    ) -> None:
        first, second, other = unique_job(backend), unique_job(backend), unique_job(backend, "other")
        assert not await storage.insert([first])
        assert await storage.insert([second, other]) == {second.id: first.id}
        assert await stored(storage, second.id) == await stored(storage, first.id) == first
        assert [lease.id for lease in await claim(storage)] == [first.id, other.id]

    async def test_the_key_is_seen_while_it_holds_and_not_after(self, backend: Backend, storage: Storage) -> None:
        await storage.insert([job := unique_job(backend)])
        assert (await stored(storage, job.id)).unique_key == "k"
        [lease] = await claim(storage)
        await settle(storage, [(lease, DONE)])
        assert (await stored(storage, job.id)).unique_key is None

    async def test_an_id_that_was_handed_out_serves_for_every_look(self, backend: Backend, storage: Storage) -> None:
        first, second = unique_job(backend), unique_job(backend)
        await storage.insert([first])
        await storage.insert([second])
        [lease] = await claim(storage)
        await settle(storage, [(lease, Retried(BOOM, run_at=None))])
        assert await storage.attempts(second.id) == await storage.attempts(first.id) != []
        await storage.cancel(second.id, who="ann")
        assert await storage.audit_trail(second.id) == await storage.audit_trail(first.id) != []
        assert await storage.finished_among([first.id, second.id]) == {first.id, second.id}

    async def test_an_id_that_was_handed_out_serves_for_every_write_by_hand(
        self, backend: Backend, storage: Storage
    ) -> None:
        first, second = unique_job(backend), unique_job(backend)
        await storage.insert([first])
        await storage.insert([second])
        cancelled = await storage.cancel(second.id, who="ann")
        assert (cancelled.id, cancelled.state) == (first.id, JobState.CANCELLED)
        edited = await storage.retry(second.id, who="ann", args_json=numbered(1))
        assert (edited.id, edited.state, edited.args_json) == (first.id, JobState.QUEUED, numbered(1))
        await storage.cancel(first.id, who="ann")
        await storage.delete(second.id, who="ann")
        for job in (first, second):
            assert await storage.get(job.id) is None
            with pytest.raises(JobNotFound, match=job.id):
                await storage.retry(job.id, who="ann")
        assert {entry.job_id for entry in await storage.audit_trail(first.id)} == {first.id}

    async def test_the_ids_that_were_handed_out_are_pruned_with_their_job(
        self, backend: Backend, storage: Storage, clock: ManualClock
    ) -> None:
        jobs = [unique_job(backend) for _ in range(3)]
        for job in jobs:
            await storage.insert([job])
        await settle(storage, [(lease, DONE) for lease in await claim(storage)])
        await storage.insert([kept := unique_job(backend)])
        await storage.insert([alias := unique_job(backend)])
        clock.advance(1)
        assert await storage.prune(JobState.SUCCEEDED, clock.now, limit=100) == 1
        assert [await storage.get(job.id) for job in jobs] == [None] * 3
        assert await stored(storage, alias.id) == await stored(storage, kept.id)

    async def test_an_id_of_a_job_that_waits_is_not_said_to_be_finished(
        self, backend: Backend, storage: Storage
    ) -> None:
        first, second = unique_job(backend), unique_job(backend)
        await storage.insert([first])
        await storage.insert([second])
        assert await storage.finished_among([first.id, second.id, "gone"]) == {"gone"}

    async def test_adding_a_unique_job_again_changes_nothing(self, backend: Backend, storage: Storage) -> None:
        job = unique_job(backend, on_conflict="raise")
        await storage.insert([job, job])
        assert not await storage.insert([job])
        assert [lease.id for lease in await claim(storage)] == [job.id]

    async def test_adding_it_again_when_its_key_is_anothers_changes_nothing_either(
        self, backend: Backend, storage: Storage
    ) -> None:
        """Whoever repeats an addition because he does not know its outcome is not to be told of a conflict."""
        await storage.insert([first := unique_job(backend, on_conflict="raise")])
        await settle(storage, [(lease, DONE) for lease in await claim(storage)])
        await storage.insert([second := unique_job(backend, args_json=numbered(2))])
        for job in (first, replace(first, extras=unique_job(backend, on_conflict="replace").extras)):
            assert not await storage.insert([job])
        assert (await stored(storage, first.id)).state is JobState.SUCCEEDED
        assert await stored(storage, second.id) == second

    async def test_equal_keys_in_one_addition_are_one_job(self, backend: Backend, storage: Storage) -> None:
        jobs = [unique_job(backend, key) for key in ("a", "b", "a", "b", "a")]
        assert await storage.insert(jobs) == {
            jobs[2].id: jobs[0].id,
            jobs[3].id: jobs[1].id,
            jobs[4].id: jobs[0].id,
        }
        assert [lease.id for lease in await claim(storage)] == [jobs[0].id, jobs[1].id]

    async def test_each_addition_of_a_group_is_told_only_of_its_own_conflicts(
        self, backend: Backend, storage: Storage
    ) -> None:
        jobs = [unique_job(backend, key) for key in ("a", "b", "a", "b")]
        plain = backend.job()
        answers = await asyncio.gather(*(storage.insert([job]) for job in jobs), storage.insert([plain]))
        assert [answer or {} for answer in answers] == [
            {},
            {},
            {jobs[2].id: jobs[0].id},
            {jobs[3].id: jobs[1].id},
            {},
        ]

    async def test_one_of_many_that_come_at_once_by_two_ways_is_stored(
        self, backend: Backend, storage: Storage
    ) -> None:
        other = await backend.worker()
        jobs = [unique_job(backend) for _ in range(60)]
        answers = await asyncio.gather(*((storage, other)[n % 2].insert([job]) for n, job in enumerate(jobs)))
        [lease] = await claim(storage)
        told = [(answer or {}).get(job.id, job.id) for job, answer in zip(jobs, answers, strict=True)]
        assert told == [lease.id] * 60
        for job in jobs:
            assert (await stored(other, job.id)).id == lease.id

    async def test_plain_jobs_are_stored_beside_those_with_keys(self, backend: Backend, storage: Storage) -> None:
        first, plain, second, bad = unique_job(backend), backend.job(), unique_job(backend), backend.job(max_attempts=0)
        tagged = replace(backend.job(), extras=JobExtras(tags=("t",)))
        adding = [storage.insert(jobs) for jobs in ([plain, first, tagged], [bad, unique_job(backend)], [second])]
        answers = await asyncio.gather(*adding, return_exceptions=True)
        assert isinstance(answers[1], NotStored)
        assert answers[2] == {second.id: first.id}
        assert {lease.id for lease in await claim(storage)} == {plain.id, first.id, tagged.id}

    async def test_a_thread_and_a_script_are_told_too(self, backend: Backend, storage: Storage) -> None:
        first, second, refused = unique_job(backend), unique_job(backend), unique_job(backend, on_conflict="raise")
        assert not await asyncio.to_thread(storage.insert_and_wait, [first])
        assert await asyncio.to_thread(storage.insert_and_wait, [second]) == {second.id: first.id}
        with pytest.raises(DuplicateJob):
            await asyncio.to_thread(backend.new_storage().insert_and_wait, [backend.job(), refused])
        assert [lease.id for lease in await claim(storage)] == [first.id]


class Refusing:
    async def test_a_duplicate_is_refused_with_the_job_that_is_there(self, backend: Backend, storage: Storage) -> None:
        await storage.insert([first := unique_job(backend)])
        with pytest.raises(DuplicateJob, match="'k'") as caught:
            await storage.insert([unique_job(backend, on_conflict="raise")])
        assert (caught.value.job_id, caught.value.key) == (first.id, "k")

    async def test_nothing_of_a_refused_addition_is_stored_and_all_of_the_others_are(
        self, backend: Backend, storage: Storage
    ) -> None:
        good = [[backend.job(), unique_job(backend, f"good-{number}")] for number in range(6)]
        refused = [
            [backend.job(), unique_job(backend, f"x{n}"), unique_job(backend, on_conflict="raise")] for n in (1, 2)
        ]
        await storage.insert([holder := unique_job(backend)])
        adding = [storage.insert(jobs) for jobs in [*good[:3], *refused, *good[3:]]]
        answers = await asyncio.gather(*adding, return_exceptions=True)
        assert [isinstance(answer, DuplicateJob) for answer in answers] == [False] * 3 + [True] * 2 + [False] * 3
        assert [await storage.get(job.id) for jobs in refused for job in jobs] == [None] * 6
        taken = {lease.id for lease in await claim(storage)}
        assert taken == {holder.id, *(job.id for jobs in good for job in jobs)}

    async def test_two_of_a_key_in_one_addition_are_refused_together(self, backend: Backend, storage: Storage) -> None:
        jobs = [unique_job(backend, on_conflict="raise") for _ in range(2)]
        with pytest.raises(DuplicateJob):
            await storage.insert(jobs)
        assert [await storage.get(job.id) for job in jobs] == [None, None]
        assert await is_free(backend, storage)

    async def test_one_of_many_at_once_is_stored_and_the_rest_refused(self, backend: Backend, storage: Storage) -> None:
        jobs = [unique_job(backend, on_conflict="raise") for _ in range(20)]
        answers = await asyncio.gather(*(storage.insert([job]) for job in jobs), return_exceptions=True)
        [lease] = await claim(storage)
        for job, answer in zip(jobs, answers, strict=True):
            if job.id == lease.id:
                assert not answer
            else:
                assert isinstance(answer, DuplicateJob)
                assert answer.job_id == lease.id
                assert await storage.get(job.id) is None


class Replacing:
    async def test_what_waits_takes_over_what_the_newer_job_asks_for(
        self, backend: Backend, storage: Storage, clock: ManualClock
    ) -> None:
        await storage.insert([first := unique_job(backend, args_json=numbered(1), delay=60)])
        clock.advance(5)
        newer = unique_job(backend, on_conflict="replace", args_json=numbered(2), priority=7, delay=30, max_attempts=2)
        asked = replace(newer.extras, expires_at=1, deadline_at=2, result_ttl=3, tags=("t",), headers={"h": "x"})
        newer = replace(newer, extras=replace(asked, timeout=4, retry="gently"))
        assert await storage.insert([newer]) == {newer.id: first.id}
        expected = replace(newer, id=first.id, extras=replace(newer.extras, unique=first.extras.unique))
        assert await stored(storage, first.id) == await stored(storage, newer.id) == expected

    async def test_the_newer_arguments_are_what_runs(self, backend: Backend, storage: Storage) -> None:
        await storage.insert([first := unique_job(backend, args_json=numbered(1))])
        await storage.insert([unique_job(backend, on_conflict="replace", args_json=numbered(2))])
        [lease] = await claim(storage)
        assert (lease.id, lease.args_json, lease.checksum) == (first.id, numbered(2), checksum(numbered(2)))

    @pytest.mark.parametrize(("before", "after"), [(0, 60), (60, 0), (60, 120)])
    async def test_it_waits_for_the_newer_time(
        self, backend: Backend, storage: Storage, clock: ManualClock, before: float, after: float
    ) -> None:
        await storage.insert([first := unique_job(backend, delay=before)])
        await storage.insert([unique_job(backend, on_conflict="replace", delay=after)])
        job = await stored(storage, first.id)
        assert job.state is (JobState.SCHEDULED if after else JobState.QUEUED)
        assert job.run_at == clock.now + timedelta(seconds=after)
        assert len(await claim(storage)) == (0 if after else 1)

    async def test_of_several_at_once_the_last_one_counts(self, backend: Backend, storage: Storage) -> None:
        await storage.insert([first := unique_job(backend)])
        newer = [unique_job(backend, on_conflict="replace", args_json=numbered(number)) for number in range(5)]
        await storage.insert(newer)
        assert (await stored(storage, first.id)).args_json == numbered(4)
        await asyncio.gather(*(storage.insert([job]) for job in [*newer[3:], *newer[:3]]))
        assert (await stored(storage, first.id)).args_json == numbered(2)
        assert len(await live(storage)) == 1

    @pytest.mark.parametrize("outcome", [None, DONE])
    async def test_what_runs_or_is_finished_is_not_touched(
        self, backend: Backend, storage: Storage, outcome: Outcome | None
    ) -> None:
        covers = RUNNING | COVERS[JobState.SUCCEEDED]
        await storage.insert([first := unique_job(backend, covers=covers, args_json=numbered(1))])
        leases = await claim(storage)
        await settle(storage, [(lease, outcome) for lease in leases if outcome is not None])
        before = await stored(storage, first.id)
        newer = unique_job(backend, on_conflict="replace", args_json=numbered(2))
        assert await storage.insert([newer]) == {newer.id: first.id}
        assert await stored(storage, newer.id) == before

    async def test_a_job_that_waits_for_its_retry_keeps_its_attempts(self, backend: Backend, storage: Storage) -> None:
        await storage.insert([first := unique_job(backend)])
        [lease] = await claim(storage)
        await settle(storage, [(lease, Retried(BOOM, backend.clock.wall() + 60 * SECOND))])
        await storage.insert([unique_job(backend, on_conflict="replace", args_json=numbered(2))])
        [again] = await claim(storage)
        assert (again.id, again.attempt, again.args_json) == (first.id, 2, numbered(2))
        assert len(await storage.attempts(first.id)) == 1

    async def test_a_job_that_was_tried_before_may_expire_once_it_is_replaced(
        self, backend: Backend, storage: Storage, clock: ManualClock
    ) -> None:
        """What replaces it is a new request, that wants to be started in time."""
        await storage.insert([first := unique_job(backend)])
        [lease] = await claim(storage)
        await settle(storage, [(lease, Retried(BOOM, clock.wall() + 600 * SECOND))])
        newer = unique_job(backend, on_conflict="replace")
        newer = replace(newer, extras=replace(newer.extras, expires_at=clock.wall() + 60 * SECOND))
        await storage.insert([newer])
        assert (await stored(storage, first.id)).expires_at == clock.now + timedelta(seconds=60)
        clock.advance(60)
        [(late, outcome)] = await storage.give_up_overdue(before_start, 10)
        assert (late.id, type(outcome)) == (first.id, Cancelled)
