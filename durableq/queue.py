"""`DurableQ`: the facade, and the one place where everything is put together.

A `DurableQ` holds settings and the registry only: no I/O, no thread, nothing bound to an event loop. All of that
lives from `running` to its end, so one object may be started again on another loop, and after a fork.
"""

import asyncio
import builtins
import contextlib
import dataclasses
import os
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any, Final, ParamSpec, TypeVar, Unpack, cast, overload

from durableq import outbox
from durableq.adding import Adding, Call, all_added, calls_in, check_bulk, explained
from durableq.clock import Clock, SystemClock
from durableq.context import AsyncTaskClass, TaskClass
from durableq.declarations import Declarations
from durableq.encryption import KeyRing, chosen_ring, opened
from durableq.engine.hooks import Hooks
from durableq.errors import ConfigurationError, DuplicateJob, QueueNotRunning
from durableq.events import Emitter
from durableq.health import Health, examine
from durableq.jobs import JobMaker
from durableq.life import Life, Run, loop_here
from durableq.models import Job, JobState, Lease
from durableq.names import root_of_caller
from durableq.observability.logs import log_events
from durableq.operations import Operations, id_of
from durableq.registry import Registry
from durableq.results import returned, why_cancelled, why_dead
from durableq.secret_names import also_redact
from durableq.settings import QueueSettings, queue_options, warn_of_misspelt
from durableq.storage import storage_factory
from durableq.storage.protocol import Conflicts, Notes, Storage
from durableq.worker import Worker

P = ParamSpec("P")
R = TypeVar("R")

STATE_KEY: Final = "durableq"
"""Where a lifespan leaves its queues in the state of requests."""
_DRAIN_LOOK_SECONDS: Final = 0.05

StartUpHook = Callable[["DurableQ", Any], Awaitable[None]]
"""Called with a queue and the application whose lifespan starts it."""

start_up_hooks: Final[list[StartUpHook]] = []
"""Checks of integrations: `durableq.fastapi` adds its own when it is imported."""


