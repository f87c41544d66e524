"""Huey on SQLite, with ``fsync=True``: an acknowledged task is on disk. Threads, for tasks that do nothing."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from huey import SqliteHuey

from benchmarks.peers.adapter import ADDRESS, Adapter, Message, Producer
from benchmarks.peers.job import begin

huey = SqliteHuey(filename=ADDRESS, fsync=True, results=False)


@huey.task()
def send(number: int, message: Message) -> None:
    begin()


@asynccontextmanager
async def producer() -> AsyncIterator[Producer]:
    yield Producer(add=send, blocks=True)


WORKER = "huey.bin.huey_consumer benchmarks.peers.adapters.huey_sqlite.huey -k thread -w 4 -d 0.001 -m 0.001 -q"

ADAPTER = Adapter(producer, ["-m", *WORKER.split()])
