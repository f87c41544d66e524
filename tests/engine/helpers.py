"""What several tests of the engine need."""

import asyncio
import contextlib
import sqlite3
from pathlib import Path
from typing import Any, TypeVar

from tenacity import wait_none

from durableq import DurableQ, Job, JobState, RetryPolicy
from durableq.events import Emitter
from tests.support import eventually

E = TypeVar("E")

AT_ONCE = RetryPolicy(wait=wait_none())
"""Retries without a pause."""


def sql(database: Path, statement: str, *values: object) -> list[tuple[Any, ...]]:
    """Do to the file what another program, or a damaged disk, might do."""
    connection = sqlite3.connect(database, timeout=10, isolation_level=None)
    with contextlib.closing(connection):
        return connection.execute(statement, values).fetchall()


async def finished(dq: DurableQ, job: Job[Any], within: float = 10.0) -> Job[Any]:
    """Wait until a job is finished, and return it as it is then."""
    return await in_state(dq, job, JobState.SUCCEEDED, JobState.DEAD, JobState.CANCELLED, within=within)


async def in_state(dq: DurableQ, job: Job[Any], *states: JobState, within: float = 10.0) -> Job[Any]:
    """Wait until a job is in one of these states, and return it as it is then."""
    found: list[Job[Any]] = []

    async def has_come() -> bool:
        found[:] = [await dq.get(job)]
        return found[0].state in states

    await eventually(has_come, within)
    return found[0]


def collect(emitter: Emitter, event_type: type[E]) -> list[E]:
    """Return a list that grows with each event of this type."""
    events: list[E] = []
    emitter.subscribe(event_type, events.append)
    return events


class Gate:
    """A task body that many jobs wait in until it is opened; it counts who is inside."""

    def __init__(self) -> None:
        self.inside = 0
        self.most_inside = 0
        self.entered = 0
        self._open = asyncio.Event()

    async def __call__(self) -> None:
        self.inside += 1
        self.entered += 1
        self.most_inside = max(self.most_inside, self.inside)
        try:
            await self._open.wait()
        finally:
            self.inside -= 1

    def open(self) -> None:
        self._open.set()
