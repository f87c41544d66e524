"""`Operations`: what people and their tools look at in a queue, and do to it by hand. The other half of `DurableQ`.

What is done is audited under ``who``, in the same transaction. Looking never writes, and reads a bounded stretch of
the database where it is told to: a page of it is answered soon, however many jobs there are.
"""

import builtins
import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, Final, TypeVar

from durableq.checking import encode_by_schema
from durableq.clock import Clock, to_datetime
from durableq.encryption import KEY_MISSING, CannotOpen, KeyRing, Rotation, is_sealed, opened, rotate, without_a_ring
from durableq.errors import ConfigurationError, JobNotFound
from durableq.history import History, SummedBy, history_of, steps_of
from durableq.life import Life
from durableq.models import EDITED, LARGEST_NUMBER, Attempt, AuditEntry, Job, JobFilter, JobState, LogLine, Page
from durableq.registry import Registry
from durableq.reports import AuditPage, Count, DeadLetterReport, QueueReport, TaskReport, WorkerReport
from durableq.settings import QueueOptions
from durableq.storage.protocol import Storage

R = TypeVar("R")

DEAD_LOOKED_AT: Final = 10_000
"""Of so many dead jobs, the latest, kinds of failure are told apart."""
QUEUED_COUNTED: Final = 10_000
"""Of each queue, so many waiting jobs are counted."""
_WAYS: Final[tuple[tuple[SummedBy, ...], ...]] = (("step",), ("queue", "task"))
"""How tallies are summed up for a history."""


