"""Who must hear of a commit, and whose commits we must hear of.

Own commits wake the workers of this process; a commit that adds work also rings the other processes' doorbells.
What others commit is noticed by ``PRAGMA data_version``, four times a second at rest. One timer serves the next
scheduled job. The table is never polled blindly.
"""

import asyncio
import math
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final, NamedTuple

from durableq.clock import SECOND, Clock
from durableq.errors import InvariantBroken
from durableq.models import LeaseKey
from durableq.storage.protocol import Cancel, WakeUp
from durableq.storage.sqlite import host
from durableq.storage.sqlite.group import Effects, GroupRunner, earlier
from durableq.storage.sqlite.replies import LoopCalls
from durableq.storage.sqlite.statements import SQL

LOOK_SECONDS: Final = 0.25
_SHORTEST_LOOK_SECONDS: Final = 0.02
"""However often others ring."""
_PATIENCE_SECONDS: Final = 60.0
_AFTERWARDS_SECONDS: Final = 0.1
"""SQLite says that a transaction is over when its commit begins; the disk may take this long to end it."""
_CLOSE_LOOK_SECONDS: Final = 0.005
"""While a transaction of the application is open that will leave jobs."""
PROMOTE_AT_ONCE: Final = 500
"""Due jobs made ready in one transaction: 4.5 ms measured, where 93,500 at once took 645 ms."""
PROMOTE_RETRY_SECONDS: Final = 0.01


@dataclass(slots=True)
class _Guest:
    """A transaction of the application, on another connection of this process."""

    is_open: Callable[[], bool]
    until: float
    """Monotonic seconds: from then on it is looked for like any other."""
    is_over: bool = False


class Listener(NamedTuple):
    """A worker of this process, and how to reach it on its event loop."""

    loop: asyncio.AbstractEventLoop
    worker_id: int
    wake_up: WakeUp
    cancel: Cancel


