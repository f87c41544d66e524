"""What every backend promises about what jobs carry along, and what they say while they run."""

import json
from collections.abc import Sequence
from dataclasses import replace

import pytest

from durableq.models import (
    ClaimRequest,
    JobExtras,
    JobFilter,
    JobState,
    Lane,
    Lease,
    LeaseKey,
    LogLine,
    Outcome,
    Progress,
    Released,
    Retried,
    Snoozed,
    Succeeded,
)
from durableq.storage.protocol import Notes, Storage
from durableq.testing import ManualClock
from tests.storage.contract_unique import unique_job
from tests.storage.support import BOOM, DEAD, DONE, WORK, Backend, claim, settle, stored

OUTCOMES: Sequence[Outcome] = (DONE, DEAD, Retried(BOOM, None), Released(), Snoozed(0))


async def say(
    storage: Storage,
    lease: Lease | LeaseKey,
    *,
    done: float | None = None,
    lines: Sequence[str] = (),
    first: int = 1,
    at: int = 0,
    settled: Sequence[tuple[Lease, Outcome]] = (),
) -> frozenset[int]:
    """Write what one job said, as the worker does; return what was lost."""
    key = lease.key if isinstance(lease, Lease) else lease
    progress = [] if done is None else [(key, Progress(done))]
    logs = [(key, first + number, at, line) for number, line in enumerate(lines)]
    return (await storage.exchange(settled, None, Notes(progress, logs))).lost


async def said(storage: Storage, job_id: str) -> list[str]:
    return [line.message for line in await storage.logs(job_id)]


class Carrying:
    async def test_what_a_job_is_asked_for_is_stored_as_it_was_given(self, backend: Backend, storage: Storage) -> None:
        extras = JobExtras(
            expires_at=1,
            deadline_at=2,
            timeout=3,
            result_ttl=4,
            unique=unique_job(backend, "Zoë \U0001f600").extras.unique,
            tags=("a", "Zoë's", '"'),
            headers={"traceparent": "00-x", "Zoë": "\U0001f600"},
            retry="gently",
        )
        given = replace(backend.job(delay=60), extras=extras)
        await storage.insert([backend.job(), given])
        assert await stored(storage, given.id) == given

    async def test_a_claim_hands_over_what_the_worker_needs(self, backend: Backend, storage: Storage) -> None:
        extras = JobExtras(
            expires_at=2**52, deadline_at=2**53, timeout=3, tags=("a", "b"), headers={"h": "x"}, retry="gently"
        )
        await storage.insert([backend.job(), replace(backend.job(), extras=extras)])
        plain, full = await claim(storage)
        assert (plain.expires_at, plain.deadline_at, plain.settings) == (None, None, None)
        assert (full.expires_at, full.deadline_at, full.priority) == (2**52, 2**53, 0)
        settings = json.loads(full.settings or "null")
        assert (settings["timeout"], settings["headers"], settings["retry"]) == (3, {"h": "x"}, "gently")
        assert settings["tags"] == ["a", "b"]

    async def test_a_suspect_is_handed_over_with_all_of_it_too(self, backend: Backend, storage: Storage) -> None:
        extras = JobExtras(deadline_at=2**53, timeout=3, tags=("a",))
        await storage.insert([replace(backend.job(), extras=extras)])
        [first] = await claim(storage)
        await settle(storage, [(first, Retried(BOOM, None, crashed=True))])
        [again] = await claim(storage, suspects=[WORK])
        assert (again.deadline_at, again.settings) == (first.deadline_at, first.settings)
        assert first.settings is not None

    async def test_jobs_are_found_by_their_tags(self, backend: Backend, storage: Storage) -> None:
        jobs = [replace(backend.job(), extras=JobExtras(tags=tags)) for tags in (("a",), ("a", "b"), ("ab",), ())]
        await storage.insert(jobs)

        async def found(tag: str) -> list[str]:
            return [job.id for job in (await storage.find(JobFilter(tag=tag), cursor=None, limit=9)).jobs]

        assert await found("a") == [jobs[1].id, jobs[0].id]
        assert await found("b") == [jobs[1].id]
        assert await found("") == await found("' OR 1=1 --") == []

    async def test_two_lanes_and_a_suspect_hand_over_each_their_own(self, backend: Backend, storage: Storage) -> None:
        tagged = [replace(backend.job(task=task), extras=JobExtras(tags=(task,))) for task in ("a", "b", "c")]
        await storage.insert(tagged)
        lanes = (Lane("loop", ("a",), 5), Lane("thread", ("b", "c"), 5))
        leases = (await storage.exchange([], ClaimRequest(("default",), lanes))).leases
        handed_over = {lease.id: json.loads(lease.settings or "null")["tags"] for lease in leases}
        assert handed_over == {job.id: [job.task] for job in tagged}


