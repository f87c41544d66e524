"""`complete_within` among processes that die, and that take each other's jobs: the task's write is there once."""

import asyncio
import contextlib
import os
import random
import signal
from collections import Counter
from collections.abc import Iterator

import pytest

from durableq import DurableQ, call
from tests.outbox.support import Disk
from tests.storage.support import PythonProcess
from tests.support import eventually_sync

JOBS, KILLS = 600, 12


def start(disk: Disk) -> PythonProcess:
    process = PythonProcess("-m", "tests.outbox.paying_worker", str(disk.path))
    assert process.read() == "ready"
    return process


@pytest.fixture
def workers(disk: Disk) -> Iterator[list[PythonProcess]]:
    """Those that are alive in the end are killed too."""
    started: list[PythonProcess] = []
    yield started
    with contextlib.ExitStack() as stack:
        for worker in started:
            stack.enter_context(worker)


async def add(dq: DurableQ, *numbers: int) -> None:
    task = dq.task(name="tests.outbox.paying_worker:pay")(_pay)
    await dq.add_tasks([call(task, x) for x in numbers])


async def _pay(x: int) -> None: ...


def states(disk: Disk) -> dict[int, str]:
    return dict(disk.rows("SELECT json_extract(args, '$.x'), state FROM durableq_jobs"))


@pytest.mark.fault("F5")
async def test_whoever_is_killed_and_whenever_each_success_has_written_once(
    dq: DurableQ, disk: Disk, workers: list[PythonProcess]
) -> None:
    """Two workers on one file, each killed again and again in the middle of its work."""
    moments = random.Random(7)
    await add(dq, *range(JOBS))
    workers += [start(disk), start(disk)]
    for number in range(KILLS):
        await asyncio.sleep(moments.uniform(0.01, 0.15))
        victim = workers[number % 2]
        with victim:
            victim.kill()
        workers[number % 2] = start(disk)
        if number % 3 == 0:  # there shall be something to kill
            await add(dq, *range(JOBS * (number + 1), JOBS * (number + 2)))
    eventually_sync(lambda: unfinished(disk) == 0, 60)
    written = Counter(disk.mine)
    found = states(disk)
    assert set(written.values()) == {1}
    assert {x for x, state in found.items() if state == "succeeded"} == written.keys()
    assert disk.rows("SELECT count(*) FROM durableq_jobs WHERE crashes > 0")[0][0] > 0, "some were in the middle"


def unfinished(disk: Disk) -> int:
    count: int = disk.rows("SELECT count(*) FROM durableq_jobs WHERE finished_at IS NULL")[0][0]
    return count


async def test_of_two_processes_that_both_have_the_job_the_one_with_the_lease_completes_it(
    dq: DurableQ, disk: Disk, workers: list[PythonProcess]
) -> None:
    """The first was stopped past its lease and goes on as if nothing had been: what it writes is refused whole."""
    first = start(disk)
    workers.append(first)
    await add(dq, -1)
    assert first.read() == "waiting"
    os.kill(first.pid, signal.SIGSTOP)
    second = start(disk)
    workers.append(second)
    assert second.read() == "waiting", "it has taken the job over"
    first.write("go on")
    os.kill(first.pid, signal.SIGCONT)
    assert first.read() == "refused"
    assert disk.mine == []
    second.write("go on")
    eventually_sync(lambda: states(disk) == {-1: "succeeded"}, 10)
    assert disk.mine == [-1]
    assert disk.rows("SELECT lease_no, crashes FROM durableq_jobs") == [(2, 1)]
