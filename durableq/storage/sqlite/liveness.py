"""Who is alive: worker rows, the kernel's locks, and the reaping of what dead workers held.

A worker holds a lock on one byte, at the offset of its id, which the kernel frees the instant its process dies;
its row's ``expires_at`` (boot time) covers what still runs but hangs. Reaping by expiry is done only by a reaper
that was not itself held up: after any outage longer than a lease, everybody's lease has run out.
"""

import platform
import sqlite3
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from durableq.clock import SECOND, Clock
from durableq.errors import InvariantBroken, StorageUnusable
from durableq.models import Lease, LeaseKey, Outcome, Reaped, Released
from durableq.storage.protocol import Decide
from durableq.storage.sqlite import host, rows, settling
from durableq.storage.sqlite.statements import SQL
from durableq.version import __version__

PROCESS_DIED: Final = "the worker's process died"
LEASE_EXPIRED: Final = "the worker's lease expired: it hung, or was stopped"
HOST_REBOOTED: Final = "the host was restarted"
LEASES_REMEMBERED: Final = 5_000


@dataclass(slots=True)
class _Foreign:
    """A worker of another run of the kernel, being watched."""

    since: int
    expires_at: int | None


class Renewal(NamedTuple):
    """What a renewal found."""

    holds: bool
    missing: frozenset[LeaseKey] = frozenset()
    """Rows that name this worker but are not in its memory."""
    handed_back: int = 0


class Watch(NamedTuple):
    """What a reaper remembers between its looks: when the latest one was *committed*, and whether it may judge.

    A look that could not be committed does not count: in an outage nobody's renewal gets through, and whoever took
    its own failed looks for watching would find everybody else dead when it ends.
    """

    looked_at: int | None = None
    trusts_expiry_from: int = 0
    living: frozenset[int] = frozenset()
    """The others that were found alive."""


class LeaseNumbers:
    """The leases that this process was given lately: none of them is ever given again. Lives on the event loop.

    It remembers at least the latest `LEASES_REMEMBERED`, and at most twice as many. Most jobs are claimed once, so it
    asks for all leases of a claim together whether anything is known of them.
    """

    def __init__(self) -> None:
        self._latest: dict[int, tuple[int, str]] = {}
        """By ``seq``: ``lease_no`` and ``id``."""
        self._earlier: dict[int, tuple[int, str]] = {}

    def check(self, leases: Sequence[Lease]) -> None:
        """Remember new leases. Raises `InvariantBroken` for one that is not newer than what was given before it."""
        new = {lease[0]: (lease[1], lease[2]) for lease in leases}
        if len(new) < len(leases):
            raise InvariantBroken("claiming jobs", expected="each of them once", found="one of them twice")
        if not (self._latest.keys().isdisjoint(new) and self._earlier.keys().isdisjoint(new)):
            self._check_again(new)
        self._latest.update(new)
        if len(self._latest) >= LEASES_REMEMBERED:
            self._latest, self._earlier = {}, self._latest

    def _check_again(self, new: Mapping[int, tuple[int, str]]) -> None:
        for seq, (lease_no, job_id) in new.items():
            before = self._latest.get(seq) or self._earlier.get(seq)
            if before is not None and (lease_no <= before[0] or job_id != before[1]):
                raise InvariantBroken(
                    f"claiming job {job_id}",
                    expected=f"a lease of job {before[1]} with a number above {before[0]}",
                    found=f"one of job {job_id} with number {lease_no}",
                )


