"""What every backend promises about time: what comes too late, what is put off, and what is kept for a while only."""

from dataclasses import replace
from datetime import timedelta
from typing import Any, Final

import pytest

from durableq.clock import to_micros
from durableq.engine.decisions import DEADLINE_PASSED, EXPIRED, before_start
from durableq.models import (
    Cancelled,
    Dead,
    Job,
    JobError,
    JobExtras,
    JobState,
    Outcome,
    Released,
    Retried,
    Snoozed,
    Succeeded,
)
from durableq.storage.protocol import Storage
from durableq.testing import ManualClock
from tests.storage.support import BOOM, DEAD, DONE, WORK, Backend, claim, settle, stored
from tests.support import eventually

SECOND: Final = 1_000_000


def limited_job(
    backend: Backend, *, expires: float | None = None, deadline: float | None = None, **fields: Any
) -> Job[Any]:
    """A job with limits in seconds from now: to its start, to its end."""
    now = backend.clock.wall()
    extras = JobExtras(
        expires_at=None if expires is None else now + to_micros(expires),
        deadline_at=None if deadline is None else now + to_micros(deadline),
    )
    return replace(backend.job(**fields), extras=extras)


async def gives_up(storage: Storage, limit: int = 100) -> list[str]:
    """Let the storage end what is overdue; return the ids."""
    return [lease.id for lease, _ in await storage.give_up_overdue(before_start, limit)]


