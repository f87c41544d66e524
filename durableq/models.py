"""What durableq stores and passes around: frozen values, no I/O.

A *task* is a registered function; a *job* is one durable call of it, one row. Claiming a job gives a `Lease`;
running a lease gives one `Outcome`; settling writes outcomes for leases.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Final, Generic, Literal, NamedTuple, TypeVar

from durableq.clock import to_datetime

R_co = TypeVar("R_co", covariant=True)

LARGEST_NUMBER: Final = 2**63 - 2
"""The largest limit or cursor that people may ask with: a column holds one more, and one more is looked for."""


class JobState(StrEnum):
    """Where a job is in its life. The last three are *finished*."""

    BLOCKED = "blocked"
    """Waits for other jobs or for a limit. Reserved: no job comes there yet."""
    SCHEDULED = "scheduled"
    """Waits for its ``run_at``; after a failed attempt, for its retry."""
    QUEUED = "queued"
    """May run as soon as a worker has a free slot."""
    RUNNING = "running"
    """Leased to a worker."""
    SUCCEEDED = "succeeded"
    DEAD = "dead"
    """Out of attempts, or given up: a dead letter, kept with its errors until a person decides."""
    CANCELLED = "cancelled"


FINISHED: Final = frozenset({JobState.SUCCEEDED, JobState.DEAD, JobState.CANCELLED})
"""The states in which ``finished_at`` is set."""
RESTARTABLE: Final = (JobState.DEAD, JobState.CANCELLED, JobState.SCHEDULED)
"""The states in which people may retry a job."""
EDITABLE: Final = (JobState.DEAD, JobState.CANCELLED)
"""The states in which they may change its arguments, and retry it with them."""
CANCELLABLE: Final = (JobState.QUEUED, JobState.SCHEDULED, JobState.BLOCKED, JobState.RUNNING)
"""The states in which they may cancel it."""
DELETABLE: Final = (JobState.DEAD, JobState.CANCELLED, JobState.SUCCEEDED)
"""The states in which they may delete it."""


@dataclass(frozen=True, slots=True)
class JobError:
    """Why the last attempt failed, in short; `Attempt` has the traceback."""

    type: str
    message: str


class Progress(NamedTuple):
    """How far a job says it is: ``done`` of ``total``, and a word about it."""

    done: float
    total: float | None = None
    message: str | None = None


OnConflict = Literal["return", "replace", "raise"]


class UniqueClaim(NamedTuple):
    """What keeps a job the only one of its key, as long as it is in the states it covers."""

    key: str
    covers: int
    """Finished and running states that count as well as the waiting ones, as a sum of `COVERS`."""
    on_conflict: OnConflict
    arguments: tuple[str, ...] | None = None
    """The names of those that make the key, for errors; () for none, None for unknown ones. Not stored."""


COVERS: Final = {JobState.RUNNING: 1, JobState.SUCCEEDED: 2, JobState.DEAD: 4, JobState.CANCELLED: 8}
"""The bit of each state that `UniqueClaim.covers` may hold. The waiting states are always covered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class JobExtras:
    """What most jobs do without; kept apart, so that a plain job costs nothing for it. Times in microseconds."""

    expires_at: int | None = None
    """Not started by then, the job is cancelled."""
    deadline_at: int | None = None
    """Not finished by then, it is dead."""
    timeout: int | None = None
    """Longest duration of one attempt."""
    result_ttl: int | None = None
    unique: UniqueClaim | None = None
    is_idempotent: bool = False
    """The id is derived from a key: an equal job that is stored already is the same job."""
    tags: tuple[str, ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)
    retry: str | None = None
    """The name of a retry policy in place of the task's own."""
    progress: Progress | None = None
    cancel_requested: bool = False

    def moved_args(self, stored: str, task: str, from_id: str, to_id: str) -> str:
        """Return stored arguments as they would be stored in another row, or now in the same one.

        The same text, but for those that are encrypted: see `durableq.encryption`.
        """
        return stored


