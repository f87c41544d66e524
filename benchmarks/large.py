"""A file of very many jobs, made in SQL: what a queue looks like that was busy for a week and is kept whole.

Nine in ten have succeeded; the rest are dead, waiting, due later or cancelled. Tallies are those of the same week, as
coarse as a worker makes them with age.
"""

import contextlib
import json
import sqlite3
import time
from pathlib import Path
from typing import Final

from durableq.storage.sqlite.transitions import CONDENSED

RARE: Final = 10_007
"""One job in so many has a tag, an argument and an error of its own."""
TASKS: Final = 20
QUEUES: Final = 8
_WEEK: Final = 7 * 86_400
_SCHEMA: Final = json.dumps(
    {"type": "object", "properties": {"user_id": {"type": "integer"}, "email": {"type": "string"}, "text": {}}}
)

_JOBS: Final = """
WITH RECURSIVE number(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM number WHERE n < :jobs),
given AS (
    SELECT n, CASE WHEN n % 100 < 90 THEN 'succeeded' WHEN n % 100 < 95 THEN 'dead' WHEN n % 100 < 97 THEN 'queued'
        WHEN n % 100 < 98 THEN 'scheduled' ELSE 'cancelled' END AS state,
        :now - (:jobs - n) * (:week / :jobs) AS at FROM number
)
INSERT INTO durableq_jobs (
    id, task, queue, priority, state, args, checksum, max_attempts, attempt, lease_no, created_at, run_at, started_at,
    finished_at, result, error_type, error_message, tags
)
SELECT printf('01900000-%04x-7000-8000-%012x', n % 65536, n), 'task.number' || (n % :tasks),
    'queue' || (n % :queues), 0, state,
    json_object('user_id', n, 'email', 'user' || n || '@example.org', 'text', :text), 0, 5,
    iif(state = 'queued', 0, 1), 1, at, iif(state = 'scheduled', at + :week, at), iif(state = 'queued', NULL, at),
    iif(state IN ('succeeded', 'dead', 'cancelled'), at + 50000, NULL), iif(state = 'succeeded', '{"ok":true}', NULL),
    iif(state = 'dead', 'Error' || (n % 12), NULL),
    iif(state = 'dead', iif(n % :rare = 0, 'a rare message', 'the service did not answer in time'), NULL),
    iif(n % :rare = 0, '["rare"]', iif(n % 10 = 0, '["nightly","import"]', NULL))
FROM given
"""
_ATTEMPTS: Final = """
INSERT INTO durableq_attempts
SELECT seq, 1, 1, 1, started_at, finished_at, error_type, error_message, :traceback
FROM durableq_jobs WHERE state = 'dead'
"""
_TALLIES: Final = """
WITH RECURSIVE moment(at) AS (
    SELECT :seconds - :seconds % 3600 - 604800
    UNION ALL
    SELECT at + CASE WHEN at < :seconds - :hourly THEN 3600 WHEN at < :seconds - :quarterly THEN 900 ELSE 60 END
    FROM moment WHERE at + 60 < :seconds
),
task(n) AS (SELECT 0 UNION ALL SELECT n + 1 FROM task WHERE n + 1 < :tasks),
measured(measure, bucket) AS (
    VALUES ('succeeded', 5), ('succeeded', 6), ('retried', 7), ('dead', 8), ('waited', 3), ('waited', 4)
)
INSERT INTO durableq_tallies
SELECT at, 'queue' || (n % :queues), 'task.number' || n, measure, bucket, 1 + abs(random() % 20)
FROM moment, task, measured WHERE (at / 60 + n) % 2 = 0
"""


def fill(database: Path, jobs: int) -> None:
    """Add so many jobs to a file that a queue has been opened on."""
    now = time.time_ns() // 1_000
    (quarterly, _), (hourly, _) = CONDENSED
    values = {
        "jobs": jobs,
        "now": now,
        "week": _WEEK * 1_000_000,
        "tasks": TASKS,
        "queues": QUEUES,
        "rare": RARE,
        "text": "x" * 200,
        "traceback": "Traceback (most recent call last):\n" + 12 * '  File "app.py", line 1, in call\n    answer()\n',
        "seconds": now // 1_000_000,
        "quarterly": quarterly,
        "hourly": hourly,
    }
    with contextlib.closing(sqlite3.connect(database, timeout=60)) as connection, connection:
        connection.execute("PRAGMA synchronous = OFF")
        for statement in (_JOBS, _ATTEMPTS, _TALLIES):
            connection.execute(statement, values)
        queues = [(f"queue{one}",) for one in range(QUEUES)]
        connection.executemany("INSERT OR IGNORE INTO durableq_queues (name) VALUES (?)", queues)
        tasks = [(f"task.number{one}", _SCHEMA) for one in range(TASKS)]
        connection.executemany("INSERT OR IGNORE INTO durableq_tasks VALUES (?, ?)", tasks)
    with contextlib.closing(sqlite3.connect(database, timeout=60)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def job_id(number: int) -> str:
    """The id of a job by its place in the order of adding, from 1. Of number 93, and each hundred later, it is dead."""
    return f"01900000-{number % 65536:04x}-7000-8000-{number:012x}"


def pages(jobs: int) -> dict[str, str]:
    """Return pages by what they show: what each has to find among so many jobs."""
    dead = job_id(jobs // 200 * 100 + 93)
    return {
        "overview, 15 minutes": "",
        "overview, 24 hours": "?window=24h",
        "overview, 7 days": "?window=7d",
        "jobs": "jobs",
        "jobs, far back": f"jobs?cursor={jobs // 2}",
        "jobs, succeeded": "jobs?state=succeeded",
        "jobs, dead": "jobs?state=dead",
        "jobs, queued": "jobs?state=queued",
        "jobs, scheduled": "jobs?state=scheduled",
        "jobs, of a task": "jobs?task=task.number7",
        "jobs, of a task that is not": "jobs?task=nobody",
        "jobs, of a queue": "jobs?queue=queue3&state=queued",
        "jobs, of a rare tag": "jobs?tag=rare",
        "jobs, of one argument": f"jobs?arg.user_id={jobs // 3}",
        "jobs, of a rare error": "jobs?state=dead&error_text=rare",
        "jobs, of a type of error": "jobs?error_type=Error5",
        "jobs, of an hour": "jobs?since=1h",
        "jobs, of a day long ago": "jobs?since=6d&until=5d&state=dead",
        "one dead job": f"jobs/{dead}",
        "its editor": f"jobs/{dead}/edit",
        "dead letters": "dead",
        "all dead, to be retried": "bulk?do=retry&state=dead",
        "all finished, to be deleted": "bulk?do=delete&task=task.number7",
        "queues": "queues",
        "workers": "workers",
        "system": "system",
    }
