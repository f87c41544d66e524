"""Runs leases: one lease in, one outcome out. Nothing a task does gets past here.

Each job runs in an asyncio task of its own, kept in a table rather than in a task group: at shutdown, and past its
time limit, a task that swallows its cancellation must be left behind, and a task group would wait for it for ever.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from functools import partial
from typing import Any, Final

from durableq.clock import SECOND
from durableq.codec import checksum, encode_result
from durableq.context import set_current
from durableq.encryption import CORRUPT, CannotOpen, is_sealed, without_a_ring
from durableq.engine import decisions
from durableq.engine.hooks import Hooks
from durableq.engine.processes import ProcessRunner, RemoteCall
from durableq.engine.runners import OUT_OF_TIME, Slots, ThreadRunner
from durableq.engine.running import RunningJob, Services
from durableq.errors import CompletionRolledBack, InvalidArguments, StorageError
from durableq.events import AttemptOverran, Emitter, JobStarted, ResultNotStored
from durableq.models import (
    Cancelled,
    Completed,
    Dead,
    Failure,
    JobState,
    Lease,
    LeaseKey,
    Outcome,
    Released,
    Retried,
    Snoozed,
    Succeeded,
)
from durableq.registry import AnyTask, Registry
from durableq.retry import DEFAULT_POLICY, RetryPolicy
from durableq.storage.protocol import Storage

logger = logging.getLogger("durableq")

CANCELLATION_SECONDS: Final = 0.4
"""How long cancelled jobs may take to clean up at shutdown, within the second that follows ``grace``."""
OVERRUN_SECONDS: Final = 5.0
"""How long an attempt may clean up after its time limit, before it is left behind."""
_LOOK_AGAIN_SECONDS: Final = 0.1

Overrides = Mapping[Callable[..., Any], Callable[..., Any]]


class Executor:
    """Starts leases and hands each outcome to ``finished``. Lives on the event loop."""

    def __init__(
        self,
        *,
        registry: Registry,
        loop: Slots,
        threads: ThreadRunner,
        processes: ProcessRunner,
        emitter: Emitter,
        hooks: Hooks,
        services: Services,
        storage: Storage,
        overrides: Callable[[], Overrides],
        finished: Callable[[Lease, Outcome | Completed], None],
        freed: Callable[[], None],
    ) -> None:
        """``overrides`` gives the application's ``dependency_overrides``; ``freed`` is called when the slot of an
        attempt that was left behind is free after all.
        """
        self._registry = registry
        self._keys = registry.keys
        self._threads = threads
        self._processes = processes
        self._slots: Mapping[str, Slots] = {"loop": loop, "thread": threads, "process": processes}
        self._emitter = emitter
        self._hooks = hooks
        self._services = services
        self._clock = services.clock
        self._storage = storage
        self._overrides = overrides
        self._finished = finished
        self._freed = freed
        self._running: dict[LeaseKey, RunningJob] = {}
        self._leaving: dict[LeaseKey, RunningJob] = {}
        self._left_behind: set[asyncio.Task[None]] = set()
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
        running = RunningJob(lease, task, self._slots[task.runner], self._services)
        self._running[lease.key] = running
        running.slots.occupied += 1
        self._suspects += lease.crashes > 0
        self._idle.clear()
        running.asyncio_task = asyncio.get_running_loop().create_task(self._run(running), name=lease.task)

    def cancel(self, keys: Collection[LeaseKey]) -> list[LeaseKey]:
        """End jobs that somebody wants ended; return the keys of those that do not run here.

        An async task is cancelled at its next await, a child process killed; a thread sees it in
        ``current_job().cancelled``.
        """
        unknown = []
        for key in keys:
            running = self._running.get(key)
            if running is None:
                unknown.append(key)
            elif not running.cancel_asked:
                running.cancel_asked = True
                if running.has_begun and running.definition.runner != "thread":
                    _cancel(running)
        return unknown

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
        for running in given_up:
            running.given_up = True
            _cancel(running)
        tasks = [*self._left_behind, *(one.asyncio_task for one in given_up if one.asyncio_task is not None)]
        for task in self._left_behind:
            task.cancel()
        if tasks:
            _, stubborn = await asyncio.wait(tasks, timeout=CANCELLATION_SECONDS)
            for task in stubborn:
                _leave_behind(task)
        for running in given_up:
            if not running.has_begun:
                self._free_slot(running)  # its task was cancelled before its first step, and never will
        self._leaving = {}
        return [running.lease for running in given_up]

    def _free_slot(self, running: RunningJob) -> None:
        running.slots.occupied -= 1
        self._suspects -= running.lease.crashes > 0

    # -- one attempt ---------------------------------------------------------------------------------------

    async def _run(self, running: RunningJob) -> None:
        """Check, run within the time limit, decide. User code runs under BaseException: even SystemExit ends only it.

        Every job comes by here: each coroutine between this and the task's own costs it something.
        """
        running.has_begun = True
        set_current(running)
        timer: asyncio.TimerHandle | None = None
        outcome: Outcome | Completed | None
        try:
            if self._emitter.wants(JobStarted):
                self._emitter.emit(JobStarted(running.lease))
            outcome = self._refusal(running)
            if outcome is None:
                timer = self._limit_time(running)
                outcome = Succeeded(await self._attempt(running), running.close())
        except BaseException as error:
            outcome = self._after_error(running, error)
        if timer is not None:
            timer.cancel()
        running.close()
        if running.completes_itself and not running.given_up:
            outcome = await self._after_completion(running, outcome)
        self._free_slot(running)
        running.asyncio_task = None  # its context holds the running job: a circle, for the garbage collector to find
        if running.given_up:
            self._freed()
        else:
            self._end(running, outcome)

    def _end(self, running: RunningJob, outcome: Outcome | Completed) -> None:
        del self._running[running.lease.key]
        if not self._running:
            self._idle.set()
        self._finished(running.lease, outcome)

    def _attempt(self, running: RunningJob) -> Awaitable[str | None]:
        if self._hooks.middleware:
            return self._hooks.around(running, partial(self._result, running))
        return self._result(running)

    def _refusal(self, running: RunningJob) -> Outcome | None:
        """Say why a job must not be started, or None."""
        lease = running.lease
        if lease.settings is not None:
            late = decisions.before_start(lease, self._clock.wall())
            if late is not None:
                return late
        if running.cancel_asked:
            return decisions.after_cancellation(None)
        if checksum(lease.args_json) != lease.checksum:
            return _dead(CORRUPT, "the stored arguments do not match their checksum; not executed")
        if self._keys is not None:
            try:
                running.open_args(self._keys)
            except CannotOpen as error:  # not tried again: all workers with these keys would claim it, and fail
                return _dead(error.kind, str(error))
        return None

    async def _result(self, running: RunningJob) -> str | None:
        """Call the task where it runs, and return its encoded result."""
        task = running.definition
        if task.runner == "process":
            return await self._remote_result(running)
        try:
            args, kwargs = task.codec.decode(running.lease.args_json)
        except InvalidArguments as error:
            raise _Unfit from error
        if task.injection is not None:
            async with task.injection.resolve(self._overrides()) as injected:
                value = await self._call(task, args, kwargs | injected)
        elif task.runner == "loop":
            value = await task.function(*args, **kwargs)
        else:
            value = await self._threads.run(task.function, args, kwargs)
        if value is None:
            return None
        return self._kept(running, *encode_result(value, self._services.max_result_bytes))

    async def _remote_result(self, running: RunningJob) -> str | None:
        """Run a task in a child process. What is encrypted goes to it in clear, over a pipe that only we two hold."""
        args_json = running.lease.args_json
        if self._keys is not None or is_sealed(args_json):  # so that no message of the child quotes what does not fit
            try:
                running.definition.codec.decode(args_json)
            except InvalidArguments as error:
                raise _Unfit from error
        return self._kept(running, *await self._processes.run(self._remote_call(running), running))

    async def _call(self, task: AnyTask, args: list[Any], kwargs: dict[str, Any]) -> Any:
        """Call a task with what was injected, which must not be closed while a thread still uses it."""
        if task.runner == "loop":
            return await task.function(*args, **kwargs)
        return await self._threads.run(task.function, args, kwargs, to_the_end=True)

    def _kept(self, running: RunningJob, result_json: str | None, not_kept: str | None) -> str | None:
        if running.lease.settings is not None and running.settings.get("result_ttl") == 0:
            return None
        if not_kept is not None:
            self._emitter.emit(ResultNotStored(running.lease, not_kept))
        if self._keys is None or result_json is None:
            return result_json
        return self._keys.seal(result_json, running.lease.id, running.lease.task, "result")

    def _remote_call(self, running: RunningJob) -> RemoteCall:
        lease = running.lease
        return RemoteCall(
            function=running.definition.function,
            task=running.definition.name,
            args_json=lease.args_json,
            job=running.facts(),
            attempt=lease.attempt,
            elapsed_seconds=(self._clock.wall() - lease.created_at) / SECOND,
            max_result_bytes=self._services.max_result_bytes,
            max_payload_bytes=self._services.maker.max_payload_bytes,
            policy=None if lease.settings is None else running.settings.get("retry"),
        )

    # -- the time limit ------------------------------------------------------------------------------------

    def _limit_time(self, running: RunningJob) -> asyncio.TimerHandle | None:
        lease = running.lease
        timeout = running.definition.settings.timeout_micros
        if lease.settings is not None:
            timeout = running.settings.get("timeout", timeout)
        if timeout is None and lease.deadline_at is None:
            return None
        now = self._clock.wall()
        seconds = decisions.time_limit(lease, timeout, now)
        if lease.deadline_at is not None:
            running.deadline_is_the_limit = timeout is None or lease.deadline_at - now <= timeout
        return asyncio.get_running_loop().call_later(seconds, self._time_out, running, seconds)

    def _time_out(self, running: RunningJob, seconds: float) -> None:
        """Stop an attempt: a coroutine at its await, a child by a kill. A thread goes on, but nobody waits for it."""
        running.timed_out = seconds
        _cancel(running, OUT_OF_TIME)
        loop = asyncio.get_running_loop()
        if running.definition.runner == "thread":  # told once the cancellation has arrived, if in a thread it did
            loop.call_soon(self._tell_of_thread, running.lease, self._threads.left_behind)
        loop.call_later(OVERRUN_SECONDS, self._leave_if_still_there, running)

    def _tell_of_thread(self, lease: Lease, left_behind_before: int) -> None:
        if self._threads.left_behind > left_behind_before:
            self._emitter.emit(AttemptOverran(lease, "thread", self._threads.left_behind))

    def _leave_if_still_there(self, running: RunningJob) -> None:
        if self._running.get(running.lease.key) is not running or running.asyncio_task is None:
            return
        running.given_up = True
        running.close()
        task = running.asyncio_task
        self._left_behind.add(task)
        task.add_done_callback(self._left_behind.discard)
        self._emitter.emit(AttemptOverran(running.lease, running.definition.runner, len(self._left_behind)))
        self._end(running, self._judged(running, asyncio.CancelledError()))

    # -- what comes of it ----------------------------------------------------------------------------------

    def _after_error(self, running: RunningJob, error: BaseException) -> Outcome:
        if running.asyncio_task is not None:
            while running.asyncio_task.cancelling():  # it has arrived; what follows is ours
                running.asyncio_task.uncancel()
        return Released() if running.given_up else self._judged(running, error)

    def _judged(self, running: RunningJob, error: BaseException) -> Outcome:
        if running.cancel_asked:
            return decisions.after_cancellation(error)
        if isinstance(error, _Unfit):
            return self._unfit(running, error)
        now = self._clock.wall()
        if running.timed_out is not None:
            if running.deadline_is_the_limit:  # it has passed by the timer, if not by the wall clock
                now = max(now, running.lease.deadline_at or 0)
            cause = error
            error = decisions.timed_out(running.lease, running.timed_out, now)
            if isinstance(cause, asyncio.CancelledError):
                error.__traceback__ = cause.__traceback__  # says where it hung
            else:
                error.__cause__ = cause
        return self._decided(running, error, now)

    def _unfit(self, running: RunningJob, error: "_Unfit") -> Dead:
        """Where there are keys, without the value that is to blame: messages are stored in clear."""
        sealed = without_a_ring(running.lease.args_json, "args")
        if sealed is not None:
            return _dead(sealed.kind, str(sealed))
        said = str(error.__cause__)
        if self._keys is not None and isinstance(error.__cause__, InvalidArguments):
            said = f"{running.lease.task}: its signature refuses the argument {error.__cause__.argument!r}"
        return _dead("durableq.InvalidArguments", f"{said}; edit the arguments and retry")

    def _decided(self, running: RunningJob, error: BaseException, now: int) -> Outcome:
        try:
            return decisions.after_error(running.lease, error, self._policy(running), now)
        except BaseException:
            logger.exception("the retry policy of %s raised; the default policy decides", running.lease.task)
            return decisions.after_error(running.lease, error, DEFAULT_POLICY, now)

    def _policy(self, running: RunningJob) -> RetryPolicy:
        name = None if running.lease.settings is None else running.settings.get("retry")
        named = None if name is None else self._registry.policy_named(name)
        if name is not None and named is None:
            logger.warning("no retry policy is named %r here; that of %s decides", name, running.lease.task)
        if named is None:
            return running.definition.settings.policy
        return running.definition.options(retry=named).settings.policy  # with what the code says of exception types

    async def _after_completion(self, running: RunningJob, outcome: Outcome) -> Outcome | Completed:
        """The task has written its success itself: see whether that was committed, whatever came afterwards."""
        state = await self._state_after_completion(running)
        if state is JobState.SUCCEEDED:
            _tell_what_is_lost(running, outcome)
            return Completed(running.completed_with)
        if state is JobState.RUNNING and isinstance(outcome, Succeeded):
            text = "the transaction of complete_within was not committed when the task returned"
            return self._judged(running, CompletionRolledBack(text))
        return outcome

    async def _state_after_completion(self, running: RunningJob) -> JobState | None:
        pause = 0.0
        while True:
            try:
                await asyncio.sleep(pause)
                return await self._storage.state_of_lease(running.lease)
            except asyncio.CancelledError:  # too late for the task: what counts now is what was committed
                if running.given_up:
                    return None
            except StorageError as error:
                logger.warning("cannot see whether job %s is completed, looking again: %s", running.lease.id, error)
            pause = _LOOK_AGAIN_SECONDS


class _Unfit(Exception):
    """The stored arguments do not fit the task; its cause says why. (They do not when there are no keys to them.)"""


def _cancel(running: RunningJob, why: str | None = None) -> None:
    if running.asyncio_task is not None:
        running.asyncio_task.cancel(why)


def _leave_behind(task: asyncio.Task[None]) -> None:
    """Let a task that swallows its cancellation hold nobody: asyncio.run would wait for it for ever."""
    logger.error("a job of %s does not end though it was cancelled; it is left behind", task.get_name())
    asyncio._unregister_task(task)  # documented under "Extending", for those who make tasks of their own


def _tell_what_is_lost(running: RunningJob, outcome: Outcome) -> None:
    """After its success was committed, nothing else that the task does is stored: log what that is."""
    match outcome:
        case Succeeded(None):
            pass
        case Succeeded() if running.completed_with is None:
            logger.warning(
                "job %s returned a value that is not stored: complete_within has written its success already; "
                "give it the value, complete_within(..., result=...)",
                running.lease.id,
            )
        case Retried(failure) | Dead(failure) | Cancelled(failure):
            told = f"{failure.type}: {failure.message}"
            logger.warning("job %s raised after its success was committed: %s", running.lease.id, told)
        case Snoozed() | Released():
            logger.warning("job %s asked to be run again after its success was committed", running.lease.id)


def _dead(kind: str, message: str) -> Dead:
    return Dead(Failure(kind, message, message))