class Lookout:
    """Lives on the writer thread, except `listen`, `watch`, their ends, and reading the names."""

    def __init__(self, clock: Clock, runner: GroupRunner, ringer: host.Ringer, calls: LoopCalls) -> None:
        self.own_workers: set[int] = set()
        """Ids registered by this process."""
        self.others: tuple[int, ...] = ()
        """Ids of other processes on the file, as of the latest look."""
        self._clock = clock
        self._runner = runner
        self._ringer = ringer
        self._calls = calls
        self._sleepers: dict[object, Listener] = {}
        self._watchers: dict[object, tuple[asyncio.AbstractEventLoop, Callable[[], None]]] = {}
        self._guest: _Guest | None = None
        """The newest is enough: only one transaction can have the write lock, so those before it are over."""
        self.saw_others_at = -math.inf
        """When a commit of somebody else was last seen; monotonic seconds."""
        self._next_due: int | None = None
        self.next_limit: int | None = None
        """When the next job expires, or should be finished; it may be over already."""
        self._doorbells: tuple[int, ...] = ()
        self._promote_again_at = 0.0
        self._data_version: int | None = None
        self._next_look = 0.0
        self._latest_look = 0.0

    def listen(self, token: object, listener: Listener) -> None:
        self._sleepers[token] = listener
        self._next_look = 0.0

    def unlisten(self, token: object) -> None:
        self._sleepers.pop(token, None)

    def watch(self, token: object, loop: asyncio.AbstractEventLoop, look: Callable[[], None]) -> None:
        """Call ``look`` when a job may be finished, until `unwatch`."""
        self._watchers[token] = (loop, look)

    def unwatch(self, token: object) -> None:
        self._watchers.pop(token, None)

    def expect_foreign_commit(self, is_open: Callable[[], bool]) -> None:
        """Look often until a transaction of the application, that leaves jobs, is no longer open."""
        now = time.monotonic()
        self._guest = _Guest(is_open, now + _PATIENCE_SECONDS)
        self._next_look = min(self._next_look, now + _CLOSE_LOOK_SECONDS)

    def look_soon(self, *, at_once: bool = False) -> bool:
        """Look for foreign commits as soon as it is sensible; False when that was the plan already."""
        now = time.monotonic()
        soon = now if at_once else max(now, self._latest_look + _SHORTEST_LOOK_SECONDS)
        if self._next_look <= soon:
            return False
        self._next_look = soon
        return True

    def learn_again(self) -> None:
        """Have the next look read the workers anew: a commit of our own has changed them."""
        self._data_version = None

    def sleep_seconds(self) -> float | None:
        """How long the writer may sleep; None: until something arrives."""
        if not self._sleepers and not self.own_workers and not self._watchers:
            return None
        seconds = self._next_look - time.monotonic()
        if self._sleepers and self._next_due is not None:
            until_due = (self._next_due - self._clock.wall()) / SECOND
            seconds = min(seconds, max(until_due, self._promote_again_at - time.monotonic()))
        return max(seconds, 0.0)

    def announce(self, effects: Effects) -> None:
        """After a commit of our own: remember its names and due times, wake who may have work."""
        self._runner.known_queues |= effects.new_queues
        self._runner.known_tasks |= effects.new_tasks
        self._runner.described_tasks |= effects.new_tasks
        self._next_due = earlier(self._next_due, effects.first_due)
        self.next_limit = earlier(self.next_limit, effects.first_limit)
        new_names = bool(effects.new_queues or effects.new_tasks)
        if effects.made_work or new_names:
            self._wake(new_names=new_names)
        if effects.made_work or effects.asked_to_cancel:
            self._ring_for_work()
        if effects.finished:
            self._tell_watchers()
            self._ring_for_finished()

    def note_cancellations(self, connection: sqlite3.Connection) -> None:
        """Tell the workers of this process which of their jobs somebody wants ended."""
        asked: dict[int, list[LeaseKey]] = {}
        for worker_id, seq, lease_no in connection.execute(SQL["cancelling"]).fetchall():
            asked.setdefault(worker_id, []).append((seq, lease_no))
        for listener in tuple(self._sleepers.values()):
            if listener.worker_id in asked:
                self._calls.add(listener.loop, partial(listener.cancel, asked[listener.worker_id]))

    def look(self, connection: sqlite3.Connection) -> int:
        """Look for foreign commits and due jobs, if it is time; return how many rows were changed."""
        now = time.monotonic()
        if now >= self._next_look:
            self._latest_look = now
            self._next_look = now + LOOK_SECONDS
            # Asked before the look: a commit that comes in between is seen by the next one.
            had_guest = self._has_guest(now)
            if had_guest:
                self._next_look = min(self._next_look, now + _CLOSE_LOOK_SECONDS)
            version = connection.execute("PRAGMA data_version").fetchone()[0]
            if version != self._data_version:
                if self._data_version is not None:  # else it is the first look, which tells of nobody
                    self.saw_others_at = now
                self._data_version = version
                try:
                    self.learn(connection)
                except BaseException:
                    self.learn_again()  # what could not be read is looked for again
                    raise
                if had_guest:  # it may be ours: nobody else tells the other processes of it
                    self._ring_for_work()
                    self._ring_for_finished()
        is_due = self._next_due is not None and self._next_due <= self._clock.wall()
        if is_due and self._sleepers and now >= self._promote_again_at:
            self._promote_again_at = now + PROMOTE_RETRY_SECONDS  # should the lock be held by another
            promoted = self._promote(connection)
            self._promote_again_at = 0.0
            return promoted
        return 0

    def _has_guest(self, now: float) -> bool:
        guest = self._guest
        if guest is None or now >= guest.until:
            return False
        if not guest.is_over and not guest.is_open():
            guest.is_over = True
            guest.until = min(guest.until, now + _AFTERWARDS_SECONDS)
        return True

    def learn(self, connection: sqlite3.Connection) -> None:
        """Read what other connections may have changed: names, due times, workers, requests to cancel."""
        new_names = self._read_names(connection)
        self._next_due = connection.execute(SQL["next_due"]).fetchone()[0]
        self.learn_limit(connection)
        workers = connection.execute(SQL["list_workers"]).fetchall()
        others = [(worker_id, expires_at) for worker_id, _, expires_at in workers if worker_id not in self.own_workers]
        self.others = tuple(worker_id for worker_id, _ in others)
        self._doorbells = tuple(worker_id for worker_id, expires_at in others if expires_at is not None)
        self.note_cancellations(connection)
        self._wake(new_names=new_names)
        self._tell_watchers()

    def learn_limit(self, connection: sqlite3.Connection) -> None:
        """Read when the next job expires, or should be finished."""
        self.next_limit = connection.execute(SQL["next_limit"]).fetchone()[0]

    def _read_names(self, connection: sqlite3.Connection) -> bool:
        queues = {row[0] for row in connection.execute("SELECT name FROM durableq_queues").fetchall()}
        tasks = {row[0] for row in connection.execute("SELECT name FROM durableq_tasks").fetchall()}
        is_news = queues != self._runner.known_queues or tasks != self._runner.known_tasks
        self._runner.known_queues, self._runner.known_tasks = queues, tasks
        return is_news

    def _promote(self, connection: sqlite3.Connection) -> int:
        """scheduled -> queued for what is due, the earliest first, and set the timer anew."""
        connection.execute("BEGIN IMMEDIATE")
        try:
            values = {"now": self._clock.wall(), "limit": PROMOTE_AT_ONCE}
            promoted = connection.execute(SQL["promote_due"], values).rowcount
            next_due = connection.execute(SQL["next_due"]).fetchone()[0]
            if promoted < PROMOTE_AT_ONCE and next_due is not None and next_due <= values["now"]:
                raise InvariantBroken("making due jobs ready", expected="none to be left", found="some that stay due")
            connection.execute("COMMIT")
        except BaseException:
            if connection.in_transaction:
                connection.execute("ROLLBACK")
            raise
        self._next_due = next_due
        if promoted:
            self._wake(new_names=False)
        return promoted

    def _wake(self, *, new_names: bool) -> None:
        for listener in tuple(self._sleepers.values()):
            self._calls.add(listener.loop, partial(listener.wake_up, new_names))

    def _ring_for_work(self) -> None:
        for worker_id in self._doorbells:
            self._ringer.ring(worker_id)

    def _ring_for_finished(self) -> None:
        for worker_id in self.others:
            self._ringer.ring(worker_id, host.FINISHED)

    def _tell_watchers(self) -> None:
        for loop, look in tuple(self._watchers.values()):
            self._calls.add(loop, look)