PLAIN: Final = JobExtras()


@dataclass(frozen=True, slots=True, kw_only=True)
class Job(Generic[R_co]):
    """One durable call of a task, as it was when read. ``R_co`` is what the task returns.

    Times are aware UTC datetimes. ``attempt`` is the number of the current or latest try, 0 before the first;
    ``crashes`` counts how often it took its process down.
    """

    id: str
    task: str
    queue: str
    priority: int
    state: JobState
    args_json: str = field(repr=False)  # it may hold secrets, and a job may end up in a log
    """The arguments as stored: one JSON object of names."""
    max_attempts: int
    created_at: datetime
    run_at: datetime
    """The earliest time of the next attempt."""
    attempt: int = 0
    crashes: int = 0
    started_at: datetime | None = None
    """When the latest attempt started."""
    finished_at: datetime | None = None
    result_json: str | None = field(default=None, repr=False)
    error: JobError | None = None
    extras: JobExtras = field(default=PLAIN, repr=False)

    @property
    def args(self) -> dict[str, Any]:
        """The arguments by name, as JSON values."""
        decoded: dict[str, Any] = json.loads(self.args_json)
        return decoded

    @property
    def result(self) -> Any:
        """What the task returned, as a JSON value; None until it succeeded."""
        return None if self.result_json is None else json.loads(self.result_json)

    @property
    def is_finished(self) -> bool:
        return self.state in FINISHED

    @property
    def tags(self) -> tuple[str, ...]:
        return self.extras.tags

    @property
    def headers(self) -> Mapping[str, str]:
        """What rides along beside the arguments, a trace context for instance."""
        return self.extras.headers

    @property
    def timeout(self) -> timedelta | None:
        """The longest duration of one attempt."""
        return None if self.extras.timeout is None else timedelta(microseconds=self.extras.timeout)

    @property
    def expires_at(self) -> datetime | None:
        """Not started by then, the job is cancelled."""
        return None if self.extras.expires_at is None else to_datetime(self.extras.expires_at)

    @property
    def deadline_at(self) -> datetime | None:
        """Not finished by then, it is dead."""
        return None if self.extras.deadline_at is None else to_datetime(self.extras.deadline_at)

    @property
    def unique_key(self) -> str | None:
        """Its claim to be the only one, None when it has none or has given it up."""
        return None if self.extras.unique is None else self.extras.unique.key

    @property
    def progress(self) -> Progress | None:
        return self.extras.progress

    @property
    def cancel_requested(self) -> bool:
        """Whether it runs, but somebody has asked for its end."""
        return self.extras.cancel_requested


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """One try that did not succeed."""

    lease_no: int
    attempt: int
    worker_id: int
    started_at: datetime
    finished_at: datetime
    error_type: str
    error_message: str
    traceback: str

    @property
    def duration(self) -> timedelta:
        return self.finished_at - self.started_at


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLine:
    """What a job said by ``current_job().log``."""

    lease_no: int
    """Which try said it; see `Attempt.lease_no`."""
    at: datetime
    message: str


class Lease(NamedTuple):
    """A claimed job, this worker's alone until the lease is lost. ``lease_no`` fences every write for it."""

    seq: int
    lease_no: int
    id: str
    task: str
    queue: str
    args_json: str
    checksum: int
    attempt: int
    max_attempts: int
    crashes: int
    created_at: int
    """Microseconds since the epoch, as stored."""
    priority: int = 0
    expires_at: int | None = None
    """As `JobExtras.expires_at`; None once the job was started before."""
    deadline_at: int | None = None
    settings: str | None = None
    """A JSON object of `JobExtras` that only its worker reads; None for none."""

    def __repr__(self) -> str:
        """Without the arguments, which may be secret, and the job's headers."""
        return f"<Lease {self.lease_no} of job {self.id} of {self.task}, attempt {self.attempt}/{self.max_attempts}>"

    @property
    def key(self) -> "LeaseKey":
        return self.seq, self.lease_no


