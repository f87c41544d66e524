"""The SQLite backend: the verbs of `durableq.storage.protocol`, each handed to the writer or a reader."""

import asyncio
import json
import logging
import sqlite3
from collections.abc import Awaitable, Callable, Collection, Sequence
from datetime import datetime
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, TypeVar

from durableq.clock import Clock, from_datetime, to_micros
from durableq.encryption import Rewrite
from durableq.errors import DurableQError, InvariantBroken, JobConflict
from durableq.models import (
    ClaimRequest,
    Job,
    JobState,
    Lease,
    LeaseKey,
    Names,
    Outcome,
    Overdue,
    Reaped,
    Succeeded,
)
from durableq.settings import QueueOptions
from durableq.storage.protocol import (
    NO_NOTES,
    Cancel,
    Conflicts,
    Decide,
    DecideLate,
    Exchanged,
    Notes,
    Plan,
    StorageCondition,
    WakeUp,
)
from durableq.storage.sqlite import host, insertion, payloads, rows, settling, transitions, versions
from durableq.storage.sqlite.checkpoint import WAL_ALARM_BYTES
from durableq.storage.sqlite.connection import Location, size_of
from durableq.storage.sqlite.doorbells import Doorbells
from durableq.storage.sqlite.handover import HandOver
from durableq.storage.sqlite.liveness import LeaseNumbers, Liveness, Renewal, Watch
from durableq.storage.sqlite.looking import Looking
from durableq.storage.sqlite.lookout import Listener
from durableq.storage.sqlite.mending import Mending
from durableq.storage.sqlite.operation import Addition, Exchange, Transact, make_insert
from durableq.storage.sqlite.reader import Reader
from durableq.storage.sqlite.replies import FutureReply, Later, Reply, ThreadReply
from durableq.storage.sqlite.sharing import acquire_writer, release_writer
from durableq.storage.sqlite.statements import SQL
from durableq.storage.sqlite.transacting import always
from durableq.storage.sqlite.writer import Writer

logger = logging.getLogger("durableq.storage")

T = TypeVar("T")


