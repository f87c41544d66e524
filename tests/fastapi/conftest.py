"""A queue on a file of its own whose jobs stay where they are put: nothing here runs them."""

import warnings
from pathlib import Path

import pytest
from fastapi import FastAPI

from durableq import DurableQ
from tests.fastapi.helpers import Database

with warnings.catch_warnings():
    # The oldest Starlette uses a name that the newest anyio calls deprecated. Later imports find the module loaded.
    warnings.simplefilter("ignore", DeprecationWarning)
    import starlette.testclient  # noqa: F401


@pytest.fixture
def database(tmp_path: Path) -> Database:
    return Database(tmp_path / "app.db")


@pytest.fixture
def dq(database: Database) -> DurableQ:
    return DurableQ(database.path, worker=False)


@pytest.fixture
def app(dq: DurableQ) -> FastAPI:
    return FastAPI(lifespan=dq.lifespan)