class Overdue:
    @pytest.mark.parametrize("delay", [0, 30])
    async def test_a_job_that_nobody_started_in_time_is_cancelled(
        self, backend: Backend, storage: Storage, clock: ManualClock, delay: float
    ) -> None:
        await storage.insert([job := limited_job(backend, expires=60, delay=delay)])
        clock.advance(59.999)
        assert await gives_up(storage) == []
        clock.advance(0.001)
        [(lease, outcome)] = await storage.give_up_overdue(before_start, 100)
        assert (lease.id, type(outcome)) == (job.id, Cancelled)
        ended = await stored(storage, job.id)
        assert (ended.state, ended.finished_at) == (JobState.CANCELLED, clock.now)
        assert ended.error is not None
        assert ended.error.type == EXPIRED
        assert await storage.attempts(job.id) == [], "it was never tried"
        assert await claim(storage) == []
        assert await gives_up(storage) == []

    async def test_a_job_that_waits_past_its_deadline_is_dead(
        self, backend: Backend, storage: Storage, clock: ManualClock
    ) -> None:
        jobs = [limited_job(backend, deadline=60, delay=delay) for delay in (0, 30)]
        jobs += [limited_job(backend, expires=30, deadline=60)]
        await storage.insert(jobs)
        clock.advance(60)
        assert sorted(await gives_up(storage)) == sorted(job.id for job in jobs)
        for job in jobs:
            ended = await stored(storage, job.id)
            assert (ended.state, ended.finished_at) == (JobState.DEAD, clock.now)
            assert ended.error is not None
            assert ended.error.type == DEADLINE_PASSED

    async def test_only_what_is_overdue_and_waits_is_given_up(
        self, backend: Backend, storage: Storage, clock: ManualClock
    ) -> None:
        await storage.insert([limited_job(backend, expires=60, deadline=60) for _ in range(2)])
        running, done = await claim(storage)
        await settle(storage, [(done, DONE)])
        await storage.insert([late := limited_job(backend, expires=60)])
        await storage.insert([limited_job(backend, expires=120), limited_job(backend, deadline=120), backend.job()])
        clock.advance(60)
        assert await gives_up(storage) == [late.id]
        assert (await stored(storage, running.id)).state is JobState.RUNNING
        assert (await stored(storage, done.id)).state is JobState.SUCCEEDED
        assert (await storage.counts())[JobState.QUEUED] == 3

    @pytest.mark.parametrize("outcome", [Retried(BOOM, None), Retried(BOOM, 2**52), Released(), Snoozed(2**52)])
    async def test_once_started_a_job_does_not_expire(
        self, backend: Backend, storage: Storage, clock: ManualClock, outcome: Outcome
    ) -> None:
        await storage.insert([job := limited_job(backend, expires=60)])
        [lease] = await claim(storage)
        assert lease.expires_at == job.extras.expires_at
        await settle(storage, [(lease, outcome)])
        clock.advance(120)
        assert await gives_up(storage) == []
        for again in await claim(storage):
            assert (again.id, again.expires_at) == (job.id, None)

    @pytest.mark.parametrize("outcome", [Retried(BOOM, None), Retried(BOOM, 2**52), Released(), Snoozed(2**52)])
    async def test_a_deadline_counts_through_all_attempts(
        self, backend: Backend, storage: Storage, clock: ManualClock, outcome: Outcome
    ) -> None:
        await storage.insert([job := limited_job(backend, deadline=60)])
        [lease] = await claim(storage)
        clock.advance(60)
        assert await gives_up(storage) == [], "what runs is its worker's to stop"
        await settle(storage, [(lease, outcome)])
        assert await gives_up(storage) == [job.id]
        assert (await stored(storage, job.id)).state is JobState.DEAD

    async def test_every_claim_hands_over_the_deadline(self, backend: Backend, storage: Storage) -> None:
        await storage.insert([job := limited_job(backend, deadline=60)])
        for _ in range(2):
            [lease] = await claim(storage)
            assert lease.deadline_at == job.extras.deadline_at
            await settle(storage, [(lease, Retried(BOOM, None))])
        await settle(storage, [(lease, Retried(BOOM, None, crashed=True)) for lease in await claim(storage)])
        [suspect] = await claim(storage, suspects=[WORK])
        assert suspect.deadline_at == job.extras.deadline_at

    @pytest.mark.parametrize("end", [DEAD, Cancelled(BOOM), None])
    async def test_a_job_that_starts_over_gets_fresh_limits(
        self, backend: Backend, storage: Storage, clock: ManualClock, end: Outcome | None
    ) -> None:
        await storage.insert([job := limited_job(backend, expires=60, deadline=90)])
        if end is None:
            clock.advance(90)
            assert await gives_up(storage) == [job.id]
        else:
            await settle(storage, [(lease, end) for lease in await claim(storage)])
        clock.advance(1_000)
        again = await storage.retry(job.id, who="ann")
        assert again.expires_at == clock.now + timedelta(seconds=60)
        assert again.deadline_at == clock.now + timedelta(seconds=90)
        clock.advance(59)
        assert await gives_up(storage) == []
        clock.advance(1)
        assert await gives_up(storage) == [job.id], "it was not started since, so it expires again"

    async def test_giving_up_is_bounded(self, backend: Backend, storage: Storage, clock: ManualClock) -> None:
        await storage.insert([limited_job(backend, expires=n % 3 + 1, deadline=n % 2 + 1) for n in range(7)])
        clock.advance(60)
        assert [len(await gives_up(storage, limit=3)) for _ in range(4)] == [3, 3, 1, 0]

    async def test_what_runs_past_its_deadline_does_not_hide_what_waits(
        self, backend: Backend, storage: Storage, clock: ManualClock
    ) -> None:
        await storage.insert([limited_job(backend, deadline=10) for _ in range(5)])
        assert len(await claim(storage)) == 5
        await storage.insert([late := limited_job(backend, deadline=20)])
        clock.advance(60)
        assert await gives_up(storage, limit=1) == [late.id]

    async def test_what_the_caller_spares_goes_on(self, backend: Backend, storage: Storage, clock: ManualClock) -> None:
        await storage.insert([spared := limited_job(backend, expires=1), given_up := limited_job(backend, expires=1)])
        clock.advance(1)

        def spare_the_first(lease: Any, now: int) -> Dead | None:
            assert now == clock.wall()
            return None if lease.id == spared.id else Dead(BOOM)

        assert len(await storage.give_up_overdue(spare_the_first, 100)) == 1
        assert (await stored(storage, given_up.id)).error == JobError("ValueError", "boom")
        assert (await stored(storage, spared.id)).state is JobState.QUEUED


