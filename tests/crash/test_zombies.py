"""A process that was stopped past its lease comes back: it owns nothing any more, notices, and starts over."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash.harness import Server, Site, serving
from tests.engine.processes import stop_outside_of_transactions
from tests.support import eventually_sync

LEASE_SECONDS = 1.0
EVICTED = "was taken for dead while this process was held up"
LOST = "lease lost, what this worker did for it has no effect"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    yield Site(tmp_path, {"lease": LEASE_SECONDS, "heartbeat": 0.5, "grace": 0})


def _mark(site: Site, server: Server) -> None:
    """Let ``until_marked`` end in this server."""
    (site.directory / f"go-{server.pid}").touch()


def _frozen_and_replaced(site: Site, zombie: Server, other: Server, job_id: str) -> None:
    """Stop the first process until the second has taken over its job."""
    stop_outside_of_transactions(zombie.pid, site.database)
    eventually_sync(lambda: [run.pid for run in site.ledger().runs[job_id]] == [zombie.pid, other.pid])


def _worker_ids(site: Site, server: Server) -> list[int]:
    return [worker_id for (worker_id,) in site.rows("SELECT id FROM durableq_workers WHERE pid = ?", server.pid)]


@pytest.mark.fault("F10")
@pytest.mark.foreign_bug(31)
def test_a_worker_that_lost_its_lease_cannot_settle(site: Site) -> None:
    with serving(site) as zombie:
        [job_id] = zombie.add("/add/until_marked")
        eventually_sync(lambda: job_id in site.ledger().runs)
        with serving(site) as other:
            _frozen_and_replaced(site, zombie, other, job_id)
            _mark(site, zombie)  # its run ends the moment it wakes up
            zombie.signal(signal.SIGCONT)
            eventually_sync(lambda: LOST in site.log())
            row = site.row(job_id)
            assert (row["state"], row["lease_no"], row["result"]) == ("running", 2, None)
            assert [row["worker_id"]] == _worker_ids(site, other)
            _mark(site, other)
            site.wait_finished(within=10)
    row = site.row(job_id)
    assert (row["state"], row["attempt"], row["result"]) == ("succeeded", 2, str(other.pid))


@pytest.mark.fault("F10")
@pytest.mark.foreign_bug(37)
def test_a_late_heartbeat_cannot_take_the_lease_back(site: Site) -> None:
    with serving(site) as zombie:
        [job_id] = zombie.add("/add/until_marked")
        eventually_sync(lambda: job_id in site.ledger().runs)
        [old_id] = _worker_ids(site, zombie)
        with serving(site) as other:
            _frozen_and_replaced(site, zombie, other, job_id)
            assert _worker_ids(site, zombie) == []
            zombie.signal(signal.SIGCONT)
            eventually_sync(lambda: EVICTED in site.log())
            eventually_sync(lambda: _worker_ids(site, zombie) != [])
            assert _worker_ids(site, zombie) > [old_id], "it registered anew, under an id of its own"
            assert [site.row(job_id)["worker_id"]] == _worker_ids(site, other)
            assert site.ledger().runs[job_id][0].ended_at is not None, "the run that lost its lease was cancelled"
    assert len(site.ledger().runs[job_id]) == 2


@pytest.mark.fault("F10")
@pytest.mark.foreign_bug(27)
def test_an_evicted_worker_registers_anew_and_works_on(site: Site) -> None:
    with serving(site) as zombie:
        [job_id] = zombie.add("/add/until_marked")
        eventually_sync(lambda: job_id in site.ledger().runs)
        with serving(site) as other:
            _frozen_and_replaced(site, zombie, other, job_id)
        # The other is dead again, so whatever runs from here on is run by the one that was evicted.
        _mark(site, zombie)
        zombie.signal(signal.SIGCONT)
        site.wait_finished(within=10)
        steps = zombie.add("/add-steps?count=3&seconds=0.01")
        site.wait_finished(within=10)
        assert EVICTED in site.log()
    assert (site.row(job_id)["state"], site.row(job_id)["attempt"]) == ("succeeded", 3)
    assert {run.pid for one in steps for run in site.ledger().runs[one]} == {zombie.pid}
