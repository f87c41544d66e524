"""What is being done while a blow falls, and what has to be true afterwards.

Each operation is done by a process of its own on a database that was prepared. It says what was acknowledged to it; the
check compares that with what is found once the database is opened again, before anything else is run.
"""

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from durableq.clock import SECOND, SystemClock, to_datetime
from durableq.codec import checksum
from durableq.errors import DurableQError
from durableq.models import Cancelled, Dead, JobFilter, JobState, Outcome, Retried, Snoozed, Succeeded
from durableq.storage.protocol import Storage
from durableq.storage.sqlite import schema
from durableq.torture.children import Say
from durableq.torture.stores import BOOM, at_work, claim, make_job, opened

_CLOCK: Final = SystemClock()
_GROUP: Final = 3

Found = Mapping[str, str]
"""States by id."""
Said = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Operation:
    name: str
    prepare: Callable[[Path], Coroutine[Any, Any, None]]
    perform: Callable[[Path, Say], Coroutine[Any, Any, None]]
    check: Callable[[Said, Found], list[str]]
    """Return what is wrong, given what was said and the states that are found."""
    is_main: bool = False
    """Whether it is among those of the quick run."""
    may_have_company: bool = True
    """Whether it is another thing when a second process works on the same file."""


async def _acknowledged(say: Say, kind: str, names: Sequence[str], doing: Awaitable[Any]) -> Any:
    """Do something, and say that it is acknowledged, or refused, for these jobs."""
    say({"tried": kind, "jobs": list(names)})
    try:
        result = await doing
    except DurableQError as error:
        say({"refused": kind, "jobs": list(names), "error": type(error).__name__})
        return None
    say({"done": kind, "jobs": list(names)})
    return result


def told(said: Said, word: str, kind: str) -> list[list[str]]:
    return [one["jobs"] for one in said if one.get(word) == kind]


# -- add -----------------------------------------------------------------------------------------------------


async def _an_empty_database(path: Path) -> None:
    async with opened(path):
        pass


async def _nothing(path: Path) -> None: ...


async def _add(path: Path, say: Say) -> None:
    async with opened(path) as storage:
        groups = [[make_job(0)], [make_job(number) for number in range(_GROUP)], [make_job(9)]]
        doing = [_acknowledged(say, "add", [job.id for job in jobs], storage.insert(jobs)) for jobs in groups]
        await asyncio.gather(*doing[:2])
        await doing[2]


def _check_added(said: Said, found: Found) -> list[str]:
    acknowledged = [job_id for ids in told(said, "done", "add") for job_id in ids]
    torn = [ids for ids in told(said, "tried", "add") if 0 < sum(job_id in found for job_id in ids) < len(ids)]
    refused = [one["jobs"] for one in said if one.get("refused") == "add" and one["error"] == "NotStored"]
    return [
        *(f"acknowledged job {job_id} is not there" for job_id in acknowledged if job_id not in found),
        *(f"of the jobs {ids}, added together, only some are there" for ids in torn),
        *(f"{ids} were reported as not stored, and are there" for ids in refused if found.keys() & set(ids)),
    ]


# -- claim, heartbeat, settle --------------------------------------------------------------------------------


async def _some_queued(path: Path) -> None:
    async with opened(path) as storage:
        await storage.insert([make_job(number) for number in range(8)])


async def _claim(path: Path, say: Say) -> None:
    async with at_work(path) as storage:
        say({"leases": [lease.id for lease in await claim(storage, 5)]})


async def _heartbeat(path: Path, say: Say) -> None:
    async with at_work(path) as storage:
        leases = await claim(storage, 5)
        for _ in range(3):
            held = {lease.key for lease in leases}
            say({"renewed": await asyncio.to_thread(storage.renew, _CLOCK.boot() + 30 * SECOND, held)})


def _all_eight(said: Said, found: Found) -> list[str]:
    left = [state for state in found.values() if state in ("queued", "running")]
    return [] if len(left) == len(found) == 8 else [f"expected 8 jobs that are queued or running, found {dict(found)}"]


def _settle_as(kind: str, outcome: Callable[[], Outcome], *, expects: str) -> Operation:
    """Settle six jobs in two exchanges, with one kind of end."""

    async def perform(path: Path, say: Say) -> None:
        async with at_work(path) as storage:
            leases = await claim(storage, 6)
            for some in (leases[:2], leases[2:]):
                settled = [(lease, outcome()) for lease in some]
                await _acknowledged(say, kind, [lease.id for lease in some], storage.exchange(settled, None))

    def check(said: Said, found: Found) -> list[str]:
        wrong = [
            f"job {job_id} was settled as {expects}, and is {found.get(job_id)}"
            for ids in told(said, "done", kind)
            for job_id in ids
            if found.get(job_id) != expects
        ]
        states = {"queued", "running", expects}
        return wrong + (
            [] if len(found) == 8 and states >= set(found.values()) else [f"unexpected states {dict(found)}"]
        )

    return Operation(kind, _some_queued, perform, check, is_main=kind in ("settle", "dead-letter"))