class Liveness:
    """One worker's view of all workers on a file. Its methods run inside the writer's transactions."""

    def __init__(self, clock: Clock, locks: host.LockFile, lease: int, heartbeat: int) -> None:
        self.worker_id: int | None = None
        self._clock = clock
        self._locks = locks
        self._lease = lease
        self._heartbeat = heartbeat
        # A pause of our own that is longer than this may have been everybody's.
        self._longest_pause = max(heartbeat, SECOND)
        self._foreign: dict[int, _Foreign] = {}

    def register(self, connection: sqlite3.Connection, *, leases: bool) -> int:
        """Insert this process's row and take its byte, before anyone can see the row."""
        values = {
            "pid": host.own_pid(),
            "boot_id": self._clock.boot_id(),
            "expires_at": self._clock.boot() + self._lease if leases else None,
            "now": self._clock.wall(),
        }
        worker_id = connection.execute(SQL["register_worker"], values).lastrowid
        if worker_id is None or not self._locks.acquire(worker_id):
            raise StorageUnusable(f"the lock of the new worker {worker_id} is held by another process")
        software = f"durableq {__version__}, Python {platform.python_version()}"
        described = {"worker_id": worker_id, "host": platform.node(), "software": software}
        connection.execute(SQL["describe_worker"], described)
        self.worker_id = worker_id
        return worker_id

    def deregister(self, connection: sqlite3.Connection) -> None:
        """Remove the row. What the worker still holds is handed back, uncounted."""
        if self.worker_id is not None:
            self._hand_back(connection, rows.leases_of_worker(connection, SQL["leases_of_worker"], self.worker_id))
            connection.execute(SQL["delete_worker"], {"worker_id": self.worker_id})

    def let_go(self) -> None:
        """Free the byte, once the row is gone or given up."""
        if self.worker_id is not None:
            self._locks.release(self.worker_id)
            self.worker_id = None

    def renew(
        self,
        connection: sqlite3.Connection,
        expires_at: int,
        held: Collection[LeaseKey] | None,
        missing_before: Collection[LeaseKey],
    ) -> "Renewal":
        """Prolong the lease; it does not hold when this worker has been reaped: a late renewal cannot take it back.

        Also hands back, uncounted, what names this worker but is not in its memory: a committed claim whose answer
        was lost. ``held`` is None while a claim is under way. A row must be missing twice in a row, so that one
        whose answer is just arriving is not mistaken; returns what was missing now, for the next time. (Nothing is
        remembered here: a transaction may be run twice before it commits.)
        """
        values = {"worker_id": self.worker_id, "expires_at": expires_at}
        if connection.execute(SQL["renew_worker"], values).rowcount == 0:
            return Renewal(holds=False)
        if held is None or self.worker_id is None:
            return Renewal(holds=True)
        leases = rows.leases_of_worker(connection, SQL["leases_of_worker"], self.worker_id)
        missing = [lease for lease in leases if lease.key not in held]
        handed_back = [lease for lease in missing if lease.key in missing_before]
        self._hand_back(connection, handed_back)
        return Renewal(True, frozenset(lease.key for lease in missing), len(handed_back))

    def reap(self, connection: sqlite3.Connection, decide: Decide, watch: Watch) -> tuple[list[Reaped], Watch]:
        """Take back what dead workers held: each job through ``decide``, in this transaction.

        Returns what to remember until the next look, to be kept only if this one is committed.
        """
        now = self._clock.boot()  # read after BEGIN: waiting for the lock counts as being held up
        if watch.looked_at is None or now - watch.looked_at > self._longest_pause:
            watch = watch._replace(trusts_expiry_from=now + self._heartbeat)
        if self.worker_id is not None:  # renew before judging others
            connection.execute(SQL["renew_worker"], {"worker_id": self.worker_id, "expires_at": now + self._lease})
        living, dead = self._living_and_dead(connection, now, may_judge=now >= watch.trusts_expiry_from)
        reaped = [self._bury(connection, worker_id, reason, decide) for worker_id, reason in dead]
        return reaped, watch._replace(looked_at=now, living=living)

    def _living_and_dead(
        self, connection: sqlite3.Connection, now: int, *, may_judge: bool
    ) -> tuple[frozenset[int], list[tuple[int, str]]]:
        living, dead = set(), []
        for worker_id, boot_id, expires_at in connection.execute(SQL["list_workers"]).fetchall():
            if worker_id == self.worker_id:
                continue
            reason = self._why_dead(worker_id, boot_id, expires_at, now, may_judge=may_judge)
            if reason is not None:
                dead.append((worker_id, reason))
            elif boot_id == self._clock.boot_id():  # else it is being watched, and most likely gone with its kernel
                living.add(worker_id)
        strays = connection.execute(SQL["strays"]).fetchall()
        return frozenset(living), dead + [(worker_id, PROCESS_DIED) for (worker_id,) in strays]

    def _why_dead(
        self, worker_id: int, boot_id: str, expires_at: int | None, now: int, *, may_judge: bool
    ) -> str | None:
        if boot_id != self._clock.boot_id():
            return self._why_dead_abroad(worker_id, expires_at, now)
        if self._locks.is_free(worker_id):
            return PROCESS_DIED
        if expires_at is not None and expires_at < now and may_judge:
            return LEASE_EXPIRED
        return None

    def _why_dead_abroad(self, worker_id: int, expires_at: int | None, now: int) -> str | None:
        """A row of another boot: dead since a reboot, or alive on another host that shares the file."""
        seen = self._foreign.setdefault(worker_id, _Foreign(now, expires_at))
        if seen.expires_at != expires_at:
            raise StorageUnusable(
                f"worker {worker_id} is alive on another host: two kernels share this database file, and SQLite's "
                "locks do not reach across. Run all workers on one host"
            )
        return HOST_REBOOTED if now - seen.since >= 2 * self._heartbeat else None

    def _bury(self, connection: sqlite3.Connection, worker_id: int, reason: str, decide: Decide) -> Reaped:
        leases = rows.leases_of_worker(connection, SQL["leases_of_worker"], worker_id)
        settled = [(lease, decide(lease, reason, reason != HOST_REBOOTED)) for lease in leases]
        settle(connection, settled, self._clock.wall())
        connection.execute(SQL["delete_worker"], {"worker_id": worker_id})
        self._foreign.pop(worker_id, None)
        return Reaped(worker_id, reason, settled)

    def _hand_back(self, connection: sqlite3.Connection, leases: list[Lease]) -> None:
        settle(connection, [(lease, Released()) for lease in leases], self._clock.wall())


def settle(connection: sqlite3.Connection, settled: list[tuple[Lease, Outcome]], now: int) -> None:
    """Write outcomes from inside another transaction, fenced as always, for leases that were read in it."""
    if settled:
        settlement = settling.settlement_of(settled, now)
        settling.check_settled(settlement, settling.settle(connection, settlement, now))
