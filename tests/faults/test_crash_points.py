"""kill -9 at every statement of the writer's transactions, in a life that does everything once."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from durableq.models import JobState
from tests.faults.crash_points import JOBS, snapshot
from tests.storage.support import REPOSITORY, Backend, claim, runs_again

FEWEST_PLACES_TO_DIE = 70


def _steps(directory: Path) -> list[list[Any]]:
    return [json.loads(line) for line in (directory / "steps").read_text().splitlines()]


@pytest.fixture(scope="module")
def lives(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory for each place to die, and one where the life went on to its end."""
    directory = tmp_path_factory.mktemp("lives")
    command = [sys.executable, "-m", "tests.faults.crash_points", str(directory)]
    subprocess.run(command, cwd=REPOSITORY, check=True, timeout=55, capture_output=True)
    return directory


def _cut_short(lives: Path) -> list[Path]:
    return sorted(one for one in lives.iterdir() if one.name not in ("whole", "warm-up"))


@pytest.mark.fault("F1", "F3", "F5", "F6", "F55")
@pytest.mark.foreign_bug(54)
def test_whichever_statement_is_the_last_the_file_is_as_before_its_step_or_as_after_it(lives: Path) -> None:
    whole = _steps(lives / "whole")
    after_step = [found for _, _, found in whole]
    cut_short = _cut_short(lives)
    assert len(cut_short) > FEWEST_PLACES_TO_DIE
    for directory in cut_short:
        done = len(_steps(directory))
        if done == 0:
            continue  # died while the file was being made: see below
        allowed = after_step[done - 1 : done + 1]
        assert snapshot(directory / "jobs.db") in allowed, f"{directory.name}, after the step {whole[done - 1][0]!r}"


@pytest.mark.fault("F1", "F6")
def test_what_was_acknowledged_is_there_and_of_one_transaction_all_or_nothing(lives: Path) -> None:
    seen = set()
    for directory in _cut_short(lives):
        steps = [step for step, _, _ in _steps(directory)]
        stored = len((snapshot(directory / "jobs.db") or [[]])[0])
        if "pruned" not in steps and "deregistered" not in steps:
            seen.add(("added" in steps, stored))
    assert seen >= {(False, 0), (False, JOBS), (True, JOBS)}, "never cut in between: this proves nothing"
    assert {stored for acknowledged, stored in seen if acknowledged} <= {JOBS, JOBS - 1}
    assert {stored for acknowledged, stored in seen if not acknowledged} == {0, JOBS}


@pytest.mark.fault("F3", "F6", "F55")
@pytest.mark.foreign_bug(12)
async def test_whichever_statement_is_the_last_the_next_start_takes_everything_up_again(lives: Path) -> None:
    for directory in _cut_short(lives):
        backend = Backend(str(directory / "jobs.db"))
        before = snapshot(directory / "jobs.db") or [[]]
        storage = await backend.worker()
        await storage.reap(runs_again)
        assert (await storage.counts())[JobState.RUNNING] == 0, directory.name
        unfinished = {row[0] for row in before[0] if row[1] in ("queued", "running")}
        suspects = {row[0] for row in before[0] if row[3] > 0}
        taken = {lease.id for lease in await claim(storage)}
        assert taken | suspects >= unfinished - _held_by_the_dead(before), directory.name
        await backend.close()


def _held_by_the_dead(found: list[Any]) -> set[str]:
    """Jobs of a worker that is reaped become suspects: they are run one at a time."""
    return {row[0] for row in found[0] if row[5] is not None}
