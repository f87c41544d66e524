"""The writer's parts one by one: its inbox, its groups, its answers, its statements, and the leases it gave."""

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from durableq.clock import from_datetime
from durableq.errors import InvariantBroken, StorageBusy
from durableq.models import (
    Lease,
)
from durableq.storage.sqlite import statements, versions
from durableq.storage.sqlite.group import Effects, without_claims
from durableq.storage.sqlite.inbox import BEGIN_WITHIN_SECONDS, GROUP_WEIGHT, IMPATIENT_SECONDS, WAITING_BYTES, Inbox
from durableq.storage.sqlite.liveness import LEASES_REMEMBERED, LeaseNumbers
from durableq.storage.sqlite.operation import (
    HEAVY,
    ROW_OVERHEAD_BYTES,
    Addition,
    Exchange,
    Insert,
    Operation,
    Transact,
    answer,
    make_insert,
)
from durableq.storage.sqlite.replies import FutureReply, LoopCalls, NoReply, ThreadReply
from durableq.storage.sqlite.settling import (
    NOTHING,
    Settlement,
    settlement_of,
)
from durableq.storage.sqlite.statements import SQL, choose_statement
from tests.storage.support import DONE, WORK, Backend

NOW = 1_000_000


def lease(seq: int = 1, lease_no: int = 1, job_id: str = "id", settings: str | None = None) -> Lease:
    return Lease(seq, lease_no, job_id, WORK, "default", "{}", 0, 1, 5, 0, 0, settings=settings)


# -- replies -------------------------------------------------------------------------------------------------


async def test_a_loop_is_entered_once_for_all_that_it_is_told() -> None:
    loop, calls, told = asyncio.get_running_loop(), LoopCalls(), list[object]()
    calls.flush()
    good, bad, late = FutureReply(loop), FutureReply(loop), FutureReply(loop)
    late.future.cancel()
    for reply, result in ((good, 7), (bad, ValueError("no")), (late, 8)):
        reply.answer(result, calls)
    NoReply().answer(9, calls)
    calls.add(loop, lambda: told.append("all"))
    assert not good.future.done()
    await asyncio.to_thread(calls.flush)
    assert await good.future == 7
    with pytest.raises(ValueError, match="no"):
        await bad.future
    assert told == ["all"]
    calls.flush()
    await asyncio.sleep(0)
    assert told == ["all"]


def test_a_loop_that_is_closed_is_told_nothing() -> None:
    loop, calls = asyncio.new_event_loop(), LoopCalls()
    loop.close()
    calls.add(loop, lambda: None)
    calls.flush()


def test_a_thread_waits_for_its_answer() -> None:
    for result in (7, None, KeyError("no")):
        reply, got = ThreadReply(), list[object]()

        def wait(reply: ThreadReply = reply, got: list[object] = got) -> None:
            try:
                got.append(reply.wait())
            except KeyError as error:
                got.append(error)

        thread = threading.Thread(target=wait, daemon=True)
        thread.start()
        reply.answer(result, LoopCalls())
        thread.join(5)
        assert got == [result]


# -- statements ----------------------------------------------------------------------------------------------


def test_statements_are_loaded_by_name_without_their_comments() -> None:
    assert all(sql and "--" not in sql and sql == sql.strip() for sql in SQL.values())
    assert all(name == name.strip() and name.isidentifier() for name in SQL)
    assert statements._load() == SQL


def test_a_claim_chooses_from_each_lane_and_from_suspects_only_when_asked() -> None:
    both = choose_statement(2, True)
    assert both.count("UNION ALL") == 2
    assert SQL["choose_suspect"] in both
    assert "LANE" not in both
    for lane in (0, 1):
        assert SQL["choose_lane"].replace("LANE", str(lane)) in both
    assert choose_statement(1, False).count("UNION ALL") == 0
    assert SQL["choose_suspect"] not in choose_statement(1, False)


# -- leases that were given before ---------------------------------------------------------------------------


