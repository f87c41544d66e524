"""Dramatiq on Redis, with hiredis: one worker process, which its command always forks, and no results.

An idle worker looks every 10 ms instead of every second, and takes more at once: variables of the environment say so.
16 threads, which share what Redis writes to its log, instead of 8.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import dramatiq
from dramatiq.brokers.redis import RedisBroker

from benchmarks.peers.adapter import ADDRESS, Adapter, Message, Producer
from benchmarks.peers.job import begin

ENVIRONMENT = {"dramatiq_worker_timeout": "10", "dramatiq_queue_prefetch": "256"}
COMMAND = ["-m", "dramatiq", __name__, "--processes", "1", "--threads", "16", "--skip-logging"]

broker = RedisBroker(url=ADDRESS)
dramatiq.set_broker(broker)


@dramatiq.actor
def send(number: int, message: Message) -> None:
    begin()


@asynccontextmanager
async def producer() -> AsyncIterator[Producer]:
    yield Producer(add=send.send, blocks=True)


ADAPTER = Adapter(
    producer,
    ["-c", f"import os, sys; os.environ |= {ENVIRONMENT}; os.execv(sys.executable, [sys.executable, *{COMMAND}])"],
)
