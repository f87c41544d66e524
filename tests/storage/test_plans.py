"""The hot statements use the index they were written for, and a million finished rows cost them nothing."""

import json
import re
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from durableq.clock import SECOND
from durableq.history import BUCKETS
from durableq.models import JobFilter, JobState
from durableq.storage.sqlite import schema, searching, transitions
from durableq.storage.sqlite.connection import Location, connect
from durableq.storage.sqlite.statements import SQL, choose_statement, insert_statement, tallies_statement

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
TALLIES = {"since": 0, "until": 120, "step": 60, "queue": None, "task": None}
SUMS = tallies_statement((("step",), ("queue", "task")))
OUTCOMES = json.dumps([[1, 1, "succeeded", 0, 0, None, 5, None, None, None]])
ROW = ["id", "task", "queue", 0, "queued", "{}", 0, 5, 0, 0]
JOB = json.dumps([ROW])
SPECIAL_JOB = json.dumps([[*ROW, 9, 9, "key", 1, 9, "[]", "{}"]])
IDS = json.dumps(["x", "y"])
PAIRS = json.dumps([["x", "y"], ["y", "z"]])

HOT = [
    pytest.param(choose_statement(1, False), CHOICE, "durableq_jobs_claim", id="choose"),
    pytest.param(choose_statement(2, True), CHOICE, "durableq_jobs_claim", id="choose, two lanes and a suspect"),
    pytest.param(choose_statement(0, True), CHOICE, "durableq_jobs_suspect", id="choose a suspect"),
    pytest.param(SQL["take"], {"seqs": SEQS, "worker_id": 1, "now": 0}, "INTEGER PRIMARY KEY", id="take"),
    pytest.param(SQL["settle"], {"outcomes": OUTCOMES, "now": 0}, "INTEGER PRIMARY KEY", id="settle"),
    pytest.param(SQL["succeed"], {"seqs": SEQS, "lease_no": 1, "now": 0}, "INTEGER PRIMARY KEY", id="succeed"),
    pytest.param(SQL["dead_letters"], {"look_at": 10}, "durableq_jobs_failed", id="dead letters"),
    pytest.param(SUMS, TALLIES, "PRIMARY KEY", id="tallies"),
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
    pytest.param(SQL["oldest_due"], {}, "durableq_jobs_claim", id="oldest due"),
    pytest.param(SQL["count_missing"], {"ids": IDS}, "sqlite_autoindex_durableq_jobs_1", id="count missing"),
    pytest.param(SQL["audit_of_job"], {"id": "x"}, "durableq_audit_job", id="audit"),
]

DEAD = JobFilter(state=JobState.DEAD)
GET = f"{SQL['job_columns']} {SQL['by_id']}"
BY_ID, BY_SEQ = "sqlite_autoindex_durableq_jobs_1", "USING INTEGER PRIMARY KEY"
DUE = {"now": 0, "limit": 500}
LOGS = json.dumps([[1, 1, 1, 5, "line"]])
REPLACEMENTS = json.dumps([["x", json.loads(SPECIAL_JOB)[0]]])

RETRYABLE = searching.oldest_first(DEAD, searching.RETRYABLE, after=0, until=10**9, limit=100)

