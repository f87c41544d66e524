"""How the drain of a queue holds out: beside a million rows, and beside crowds that a claim must pass by.

Each rate is that of the first so many starts of a worker that finds the file full, as in `benchmarks.worker`.
"""

import asyncio
import contextlib
import os
import sqlite3
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from benchmarks import worker
from benchmarks.figures import MESSAGE, Benchmark, Figures, Row, Sizes
from durableq import DurableQ, call

AT_ONCE: Final = 50_000
"""So many jobs go into one transaction while a file is filled."""
CROWD_PER_SECOND: Final = 20_000
"""So fast, at the very least, a crowd is added."""
FAR_AHEAD: Final = timedelta(days=30)
PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


def growth(directory: Path, sizes: Sizes) -> Figures:
    """With few rows, with very many waiting, and with as many finished ones kept."""
    deep, memory = asyncio.run(_rate(directory / "deep.db", sizes.jobs, waiting=sizes.rows))
    shallow, memory_before = asyncio.run(_rate(directory / "shallow.db", sizes.jobs, waiting=sizes.jobs))
    kept, _ = asyncio.run(_rate(directory / "kept.db", sizes.jobs, waiting=sizes.jobs, finished=sizes.rows))
    return {
        "growth-shallow": shallow,
        "growth-deep": deep,
        "growth-kept": kept,
        "growth-memory": (memory - memory_before) / 2**20,
    }


def crowds(directory: Path, sizes: Sizes) -> Figures:
    """With jobs at the head of the queue that are not for now, or not for this worker, or all due at one instant."""
    plain, _ = asyncio.run(_rate(directory / "plain.db", sizes.jobs, waiting=sizes.jobs))
    figures = {"crowds-none": plain}
    for name, crowd in {"ahead": _ahead(sizes), "unknown": _unknown(sizes)}.items():
        rate, _ = asyncio.run(_rate(directory / f"{name}.db", sizes.jobs, waiting=sizes.jobs, crowd=crowd))
        figures[f"crowds-{name}"] = rate
    due, _ = asyncio.run(_rate(directory / "due.db", sizes.jobs, crowd=_due_at_once(sizes)))
    return figures | {"crowds-due": due}


Crowd = Callable[[DurableQ], Awaitable[None]]
"""Adds jobs to a queue beside those that are drained."""


async def in_the_way(number: int, message: dict[str, str]) -> None:
    """A job of a crowd."""


def _ahead(sizes: Sizes) -> Crowd:
    return lambda dq: _add(dq, dq.task(in_the_way).options(delay=FAR_AHEAD, priority=10), sizes.crowd)


def _unknown(sizes: Sizes) -> Crowd:
    return lambda dq: _add(dq, dq.task(name="of another app")(in_the_way).options(priority=10), sizes.crowd)


def _due_at_once(sizes: Sizes) -> Crowd:
    async def add(dq: DurableQ) -> None:
        instant = datetime.now(UTC) + timedelta(seconds=sizes.crowd / CROWD_PER_SECOND)
        await _add(dq, dq.task(worker.on_the_loop).options(run_at=instant), sizes.crowd)
        await asyncio.sleep((instant - datetime.now(UTC)).total_seconds())

    return add


async def _rate(
    path: Path, drained: int, *, waiting: int = 0, finished: int = 0, crowd: Crowd | None = None
) -> tuple[float, float]:
    """Return jobs per second, and the resident memory of this process in bytes at that time."""
    filler = DurableQ(path, worker=False)
    async with filler.running():
        if finished:
            await _add(filler, worker.on_the_loop, finished)
            _finish_all(path)
        if crowd is not None:
            await crowd(filler)
        await _add(filler, worker.on_the_loop, waiting)
    worker.progress = progress = worker.Progress(drained)
    dq = DurableQ(path, retain_finished=None)
    async with dq.running():
        await progress.all_started.wait()
        memory = _resident_bytes()
    return drained / progress.seconds, memory


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE_BYTES


async def _add(dq: DurableQ, task: Any, jobs: int) -> None:
    for start in range(0, jobs, AT_ONCE):
        await dq.add_tasks([call(task, number, MESSAGE) for number in range(start, min(start + AT_ONCE, jobs))])


def _finish_all(path: Path) -> None:
    """As if a worker had run them."""
    now = time.time_ns() // 1_000
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(
            "UPDATE durableq_jobs SET state = 'succeeded', attempt = 1, lease_no = 1, started_at = :now, "
            "finished_at = :now",
            {"now": now},
        )


BENCHMARKS: Final = (
    Benchmark(
        "growth",
        (
            Row("growth-shallow", "drain, only what is drained in the file", "jobs/s"),
            Row("growth-deep", "drain, 1,000,000 jobs waiting", "jobs/s", "growth-shallow"),
            Row("growth-kept", "drain, 1,000,000 finished jobs kept", "jobs/s", "growth-shallow"),
            Row("growth-memory", "memory that 1,000,000 waiting jobs add to a worker", "MiB"),
        ),
        growth,
        is_long=True,
    ),
    Benchmark(
        "crowds",
        (
            Row("crowds-none", "drain, nobody in the way", "jobs/s"),
            Row("crowds-ahead", "drain, behind 100,000 of higher priority that are far ahead", "jobs/s", "crowds-none"),
            Row("crowds-unknown", "drain, behind 100,000 that this worker may not take", "jobs/s", "crowds-none"),
            Row("crowds-due", "drain, of 100,000 due at one instant", "jobs/s", "crowds-none"),
        ),
        crowds,
        is_long=True,
    ),
)
