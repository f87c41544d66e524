"""What people do to jobs by hand: retry, cancel, delete, prune. Each with its audit row in the same transaction."""

import json
import sqlite3
from typing import Any, Final

from durableq.clock import from_datetime
from durableq.codec import checksum
from durableq.errors import JobConflict, JobNotFound
from durableq.models import Job, JobFilter, JobState
from durableq.storage.sqlite import rows
from durableq.storage.sqlite.statements import SQL

_RESTARTABLE: Final = (JobState.DEAD, JobState.CANCELLED, JobState.SCHEDULED)
_CANCELLABLE: Final = (JobState.QUEUED, JobState.SCHEDULED, JobState.BLOCKED)
_DELETABLE: Final = (JobState.DEAD, JobState.CANCELLED, JobState.SUCCEEDED)


def retry(connection: sqlite3.Connection, job_id: str, *, now: int, who: str, args_json: str | None) -> Job[Any]:
    """dead | cancelled -> queued, as new; scheduled -> queued, now."""
    before = _require(connection, job_id, _RESTARTABLE, "retry")
    if before.state is JobState.SCHEDULED and args_json is None:
        connection.execute(SQL["run_now"], {"id": job_id, "now": now})
    elif before.state is JobState.SCHEDULED:
        raise JobConflict(job_id, before.state, wanted=_RESTARTABLE[:2], action="edit and retry")
    else:
        digest = None if args_json is None else checksum(args_json)
        values = {"id": job_id, "now": now, "args": args_json, "checksum": digest}
        connection.execute(SQL["restart_job"], values)
    detail: dict[str, Any] = {"was": before.state, "attempt": before.attempt}
    if args_json is not None:
        detail |= {"args_before": _readable(before.args_json), "args_after": json.loads(args_json)}
    _audit(connection, now, who, "retry" if args_json is None else "edit and retry", job_id, detail)
    return _get(connection, job_id)


def retry_matching(connection: sqlite3.Connection, where: JobFilter, *, now: int, who: str, limit: int) -> int:
    """dead -> queued for those that match, the oldest first."""
    conditions, values = filter_sql(where)
    sql = f"SELECT id FROM durableq_jobs WHERE state = 'dead'{conditions} ORDER BY seq LIMIT :limit"
    ids = [row[0] for row in connection.execute(sql, values | {"limit": limit}).fetchall()]
    for job_id in ids:
        retry(connection, job_id, now=now, who=who, args_json=None)
    return len(ids)


def cancel(connection: sqlite3.Connection, job_id: str, *, now: int, who: str) -> Job[Any]:
    """queued | scheduled | blocked -> cancelled."""
    before = _require(connection, job_id, _CANCELLABLE, "cancel")
    connection.execute(SQL["cancel_job"], {"id": job_id, "now": now})
    _audit(connection, now, who, "cancel", job_id, {"was": before.state})
    return _get(connection, job_id)


def delete(connection: sqlite3.Connection, job_id: str, *, now: int, who: str) -> None:
    """A finished job -> (nothing)."""
    before = _require(connection, job_id, _DELETABLE, "delete")
    connection.execute(SQL["delete_attempts"], {"id": job_id})
    connection.execute(SQL["delete_job"], {"id": job_id})
    _audit(connection, now, who, "delete", job_id, {"was": before.state, "task": before.task})


def prune(connection: sqlite3.Connection, state: JobState, before: int, limit: int) -> int:
    """Finished long ago -> (nothing), a bounded number at a time."""
    seqs = connection.execute(SQL["prunable"], {"state": state, "before": before, "limit": limit}).fetchone()[0]
    if seqs == "[]":
        return 0
    connection.execute(SQL["prune_attempts"], {"seqs": seqs})
    return connection.execute(SQL["prune_jobs"], {"seqs": seqs}).rowcount


def filter_sql(where: JobFilter) -> tuple[str, dict[str, Any]]:
    """Return a filter as conditions to append after a WHERE, and their values."""
    values = {
        "task": where.task,
        "queue": where.queue,
        "error_type": where.error_type,
    }
    bounds = {
        "created_at >= ": ("created_after", where.created_after),
        "created_at < ": ("created_before", where.created_before),
        "finished_at >= ": ("finished_after", where.finished_after),
        "finished_at < ": ("finished_before", where.finished_before),
    }
    given: dict[str, Any] = {name: value for name, value in values.items() if value is not None}
    conditions = [f"{name} = :{name}" for name in given]
    if where.state is not None:
        # Spelt out: SQLite uses a partial index only for a condition that it can read when it prepares.
        conditions.insert(0, f"state = '{JobState(where.state).value}'")
    for comparison, (name, moment) in bounds.items():
        if moment is not None:
            conditions.append(f"{comparison}:{name}")
            given[name] = from_datetime(moment)
    return "".join(f" AND {condition}" for condition in conditions), given


def _require(connection: sqlite3.Connection, job_id: str, states: tuple[JobState, ...], action: str) -> Job[Any]:
    job = _get(connection, job_id)
    if job.state not in states:
        raise JobConflict(job_id, job.state, wanted=states, action=action)
    return job


def _get(connection: sqlite3.Connection, job_id: str) -> Job[Any]:
    row = connection.execute(f"{SQL['job_columns']} WHERE id = :id", {"id": job_id}).fetchone()
    if row is None:
        raise JobNotFound(job_id)
    return rows.job_from_row(row)


def _readable(args_json: str) -> Any:
    """Damaged arguments are what an edit may be for: they are kept as the text they are."""
    try:
        return json.loads(args_json)
    except ValueError:
        return args_json


def _audit(connection: sqlite3.Connection, now: int, who: str, action: str, job_id: str, detail: object) -> None:
    values = {"now": now, "who": who, "action": action, "id": job_id, "detail": json.dumps(detail)}
    connection.execute(SQL["insert_audit"], values)
