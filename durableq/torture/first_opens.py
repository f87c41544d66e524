"""Four processes open a file that does not exist yet, at the same instant.

Each has to come up, be told that its job is stored, and see it run; the file is whole and holds the four of them.
"""

import shutil
import time
from pathlib import Path
from typing import Final

from durableq.torture.ledger import broken_promises, is_whole, tell
from durableq.torture.nursery import Nursery, Orders
from durableq.torture.verdicts import Check, Progress, Sizes, Verdict

TOGETHER: Final = 4
OPEN_SECONDS: Final = 30.0
WRONG_AT_MOST: Final = 20
"""After so many failures there is nothing left to learn."""


def run(directory: Path, sizes: Sizes, seed: int, progress: Progress) -> Verdict:
    verdict = Verdict()
    longest = 0.0
    with Nursery(directory) as nursery:
        while verdict.tried < sizes.first_opens and len(verdict.wrong) < WRONG_AT_MOST:
            began_at = time.monotonic()
            verdict.wrong += _open_at_once(nursery, directory / f"opened-{verdict.tried}", verdict.tried)
            longest = max(longest, time.monotonic() - began_at)
            verdict.tried += 1
            progress(verdict.tried, sizes.first_opens)
    verdict.figures = {
        "simultaneous first opens": f"{verdict.tried:,} by {TOGETHER} processes each",
        "failures": f"{len(verdict.wrong):,}",
        "longest, from the start of the processes to their end": f"{longest:.2f} s",
    }
    return verdict


def _open_at_once(nursery: Nursery, directory: Path, round_number: int) -> list[str]:
    """Return what went wrong."""
    directory.mkdir()
    database = directory / "jobs.db"
    openers = nursery.bear(*[Orders(part="open", database=str(database)) for _ in range(TOGETHER)])
    wrong = []
    for opener in openers:
        if not opener.wait_end(OPEN_SECONDS):
            wrong.append(f"first open {round_number}: process {opener.number} did not end within {OPEN_SECONDS:g} s")
        elif opener.status != 0:
            wrong.append(f"first open {round_number}: process {opener.number}: {opener.why()}")
    if wrong:
        return wrong
    story = tell(database, [opener.ledger for opener in openers], {})
    wrong = [f"first open {round_number}: {one}" for one in broken_promises(story)]
    if len(story.added) != TOGETHER or len(story.rows) != TOGETHER:
        wrong.append(f"first open {round_number}: {len(story.added)} jobs acknowledged, {len(story.rows)} stored")
    if not is_whole(database):
        wrong.append(f"first open {round_number}: the database file is damaged")
    if not wrong:
        shutil.rmtree(directory)
    return wrong


CHECK: Final = Check(
    name="first opens",
    promise="Any number of processes may open a new database file at the same instant.",
    run=run,
)
