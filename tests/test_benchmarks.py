"""The benchmarks work: `make bench` runs to its end and fills every row."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent

ROWS = (
    "raw sqlite3, 1 row per commit",
    "raw sqlite3, 64 rows per commit",
    "add_task, one awaited at a time",
    "add_task, 64 producers",
    "add_tasks, bulk in one call",
    "drain of no-op async jobs",
    "drain of no-op async jobs, CPU",
    "drain of no-op sync jobs (threads)",
    "drain of no-op sync jobs (threads), CPU",
    "pick-up by an idle worker, p50",
    "pick-up by an idle worker, p99",
    "route, no task",
    "route, Starlette BackgroundTasks",
    "route, durableq",
    "route, no task, CPU",
    "route, Starlette BackgroundTasks, CPU",
    "route, durableq, job included, CPU",
    "route, durableq: jobs still to run when the load ends",
)


def test_one_quick_run_fills_every_row(tmp_path: Path) -> None:
    file = tmp_path / "figures.json"
    command = [sys.executable, "-m", "benchmarks", "--quick", "--rounds", "1", "--json", str(file)]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=50)
    assert done.returncode == 0, done.stderr

    rows = {row["label"]: row for row in json.loads(file.read_text())["rows"].values()}
    assert tuple(rows) == ROWS
    table = [line.split("  ")[0] for line in done.stdout.splitlines()]
    assert table[-len(ROWS) :] == list(ROWS)
    for label, row in rows.items():
        assert row["median"] > 0 or row["unit"] == "jobs", label
    assert rows["add_task, one awaited at a time"]["ratios"] == [
        pytest.approx(
            rows["add_task, one awaited at a time"]["median"] / rows["raw sqlite3, 1 row per commit"]["median"]
        )
    ]
