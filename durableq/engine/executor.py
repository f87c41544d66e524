"""Runs leases: one lease in, one outcome out. Nothing a task does gets past here.

Each job runs in an asyncio task of its own, kept in a table rather than in a task group: at shutdown a task that
swallows its cancellation must be left behind, and a task group would wait for it for ever.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from durableq.clock import Clock
from durableq.codec import checksum, encode_result
from durableq.engine import decisions
from durableq.engine.runners import Runner
from durableq.errors import InvalidArguments
from durableq.events import Emitter, JobStarted, ResultNotStored
from durableq.models import Dead, Failure, Lease, LeaseKey, Outcome, Released, Succeeded
from durableq.registry import AnyTask, Registry
from durableq.retry import DEFAULT_POLICY

logger = logging.getLogger("durableq")

CANCELLATION_SECONDS: Final = 0.4
"""How long cancelled jobs may take to clean up at shutdown, within the second that follows ``grace``."""


@dataclass(slots=True, eq=False)
class _Running:
    lease: Lease
    runner: Runner
    has_begun: bool = False
    given_up: bool = False
    """We cancelled it ourselves; what it still does has no outcome."""
    task: asyncio.Task[None] | None = None


class Executor:
    """Starts leases and hands each outcome to ``finished``. Lives on the event loop."""

    def __init__(
        self,
        *,
        registry: Registry,
        runners: Mapping[str, Runner],
        emitter: Emitter,
        clock: Clock,
        max_result_bytes: int,
        finished: Callable[[Lease, Outcome], None],
    ) -> None:
        self._registry = registry
        self._runners = runners
        self._emitter = emitter
        self._clock = clock
        self._max_result_bytes = max_result_bytes
        self._finished = finished
        self._running: dict[LeaseKey, _Running] = {}
        self._leaving: dict[LeaseKey, _Running] = {}
        self._idle = asyncio.Event()
        self._idle.set()
        self._suspects = 0

    @property
    def leases(self) -> tuple[Lease, ...]:
        """What is running now, or still cleaning up. May be asked from another thread."""
        held = self._leaving.copy() | self._running.copy()
        return tuple(running.lease for running in held.values())

    @property
    def runs_a_suspect(self) -> bool:
        """Whether a job that has crashed a process before is running."""
        return self._suspects > 0

    def start(self, lease: Lease) -> None:
        """Run a claimed job. Its task was resolved before the claim, which named only known tasks."""
        task = self._registry.find(lease.task)
        if task is None:
            self._finished(lease, Released())
            return
        running = _Running(lease, self._runners[task.runner])
        self._running[lease.key] = running
        running.runner.occupied += 1
        self._suspects += lease.crashes > 0
        self._idle.clear()
        running.task = asyncio.get_running_loop().create_task(self._run(running, task), name=lease.task)

    async def wait_idle(self, timeout: float) -> None:
        """Return when nothing runs any more, or after ``timeout`` seconds."""
        try:
            async with asyncio.timeout(timeout):
                await self._idle.wait()
        except TimeoutError:
            pass

    async def give_up(self) -> list[Lease]:
        """Cancel all that runs and return its leases. Waits a moment for clean-up, then leaves it behind."""
        given_up = list(self._running.values())
        self._leaving = self._running
        self._running = {}
        self._idle.set()
        tasks = [task for running in given_up if (task := self._cancel(running)) is not None]
        if tasks:
            _, stubborn = await asyncio.wait(tasks, timeout=CANCELLATION_SECONDS)
            for task in stubborn:
                _leave_behind(task)
        for running in given_up:
            if not running.has_begun:
                self._free_slot(running)  # its task was cancelled before its first step, and never will
        self._leaving = {}
        return [running.lease for running in given_up]

    def _cancel(self, running: _Running) -> asyncio.Task[None] | None:
        running.given_up = True
        if running.task is not None:
            running.task.cancel()
        return running.task

    def _free_slot(self, running: _Running) -> None:
        running.runner.occupied -= 1
        self._suspects -= running.lease.crashes > 0

    async def _run(self, running: _Running, task: AnyTask) -> None:
        running.has_begun = True
        try:
            if self._emitter.wants(JobStarted):
                self._emitter.emit(JobStarted(running.lease))
            outcome = await self._outcome(running, task)
        finally:
            self._free_slot(running)
        if running.given_up:
            return
        del self._running[running.lease.key]
        if not self._running:
            self._idle.set()
        self._finished(running.lease, outcome)

    async def _outcome(self, running: _Running, task: AnyTask) -> Outcome:
        """Decode, run, decide. User code runs under BaseException: even SystemExit ends only the attempt."""
        lease = running.lease
        if checksum(lease.args_json) != lease.checksum:
            return _dead("durableq.PayloadCorrupt", "the stored arguments do not match their checksum; not executed")
        try:
            args, kwargs = task.codec.decode(lease.args_json)
        except InvalidArguments as error:
            return _dead("durableq.InvalidArguments", f"{error}; edit the arguments and retry")
        except BaseException as error:  # a validator of the app, broken
            return self._after_error(lease, error, task)
        try:
            value = await running.runner.run(task.function, args, kwargs)
        except BaseException as error:
            return Released() if running.given_up else self._after_error(lease, error, task)
        result, reason = encode_result(value, self._max_result_bytes)
        if reason is not None:
            self._emitter.emit(ResultNotStored(lease, reason))
        return Succeeded(result)

    def _after_error(self, lease: Lease, error: BaseException, task: AnyTask) -> Outcome:
        now = self._clock.wall()
        try:
            return decisions.after_error(lease, error, task.settings.retry, now)
        except BaseException:
            logger.exception("the retry policy of %s raised; the default policy decides", lease.task)
            return decisions.after_error(lease, error, DEFAULT_POLICY, now)


def _leave_behind(task: asyncio.Task[None]) -> None:
    """Let a task that swallows its cancellation hold nobody: asyncio.run would wait for it for ever."""
    logger.error("a job of %s does not end though it was cancelled; it is left behind", task.get_name())
    asyncio._unregister_task(task)  # documented under "Extending", for those who make tasks of their own


def _dead(kind: str, message: str) -> Dead:
    return Dead(Failure(kind, message, message))
