"""Every row of the matrix and every foreign bug has a test that shows it, or a reason why there can be none."""

import json
from pathlib import Path

import pytest

from tests.faults import report as page
from tests.faults.evidence import read_evidence
from tests.faults.foreign_bugs import BUGS
from tests.faults.matrix import FAULTS, NOT_APPLICABLE
from tests.faults.report import REPORT, report


def test_every_fault_has_a_test_or_a_reason_for_having_none() -> None:
    shown = read_evidence().faults.keys()
    assert shown <= FAULTS.keys(), "a test names a fault that the matrix does not have"
    assert shown & NOT_APPLICABLE.keys() == set(), "there is a test now, so the reason for having none is out of date"
    assert FAULTS.keys() - shown - NOT_APPLICABLE.keys() == set()


def test_every_foreign_bug_has_a_test_or_a_reason_for_having_none() -> None:
    shown = read_evidence().foreign_bugs.keys()
    assert [bug.number for bug in BUGS] == list(range(1, 108))
    reasons = {bug.number for bug in BUGS if bug.cannot_happen}
    assert shown <= {bug.number for bug in BUGS}
    assert shown & reasons == set(), "there is a test now, so the reason for having none is out of date"
    assert {bug.number for bug in BUGS} - shown - reasons == set()


def test_the_published_report_names_the_tests_there_are() -> None:
    assert REPORT.read_text() == report(), "run 'python -m tests.faults.report' and commit docs/reliability.md"


def test_a_marker_is_found_wherever_its_test_stands(tmp_path: Path) -> None:
    tests = tmp_path / "tests"
    tests.mkdir()
    lines = ["class TestIt:", "    @pytest.mark.fault('F1', 'F2')", "    @pytest.mark.foreign_bug(3)"]
    lines += ["    async def test_it_holds(self) -> None: ...", "@pytest.mark.fault('F9')", "def helper() -> None: ..."]
    (tests / "test_it.py").write_text("\n".join(lines))
    found = read_evidence(tests)
    assert {fault: [proof.promise for proof in proofs] for fault, proofs in found.faults.items()} == {
        "F1": ["it holds"],
        "F2": ["it holds"],
    }
    assert [proof.path for proof in found.foreign_bugs[3]] == ["tests/test_it.py"]


def test_a_published_torture_run_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    figures = {page.NORMAL: "12 of 20 lost"}
    check = {"name": "power cuts", "promise": "nothing is lost", "tried": 5000, "wrong": [], "figures": figures}
    skipped = {"name": "full disks", "promise": "it goes on", "tried": 0, "wrong": [], "figures": {}}
    check |= {"skipped": None, "seconds": 61.2}
    skipped |= {"skipped": "needs strace", "seconds": 0.0}
    run = {"seed": 7, "versions": {"SQLite": "3.51.3"}, "checks": [check, skipped]}
    (tmp_path / "torture.json").write_text(json.dumps(run))
    monkeypatch.setattr(page, "TORTURE", tmp_path / "torture.json")
    lines = report().splitlines()
    assert "- seed: 7" in lines
    assert "- versions: SQLite 3.51.3" in lines
    assert '| power cuts | nothing is lost | 5,000 | 0 | 61 s | with durability="normal" 12 of 20 lost |' in lines
    assert "| full disks | it goes on | 0 | skipped: needs strace | 0 s |  |" in lines
    assert "Seen when the power was cut in the run below: 12 of 20 lost." in lines
