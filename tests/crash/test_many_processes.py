"""Several processes on one file: one start for each job, and no quarrel about the file."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.crash.harness import ROOT, Clients, Site, check_ledger, serving
from tests.support import eventually_sync

WORKERS = 4
FIRST_OPENERS = 8
ROUNDS = 5

OPENER = """
import asyncio, sys
from durableq import DurableQ

def step() -> None: ...

async def open_and_add(path: str) -> None:
    dq = DurableQ(path)
    task = dq.task(name="step")(step)
    async with dq.running():
        await dq.add_task(task)
        print("opened", flush=True)
        sys.stdin.readline()

print("ready", flush=True)
for line in sys.stdin:
    asyncio.run(open_and_add(line.strip()))
    print("closed", flush=True)
"""


@pytest.mark.fault("F17", "F25")
@pytest.mark.foreign_bug(30, 38, 49, 51, 52)
def test_four_workers_on_one_file_start_every_job_once_and_never_find_the_database_locked(tmp_path: Path) -> None:
    site = Site(tmp_path)
    with serving(site, "--workers", str(WORKERS)) as server:
        eventually_sync(lambda: site.log().count("Application startup complete") == WORKERS, within=30)
        with Clients(server.port, count=8) as clients:
            time.sleep(3)
        site.wait_finished(within=20)

    assert clients.refused == []
    stored = dict(site.rows("SELECT id, state FROM durableq_jobs"))
    assert len(clients.acknowledged) > 200, "hardly any load: this proves nothing"
    assert {stored.get(job_id) for job_id in clients.acknowledged} == {"succeeded"}
    runs = site.ledger().runs
    assert {len(runs[job_id]) for job_id in stored} == {1}
    assert len({run.pid for job_runs in runs.values() for run in job_runs}) == WORKERS, "not every worker took part"
    check_ledger(site, {})
    assert "database is locked" not in site.log()
    warnings = [line for line in site.log().splitlines() if " WARNING " in line]
    assert [line for line in warnings if "WAL-reset bug" not in line] == []
    assert " ERROR " not in site.log()


@pytest.mark.fault("F17")
def test_eight_processes_may_open_a_fresh_file_at_once(tmp_path: Path) -> None:
    openers = [
        subprocess.Popen(
            [sys.executable, "-c", OPENER], cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for _ in range(FIRST_OPENERS)
    ]
    try:
        assert _answers(openers) == {"ready"}
        for number in range(ROUNDS):
            site = Site(tmp_path / str(number))
            site.directory.mkdir()
            _tell(openers, str(site.database))
            assert _answers(openers) == {"opened"}, f"round {number}"
            assert site.rows("SELECT count(*) FROM durableq_workers") == [(FIRST_OPENERS,)]
            _tell(openers, "close")
            assert _answers(openers) == {"closed"}, f"round {number}"
            assert site.rows("SELECT count(*) FROM durableq_jobs") == [(FIRST_OPENERS,)]
            assert site.rows("SELECT count(*) FROM durableq_workers") == [(0,)]
            assert site.rows("PRAGMA integrity_check") == [("ok",)]
    finally:
        for opener in openers:
            opener.kill()
            opener.communicate()


def _tell(openers: list[subprocess.Popen[str]], line: str) -> None:
    for opener in openers:
        assert opener.stdin is not None
        opener.stdin.write(f"{line}\n")
        opener.stdin.flush()


def _answers(openers: list[subprocess.Popen[str]]) -> set[str]:
    answers = set()
    for opener in openers:
        assert opener.stdout is not None
        answers.add(opener.stdout.readline().strip())
    return answers
