"""What a queue promises about the life of its jobs, in plain Python: a description that can be run.

Everything happens at once, in memory, and nothing fails. `test_model` takes the storage and this side by side through
the same steps, and compares. What `durableq.models.Job` has too carries its names.
"""

import copy
import itertools
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

from durableq.clock import to_datetime
from durableq.errors import DuplicateJob, DurableQError, IdempotencyConflict, JobConflict, JobNotFound
from durableq.models import (
    COVERS,
    FINISHED,
    Cancelled,
    Dead,
    Failure,
    Job,
    JobState,
    Outcome,
    Released,
    Retried,
    Snoozed,
    Succeeded,
)

WAITING: Final = frozenset({JobState.BLOCKED, JobState.SCHEDULED, JobState.QUEUED})
RESTARTABLE: Final = frozenset({JobState.DEAD, JobState.CANCELLED})
ENDS: Final = {Succeeded: JobState.SUCCEEDED, Dead: JobState.DEAD, Cancelled: JobState.CANCELLED}
ENDINGS: Final = {Succeeded: "succeeded", Retried: "retried", Dead: "dead", Cancelled: "cancelled"}
"""How tries are tallied; one that is handed back is none."""
MAX_CRASHES: Final = 3
DIED: Final = Failure("durableq.WorkerDied", "", "")
LeaseName = tuple[int, int]
"""The number of a job, and of the claim of it."""


class Refused(Exception):
    """What was asked for is refused with one of these errors, and changes nothing."""

    def __init__(self, *errors: type[DurableQError]) -> None:
        super().__init__(*errors)
        self.errors = errors


class ModelJob:
    def __init__(self, job: Job[Any], number: int) -> None:
        self.number = number
        """Never used again, unlike an id, which another job may get once the first one is deleted."""
        self.id, self.task, self.queue = job.id, job.task, job.queue
        self.unique = job.extras.unique
        """What it claims when it is added, and again when it is retried by hand; ``unique_key`` is what it holds."""
        self.unique_key = job.unique_key
        self.attempt = self.crashes = self.lease_no = 0
        self.worker: int | None = None
        self.started_at: datetime | None = None
        self.finished_at: datetime | None = None
        self.result_json: str | None = None
        self.error_type: str | None = None
        self.cancel_requested = False
        self.failures: list[tuple[int, int, str]] = []
        """(lease_no, attempt, type of the error) of each attempt that failed."""
        self.take_over(job)

    def take_over(self, job: Job[Any]) -> None:
        """Become, as far as that goes, the job that came to replace this one."""
        self.state, self.priority, self.args_json = job.state, job.priority, job.args_json
        self.max_attempts, self.created_at, self.run_at = job.max_attempts, job.created_at, job.run_at
        self.expires_at, self.deadline_at, self.result_ttl = job.expires_at, job.deadline_at, job.extras.result_ttl
        self.expires = None if job.expires_at is None else job.expires_at - job.created_at
        self.deadline = None if job.deadline_at is None else job.deadline_at - job.created_at

    @property
    def lease(self) -> LeaseName:
        """Names its latest claim."""
        return self.number, self.lease_no


