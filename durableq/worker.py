"""One worker: wires the engine together in one task group, and ends it in good order.

The exchange loop is its heart: settle what finished and claim what there is room for, in one round trip, as long
as there is either. Shutdown takes ``grace`` plus at most a second, whatever tasks do. On a storage that cannot be
used or trusted any more the worker stops at once, by itself: what it would go on to do could not be stored.
"""

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Final, NamedTuple, TypeVar

import anyio

from durableq.clock import Clock, to_micros
from durableq.engine.claimer import Claimer
from durableq.engine.executor import Executor, Overrides
from durableq.engine.heartbeat import Heartbeat
from durableq.engine.hooks import Hooks
from durableq.engine.notes import Notebook
from durableq.engine.processes import ProcessRunner
from durableq.engine.reaper import Pruner, Reaper
from durableq.engine.runners import LoopSlots, Slots, ThreadRunner
from durableq.engine.running import Complete, Services
from durableq.engine.settler import Settler
from durableq.errors import DurableQError, StorageError
from durableq.events import (
    Emitter,
    LeaseLost,
    StorageBroken,
    StorageTrouble,
    WorkerEvicted,
    WorkerStarted,
    WorkerStopped,
)
from durableq.jobs import JobMaker
from durableq.models import ClaimRequest, Completed, Lease, LeaseKey, Outcome, Released
from durableq.options import QueueOptions
from durableq.registry import Registry
from durableq.storage.protocol import NO_NOTES, Exchanged, Notes, Storage

_LAST_WRITES_SECONDS: Final = 0.3
"""How long the final settle, and then taking the worker off the list, may each wait for the write lock."""
_QUIET_LEASES: Final = 4
_LINGER_SECONDS: Final = 0.002
"""How long a few successes wait for an addition to share its transaction: then a job costs one commit, not two."""
_FIRST_BACKOFF_SECONDS: Final = 0.05
_LONGEST_BACKOFF_SECONDS: Final = 2.0

T = TypeVar("T")
Settled = list[tuple[Lease, Outcome]]


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


