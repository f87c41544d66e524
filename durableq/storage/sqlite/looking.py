"""The verbs that only look: each one statement, or a few, on a reading connection, never in the writer's way."""

import json
from collections.abc import Collection, Sequence
from typing import Any, Final

from durableq.clock import EPOCH, SECOND, Clock
from durableq.encryption import Payloads
from durableq.history import SummedBy, Tally
from durableq.models import Attempt, AuditEntry, Job, JobFilter, JobState, Lease, LogLine, Names, Page
from durableq.reports import (
    AuditPage,
    Count,
    DeadLetterReport,
    DeadLetters,
    QueueReport,
    TaskReport,
    WorkerReport,
)
from durableq.storage.sqlite import payloads, rows, searching
from durableq.storage.sqlite.reader import Reader
from durableq.storage.sqlite.statements import SQL, tallies_statement
from durableq.storage.sqlite.writer import Writer

_NO_LIMIT: Final = -1


class Looking:
    """The half of `SqliteStorage` that reads."""

    _clock: Clock
    _reader: Reader
    _opened: Writer | None

    # -- one job -------------------------------------------------------------------------------------------

    async def get(self, job_id: str) -> Job[Any] | None:
        found = await self._reader.fetch(f"{SQL['job_columns']} {SQL['by_id']}", {"id": job_id})
        return rows.job_from_row(found[0]) if found else None

    async def attempts(self, job_id: str) -> list[Attempt]:
        found = await self._reader.fetch(SQL["attempts_of_job"], {"id": job_id})
        return [rows.attempt_from_row(row) for row in found]

    async def logs(self, job_id: str, *, skip: int = 0) -> list[LogLine]:
        found = await self._reader.fetch(SQL["logs_of_job"], {"id": job_id, "skip": skip})
        return [rows.log_from_row(row) for row in found]

    async def audit_trail(self, job_id: str) -> list[AuditEntry]:
        found = await self._reader.fetch(SQL["audit_of_job"], {"id": job_id})
        return [rows.audit_from_row(row) for row in found]

    async def state_of_lease(self, lease: Lease) -> JobState | None:
        found = await self._reader.fetch(SQL["state_of_lease"], {"seq": lease.seq, "lease_no": lease.lease_no})
        return JobState(found[0][0]) if found else None

    # -- many jobs -----------------------------------------------------------------------------------------

    async def find(self, where: JobFilter, *, cursor: int | None, limit: int, look_at: int | None = None) -> Page:
        conditions, values = searching.matching(where)
        low = None
        if look_at is not None:
            low, hint = await self._stretch(where.state, cursor, look_at)
            conditions += hint
        if cursor is not None:
            conditions += " AND seq < :cursor"
            values["cursor"] = cursor
        if low is not None:
            conditions += " AND seq >= :low"
            values["low"] = low
        sql = f"{SQL['job_columns']} WHERE true{conditions} ORDER BY seq DESC LIMIT :limit"
        found = await self._reader.fetch(sql, values | {"limit": limit + 1})
        jobs = [rows.job_from_row(row) for row in found[:limit]]
        if len(found) > limit:
            return Page(jobs, found[limit - 1][-1])
        further = None if low is None else await self._next_below(where.state, low)
        return Page(jobs, None if further is None else further + 1, is_cut_short=further is not None)

    async def count(self, where: JobFilter, *, look_at: int) -> Count:
        conditions, values = searching.matching(where)
        low, hint = await self._stretch(where.state, None, look_at)
        if low is not None:
            conditions += " AND seq >= :low"
            values["low"] = low
        sql = f"SELECT count(*) FROM durableq_jobs WHERE true{conditions}{hint}"
        [(number,)] = await self._reader.fetch(sql, values)
        return Count(number, low is None or await self._next_below(where.state, low) is None)

    async def _stretch(self, state: JobState | None, cursor: int | None, look_at: int) -> tuple[int | None, str]:
        """Return down to which ``seq`` to look, None for all the way, and a condition that leads there sooner."""
        few = searching.few_in_state(state)
        if few is not None:
            counting, hint = few
            [(number,)] = await self._reader.fetch(counting, {"look_at": look_at})
            if number < look_at:
                return None, hint
        [(low,)] = await self._reader.fetch(*searching.lowest(state, cursor, look_at))
        return low, ""

    async def _next_below(self, state: JobState | None, low: int) -> int | None:
        [(seq,)] = await self._reader.fetch(searching.next_below(state), {"low": low})
        return None if seq is None else int(seq)

    async def counts(self, at_most: int | None = None) -> dict[JobState, int]:
        values = {"at_most": _NO_LIMIT if at_most is None else at_most}
        found = {JobState(state): count for state, count in await self._reader.fetch(SQL["count_states"], values)}
        return {state: found.get(state, 0) for state in JobState}

    async def finished_among(self, job_ids: Collection[str]) -> set[str]:
        found = await self._reader.fetch(SQL["finished_among"], {"ids": json.dumps(list(job_ids))})
        return {row[0] for row in found}

    async def stored_names(self) -> Names:
        queues = await self._reader.fetch("SELECT name FROM durableq_queues")
        tasks = await self._reader.fetch("SELECT name FROM durableq_tasks")
        return Names(frozenset(name for (name,) in queues), frozenset(name for (name,) in tasks))

    async def has_runnable(self, queues: Collection[str], tasks: Collection[str]) -> bool:
        values = {"queues": json.dumps(list(queues)), "tasks": json.dumps(list(tasks)), "now": self._clock.wall()}
        found = await self._reader.fetch(SQL["runnable"], values)
        return bool(found[0][0])

    async def dead_letters(self, *, look_at: int) -> DeadLetterReport:
        found = await self._reader.fetch(SQL["dead_letters"], {"look_at": look_at})
        groups = [
            DeadLetters(
                task=task,
                error_type=error_type or "",
                number=number,
                first_at=rows.instant(first) or EPOCH,
                last_at=rows.instant(last) or EPOCH,
                latest_id=job_id,
                latest_message=message or "",
            )
            for task, error_type, number, first, last, job_id, message in found
        ]
        return DeadLetterReport(groups=groups, is_all=sum(group.number for group in groups) < look_at)

    async def payloads(self, prefix: str, *, after: int, limit: int) -> list[Payloads]:
        values = {"prefix": prefix, "after": after, "limit": limit, "characters": payloads.READ_AT_ONCE}
        return [Payloads._make(row) for row in await self._reader.fetch(SQL["payloads"], values)]

    # -- queues, tasks, workers ----------------------------------------------------------------------------

    async def waits(self) -> dict[str, float]:
        oldest: dict[str, int] = {}
        for _, task, due, is_paused in await self._reader.fetch(SQL["oldest_due"]):
            if not is_paused:
                oldest[task] = min(due, oldest.get(task, due))
        now = self._clock.wall()
        return {task: max(now - due, 0) / SECOND for task, due in oldest.items()}

    async def queues(self, *, at_most: int) -> list[QueueReport]:
        oldest: dict[str, int] = {}
        for name, _, due, _ in await self._reader.fetch(SQL["oldest_due"]):
            oldest[name] = min(due, oldest.get(name, due))
        return [
            QueueReport(
                name=name,
                queued=Count(min(queued, at_most), queued <= at_most),
                running=running,
                oldest_due=rows.instant(oldest.get(name)),
                paused_at=rows.instant(paused_at),
                paused_by=paused_by,
            )
            for name, queued, running, paused_at, paused_by in await self._reader.fetch(
                SQL["queue_reports"], {"one_more": at_most + 1}
            )
        ]

    async def tasks(self) -> list[TaskReport]:
        found = await self._reader.fetch("SELECT name, arguments_schema FROM durableq_tasks ORDER BY name")
        return [TaskReport(name=name, arguments_schema=schema) for name, schema in found]

    async def workers(self) -> list[WorkerReport]:
        return [self._worker_report(row) for row in await self._reader.fetch(SQL["worker_reports"])]

    def _worker_report(self, row: Sequence[Any]) -> WorkerReport:
        worker_id, pid, boot_id, expires_at, started_at, machine, software, running = row
        own = set() if self._opened is None else self._opened.lookout.own_workers
        has_lease = expires_at is None or expires_at >= self._clock.boot()
        has_died = self._opened is None or self._opened.locks.is_free(worker_id)
        return WorkerReport(
            id=worker_id,
            pid=pid,
            host=machine,
            software=software,
            started_at=rows.instant(started_at) or EPOCH,
            runs_jobs=expires_at is not None,
            is_alive=boot_id == self._clock.boot_id() and has_lease and not has_died,
            running=running,
            is_here=worker_id in own,
        )

    async def tallies(
        self, steps: range, *, ways: Sequence[Collection[SummedBy]], queue: str | None, task: str | None
    ) -> list[list[Tally]]:
        values = {
            "since": steps.start,
            "until": steps[-1] + steps.step,  # a clock that was ahead may have counted beyond
            "step": steps.step,
            "queue": queue,
            "task": task,
        }
        summed: list[list[Tally]] = [[] for _ in ways]
        for number, *tally in await self._reader.fetch(tallies_statement(tuple(map(tuple, ways))), values):
            summed[number].append(Tally._make(tally))
        return summed

    async def audit(self, *, cursor: int | None, limit: int) -> AuditPage:
        found = await self._reader.fetch(SQL["audit"], {"cursor": cursor, "limit": limit + 1})
        return AuditPage(
            entries=[rows.audit_from_row(row) for row in found[:limit]],
            next_cursor=found[limit - 1][-1] if len(found) > limit else None,
        )
