"""arq on Redis, with hiredis. No results are kept, and the queue is read every 10 ms instead of every 500 ms.

A read starts no more than ``max_jobs``, which is thus raised until it does not bound the rate.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from arq import create_pool
from arq.connections import RedisSettings

from benchmarks.peers.adapter import ADDRESS, Adapter, Message, Producer
from benchmarks.peers.job import begin

SETTINGS = RedisSettings.from_dsn(ADDRESS)
QUIET = {"version": 1, "disable_existing_loggers": False, "loggers": {"arq": {"level": "WARNING"}}}


async def send(context: dict[str, Any], number: int, message: Message) -> None:
    begin()


class WorkerSettings:
    functions = (send,)
    redis_settings = SETTINGS
    max_jobs = 100
    poll_delay = 0.01
    keep_result = 0
    log_results = False


@asynccontextmanager
async def producer() -> AsyncIterator[Producer]:
    redis = await create_pool(SETTINGS)
    try:

        async def add(number: int, message: Message) -> None:
            await redis.enqueue_job("send", number, message)

        yield Producer(add)
    finally:
        await redis.aclose()


ADAPTER = Adapter(
    producer,
    ["-m", "arq", f"{__name__}.WorkerSettings", "--custom-log-dict", f"{__name__}.QUIET"],
)
