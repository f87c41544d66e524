"""The processes that are hurt: each an application of its own, with a queue, its tasks and a ledger.

A subject opens the queue, adds jobs and runs them as its `Orders` say, and writes down in its ledger what it was told
and what it ran. ``python -m durableq.torture.subject`` gives birth to them, see `durableq.torture.nursery`.
"""

import asyncio
import contextlib
import logging
import mmap
import os
import random
import select
import signal
import sqlite3
import time
from collections.abc import Iterator
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Any, Final

from durableq import DurableQ, NotStored, OutcomeUnknown, Retry, Snooze, Task, call, current_job
from durableq.clock import SystemClock
from durableq.events import (
    JobCancelled,
    JobDied,
    JobReleased,
    JobRetried,
    JobSnoozed,
    JobStarted,
    JobSucceeded,
    LeaseLost,
    StorageTrouble,
    WorkerEvicted,
    WorkerStarted,
)
from durableq.models import Lease
from durableq.torture.ledger import LedgerWriter
from durableq.torture.nursery import Barrier, Cradle, Orders

LIFE_SECONDS: Final = 3_600
"""No subject outlives this, whatever becomes of those who should end it."""
BATCH: Final = 100
WAYS: Final = ("returns", "raises", "snoozes", "completes", "leaves")
"""What a worker that lost its lease may try to write."""
STOPPED_SECONDS: Final = 0.8
"""A process that stood still for so long was stopped."""

_STOP_LOOK_SECONDS: Final = 0.01
_PARENT_LOOK_SECONDS: Final = 1.0
_STATES: Final = {
    JobSucceeded: "succeeded",
    JobDied: "dead",
    JobCancelled: "cancelled",
    JobRetried: "retried",
    JobSnoozed: "snoozed",
    JobReleased: "released",
}

_lease: ContextVar[Lease] = ContextVar("lease")


class SteppedClock(SystemClock):
    """The host's clock, which an administrator sets forward and back: for all processes at once."""

    def __init__(self, path: Path) -> None:
        with path.open("r+b") as file:
            self._offset = mmap.mmap(file.fileno(), 8)

    def wall(self) -> int:
        return super().wall() + int.from_bytes(self._offset[:8], "little", signed=True)

    def step_to(self, micros: int) -> None:
        self._offset[:8] = micros.to_bytes(8, "little", signed=True)

    @staticmethod
    def make(path: Path) -> "SteppedClock":
        path.write_bytes(bytes(8))
        return SteppedClock(path)


