"""What an application hangs on its jobs: handlers of failures, callbacks, and middleware around every attempt.

Handlers and callbacks run once what they tell of is stored, on the event loop (a ``def`` in a daemon thread of ours),
at most once: a process that dies in between does not call them. One that raises, whatever it raises, is logged and
harms nothing; one that never ends holds neither the queue nor the process.
"""

import asyncio
import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any, Final, TypeVar

from pydantic_core import from_json

from durableq.clock import to_datetime
from durableq.context import CurrentJob
from durableq.encryption import opened
from durableq.engine.decisions import RemoteFailure
from durableq.engine.runners import ThreadRunner
from durableq.errors import AttemptFailed, ConfigurationError
from durableq.events import Emitter, JobDied, JobRetried, JobSucceeded
from durableq.models import PLAIN, Failure, Job, JobError, JobExtras, JobState, Lease
from durableq.options import require_callable_with
from durableq.registry import AnyTask, Registry

logger = logging.getLogger("durableq")

E = TypeVar("E", bound=BaseException)
ExceptionHandler = Callable[[Job[Any], Any], Any]
Middleware = Callable[[CurrentJob], AsyncIterator[None]]

HANDLER_THREADS: Final = 8
"""How many plain ``def`` handlers run at once; the rest wait for their turn."""
_LEAVE_SECONDS: Final = 0.2
"""How long handlers may go on once the queue has stopped."""
_CANCELLATION_SECONDS: Final = 0.05
"""How long those that were cancelled then may take to clean up."""


class Hooks:
    """Holds what was registered, and calls it. One for each `DurableQ`."""

    def __init__(self, registry: Registry, emitter: Emitter) -> None:
        self._registry = registry
        self._emitter = emitter
        self._handlers: dict[type[BaseException], ExceptionHandler] = {}
        self.middleware: list[Callable[[CurrentJob], AbstractAsyncContextManager[None]]] = []
        self._calls: set[asyncio.Task[None]] = set()
        self._threads: _Threads | None = None
        self._hears_successes = False
        emitter.subscribe(JobRetried, self._retried)
        emitter.subscribe(JobDied, self._died)

    # -- registering ---------------------------------------------------------------------------------------

    def handle(self, kind: type[E], handler: ExceptionHandler) -> None:
        """Call ``handler(job, error)`` when an attempt fails by this exception type, and when a job dies by it."""
        if not _is_exception_type(kind):
            raise ConfigurationError(
                f"expected an exception type, as in @dq.exception_handler(ValueError), got {kind!r}"
            )
        if kind in self._handlers:
            raise ConfigurationError(f"{kind.__qualname__} already has a handler, {self._handlers[kind]!r}")
        require_callable_with(handler, "job", "error")
        self._handlers[kind] = handler

    def wrap(self, middleware: Middleware) -> None:
        """Run ``middleware`` around every attempt; the first one registered stands outermost."""
        if not inspect.isasyncgenfunction(middleware):
            raise ConfigurationError(
                "expected middleware to be an async generator function: 'async def timed(job): ...; yield; ...', "
                f"got {middleware!r}"
            )
        require_callable_with(middleware, "job")
        self.middleware.append(asynccontextmanager(middleware))

    def expect_successes(self) -> None:
        """Listen to successes too, now that some task has an ``on_success``: they are too many to hear in vain."""
        if not self._hears_successes:
            self._hears_successes = True
            self._emitter.subscribe(JobSucceeded, self._succeeded)

    # -- around an attempt ---------------------------------------------------------------------------------

    async def around(self, job: CurrentJob, run: Callable[[], Awaitable[Any]]) -> Any:
        """Run an attempt inside all middleware. One that swallows the attempt's exception does not hide it."""
        failure: BaseException | None = None
        value: Any = None
        async with AsyncExitStack() as stack:
            try:
                for middleware in self.middleware:
                    await stack.enter_async_context(middleware(job))
                value = await run()
            except BaseException as error:  # also of another middleware, before it came to the task
                failure = error
                raise
        if failure is not None:
            raise failure
        return value

    # -- afterwards ----------------------------------------------------------------------------------------

    def _retried(self, event: JobRetried) -> None:
        state = JobState.QUEUED if event.run_at is None else JobState.SCHEDULED
        self._failed(event.lease, event.failure, event.error, state, event.run_at, "on_retry")

    def _died(self, event: JobDied) -> None:
        self._failed(event.lease, event.failure, event.error, JobState.DEAD, None, "on_dead")

    def _failed(
        self,
        lease: Lease,
        failure: Failure,
        error: BaseException | None,
        state: JobState,
        run_at: int | None,
        callback_name: str,
    ) -> None:
        error = error or AttemptFailed(f"{failure.type}: {failure.message}")
        handler = self._handler_for(error)
        task = self._registry.find(lease.task)
        callback = None if task is None else getattr(task.settings, callback_name)
        if handler is None and callback is None:
            return
        job = opened(_job_after(lease, state, failure, run_at), self._registry.keys)
        for function in (handler, callback):
            if function is not None:
                self._call_soon(function, job, error)

    def _succeeded(self, event: JobSucceeded) -> None:
        task: AnyTask | None = self._registry.find(event.lease.task)
        if task is not None and task.settings.on_success is not None:
            job = replace(_job_after(event.lease, JobState.SUCCEEDED, None, None), result_json=event.result_json)
            self._call_soon(task.settings.on_success, opened(job, self._registry.keys))

    def _handler_for(self, error: BaseException) -> ExceptionHandler | None:
        if not self._handlers:
            return None
        if isinstance(error, RemoteFailure):
            by_name = {f"{kind.__module__}.{kind.__qualname__}": handler for kind, handler in self._handlers.items()}
            return next((by_name[kind] for kind in error.kinds if kind in by_name), None)
        return next((self._handlers[kind] for kind in type(error).__mro__ if kind in self._handlers), None)

    def _call_soon(self, function: Callable[..., Any], *args: Any) -> None:
        loop = asyncio.get_running_loop()
        if self._threads is None or self._threads.loop is not loop:
            self._threads = _Threads(loop)
        call = loop.create_task(_call(self._threads, function, *args), name="durableq-handler")
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)

    async def finish(self) -> None:
        """Wait a moment for handlers that still run, then cancel them, and leave behind what does not end."""
        if self._calls:
            _, late = await asyncio.wait(self._calls, timeout=_LEAVE_SECONDS)
            for call in late:
                call.cancel()
            stubborn = (await asyncio.wait(late, timeout=_CANCELLATION_SECONDS))[1] if late else ()
            for call in stubborn:
                logger.error("a handler does not end though it was cancelled; it is left behind")
                asyncio._unregister_task(call)  # or asyncio.run would wait for it for ever
            self._calls.clear()
        if self._threads is not None:
            self._threads.runner.stop()
            self._threads = None