SPECIAL = [
    pytest.param(SQL["unique_conflicts"], {"claims": PAIRS}, "durableq_jobs_unique", id="unique conflicts"),
    pytest.param(SQL["unique_conflicts"], {"claims": PAIRS}, BY_ID, id="unique conflicts, by id"),
    pytest.param(SQL["repeated_jobs"], {"keyed": json.dumps([["x", "{}", 5]])}, BY_ID, id="repeated jobs"),
    pytest.param(SQL["insert_aliases"], {"aliases": PAIRS}, BY_ID, id="aliases"),
    pytest.param(SQL["replace_jobs"], {"replacements": REPLACEMENTS}, BY_ID, id="replace"),
    pytest.param(SQL["note_start"], {"seqs": SEQS}, BY_SEQ, id="note a start"),
    pytest.param(SQL["cancel_as_asked"], {"seqs": SEQS, "now": 0}, BY_SEQ, id="cancel as asked"),
    pytest.param(SQL["note_end"], {"seqs": SEQS}, BY_SEQ, id="note an end"),
    pytest.param(SQL["settle_waiting"], {"outcomes": OUTCOMES, "now": 0}, BY_SEQ, id="settle what waits"),
    pytest.param(SQL["overdue"], DUE, "durableq_jobs_expiring", id="overdue, to start"),
    pytest.param(SQL["overdue"], DUE, "durableq_jobs_deadline", id="overdue, to end"),
    pytest.param(SQL["overdue"], DUE, BY_SEQ, id="overdue, the rows"),
    pytest.param(SQL["write_progress"], {"progress": json.dumps([[1, 1, "[]"]])}, BY_SEQ, id="progress"),
    pytest.param(SQL["insert_logs"], {"logs": LOGS}, BY_SEQ, id="logs"),
    pytest.param(SQL["logs_of_job"], {"id": "x", "skip": 0}, "USING PRIMARY KEY", id="logs of a job"),
    pytest.param(SQL["cancelling"], {}, "durableq_jobs_cancelling", id="cancelling"),
    pytest.param(SQL["forget_requests"], {}, "durableq_jobs_cancelling", id="forget requests"),
    pytest.param(SQL["state_of_lease"], {"seq": 1, "lease_no": 1}, BY_SEQ, id="state of a lease"),
    pytest.param(SQL["finished_among"], {"ids": IDS}, BY_ID, id="finished among"),
    pytest.param(SQL["finished_among"], {"ids": IDS}, BY_SEQ, id="finished among, the rows"),
    pytest.param(SQL["drop_results"], DUE, "durableq_jobs_result", id="drop results"),
    pytest.param(SQL["prune_logs"], {"seqs": SEQS}, "USING PRIMARY KEY", id="prune logs"),
    pytest.param(SQL["prune_aliases"], {"seqs": SEQS}, "durableq_aliases_seq", id="prune aliases"),
    pytest.param(SQL["delete_aliases"], {"id": "x"}, "durableq_aliases_seq", id="delete aliases"),
    pytest.param(SQL["rival"], {"id": "x"}, "durableq_jobs_unique", id="rival"),
    pytest.param(*RETRYABLE, "durableq_jobs_failed", id="retryable"),
    pytest.param(*RETRYABLE, "durableq_jobs_unique", id="retryable, by key"),
    pytest.param(GET, {"id": "x"}, BY_SEQ, id="get"),
    pytest.param(GET, {"id": "x"}, BY_ID, id="get, by id"),
    pytest.param(GET, {"id": "x"}, "durableq_aliases USING PRIMARY KEY", id="get, by an alias"),
]

TABLES = ("durableq_", "job", "holder", "stored", "alias", "known")
"""How the beginnings of tables are called in our statements; the rest are arrays and subqueries."""


