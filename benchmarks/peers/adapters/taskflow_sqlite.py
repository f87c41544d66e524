"""fastapi-taskflow on SQLite: ``eager`` tasks, run by the process that adds them, and stored when they are done.

There is no worker. An acknowledged task is in memory only: if it has not begun when the process ends in good order, it
is stored to be run again.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi_taskflow import ManagedBackgroundTasks, TaskManager

from benchmarks.peers.adapter import ADDRESS, Adapter, Message, Producer
from benchmarks.peers.job import begin


async def send(number: int, message: Message) -> None:
    begin()


@asynccontextmanager
async def producer() -> AsyncIterator[Producer]:
    manager = TaskManager(snapshot_db=ADDRESS, requeue_pending=True)
    manager.task(eager=True)(send)

    async def add(number: int, message: Message) -> None:
        ManagedBackgroundTasks(manager).add_task(send, number, message)
        await asyncio.sleep(0)  # the loop is the worker

    await manager.startup()
    try:
        yield Producer(add=add)
    finally:
        await manager.shutdown()


ADAPTER = Adapter(producer, [])