class _Threads:
    """Threads for plain ``def`` handlers, apart from those that serve an application's routes."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.runner = ThreadRunner(HANDLER_THREADS)
        self.room = asyncio.Semaphore(HANDLER_THREADS)


def _is_exception_type(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseException)


async def _call(threads: _Threads, function: Callable[..., Any], *args: Any) -> None:
    try:
        if inspect.iscoroutinefunction(function):
            await function(*args)
        else:
            async with threads.room:
                await threads.runner.run(function, list(args), {})
    except BaseException as error:  # also SystemExit: it would end the event loop
        current = asyncio.current_task()
        if isinstance(error, asyncio.CancelledError) and current is not None and current.cancelling():
            raise
        logger.exception("a handler of job %s raised: %r", getattr(args[0], "id", "?"), function)


def _job_after(lease: Lease, state: JobState, failure: Failure | None, run_at: int | None) -> Job[Any]:
    """The job as this attempt leaves it, as far as its lease tells: see `TaskOptions.on_success`."""
    return Job(
        id=lease.id,
        task=lease.task,
        queue=lease.queue,
        priority=lease.priority,
        state=state,
        args_json=lease.args_json,
        max_attempts=lease.max_attempts,
        created_at=to_datetime(lease.created_at),
        run_at=to_datetime(lease.created_at if run_at is None else run_at),
        attempt=lease.attempt,
        crashes=lease.crashes,
        error=None if failure is None else JobError(failure.type, failure.message),
        extras=_extras_of(lease),
    )


def _extras_of(lease: Lease) -> JobExtras:
    if lease.settings is None:
        return PLAIN
    settings = from_json(lease.settings)
    return JobExtras(tags=tuple(settings.get("tags", ())), headers=settings.get("headers", {}))