class Subject:
    """One process: a queue, its tasks, and a ledger."""

    def __init__(self, orders: Orders) -> None:
        self._orders = orders
        self._random = random.Random(orders.seed)
        self._ledger = LedgerWriter(Path(orders.ledger))
        self._go, self._quiet, self._leave = asyncio.Event(), asyncio.Event(), asyncio.Event()
        clock = SteppedClock(Path(orders.clock)) if orders.clock else None
        self._dq = DurableQ(orders.database, task_modules=(), clock=clock, **orders.options)
        self._listen()
        self._step: Task[[str, float], Any] = self._dq.task(name="torture:step", max_attempts=1_000)(self._run_step)
        self._thread_step: Task[[float], Any] = self._dq.task(name="torture:thread", max_attempts=1_000)(
            self._run_thread
        )
        self._held: Task[[int], Any] = self._dq.task(name="torture:hold", max_attempts=1_000)(self._hold)
        self._follow_up: Task[[str], Any] = self._dq.task(name="torture:follow_up")(self._run_follow_up)

    async def live(self, barrier: Barrier) -> None:
        """Do what was ordered, from the moment on at which all who were born together are ready."""
        loop = asyncio.get_running_loop()
        for number, event in ((signal.SIGUSR1, self._quiet), (signal.SIGUSR2, self._go), (signal.SIGTERM, self._leave)):
            loop.add_signal_handler(number, event.set)
        watching = asyncio.create_task(self._leave_with_the_nursery(os.getppid()))
        barrier.pass_through()
        async with self._dq.running():
            match self._orders.part:
                case "load":
                    await asyncio.gather(*(self._add_without_end() for _ in range(3)))
                case "batch":
                    await self._add_batches()
                case "hold":
                    await self._add_held()
                case "open":
                    await self._run_one()
                    self._leave.set()
            await self._leave.wait()
        self._ledger.note("left")
        watching.cancel()

    def _listen(self) -> None:
        events, note = self._dq.events, self._ledger.note
        events.subscribe(JobStarted, self._note_lease_here)
        for kind, state in _STATES.items():
            events.subscribe(kind, partial(self._note_settled, state))
        events.subscribe(LeaseLost, lambda event: self._note_lease("lost", event.lease))
        events.subscribe(StorageTrouble, lambda event: note("trouble", note=f"{event.doing}: {event.error}"))
        events.subscribe(WorkerStarted, lambda event: note("ready", note=str(event.worker_id)))
        events.subscribe(WorkerEvicted, self._note_eviction)

    def _note_lease_here(self, event: JobStarted) -> None:
        """Called in the job's own context, so that its code finds the lease there."""
        _lease.set(event.lease)

    def _note_settled(self, state: str, event: Any) -> None:
        self._note_lease("settled", event.lease, state)

    def _note_lease(self, kind: str, lease: Lease, note: str = "") -> None:
        self._ledger.note(kind, lease.id, lease.lease_no, lease.attempt, note)

    def _note_eviction(self, _: WorkerEvicted) -> None:
        self._ledger.note("evicted")
        if self._orders.part == "hold":  # a zombie that worked on would be one of those who take over
            self._leave.set()

    async def _leave_with_the_nursery(self, nursery: int) -> None:
        while os.getppid() == nursery:  # noqa: ASYNC110 - nobody tells us
            await asyncio.sleep(_PARENT_LOOK_SECONDS)
        os._exit(1)

    # -- adding --------------------------------------------------------------------------------------------

    async def _add_without_end(self) -> None:
        while not self._quiet.is_set() and not self._leave.is_set():
            await asyncio.gather(*(self._add_one() for _ in range(self._random.randint(1, 3))))
            await asyncio.sleep(self._random.uniform(0, 0.04))

    async def _add_one(self) -> None:
        seconds, priority = self._random.uniform(0.005, 0.03), self._random.randint(-2, 2)
        if self._random.random() < 0.1:
            adding = self._dq.add_task(self._thread_step.options(priority=priority), seconds)
        else:
            adding = self._dq.add_task(self._step.options(priority=priority), self._kind(), seconds)
        try:
            await adding
        except NotStored:
            self._ledger.note("refused", adding.job.id)
        except OutcomeUnknown:
            self._ledger.note("unknown", adding.job.id)
        else:
            self._ledger.note("added", adding.job.id)

    def _kind(self) -> str:
        return self._random.choices(("plain", "fails", "snoozes"), (8, 1, 1))[0]

    async def _add_batches(self) -> None:
        left = self._orders.jobs
        while left > 0 and not self._leave.is_set():
            calls = [
                call(self._step.options(priority=self._random.randint(-2, 2)), self._kind(), 0.0)
                for _ in range(min(left, BATCH))
            ]
            jobs = await self._dq.add_tasks(calls)
            self._ledger.note_all("added", [job.id for job in jobs])
            left -= len(jobs)

    async def _add_held(self) -> None:
        for number in range(self._orders.jobs):
            job = await self._dq.add_task(self._held, number)
            self._ledger.note("added", job.id)

    async def _run_one(self) -> None:
        job = await self._dq.add_task(self._step, "plain", 0.0)
        self._ledger.note("added", job.id)
        await self._dq.wait(job, timeout=30)

    # -- tasks ---------------------------------------------------------------------------------------------

    async def _run_step(self, kind: str, seconds: float) -> None:
        with self._noted():
            await asyncio.sleep(seconds)
            lease = _lease.get()
            if kind == "fails" and lease.attempt == 1:
                raise Retry("the first attempt fails", delay=seconds)
            if kind == "snoozes" and lease.lease_no == 1:
                raise Snooze(seconds)

    def _run_thread(self, seconds: float) -> None:
        with self._noted():
            _pause(seconds)

    async def _run_follow_up(self, who: str) -> None:
        with self._noted():
            await asyncio.sleep(0)

    async def _hold(self, number: int) -> str:
        with self._noted():
            if self._orders.way in ("", "leaves"):
                await self._go.wait()
                self._go.clear()
            else:
                await _awaken()
            return self._end_a_hold(self._orders.way)

    def _end_a_hold(self, way: str) -> str:
        """End in the way that was ordered, leaving this process's name wherever a job can leave one."""
        job, me = current_job(), name_of(self._orders.number)
        job.progress(1, 1, me)
        job.log(me)
        if way == "raises":
            raise RuntimeError(me)
        if way == "snoozes":
            raise Snooze(3_600)
        if way == "returns":
            job.add_task(self._follow_up, me)
        if way == "completes":
            self._complete(me)
        return me

    def _complete(self, me: str) -> None:
        """Write the success in a transaction of one's own, past the worker."""
        with contextlib.closing(sqlite3.connect(self._orders.database, timeout=5, isolation_level=None)) as own:
            own.execute("PRAGMA synchronous = FULL")
            own.execute("BEGIN IMMEDIATE")
            current_job().complete_within(own, result=me)
            own.execute("COMMIT")

    @contextlib.contextmanager
    def _noted(self) -> Iterator[None]:
        """Write down the start of a run, and how it ended."""
        lease = _lease.get()
        self._note_lease("start", lease)
        how = "raised"
        try:
            yield
            how = "returned"
        except Snooze:
            how = "snoozed"
            raise
        except asyncio.CancelledError:
            how = "cancelled"
            raise
        finally:
            self._note_lease("end", lease, how)


def _pause(seconds: float) -> None:
    select.select([], [], [], seconds)


async def _awaken() -> None:
    """Return when this process was stopped for a while and goes on: mostly before its heartbeat has said anything.

    Where the heartbeat is quicker and cancels the job, that is ignored: the writes shall be tried all the same.
    """
    now = time.monotonic()
    with contextlib.suppress(asyncio.CancelledError):
        while True:
            before = now
            await asyncio.sleep(_STOP_LOOK_SECONDS)
            now = time.monotonic()
            if now - before > STOPPED_SECONDS:
                return


def name_of(number: int) -> str:
    """What a subject leaves where a job can leave something."""
    return f"process {number}"


def live(orders: Orders, barrier: Barrier) -> None:
    """Be a subject, from birth to end. What goes wrong stands in the ledger, and is raised."""
    signal.alarm(LIFE_SECONDS)
    logging.getLogger("durableq").setLevel(logging.ERROR)  # failures are the order of the day here
    try:
        asyncio.run(Subject(orders).live(barrier))
    except BaseException as error:
        LedgerWriter(Path(orders.ledger)).note("failed", note=repr(error))
        raise


if __name__ == "__main__":
    Cradle(live).serve()
