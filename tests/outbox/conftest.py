"""A queue that runs, and every kind of transaction that can carry jobs on its file."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from durableq import DurableQ, outbox
from tests.outbox.support import KINDS, Disk, Kind, make_tables


@pytest.fixture
def disk(tmp_path: Path) -> Disk:
    return Disk(tmp_path / "app.db")


@pytest.fixture
async def dq(disk: Disk) -> AsyncIterator[DurableQ]:
    """A queue without a worker: what is added stays queued."""
    queue = DurableQ(disk.path, worker=False)
    async with queue.running():
        make_tables(disk.path)
        yield queue


@pytest.fixture
async def working(disk: Disk) -> AsyncIterator[DurableQ]:
    """A queue with a worker."""
    queue = DurableQ(disk.path)
    async with queue.running():
        make_tables(disk.path)
        yield queue


@pytest.fixture
def engine(disk: Disk) -> Iterator[Engine]:
    """An engine on the queue's file, configured."""
    one = create_engine(f"sqlite:///{disk.path}")
    outbox.configure(one)
    yield one
    one.dispose()


@pytest.fixture
async def async_engine(disk: Disk) -> AsyncIterator[AsyncEngine]:
    one = create_async_engine(f"sqlite+aiosqlite:///{disk.path}")
    outbox.configure(one)
    yield one
    await one.dispose()


@pytest.fixture(params=KINDS, ids=lambda kind: kind.name)
async def kind(request: pytest.FixtureRequest, disk: Disk) -> AsyncIterator[Kind]:
    """Each kind of transaction in turn."""
    one: Kind = request.param(disk.path)
    async with one.opened():
        yield one
