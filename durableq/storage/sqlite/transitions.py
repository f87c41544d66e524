"""What people do to jobs by hand: retry, cancel, delete. Each with its audit row in the same transaction.

And what time does to them: expiry, deadlines, retention. Each changes exactly the rows that it chose, or stops the
queue: see `settling.exactly`.
"""

import contextlib
import json
import sqlite3
from typing import Any, Final, Protocol, TypeVar

from durableq.codec import checksum
from durableq.errors import DuplicateJob, JobConflict, JobNotFound
from durableq.models import CANCELLABLE, DELETABLE, EDITABLE, RESTARTABLE, Job, JobFilter, JobState, Lease, Overdue
from durableq.storage.protocol import DecideLate
from durableq.storage.sqlite import rows
from durableq.storage.sqlite.searching import matching
from durableq.storage.sqlite.settling import exactly, numbers_in
from durableq.storage.sqlite.statements import SQL

T_co = TypeVar("T_co", covariant=True)

_NO_JOB: Final = ""
_HOUR: Final = 3600
CONDENSED: Final = ((6 * _HOUR + 1800, 900), (25 * _HOUR, _HOUR))
"""Tallies that are so old, in seconds, are kept by so long a span: charts of that age have no finer steps."""
TALLIES_KEPT: Final = 8 * 24 * _HOUR


class Act(Protocol[T_co]):
    """What is done to a job."""

    def __call__(self, connection: sqlite3.Connection, job_id: str, *, now: int) -> T_co: ...


def retry(connection: sqlite3.Connection, job_id: str, *, now: int, who: str, args_json: str | None) -> Job[Any]:
    """dead | cancelled -> queued, as new; scheduled -> queued, now."""
    before = _require(connection, job_id, RESTARTABLE, "retry")
    if before.state is JobState.SCHEDULED and args_json is None:
        exactly(connection.execute(SQL["run_now"], {"id": before.id, "now": now}).rowcount, 1, "retrying a job")
    elif before.state is JobState.SCHEDULED:
        raise JobConflict(job_id, before.state, wanted=EDITABLE, action="edit and retry")
    else:
        digest = None if args_json is None else checksum(args_json)
        values = {"id": before.id, "now": now, "args": args_json, "checksum": digest}
        try:
            exactly(connection.execute(SQL["restart_job"], values).rowcount, 1, "retrying a job")
        except sqlite3.IntegrityError:
            raise _why_duplicate(connection, before.id) from None
    detail: dict[str, Any] = {"was": before.state, "attempt": before.attempt}
    if args_json is not None:
        detail |= {"args_before": _readable(before.args_json), "args_after": json.loads(args_json)}
    _audit(connection, now, who, "retry" if args_json is None else "edit and retry", before.id, detail)
    return _get(connection, before.id)


def to_each(connection: sqlite3.Connection, where: JobFilter, *, seqs: str, act: "Act[object]", now: int) -> int:
    """Do something to each of these jobs that still matches; return to how many it was done.

    One whose unique key another job holds stays as it is, and so does one that has ended meanwhile.
    """
    conditions, values = matching(where)
    sql = f"SELECT id FROM durableq_jobs WHERE seq IN (SELECT value FROM json_each(:seqs)){conditions} ORDER BY seq"
    done = 0
    for (job_id,) in connection.execute(sql, values | {"seqs": seqs}).fetchall():
        with contextlib.suppress(JobConflict):
            act(connection, job_id, now=now)
            done += 1
    return done


def cancel(connection: sqlite3.Connection, job_id: str, *, now: int, who: str) -> Job[Any]:
    """queued | scheduled | blocked -> cancelled; running: its worker shall end it."""
    before = _require(connection, job_id, CANCELLABLE, "cancel")
    if before.state is JobState.RUNNING:
        connection.execute(SQL["forget_requests"])
        asked = connection.execute(SQL["request_cancel"], {"id": before.id, "now": now}).rowcount
        exactly(asked, 1, "asking for the end of a job")
    else:
        cancelled = connection.execute(SQL["cancel_job"], {"id": before.id, "now": now}).rowcount
        exactly(cancelled, 1, "cancelling a job")
        connection.execute(SQL["note_end"], {"seqs": f"[{_seq(connection, before.id)}]"})
    _audit(connection, now, who, "cancel", before.id, {"was": before.state})
    return _get(connection, before.id)


def cancel_once(connection: sqlite3.Connection, job_id: str, *, now: int, who: str) -> None:
    """The same, but for a job whose end was asked for already. Raises `JobConflict`."""
    before = _require(connection, job_id, CANCELLABLE, "cancel")
    if before.cancel_requested:
        raise JobConflict(job_id, before.state, wanted=CANCELLABLE, action="cancel again")
    cancel(connection, job_id, now=now, who=who)


