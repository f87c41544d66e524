"""What came of it: the numbers, the table that shows them, and which promises they disprove."""

import os
import sys
from dataclasses import dataclass, field

from examples.demo.people import SIGN_UPS
from examples.signup.tasks import CONNECTIONS

RED, GREEN = "31", "32"


@dataclass
class Report:
    """What was noted while the demo ran."""

    acknowledged: int = 0
    acknowledged_before_kill: int = 0
    delivered_before_kill: int = 0
    forgotten: set[str] = field(default_factory=set)  # addresses whose acknowledged job the app did not know any more
    undelivered: set[str] = field(default_factory=set)  # addresses whose mail never came
    delivered: int = 0  # different addresses that got their mail
    mails: int = 0  # those that came twice included
    stored: int = 0  # more than were acknowledged, when an answer was cut off after the commit
    succeeded: int = 0
    asked_again: int = 0
    unreachable: int = 0
    cut_off: int = 0
    put_off: int = 0
    interrupted: int = 0
    dead: list[str] = field(default_factory=list)  # a line for each dead letter
    recovered: int = 0
    kill_to_delivery: float = 0.0

    @property
    def lost(self) -> int:
        return len(self.forgotten | self.undelivered)

    @property
    def signed_up_twice(self) -> int:
        return max(0, self.stored - self.acknowledged)

    @property
    def delivered_twice(self) -> int:
        return max(0, self.mails - max(self.succeeded, self.delivered))

    def table(self) -> str:
        """Lay out the numbers, with a remark to each."""
        before, after = self.acknowledged_before_kill, self.acknowledged - self.acknowledged_before_kill
        asked_again = f"{self.unreachable} requests found no app, {self.cut_off} were cut off"
        retried = f"{self.put_off} put off by the mail server, {self.interrupted} by the kill"
        rows = [
            ("acknowledged", self.acknowledged, f"{before} before the kill, {after} after"),
            ("lost", self.lost, "acknowledged, but forgotten or never delivered"),
            ("delivered", self.delivered, "different addresses, the mended one included"),
            ("delivered twice", self.delivered_twice, "sent, not yet written down; same Message-ID"),
            ("asked again", self.asked_again, asked_again),
            ("signed up twice", self.signed_up_twice, "stored, but killed before the answer"),
            ("retried", self.put_off + self.interrupted, retried),
            ("dead letters", len(self.dead), "; ".join(self.dead)),
            ("recovered", self.recovered, "address edited by an operator, then delivered"),
            ("kill to delivery", f"{self.kill_to_delivery:.1f} s", "the first mail after the restart"),
        ]
        return "\n".join(f"  {label:<16}  {value!s:>6}   {remark}".rstrip() for label, value, remark in rows)

    def broken_promises(self) -> list[str]:
        """Say what did not hold; nothing, when all is well."""
        dead, twice = len(self.dead), self.delivered_twice
        killed_in_time = self.delivered_before_kill < self.acknowledged_before_kill
        forgotten, undelivered = ", ".join(sorted(self.forgotten)), ", ".join(sorted(self.undelivered))
        people = f"{self.acknowledged} people, of whom {self.cut_off} were cut off"
        promises = [
            (self.acknowledged == SIGN_UPS, f"{self.acknowledged} of {SIGN_UPS} sign-ups were acknowledged"),
            (not forgotten, f"{len(self.forgotten)} acknowledged jobs were forgotten: {forgotten}"),
            (not undelivered, f"{len(self.undelivered)} promised mails never came: {undelivered}"),
            (self.succeeded == self.stored, f"{self.succeeded} of {self.stored} stored jobs succeeded in the end"),
            (dead == 1, f"expected one dead letter, found {dead}"),
            (self.recovered == 1, f"expected one dead letter to be recovered, {self.recovered} were"),
            (self.stored <= self.acknowledged + self.cut_off, f"{self.stored} jobs are stored for {people}"),
            (self.mails >= self.succeeded, f"{self.succeeded} jobs succeeded, but only {self.mails} mails came"),
            (twice <= CONNECTIONS, f"{twice} mails came twice; a kill explains only the {CONNECTIONS} under way"),
            (killed_in_time, "the kill came when all was delivered already, which proves nothing"),
        ]
        return [broken for held, broken in promises if not held]


def verdict(report: Report) -> bool:
    """Print the table and whether every promise was kept."""
    print(f"\n{report.table()}\n")
    broken = report.broken_promises()
    for promise in broken:
        print(painted("BROKEN", RED), promise)
    if not broken:
        print(painted("Every promise was kept.", GREEN))
    return not broken


def painted(text: str, color: str) -> str:
    """Color a text, if there are eyes to see it."""
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
        return text
    return f"\033[{color}m{text}\033[0m"