class Snoozing:
    async def test_a_snoozed_job_gets_its_attempt_back_and_waits(
        self, backend: Backend, storage: Storage, clock: ManualClock
    ) -> None:
        [lease] = await backend.claimed(storage)
        await settle(storage, [(lease, Retried(BOOM, run_at=None))])
        [second] = await claim(storage)
        await settle(storage, [(second, Snoozed(clock.wall() + 60 * SECOND))])
        job = await stored(storage, lease.id)
        assert (job.state, job.attempt, job.run_at) == (JobState.SCHEDULED, 1, clock.now + timedelta(seconds=60))
        assert job.error == JobError("ValueError", "boom"), "what is known of the last attempt stays"
        assert len(await storage.attempts(job.id)) == 1, "a snooze is no failure"
        assert await claim(storage) == []
        clock.advance(60)

        async def is_taken() -> bool:
            return [(one.attempt, one.lease_no) for one in await claim(storage)] == [(2, 3)]

        await eventually(is_taken)

    async def test_a_job_can_be_snoozed_for_ever(self, backend: Backend, storage: Storage, clock: ManualClock) -> None:
        [job] = await backend.added(storage, max_attempts=1)
        for number in range(1, 6):
            [lease] = await claim(storage)
            assert (lease.attempt, lease.lease_no) == (1, number)
            await settle(storage, [(lease, Snoozed(clock.wall()))])  # due at once
        assert (await stored(storage, job.id)).state is JobState.QUEUED


class ResultsForAWhile:
    async def test_a_result_is_kept_for_its_time_and_then_dropped(
        self, backend: Backend, storage: Storage, clock: ManualClock
    ) -> None:
        job = replace(backend.job(), extras=JobExtras(result_ttl=60 * SECOND))
        await storage.insert([job])
        clock.advance(1_000)  # it counts from the end
        await settle(storage, [(lease, Succeeded('"x"')) for lease in await claim(storage)])
        clock.advance(59.999)
        assert await storage.drop_results(100) == 0
        assert (await stored(storage, job.id)).result == "x"
        clock.advance(0.001)
        assert await storage.drop_results(100) == 1
        kept = await stored(storage, job.id)
        assert (kept.state, kept.result_json) == (JobState.SUCCEEDED, None)
        assert await storage.drop_results(100) == 0

    async def test_only_results_that_are_past_their_time_are_dropped(
        self, backend: Backend, storage: Storage, clock: ManualClock
    ) -> None:
        lived = {seconds: replace(backend.job(), extras=JobExtras(result_ttl=seconds * SECOND)) for seconds in (10, 20)}
        nothing_to_drop = replace(backend.job(), extras=JobExtras(result_ttl=10 * SECOND))
        await storage.insert([*lived.values(), nothing_to_drop])
        *leases, empty = await claim(storage)
        await settle(storage, [(lease, Succeeded("1")) for lease in leases] + [(empty, DONE)])
        [for_good] = await backend.finished(storage, Succeeded("1"))
        await storage.insert([waiting := replace(backend.job(), extras=JobExtras(result_ttl=SECOND))])
        clock.advance(15)
        assert await storage.drop_results(100) == 1
        results = [(await stored(storage, job.id)).result for job in (lived[10], lived[20], for_good)]
        assert results == [None, 1, 1]
        assert (await stored(storage, waiting.id)).state is JobState.QUEUED

    async def test_dropping_is_bounded(self, backend: Backend, storage: Storage, clock: ManualClock) -> None:
        await storage.insert([replace(backend.job(), extras=JobExtras(result_ttl=1)) for _ in range(7)])
        await settle(storage, [(lease, Succeeded("1")) for lease in await claim(storage)])
        clock.advance(1)
        assert [await storage.drop_results(3) for _ in range(4)] == [3, 3, 1, 0]
