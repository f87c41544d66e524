"""The thread that writes: what it counts, whom it asks, and what becomes of a group when something fails."""

import asyncio
import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from durableq.errors import (
    NotStored,
    OutcomeUnknown,
    QueueNotRunning,
    StorageBusy,
    StorageUnusable,
)
from durableq.models import ClaimRequest, Job, Lane, Released
from durableq.storage.sqlite import host, inbox
from durableq.storage.sqlite import writer as writing
from durableq.storage.sqlite.checkpoint import Checkpointer
from durableq.storage.sqlite.connection import (
    Location,
    connect,
)
from durableq.storage.sqlite.group import GroupRunner
from durableq.storage.sqlite.inbox import Inbox
from durableq.storage.sqlite.lookout import Listener
from durableq.storage.sqlite.operation import Addition, Insert, Operation, Transact, make_insert
from durableq.storage.sqlite.replies import NoReply
from durableq.storage.sqlite.sharing import acquire_writer, release_writer
from durableq.storage.sqlite.writer import GAP_SECONDS, Writer
from durableq.testing import ManualClock
from tests.storage.faults import FailingCommits
from tests.storage.support import DONE, WORK, Backend, claim, settle
from tests.storage.test_connection_details import Waits
from tests.storage.test_one_writer import Answer, rarer
from tests.support import eventually, eventually_sync


@pytest.fixture
def location(tmp_path: Path) -> Location:
    return Location(tmp_path / "jobs.db")


@pytest.fixture
def writer(location: Location) -> Iterator[Writer]:
    writer = acquire_writer(location, ManualClock())
    writer.opened.result(5)
    yield writer
    release_writer(writer)
    writer.closed.result(5)


def gaps_between_three_groups(writer: Writer, slept: list[float]) -> int:
    """Bring three groups at once; return how often the writer paused between them."""
    all_there, answers = threading.Event(), list[Answer]()

    def begin_to_count(connection: sqlite3.Connection) -> None:
        slept.clear()
        all_there.wait(5)

    writer.submit(Transact(reply=NoReply(), run=begin_to_count, solitary=True))
    for _ in range(2):
        operation, answer = rarer()
        operation.solitary = True
        writer.submit(operation)
        answers.append(answer)
    all_there.set()
    for answer in answers:
        answer.result(5)
    return slept.count(GAP_SECONDS)


