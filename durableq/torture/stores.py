"""A database under torture: opened as durableq opens it, and looked at from outside."""

import contextlib
import sqlite3
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any, Final

from typing_extensions import Unpack

from durableq.clock import SystemClock, to_datetime
from durableq.engine.decisions import after_crash
from durableq.ids import new_job_id
from durableq.models import ClaimRequest, Failure, Job, JobState, Lane, Lease, Succeeded
from durableq.settings import QueueSettings, queue_options
from durableq.storage import storage_factory
from durableq.storage.protocol import Storage

TASK: Final = "torture:task"
BESIDE: Final = "torture:beside"
"""Task of the jobs of a process that works on the same file meanwhile."""
QUEUE: Final = "default"
BOOM: Final = Failure("ValueError", "boom", "Traceback: boom")
MAX_CRASHES: Final = 3
_CLOCK: Final = SystemClock()


@contextlib.asynccontextmanager
async def opened(path: Path, **options: Unpack[QueueSettings]) -> AsyncIterator[Storage]:
    """Open a database, and close it in good order at the end."""
    storage = storage_factory(str(path), queue_options(options, {}), _CLOCK)()
    await storage.open()
    try:
        yield storage
    finally:
        await storage.close()


@contextlib.asynccontextmanager
async def at_work(path: Path) -> AsyncIterator[Storage]:
    """The same as a worker, which may hold leases; it takes back at once what the dead have left."""
    async with opened(path) as storage:
        await storage.register(lambda new_names: None)
        await storage.reap(partial(after_crash, max_crashes=MAX_CRASHES))
        try:
            yield storage
        finally:
            await storage.deregister()


def make_job(number: int, *, task: str = TASK, max_attempts: int = 5) -> Job[Any]:
    """Return a job that says which one it is."""
    now = _CLOCK.wall()
    return Job(
        id=new_job_id(now),
        task=task,
        queue=QUEUE,
        priority=0,
        state=JobState.QUEUED,
        args_json=f'{{"n":{number},"body":"{"x" * 200}"}}',
        max_attempts=max_attempts,
        created_at=to_datetime(now),
        run_at=to_datetime(now),
    )


async def claim(storage: Storage, limit: int, *, task: str = TASK) -> list[Lease]:
    request = ClaimRequest((QUEUE,), (Lane("loop", (task,), limit),), (task,))
    return (await storage.exchange([], request)).leases


async def run_all(storage: Storage, *, task: str = TASK) -> int:
    """Run whatever can be run to its success; return how many jobs that were."""
    count = 0
    while leases := await claim(storage, 100, task=task):
        await storage.exchange([(lease, Succeeded("1")) for lease in leases], None)
        count += len(leases)
    return count


def rows(path: Path, sql: str, *values: object) -> list[tuple[Any, ...]]:
    """Ask the file, as any program might."""
    with contextlib.closing(sqlite3.connect(path, timeout=10, isolation_level=None)) as connection:
        return connection.execute(sql, values).fetchall()
