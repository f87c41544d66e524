"""One blow: an operation on a prepared database, something that hits it, and a look at what is left."""

import asyncio
import contextlib
import shutil
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

from durableq.errors import DurableQError
from durableq.models import Succeeded
from durableq.torture.children import Child, Say, running
from durableq.torture.operations import Found, Operation
from durableq.torture.stores import BESIDE, TASK, at_work, claim, make_job, rows, run_all

_SECONDS: Final = 60.0
"""How long an operation may take under a blow: a few of the longest waits that durableq allows itself, 5 s."""
_UNFINISHED: Final = """
    SELECT id, state FROM durableq_jobs WHERE finished_at IS NULL AND state <> 'scheduled' AND task = ?
"""
_ORPHANS: Final = """
    SELECT count(*) FROM (
        SELECT seq FROM durableq_attempts UNION SELECT seq FROM durableq_logs UNION SELECT seq FROM durableq_aliases
    ) WHERE seq NOT IN (SELECT seq FROM durableq_jobs)
"""


class Site:
    """Where one operation is tried again and again, each time on a fresh copy of its prepared database."""

    def __init__(self, directory: Path, operation: Operation, *, beside_another: bool = False) -> None:
        """``beside_another``: a second process works on the same file all the time."""
        self.operation = operation
        self._beside_another = beside_another
        self._prepared = directory / "prepared"
        self._used = directory / "used"
        self._prepared.mkdir(parents=True)
        _do(partial(operation.prepare, self._prepared / "jobs.db"))

    @property
    def database(self) -> Path:
        return self._used / "jobs.db"

    def refresh(self) -> None:
        shutil.rmtree(self._used, ignore_errors=True)
        shutil.copytree(self._prepared, self._used, ignore=shutil.ignore_patterns("*.sock*", "[0-9]*"))

    @contextlib.contextmanager
    def performing(self) -> Iterator[Child]:
        """A child that will perform the operation when it is resumed."""

        def perform(say: Say) -> None:
            try:
                asyncio.run(self.operation.perform(self.database, say))
            except DurableQError as error:  # refused, in our own words
                say({"gave_up": type(error).__name__})

        with contextlib.ExitStack() as stack:
            if self._beside_another:
                neighbour = stack.enter_context(running(partial(_work_beside, self.database)))
                neighbour.wait_until_said(_SECONDS)
            yield stack.enter_context(Child.start(perform))

    def __str__(self) -> str:
        return f"{self.operation.name}{' beside another process' if self._beside_another else ''}"


class Aftermath(NamedTuple):
    """What came of a blow."""

    status: int
    """How the process ended: 0, an exit code, or the negative number of a signal."""
    wrong: list[str]


def _work_beside(path: Path, say: Say) -> None:
    asyncio.run(_worked_beside(path, say))


async def _worked_beside(path: Path, say: Say) -> None:
    async with at_work(path) as storage:
        say("at work")
        while True:
            await storage.insert([make_job(0, task=BESIDE)])
            await run_all(storage, task=BESIDE)


def after(site: Site, child: Child) -> Aftermath:
    """Let the operation run into its blow, then open the database again and look."""
    child.resume()
    try:
        status = child.wait(_SECONDS)
    except TimeoutError:
        return Aftermath(1, [f"it had not ended after {_SECONDS:.0f} s"])
    said = child.said()
    raised = [" / ".join(one["raised"].strip().splitlines()[-5:]) for one in said if "raised" in one]
    return Aftermath(status, raised + inspected(site, said))


def inspected(site: Site, said: list[Any]) -> list[str]:
    """Say what is wrong with a database after a blow: what is there, and whether it works on."""
    with running(partial(_inspect, site.database)) as inspector:
        status = inspector.wait(_SECONDS)
        reports = inspector.said()
    if status != 0 or not reports:
        return [f"it could not be opened and worked on again: exit {status}, {reports}"]
    found: Found = {job_id: state for job_id, state, task in reports[0]["jobs"] if task == TASK}
    return [*site.operation.check(said, found), *reports[0]["wrong"]]


def _inspect(path: Path, say: Say) -> None:
    asyncio.run(_inspected(path, say))


async def _inspected(path: Path, say: Say) -> None:
    wrong: list[str] = []
    if (verdict := rows(path, "PRAGMA integrity_check")) != [("ok",)]:
        wrong.append(f"the file is damaged: {verdict[:3]}")
    has_table = rows(path, "SELECT 1 FROM sqlite_schema WHERE name = 'durableq_jobs'")
    jobs = rows(path, "SELECT id, state, task FROM durableq_jobs") if has_table else []
    async with at_work(path) as storage:
        await run_all(storage)
        await run_all(storage, task=BESIDE)
        probe = make_job(99)
        await storage.insert([probe])
        ran = await claim(storage, 1)
        lost = (await storage.exchange([(lease, Succeeded(None)) for lease in ran], None)).lost
        if lost or [lease.id for lease in ran] != [probe.id]:
            wrong.append(f"a job added afterwards did not run: {ran}, {lost}")
    unfinished = rows(path, _UNFINISHED, TASK)
    if unfinished:
        wrong.append(f"jobs that do not end although a worker runs: {unfinished}")
    if (orphans := rows(path, _ORPHANS)[0][0]) != 0:
        wrong.append(f"{orphans} jobs are gone and have left attempts, log lines or aliases")
    say({"jobs": jobs, "wrong": wrong})


def _do(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Do something in a child, so that this process keeps its one thread."""
    with running(lambda say: asyncio.run(work())) as child:
        if (status := child.wait(_SECONDS)) != 0:
            raise RuntimeError(f"preparing {work} failed with exit {status}")
