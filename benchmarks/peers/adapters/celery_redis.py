"""Celery on Redis, with hiredis. No results, no worker that watches others, and tasks that run where they are read.

A connection for each thread that adds, and a large prefetch, as its guide to optimizing advises for short tasks. The
pool of threads was no faster than ``solo``.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from celery import Celery

from benchmarks.peers.adapter import ADDRESS, Adapter, Message, Producer
from benchmarks.peers.job import begin

app = Celery("peer", broker=ADDRESS)
app.conf.task_ignore_result = True
app.conf.broker_pool_limit = 64
app.conf.worker_prefetch_multiplier = 128


@app.task
def send(number: int, message: Message) -> None:
    begin()


@asynccontextmanager
async def producer() -> AsyncIterator[Producer]:
    yield Producer(add=send.delay, blocks=True)


ADAPTER = Adapter(
    producer,
    [
        "-m",
        "celery",
        "-A",
        __name__,
        "worker",
        "--pool",
        "solo",
        "--loglevel",
        "ERROR",
        "--without-gossip",
        "--without-mingle",
        "--without-heartbeat",
    ],
)
