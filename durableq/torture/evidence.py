"""Weighs a disk that a power cut left against what was said before it.

What the storage had acknowledged must be there; what it was about to do may be there, whole; nothing else may.
"""

import contextlib
import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple

from durableq.codec import checksum
from durableq.models import FINISHED, JobState

STATES: Final = frozenset(str(state) for state in JobState)
_FINISHED: Final = frozenset(str(state) for state in FINISHED)


@dataclass(slots=True)
class Findings:
    """What is wrong with a disk."""

    lost: list[str] = field(default_factory=list)
    """Acknowledged, and not there: one sentence for each job."""
    broken: list[str] = field(default_factory=list)
    """Damaged, half done or impossible."""

    def __bool__(self) -> bool:
        return bool(self.lost or self.broken)


class Addition(NamedTuple):
    """Jobs that are stored together or not at all, perhaps with the success of another."""

    ids: tuple[str, ...]
    parent: str | None


class Expectations:
    """What must, may and must not be on the disk, given all that was said so far."""

    def __init__(self) -> None:
        self._stored: set[str] = set()
        """Acknowledged, and not on their way out."""
        self._additions: dict[int, Addition] = {}
        self._addition_of: dict[str, int] = {}
        self._under_way: set[int] = set()
        """Additions that nobody has acknowledged yet."""
        self._asked: dict[str, set[str]] = {}
        """The end states that a job may have, because somebody asked for them."""
        self._ended: dict[str, str] = {}
        """Acknowledged ends."""
        self._undone: dict[str, str] = {}
        """Ends that were acknowledged as taken back, and that nobody has asked for again."""
        self._reviving: dict[str, str] = {}
        """Jobs that are being retried, with the end they had; until another end is asked for."""
        self._leaving: set[str] = set()
        """Deleted, or about to be."""
        self._gone: set[str] = set()
        """Acknowledged as deleted."""

    @property
    def stored(self) -> frozenset[str]:
        """The jobs that must be there, in whatever state."""
        return frozenset(self._stored)

    def hear(self, said: list[Any]) -> None:
        """Take in one utterance of `workload`."""
        what, *values = said
        match what:
            case "adding":
                self._adding(*values)
            case "added":
                self._under_way.discard(values[0])
                self._stored.update(set(values[1]) - self._leaving)
            case "ending":
                self._ending(values[0])
            case "ended":
                self._ended.update(values[0])
            case "reviving":
                self._reviving[values[0]] = self._ended.pop(values[0])
            case "revived":
                if values[0] in self._reviving:
                    self._undone[values[0]] = self._reviving.pop(values[0])
            case "deleting":
                self._deleting(values[0])
            case "deleted":
                self._gone.update(values[0])

    def _adding(self, number: int, ids: list[str], parent: str | None) -> None:
        self._additions[number] = Addition(tuple(ids), parent)
        self._addition_of.update(dict.fromkeys(ids, number))
        self._under_way.add(number)

    def _ending(self, ends: Mapping[str, str]) -> None:
        for job_id, end in ends.items():
            self._asked.setdefault(job_id, set()).add(end)
            self._undone.pop(job_id, None)
            self._reviving.pop(job_id, None)

    def _deleting(self, ids: list[str]) -> None:
        self._leaving.update(ids)
        self._stored.difference_update(ids)

    def weigh(self, found: Mapping[str, str]) -> Findings:
        """Compare with the state of each job that is on the disk."""
        missing = self._stored - found.keys()
        lost = [f"job {job_id} was acknowledged and is not there" for job_id in missing]
        lost += [
            f"job {job_id} was acknowledged as {end} and is {found[job_id]}"
            for job_id, end in self._ended.items()
            if found.get(job_id, end) != end
        ]
        lost += [
            f"job {job_id} is {end} again, though its retry was acknowledged"
            for job_id, end in self._undone.items()
            if found.get(job_id) == end
        ]
        lost += [
            f"job {job_id} is there again, though its deletion was acknowledged" for job_id in self._gone & found.keys()
        ]
        return Findings(lost, [*self._impossible(found), *self._halves(found, missing)])

    def _impossible(self, found: Mapping[str, str]) -> Iterable[str]:
        for job_id, state in found.items():
            if job_id not in self._addition_of:
                yield f"job {job_id} is there, and nobody has added it"
            elif state in _FINISHED and state not in self._asked.get(job_id, ()):
                yield f"job {job_id} is {state}, and nobody has asked for that"

    def _halves(self, found: Mapping[str, str], missing: set[str]) -> Iterable[str]:
        for number in self._under_way | {self._addition_of[job_id] for job_id in missing}:
            ids, parent = self._additions[number]
            if not self._leaving.isdisjoint(ids):
                continue
            there = sum(job_id in found for job_id in ids)
            if there not in (0, len(ids)):
                yield f"of the {len(ids)} jobs of addition {number}, {there} are there"
            if parent and parent not in self._leaving and (found.get(parent) == JobState.SUCCEEDED) != (there > 0):
                yield f"job {parent} is {found.get(parent)}, but {there} of the jobs that its success adds are there"


def examine(database: Path, expectations: Expectations, *, writable: bool = False) -> Findings:
    """Open a database as SQLite does after a power cut, and weigh what is in it."""
    found: dict[str, str] = {}
    try:
        broken = list(_read(database, found, writable=writable))
    except sqlite3.Error as error:
        return Findings(broken=[f"it cannot be read: {error}"])
    findings = expectations.weigh(found)
    findings.broken[:0] = broken
    return findings


def examine_alone(database: Path, stored: frozenset[str]) -> list[str]:
    """Tell what damage there is in a database, and which of the jobs that must be there are not."""
    found: dict[str, str] = {}
    try:
        broken = list(_read(database, found, writable=True))
    except sqlite3.Error as error:
        return [f"it cannot be read: {error}"]
    return broken + [f"job {job_id} was acknowledged and is not there" for job_id in stored - found.keys()]


def _read(database: Path, found: dict[str, str], *, writable: bool) -> Iterable[str]:
    """Put the state of each job into ``found``; tell what damage is seen on the way."""
    # Without a right to write, SQLite leaves the log where it is when it closes: the image can be used again.
    uri = f"{database.as_uri()}?mode={'rw' if writable else 'ro'}"
    with contextlib.closing(sqlite3.connect(uri, uri=True, isolation_level=None)) as connection:
        [[verdict], *_] = connection.execute("PRAGMA integrity_check(1)")
        if verdict != "ok":
            yield f"it is corrupt: {verdict}"
        tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")}
        if "durableq_jobs" not in tables:
            if "durableq_migrations" in tables:
                yield "its schema is half made"
            return
        for job_id, state, args, stored in connection.execute("SELECT id, state, args, checksum FROM durableq_jobs"):
            found[job_id] = state
            if state not in STATES:
                yield f"job {job_id} is in the state {state!r}, which there is not"
            if not isinstance(args, str) or checksum(args) != stored:  # a torn page gives anything, NULL too
                yield f"the arguments of job {job_id} do not have their checksum"
