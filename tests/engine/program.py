"""A process of its own, for tests: a queue that adds what it is told to, and tells what happens, as lines of JSON.

``python -m tests.engine.program DATABASE OPTIONS``. Each line on its input is a call, ``{"add": task, "args": […],
"options": {…}}``; it ends with its input. Instants are ``time.monotonic()``, which all processes of a host share.
"""

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from durableq import DurableQ, DurableQError
from durableq.events import JobStarted, LeaseLost, StorageTrouble, WorkerEvicted, WorkerReaped
from tests.support import eventually


def say(event: str, **facts: Any) -> None:
    line = json.dumps({"event": event, "at": time.monotonic(), **facts})
    os.write(1, f"{line}\n".encode())  # one write: some events come from other threads


async def echo(value: Any = None) -> Any:
    return value


async def pid() -> int:
    return os.getpid()


async def until_exists(path: str) -> int:
    """Run until the file exists; return the pid."""
    await eventually(Path(path).exists, within=3600)
    return os.getpid()


def make_queue(database: str, options: dict[str, Any]) -> DurableQ:
    dq = DurableQ(database, **options)
    for function in (echo, pid, until_exists):
        dq.task(name=function.__name__)(function)
    dq.events.subscribe(JobStarted, lambda event: say("started", id=event.lease.id, attempt=event.lease.attempt))
    dq.events.subscribe(LeaseLost, lambda event: say("lease lost", id=event.lease.id))
    dq.events.subscribe(StorageTrouble, lambda event: say("trouble", doing=event.doing, error=str(event.error)))
    dq.events.subscribe(WorkerEvicted, lambda event: say("evicted", worker=event.worker_id))
    dq.events.subscribe(WorkerReaped, lambda event: say("reaped", worker=event.worker_id, jobs=event.jobs))
    return dq


async def obey(dq: DurableQ, order: dict[str, Any]) -> None:
    task = dq.find_task(order["add"])
    assert task is not None
    try:
        job = await dq.add_task(task.options(**order.get("options", {})), *order.get("args", []))
    except DurableQError as error:
        say("refused", error=type(error).__name__, message=str(error))
    else:
        say("added", id=job.id)


async def main(database: str, options: dict[str, Any]) -> None:
    dq = make_queue(database, options)
    async with dq.running():
        say("ready")
        while line := await asyncio.to_thread(sys.stdin.readline):
            await obey(dq, json.loads(line))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], json.loads(sys.argv[2])))