def _in_an_hour() -> int:
    return _CLOCK.wall() + 3600 * SECOND


# -- by hand, and tidying up ---------------------------------------------------------------------------------


async def _some_of_each_kind(path: Path) -> None:
    """Two queued, two dead, four succeeded."""
    await _some_queued(path)
    async with at_work(path) as storage:
        leases = await claim(storage, 6)
        ends: list[Outcome] = [Dead(BOOM), Dead(BOOM), *[Succeeded("1")] * 4]
        await storage.exchange(list(zip(leases, ends, strict=True)), None)


async def _in_state(storage: Storage, state: JobState) -> list[str]:
    return [job.id for job in (await storage.find(JobFilter(state=state), cursor=None, limit=100)).jobs]


def _by_hand(kind: str, state: JobState, verb: str, expects: str | None) -> Operation:
    async def perform(path: Path, say: Say) -> None:
        async with opened(path) as storage:
            for job_id in await _in_state(storage, state):
                await _acknowledged(say, kind, [job_id], getattr(storage, verb)(job_id, who="torture"))

    def check(said: Said, found: Found) -> list[str]:
        wrong = [
            f"job {job_id} was to be {expects} after {kind}, and is {found.get(job_id)}"
            for [job_id] in told(said, "done", kind)
            if found.get(job_id) != expects
        ]
        touched = {job_id for [job_id] in told(said, "tried", kind)}
        lost = 8 - len(found.keys() | touched)
        return wrong + ([f"{lost} jobs are gone that nobody touched"] if lost else [])

    return Operation(kind, _some_of_each_kind, perform, check)


async def _prune(path: Path, say: Say) -> None:
    async with opened(path) as storage:
        later = to_datetime(_CLOCK.wall()) + timedelta(seconds=10)
        for _ in range(3):
            say({"pruned": await storage.prune(JobState.SUCCEEDED, later, 2)})


def _check_pruned(said: Said, found: Found) -> list[str]:
    pruned = sum(one.get("pruned", 0) for one in said)
    states = list(found.values())
    if (states.count("queued"), states.count("dead")) != (2, 2):
        return [f"what was not to be pruned is not as it was: {states}"]
    return [] if states.count("succeeded") <= 4 - pruned else [f"{pruned} jobs were pruned, and {states} are there"]


async def _a_file_of_the_first_schema(path: Path) -> None:
    path.touch(0o600)
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        version, script = schema.migrations()[0]
        connection.executescript(script)
        connection.execute(
            "CREATE TABLE durableq_migrations (version INTEGER PRIMARY KEY, applied_at INTEGER NOT NULL)"
        )
        connection.execute("INSERT INTO durableq_migrations VALUES (?, 0)", (version,))
        for number in range(8):
            job = make_job(number)
            connection.execute(
                "INSERT INTO durableq_jobs "
                "(id, task, queue, priority, state, args, checksum, max_attempts, created_at, run_at) "
                "VALUES (?, ?, ?, 0, 'queued', ?, ?, 5, 0, 0)",
                (job.id, job.task, job.queue, job.args_json, checksum(job.args_json)),
            )


async def _open_only(path: Path, say: Say) -> None:
    async with opened(path):
        say({"opened": True})


def _all_eight_queued(said: Said, found: Found) -> list[str]:
    return [] if list(found.values()) == ["queued"] * 8 else [f"expected 8 queued jobs, found {dict(found)}"]


OPERATIONS: Final = (
    Operation("create", _nothing, _add, _check_added),
    Operation("add", _an_empty_database, _add, _check_added, is_main=True),
    Operation("claim", _some_queued, _claim, _all_eight, is_main=True),
    Operation("heartbeat", _some_queued, _heartbeat, _all_eight),
    _settle_as("settle", lambda: Succeeded('{"done":true}'), expects="succeeded"),
    _settle_as("retry", lambda: Retried(BOOM, _in_an_hour()), expects="scheduled"),
    _settle_as("snooze", lambda: Snoozed(_in_an_hour()), expects="scheduled"),
    _settle_as("dead-letter", lambda: Dead(BOOM), expects="dead"),
    _settle_as("stop", lambda: Cancelled(BOOM), expects="cancelled"),
    _by_hand("cancel", JobState.QUEUED, "cancel", "cancelled"),
    _by_hand("retry by hand", JobState.DEAD, "retry", "queued"),
    _by_hand("delete", JobState.DEAD, "delete", None),
    Operation("prune", _some_of_each_kind, _prune, _check_pruned),
    Operation(
        "migrate", _a_file_of_the_first_schema, _open_only, _all_eight_queued, is_main=True, may_have_company=False
    ),
)
