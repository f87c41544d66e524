"""The SQLite backend: the verbs of `durableq.storage.protocol`, each handed to the writer or a reader."""

import asyncio
import contextlib
import json
import sqlite3
from collections.abc import Callable, Collection, Sequence
from datetime import datetime
from functools import partial
from typing import Any, Final, TypeVar

from durableq.clock import Clock, from_datetime, to_micros
from durableq.errors import DurableQError, QueueNotRunning
from durableq.models import (
    Attempt,
    AuditEntry,
    ClaimRequest,
    Job,
    JobFilter,
    JobState,
    Lease,
    LeaseKey,
    Names,
    Outcome,
    Page,
    Reaped,
    Retry,
)
from durableq.options import QueueOptions
from durableq.storage.protocol import Decide, Exchanged, WakeUp
from durableq.storage.sqlite import host, rows, transitions
from durableq.storage.sqlite.connection import Location
from durableq.storage.sqlite.group import HEAVY, Addition, Exchange, Operation, Transact, make_insert
from durableq.storage.sqlite.liveness import Liveness, Renewal, Watch
from durableq.storage.sqlite.reader import Reader
from durableq.storage.sqlite.replies import FutureReply, Reply, ThreadReply
from durableq.storage.sqlite.sharing import acquire_writer, release_writer
from durableq.storage.sqlite.statements import SQL
from durableq.storage.sqlite.writer import Writer

T = TypeVar("T")

RETRY_AT_ONCE: Final = 100
TOGETHER: Final = 8
"""So many additions of one turn of the loop go across at once; the rest of the turn overlaps with their commit."""


