"""A file that others lock, maintain and read meanwhile, and a writer that may never race a commit."""

import asyncio
import contextlib
import sqlite3
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from durableq import DurableQ, JobNotFound, JobState
from durableq.engine import reaper
from durableq.events import StorageTrouble
from durableq.storage.sqlite import host, inbox
from durableq.testing import ManualClock
from tests.engine.helpers import collect, finished, in_state, sql
from tests.engine.processes import program
from tests.storage.faults import watch_writer, write_lock_elsewhere
from tests.storage.support import Backend, PythonProcess
from tests.support import eventually, eventually_sync

BUSY_AFTER_SECONDS = 0.2
MAINTAINED_JOBS = 150


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "jobs.db"


@pytest.fixture
def soon_busy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give up waiting for the write lock early."""
    monkeypatch.setattr(inbox, "BEGIN_WITHIN_SECONDS", BUSY_AFTER_SECONDS)


# -- checkpoints ---------------------------------------------------------------------------------------------


@pytest.mark.fault("F25")
@pytest.mark.foreign_bug(88)
async def test_bug_88_no_commit_can_happen_while_a_checkpoint_runs(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another connection tries to write at the very moment of each checkpoint. It must find the file locked."""
    seen: list[str] = []

    def try_to_write(connection: sqlite3.Connection, statement: str) -> None:
        if "wal_checkpoint" not in statement:
            return
        with contextlib.closing(sqlite3.connect(backend.url, timeout=0, isolation_level=None)) as other:
            try:
                other.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                seen.append(str(error))
            else:
                seen.append("could write")

    watch_writer(monkeypatch, try_to_write)
    storage = await backend.open()
    for _ in range(3):
        await backend.added(storage, 200, args_json='"' + "x" * 30_000 + '"')
    await eventually(lambda: len(seen) >= 3)
    assert set(seen) == {"database is locked"}


