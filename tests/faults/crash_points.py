"""One life of a queue, killed at a chosen statement of its writer, again and again: at each statement once.

``python -m tests.faults.crash_points DIRECTORY`` plays the life in forked children of one process, so that a death
costs a few milliseconds: first to its end, writing down what the file holds after each step, then once for every
statement of its transactions, each time in a directory of its own where that statement is the last. Every COMMIT is a
place to die twice: before it, and after it but before anybody hears of it. Says ``"done"`` when none is left.
"""

import asyncio
import contextlib
import gc
import json
import os
import signal
import sqlite3
import sys
import traceback
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import pytest

from durableq.models import Dead, Job, JobState, Retried, Succeeded
from durableq.storage.protocol import Storage
from tests.storage.faults import watch_writer
from tests.storage.support import BOOM, Backend, claim, runs_again, settle

JOBS: Final = 6
DEAD_WORKER: Final = 99
SNAPSHOT: Final = (
    "SELECT id, state, attempt, crashes, lease_no, worker_id, result, error_type FROM durableq_jobs ORDER BY seq",
    "SELECT seq, lease_no, error_type FROM durableq_attempts ORDER BY seq, lease_no",
    "SELECT action, job_id FROM durableq_audit ORDER BY rowid",
    "SELECT id FROM durableq_workers ORDER BY id",
)


def snapshot(database: Path) -> list[Any]:
    """Return what the file holds, as another program sees it; nothing when it has no tables yet."""
    with contextlib.closing(sqlite3.connect(database, timeout=10)) as connection:
        try:
            return [[list(row) for row in connection.execute(sql)] for sql in SNAPSHOT]
        except sqlite3.OperationalError:
            return []


async def life(backend: Backend) -> AsyncIterator[str]:
    """Do everything once that writes; each step is one transaction."""
    storage = await backend.open()
    yield "opened"
    await storage.register(lambda new_names: None)
    yield "registered"
    jobs = [replace(backend.job(), id=f"job-{number}") for number in range(JOBS)]
    await storage.insert(jobs)
    yield "added"
    succeeds, retries, dies, orphan = await claim(storage, limit=4)
    yield "claimed"
    again = Retried(BOOM, run_at=backend.clock.wall() + 10**12)
    await settle(storage, [(succeeds, Succeeded("1")), (retries, again), (dies, Dead(BOOM))])
    yield "settled"
    await asyncio.to_thread(storage.renew, backend.clock.boot() + 60_000_000, [orphan.key])
    yield "renewed"
    await storage.cancel(jobs[4].id, who="ann")
    yield "cancelled"
    await storage.retry(dies.id, who="ann")
    yield "retried by hand"
    _give_away(backend, orphan.id)
    yield "a worker died"
    await storage.reap(runs_again)
    yield "reaped"
    async for step in _the_end(backend, storage, jobs):
        yield step


async def _the_end(backend: Backend, storage: Storage, jobs: list[Job[Any]]) -> AsyncIterator[str]:
    backend.clock.advance(timedelta(days=8))
    await storage.prune(JobState.CANCELLED, backend.clock.now, 100)
    yield "pruned"
    await claim(storage)
    yield "claimed again"
    await storage.deregister()
    yield "deregistered"


def _give_away(backend: Backend, job_id: str) -> None:
    """Make a job one that a worker holds whose process is gone."""
    with contextlib.closing(sqlite3.connect(backend.url, timeout=10)) as outside, outside:
        row = (DEAD_WORKER, backend.clock.boot_id(), 2**50)
        outside.execute(
            "INSERT INTO durableq_workers (id, pid, boot_id, expires_at, started_at) VALUES (?, 1, ?, ?, 0)", row
        )
        outside.execute("UPDATE durableq_jobs SET worker_id = ? WHERE id = ?", (DEAD_WORKER, job_id))


class Killer:
    """Ends this process at a statement of a transaction; ``after`` its execution where that is a COMMIT."""

    def __init__(self, number: int, *, after: bool) -> None:
        self.seen = 0
        self.commits: list[int] = []
        self._number = number
        self._after = after

    def before(self, connection: sqlite3.Connection, sql: str) -> None:
        if not (connection.in_transaction or sql.startswith("BEGIN")):
            return  # the writer's own looks, which come when they come
        self.seen += 1
        if sql == "COMMIT":
            self.commits.append(self.seen)
        if self.seen == self._number:
            if self._after:
                connection.execute(sql)
            os.kill(os.getpid(), signal.SIGKILL)


async def _play(directory: Path, killer: Killer) -> None:
    """Live in a directory; append the name of each step, and what the file then holds, to a log."""
    watch_writer(pytest.MonkeyPatch(), killer.before)
    backend = Backend(str(directory / "jobs.db"))
    with (directory / "steps").open("a") as log:
        async for step in life(backend):
            log.write(json.dumps([step, killer.seen, snapshot(Path(backend.url))]) + "\n")
            log.flush()
    await backend.close()


def _forked(directory: Path, number: int, *, after: bool) -> int:
    """Live once in a child of this process; return how it ended: 0, or the signal below zero."""
    directory.mkdir()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            killer = Killer(number, after=after)
            asyncio.run(_play(directory, killer))
            (directory / "commits").write_text(json.dumps(killer.commits))
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


async def _warm_up(directory: Path) -> None:
    """Do once, before there are children, what the first life in a process has to do more than the later ones."""
    backend = Backend(str(directory / "jobs.db"))
    async for _ in life(backend):
        pass
    await backend.close()


def _places(*, opened: int, last: int, commits: list[int]) -> list[int]:
    """Return the numbers of the statements to die at: all, but of the many that make the schema one in five."""
    making = [number for number in range(1, opened + 1) if number % 5 == 1 or number in commits]
    return [*making, *range(opened + 1, last + 1)]


def main(directory: Path) -> None:
    (directory / "warm-up").mkdir()
    asyncio.run(_warm_up(directory / "warm-up"))
    gc.freeze()
    whole = directory / "whole"
    assert _forked(whole, 0, after=False) == 0, "the life itself failed"
    commits = json.loads((whole / "commits").read_text())
    steps = [json.loads(line) for line in (whole / "steps").read_text().splitlines()]
    for number in _places(opened=steps[0][1], last=steps[-1][1], commits=commits):
        for after in (False, True) if number in commits else (False,):
            status = _forked(directory / f"{number:03}{'-after' if after else ''}", number, after=after)
            assert status == -signal.SIGKILL, f"statement {number}: ended with {status}"
    print(json.dumps("done"), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
