"""``BackgroundTasks`` for FastAPI routes, on disk before the response leaves.

A request's jobs are collected without I/O and committed together, after everything function-scoped in the request
has succeeded and before the first byte of the response: all or none. If the route, a dependency or the response
model fails, nothing is stored. If it is known that nothing was stored although it should have been, the client
gets a 503 with ``Retry-After``; if nobody can know, a 500 that names the jobs.
"""

import logging
import os
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from types import TracebackType
from typing import Annotated, Any, Final, NoReturn, ParamSpec, TypeVar, overload

from fastapi import Depends, HTTPException
from starlette.requests import HTTPConnection

from durableq import queue
from durableq.adding import explained
from durableq.context import AsyncTaskClass, TaskClass
from durableq.errors import (
    CollectorClosed,
    ConfigurationError,
    DuplicateJob,
    FileReplaced,
    IdempotencyConflict,
    OutcomeUnknown,
    QueueNotRunning,
    StorageError,
    TransactionRefused,
)
from durableq.models import Job
from durableq.queue import DurableQ

logger = logging.getLogger("durableq.fastapi")

P = ParamSpec("P")
R = TypeVar("R")

HANDOVER_VARIABLE: Final = "DURABLEQ_HANDOVER"
"""Environment variable: ``yield`` chooses the slower way that needs only FastAPI's public interface."""
STACK_KEY: Final = "fastapi_function_astack"
"""Where FastAPI keeps the exit stack of function-scoped dependencies, in the request's scope."""
RETRY_AFTER_SECONDS: Final = "1"
_COLLECTORS_KEY: Final = "durableq.collectors"
STORED_AS_KEY: Final = "durableq.stored_as"
"""Where a request's scope tells, once its jobs are stored, which of them were there already, by the id they have."""


