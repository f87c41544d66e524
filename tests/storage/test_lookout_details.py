"""Who hears of a commit and when, and how often somebody looks for those of others."""

import asyncio
import math
import sqlite3
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from durableq.errors import (
    InvariantBroken,
)
from durableq.models import JobExtras, LeaseKey
from durableq.storage.sqlite import host, lookout, schema
from durableq.storage.sqlite.connection import (
    Location,
    connect,
)
from durableq.storage.sqlite.group import Effects, GroupRunner
from durableq.storage.sqlite.insertion import batch_of, store
from durableq.storage.sqlite.lookout import LOOK_SECONDS, Listener, Lookout
from durableq.storage.sqlite.replies import LoopCalls
from durableq.storage.sqlite.statements import SQL
from durableq.testing import ManualClock
from tests.storage.support import Backend

TICK = 1 / 64
"""Seconds, without a rounding error."""


class Post:
    """A lookout over a database of its own, what it says to whom, and two clocks to be moved."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.connection = connect(Location(path))
        schema.migrate(self.connection, now=0)
        self.elsewhere = connect(Location(path))
        self.jobs = Backend(str(path))
        self.clock: ManualClock = self.jobs.clock
        self.loop = asyncio.new_event_loop()
        self.calls = LoopCalls()
        self.runner = GroupRunner(self.clock.wall)
        self.ringer = host.Ringer(path.parent)
        self.lookout = Lookout(self.clock, self.runner, self.ringer, self.calls)
        self.now = 1_000.0
        self._heard: list[object] = []
        self._rung: list[str] = []
        monkeypatch.setattr(self.ringer, "ring", self._ring)
        monkeypatch.setattr(lookout, "time", SimpleNamespace(monotonic=lambda: self.now))

    def close(self) -> None:
        self.ringer.close()
        self.loop.close()
        self.elsewhere.close()
        self.connection.close()

    def listen(self, name: str = "worker", worker_id: int = 1) -> None:
        def wake_up(new_names: bool) -> None:
            self._heard.append((name, "new names" if new_names else "work"))

        def cancel(keys: Collection[LeaseKey]) -> None:
            self._heard.append((name, sorted(keys)))

        self.lookout.listen(name, Listener(self.loop, worker_id, wake_up, cancel))

    def watch(self, name: str = "watcher") -> None:
        self.lookout.watch(name, self.loop, lambda: self._heard.append(name))

    def look(self, *, after: float = 0.0) -> int:
        self.now += after
        return self.lookout.look(self.connection)

    def begin(self) -> None:
        """Look for the first time, which tells of nobody."""
        self.look()
        self.said()

    def said(self) -> list[object]:
        """What was said on the loop since this was last asked."""
        self.calls.flush()
        self.loop.run_until_complete(asyncio.sleep(0))
        heard, self._heard = self._heard, []
        return heard

    def rung(self) -> list[str]:
        """The doorbells that were rung since this was last asked."""
        rung, self._rung = self._rung, []
        return rung

    def add(self, connection: sqlite3.Connection, count: int = 1, *, delay: float = 0) -> None:
        store(connection, batch_of([self.jobs.job(delay=delay) for _ in range(count)]), refuses=True)

    def worker(self, *, leases: bool = True) -> int:
        values = {"pid": 1, "boot_id": "boot", "expires_at": 1 if leases else None, "now": 0}
        worker_id = self.elsewhere.execute(SQL["register_worker"], values).lastrowid
        assert worker_id is not None
        return worker_id

    def states(self) -> list[str]:
        return [state for (state,) in self.connection.execute("SELECT state FROM durableq_jobs ORDER BY run_at, seq")]

    def _ring(self, worker_id: int, kind: host.Bell = host.WORK) -> None:
        self._rung.append(f"{worker_id}.{kind}")


@pytest.fixture
def post(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Post]:
    post = Post(tmp_path / "jobs.db", monkeypatch)
    yield post
    post.close()


def test_what_others_commit_is_seen_within_a_quarter_of_a_second(post: Post) -> None:
    post.listen()
    post.watch()
    post.look()
    assert sorted(map(str, post.said())) == ["('worker', 'work')", "watcher"]
    assert post.lookout.saw_others_at == -math.inf, "the first look tells of nobody"
    post.add(post.elsewhere)
    post.look(after=LOOK_SECONDS - TICK)
    assert post.said() == []
    post.look(after=TICK)
    assert post.said() == [("worker", "work"), "watcher"]
    assert post.lookout.saw_others_at == post.now
    post.look(after=LOOK_SECONDS)
    assert post.said() == [], "nothing was committed since"


def test_what_is_committed_here_is_not_taken_for_somebody_elses(post: Post) -> None:
    post.listen()
    post.begin()
    post.add(post.connection)
    post.look(after=LOOK_SECONDS)
    assert post.said() == []
    assert post.lookout.saw_others_at == -math.inf


@pytest.mark.parametrize(
    ("statement", "names"), [("insert_queue_names", '["mail"]'), ("insert_task_names", '[["tasks:mail", null]]')]
)
def test_names_that_others_bring_are_told_once(post: Post, statement: str, names: str) -> None:
    post.listen()
    post.begin()
    post.elsewhere.execute(SQL[statement], {"names": names})
    post.look(after=LOOK_SECONDS)
    assert post.said() == [("worker", "new names")]
    assert "mail" in str(post.runner.known_queues | post.runner.known_tasks)
    post.add(post.elsewhere)
    post.look(after=LOOK_SECONDS)
    assert post.said() == [("worker", "work")]


def test_whoever_has_left_hears_nothing(post: Post) -> None:
    for name in ("first", "second"):
        post.listen(name)
        post.watch(name)
    post.begin()
    post.lookout.unlisten("first")
    post.lookout.unwatch("first")
    post.lookout.announce(Effects(made_work=True, finished=True))
    assert post.said() == [("second", "work"), "second"]
    for _ in range(2):  # leaving twice is nothing
        post.lookout.unlisten("second")
        post.lookout.unwatch("second")
    post.lookout.announce(Effects(made_work=True, finished=True))
    assert post.said() == []


def test_the_writer_sleeps_until_the_next_look_when_anybody_is_there(post: Post) -> None:
    assert post.lookout.sleep_seconds() is None
    post.begin()
    assert post.lookout.sleep_seconds() is None
    post.watch()
    assert post.lookout.sleep_seconds() == LOOK_SECONDS
    post.lookout.unwatch("watcher")
    post.lookout.own_workers.add(1)
    assert post.lookout.sleep_seconds() == LOOK_SECONDS
    post.now += TICK
    assert post.lookout.sleep_seconds() == LOOK_SECONDS - TICK
    post.now += 1
    assert post.lookout.sleep_seconds() == 0
    post.begin()
    post.lookout.own_workers.clear()
    post.listen()
    assert post.lookout.sleep_seconds() == 0, "a look is due at once for who is new"
    post.begin()
    assert post.lookout.sleep_seconds() == LOOK_SECONDS


def test_a_kernel_that_has_only_just_started_is_like_any_other(post: Post) -> None:
    post.now = TICK
    post.watch()
    found = [post.lookout.sleep_seconds()]
    post.add(post.connection, delay=1)
    post.add(post.connection, delay=2)
    post.begin()
    post.listen()
    assert [*found, post.lookout.sleep_seconds()] == [0, 0]
    for _ in range(2):
        post.clock.advance(1)
        assert post.look() == 1


def test_the_writer_sleeps_no_longer_than_until_the_first_job_is_due(post: Post) -> None:
    post.listen()
    post.begin()
    wall = post.clock.wall()
    for first_due, seconds in ((250_000_000, LOOK_SECONDS), (125_000, 0.125), (200_000, 0.125), (62_500, 0.0625)):
        post.lookout.announce(Effects(first_due=wall + first_due))
        assert post.lookout.sleep_seconds() == seconds
    post.clock.advance(1)
    assert post.lookout.sleep_seconds() == 0
    post.lookout.unlisten("worker")
    post.watch()
    assert post.lookout.sleep_seconds() == LOOK_SECONDS, "who only waits for ends has no use for due jobs"


def test_due_jobs_are_made_ready_at_their_instant_and_their_workers_woken(post: Post) -> None:
    post.listen()
    post.add(post.connection, delay=2)
    post.add(post.connection, delay=1)
    post.begin()
    post.clock.advance(0.999999)
    assert post.look() == 0
    post.clock.advance(0.000001)
    assert post.lookout.sleep_seconds() == 0
    assert post.look() == 1
    assert post.said() == [("worker", "work")]
    assert post.states() == ["queued", "scheduled"]
    assert post.look() == 0
    assert post.lookout.sleep_seconds() == LOOK_SECONDS
    post.clock.advance(1)
    assert post.look() == 1, "at once, however soon after the one before"
    assert post.states() == ["queued", "queued"]
    post.clock.advance(60)
    assert post.look() == 0
    assert post.said() == [("worker", "work")]


def test_due_jobs_are_left_to_processes_that_have_workers(post: Post) -> None:
    post.watch()
    post.add(post.connection, delay=1)
    post.begin()
    post.clock.advance(1)
    assert post.look(after=1) == 0
    assert post.states() == ["scheduled"]


def test_many_due_jobs_are_made_ready_in_pieces(post: Post, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookout, "PROMOTE_AT_ONCE", 2)
    post.listen()
    post.add(post.connection, 5, delay=1)
    post.begin()
    post.clock.advance(1)
    for made_ready in (2, 2, 1):
        assert post.lookout.sleep_seconds() == 0
        assert post.look() == made_ready
        assert post.said() == [("worker", "work")]
        assert not post.connection.in_transaction
    assert post.look() == 0
    assert post.states() == ["queued"] * 5


def test_due_jobs_that_are_gone_wake_nobody(post: Post) -> None:
    post.listen()
    post.begin()
    post.lookout.announce(Effects(first_due=post.clock.wall()))
    assert post.look() == 0
    assert post.said() == []
    assert post.lookout.sleep_seconds() == LOOK_SECONDS


def test_while_another_holds_the_lock_due_jobs_are_tried_again_every_ten_milliseconds(post: Post) -> None:
    post.listen()
    post.add(post.connection, delay=1)
    post.begin()
    post.clock.advance(1)
    post.elsewhere.execute("BEGIN IMMEDIATE")
    for _ in range(3):
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            post.look()
        assert not post.connection.in_transaction
        assert post.lookout.sleep_seconds() == pytest.approx(0.01)
        tried_at = post.now
        assert post.look(after=0.009) == 0
        post.now = tried_at + 0.01
    post.elsewhere.execute("ROLLBACK")
    assert post.look() == 1
    assert post.states() == ["queued"]


def test_a_promotion_that_fails_leaves_no_transaction_open(post: Post) -> None:
    post.listen()
    post.add(post.connection, delay=1)
    post.begin()
    post.clock.advance(1)
    post.elsewhere.execute("CREATE TRIGGER broken BEFORE UPDATE ON durableq_jobs BEGIN SELECT raise(ABORT, 'no'); END")
    with pytest.raises(sqlite3.IntegrityError):
        post.look()
    assert not post.connection.in_transaction
    post.elsewhere.execute("DROP TRIGGER broken")
    assert post.look(after=TICK) == 1


def test_a_job_that_stays_due_at_its_very_instant_is_found_out(post: Post) -> None:
    post.listen()
    post.add(post.connection, delay=1)
    post.begin()
    post.elsewhere.execute("CREATE TRIGGER eat BEFORE UPDATE ON durableq_jobs BEGIN SELECT raise(IGNORE); END")
    post.clock.advance(1)
    with pytest.raises(InvariantBroken, match="making due jobs ready"):
        post.look()


def test_commits_ring_at_the_doors_of_those_whom_they_concern(post: Post) -> None:
    own, worker, client = post.worker(), post.worker(), post.worker(leases=False)
    post.lookout.own_workers.add(own)
    post.listen(worker_id=own)
    post.watch()
    post.begin()
    assert set(post.lookout.others) == {worker, client}
    work, finished = [f"{worker}.sock"], [f"{worker}.done", f"{client}.done"]
    for effects, said, rung in (
        (Effects(), [], []),
        (Effects(made_work=True), [("worker", "work")], work),
        (Effects(asked_to_cancel=True), [], work),
        (Effects(finished=True), ["watcher"], finished),
        (Effects(new_queues={"q"}), [("worker", "new names")], []),
        (Effects(new_tasks={"t"}), [("worker", "new names")], []),
        (Effects(made_work=True, new_tasks={"u"}), [("worker", "new names")], work),
    ):
        post.lookout.announce(effects)
        assert (post.said(), post.rung()) == (said, rung), effects
    assert post.runner.known_queues == {"q"}
    assert post.runner.known_tasks == {"t", "u"}


def test_the_first_of_all_limits_is_remembered(post: Post) -> None:
    post.begin()
    for announced, first in ((None, None), (7, 7), (9, 7), (None, 7), (3, 3)):
        post.lookout.announce(Effects(first_limit=announced))
        assert post.lookout.next_limit == first


def test_limits_that_others_bring_are_read(post: Post) -> None:
    post.begin()
    limited = [replace(post.jobs.job(), extras=JobExtras(expires_at=limit)) for limit in (9, 5)]
    store(post.elsewhere, batch_of(limited), refuses=True)
    post.look(after=LOOK_SECONDS)
    assert post.lookout.next_limit == 5


def test_tasks_that_were_described_are_not_described_again(post: Post) -> None:
    post.begin()
    for name in ("first", "second"):
        post.lookout.announce(Effects(new_tasks={name}))
    assert post.runner.described_tasks == {"first", "second"}


def test_who_comes_and_goes_is_known_with_the_next_look(post: Post) -> None:
    post.watch()
    post.begin()
    other = post.worker()
    known = [post.lookout.others]
    post.look(after=LOOK_SECONDS)
    known.append(post.lookout.others)
    post.connection.execute(SQL["delete_worker"], {"worker_id": other})
    post.look(after=LOOK_SECONDS)
    known.append(post.lookout.others)  # a change of our own shows in nothing
    post.lookout.saw_others_at = 0.0
    post.lookout.learn_again()
    post.look(after=LOOK_SECONDS)
    assert [*known, post.lookout.others] == [(), (other,), (other,), ()]
    assert post.lookout.saw_others_at == 0.0


def test_each_worker_is_told_which_of_its_own_jobs_shall_end(post: Post) -> None:
    post.listen("first", worker_id=1)
    post.listen("second", worker_id=2)
    post.begin()
    post.add(post.connection, 4)
    for worker_id, seqs in ((2, "[1,3]"), (3, "[2]"), (1, "[4]")):
        post.connection.execute(SQL["take"], {"seqs": seqs, "worker_id": worker_id, "now": 0})
    post.connection.execute("UPDATE durableq_jobs SET cancel_requested_at = 1 WHERE worker_id > 1")
    post.lookout.note_cancellations(post.connection)
    assert post.said() == [("second", [(1, 1), (3, 1)])]


def test_a_request_to_end_a_job_that_another_process_makes_is_heard(post: Post) -> None:
    post.listen()
    post.add(post.connection)
    post.connection.execute(SQL["take"], {"seqs": "[1]", "worker_id": 1, "now": 0})
    post.begin()
    post.elsewhere.execute("UPDATE durableq_jobs SET cancel_requested_at = 1")
    post.look(after=LOOK_SECONDS)
    assert ("worker", [(1, 1)]) in post.said()


def test_a_ring_makes_the_next_look_soon_but_not_too_soon(post: Post) -> None:
    post.watch()
    post.begin()
    assert post.lookout.look_soon()
    assert post.lookout.sleep_seconds() == pytest.approx(0.02), "not more often, however often others ring"
    assert not post.lookout.look_soon(), "that is the plan already"
    assert post.lookout.look_soon(at_once=True)
    assert post.lookout.sleep_seconds() == 0
    assert not post.lookout.look_soon(at_once=True)
    post.begin()
    post.now += 0.125
    assert post.lookout.look_soon()
    assert post.lookout.sleep_seconds() == 0
    post.add(post.elsewhere)
    post.look()
    assert post.said() == ["watcher"]
    assert post.lookout.sleep_seconds() == LOOK_SECONDS


# -- transactions of the application -------------------------------------------------------------------------


class Transaction:
    """One that an application has open, and that says so when it is asked."""

    def __init__(self) -> None:
        self.is_open = True
        self.asked = 0

    def __call__(self) -> bool:
        self.asked += 1
        return self.is_open


def test_a_transaction_of_the_application_is_looked_for_closely_while_it_is_open(post: Post) -> None:
    worker, transaction = post.worker(), Transaction()
    post.listen(worker_id=99)
    post.begin()
    post.lookout.expect_foreign_commit(transaction)
    assert post.lookout.sleep_seconds() == pytest.approx(0.005)
    for _ in range(5):
        post.look(after=0.0051)
        assert post.lookout.sleep_seconds() == pytest.approx(0.005)
    assert (post.said(), post.rung()) == ([], [])
    assert transaction.asked == 5
    post.add(post.elsewhere)
    post.look(after=0.0051)
    assert post.said() == [("worker", "work")]
    assert post.rung() == [f"{worker}.sock", f"{worker}.done"], "nobody else tells the other processes of it"


def test_a_transaction_that_is_over_is_looked_for_a_moment_more(post: Post) -> None:
    worker, transaction = post.worker(), Transaction()
    post.listen(worker_id=99)
    post.begin()
    post.lookout.expect_foreign_commit(transaction)
    transaction.is_open = False
    for _ in range(6):  # it is over with the first, and 0.08 s have passed with the last
        post.look(after=TICK)
        assert post.lookout.sleep_seconds() == pytest.approx(0.005)
    assert transaction.asked == 1, "what has said that it is over is not asked again"
    post.add(post.elsewhere)
    post.look(after=TICK)
    assert post.rung() == [f"{worker}.sock", f"{worker}.done"]
    post.add(post.elsewhere)
    post.look(after=TICK)
    assert post.lookout.sleep_seconds() == LOOK_SECONDS
    assert post.rung() == []


def test_a_transaction_that_stays_open_is_looked_for_closely_for_a_minute(post: Post) -> None:
    transaction = Transaction()
    post.watch()
    post.begin()
    post.lookout.expect_foreign_commit(transaction)
    post.look(after=60 - TICK)
    assert post.lookout.sleep_seconds() == pytest.approx(0.005)
    transaction.is_open = False
    post.look(after=TICK / 2)
    assert post.lookout.sleep_seconds() == pytest.approx(0.005)
    post.look(after=TICK / 2)
    assert post.lookout.sleep_seconds() == LOOK_SECONDS
    assert transaction.asked == 2


def test_expecting_a_commit_puts_off_no_look_that_is_due_before(post: Post) -> None:
    post.watch()
    post.begin()
    post.now += LOOK_SECONDS - 0.001
    post.lookout.expect_foreign_commit(Transaction())
    assert post.lookout.sleep_seconds() == pytest.approx(0.001)
