"""Processes that die, hang and race: the checks hold, and each of them is seen to fail when something is broken."""

import dataclasses
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from durableq.torture import first_opens, kills, nursery, overlaps, zombies
from durableq.torture.ledger import Row, Run, Story, Try, broken_promises
from durableq.torture.nursery import Nursery, Orders
from durableq.torture.verdicts import QUICK, Check, Sizes, Verdict
from tests.support import eventually_sync

SEED = 20_260
SMALL = dataclasses.replace(QUICK, kills=3, zombies=5, overlap_jobs=2_000, first_opens=10)
"""Enough to find a planted defect."""
PATIENT_SECONDS = 240
DEFECTS = {
    "settling is not fenced": """
        from durableq.storage.sqlite.statements import SQL
        fence = "AND durableq_jobs.lease_no = outcome.lease_no\\n    AND durableq_jobs.state = 'running'"
        assert fence in SQL["settle"]
        SQL["settle"] = SQL["settle"].replace(fence, "")
        from durableq.storage.sqlite import settling
        settling.exactly = lambda *_, **__: None  # the counts would give it away at once
    """,
    "progress is not fenced": """
        from durableq.storage.sqlite.statements import SQL
        before, fence, _ = SQL["write_progress"].rpartition("AND durableq_jobs.lease_no")
        assert fence
        SQL["write_progress"] = before
    """,
    "the living are taken for dead": """
        from durableq.storage.sqlite.host import LockFile
        LockFile.is_free = lambda self, byte: True
    """,
    "jobs are acknowledged before they are stored": """
        from durableq.adding import Adding
        Adding.__await__ = lambda self: iter(()) if False else no_wait(self.job)
        def no_wait(job):
            return job
            yield
    """,
    "the dead are looked for too seldom": """
        from durableq.engine import reaper
        reaper.REAP_EVERY_SECONDS = 3.0
    """,
    "files are opened without the lock": """
        from durableq.storage.sqlite import connection, schema
        connection._acquire_opening = lambda locks, wait_seconds: None
        schema.begin = lambda connection: connection.execute("BEGIN")
    """,
}


def _told(done: int, of: int) -> None:
    assert 0 <= done <= of


def _run(check: Check, directory: Path, sizes: Sizes = QUICK) -> Verdict:
    return check.run(directory, sizes, SEED, _told)


