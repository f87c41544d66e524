"""Starts durableq on disks that a power cut left: it has to take them as they are, and go on.

The disks are kept until there are a few, for one child process opens them all, one after another.
"""

import asyncio
import contextlib
import shutil
from pathlib import Path
from typing import Any, Final, NamedTuple

from durableq.models import ClaimRequest, JobState, Lane, Lease, Outcome, Retried, Succeeded
from durableq.storage.protocol import Storage
from durableq.torture.children import Say, running
from durableq.torture.evidence import examine_alone
from durableq.torture.workload import BOOM, QUEUE, TASK, new_job, open_storage

_AT_ONCE: Final = 10
_SECONDS_EACH: Final = 30.0


class _Kept(NamedTuple):
    """The copy of a disk, how it came about, and what must be on it."""

    name: str
    database: Path
    stored: frozenset[str]


class Reopened:
    """Disks to be opened by durableq, and what came of those that were."""

    def __init__(self, directory: Path) -> None:
        self.tried = 0
        self.wrong: list[str] = []
        self._directory = directory
        self._waiting: list[_Kept] = []

    def add(self, name: str, database: Path, stored: frozenset[str]) -> None:
        """Copy a disk, to be opened before long; afterwards the jobs ``stored`` must still be there."""
        copy = copied(database, self._directory / f"reopened-{len(self._waiting)}")
        self._waiting.append(_Kept(name, copy, stored))
        if len(self._waiting) == _AT_ONCE:
            self.finish()

    def finish(self) -> None:
        """Open all that wait, and look at what was made of them."""
        waiting, self._waiting = self._waiting, []
        troubles = _work_on([kept.database for kept in waiting])
        for kept, trouble in zip(waiting, troubles, strict=True):
            self.tried += 1
            findings = [trouble] if trouble else examine_alone(kept.database, kept.stored)
            self.wrong += [f"{kept.name}, then opened by durableq: {finding}" for finding in findings]
            shutil.rmtree(kept.database.parent)


def copied(database: Path, directory: Path) -> Path:
    """Copy a database and its companions into a new directory, and return the path of the copy."""
    directory.mkdir()
    for suffix in ("", "-wal", "-journal"):
        with contextlib.suppress(FileNotFoundError):
            shutil.copy(database.with_name(database.name + suffix), directory)
    return directory / database.name


def _work_on(databases: list[Path]) -> list[str | None]:
    """Return, for each, what went wrong, or None."""

    def live(say: Say) -> None:
        for database in databases:
            say(_trouble_with(database))

    if not databases:
        return []
    with running(live) as child:
        code = child.wait(_SECONDS_EACH * len(databases))
        said: list[Any] = child.said()
    return said + [f"the process ended with {code}"] * (len(databases) - len(said))


def _trouble_with(database: Path) -> str | None:
    try:
        asyncio.run(go_on(database))
    except Exception as error:  # the reason is what is asked for
        return f"{type(error).__name__}: {error}"
    return None


async def go_on(database: Path) -> None:
    """Take over what the lost process held, add a job, and run everything that can run."""
    storage = open_storage(database)
    await storage.open()
    try:
        await storage.register(lambda new_names: None)
        await storage.reap(_run_again)
        job = new_job(text="after the power cut")
        await storage.insert([job])
        await _run_everything(storage)
        stored, counts = await storage.get(job.id), await storage.counts()
        if stored is None or stored.state != JobState.SUCCEEDED:
            raise AssertionError(f"a job that was added afterwards should have succeeded: {stored}")
        if left := counts[JobState.RUNNING] + counts[JobState.QUEUED]:
            raise AssertionError(f"{left} jobs are left that nobody can run: {counts}")
        await storage.deregister()
    finally:
        await storage.close()


async def _run_everything(storage: Storage) -> None:
    lanes = (Lane("loop", (TASK,), 100),)
    held: list[Lease] = []
    while True:
        settled = [(lease, Succeeded(None)) for lease in held]
        exchanged = await storage.exchange(settled, ClaimRequest((QUEUE,), lanes, (TASK,)))
        if exchanged.lost:
            raise AssertionError(f"leases were lost, though nobody took them: {exchanged.lost}")
        held = exchanged.leases
        if not held:
            return


def _run_again(lease: Lease, reason: str, charged: bool) -> Outcome:
    return Retried(BOOM, run_at=None, crashed=charged)
