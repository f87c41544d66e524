"""What every backend promises about adding, claiming and settling: the verbs of `durableq.storage.protocol`.

Fixtures only: ``backend`` (an empty database), ``storage`` (it, opened as a worker) and ``clock`` (moved by hand).
"""

import asyncio
import json
from datetime import timedelta

import pytest

from durableq.codec import checksum
from durableq.errors import NotStored, QueueNotRunning
from durableq.models import (
    ClaimRequest,
    Dead,
    Failure,
    JobError,
    JobState,
    Lane,
    Lease,
    Names,
    Outcome,
    Released,
    Retried,
    Succeeded,
)
from durableq.storage.protocol import Storage
from durableq.testing import ManualClock
from tests.storage.support import BOOM, DEAD, DONE, WORK, Backend, claim, settle, stored
from tests.support import eventually


class Adding:
    async def test_a_job_is_stored_as_it_was_given(self, backend: Backend, storage: Storage) -> None:
        args = json.dumps({"to": "Zoë\u0000 \U0001f600", "n": 2**70})
        given = backend.job(task="mail:send", queue="mail", priority=-3, delay=60, max_attempts=2, args_json=args)
        await storage.insert([given])
        assert await stored(storage, given.id) == given

    async def test_adding_a_job_again_changes_nothing(self, backend: Backend, storage: Storage) -> None:
        job = backend.job()
        await storage.insert([job, job])
        await storage.insert([job])
        assert len(await claim(storage)) == 1
        await storage.insert([job])
        assert (await stored(storage, job.id)).state is JobState.RUNNING

    async def test_jobs_of_one_add_are_stored_all_or_none(self, backend: Backend, storage: Storage) -> None:
        good, impossible = backend.job(), backend.job(max_attempts=0)
        with pytest.raises(NotStored):
            await storage.insert([good, impossible])
        assert await storage.get(good.id) is None
        assert await claim(storage) == []

    @pytest.mark.fault("F49")
    @pytest.mark.foreign_bug(54)
    async def test_a_cancelled_add_is_stored_whole_or_not_at_all(self, backend: Backend, storage: Storage) -> None:
        batches = [[backend.job() for _ in range(3)] for _ in range(60)]
        for number, batch in enumerate(batches):
            adding = asyncio.ensure_future(storage.insert(batch))
            for _ in range(number % 4):
                await asyncio.sleep(0)
            adding.cancel()
            await asyncio.wait([adding])
        await backend.added(storage)
        for batch in batches:
            assert len({await storage.get(job.id) is None for job in batch}) == 1

    async def test_names_are_known_once_a_job_of_theirs_is_stored(self, backend: Backend, storage: Storage) -> None:
        assert storage.names() == Names(frozenset(), frozenset())
        await backend.added(storage, task="mail:send", queue="mail")
        await backend.added(storage, task="mail:send", queue="bulk")
        assert storage.names() == Names(frozenset({"mail", "bulk"}), frozenset({"mail:send"}))

    async def test_names_outlive_the_process_that_stored_them(self, backend: Backend, storage: Storage) -> None:
        await backend.added(storage, task="mail:send", queue="mail")
        await storage.deregister()
        await storage.close()
        again = await backend.open()
        assert again.names() == Names(frozenset({"mail"}), frozenset({"mail:send"}))

    async def test_a_thread_adds_and_waits(self, backend: Backend, storage: Storage) -> None:
        job = backend.job()
        await asyncio.to_thread(storage.insert_and_wait, [job])
        assert await stored(storage, job.id) == job

    async def test_a_script_adds_without_opening_first(self, backend: Backend) -> None:
        job = backend.job()
        await asyncio.to_thread(backend.new_storage().insert_and_wait, [job])
        assert await stored(await backend.open(), job.id) == job

    async def test_a_closed_storage_takes_nothing(self, backend: Backend) -> None:
        storage = await backend.open()
        await storage.close()
        with pytest.raises(QueueNotRunning):
            storage.insert([backend.job()])


