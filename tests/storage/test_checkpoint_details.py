"""When the log is taken in: what counts towards it, what holds it up, and when somebody is told."""

import contextlib
import logging
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from durableq.storage.sqlite.checkpoint import CHECKPOINT_PAGES, WAL_ALARM_BYTES, Checkpointer
from durableq.storage.sqlite.connection import Location, connect

PAGE = 4096
ROWS = 4_980
"""With the pages of the commit itself, so many rows are taken for a thousand pages."""


class Log:
    """A database with a log, what takes it in, and a clock to be moved."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.location = Location(path)
        self.connection = connect(self.location)
        self.connection.execute("CREATE TABLE t (x)")
        self.checkpointer = Checkpointer(self.connection, self.location)
        self.size, self.asked, self.checkpoints = 0, 0, 0
        self.connection.set_trace_callback(self._count)
        self.now = 1_000.0
        monkeypatch.setattr(time, "monotonic", self._look)

    def write(self, pages: int = 3) -> None:
        self.connection.execute("INSERT INTO t VALUES (zeroblob(?))", (pages * PAGE,))

    def taken_in(self, *, after: float = 0.0) -> bool:
        """Whether the log is taken in when it is looked at some seconds later."""
        self.now += after
        before = self.checkpoints
        self.checkpointer.maybe(self._measured)
        return self.checkpoints > before

    def _look(self) -> float:
        """A millisecond passes with each look at the clock."""
        self.now += 0.001
        return self.now

    def _measured(self) -> int:
        self.asked += 1
        return self.size

    def _count(self, statement: str) -> None:
        self.checkpoints += statement == "PRAGMA wal_checkpoint(PASSIVE)"

    @contextlib.contextmanager
    def other(self, begin: str) -> Iterator[sqlite3.Connection]:
        with contextlib.closing(sqlite3.connect(self.location.path, isolation_level=None)) as other:
            other.execute(begin)
            other.execute("SELECT count(*) FROM t").fetchone()
            yield other
            other.execute("ROLLBACK")


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Log]:
    log = Log(tmp_path / "jobs.db", monkeypatch)
    yield log
    log.checkpointer.close()
    log.connection.close()


def test_rows_commits_and_bytes_add_up_to_pages(log: Log) -> None:
    log.checkpointer.note(ROWS - 1)
    assert not log.taken_in()
    log.checkpointer.note(0, CHECKPOINT_PAGES * PAGE)
    assert not log.taken_in(), "nothing was changed"
    log.checkpointer.note(1)
    assert log.taken_in()


@pytest.mark.parametrize(("pages", "is_due"), [(995, False), (996, True)])
def test_what_rows_carry_counts_by_its_size(log: Log, pages: int, is_due: bool) -> None:
    log.checkpointer.note(1, pages * PAGE)
    assert log.taken_in() is is_due


def test_exactly_a_thousand_pages_are_enough(log: Log) -> None:
    log.checkpointer.note(ROWS)
    assert log.taken_in()
    assert not log.taken_in(), "it begins to count anew"


def test_what_others_write_shows_in_the_logs_size(log: Log) -> None:
    log.size = 100
    assert not log.taken_in()
    log.size = 100 + CHECKPOINT_PAGES * PAGE
    assert not log.taken_in(after=0.06)
    log.size += 1
    assert log.taken_in(after=0.06)
    assert not log.taken_in(), "from its size after that"
    log.size += CHECKPOINT_PAGES * PAGE
    assert not log.taken_in(after=0.06)
    log.size += 1
    assert log.taken_in(after=0.06)


def test_the_size_is_not_asked_for_all_the_time(log: Log) -> None:
    for after, asked in ((0.0, 1), (0.0, 1), (0.04, 1), (0.02, 2), (0.0, 2)):
        log.taken_in(after=after)
        assert log.asked == asked
    log.checkpointer.note(ROWS)
    log.taken_in()
    log.taken_in()
    assert log.asked == 3, "at once after the log was taken in"


def test_what_a_row_really_takes_is_learnt(log: Log) -> None:
    log.write(pages=3)
    log.checkpointer.note(ROWS)
    assert log.taken_in()
    log.checkpointer.note(5 * ROWS)
    assert not log.taken_in(), "much less was logged than was taken for, so it counts for a fifth"
    log.checkpointer.note(100)
    assert log.taken_in()
    log.write(pages=2_000)
    log.checkpointer.note(5 * ROWS)
    log.checkpointer.note(100)
    assert log.taken_in()
    log.checkpointer.note(ROWS)
    assert not log.taken_in()
    log.checkpointer.note(2 * ROWS)
    assert log.taken_in(), "about 2,000 pages were logged where 5,000 were taken for"


def test_a_log_that_needs_no_checkpoint_teaches_nothing(log: Log) -> None:
    log.connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    log.checkpointer.note(ROWS)
    assert log.taken_in()
    log.checkpointer.note(ROWS)
    assert log.taken_in()


def test_nothing_is_left_locked(log: Log) -> None:
    log.checkpointer.note(ROWS)
    assert log.taken_in()
    with log.other("BEGIN IMMEDIATE"):
        pass


def test_a_long_reader_is_asked_less_and_less_often(log: Log) -> None:
    log.write()
    with log.other("BEGIN"):
        log.write()
        log.checkpointer.note(ROWS)
        assert log.taken_in()
        for wait in (0.05, 0.1, 0.2, 0.4, 0.8, 1.0, 1.0):
            log.checkpointer.note(10 * ROWS)
            assert not log.taken_in(after=wait - 0.02)
            assert log.taken_in(after=0.02)
    assert not log.taken_in(after=0.97)
    assert log.taken_in(after=0.04)
    log.checkpointer.note(100 * ROWS)
    assert log.taken_in(), "nobody holds it up any more"
    with log.other("BEGIN"):
        log.write()
        log.checkpointer.note(100 * ROWS)
        assert log.taken_in()
        log.checkpointer.note(100 * ROWS)
        assert log.taken_in(after=0.051), "it begins with a short wait again"


def test_a_lock_held_elsewhere_is_waited_for_a_moment_only(log: Log, caplog: pytest.LogCaptureFixture) -> None:
    log.checkpointer.note(ROWS)
    with log.other("BEGIN IMMEDIATE"):
        begun = log.now
        assert not log.taken_in()
        assert 0.02 <= log.now - begun < 0.03
        begun = log.now
        assert not log.taken_in()
        assert log.now - begun < 0.01, "not tried again at once"
    assert not log.taken_in()
    assert log.taken_in(after=0.05)
    assert caplog.records == []


def test_what_goes_wrong_is_told_and_tried_again_later(log: Log, caplog: pytest.LogCaptureFixture) -> None:
    log.checkpointer.note(ROWS)
    log.checkpointer.close()
    assert not log.taken_in()
    assert not log.taken_in(after=0.9)
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert f"checkpoint of {log.location.path} failed" in record.getMessage()
    assert "closed database" in record.getMessage()
    log.taken_in(after=0.2)
    assert len(caplog.records) == 2


def test_a_log_that_has_grown_too_large_is_told_of_once_a_minute(log: Log, caplog: pytest.LogCaptureFixture) -> None:
    log.size = WAL_ALARM_BYTES
    log.checkpointer.note(ROWS)
    log.taken_in()
    assert caplog.records == []
    log.size = WAL_ALARM_BYTES + 1024 * 1024
    for after, told in ((0.06, 1), (1.0, 1), (58.0, 1), (2.0, 2)):
        log.checkpointer.note(1_000 * ROWS)
        log.taken_in(after=after)
        assert len(caplog.records) == told, after
    assert f"log of {log.location.path} has grown to 65 MiB" in caplog.records[0].getMessage()
