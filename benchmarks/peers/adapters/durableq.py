"""durableq, on disk before it is acknowledged, and a worker on the event loop of a process of its own.

As its README says for very many short jobs: a ``concurrency`` of 256, and uvloop.
"""

import asyncio
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import uvloop

from benchmarks.peers.adapter import ADDRESS, Adapter, Message, Producer
from benchmarks.peers.job import begin
from durableq import DurableQ, call


async def send(number: int, message: Message) -> None:
    begin()


NAME = "benchmarks.peers.adapters.durableq:send"
CONCURRENCY = 256


@asynccontextmanager
async def producer() -> AsyncIterator[Producer]:
    dq = DurableQ(ADDRESS, worker=False)
    task = dq.task(name=NAME)(send)

    async def add(number: int, message: Message) -> None:
        await dq.add_task(task, number, message)

    async def add_all(jobs: Sequence[tuple[int, Message]]) -> None:
        await dq.add_tasks([call(task, *job) for job in jobs])

    async with dq.running():
        yield Producer(add, add_all=add_all)


async def work() -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    dq = DurableQ(ADDRESS, concurrency=CONCURRENCY)
    dq.task(name=NAME)(send)
    async with dq.running():
        await stop.wait()


ADAPTER = Adapter(producer, ["-m", "benchmarks.peers.adapters.durableq"])

if __name__ == "__main__":
    uvloop.run(work())