class Saying:
    async def test_progress_is_seen_while_the_job_runs(self, backend: Backend, storage: Storage) -> None:
        leases = await backend.claimed(storage, 2)
        notes = [(leases[0].key, Progress(1, 3, "Zoë's first")), (leases[1].key, Progress(0.5))]
        await storage.exchange([], None, Notes(notes))
        seen = [(await stored(storage, lease.id)).progress for lease in leases]
        assert seen == [Progress(1, 3, "Zoë's first"), Progress(0.5, None, None)]
        await say(storage, leases[0], done=2)
        assert (await stored(storage, leases[0].id)).progress == Progress(2)

    async def test_log_lines_are_kept_in_order(self, backend: Backend, storage: Storage, clock: ManualClock) -> None:
        one, two = await backend.claimed(storage, 2)
        logs = [(one.key, 1, 5, "first"), (two.key, 1, 6, "other"), (one.key, 2, 7, "Zoë \U0001f600\n")]
        await storage.exchange([], None, Notes((), logs))
        await say(storage, one, lines=["third"], first=3, at=clock.wall())
        lines = await storage.logs(one.id)
        assert [(line.lease_no, line.message) for line in lines] == [
            (1, "first"),
            (1, "Zoë \U0001f600\n"),
            (1, "third"),
        ]
        assert isinstance(lines[0], LogLine)
        assert lines[2].at == clock.now
        assert await said(storage, two.id) == ["other"]

    async def test_the_lines_of_all_attempts_are_kept_apart(self, backend: Backend, storage: Storage) -> None:
        [lease] = await backend.claimed(storage)
        await say(storage, lease, lines=["a", "b"], settled=[(lease, Retried(BOOM, None))])
        [again] = await claim(storage)
        await say(storage, again, lines=["c"])
        assert [(line.lease_no, line.message) for line in await storage.logs(lease.id)] == [
            (1, "a"),
            (1, "b"),
            (2, "c"),
        ]

    async def test_lines_that_are_written_again_are_kept_once(self, backend: Backend, storage: Storage) -> None:
        [lease] = await backend.claimed(storage)
        await say(storage, lease, lines=["a", "b"])
        await say(storage, lease, lines=["a", "b", "c"])
        assert await said(storage, lease.id) == ["a", "b", "c"]

    @pytest.mark.parametrize("outcome", OUTCOMES)
    async def test_last_words_that_come_with_the_outcome_are_kept(
        self, backend: Backend, storage: Storage, outcome: Outcome
    ) -> None:
        [lease] = await backend.claimed(storage)
        assert await say(storage, lease, done=9, lines=["bye"], settled=[(lease, outcome)]) == frozenset()
        job = await stored(storage, lease.id)
        assert job.progress == Progress(9)
        assert await said(storage, lease.id) == ["bye"]

    @pytest.mark.parametrize("outcome", OUTCOMES)
    async def test_a_lease_that_was_lost_says_nothing_more(
        self, backend: Backend, storage: Storage, outcome: Outcome
    ) -> None:
        [lease] = await backend.claimed(storage)
        await say(storage, lease, done=1, lines=["a"], settled=[(lease, outcome)])
        assert await say(storage, lease, done=2, lines=["b"], first=2) == frozenset()
        current = await claim(storage)
        assert await say(storage, lease, done=3, lines=["c"], first=3, settled=[(lease, DONE)]) == {lease.seq}
        assert await said(storage, lease.id) == ["a"]
        assert (await stored(storage, lease.id)).progress == Progress(1)
        for again in current:
            await say(storage, again, done=4, lines=["d"])
            assert await said(storage, lease.id) == ["a", "d"]

    async def test_words_of_many_leases_of_which_some_are_lost(self, backend: Backend, storage: Storage) -> None:
        leases = await backend.claimed(storage, 6)
        lost = leases[::2]
        await settle(storage, [(lease, Released()) for lease in lost])
        notes = Notes([(lease.key, Progress(1)) for lease in leases], [(lease.key, 1, 0, "x") for lease in leases])
        settled: list[tuple[Lease, Outcome]] = [(lease, Succeeded(None)) for lease in leases]
        assert (await storage.exchange(settled, None, notes)).lost == {lease.seq for lease in lost}
        for lease in leases:
            assert await said(storage, lease.id) == ([] if lease in lost else ["x"])
            assert ((await stored(storage, lease.id)).progress is None) is (lease in lost)

    async def test_nothing_at_all_is_no_note(self) -> None:
        assert not Notes()
        assert Notes(progress=[((1, 1), Progress(0))])
        assert Notes(logs=[((1, 1), 1, 0, "")])

    async def test_a_job_that_starts_over_forgets_its_progress_and_keeps_its_log(
        self, backend: Backend, storage: Storage
    ) -> None:
        [lease] = await backend.claimed(storage)
        await say(storage, lease, done=9, lines=["a"], settled=[(lease, DEAD)])
        assert (await storage.retry(lease.id, who="ann")).progress is None
        assert await said(storage, lease.id) == ["a"]

    async def test_the_log_is_deleted_with_its_job(self, backend: Backend, storage: Storage) -> None:
        gone, kept = await backend.claimed(storage, 2)
        for lease in (gone, kept):
            await say(storage, lease, lines=["a"], settled=[(lease, DONE)])
        await storage.delete(gone.id, who="ann")
        assert await said(storage, gone.id) == []
        assert await said(storage, kept.id) == ["a"]

    async def test_the_log_is_pruned_with_its_job(self, backend: Backend, storage: Storage, clock: ManualClock) -> None:
        gone, kept = await backend.claimed(storage, 2)
        await say(storage, gone, lines=["a"], settled=[(gone, DONE)])
        clock.advance(1)
        await say(storage, kept, lines=["a"], settled=[(kept, DONE)])
        assert await storage.prune(JobState.SUCCEEDED, clock.now, limit=10) == 1
        assert await said(storage, gone.id) == []
        assert await said(storage, kept.id) == ["a"]

    async def test_the_log_is_read_by_an_id_that_was_handed_out(self, backend: Backend, storage: Storage) -> None:
        await storage.insert([unique_job(backend)])
        await storage.insert([alias := unique_job(backend)])
        [lease] = await claim(storage)
        await say(storage, lease, done=1, lines=["a"])
        assert await said(storage, alias.id) == ["a"]
        assert await said(storage, "nothing-here") == []


