"""``python -m benchmarks.peers.run ADAPTER WORKLOAD SIZES``, in the peer's environment: run it and print figures."""

import asyncio
import dataclasses
import importlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from benchmarks.figures import MESSAGE, Figures, Sizes, percentile
from benchmarks.peers.adapter import Adapter, Producer

PRODUCERS: Final = 64
FIRST_PICK_UPS: Final = 10
"""Not counted: connections are opened and caches filled."""
PICK_UP_SECONDS: Final = 15.0
"""A pick-up that takes longer is a failure."""
REST_SECONDS: Final = 0.005
"""Before each pick-up, so that the worker has done with the job before and is idle."""


async def serial(producer: Producer, sizes: Sizes) -> Figures:
    """One caller that waits for each job to be acknowledged."""
    return {"serial": await _rate(producer, 1, sizes.seconds)}


async def producers(producer: Producer, sizes: Sizes) -> Figures:
    """Many callers at once, each waiting for its own job."""
    return {"producers": await _rate(producer, PRODUCERS, sizes.seconds)}


async def bulk(producer: Producer, sizes: Sizes) -> Figures:
    """Many jobs at once, where there is a way for it."""
    if producer.add_all is None:
        return {}
    jobs = [(number, MESSAGE) for number in range(sizes.jobs)]
    await _add(producer, 0)
    began = time.perf_counter()
    await _add_all(producer, jobs)
    return {"bulk": sizes.jobs / (time.perf_counter() - began)}


async def fill(producer: Producer, sizes: Sizes) -> Figures:
    """Add what a drain shall find."""
    jobs = [(number, MESSAGE) for number in range(sizes.jobs)]
    if producer.add_all is not None:
        await _add_all(producer, jobs)
    elif producer.blocks:
        with ThreadPoolExecutor(PRODUCERS) as pool:
            list(pool.map(lambda job: producer.add(*job), jobs))
    else:
        for start in range(0, len(jobs), PRODUCERS):
            await asyncio.gather(*(producer.add(*job) for job in jobs[start : start + PRODUCERS]))
    return {}


async def pick_up(producer: Producer, sizes: Sizes) -> Figures:
    """From just before a job is added to its first line, in a worker process that runs already."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as arrivals:
        arrivals.bind(("127.0.0.1", int(os.environ["BENCHMARK_PORT"])))
        arrivals.settimeout(PICK_UP_SECONDS)
        latencies = [await _pick_up(producer, arrivals, number) for number in range(FIRST_PICK_UPS + sizes.pick_ups)]
    counted = latencies[FIRST_PICK_UPS:]
    return {"pick-up-p50": percentile(counted, 0.5), "pick-up-p99": percentile(counted, 0.99)}


WORKLOADS: Final[dict[str, Callable[[Producer, Sizes], Awaitable[Figures]]]] = {
    one.__name__: one for one in (serial, producers, bulk, fill, pick_up)
}


async def _pick_up(producer: Producer, arrivals: socket.socket, number: int) -> float:
    """Return the latency in milliseconds."""
    await asyncio.sleep(REST_SECONDS)
    began = time.monotonic()
    await _add(producer, number)
    arrived = await asyncio.to_thread(arrivals.recv, 100)
    return (float(arrived) - began) * 1_000


async def _add(producer: Producer, number: int) -> None:
    if producer.blocks:
        producer.add(number, MESSAGE)
    else:
        await producer.add(number, MESSAGE)


async def _add_all(producer: Producer, jobs: list[tuple[int, dict[str, str]]]) -> None:
    if producer.add_all is None:
        raise ValueError("expected a producer that can add many jobs at once")
    added = producer.add_all(jobs)
    if not producer.blocks:
        await added


async def _rate(producer: Producer, callers: int, seconds: float) -> float:
    """Return jobs per second."""
    await _add(producer, 0)
    began = time.perf_counter()
    if not producer.blocks:
        added = sum(await asyncio.gather(*(_produce(producer, began + seconds) for _ in range(callers))))
    elif callers == 1:
        added = _produce_blocking(producer, began + seconds)
    else:
        added = _in_threads(producer, callers, began + seconds)
    return added / (time.perf_counter() - began)


async def _produce(producer: Producer, until: float) -> int:
    added = 0
    while time.perf_counter() < until:
        await producer.add(added, MESSAGE)
        added += 1
    return added


def _produce_blocking(producer: Producer, until: float) -> int:
    added = 0
    while time.perf_counter() < until:
        producer.add(added, MESSAGE)
        added += 1
    return added


def _in_threads(producer: Producer, callers: int, until: float) -> int:
    """Each on a thread of its own, as handlers of a web framework call it."""
    counts: list[int] = []
    threads = [
        threading.Thread(target=lambda: counts.append(_produce_blocking(producer, until))) for _ in range(callers)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if len(counts) < callers:
        raise RuntimeError(f"of {callers} producers, {callers - len(counts)} failed")
    return sum(counts)


async def main(name: str, workload: str, sizes: Sizes) -> Figures:
    adapter: Adapter = importlib.import_module(f"benchmarks.peers.adapters.{name}").ADAPTER
    async with adapter.producer() as producer:
        return await WORKLOADS[workload](producer, sizes)


if __name__ == "__main__":
    sizes = dataclasses.replace(Sizes(), **json.loads(sys.argv[3]))
    print(json.dumps(asyncio.run(main(sys.argv[1], sys.argv[2], sizes))))
