"""The application that the crash tests serve, kill and restart: every run of a job leaves a line in a ledger.

``CRASH_DATABASE`` and ``CRASH_LEDGER`` name its files; durableq's own options come from ``DURABLEQ_<NAME>``.
A line is written by one ``write`` to a file opened with ``O_APPEND``, so that it outlives the process and never mixes
with another's. Instants are ``time.monotonic()``, which all processes of a host share on Linux.
"""

import asyncio
import json
import os
import random
import signal
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from durableq import DurableQ, Job, Task
from durableq.events import JobStarted, WorkerReaped, WorkerStarted
from durableq.fastapi import BackgroundTasks
from durableq.models import Lease
from tests.support import eventually

LEDGER = os.open(os.environ["CRASH_LEDGER"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
MARKS = Path(os.environ["CRASH_LEDGER"]).parent
_lease: ContextVar[Lease] = ContextVar("lease")


def note(event: str, **facts: Any) -> None:
    """Append one line to the ledger."""
    line = json.dumps({"event": event, "pid": os.getpid(), "at": time.monotonic(), **facts})
    os.write(LEDGER, f"{line}\n".encode())


def note_job(event: str) -> None:
    lease = _lease.get()
    note(event, id=lease.id, task=lease.task, lease=lease.lease_no, attempt=lease.attempt)


def note_lease(event: JobStarted) -> None:
    """Called in the job's own context, so that its code finds the lease there."""
    _lease.set(event.lease)


note("process")
dq = DurableQ(os.environ["CRASH_DATABASE"])
dq.events.subscribe(JobStarted, note_lease)
dq.events.subscribe(WorkerStarted, lambda event: note("worker", worker=event.worker_id))
dq.events.subscribe(WorkerReaped, lambda event: note("reaped", worker=event.worker_id, jobs=event.jobs))


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Any]]:
    note("lifespan")
    async with dq.running() as state:
        yield state


app = FastAPI(lifespan=lifespan)


@dq.task
async def async_step(seconds: float) -> None:
    note_job("start")
    await asyncio.sleep(seconds)
    note_job("end")


@dq.task
def sync_step(seconds: float) -> None:
    note_job("start")
    time.sleep(seconds)
    note_job("end")


@dq.task
async def async_endless() -> None:
    note_job("start")
    try:
        await asyncio.Event().wait()
    finally:
        note_job("end")


@dq.task
def sync_endless() -> None:
    note_job("start")
    while True:
        time.sleep(0.05)


@dq.task
async def stubborn() -> None:
    """Swallows every cancellation."""
    note_job("start")
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            note_job("cancelled")


def is_marked() -> bool:
    return (MARKS / f"go-{os.getpid()}").exists()


@dq.task
async def until_marked() -> int:
    """Runs until the test leaves a mark for this process; returns its pid."""
    note_job("start")
    try:
        await eventually(is_marked, within=3600)
        return os.getpid()
    finally:
        note_job("end")


@dq.task
async def poison() -> None:
    """Takes its process down, as a crash in C code or the kernel's out-of-memory killer would."""
    note_job("start")
    await asyncio.sleep(0.1)
    os.kill(os.getpid(), signal.SIGKILL)


TASKS: dict[str, Task[[], Any]] = {
    "async_endless": async_endless,
    "sync_endless": sync_endless,
    "stubborn": stubborn,
    "until_marked": until_marked,
    "poison": poison,
}


@app.post("/add", status_code=202)
async def add(background_tasks: BackgroundTasks) -> list[str]:
    """Add one to three short jobs, one in eight of them a plain function."""
    jobs: list[Job[None]] = []
    for _ in range(random.randint(1, 3)):
        step = sync_step if random.random() < 0.125 else async_step
        jobs.append(background_tasks.add_task(step, random.uniform(0.005, 0.02)))
    return [job.id for job in jobs]


@app.post("/add/{name}", status_code=202)
async def add_named(name: str, background_tasks: BackgroundTasks) -> list[str]:
    return [background_tasks.add_task(TASKS[name]).id]


@app.post("/add-steps", status_code=202)
async def add_steps(count: int, seconds: float, background_tasks: BackgroundTasks) -> list[str]:
    return [background_tasks.add_task(async_step, seconds).id for _ in range(count)]


@app.get("/ready")
async def ready() -> int:
    return os.getpid()
