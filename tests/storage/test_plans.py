"""The hot statements use the index they were written for, and a million finished rows cost them nothing."""

import json
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from durableq.models import JobFilter, JobState
from durableq.storage.sqlite import schema, transitions
from durableq.storage.sqlite.connection import Location, connect
from durableq.storage.sqlite.statements import SQL, choose_statement

SEQS = json.dumps([1, 2, 3])
NAMES = json.dumps(["a", "b"])
CHOICE = {
    "worker_id": 1,
    "queues": NAMES,
    "tasks_0": NAMES,
    "limit_0": 10,
    "tasks_1": NAMES,
    "limit_1": 10,
    "suspect_tasks": NAMES,
}
OUTCOMES = json.dumps([[1, 1, "succeeded", 0, 0, None, 5, None, None, None]])
JOB = json.dumps([["id", "task", "queue", 0, "queued", "{}", 0, 5, 0, 0]])

HOT = [
    pytest.param(choose_statement(1, False), CHOICE, "durableq_jobs_claim", id="choose"),
    pytest.param(choose_statement(2, True), CHOICE, "durableq_jobs_claim", id="choose, two lanes and a suspect"),
    pytest.param(choose_statement(0, True), CHOICE, "durableq_jobs_suspect", id="choose a suspect"),
    pytest.param(SQL["take"], {"seqs": SEQS, "worker_id": 1, "now": 0}, "INTEGER PRIMARY KEY", id="take"),
    pytest.param(SQL["settle"], {"outcomes": OUTCOMES, "now": 0}, "INTEGER PRIMARY KEY", id="settle"),
    pytest.param(SQL["lost_leases"], {"outcomes": OUTCOMES}, "INTEGER PRIMARY KEY", id="lost leases"),
    pytest.param(SQL["insert_attempts"], {"attempts": OUTCOMES, "now": 0}, "INTEGER PRIMARY KEY", id="attempts"),
    pytest.param(SQL["promote_due"], {"now": 0, "limit": 500}, "durableq_jobs_due", id="promote"),
    pytest.param(SQL["next_due"], {}, "durableq_jobs_due", id="next due"),
    pytest.param(SQL["leases_of_worker"], {"worker_id": 1}, "durableq_jobs_running", id="leases of a worker"),
    pytest.param(
        SQL["prunable"], {"state": "succeeded", "before": 9, "limit": 500}, "durableq_jobs_finished", id="prunable"
    ),
    pytest.param(SQL["prune_jobs"], {"seqs": SEQS}, "INTEGER PRIMARY KEY", id="prune"),
    pytest.param(SQL["prune_attempts"], {"seqs": SEQS}, "PRIMARY KEY", id="prune attempts"),
    pytest.param(SQL["attempts_of_job"], {"id": "x"}, "PRIMARY KEY", id="attempts of a job"),
    pytest.param(SQL["job_columns"] + " WHERE id = :id", {"id": "x"}, "sqlite_autoindex_durableq_jobs_1", id="get"),
    pytest.param(SQL["audit_of_job"], {"id": "x"}, "durableq_audit_job", id="audit"),
]


