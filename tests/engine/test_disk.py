"""The disk refuses to take any more: nothing is lost, nothing is done twice, and it goes on by itself.

A limit on the size of files, set from outside, makes every write of a process fail while its pipes still work.
"""

import contextlib
import resource
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine.helpers import sql
from tests.engine.processes import Program, program
from tests.support import eventually_sync

OUTAGE_SECONDS = 2.0
LEASE_SECONDS = 1.5


@contextlib.contextmanager
def _nothing_can_be_written(*programs: Program, beyond: int = 0) -> Iterator[None]:
    """Let no file of these processes take a byte more, or none ``beyond`` a size."""
    for one in programs:
        _limit_files(one, beyond)
    try:
        yield
    finally:
        for one in programs:
            _limit_files(one, resource.RLIM_INFINITY)


def _limit_files(one: Program, size: int) -> None:
    _, most = resource.prlimit(one.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(one.pid, resource.RLIMIT_FSIZE, (size, most))


@pytest.mark.fault("F21")
@pytest.mark.foreign_bug(18, 27)
def test_work_that_was_done_while_the_disk_was_full_is_settled_afterwards_and_not_done_again(
    database: Path, tmp_path: Path
) -> None:
    go = tmp_path / "go"
    with program(database, lease=LEASE_SECONDS, heartbeat=0.5) as worker:
        job_id = worker.tell("until_exists", str(go))["id"]
        worker.hear("started", id=job_id)
        with _nothing_can_be_written(worker):
            go.touch()
            worker.hear("trouble", doing="settling and claiming jobs")
            time.sleep(OUTAGE_SECONDS)
        eventually_sync(lambda: sql(database, "SELECT state FROM durableq_jobs") == [("succeeded",)])
        assert sql(database, "SELECT attempt, crashes, result FROM durableq_jobs") == [(1, 0, str(worker.pid))]
        assert len(worker.events("started")) == 1
        assert worker.events("evicted") == worker.events("lease lost") == []
        # And it takes new work, without a restart.
        again = worker.tell("echo", 7)
        eventually_sync(lambda: _state(database, again["id"]) == "succeeded")


@pytest.mark.fault("F21")
def test_adding_to_a_full_disk_is_refused_and_works_again_afterwards(database: Path) -> None:
    with program(database) as worker:
        with _nothing_can_be_written(worker):
            first = worker.tell("echo", 1)
            assert (first["event"], first["error"] in ("NotStored", "StorageFull", "OutcomeUnknown")) == (
                "refused",
                True,
            )
        eventually_sync(lambda: worker.tell("echo", 2)["event"] == "added")
        eventually_sync(
            lambda: sql(database, "SELECT count(*) FROM durableq_jobs WHERE state != 'succeeded'") == [(0,)]
        )


@pytest.mark.fault("F21")
def test_a_full_disk_does_not_fill_the_log(database: Path) -> None:
    with program(database, lease=LEASE_SECONDS, heartbeat=0.5) as worker:
        worker.tell("echo", 1, delay=0.5)
        with _nothing_can_be_written(worker):
            time.sleep(OUTAGE_SECONDS)
            assert len(worker.complaints()) < 60, "a job is due all the while; it must not be tried without end"
        eventually_sync(lambda: sql(database, "SELECT state FROM durableq_jobs") == [("succeeded",)])


@pytest.mark.fault("R1")
def test_after_an_outage_longer_than_the_lease_nobody_takes_a_live_worker_for_dead(
    database: Path, tmp_path: Path
) -> None:
    """Nobody's renewal got through: who judged by that would start every running job a second time.

    The log is full but the file can be opened, as on a full disk: every transaction runs, and fails at its COMMIT.
    """
    go, log = tmp_path / "go", database.with_name("jobs.db-wal")
    options = {"lease": LEASE_SECONDS, "heartbeat": 0.7}
    with contextlib.ExitStack() as stack:
        one, two = (stack.enter_context(program(database, **options)) for _ in range(2))
        # A connection that stays open: when the last one is closed, SQLite empties the log and there is room again.
        stack.enter_context(contextlib.closing(sqlite3.connect(database))).execute("SELECT * FROM durableq_jobs")
        ids = [one.tell("until_exists", str(go))["id"] for _ in range(4)]
        eventually_sync(lambda: len(one.events("started")) + len(two.events("started")) == len(ids))
        for _ in range(3):
            with _nothing_can_be_written(one, two, beyond=log.stat().st_size):
                time.sleep(LEASE_SECONDS + 0.3)
            time.sleep(0.8)  # longer than a heartbeat: whoever judges wrongly does so now
        go.touch()
        eventually_sync(lambda: {_state(database, one_id) for one_id in ids} == {"succeeded"})
        assert [*one.events("reaped"), *two.events("reaped"), *one.events("evicted"), *two.events("evicted")] == []
        assert len(one.events("started")) + len(two.events("started")) == len(ids)
    assert sql(database, "SELECT DISTINCT attempt, crashes FROM durableq_jobs") == [(1, 0)]


def _state(database: Path, job_id: str) -> str:
    state: str = sql(database, "SELECT state FROM durableq_jobs WHERE id = ?", job_id)[0][0]
    return state