class Claiming:
    async def test_higher_priority_goes_first_then_the_older(self, backend: Backend, storage: Storage) -> None:
        jobs = [backend.job(priority=priority) for priority in (0, 5, 0, -1, 5)]
        for job in jobs:
            await storage.insert([job])
        order = []
        while leases := await claim(storage, limit=1):
            order += [lease.id for lease in leases]
        assert order == [jobs[i].id for i in (1, 4, 0, 2, 3)]

    async def test_a_retry_keeps_its_place(self, backend: Backend, storage: Storage) -> None:
        first, second = await backend.added(storage, 2)
        [lease] = await claim(storage, limit=1)
        await settle(storage, [(lease, Retried(BOOM, run_at=None))])
        assert [lease.id for lease in await claim(storage)] == [first.id, second.id]

    async def test_only_the_named_queues_and_tasks_are_taken(self, backend: Backend, storage: Storage) -> None:
        [wanted] = await backend.added(storage, task="a", queue="q1")
        await backend.added(storage, task="b", queue="q1")
        await backend.added(storage, task="a", queue="q2")
        assert [lease.id for lease in await claim(storage, tasks=["a", "c"], queues=["q1", "q3"])] == [wanted.id]

    async def test_each_lane_takes_up_to_its_own_limit(self, backend: Backend, storage: Storage) -> None:
        for task, count in (("loop:a", 3), ("loop:b", 3), ("thread:c", 3)):
            await backend.added(storage, count, task=task)
        lanes = (Lane("loop", ("loop:a", "loop:b"), 4), Lane("thread", ("thread:c",), 2))
        leases = (await storage.exchange([], ClaimRequest(("default",), lanes))).leases
        assert sorted(lease.task for lease in leases) == ["loop:a"] * 3 + ["loop:b"] + ["thread:c"] * 2

    @pytest.mark.fault("F3")
    @pytest.mark.foreign_bug(10, 45)
    async def test_a_claim_counts_the_start_before_anything_runs(
        self, backend: Backend, storage: Storage, clock: ManualClock
    ) -> None:
        [job] = await backend.added(storage, args_json='{"x": 1}')
        clock.advance(1)
        [lease] = await claim(storage)
        assert (lease.id, lease.attempt, lease.lease_no, lease.crashes) == (job.id, 1, 1, 0)
        assert (lease.args_json, lease.checksum) == (job.args_json, checksum(job.args_json))
        assert lease.max_attempts == job.max_attempts
        running = await stored(storage, job.id)
        assert (running.state, running.attempt, running.started_at) == (JobState.RUNNING, 1, clock.now)

    @pytest.mark.foreign_bug(34)
    async def test_what_is_claimed_is_not_claimed_again(self, backend: Backend, storage: Storage) -> None:
        await backend.claimed(storage, 3)
        assert await claim(storage) == []

    @pytest.mark.foreign_bug(30)
    async def test_two_workers_never_get_the_same_job(self, backend: Backend, storage: Storage) -> None:
        jobs = await backend.added(storage, 200)
        other = await backend.worker()
        claims = [claim(one, limit=7) for one in (storage, other) for _ in range(15)]
        taken = [lease.id for leases in await asyncio.gather(*claims) for lease in leases]
        assert sorted(taken) == sorted(job.id for job in jobs)

    @pytest.mark.fault("F51", "R7")
    @pytest.mark.foreign_bug(107)
    async def test_a_job_that_crashed_a_process_is_taken_only_as_a_suspect(
        self, backend: Backend, storage: Storage
    ) -> None:
        suspects = [await backend.suspect(storage) for _ in range(2)]
        assert await claim(storage) == []
        assert await claim(storage, limit=0, suspects=["tasks:other"]) == []
        first = await claim(storage, suspects=[WORK])
        second = await claim(storage, suspects=[WORK])
        assert [[lease.id for lease in leases] for leases in (first, second)] == [[one.id] for one in suspects]
        assert (first[0].crashes, first[0].attempt) == (1, 2)

    async def test_a_suspect_is_taken_beside_others(self, backend: Backend, storage: Storage) -> None:
        suspect = await backend.suspect(storage)
        [other] = await backend.added(storage)
        assert {lease.id for lease in await claim(storage, suspects=[WORK])} == {suspect.id, other.id}

    async def test_a_scheduled_job_is_taken_when_it_is_due_and_not_before(
        self, backend: Backend, storage: Storage, clock: ManualClock
    ) -> None:
        [job] = await backend.added(storage, delay=60)
        clock.advance(59.999)
        await backend.added(storage, task="tasks:other")
        assert await claim(storage) == []
        clock.advance(0.001)
        await eventually(lambda: _takes_exactly(storage, [job.id]))

    @pytest.mark.fault("F50")
    async def test_due_jobs_are_made_ready_however_many(
        self, backend: Backend, storage: Storage, clock: ManualClock
    ) -> None:
        jobs = await backend.added(storage, 1_300, delay=60)
        clock.advance(timedelta(minutes=2))
        taken: set[str] = set()

        async def all_taken() -> bool:
            taken.update(lease.id for lease in await claim(storage, limit=2_000))
            return taken == {job.id for job in jobs}

        await eventually(all_taken)

    async def test_the_worker_is_woken_by_what_it_can_run(self, backend: Backend, clock: ManualClock) -> None:
        woken: list[bool] = []
        storage = await backend.open()
        await storage.register(woken.append)
        await backend.added(storage)
        await eventually(lambda: bool(woken))
        assert woken[-1], "new names have come"
        await backend.added(storage, delay=60)
        await backend.added(storage)
        await eventually(lambda: len(woken) > 1 and not woken[-1])
        count = len(woken)
        clock.advance(60)
        await eventually(lambda: len(woken) > count)


