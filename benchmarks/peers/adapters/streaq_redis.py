"""streaQ on Redis, which it talks to by coredis. No results are kept (``ttl=0``) and tasks are not logged.

With uvloop, as in its own benchmark, and its default of 16 tasks at a time: with more it was not faster.
"""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from streaq import Worker

from benchmarks.peers.adapter import ADDRESS, Adapter, Message, Producer
from benchmarks.peers.job import begin

worker = Worker(redis_url=ADDRESS, anyio_kwargs={"use_uvloop": True})


@worker.task(ttl=0, silent=True)
async def send(number: int, message: Message) -> None:
    begin()


async def add(number: int, message: Message) -> None:
    await send.enqueue(number, message)


async def add_all(jobs: Sequence[tuple[int, Message]]) -> None:
    await worker.enqueue_many([send.enqueue(*job) for job in jobs])


@asynccontextmanager
async def producer() -> AsyncIterator[Producer]:
    async with worker:
        yield Producer(add, add_all=add_all)


ADAPTER = Adapter(producer, ["-m", "streaq", "run", f"{__name__}:worker"])
