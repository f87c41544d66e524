"""What tortured processes write down while they live, and what has to hold of it in the end.

Every fact is one line, appended by one ``write`` to a file opened with ``O_APPEND``: it outlives a SIGKILL, and is
never half there beside another. Instants are of the monotonic clock, which all processes of a host share, so the runs
of several processes can be laid side by side. `broken_promises` is pure: facts in, sentences out.
"""

import json
import os
import sqlite3
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, NamedTuple

FINISHED: Final = ("succeeded", "dead", "cancelled")
WORKER_DIED: Final = "durableq.WorkerDied"


class Entry(NamedTuple):
    """One line. What a kind does not need is empty."""

    kind: str
    """Of the process: ``ready``, ``evicted``, ``trouble``, ``failed``, ``left``. Of adding: ``added``, ``refused``,
    ``unknown``. Of a run: ``start``, ``end``. Of what was written for it: ``settled``, ``lost``.
    """
    at: float
    """Seconds of the monotonic clock."""
    job_id: str = ""
    lease_no: int = 0
    attempt: int = 0
    note: str = ""
    """How a run ended, which state was written, what the trouble was."""


def _entry(kind: str, at: float, job_id: str, lease_no: int, attempt: int, note: str) -> Entry:
    intern = sys.intern  # a few words and ids, each in many lines
    return Entry(intern(kind), at, intern(job_id), lease_no, attempt, intern(note))


