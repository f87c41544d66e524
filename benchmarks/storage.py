"""The side that adds: durable enqueues a second, next to what SQLite itself does on the same disk.

All of them fsync before they answer: WAL mode with ``synchronous=FULL``.
"""

import asyncio
import json
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import Final

from benchmarks.figures import MESSAGE, Benchmark, Figures, Row, Sizes
from durableq import DurableQ, call

PRODUCERS: Final = 64


async def send(number: int, message: dict[str, str]) -> None:
    """The task of which jobs are added. Nothing runs them here."""


def raw(directory: Path, sizes: Sizes) -> Figures:
    """SQLite alone, in a loop, with nothing in between: what this disk allows."""
    return {
        "raw-1": raw_rows_per_second(directory / "one.db", 1, sizes.seconds),
        "raw-64": raw_rows_per_second(directory / "many.db", PRODUCERS, sizes.seconds),
    }


def raw_rows_per_second(path: Path, rows_per_commit: int, seconds: float) -> float:
    """Return how many rows a second `sqlite3` commits durably, so many at a time."""
    rows = [(number, json.dumps(MESSAGE)) for number in range(rows_per_commit)]
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = wal")
        connection.execute("PRAGMA synchronous = full")
        connection.execute("CREATE TABLE messages (id INTEGER PRIMARY KEY, number INTEGER, message TEXT)")
        commits = 0
        began = time.perf_counter()
        while time.perf_counter() - began < seconds:
            connection.execute("BEGIN IMMEDIATE")
            connection.executemany("INSERT INTO messages (number, message) VALUES (?, ?)", rows)
            connection.execute("COMMIT")
            commits += 1
        return commits * rows_per_commit / (time.perf_counter() - began)


def serial(directory: Path, sizes: Sizes) -> Figures:
    """One caller that awaits each job: one fsync each, nothing to share it with."""
    return {"serial": asyncio.run(_jobs_per_second(directory / "serial.db", 1, sizes.seconds))}


def producers(directory: Path, sizes: Sizes) -> Figures:
    """Many callers at once, each awaiting its own job: they share fsyncs."""
    return {"producers": asyncio.run(_jobs_per_second(directory / "producers.db", PRODUCERS, sizes.seconds))}


async def _jobs_per_second(path: Path, callers: int, seconds: float) -> float:
    dq = DurableQ(path, worker=False)
    async with dq.running():
        await dq.add_task(send, 0, MESSAGE)  # the first one resolves the task and stores its name
        began = time.perf_counter()

        async def produce() -> int:
            added = 0
            while time.perf_counter() - began < seconds:
                await dq.add_task(send, added, MESSAGE)
                added += 1
            return added

        added = sum(await asyncio.gather(*(produce() for _ in range(callers))))
        return added / (time.perf_counter() - began)


def bulk(directory: Path, sizes: Sizes) -> Figures:
    """One call, one transaction."""
    return {"bulk": asyncio.run(_bulk(directory / "bulk.db", sizes.jobs))}


async def _bulk(path: Path, jobs: int) -> float:
    dq = DurableQ(path, worker=False)
    calls = [call(send, number, MESSAGE) for number in range(jobs)]
    async with dq.running():
        await dq.add_task(send, 0, MESSAGE)
        began = time.perf_counter()
        await dq.add_tasks(calls)
        return jobs / (time.perf_counter() - began)


BENCHMARKS: Final = (
    Benchmark(
        "raw",
        (
            Row("raw-1", "raw sqlite3, 1 row per commit", "rows/s"),
            Row("raw-64", "raw sqlite3, 64 rows per commit", "rows/s"),
        ),
        raw,
    ),
    Benchmark("serial", (Row("serial", "add_task, one awaited at a time", "jobs/s", "raw-1"),), serial),
    Benchmark("producers", (Row("producers", "add_task, 64 producers", "jobs/s"),), producers),
    Benchmark("bulk", (Row("bulk", "add_tasks, bulk in one call", "jobs/s"),), bulk),
)
