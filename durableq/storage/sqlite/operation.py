"""What the writer is given to do: jobs to add, a worker's round trip, or anything rarer. None of it does any I/O.

An operation knows how much it weighs and how long it may wait; how a group of them runs in one transaction stands in
`durableq.storage.sqlite.group`.
"""

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from durableq.clock import from_datetime
from durableq.models import Job, JobState
from durableq.storage.sqlite.insertion import Batch, batch_of
from durableq.storage.sqlite.replies import LoopCalls, Reply
from durableq.storage.sqlite.settling import Settlement

HEAVY: Final = 5_000
"""An insert of more rows than this gets a transaction of its own."""
ROW_OVERHEAD_BYTES: Final = 300
"""About what a waiting job takes besides its arguments."""


@dataclass(slots=True, kw_only=True)
class _Operation:
    """Something to do inside a transaction of the writer."""

    begin_by: float = 0.0
    """Monotonic seconds; removed, not stored, when its transaction has not begun by then."""
    urgent: bool = False
    """Goes before whatever else waits: what keeps leases alive."""
    impatient: bool = False
    """Does not wait long for a transaction of this very process."""

    @property
    def weight(self) -> int:
        """About how many rows it writes."""
        return 1

    @property
    def size(self) -> int:
        """About how many bytes it holds while it waits."""
        return 200

    @property
    def alone(self) -> bool:
        """Whether it needs a transaction of its own."""
        return False


class Addition:
    """Jobs that one caller adds, all or none, and where its answer goes."""

    __slots__ = ("impatient", "jobs", "reply", "size")

    def __init__(self, jobs: Sequence[Job[Any]], reply: Reply, *, impatient: bool = False) -> None:
        self.jobs = jobs
        self.reply = reply
        self.impatient = impatient
        self.size = sum(len(job.args_json) + ROW_OVERHEAD_BYTES for job in jobs)


@dataclass(slots=True, kw_only=True)
class Insert(_Operation):
    """Store new jobs: the additions that came together, each all or none."""

    additions: list[Addition]
    batch: Batch
    """All their jobs, encoded."""
    count: int
    queues: frozenset[str]
    tasks: frozenset[str]
    schema_of: Callable[[str], str | None]
    """Gives the JSON schema of a task's arguments, for a name that is new."""
    first_due: int | None
    """The earliest ``run_at`` among those that are scheduled."""
    has_queued: bool

    @property
    def weight(self) -> int:
        return self.count

    @property
    def size(self) -> int:
        return sum(addition.size for addition in self.additions)

    @property
    def alone(self) -> bool:
        return self.count > HEAVY


@dataclass(slots=True, kw_only=True)
class Exchange(_Operation):
    """A worker's one round trip: settle what finished, and claim what it has room for."""

    reply: Reply
    worker_id: int
    settlement: Settlement
    progress: str | None = None
    """A JSON array of what running jobs said about their progress."""
    logs: str | None = None
    """A JSON array of the lines that they logged."""
    schema_of: Callable[[str], str | None] = lambda name: None
    lanes: tuple[tuple[str, int], ...] = ()
    """Per runner: the tasks as a JSON array, and how many jobs."""
    queues: str = "[]"
    suspect_tasks: str | None = None

    @property
    def claims(self) -> bool:
        return bool(self.lanes) or self.suspect_tasks is not None

    @property
    def weight(self) -> int:
        return self.settlement.count + sum(limit for _, limit in self.lanes)

    @property
    def size(self) -> int:
        return self.settlement.size + len(self.logs or "") + 400


@dataclass(slots=True, kw_only=True)
class Transact(_Operation):
    """Anything rarer: a callable that gets the connection inside a savepoint. What it raises is its answer."""

    reply: Reply
    run: Callable[[sqlite3.Connection], Any]
    makes_work: Callable[[Any], bool] | None = None
    """Tells from the answer whether jobs were left that can be claimed."""
    finishes: Callable[[Any], bool] | None = None
    """Tells from the answer whether jobs were finished."""
    cancels: bool = False
    """Whether the end of a running job may have been asked for."""
    solitary: bool = False

    @property
    def alone(self) -> bool:
        return self.solitary


Operation = Insert | Exchange | Transact


def answer(operation: Operation, result: Any, calls: LoopCalls) -> None:
    """Give an operation its result. An insert's result is one for all its additions, or a list of one for each."""
    if not isinstance(operation, Insert):
        operation.reply.answer(result, calls)
        return
    results = result if isinstance(result, list) else [result] * len(operation.additions)
    for addition, own in zip(operation.additions, results, strict=True):
        addition.reply.answer(own, calls)


def make_insert(additions: list[Addition], schema_of: Callable[[str], str | None]) -> Insert:
    """Put what came together, and waits alike, into one operation.

    Runs on the caller's thread: JSON is not the writer's work.
    """
    jobs = [job for addition in additions for job in addition.jobs]
    scheduled = [from_datetime(job.run_at) for job in jobs if job.state is JobState.SCHEDULED]
    return Insert(
        additions=additions,
        impatient=additions[0].impatient,
        batch=batch_of(jobs),
        count=len(jobs),
        queues=frozenset({job.queue for job in jobs}),
        tasks=frozenset({job.task for job in jobs}),
        schema_of=schema_of,
        first_due=min(scheduled, default=None),
        has_queued=len(scheduled) < len(jobs),
    )
