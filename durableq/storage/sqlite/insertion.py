"""Stores new jobs: which statements, in which order, and what they say about jobs that are there already.

Written as a *plan*: a generator that gives (SQL, values) and is sent the rows. So the same plan runs on the writer's
connection, and on a connection of the application, sync or async.
"""

import json
import sqlite3
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pydantic_core import to_json

from durableq.clock import from_datetime
from durableq.errors import DuplicateJob, IdempotencyConflict
from durableq.models import PLAIN, Job, OnConflict
from durableq.storage.protocol import Conflicts, Plan
from durableq.storage.sqlite import rows
from durableq.storage.sqlite.statements import SQL

T = TypeVar("T")


@dataclass(slots=True)
class Claim:
    """The part of a unique key, or of an idempotency key, in storing one job."""

    job: Job[Any]

    @property
    def on_conflict(self) -> OnConflict:
        return "return" if self.job.extras.unique is None else self.job.extras.unique.on_conflict


@dataclass(slots=True)
class Batch:
    """New jobs as the statements read them."""

    plain: str = "[]"
    special: str = "[]"
    claims: list[Claim] = field(default_factory=list)


def batch_of(jobs: Sequence[Job[Any]]) -> Batch:
    """Encode new jobs. Those that need more columns go by a statement of their own, so that plain ones stay cheap."""
    special = [job for job in jobs if job.extras is not PLAIN]
    if not special:
        return Batch(rows.insert_rows(jobs))
    plain = [job for job in jobs if job.extras is PLAIN]
    claims = [Claim(job) for job in special if job.extras.unique is not None or job.extras.is_idempotent]
    return Batch(rows.insert_rows(plain), rows.special_rows(special), claims)


def joined(batches: Iterable[str]) -> str:
    """Put JSON arrays together."""
    return f"[{','.join(one[1:-1] for one in batches if one != '[]')}]"


def insertion(plain: str, special: str, claims: Sequence[Claim], *, refuses: bool = True) -> Plan[Conflicts]:
    """Store jobs; return the id of the job that is there, for each that was not stored because of it.

    Raises `DuplicateJob` and `IdempotencyConflict`, with statements already done: roll back. When not ``refuses``,
    the job that is there stands, whatever was asked for.
    """
    if plain != "[]":
        yield SQL["insert_jobs"], {"jobs": plain}
    if special != "[]":
        yield SQL["insert_special_jobs"], {"jobs": special}
    if not claims:
        return {}
    by_id = {claim.job.id: claim for claim in claims}
    conflicts = yield from _unique_conflicts(by_id, refuses)
    repeated = yield from _repeated(by_id, refuses)
    return conflicts | repeated


def _unique_conflicts(claims: Mapping[str, Claim], refuses: bool) -> Plan[Conflicts]:
    wanted = [(job_id, one.job.extras.unique.key) for job_id, one in claims.items() if one.job.extras.unique]
    if not wanted:
        return {}
    found = yield SQL["unique_conflicts"], {"claims": json.dumps(wanted)}
    conflicts: Conflicts = dict(json.loads(found[0][0]))
    if not conflicts:
        return {}
    for job_id, holder in conflicts.items():
        unique = claims[job_id].job.extras.unique
        if refuses and unique is not None and unique.on_conflict == "raise":
            raise DuplicateJob(holder, unique.key)
    replacements = [
        (holder, rows.special_row(claims[job_id].job))
        for job_id, holder in conflicts.items()
        if claims[job_id].on_conflict == "replace"
    ]
    if replacements:
        yield SQL["replace_jobs"], {"replacements": to_json(replacements).decode()}
    yield SQL["insert_aliases"], {"aliases": json.dumps(list(conflicts.items()))}
    return conflicts


def _repeated(claims: Mapping[str, Claim], refuses: bool) -> Plan[Conflicts]:
    keyed = [
        (job_id, one.job.args_json, from_datetime(one.job.created_at))
        for job_id, one in claims.items()
        if one.job.extras.is_idempotent
    ]
    if not keyed:
        return {}
    found = yield SQL["repeated_jobs"], {"keyed": to_json(keyed).decode()}
    repeated = json.loads(found[0][0])
    for job_id, is_same in repeated:
        if refuses and not is_same:
            raise IdempotencyConflict(job_id)
    return {job_id: job_id for job_id, _ in repeated}


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
