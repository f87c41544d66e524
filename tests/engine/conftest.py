"""A fresh database file, and a queue on it."""

from pathlib import Path

import pytest

from durableq import DurableQ


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "jobs.db"


@pytest.fixture
def dq(database: Path) -> DurableQ:
    return DurableQ(database)
