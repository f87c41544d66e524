"""The one thread per process and file that writes.

Everything that waits (adds of many requests, settles, claims, heartbeats) goes into one transaction and shares
one fsync; while a commit syncs, the next group gathers. A transaction is one callable run whole on this thread:
no cancellation can leave it half open. An operation is answered once its fate is known: stored, not stored, or,
when COMMIT itself failed twice, unknown.
"""

import asyncio
import concurrent.futures
import contextlib
import logging
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

from durableq.clock import Clock
from durableq.errors import (
    DurableQError,
    InvariantBroken,
    NotStored,
    OutcomeUnknown,
    QueueNotRunning,
    StorageBusy,
    StorageUnusable,
)
from durableq.storage.sqlite import host, schema
from durableq.storage.sqlite.checkpoint import Checkpointer
from durableq.storage.sqlite.committing import Committer
from durableq.storage.sqlite.connection import (
    BUSY_RETRY_SECONDS,
    WRITE_LOCK_BYTE,
    FileGuard,
    Location,
    connect,
    is_busy,
    is_fatal,
    opening,
    prepare_file,
    translated,
)
from durableq.storage.sqlite.group import GroupRunner
from durableq.storage.sqlite.inbox import BEGIN_WITHIN_SECONDS, IMPATIENT_SECONDS, Inbox
from durableq.storage.sqlite.lookout import LOOK_SECONDS, Listener, Lookout
from durableq.storage.sqlite.operation import Addition, Insert, Operation, answer
from durableq.storage.sqlite.replies import LoopCalls

logger = logging.getLogger("durableq.storage")

GAP_SECONDS: Final = 0.00025
"""Pause between groups while others share the file; those of durableq ask for the lock every half millisecond."""
SHARED_SECONDS: Final = 10.0
"""How long a file counts as shared after somebody else has written to it."""
GIVE_WAY_SECONDS: Final = 0.05
"""How long the writer waits at most for those of its own process who want to begin; else they could starve it."""
ASK_WHO_SECONDS: Final = 0.5
"""How often a writer that waits for the lock asks who has it; an answer takes some 9 ms."""
CLOSING_SECONDS: Final = 0.25
REMEDIES: Final = (
    'commit it in the route, give the dependency that commits it scope="function", as in '
    'Depends(get_session, scope="function"), or add the job within it: dq.within(session).add_task(...)'
)
"""What to do about a transaction of one's own that holds the write lock."""


