"""kill -9 at random moments, under load: nothing acknowledged is lost, nothing runs twice at once.

``DURABLEQ_TORTURE_CYCLES`` sets how often the server is killed; ``DURABLEQ_TORTURE_SEED`` repeats the moments.
"""

import os
import random
import time
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.crash.harness import (
    Clients,
    Ledger,
    Server,
    Site,
    check_ledger,
    died_of_crashes,
    free_port,
    serving,
)

CYCLES = int(os.environ.get("DURABLEQ_TORTURE_CYCLES", "25"))
SEED = int(os.environ.get("DURABLEQ_TORTURE_SEED", str(random.randrange(1_000_000))))


@pytest.mark.fault("F1", "F3", "F4", "F8")
@pytest.mark.foreign_bug(1, 64)
@pytest.mark.timeout(120 + 6 * CYCLES)
def test_no_acknowledged_job_is_lost_or_run_twice_at_once_however_often_the_server_is_killed(tmp_path: Path) -> None:
    site = Site(tmp_path)
    chance = random.Random(SEED)
    print(f"DURABLEQ_TORTURE_SEED={SEED}")
    port = free_port()
    died_at: dict[int, float] = {}
    with Clients(port) as clients:
        for _ in range(CYCLES):
            server = _killed_after(chance.uniform(0.3, 0.8), Server(site, port=port))
            assert server.died_at is not None
            died_at[server.pid] = server.died_at
    with serving(site, port=port):
        # Each kill leaves jobs that crashed a process, more than the next process has time for: one at a time.
        site.wait_finished(within=30 + 2 * CYCLES)

    assert clients.refused == []
    stored = {job_id for (job_id,) in site.rows("SELECT id FROM durableq_jobs")}
    assert set(clients.acknowledged) <= stored
    assert len(clients.acknowledged) > 20 * CYCLES, "hardly any load: this proves nothing"
    dead = died_of_crashes(site)
    check_ledger(site, died_at)
    ledger = site.ledger()
    recovery = _recovery(ledger, list(died_at))
    assert len(recovery.runnable) > CYCLES, "hardly any job was interrupted: this proves nothing"
    _report(clients, ledger, recovery, dead)
    assert _percentile(recovery.runnable, 0.99) <= 1.0
    assert _percentile(recovery.resumed, 0.99) <= 1.0


def _killed_after(seconds: float, server: Server) -> Server:
    """Let a server live for a while once it answers, then kill it at whatever it is doing."""
    try:
        server.wait_ready()
        time.sleep(seconds)
    finally:
        server.kill()
    return server


@dataclass
class _Recovery:
    """Seconds from the restart after a kill.

    It counts from the first line of the next process's lifespan, before the queue opens its file: what precedes
    it is Python importing the application.
    """

    runnable: list[float] = field(default_factory=list)
    """Until an interrupted job may run again; one for each run that a kill interrupted."""
    run: list[float] = field(default_factory=list)
    """Until it runs again in that process. Suspects run one at a time, so those behind others take longer."""
    resumed: list[float] = field(default_factory=list)
    """Until the first job that a kill interrupted, this one or one before, runs again; one for each kill."""


def _recovery(ledger: Ledger, killed: list[int]) -> _Recovery:
    restarts = [(event["at"], event["pid"]) for event in ledger.events if event["event"] == "lifespan"]
    recovery = _Recovery()
    for victim, (restarted_at, pid) in zip(killed, restarts[1:], strict=True):
        interrupted = [
            (run, again)
            for runs in ledger.runs.values()
            for run, again in zip(runs, [*runs[1:], None], strict=True)
            if run.pid == victim and run.ended_at is None
        ]
        if interrupted:
            recovery.runnable += [ledger.first("reaped", pid) - restarted_at] * len(interrupted)
            run_again = [again.started_at - restarted_at for _, again in interrupted if again and again.pid == pid]
            recovery.run += run_again
            recovery.resumed += _first_resumption(ledger, pid, restarted_at)
    return recovery


def _first_resumption(ledger: Ledger, pid: int, restarted_at: float) -> list[float]:
    again = [run.started_at for runs in ledger.runs.values() for run in runs if run.pid == pid and run.attempt > 1]
    return [min(again) - restarted_at] if again else []


def _report(clients: Clients, ledger: Ledger, recovery: _Recovery, dead: list[str]) -> None:
    runs = sum(map(len, ledger.runs.values()))
    print(
        f"{CYCLES} kills, {len(clients.acknowledged)} jobs acknowledged, {len(ledger.runs)} run in {runs} runs, "
        f"{len(recovery.runnable)} interrupted, {len(dead)} dead of three crashes"
    )
    for name, delays in vars(recovery).items():
        numbers = ", ".join(f"p{share:.0%} {_percentile(delays, share):.3f}" for share in (0.5, 0.99, 1))
        print(f"seconds after the restart until {name}: {numbers} ({len(delays)} measured)".replace("%", ""))


def _percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(int(len(values) * share), len(values) - 1)]