class SqliteStorage(Looking, Mending):
    """One queue's access to a SQLite file. See `durableq.storage.protocol.Storage` for what each verb promises."""

    def __init__(self, location: Location, clock: Clock, options: QueueOptions) -> None:
        self._location = location
        self._clock = clock
        self._options = options
        self._opened: Writer | None = None
        self._schema_of: Callable[[str], str | None] = _no_schema
        self._loop: asyncio.AbstractEventLoop
        self._outgoing: HandOver
        self._reader: Reader
        self._liveness: Liveness
        self._doorbells: Doorbells
        self._watchers: set[Callable[[], None]] = set()
        self._watch = Watch()
        self._missing: frozenset[LeaseKey] = frozenset()
        """Rows that named this worker but were not in its memory at the latest renewal."""
        self._lease_numbers = LeaseNumbers()

    # -- life ----------------------------------------------------------------------------------------------

    async def open(self) -> None:
        self._loop = asyncio.get_running_loop()
        writer = self._acquire_writer()
        try:
            await asyncio.wrap_future(writer.opened)
        except BaseException:
            release_writer(writer)
            raise
        self._outgoing = HandOver(self._loop, writer, lambda name: self._schema_of(name))
        self._reader = Reader(self._location)
        self._doorbells = Doorbells(self._loop, self._location.directory)
        lease, heartbeat = to_micros(self._options.lease), to_micros(self._options.heartbeat)
        self._liveness = Liveness(self._clock, writer.locks, lease, heartbeat)
        self._opened = writer
        logger.info(
            "opened %s with %s, durability=%s", self._location.path, versions.describe(), self._location.durability
        )

    def _acquire_writer(self) -> Writer:
        versions.check_version(self._options.sqlite_with_wal_bug)
        versions.warn_of_other_libraries(self._location.path)
        return acquire_writer(self._location, self._clock)

    async def close(self) -> None:
        writer, self._opened = self._opened, None
        if writer is None:
            return
        self._outgoing.now()
        writer.unwatch(self)
        self._watchers.clear()
        self._doorbells.take_down()
        try:
            await self._reader.close()
        finally:  # nobody else would
            release_writer(writer)
        if writer.is_closing:
            await asyncio.wrap_future(writer.closed)

    @property
    def trouble(self) -> DurableQError | None:
        return None if self._opened is None else self._opened.trouble

    def condition(self) -> StorageCondition:
        return StorageCondition(
            software=f"SQLite {sqlite3.sqlite_version}",
            has_known_bug=versions.has_wal_reset_bug(sqlite3.sqlite_version_info),
            durability=self._location.durability,
            is_shared=self._opened is not None and bool(self._opened.lookout.others),
            database_bytes=size_of(self._location.path),
            log_bytes=size_of(self._location.wal) or 0,
            log_bytes_alarm=WAL_ALARM_BYTES,
        )

    async def register(self, wake_up: WakeUp | None, cancel: Cancel | None = None) -> int:
        writer = self._writer
        described = [[name, schema] for name in sorted(writer.known_names[1]) if (schema := self._schema_of(name))]

        def register(connection: sqlite3.Connection) -> int:
            worker_id = self._liveness.register(connection, leases=wake_up is not None)
            if described:  # by this process' code, which may be newer
                connection.execute(SQL["insert_task_names"], {"names": json.dumps(described)})
            writer.lookout.own_workers.add(worker_id)
            return worker_id

        worker_id = await self._transact(register, solitary=True)
        if wake_up is not None:
            self._doorbells.hang(host.WORK, worker_id, partial(self._rung, wake_up))
            writer.listen(self, Listener(self._loop, worker_id, wake_up, cancel or _nobody))
        if self._watchers:
            self._doorbells.hang(host.FINISHED, worker_id, self._finished_elsewhere)
        return worker_id

    async def deregister(self) -> None:
        writer, worker_id = self._writer, self._liveness.worker_id
        writer.unlisten(self)
        self._doorbells.take_down()
        try:
            await self._transact(self._liveness.deregister, makes_work=always, finishes=always)
        finally:
            # Should the row have stayed, the freed byte lets any other worker reap it at once.
            self._liveness.let_go()
            writer.lookout.own_workers.discard(worker_id or 0)

    def describe_tasks_with(self, schema_of: Callable[[str], str | None]) -> None:
        self._schema_of = schema_of

    # -- adding --------------------------------------------------------------------------------------------

    def insert(self, jobs: Sequence[Job[Any]], *, impatient: bool = False) -> asyncio.Future[Conflicts | None]:
        reply = FutureReply(self._loop)
        self._hand_over.add(Addition(jobs, reply, impatient=impatient))
        return reply.future

    def insert_and_wait(self, jobs: Sequence[Job[Any]]) -> Conflicts | None:
        writer = self._opened
        if writer is not None:
            return self._insert_through(writer, jobs)
        writer = self._acquire_writer()
        try:
            writer.opened.result()
            return self._insert_through(writer, jobs)
        finally:
            release_writer(writer)
            if writer.is_closing:
                writer.closed.result()

    def _insert_through(self, writer: Writer, jobs: Sequence[Job[Any]]) -> Conflicts | None:
        reply = ThreadReply()
        writer.submit(make_insert([Addition(jobs, reply)], self._schema_of))
        conflicts: Conflicts | None = reply.wait()
        return conflicts

    # -- running -------------------------------------------------------------------------------------------

    def before_adding(self, call: Callable[[], None] | None) -> None:
        self._outgoing.before_adding = call

    @property
    def is_alone(self) -> bool:
        lookout = self._writer.lookout
        return not lookout.others and lookout.own_workers <= {self._liveness.worker_id}

    @property
    def next_limit(self) -> int | None:
        return self._writer.lookout.next_limit

    @property
    def has_no_audience(self) -> bool:
        return not self._watchers and self._opened is not None and not self._opened.lookout.others

    def exchange(
        self, settled: Sequence[tuple[Lease, Outcome]], claim: ClaimRequest | None, notes: Notes = NO_NOTES
    ) -> Awaitable[Exchanged]:
        reply = FutureReply(self._loop)
        operation = self._exchange(settled, claim, reply)
        if notes.progress:
            operation.progress = rows.progress_json(notes.progress)
        if notes.logs:
            operation.logs = rows.logs_json(notes.logs)
        try:
            self._hand_over.submit(operation)
        except DurableQError as error:
            reply.future.set_exception(error)
        return Later(partial(self._exchanged, reply.future))

    async def _exchanged(self, answered: "asyncio.Future[tuple[Sequence[int], str]]") -> Exchanged:
        lost, found = await answered
        leases = rows.leases_from_json(found)
        try:
            self._lease_numbers.check(leases)
        except InvariantBroken as error:
            await self._transact(partial(_stop_all, error))
        return Exchanged(frozenset(lost), leases)

    def _exchange(self, settled: Sequence[tuple[Lease, Outcome]], claim: ClaimRequest | None, reply: Reply) -> Exchange:
        now = self._clock.wall()
        operation = Exchange(
            reply=reply,
            worker_id=self._liveness.worker_id or 0,
            settlement=settling.settlement_of(settled, now),
            schema_of=self._schema_of,
        )
        if claim is not None:
            operation.queues = _json_array(claim.queues)
            operation.lanes = tuple((_json_array(lane.tasks), lane.limit) for lane in claim.lanes)
            operation.suspect_tasks = _json_array(claim.suspect_tasks) if claim.suspect_tasks else None
        return operation

    def renew(self, expires_at: int, held: Collection[LeaseKey] | None) -> bool:
        reply = ThreadReply()
        run = partial(self._liveness.renew, expires_at=expires_at, held=held, missing_before=self._missing)
        self._writer.submit(Transact(reply=reply, run=run, urgent=True, makes_work=_handed_back, finishes=_handed_back))
        renewal: Renewal = reply.wait()
        self._missing = renewal.missing
        return renewal.holds

    async def reap(self, decide: Decide) -> list[Reaped]:
        run = partial(self._liveness.reap, decide=decide, watch=self._watch)
        reaped, self._watch = await self._transact(run, makes_work=_took_jobs_back, finishes=_took_jobs_back)
        if self._watch.living - self._writer.lookout.own_workers:
            versions.warn_of_sharing(self._location.path)
        if reaped:
            self._writer.lookout.learn_again()
        for worker in reaped:
            host.remove_doorbells(self._location.directory, worker.worker_id)
        return reaped

    async def give_up_overdue(self, decide: DecideLate, limit: int) -> Overdue:
        lookout, now = self._writer.lookout, self._clock.wall()

        def give_up(connection: sqlite3.Connection) -> Overdue:
            late = transitions.give_up_overdue(connection, decide, now, limit)
            lookout.learn_limit(connection)
            return late

        try:
            return await self._transact(give_up, finishes=bool)
        except BaseException:
            lookout.learn_again()  # what was read may not have been committed
            raise

    async def drop_results(self, limit: int) -> int:
        return await self._transact(partial(transitions.drop_results, now=self._clock.wall(), limit=limit))

    async def condense_tallies(self, now: datetime) -> bool:
        return await self._transact(partial(transitions.condense_tallies, now=int(now.timestamp())))

    async def prune(self, state: JobState, before: datetime, limit: int) -> int:
        run = partial(transitions.prune, state=state, before=from_datetime(before), limit=limit)
        return await self._transact(run)

    # -- looking -------------------------------------------------------------------------------------------

    def names(self) -> Names:
        return Names(*self._writer.known_names)

    def watch(self, look: Callable[[], None]) -> Callable[[], None]:
        self._watchers.add(look)
        worker_id = self._liveness.worker_id
        if len(self._watchers) == 1:
            self._writer.watch(self, self._loop, self._finished_elsewhere)
            if worker_id is not None:
                self._doorbells.hang(host.FINISHED, worker_id, self._finished_elsewhere)
        return partial(self._unwatch, look)

    def _unwatch(self, look: Callable[[], None]) -> None:
        self._watchers.discard(look)
        if not self._watchers and self._opened is not None:
            self._opened.unwatch(self)
            self._doorbells.take_down(host.FINISHED)

    def _finished_elsewhere(self) -> None:
        for look in tuple(self._watchers):
            look()

    # -- encrypted payloads --------------------------------------------------------------------------------

    async def rewrite(self, args: Sequence[Rewrite], results: Sequence[Rewrite]) -> tuple[int, int]:
        return await self._transact(partial(payloads.rewrite, args=args, results=results))

    # -- in a transaction of the application ---------------------------------------------------------------

    @property
    def path(self) -> Path:
        return self._location.path

    def adding(self, jobs: Sequence[Job[Any]]) -> Plan[Conflicts]:
        batch = insertion.batch_of(jobs)
        yield from insertion.naming(jobs, self._schema_of)
        return (yield from insertion.insertion(batch))

    def completing(
        self, lease: Lease, result_json: str | None, follow_ups: Sequence[Job[Any]], notes: Notes = NO_NOTES
    ) -> Plan[None]:
        if notes.progress:
            yield SQL["write_progress"], {"progress": rows.progress_json(notes.progress)}
        if notes.logs:
            yield SQL["insert_logs"], {"logs": rows.logs_json(notes.logs)}
        settlement = settling.settlement_of([(lease, Succeeded(result_json))], self._clock.wall())
        if not (yield from settling.completion(settlement)):
            raise JobConflict(lease.id, "no longer this attempt's", wanted=("running",), action="complete")
        if follow_ups:
            batch = insertion.batch_of(follow_ups)
            yield from insertion.naming(follow_ups, self._schema_of)
            yield from insertion.insertion(batch, refuses=False)

    def expect_foreign_commit(self, is_open: Callable[[], bool]) -> Callable[[], None]:
        return self._writer.expect_foreign_commit(is_open)

    # ------------------------------------------------------------------------------------------------------

    def _rung(self, wake_up: WakeUp) -> None:
        """Another process added work, or asked for the end of a job that runs here."""
        wake_up(False)
        if self._opened is not None:
            self._opened.look_now()


@lru_cache(maxsize=256)
def _json_array(names: tuple[str, ...]) -> str:
    """A worker asks for the same names again and again."""
    return json.dumps(names)


def _took_jobs_back(result: tuple[list[Reaped], Watch]) -> bool:
    return any(worker.leases for worker in result[0])


def _handed_back(renewal: Renewal) -> bool:
    return renewal.handed_back > 0


def _stop_all(error: InvariantBroken, connection: sqlite3.Connection) -> None:
    """Raised within a transaction of the writer, it makes the writer refuse everything from then on."""
    raise error


def _nobody(_: object) -> None:
    pass


def _no_schema(name: str) -> str | None:
    return None
