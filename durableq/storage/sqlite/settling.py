"""Ends leases: which statements, in which order.

Most jobs need one. Only those with limits, unique keys or a result to be dropped, and those that go back to waiting,
are looked at again; the rest must not pay for them.
"""

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

from durableq.models import Cancelled, Lease, Outcome
from durableq.storage.protocol import Plan
from durableq.storage.sqlite import rows
from durableq.storage.sqlite.statements import SQL

Settled = Sequence[tuple[Lease, Outcome]]


@dataclass(slots=True)
class Settlement:
    """Outcomes for leases, encoded."""

    outcomes: str = "[]"
    count: int = 0
    attempts: str | None = None
    """The failures among them."""
    waiting: str | None = None
    """Those that go back to waiting, by ``seq``."""
    special: str | None = None
    """Those whose end has to be noted in further columns, by ``seq``."""

    @property
    def size(self) -> int:
        return len(self.outcomes) + len(self.attempts or "")


NOTHING = Settlement()


def settlement_of(settled: Settled, now: int) -> Settlement:
    """Encode outcomes. ``now`` is wall time in microseconds."""
    if not settled:
        return NOTHING
    waiting = [lease.seq for lease, outcome in settled if not rows.is_final(outcome)]
    special = [lease.seq for lease, outcome in settled if lease.settings is not None or type(outcome) is Cancelled]
    return Settlement(
        outcomes=rows.outcomes_json(settled, now),
        count=len(settled),
        attempts=rows.attempts_json(settled),
        waiting=json.dumps(waiting) if waiting else None,
        special=json.dumps(special + waiting) if special or waiting else None,
    )


def settle(connection: sqlite3.Connection, settlement: Settlement, now: int) -> int:
    """Write outcomes, fenced; return how many leases still held."""
    if settlement.attempts is not None:
        connection.execute(SQL["insert_attempts"], {"attempts": settlement.attempts, "now": now})
    settled = connection.execute(SQL["settle"], {"outcomes": settlement.outcomes}).rowcount
    if settlement.waiting is not None:
        connection.execute(SQL["cancel_as_asked"], {"seqs": settlement.waiting, "now": now})
    if settlement.special is not None:
        connection.execute(SQL["note_end"], {"seqs": settlement.special})
    return settled


def completion(settlement: Settlement) -> Plan[bool]:
    """Settle successes on another connection; return whether all leases still hold. If not, nothing is written."""
    found = yield SQL["lost_leases"], {"outcomes": settlement.outcomes}
    if found[0][0] != "[]":
        return False
    yield SQL["settle"], {"outcomes": settlement.outcomes}
    if settlement.special is not None:
        yield SQL["note_end"], {"seqs": settlement.special}
    return True