class Model:
    """All jobs by id, in the order of adding, and the workers that are registered."""

    def __init__(self, now: datetime) -> None:
        self.now = now
        self.jobs: dict[str, ModelJob] = {}
        self.aliases: dict[str, str] = {}
        """Ids that were handed out for jobs which turned out to be there already, under another one."""
        self.workers: dict[int, set[LeaseName]] = {}
        """What each worker did not remember when it last renewed its lease, though it should hold it."""
        self.audit: dict[str, list[str]] = {}
        self.paused: set[str] = set()
        self.tallies: Counter[tuple[str, str, str]] = Counter()
        """How many tries ended, by queue, task and ending; and how many had waited."""
        self._numbers = itertools.count(1)

    # -- adding --------------------------------------------------------------------------------------------

    def add(self, jobs: Iterable[Job[Any]], *, refuses: bool = True) -> dict[str, str]:
        """Store all or none; return the id of the job that is there, for each that was not stored because of it."""
        before = {job.id: copy.copy(job) for job in self.jobs.values()}, dict(self.aliases)
        there: dict[str, str] = {}
        errors: list[type[DurableQError]] = []
        for job in jobs:
            try:
                there |= self._add(job, refuses)
            except Refused as refused:
                errors += refused.errors
        if errors:
            self.jobs, self.aliases = before
            raise Refused(*errors)
        return there

    def _add(self, job: Job[Any], refuses: bool) -> dict[str, str]:
        if (stored := self.jobs.get(job.id)) is not None:
            return self._add_again(job, stored, refuses)
        unique = job.extras.unique
        holder = None if unique is None else self.holder(unique.key)
        if unique is None or holder is None:
            self.jobs[job.id] = ModelJob(job, next(self._numbers))
            return {}
        if unique.on_conflict == "raise" and refuses:
            raise Refused(DuplicateJob)
        if unique.on_conflict == "replace" and holder.state in WAITING:
            holder.take_over(job)
        self.aliases.setdefault(job.id, holder.id)
        return {job.id: holder.id}

    def _add_again(self, job: Job[Any], stored: ModelJob, refuses: bool) -> dict[str, str]:
        is_same = job.args_json == stored.args_json
        if not job.extras.is_idempotent or (is_same and job.created_at == stored.created_at):
            return {}  # this very job, handed over twice
        if refuses and not is_same:
            raise Refused(IdempotencyConflict)
        return {job.id: job.id}

    def holder(self, key: str) -> ModelJob | None:
        """The one job that holds a unique key."""
        return next((job for job in self.jobs.values() if job.unique_key == key), None)

    # -- running -------------------------------------------------------------------------------------------

    def claim(
        self, worker: int, queues: Collection[str], tasks: Collection[str], limit: int, suspects: bool
    ) -> list[ModelJob]:
        """Give a worker jobs that are ready: the highest priority first, then the first added.

        Those that have crashed a process are given one at a time, and only when asked for.
        """
        if worker not in self.workers:
            return []
        ready = [job for job in self.jobs.values() if job.state is JobState.QUEUED]
        fitting = [job for job in ready if job.queue in {*queues} - self.paused and job.task in tasks]
        fitting.sort(key=lambda job: -job.priority)
        taken = [job for job in fitting if not job.crashes][:limit]
        taken += [job for job in fitting if job.crashes][: int(suspects)]
        for job in taken:
            job.attempt += 1
            job.lease_no += 1
            job.worker, job.started_at = worker, self.now
            self._enter(job, JobState.RUNNING)
        return taken

    def settle(self, settled: Sequence[tuple[LeaseName, Outcome]]) -> set[LeaseName]:
        """Write what became of leases; return those that did not hold: nothing comes of them."""
        lost: set[LeaseName] = set()
        follow_ups: list[Job[Any]] = []
        for lease, outcome in settled:
            job = self.claimed(lease)
            if job is None or job.state is not JobState.RUNNING:
                lost.add(lease)
                continue
            self._end_attempt(job, outcome)
            follow_ups += outcome.follow_ups if isinstance(outcome, Succeeded) else ()
        self.add(follow_ups, refuses=False)  # what is there already stands: nobody is left to mind
        return lost

    def complete(self, lease: LeaseName, outcome: Succeeded) -> None:
        """The same in a transaction of the task's own."""
        if self.settle([(lease, outcome)]):
            raise Refused(JobConflict)

    def claimed(self, lease: LeaseName) -> ModelJob | None:
        """The job of a lease, unless it was claimed again."""
        return next((job for job in self.jobs.values() if job.lease == lease), None)

    def held_by(self, worker: int) -> list[ModelJob]:
        return [job for job in self.jobs.values() if job.worker == worker]

    def _end_attempt(self, job: ModelJob, outcome: Outcome) -> None:
        """A job that was asked to end may succeed or die all the same, but it does not go back to waiting."""
        if (ending := ENDINGS.get(type(outcome))) is not None:
            self.tallies.update({(job.queue, job.task, ending): 1, (job.queue, job.task, "waited"): 1})
        if isinstance(outcome, Succeeded):
            job.result_json, job.error_type = outcome.result_json, None
        if isinstance(outcome, Retried | Dead | Cancelled):
            job.failures.append((job.lease_no, job.attempt, outcome.failure.type))
            job.error_type = outcome.failure.type
        if isinstance(outcome, Retried | Dead):
            job.crashes += outcome.crashed
        if isinstance(outcome, Snoozed | Released):
            job.attempt -= 1
        state = ENDS.get(type(outcome), JobState.QUEUED)
        if isinstance(outcome, Released | Retried):
            job.run_at = self.now
        if isinstance(outcome, Retried | Snoozed) and outcome.run_at is not None:
            job.run_at = to_datetime(outcome.run_at)
            state = JobState.SCHEDULED if job.run_at > self.now else JobState.QUEUED
        self._enter(job, JobState.CANCELLED if job.cancel_requested and state in WAITING else state)

    def _enter(self, job: ModelJob, state: JobState) -> None:
        """Change a job's state. It lets go of its unique key when that does not cover the new one."""
        job.state = state
        if state is not JobState.RUNNING:
            job.worker = None
        if state not in WAITING:
            job.expires_at = None  # it was started, or never will be
            if job.unique is not None and not job.unique.covers & COVERS[state]:
                job.unique_key = None
        if state in FINISHED:
            job.finished_at, job.deadline_at, job.cancel_requested = self.now, None, False

    # -- workers -------------------------------------------------------------------------------------------

    def renew(self, worker: int, remembered: Collection[LeaseName] | None) -> bool:
        """Prolong a worker's lease. What it did not remember twice in a row is handed back, uncounted.

        While a claim is under way nobody can say what it should remember: None.
        """
        if worker not in self.workers:
            return False
        missing = [job for job in self.held_by(worker) if remembered is not None and job.lease not in remembered]
        missing_before, self.workers[worker] = self.workers[worker], {job.lease for job in missing}
        for job in missing:
            if job.lease in missing_before:
                self._end_attempt(job, Released())
        return True

    def leave(self, worker: int) -> None:
        """A worker leaves in good order: what it holds is handed back, uncounted."""
        self.workers.pop(worker, None)
        for job in self.held_by(worker):
            self._end_attempt(job, Released())

    def bury(self, worker: int) -> None:
        """A worker is found dead: what it holds runs again, unless that was once too often."""
        self.workers.pop(worker)
        for job in self.held_by(worker):
            is_over = job.crashes + 1 >= MAX_CRASHES or job.attempt >= job.max_attempts
            self._end_attempt(job, Dead(DIED, crashed=True) if is_over else Retried(DIED, None, crashed=True))

    # -- time ----------------------------------------------------------------------------------------------

    def pass_time(self, duration: timedelta) -> None:
        self.now += duration
        self.promote()

    def promote(self) -> None:
        """Scheduled jobs become ready when they are due."""
        for job in self.jobs.values():
            if job.state is JobState.SCHEDULED and job.run_at <= self.now:
                self._enter(job, JobState.QUEUED)

    def overdue(self) -> dict[str, JobState]:
        """What becomes of jobs that nobody started, or finished, in time."""
        waiting = [job for job in self.jobs.values() if job.state in WAITING]
        expired = [job for job in waiting if job.expires_at and job.expires_at <= self.now]
        too_late = [job for job in waiting if job.deadline_at and job.deadline_at <= self.now]
        return {job.id: JobState.CANCELLED for job in expired} | {job.id: JobState.DEAD for job in too_late}

    def give_up_overdue(self) -> None:
        for job_id, state in self.overdue().items():
            job = self.jobs[job_id]
            job.error_type = "durableq.DeadlinePassed" if state is JobState.DEAD else "durableq.Expired"
            self._enter(job, state)

    def drop_results(self) -> int:
        """Forget return values past their time to live."""
        old = [job for job in self.jobs.values() if job.result_json is not None and self._is_stale(job)]
        for job in old:
            job.result_json = None
        return len(old)

    def _is_stale(self, job: ModelJob) -> bool:
        if job.result_ttl is None or job.finished_at is None:
            return False
        return job.finished_at + timedelta(microseconds=job.result_ttl) <= self.now

    def prune(self, state: JobState, before: datetime) -> int:
        """Forget jobs that finished in a state before that moment."""
        old = [job for job in self.jobs.values() if job.state is state and job.finished_at and job.finished_at < before]
        for job in old:
            self._forget(job)
        return len(old)

    # -- by hand -------------------------------------------------------------------------------------------

    def find(self, job_id: str) -> ModelJob | None:
        """A job by its id, or by one that was handed out in its stead."""
        return self.jobs.get(job_id) or self.jobs.get(self.aliases.get(job_id, ""))

    def cancel(self, job_id: str) -> ModelJob:
        """End a job that waits; ask for the end of one that runs."""
        job = self._require(job_id, WAITING | {JobState.RUNNING})
        if job.state is JobState.RUNNING:
            job.cancel_requested = True
        else:
            self._enter(job, JobState.CANCELLED)
        return self._audited(job, "cancel")

    def retry(self, job_id: str, args_json: str | None = None) -> ModelJob:
        """Queue a dead or cancelled job as new, with fresh deadlines; a scheduled one now."""
        job = self._require(job_id, RESTARTABLE | ({JobState.SCHEDULED} if args_json is None else set()))
        if job.state in RESTARTABLE:
            self._start_over(job, args_json)
        job.run_at = self.now
        self._enter(job, JobState.QUEUED)
        return self._audited(job, "retry" if args_json is None else "edit and retry")

    def _start_over(self, job: ModelJob, args_json: str | None) -> None:
        if self._has_rival(job):
            raise Refused(DuplicateJob)
        job.attempt = job.crashes = 0
        job.started_at = job.finished_at = job.result_json = job.error_type = None
        job.expires_at = None if job.expires is None else self.now + job.expires
        job.deadline_at = None if job.deadline is None else self.now + job.deadline
        job.unique_key = None if job.unique is None else job.unique.key
        job.args_json = job.args_json if args_json is None else args_json

    def _has_rival(self, job: ModelJob) -> bool:
        return job.unique is not None and self.holder(job.unique.key) not in (None, job)

    def retry_dead(self, limit: int) -> int:
        """Queue dead jobs as new, the first added first; one whose unique key another job holds stays dead."""
        retried = 0
        for job in [job for job in self.jobs.values() if job.state is JobState.DEAD]:
            if retried < limit and not self._has_rival(job):
                self.retry(job.id)
                retried += 1
        return retried

    def delete(self, job_id: str) -> None:
        """Forget a finished job."""
        self._forget(self._audited(self._require(job_id, FINISHED), "delete"))

    def _require(self, job_id: str, states: Collection[JobState]) -> ModelJob:
        job = self.find(job_id)
        if job is None:
            raise Refused(JobNotFound)
        if job.state not in states:
            raise Refused(JobConflict)
        return job

    def _forget(self, job: ModelJob) -> None:
        del self.jobs[job.id]
        self.aliases = {alias: job_id for alias, job_id in self.aliases.items() if job_id != job.id}

    def _audited(self, job: ModelJob, action: str) -> ModelJob:
        self.audit.setdefault(job.id, []).append(action)
        return job