@pytest.fixture
def plant(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Have the subjects carry a defect."""

    def plant_defect(name: str) -> None:
        lines = [line.removeprefix(" " * 8) for line in DEFECTS[name].strip("\n").splitlines()]
        start = "from durableq.torture import nursery, subject\nnursery.Cradle(subject.live).serve()\n"
        monkeypatch.setattr(nursery, "COMMAND", [sys.executable, "-c", "\n".join([*lines, start])])

    return plant_defect


# -- the promises ----------------------------------------------------------------------------------------------


@pytest.mark.timeout(PATIENT_SECONDS)
def test_no_acknowledged_job_is_lost_when_processes_are_killed_under_load(tmp_path: Path) -> None:
    verdict = _run(kills.CHECK, tmp_path)
    assert verdict.wrong == [], verdict.figures
    assert verdict.tried == QUICK.kills


@pytest.mark.timeout(PATIENT_SECONDS)
def test_nothing_that_a_worker_writes_after_losing_its_lease_counts(tmp_path: Path) -> None:
    verdict = _run(zombies.CHECK, tmp_path)
    assert verdict.wrong == [], verdict.figures
    assert verdict.tried >= QUICK.zombies
    assert verdict.figures["their writes"].startswith("0 accepted")


@pytest.mark.timeout(PATIENT_SECONDS)
def test_four_processes_never_run_a_job_twice_at_once(tmp_path: Path) -> None:
    verdict = _run(overlaps.CHECK, tmp_path)
    assert verdict.wrong == [], verdict.figures
    assert verdict.tried == QUICK.overlap_jobs


@pytest.mark.timeout(PATIENT_SECONDS)
def test_four_processes_may_open_a_fresh_file_at_the_same_instant(tmp_path: Path) -> None:
    verdict = _run(first_opens.CHECK, tmp_path)
    assert verdict.wrong == [], verdict.figures
    assert verdict.tried == QUICK.first_opens


# -- the checks can fail ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("defect", "check", "sentence"),
    [
        pytest.param(defect, check, sentence, id=defect.replace(" ", "-"))
        for defect, check, sentence in (
            (
                "settling is not fenced",
                zombies.CHECK,
                "it was told that|became|heard nothing|its (result|failure|further job) is",
            ),
            ("progress is not fenced", zombies.CHECK, "its progress is stored"),
            ("the living are taken for dead", overlaps.CHECK, "was taken for dead"),
            ("jobs are acknowledged before they are stored", kills.CHECK, "acknowledged and is not stored"),
            ("the dead are looked for too seldom", kills.CHECK, "ran again after"),
            ("files are opened without the lock", first_opens.CHECK, "first open"),
        )
    ],
)
def test_a_planted_defect_is_found(
    tmp_path: Path, plant: Callable[[str], None], defect: str, check: Check, sentence: str
) -> None:
    plant(defect)
    verdict = _run(check, tmp_path, SMALL)
    assert not verdict.holds
    assert any(re.search(sentence, one) for one in verdict.wrong), verdict.wrong


def _story() -> Story:
    """Two jobs: one ran at its second attempt, after its process had died; the other failed and was snoozed first."""
    return Story(
        rows={"a": Row("a", "succeeded", 2, 1, 2), "b": Row("b", "succeeded", 2, 0, 3)},
        tries=[Try("a", 1, 1, "durableq.WorkerDied"), Try("b", 1, 1, "durableq.Retry")],
        runs=[
            Run("a", 1, 1, process=0, started_at=1.0),
            Run("a", 2, 2, process=1, started_at=2.0, ended_at=3.0, how="returned"),
            Run("b", 1, 1, process=1, started_at=1.0, ended_at=1.1, how="raised"),
            Run("b", 2, 2, process=1, started_at=1.2, ended_at=1.3, how="snoozed"),
            Run("b", 3, 2, process=1, started_at=1.4, ended_at=1.5, how="returned"),
        ],
        added=["a", "b"],
        settled=[("a", 2, "succeeded"), ("b", 1, "retried"), ("b", 2, "snoozed"), ("b", 3, "succeeded")],
        deaths={0: 1.5},
    )


def test_a_ledger_in_which_all_is_well_breaks_no_promise() -> None:
    assert broken_promises(_story()) == []


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda story: story.added.append("c"), "job c was acknowledged and is not stored"),
        (lambda story: story.refused.append("a"), "job a was reported as not stored, and is stored"),
        (lambda story: story.runs.append(Run("c", 1, 1, 1, 1.0, 2.0)), "job c ran in process 1 and is not stored"),
        (lambda story: story.rows.update(a=Row("a", "queued", 2, 1, 2)), "job a is still queued"),
        (lambda story: setattr(story.runs[1], "started_at", 1.2), "job a started in process 1 (lease 2) while it ran"),
        (lambda story: setattr(story, "deaths", {}), "job a started in process 1 (lease 2) while it ran in process 0"),
        (lambda story: setattr(story.runs[3], "ended_at", 1.45), "job b started in process 1 (lease 3) while it ran"),
        (lambda story: setattr(story.runs[4], "lease_no", 2), "job b started under lease 2 after lease 2"),
        (lambda story: story.rows.update(b=Row("b", "succeeded", 3, 0, 3)), "job b counts 3 attempts, of which are"),
        (lambda story: story.tries.pop(), "job b succeeded at attempt 2; failures on record: []"),
        (lambda story: story.tries.append(Try("b", 2, 2, "E")), "at attempt 2; failures on record: [1, 2]"),
        (lambda story: story.rows.update(a=Row("a", "succeeded", 2, 0, 2)), "job a counts 0 crashes; deaths on record"),
        (lambda story: story.tries.pop(0), "job a died with process 0 under lease 1; nothing is on record"),
        (lambda story: setattr(story, "deaths", {5: 1.0}), "job a was taken from process 0 under lease 1, which lived"),
        (lambda story: story.rows.update(b=Row("b", "dead", 2, 0, 3, "E")), "job b is dead by E, which nobody raised"),
        (lambda story: story.settled.append(("a", 2, "succeeded")), "lease 2 of job a was settled more than once"),
        (lambda story: story.settled.append(("a", 1, "succeeded")), "job a was finished under the leases [1, 2]"),
    ],
)
def test_a_ledger_tells_what_went_wrong(change: Callable[[Story], object], sentence: str) -> None:
    story = _story()
    change(story)
    assert any(sentence in one for one in broken_promises(story)), broken_promises(story)


def test_a_nursery_leaves_no_process_behind_not_even_a_stopped_one(tmp_path: Path) -> None:
    with Nursery(tmp_path) as home:
        born = home.bear(*[Orders(part="load", database=str(tmp_path / "jobs.db")) for _ in range(2)])
        eventually_sync(lambda: all(one.ledger.has("ready") for one in born))
        born[0].signal(signal.SIGSTOP)
    for process in born:
        with pytest.raises(ProcessLookupError):
            os.kill(process.pid, 0)


def test_a_program_that_cannot_start_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nursery, "COMMAND", [sys.executable, "-c", "raise SystemExit('no such thing')"])
    with Nursery(tmp_path) as home, pytest.raises(RuntimeError, match="no such thing"):
        home.bear(Orders(part="open", database=str(tmp_path / "jobs.db")))


def test_a_process_that_cannot_do_as_it_was_told_says_why(tmp_path: Path) -> None:
    with Nursery(tmp_path) as home:
        [process] = home.bear(Orders(part="open", database=str(tmp_path / "missing" / "jobs.db")))
        assert process.wait_end(20)
    assert process.status == 1
    assert "missing" in process.why()
