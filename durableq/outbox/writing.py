"""Writes jobs, and their success, within a transaction of the application."""

import sqlite3
from collections.abc import Awaitable, Callable, Coroutine, Generator
from dataclasses import dataclass, replace
from typing import Any, Final, ParamSpec, TypeVar, overload

from durableq.context import AsyncTaskClass, TaskClass
from durableq.errors import TransactionRefused
from durableq.jobs import JobMaker
from durableq.models import Job
from durableq.outbox.carriers import Carried, carry, carry_async, is_async
from durableq.outbox.held import Hold, note_hold
from durableq.outbox.locking import Act, Request, as_we_read_it, file_of, is_same_file, take_lock
from durableq.storage.protocol import Conflicts, Plan, Storage
from durableq.storage.sqlite.connection import Location, translated
from durableq.storage.sqlite.insertion import carry_out

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

_SYNCHRONOUS: Final = {"full": 2, "normal": 1}
_NAMES: Final = {0: "OFF", 1: "NORMAL", 2: "FULL", 3: "EXTRA"}
_NUDGE: Final = "durableq_nudge"


@dataclass(frozen=True, slots=True)
class Outbox:
    """Adds jobs within a sync transaction. Made by `DurableQ.within`."""

    _storage: Storage
    _maker: JobMaker
    _durability: str
    _transaction: Any

    @overload
    def add_task(self, fn: Callable[P, Coroutine[Any, Any, R]], /, *args: P.args, **kwargs: P.kwargs) -> Job[R]: ...
    @overload
    def add_task(self, fn: type[AsyncTaskClass[P, R]], /, *args: P.args, **kwargs: P.kwargs) -> Job[R]: ...
    @overload
    def add_task(self, fn: type[TaskClass[P, R]], /, *args: P.args, **kwargs: P.kwargs) -> Job[R]: ...
    @overload
    def add_task(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Job[R]: ...
    def add_task(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Job[Any]:
        """Write a job into the transaction: it is durable when, and if, the caller commits.

        Blocks until the transaction has the write lock, if it does not have it yet. Raises `InvalidTask`,
        `InvalidArguments`, `TransactionRefused`, `DuplicateJob`, `IdempotencyConflict`, and `StorageBusy` when the
        lock could not be had in 5 s; what the caller wrote before stays as it is.
        """
        job = self._maker.new(fn, args, kwargs)
        plan = self._storage.adding((job,))
        return _as_stored(job, _write(self._storage, self._durability, self._transaction, plan))


@dataclass(frozen=True, slots=True)
class AsyncOutbox:
    """Adds jobs within an async transaction. Made by `DurableQ.within`."""

    _storage: Storage
    _maker: JobMaker
    _durability: str
    _transaction: Any

    @overload
    def add_task(
        self, fn: Callable[P, Coroutine[Any, Any, R]], /, *args: P.args, **kwargs: P.kwargs
    ) -> Coroutine[Any, Any, Job[R]]: ...
    @overload
    def add_task(
        self, fn: type[AsyncTaskClass[P, R]], /, *args: P.args, **kwargs: P.kwargs
    ) -> Coroutine[Any, Any, Job[R]]: ...
    @overload
    def add_task(
        self, fn: type[TaskClass[P, R]], /, *args: P.args, **kwargs: P.kwargs
    ) -> Coroutine[Any, Any, Job[R]]: ...
    @overload
    def add_task(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, Job[R]]: ...
    def add_task(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Coroutine[Any, Any, Job[Any]]:
        """The same as `Outbox.add_task`, to be awaited. The arguments are checked at the call.

        Cancelled, the job is in the transaction or it is not; one that was begun for it is rolled back.
        """
        job = self._maker.new(fn, args, kwargs)
        return self._add(job, note_hold(with_children=True))

    async def _add(self, job: Job[Any], hold: Hold) -> Job[Any]:
        plan = self._storage.adding((job,))
        return _as_stored(job, await _write_async(self._storage, self._durability, self._transaction, plan, hold))


def outbox_for(storage: Storage, maker: JobMaker, durability: str, transaction: Any) -> Outbox | AsyncOutbox:
    """Return what adds jobs within a transaction."""
    if is_async(transaction):
        return AsyncOutbox(storage, maker, durability, transaction)
    return Outbox(storage, maker, durability, transaction)


def write_within(storage: Storage, durability: str, transaction: Any, plan: Plan[None]) -> Awaitable[None]:
    """Run a plan within a transaction: at once when it is a sync one, else when the result is awaited."""
    if is_async(transaction):
        return _write_async(storage, durability, transaction, plan, note_hold(with_children=True))
    _write(storage, durability, transaction, plan)
    return _Done()


class _Done(Awaitable[None]):
    """May be awaited, and need not be."""

    def __await__(self) -> Generator[Any, None, None]:
        return
        yield


def _as_stored(job: Job[Any], conflicts: Conflicts) -> Job[Any]:
    return replace(job, id=conflicts[job.id]) if job.id in conflicts else job


# -- one write -----------------------------------------------------------------------------------------------


def _write(storage: Storage, durability: str, transaction: Any, plan: Plan[T]) -> T:
    carried = carry(transaction, _writing(storage, durability, plan))
    _expect_its_end(storage, carried, note_hold(with_children=True))
    return carried.result


async def _write_async(storage: Storage, durability: str, transaction: Any, plan: Plan[T], hold: Hold) -> T:
    try:
        carried = await carry_async(transaction, _writing(storage, durability, plan))
    except BaseException:
        hold.failed()
        raise
    _expect_its_end(storage, carried, hold)
    return carried.result


def _writing(storage: Storage, durability: str, plan: Plan[T]) -> Act[T]:
    def write(connection: sqlite3.Connection, request: Request) -> T:
        with as_we_read_it(connection):
            _require_transactions(connection)
            _require_fit(connection, storage, durability)
            take_lock(connection, request)
            try:
                return _in_savepoint(connection, plan, request)
            except sqlite3.Error as error:
                raise translated(error, Location(storage.path)) from error

    return write


def _in_savepoint(connection: sqlite3.Connection, plan: Plan[T], request: Request) -> T:
    """Leave the transaction as it was when the plan fails: open, with what it had, or not open at all."""
    connection.execute("SAVEPOINT durableq_within")
    try:
        result = carry_out(connection, plan)
    except BaseException:
        if not connection.in_transaction:
            raise  # SQLite has rolled all of it back: disk full, I/O error
        connection.execute("ROLLBACK TO durableq_within")
        connection.execute("ROLLBACK" if request.began else "RELEASE durableq_within")
        raise
    connection.execute("RELEASE durableq_within")
    return result


# -- what can carry jobs -------------------------------------------------------------------------------------


def _require_transactions(connection: sqlite3.Connection) -> None:
    if connection.in_transaction:
        return
    autocommit = getattr(connection, "autocommit", -1)  # since Python 3.12; -1: as isolation_level says
    if autocommit is True or (autocommit == -1 and connection.isolation_level is None):
        raise TransactionRefused(
            "no transaction is open on this connection, and it commits each statement by itself; begin one first: "
            "durableq.outbox.begin(connection)"
        )


def _require_fit(connection: sqlite3.Connection, storage: Storage, durability: str) -> None:
    path = file_of(connection)
    if not is_same_file(path, storage.path):
        raise TransactionRefused(
            f"expected a connection to the queue's own file {storage.path}, got one to "
            f"{path if path.name else 'a database in memory'}; a transaction covers one file only"
        )
    needed, found = _SYNCHRONOUS[durability], connection.execute("PRAGMA synchronous").fetchone()[0]
    if found < needed:
        raise TransactionRefused(
            f"expected synchronous={_NAMES[needed]} or more on this connection, as the queue promises, got "
            f"{_NAMES.get(found, found)}; durableq.outbox.configure(engine) sets it"
        )


# -- its end -------------------------------------------------------------------------------------------------


def _expect_its_end(storage: Storage, carried: Carried[Any], hold: Hold) -> None:
    """Be quick to see the commit, and know that this very code holds the write lock until then."""
    hold.begun(storage.path, carried.is_open)
    nudge = storage.expect_foreign_commit(carried.is_open)
    session = carried.session
    if session is not None:
        from sqlalchemy import event

        session.info[_NUDGE] = nudge
        if not event.contains(session, "after_commit", _nudge):
            event.listen(session, "after_commit", _nudge)


def _nudge(session: Any) -> None:
    """SQLAlchemy's event: a session has committed, or released a savepoint."""
    if not session.in_nested_transaction():
        nudge = session.info.pop(_NUDGE, None)
        if nudge is not None:
            nudge()