def test_there_are_gaps_between_groups_while_others_share_the_file(
    writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(writing, "time", SimpleNamespace(monotonic=lambda: 1_000.0, sleep=slept.append))
    assert gaps_between_three_groups(writer, slept) == 0
    writer.lookout.others = (7,)
    assert gaps_between_three_groups(writer, slept) == 2
    writer.lookout.others = ()
    for seen_at, gaps in ((990.5, 2), (990, 0), (989.5, 0)):
        writer.lookout.saw_others_at = seen_at
        assert gaps_between_three_groups(writer, slept) == gaps, seen_at


def test_a_look_that_fails_is_told_of_and_the_writer_goes_on(
    location: Location, writer: Writer, caplog: pytest.LogCaptureFixture
) -> None:
    with contextlib.closing(connect(location)) as other:
        other.execute("ALTER TABLE durableq_tasks RENAME TO aside")
        for number in range(2):
            operation, answer = rarer(lambda connection: 7)
            writer.submit(operation)
            assert answer.result(5) == 7
            if number == 0:
                eventually_sync(lambda: f"looking for work in {location.path} failed: no such table" in caplog.text)
                other.execute("ALTER TABLE aside RENAME TO durableq_tasks")


def insert_of(jobs: Sequence[Job[Any]]) -> tuple[Insert, Answer]:
    answer = Answer()
    return make_insert([Addition(jobs, answer)], lambda name: None), answer


def answered(writer: Writer, run: Callable[[sqlite3.Connection], Any] = lambda connection: None) -> Any:
    """Let the writer run something in a transaction of its own, and return the answer."""
    operation, answer = rarer(run)
    writer.submit(operation)
    return answer.result(5)


def error_from(writer: Writer, run: Callable[[sqlite3.Connection], Any] = lambda connection: None) -> Any:
    found = answered(writer, run)
    assert isinstance(found, Exception), found
    return found


def test_the_writer_sleeps_as_long_as_the_lookout_says(writer: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    def sleep_seconds() -> float:
        asked.append(time.monotonic())
        return 0.001

    monkeypatch.setattr(writer.lookout, "sleep_seconds", sleep_seconds)
    answered(writer)
    eventually_sync(lambda: len(asked) > 20, within=2)


def test_what_a_commit_wrote_counts_towards_taking_the_log_in(
    location: Location, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted: list[tuple[int, ...]] = []
    monkeypatch.setattr(Checkpointer, "note", lambda self, *counts: noted.append(counts))
    jobs = Backend(str(location.path))
    for _ in range(2):
        noted.clear()
        insert, answer = insert_of([jobs.job() for _ in range(3)])
        writer.submit(insert)
        answer.result(5)
        answered(writer)  # the one before is done with all that belongs to it
    assert (3, insert.size) in noted, "with names that were known before"


def test_due_jobs_that_were_made_ready_count_towards_taking_the_log_in(
    location: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    noted: list[int] = []
    monkeypatch.setattr(Checkpointer, "note", lambda self, rows, size=0: noted.append(rows))
    clock, loop = ManualClock(), asyncio.new_event_loop()
    writer = acquire_writer(location, clock)
    jobs = Backend(str(location.path), clock)
    insert, answer = insert_of([jobs.job(delay=1) for _ in range(7)])
    writer.listen("worker", Listener(loop, 1, lambda new_names: None, lambda keys: None))
    writer.submit(insert)
    answer.result(5)
    clock.advance(1)
    answered(writer)
    eventually_sync(lambda: 7 in noted)
    release_writer(writer)
    writer.closed.result(5)
    loop.close()


def test_a_defect_of_the_writer_stores_nothing_of_the_group_and_the_next_one_is_written(
    writer: Writer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail_after_writing(connection: sqlite3.Connection, *_: object) -> None:
        connection.execute("CREATE TABLE half_done (x)")
        raise ZeroDivisionError("a defect")

    with monkeypatch.context() as patched:
        patched.setattr(GroupRunner, "run", lambda self, *arguments: fail_after_writing(*arguments))
        told = error_from(writer)
    assert type(told) is NotStored
    assert "ZeroDivisionError('a defect')" in str(told)
    assert "the group was not stored" in caplog.text
    asked = "SELECT count(*) FROM sqlite_schema WHERE name = 'half_done'"
    assert answered(writer, lambda connection: connection.execute(asked).fetchone()) == (0,)
    assert writer.trouble is None


def test_a_defect_beside_a_group_stops_the_writer_and_what_waits_is_told(
    location: Location, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = acquire_writer(location, ManualClock())
    writer.opened.result(5)
    all_there = threading.Event()
    first, before = rarer(lambda connection: all_there.wait(5))
    behind = [rarer() for _ in range(2)]
    for operation, _ in ((first, before), *behind):
        operation.solitary = True
        writer.submit(operation)
    monkeypatch.setattr(writer.lookout, "look", lambda connection: 1 / 0)
    all_there.set()
    assert before.result(5) is True
    for _, answer in behind:
        told = answer.result(5)
        assert type(told) is StorageUnusable
        assert "stopped on a defect: ZeroDivisionError" in str(told)
    assert writer.trouble is told
    assert [record.levelname for record in caplog.records] == ["CRITICAL"]
    with pytest.raises(StorageUnusable, match="stopped on a defect"):
        writer.submit(rarer()[0])
    writer.closed.result(5)
    release_writer(writer)


def test_what_makes_a_file_unusable_for_one_operation_does_so_for_all(
    location: Location, writer: Writer, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = StorageUnusable("two kernels on one file"), StorageUnusable("and another thing")

    def fail(error: Exception) -> Callable[[sqlite3.Connection], Any]:
        def run(connection: sqlite3.Connection) -> None:
            all_there.wait(5)
            raise error

        return run

    all_there = threading.Event()
    operations = [rarer(fail(first)), rarer(fail(second))]
    for operation, _ in operations:
        writer.submit(operation)
    all_there.set()
    assert [answer.result(5) for _, answer in operations] == [first, second]
    assert writer.trouble is first
    assert [record.getMessage() for record in caplog.records] == ["two kernels on one file"]
    with pytest.raises(StorageUnusable, match="two kernels"):
        writer.submit(rarer()[0])


def test_an_operation_that_fails_is_told_in_words_of_the_queue(writer: Writer) -> None:
    told = error_from(writer, lambda connection: connection.execute("SELECT x FROM missing"))
    assert type(told) is NotStored
    assert "no such table: missing" in str(told)
    assert writer.trouble is None


@pytest.mark.parametrize(
    ("whose", "words"),
    [
        ("nobody's", ""),
        ("another's", " by process 77"),
        ("our own", " by a transaction of this very process that has written"),
    ],
)
def test_who_has_the_write_lock_is_told_where_it_is_known(
    location: Location, monkeypatch: pytest.MonkeyPatch, whose: str, words: str
) -> None:
    holder = {"nobody's": None, "another's": 77, "our own": os.getpid()}[whose]
    held = {(location.shm, 120): holder}
    monkeypatch.setattr(host, "lock_holder", lambda path, byte: held[path, byte])
    assert writing.holder_of(location.path) == holder
    assert writing.locked_by(location.path).startswith(words)
    assert bool(writing.locked_by(location.path)) is (holder is not None)
    assert ("dq.within(session)" in writing.locked_by(location.path)) is (whose == "our own")


def test_only_the_impatient_are_refused_early_and_only_for_a_transaction_of_our_own(
    location: Location, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (inbox, writing):
        monkeypatch.setattr(module, "BEGIN_WITHIN_SECONDS", 4.0)
        monkeypatch.setattr(module, "IMPATIENT_SECONDS", 0.05)
    monkeypatch.setattr(writing, "ASK_WHO_SECONDS", 0.01)
    patient, answer = rarer()
    impatient, refused = rarer()
    impatient.impatient = True
    holders = iter([77, 77, *[host.own_pid()] * 1_000])
    monkeypatch.setattr(writing, "holder_of", lambda path: next(holders))
    with contextlib.closing(connect(location)) as other:
        other.execute("BEGIN IMMEDIATE")
        writer.hand_over([patient, impatient])
        told = refused.result(3)
        other.execute("ROLLBACK")
    assert type(told) is StorageBusy
    assert f"{location.path} took no write for 0 s: it was locked by a transaction of this very process" in str(told)
    assert answer.result(5) is None


def test_closing_does_not_wait_for_whoever_is_opening(location: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "CLOSING_SECONDS", 0.05)
    writer = acquire_writer(location, ManualClock())
    writer.opened.result(5)
    monkeypatch.setattr(writer.locks, "acquire", lambda byte: False)
    began = time.monotonic()
    release_writer(writer)
    writer.closed.result(5)
    assert 0.05 <= time.monotonic() - began < 2


def test_a_writer_that_cannot_open_lets_go_of_everything(location: Location) -> None:
    location.path.write_bytes(b"dear diary\n" * 100)
    writer = Writer(location, ManualClock())
    with pytest.raises(StorageUnusable):
        writer.opened.result(5)
    writer.closed.result(5)
    assert writer.locks.users == 0
    writer.close()
    with pytest.raises(QueueNotRunning, match="has been stopped"):
        writer.submit(rarer()[0])


async def test_after_a_failed_commit_whoever_may_claim_looks_anew(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits, woken = FailingCommits(monkeypatch), list[bool]()
    storage = await backend.open()
    await storage.register(woken.append)
    [held] = await backend.claimed(storage)
    await backend.added(storage)
    await claim(storage, limit=0)  # what came before has been told
    woken.clear()
    commits.count = 1
    await settle(storage, [(held, DONE)])
    await asyncio.sleep(0)
    assert woken == [], "a settle leaves nothing to claim"
    commits.count = 1
    assert await claim(storage) == []
    await eventually(lambda: woken == [False])
    assert len(await claim(storage)) == 1


async def test_an_addition_whose_commit_had_to_be_repeated_wakes_the_worker(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits, woken = FailingCommits(monkeypatch), list[bool]()
    storage = await backend.open()
    await storage.register(woken.append)
    await backend.claimed(storage)
    woken.clear()
    commits.count = 1
    await backend.added(storage)
    await eventually(lambda: bool(woken), within=2)


@pytest.mark.parametrize("hidden", [False, True])
async def test_a_lease_that_was_lost_is_told_though_the_commit_had_to_be_repeated(
    backend: Backend, monkeypatch: pytest.MonkeyPatch, hidden: bool
) -> None:
    commits = FailingCommits(monkeypatch)
    storage = await backend.worker()
    [lost] = await backend.claimed(storage)
    await settle(storage, [(lost, Released())])
    commits.count, commits.hidden = 1, hidden
    exchanged = await storage.exchange([(lost, DONE)], ClaimRequest(("default",), (Lane("loop", (WORK,), 1),)))
    assert exchanged.lost == {lost.seq}
    assert [lease.seq for lease in exchanged.leases] == ([lost.seq] if hidden else [])


async def test_an_unknown_outcome_names_its_jobs_one_after_another(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    commits = FailingCommits(monkeypatch)
    storage = await backend.open()
    commits.count = 2
    first, second = backend.job(), backend.job()
    with pytest.raises(OutcomeUnknown, match=f": {first.id}, {second.id}$") as caught:
        await storage.insert([first, second])
    assert caught.value.job_ids == (first.id, second.id)


def test_a_ring_lets_the_writer_look_soon_and_a_nudge_at_once(writer: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def look_soon(*, at_once: bool) -> bool:
        asked.append(at_once)
        return True

    nudge = writer.expect_foreign_commit(lambda: True)
    monkeypatch.setattr(writer.lookout, "look_soon", look_soon)
    writer.look_now()
    nudge()
    assert asked == [False, True]


def test_what_waited_too_long_though_nobody_had_the_lock_is_told_so(location: Location, writer: Writer) -> None:
    both_there = threading.Event()
    first, _ = rarer(lambda connection: both_there.wait(5))
    second, answer = rarer()
    first.solitary = True
    writer.submit(first)
    writer.submit(second)
    second.begin_by = time.monotonic() - 1
    both_there.set()
    assert isinstance(told := answer.result(5), StorageBusy)
    assert str(told).startswith(f"{location.path} took no write for 5 s: the disk or this process was held up; ")


def test_a_file_that_is_unusable_is_not_looked_at_any_more_and_the_writer_sleeps(
    location: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(connection: sqlite3.Connection) -> None:
        raise StorageUnusable("two kernels on one file")

    def expired(self: Inbox) -> list[Operation]:
        turns.append(writer.trouble is not None)
        return []

    writer = acquire_writer(location, ManualClock())
    writer.opened.result(5)
    looks, asked, turns = list[object](), list[bool](), list[bool]()
    monkeypatch.setattr(writing, "LOOK_SECONDS", 0.001)
    monkeypatch.setattr(Inbox, "expired", expired)
    monkeypatch.setattr(writer.lookout, "look", looks.append)
    monkeypatch.setattr(writer.lookout, "sleep_seconds", lambda: asked.append(writer.trouble is not None))
    error_from(writer, fail)
    eventually_sync(lambda: turns.count(True) > 5)
    release_writer(writer)
    writer.closed.result(5)
    assert looks == []
    assert True not in asked, "what it says leaves no pause where nobody looks"


def test_answers_that_are_fewer_than_their_operations_stop_the_writer(
    location: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = acquire_writer(location, ManualClock())
    writer.opened.result(5)
    monkeypatch.setattr(GroupRunner, "run", lambda self, *_: [])
    writer.submit(rarer()[0])
    eventually_sync(lambda: isinstance(writer.trouble, StorageUnusable))
    writer.closed.result(5)
    release_writer(writer)


def test_who_has_the_lock_is_asked_after_a_second_and_each_half_second_then(
    location: Location, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits, asked_at = Waits(), list[float]()

    def holder_of(path: Path) -> int:
        asked_at.append(waits.now - waits.began)
        return 77

    monkeypatch.setattr(writing, "time", waits)
    monkeypatch.setattr(writing, "holder_of", holder_of)
    other = sqlite3.connect(location.path, isolation_level=None, check_same_thread=False)
    with contextlib.closing(other):
        other.execute("BEGIN IMMEDIATE")
        waits.after, waits.afterwards = 4_400, partial(other.execute, "ROLLBACK")
        answered(writer)
    assert asked_at == [pytest.approx(seconds, abs=0.002) for seconds in (1.0, 1.5, 2.0)]


def test_that_we_had_the_lock_is_forgotten_with_the_wait(
    location: Location, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "holder_of", lambda path: host.own_pid())
    other = sqlite3.connect(location.path, isolation_level=None, check_same_thread=False)
    with contextlib.closing(other):
        for seconds_until_asked in (0.0, 60.0):  # the second time, nobody asks
            monkeypatch.setattr(writing, "IMPATIENT_SECONDS", seconds_until_asked)
            monkeypatch.setattr(inbox, "IMPATIENT_SECONDS", 0.0 if seconds_until_asked else 60.0)
            operation, answer = rarer()
            operation.impatient = True
            other.execute("BEGIN IMMEDIATE")
            writer.submit(operation)
            with pytest.raises(TimeoutError):
                answer.result(0.02)
            other.execute("ROLLBACK")
            assert answer.result(5) is None


def test_what_was_admitted_and_is_not_brought_is_counted_out(writer: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inbox, "WAITING_BYTES", 1_000)
    for _ in range(3):
        writer.admit(900)
        with pytest.raises(StorageBusy, match="900 bytes"):
            writer.admit(101)
        writer.forget(900)
