"""The heart of a worker: settle what finished and claim what there is room for, in one round trip to the storage.

One trip at a time, as long as there is reason for one. Two things save commits beside a trickle of jobs: a trip
rides along with an addition of this process, in its transaction; and a few successes linger a moment for one.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from itertools import chain
from typing import Final, NamedTuple

from durableq.engine.claimer import Claimer
from durableq.engine.executor import Executor
from durableq.engine.notes import Notebook
from durableq.engine.settler import Settler
from durableq.engine.troubles import Troubles
from durableq.models import ClaimRequest, Lease, LeaseKey, Outcome, Released
from durableq.storage.protocol import NO_NOTES, Exchanged, Notes, Storage

_QUIET_LEASES: Final = 4
_LINGER_SECONDS: Final = 0.002
"""How long a few successes wait for an addition to share its transaction: then a job costs one commit, not two."""

Settled = list[tuple[Lease, Outcome]]


class _Trip(NamedTuple):
    """A round trip to the storage."""

    batch: Settled
    claim: ClaimRequest | None
    notes: Notes
    news: int
    """What the claimer had heard by then."""
    reply: Awaitable[Exchanged]


class Exchanger:
    """Makes the round trips of one worker. ``wake`` is set whenever there may be reason for one.

    ``register_anew`` is awaited, between two trips, once the worker was taken for dead.
    """

    def __init__(
        self,
        *,
        storage: Storage,
        claimer: Claimer,
        settler: Settler,
        executor: Executor,
        notebook: Notebook,
        troubles: Troubles,
        wake: asyncio.Event,
        register_anew: Callable[[], Awaitable[None]],
    ) -> None:
        self.settled = asyncio.Event()
        """Set after each trip that settled something."""
        self.is_claiming = False
        """Whether leases may be on their way here."""
        self.is_evicted = False
        """Taken for dead, and not yet registered anew."""
        self.is_stopping = False
        """No job is begun any more."""
        self.handed_back = 0
        """How many claimed jobs were not begun, because the worker was stopping by then."""
        self._is_ending = False
        self._storage = storage
        self._claimer = claimer
        self._settler = settler
        self._executor = executor
        self._notebook = notebook
        self._troubles = troubles
        self._wake = wake
        self._register_anew = register_anew
        self._new_names = True
        self._trip: _Trip | None = None
        """The round trip that is under way."""
        self._is_setting_out = False
        self._lingering: asyncio.TimerHandle | None = None
        """Set while what finished waits for company, and when it has waited enough."""
        self._has_lingered = False
        self._is_quiet = True
        """Few jobs came with the latest claim."""
        self._cancelled_early: set[LeaseKey] = set()

    async def run(self, ended: asyncio.Event) -> None:
        """Make round trips until `end`, and set ``ended``."""
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

    def end(self) -> None:
        """Make no other trip after those that there is reason for now."""
        self._is_ending = True
        self._wake.set()

    def wake_up(self, new_names: bool) -> None:
        """Look whether there is work."""
        self._new_names |= new_names
        self._claimer.there_may_be_work()
        self._wake.set()

    def evicted(self) -> None:
        """Register anew before the next trip."""
        self.is_evicted = True
        self._wake.set()

    def cancel(self, keys: Collection[LeaseKey]) -> None:
        """End running jobs whose end was asked for; also those whose claim is still on its way here."""
        self._cancelled_early.update(self._executor.cancel(keys))

    def hurry(self) -> None:
        """Somebody is about to wait for the end of a job: let nothing that finished wait for company."""
        if self._lingering is not None:
            self._wake.set()

    async def settle_the_rest(self) -> None:
        """Settle all that has finished, and write what it said, after `run`. Raises what the storage raises."""
        while not self._settler.is_empty:
            batch, notes = self._take()
            exchanged = await self._storage.exchange(batch, None, notes)
            self._notebook.written(notes)
            self._settler.written(batch, exchanged.lost)

    # -- a round trip --------------------------------------------------------------------------------------

    async def _exchange_once(self) -> bool:
        """Make one round trip if there is reason for one; return whether there was."""
        if self.is_evicted and self._trip is None:
            await self._start_over()
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

    async def _start_over(self) -> None:
        await self._register_anew()
        self.is_evicted = False
        self._new_names = True  # nobody listened meanwhile
        self._claimer.there_may_be_work()

    def _set_out(self) -> _Trip | None:
        """Hand over what finished, and a claim for what there is room for; None when there is neither."""
        self._is_setting_out = True  # what is called on the way may add jobs, and must not set out a second time
        try:
            self._trip = self._new_trip()
        except BaseException:
            self.is_claiming = False
            raise
        finally:
            self._is_setting_out = False
        return self._trip

    def _new_trip(self) -> _Trip | None:
        if self._new_names:
            self._new_names = False
            self._claimer.learn(self._storage.names())
        claim = self._claim_request()
        batch, notes = self._take(at_once=claim is not None or not self._settler.is_empty)
        if not batch and claim is None and notes is NO_NOTES:
            return None
        news = self._claimer.news
        self.is_claiming = claim is not None
        return _Trip(batch, claim, notes, news, self._storage.exchange(batch, claim, notes))

    def _take(self, *, at_once: bool = True) -> tuple[Settled, Notes]:
        """Return what is to be written now. A job with more lines than fit is not settled before its last one."""
        notes = self._notebook.take(at_once=at_once)
        if self._settler.is_empty:
            return [], notes
        return self._settler.take(but=self._notebook.unsaid(notes)), notes

    def _claim_request(self) -> ClaimRequest | None:
        if self.is_stopping:
            return None
        return self._claimer.request(runs_a_suspect=self._executor.runs_a_suspect)

    async def _back_from(self, trip: _Trip) -> Exchanged:
        """Await a round trip, or as many as it takes."""
        replies = chain((trip.reply,), iter(lambda: self._storage.exchange(trip.batch, trip.claim, trip.notes), None))

        async def exchange() -> Exchanged:
            self.is_claiming = trip.claim is not None
            try:
                return await next(replies)
            finally:
                self.is_claiming = False

        return await self._troubles.insist("settling and claiming jobs", exchange)

    def _start(self, leases: Sequence[Lease]) -> None:
        """Run what was claimed. What comes only now that we stop is not begun: nobody would wait for its end."""
        for lease in leases:
            if self.is_stopping:
                self.handed_back += 1
                self._settler.add(lease, Released())
            else:
                self._executor.start(lease)
        if self._cancelled_early:  # their end was asked for between their claim and this moment
            early, self._cancelled_early = self._cancelled_early, set()
            self._executor.cancel(early)

    # -- sharing a transaction -----------------------------------------------------------------------------

    def _ride_along(self) -> None:
        """Set out beside jobs that are being added here: claimed in the transaction that stores them, they save one.

        Not when a round trip is under way: its end, or their commit, wakes us. Nor when many came with the latest one:
        then so many come at a time that one claim for them all is cheaper than one beside the first.
        """
        is_free = self._trip is None and not self._is_setting_out
        if is_free and self._is_quiet and not (self.is_evicted or self._is_ending or self._new_names):
            self._claimer.there_are_new_jobs()
            if self._set_out() is not None:
                self._wake.set()

    def _lingers(self) -> bool:
        """Whether what finished may wait a moment more, for an addition to ride along with.

        Only a few plain successes, that nobody waits for; and only where this process' additions take a round trip
        along.
        """
        can_wait = self._settler.has_only_successes(_QUIET_LEASES) and self._storage.has_no_audience
        if self.is_stopping or not can_wait or self._claim_request() is not None:
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
