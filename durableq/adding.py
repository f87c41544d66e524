"""Jobs on their way to the disk: calls that shall become jobs, and what awaiting them tells."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, Generic, ParamSpec, TypeVar, overload

from durableq.codec import utf8_length
from durableq.context import AsyncTaskClass, TaskClass
from durableq.errors import ConfigurationError, DuplicateJob
from durableq.models import Job
from durableq.storage.protocol import Conflicts, Storage

P = ParamSpec("P")
R = TypeVar("R")

BULK_LIMIT: Final = 100_000
"""Jobs in one `DurableQ.add_tasks`."""
BULK_BYTES: Final = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Call(Generic[R]):
    """A call that shall become a job, for `DurableQ.add_tasks`. Made by `call`."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


@overload
def call(fn: Callable[P, Coroutine[Any, Any, R]], /, *args: P.args, **kwargs: P.kwargs) -> Call[R]: ...
@overload
def call(fn: type[AsyncTaskClass[P, R]], /, *args: P.args, **kwargs: P.kwargs) -> Call[R]: ...
@overload
def call(fn: type[TaskClass[P, R]], /, *args: P.args, **kwargs: P.kwargs) -> Call[R]: ...
@overload
def call(fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Call[R]: ...
def call(fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Call[Any]:
    """Note a call of a task, type-checked, without making it."""
    return Call(fn, args, kwargs)


def calls_in(calls: Iterable[Call[Any]]) -> Iterator[Call[Any]]:
    """Go through calls. Raises `ConfigurationError` for what is none, as a task that was not wrapped in `call`."""
    if not isinstance(calls, Iterable):
        raise ConfigurationError(f"expected a list of calls, got {_shown(calls)}; {_WRAP}")
    for one in calls:
        if not isinstance(one, Call):
            raise ConfigurationError(f"expected a list of calls, got one with {_shown(one)} in it; {_WRAP}")
        yield one


_WRAP: Final = "wrap each in call(fn, ...): add_tasks([call(send, 1), call(send, 2)])"


def _shown(value: object) -> str:
    """Say what came, without the arguments in it: they may be secret."""
    name = getattr(value, "__qualname__", None)
    return (
        f"{name} itself" if callable(value) and isinstance(name, str) else f"an object of type {type(value).__name__}"
    )


class Adding(Awaitable[Job[R]], Generic[R]):
    """A job on its way to the disk: ``await`` it to know that it is there.

    The job was handed over already when this was made: without an ``await`` it is stored all the same, and an
    error is logged by asyncio.
    """

    __slots__ = ("_future", "_storage", "job")

    def __init__(self, job: Job[R], future: "asyncio.Future[Conflicts | None]", storage: Storage) -> None:
        self.job = job
        self._future = future
        self._storage = storage

    def __await__(self) -> Generator[Any, None, Job[R]]:
        try:
            conflicts = yield from self._future.__await__()
        except DuplicateJob as error:
            raise explained(error, (self.job,)) from None
        if conflicts:  # it was there already: what is stored is the job
            return (yield from stored_instead(self._storage, self.job, conflicts).__await__())
        return self.job


def check_bulk(jobs: Sequence[Job[Any]]) -> None:
    size = sum(utf8_length(job.args_json) for job in jobs)
    if len(jobs) > BULK_LIMIT or size > BULK_BYTES:
        raise ConfigurationError(
            f"expected at most {BULK_LIMIT:,} jobs and {BULK_BYTES:,} bytes of arguments in one add, got "
            f"{len(jobs):,} and {size:,}: too many for one transaction; split it"
        )


def explained(error: DuplicateJob, jobs: Sequence[Job[Any]]) -> DuplicateJob:
    """Return the error in terms of the jobs that were to be stored together; storage knows only of keys."""
    claims = [job.extras.unique for job in jobs if job.extras.unique is not None]
    arguments = next((claim.arguments for claim in claims if claim.key == error.key), None)
    is_stored = all(job.id != error.job_id for job in jobs)
    return DuplicateJob(error.job_id, error.key, arguments=arguments, is_stored=is_stored)


async def all_added(
    storage: Storage, jobs: list[Job[Any]], future: "asyncio.Future[Conflicts | None]"
) -> list[Job[Any]]:
    try:
        conflicts = await future
    except DuplicateJob as error:
        raise explained(error, jobs) from None
    return [await stored_instead(storage, job, conflicts) for job in jobs] if conflicts else jobs


async def stored_instead(storage: Storage, job: Job[R], conflicts: Conflicts) -> Job[R]:
    """The job that is stored in the place of this one."""
    if job.id not in conflicts:
        return job
    return await storage.get(conflicts[job.id]) or replace(job, id=conflicts[job.id])