@pytest.fixture
def database(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    connection = connect(Location(tmp_path / "jobs.db"))
    schema.migrate(connection, now=0)
    connection.execute(SQL["register_worker"], {"pid": 1, "boot_id": "boot", "expires_at": 1, "now": 0})
    yield connection
    connection.close()


def plan(connection: sqlite3.Connection, statement: str, values: dict[str, Any]) -> list[str]:
    return [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {statement}", values).fetchall()]


def steps(connection: sqlite3.Connection, run: Callable[[], object]) -> int:
    """Run something and return about how many thousands of SQLite's virtual machine steps it took."""
    ticks = 0

    def tick() -> int:
        nonlocal ticks
        ticks += 1
        return 0

    connection.set_progress_handler(tick, 1_000)
    run()
    connection.set_progress_handler(None, 0)
    return ticks


def steps_of(connection: sqlite3.Connection, statement: str, values: dict[str, Any]) -> int:
    return steps(connection, lambda: connection.execute(statement, values).fetchall())


def fill(connection: sqlite3.Connection, state: str, count: int, task: str = "a", queue: str = "a") -> None:
    finished = 1 if state in ("succeeded", "dead", "cancelled") else None
    worker = 7 if state == "running" else None
    connection.execute(
        """
        WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :count)
        INSERT INTO durableq_jobs (id, task, queue, priority, state, args, checksum, max_attempts, created_at, run_at,
            finished_at, worker_id)
        SELECT :state || :task || :queue || i, :task, :queue, 0, :state, '{}', 0, 5, i, i, :finished, :worker FROM n
        """,
        {"count": count, "state": state, "task": task, "queue": queue, "finished": finished, "worker": worker},
    )


@pytest.mark.parametrize(("statement", "values", "index"), HOT)
@pytest.mark.parametrize("is_analyzed", [False, True])
def test_a_hot_statement_uses_its_index_and_scans_no_table(
    database: sqlite3.Connection, statement: str, values: dict[str, Any], index: str, is_analyzed: bool
) -> None:
    if is_analyzed:  # an application may run ANALYZE on its file
        for state in ("succeeded", "queued", "scheduled"):
            fill(database, state, 300)
        database.execute("ANALYZE")
    lines = plan(database, statement, values)
    used = [line for line in lines if index in line]
    assert used, lines
    scans = [line for line in lines if line.startswith(("SCAN durableq_", "SCAN job"))]
    assert [line for line in scans if "INDEX durableq_jobs_" not in line] == [], "only partial indexes may be walked"


def test_the_claim_finds_its_jobs_in_order_without_sorting_a_queue(database: sqlite3.Connection) -> None:
    """The early stop is a property of SQLite's sorter, so the work is measured, not only the plan."""
    fill(database, "queued", 200)
    small = steps_of(database, choose_statement(1, False), CHOICE)
    fill(database, "queued", 20_000, task="b")
    assert steps_of(database, choose_statement(1, False), CHOICE) <= small + 5


def test_jobs_that_a_worker_may_not_take_cost_its_claim_nothing(database: sqlite3.Connection) -> None:
    fill(database, "queued", 20_000, task="unknown")
    fill(database, "queued", 20_000, queue="paused")
    fill(database, "succeeded", 20_000)
    fill(database, "scheduled", 20_000)
    fill(database, "queued", 20)
    chosen = database.execute(choose_statement(1, False), CHOICE).fetchone()[0]
    assert len(json.loads(chosen)) == 10
    assert steps_of(database, choose_statement(1, False), CHOICE) <= 5


def test_finished_jobs_cost_the_worker_nothing(database: sqlite3.Connection) -> None:
    fill(database, "succeeded", 50_000)
    for statement, values in (
        (SQL["promote_due"], {"now": 10**9, "limit": 500}),
        (SQL["next_due"], {}),
        (SQL["leases_of_worker"], {"worker_id": 7}),
        (SQL["take"], {"seqs": SEQS, "worker_id": 1, "now": 0}),
        (SQL["prunable"], {"state": "succeeded", "before": 9, "limit": 100}),
        (SQL["insert_jobs"], {"jobs": JOB}),
        (SQL["count_live"], {}),
    ):
        assert steps_of(database, statement, values) <= 4, statement


def test_whether_work_is_left_is_answered_from_indexes(database: sqlite3.Connection) -> None:
    values = {"queues": NAMES, "tasks": NAMES, "now": 0}
    lines = plan(database, SQL["runnable"], values)
    assert not [line for line in lines if line.startswith("SCAN durableq_jobs") and "INDEX" not in line], lines
    fill(database, "succeeded", 20_000)
    fill(database, "queued", 20_000, task="unknown")
    assert steps_of(database, SQL["runnable"], values) <= 5


@pytest.mark.parametrize("state", [None, JobState.DEAD, JobState.CANCELLED])
def test_listing_what_is_rare_among_many_reads_only_what_it_shows(
    database: sqlite3.Connection, state: JobState | None
) -> None:
    fill(database, "dead", 3)
    fill(database, "cancelled", 3)
    fill(database, "succeeded", 50_000)
    conditions, values = transitions.filter_sql(JobFilter(state=state))
    newest = f"{SQL['job_columns']} WHERE true{conditions} ORDER BY seq DESC LIMIT :limit"
    assert steps_of(database, newest, values | {"limit": 100}) <= 5


def test_retrying_dead_letters_reads_only_those(database: sqlite3.Connection) -> None:
    fill(database, "succeeded", 50_000)
    fill(database, "dead", 3)

    def retry() -> None:
        assert transitions.retry_matching(database, JobFilter(task="a"), now=0, who="ann", limit=100) == 3

    assert steps(database, retry) <= 5


@pytest.mark.parametrize("state", ["succeeded", "queued"])
def test_one_job_is_read_by_its_id_among_many(database: sqlite3.Connection, state: str) -> None:
    fill(database, state, 20_000)
    assert steps_of(database, f"{SQL['job_columns']} WHERE id = :id", {"id": f"{state}aa9"}) <= 1
