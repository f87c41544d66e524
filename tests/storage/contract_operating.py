"""What every backend promises to those who operate a queue: pausing, what is counted, and what is done to many."""

from collections import Counter
from datetime import timedelta
from typing import Any

import pytest

from durableq.history import BUCKETS, SummedBy, Tally
from durableq.models import (
    Cancelled,
    Dead,
    Failure,
    JobFilter,
    JobState,
    Released,
    Retried,
    Snoozed,
)
from durableq.reports import Count
from durableq.storage.protocol import Storage
from durableq.testing import ManualClock
from tests.storage.contract_by_hand import in_state
from tests.storage.support import BOOM, DEAD, DONE, WORK, Backend, claim, runs_again, settle, stored

LATER = 60_000_000
ALWAYS = range(0, 2**33, 60)
ALL: tuple[SummedBy, ...] = ("step", "queue", "task")
WAYS: list[tuple[SummedBy, ...]] = [("step",), ("queue",), ("task",), ("queue", "task"), ()]


class Pausing:
    async def test_no_claim_takes_from_a_paused_queue_until_it_is_resumed(
        self, backend: Backend, storage: Storage
    ) -> None:
        [here] = await backend.added(storage)
        [elsewhere] = await backend.added(storage, queue="other")
        suspect = await backend.suspect(storage, queue="sick")
        await storage.pause("default", who="ann")
        await storage.pause("sick", who="ann")
        everywhere = ("default", "other", "sick")
        assert [lease.id for lease in await claim(storage, queues=everywhere, suspects=[WORK])] == [elsewhere.id]
        await storage.resume("default", who="bob")
        assert [lease.id for lease in await claim(storage, queues=everywhere, suspects=[WORK])] == [here.id]
        await storage.resume("sick", who="bob")
        assert [lease.id for lease in await claim(storage, queues=everywhere, suspects=[WORK])] == [suspect.id]

    async def test_a_pause_holds_in_every_process_and_after_a_restart(self, backend: Backend, storage: Storage) -> None:
        await backend.added(storage)
        await storage.pause("default", who="ann")
        other = await backend.worker()
        assert await claim(other) == []
        for one in (other, storage):
            await one.deregister()
            await one.close()
        assert await claim(await backend.worker()) == []

    async def test_what_runs_in_a_paused_queue_goes_on_and_what_is_added_is_kept(
        self, backend: Backend, storage: Storage
    ) -> None:
        [lease] = await backend.claimed(storage)
        await storage.pause("default", who="ann")
        [added] = await backend.added(storage)
        assert await settle(storage, [(lease, DONE)]) == frozenset()
        assert (await stored(storage, added.id)).state is JobState.QUEUED

    async def test_who_paused_and_when_is_told_and_audited_once(
        self, backend: Backend, storage: Storage, clock: ManualClock
    ) -> None:
        await backend.added(storage)
        await storage.pause("default", who="ann")
        paused_at = clock.now
        clock.advance(5)
        await storage.pause("default", who="bob")
        [queue] = await storage.queues(at_most=10)
        assert (queue.is_paused, queue.paused_at, queue.paused_by) == (True, paused_at, "ann"), "the first stands"
        await storage.resume("default", who="cat")
        await storage.resume("default", who="cat")
        [queue] = await storage.queues(at_most=10)
        assert (queue.is_paused, queue.paused_at, queue.paused_by) == (False, None, None)
        trail = (await storage.audit(cursor=None, limit=10)).entries
        assert [(one.who, one.action, one.job_id, one.detail) for one in trail] == [
            ("cat", "resume", "", {"queue": "default"}),
            ("ann", "pause", "", {"queue": "default"}),
        ]

    async def test_a_queue_may_be_paused_before_its_first_job(self, backend: Backend, storage: Storage) -> None:
        await storage.pause("new", who="ann")
        await backend.added(storage, queue="new")
        assert await claim(storage, queues=["new"]) == []

    async def test_paused_work_is_not_runnable_and_does_not_count_as_waiting_too_long(
        self, backend: Backend, storage: Storage, clock: ManualClock
    ) -> None:
        await backend.suspect(storage)
        await backend.added(storage)
        clock.advance(60)
        await backend.added(storage, task="other")
        assert await storage.waits() == {WORK: 60, "other": 0}, "the one that crashed a process waits, too"
        await storage.pause("default", who="ann")
        assert not await storage.has_runnable(["default"], [WORK])
        assert await storage.waits() == {}
        await storage.resume("default", who="ann")
        assert await storage.has_runnable(["default"], [WORK])