class Operations:
    """Looking at jobs, queues and workers, and mending them. `DurableQ` is one; it is not made by itself."""

    settings: QueueOptions
    _clock: Clock
    _keys: KeyRing | None
    _registry: Registry
    _life: Life

    def now(self) -> datetime:
        """Return this moment in UTC, by the clock that the times of jobs are of."""
        return to_datetime(self._clock.wall())

    # -- looking at jobs -----------------------------------------------------------------------------------

    async def list(
        self,
        where: JobFilter | None = None,
        *,
        cursor: int | None = None,
        limit: int = 100,
        look_at: int | None = None,
    ) -> Page:
        """Return jobs that match, newest first, and the cursor of the next page. What is encrypted stays so.

        ``look_at`` bounds how many jobs are compared with what no index answers: the page may then be
        ``is_cut_short``, and even empty, though more match further back. By default all are. Raises
        `ConfigurationError` for a ``limit`` or ``look_at`` of less than 1, and for numbers too large to be stored.
        """
        _require(1, limit=limit, look_at=look_at)
        _require(0, cursor=cursor)
        return await self._storage_here().find(where or JobFilter(), cursor=cursor, limit=limit, look_at=look_at)

    async def count(self, where: JobFilter, *, look_at: int) -> Count:
        """Return how many of the newest ``look_at`` jobs match; those of the state, when one is given.

        Raises `ConfigurationError` for a ``look_at`` of less than 1.
        """
        _require(1, look_at=look_at)
        return await self._storage_here().count(where, look_at=look_at)

    async def counts(self, *, at_most: int | None = None) -> dict[JobState, int]:
        """Return how many jobs are in each state. ``at_most`` ends the counting of each state there.

        Raises `ConfigurationError` for an ``at_most`` of less than 1.
        """
        _require(1, at_most=at_most)
        return await self._storage_here().counts(at_most)

    async def attempts(self, job_or_id: Job[Any] | str) -> builtins.list[Attempt]:
        """Return the tries of a job that did not succeed, oldest first, with their tracebacks; of no job, none."""
        return await self._storage_here().attempts(id_of(job_or_id))

    async def logs(self, job_or_id: Job[Any] | str, *, skip: int = 0) -> builtins.list[LogLine]:
        """Return what a job said by ``current_job().log``, oldest first, without the first ``skip`` lines.

        Raises `ConfigurationError` for a ``skip`` of less than 0.
        """
        _require(0, skip=skip)
        return await self._storage_here().logs(id_of(job_or_id), skip=skip)

    async def dead_letters(self) -> DeadLetterReport:
        """Return the dead jobs by task and kind of error, the most numerous first: of the latest 10,000."""
        return await self._storage_here().dead_letters(look_at=DEAD_LOOKED_AT)

    async def audit_trail(self, job_or_id: Job[Any] | str) -> builtins.list[AuditEntry]:
        """Return what people did to a job, oldest first. Arguments that no key here opens stay as they are stored."""
        job_id = id_of(job_or_id)
        entries = await self._storage_here().audit_trail(job_id)
        if self._keys is None or not any(name in entry.detail for entry in entries for name in EDITED):
            return entries
        job = await self._storage_here().get(job_id)
        return entries if job is None else [_opened_entry(entry, job.task, self._keys) for entry in entries]

    # -- looking at the rest -------------------------------------------------------------------------------

    async def queues(self) -> builtins.list[QueueReport]:
        """Return every queue that was ever used, by name. Waiting jobs are counted up to 10,000 each."""
        return await self._storage_here().queues(at_most=QUEUED_COUNTED)

    async def tasks(self) -> builtins.list[TaskReport]:
        """Return every task of which a job was ever stored, by name, whether this app knows it or not."""
        return await self._storage_here().tasks()

    async def workers(self) -> builtins.list[WorkerReport]:
        """Return the processes that work on the database, the longest running first."""
        return await self._storage_here().workers()

    async def history(self, window: timedelta, *, queue: str | None = None, task: str | None = None) -> History:
        """Return how many tries ended lately, how, and how long they waited and ran; at most 7 days of it.

        Of one ``queue`` or ``task``, when given. Counted in the transactions that settle the jobs: nothing is missing
        after a restart. Tries handed back at a shutdown or snoozed are not counted. Raises `ConfigurationError` for a
        longer ``window``.
        """
        until = self.now()
        starts = steps_of(until, window)
        # Summed up by the database: there may be a hundred tallies for each that is left.
        by_step, by_name = await self._storage_here().tallies(starts, ways=_WAYS, queue=queue, task=task)
        return history_of(by_step, until, window, by_name=by_name)

    async def audit(self, *, cursor: int | None = None, limit: int = 100) -> AuditPage:
        """Return what people did to any job or queue, the latest first. A ``limit`` is 1 or more."""
        _require(1, limit=limit)
        _require(0, cursor=cursor)
        return await self._storage_here().audit(cursor=cursor, limit=limit)

    # -- by hand -------------------------------------------------------------------------------------------

    async def retry(
        self, job_or_id: Job[Any] | str, *, args: Mapping[str, Any] | None = None, who: str = "application"
    ) -> Job[Any]:
        """Queue a dead or cancelled job as new: attempt 0, history kept. A scheduled one runs now.

        ``args`` replaces the arguments, by name, checked against the task's signature; where this app does not know
        the task, against the JSON schema that another app has stored (extra ``dashboard``). The change is audited
        under ``who``. Raises `JobNotFound`, `JobConflict`, `InvalidArguments`, and `ConfigurationError` when nobody
        can check the arguments, or when the stored ones are encrypted with a key that is not here: the new ones would
        be stored in clear, or under a key that the job's worker may not have.
        """
        args_json = None
        if args is not None:
            before = await self._stored(job_or_id)
            args_json = await self._as_edited(before, args)
            if self._keys is not None:
                args_json = self._keys.seal(args_json, before.id, before.task, "args")
        job = await self._storage_here().retry(id_of(job_or_id), who=who, args_json=args_json)
        return opened(job, self._keys)

    async def check_edit(self, job_or_id: Job[Any] | str, args: Mapping[str, Any]) -> dict[str, Any]:
        """Return arguments as `retry` would store them in place of a job's own; store nothing. Raises as `retry`."""
        checked: dict[str, Any] = json.loads(await self._as_edited(await self._stored(job_or_id), args))
        return checked

    async def retry_matching(self, where: JobFilter, *, limit: int = 1_000, who: str = "application") -> int:
        """Retry up to ``limit`` dead jobs that match, oldest first; return how many. Audited one by one."""
        _require(0, limit=limit)
        return await self._storage_here().retry_matching(where, who=who, limit=limit)

    async def cancel(self, job_or_id: Job[Any] | str, *, who: str = "application") -> Job[Any]:
        """End a job that waits; ask for the end of one that runs, in whatever process.

        A running ``async def`` is cancelled at its next await, a child process is killed, a ``def`` in a thread sees
        it in ``current_job().cancelled``; what is returned may still be running then, and `wait` waits for its end.
        A job that returns all the same has succeeded. Raises `JobNotFound`, `JobConflict`.
        """
        return opened(await self._storage_here().cancel(id_of(job_or_id), who=who), self._keys)

    async def cancel_matching(self, where: JobFilter, *, limit: int = 1_000, who: str = "application") -> int:
        """Cancel up to ``limit`` unfinished jobs that match, oldest first; return how many. Audited one by one.

        A running job whose end was asked for already is passed over.
        """
        _require(0, limit=limit)
        return await self._storage_here().cancel_matching(where, who=who, limit=limit)

    async def delete(self, job_or_id: Job[Any] | str, *, who: str = "application") -> None:
        """Remove a finished job and its history; the audit entry stays. Raises `JobNotFound`, `JobConflict`."""
        await self._storage_here().delete(id_of(job_or_id), who=who)

    async def delete_matching(self, where: JobFilter, *, limit: int = 1_000, who: str = "application") -> int:
        """Remove up to ``limit`` finished jobs that match, oldest first; return how many. Audited one by one."""
        _require(0, limit=limit)
        return await self._storage_here().delete_matching(where, who=who, limit=limit)

    async def pause(self, queue: str, *, who: str = "application") -> None:
        """Claim no more jobs of a queue, in any process, until `resume`; what runs goes on. It may be paused already.

        Once this returns no further job of it is claimed, and a restart changes nothing; one that a worker had claimed
        before may still be about to begin. Adding goes on, and so do expiry and deadlines. A name that was never used
        may be paused ahead.
        """
        await self._storage_here().pause(queue, who=who)

    async def resume(self, queue: str, *, who: str = "application") -> None:
        """Start jobs of a paused queue again. Does nothing to one that is not paused."""
        await self._storage_here().resume(queue, who=who)

    async def rotate_keys(self, *, batch: int = 500) -> Rotation:
        """Bring all stored arguments and results under the newest key of the ring, those in clear too.

        ``batch`` jobs in one transaction, each value compared before it is replaced: beside running workers, and
        killed at any moment without loss; called again it goes on. First see that every process has the newest key
        at the front of its ring. Afterwards, with none ``unreadable``, an older key is only needed for what the audit
        trail holds of edited arguments. What was replaced stays in free pages of the file until SQLite reuses them.
        Raises `ConfigurationError` without a ring.
        """
        if self._keys is None:
            raise ConfigurationError(
                "no keys to rotate to: give DurableQ(encryption=KeyRing(...)), or DURABLEQ_ENCRYPTION_KEYS"
            )
        return await rotate(self._storage_here(), self._keys, batch)

    # ------------------------------------------------------------------------------------------------------

    def _storage_here(self) -> Storage:
        return self._life.here().storage

    async def _stored(self, job_or_id: Job[R] | str) -> Job[R]:
        job_id = id_of(job_or_id)
        job = await self._storage_here().get(job_id)
        if job is None:
            raise JobNotFound(job_id)
        return job

    async def _as_edited(self, job: Job[Any], args: Mapping[str, Any]) -> str:
        """Return edited arguments in JSON, checked by the task's own signature, or by what was stored of it."""
        _refuse_without_key(job, self._keys)
        task = self._registry.find(job.task)
        if task is not None:
            return task.codec.encode_object(args, self.settings.max_payload_bytes)
        schemas = {one.name: one.arguments_schema for one in await self.tasks()}
        if (schema := schemas.get(job.task)) is None:
            raise ConfigurationError(
                f"task {job.task!r} is not known here, so its arguments cannot be checked; retry without editing, or "
                "from an app that knows it"
            )
        return encode_by_schema(job.task, schema, args, self.settings.max_payload_bytes)


