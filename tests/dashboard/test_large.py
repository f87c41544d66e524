"""A file of many jobs: every page costs what it shows, not what there is.

50,000 jobs, or as many as ``DURABLEQ_LARGE`` says. `benchmarks.dashboard` measures the times with a million.
"""

import os
import sqlite3
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import Depends, FastAPI

from benchmarks import large
from durableq import DurableQ
from durableq.dashboard import dashboard

with warnings.catch_warnings():
    # The oldest Starlette uses a name that the newest anyio calls deprecated.
    warnings.simplefilter("ignore", DeprecationWarning)
    from starlette.testclient import TestClient

JOBS = int(os.environ.get("DURABLEQ_LARGE", "50000"))
MOST_STEPS = 800
"""Thousands of SQLite's virtual machine steps that a page may take, whatever the number of jobs."""
MOST_STEPS_OF_TALLIES = 2_500
"""The same for what sums up a day or a week of every task: the number of tasks counts, that of jobs does not."""


class Steps:
    """Counts, about, the thousands of virtual machine steps of all connections of this process."""

    def __init__(self) -> None:
        self.thousands = 0

    def count(self) -> int:
        self.thousands += 1
        return 0


@pytest.fixture(scope="module")
def steps() -> Iterator[Steps]:
    counted = Steps()
    connect = sqlite3.connect

    def connected(*args: Any, **kwargs: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = connect(*args, **kwargs)
        connection.set_progress_handler(counted.count, 1_000)
        return connection

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sqlite3, "connect", connected)
        yield counted


@pytest.fixture(scope="module")
def client(steps: Steps, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    database: Path = tmp_path_factory.mktemp("large") / "app.db"
    dq = DurableQ(database, worker=False)
    app = FastAPI(lifespan=dq.lifespan)
    app.include_router(dashboard(dq, auth=Depends(lambda: "anna")), prefix="/durableq")
    with TestClient(app) as running:
        large.fill(database, JOBS)
        yield running


@pytest.mark.parametrize("name", large.pages(JOBS))
def test_a_page_looks_at_a_bounded_part_of_the_file(client: TestClient, steps: Steps, name: str) -> None:
    before = steps.thousands
    answer = client.get(f"/durableq/{large.pages(JOBS)[name]}")
    assert answer.status_code == 200, answer.text
    sums_up = name in ("overview, 24 hours", "overview, 7 days")
    assert steps.thousands - before <= (MOST_STEPS_OF_TALLIES if sums_up else MOST_STEPS)