class _Trip(NamedTuple):
    """A round trip to the storage."""

    batch: Settled
    claim: ClaimRequest | None
    notes: Notes
    news: int
    """What the claimer had heard by then."""
    reply: Awaitable[Exchanged]


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
        self.settled = asyncio.Event()
        """Set after each exchange that settled something."""
        self._storage = storage
        self._emitter = emitter
        self._options = options
        self._wake = asyncio.Event()
        self._new_names = True
        self._is_claiming = False
        self._trip: _Trip | None = None
        """The round trip that is under way."""
        self._is_setting_out = False
        self._lingering: asyncio.TimerHandle | None = None
        """Set while what finished waits for company, and when it has waited enough."""
        self._has_lingered = False
        self._is_quiet = True
        """Few jobs came with the latest claim."""
        self._is_evicted = False
        self._is_stopping = False
        self._is_ending = False
        self._halt = asyncio.Event()
        self._broken: DurableQError | None = None
        self._troubles: dict[str, DurableQError] = {}
        self._worker_id = 0
        self._hooks = hooks
        loop = LoopSlots(options.concurrency)
        threads = ThreadRunner(options.threads, self._wake.set)
        processes = ProcessRunner(options.processes, options.process_memory)
        self._slots: tuple[Slots, ...] = (loop, threads, processes)
        self._notebook = Notebook(self._wake.set)
        self._settler = Settler(emitter, self._wake.set)
        self._executor = Executor(
            registry=registry,
            loop=loop,
            threads=threads,
            processes=processes,
            emitter=emitter,
            hooks=hooks,
            services=Services(clock, maker, self._notebook, complete, options.max_payload_bytes),
            storage=storage,
            overrides=overrides,
            finished=self._finished,
            freed=self._wake.set,
        )
        self._claimer = Claimer(
            registry=registry,
            runners={"loop": loop, "thread": threads, "process": processes},
            emitter=emitter,
            queues=options.queues,
        )
        self._cancelled_early: set[LeaseKey] = set()
        self._reaper = Reaper(storage, clock, emitter, options.max_crashes, self._report)
        self._pruner = Pruner(storage, clock, options, self._report)
        self._heartbeat = Heartbeat(
            clock=clock,
            emitter=emitter,
            interval=to_micros(options.heartbeat),
            lease=to_micros(options.lease),
            stall_warning=to_micros(options.loop_stall_warning),
            renew=storage.renew,
            held=self._held,
            evicted=self._note_eviction,
        )

    async def start(self) -> None:
        """Register, and take back what dead workers left, an earlier run of this app among them."""
        self._worker_id = await self._storage.register(self._wake_up, self._cancel)
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
                group.start_soon(self._exchange_until_the_end, exchanging)
                group.start_soon(self._halt_when, stop)
                await self._halt.wait()
                self._is_stopping = True
                if self._broken is None:
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
            is_evicted=self._is_evicted,
            is_heartbeat_late=self._heartbeat.is_late,
            since_heartbeat=self._heartbeat.seconds_since_renewal,
            since_loop_moved=self._heartbeat.seconds_since_movement,
            since_loop_stalled=self._heartbeat.seconds_since_stall,
            troubles=tuple(f"{doing}: {error}" for doing, error in self._troubles.copy().items()),
            broken=self._broken,
        )

    def hurry(self) -> None:
        """Somebody is about to wait for the end of a job: let nothing that finished wait for company."""
        if self._lingering is not None:
            self._wake.set()

    @property
    def queues(self) -> tuple[str, ...]:
        return self._claimer.queues

    @property
    def tasks(self) -> tuple[str, ...]:
        return self._claimer.tasks

    # -- the exchange --------------------------------------------------------------------------------------

    async def _exchange_until_the_end(self, ended: asyncio.Event) -> None:
        self._wake.set()
        self._storage.before_adding(self._ride_along)
        try:
            while not self._is_ending:
                await self._wake.wait()
                self._wake.clear()
                while await self._exchange_once():
                    pass
        finally:
            self._storage.before_adding(None)
            self._stop_lingering()
        ended.set()

    async def _exchange_once(self) -> bool:
        """Make one round trip if there is reason for one; return whether there was."""
        if self._is_evicted and self._trip is None:
            await self._register_anew()
        if self._trip is None and self._lingers():
            return False
        trip = self._trip or self._set_out()
        if trip is None:
            return False
        self._stop_lingering()
        exchanged = await self._back_from(trip)
        self._notebook.written(trip.notes)
        self._settler.written(trip.batch, exchanged.lost)
        self._start(exchanged.leases)
        if trip.claim is not None:
            self._claimer.note(trip.claim, exchanged.leases, trip.news)
            self._is_quiet = len(exchanged.leases) <= _QUIET_LEASES
        self._trip = None  # not before: who hears of the end of a job may add another, and all slots must be counted
        if trip.batch:
            self.settled.set()
        return True

    def _lingers(self) -> bool:
        """Whether what finished may wait a moment more, for an addition to ride along with.

        Only a few plain successes, that nobody waits for; and only where this process' additions take a round trip
        along.
        """
        can_wait = self._settler.has_only_successes(_QUIET_LEASES) and self._storage.has_no_audience
        if self._is_stopping or not can_wait or self._claim_request() is not None:
            return False
        if self._lingering is None:
            self._has_lingered = False
            # The timer says that it is time. The clock may differ: that of uvloop stands still within a turn.
            self._lingering = asyncio.get_running_loop().call_later(_LINGER_SECONDS, self._linger_no_more)
        return not self._has_lingered

    def _linger_no_more(self) -> None:
        self._has_lingered = True
        self._wake.set()

    def _stop_lingering(self) -> None:
        if self._lingering is not None:
            self._lingering.cancel()
            self._lingering = None

    def _set_out(self) -> "_Trip | None":
        """Hand over what finished, and a claim for what there is room for; None when there is neither."""
        self._is_setting_out = True  # what is called on the way may add jobs, and must not set out a second time
        try:
            self._trip = self._new_trip()
        except BaseException:
            self._is_claiming = False
            raise
        finally:
            self._is_setting_out = False
        return self._trip

    def _new_trip(self) -> "_Trip | None":
        if self._new_names:
            self._new_names = False
            self._claimer.learn(self._storage.names())
        batch, claim, notes = self._settler.take(), self._claim_request(), self._notebook.take()
        if not batch and claim is None and notes is NO_NOTES:
            return None
        news = self._claimer.news
        self._is_claiming = claim is not None
        return _Trip(batch, claim, notes, news, self._storage.exchange(batch, claim, notes))

    def _ride_along(self) -> None:
        """Set out beside jobs that are being added here: claimed in the transaction that stores them, they save one.

        Not when a round trip is under way: its end, or their commit, wakes us. Nor when many came with the latest one:
        then so many come at a time that one claim for them all is cheaper than one beside the first.
        """
        is_free = self._trip is None and not self._is_setting_out
        if is_free and self._is_quiet and not (self._is_evicted or self._is_ending or self._new_names):
            self._claimer.there_are_new_jobs()
            if self._set_out() is not None:
                self._wake.set()

    def _start(self, leases: Sequence[Lease]) -> None:
        """Run what was claimed. What comes only now that we stop is not begun: nobody would wait for its end."""
        for lease in leases:
            if self._is_stopping:
                self._settler.add(lease, Released())
            else:
                self._executor.start(lease)
        if self._cancelled_early:  # their end was asked for between their claim and this moment
            early, self._cancelled_early = self._cancelled_early, set()
            self._executor.cancel(early)

    def _cancel(self, keys: Collection[LeaseKey]) -> None:
        self._cancelled_early.update(self._executor.cancel(keys))

    def _claim_request(self) -> ClaimRequest | None:
        if self._is_stopping:
            return None
        return self._claimer.request(runs_a_suspect=self._executor.runs_a_suspect)

    async def _back_from(self, trip: "_Trip") -> Exchanged:
        """Await a round trip, or as many as it takes."""
        replies = chain((trip.reply,), iter(lambda: self._storage.exchange(trip.batch, trip.claim, trip.notes), None))

        async def exchange() -> Exchanged:
            self._is_claiming = trip.claim is not None
            try:
                return await next(replies)
            finally:
                self._is_claiming = False

        return await self._insistently("settling and claiming jobs", exchange)

    async def _insistently(self, doing: str, attempt: Callable[[], Awaitable[T]]) -> T:
        """Try until it works: outcomes stay in memory, so that a full disk does not make work be done again."""
        backoff = _FIRST_BACKOFF_SECONDS
        while True:
            try:
                result = await attempt()
            except StorageError as error:
                self._report(doing, error)
            else:
                self._troubles.pop(doing, None)
                return result
            await asyncio.sleep(backoff * random.uniform(0.5, 1.5))  # noqa: S311 - spreads load
            backoff = min(backoff * 2, _LONGEST_BACKOFF_SECONDS)

    def _report(self, doing: str, error: DurableQError | None) -> None:
        """Note whether something works. What makes the storage unusable ends the worker."""
        if error is None:
            self._troubles.pop(doing, None)
        elif self._storage.trouble is not None:
            self._halt_on(self._storage.trouble)
        else:
            self._troubles[doing] = error
            self._emitter.emit(StorageTrouble(doing, error))

    def _halt_on(self, error: DurableQError) -> None:
        if self._broken is None:
            self._broken = error
            self._emitter.emit(StorageBroken(error))
            self._halt.set()

    def _finished(self, lease: Lease, outcome: Outcome | Completed) -> None:
        if lease.crashes:
            self._claimer.suspect_finished()
        self._settler.add(lease, outcome)

    def _wake_up(self, new_names: bool) -> None:
        self._new_names |= new_names
        self._claimer.there_may_be_work()
        self._wake.set()

    # -- the lease -----------------------------------------------------------------------------------------

    def _held(self) -> Collection[LeaseKey] | None:
        """All leases in memory; called on the heartbeat's thread."""
        if self._is_claiming:
            return None
        return {lease.key for lease in self._executor.leases} | self._settler.held

    def _note_eviction(self) -> None:
        self._is_evicted = True
        self._wake.set()

    async def _register_anew(self) -> None:
        """We were taken for dead while held up: nothing we hold is ours any more. Start over under a new id."""
        self._emitter.emit(WorkerEvicted(self._worker_id))
        for lease in await self._executor.give_up():
            self._emitter.emit(LeaseLost(lease))
        self._settler.forget_all()
        await self._insistently("registering anew", self._register_again)
        self._is_evicted = False
        self._new_names = True  # nobody listened meanwhile
        self._claimer.there_may_be_work()

    async def _register_again(self) -> None:
        await self._storage.deregister()
        self._worker_id = await self._storage.register(self._wake_up, self._cancel)

    # -- the end -------------------------------------------------------------------------------------------

    async def _halt_when(self, stop: asyncio.Event) -> None:
        await stop.wait()
        self._halt.set()

    async def _finish_what_runs(self, exchanging: asyncio.Event) -> None:
        """Give running jobs the grace time, and what they leave a moment to be settled."""
        await self._executor.wait_idle(self._options.grace.total_seconds())
        self._is_ending = True
        self._wake.set()
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
            while batch := self._settler.take():
                notes = self._notebook.take()
                exchanged = await self._storage.exchange(batch, None, notes)
                self._notebook.written(notes)
                self._settler.written(batch, exchanged.lost)
        with contextlib.suppress(DurableQError), anyio.move_on_after(_LAST_WRITES_SECONDS):
            await self._storage.deregister()
        self._emitter.emit(WorkerStopped(self._worker_id, len(released) if self._broken is None else 0))
        await self._hooks.finish()
