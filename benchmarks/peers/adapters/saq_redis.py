"""SAQ on Redis, with hiredis. A ``ttl`` of -1 keeps nothing of a job that is done, results included.

64 jobs at a time, which share what Redis writes to its log, instead of 10. Sweeps before it starts: SAQ's own first
sweep comes as the first jobs are taken, finds them stuck, and may abort one.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from saq import Queue

from benchmarks.peers.adapter import ADDRESS, Adapter, Message, Producer
from benchmarks.peers.job import begin

queue = Queue.from_url(ADDRESS)


async def send(context: dict[str, Any], *, number: int, message: Message) -> None:
    begin()


async def startup(context: dict[str, Any]) -> None:
    await queue.sweep()


settings = {"queue": queue, "functions": [send], "concurrency": 64, "startup": startup}


async def add(number: int, message: Message) -> None:
    await queue.enqueue("send", number=number, message=message, ttl=-1)


@asynccontextmanager
async def producer() -> AsyncIterator[Producer]:
    await queue.connect()
    try:
        yield Producer(add)
    finally:
        await queue.disconnect()


ADAPTER = Adapter(producer, ["-m", "saq", f"{__name__}.settings", "--quiet"])