def test_a_lease_is_given_once_and_only_with_a_higher_number() -> None:
    numbers = LeaseNumbers()
    numbers.check([lease(1, 1, "a"), lease(2, 1, "b")])
    numbers.check([lease(1, 2, "a")])
    for bad in ([lease(1, 2, "a")], [lease(1, 1, "a")], [lease(2, 5, "c")], [lease(3, 1, "x"), lease(3, 2, "x")]):
        with pytest.raises(InvariantBroken, match="claiming job"):
            numbers.check(bad)
    numbers.check([lease(1, 3, "a"), lease(2, 2, "b"), lease(9, 1, "z")])


def test_leases_are_remembered_for_a_while_and_no_longer() -> None:
    numbers = LeaseNumbers()
    numbers.check([lease(1, 7, "a")])
    numbers.check([lease(seq, 1, str(seq)) for seq in range(10, 10 + LEASES_REMEMBERED - 1)])
    with pytest.raises(InvariantBroken):
        numbers.check([lease(1, 7, "a")])
    numbers.check([lease(seq, 1, str(seq)) for seq in range(20_000, 20_000 + LEASES_REMEMBERED - 1)])
    with pytest.raises(InvariantBroken):
        numbers.check([lease(1, 7, "a")])
    numbers.check([lease(50_000, 1, "last")])
    numbers.check([lease(1, 7, "a")])


# -- groups --------------------------------------------------------------------------------------------------


def transact(*, urgent: bool = False, solitary: bool = False, impatient: bool = False) -> Transact:
    return Transact(reply=NoReply(), run=lambda connection: None, urgent=urgent, solitary=solitary, impatient=impatient)


def insert(backend: Backend, count: int = 1, **fields: Any) -> Insert:
    return make_insert([Addition([backend.job(**fields) for _ in range(count)], NoReply())], lambda name: None)


@pytest.fixture
def jobs(tmp_path: Path) -> Backend:
    """Makes jobs; there is no database."""
    return Backend(str(tmp_path / "unused.db"))


def test_an_insert_says_all_that_its_jobs_amount_to(jobs: Backend) -> None:
    ready, later, last = jobs.job(queue="mail", args_json='{"a":1}'), jobs.job(delay=60), jobs.job(task="t", delay=90)
    one = make_insert([Addition([ready, last], NoReply(), impatient=True), Addition([later], NoReply())], str)
    assert (one.count, one.weight, one.impatient, one.alone, one.urgent) == (3, 3, True, False, False)
    assert (set(one.queues), set(one.tasks)) == ({"mail", "default"}, {WORK, "t"})
    assert (one.first_due, one.has_queued) == (from_datetime(later.run_at), True)
    assert one.size == 3 * ROW_OVERHEAD_BYTES + len('{"a":1}') + 2 * len("{}")
    assert [row[0] for row in one.batch.plain] == [ready.id, last.id, later.id]
    waiting = insert(jobs, delay=60)
    assert (waiting.has_queued, waiting.impatient) == (False, False)
    assert insert(jobs).first_due is None


def test_only_a_large_insert_goes_alone(jobs: Backend) -> None:
    assert [insert(jobs, count).alone for count in (HEAVY, HEAVY + 1)] == [False, True]
    assert [transact(solitary=alone).alone for alone in (False, True)] == [False, True]


def exchange(settlement: Settlement = NOTHING, **fields: Any) -> Exchange:
    return Exchange(reply=NoReply(), worker_id=1, settlement=settlement, **fields)


def test_an_exchange_weighs_what_it_settles_and_could_claim() -> None:
    settlement = settlement_of([(lease(1), DONE), (lease(2), DONE)], NOW)
    assert exchange(settlement, lanes=(("[]", 3), ("[]", 4))).weight == 9
    assert exchange(settlement, logs="[1]").size == settlement.size + 3 + 400
    assert exchange().size == len("[]") + 400
    assert transact().size == 200
    assert transact().weight == 1
    assert not exchange().claims
    assert exchange(lanes=(("[]", 3),)).claims
    assert exchange(suspect_tasks="[]").claims