class LedgerWriter:
    """Appends to the ledger of one process. May be used from any thread."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)

    def note(self, kind: str, job_id: str = "", lease_no: int = 0, attempt: int = 0, note: str = "") -> None:
        self.note_all(kind, [job_id], lease_no, attempt, note)

    def note_all(self, kind: str, job_ids: Iterable[str], lease_no: int = 0, attempt: int = 0, note: str = "") -> None:
        """Append a line for each of these jobs, all by one ``write``."""
        now = time.monotonic()
        lines = [json.dumps([kind, now, one, lease_no, attempt, note]) for one in job_ids]
        os.write(self._file, "".join(f"{line}\n" for line in lines).encode())


class Ledger:
    """The ledger of one process, read while it grows."""

    def __init__(self, path: Path, process: int) -> None:
        self.process = process
        self.entries: list[Entry] = []
        self._path = path
        self._offset = 0

    def read(self) -> list[Entry]:
        """Read what is new, and return it."""
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            text = file.read()
        whole = text[: text.rfind(b"\n") + 1]
        self._offset += len(whole)
        fresh = [_entry(*json.loads(line)) for line in whole.splitlines()]
        self.entries += fresh
        return fresh

    @property
    def size(self) -> int:
        """Bytes that are written by now."""
        return self._path.stat().st_size if self._path.exists() else 0

    def has(self, kind: str) -> bool:
        """Whether it says this by now."""
        self.read()
        return any(entry.kind == kind for entry in self.entries)

    def ids(self, kind: str) -> list[str]:
        return [entry.job_id for entry in self.entries if entry.kind == kind]

    def runs(self) -> list["Run"]:
        """All runs of this process, in the order of their start."""
        runs: dict[tuple[str, int], Run] = {}
        for entry in self.entries:
            key = entry.job_id, entry.lease_no
            if entry.kind == "start":
                runs[key] = Run(entry.job_id, entry.lease_no, entry.attempt, self.process, entry.at)
            elif entry.kind == "end":
                runs[key].ended_at, runs[key].how = entry.at, entry.note
        return list(runs.values())


@dataclass(slots=True)
class Run:
    """One start of a job, and its end where there was one."""

    job_id: str
    lease_no: int
    attempt: int
    process: int
    started_at: float
    ended_at: float | None = None
    how: str = ""
    """``returned``, ``raised``, ``snoozed`` or ``cancelled``; empty: it never ended."""


@dataclass(frozen=True, slots=True)
class Row:
    """A job as it is stored."""

    id: str
    state: str
    attempt: int
    crashes: int
    lease_no: int
    error_type: str | None = None


@dataclass(frozen=True, slots=True)
class Try:
    """An attempt that did not succeed, as it is stored."""

    job_id: str
    lease_no: int
    attempt: int
    error_type: str


@dataclass(slots=True)
class Story:
    """All that is known in the end: what the processes wrote down, and what is in the database."""

    rows: Mapping[str, Row]
    tries: list[Try] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    added: list[str] = field(default_factory=list)
    """Jobs that were acknowledged."""
    refused: list[str] = field(default_factory=list)
    """Jobs of which it was said that they are not stored."""
    unknown: list[str] = field(default_factory=list)
    """Jobs of which nobody could say whether they are stored."""
    settled: list[tuple[str, int, str]] = field(default_factory=list)
    """``(id, lease, state)``: what workers were told that they had written."""
    deaths: Mapping[int, float] = field(default_factory=dict)
    """By process, an instant from which on its leases no longer held: it was killed then, or stopped for too long."""


def tell(database: Path, ledgers: Iterable[Ledger], deaths: Mapping[int, float]) -> Story:
    """Read all ledgers to their ends, and the database."""
    story = Story({row.id: row for row in _rows(database)}, list(_tries(database)), deaths=deaths)
    for ledger in ledgers:
        ledger.read()
        story.runs += ledger.runs()
        story.added += ledger.ids("added")
        story.refused += ledger.ids("refused")
        story.unknown += ledger.ids("unknown")
        story.settled += [(one.job_id, one.lease_no, one.note) for one in ledger.entries if one.kind == "settled"]
    return story


def broken_promises(story: Story) -> list[str]:
    """Say what must not be. All jobs are expected to have finished by now."""
    return [
        *_lost(story),
        *_unfinished(story),
        *_stored_although_refused(story),
        *_runs_of_nothing(story),
        *_overlapping(story),
        *_holes(story),
        *_crashes_not_counted(story),
        *_taken_from_the_living(story),
        *_settled_twice(story),
    ]


def lost_jobs(story: Story) -> list[str]:
    """Return the acknowledged jobs that are not stored."""
    return [job_id for job_id in story.added if job_id not in story.rows]


def _lost(story: Story) -> Iterator[str]:
    for job_id in lost_jobs(story):
        yield f"job {job_id} was acknowledged and is not stored"


def _unfinished(story: Story) -> Iterator[str]:
    for row in story.rows.values():
        if row.state not in FINISHED:
            yield f"job {row.id} is still {row.state}, though there was time to finish it"


def _stored_although_refused(story: Story) -> Iterator[str]:
    for job_id in story.refused:
        if job_id in story.rows:
            yield f"job {job_id} was reported as not stored, and is stored"


def _runs_of_nothing(story: Story) -> Iterator[str]:
    for run in story.runs:
        if run.job_id not in story.rows:
            yield f"job {run.job_id} ran in process {run.process} and is not stored"


def _overlapping(story: Story) -> Iterator[str]:
    for job_id, runs in _by_job(story.runs).items():
        for earlier, later in pairwise(sorted(runs, key=lambda run: run.started_at)):
            ended_at = _end(earlier, story.deaths)
            if ended_at is None or ended_at > later.started_at:
                yield (
                    f"job {job_id} started in process {later.process} (lease {later.lease_no}) while it ran in process "
                    f"{earlier.process} (lease {earlier.lease_no})"
                )
            if later.lease_no <= earlier.lease_no:
                yield f"job {job_id} started under lease {later.lease_no} after lease {earlier.lease_no}"


def _end(run: Run, deaths: Mapping[int, float]) -> float | None:
    """When a run, or its right to run, was over."""
    return min((at for at in (run.ended_at, deaths.get(run.process)) if at is not None), default=None)


def _holes(story: Story) -> Iterator[str]:
    """Attempts are 1 to k: each was run, or is on record as failed; and each counted one ended exactly once."""
    runs, tries = _by_job(story.runs), _by_job(story.tries)
    for row in story.rows.values():
        seen = {one.attempt for one in (*runs.get(row.id, ()), *tries.get(row.id, ()))}
        if seen != set(range(1, row.attempt + 1)):
            yield f"job {row.id} counts {row.attempt} attempts, of which are known: {sorted(seen)}"
        failed = [one.attempt for one in tries.get(row.id, ())]
        if row.state == "succeeded" and sorted(failed) != list(range(1, row.attempt)):
            yield f"job {row.id} succeeded at attempt {row.attempt}; failures on record: {sorted(failed)}"


def _crashes_not_counted(story: Story) -> Iterator[str]:
    """A crash is counted once: for each run that a death cut off, and for each death on record."""
    died = _by_job(one for one in story.tries if one.error_type == WORKER_DIED)
    cut_off = _by_job(run for run in story.runs if run.ended_at is None and run.process in story.deaths)
    for row in story.rows.values():
        on_record = {one.lease_no for one in died.get(row.id, ())}
        if row.crashes != len(on_record):
            yield f"job {row.id} counts {row.crashes} crashes; deaths on record: {len(on_record)}"
        for run in cut_off.get(row.id, ()):
            if run.lease_no not in on_record:
                yield f"job {row.id} died with process {run.process} under lease {run.lease_no}; nothing is on record"
        if row.state == "dead" and row.error_type != WORKER_DIED:
            yield f"job {row.id} is dead by {row.error_type}, which nobody raised for good"


def _taken_from_the_living(story: Story) -> Iterator[str]:
    """A death on record is the death of a process."""
    process_of = {(run.job_id, run.lease_no): run.process for run in story.runs}
    for one in story.tries:
        if one.error_type != WORKER_DIED:
            continue
        process = process_of.get((one.job_id, one.lease_no))
        if not story.deaths or (process is not None and process not in story.deaths):
            who = "some process" if process is None else f"process {process}"
            yield f"job {one.job_id} was taken from {who} under lease {one.lease_no}, which lived"


def _settled_twice(story: Story) -> Iterator[str]:
    ends: dict[str, set[int]] = defaultdict(set)
    leases: dict[tuple[str, int], list[str]] = defaultdict(list)
    for job_id, lease_no, state in story.settled:
        leases[job_id, lease_no].append(state)
        if state in FINISHED:
            ends[job_id].add(lease_no)
    for (job_id, lease_no), states in leases.items():
        if len(states) > 1:
            yield f"lease {lease_no} of job {job_id} was settled more than once: {states}"
    for job_id, lease_nos in ends.items():
        row = story.rows.get(job_id)
        if row is not None and lease_nos != {row.lease_no}:
            yield f"job {job_id} was finished under the leases {sorted(lease_nos)}; the last is {row.lease_no}"


def _by_job(things: Iterable[Any]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = defaultdict(list)
    for thing in things:
        found[thing.job_id].append(thing)
    return found


# -- the database, from outside --------------------------------------------------------------------------------


def fetch(database: Path, sql: str, *values: object) -> list[tuple[Any, ...]]:
    """Read with a connection of one's own."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True, timeout=10)) as connection:
        return connection.execute(sql, values).fetchall()


def is_whole(database: Path) -> bool:
    """Whether SQLite finds nothing wrong with the file."""
    return fetch(database, "PRAGMA integrity_check") == [("ok",)]


def _rows(database: Path) -> Iterator[Row]:
    sql = "SELECT id, state, attempt, crashes, lease_no, error_type FROM durableq_jobs"
    return (Row(*row) for row in fetch(database, sql))


def _tries(database: Path) -> Iterator[Try]:
    sql = "SELECT id, a.lease_no, a.attempt, a.error_type FROM durableq_attempts a JOIN durableq_jobs USING (seq)"
    return (Try(*row) for row in fetch(database, sql))
