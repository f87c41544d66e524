"""One worker: wires the engine together in one task group, and ends it in good order.

Shutdown takes ``grace`` plus at most a second, whatever tasks do. On a storage that cannot be used or trusted any
more the worker stops at once, by itself: what it would go on to do could not be stored.
"""

import asyncio
import contextlib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final

import anyio

from durableq.clock import Clock, to_micros
from durableq.engine.claimer import Claimer
from durableq.engine.exchanger import Exchanger
from durableq.engine.executor import Executor, Overrides
from durableq.engine.heartbeat import Heartbeat
from durableq.engine.hooks import Hooks
from durableq.engine.notes import Notebook
from durableq.engine.processes import ProcessRunner
from durableq.engine.reaper import Pruner, Reaper
from durableq.engine.runners import LoopSlots, Slots, ThreadRunner
from durableq.engine.running import Complete, Services
from durableq.engine.settler import Settler
from durableq.engine.troubles import Troubles
from durableq.errors import DurableQError
from durableq.events import Emitter, LeaseLost, WorkerEvicted, WorkerStarted, WorkerStopped
from durableq.jobs import JobMaker
from durableq.models import Completed, Lease, LeaseKey, Outcome, Released
from durableq.registry import Registry
from durableq.settings import QueueOptions
from durableq.storage.protocol import Storage

