"""What every backend promises about looking at jobs, and about what people do to them by hand."""

import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from durableq.codec import checksum
from durableq.errors import DurableQError, JobConflict, JobNotFound
from durableq.ids import new_job_id
from durableq.models import Dead, Failure, Job, JobFilter, JobState, Retried
from durableq.storage.protocol import Storage
from durableq.testing import ManualClock
from tests.storage.support import BOOM, DEAD, DONE, WORK, Backend, claim, settle, stored

ByHandVerb = Callable[[Storage, str], Awaitable[Any]]


async def retry(storage: Storage, job_id: str) -> None:
    await storage.retry(job_id, who="ann")


async def edit(storage: Storage, job_id: str) -> None:
    await storage.retry(job_id, who="ann", args_json="{}")


async def cancel(storage: Storage, job_id: str) -> None:
    await storage.cancel(job_id, who="ann")


async def delete(storage: Storage, job_id: str) -> None:
    await storage.delete(job_id, who="ann")


async def in_state(state: str, backend: Backend, storage: Storage) -> Job[Any]:
    """Bring a job into a state, by the ways that lead there."""
    match state:
        case "queued" | "cancelled":
            [job] = await backend.added(storage)
            return job if state == "queued" else await storage.cancel(job.id, who="setup")
        case "scheduled":
            [job] = await backend.added(storage, delay=60)
            return job
        case "running":
            [lease] = await backend.claimed(storage)
            return await stored(storage, lease.id)
        case _:
            [job] = await backend.finished(storage, DONE if state == "succeeded" else DEAD)
            return job