class StateOfLease:
    @pytest.mark.parametrize(
        ("outcome", "state"),
        [
            (DONE, JobState.SUCCEEDED),
            (DEAD, JobState.DEAD),
            (Retried(BOOM, None), JobState.QUEUED),
            (Snoozed(2**52), JobState.SCHEDULED),
        ],
    )
    async def test_it_tells_what_has_become_of_a_claim(
        self, backend: Backend, storage: Storage, outcome: Outcome, state: JobState
    ) -> None:
        [lease] = await backend.claimed(storage)
        assert await storage.state_of_lease(lease) is JobState.RUNNING
        await settle(storage, [(lease, outcome)])
        assert await storage.state_of_lease(lease) is state

    async def test_a_claim_that_is_not_the_latest_is_none(self, backend: Backend, storage: Storage) -> None:
        [lease] = await backend.claimed(storage)
        await settle(storage, [(lease, Released())])
        [current] = await claim(storage)
        assert await storage.state_of_lease(lease) is None
        assert await storage.state_of_lease(current) is JobState.RUNNING

    async def test_a_job_that_is_gone_is_none(self, backend: Backend, storage: Storage) -> None:
        [lease] = await backend.claimed(storage)
        await settle(storage, [(lease, DONE)])
        await storage.delete(lease.id, who="ann")
        assert await storage.state_of_lease(lease) is None
