"""Four processes work on one file side by side, on jobs of all priorities, some of which fail or put themselves off.

While a lease holds nobody else may start its job; each job is finished once, and each attempt of it is on record once.
"""

import time
from pathlib import Path
from typing import Final

from durableq.torture.ledger import broken_promises, fetch, is_whole, tell
from durableq.torture.nursery import Nursery, Orders, Process, wait_until
from durableq.torture.verdicts import Check, Progress, Sizes, Verdict

PROCESSES: Final = 4
READY_SECONDS: Final = 30.0
STUCK_SECONDS: Final = 30.0
"""No job was finished for so long: they never will be."""
LEAVE_SECONDS: Final = 30.0
TOLD_AT_MOST: Final = 20
_LOOK_SECONDS: Final = 0.1


def run(directory: Path, sizes: Sizes, seed: int, progress: Progress) -> Verdict:
    database = directory / "jobs.db"
    with Nursery(directory) as nursery:
        orders = [
            Orders(part="batch", database=str(database), seed=seed * PROCESSES + number, jobs=jobs)
            for number, jobs in enumerate(_shares(sizes.overlap_jobs))
        ]
        processes = nursery.bear(*orders)
        began_at = time.monotonic()
        wrong = _work_it_off(database, processes, sizes.overlap_jobs, progress)
        took = time.monotonic() - began_at
        if not wrong:
            wrong += _leave(processes)
        story = tell(database, nursery.ledgers, {})
    wrong += broken_promises(story)
    if not is_whole(database):
        wrong.append("the database file is damaged")
    starts = len(story.runs)
    return Verdict(
        tried=len(story.rows),
        wrong=[f"{one} (seed {seed})" for one in wrong[:TOLD_AT_MOST]],
        figures={
            "jobs, run by four processes": f"{len(story.rows):,} in {took:.1f} s, with {starts:,} starts",
            "runs by process": ", ".join(f"{len(one.ledger.runs()):,}" for one in processes),
            "promises broken": f"{len(wrong):,}",
        },
    )


def _shares(jobs: int) -> list[int]:
    return [jobs // PROCESSES + (number < jobs % PROCESSES) for number in range(PROCESSES)]


def _work_it_off(database: Path, processes: list[Process], jobs: int, progress: Progress) -> list[str]:
    """Wait until all jobs are finished; return what kept them from it."""
    if not wait_until(lambda: all(one.ledger.has("ready") for one in processes), READY_SECONDS):
        return [f"not all processes came up: {'; '.join(one.why() for one in processes)}"]
    done, moved_at = 0, time.monotonic()
    while done < jobs:
        if time.monotonic() - moved_at > STUCK_SECONDS:
            return [f"{jobs - done:,} of {jobs:,} jobs were not finished within {STUCK_SECONDS:g} s of the last one"]
        if any(one.status is not None for one in processes):
            return [f"a process ended on its own: {'; '.join(one.why() for one in processes)}"]
        for one in processes:
            if any(entry.kind == "evicted" for entry in one.ledger.read()):
                return [f"process {one.number} was taken for dead while it worked"]
        time.sleep(_LOOK_SECONDS)
        [(finished,)] = fetch(database, "SELECT count(*) FROM durableq_jobs WHERE finished_at IS NOT NULL")
        if finished > done:
            done, moved_at = finished, time.monotonic()
            progress(done, jobs)
    return []


def _leave(processes: list[Process]) -> list[str]:
    return [wrong for one in processes if (wrong := one.leave(LEAVE_SECONDS))]


CHECK: Final = Check(
    name="overlaps",
    promise="While a worker's lease holds no other starts the job, and each job is finished once.",
    run=run,
)
