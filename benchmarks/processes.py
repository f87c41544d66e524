"""Several processes on one file: how soon an idle one starts what another adds, and whether four drain more than one.

``python -m benchmarks.processes DATABASE KIND`` is one worker. What it does it tells by datagrams.
"""

import asyncio
import contextlib
import logging
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from benchmarks.figures import MESSAGE, Benchmark, Figures, Row, Sizes, percentile
from benchmarks.http import PATIENCE_SECONDS, PROJECT
from durableq import DurableQ, JobFilter, JobState, call

WORKERS: Final = 4
FIRST_PICK_UPS: Final = 10
REST_SECONDS: Final = 0.005
"""Before each pick-up, so that the worker has settled the job before and is idle."""
WORK_SECONDS: Final = 0.001

mouth: Final = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
ears_at: tuple[str, int]


async def arrive(number: int, message: dict[str, str]) -> None:
    """Tell when it started."""
    mouth.sendto(str(time.monotonic()).encode(), ears_at)


async def do_nothing(number: int, message: dict[str, str]) -> None:
    """A job that costs nothing but its handling."""


async def compute(number: int, message: dict[str, str]) -> None:
    """A job that needs so much of a core."""
    until = time.thread_time() + WORK_SECONDS
    while time.thread_time() < until:
        pass


def pick_up_elsewhere(directory: Path, sizes: Sizes) -> Figures:
    """From just before ``add_task`` here to the first line of the job's body in another process."""
    latencies = asyncio.run(_pick_up(directory / "elsewhere.db", sizes.pick_ups))
    return {"elsewhere-p50": percentile(latencies, 0.5), "elsewhere-p99": percentile(latencies, 0.99)}


async def _pick_up(path: Path, pick_ups: int) -> list[float]:
    latencies = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as ears:
        ears.bind(("127.0.0.1", 0))
        ears.settimeout(PATIENCE_SECONDS)
        with _workers(1, path, str(ears.getsockname()[1])):
            async with (dq := DurableQ(path, worker=False)).running():
                for number in range(FIRST_PICK_UPS + pick_ups):
                    await asyncio.sleep(REST_SECONDS)
                    began = time.monotonic()
                    await dq.add_task(arrive, number, MESSAGE)
                    arrived = await asyncio.to_thread(ears.recv, 100)
                    latencies.append((float(arrived) - began) * 1_000)
    return latencies[FIRST_PICK_UPS:]


def many_workers(directory: Path, sizes: Sizes) -> Figures:
    """One process and four, for jobs that do nothing and for jobs that compute."""
    jobs = sizes.jobs // 4
    return {
        f"workers-{name}-{workers}": asyncio.run(_drain(directory / f"{name}-{workers}.db", task, workers, jobs))
        for name, task in {"nothing": do_nothing, "compute": compute}.items()
        for workers in (1, WORKERS)
    }


async def _drain(path: Path, task: Any, workers: int, jobs: int) -> float:
    """Return jobs per second, from the first start to the last end that are stored."""
    async with (dq := DurableQ(path, worker=False)).running():
        await dq.add_tasks([call(task, number, MESSAGE) for number in range(jobs)])
        with _workers(workers, path, "0"):
            async with asyncio.timeout(PATIENCE_SECONDS):
                while (await dq.counts())[JobState.SUCCEEDED] < jobs:
                    await asyncio.sleep(0.05)
        seconds = await _span(dq)
    return jobs / seconds


async def _span(dq: DurableQ) -> float:
    began, ended, cursor = [], [], None
    while True:
        page = await dq.list(JobFilter(), cursor=cursor, limit=1_000)
        began += [job.started_at for job in page.jobs if job.started_at]
        ended += [job.finished_at for job in page.jobs if job.finished_at]
        if (cursor := page.next_cursor) is None:
            return (max(ended) - min(began)).total_seconds()


@contextlib.contextmanager
def _workers(number: int, path: Path, port: str) -> Iterator[None]:
    command = [sys.executable, "-m", "benchmarks.processes", str(path), port]
    processes = [subprocess.Popen(command, cwd=PROJECT) for _ in range(number)]
    try:
        yield
    finally:
        for process in processes:
            process.send_signal(signal.SIGTERM)
        for process in processes:
            process.wait(PATIENCE_SECONDS)


async def _work(path: str, port: int) -> None:
    global ears_at
    ears_at = ("127.0.0.1", port)
    logging.getLogger("durableq").setLevel(logging.ERROR)  # that the file is shared, it need not say
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    dq = DurableQ(path)
    for function in (arrive, do_nothing, compute):
        dq.task(name=f"benchmarks.processes:{function.__name__}")(function)
    async with dq.running():
        await stop.wait()


BENCHMARKS: Final = (
    Benchmark(
        "pick-up-elsewhere",
        (
            Row("elsewhere-p50", "pick-up by another process, p50", "ms"),
            Row("elsewhere-p99", "pick-up by another process, p99", "ms"),
        ),
        pick_up_elsewhere,
    ),
    Benchmark(
        "workers",
        (
            Row("workers-nothing-1", "drain of no-ops, 1 process", "jobs/s"),
            Row("workers-nothing-4", "drain of no-ops, 4 processes", "jobs/s", "workers-nothing-1"),
            Row("workers-compute-1", "drain of jobs that compute 1 ms, 1 process", "jobs/s"),
            Row("workers-compute-4", "drain of jobs that compute 1 ms, 4 processes", "jobs/s", "workers-compute-1"),
        ),
        many_workers,
        is_long=True,
    ),
)

if __name__ == "__main__":
    asyncio.run(_work(sys.argv[1], int(sys.argv[2])))