def test_what_is_replayed_after_a_failed_commit_claims_nothing(jobs: Backend) -> None:
    claiming, adding = exchange(lanes=(("[]", 3),), suspect_tasks="[]"), insert(jobs)
    replayed, added = without_claims([claiming, adding])
    assert isinstance(replayed, Exchange)
    assert (replayed.claims, replayed.reply, added) == (False, claiming.reply, adding)
    assert claiming.claims, "who set out with it is answered with what it took"


def test_effects_add_up() -> None:
    total = Effects()
    total.include(Effects(written_bytes=3, new_queues={"q"}, first_due=9))
    assert total == Effects(written_bytes=3, new_queues={"q"}, first_due=9)
    total.include(Effects(made_work=True, finished=True, asked_to_cancel=True, written_bytes=4, new_tasks={"t"}))
    total.include(Effects(first_due=5, first_limit=8, new_queues={"r"}))
    total.include(Effects(first_due=7, first_limit=6))
    assert total == Effects(True, True, True, {"q", "r"}, {"t"}, 5, 6, 0, 7)


def test_an_insert_is_answered_addition_by_addition(jobs: Backend) -> None:
    replies = [ThreadReply(), ThreadReply()]
    one = make_insert([Addition([jobs.job()], reply) for reply in replies], str)
    answer(one, [1, 2], LoopCalls())
    assert [reply.wait() for reply in replies] == [1, 2]
    answer(one, None, LoopCalls())
    assert [reply.wait() for reply in replies] == [None, None]
    with pytest.raises(ValueError, match="argument 2 is"):
        answer(one, [1], LoopCalls())
    rare = Transact(reply=replies[0], run=lambda connection: None)
    answer(rare, [7], LoopCalls())
    assert replies[0].wait() == [7]


# -- the inbox -----------------------------------------------------------------------------------------------


def inbox_of(*operations: Operation) -> Inbox:
    inbox = Inbox()
    inbox.put(operations)
    inbox.gather(0)
    return inbox


def test_what_is_urgent_goes_first_and_the_rest_by_arrival() -> None:
    first, second, urgent = transact(), transact(), transact(urgent=True)
    inbox = inbox_of(first, second, urgent)
    assert not inbox.is_empty()
    group = inbox.next_group()
    assert [one is two for one, two in zip(group, (urgent, first, second), strict=True)] == [True] * 3
    assert inbox.is_empty()
    assert inbox.next_group() == []


