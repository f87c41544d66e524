"""Models to rows and back: the one place that knows the order of columns and how instants are stored."""

import sqlite3
from collections.abc import Iterable, Sequence
from datetime import datetime
from math import isfinite
from typing import Any, Final, TypeVar

from pydantic_core import from_json, to_json

from durableq.clock import EPOCH, from_datetime, to_datetime
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

T = TypeVar("T")

_SAYABLE: Final = range(-62_000_000_000_000_000, 250_000_000_000_000_000)
"""Microseconds from 1970 to about the first and the last year that `datetime` knows."""


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
            return (*key, JobState.QUEUED, 1, 0, now, None, None, None, None)
        case Retried(failure, run_at, crashed):
            state = JobState.QUEUED if is_ready_again(outcome, now) else JobState.SCHEDULED
            due = now if run_at is None else run_at  # it waits from now on, not since it was first due
            return (*key, state, 0, int(crashed), due, None, None, failure.type, failure.message)
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


# -- rows to models ------------------------------------------------------------------------------------------
# A damaged value is read as none: a job has to be seen, and can be deleted, because it is damaged.


def job_from_row(row: Sequence[Any]) -> Job[Any]:
    """Build a job from the columns of ``job_columns``."""
    return Job(
        id=_text(row[0]),
        task=_text(row[1]),
        queue=_text(row[2]),
        priority=_number(row[3]),
        state=JobState(row[4]),
        args_json=_text(row[5]),
        max_attempts=_number(row[6]),
        created_at=instant(row[7]) or EPOCH,
        run_at=instant(row[8]) or EPOCH,
        attempt=_number(row[9]),
        crashes=_number(row[10]),
        started_at=instant(row[11]),
        finished_at=instant(row[12]),
        result_json=None if row[13] is None else _text(row[13]),
        error=None if row[14] is None else JobError(_text(row[14]), _text(row[15] or "")),
        extras=PLAIN if _is_plain(row) else _extras_from_row(row),
    )


def _is_plain(row: Sequence[Any]) -> bool:
    return all(value is None for value in row[16:25])


def _extras_from_row(row: Sequence[Any]) -> JobExtras:
    expires_at, deadline_at, key, covers, result_ttl, tags, settings_json, progress, cancel_requested_at = row[16:25]
    settings = _read(settings_json, dict) or {}
    headers = settings.get("headers")
    return JobExtras(
        expires_at=_micros(expires_at),
        deadline_at=_micros(deadline_at),
        timeout=_micros(settings.get("timeout")),
        result_ttl=_micros(result_ttl),
        unique=None if key is None else UniqueClaim(_text(key), _number(covers), "return"),
        tags=tuple(map(_text, _read(tags, list) or ())),
        headers={_text(name): _text(value) for name, value in headers.items()} if isinstance(headers, dict) else {},
        retry=None if settings.get("retry") is None else _text(settings["retry"]),
        progress=_progress(_read(progress, list)),
        cancel_requested=cancel_requested_at is not None,
    )


def attempt_from_row(row: Sequence[Any]) -> Attempt:
    return Attempt(
        lease_no=row[0],
        attempt=_number(row[1]),
        worker_id=_number(row[2]),
        started_at=instant(row[3]) or EPOCH,
        finished_at=instant(row[4]) or EPOCH,
        error_type=_text(row[5]),
        error_message=_text(row[6]),
        traceback=_text(row[7]),
    )


def log_from_row(row: Sequence[Any]) -> LogLine:
    return LogLine(lease_no=row[0], at=instant(row[1]) or EPOCH, message=_text(row[2]))


def audit_from_row(row: Sequence[Any]) -> AuditEntry:
    return AuditEntry(
        at=instant(row[0]) or EPOCH,
        who=_text(row[1]),
        action=_text(row[2]),
        job_id=_text(row[3]),
        detail=_read(row[4], dict) or {},
    )


def _text(value: Any) -> str:
    return value if isinstance(value, str) else str(value)


def _number(value: Any) -> int:
    return value if isinstance(value, int) else 0


def _micros(value: Any) -> int | None:
    """An instant or a duration that `datetime` and `timedelta` can say."""
    return value if isinstance(value, int) and value in _SAYABLE else None


def instant(value: Any) -> datetime | None:
    """Return a stored instant; None for none, and for what is no moment that `datetime` knows."""
    micros = _micros(value)
    return None if micros is None else to_datetime(micros)


def _read(text: Any, kind: type[T]) -> T | None:
    """A JSON value of this kind, or None."""
    if text is None:
        return None
    try:
        value = from_json(text)
    except (ValueError, TypeError):
        return None
    return value if isinstance(value, kind) else None


def _progress(values: list[Any] | None) -> Progress | None:
    match values:
        case [int() | float() as done, int() | float() | None as total, str() | None as message]:
            is_sayable = all(number is None or isfinite(number) for number in (done, total))
            return Progress(done, total, message) if is_sayable else None
    return None


# -- models to rows, and what running jobs say ---------------------------------------------------------------


def progress_json(progress: Sequence[tuple[LeaseKey, Progress]]) -> str:
    """Return what ``write_progress`` reads."""
    return to_json([(*key, to_json(one).decode()) for key, one in progress]).decode()


def logs_json(logs: Sequence[tuple[LeaseKey, int, int, str]]) -> str:
    """Return what ``insert_logs`` reads, from (lease, number of the line, instant, message)."""
    return to_json([(*key, no, at, message) for key, no, at, message in logs]).decode()


def leases_of_worker(connection: sqlite3.Connection, sql: str, worker_id: int) -> list[Lease]:
    return [Lease._make(row) for row in connection.execute(sql, {"worker_id": worker_id}).fetchall()]
