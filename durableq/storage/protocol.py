"""What a storage backend does, in the order of a job's life. Many at a time only; `DurableQ` offers the singular.

Every write is atomic, survives a crash once it has returned, and is never half done when its caller is cancelled.
Each write that ends or prolongs a lease is fenced by ``lease_no`` and reports what no longer held.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Generator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from durableq.encryption import Payloads, Rewrite
from durableq.errors import DurableQError
from durableq.history import SummedBy, Tally
from durableq.models import (
    Attempt,
    AuditEntry,
    ClaimRequest,
    Job,
    JobFilter,
    JobState,
    Lease,
    LeaseKey,
    LogLine,
    Names,
    Outcome,
    Overdue,
    Page,
    Progress,
    Reaped,
)
from durableq.reports import AuditPage, Count, DeadLetterReport, QueueReport, TaskReport, WorkerReport

T = TypeVar("T")

Decide = Callable[[Lease, str, bool], Outcome]
"""(lease, why its worker is dead, whether to charge a crash) -> what becomes of the job."""

WakeUp = Callable[[bool], None]
"""Called on the event loop when there may be work; the argument says whether new names may have come."""


DecideLate = Callable[[Lease, int], Outcome | None]
"""(job that waits, now) -> what becomes of it when its time is over, or None."""

Cancel = Callable[[Collection[LeaseKey]], None]
"""Called on the event loop with leases whose end was asked for; it may be told of one again and again."""

Conflicts = dict[str, str]
"""Ids of jobs that were not stored, because each is there already under another id, or under the same one."""

Plan = Generator[tuple[str, Mapping[str, Any]], list[Any], T]
"""Statements one after another, each with its values; it is sent the rows, and returns what came of it all."""


class Notes(NamedTuple):
    """What running jobs said since it was last written."""

    progress: Sequence[tuple[LeaseKey, Progress]] = ()
    logs: Sequence[tuple[LeaseKey, int, int, str]] = ()
    """(lease, number of the line within it, instant, message)."""

    def __bool__(self) -> bool:
        return bool(self.progress or self.logs)


NO_NOTES = Notes()


class Exchanged(NamedTuple):
    """What a round trip brought: leases that were lost before they could be settled, and new ones."""

    lost: frozenset[int]
    """Their ``seq``."""
    leases: list[Lease]


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageCondition:
    """What can be told of a storage without asking the database."""

    software: str
    """The database software and its version: ``SQLite 3.51.3``."""
    has_known_bug: bool
    """Whether this version can damage a file; for SQLite, whether it has the WAL-reset bug."""
    durability: str
    is_shared: bool
    """Whether other processes work on the database, as of the latest look."""
    database_bytes: int | None
    """Size of the file; None when it is not there."""
    log_bytes: int
    """Size of the write-ahead log."""
    log_bytes_alarm: int
    """From this size on, something keeps the log from being taken in."""


class Storage(Protocol):
    """One queue's access to its database, bound to the event loop that opened it."""

    # -- life ----------------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Create or check the database and bring its schema up to date. Raises `StorageUnusable`."""
        ...

    async def close(self) -> None:
        """Write what still waits, and let go of everything."""
        ...

    @property
    def trouble(self) -> DurableQError | None:
        """What made the storage unusable while running, or None."""
        ...

    def condition(self) -> StorageCondition:
        """Tell what is known without a query. Never raises; may be asked from any thread."""
        ...

    async def waits(self) -> Mapping[str, float]:
        """By task: seconds since the job came due that is the next of its queue and task. Not in paused queues.

        Looks at one job for each queue and task, however many wait, and at a thousand of them at most; of those that
        have crashed a process before, which are taken one at a time, at the hundred that are next.
        """
        ...

    async def register(self, wake_up: WakeUp | None, cancel: Cancel | None = None) -> int:
        """Make this process known and return its id, never used before. With ``wake_up`` it holds leases."""
        ...

    async def deregister(self) -> None:
        """Take this process off the list; what it still holds is handed back, uncounted."""
        ...

    def describe_tasks_with(self, schema_of: Callable[[str], str | None]) -> None:
        """Say where the JSON schema of a task's arguments comes from.

        It is stored when the name is first used by this process, and by `register` for names that are there.
        """
        ...

    # -- adding --------------------------------------------------------------------------------------------

    def insert(self, jobs: Sequence[Job[Any]], *, impatient: bool = False) -> asyncio.Future[Conflicts | None]:
        """Hand over new jobs, all or none, at once; the future is done when they are durable.

        When ``impatient``, a second is as long as it waits for a transaction of this very process: it may be the
        caller's own, which then ends only after the answer.

        Its result tells of jobs that were there already. It fails with `NotStored` when nothing was written, with
        `DuplicateJob` or `IdempotencyConflict` when one is refused, with `OutcomeUnknown` when nobody can say.
        Cancelling it changes nothing.
        """
        ...

    def insert_and_wait(self, jobs: Sequence[Job[Any]]) -> Conflicts | None:
        """The same from a thread without an event loop. Opens the storage for the call when it is not open."""
        ...

    # -- running -------------------------------------------------------------------------------------------

    def exchange(
        self, settled: Sequence[tuple[Lease, Outcome]], claim: ClaimRequest | None, notes: Notes = NO_NOTES
    ) -> Awaitable[Exchanged]:
        """Write what running jobs said, settle what finished and claim what there is room for, in one transaction.

        Handed over at the call, which raises nothing. Cancelling the await changes nothing.
        """
        ...

    def before_adding(self, call: Callable[[], None] | None) -> None:
        """Call this, on the loop, whenever jobs that may run at once are about to be handed over; None: no more.

        An `exchange` that it makes goes across with them, and claims them in the transaction that stores them. Not
        called while other processes use the storage: they may be sooner.
        """
        ...

    @property
    def is_alone(self) -> bool:
        """Whether nobody else is registered, as of the latest look."""
        ...

    @property
    def next_limit(self) -> int | None:
        """When the next job expires, or should be finished, as of the latest look; it may be over. Microseconds."""
        ...

    @property
    def has_no_audience(self) -> bool:
        """Whether settling may wait a moment: nobody watches for the ends of jobs, and no other process is there."""
        ...

    async def state_of_lease(self, lease: Lease) -> JobState | None:
        """The state of a lease's job; None when it is gone, or was claimed again."""
        ...

    def renew(self, expires_at: int, held: Collection[LeaseKey] | None) -> bool:
        """Prolong this worker's lease to ``expires_at`` (boot time). Blocks; for the heartbeat's thread.

        False: this worker has been reaped. Rows that name it but are not in ``held`` are handed back once they
        were missing twice; None: a claim is under way, do not judge.
        """
        ...

    async def reap(self, decide: Decide) -> list[Reaped]:
        """Take back what dead workers held, each job through ``decide``."""
        ...

    async def give_up_overdue(self, decide: DecideLate, limit: int) -> Overdue:
        """End up to ``limit`` jobs that wait though they should have started, or finished, by now."""
        ...

    async def drop_results(self, limit: int) -> int:
        """Delete up to ``limit`` return values that are past their time to live; return how many."""
        ...

    async def prune(self, state: JobState, before: datetime, limit: int) -> int:
        """Delete up to ``limit`` jobs that finished in ``state`` before that moment; return how many."""
        ...

    async def condense_tallies(self, now: datetime) -> bool:
        """Sum up tallies of longer ago, a bounded number at a time, and delete those of more than 8 days ago.

        Returns whether there is more to do.
        """
        ...

    # -- looking -------------------------------------------------------------------------------------------

    def names(self) -> Names:
        """All queue and task names ever seen, as of the latest look. No I/O."""
        ...

    async def stored_names(self) -> Names:
        """All queue and task names that are stored at this moment. No name ever goes."""
        ...

    async def get(self, job_id: str) -> Job[Any] | None: ...

    async def attempts(self, job_id: str) -> list[Attempt]:
        """The tries of a job that did not succeed, oldest first."""
        ...

    async def logs(self, job_id: str, *, skip: int = 0) -> list[LogLine]:
        """What a job said while it ran, oldest first, without the first ``skip`` lines."""
        ...

    async def finished_among(self, job_ids: Collection[str]) -> set[str]:
        """Of these ids, those whose job is finished, or gone."""
        ...

    def watch(self, look: Callable[[], None]) -> Callable[[], None]:
        """Call ``look`` on the event loop whenever some process may have finished a job; return what ends it."""
        ...

    async def find(self, where: JobFilter, *, cursor: int | None, limit: int, look_at: int | None = None) -> Page:
        """Jobs that match, newest first, from below the cursor of the page before.

        Of those that an index leads to, ``look_at`` are looked at, at most; None: all.
        """
        ...

    async def count(self, where: JobFilter, *, look_at: int) -> Count:
        """How many match of the newest ``look_at`` jobs that an index leads to."""
        ...

    async def counts(self, at_most: int | None = None) -> dict[JobState, int]:
        """How many jobs are in each state; each counted up to ``at_most``."""
        ...

    async def dead_letters(self, *, look_at: int) -> DeadLetterReport:
        """The newest ``look_at`` dead jobs by task and type of error, the most numerous first."""
        ...

    async def queues(self, *, at_most: int) -> list[QueueReport]:
        """All queues by name; what waits in each is counted up to ``at_most``."""
        ...

    async def tasks(self) -> list[TaskReport]:
        """All tasks by name."""
        ...

    async def workers(self) -> list[WorkerReport]:
        """All processes that are registered, the oldest first."""
        ...

    async def tallies(
        self, steps: range, *, ways: Sequence[Collection[SummedBy]], queue: str | None, task: str | None
    ) -> list[list[Tally]]:
        """What ended in steps that begin then, in seconds since the epoch, of one queue or task when given.

        Once for each way, summed up by what it names; what it does not is empty, and the step the first one.
        """
        ...

    async def has_runnable(self, queues: Collection[str], tasks: Collection[str]) -> bool:
        """Whether anything is running, or queued or due among these."""
        ...

    async def audit_trail(self, job_id: str) -> list[AuditEntry]:
        """The administrative writes to a job, oldest first."""
        ...

    async def audit(self, *, cursor: int | None, limit: int) -> AuditPage:
        """All administrative writes, newest first, from below the cursor of the page before."""
        ...

    # -- by hand -------------------------------------------------------------------------------------------
    # Each raises `JobNotFound`, or `JobConflict` when the state does not allow it, and is audited under `who`.

    async def retry(self, job_id: str, *, who: str, args_json: str | None = None) -> Job[Any]:
        """Queue a dead or cancelled job as new, optionally with other arguments; a scheduled one: now."""
        ...

    async def retry_matching(self, where: JobFilter, *, who: str, limit: int) -> int:
        """Retry up to ``limit`` dead jobs that match, oldest first; return how many."""
        ...

    async def cancel(self, job_id: str, *, who: str) -> Job[Any]:
        """End a job that waits; ask for the end of one that runs."""
        ...

    async def cancel_matching(self, where: JobFilter, *, who: str, limit: int) -> int:
        """Cancel up to ``limit`` unfinished jobs that match, oldest first; return how many."""
        ...

    async def delete(self, job_id: str, *, who: str) -> None:
        """Remove a finished job and its history. The audit entry stays."""
        ...

    async def delete_matching(self, where: JobFilter, *, who: str, limit: int) -> int:
        """Remove up to ``limit`` finished jobs that match, oldest first; return how many."""
        ...

    async def pause(self, queue: str, *, who: str) -> None:
        """Let no claim take from a queue any more. Does nothing to one that is paused."""
        ...

    async def resume(self, queue: str, *, who: str) -> None:
        """Let claims take from a paused queue again."""
        ...

    # -- encrypted payloads --------------------------------------------------------------------------------

    async def payloads(self, prefix: str, *, after: int, limit: int) -> list[Payloads]:
        """The next jobs above ``seq`` ``after``, oldest first, without values that begin with ``prefix``.

        At most ``limit``, and some megabytes or one job; none at the end.
        """
        ...

    async def rewrite(self, args: Sequence[Rewrite], results: Sequence[Rewrite]) -> tuple[int, int]:
        """Replace arguments and results that are still the same; return how many of each."""
        ...

    # -- in a transaction of the application ---------------------------------------------------------------

    @property
    def path(self) -> Path:
        """The database file."""
        ...

    def adding(self, jobs: Sequence[Job[Any]]) -> Plan[Conflicts]:
        """The statements that store jobs, to be run on another connection to the same file."""
        ...

    def completing(
        self, lease: Lease, result_json: str | None, follow_ups: Sequence[Job[Any]], notes: Notes = NO_NOTES
    ) -> Plan[None]:
        """The statements that settle a lease as succeeded. Raises `JobConflict` when it no longer holds.

        ``notes`` are what its job has said last: once it is settled, nothing is written for it.
        """
        ...

    def expect_foreign_commit(self, is_open: Callable[[], bool]) -> Callable[[], None]:
        """Look often for the commit of another connection of this process, while it ``is_open``; return a nudge."""
        ...