class DurableQ(Declarations, Operations):
    """A durable task queue in one database file.

    ``url_or_path`` names the SQLite file; it is created (mode 0600) when the queue first starts. ``task_modules``
    are the modules whose functions may be added without a decorator; by default those of the app itself.
    ``clock`` is for tests. ``encryption`` are the keys that arguments and results are stored under (see
    `durableq.encryption`); by default those of ``DURABLEQ_ENCRYPTION_KEYS``, if there are any. The other options are
    those of `durableq.options.QueueOptions`, and may come from the environment as ``DURABLEQ_<NAME>``. Raises
    `ConfigurationError`.
    """

    def __init__(
        self,
        url_or_path: str | Path,
        *,
        task_modules: Iterable[str | ModuleType] | None = None,
        clock: Clock | None = None,
        encryption: KeyRing | None = None,
        **options: Unpack[QueueSettings],
    ) -> None:
        self.settings = queue_options(cast("Mapping[str, Any]", options), os.environ)
        warn_of_misspelt(os.environ)
        also_redact(self.settings.redact)
        self.events = Emitter()
        log_events(self.events)
        self._clock = clock or SystemClock()
        self._keys = chosen_ring(encryption, os.environ)
        self._registry = Registry(root_of_caller(), task_modules, self._keys)
        self._hooks = Hooks(self._registry, self.events)
        self._maker = JobMaker(
            registry=self._registry, clock=self._clock, max_payload_bytes=self.settings.max_payload_bytes
        )
        self._app: Any = None
        self._make_storage = storage_factory(url_or_path, self.settings, self._clock)
        self._name = str(url_or_path)
        self._life = Life(repr(self), self._new_storage, self._new_worker)

    def __repr__(self) -> str:
        return f"<DurableQ {self._name!r}>"

    # -- adding --------------------------------------------------------------------------------------------

    @overload
    def add_task(self, fn: Callable[P, Coroutine[Any, Any, R]], /, *args: P.args, **kwargs: P.kwargs) -> Adding[R]: ...
    @overload
    def add_task(self, fn: type[AsyncTaskClass[P, R]], /, *args: P.args, **kwargs: P.kwargs) -> Adding[R]: ...
    @overload
    def add_task(self, fn: type[TaskClass[P, R]], /, *args: P.args, **kwargs: P.kwargs) -> Adding[R]: ...
    @overload
    def add_task(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Adding[R]: ...
    def add_task(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Adding[Any]:
        """Add a job; it is durable when the await returns.

        A plain function: the arguments are checked, encoded and handed over at once. Cancelling the await changes
        nothing. Raises at the call, with nothing done: `InvalidTask`, `InvalidArguments`, `QueueNotRunning`,
        `StorageBusy` when too much waits to be written, `StorageUnusable`, and `TransactionRefused` where the caller's
        own open transaction would keep it from being written. Awaiting raises `NotStored` (`StorageBusy`,
        `StorageFull`) when nothing was written, `DuplicateJob` and `IdempotencyConflict` when another job stands in
        the way, and `OutcomeUnknown` when nobody can say.
        """
        job = self.new_job(fn, args, kwargs)
        storage = self._storage_here()
        outbox.refuse_self_deadlock(storage.path)
        return Adding(job, storage.insert((job,)), storage)

    @overload
    def add_task_sync(
        self, fn: Callable[P, Coroutine[Any, Any, R]], /, *args: P.args, **kwargs: P.kwargs
    ) -> Job[R]: ...
    @overload
    def add_task_sync(self, fn: type[AsyncTaskClass[P, R]], /, *args: P.args, **kwargs: P.kwargs) -> Job[R]: ...
    @overload
    def add_task_sync(self, fn: type[TaskClass[P, R]], /, *args: P.args, **kwargs: P.kwargs) -> Job[R]: ...
    @overload
    def add_task_sync(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Job[R]: ...
    def add_task_sync(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Job[Any]:
        """Add a job from a thread or a script; it is durable on return.

        Works without a running queue too: the file is then opened for this one call. Refused on an event loop's
        own thread, which it would block. Raises as `add_task`.
        """
        if loop_here() is not None:
            raise QueueNotRunning("add_task_sync would block the event loop: here, use 'await dq.add_task(...)'")
        job = self.new_job(fn, args, kwargs)
        run = self._life.run
        storage = self._new_storage() if run is None else run.storage
        outbox.refuse_self_deadlock(storage.path)
        try:
            conflicts = storage.insert_and_wait((job,)) or {}
        except DuplicateJob as error:
            raise explained(error, (job,)) from None
        return dataclasses.replace(job, id=conflicts[job.id]) if job.id in conflicts else job

    def add_tasks(self, calls: Iterable[Call[Any]]) -> Awaitable[builtins.list[Job[Any]]]:
        """Add many jobs, made with `call(fn, ...)`, in one transaction: all or none.

        At most 100,000 jobs or 64 MiB of arguments. Cancelling the await changes nothing. Raises as `add_task`, and
        `ConfigurationError` at the call for more, or for what is not a call.
        """
        jobs = [self.new_job(one.function, one.args, one.kwargs) for one in calls_in(calls)]
        return all_added(self._storage_here(), jobs, self.add_jobs(jobs))

    def add_jobs(self, jobs: Sequence[Job[Any]], *, impatient: bool = False) -> "asyncio.Future[Conflicts | None]":
        """Hand over jobs made with `new_job`, all or none, at once; they are durable when the future is done.

        See `Storage.insert` for ``impatient``.
        """
        if len(jobs) > 1:
            check_bulk(jobs)
        storage = self._life.here().storage
        outbox.refuse_self_deadlock(storage.path)
        return storage.insert(jobs, impatient=impatient)

    @overload
    def within(
        self, transaction: "outbox.AsyncTransaction | outbox.AsyncConnection | outbox.AiosqliteConnection"
    ) -> outbox.AsyncOutbox: ...
    @overload
    def within(self, transaction: Any) -> outbox.Outbox: ...
    def within(self, transaction: Any) -> outbox.Outbox | outbox.AsyncOutbox:
        """Add jobs in the caller's own transaction: ``dq.within(session).add_task(send, order.id)``.

        ``transaction`` is a connection of `sqlite3` or `aiosqlite`, or a connection or session of SQLAlchemy or
        SQLModel, on the queue's own file; for an async one ``add_task`` is awaited. Its commit stores both, its
        rollback neither; the worker wakes on the commit. Raises `QueueNotRunning`, and at ``add_task``
        `TransactionRefused`, or `StorageBusy` when another had the write lock for 5 seconds.
        """
        return outbox.outbox_for(self._storage_anywhere(), self._maker, self.settings.durability, transaction)

    def new_job(self, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Job[Any]:
        """Check and encode a call, and return the job that it would be. No I/O; nothing is stored yet."""
        return self._maker.new(fn, args, kwargs)

    # -- looking -------------------------------------------------------------------------------------------

    @overload
    async def get(self, job_or_id: Job[R]) -> Job[R]: ...
    @overload
    async def get(self, job_or_id: str) -> Job[Any]: ...
    async def get(self, job_or_id: Job[Any] | str) -> Job[Any]:
        """Return a job as it is now, with its arguments and result in clear. Raises `JobNotFound`.

        What is encrypted with a key that is missing stays the envelope that is stored.
        """
        return opened(await self._stored(job_or_id), self._keys)

    async def health(self) -> Health:
        """Tell whether the queue works: a status, reasons in words, and figures.

        Writes nothing, takes a second at most, and never raises for a queue that is ill or does not run. Works on
        any event loop; on another than the queue's own it tells less.
        """
        return await examine(self._life.run, self.settings)

    @overload
    async def wait(self, job_or_id: Job[R], *, timeout: float | timedelta | None = None) -> Job[R]: ...
    @overload
    async def wait(self, job_or_id: str, *, timeout: float | timedelta | None = None) -> Job[Any]: ...
    async def wait(self, job_or_id: Job[Any] | str, *, timeout: float | timedelta | None = None) -> Job[Any]:
        """Return a job once it is finished, whichever process runs it.

        Woken by events. ``timeout`` in seconds, or a `timedelta`; None waits for ever. Cancelling it does nothing to
        the job. Raises `JobNotFound` at once for an id that is not stored, `TimeoutError` after ``timeout``,
        `QueueNotRunning` when the queue does not run here or stops meanwhile, and `StorageError`.
        """
        return opened(await self._finished(job_or_id, timeout), self._keys)

    @overload
    async def result(self, job_or_id: Job[R], *, timeout: float | timedelta | None = None) -> R: ...
    @overload
    async def result(self, job_or_id: str, *, timeout: float | timedelta | None = None) -> Any: ...
    async def result(self, job_or_id: Job[Any] | str, *, timeout: float | timedelta | None = None) -> Any:
        """Return what a job's task returned, of the type that it declares; wait until there is a result.

        Raises `JobFailed`, with the task's own traceback, when the job is dead; `JobWasCancelled`;
        `ResultUnavailable` when the result was not kept, is no longer, or its key is missing; else as `wait`.
        """
        job = await self._finished(job_or_id, timeout)
        match job.state:
            case JobState.CANCELLED:
                raise why_cancelled(job, await self.attempts(job))
            case JobState.DEAD:
                raise why_dead(job, await self.attempts(job))
            case _:
                return returned(job, self._registry.find(job.task), self._keys, self._clock.wall())

    async def drain(self, timeout: float | timedelta | None = None) -> None:
        """Return when nothing runnable is left: nothing running, queued or due that this app could run.

        What is scheduled ahead, a retry for instance, is not waited for. ``timeout`` in seconds, or a `timedelta`; None
        waits for ever. Cancelling it does nothing to the jobs. Raises `TimeoutError` after ``timeout``,
        `QueueNotRunning`, and `StorageError`.
        """
        run = self._life.here()
        async with _no_longer_than(timeout, "there are still jobs running, or due, that this app could run"):
            while await self._has_runnable(run):
                await _wait_a_moment(run.worker)

    # -- running -------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Any) -> AsyncIterator[dict[str, Any]]:
        """Run the queue for the life of an application: ``FastAPI(lifespan=dq.lifespan)``."""
        async with self.running(app) as state:
            yield state

    @contextlib.asynccontextmanager
    async def running(self, app: Any = None) -> AsyncIterator[dict[str, Any]]:
        """Run the queue inside a block, for one's own lifespan: ``async with dq.running(app) as state: yield state``.

        Given the ``app``, its routes are checked at once, and tasks see its ``dependency_overrides``.
        Entering twice on one event loop counts references. Leaving stops claiming, gives running jobs ``grace``
        to end, hands the rest back uncounted, and takes at most a second more.
        """
        for hook in start_up_hooks:
            await hook(self, app)
        if app is not None:
            self._app = app
        await self.start()
        queues = queues_of(asyncio.get_running_loop() if app is None else app)
        queues.append(self)
        try:
            yield {STATE_KEY: queues}
        finally:
            queues.remove(self)
            await self.stop()

    async def start(self) -> None:
        """Open the storage and start the worker; `stop` is its end. Raises `StorageUnusable`, `QueueNotRunning`."""
        self._registry.import_modules()
        if await self._life.start():
            _running_queues(asyncio.get_running_loop()).append(self)

    async def stop(self) -> None:
        """End what `start` began, once it was called as often as `start`. Never raises for what tasks do."""
        if self._life.leave():
            with contextlib.suppress(ValueError):
                _running_queues(asyncio.get_running_loop()).remove(self)
            await self._life.stop()

    @property
    def collector(self) -> Callable[..., Any]:
        """The FastAPI dependency that gives a request's task collector for this very queue.

        For apps with several queues: ``Bulk = Annotated[TaskCollector, Depends(bulk.collector)]``.
        """
        if collector_factory is None:
            raise ConfigurationError("import durableq.fastapi before using dq.collector")
        return collector_factory(self)

    # ------------------------------------------------------------------------------------------------------

    def _new_storage(self) -> Storage:
        storage = self._make_storage()
        storage.describe_tasks_with(self._registry.arguments_schema)
        return storage

    def _new_worker(self, storage: Storage) -> Worker | None:
        if not self.settings.worker:
            return None
        return Worker(
            storage=storage,
            registry=self._registry,
            emitter=self.events,
            hooks=self._hooks,
            maker=self._maker,
            clock=self._clock,
            options=self.settings,
            complete=partial(self._complete, storage),
            overrides=self._dependency_overrides,
        )

    def _complete(
        self,
        storage: Storage,
        transaction: Any,
        lease: Lease,
        result_json: str | None,
        follow_ups: Sequence[Job[Any]],
        notes: Notes,
    ) -> Awaitable[None]:
        plan = storage.completing(lease, result_json, follow_ups, notes)
        return outbox.write_within(storage, self.settings.durability, transaction, plan)

    def _dependency_overrides(self) -> Mapping[Callable[..., Any], Callable[..., Any]]:
        """Those of the FastAPI application whose lifespan started the queue."""
        found: Mapping[Callable[..., Any], Callable[..., Any]] = getattr(self._app, "dependency_overrides", {})
        return found

    def _storage_anywhere(self) -> Storage:
        """The same from any thread: for what needs no event loop."""
        run = self._life.run
        return run.storage if run is not None and run.is_alive else self._storage_here()

    async def _finished(self, job_or_id: Job[R] | str, timeout: float | timedelta | None) -> Job[R]:
        """Return a job as it is stored, once it is finished."""
        async with _no_longer_than(timeout, f"job {id_of(job_or_id)} is not finished; it goes on all the same"):
            run = self._life.here()
            job = await self._stored(job_or_id)
            while not job.is_finished:
                if run.worker is not None:
                    run.worker.hurry()
                await run.finished_jobs.wait(job.id)
                job = await self._stored(job.id)
        return job

    async def _has_runnable(self, run: Run) -> bool:
        names = await run.storage.stored_names()
        while True:
            served = self.settings.queues
            queues = names.queues if served is None else names.queues & frozenset(served)
            tasks = [name for name in names.tasks if self._registry.find(name) is not None]
            if await run.storage.has_runnable(queues, tasks):
                return True
            before, names = names, await run.storage.stored_names()
            if names == before:  # else a job of a new name may have been passed over
                return False


collector_factory: Callable[[DurableQ], Callable[..., Any]] | None = None
"""Set by `durableq.fastapi`, which may import this module while this module may not import it."""

_on_loops: Final[weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, list[DurableQ]]] = weakref.WeakKeyDictionary()
_in_state: Final[weakref.WeakKeyDictionary[Any, list[DurableQ]]] = weakref.WeakKeyDictionary()


def queues_running_here() -> tuple[DurableQ, ...]:
    """Return the queues that run on this event loop."""
    loop = loop_here()
    return () if loop is None else tuple(_running_queues(loop))


def _running_queues(loop: asyncio.AbstractEventLoop) -> list[DurableQ]:
    return _on_loops.setdefault(loop, [])


def queues_of(owner: Any) -> list[DurableQ]:
    """The list that all lifespans of one app share: two that wrote the same key would hide one another."""
    return _in_state.setdefault(owner, [])


@contextlib.asynccontextmanager
async def _no_longer_than(timeout: float | timedelta | None, otherwise: str) -> AsyncIterator[None]:
    """As `asyncio.timeout`, whose error says nothing."""
    seconds = timeout.total_seconds() if isinstance(timeout, timedelta) else timeout
    try:
        async with asyncio.timeout(seconds) as limit:
            yield
    except TimeoutError:
        if limit.expired():
            raise TimeoutError(f"after {seconds:g} s, {otherwise}") from None
        raise


async def _wait_a_moment(worker: Worker | None) -> None:
    """Until this worker settles something, or for a moment: others may be working too."""
    if worker is None:
        await asyncio.sleep(_DRAIN_LOOK_SECONDS)
        return
    worker.settled.clear()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_DRAIN_LOOK_SECONDS):
            await worker.settled.wait()