def test_a_group_is_full_at_its_weight_but_takes_one_of_any_weight(jobs: Backend) -> None:
    half, more = insert(jobs, GROUP_WEIGHT // 2), insert(jobs, GROUP_WEIGHT // 2 + 1)
    assert len(inbox_of(half, half, half).next_group()) == 2
    assert len(inbox_of(half, more).next_group()) == 1
    inbox = inbox_of(half, transact(), more, transact())
    assert [len(inbox.next_group()) for _ in range(3)] == [2, 2, 0]
    assert len(inbox_of(insert(jobs, GROUP_WEIGHT + 1), transact()).next_group()) == 1


def test_what_goes_alone_waits_for_what_must_not_wait_for_it(jobs: Backend) -> None:
    heavy, light, settling, other = transact(solitary=True), insert(jobs), exchange(), transact(solitary=True)
    inbox = inbox_of(light, heavy, insert(jobs), settling, other)
    groups = [inbox.next_group() for _ in range(5)]
    assert groups[0] == [light]
    assert groups[1][0] is settling
    assert groups[2][0] is heavy
    assert [len(group) for group in groups] == [1, 1, 1, 1, 1]
    assert isinstance(groups[3][0], Insert)
    assert groups[4][0] is other


def test_what_waits_is_bounded_in_bytes() -> None:
    inbox = Inbox()
    inbox.admit(WAITING_BYTES - 400)
    inbox.admit(200)
    inbox.admit(200)
    with pytest.raises(StorageBusy, match=f"{WAITING_BYTES:,} bytes"):
        inbox.admit(1)
    inbox.done([transact(), transact()])
    inbox.admit(400)
    inbox.release(WAITING_BYTES)
    inbox.admit(WAITING_BYTES)


def test_only_what_has_waited_too_long_is_removed() -> None:
    young, old = transact(), transact()
    inbox = inbox_of(old, young)
    now = time.monotonic()
    assert BEGIN_WITHIN_SECONDS - 1 < young.begin_by - now <= BEGIN_WITHIN_SECONDS
    assert inbox.expired() == []
    old.begin_by = now - 1
    assert inbox.expired()[0] is old
    assert inbox.next_group()[0] is young
    assert inbox.expired() == []
    young.begin_by = now
    assert not inbox.is_late(young, now)
    assert inbox.is_late(young, now + 0.001)


def test_what_is_in_front_because_it_is_urgent_hides_nothing_that_is_late() -> None:
    old, urgent = transact(), transact(urgent=True)
    inbox = inbox_of(old, urgent)
    old.begin_by = time.monotonic() - 1
    assert inbox.expired()[0] is old


def test_the_impatient_wait_for_a_second_when_it_is_us_who_hold_the_lock() -> None:
    patient, impatient = transact(), transact(impatient=True)
    inbox = inbox_of(patient, impatient)
    at = impatient.begin_by - BEGIN_WITHIN_SECONDS + IMPATIENT_SECONDS + 0.001
    assert not inbox.is_late(impatient, at)
    inbox.is_held_by_us = True
    assert inbox.is_late(impatient, at)
    assert not inbox.is_late(impatient, at - 0.002)
    assert not inbox.is_late(patient, at)
    impatient.begin_by -= IMPATIENT_SECONDS / 2
    assert inbox.expired() == []
    impatient.begin_by -= 1
    assert inbox.expired()[0] is impatient


def test_a_queue_that_stops_lets_nothing_wait_longer() -> None:
    one = transact()
    inbox = inbox_of(one)
    inbox.hurry(60)
    assert inbox.expired() == []
    inbox.hurry(-0.001)
    assert inbox.expired()[0] is one


def test_the_writer_sleeps_until_something_arrives() -> None:
    inbox = Inbox()
    begun = time.monotonic()
    inbox.gather(0)
    assert time.monotonic() - begun < 0.05
    inbox.gather(0.1)
    assert time.monotonic() - begun >= 0.1
    idle = [inbox.is_idle]
    sleeper = threading.Thread(target=inbox.gather, args=(None,), daemon=True)
    sleeper.start()
    inbox.put([transact()])
    sleeper.join(5)
    assert not sleeper.is_alive()
    idle.append(inbox.is_idle)
    assert idle == [True, False]
    assert len(inbox.next_group()) == 1
    inbox.put([])
    inbox.gather(None)
    assert inbox.is_empty()


# -- versions of SQLite --------------------------------------------------------------------------------------


def test_versions_with_the_bug_are_known() -> None:
    bad = [(3, 7, 0), (3, 40, 1), (3, 44, 5), (3, 45, 0), (3, 50, 6), (3, 51, 2)]
    good = [(3, 6, 23), (3, 44, 6), (3, 44, 9), (3, 50, 7), (3, 51, 3), (3, 52, 0), (4, 0, 0)]
    assert [version for version in (*bad, *good) if versions.has_wal_reset_bug(version)] == bad


def test_other_libraries_are_named_in_one_order() -> None:
    assert versions.other_libraries(["sqlean", "os", "apsw"]) == ("apsw", "sqlean")
    assert versions.other_libraries(["os"]) == ()


def test_what_is_impatient_goes_although_something_patient_came_before_it() -> None:
    patient, impatient = transact(), transact(impatient=True)
    inbox = inbox_of(patient, impatient)
    for one in (patient, impatient):
        one.begin_by = time.monotonic() + BEGIN_WITHIN_SECONDS - IMPATIENT_SECONDS - 0.1
    assert inbox.expired() == []
    inbox.is_held_by_us = True
    assert inbox.expired() == [impatient]
    assert inbox.next_group() == [patient]
