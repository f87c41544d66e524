"""Stores new jobs: which statements, in which order, and what they say about jobs that are there already.

Written as a *plan*: a generator that gives (SQL, values) and is sent the rows. So the same plan runs on the writer's
connection, and on a connection of the application, sync or async.
"""

import json
import sqlite3
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any, TypeVar

from pydantic_core import to_json

from durableq.clock import from_datetime
from durableq.errors import DuplicateJob, IdempotencyConflict, NotStored
from durableq.models import PLAIN, Job
from durableq.storage.protocol import Conflicts, Plan
from durableq.storage.sqlite import rows
from durableq.storage.sqlite.statements import INSERTED_AT_ONCE, SQL, insert_statement

T = TypeVar("T")


@dataclass(slots=True)
class Batch:
    """New jobs as the statements read them."""

    plain: list[tuple[Any, ...]] = field(default_factory=list)
    """Those that need no more columns than every job has, as rows of them."""
    special: str = ""
    """The others, as a JSON array of arrays; empty for none."""
    keyed: list[Job[Any]] = field(default_factory=list)
    first_limit: int | None = None
    """The earliest moment at which one of them expires, or should be finished."""


def batch_of(jobs: Sequence[Job[Any]]) -> Batch:
    """Encode new jobs. Those that need more columns go by a statement of their own, so that plain ones stay cheap."""
    plain = [rows.insert_row(job) for job in jobs if job.extras is PLAIN]
    if len(plain) == len(jobs):
        return Batch(plain)
    special = [job for job in jobs if job.extras is not PLAIN]
    keyed = [job for job in special if job.extras.unique is not None or job.extras.is_idempotent]
    limits = (limit for job in special for limit in (job.extras.expires_at, job.extras.deadline_at))
    return Batch(plain, rows.special_rows(special), keyed, min(filter(None, limits), default=None))


def joined(batches: Sequence[Batch]) -> Batch:
    """Put batches together."""
    if len(batches) == 1:
        return batches[0]
    special = ",".join(batch.special[1:-1] for batch in batches if batch.special)
    return Batch(
        [row for batch in batches for row in batch.plain],
        special and f"[{special}]",
        [job for batch in batches for job in batch.keyed],
    )


def store(connection: sqlite3.Connection, batch: Batch, *, refuses: bool) -> Conflicts:
    """Store jobs on the writer's connection. As `insertion`; raises `NotStored` too, for what SQLite cannot take."""
    for start in range(0, len(batch.plain), INSERTED_AT_ONCE):
        some = batch.plain[start : start + INSERTED_AT_ONCE]
        try:
            connection.execute(insert_statement(len(some)), list(chain.from_iterable(some)))
        except (UnicodeEncodeError, OverflowError) as error:
            raise NotStored(f"the jobs cannot be encoded ({error!r}); nothing was stored") from error
    return carry_out(connection, _rest_of(batch, refuses)) if batch.special else {}


def insertion(batch: Batch, *, refuses: bool = True) -> Plan[Conflicts]:
    """Store jobs; return the id of the job that is there, for each that was not stored because of it.

    Raises `DuplicateJob` and `IdempotencyConflict`, with statements already done: roll back. When not ``refuses``,
    the job that is there stands, whatever was asked for.
    """
    if batch.plain:
        yield SQL["insert_jobs"], {"jobs": to_json(batch.plain).decode()}
    return (yield from _rest_of(batch, refuses))


def _rest_of(batch: Batch, refuses: bool) -> Plan[Conflicts]:
    if batch.special:
        yield SQL["insert_special_jobs"], {"jobs": batch.special}
    if not batch.keyed:
        return {}
    conflicts = yield from _unique_conflicts(batch.keyed, refuses)
    repeated = yield from _repeated(batch.keyed, refuses)
    return conflicts | repeated


def _unique_conflicts(keyed: Sequence[Job[Any]], refuses: bool) -> Plan[Conflicts]:
    wanted = {job.id: (job, job.extras.unique) for job in keyed if job.extras.unique is not None}
    if not wanted:
        return {}
    keys = [(job_id, unique.key) for job_id, (_, unique) in wanted.items()]
    found = yield SQL["unique_conflicts"], {"claims": json.dumps(keys)}
    conflicts: Conflicts = dict(json.loads(found[0][0]))
    if not conflicts:
        return {}
    for job_id, holder in conflicts.items():
        if refuses and wanted[job_id][1].on_conflict == "raise":
            raise DuplicateJob(holder, wanted[job_id][1].key)
    # By holder, in the order of adding: of several that replace the same job, the last one counts.
    replacements = {
        conflicts[job_id]: rows.special_row(_moved(job, conflicts[job_id]))
        for job_id, (job, unique) in wanted.items()
        if job_id in conflicts and unique.on_conflict == "replace"
    }
    if replacements:
        yield SQL["replace_jobs"], {"replacements": to_json(list(replacements.items())).decode()}
    yield SQL["insert_aliases"], {"aliases": json.dumps(list(conflicts.items()))}
    return conflicts


def _repeated(keyed: Sequence[Job[Any]], refuses: bool) -> Plan[Conflicts]:
    """Look at every single one: jobs of one key have one id, but they need not have the same arguments."""
    jobs = [job for job in keyed if job.extras.is_idempotent]
    if not jobs:
        return {}
    asked = [(job.id, job.args_json, from_datetime(job.created_at)) for job in jobs]
    found = yield SQL["repeated_jobs"], {"keyed": to_json(asked).decode()}
    repeated = json.loads(found[0][0])
    for job_id, number, other_args in repeated:
        if refuses and other_args is not None and not _is_same(jobs[number], other_args):
            raise IdempotencyConflict(job_id)
    return {job_id: job_id for job_id, _, _ in repeated}


def _moved(job: Job[Any], holder: str) -> Job[Any]:
    """The job whose arguments another row shall take over."""
    return replace(job, args_json=job.extras.moved_args(job.args_json, job.task, job.id, holder))


def _is_same(job: Job[Any], stored: str) -> bool:
    """Whether arguments that are stored otherwise are the same: in clear, or encrypted with another key."""
    return job.extras.moved_args(stored, job.task, job.id, job.id) == job.args_json


def naming(jobs: Sequence[Job[Any]], schema_of: Callable[[str], str | None]) -> Plan[None]:
    """Make the names of queues and tasks known, whoever knows them already."""
    yield SQL["insert_queue_names"], {"names": json.dumps(sorted({job.queue for job in jobs}))}
    described = [[name, schema_of(name)] for name in sorted({job.task for job in jobs})]
    yield SQL["insert_task_names"], {"names": json.dumps(described)}


def carry_out(connection: sqlite3.Connection, plan: Generator[tuple[str, Mapping[str, Any]], Any, T]) -> T:
    """Run a plan on a connection."""
    try:
        sql, values = next(plan)
        while True:
            sql, values = plan.send(connection.execute(sql, values).fetchall())
    except StopIteration as end:
        result: T = end.value
        return result
