"""``durableq torture`` in its short form: every check is run as a user would, and none breaks a promise."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from durableq.torture import strace
from durableq.torture.blows import Site
from durableq.torture.children import Child, Say
from durableq.torture.crash_points import enumerate_crashes
from durableq.torture.operations import OPERATIONS
from durableq.torture.stores import make_job, opened
from durableq.torture.verdicts import Verdict
from tests.storage.support import REPOSITORY

FEWEST = {"crash points": 250, "I/O errors": 400}


def torture(directory: Path, *arguments: str) -> tuple[int, str, dict[str, Any]]:
    """Run the command; return how it exited, what it printed, and its report."""
    report = directory / "report.json"
    command = [sys.executable, "-m", "durableq", "torture", str(directory), "--seed", "1", "--json", str(report)]
    ran = subprocess.run(
        [*command, *arguments], capture_output=True, text=True, cwd=REPOSITORY, timeout=580, check=False
    )
    return ran.returncode, ran.stdout + ran.stderr, json.loads(report.read_text()) if report.exists() else {}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("check", FEWEST)
def test_no_blow_breaks_a_promise(tmp_path: Path, check: str) -> None:
    if reason := strace.why_not():
        pytest.skip(reason)
    status, printed, report = torture(tmp_path, "--only", check)
    assert status == 0, printed
    (verdict,) = report["checks"]
    assert verdict["name"] == check
    assert verdict["wrong"] == []
    assert verdict["tried"] >= FEWEST[check], printed
    assert "Every promise was kept." in printed


def test_an_unknown_check_is_refused_with_the_names_of_those_there_are(tmp_path: Path) -> None:
    status, printed, _ = torture(tmp_path, "--only", "crash point")
    assert status == 2
    assert "crash points" in printed


def test_what_a_child_said_before_its_end_is_heard() -> None:
    script = "from tests.torture.test_checks import child_that_fails; child_that_fails()"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert json.loads(ran.stdout) == [1, ["first", 1], True]


def child_that_fails() -> None:
    """Run in a process of its own, since it forks."""

    def speak(say: Say) -> None:
        say(["first", 1])
        raise ValueError("no more")

    with Child.start(speak) as child:
        child.resume()
        status = child.wait(10)
        first, last = child.said()
    print(json.dumps([status, first, "ValueError: no more" in last["raised"]]))


def test_an_acknowledgement_that_comes_before_the_commit_is_found_out(tmp_path: Path) -> None:
    """A check that could not fail would prove nothing."""
    if reason := strace.why_not():
        pytest.skip(reason)
    script = f"from tests.torture.test_checks import find_out_a_liar; find_out_a_liar({str(tmp_path)!r})"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=REPOSITORY, check=True)
    assert "acknowledged job" in ran.stdout
    assert "is not there" in ran.stdout


def find_out_a_liar(directory: str) -> None:
    """Run in a process of its own, since it forks."""

    async def add(path: Path, say: Say) -> None:
        async with opened(path) as storage:
            job = make_job(1)
            say({"done": "add", "jobs": [job.id]})
            await storage.insert([job])

    honest = next(one for one in OPERATIONS if one.name == "add")
    verdict = Verdict()
    enumerate_crashes(Site(Path(directory) / "site", replace(honest, perform=add)), "pwrite64", verdict)
    print(verdict.wrong)