class TaskCollector:
    """The durable jobs of one request. Routes and their dependencies share one; FastAPI gives it to a parameter."""

    __slots__ = ("_closed", "_guard", "_jobs", "_queue", "_saw_error", "_stack", "_stored_as")

    def __init__(self, dq: DurableQ, stack: AsyncExitStack | None, stored_as: dict[str, str] | None = None) -> None:
        self._queue = dq
        self._stack = stack
        self._stored_as = {} if stored_as is None else stored_as
        self._jobs: list[Job[Any]] = []
        self._closed = False
        self._guard = threading.Lock()
        self._saw_error = False

    @overload
    def add_task(self, fn: Callable[P, Coroutine[Any, Any, R]], /, *args: P.args, **kwargs: P.kwargs) -> Job[R]: ...
    @overload
    def add_task(self, fn: type[AsyncTaskClass[P, R]], /, *args: P.args, **kwargs: P.kwargs) -> Job[R]: ...
    @overload
    def add_task(self, fn: type[TaskClass[P, R]], /, *args: P.args, **kwargs: P.kwargs) -> Job[R]: ...
    @overload
    def add_task(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Job[R]: ...
    def add_task(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Job[Any]:
        """Add a job to this request's; it is durable before the response starts.

        No I/O: the arguments are checked and encoded, and the job's id is final. Raises `InvalidTask`,
        `InvalidArguments`, and `CollectorClosed` once the request's jobs were committed (in a streaming body, or
        a task spawned by the route).
        """
        if self._closed:
            raise CollectorClosed(_CLOSED)
        job = self._queue.new_job(fn, args, kwargs)
        with self._guard:  # a thread may be adding while the request commits: what is returned is stored
            if self._closed:
                raise CollectorClosed(_CLOSED)
            self._jobs.append(job)
        if self._stack is not None:
            # A witness above every dependency entered so far: one of them may swallow an exception of the route,
            # and what stands at the bottom of the stack would never hear of it.
            self._stack.push(self._witness)
        return job

    @property
    def jobs(self) -> tuple[Job[Any], ...]:
        """The jobs of this request so far."""
        return tuple(self._jobs)

    @property
    def tasks(self) -> NoReturn:
        """Starlette's list of callables, which does not exist here."""
        raise AttributeError("durable background tasks have no 'tasks' list to change; read '.jobs'")

    async def __call__(self) -> NoReturn:
        raise TypeError("durable background tasks are run by a worker, not by calling them; use 'await dq.drain()'")

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> NoReturn:
        raise ConfigurationError(
            "'BackgroundTasks | None' cannot be injected; annotate the parameter with durableq.fastapi.BackgroundTasks "
            "alone (without '| None', and without '= Depends()'): it is always given"
        )

    async def commit(self) -> None:
        """Store this request's jobs, all or none. Raises `HTTPException` with what is known: see `store`."""
        self._close()
        if self._jobs and not self._saw_error:
            self._stored_as.update(await store(self._queue, self._jobs))

    def drop(self) -> None:
        """Forget this request's jobs: it failed."""
        self._close()
        self._jobs.clear()

    def _close(self) -> None:
        with self._guard:
            self._closed = True

    def _witness(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._saw_error |= error is not None

    async def _exit(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            self.drop()
        else:
            await self.commit()


async def store(dq: DurableQ, jobs: list[Job[Any]]) -> dict[str, str]:
    """Make jobs durable, and put a failure in HTTP's words. Return the ids of those that are stored under another.

    Nothing was stored: 503 for want of storage, 409 for a unique key that is taken, 422 for an idempotency key that was
    used for other arguments. Nobody can know: 500.
    """
    try:
        stored = dq.add_jobs(jobs, impatient=True)
    except (StorageError, QueueNotRunning, TransactionRefused) as error:  # refused before it was handed over
        raise _not_stored(error) from error
    try:
        return await stored or {}
    except DuplicateJob as error:
        told = explained(error, jobs)
        raise HTTPException(409, {"message": str(told), "job": told.job_id if told.is_stored else None}) from error
    except IdempotencyConflict as error:
        raise HTTPException(422, {"message": str(error), "job": error.job_id}) from error
    except (OutcomeUnknown, FileReplaced) as error:  # a file is found replaced after COMMIT: it may come back
        logger.exception("a request's jobs may or may not be stored")
        detail = {"message": "the jobs of this request may or may not be stored", "jobs": [job.id for job in jobs]}
        raise HTTPException(500, detail) from error
    except StorageError as error:
        raise _not_stored(error) from error


def _not_stored(error: Exception) -> HTTPException:
    logger.error("a request's jobs were not stored: %s", error)
    detail = {"message": "the jobs of this request were not stored; nothing was done, try again"}
    return HTTPException(503, detail, headers={"Retry-After": RETRY_AFTER_SECONDS})


# -- the dependency ------------------------------------------------------------------------------------------


async def collect(connection: HTTPConnection) -> TaskCollector:
    """Give the request's collector; its commit stands at the bottom of the function-scoped exit stack."""
    return await _from_the_bottom(connection, None)


async def collect_by_yield(connection: HTTPConnection) -> AsyncIterator[TaskCollector]:
    """The same by a ``yield`` dependency with function scope: FastAPI's public interface alone.

    About twice as dear on current FastAPI, and it stores the jobs although a function-scoped dependency that is
    listed earlier then fails.
    """
    async with _around_a_yield(connection, None) as collector:
        yield collector


def collector_of(dq: DurableQ) -> Callable[..., Any]:
    """Return the dependency that gives a request's collector for one certain queue: ``dq.collector``."""

    async def collect_for(connection: HTTPConnection) -> TaskCollector:
        return await _from_the_bottom(connection, dq)

    async def collect_for_by_yield(connection: HTTPConnection) -> AsyncIterator[TaskCollector]:
        async with _around_a_yield(connection, dq) as collector:
            yield collector

    if HANDOVER != "yield":
        return collect_for
    scoped = Depends(collect_for_by_yield, scope="function")

    async def collect_within(collector: Annotated[TaskCollector, scoped]) -> TaskCollector:
        return collector  # so that the user's plain Depends(dq.collector) has function scope too

    return collect_within


async def _from_the_bottom(connection: HTTPConnection, wanted: DurableQ | None) -> TaskCollector:
    stack = connection.scope.get(STACK_KEY)
    if not isinstance(stack, AsyncExitStack):
        raise ConfigurationError(_NO_STACK)
    collector, is_new = _collector(connection, wanted, stack)
    if is_new:
        rest = stack.pop_all()
        stack.push_async_exit(collector._exit)
        stack.push_async_exit(rest)
    return collector


@asynccontextmanager
async def _around_a_yield(connection: HTTPConnection, wanted: DurableQ | None) -> AsyncIterator[TaskCollector]:
    collector, is_new = _collector(connection, wanted, None)
    try:
        yield collector
    except BaseException:
        collector.drop()
        raise
    finally:
        if is_new:  # middleware may call the application again with the same scope
            connection.scope[_COLLECTORS_KEY].pop((id(collector._queue), id(None)), None)
    if is_new:
        await collector.commit()


def _collector(
    connection: HTTPConnection, wanted: DurableQ | None, stack: AsyncExitStack | None
) -> tuple[TaskCollector, bool]:
    """Return the request's one collector for a queue, and whether it was made just now."""
    if connection.scope["type"] != "http":
        raise ConfigurationError(
            "BackgroundTasks cannot be used in a WebSocket route: its jobs would be stored only when the socket "
            "closes; use 'await dq.add_task(...)'"
        )
    if wanted is not None and wanted not in queue.queues_running_here():
        raise QueueNotRunning(_why_no_queue(()))
    dq = wanted or queue_for(connection)
    # FastAPI makes several of one dependency when security scopes differ; and solves some outside of a route.
    collectors: dict[Any, TaskCollector] = connection.scope.setdefault(_COLLECTORS_KEY, {})
    key = (id(dq), id(stack))
    collector = collectors.get(key)
    if collector is not None:
        return collector, False
    collector = collectors[key] = TaskCollector(dq, stack, connection.scope.setdefault(STORED_AS_KEY, {}))
    return collector, True


def queue_for(connection: HTTPConnection) -> DurableQ:
    """Find the queue of a request: its app's, else the one that runs on this event loop.

    Raises `QueueNotRunning` when there is none, or more than one to choose from.
    """
    candidates = connection.scope.get("state", {}).get(queue.STATE_KEY) or queue.queues_running_here()
    if len(candidates) > 1:
        candidates = list(dict.fromkeys(candidates))  # one that was entered twice is still one
    if len(candidates) == 1:
        found: DurableQ = candidates[0]
        return found
    raise QueueNotRunning(_why_no_queue(candidates))


def _why_no_queue(candidates: Iterable[DurableQ]) -> str:
    names = ", ".join(repr(one) for one in candidates)
    if names:
        return (
            f"several queues run here ({names}), which is ambiguous; name one by an alias: "
            "Bulk = Annotated[TaskCollector, Depends(bulk.collector)]"
        )
    return (
        "no DurableQ is running for this request. Start it with FastAPI(lifespan=dq.lifespan), or inside your own "
        "lifespan: 'async with dq.running(app) as state: yield state'. The lifespan of a mounted app never runs: put "
        "it on the outer app. TestClient runs lifespans only as 'with TestClient(app) as client:'"
    )


_CLOSED: Final = (
    "this request's jobs were already committed, before its response started; in a streaming body or a "
    "spawned task, use 'await dq.add_task(...)'"
)
_NO_STACK: Final = (
    f"this FastAPI keeps no {STACK_KEY!r} in its requests, which durableq uses to commit a request's jobs last of "
    f"all; set the environment variable {HANDOVER_VARIABLE}=yield to use FastAPI's public interface instead, and "
    "please report your FastAPI version"
)


def _handover() -> str:
    chosen = os.environ.get(HANDOVER_VARIABLE, "stack")
    if chosen not in ("stack", "yield"):
        raise ConfigurationError(f"expected {HANDOVER_VARIABLE} to be 'stack' or 'yield', got {chosen!r}")
    return chosen


HANDOVER: Final = _handover()
"""How the alias commits. Read once: FastAPI looks at the dependency when a route is declared."""

_dependency: Final = Depends(collect_by_yield, scope="function") if HANDOVER == "yield" else Depends(collect)

BackgroundTasks = Annotated[TaskCollector, _dependency]
"""Annotate a route's parameter with this in place of FastAPI's ``BackgroundTasks``."""

queue.collector_factory = collector_of