class Tallying:
    async def tallies(self, storage: Storage, **where: Any) -> list[Tally]:
        queue, task = where.get("queue"), where.get("task")
        [found] = await storage.tallies(ALWAYS, ways=[ALL], queue=queue, task=task)
        return found

    async def test_each_try_is_counted_by_how_it_ended_ran_and_had_waited(
        self, backend: Backend, storage: Storage, clock: ManualClock
    ) -> None:
        minute = clock.wall() // LATER * 60
        await backend.added(storage, 2)
        clock.advance(3)
        first, second = await claim(storage)
        clock.advance(0.004)
        await settle(storage, [(first, DONE)])
        clock.advance(8)
        await settle(storage, [(second, Retried(BOOM, run_at=clock.wall() + LATER))])
        assert sorted(await self.tallies(storage)) == [
            (minute, "default", WORK, "retried", BUCKETS.index(10.0), 1),
            (minute, "default", WORK, "succeeded", BUCKETS.index(0.005), 1),
            (minute, "default", WORK, "waited", BUCKETS.index(5.0), 2),
        ]

    @pytest.mark.parametrize(
        ("outcome", "measure"),
        [
            (DONE, "succeeded"),
            (DEAD, "dead"),
            (Retried(BOOM, run_at=None), "retried"),
            (Cancelled(BOOM), "cancelled"),
            (Snoozed(run_at=4 * 10**15), None),
            (Released(), None),
        ],
    )
    async def test_what_was_handed_back_is_not_counted(
        self, backend: Backend, storage: Storage, outcome: Any, measure: str | None
    ) -> None:
        await backend.finished(storage, outcome)
        assert {one.measure for one in await self.tallies(storage)} == ({measure, "waited"} if measure else set())

    async def test_a_lost_lease_counts_for_nothing(self, backend: Backend, storage: Storage) -> None:
        [kept, lost] = await backend.claimed(storage, 2)
        await settle(storage, [(lost, Released())])
        assert await settle(storage, [(kept, DONE), (lost, DONE)]) == {lost.seq}
        assert {(one.measure, one.number) for one in await self.tallies(storage)} == {("succeeded", 1), ("waited", 1)}

    async def test_what_a_dead_worker_held_is_counted_once(
        self, backend: Backend, storage: Storage, clock: ManualClock
    ) -> None:
        await backend.claimed(storage)
        reaper = await backend.worker()
        await reaper.reap(runs_again)
        clock.advance(6)
        clock.advance(60)
        await reaper.reap(runs_again)  # held up itself, so that it does not judge yet
        clock.advance(6)
        while not await reaper.reap(runs_again):
            clock.advance(0.5)
        assert {(one.measure, one.number) for one in await self.tallies(storage)} == {("retried", 1), ("waited", 1)}

    async def test_tallies_are_told_of_one_queue_or_task_and_from_some_moment_on(
        self, backend: Backend, storage: Storage, clock: ManualClock
    ) -> None:
        await backend.finished(storage, DONE, task="a", queue="q1")
        clock.advance(60)
        await backend.finished(storage, DONE, task="b", queue="q1")
        await backend.finished(storage, DONE, task="a", queue="q2")
        assert {(one.queue, one.task) for one in await self.tallies(storage, queue="q1")} == {("q1", "a"), ("q1", "b")}
        assert {(one.queue, one.task) for one in await self.tallies(storage, task="a")} == {("q1", "a"), ("q2", "a")}
        [late] = await storage.tallies(
            range(clock.wall() // LATER * 60, ALWAYS.stop, 60), ways=[ALL], queue=None, task=None
        )
        assert {(one.queue, one.task) for one in late} == {("q1", "b"), ("q2", "a")}

    async def test_tallies_are_summed_up_in_each_way_that_is_asked_for(
        self, backend: Backend, storage: Storage, clock: ManualClock
    ) -> None:
        since = clock.wall() // 1_000_000
        for task, queue in (("a", "q1"), ("b", "q1"), ("a", "q2")):
            await backend.finished(storage, DONE, task=task, queue=queue)
        clock.advance(60)
        await backend.finished(storage, DONE, task="a", queue="q1")
        found = await storage.tallies(range(since, ALWAYS.stop, 60), ways=WAYS, queue=None, task=None)
        assert [
            {(one.at - since, one.queue, one.task): one.number for one in summed if one.measure == "succeeded"}
            for summed in found
        ] == [
            {(0, "", ""): 3, (60, "", ""): 1},
            {(0, "q1", ""): 3, (0, "q2", ""): 1},
            {(0, "", "a"): 3, (0, "", "b"): 1},
            {(0, "q1", "a"): 2, (0, "q1", "b"): 1, (0, "q2", "a"): 1},
            {(0, "", ""): 4},
        ]

    async def test_what_a_clock_counted_that_was_ahead_is_in_no_sum(
        self, backend: Backend, storage: Storage, clock: ManualClock
    ) -> None:
        now = clock.wall() // 1_000_000
        await backend.finished(storage, DONE)
        clock.advance(600)
        await backend.finished(storage, DONE)
        found = await storage.tallies(range(now - 60, now + 1, 60), ways=WAYS, queue=None, task=None)
        assert [sum(one.number for one in summed if one.measure == "succeeded") for summed in found] == [1] * len(WAYS)

    async def test_where_nothing_was_tried_each_way_is_empty(self, storage: Storage) -> None:
        assert await storage.tallies(ALWAYS, ways=WAYS, queue=None, task=None) == [[] for _ in WAYS]

    async def test_tallies_grow_coarser_with_age_and_go_after_eight_days_but_lose_none_before(
        self, backend: Backend, storage: Storage, clock: ManualClock
    ) -> None:
        for _ in range(40):
            await backend.finished(storage, DONE)
            clock.advance(3600)
            await backend.finished(storage, DEAD)
            clock.advance(60)
        before = await self.tallies(storage)
        while await storage.condense_tallies(clock.now):
            pass
        found = await self.tallies(storage)
        hours_before, hours = (Counter[int](), Counter[int]())
        for tallies, by_hour in ((before, hours_before), (found, hours)):
            for one in tallies:
                by_hour[one.at // 3600] += one.number
        assert hours == hours_before, "each stays in its hour"
        numbers = Counter[str]()
        for one in found:
            numbers[one.measure] += one.number
        assert numbers == {"succeeded": 40, "dead": 40, "waited": 80}
        ages = [(clock.wall() // 1_000_000 - one.at, one.at) for one in found]
        assert all(at % 900 == 0 for age, at in ages if age > 7 * 3600)
        assert all(at % 3600 == 0 for age, at in ages if age > 26 * 3600)
        assert any(at % 3600 for age, at in ages if age < 24 * 3600)
        assert any(at % 900 for age, at in ages if age < 6 * 3600), "the latest are as fine as before"
        clock.advance(timedelta(days=8))
        assert not await storage.condense_tallies(clock.now)
        assert await self.tallies(storage) == []


class Overviews:
    async def test_a_queue_tells_what_waits_and_runs_and_how_old_it_is(
        self, backend: Backend, storage: Storage, clock: ManualClock
    ) -> None:
        since = clock.now
        await backend.suspect(storage)
        await backend.added(storage, 3)
        await backend.claimed(storage, queue="busy")
        clock.advance(10)
        await backend.added(storage, queue="busy", task="other")
        busy, default = await storage.queues(at_most=10)
        assert (busy.name, busy.queued, busy.running, busy.oldest_due) == ("busy", Count(1), 1, clock.now)
        assert (default.name, default.queued, default.running, default.oldest_due) == ("default", Count(4), 0, since)

    async def test_counting_ends_where_it_is_told_to(self, backend: Backend, storage: Storage) -> None:
        await backend.added(storage, 5)
        await backend.finished(storage, DONE, 4, queue="other")
        by_name = {queue.name: queue.queued for queue in await storage.queues(at_most=3)}
        assert by_name == {"default": Count(3, is_all=False), "other": Count(0)}
        counts = await storage.counts(3)
        assert (counts[JobState.QUEUED], counts[JobState.SUCCEEDED], counts[JobState.DEAD]) == (3, 3, 0)
        [queue, _] = await storage.queues(at_most=5)
        assert queue.queued == Count(5), "as many as may be counted are all"

    async def test_workers_tell_who_they_are_and_what_they_hold(
        self, backend: Backend, storage: Storage, clock: ManualClock
    ) -> None:
        await backend.claimed(storage, 2)
        looker = await backend.open()
        await looker.register(None)
        worker, other = await looker.workers()
        assert (worker.running, worker.runs_jobs, worker.is_alive, worker.is_here) == (2, True, True, True)
        assert (other.running, other.runs_jobs, other.is_alive) == (0, False, True)
        assert worker.software.startswith("durableq ") and worker.started_at == clock.now
        clock.advance(3600)
        worker, other = await looker.workers()
        assert (worker.is_alive, other.is_alive) == (False, True), "one that only adds has no lease to renew"

    async def test_dead_letters_are_told_apart_by_task_and_error(
        self, backend: Backend, storage: Storage, clock: ManualClock
    ) -> None:
        first = clock.now
        await backend.finished(storage, DEAD)
        clock.advance(5)
        await backend.finished(storage, DEAD)
        [latest] = await backend.finished(storage, Dead(Failure("ValueError", "the latest", "")))
        [other] = await backend.finished(storage, Dead(Failure("KeyError", "x", "")))
        await backend.finished(storage, DONE)
        report = await storage.dead_letters(look_at=10)
        assert report.is_all
        many, one = report.groups
        assert (many.task, many.error_type, many.number) == (WORK, "ValueError", 3)
        assert (many.first_at, many.last_at) == (first, clock.now)
        assert (many.latest_id, many.latest_message) == (latest.id, "the latest")
        assert (one.error_type, one.number, one.latest_id) == ("KeyError", 1, other.id)
        bounded = await storage.dead_letters(look_at=2)
        assert not bounded.is_all and sum(group.number for group in bounded.groups) == 2

    async def test_tasks_are_told_by_name(self, backend: Backend, storage: Storage) -> None:
        await backend.added(storage, task="b")
        await backend.added(storage, task="a")
        assert [one.name for one in await storage.tasks()] == ["a", "b"]

    async def test_what_people_did_is_told_page_by_page(self, backend: Backend, storage: Storage) -> None:
        for job in await backend.added(storage, 5):
            await storage.cancel(job.id, who="ann")
        first = await storage.audit(cursor=None, limit=3)
        rest = await storage.audit(cursor=first.next_cursor, limit=3)
        assert [len(first.entries), len(rest.entries), rest.next_cursor] == [3, 2, None]
        assert len({one.job_id for one in (*first.entries, *rest.entries)}) == 5


class Searching:
    async def found(self, storage: Storage, **where: Any) -> list[str]:
        return [job.id for job in (await storage.find(JobFilter(**where), cursor=None, limit=10)).jobs]

    @pytest.mark.parametrize(
        ("name", "value", "stored_value"),
        [
            ("a", "42", "42"),
            ("a", "1.5", "1.5"),
            ("a", "text", '"text"'),
            ("a", "true", "true"),
            ("a", "false", "false"),
            ("a", "null", "null"),
            ("a.b.c", "x", '{"b": {"c": "x"}}'),
        ],
    )
    async def test_jobs_are_found_by_the_value_of_an_argument(
        self, backend: Backend, storage: Storage, name: str, value: str, stored_value: str
    ) -> None:
        [wanted] = await backend.added(storage, args_json=f'{{"a": {stored_value}}}')
        await backend.added(storage, args_json='{"a": "something else", "b": 42}')
        await backend.added(storage, args_json="damaged {")
        assert await self.found(storage, arguments={name: value}) == [wanted.id]
        assert await self.found(storage, arguments={name: value + "x"}) == []
        assert await self.found(storage, arguments={name: value, "none": "such"}) == []

    @pytest.mark.parametrize("name", ['a"b', "a'b", "$", "", ".", "a[0]", "\x00", "a\\"])
    async def test_odd_names_of_arguments_match_nothing(self, backend: Backend, storage: Storage, name: str) -> None:
        await backend.added(storage, args_json='{"a": 1}')
        assert await self.found(storage, arguments={name: "1"}) == []

    async def test_jobs_are_found_by_a_part_of_their_error(self, backend: Backend, storage: Storage) -> None:
        [wanted] = await backend.finished(storage, Dead(Failure("E", "100% of Disk_1 used", "")))
        await backend.finished(storage, Dead(Failure("E", "100 of DiskX1 used", "")))
        assert await self.found(storage, error_text="100%") == [wanted.id]
        assert await self.found(storage, error_text="disk_1") == [wanted.id], "whatever the case"
        assert await self.found(storage, error_text="\\") == []

    async def test_a_bounded_look_goes_on_where_it_stopped_until_all_are_found(
        self, backend: Backend, storage: Storage
    ) -> None:
        wanted = []
        for _ in range(4):
            wanted += await backend.added(storage, task="rare")
            await backend.added(storage, 9)
        seen: list[str] = []
        cursor, looks = None, 0
        while True:
            page = await storage.find(JobFilter(task="rare"), cursor=cursor, limit=2, look_at=7)
            seen += [job.id for job in page.jobs]
            looks += 1
            assert page.is_cut_short == (page.next_cursor is not None)
            if (cursor := page.next_cursor) is None:
                break
        assert seen == [job.id for job in reversed(wanted)]
        assert looks == 6

    async def test_a_bounded_look_skips_what_was_deleted(
        self, backend: Backend, storage: Storage, clock: ManualClock
    ) -> None:
        [old] = await backend.added(storage, queue="old")
        await backend.finished(storage, DONE, 50)
        clock.advance(1)
        await storage.prune(JobState.SUCCEEDED, clock.now, limit=100)
        await backend.added(storage, 3)
        page = await storage.find(JobFilter(queue="old"), cursor=None, limit=5, look_at=3)
        assert (page.jobs, page.is_cut_short) == ([], True)
        page = await storage.find(JobFilter(queue="old"), cursor=page.next_cursor, limit=5, look_at=3)
        assert ([job.id for job in page.jobs], page.next_cursor) == ([old.id], None)

    @pytest.mark.parametrize("state", ["queued", "scheduled", "running", "dead", "cancelled"])
    async def test_what_is_rare_among_many_is_found_at_once_by_its_state(
        self, backend: Backend, storage: Storage, state: str
    ) -> None:
        job = await in_state(state, backend, storage)
        await backend.finished(storage, DONE, 20, queue="other")
        where = JobFilter(state=JobState(state))
        page = await storage.find(where, cursor=None, limit=5, look_at=5)
        assert ([one.id for one in page.jobs], page.next_cursor) == ([job.id], None)
        assert await storage.count(where, look_at=5) == Count(1)

    async def test_a_count_says_whether_it_saw_all(self, backend: Backend, storage: Storage) -> None:
        await backend.added(storage, 10)
        assert await storage.count(JobFilter(), look_at=4) == Count(4, is_all=False)
        assert await storage.count(JobFilter(), look_at=10) == Count(10)
        assert await storage.count(JobFilter(task="other"), look_at=10) == Count(0)
        await backend.finished(storage, DEAD, 3, queue="other")
        assert await storage.count(JobFilter(state=JobState.DEAD), look_at=2) == Count(2, is_all=False)
        assert await storage.count(JobFilter(state=JobState.DEAD), look_at=3) == Count(3)


class Together:
    async def test_only_matching_unfinished_jobs_are_cancelled_together(
        self, backend: Backend, storage: Storage
    ) -> None:
        dead = await in_state("dead", backend, storage)
        jobs = [await in_state(state, backend, storage) for state in ("running", "scheduled", "queued")]
        [other] = await backend.added(storage, queue="other")
        where = JobFilter(queue="default")
        assert await storage.cancel_matching(where, who="ann", limit=2) == 2
        assert await storage.cancel_matching(where, who="ann", limit=10) == 1, "whose end was asked for is passed over"
        states = [(await stored(storage, job.id)).state for job in (*jobs, other, dead)]
        assert states == ["running", "cancelled", "cancelled", "queued", "dead"]
        assert (await stored(storage, jobs[0].id)).cancel_requested
        for job in jobs:
            assert [(one.who, one.action) for one in await storage.audit_trail(job.id)] == [("ann", "cancel")]

    async def test_only_matching_finished_jobs_are_deleted_together(self, backend: Backend, storage: Storage) -> None:
        finished = [await in_state(state, backend, storage) for state in ("succeeded", "dead", "cancelled")]
        live = [await in_state(state, backend, storage) for state in ("running", "queued")]
        [other] = await backend.finished(storage, DEAD, task="other")
        assert await storage.delete_matching(JobFilter(task=WORK), who="ann", limit=2) == 2
        assert await storage.delete_matching(JobFilter(task=WORK), who="ann", limit=10) == 1
        assert [await storage.get(job.id) for job in finished] == [None, None, None]
        for job in (*live, other):
            await stored(storage, job.id)
        trail = (await storage.audit(cursor=None, limit=10)).entries
        assert {one.job_id for one in trail if one.action == "delete"} == {job.id for job in finished}

    async def test_more_than_one_piece_is_done_and_nothing_beyond_the_limit(
        self, backend: Backend, storage: Storage
    ) -> None:
        await backend.added(storage, 250)
        assert await storage.cancel_matching(JobFilter(), who="ann", limit=205) == 205
        assert (await storage.counts())[JobState.QUEUED] == 45
        assert await storage.retry_matching(JobFilter(), who="ann", limit=10) == 0, "only the dead are retried"
        assert await storage.delete_matching(JobFilter(), who="ann", limit=1_000) == 205
