"""What the parts of the writer hold to at their edges: what a failed claim took, when exactly the log is taken in."""

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from durableq.models import JobExtras, Retried, Succeeded
from durableq.storage.sqlite import checkpoint, versions
from durableq.storage.sqlite.checkpoint import CHECKPOINT_PAGES, WAL_ALARM_BYTES, Checkpointer
from durableq.storage.sqlite.connection import Location, connect
from durableq.storage.sqlite.group import LOOKED_FOR, Effects, claimed_by, still_held
from durableq.storage.sqlite.inbox import GROUP_WEIGHT, Inbox
from durableq.storage.sqlite.operation import Operation
from durableq.storage.sqlite.rows import leases_from_json
from tests.storage.support import BOOM, DONE
from tests.storage.test_group import NOW, Groups


@pytest.fixture
def groups(tmp_path: Path) -> Iterator[Groups]:
    groups = Groups(tmp_path / "jobs.db")
    yield groups
    groups.connection.close()


# -- claims --------------------------------------------------------------------------------------------------


def test_of_leases_that_were_taken_those_that_hold_still_are_told(groups: Groups) -> None:
    groups.run(*(groups.insert() for _ in range(3)))
    [(_, taken)], _ = groups.run(groups.exchange(room=3))
    first, second, third = leases_from_json(taken)
    assert leases_from_json(still_held(groups.connection, taken, 1)) == [first, second, third]
    groups.run(groups.exchange([(second, DONE)]))
    assert leases_from_json(still_held(groups.connection, taken, 1)) == [first, third]
    groups.run(groups.exchange([(first, DONE), (third, DONE)]))
    assert still_held(groups.connection, taken, 1) == "[]"


def test_leases_of_the_same_numbers_that_another_worker_holds_are_not_ones_own(groups: Groups) -> None:
    groups.run(groups.insert(), groups.insert())
    [(_, taken)], _ = groups.run(groups.exchange(room=2))
    own, other = leases_from_json(taken)
    groups.connection.execute("UPDATE durableq_jobs SET worker_id = 2 WHERE seq = ?", (other.seq,))
    assert leases_from_json(still_held(groups.connection, taken, 1)) == [own]


def test_a_claim_that_failed_took_nothing(groups: Groups) -> None:
    group: list[Operation] = [groups.exchange(room=1), groups.insert(), groups.exchange(), groups.exchange(room=1)]
    answers: list[Any] = [ValueError("no"), None, ([], "[]"), ([], "[[1]]")]
    assert claimed_by(group, answers) == {0: "[]", 3: "[[1]]"}
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        claimed_by(group, answers[:3])


def test_nobody_is_woken_for_as_many_jobs_as_are_looked_for(groups: Groups) -> None:
    inserts = [groups.insert() for _ in range(LOOKED_FOR)]
    assert not groups.run(*inserts, groups.exchange(room=LOOKED_FOR))[1].made_work


def test_a_success_with_follow_ups_whose_lease_was_lost_is_seen_at_the_first_try(groups: Groups) -> None:
    lost, held = groups.claimed(2)
    groups.run(groups.exchange([(lost, DONE)]))
    follow_ups = [groups.jobs.job(), groups.jobs.job()]
    settled = [(lease, Succeeded(None, (job,))) for lease, job in zip((lost, held), follow_ups, strict=True)]
    [(seqs, _)], effects = groups.run(groups.exchange(settled))
    assert (seqs, effects.made_work) == ([lost.seq], True)
    [(_, taken)], _ = groups.run(groups.exchange(room=9))
    assert [lease.id for lease in leases_from_json(taken)] == [follow_ups[1].id]


def test_the_first_limit_of_a_group_is_told(groups: Groups) -> None:
    def first_limit(*limits: int) -> int | None:
        return groups.run(*(groups.insert(extras=JobExtras(expires_at=limit)) for limit in limits))[1].first_limit

    assert [first_limit(9), first_limit(9, 5), first_limit(5, 9)] == [9, 5, 5]
    assert groups.run(groups.insert(), groups.insert(extras=JobExtras(deadline_at=7)))[1].first_limit == 7
    assert groups.run(groups.insert())[1].first_limit is None
    total = Effects(first_limit=7)
    total.include(Effects())
    assert total.first_limit == 7


def test_the_first_job_that_comes_due_is_told(groups: Groups) -> None:
    def first_of(*operations: Operation) -> int | None:
        return groups.run(*operations)[1].first_due

    soon, late = groups.insert(delay=5), groups.insert(delay=9)
    assert None is not soon.first_due != late.first_due
    assert first_of(soon, late) == soon.first_due == first_of(groups.insert(delay=9), groups.insert(delay=5))
    one, two, three, four = groups.claimed(4)
    first, second = (Retried(BOOM, run_at=NOW + seconds) for seconds in (5_000_000, 9_000_000))
    due = [groups.exchange([(lease, retried)]) for lease, retried in ((one, first), (two, second))]
    assert first_of(*due) == NOW + 5_000_000
    due = [groups.exchange([(lease, retried)]) for lease, retried in ((three, second), (four, first))]
    assert first_of(*due) == NOW + 5_000_000


# -- the inbox -----------------------------------------------------------------------------------------------


