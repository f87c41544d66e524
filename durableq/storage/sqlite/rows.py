"""Models to rows and back: the one place that knows the order of columns and how instants are stored."""

import json
import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any

from pydantic_core import from_json, to_json

from durableq.clock import from_datetime, to_datetime
from durableq.codec import checksum
from durableq.models import (
    PLAIN,
    Attempt,
    AuditEntry,
    Cancelled,
    Dead,
    Job,
    JobError,
    JobExtras,
    JobState,
    Lease,
    LeaseKey,
    LogLine,
    Outcome,
    Progress,
    Released,
    Retried,
    Snoozed,
    Succeeded,
    UniqueClaim,
)


def special_rows(jobs: Iterable[Job[Any]]) -> str:
    """Return new jobs as what ``insert_special_jobs`` reads."""
    return to_json([special_row(job) for job in jobs]).decode()


def special_row(job: Job[Any]) -> tuple[Any, ...]:
    extras = job.extras
    key, covers = (None, None) if extras.unique is None else extras.unique[:2]
    return (
        *insert_row(job),
        extras.expires_at,
        extras.deadline_at,
        key,
        covers,
        extras.result_ttl,
        to_json(extras.tags).decode() if extras.tags else None,
        _settings_json(job),
    )


def _settings_json(job: Job[Any]) -> str | None:
    """What only the worker reads, and what a job that starts over needs to know again."""
    extras, created_at = job.extras, from_datetime(job.created_at)
    settings = {
        "timeout": extras.timeout,
        "expires": None if extras.expires_at is None else extras.expires_at - created_at,
        "deadline": None if extras.deadline_at is None else extras.deadline_at - created_at,
        "unique": None if extras.unique is None else extras.unique.key,
        "tags": extras.tags or None,
        "headers": extras.headers or None,
        "retry": extras.retry,
        "result_ttl": extras.result_ttl,
    }
    given = {name: value for name, value in settings.items() if value is not None}
    return to_json(given).decode() if given else None


def insert_row(job: Job[Any]) -> tuple[Any, ...]:
    """Return a new job in the columns that every job has."""
    created_at = from_datetime(job.created_at)
    return (
        job.id,
        job.task,
        job.queue,
        job.priority,
        job.state.value,  # as it is: the binding of a subclass of str looks for adapters first
        job.args_json,
        checksum(job.args_json),
        job.max_attempts,
        created_at,
        created_at if job.run_at is job.created_at else from_datetime(job.run_at),
    )


def is_ready_again(outcome: Outcome, now: int) -> bool:
    """Whether the job may run again at once."""
    if isinstance(outcome, Retried):
        return outcome.run_at is None or outcome.run_at <= now
    if isinstance(outcome, Snoozed):
        return outcome.run_at <= now
    return isinstance(outcome, Released)


def next_run(outcome: Outcome) -> int | None:
    """When a job that goes back to waiting is due; None for at once, or never."""
    return outcome.run_at if isinstance(outcome, Retried | Snoozed) else None


def is_final(outcome: Outcome) -> bool:
    return isinstance(outcome, Succeeded | Dead | Cancelled)


def outcome_row(lease: Lease, outcome: Outcome, now: int) -> tuple[Any, ...]:
    """Return what ``settle`` reads: seq, lease_no, state, handed_back, crashed, run_at, finished_at, result, error."""
    key = (lease.seq, lease.lease_no)
    match outcome:
        case Succeeded():
            return (*key, JobState.SUCCEEDED, 0, 0, None, now, outcome.result_json, None, None)
        case Released():
            return (*key, JobState.QUEUED, 1, 0, None, None, None, None, None)
        case Retried(failure, run_at, crashed):
            state = JobState.QUEUED if is_ready_again(outcome, now) else JobState.SCHEDULED
            return (*key, state, 0, int(crashed), run_at, None, None, failure.type, failure.message)
        case Dead(failure, crashed):
            return (*key, JobState.DEAD, 0, int(crashed), None, now, None, failure.type, failure.message)
        case Cancelled(failure):
            return (*key, JobState.CANCELLED, 0, 0, None, now, None, failure.type, failure.message)
        case Snoozed(run_at):
            state = JobState.SCHEDULED if run_at > now else JobState.QUEUED
            return (*key, state, 1, 0, run_at, None, None, None, None)


