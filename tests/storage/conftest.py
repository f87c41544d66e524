from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from durableq.storage.protocol import Storage
from durableq.testing import ManualClock
from tests.storage.support import Backend


@pytest.fixture(params=["sqlite"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where each backend under test keeps an empty database."""
    urls = {"sqlite": str(tmp_path / "jobs.db")}
    return urls[request.param]


@pytest.fixture
async def backend(url: str) -> AsyncIterator[Backend]:
    backend = Backend(url)
    yield backend
    await backend.close()


@pytest.fixture
def clock(backend: Backend) -> ManualClock:
    return backend.clock


@pytest.fixture
async def storage(backend: Backend) -> Storage:
    """The database, opened as a worker."""
    return await backend.worker()
