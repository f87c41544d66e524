"""What operators are shown of a queue beside its jobs: frozen values, no I/O."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import NamedTuple

from durableq.models import AuditEntry


class Count(NamedTuple):
    """How many there are, as far as was counted."""

    number: int
    is_all: bool = True
    """False: counting stopped here, there may be more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueReport:
    """How one queue is."""

    name: str
    queued: Count
    """Jobs that may run as soon as a worker has room, and the queue is not paused."""
    running: int
    oldest_due: datetime | None
    """When the job came due that has waited longest among those that are next of their task; None: none waits."""
    paused_at: datetime | None = None
    paused_by: str | None = None

    @property
    def is_paused(self) -> bool:
        return self.paused_at is not None


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerReport:
    """A process that works on the database."""

    id: int
    pid: int
    host: str
    """The name of its machine; empty when it did not say."""
    software: str
    """What it runs, as ``durableq 1.2.0, Python 3.11.7``; empty when it did not say."""
    started_at: datetime
    runs_jobs: bool
    """False: it only adds jobs, or looks."""
    is_alive: bool
    """False: it is dead or hangs; another worker is about to take back what it holds."""
    running: int
    """Jobs that it holds."""
    is_here: bool
    """Whether it is this very process."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetters:
    """The dead jobs of one task that failed in the same way."""

    task: str
    error_type: str
    number: int
    first_at: datetime
    """When the first of them died."""
    last_at: datetime
    latest_id: str
    latest_message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadLetterReport:
    """Dead jobs by task and kind of error, the most numerous first."""

    groups: Sequence[DeadLetters]
    is_all: bool
    """False: only the latest dead jobs were looked at."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditPage:
    """What people did, the latest first, and the cursor of the next page (None at the end)."""

    entries: Sequence[AuditEntry]
    next_cursor: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskReport:
    """A task whose jobs are, or were, stored."""

    name: str
    arguments_schema: str | None
    """The JSON schema of its arguments, as stored by an app that offers it."""
