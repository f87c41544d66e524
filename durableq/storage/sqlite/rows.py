"""Models to rows and back: the one place that knows the order of columns and how instants are stored."""

import json
import sqlite3
from collections.abc import Sequence
from typing import Any

from pydantic_core import from_json, to_json

from durableq.clock import from_datetime, to_datetime
from durableq.codec import checksum
from durableq.models import (
    Attempt,
    AuditEntry,
    Dead,
    Job,
    JobError,
    JobState,
    Lease,
    Outcome,
    Released,
    Retry,
    Succeeded,
)


def insert_rows(jobs: Sequence[Job[Any]]) -> str:
    """Return new jobs as what ``insert_jobs`` reads: a JSON array of arrays."""
    return to_json([_insert_row(job) for job in jobs]).decode()


def _insert_row(job: Job[Any]) -> tuple[Any, ...]:
    created_at = from_datetime(job.created_at)
    return (
        job.id,
        job.task,
        job.queue,
        job.priority,
        job.state,
        job.args_json,
        checksum(job.args_json),
        job.max_attempts,
        created_at,
        created_at if job.run_at is job.created_at else from_datetime(job.run_at),
    )


def is_ready_again(outcome: Outcome, now: int) -> bool:
    """Whether the job may run again at once."""
    if isinstance(outcome, Retry):
        return outcome.run_at is None or outcome.run_at <= now
    return isinstance(outcome, Released)


def outcome_row(lease: Lease, outcome: Outcome, now: int) -> tuple[Any, ...]:
    """Return what ``settle`` reads: seq, lease_no, state, handed_back, crashed, run_at, finished_at, result, error."""
    key = (lease.seq, lease.lease_no)
    match outcome:
        case Succeeded(result_json):
            return (*key, JobState.SUCCEEDED, 0, 0, None, now, result_json, None, None)
        case Released():
            return (*key, JobState.QUEUED, 1, 0, None, None, None, None, None)
        case Retry(failure, run_at, crashed):
            state = JobState.QUEUED if is_ready_again(outcome, now) else JobState.SCHEDULED
            return (*key, state, 0, int(crashed), run_at, None, None, failure.type, failure.message)
        case Dead(failure, crashed):
            return (*key, JobState.DEAD, 0, int(crashed), None, now, None, failure.type, failure.message)


def outcomes_json(settled: Sequence[tuple[Lease, Outcome]], now: int) -> str:
    return to_json([outcome_row(lease, outcome, now) for lease, outcome in settled]).decode()


def attempts_json(settled: Sequence[tuple[Lease, Outcome]]) -> str | None:
    """Return what ``insert_attempts`` reads for the failures among these, or None when there are none."""
    failed = [
        (lease.seq, lease.lease_no, outcome.failure.type, outcome.failure.message, outcome.failure.traceback)
        for lease, outcome in settled
        if isinstance(outcome, Retry | Dead)
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


def audit_from_row(row: Sequence[Any]) -> AuditEntry:
    return AuditEntry(at=to_datetime(row[0]), who=row[1], action=row[2], job_id=row[3], detail=json.loads(row[4]))


def leases_of_worker(connection: sqlite3.Connection, sql: str, worker_id: int) -> list[Lease]:
    return [Lease._make(row) for row in connection.execute(sql, {"worker_id": worker_id}).fetchall()]