def delete(connection: sqlite3.Connection, job_id: str, *, now: int, who: str) -> None:
    """A finished job -> (nothing)."""
    before = _require(connection, job_id, DELETABLE, "delete")
    for statement in ("delete_attempts", "delete_logs", "delete_aliases"):
        connection.execute(SQL[statement], {"id": before.id})
    exactly(connection.execute(SQL["delete_job"], {"id": before.id}).rowcount, 1, "deleting a job")
    _audit(connection, now, who, "delete", before.id, {"was": before.state, "task": before.task})


def give_up_overdue(connection: sqlite3.Connection, decide: DecideLate, now: int, limit: int) -> Overdue:
    """blocked | scheduled | queued -> dead | cancelled, for those whose time is over."""
    found = connection.execute(SQL["overdue"], {"now": now, "limit": limit}).fetchall()
    decided = [(lease, decide(lease, now)) for lease in map(Lease._make, found)]
    late = [(lease, outcome) for lease, outcome in decided if outcome is not None]
    if late:
        values = {"outcomes": rows.outcomes_json(late, now), "now": now}
        exactly(connection.execute(SQL["settle_waiting"], values).rowcount, len(late), "ending jobs that come too late")
        connection.execute(SQL["note_end"], {"seqs": json.dumps([lease.seq for lease, _ in late])})
    return late


def drop_results(connection: sqlite3.Connection, now: int, limit: int) -> int:
    """Return values past their time to live -> (nothing)."""
    return connection.execute(SQL["drop_results"], {"now": now, "limit": limit}).rowcount


def prune(connection: sqlite3.Connection, state: JobState, before: int, limit: int) -> int:
    """Finished long ago -> (nothing), a bounded number at a time."""
    seqs = connection.execute(SQL["prunable"], {"state": state, "before": before, "limit": limit}).fetchone()[0]
    if seqs == "[]":
        return 0
    for statement in ("prune_attempts", "prune_logs", "prune_aliases"):
        connection.execute(SQL[statement], {"seqs": seqs})
    pruned = connection.execute(SQL["prune_jobs"], {"seqs": seqs}).rowcount
    exactly(pruned, numbers_in(seqs), "deleting old jobs")
    return pruned


def condense_tallies(connection: sqlite3.Connection, now: int) -> bool:
    """Tallies of longer ago -> fewer of them, an hour's worth at a time. Return whether more are left to do.

    ``now`` in seconds.
    """
    connection.execute(SQL["drop_tallies"], {"before": now - TALLIES_KEPT, "after": now + TALLIES_KEPT})
    for age, span in CONDENSED:
        values = {"before": (now - age) // span * span, "span": span}
        oldest = connection.execute(SQL["oldest_fine_tally"], values).fetchone()[0]
        if oldest is not None:
            for begin in range(oldest // span * span, min(oldest + _HOUR, values["before"]), span):
                connection.execute(SQL["condense_tallies"], {"begin": begin, "span": span})
                connection.execute(SQL["drop_condensed"], {"begin": begin, "span": span})
            return True
    return False


def pause(connection: sqlite3.Connection, *, queue: str, now: int, who: str) -> None:
    """A queue that runs -> paused."""
    if connection.execute(SQL["pause_queue"], {"queue": queue, "now": now, "who": who}).rowcount:
        _audit(connection, now, who, "pause", _NO_JOB, {"queue": queue})


def resume(connection: sqlite3.Connection, *, queue: str, now: int, who: str) -> bool:
    """A paused queue -> running. Return whether it was paused."""
    was_paused = connection.execute(SQL["resume_queue"], {"queue": queue}).rowcount > 0
    if was_paused:
        _audit(connection, now, who, "resume", _NO_JOB, {"queue": queue})
    return was_paused


def _require(connection: sqlite3.Connection, job_id: str, states: tuple[JobState, ...], action: str) -> Job[Any]:
    job = _get(connection, job_id)
    if job.state not in states:
        raise JobConflict(job_id, job.state, wanted=states, action=action)
    return job


def _get(connection: sqlite3.Connection, job_id: str) -> Job[Any]:
    row = connection.execute(f"{SQL['job_columns']} {SQL['by_id']}", {"id": job_id}).fetchone()
    if row is None:
        raise JobNotFound(job_id)
    return rows.job_from_row(row)


def _seq(connection: sqlite3.Connection, job_id: str) -> int:
    seq: int = connection.execute("SELECT seq FROM durableq_jobs WHERE id = :id", {"id": job_id}).fetchone()[0]
    return seq


def _why_duplicate(connection: sqlite3.Connection, job_id: str) -> DuplicateJob:
    holder, key = connection.execute(SQL["rival"], {"id": job_id}).fetchone()
    return DuplicateJob(holder, key)


def _readable(args_json: str) -> Any:
    """Damaged arguments are what an edit may be for: they are kept as the text they are."""
    try:
        return json.loads(args_json)
    except ValueError:
        return args_json


def _audit(connection: sqlite3.Connection, now: int, who: str, action: str, job_id: str, detail: object) -> None:
    values = {"now": now, "who": who, "action": action, "id": job_id, "detail": json.dumps(detail)}
    connection.execute(SQL["insert_audit"], values)
