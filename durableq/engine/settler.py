"""Keeps finished jobs until their outcome is written.

An outcome handed in is settled or reported lost; it is never dropped, also at shutdown.
"""

from collections.abc import Callable, Collection
from itertools import islice
from typing import Final

from durableq.events import (
    Emitter,
    JobCancelled,
    JobDied,
    JobReleased,
    JobRetried,
    JobSnoozed,
    JobSucceeded,
    LeaseLost,
)
from durableq.models import (
    Cancelled,
    Completed,
    Dead,
    Lease,
    LeaseKey,
    Outcome,
    Released,
    Retried,
    Snoozed,
    Succeeded,
)

AT_ONCE: Final = 1_000


class Settler:
    """Collects outcomes; the worker's exchange takes them in batches. Order between jobs is not kept."""

    def __init__(self, emitter: Emitter, wake_up: Callable[[], None]) -> None:
        self._emitter = emitter
        self._wake_up = wake_up
        self._finished: dict[LeaseKey, tuple[Lease, Outcome]] = {}

    def add(self, lease: Lease, outcome: Outcome | Completed) -> None:
        """Take in what became of a lease."""
        if isinstance(outcome, Completed):
            announce(self._emitter, lease, outcome)
            self._wake_up()
            return
        self._finished[lease.key] = (lease, outcome)
        self._wake_up()

    def take(self, but: Collection[LeaseKey] = ()) -> list[tuple[Lease, Outcome]]:
        """Return the next batch. It stays here until `written`, so that a failed exchange loses nothing.

        Jobs in ``but`` stay for a later one: something else has to be written for them first.
        """
        ready = (one for key, one in self._finished.items() if key not in but) if but else self._finished.values()
        return list(islice(ready, AT_ONCE))

    def written(self, batch: list[tuple[Lease, Outcome]], lost: frozenset[int]) -> None:
        """Forget a batch that was settled, and tell what happened; ``lost`` names those whose lease was gone."""
        for lease, outcome in batch:
            self._finished.pop(lease.key, None)
            if lost and lease.seq in lost:
                self._emitter.emit(LeaseLost(lease))
            else:
                announce(self._emitter, lease, outcome)

    def forget_all(self) -> None:
        """After an eviction: every lease is gone, nothing that is written for one would count."""
        for lease, _ in self._finished.values():
            self._emitter.emit(LeaseLost(lease))
        self._finished.clear()

    @property
    def held(self) -> set[LeaseKey]:
        """What waits to be settled. May be asked from another thread."""
        return {*self._finished.copy()}

    def has_only_successes(self, at_most: int) -> bool:
        """Whether all that waits is up to so many successes, and one at least, without follow-up jobs."""
        return 0 < len(self._finished) <= at_most and all(
            type(outcome) is Succeeded and not outcome.follow_ups for _, outcome in self._finished.values()
        )

    @property
    def is_empty(self) -> bool:
        return not self._finished


def announce(emitter: Emitter, lease: Lease, outcome: Outcome | Completed) -> None:
    """Tell what has become of a job, once that is stored."""
    match outcome:
        case Succeeded() | Completed():
            if emitter.wants(JobSucceeded):
                emitter.emit(JobSucceeded(lease, outcome.result_json))
        case Retried(failure, run_at):
            emitter.emit(JobRetried(lease, failure, run_at, outcome.error))
        case Dead(failure):
            emitter.emit(JobDied(lease, failure, outcome.error))
        case Cancelled(failure):
            emitter.emit(JobCancelled(lease, failure))
        case Snoozed(run_at):
            emitter.emit(JobSnoozed(lease, run_at))
        case Released():
            emitter.emit(JobReleased(lease))