class ByHand:
    async def test_a_dead_job_is_queued_as_new_with_its_history_kept(
        self, backend: Backend, storage: Storage, clock: ManualClock
    ) -> None:
        await backend.suspect(storage)
        [lease] = await claim(storage, suspects=[WORK])
        await settle(storage, [(lease, Dead(BOOM, crashed=True))])
        clock.advance(60)
        job = await storage.retry(lease.id, who="ann")
        assert job == await stored(storage, lease.id)
        assert (job.state, job.attempt, job.crashes) == (JobState.QUEUED, 0, 0)
        assert (job.run_at, job.finished_at) == (clock.now, None)
        [again] = await claim(storage)
        assert (again.attempt, again.lease_no) == (1, 3)
        await settle(storage, [(again, DEAD)])
        assert [(one.attempt, one.lease_no) for one in await storage.attempts(lease.id)] == [(1, 1), (2, 2), (1, 3)]

    async def test_a_cancelled_job_is_queued_as_new(self, backend: Backend, storage: Storage) -> None:
        job = await in_state("cancelled", backend, storage)
        assert (await storage.retry(job.id, who="ann")).state is JobState.QUEUED
        assert [lease.id for lease in await claim(storage)] == [job.id]

    async def test_a_scheduled_job_is_run_now(self, backend: Backend, storage: Storage, clock: ManualClock) -> None:
        [lease] = await backend.claimed(storage)
        await settle(storage, [(lease, Retried(BOOM, clock.wall() + 60_000_000))])
        job = await storage.retry(lease.id, who="ann")
        assert (job.state, job.run_at, job.attempt) == (JobState.QUEUED, clock.now, 1), "its attempts still count"
        assert [one.id for one in await claim(storage)] == [job.id]

    async def test_edited_arguments_are_what_runs(self, backend: Backend, storage: Storage) -> None:
        [job] = await backend.finished(storage, DEAD, args_json='{"to": "nobody"}')
        edited = '{"to": "somebody"}'
        assert (await storage.retry(job.id, who="ann", args_json=edited)).args_json == edited
        [lease] = await claim(storage)
        assert (lease.args_json, lease.checksum) == (edited, checksum(edited))

    @pytest.mark.parametrize(
        ("verb", "state", "names"),
        [
            (retry, "queued", ["dead", "cancelled", "scheduled"]),
            (retry, "running", ["dead", "cancelled", "scheduled"]),
            (retry, "succeeded", ["dead", "cancelled", "scheduled"]),
            (edit, "scheduled", ["dead", "cancelled"]),
            (edit, "running", ["dead", "cancelled"]),
            (cancel, "succeeded", ["queued", "scheduled"]),
            (cancel, "dead", ["queued", "scheduled"]),
            (cancel, "cancelled", ["queued", "scheduled"]),
            (delete, "queued", ["dead", "cancelled", "succeeded"]),
            (delete, "scheduled", ["dead", "cancelled", "succeeded"]),
            (delete, "running", ["dead", "cancelled", "succeeded"]),
        ],
    )
    async def test_what_the_state_does_not_allow_is_refused_naming_states(
        self, backend: Backend, storage: Storage, verb: ByHandVerb, state: str, names: list[str]
    ) -> None:
        job = await in_state(state, backend, storage)
        before, trail = await stored(storage, job.id), await storage.audit_trail(job.id)
        with pytest.raises(JobConflict) as caught:
            await verb(storage, job.id)
        assert (caught.value.job_id, caught.value.state) == (job.id, state)
        assert all(name in str(caught.value) for name in [job.id, state, *names])
        assert await stored(storage, job.id) == before
        assert await storage.audit_trail(job.id) == trail, "a refused write leaves no trace"

    @pytest.mark.parametrize("verb", [retry, edit, cancel, delete])
    async def test_a_job_that_is_not_stored_is_not_found(self, storage: Storage, verb: ByHandVerb) -> None:
        with pytest.raises(JobNotFound, match="nothing-here"):
            await verb(storage, "nothing-here")
        assert await storage.audit_trail("nothing-here") == []

    @pytest.mark.parametrize("state", ["queued", "scheduled"])
    async def test_a_cancelled_job_never_runs(
        self, backend: Backend, storage: Storage, clock: ManualClock, state: str
    ) -> None:
        job = await in_state(state, backend, storage)
        cancelled = await storage.cancel(job.id, who="ann")
        assert (cancelled.state, cancelled.finished_at) == (JobState.CANCELLED, clock.now)
        clock.advance(120)
        assert await claim(storage, suspects=[WORK]) == []

    @pytest.mark.parametrize("state", ["dead", "cancelled", "succeeded"])
    async def test_a_deleted_job_leaves_only_its_audit(self, backend: Backend, storage: Storage, state: str) -> None:
        job = await in_state(state, backend, storage)
        await storage.delete(job.id, who="ann")
        assert await storage.get(job.id) is None
        assert await storage.attempts(job.id) == []
        assert [entry.action for entry in await storage.audit_trail(job.id)][-1] == "delete"

    async def test_every_write_by_hand_is_audited(self, backend: Backend, storage: Storage, clock: ManualClock) -> None:
        [job] = await backend.finished(storage, DEAD, args_json='{"to": "nobody"}')
        await storage.retry(job.id, who="ann", args_json='{"to": "x"}')
        clock.advance(1)
        await storage.cancel(job.id, who="bob")
        await storage.delete(job.id, who="cy")
        trail = await storage.audit_trail(job.id)
        assert [(entry.who, entry.action, entry.job_id) for entry in trail] == [
            ("ann", "edit and retry", job.id),
            ("bob", "cancel", job.id),
            ("cy", "delete", job.id),
        ]
        assert trail[1].at == clock.now
        assert trail[0].detail["was"] == "dead"
        assert (trail[0].detail["args_before"], trail[0].detail["args_after"]) == ({"to": "nobody"}, {"to": "x"})

    async def test_only_matching_dead_jobs_are_retried_together(self, backend: Backend, storage: Storage) -> None:
        wanted = await backend.finished(storage, DEAD, count=3)
        [other_error] = await backend.finished(storage, Dead(Failure("KeyError", "x", "x")))
        [other_task] = await backend.finished(storage, DEAD, task="tasks:other")
        cancelled = await in_state("cancelled", backend, storage)
        where = JobFilter(task=WORK, error_type="ValueError")
        assert await storage.retry_matching(where, who="ann", limit=2) == 2
        assert [(await stored(storage, job.id)).state for job in wanted] == ["queued", "queued", "dead"]
        assert await storage.retry_matching(where, who="ann", limit=10) == 1
        assert await storage.retry_matching(where, who="ann", limit=10) == 0
        for job in (other_error, other_task):
            assert (await stored(storage, job.id)).state is JobState.DEAD
        assert (await stored(storage, cancelled.id)).state is JobState.CANCELLED
        for job in wanted:
            assert [entry.who for entry in await storage.audit_trail(job.id)] == ["ann"]


class Pruning:
    @pytest.mark.foreign_bug(71)
    async def test_only_what_finished_long_ago_in_that_state_is_pruned(
        self, backend: Backend, storage: Storage, clock: ManualClock
    ) -> None:
        old = {state: await in_state(state, backend, storage) for state in ("succeeded", "dead", "cancelled")}
        live = [await in_state(state, backend, storage) for state in ("scheduled", "running", "queued")]
        clock.advance(1)
        before = clock.now
        [recent] = await backend.finished(storage, DONE, queue="other")
        assert recent.finished_at == before
        assert await storage.prune(JobState.SUCCEEDED, before, limit=100) == 1
        assert await storage.get(old["succeeded"].id) is None
        for job in (old["dead"], old["cancelled"], recent, *live):
            assert await storage.get(job.id) is not None

    async def test_pruning_is_bounded(self, backend: Backend, storage: Storage, clock: ManualClock) -> None:
        await backend.finished(storage, DONE, count=7)
        clock.advance(1)
        pruned = [await storage.prune(JobState.SUCCEEDED, clock.now, limit=3) for _ in range(4)]
        assert pruned == [3, 3, 1, 0]

    async def test_the_history_goes_with_the_job(self, backend: Backend, storage: Storage, clock: ManualClock) -> None:
        [gone] = await backend.finished(storage, DEAD)
        clock.advance(1)
        [kept] = await backend.finished(storage, DEAD)
        await storage.prune(JobState.DEAD, clock.now, limit=100)
        assert await storage.get(gone.id) is None
        assert await storage.attempts(gone.id) == []
        assert len(await storage.attempts(kept.id)) == 1


