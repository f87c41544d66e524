"""What a task may ask for while it runs: ``current_job()``.

Only the interface stands here; the engine gives each attempt its own, in a context variable, so it is found in
everything the task awaits and in the thread that runs a ``def`` task.
"""

from collections.abc import Awaitable, Callable, Coroutine, Mapping, MutableMapping
from contextvars import ContextVar, Token
from typing import Any, Final, ParamSpec, Protocol, TypeVar, overload

from durableq.errors import NoCurrentJob
from durableq.models import Job

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class TaskClass(Protocol[P, R_co]):
    """A task in the form of a class, as type checkers know it: options as attributes, the work in ``run``."""

    def run(self, *args: P.args, **kwargs: P.kwargs) -> R_co: ...


class AsyncTaskClass(Protocol[P, R_co]):
    """The same with an ``async def run``."""

    def run(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R_co]: ...


class CurrentJob(Protocol):
    """The job whose attempt is running. Its methods may be called from the task's own thread."""

    @property
    def id(self) -> str: ...

    @property
    def task(self) -> str:
        """The task's name, as stored."""
        ...

    @property
    def queue(self) -> str: ...

    @property
    def attempt(self) -> int:
        """The number of this try, from 1."""
        ...

    @property
    def max_attempts(self) -> int: ...

    @property
    def args(self) -> Mapping[str, Any]:
        """The arguments by name, as JSON values."""
        ...

    @property
    def idempotency_key(self) -> str:
        """The same for all attempts of the job: hand it to the other side, so that it can tell a repetition."""
        ...

    @property
    def tags(self) -> tuple[str, ...]: ...

    @property
    def headers(self) -> MutableMapping[str, str]:
        """What rides along beside the arguments. What is added here, follow-up jobs inherit."""
        ...

    @property
    def cancelled(self) -> bool:
        """Whether this attempt shall end: somebody cancelled the job, it ran out of time, or the worker stops.

        For ``def`` tasks, which nobody can interrupt; an ``async def`` task gets an `asyncio.CancelledError`.
        """
        ...

    def progress(self, done: float, total: float | None = None, message: str | None = None) -> None:
        """Say how far the job is. The latest is stored soon, without waiting for it.

        A message is cut at 2,000 characters; numbers that are not finite are ignored.
        """
        ...

    def log(self, message: str) -> None:
        """Keep a line with this attempt: at most 1,000, of 2,000 characters each. Stored soon."""
        ...

    @overload
    def add_task(self, fn: Callable[P, Coroutine[Any, Any, R]], /, *args: P.args, **kwargs: P.kwargs) -> Job[R]: ...
    @overload
    def add_task(self, fn: type[AsyncTaskClass[P, R]], /, *args: P.args, **kwargs: P.kwargs) -> Job[R]: ...
    @overload
    def add_task(self, fn: type[TaskClass[P, R]], /, *args: P.args, **kwargs: P.kwargs) -> Job[R]: ...
    @overload
    def add_task(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Job[R]: ...
    def add_task(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Job[Any]:
        """Add a job that is stored together with this job's success, or not at all. No I/O.

        Raises `InvalidTask` and `InvalidArguments`, as `DurableQ.add_task`; `CollectorClosed` once the job has ended,
        or has completed itself; `ConfigurationError` after 10,000 jobs, or 16 MiB of arguments.
        """
        ...

    def complete_within(self, transaction: Any, *, result: Any = None) -> Awaitable[None]:
        """Write this job's success in the caller's own transaction: it commits with the task's own writes.

        Their effect is then exactly once. ``transaction`` is what `DurableQ.within` takes: with a sync one all
        is done at the call, in a ``def`` task too, and with an async one when the result is awaited. ``result``
        is kept as the job's return value; follow-up jobs added, and what was said by `log` and `progress`, so
        far are stored with it. When the transaction is not committed, the attempt fails with
        `CompletionRolledBack`; once it is, the job has succeeded, whatever the task still raises. Raises
        `TransactionRefused`, `StorageBusy`, and `JobConflict` when the job is no longer this attempt's.
        """
        ...


class RunningHere(CurrentJob, Protocol):
    """The current job as the engine sees it."""

    @property
    def function(self) -> Callable[..., Any]:
        """The task's own function."""
        ...


_current: Final[ContextVar[RunningHere]] = ContextVar("durableq_current_job")


def current_job() -> CurrentJob:
    """Return the job that is running here. Raises `NoCurrentJob` outside of a task."""
    if (job := running_here()) is None:
        raise NoCurrentJob
    return job


def running_here() -> RunningHere | None:
    """Return the current job, if there is one. For the engine."""
    return _current.get(None)


def set_current(job: RunningHere) -> Token[RunningHere]:
    """Make ``job`` the current one in this context. For the engine."""
    return _current.set(job)
