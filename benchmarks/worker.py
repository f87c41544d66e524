"""The side that runs: how fast a full queue is emptied, and how soon an idle worker starts a new job.

The queue is filled by one `DurableQ` without a worker, closed, and emptied by another. A drain is measured from
the start of its first job to the start of its last, so that neither opening the file nor noticing the end counts.
"""

import asyncio
import itertools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from benchmarks.figures import MESSAGE, Benchmark, Figures, Row, Sizes, percentile
from durableq import DurableQ, JobState, call

FIRST_PICK_UPS: Final = 10
"""Not counted: names are learnt and caches filled."""


class Progress:
    """Counts jobs as they start, on any thread, and reads the clocks at the first and the last."""

    def __init__(self, jobs: int) -> None:
        self.all_started = asyncio.Event()
        self.seconds = 0.0
        self.cpu_seconds = 0.0
        self._jobs = jobs
        self._numbers = itertools.count(1)
        self._loop = asyncio.get_running_loop()

    def note_start(self) -> None:
        number = next(self._numbers)
        if number == 1:
            self.seconds -= time.perf_counter()
            self.cpu_seconds -= time.process_time()
        if number == self._jobs:
            self.seconds += time.perf_counter()
            self.cpu_seconds += time.process_time()
            self._loop.call_soon_threadsafe(self.all_started.set)


progress: Progress


async def on_the_loop(number: int, message: dict[str, str]) -> None:
    """A job that does nothing but be counted."""
    progress.note_start()


def in_a_thread(number: int, message: dict[str, str]) -> None:
    """The same for the thread runner."""
    progress.note_start()


def drain_async(directory: Path, sizes: Sizes) -> Figures:
    rate, cpu = asyncio.run(_drain(directory / "async.db", on_the_loop, sizes.jobs))
    return {"drain-async": rate, "drain-async-cpu": cpu}


def drain_threads(directory: Path, sizes: Sizes) -> Figures:
    rate, cpu = asyncio.run(_drain(directory / "threads.db", in_a_thread, sizes.jobs))
    return {"drain-threads": rate, "drain-threads-cpu": cpu}


async def _drain(path: Path, function: Callable[..., Any], jobs: int) -> tuple[float, float]:
    """Return jobs per second, and milliseconds of CPU per 1,000 jobs."""
    global progress
    await _fill(path, function, jobs)
    progress = Progress(jobs)
    dq = DurableQ(path)
    async with dq.running():
        await progress.all_started.wait()
        await dq.drain()
        succeeded = (await dq.counts())[JobState.SUCCEEDED]
    if succeeded != jobs:
        raise RuntimeError(f"expected all {jobs} jobs to succeed, got {succeeded}")
    return jobs / progress.seconds, progress.cpu_seconds / jobs * 1_000_000


async def _fill(path: Path, function: Callable[..., Any], jobs: int) -> None:
    dq = DurableQ(path, worker=False)
    async with dq.running():
        await dq.add_tasks([call(function, number, MESSAGE) for number in range(jobs)])


arrivals: "asyncio.Queue[float]"


async def arrive(number: int, message: dict[str, str]) -> None:
    """Notes when it started."""
    arrivals.put_nowait(time.perf_counter())


def pick_up(directory: Path, sizes: Sizes) -> Figures:
    """From just before ``add_task`` to the first line of the job's body: added, committed, claimed, started."""
    latencies = asyncio.run(_pick_up(directory / "pick_up.db", sizes.pick_ups))
    return {"pick-up-p50": percentile(latencies, 0.5), "pick-up-p99": percentile(latencies, 0.99)}


async def _pick_up(path: Path, pick_ups: int) -> list[float]:
    """Return latencies in milliseconds. Each job meets a worker that has settled the one before."""
    global arrivals
    arrivals = asyncio.Queue()
    latencies = []
    dq = DurableQ(path)
    async with dq.running():
        for number in range(FIRST_PICK_UPS + pick_ups):
            began = time.perf_counter()
            await dq.add_task(arrive, number, MESSAGE)
            latencies.append((await arrivals.get() - began) * 1_000)
            await dq.drain()
    return latencies[FIRST_PICK_UPS:]


BENCHMARKS: Final = (
    Benchmark(
        "drain-async",
        (
            Row("drain-async", "drain of no-op async jobs", "jobs/s"),
            Row("drain-async-cpu", "drain of no-op async jobs, CPU", "ms/1,000"),
        ),
        drain_async,
    ),
    Benchmark(
        "drain-threads",
        (
            Row("drain-threads", "drain of no-op sync jobs (threads)", "jobs/s"),
            Row("drain-threads-cpu", "drain of no-op sync jobs (threads), CPU", "ms/1,000"),
        ),
        drain_threads,
    ),
    Benchmark(
        "pick-up",
        (
            Row("pick-up-p50", "pick-up by an idle worker, p50", "ms"),
            Row("pick-up-p99", "pick-up by an idle worker, p99", "ms"),
        ),
        pick_up,
    ),
)
