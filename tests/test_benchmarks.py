"""The benchmarks work: `make bench` runs to its end and fills every row."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import BENCHMARKS

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
    "route, Starlette BackgroundTasks, p99",
    "route, durableq, p99",
    "route, durableq: jobs still to run when the load ends",
    "raw sqlite3, a commit of one row, mean",
    "route, 1 connection, Starlette BackgroundTasks, p50",
    "route, 1 connection, durableq, p50",
    "pick-up by another process, p50",
    "pick-up by another process, p99",
)


def quick_run(directory: Path, *arguments: str) -> tuple[dict[str, Any], list[str]]:
    """Return the rows of the file by their labels, and the lines that were printed."""
    file = directory / "figures.json"
    command = [sys.executable, "-m", "benchmarks", "--quick", "--rounds", "1", "--json", str(file), *arguments]
    done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return {row["label"]: row for row in json.loads(file.read_text())["rows"].values()}, done.stdout.splitlines()


def test_one_quick_run_fills_every_row(tmp_path: Path) -> None:
    rows, printed = quick_run(tmp_path)

    assert tuple(rows) == ROWS
    table = [line.split("  ")[0] for line in printed]
    assert table[-len(ROWS) :] == list(ROWS)
    for label, row in rows.items():
        assert row["median"] > 0 or row["unit"] == "jobs", label
    assert rows["add_task, one awaited at a time"]["ratios"] == [
        pytest.approx(
            rows["add_task, one awaited at a time"]["median"] / rows["raw sqlite3, 1 row per commit"]["median"]
        )
    ]


@pytest.mark.timeout(120)
def test_the_long_benchmarks_fill_their_rows(tmp_path: Path) -> None:
    long = [one for one in BENCHMARKS if one.is_long]
    rows, _ = quick_run(tmp_path, *(f"--only={one.name}" for one in long))

    assert set(rows) == {row.label for one in long for row in one.rows}
    for label, row in rows.items():
        assert row["median"] > 0 or row["unit"] in ("MiB", "% of a core"), label