class Writer:
    """Owns the writing connection of a file. Shared by all that use the file in this process: see `sharing`."""

    def __init__(self, location: Location, clock: Clock) -> None:
        prepare_file(location)
        self.location = location
        self.locks = host.open_lock_file(location.directory / "locks")
        self.opened: concurrent.futures.Future[None] = concurrent.futures.Future()
        """Done when the file is open and its schema current, or with what was wrong with it."""
        self.closed: concurrent.futures.Future[None] = concurrent.futures.Future()
        for shared in (self.opened, self.closed):  # of several starts that wait for them, one may be cancelled
            shared.set_running_or_notify_cancel()
        self._clock = clock
        self._forks = host.forks()
        self._inbox = Inbox()
        self._calls = LoopCalls()
        self._ringer = host.Ringer(location.directory)
        self._runner = GroupRunner(clock.wall)
        self.lookout = Lookout(clock, self._runner, self._ringer, self._calls)
        self._guests = threading.Condition()
        self._waiting_guests = 0
        """Transactions of the application, in this process, that want to begin."""
        self.turns = 0
        """How often this thread has had the write lock for a group."""
        self._is_connected = False
        self._closing = False
        self._broken: DurableQError | None = None
        self._connection: sqlite3.Connection
        self._guard: FileGuard
        self._checkpointer: Checkpointer
        self._committer: Committer
        self._thread = threading.Thread(target=self._main, name="durableq-writer", daemon=True)
        self._thread.start()

    # -- for any thread ------------------------------------------------------------------------------------

    def submit(self, operation: Operation) -> None:
        """Hand over one operation from a thread; its reply is answered exactly once. Raises as `admit`."""
        self.admit(operation.size)
        self._inbox.put((operation,))

    def admit(self, size: int) -> None:
        """Accept an operation of so many bytes, that `hand_over` will bring.

        Raises, at once and with nothing done, `StorageBusy` when too much is waiting, `QueueNotRunning` after a
        fork or close, or what made the file unusable.
        """
        if self._broken is not None:
            raise self._broken.with_traceback(None)  # raised again and again, it would collect tracebacks
        if self._closing:
            raise QueueNotRunning(f"the queue on {self.location.path} has been stopped")
        if self._forks != host.forks():
            raise QueueNotRunning(
                f"the queue on {self.location.path} was opened before this process was forked; start it again here"
            )
        self._inbox.admit(size)

    def forget(self, size: int) -> None:
        """Count out what was admitted and will not be brought."""
        self._inbox.release(size)

    def hand_over(self, operations: list[Operation]) -> None:
        """Bring admitted operations; each reply is answered exactly once."""
        self._inbox.put(operations)

    def listen(self, token: object, listener: Listener) -> None:
        """Tell ``listener`` whenever a commit may have left work, until `unlisten`."""
        self.lookout.listen(token, listener)
        self._inbox.put(())

    def unlisten(self, token: object) -> None:
        self.lookout.unlisten(token)

    def watch(self, token: object, loop: asyncio.AbstractEventLoop, look: Callable[[], None]) -> None:
        """Call ``look`` on ``loop`` whenever a job may be finished, until `unwatch`."""
        self.lookout.watch(token, loop, look)
        self._inbox.put(())

    def unwatch(self, token: object) -> None:
        self.lookout.unwatch(token)

    def look_now(self, *, at_once: bool = False) -> None:
        """Look for commits of others soon, for one of them has said that there is something."""
        if self.lookout.look_soon(at_once=at_once):
            self._inbox.put(())

    def expect_foreign_commit(self, is_open: Callable[[], bool]) -> Callable[[], None]:
        """Look every few milliseconds for the commit of another connection of this process, while it ``is_open``.

        Returns a nudge: what to call when it has just committed.
        """
        self.lookout.expect_foreign_commit(is_open)
        self._inbox.put(())
        return partial(self.look_now, at_once=True)

    @contextlib.contextmanager
    def giving_way(self) -> Iterator[None]:
        """Begin no other group while the block runs, for a moment at most: somebody wants the write lock next."""
        with self._guests:
            self._waiting_guests += 1
        try:
            yield
        finally:
            with self._guests:
                self._waiting_guests -= 1
                self._guests.notify_all()

    @property
    def known_names(self) -> tuple[frozenset[str], frozenset[str]]:
        """Queue and task names, as of the latest look."""
        return frozenset(self._runner.known_queues), frozenset(self._runner.known_tasks)

    @property
    def trouble(self) -> DurableQError | None:
        """What made the file unusable, or None."""
        return self._broken

    @property
    def is_idle(self) -> bool:
        """Whether the thread sleeps: what is handed over now is begun at once."""
        return self._inbox.is_idle

    @property
    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        """Write what still waits, then close the connection; `closed` tells when. Returns at once.

        When another holds the write lock, what waits is given up ("not stored") after a quarter of a second.
        """
        self._inbox.hurry(CLOSING_SECONDS)
        self._closing = True
        self._inbox.put(())

    # -- the thread ----------------------------------------------------------------------------------------

    def _main(self) -> None:
        try:
            self._open()
        except BaseException as error:
            host.close_lock_file(self.locks)
            self._ringer.close()
            self.opened.set_exception(error)
            self.closed.set_result(None)
            return
        self.opened.set_result(None)
        try:
            self._serve()
        except BaseException as error:
            self._broken = StorageUnusable(f"the writer of {self.location.path} stopped on a defect: {error!r}")
            logger.critical("%s", self._broken, exc_info=error)
            self._refuse_what_waits()
        finally:
            self._close()

    def _open(self) -> None:
        with opening(self.locks):
            self._connection = connect(self.location, check=True)
            try:
                schema.migrate(self._connection, self._clock.wall())
                self.lookout.learn(self._connection)
                self._guard = FileGuard(self.location)
                self._checkpointer = Checkpointer(self._connection, self.location)
                self._committer = Committer(self._connection, self.location.path, self._runner)
            except sqlite3.Error as error:
                self._connection.close()
                raise translated(error, self.location) from error
            except BaseException:
                self._connection.close()
                raise
            self._is_connected = True

    def _serve(self) -> None:
        while True:
            self._inbox.gather(self._sleep_seconds())
            self._refuse(self._inbox.expired(), "the disk or this process was held up")
            group = self._inbox.next_group()
            if group:
                self._write(group)
                self._calls.flush()
            elif self._closing and self._inbox.is_empty():
                return
            self._look()
            if group:
                self._let_others_in()

    def _let_others_in(self) -> None:
        if self._waiting_guests:
            with self._guests:
                self._guests.wait_for(lambda: self._waiting_guests == 0, GIVE_WAY_SECONDS)
        elif not self._inbox.is_empty() and self._is_shared():  # with nothing to write, there is gap enough
            time.sleep(GAP_SECONDS)

    def _is_shared(self) -> bool:
        return bool(self.lookout.others) or time.monotonic() < self.lookout.saw_others_at + SHARED_SECONDS

    def _sleep_seconds(self) -> float | None:
        if self._closing:
            return 0.0
        return self.lookout.sleep_seconds() if self._is_connected and self._broken is None else LOOK_SECONDS

    def _look(self) -> None:
        if not self._is_connected or self._broken is not None:
            return
        try:
            self._checkpointer.note(self.lookout.look(self._connection))
            self._checkpointer.maybe(self._guard.wal_bytes)
        except InvariantBroken as error:
            self._break(error)
        except sqlite3.Error as error:
            if not is_busy(error):
                logger.warning("looking for work in %s failed: %s", self.location.path, error)
                time.sleep(BUSY_RETRY_SECONDS)
        self._calls.flush()

    def _close(self) -> None:
        with contextlib.ExitStack() as stack:
            with contextlib.suppress(StorageBusy):  # a stopped process may hold it; closing must not wait for that
                stack.enter_context(opening(self.locks, CLOSING_SECONDS))
            self._disconnect()
        self._ringer.close()
        host.close_lock_file(self.locks)
        self.closed.set_result(None)

    def _disconnect(self) -> None:
        if self._is_connected:
            self._is_connected = False
            with contextlib.suppress(sqlite3.Error):
                self._checkpointer.close()
                self._connection.close()

    # -- one transaction -----------------------------------------------------------------------------------

    def _write(self, group: list[Operation]) -> None:
        """Begin, run, commit, answer. Every operation of the group is answered, on every path."""
        try:
            if not self._is_connected:
                self._open()
            self._begin(group)
            if not group:
                return
            answers, effects = self._committer.commit(group)
            self._guard.check()
        except Exception as error:
            self._roll_back()
            self._break_if_hopeless(error)
            self._answer(group, [self._fate(one, error) for one in group])
            return
        # Outside of the try: what is committed must never be answered a second time, as a failure.
        self._answer(group, answers)
        self.lookout.announce(effects)
        if effects.asked_to_cancel:
            with contextlib.suppress(sqlite3.Error):  # the next look will find them
                self.lookout.note_cancellations(self._connection)
        self._checkpointer.note(effects.changed_rows, effects.written_bytes)

    def _begin(self, group: list[Operation]) -> None:
        """Get the write lock, taking out of the group what has waited too long. BUSY: nothing has happened."""
        ask_who_at = time.monotonic() + IMPATIENT_SECONDS
        try:
            while group and not self._has_begun():
                time.sleep(BUSY_RETRY_SECONDS)
                if time.monotonic() >= ask_who_at:
                    self._inbox.is_held_by_us = holder_of(self.location.path) == host.own_pid()
                    ask_who_at = time.monotonic() + ASK_WHO_SECONDS
                self._refuse_what_is_late(group)
        finally:
            self._inbox.is_held_by_us = False

    def _has_begun(self) -> bool:
        try:
            self._connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError as error:
            if is_busy(error):
                return False
            raise
        self.turns += 1
        return True

    def _refuse_what_is_late(self, group: list[Operation]) -> None:
        now = time.monotonic()
        late = [one for one in group if self._inbox.is_late(one, now)]
        group[:] = [one for one in group if one not in late]
        self._inbox.gather(0.0)
        late += self._inbox.expired()
        if late:
            self._refuse(late, f"it was locked{locked_by(self.location.path)}")

    def _roll_back(self) -> None:
        if self._is_connected:
            self._committer.roll_back()

    # -- answers -------------------------------------------------------------------------------------------

    def _answer(self, group: list[Operation], answers: list[Any]) -> None:
        for operation, result in zip(group, answers, strict=True):
            answer(operation, self._plain(result), self._calls)
        self._inbox.done(group)

    def _plain(self, result: Any) -> Any:
        """Put SQLite's errors among the results in durableq's words."""
        if isinstance(result, sqlite3.Error):
            return translated(result, self.location)
        if isinstance(result, StorageUnusable):
            self._break(result)  # found out by one operation, true for all: two kernels on one file, for instance
        return [self._plain(one) for one in result] if isinstance(result, list) else result

    def _fate(self, operation: Operation, error: Exception) -> Any:
        """Put a group's failure in the words of one of its operations."""
        if isinstance(error, OutcomeUnknown):
            additions = operation.additions if isinstance(operation, Insert) else ()
            return [_unknown(error, addition) for addition in additions] or error
        if isinstance(error, sqlite3.Error | DurableQError):
            return error
        logger.error("the writer met a defect; the group was not stored", exc_info=error)
        return NotStored(f"the writer met a defect ({error!r}); nothing was stored")

    def _refuse(self, late: list[Operation], why: str) -> None:
        if not late:
            return
        hurried = IMPATIENT_SECONDS if self._inbox.is_held_by_us else BEGIN_WITHIN_SECONDS
        waited = (hurried if one.impatient else BEGIN_WITHIN_SECONDS for one in late)
        self._answer(
            late,
            [
                StorageBusy(
                    f"{self.location.path} took no write for {seconds:.0f} s: {why}; nothing was stored, try again"
                )
                for seconds in waited
            ],
        )
        self._calls.flush()

    def _refuse_what_waits(self) -> None:
        while not self._inbox.is_empty():
            self._inbox.gather(0.0)
            group = self._inbox.next_group()
            self._answer(group, [self._broken] * len(group))
        self._calls.flush()

    def _break_if_hopeless(self, error: Exception) -> None:
        if isinstance(error, StorageUnusable):
            self._break(error)
        elif isinstance(error, sqlite3.Error) and is_fatal(error):
            self._break(translated(error, self.location))
        elif isinstance(error, OutcomeUnknown):
            # Trust nothing that this connection remembers. The next group opens a new one, if it can by then.
            self._disconnect()

    def _break(self, error: DurableQError) -> None:
        """Refuse everything from now on."""
        if self._broken is None:
            self._broken = error
            logger.critical("%s", error)


def _unknown(error: OutcomeUnknown, addition: Addition) -> OutcomeUnknown:
    ids = tuple(job.id for job in addition.jobs)
    return OutcomeUnknown(f"{error}: {', '.join(ids)}", job_ids=ids)


def holder_of(path: Path) -> int | None:
    """Return the process that has the write lock of a database, where the system tells."""
    return host.lock_holder(Location(path).shm, WRITE_LOCK_BYTE)


def locked_by(path: Path) -> str:
    """Say who has the write lock of a database, and what to do when that is this process; empty when nobody knows."""
    holder = holder_of(path)
    if holder is None:
        return ""
    if holder == host.own_pid():
        return f" by a transaction of this very process that has written and not committed: {REMEDIES}"
    return f" by process {holder}"