class Settling:
    @pytest.mark.parametrize("result", [None, '{"sent": true}'])
    async def test_a_success_keeps_its_result(
        self, backend: Backend, storage: Storage, clock: ManualClock, result: str | None
    ) -> None:
        [lease] = await backend.claimed(storage)
        clock.advance(2)
        assert await settle(storage, [(lease, Succeeded(result))]) == frozenset()
        job = await stored(storage, lease.id)
        assert (job.state, job.result_json, job.finished_at) == (JobState.SUCCEEDED, result, clock.now)
        assert (job.attempt, job.error) == (1, None)

    async def test_a_retry_waits_for_its_time(self, backend: Backend, storage: Storage, clock: ManualClock) -> None:
        [lease] = await backend.claimed(storage)
        await settle(storage, [(lease, Retried(BOOM, run_at=clock.wall() + 5_000_000))])
        job = await stored(storage, lease.id)
        assert (job.state, job.run_at) == (JobState.SCHEDULED, clock.now + timedelta(seconds=5))
        assert (job.attempt, job.error, job.finished_at) == (1, JobError("ValueError", "boom"), None)
        assert await claim(storage) == []
        clock.advance(5)
        await eventually(lambda: _takes_exactly(storage, [lease.id]))

    @pytest.mark.parametrize("seconds_ahead", [None, 0, -5])
    async def test_a_retry_that_is_due_runs_at_once(
        self, backend: Backend, storage: Storage, clock: ManualClock, seconds_ahead: int | None
    ) -> None:
        [lease] = await backend.claimed(storage)
        run_at = None if seconds_ahead is None else clock.wall() + seconds_ahead * 1_000_000
        await settle(storage, [(lease, Retried(BOOM, run_at))])
        [again] = await claim(storage)
        assert (again.id, again.attempt, again.lease_no) == (lease.id, 2, 2)

    async def test_a_dead_job_stays_with_its_error(
        self, backend: Backend, storage: Storage, clock: ManualClock
    ) -> None:
        [job] = await backend.finished(storage, DEAD)
        assert (job.state, job.error, job.finished_at) == (JobState.DEAD, JobError("ValueError", "boom"), clock.now)
        assert await claim(storage, suspects=[WORK]) == []

    async def test_a_released_job_gets_its_attempt_back(self, backend: Backend, storage: Storage) -> None:
        [lease] = await backend.claimed(storage)
        await settle(storage, [(lease, Retried(BOOM, run_at=None))])
        [second] = await claim(storage)
        await settle(storage, [(second, Released())])
        job = await stored(storage, lease.id)
        assert (job.state, job.attempt, job.crashes) == (JobState.QUEUED, 1, 0)
        assert job.error == JobError("ValueError", "boom"), "what is known of the last attempt stays"
        [third] = await claim(storage)
        assert (third.attempt, third.lease_no) == (2, 3), "the fence only grows"
        assert len(await storage.attempts(lease.id)) == 1

    async def test_the_errors_of_all_attempts_are_kept(
        self, backend: Backend, storage: Storage, clock: ManualClock
    ) -> None:
        [lease] = await backend.claimed(storage)
        began = clock.now
        clock.advance(3)
        await settle(storage, [(lease, Retried(BOOM, run_at=None))])
        [second] = await claim(storage)
        await settle(storage, [(second, Dead(Failure("KeyError", "Zoë \U0001f600", "Traceback: last")))])
        first_try, second_try = await storage.attempts(lease.id)
        assert (first_try.attempt, first_try.lease_no, first_try.error_type) == (1, 1, "ValueError")
        assert (first_try.started_at, first_try.duration) == (began, timedelta(seconds=3))
        assert (second_try.attempt, second_try.traceback) == (2, "Traceback: last")
        assert second_try.error_message == "Zoë \U0001f600"

    async def test_a_success_writes_no_attempt(self, backend: Backend, storage: Storage) -> None:
        [job] = await backend.finished(storage, DONE)
        assert await storage.attempts(job.id) == []

    @pytest.mark.fault("F10")
    @pytest.mark.foreign_bug(31)
    @pytest.mark.parametrize("late", [DONE, DEAD, Retried(BOOM, None), Released()])
    async def test_a_lease_of_an_earlier_claim_settles_nothing(
        self, backend: Backend, storage: Storage, late: Outcome
    ) -> None:
        [old] = await backend.claimed(storage)
        await settle(storage, [(old, Released())])
        [current] = await claim(storage)
        before = await stored(storage, old.id)
        assert await settle(storage, [(old, late)]) == {old.seq}
        assert await stored(storage, old.id) == before
        assert await storage.attempts(old.id) == []
        assert await settle(storage, [(current, DONE)]) == frozenset()

    async def test_what_is_settled_is_not_settled_again(self, backend: Backend, storage: Storage) -> None:
        [lease] = await backend.claimed(storage)
        await settle(storage, [(lease, Succeeded("1"))])
        assert await settle(storage, [(lease, DEAD)]) == {lease.seq}
        assert (await stored(storage, lease.id)).result_json == "1"

    async def test_a_lost_lease_among_others_loses_only_itself(self, backend: Backend, storage: Storage) -> None:
        leases = await backend.claimed(storage, 5)
        lost = leases[2]
        await settle(storage, [(lost, Released())])
        await backend.added(storage)
        outcomes: list[Outcome] = [DONE, DEAD, DONE, Retried(BOOM, None), Released()]
        exchanged = await storage.exchange(list(zip(leases, outcomes, strict=True)), _one_more())
        assert exchanged.lost == {lost.seq}
        states = [(await stored(storage, lease.id)).state for lease in leases if lease is not lost]
        assert states[:2] == [JobState.SUCCEEDED, JobState.DEAD]
        assert (await stored(storage, lost.id)).attempt == 0 or lost.id in {one.id for one in exchanged.leases}
        assert len(await storage.attempts(leases[1].id)) == 1
        assert await storage.attempts(lost.id) == []
        assert len(exchanged.leases) == 1

    async def test_settling_makes_room_in_the_same_round_trip(self, backend: Backend, storage: Storage) -> None:
        [lease] = await backend.claimed(storage)
        [waiting] = await backend.added(storage)
        exchanged = await storage.exchange([(lease, DONE)], _one_more())
        assert [one.id for one in exchanged.leases] == [waiting.id]
        assert (await stored(storage, lease.id)).state is JobState.SUCCEEDED

    async def test_a_retry_may_be_claimed_by_the_round_trip_that_settles_it(
        self, backend: Backend, storage: Storage
    ) -> None:
        [lease] = await backend.claimed(storage)
        exchanged = await storage.exchange([(lease, Retried(BOOM, None))], _one_more())
        assert [(one.id, one.attempt) for one in exchanged.leases] == [(lease.id, 2)]

    async def test_a_thousand_outcomes_are_settled_at_once(self, backend: Backend, storage: Storage) -> None:
        leases = await backend.claimed(storage, 1_000)
        assert await settle(storage, [(lease, DONE) for lease in leases]) == frozenset()
        assert (await storage.counts())[JobState.SUCCEEDED] == 1_000


def _one_more() -> ClaimRequest:
    return ClaimRequest(("default",), (Lane("loop", (WORK,), 1),))


async def _takes_exactly(storage: Storage, expected: list[str]) -> bool:
    leases: list[Lease] = await claim(storage)
    assert not leases or [lease.id for lease in leases] == expected
    return bool(leases)
