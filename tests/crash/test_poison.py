"""A job that kills its process is stopped after three crashes, and takes nothing else with it."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.crash.harness import Clients, Server, Site, check_ledger, free_port
from tests.support import eventually_sync


class Supervisor:
    """Starts the server again whenever it has died, as systemd or a container runtime does."""

    def __init__(self, site: Site) -> None:
        self.died_at: dict[int, float] = {}
        self.port = free_port()
        self._stopping = threading.Event()
        self._site = site
        self.server = Server(site, port=self.port)
        self._thread = threading.Thread(target=self._restart_without_end, daemon=True)
        self._thread.start()

    def _restart_without_end(self) -> None:
        while True:
            self.server.process.wait()
            self.died_at[self.server.pid] = self.server.kill()
            if self._stopping.is_set():
                return
            self.server = Server(self._site, port=self.port)

    def stop(self) -> None:
        self._stopping.set()
        self.server.process.kill()
        self._thread.join()


@contextmanager
def _supervised(site: Site) -> Iterator[Supervisor]:
    supervisor = Supervisor(site)
    try:
        supervisor.server.wait_ready()
        yield supervisor
    finally:
        supervisor.stop()


@pytest.mark.fault("F4", "F51", "R7")
@pytest.mark.foreign_bug(43, 44, 47)
def test_a_job_that_kills_its_process_three_times_is_dead_and_its_neighbours_are_charged_once_at_most(
    tmp_path: Path,
) -> None:
    site = Site(tmp_path)
    with _supervised(site) as supervisor:
        # One request, one transaction, one claim: when the poison strikes, its neighbours are running.
        neighbours = supervisor.server.add("/add-steps?count=20&seconds=0.2")
        [poison] = supervisor.server.add("/add/poison")
        # Other work goes on: with each new job the worker looks again for what it may take.
        with Clients(supervisor.port, count=2, pause=0.05) as clients:
            eventually_sync(lambda: len(supervisor.died_at) == 3, within=30)
        site.wait_finished(within=20)
        supervisor.server.wait_ready()
        after = supervisor.server.add("/add-steps?count=3&seconds=0.01")
        site.wait_finished(within=10)
    assert len(supervisor.died_at) == 4, "three crashes, and the end of this test"

    row = site.row(poison)
    assert (row["state"], row["attempt"], row["crashes"], row["error_type"]) == ("dead", 3, 3, "durableq.WorkerDied")
    assert "worker died while running" in row["error_message"]
    assert "crash 3 of at most 3" in row["error_message"]
    rows = [site.row(one) for one in {*neighbours, *clients.acknowledged}]
    assert {one["state"] for one in rows} == {"succeeded"}
    assert max(one["crashes"] for one in rows) == 1, "they were running at the first crash, and alone after that"
    assert {site.row(one)["crashes"] for one in after} == {0}
    check_ledger(site, supervisor.died_at)
    assert site.ledger().starts("tests.crash.app:poison") == 3