def _refuse_without_key(job: Job[Any], keys: KeyRing | None) -> None:
    problem = without_a_ring(job.args_json, "args")
    if keys is not None and problem is not None:
        try:
            keys.open(job.args_json, job.id, job.task, "args")
            return
        except CannotOpen as error:
            if error.kind != KEY_MISSING:  # damaged: an edit mends that, and is encrypted
                return
            problem = error
    if problem is not None:
        raise ConfigurationError(f"job {job.id} cannot be edited here: {problem}; edit it where that key is")


def _opened_entry(entry: AuditEntry, task: str, keys: KeyRing) -> AuditEntry:
    detail = {
        name: _opened_arguments(value, entry.job_id, task, keys) if name in EDITED else value
        for name, value in entry.detail.items()
    }
    return replace(entry, detail=detail)


def _opened_arguments(value: Any, job_id: str, task: str, keys: KeyRing) -> Any:
    stored = json.dumps(value, separators=(",", ":"))  # envelopes are stored so
    try:
        return json.loads(keys.open(stored, job_id, task, "args")) if is_sealed(stored) else value
    except (CannotOpen, ValueError, RecursionError):
        return value


def id_of(job_or_id: Job[Any] | str) -> str:
    """Return the id of a job, or the id itself."""
    return job_or_id.id if isinstance(job_or_id, Job) else job_or_id


def _require(least: int, **numbers: int | None) -> None:
    """Refuse what a statement would take for something else, or not at all: to SQLite a negative limit is none."""
    for name, number in numbers.items():
        if number is not None and number < least:
            raise ConfigurationError(f"expected {name} to be {least} or more, got {number}")
        if number is not None and number > LARGEST_NUMBER:
            raise ConfigurationError(f"expected {name} to be at most {LARGEST_NUMBER}, got {number}")