@pytest.mark.fault("F25")
async def test_sqlite_never_checkpoints_by_itself(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    automatic: set[int] = set()

    def ask(connection: sqlite3.Connection, statement: str) -> None:
        automatic.add(connection.execute("PRAGMA wal_autocheckpoint").fetchone()[0])

    watch_writer(monkeypatch, ask)
    storage = await backend.worker()
    await backend.added(storage, 3)
    assert automatic == {0}


# -- the locks of a process ------------------------------------------------------------------------------------

LISTEN_TO_OPENS = """
import asyncio, json, os, sys

opened = []
database = os.path.realpath(sys.argv[1])

def hear(event, arguments):
    if event == "open" and isinstance(arguments[0], (str, bytes, os.PathLike)):
        path = os.path.realpath(os.fsdecode(arguments[0]))
        if path.startswith(database):
            opened.append(path.removeprefix(database))

sys.addaudithook(hear)
from durableq import DurableQ, call

async def main():
    queues = [DurableQ(database), DurableQ(database)]
    tasks = [dq.task(name="echo")(lambda value: value) for dq in queues]
    async with queues[0].running(), queues[1].running():
        for dq, task in zip(queues, tasks):
            job = await dq.add_task(task, 1)
            assert await dq.result(job) == 1
            await dq.list()
            await dq.counts()
            await dq.attempts(job)
        await queues[0].add_tasks([call(tasks[0], "x" * 50_000) for _ in range(200)])
        await queues[0].drain()

asyncio.run(main())
print(json.dumps(opened))
"""


@pytest.mark.fault("R4")
@pytest.mark.foreign_bug(26)
def test_bug_26_nobody_but_sqlite_opens_the_database_and_the_lock_file_is_opened_once(database: Path) -> None:
    """Closing a descriptor of a file drops all POSIX locks that the process has on it, SQLite's among them."""
    with program(database) as first:
        first.tell("echo", 1)  # the file is there now: making it opens it, once, before SQLite does
    with PythonProcess("-c", LISTEN_TO_OPENS, str(database)) as listener:
        opened: list[str] = listener.read()
    assert [name for name in opened if not name.startswith(".durableq")] == []
    assert [name for name in opened if name == ".durableq/locks"] == [".durableq/locks"]


PROBE_BYTES = """
import fcntl, json, os, sys
locks = os.open(sys.argv[1], os.O_RDWR)
for byte in map(int, sys.stdin):
    try:
        fcntl.lockf(locks, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
    except OSError:
        print("true", flush=True)
    else:
        fcntl.lockf(locks, fcntl.LOCK_UN, 1, byte)
        print("false", flush=True)
"""


@pytest.mark.fault("R4")
def test_a_process_has_its_lock_file_open_once_so_that_closing_a_handle_frees_no_lock_of_another(
    tmp_path: Path,
) -> None:
    """For a moment two runs of a queue have it in use: one that is closing, and the one that starts."""
    path = tmp_path / "jobs.db.durableq" / "locks"
    closing, starting = host.open_lock_file(path), host.open_lock_file(path)
    assert starting.acquire(7)
    host.close_lock_file(closing)
    with PythonProcess("-c", PROBE_BYTES, str(path)) as probe:
        probe.write("7")
        assert probe.read(), "held, as the process lives"
        host.close_lock_file(starting)
        probe.write("7")
        assert not probe.read(), "free, as nobody in it uses the file any more"


# -- operators and other programs ---------------------------------------------------------------------------------


@contextlib.contextmanager
def _maintained(database: Path) -> Iterator[list[str]]:
    """Let another connection do all that an operator, or a replicator, may do, without pause."""
    statements = ("VACUUM", "ANALYZE", "PRAGMA wal_checkpoint(TRUNCATE)", "PRAGMA wal_checkpoint(RESTART)")
    done: list[str] = []
    stop = threading.Event()

    def maintain() -> None:
        with contextlib.closing(sqlite3.connect(database, timeout=10, isolation_level=None)) as operator:
            while not stop.wait(0.01):
                statement = statements[len(done) % len(statements)]
                operator.execute(statement).fetchall()
                done.append(statement)

    operator = threading.Thread(target=maintain, daemon=True)
    operator.start()
    try:
        yield done
    finally:
        stop.set()
        operator.join(20)


@pytest.mark.fault("F33")
@pytest.mark.foreign_bug(51, 53)
def test_bug_53_whatever_an_operator_or_replicator_does_to_the_file_nothing_is_lost_and_nothing_fails(
    database: Path,
) -> None:
    with program(database) as worker, _maintained(database) as done:
        added = [worker.tell("echo", number) for number in range(MAINTAINED_JOBS)]
        eventually_sync(lambda: _unfinished(database) == 0, within=20)
        eventually_sync(lambda: len(set(done)) == 4)
    assert {one["event"] for one in added} == {"added"}
    found = sql(database, "SELECT id, state, attempt, crashes FROM durableq_jobs")
    assert {one_id for one_id, *_ in found} == {one["id"] for one in added}
    assert {tuple(row) for _, *row in found} == {("succeeded", 1, 0)}
    assert sql(database, "PRAGMA integrity_check") == [("ok",)]
    assert worker.events("trouble") == worker.events("evicted") == []


def _unfinished(database: Path) -> int:
    count: int = sql(database, "SELECT count(*) FROM durableq_jobs WHERE finished_at IS NULL")[0][0]
    return count


# -- locked ---------------------------------------------------------------------------------------------------------


@pytest.mark.fault("F24")
@pytest.mark.foreign_bug(13, 52)
async def test_bug_13_a_locked_database_fails_no_job_and_runs_none_twice(database: Path, soon_busy: None) -> None:
    dq = DurableQ(database)
    gate, starts = asyncio.Event(), 0
    trouble = collect(dq.events, StorageTrouble)

    @dq.task(name="wait", max_attempts=1)
    async def wait() -> str:
        nonlocal starts
        starts += 1
        await gate.wait()
        return "done"

    async with dq.running():
        job = await dq.add_task(wait)
        await in_state(dq, job, JobState.RUNNING)
        with write_lock_elsewhere(str(database)):
            gate.set()
            await eventually(lambda: any("settling" in one.doing for one in trouble))
        done = await finished(dq, job)
    assert (done.state, done.attempt, done.crashes, starts) == (JobState.SUCCEEDED, 1, 0, 1)
    assert done.result == "done"


@pytest.mark.fault("F55")
@pytest.mark.foreign_bug(12)
async def test_bug_12_a_recovery_that_the_database_refused_is_tried_again(database: Path, soon_busy: None) -> None:
    dq = DurableQ(database)
    trouble = collect(dq.events, StorageTrouble)

    @dq.task(name="until_exists")
    async def take_over(path: str) -> None: ...

    with program(database) as other:
        job_id = other.tell("until_exists", "never")["id"]
        other.hear("started", id=job_id)
        async with dq.running():
            with write_lock_elsewhere(str(database)):
                other.kill()
                await eventually(lambda: any("dead workers" in one.doing for one in trouble))
            job = await finished(dq, await dq.get(job_id))
    assert (job.state, job.attempt, job.crashes) == (JobState.SUCCEEDED, 2, 1)


@pytest.mark.foreign_bug(79)
async def test_bug_79_a_clean_up_that_failed_is_tried_again(
    database: Path, monkeypatch: pytest.MonkeyPatch, soon_busy: None
) -> None:
    monkeypatch.setattr(reaper, "PRUNE_EVERY_SECONDS", 0.05)
    clock = ManualClock()
    dq = DurableQ(database, clock=clock)
    trouble = collect(dq.events, StorageTrouble)

    @dq.task(name="work")
    async def work() -> None: ...

    async with dq.running():
        job = await finished(dq, await dq.add_task(work))
        with write_lock_elsewhere(str(database)):
            clock.advance(timedelta(days=8))
            await eventually(lambda: any("deleting" in one.doing for one in trouble))

        async def is_gone() -> bool:
            with contextlib.suppress(JobNotFound):
                await dq.get(job)
                return False
            return True

        await eventually(is_gone)


@pytest.mark.fault("F24")
async def test_a_lock_that_is_held_for_a_while_only_makes_adding_slower(database: Path) -> None:
    dq = DurableQ(database, worker=False)

    @dq.task(name="work")
    async def work() -> None: ...

    async with dq.running():
        await dq.add_task(work)
        with write_lock_elsewhere(str(database)):
            adding: Any = asyncio.ensure_future(asyncio.to_thread(dq.add_task_sync, work))
            await asyncio.sleep(0.3)
            assert not adding.done()
            released_at = time.monotonic()
        await adding
        assert time.monotonic() - released_at < 1.0
