"""Two processes that race for the same keys: at every moment one live job per key at most, and nobody is told wrong."""

import asyncio
import contextlib
import sqlite3
from collections.abc import Sequence
from typing import Any

from durableq.ids import derived_job_id
from durableq.storage.protocol import Storage
from tests.storage.racer import TASKS
from tests.storage.support import WORK, Backend, PythonProcess, stored

ADDITIONS, RACERS, KEYS = 500, 2, 90

LIVE = "('blocked', 'scheduled', 'queued', 'running')"
REFEREE = """
    CREATE TABLE fouls (task, what);
    CREATE TABLE moves (state);
    CREATE TRIGGER one_is_added AFTER INSERT ON durableq_jobs WHEN NEW.task <> 'tasks:beside' BEGIN
        INSERT INTO moves VALUES ('added');
        INSERT INTO fouls SELECT NEW.task, 'added' WHERE {too_many};
    END;
    CREATE TRIGGER one_is_moved AFTER UPDATE OF state ON durableq_jobs BEGIN
        INSERT INTO moves VALUES (NEW.state);
        INSERT INTO fouls SELECT NEW.task, NEW.state WHERE NEW.state IN {live} AND {too_many};
    END;
"""
TOO_MANY = f"(SELECT count(*) FROM durableq_jobs WHERE task = NEW.task AND state IN {LIVE}) > 1"


def referee(path: str) -> None:
    """Let SQLite itself look at every single transition, whoever makes it."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None, timeout=10)) as outside:
        outside.executescript(REFEREE.format(live=LIVE, too_many=TOO_MANY))


def rows(path: str, sql: str) -> list[Any]:
    with contextlib.closing(sqlite3.connect(path, timeout=10)) as outside:
        return outside.execute(sql).fetchall()


async def race(url: str, seeds: Sequence[int], additions: int, answers: int) -> list[list[Any]]:
    """Start a racer for each seed, let them go at once, and return what each said in the end."""
    with contextlib.ExitStack() as stack:
        racers = [
            stack.enter_context(PythonProcess("-m", "tests.storage.racer", url, str(seed), str(additions)))
            for seed in seeds
        ]
        for racer in racers:
            assert await asyncio.to_thread(racer.read) == "ready"
        for racer in racers:
            racer.write("go")
        return [[await asyncio.to_thread(racer.read) for _ in range(answers)] for racer in racers]


async def test_at_every_moment_one_job_of_a_key_is_live(backend: Backend, storage: Storage) -> None:
    referee(backend.url)
    results = await race(backend.url, range(RACERS), ADDITIONS, answers=2)
    assert rows(backend.url, "SELECT * FROM fouls") == []
    states = dict(rows(backend.url, "SELECT state, count(*) FROM moves GROUP BY state"))
    assert states.keys() >= {"added", "queued", "running", "succeeded", "dead", "cancelled"}, "all of it happened"
    assert all(ran > 10 for _, ran in results), "both had their share"
    told = [one for added, _ in results for one in added]
    assert len(told) >= RACERS * ADDITIONS
    kinds = {(holder is None, holder == job_id) for job_id, _, holder in told}
    assert kinds == {(True, False), (False, True), (False, False)}, "some were refused, some stored, some shared"
    for job_id, key, holder in told:
        if holder is None:
            assert await storage.get(job_id) is None
        else:
            job = await stored(storage, job_id)
            assert (job.id, job.task) == (holder, TASKS[key])
    beside = rows(backend.url, "SELECT count(*) FROM durableq_jobs WHERE task = 'tasks:beside'")
    assert beside == [(sum(holder is not None for _, _, holder in told),)], "an addition is stored whole, or not at all"


async def test_what_two_processes_add_under_one_idempotency_key_is_one_job(backend: Backend, storage: Storage) -> None:
    first, second = (answers for [answers] in await race(backend.url, (-2, -3), KEYS, answers=1))
    for number in range(KEYS):
        job = await stored(storage, derived_job_id(WORK, str(number)))
        told = {first[number], second[number]}
        if number % 3:
            assert told == {-1}, "the same call twice"
        else:
            assert told == {job.args["n"], None}, "one of two different calls is stored, and the other refused"
    assert rows(backend.url, "SELECT count(*) FROM durableq_jobs") == [(KEYS,)]