@pytest.fixture
def database(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    connection = connect(Location(tmp_path / "jobs.db"))
    schema.migrate(connection, now=0)
    connection.execute(SQL["register_worker"], {"pid": 1, "boot_id": "boot", "expires_at": 1, "now": 0})
    yield connection
    connection.close()


def retry_all(connection: sqlite3.Connection, where: JobFilter) -> int:
    """Retry the oldest hundred that match, as the storage does."""
    found = connection.execute(
        *searching.oldest_first(where, searching.RETRYABLE, after=0, until=10**9, limit=100)
    ).fetchall()
    act = partial(transitions.retry, who="ann", args_json=None)
    return transitions.to_each(connection, where, seqs=json.dumps([seq for (seq,) in found]), act=act, now=0)


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


def steps_of(connection: sqlite3.Connection, statement: str, values: dict[str, Any] | list[Any]) -> int:
    return steps(connection, lambda: connection.execute(statement, values).fetchall())


def fill(
    connection: sqlite3.Connection, state: str, count: int, task: str = "a", queue: str = "a", **columns: str
) -> None:
    """Add rows; each of ``columns`` is an expression of their number ``i``."""
    finished = state in ("succeeded", "dead", "cancelled")
    columns = {"finished_at": "1" if finished else "NULL", "worker_id": "7" if state == "running" else "NULL"} | columns
    connection.execute(
        f"""
        WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :count)
        INSERT INTO durableq_jobs (id, task, queue, priority, state, args, checksum, max_attempts, created_at, run_at,
            {", ".join(columns)})
        SELECT :state || :task || :queue || i, :task, :queue, 0, :state, '{{}}', 0, 5, i, i,
            {", ".join(columns.values())} FROM n
        """,
        {"count": count, "state": state, "task": task, "queue": queue},
    )


def fill_with_everything(connection: sqlite3.Connection, count: int) -> None:
    """Add rows in all states, every third of them with all that a job can be asked for, none of it due."""
    for state in ("succeeded", "queued", "scheduled", "running", "dead"):
        special = {
            "expires_at": "CASE i % 3 WHEN 0 THEN 1000000000 + i END",
            "deadline_at": "CASE i % 3 WHEN 0 THEN 1000000000 + i END",
            "unique_key": f"CASE i % 3 WHEN 0 THEN '{state}' || i END",
            "result": "CASE i % 3 WHEN 0 THEN '1' END",
            "result_expires_at": f"CASE WHEN i % 3 = 0 AND '{state}' = 'succeeded' THEN 1000000000 + i END",
            "settings": "CASE i % 3 WHEN 0 THEN '{}' END",
        }
        fill(connection, state, count, **special)
    connection.execute("INSERT INTO durableq_aliases SELECT 'alias' || seq, seq FROM durableq_jobs")
    connection.execute("INSERT INTO durableq_logs SELECT seq, 1, 1, 1, 'x' FROM durableq_jobs")


@pytest.mark.parametrize(("statement", "values", "index"), HOT + SPECIAL)
@pytest.mark.parametrize("is_analyzed", [False, True])
def test_a_hot_statement_uses_its_index_and_scans_no_table(
    database: sqlite3.Connection, statement: str, values: dict[str, Any], index: str, is_analyzed: bool
) -> None:
    if is_analyzed:  # an application may run ANALYZE on its file
        fill_with_everything(database, 300)
        database.execute("ANALYZE")
    lines = plan(database, statement, values)
    used = [line for line in lines if index in line]
    assert used, lines
    scans = [line for line in lines if line.startswith(tuple(f"SCAN {table}" for table in TABLES))]
    partial = ("INDEX durableq_jobs_", "INDEX durableq_queues_paused")
    assert [line for line in scans if not any(one in line for one in partial)] == [], "only they may be walked"


def test_the_trigger_counts_by_the_buckets_that_histories_are_made_of(database: sqlite3.Connection) -> None:
    [(trigger,)] = database.execute("SELECT sql FROM sqlite_schema WHERE type = 'trigger'").fetchall()
    found = [(int(end), int(bucket)) for end, bucket in re.findall(r"us <= (\d+) THEN (\d+)", trigger)]
    assert found == [(round(end * SECOND), bucket) for bucket, end in enumerate(BUCKETS)] * 2
    assert re.findall(r"ELSE (\d+)", trigger) == [str(len(BUCKETS))] * 2


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


@pytest.mark.fault("F35")
@pytest.mark.foreign_bug(72)
def test_finished_jobs_cost_the_worker_nothing(database: sqlite3.Connection) -> None:
    fill(database, "succeeded", 50_000)
    for statement, values in (
        (SQL["promote_due"], {"now": 10**9, "limit": 500}),
        (SQL["next_due"], {}),
        (SQL["leases_of_worker"], {"worker_id": 7}),
        (SQL["take"], {"seqs": SEQS, "worker_id": 1, "now": 0}),
        (SQL["prunable"], {"state": "succeeded", "before": 9, "limit": 100}),
        (SQL["insert_jobs"], {"jobs": JOB}),
        (insert_statement(1), ROW),
        (SQL["count_states"], {"at_most": 100}),
    ):
        assert steps_of(database, statement, values) <= 4, statement


def test_whether_work_is_left_is_answered_from_indexes(database: sqlite3.Connection) -> None:
    values = {"queues": NAMES, "tasks": NAMES, "now": 0}
    lines = plan(database, SQL["runnable"], values)
    assert not [line for line in lines if line.startswith("SCAN durableq_jobs") and "INDEX" not in line], lines
    fill(database, "succeeded", 20_000)
    fill(database, "queued", 20_000, task="unknown")
    assert steps_of(database, SQL["runnable"], values) <= 5


@pytest.mark.fault("F35")
@pytest.mark.parametrize("state", [None, JobState.DEAD, JobState.CANCELLED])
def test_listing_what_is_rare_among_many_reads_only_what_it_shows(
    database: sqlite3.Connection, state: JobState | None
) -> None:
    fill(database, "dead", 3)
    fill(database, "cancelled", 3)
    fill(database, "succeeded", 50_000)
    conditions, values = searching.matching(JobFilter(state=state))
    newest = f"{SQL['job_columns']} WHERE true{conditions} ORDER BY seq DESC LIMIT :limit"
    assert steps_of(database, newest, values | {"limit": 100}) <= 5


def test_retrying_dead_letters_reads_only_those(database: sqlite3.Connection) -> None:
    fill(database, "succeeded", 50_000)
    fill(database, "dead", 3)

    def retry() -> None:
        assert retry_all(database, replace(DEAD, task="a")) == 3

    assert steps(database, retry) <= 5


@pytest.mark.parametrize("state", ["succeeded", "queued"])
def test_one_job_is_read_by_its_id_among_many(database: sqlite3.Connection, state: str) -> None:
    fill(database, state, 20_000)
    database.execute("INSERT INTO durableq_aliases SELECT 'alias' || id, seq FROM durableq_jobs")
    for job_id in (f"{state}aa9", f"alias{state}aa9"):
        assert database.execute(GET, {"id": job_id}).fetchone()[0] == f"{state}aa9"
        assert steps_of(database, GET, {"id": job_id}) <= 1


@pytest.mark.fault("F35")
@pytest.mark.foreign_bug(72)
def test_what_is_asked_for_regularly_costs_nothing_among_many(database: sqlite3.Connection) -> None:
    fill_with_everything(database, 10_000)
    database.execute("UPDATE durableq_jobs SET cancel_requested_at = 5 WHERE id IN ('runningaa1', 'succeededaa1')")
    ids = [f"{state}aa{number}" for state in ("queued", "succeeded", "dead") for number in range(10)]
    keys = [[f"new-{number}", f"queued{number}"] for number in range(0, 90, 3)]
    asked: dict[str, dict[str, Any]] = {
        "unique_conflicts": {"claims": json.dumps(keys)},
        "repeated_jobs": {"keyed": json.dumps([[job_id, "{}", 5] for job_id in ids])},
        "finished_among": {"ids": json.dumps([*ids, *(f"alias{number}" for number in range(20))])},
        "overdue": DUE,
        "cancelling": {},
        "forget_requests": {},
        "drop_results": DUE,
        "note_start": {"seqs": SEQS},
        "note_end": {"seqs": SEQS},
        "cancel_as_asked": {"seqs": SEQS, "now": 0},
        "settle_waiting": {"outcomes": OUTCOMES, "now": 0},
        "write_progress": {"progress": json.dumps([[number, 1, "[]"] for number in range(50)])},
        "insert_logs": {"logs": json.dumps([[number, 1, 1, 5, "line"] for number in range(50)])},
        "insert_special_jobs": {"jobs": SPECIAL_JOB},
        "insert_aliases": {"aliases": PAIRS},
        "prune_aliases": {"seqs": SEQS},
        "prune_logs": {"seqs": SEQS},
        "logs_of_job": {"id": "queuedaa9", "skip": 0},
        "rival": {"id": "queuedaa9"},
    }
    for name, values in asked.items():
        assert steps_of(database, SQL[name], values) <= 3, name


@pytest.mark.parametrize("limit", ["expires_at", "deadline_at"])
def test_giving_up_a_few_of_very_many_that_are_overdue_costs_as_if_they_were_few(
    database: sqlite3.Connection, limit: str
) -> None:
    fill(database, "queued", 50_000, **{limit: "i"})
    fill(database, "running", 64, **{limit: "i"})
    assert len(database.execute(SQL["overdue"], {"now": 10**9, "limit": 100}).fetchall()) == 100
    assert steps_of(database, SQL["overdue"], {"now": 10**9, "limit": 100}) <= 20


def test_dropping_a_few_of_very_many_results_costs_as_if_they_were_few(database: sqlite3.Connection) -> None:
    fill(database, "succeeded", 50_000, result="'1'", result_expires_at="i")
    assert steps_of(database, SQL["drop_results"], {"now": 10**9, "limit": 100}) <= 20


def test_retrying_dead_letters_of_one_key_reads_each_of_them_a_few_times_at_most(database: sqlite3.Connection) -> None:
    fill(database, "dead", 500, settings="""'{"unique": "k"}'""")
    fill(database, "dead", 10, task="b")
    fill(database, "succeeded", 20_000)
    retried: list[int] = []

    def retry() -> None:
        retried.extend((retry_all(database, DEAD), retry_all(database, DEAD)))

    assert steps(database, retry) <= 400
    assert retried == [1, 10], "one of the key, and then all the others"


@pytest.mark.parametrize(
    ("statement", "values"),
    [
        pytest.param(SQL["take"], {"seqs": SEQS, "worker_id": 1, "now": 0}, id="take"),
        pytest.param(SQL["settle"], {"outcomes": OUTCOMES, "now": 0}, id="settle"),
        pytest.param(SQL["succeed"], {"seqs": SEQS, "lease_no": 1, "now": 0}, id="succeed"),
        pytest.param(SQL["promote_due"], {"now": 0, "limit": 500}, id="promote"),
    ],
)
def test_the_steps_of_every_job_write_no_index_that_only_special_jobs_are_in(
    database: sqlite3.Connection, statement: str, values: dict[str, Any]
) -> None:
    """An index whose columns, or whose condition, a statement writes is asked for every row, in it or not."""
    names = dict(database.execute("SELECT rootpage, name FROM sqlite_schema").fetchall())
    steps_taken = database.execute(f"EXPLAIN {statement}", values).fetchall()
    written = {names[step[3]] for step in steps_taken if step[1] == "OpenWrite"}
    of_all_jobs = {f"durableq_jobs_{name}" for name in ("claim", "suspect", "due", "running", "finished", "failed")}
    assert written - of_all_jobs - {"durableq_tallies"} == {"durableq_jobs"}
