"""Processes that die, end, hang and run short at the worst moment."""

import asyncio
import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from durableq import DurableQ, JobState, call
from tests.crash.harness import HTTP_ERRORS, free_port
from tests.engine.helpers import finished, sql
from tests.engine.processes import ROOT, program
from tests.storage.support import PythonProcess
from tests.support import eventually, eventually_sync

BACKLOG_JOBS = 2_000
LETTER = "x" * 20_000
MOST_GROWTH_BYTES = 15 * 1024 * 1024
LEASE_SECONDS = 1.0


@contextlib.contextmanager
def _doomed(directory: Path, dies_at: str = "never") -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    """Serve the doomed application, and give its process and port."""
    port = free_port()
    files = {"DOOMED_DATABASE": str(directory / "jobs.db"), "DOOMED_LEDGER": str(directory / "ledger")}
    server = subprocess.Popen(
        [sys.executable, "-m", "uvicorn", "tests.faults.doomed_app:app", "--port", str(port), "--log-level", "error"],
        cwd=ROOT,
        env={**os.environ, **files, "DOOMED_AT": dies_at},
    )
    try:
        eventually_sync(lambda: _is_open(port) or server.poll() is not None, within=20)
        yield server, port
    finally:
        server.kill()
        server.wait(10)


def _is_open(port: int) -> bool:
    with contextlib.suppress(*HTTP_ERRORS):
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=1)
        connection.connect()
        connection.close()
        return True
    return False


def _post(port: int, path: str, key: str) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    with contextlib.closing(connection):
        connection.request("POST", path, headers={"Idempotency-Key": key})
        response = connection.getresponse()
        return response.status, json.loads(response.read())


def _payments(directory: Path) -> list[list[str]]:
    return [line.split() for line in (directory / "ledger").read_text().splitlines()]


@pytest.mark.fault("F2", "F5")
def test_a_request_whose_server_died_before_the_answer_is_repeated_with_its_key_and_done_once(tmp_path: Path) -> None:
    with _doomed(tmp_path, "response") as (server, port):
        with pytest.raises(HTTP_ERRORS):
            _post(port, "/orders/7", "k1")
        assert server.wait(10) == -signal.SIGKILL
    [(stored, _)] = sql(tmp_path / "jobs.db", "SELECT id, state FROM durableq_jobs")
    with _doomed(tmp_path) as (_, port):
        assert _post(port, "/orders/7", "k1") == (202, stored)
        eventually_sync(lambda: sql(tmp_path / "jobs.db", "SELECT state FROM durableq_jobs") == [("succeeded",)])
    payments = _payments(tmp_path)
    assert len({key for _, key, _ in payments}) == 1
    assert len(payments) <= 2, "at most once more, where the job was running when its server died"


@pytest.mark.fault("F5")
def test_a_job_whose_process_died_after_its_effect_runs_again_under_the_same_key(tmp_path: Path) -> None:
    with _doomed(tmp_path, "effect") as (server, port):
        with contextlib.suppress(*HTTP_ERRORS):  # the job may be faster than the answer
            _post(port, "/orders/7", "k1")
        assert server.wait(10) == -signal.SIGKILL
    with _doomed(tmp_path):
        eventually_sync(lambda: sql(tmp_path / "jobs.db", "SELECT state FROM durableq_jobs") == [("succeeded",)])
    (_, first_key, first_attempt), (_, second_key, second_attempt) = _payments(tmp_path)
    assert first_key == second_key
    assert (first_attempt, second_attempt) == ("1", "2")


@pytest.mark.fault("F8")
async def test_a_backlog_is_worked_off_without_being_held_in_memory(tmp_path: Path) -> None:
    database = tmp_path / "jobs.db"
    filling = DurableQ(database, worker=False)

    @filling.task(name="weigh")
    async def weigh(letter: str) -> int:
        return len(letter)

    async with filling.running():
        await filling.add_tasks([call(weigh, LETTER) for _ in range(BACKLOG_JOBS)])
    with PythonProcess("-m", "tests.faults.backlog", str(database)) as worker:
        grown = await asyncio.to_thread(worker.read)
    assert sql(database, "SELECT DISTINCT state FROM durableq_jobs") == [("succeeded",)]
    assert grown < MOST_GROWTH_BYTES, f"grew by {grown:,} bytes over {BACKLOG_JOBS * len(LETTER):,} of arguments"


CANCELLED_STARTS = """
import asyncio, contextlib, json, os, sys, threading
from durableq import DurableQ
from tests.support import eventually

dq = DurableQ(sys.argv[1])

async def echo(value: int) -> int:
    return value

async def start_and_cancel_after(turns: int) -> None:
    starting = asyncio.create_task(dq.start())
    for _ in range(turns):
        await asyncio.sleep(0)
    starting.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await starting
        await dq.stop()

async def main() -> None:
    at_rest = len(os.listdir("/proc/self/fd"))
    for turns in range(25):
        await start_and_cancel_after(turns)
    with contextlib.suppress(AssertionError):
        await eventually(lambda: len(os.listdir("/proc/self/fd")) <= at_rest, within=3)
    threads = [one.name for one in threading.enumerate() if one.name.startswith("durableq-")]
    async with dq.running():
        result = await dq.result(await dq.add_task(dq.task(name="echo")(echo), 7))
    print(json.dumps([threads, len(os.listdir("/proc/self/fd")) - at_rest, result]))

asyncio.run(main())
"""


