"""What a worker asks for, and what it keeps until it is written: the claimer and the settler, each on its own."""

from collections.abc import Collection
from datetime import UTC, datetime
from typing import Any

import pytest

from durableq.engine.claimer import Claimer
from durableq.engine.runners import LoopSlots, Slots
from durableq.engine.settler import AT_ONCE, Settler, announce
from durableq.events import (
    Emitter,
    JobCancelled,
    JobDied,
    JobReleased,
    JobRetried,
    JobSnoozed,
    JobSucceeded,
    LeaseLost,
    UnknownTasks,
)
from durableq.models import (
    Cancelled,
    ClaimRequest,
    Completed,
    Dead,
    Failure,
    Job,
    JobState,
    Lane,
    Lease,
    Names,
    Outcome,
    Released,
    Retried,
    Snoozed,
    Succeeded,
)
from durableq.registry import Registry
from tests.engine.helpers import collect

BOOM = Failure("ValueError", "boom", "Traceback: boom")
ERROR = ValueError("boom")
FOLLOW_UP: Job[Any] = Job(
    id="next", task="on_loop", queue="default", priority=0, state=JobState.QUEUED, args_json="{}", max_attempts=5,
    created_at=datetime(2026, 1, 1, tzinfo=UTC), run_at=datetime(2026, 1, 1, tzinfo=UTC),
)  # fmt: skip


def lease(seq: int = 1, *, task: str = "on_loop", crashes: int = 0) -> Lease:
    return Lease(seq, 1, f"id-{seq}", task, "default", "{}", 0, 1, 5, crashes, 0)


def leases(*tasks: str, crashes: int = 0) -> list[Lease]:
    return [lease(seq, task=task, crashes=crashes) for seq, task in enumerate(tasks)]


# -- what a worker asks for ----------------------------------------------------------------------------------


class Desk:
    """A claimer, and the room its runners have."""

    def __init__(self, queues: Collection[str] | None = None) -> None:
        async def on_loop() -> None: ...
        def in_thread() -> None: ...

        registry = Registry(None)
        registry.register(on_loop, name="on_loop", options={})
        registry.register(in_thread, name="in_thread", options={})
        self.runners: dict[str, Slots] = {"loop": LoopSlots(3), "thread": LoopSlots(2)}
        self.emitter = Emitter()
        self.unknown = collect(self.emitter, UnknownTasks)
        self.claimer = Claimer(registry=registry, runners=self.runners, emitter=self.emitter, queues=queues)

    def learn(self, queues: Collection[str] = ("default",), tasks: Collection[str] = ("on_loop", "in_thread")) -> None:
        self.claimer.learn(Names(frozenset(queues), frozenset(tasks)))

    def request(self, *, runs_a_suspect: bool = False) -> ClaimRequest | None:
        return self.claimer.request(runs_a_suspect=runs_a_suspect)

    def bring(self, *brought: Lease) -> None:
        claim = self.request()
        assert claim is not None
        self.claimer.note(claim, brought, self.claimer.news)


BOTH = ("on_loop", "in_thread")
LOOP, THREAD = Lane("loop", ("on_loop",), 3), Lane("thread", ("in_thread",), 2)


def test_a_worker_that_knows_no_queue_or_no_task_asks_for_nothing() -> None:
    desk = Desk()
    assert desk.request() is None
    desk.learn(queues=())
    assert desk.request() is None
    desk.learn(tasks=())
    assert desk.request() is None


def test_a_worker_asks_for_as_much_as_it_has_room_for_and_for_suspects_of_all_it_can_run() -> None:
    desk = Desk()
    desk.learn(queues=("mail", "default"))
    assert desk.request() == ClaimRequest(("default", "mail"), (LOOP, THREAD), BOTH)
    assert desk.claimer.queues == ("default", "mail")
    assert desk.claimer.tasks == BOTH
    desk.runners["loop"].occupied = 2
    desk.runners["thread"].occupied = 2
    assert desk.request() == ClaimRequest(("default", "mail"), (Lane("loop", ("on_loop",), 1),), ("on_loop",))
    desk.runners["loop"].occupied = 3
    assert desk.request() is None


