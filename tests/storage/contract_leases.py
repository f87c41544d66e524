"""What every backend promises about leases: who holds what, for how long, and who may take it back."""

import asyncio
from collections.abc import Collection
from datetime import timedelta

import pytest

from durableq.clock import to_micros
from durableq.errors import StorageUnusable
from durableq.models import Dead, Failure, JobState, Lease, LeaseKey, Outcome, Retried
from durableq.storage.protocol import Storage
from durableq.testing import ManualClock
from tests.storage.support import (
    BOOM,
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


async def renew(storage: Storage, clock: ManualClock, held: Collection[LeaseKey] | None) -> bool:
    """What the heartbeat's thread does: prolong the lease from now."""
    return await asyncio.to_thread(storage.renew, clock.boot() + to_micros(LEASE), held)


async def watch(reaper: Storage, clock: ManualClock, duration: timedelta) -> list[int]:
    """Let time pass while ``reaper`` looks at every heartbeat; return the ids of whom it reaped."""
    reaped = [dead.worker_id for dead in await reaper.reap(runs_again)]
    for _ in range(duration // HEARTBEAT):
        clock.advance(HEARTBEAT)
        reaped += [dead.worker_id for dead in await reaper.reap(runs_again)]
    return reaped


class Leases:
    async def test_ids_of_workers_are_never_used_again(self, backend: Backend) -> None:
        storage = await backend.open()
        ids = []
        for _ in range(3):
            ids.append(await storage.register(lambda new_names: None))
            await storage.deregister()
        assert ids == sorted(set(ids))

    async def test_a_worker_that_leaves_hands_back_what_it_holds(self, backend: Backend, storage: Storage) -> None:
        leases = await backend.claimed(storage, 2)
        await storage.deregister()
        for lease in leases:
            job = await stored(storage, lease.id)
            assert (job.state, job.attempt, job.crashes) == (JobState.QUEUED, 0, 0)

    async def test_a_worker_that_left_is_not_woken(self, backend: Backend) -> None:
        left: list[bool] = []
        woken: list[bool] = []
        leaving, staying = await backend.open(), await backend.open()
        await leaving.register(left.append)
        await staying.register(woken.append)
        await leaving.deregister()
        left.clear()
        woken.clear()
        await backend.added(staying)
        await eventually(lambda: bool(woken))
        assert left == []

    async def test_a_heartbeat_tells_whether_the_lease_still_stands(
        self, backend: Backend, storage: Storage, clock: ManualClock
    ) -> None:
        [lease] = await backend.claimed(storage)
        assert await renew(storage, clock, {lease.key})
        reaper = await backend.worker()
        assert await watch(reaper, clock, LEASE + HEARTBEAT)
        assert not await renew(storage, clock, {lease.key})

    @pytest.mark.fault("F10")
    @pytest.mark.foreign_bug(37)
    async def test_a_late_heartbeat_cannot_take_the_lease_back(
        self, backend: Backend, storage: Storage, clock: ManualClock
    ) -> None:
        [lease] = await backend.claimed(storage)
        reaper = await backend.worker()
        await watch(reaper, clock, LEASE + HEARTBEAT)
        assert not await renew(storage, clock, {lease.key})
        [taken] = await claim(reaper, suspects=[WORK])
        assert not await renew(storage, clock, {lease.key})
        assert (await stored(storage, lease.id)).state is JobState.RUNNING
        assert await settle(storage, [(lease, DONE)]) == {lease.seq}
        assert await settle(reaper, [(taken, DONE)]) == frozenset()

    @pytest.mark.foreign_bug(28, 41)
    async def test_heartbeats_keep_a_lease_for_as_long_as_they_come(
        self, backend: Backend, storage: Storage, clock: ManualClock
    ) -> None:
        [lease] = await backend.claimed(storage)
        reaper = await backend.worker()
        for _ in range(4):
            assert await watch(reaper, clock, LEASE - HEARTBEAT) == []
            assert await renew(storage, clock, {lease.key})
        assert await settle(storage, [(lease, DONE)]) == frozenset()

    @pytest.mark.fault("R3")
    @pytest.mark.foreign_bug(9, 17)
    async def test_a_claim_whose_answer_was_lost_is_handed_back_once_it_was_missing_twice(
        self, backend: Backend, storage: Storage, clock: ManualClock
    ) -> None:
        known, lost = await backend.claimed(storage, 2)
        await renew(storage, clock, {known.key})
        assert (await stored(storage, lost.id)).state is JobState.RUNNING
        await renew(storage, clock, {known.key})
        job = await stored(storage, lost.id)
        assert (job.state, job.attempt, job.crashes) == (JobState.QUEUED, 0, 0)
        assert (await stored(storage, known.id)).state is JobState.RUNNING

    @pytest.mark.foreign_bug(19, 40)
    async def test_a_claim_whose_answer_is_just_arriving_is_not_handed_back(
        self, backend: Backend, storage: Storage, clock: ManualClock
    ) -> None:
        [lease] = await backend.claimed(storage)
        for _ in range(2):
            await renew(storage, clock, [])
            await renew(storage, clock, [lease.key])
        assert (await stored(storage, lease.id)).state is JobState.RUNNING

    @pytest.mark.foreign_bug(19, 40)
    async def test_nothing_is_handed_back_while_a_claim_is_under_way(
        self, backend: Backend, storage: Storage, clock: ManualClock
    ) -> None:
        [lease] = await backend.claimed(storage)
        looks: list[Collection[LeaseKey] | None] = [None, None, [], None, [], None]
        for held in looks:
            assert await renew(storage, clock, held)
        assert (await stored(storage, lease.id)).state is JobState.RUNNING

    async def test_missing_counts_per_claim_and_not_per_job(
        self, backend: Backend, storage: Storage, clock: ManualClock
    ) -> None:
        [lease] = await backend.claimed(storage)
        await renew(storage, clock, set())
        await settle(storage, [(lease, Retried(BOOM, None))])
        await claim(storage)
        await renew(storage, clock, set())
        assert (await stored(storage, lease.id)).state is JobState.RUNNING


class Reaping:
    @pytest.mark.fault("F3", "F4")
    @pytest.mark.foreign_bug(1, 5, 64)
    async def test_a_killed_worker_is_reaped_at_once(self, backend: Backend, storage: Storage) -> None:
        jobs = await backend.added(storage, 3)
        with PythonProcess("-m", "tests.storage.doomed_worker", backend.url, "2") as doomed:
            worker_id, taken = doomed.read()
            assert taken == [job.id for job in jobs[:2]]
            assert await storage.reap(runs_again) == [], "it lives"
            doomed.kill()
        [dead] = await storage.reap(runs_again)
        assert (dead.worker_id, [lease.id for lease, _ in dead.leases]) == (worker_id, taken)
        assert await storage.reap(runs_again) == []
        for job_id in taken:
            job = await stored(storage, job_id)
            assert (job.state, job.attempt, job.crashes) == (JobState.QUEUED, 1, 1)
            assert job.error is not None
            assert "died" in job.error.message

    async def test_a_process_that_only_adds_jobs_is_reaped_when_killed_and_never_before(
        self, backend: Backend, storage: Storage, clock: ManualClock
    ) -> None:
        with PythonProcess("-m", "tests.storage.doomed_worker", backend.url, "0") as adder:
            worker_id, _ = adder.read()
            assert await watch(storage, clock, 3 * LEASE) == []
            adder.kill()
        [dead] = await storage.reap(runs_again)
        assert (dead.worker_id, dead.leases) == (worker_id, [])

    async def test_a_worker_whose_lease_expired_is_reaped(
        self, backend: Backend, storage: Storage, clock: ManualClock
    ) -> None:
        [lease] = await backend.claimed(storage)
        reaper = await backend.worker()
        assert await watch(reaper, clock, LEASE) == []
        clock.advance(HEARTBEAT)
        [dead] = await reaper.reap(runs_again)
        assert "expired" in dead.reason
        assert (await stored(storage, lease.id)).crashes == 1

    async def test_the_decision_for_each_job_is_the_callers(
        self, backend: Backend, storage: Storage, clock: ManualClock
    ) -> None:
        leases = await backend.claimed(storage, 2)
        reaper = await backend.worker()
        asked: list[tuple[Lease, bool]] = []

        def decide(lease: Lease, reason: str, charged: bool) -> Outcome:
            asked.append((lease, charged))
            failure = Failure("WorkerDied", reason, reason)
            return Dead(failure, crashed=True) if lease.key == leases[0].key else Retried(failure, None, crashed=True)

        await watch(reaper, clock, LEASE)
        clock.advance(HEARTBEAT)
        [dead] = await reaper.reap(decide)
        assert asked == [(lease, True) for lease in leases]
        assert [type(outcome) for _, outcome in dead.leases] == [Dead, Retried]
        states = [(await stored(storage, lease.id)).state for lease in leases]
        assert states == [JobState.DEAD, JobState.QUEUED]
        assert [one.error_type for one in await storage.attempts(leases[0].id)] == ["WorkerDied"]

    @pytest.mark.fault("R1")
    async def test_a_reaper_that_was_held_up_waits_a_heartbeat_before_it_judges(
        self, backend: Backend, storage: Storage, clock: ManualClock
    ) -> None:
        await backend.claimed(storage)
        reaper = await backend.worker()
        await reaper.reap(runs_again)
        clock.advance(3 * LEASE)
        assert await reaper.reap(runs_again) == []
        clock.advance(HEARTBEAT - timedelta(milliseconds=1))
        assert await reaper.reap(runs_again) == []
        clock.advance(0.001)
        assert len(await reaper.reap(runs_again)) == 1

    async def test_a_worker_that_just_came_waits_a_heartbeat_before_it_judges(
        self, backend: Backend, storage: Storage, clock: ManualClock
    ) -> None:
        clock.advance(3 * LEASE)
        reaper = await backend.worker()
        assert await reaper.reap(runs_again) == []

    @pytest.mark.fault("R1")
    async def test_after_an_outage_longer_than_all_leases_nobody_is_reaped(
        self, backend: Backend, clock: ManualClock
    ) -> None:
        workers = [await backend.worker() for _ in range(3)]
        leases = [(await backend.claimed(worker))[0] for worker in workers]
        for worker in workers:
            await worker.reap(runs_again)
        clock.advance(3 * LEASE)
        for _ in range(3):
            for worker in workers:
                assert await worker.reap(runs_again) == []
            clock.advance(HEARTBEAT)
        for worker, lease in zip(workers, leases, strict=True):
            assert await settle(worker, [(lease, DONE)]) == frozenset()

    @pytest.mark.fault("F36")
    async def test_setting_the_wall_clock_costs_nobody_a_lease(
        self, backend: Backend, storage: Storage, clock: ManualClock
    ) -> None:
        [lease] = await backend.claimed(storage)
        reaper = await backend.worker()
        for step in (timedelta(days=1), timedelta(days=-2)):
            clock.step_wall(step)
            assert await watch(reaper, clock, LEASE - 2 * HEARTBEAT) == []
            assert await renew(storage, clock, {lease.key})

    @pytest.mark.fault("F20")
    async def test_a_reboot_charges_no_crash(self, backend: Backend, storage: Storage, clock: ManualClock) -> None:
        [lease] = await backend.claimed(storage)
        clock.reboot()
        reaper = await backend.worker()
        charges: list[bool] = []

        def decide(lease: Lease, reason: str, charged: bool) -> Outcome:
            charges.append(charged)
            return runs_again(lease, reason, charged)

        for _ in range(2):
            assert await reaper.reap(decide) == [], "another host that shares the file would move within two heartbeats"
            clock.advance(HEARTBEAT)
        [dead] = await reaper.reap(decide)
        assert "restarted" in dead.reason
        assert charges == [False]
        job = await stored(storage, lease.id)
        assert (job.state, job.attempt, job.crashes) == (JobState.QUEUED, 1, 0)

    async def test_two_kernels_on_one_database_are_refused(
        self, backend: Backend, storage: Storage, clock: ManualClock
    ) -> None:
        abroad = ManualClock()
        abroad.reboot("another-host")
        other = await backend.worker(clock=abroad)
        assert await storage.reap(runs_again) == []
        abroad.advance(HEARTBEAT)
        await renew(other, abroad, set())
        with pytest.raises(StorageUnusable, match="another host"):
            await storage.reap(runs_again)

    @pytest.mark.fault("F55")
    @pytest.mark.foreign_bug(35)
    async def test_two_reapers_take_a_dead_worker_back_once(
        self, backend: Backend, storage: Storage, clock: ManualClock
    ) -> None:
        [lease] = await backend.claimed(storage)
        reapers = [await backend.worker() for _ in range(2)]
        for reaper in reapers:
            await reaper.reap(runs_again)
        for _ in range(LEASE // HEARTBEAT):
            clock.advance(HEARTBEAT)
            assert [await reaper.reap(runs_again) for reaper in reapers] == [[], []]
        clock.advance(HEARTBEAT)
        found = await asyncio.gather(*(reaper.reap(runs_again) for reaper in reapers))
        assert sorted(map(len, found)) == [0, 1]
        assert (await stored(storage, lease.id)).crashes == 1

    async def test_what_another_worker_holds_is_not_touched(
        self, backend: Backend, storage: Storage, clock: ManualClock
    ) -> None:
        await backend.claimed(storage)
        reaper = await backend.worker()
        [own] = await backend.claimed(reaper)
        await watch(reaper, clock, LEASE + HEARTBEAT)
        assert (await stored(reaper, own.id)).state is JobState.RUNNING
        assert await settle(reaper, [(own, DONE)]) == frozenset()