class SqliteStorage:
    """One queue's access to a SQLite file. See `durableq.storage.protocol.Storage` for what each verb promises."""

    def __init__(self, location: Location, clock: Clock, options: QueueOptions) -> None:
        self._location = location
        self._clock = clock
        self._options = options
        self._opened: Writer | None = None
        self._schema_of: Callable[[str], str | None] = _no_schema
        self._loop: asyncio.AbstractEventLoop
        self._reader: Reader
        self._liveness: Liveness
        self._doorbell: host.Doorbell | None = None
        self._watch = Watch()
        self._missing: frozenset[LeaseKey] = frozenset()
        """Rows that named this worker but were not in its memory at the latest renewal."""
        self._will_hand_over = False
        self._additions: list[Addition] = []
        self._outgoing: list[Operation] = []

    # -- life ----------------------------------------------------------------------------------------------

    async def open(self) -> None:
        self._loop = asyncio.get_running_loop()
        writer = acquire_writer(self._location, self._clock)
        try:
            await asyncio.wrap_future(writer.opened)
        except BaseException:
            release_writer(writer)
            raise
        self._reader = Reader(self._location)
        lease, heartbeat = to_micros(self._options.lease), to_micros(self._options.heartbeat)
        self._liveness = Liveness(self._clock, writer.locks, lease, heartbeat)
        self._opened = writer

    async def close(self) -> None:
        self._hand_over()
        writer, self._opened = self._opened, None
        if writer is None:
            return
        await self._reader.close()
        release_writer(writer)
        if writer.is_closing:
            await asyncio.wrap_future(writer.closed)

    @property
    def _writer(self) -> Writer:
        if self._opened is None:
            raise QueueNotRunning(f"the queue on {self._location.path} is not running")
        return self._opened

    @property
    def trouble(self) -> DurableQError | None:
        return None if self._opened is None else self._opened.trouble

    async def register(self, wake_up: WakeUp | None) -> int:
        writer = self._writer

        def register(connection: sqlite3.Connection) -> int:
            worker_id = self._liveness.register(connection, leases=wake_up is not None)
            writer.lookout.own_workers.add(worker_id)
            return worker_id

        worker_id = await self._transact(register, solitary=True)
        if wake_up is not None:
            self._hang_doorbell(worker_id, wake_up)
            writer.listen(self, self._loop, wake_up)
        return worker_id

    async def deregister(self) -> None:
        writer, worker_id = self._writer, self._liveness.worker_id
        writer.unlisten(self)
        self._take_down_doorbell()
        try:
            await self._transact(self._liveness.deregister, makes_work=_always)
        finally:
            # Should the row have stayed, the freed byte lets any other worker reap it at once.
            self._liveness.let_go()
            writer.lookout.own_workers.discard(worker_id or 0)

    def describe_tasks_with(self, schema_of: Callable[[str], str | None]) -> None:
        self._schema_of = schema_of

    # -- adding --------------------------------------------------------------------------------------------

    def insert(self, jobs: Sequence[Job[Any]]) -> asyncio.Future[None]:
        reply = FutureReply(self._loop)
        addition = Addition(jobs, reply)
        self._writer.admit(addition.size)
        self._additions.append(addition)
        self._hand_over_soon(at_once=len(self._additions) >= TOGETHER)
        return reply.future

    def insert_and_wait(self, jobs: Sequence[Job[Any]]) -> None:
        writer = self._opened
        if writer is not None:
            self._insert_through(writer, jobs)
            return
        writer = acquire_writer(self._location, self._clock)
        try:
            writer.opened.result()
            self._insert_through(writer, jobs)
        finally:
            release_writer(writer)
            if writer.is_closing:
                writer.closed.result()

    def _insert_through(self, writer: Writer, jobs: Sequence[Job[Any]]) -> None:
        reply = ThreadReply()
        writer.submit(make_insert([Addition(jobs, reply)], self._schema_of))
        reply.wait()

    # -- running -------------------------------------------------------------------------------------------

    async def exchange(self, settled: Sequence[tuple[Lease, Outcome]], claim: ClaimRequest | None) -> Exchanged:
        reply = FutureReply(self._loop)
        self._submit(self._exchange(settled, claim, reply))
        lost, leases = await reply.future
        return Exchanged(frozenset(lost), rows.leases_from_json(leases))

    def _exchange(self, settled: Sequence[tuple[Lease, Outcome]], claim: ClaimRequest | None, reply: Reply) -> Exchange:
        now = self._clock.wall()
        operation = Exchange(
            reply=reply,
            worker_id=self._liveness.worker_id or 0,
            outcomes=rows.outcomes_json(settled, now) if settled else "[]",
            outcome_count=len(settled),
            attempts=rows.attempts_json(settled),
            first_due=min(filter(None, map(_due, settled)), default=None),
            has_queued=any(rows.is_ready_again(outcome, now) for _, outcome in settled),
        )
        if claim is not None:
            operation.queues = json.dumps(claim.queues)
            operation.lanes = tuple((json.dumps(lane.tasks), lane.limit) for lane in claim.lanes)
            operation.suspect_tasks = json.dumps(claim.suspect_tasks) if claim.suspect_tasks else None
        return operation

    def renew(self, expires_at: int, held: Collection[LeaseKey] | None) -> bool:
        reply = ThreadReply()
        run = partial(self._liveness.renew, expires_at=expires_at, held=held, missing_before=self._missing)
        self._writer.submit(Transact(reply=reply, run=run, urgent=True, makes_work=_handed_back))
        renewal: Renewal = reply.wait()
        self._missing = renewal.missing
        return renewal.holds

    async def reap(self, decide: Decide) -> list[Reaped]:
        run = partial(self._liveness.reap, decide=decide, watch=self._watch)
        reaped, self._watch = await self._transact(run, makes_work=_took_jobs_back)
        for worker in reaped:
            host.remove_doorbell(self._location.directory, worker.worker_id)
        return reaped

    async def prune(self, state: JobState, before: datetime, limit: int) -> int:
        run = partial(transitions.prune, state=state, before=from_datetime(before), limit=limit)
        return await self._transact(run)

    # -- looking -------------------------------------------------------------------------------------------

    def names(self) -> Names:
        return Names(*self._writer.known_names)

    async def get(self, job_id: str) -> Job[Any] | None:
        found = await self._reader.fetch(f"{SQL['job_columns']} WHERE id = :id", {"id": job_id})
        return rows.job_from_row(found[0]) if found else None

    async def attempts(self, job_id: str) -> list[Attempt]:
        found = await self._reader.fetch(SQL["attempts_of_job"], {"id": job_id})
        return [rows.attempt_from_row(row) for row in found]

    async def find(self, where: JobFilter, *, cursor: int | None, limit: int) -> Page:
        conditions, values = transitions.filter_sql(where)
        if cursor is not None:
            conditions += " AND seq < :cursor"
            values["cursor"] = cursor
        sql = f"{SQL['job_columns']} WHERE true{conditions} ORDER BY seq DESC LIMIT :limit"
        found = await self._reader.fetch(sql, values | {"limit": limit + 1})
        page = found[:limit]
        next_cursor = page[-1][-1] if len(found) > limit else None
        return Page([rows.job_from_row(row) for row in page], next_cursor)

    async def counts(self) -> dict[JobState, int]:
        live = await self._reader.fetch(SQL["count_live"])
        finished = await self._reader.fetch(SQL["count_finished"])
        found = {JobState(state): count for state, count in [*live, *finished]}
        return {state: found.get(state, 0) for state in JobState}

    async def has_runnable(self, queues: Collection[str], tasks: Collection[str]) -> bool:
        values = {"queues": json.dumps(list(queues)), "tasks": json.dumps(list(tasks)), "now": self._clock.wall()}
        found = await self._reader.fetch(SQL["runnable"], values)
        return bool(found[0][0])

    async def audit_trail(self, job_id: str) -> list[AuditEntry]:
        found = await self._reader.fetch(SQL["audit_of_job"], {"id": job_id})
        return [rows.audit_from_row(row) for row in found]

    # -- by hand -------------------------------------------------------------------------------------------

    async def retry(self, job_id: str, *, who: str, args_json: str | None = None) -> Job[Any]:
        run = partial(transitions.retry, job_id=job_id, now=self._clock.wall(), who=who, args_json=args_json)
        return await self._transact(run, makes_work=_always)

    async def retry_matching(self, where: JobFilter, *, who: str, limit: int) -> int:
        retried = 0
        while retried < limit:  # in pieces, so that no transaction of people holds up those of jobs
            piece = min(RETRY_AT_ONCE, limit - retried)
            run = partial(transitions.retry_matching, where=where, now=self._clock.wall(), who=who, limit=piece)
            found = await self._transact(run, makes_work=_always)
            retried += found
            if found < piece:
                break
        return retried

    async def cancel(self, job_id: str, *, who: str) -> Job[Any]:
        return await self._transact(partial(transitions.cancel, job_id=job_id, now=self._clock.wall(), who=who))

    async def delete(self, job_id: str, *, who: str) -> None:
        await self._transact(partial(transitions.delete, job_id=job_id, now=self._clock.wall(), who=who))

    # ------------------------------------------------------------------------------------------------------

    async def _transact(
        self,
        run: Callable[[sqlite3.Connection], T],
        *,
        makes_work: Callable[[T], bool] | None = None,
        solitary: bool = False,
    ) -> T:
        reply = FutureReply(self._loop)
        self._submit(Transact(reply=reply, run=run, makes_work=makes_work, solitary=solitary))
        answer: T = await reply.future
        return answer

    def _submit(self, operation: Operation) -> None:
        self._writer.admit(operation.size)
        self._outgoing.append(operation)
        self._hand_over_soon()

    def _hand_over_soon(self, *, at_once: bool = False) -> None:
        """Bring what was admitted to the writer: at once when it sleeps, else at the end of this turn of the loop.

        What one turn brings goes across together and shares a transaction. Waking the writer for each operation
        would make it contend with the loop for the interpreter lock, a dozen times per transaction.
        """
        if at_once or self._writer.is_idle:
            self._hand_over()
        elif not self._will_hand_over:
            self._will_hand_over = True
            self._loop.call_soon(self._hand_over)

    def _hand_over(self) -> None:
        self._will_hand_over = False
        additions, self._additions = self._additions, []
        outgoing, self._outgoing = self._outgoing, []
        light = [addition for addition in additions if len(addition.jobs) <= HEAVY]
        if light:
            outgoing.append(make_insert(light, self._schema_of))
        if len(light) < len(additions):
            heavy = [addition for addition in additions if len(addition.jobs) > HEAVY]
            outgoing.extend(make_insert([addition], self._schema_of) for addition in heavy)
        if outgoing and self._opened is not None:
            self._opened.hand_over(outgoing)

    def _hang_doorbell(self, worker_id: int, wake_up: WakeUp) -> None:
        with contextlib.suppress(OSError, NotImplementedError):  # without it, work of others is seen in 0.25 s
            self._doorbell = doorbell = host.Doorbell(self._location.directory, worker_id)

            def on_ring() -> None:
                doorbell.drain()
                wake_up(False)

            self._loop.add_reader(doorbell.socket, on_ring)

    def _take_down_doorbell(self) -> None:
        if self._doorbell is not None:
            self._loop.remove_reader(self._doorbell.socket)
            self._doorbell.close()
            self._doorbell = None


def _due(settled: tuple[Lease, Outcome]) -> int | None:
    outcome = settled[1]
    return outcome.run_at if isinstance(outcome, Retry) else None


def _always(_: object) -> bool:
    return True


def _took_jobs_back(result: tuple[list[Reaped], Watch]) -> bool:
    return any(worker.leases for worker in result[0])


def _handed_back(renewal: Renewal) -> bool:
    return renewal.handed_back > 0


def _no_schema(name: str) -> str | None:
    return None