def test_a_worker_serves_its_own_queues_only() -> None:
    desk = Desk(queues=["mail", "print"])
    desk.learn(queues=("mail", "default"))
    assert desk.claimer.queues == ("mail",)


def test_a_worker_that_runs_a_suspect_asks_for_no_other() -> None:
    desk = Desk()
    desk.learn()
    assert desk.request(runs_a_suspect=True) == ClaimRequest(("default",), (LOOP, THREAD))


def test_who_got_less_than_asked_for_is_not_asked_for_again_until_there_is_news() -> None:
    desk = Desk()
    desk.learn()
    desk.bring(*leases("on_loop", "on_loop", "on_loop", "in_thread"))
    assert desk.request() == ClaimRequest(("default",), (LOOP,))
    desk.bring(*leases("on_loop", "on_loop"))
    assert desk.request() is None
    desk.claimer.there_may_be_work()
    assert desk.request() == ClaimRequest(("default",), (LOOP, THREAD), BOTH)


def test_new_jobs_are_no_reason_to_ask_for_suspects_again() -> None:
    desk = Desk()
    desk.learn()
    desk.bring()
    assert desk.request() is None
    before = desk.claimer.news
    desk.claimer.there_are_new_jobs()
    assert desk.claimer.news == before + 1
    assert desk.request() == ClaimRequest(("default",), (LOOP, THREAD))


def test_suspects_do_not_count_as_what_a_runner_was_asked_for() -> None:
    desk = Desk()
    desk.learn()
    desk.bring(*leases("in_thread", "in_thread"), *leases("on_loop", "on_loop", "on_loop", crashes=1))
    assert desk.request() == ClaimRequest(("default",), (THREAD,))


def test_suspects_are_asked_for_one_at_a_time() -> None:
    desk = Desk()
    desk.learn()
    desk.bring()
    assert desk.request() is None
    desk.claimer.suspect_finished()
    assert desk.request() == ClaimRequest(("default",), (), BOTH)
    assert desk.request(runs_a_suspect=True) is None


def test_an_answer_that_news_overtook_ends_no_asking() -> None:
    desk = Desk()
    desk.learn()
    claim = desk.request()
    assert claim is not None
    before = desk.claimer.news
    desk.claimer.there_may_be_work()
    assert desk.claimer.news == before + 1
    desk.claimer.note(claim, [], before)
    assert desk.request() == claim


def test_unknown_tasks_are_told_once_and_left_alone() -> None:
    desk = Desk()
    desk.learn(tasks=("zz:gone", "on_loop", "aa:gone"))
    desk.learn(tasks=("zz:gone", "on_loop", "aa:gone"))
    assert desk.unknown == [UnknownTasks(("aa:gone", "zz:gone"))]
    desk.learn(tasks=("zz:gone", "aa:gone", "bb:gone"))
    assert desk.unknown[1:] == [UnknownTasks(("aa:gone", "bb:gone", "zz:gone"))]
    assert desk.claimer.tasks == ()


# -- what is kept until it is written ------------------------------------------------------------------------


def everything(emitter: Emitter) -> list[object]:
    told: list[object] = []
    for kind in (JobSucceeded, JobRetried, JobDied, JobCancelled, JobSnoozed, JobReleased, LeaseLost):
        emitter.subscribe(kind, told.append)
    return told


