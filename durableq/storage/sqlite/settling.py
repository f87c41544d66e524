"""Ends leases: which statements, in which order.

Most jobs need one. Only those with limits, unique keys or a result to be dropped, and those that go back to waiting,
are looked at again; the rest must not pay for them.

Every write says how many rows it must have changed. That costs nothing, for SQLite counts them anyway; a count that
is not right stops the queue (`exactly`), before what rests on it is committed.
"""

import json
import sqlite3
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

from durableq.errors import InvariantBroken
from durableq.models import Cancelled, Dead, Job, Lease, Outcome, Retried, Succeeded
from durableq.storage.protocol import Plan
from durableq.storage.sqlite import rows
from durableq.storage.sqlite.statements import SQL

Settled = Sequence[tuple[Lease, Outcome]]


@dataclass(slots=True)
class Settlement:
    """Outcomes for leases, encoded, and what follows from them."""

    settled: Settled = ()
    now: int = 0
    succeeded: str | None = None
    """Where nothing but successes without a result is settled, under leases of one number: their ``seq``."""
    attempts: str | None = None
    """The failures among them."""
    failed: Sequence[int] = ()
    """Those failures, by ``seq``."""
    waiting: str | None = None
    """Those that go back to waiting, by ``seq``."""
    special: str | None = None
    """Those whose end has to be noted in further columns, by ``seq``."""
    follow_ups: Sequence[tuple[int, Sequence[Job[Any]]]] = ()
    """By ``seq``: jobs to be stored if the success of the one that added them is."""
    first_due: int | None = None
    """When the first of those that go back is due."""
    has_queued: bool = False
    """Whether one of them may run at once."""
    has_final: bool = False
    """Whether a job is finished by it."""
    _outcomes: str | None = field(default=None, compare=False, repr=False)

    @property
    def count(self) -> int:
        return len(self.settled)

    @property
    def outcomes(self) -> str:
        """All of them, as ``settle`` reads them. Written when first asked for: most settlements do without."""
        if self._outcomes is None:
            self._outcomes = rows.outcomes_json(self.settled, self.now)
        return self._outcomes

    @property
    def size(self) -> int:
        return len(self.outcomes if self.succeeded is None else self.succeeded) + len(self.attempts or "")


NOTHING: Final = Settlement()


def settlement_of(settled: Settled, now: int) -> Settlement:
    """Encode outcomes. ``now`` is wall time in microseconds."""
    if not settled:
        return NOTHING
    settlement = Settlement(settled, now)
    seqs = _plainly_succeeded(settled)
    if seqs is not None:
        settlement.succeeded = json.dumps(seqs)
        settlement.has_final = True
        return settlement
    special = [lease.seq for lease, _ in settled if lease.settings is not None]
    if all(type(outcome) is Succeeded for _, outcome in settled):  # with results, limits or follow-up jobs
        settlement.has_final = True
    else:
        special += _add_the_others(settlement, settled, now)
    if special:
        settlement.special = json.dumps(special)
    settlement.follow_ups = [
        (lease.seq, outcome.follow_ups)
        for lease, outcome in settled
        if type(outcome) is Succeeded and outcome.follow_ups
    ]
    return settlement


def _plainly_succeeded(settled: Settled) -> list[int] | None:
    """Return the ``seq`` of successes of which nothing else is to be written; None when one of them is something else.

    One loop and no generators: every job that ends comes by here.
    """
    lease_no = settled[0][0].lease_no
    seqs = []
    for lease, outcome in settled:
        if type(outcome) is not Succeeded or outcome.result_json is not None or outcome.follow_ups:
            return None
        if lease.lease_no != lease_no or lease.settings is not None:
            return None
        seqs.append(lease.seq)
    return seqs


def _add_the_others(settlement: Settlement, settled: Settled, now: int) -> list[int]:
    """Note what follows from outcomes that are no successes; return those to be looked at again."""
    waiting = [lease.seq for lease, outcome in settled if not rows.is_final(outcome)]
    settlement.attempts = rows.attempts_json(settled)
    settlement.failed = [lease.seq for lease, outcome in settled if isinstance(outcome, Retried | Dead | Cancelled)]
    settlement.waiting = json.dumps(waiting) if waiting else None
    settlement.first_due = min(filter(None, (rows.next_run(outcome) for _, outcome in settled)), default=None)
    settlement.has_queued = any(rows.is_ready_again(outcome, now) for _, outcome in settled)
    settlement.has_final = len(waiting) < len(settled)
    return waiting + [lease.seq for lease, outcome in settled if type(outcome) is Cancelled]


class Written(NamedTuple):
    """What a settlement found."""

    held: int
    """How many leases still held."""
    noted: int = 0
    """How many failures went into the history."""
    cancelled: int = 0
    """How many jobs did not go back to waiting, because their end had been asked for."""


def settle(connection: sqlite3.Connection, settlement: Settlement, now: int) -> Written:
    """Write outcomes, fenced. Follow it by `check_settled`."""
    if settlement.succeeded is not None:
        lease_no = settlement.settled[0][0].lease_no
        values = {"seqs": settlement.succeeded, "lease_no": lease_no, "now": settlement.now}
        return Written(connection.execute(SQL["succeed"], values).rowcount)
    noted = 0
    if settlement.attempts is not None:
        noted = connection.execute(SQL["insert_attempts"], {"attempts": settlement.attempts, "now": now}).rowcount
    held = connection.execute(SQL["settle"], {"outcomes": settlement.outcomes}).rowcount
    cancelled = 0
    if settlement.waiting is not None:
        cancelled = connection.execute(SQL["cancel_as_asked"], {"seqs": settlement.waiting, "now": now}).rowcount
    if settlement.special is not None:
        connection.execute(SQL["note_end"], {"seqs": settlement.special})
    return Written(held, noted, cancelled)


def check_settled(settlement: Settlement, written: Written, lost: Collection[int] = ()) -> None:
    """Check what a settlement changed, when those whose lease was gone are known. Raises `InvariantBroken`."""
    exactly(written.held, settlement.count - len(lost), "settling the jobs whose leases hold")
    failed = sum(seq not in lost for seq in settlement.failed) if lost else len(settlement.failed)
    exactly(written.noted, failed, "noting the failures of the jobs that were settled")


def exactly(changed: int, chosen: int, doing: str) -> None:
    """Check that a write changed the rows that were chosen for it in its own transaction. Raises `InvariantBroken`."""
    if changed != chosen:
        raise InvariantBroken(doing, expected=f"{chosen} rows to change", found=f"{changed} changed")


def numbers_in(array: str) -> int:
    """Return how many numbers a JSON array holds, without reading them."""
    return array.count(",") + 1 if array != "[]" else 0


def completion(settlement: Settlement) -> Plan[bool]:
    """Settle successes on another connection; return whether all leases still hold. If not, nothing is written."""
    found = yield SQL["lost_leases"], {"outcomes": settlement.outcomes}
    if found[0][0] != "[]":
        return False
    yield SQL["settle"], {"outcomes": settlement.outcomes}
    if settlement.special is not None:
        yield SQL["note_end"], {"seqs": settlement.special}
    return True