def outcomes_json(settled: Sequence[tuple[Lease, Outcome]], now: int) -> str:
    return to_json([outcome_row(lease, outcome, now) for lease, outcome in settled]).decode()


def attempts_json(settled: Sequence[tuple[Lease, Outcome]]) -> str | None:
    """Return what ``insert_attempts`` reads for the failures among these, or None when there are none."""
    failed = [
        (lease.seq, lease.lease_no, outcome.failure.type, outcome.failure.message, outcome.failure.traceback)
        for lease, outcome in settled
        if isinstance(outcome, Retried | Dead | Cancelled)
    ]
    return to_json(failed).decode() if failed else None


def leases_from_json(text: str) -> list[Lease]:
    return [Lease._make(row) for row in from_json(text)]


def job_from_row(row: Sequence[Any]) -> Job[Any]:
    """Build a job from the columns of ``job_columns``."""
    return Job(
        id=row[0],
        task=row[1],
        queue=row[2],
        priority=row[3],
        state=JobState(row[4]),
        args_json=row[5],
        max_attempts=row[6],
        created_at=to_datetime(row[7]),
        run_at=to_datetime(row[8]),
        attempt=row[9],
        crashes=row[10],
        started_at=None if row[11] is None else to_datetime(row[11]),
        finished_at=None if row[12] is None else to_datetime(row[12]),
        result_json=row[13],
        error=None if row[14] is None else JobError(row[14], row[15] or ""),
        extras=PLAIN if _is_plain(row) else _extras_from_row(row),
    )


def _is_plain(row: Sequence[Any]) -> bool:
    return all(value is None for value in row[16:25])


def _extras_from_row(row: Sequence[Any]) -> JobExtras:
    expires_at, deadline_at, key, covers, result_ttl, tags, settings_json, progress, cancel_requested_at = row[16:25]
    settings = {} if settings_json is None else from_json(settings_json)
    return JobExtras(
        expires_at=expires_at,
        deadline_at=deadline_at,
        timeout=settings.get("timeout"),
        result_ttl=result_ttl,
        unique=None if key is None else UniqueClaim(key, covers, "return"),
        tags=() if tags is None else tuple(from_json(tags)),
        headers=settings.get("headers", {}),
        retry=settings.get("retry"),
        progress=None if progress is None else Progress(*from_json(progress)),
        cancel_requested=cancel_requested_at is not None,
    )


def attempt_from_row(row: Sequence[Any]) -> Attempt:
    return Attempt(
        lease_no=row[0],
        attempt=row[1],
        worker_id=row[2],
        started_at=to_datetime(row[3]),
        finished_at=to_datetime(row[4]),
        error_type=row[5],
        error_message=row[6],
        traceback=row[7],
    )


def log_from_row(row: Sequence[Any]) -> LogLine:
    return LogLine(lease_no=row[0], at=to_datetime(row[1]), message=row[2])


def progress_json(progress: Sequence[tuple[LeaseKey, Progress]]) -> str:
    """Return what ``write_progress`` reads."""
    return to_json([(*key, to_json(one).decode()) for key, one in progress]).decode()


def logs_json(logs: Sequence[tuple[LeaseKey, int, int, str]]) -> str:
    """Return what ``insert_logs`` reads, from (lease, number of the line, instant, message)."""
    return to_json([(*key, no, at, message) for key, no, at, message in logs]).decode()


def audit_from_row(row: Sequence[Any]) -> AuditEntry:
    return AuditEntry(at=to_datetime(row[0]), who=row[1], action=row[2], job_id=row[3], detail=json.loads(row[4]))


def leases_of_worker(connection: sqlite3.Connection, sql: str, worker_id: int) -> list[Lease]:
    return [Lease._make(row) for row in connection.execute(sql, {"worker_id": worker_id}).fetchall()]
