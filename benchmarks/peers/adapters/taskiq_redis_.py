"""Taskiq on a Redis stream, the broker that taskiq-redis shows first and that acknowledges tasks, with hiredis.

With uvloop, which its worker takes if it is there, orjson, no results, no check of arguments by Pydantic, and some
tasks prefetched. Its command always forks: the worker is one child.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from taskiq.serializers import ORJSONSerializer
from taskiq_redis import RedisStreamBroker

from benchmarks.peers.adapter import ADDRESS, Adapter, Message, Producer
from benchmarks.peers.job import begin

broker = RedisStreamBroker(ADDRESS).with_serializer(ORJSONSerializer())


@broker.task
async def send(number: int, message: Message) -> None:
    begin()


@asynccontextmanager
async def producer() -> AsyncIterator[Producer]:
    await broker.startup()
    try:
        yield Producer(send.kiq)
    finally:
        await broker.shutdown()


ADAPTER = Adapter(
    producer,
    [
        "-m",
        "taskiq",
        "worker",
        f"{__name__}:broker",
        "--workers",
        "1",
        "--no-parse",
        "--max-async-tasks",
        "32",
        "--max-prefetch",
        "32",
        "--log-level",
        "WARNING",
    ],
)