_LAST_WRITES_SECONDS: Final = 0.3
"""How long the final settle, and then taking the worker off the list, may each wait for the write lock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerCondition:
    """How a worker is, as far as it knows itself. Times in seconds."""

    worker_id: int
    leases_held: int
    is_evicted: bool
    """Taken for dead, and not yet registered anew."""
    is_heartbeat_late: bool
    since_heartbeat: float
    """Since its lease was last prolonged."""
    since_loop_moved: float
    since_loop_stalled: float | None
    """Since the event loop was last found to stand still for too long; None: never."""
    troubles: tuple[str, ...]
    """What does not work, and is tried again."""
    broken: DurableQError | None
    """Why the worker has stopped by itself."""
    unknown_tasks: frozenset[str] = frozenset()
    """Names in the storage that no code here has."""


class Worker:
    """Runs jobs of one storage in this process. Made and run by `DurableQ`, on its event loop."""

    def __init__(
        self,
        *,
        storage: Storage,
        registry: Registry,
        emitter: Emitter,
        hooks: Hooks,
        maker: JobMaker,
        clock: Clock,
        options: QueueOptions,
        complete: Complete,
        overrides: Callable[[], Overrides],
    ) -> None:
        self._storage = storage
        self._emitter = emitter
        self._options = options
        self._hooks = hooks
        self._halt = asyncio.Event()
        self._worker_id = 0
        self._troubles = Troubles(storage, emitter, self._halt.set)
        wake = asyncio.Event()
        loop = LoopSlots(options.concurrency)
        threads = ThreadRunner(options.threads, wake.set)
        processes = ProcessRunner(options.processes, options.process_memory)
        self._slots: tuple[Slots, ...] = (loop, threads, processes)
        notebook = Notebook(wake.set)
        self._settler = Settler(emitter, wake.set)
        self._executor = Executor(
            registry=registry,
            loop=loop,
            threads=threads,
            processes=processes,
            emitter=emitter,
            hooks=hooks,
            services=Services(clock, maker, notebook, complete, options.max_payload_bytes),
            storage=storage,
            overrides=overrides,
            finished=self._finished,
            freed=wake.set,
        )
        self._claimer = Claimer(
            registry=registry,
            runners={"loop": loop, "thread": threads, "process": processes},
            emitter=emitter,
            queues=options.queues,
        )
        self._exchanger = Exchanger(
            storage=storage,
            claimer=self._claimer,
            settler=self._settler,
            executor=self._executor,
            notebook=notebook,
            troubles=self._troubles,
            wake=wake,
            register_anew=self._register_anew,
        )
        self._reaper = Reaper(storage, clock, emitter, options.max_crashes, self._troubles.report)
        self._pruner = Pruner(storage, clock, options, self._troubles.report)
        self._heartbeat = Heartbeat(
            clock=clock,
            emitter=emitter,
            interval=to_micros(options.heartbeat),
            lease=to_micros(options.lease),
            stall_warning=to_micros(options.loop_stall_warning),
            renew=storage.renew,
            held=self._held,
            evicted=self._exchanger.evicted,
        )

    async def start(self) -> None:
        """Register, and take back what dead workers left, an earlier run of this app among them."""
        self._worker_id = await self._storage.register(self._exchanger.wake_up, self._exchanger.cancel)
        await self._reaper.reap()
        self._heartbeat.start()
        self._emitter.emit(WorkerStarted(self._worker_id, self._storage.condition().software))

    async def run(self, stop: asyncio.Event) -> None:
        """Work until ``stop`` is set, then end in good order: within ``grace`` and a second.

        Ends too when the storage is broken, without waiting for what runs: nothing could be stored for it.
        """
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(self._reaper.run)
                group.start_soon(self._pruner.run)
                exchanging = asyncio.Event()
                group.start_soon(self._exchanger.run, exchanging)
                group.start_soon(self._halt_when, stop)
                await self._halt.wait()
                self._exchanger.is_stopping = True
                if self._troubles.broken is None:
                    await self._finish_what_runs(exchanging)
                group.cancel_scope.cancel()
            await self._hand_back_and_leave()
        finally:
            self._heartbeat.stop()
            for slots in self._slots:
                slots.stop()

    def condition(self) -> WorkerCondition:
        """Tell how the worker is. No I/O; may be asked from any thread."""
        return WorkerCondition(
            worker_id=self._worker_id,
            leases_held=len(self._executor.leases) + len(self._settler.held),
            is_evicted=self._exchanger.is_evicted,
            is_heartbeat_late=self._heartbeat.is_late,
            since_heartbeat=self._heartbeat.seconds_since_renewal,
            since_loop_moved=self._heartbeat.seconds_since_movement,
            since_loop_stalled=self._heartbeat.seconds_since_stall,
            troubles=self._troubles.in_words,
            broken=self._troubles.broken,
            unknown_tasks=self._claimer.unknown,
        )

    def hurry(self) -> None:
        """Somebody is about to wait for the end of a job: let nothing that finished wait for company."""
        self._exchanger.hurry()

    @property
    def settled(self) -> asyncio.Event:
        """Set after each round trip to the storage that settled something."""
        return self._exchanger.settled

    @property
    def queues(self) -> tuple[str, ...]:
        return self._claimer.queues

    @property
    def tasks(self) -> tuple[str, ...]:
        return self._claimer.tasks

    # -- the lease -----------------------------------------------------------------------------------------

    def _finished(self, lease: Lease, outcome: Outcome | Completed) -> None:
        if lease.crashes:
            self._claimer.suspect_finished()
        self._settler.add(lease, outcome)

    def _held(self) -> Collection[LeaseKey] | None:
        """All leases in memory; called on the heartbeat's thread."""
        if self._exchanger.is_claiming:
            return None
        return {lease.key for lease in self._executor.leases} | self._settler.held

    async def _register_anew(self) -> None:
        """We were taken for dead while held up: nothing we hold is ours any more. Start over under a new id."""
        self._emitter.emit(WorkerEvicted(self._worker_id))
        for lease in await self._executor.give_up():
            self._emitter.emit(LeaseLost(lease))
        self._settler.forget_all()
        await self._troubles.insist("registering anew", self._register_again)

    async def _register_again(self) -> None:
        await self._storage.deregister()
        self._worker_id = await self._storage.register(self._exchanger.wake_up, self._exchanger.cancel)

    # -- the end -------------------------------------------------------------------------------------------

    async def _halt_when(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._halt.set()

    async def _finish_what_runs(self, exchanging: asyncio.Event) -> None:
        """Give running jobs the grace time, and what they leave a moment to be settled."""
        await self._executor.wait_idle(self._options.grace.total_seconds())
        self._exchanger.end()
        with anyio.move_on_after(_LAST_WRITES_SECONDS):
            await exchanging.wait()

    async def _hand_back_and_leave(self) -> None:
        """Release what still runs, settle all, leave the list; each within its time, whatever holds it up.

        Whatever does not get through is taken back from us by the next worker: our lock is freed in any case.
        """
        released = await self._executor.give_up()
        for lease in released:
            self._settler.add(lease, Released())
        with contextlib.suppress(DurableQError), anyio.move_on_after(_LAST_WRITES_SECONDS):
            await self._exchanger.settle_the_rest()
        with contextlib.suppress(DurableQError), anyio.move_on_after(_LAST_WRITES_SECONDS):
            await self._storage.deregister()
        handed_back = 0 if self._troubles.broken is not None else len(released) + self._exchanger.handed_back
        self._emitter.emit(WorkerStopped(self._worker_id, handed_back))
        await self._hooks.finish()