@pytest.mark.fault("F14")
@pytest.mark.foreign_bug(62)
def test_a_start_that_is_cancelled_at_any_moment_leaves_nothing_running_and_may_be_repeated(tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", "-c", CANCELLED_STARTS, str(tmp_path / "jobs.db")]
    ended = subprocess.run(command, cwd=ROOT, timeout=30, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert "Exception" not in ended.stderr, ended.stderr
    threads, files, result = json.loads(ended.stdout)
    assert (threads, result) == ([], 7)
    assert files <= 0, "sockets or files were left open"
    assert sql(tmp_path / "jobs.db", "SELECT count(*) FROM durableq_workers") == [(0,)]


@pytest.mark.fault("F11")
@pytest.mark.foreign_bug(32)
def test_bug_32_a_lease_holds_through_a_shutdown_that_takes_longer_than_it(tmp_path: Path) -> None:
    database, go = tmp_path / "jobs.db", tmp_path / "go"
    options = {"lease": LEASE_SECONDS, "heartbeat": 0.3}
    with program(database, grace=20, **options) as leaving:
        job_id = leaving.tell("until_exists", str(go))["id"]
        leaving.hear("started", id=job_id)
        with program(database, **options) as staying:
            assert leaving.process.stdin is not None
            leaving.process.stdin.close()
            time.sleep(2.5 * LEASE_SECONDS)
            assert staying.events("started") == staying.events("reaped") == []
            go.touch()
            leaving.process.wait(10)
    assert sql(database, "SELECT state, attempt FROM durableq_jobs WHERE id = ?", job_id) == [("succeeded", 1)]


@pytest.mark.foreign_bug(61)
async def test_bug_61_a_shutdown_does_not_wait_for_what_is_scheduled_ahead(tmp_path: Path) -> None:
    dq = DurableQ(tmp_path / "jobs.db", grace=30)

    @dq.task(name="later")
    async def later() -> None: ...

    async with dq.running():
        job = await dq.add_task(later.options(delay=3600))
        began = time.monotonic()
    assert time.monotonic() - began < 2.0
    [(state,)] = sql(tmp_path / "jobs.db", "SELECT state FROM durableq_jobs WHERE id = ?", job.id)
    assert state == "scheduled"


@pytest.mark.fault("F53")
@pytest.mark.foreign_bug(15, 42, 67)
async def test_bug_15_a_recovered_job_does_not_block_a_queue_that_runs_one_at_a_time(tmp_path: Path) -> None:
    database = tmp_path / "jobs.db"
    dq = DurableQ(database, concurrency=1)
    gate = asyncio.Event()

    @dq.task(name="until_exists")
    async def recovered(path: str) -> None: ...

    @dq.task(name="busy")
    async def busy() -> None:
        await gate.wait()

    with program(database, concurrency=1) as other:
        job_id = other.tell("until_exists", "never")["id"]
        other.hear("started", id=job_id)
        async with dq.running():
            own = await dq.add_task(busy)
            await eventually(lambda: sql(database, "SELECT state FROM durableq_jobs")[-1] == ("running",))
            other.kill()
            # Its slot is taken, and what the dead one held is taken back all the same.
            await eventually(lambda: sql(database, "SELECT state FROM durableq_jobs")[0] == ("queued",), within=5)
            gate.set()
            assert (await finished(dq, own)).state is JobState.SUCCEEDED
            assert (await finished(dq, await dq.get(job_id))).attempt == 2


NEVER_STOPPED = """
import asyncio, sys
from durableq import DurableQ

dq = DurableQ(sys.argv[1])

async def echo(value: int) -> int:
    return value

async def main() -> None:
    await dq.start()
    job = await dq.add_task(dq.task(name="echo")(echo), 7)
    assert await dq.result(job) == 7
    assert sum((await dq.counts()).values()) == 1
    if sys.argv[2] == "exit":
        sys.exit(3)

asyncio.run(main())
"""


@pytest.mark.foreign_bug(55, 56, 57)
@pytest.mark.parametrize(("way", "status"), [("return", 0), ("exit", 3)])
def test_bug_56_a_process_that_never_stops_its_queue_ends_all_the_same(tmp_path: Path, way: str, status: int) -> None:
    command = [sys.executable, "-c", NEVER_STOPPED, str(tmp_path / "jobs.db"), way]
    ended = subprocess.run(command, cwd=ROOT, timeout=15, capture_output=True, text=True, check=False)
    assert ended.returncode == status, ended.stderr
