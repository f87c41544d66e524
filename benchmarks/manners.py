"""What a queue costs those around it: at rest, at import, and in the wait of one add amid a flood."""

import asyncio
import re
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

from benchmarks.figures import MESSAGE, Benchmark, Figures, Row, Sizes, percentile
from benchmarks.http import PROJECT
from durableq import DurableQ, call

SETTLE_SECONDS: Final = 1.0
"""Until an idle worker is really idle."""
FLOW_PER_SECOND: Final = 20_000
FLOW_PIECE: Final = 200


async def flow(number: int, message: dict[str, str]) -> None:
    """One of the many that flow while others are timed."""


def rest(directory: Path, sizes: Sizes) -> Figures:
    """An idle worker, with nothing in its queue."""
    return asyncio.run(_rest(directory / "rest.db", sizes.rest_seconds))


async def _rest(path: Path, seconds: float) -> Figures:
    async with DurableQ(path).running():
        await asyncio.sleep(SETTLE_SECONDS)
        cpu, wake_ups = time.process_time(), _wake_ups()
        await asyncio.sleep(seconds)
        return {
            "rest-cpu": (time.process_time() - cpu) / seconds * 100,
            "rest-wake-ups": (_wake_ups() - wake_ups) / seconds,
        }


def _wake_ups() -> int:
    """How often the threads of this process have gone to sleep of their own accord."""
    texts = [status.read_text() for status in Path("/proc/self/task").glob("*/status")]
    return sum(
        int(found[1]) for text in texts if (found := re.search(r"^voluntary_ctxt_switches:\s*(\d+)", text, re.M))
    )


def imports(directory: Path, sizes: Sizes) -> Figures:
    """Importing durableq, next to importing FastAPI, each in a fresh process."""
    names = ("fastapi", "durableq", "durableq.fastapi")
    taken = [[_import_seconds(name) for name in names] for _ in range(sizes.imports)]
    return {
        f"import-{name}": statistics.median(seconds) * 1_000
        for name, seconds in zip(names, zip(*taken, strict=True), strict=True)
    }


def _import_seconds(name: str) -> float:
    script = f"import time; began = time.perf_counter(); import {name}; print(time.perf_counter() - began)"
    done = subprocess.run([sys.executable, "-c", script], cwd=PROJECT, stdout=subprocess.PIPE, check=True)
    return float(done.stdout)


def tail(directory: Path, sizes: Sizes) -> Figures:
    """One awaited ``add_task`` after another, while other jobs are added and run at a fixed rate."""
    return asyncio.run(_tail(directory / "tail.db", sizes.flow_seconds))


async def _tail(path: Path, seconds: float) -> Figures:
    latencies, flowed = [], 0
    dq = DurableQ(path)
    async with dq.running():
        await dq.add_task(flow, 0, MESSAGE)
        stop = asyncio.Event()

        async def keep_flowing() -> None:
            nonlocal flowed
            began = time.perf_counter()
            while not stop.is_set():
                await dq.add_tasks([call(flow, number, MESSAGE) for number in range(FLOW_PIECE)])
                flowed += FLOW_PIECE
                await asyncio.sleep(max(began + flowed / FLOW_PER_SECOND - time.perf_counter(), 0))

        flowing = asyncio.create_task(keep_flowing())
        until = time.perf_counter() + seconds
        while (began := time.perf_counter()) < until:
            await dq.add_task(flow, 0, MESSAGE)
            latencies.append((time.perf_counter() - began) * 1_000)
        stop.set()
        await flowing
        await dq.drain()
    return {
        "tail-flow": flowed / seconds,
        "tail-p50": percentile(latencies, 0.5),
        "tail-p999": percentile(latencies, 0.999),
    }


BENCHMARKS: Final = (
    Benchmark(
        "rest",
        (
            Row("rest-cpu", "worker at rest, CPU", "% of a core"),
            Row("rest-wake-ups", "worker at rest, wake-ups", "per second"),
        ),
        rest,
        is_long=True,
    ),
    Benchmark(
        "imports",
        (
            Row("import-fastapi", "importing fastapi", "ms"),
            Row("import-durableq", "importing durableq", "ms", "import-fastapi"),
            Row("import-durableq.fastapi", "importing durableq.fastapi, FastAPI included", "ms", "import-fastapi"),
        ),
        imports,
        is_long=True,
    ),
    Benchmark(
        "tail",
        (
            Row("tail-flow", "jobs that flow while adds are timed", "jobs/s"),
            Row("tail-p50", "add_task amid that flow, p50", "ms"),
            Row("tail-p999", "add_task amid that flow, p99.9", "ms"),
        ),
        tail,
        is_long=True,
    ),
)
