"""SIGTERM: the process ends within ``grace`` and a second whatever its jobs do, and gives back what it held."""

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash.harness import Server, Site, serving
from tests.support import eventually_sync

GRACE_SECONDS = 1.0
SLACK_SECONDS = 0.6
"""What is not durableq's: uvicorn looks for the signal every 0.1 s and then sleeps 0.1 s before the lifespan ends;
after it, the interpreter shuts down (0.1 to 0.2 s here)."""
KINDS = ("async_endless", "sync_endless", "stubborn")


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    yield Site(tmp_path, {"grace": GRACE_SECONDS, "threads": 2})


def _add_and_await_start(server: Server, *names: str) -> dict[str, str]:
    """Add a job of each task, and return their ids by name once all of them run."""
    ids = {name: server.add(f"/add/{name}")[0] for name in names}
    eventually_sync(lambda: set(ids.values()) <= server.site.ledger().runs.keys())
    return ids


@pytest.mark.fault("F11", "F13")
@pytest.mark.foreign_bug(59, 60)
def test_sigterm_ends_the_process_within_grace_and_a_second_whatever_its_jobs_do(site: Site) -> None:
    with serving(site) as server:
        _add_and_await_start(server, *KINDS)
        sent_at = server.signal(signal.SIGTERM)
        took = server.wait_exit(within=10) - sent_at
    assert GRACE_SECONDS <= took <= GRACE_SECONDS + 1.0 + SLACK_SECONDS


@pytest.mark.fault("F11")
@pytest.mark.foreign_bug(16, 29, 33)
def test_what_sigterm_interrupts_is_given_back_uncounted_and_runs_again_as_the_first_attempt(site: Site) -> None:
    with serving(site) as server:
        ids = _add_and_await_start(server, *KINDS)
        server.signal(signal.SIGTERM)
        server.wait_exit(within=10)
        for job_id in ids.values():
            row = site.row(job_id)
            assert (row["state"], row["attempt"], row["crashes"]) == ("queued", 0, 0)
        assert f"{len(KINDS)} jobs handed back" in site.log()
    with serving(site):
        eventually_sync(lambda: all(len(site.ledger().runs[job_id]) == 2 for job_id in ids.values()))
    for runs in site.ledger().runs.values():
        assert [(run.lease, run.attempt) for run in runs] == [(1, 1), (2, 1)]


@pytest.mark.fault("F11")
@pytest.mark.foreign_bug(59, 61)
def test_jobs_that_end_within_the_grace_are_finished_not_given_back(site: Site) -> None:
    with serving(site) as server:
        ids = server.add(f"/add-steps?count=5&seconds={GRACE_SECONDS / 2}")
        eventually_sync(lambda: set(ids) <= site.ledger().runs.keys())
        sent_at = server.signal(signal.SIGTERM)
        took = server.wait_exit(within=10) - sent_at
    assert {site.row(job_id)["state"] for job_id in ids} == {"succeeded"}
    assert took < GRACE_SECONDS + SLACK_SECONDS, "it waited although nothing ran any more"


@pytest.mark.fault("F11")
@pytest.mark.foreign_bug(14)
def test_nothing_is_started_once_the_queue_is_stopping(tmp_path: Path) -> None:
    site = Site(tmp_path, {"grace": GRACE_SECONDS, "concurrency": 1})
    with serving(site) as server:
        first, *others = server.add(f"/add-steps?count=3&seconds={GRACE_SECONDS / 2}")
        eventually_sync(lambda: site.ledger().runs.keys() == {first})
        server.signal(signal.SIGTERM)
        server.wait_exit(within=10)
    assert site.row(first)["state"] == "succeeded", "its slot became free while the queue was stopping"
    assert {(site.row(one)["state"], site.row(one)["lease_no"]) for one in others} == {("queued", 0)}


@pytest.mark.fault("F12")
@pytest.mark.foreign_bug(63)
def test_a_second_sigterm_loses_nothing(site: Site) -> None:
    with serving(site) as server:
        ids = _add_and_await_start(server, *KINDS)
        server.signal(signal.SIGTERM)
        eventually_sync(lambda: "Waiting for application shutdown" in site.log())
        server.signal(signal.SIGTERM)
        server.wait_exit(within=10)
    assert {site.row(job_id)["attempt"] for job_id in ids.values()} == {0}
    _all_run_again(site, ids)


@pytest.mark.fault("F12")
@pytest.mark.foreign_bug(63)
def test_a_second_sigint_loses_nothing_although_it_skips_the_lifespan(site: Site) -> None:
    with serving(site) as server:
        # One job only: what is not given back has crashed its process, and those run one at a time.
        ids = _add_and_await_start(server, "sync_endless")
        server.signal(signal.SIGINT)
        server.signal(signal.SIGINT)
        server.wait_exit(within=10)
    _all_run_again(site, ids)


@pytest.mark.fault("F12")
@pytest.mark.foreign_bug(69)
def test_a_job_that_swallows_cancellation_does_not_hold_a_process_that_ends_by_sigint(site: Site) -> None:
    with serving(site) as server:
        ids = _add_and_await_start(server, "stubborn")
        sent_at = server.signal(signal.SIGINT)
        took = server.wait_exit(within=10) - sent_at
    assert took <= GRACE_SECONDS + 1.0 + SLACK_SECONDS
    _all_run_again(site, ids)


def _all_run_again(site: Site, ids: dict[str, str]) -> None:
    with serving(site):
        eventually_sync(lambda: all(len(site.ledger().runs[job_id]) == 2 for job_id in ids.values()))
