"""What happens, as typed values, and the one emitter that tells whoever subscribed.

Logs, metrics and traces are subscribers; nothing else formats. A subscriber that raises is logged and kept, and
harms neither the job nor the other subscribers. Events are emitted on the worker's event loop, except the two
that report trouble from its threads (`StorageTrouble`, `LoopStalled`).
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from durableq.models import Failure, Lease

logger = logging.getLogger("durableq")

E = TypeVar("E")


@dataclass(frozen=True, slots=True)
class JobStarted:
    lease: Lease


@dataclass(frozen=True, slots=True)
class JobSucceeded:
    lease: Lease
    result_json: str | None = field(default=None, repr=False)
    """What the task returned, as it is stored: encrypted if there are keys."""


@dataclass(frozen=True, slots=True)
class JobRetried:
    """An attempt failed; the next is due at ``run_at`` (microseconds of wall time)."""

    lease: Lease
    failure: Failure
    run_at: int | None
    error: BaseException | None = None
    """What was raised, when it was raised here."""


@dataclass(frozen=True, slots=True)
class JobDied:
    """A job became a dead letter."""

    lease: Lease
    failure: Failure
    error: BaseException | None = None


@dataclass(frozen=True, slots=True)
class JobCancelled:
    """A job was ended because somebody asked for it, or because nobody started it in time."""

    lease: Lease
    failure: Failure


@dataclass(frozen=True, slots=True)
class JobSnoozed:
    """A task asked to be run again at ``run_at`` (microseconds of wall time); the attempt is not counted."""

    lease: Lease
    run_at: int


@dataclass(frozen=True, slots=True)
class AttemptOverran:
    """An attempt was stopped by its time limit, but its code goes on: a thread, or a task that swallows cancellation.

    ``left_behind`` counts those of its runner that still go on.
    """

    lease: Lease
    runner: str
    left_behind: int


@dataclass(frozen=True, slots=True)
class JobReleased:
    """A job was handed back unfinished, uncounted."""

    lease: Lease


@dataclass(frozen=True, slots=True)
class LeaseLost:
    """What this worker wrote for a lease had no effect: the lease was no longer its own."""

    lease: Lease


@dataclass(frozen=True, slots=True)
class ResultNotStored:
    """The task succeeded, but its return value can not be kept."""

    lease: Lease
    reason: str


@dataclass(frozen=True, slots=True)
class UnknownTasks:
    """Jobs wait for tasks that this worker does not know; it leaves them alone."""

    names: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class WorkerStarted:
    worker_id: int
    storage: str = ""
    """The database software and its version."""


@dataclass(frozen=True, slots=True)
class WorkerStopped:
    worker_id: int
    released: int


@dataclass(frozen=True, slots=True)
class WorkerReaped:
    """A dead worker's jobs were taken back."""

    worker_id: int
    reason: str
    jobs: int


@dataclass(frozen=True, slots=True)
class WorkerEvicted:
    """This worker was taken for dead while it was held up; it lost its leases and registers anew."""

    worker_id: int


@dataclass(frozen=True, slots=True)
class LoopStalled:
    """The event loop has not moved for ``seconds``; ``where`` says what it was executing."""

    seconds: float
    where: str


@dataclass(frozen=True, slots=True)
class StorageTrouble:
    """The storage refused or failed; what was meant to be written is kept and tried again."""

    doing: str
    error: BaseException


@dataclass(frozen=True, slots=True)
class StorageBroken:
    """The storage cannot be used any more, or no longer be trusted; the worker stops, and all is refused."""

    error: BaseException


class Emitter:
    """Hands each event to those who subscribed to its type."""

    def __init__(self) -> None:
        self._handlers: dict[type, tuple[Callable[[Any], None], ...]] = {}

    def subscribe(self, event_type: type[E], handler: Callable[[E], None]) -> Callable[[], None]:
        """Call ``handler`` with every event of exactly this type; return a function that ends it."""
        self._handlers[event_type] = (*self._handlers.get(event_type, ()), handler)

        def unsubscribe() -> None:
            kept = tuple(one for one in self._handlers.get(event_type, ()) if one is not handler)
            self._handlers[event_type] = kept

        return unsubscribe

    def wants(self, event_type: type) -> bool:
        """Whether anyone listens: lets a hot path skip building an event nobody hears."""
        return bool(self._handlers.get(event_type))

    def emit(self, event: object) -> None:
        for handler in self._handlers.get(type(event), ()):
            try:
                handler(event)
            except Exception:
                logger.exception("a subscriber to %s raised; it stays subscribed", type(event).__name__)