@pytest.mark.parametrize(
    ("outcome", "event"),
    [
        (Succeeded(None), JobSucceeded(lease())),
        (Completed(), JobSucceeded(lease())),
        (Retried(BOOM, 7, error=ERROR), JobRetried(lease(), BOOM, 7, ERROR)),
        (Dead(BOOM, error=ERROR), JobDied(lease(), BOOM, ERROR)),
        (Cancelled(BOOM), JobCancelled(lease(), BOOM)),
        (Snoozed(7), JobSnoozed(lease(), 7)),
        (Released(), JobReleased(lease())),
    ],
)
def test_each_end_is_told_with_all_that_is_known_of_it(outcome: Outcome | Completed, event: object) -> None:
    emitter = Emitter()
    told = everything(emitter)
    announce(emitter, lease(), outcome)
    assert told == [event]
    assert getattr(told[0], "error", None) is getattr(event, "error", None)


def test_an_outcome_is_kept_and_held_until_it_is_written() -> None:
    emitter, woken = Emitter(), []
    told = everything(emitter)
    settler = Settler(emitter, lambda: woken.append(True))
    assert settler.is_empty
    settler.add(lease(1), Succeeded(None))
    settler.add(lease(2), Dead(BOOM))
    batch = settler.take()
    assert settler.take() == batch == [(lease(1), Succeeded(None)), (lease(2), Dead(BOOM))]
    assert settler.held == {lease(1).key, lease(2).key}
    assert (len(woken), told, settler.is_empty) == (2, [], False)
    settler.written(batch, frozenset({2}))
    settler.written(batch[:1], frozenset())
    assert told == [JobSucceeded(lease(1)), LeaseLost(lease(2)), JobSucceeded(lease(1))]
    assert settler.is_empty
    assert settler.held == set()


def test_what_completed_in_its_own_transaction_is_told_and_not_written_again() -> None:
    emitter, woken = Emitter(), []
    told = everything(emitter)
    settler = Settler(emitter, lambda: woken.append(True))
    settler.add(lease(1), Completed())
    assert (told, woken, settler.is_empty) == ([JobSucceeded(lease(1))], [True], True)


def test_a_batch_is_bounded() -> None:
    settler = Settler(Emitter(), lambda: None)
    for seq in range(AT_ONCE + 1):
        settler.add(lease(seq), Succeeded(None))
    assert len(settler.take()) == AT_ONCE
    settler.written(settler.take(), frozenset())
    assert [one.seq for one, _ in settler.take()] == [AT_ONCE]


def test_a_job_for_which_something_else_is_to_be_written_first_waits_for_a_later_batch() -> None:
    settler = Settler(Emitter(), lambda: None)
    settler.add(lease(1), Succeeded(None))
    settler.add(lease(2), Succeeded(None))
    assert settler.take(but={lease(1).key, lease(3).key}) == [(lease(2), Succeeded(None))]
    assert settler.take() == [(lease(1), Succeeded(None)), (lease(2), Succeeded(None))]


@pytest.mark.parametrize(
    ("outcomes", "can_wait"),
    [
        ([], False),
        ([Succeeded(None)], True),
        ([Succeeded(None), Succeeded("1")], True),
        ([Succeeded(None)] * 3, False),
        ([Succeeded(None), Dead(BOOM)], False),
        ([Snoozed(7)], False),
        ([Succeeded(None, follow_ups=(FOLLOW_UP,))], False),
    ],
)
def test_nobody_waits_for_a_few_successes_and_for_each_other_end_somebody_may(
    outcomes: list[Outcome], can_wait: bool
) -> None:
    settler = Settler(Emitter(), lambda: None)
    for seq, outcome in enumerate(outcomes):
        settler.add(lease(seq), outcome)
    assert settler.has_only_successes(at_most=2) is can_wait


def test_after_an_eviction_all_that_waited_is_lost() -> None:
    emitter = Emitter()
    told = everything(emitter)
    settler = Settler(emitter, lambda: None)
    settler.add(lease(1), Succeeded(None))
    settler.add(lease(2), Dead(BOOM))
    settler.forget_all()
    assert told == [LeaseLost(lease(1)), LeaseLost(lease(2))]
    assert settler.is_empty
