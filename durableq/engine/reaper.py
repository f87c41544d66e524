"""Periodic care: take back what dead workers held, end what came too late, delete what was finished long ago."""

import asyncio
from collections.abc import Callable
from datetime import datetime, timedelta
from itertools import count
from typing import Final

from durableq.clock import Clock, to_datetime
from durableq.engine.decisions import after_crash, before_start
from durableq.engine.settler import announce
from durableq.errors import DurableQError
from durableq.events import Emitter, WorkerReaped
from durableq.models import Dead, JobState, Lease, Outcome
from durableq.settings import QueueOptions
from durableq.storage.protocol import Storage

REAP_EVERY_SECONDS: Final = 0.4
"""A dead process is noticed within this: its jobs are runnable again well inside the promised second."""
ALONE_EVERY_NTH: Final = 12
"""A worker that is alone on the storage looks in every so many of these turns."""
PRUNE_EVERY_SECONDS: Final = 60.0
PRUNE_AT_ONCE: Final = 500
CONDENSE_EVERY: Final = timedelta(minutes=15)
OVERDUE_AT_ONCE: Final = 500
_BREATH_SECONDS: Final = 0.05
_AFTER_TROUBLE_SECONDS: Final = 1.0

Report = Callable[[str, DurableQError | None], None]
"""Told what a loop does, and what error that met; None: it works."""


class Reaper:
    """Looks for dead workers, for ever: recovery is a loop, not a launch-time one-shot."""

    def __init__(self, storage: Storage, clock: Clock, emitter: Emitter, max_crashes: int, report: Report) -> None:
        self._storage = storage
        self._clock = clock
        self._emitter = emitter
        self._max_crashes = max_crashes
        self._report = report

    async def reap(self) -> None:
        """Take back once. Raises `StorageError`."""
        for dead in await self._storage.reap(self._decide):
            self._emitter.emit(WorkerReaped(dead.worker_id, dead.reason, len(dead.leases)))
            for lease, outcome in dead.leases:
                if isinstance(outcome, Dead):
                    announce(self._emitter, lease, outcome)

    async def give_up_overdue(self) -> None:
        """End what waits though its time to start, or to finish, is over. Raises `StorageError`."""
        for lease, outcome in await self._storage.give_up_overdue(before_start, OVERDUE_AT_ONCE):
            announce(self._emitter, lease, outcome)

    async def run(self) -> None:
        doing = "looking for dead workers and late jobs"
        for turn in count():
            pause = REAP_EVERY_SECONDS
            try:
                # Alone, there is nobody to be found dead, but for what damage left.
                if turn % ALONE_EVERY_NTH == 0 or not self._storage.is_alone:
                    await self.reap()
                if self._has_overdue():
                    await self.give_up_overdue()
                self._report(doing, None)
            except DurableQError as error:
                self._report(doing, error)
                pause = _AFTER_TROUBLE_SECONDS
            await asyncio.sleep(pause)

    def _has_overdue(self) -> bool:
        limit = self._storage.next_limit
        return limit is not None and limit <= self._clock.wall()

    def _decide(self, lease: Lease, reason: str, charged: bool) -> Outcome:
        return after_crash(lease, reason, charged, self._max_crashes)


class Pruner:
    """Deletes finished jobs past their retention, a bounded number at a time."""

    def __init__(self, storage: Storage, clock: Clock, options: QueueOptions, report: Report) -> None:
        self._storage = storage
        self._clock = clock
        self._report = report
        self._condensed_at: datetime | None = None
        self._retention: dict[JobState, timedelta | None] = {
            JobState.SUCCEEDED: options.retain_finished,
            JobState.CANCELLED: options.retain_finished,
            JobState.DEAD: options.retain_dead,
        }

    async def prune(self) -> None:
        """Delete all that is past its retention now. Raises `StorageError`."""
        now = to_datetime(self._clock.wall())
        for state, kept in self._retention.items():
            if kept is not None:
                await self._prune_before(state, now - kept)
        await self._drop_results()
        await self._condense_tallies(now)

    async def _condense_tallies(self, now: datetime) -> None:
        """Every so often only: it looks at all that are not condensed yet."""
        if self._condensed_at is None or not timedelta() <= now - self._condensed_at < CONDENSE_EVERY:
            has_more = True
            while has_more:
                has_more = await self._storage.condense_tallies(now)
                await asyncio.sleep(_BREATH_SECONDS)
            self._condensed_at = now

    async def _prune_before(self, state: JobState, before: datetime) -> None:
        while True:
            if await self._storage.prune(state, before, PRUNE_AT_ONCE) < PRUNE_AT_ONCE:
                return
            await asyncio.sleep(_BREATH_SECONDS)

    async def _drop_results(self) -> None:
        while True:
            if await self._storage.drop_results(PRUNE_AT_ONCE) < PRUNE_AT_ONCE:
                return
            await asyncio.sleep(_BREATH_SECONDS)

    async def run(self) -> None:
        while True:
            try:
                await self.prune()
                self._report("deleting old jobs", None)
            except DurableQError as error:
                self._report("deleting old jobs", error)
            await asyncio.sleep(PRUNE_EVERY_SECONDS)
