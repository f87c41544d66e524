"""What one turn of the loop hands over: an exchange that is made beside an addition claims what it adds."""

from collections.abc import Awaitable
from pathlib import Path

import pytest

from durableq.errors import QueueNotRunning
from durableq.models import ClaimRequest, Lane
from durableq.storage.protocol import Exchanged, Storage
from tests.storage.faults import record_statements
from tests.storage.support import WORK, Backend

CLAIM = ClaimRequest(("default",), (Lane("loop", (WORK,), 10),))


class Rider:
    """Makes a claim whenever it is told that jobs are about to be handed over."""

    def __init__(self, storage: Storage) -> None:
        self.trips: list[Awaitable[Exchanged]] = []
        self._storage = storage

    def __call__(self) -> None:
        self.trips.append(self._storage.exchange([], CLAIM))


async def test_a_claim_that_rides_along_is_made_in_the_transaction_of_the_addition(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    statements = record_statements(monkeypatch)
    backend = Backend(str(tmp_path / "jobs.db"))
    worker = await backend.worker()
    await worker.insert([backend.job(queue="other")])
    rider = Rider(worker)
    worker.before_adding(rider)
    statements.clear()
    jobs = [backend.job(), backend.job()]
    added = worker.insert([jobs[0]]), worker.insert([jobs[1]])
    for one in added:
        await one
    claimed = [lease.id for trip in rider.trips for lease in (await trip).leases]
    assert set(claimed) == {job.id for job in jobs}
    assert 1 <= statements.count("COMMIT") <= len(rider.trips), "a claim had a transaction of its own"
    await backend.close()


async def test_only_jobs_that_may_run_at_once_take_a_claim_along(backend: Backend) -> None:
    storage = await backend.worker()
    rider = Rider(storage)
    storage.before_adding(rider)
    await storage.insert([backend.job(delay=60)])
    assert rider.trips == []
    await storage.insert([backend.job()])
    assert len(rider.trips) == 1
    storage.before_adding(None)
    await storage.insert([backend.job()])
    assert len(rider.trips) == 1
    assert len((await rider.trips[0]).leases) == 1


async def test_an_addition_does_not_suffer_from_who_rides_along(
    backend: Backend, caplog: pytest.LogCaptureFixture
) -> None:
    storage = await backend.worker()

    def fail() -> None:
        raise ZeroDivisionError

    storage.before_adding(fail)
    await storage.insert([backend.job()])
    await storage.exchange([], None)
    assert sum((await storage.counts()).values()) == 1
    assert "stored without it" in caplog.text


async def test_an_exchange_raises_nothing_before_it_is_awaited(backend: Backend) -> None:
    storage = await backend.worker()
    await storage.close()
    exchange = storage.exchange([], CLAIM)
    with pytest.raises(QueueNotRunning):
        await exchange