class Looking:
    async def test_what_is_not_stored_is_none(self, storage: Storage) -> None:
        assert await storage.get("nothing-here") is None
        assert await storage.attempts("nothing-here") == []

    async def test_every_state_is_counted(self, backend: Backend, storage: Storage) -> None:
        assert set((await storage.counts()).values()) == {0}
        for number, state in enumerate(("succeeded", "dead", "cancelled", "running", "scheduled"), start=1):
            for _ in range(number):
                await in_state(state, backend, storage)
        await backend.suspect(storage)
        await in_state("queued", backend, storage)
        assert await storage.counts() == {
            JobState.BLOCKED: 0,
            JobState.SCHEDULED: 5,
            JobState.QUEUED: 2,
            JobState.RUNNING: 4,
            JobState.SUCCEEDED: 1,
            JobState.DEAD: 2,
            JobState.CANCELLED: 3,
        }

    async def test_jobs_are_found_by_each_of_their_traits(
        self, backend: Backend, storage: Storage, clock: ManualClock
    ) -> None:
        [dead] = await backend.finished(storage, DEAD, task="a", queue="q1")
        clock.advance(10)
        between = clock.now
        clock.advance(10)
        [done] = await backend.finished(storage, DONE, task="b", queue="q1")
        [queued] = await backend.added(storage, task="a", queue="q2")

        async def found(**where: Any) -> list[str]:
            return [job.id for job in (await storage.find(JobFilter(**where), cursor=None, limit=10)).jobs]

        assert await found() == [queued.id, done.id, dead.id], "newest first"
        assert await found(state=JobState.DEAD) == [dead.id]
        assert await found(task="a") == [queued.id, dead.id]
        assert await found(queue="q1") == [done.id, dead.id]
        assert await found(error_type="ValueError") == [dead.id]
        assert await found(created_after=between) == [queued.id, done.id]
        assert await found(created_before=between) == [dead.id]
        assert await found(finished_after=between) == [done.id]
        assert await found(finished_before=between) == [dead.id]
        assert await found(task="a", queue="q1", state=JobState.QUEUED) == []
        assert await found(task="' OR 1=1 --") == []

    async def test_pages_neither_skip_nor_repeat_while_jobs_are_added(self, backend: Backend, storage: Storage) -> None:
        jobs = await backend.added(storage, 7)
        seen, cursor = [], None
        while True:
            page = await storage.find(JobFilter(), cursor=cursor, limit=3)
            seen += [job.id for job in page.jobs]
            await backend.added(storage)
            if (cursor := page.next_cursor) is None:
                break
        assert seen == [job.id for job in reversed(jobs)]

    async def test_a_page_that_is_just_full_is_the_last(self, backend: Backend, storage: Storage) -> None:
        await backend.added(storage, 3)
        assert (await storage.find(JobFilter(), cursor=None, limit=3)).next_cursor is None

    async def test_runnable_is_what_runs_or_could_run_now(
        self, backend: Backend, storage: Storage, clock: ManualClock
    ) -> None:
        async def has_runnable() -> bool:
            return await storage.has_runnable(["default"], [WORK])

        assert not await has_runnable()
        await backend.added(storage, task="tasks:other")
        await backend.added(storage, queue="other")
        assert not await has_runnable(), "others' work"
        [lease] = await backend.claimed(storage)
        assert await has_runnable(), "running"
        await settle(storage, [(lease, Retried(BOOM, clock.wall() + 60_000_000))])
        assert not await has_runnable(), "scheduled ahead"
        clock.advance(60)
        assert await has_runnable(), "due"
        await storage.delete((await storage.cancel(lease.id, who="test")).id, who="test")
        assert not await has_runnable()
        await backend.suspect(storage)
        assert await has_runnable(), "a suspect"

    async def test_ids_with_odd_text_are_just_not_found(self, storage: Storage) -> None:
        for odd in ("", "\x00", "'; DROP TABLE durableq_jobs; --", new_job_id(0), json.dumps({"a": 1})):
            assert await storage.get(odd) is None
            with pytest.raises(DurableQError):
                await storage.cancel(odd, who="ann")