def test_a_writer_is_idle_only_while_it_waits_and_nothing_was_handed_over() -> None:
    inbox = Inbox()
    idle = [inbox.is_idle]
    inbox.gather(0)  # to look is not to wait
    idle.append(inbox.is_idle)
    inbox.gather(0.001)
    idle.append(inbox.is_idle)
    inbox.put([])
    assert [*idle, inbox.is_idle] == [False, False, True, False]


def test_a_full_group_takes_nothing_more_be_it_without_weight(groups: Groups) -> None:
    inbox = Inbox()
    full, weightless = groups.exchange(room=GROUP_WEIGHT), groups.exchange()
    inbox.put([full, weightless])
    inbox.gather(0)
    assert inbox.next_group() == [full]
    assert inbox.next_group() == [weightless]


# -- taking the log in ---------------------------------------------------------------------------------------


class Log:
    """A log of no pages, what takes it in, and a clock that stands still."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.location = Location(path)
        self.connection = connect(self.location)
        self.connection.execute("CREATE TABLE t (x)")
        self.checkpointer = Checkpointer(self.connection, self.location)
        self.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self.size, self.measured, self.checkpoints = 0, 0, 0
        self.now = 1_024.0
        self.connection.set_trace_callback(self._count)
        monkeypatch.setattr(checkpoint, "time", SimpleNamespace(monotonic=lambda: self.now))

    def write(self, pages: int) -> None:
        self.connection.execute("INSERT INTO t VALUES (zeroblob(?))", (pages * 4_096,))

    def taken_in(self, *, pages: float = 0) -> bool:
        """Whether the log is taken in after a commit that is estimated to have written so many pages."""
        if pages:
            self.checkpointer.note(round((pages - 4) * 5))
        before = self.checkpoints
        self.checkpointer.maybe(self._measure)
        return self.checkpoints > before

    def _measure(self) -> int:
        self.measured += 1
        return self.size

    def _count(self, statement: str) -> None:
        self.checkpoints += statement == "PRAGMA wal_checkpoint(PASSIVE)"


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Log]:
    log = Log(tmp_path / "jobs.db", monkeypatch)
    yield log
    log.checkpointer.close()
    log.connection.close()


def test_a_kernel_that_has_only_just_started_is_like_any_other(log: Log, caplog: pytest.LogCaptureFixture) -> None:
    log.now, log.size = 0.25, WAL_ALARM_BYTES + 1
    assert log.taken_in(pages=1_000)
    assert log.measured == 1
    assert len(caplog.records) == 1
    assert not log.taken_in()
    assert log.measured == 2, "at once, since it was taken in"


def test_each_wait_is_over_at_its_very_instant(log: Log, caplog: pytest.LogCaptureFixture) -> None:
    log.size = WAL_ALARM_BYTES + 1
    with contextlib.closing(connect(log.location)) as other:
        other.execute("BEGIN")
        other.execute("SELECT count(*) FROM t").fetchone()
        log.write(1)
        assert log.taken_in(pages=10_000)
        assert not log.taken_in(), "a reader holds it up"
        log.now = 1_024.0 + 0.05
        assert log.taken_in()
        assert log.measured == 2
        assert len(caplog.records) == 1
        log.now = 1_024.0 + 60.0
        assert log.taken_in()
        assert len(caplog.records) == 2
        other.execute("ROLLBACK")


def test_one_page_of_log_is_enough_to_learn_from(log: Log) -> None:
    log.connection.execute("PRAGMA user_version = 7")
    assert log.taken_in(pages=1_000)
    assert not log.taken_in(pages=1_000), "it was much less than a thousand pages"


def grown(log: Log) -> None:
    """Let the log be taken in because of its size alone."""
    assert not log.taken_in()
    log.size += CHECKPOINT_PAGES * 4_096 + 1
    log.now += 1
    assert log.taken_in()


def test_pages_that_nobody_counted_are_learnt_from_as_if_one_had_been(log: Log) -> None:
    log.write(10)
    grown(log)
    assert log.taken_in(pages=100), "ten pages were logged for each that was counted"


@pytest.mark.parametrize(("pages", "is_due"), [(19.8, False), (20, True)])
def test_no_page_counts_for_more_than_fifty(log: Log, pages: float, is_due: bool) -> None:
    log.write(200)
    grown(log)
    assert log.taken_in(pages=pages) is is_due


def test_after_the_log_was_taken_in_counting_begins_at_nothing(log: Log) -> None:
    assert log.taken_in(pages=1_000)
    assert not log.taken_in(pages=999)


# -- what is warned of ---------------------------------------------------------------------------------------


def test_a_warning_names_the_file_and_the_version(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(versions, "_said", set())
    monkeypatch.setattr(versions, "other_libraries", lambda: ("apsw", "sqlean"))
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 51, 2))
    versions.warn_of_other_libraries(Path("app.db"))
    versions.warn_of_sharing(Path("app.db"))
    libraries, sharing = (record.getMessage() for record in caplog.records)
    assert "beside Python's own sqlite3: apsw, sqlean. If it opens app.db" in libraries
    assert sharing.startswith(f"app.db is shared by several processes, and SQLite {sqlite3.sqlite_version} has the")
    assert f"or use SQLite {versions.FIXED_IN}" in sharing