LeaseKey = tuple[int, int]
"""``(seq, lease_no)``: names one claim of one job, for ever."""


@dataclass(frozen=True, slots=True)
class Failure:
    """What went wrong in an attempt, as it is stored."""

    type: str
    message: str
    traceback: str


@dataclass(frozen=True, slots=True)
class Succeeded:
    """The task returned. ``result_json`` is None when it returned None.

    ``follow_ups`` are stored in the same transaction.
    """

    result_json: str | None
    follow_ups: tuple[Job[Any], ...] = ()


@dataclass(frozen=True, slots=True)
class Retried:
    """The attempt failed; the next may start at ``run_at`` (microseconds), or at once when None."""

    failure: Failure
    run_at: int | None
    crashed: bool = False
    error: BaseException | None = field(default=None, compare=False, repr=False)
    """What was raised, for those who want to hear of it; it is not stored."""


@dataclass(frozen=True, slots=True)
class Dead:
    """The attempt failed and there will be no other."""

    failure: Failure
    crashed: bool = False
    error: BaseException | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Cancelled:
    """Ended because it was asked for, or because nobody started it in time."""

    failure: Failure


@dataclass(frozen=True, slots=True)
class Snoozed:
    """The task asked to be run later, at ``run_at`` (microseconds); the attempt is not counted."""

    run_at: int


@dataclass(frozen=True, slots=True)
class Released:
    """Handed back unfinished; the attempt is not counted."""


@dataclass(frozen=True, slots=True)
class Completed:
    """The task's own transaction has settled the job as succeeded; nothing is left to write."""

    result_json: str | None = None


Outcome = Succeeded | Retried | Dead | Cancelled | Snoozed | Released


class Lane(NamedTuple):
    """What one runner can take now: names of tasks, and how many."""

    runner: str
    tasks: tuple[str, ...]
    limit: int


@dataclass(frozen=True, slots=True)
class ClaimRequest:
    """What a worker can take: from these queues, per runner up to its free slots.

    ``suspect_tasks`` are the tasks of which one job that has crashed a process before may be taken as well.
    """

    queues: tuple[str, ...]
    lanes: tuple[Lane, ...]
    suspect_tasks: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """The most jobs it can bring."""
        return sum(lane.limit for lane in self.lanes) + bool(self.suspect_tasks)


class Names(NamedTuple):
    """All queue and task names that the storage has ever seen."""

    queues: frozenset[str]
    tasks: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFilter:
    """Which jobs to list or act on; every given field must match."""

    state: JobState | None = None
    task: str | None = None
    queue: str | None = None
    error_type: str | None = None
    error_text: str | None = None
    """A part of the message of the last error."""
    tag: str | None = None
    arguments: Mapping[str, str] = field(default_factory=dict)
    """Values of arguments, as text, by name; ``user.id`` looks into an argument. What is encrypted never matches."""
    created_after: datetime | None = None
    """At this moment or later."""
    created_before: datetime | None = None
    """Earlier than this moment."""
    finished_after: datetime | None = None
    finished_before: datetime | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """Jobs, newest first, and the cursor of the next page (None at the end)."""

    jobs: list[Job[Any]]
    next_cursor: int | None
    is_cut_short: bool = False
    """Looking stopped before it had found as many as were asked for; from ``next_cursor`` on there may be more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """One administrative write: who did what to which job, when."""

    at: datetime
    who: str
    action: str
    job_id: str
    """Empty for what was done to a queue; ``detail`` names it."""
    detail: Mapping[str, Any] = field(default_factory=dict)


EDITED: Final = ("args_before", "args_after")
"""Where the audit entry of an edit has arguments."""


@dataclass(frozen=True, slots=True)
class Reaped:
    """A worker that was found dead, and what became of the jobs it held."""

    worker_id: int
    reason: str
    leases: list[tuple[Lease, Outcome]]


Overdue = list[tuple[Lease, Outcome]]
"""Jobs that nobody started, or finished, in time, and what became of them."""
