"""Two processes add jobs and run them under load on one file; again and again one of them is killed.

By SIGKILL, at an instant that the seed chooses; some are stopped first, and now and then one leaves politely. Beside
it, in turns: the victim's disk is full, the survivor's was, another process holds the database locked for a second, the
host's clock is set forward or back. In the end every job that was acknowledged is there, was finished, and has run as
its attempts and crashes say.
"""

import contextlib
import math
import random
import resource
import signal
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Final

from durableq.clock import SECOND
from durableq.settings import QueueSettings
from durableq.torture.ledger import Story, broken_promises, fetch, is_whole, lost_jobs, tell
from durableq.torture.nursery import Nursery, Orders, Process, wait_until
from durableq.torture.subject import SteppedClock
from durableq.torture.verdicts import Check, Progress, Sizes, Verdict

RECOVERY_P99_SECONDS: Final = 1.0
RECOVERY_MAX_SECONDS: Final = 2.0
RECOVERY_AT_ALL_SECONDS: Final = 8.0
"""Beside trouble of its own, a worker waits up to 2 s between its tries."""
LOCK_SECONDS: Final = 1.0
READY_SECONDS: Final = 30.0
LEAVE_SECONDS: Final = 30.0
FINISH_SECONDS: Final = 120.0
KILLS_ON_ONE_FILE: Final = 100
POLITE_EVERY: Final = 8
TOLD_AT_MOST: Final = 20
HOUR: Final = 3_600 * SECOND
CLOCK_STEPS: Final = (HOUR, -HOUR, 24 * HOUR, -24 * HOUR, 48 * HOUR)
"""Where the host's clock is set to, counted from the true time."""
BESIDE: Final = ("nothing", "clock", "full disk", "nothing", "lock", "clock", "nothing", "full survivor", "nothing")
"""What goes wrong beside each kill, in turns."""
TROUBLE: Final = ("lock", "full survivor")
"""What the survivor suffers from as well: its recovery is measured apart, from the end of it."""

_FULL_BEYOND_BYTES: Final = 64 * 1024
_PROBE_SECONDS: Final = 0.005


def run(directory: Path, sizes: Sizes, seed: int, progress: Progress) -> Verdict:
    verdict, seen = Verdict(), Seen()
    with _machine_delays() as delays:
        while verdict.tried < sizes.kills and not verdict.wrong:
            section = directory / f"from-{verdict.tried}"
            section.mkdir()
            kills = min(KILLS_ON_ONE_FILE, sizes.kills - verdict.tried)
            numbers = range(verdict.tried, verdict.tried + kills)
            verdict.wrong += _kill_in_turns(section, numbers, seed + verdict.tried, seen, progress, sizes.kills)
            verdict.tried += kills
    verdict.wrong = [f"{one} (seed {seed})" for one in verdict.wrong + seen.too_slow()][:TOLD_AT_MOST]
    verdict.figures = seen.figures(delays)
    return verdict


class Seen:
    """What all cycles together showed."""

    def __init__(self) -> None:
        self.recoveries: list[float] = []
        """Seconds from a SIGKILL until each job that it interrupted ran again."""
        self.after_trouble: list[float] = []
        """The same, counted from the end of what troubled the survivor."""
        self.blows: Counter[str] = Counter()
        self.jobs: Counter[str] = Counter()

    def count(self, story: Story) -> None:
        self.jobs["acknowledged"] += len(story.added)
        self.jobs["lost"] += len(lost_jobs(story))
        self.jobs["reported as not stored"] += len(story.refused)
        self.jobs["reported as unknown"] += len(story.unknown)
        self.jobs["runs"] += len(story.runs)
        self.jobs["crashes counted"] += sum(row.crashes for row in story.rows.values())

    def too_slow(self) -> list[str]:
        p99, longest = quantile(self.recoveries, 0.99), max(self.recoveries, default=0.0)
        if p99 <= RECOVERY_P99_SECONDS and longest <= RECOVERY_MAX_SECONDS:
            return []
        return [
            f"interrupted jobs ran again after {p99:.2f} s (p99), {longest:.2f} s at most; promised are "
            f"{RECOVERY_P99_SECONDS:g} s and {RECOVERY_MAX_SECONDS:g} s"
        ]

    def figures(self, delays: list[float]) -> dict[str, str]:
        return {
            "blows": _listed(self.blows),
            "jobs": _listed(self.jobs),
            "SIGKILL until an interrupted job runs again": _summary(self.recoveries),
            "the same after a lock or a full disk of the survivor, from its end": _summary(self.after_trouble),
            "the machine's own delay of a timer meanwhile": _summary(delays),
        }


def _kill_in_turns(
    directory: Path, numbers: range, seed: int, seen: Seen, progress: Progress, all_kills: int
) -> list[str]:
    """Kill so often on one file, and check it in the end; return what went wrong."""
    with Nursery(directory) as nursery:
        pair = Pair(directory, nursery, seed, seen)
        for number in numbers:
            if number % POLITE_EVERY == POLITE_EVERY - 1:
                pair.say_goodbye()
            pair.kill_one(BESIDE[number % len(BESIDE)])
            if pair.wrong:
                return [f"kill {number}: {one}" for one in pair.wrong]
            progress(number + 1, all_kills)
        pair.finish()
        story = tell(pair.database, nursery.ledgers, pair.deaths)
    seen.count(story)
    damage = [] if is_whole(pair.database) else ["the database file is damaged"]
    return [*pair.wrong, *broken_promises(story), *damage]


class Pair:
    """The two that are alive on one file, and what has become of those before them."""

    def __init__(self, directory: Path, nursery: Nursery, seed: int, seen: Seen) -> None:
        self.database = directory / "jobs.db"
        self.deaths: dict[int, float] = {}
        self.wrong: list[str] = []
        self._nursery = nursery
        self._random = random.Random(seed)
        self._seen = seen
        self._clock_file = directory / "clock"
        self._clock = SteppedClock.make(self._clock_file)
        self._alive = [self._bear(), self._bear()]

    def kill_one(self, beside: str) -> None:
        """Kill one, and see that what it ran runs again."""
        self._await_work()
        victim, survivor = self._random.sample(self._alive, 2)
        self._seen.blows[beside if beside != "nothing" else "nothing beside"] += 1
        with self._trouble(beside, victim, survivor):
            self._let_work()
            self._kill(victim)
        over_at = time.monotonic()
        self._alive = [survivor]
        # A newcomer looks for the dead as soon as it starts: mostly the survivor shall be the one who finds out.
        if self._random.random() < 0.3:
            self._alive.append(self._bear())
        if beside in TROUBLE:
            self._seen.after_trouble += self._recoveries(victim, over_at)
        else:
            self._seen.recoveries += self._recoveries(victim, self.deaths[victim.number])
        if len(self._alive) == 1:
            self._alive.append(self._bear())

    def say_goodbye(self) -> None:
        """Have one leave by SIGTERM: what it runs is finished, or handed back uncounted."""
        self._await_work()
        self._seen.blows["SIGTERM"] += 1
        leaver = self._alive.pop(0)
        self._alive.append(self._bear())
        self._let_work()
        self._note(leaver.leave(LEAVE_SECONDS))

    def finish(self) -> None:
        """Add no more, let all that is left be run, and leave."""
        self._await_work()
        self._clock.step_to(max(CLOCK_STEPS) + HOUR)  # whatever waits for a moment waits no more
        for process in self._alive:
            process.signal(signal.SIGUSR1)
        if not wait_until(self._is_all_done, FINISH_SECONDS):
            self.wrong.append(f"jobs were left unfinished for {FINISH_SECONDS:g} s")
        for process in self._alive:
            self._note(process.leave(LEAVE_SECONDS))

    # -- blows ---------------------------------------------------------------------------------------------

    def _kill(self, victim: Process) -> None:
        if self._random.random() < 0.2:
            self._seen.blows["SIGSTOP before"] += 1
            victim.signal(signal.SIGSTOP)
            time.sleep(self._random.uniform(0.01, 0.1))
        self.deaths[victim.number] = victim.signal(signal.SIGKILL)
        if not victim.wait_end(10):
            self.wrong.append(f"process {victim.number} outlived a SIGKILL")
        elif victim.status != -signal.SIGKILL:
            self.wrong.append(f"process {victim.number} had ended on its own: {victim.status}, {victim.why()}")

    @contextlib.contextmanager
    def _trouble(self, beside: str, victim: Process, survivor: Process) -> Iterator[None]:
        with contextlib.ExitStack() as stack:
            match beside:
                case "clock":
                    self._clock.step_to(self._random.choice(CLOCK_STEPS))
                case "full disk":
                    stack.enter_context(_full_disk(victim))
                case "full survivor":
                    with _full_disk(survivor):
                        self._let_work()
                case "lock":
                    stack.enter_context(_locked(self.database))
            yield

    # -- looking -------------------------------------------------------------------------------------------

    def _recoveries(self, victim: Process, since: float) -> list[float]:
        """Wait until what the victim ran runs again elsewhere; return how long each took."""
        victim.ledger.read()
        waiting = {run.job_id for run in victim.ledger.runs() if run.ended_at is None}
        died_at, took = self.deaths[victim.number], []

        def all_run() -> bool:
            for process in self._alive:
                process.ledger.read()
                for entry in reversed(process.ledger.entries):
                    if entry.at < died_at:
                        break
                    if entry.kind == "start" and entry.job_id in waiting:
                        waiting.remove(entry.job_id)
                        took.append(max(entry.at - since, 0.0))
            return not waiting

        self._seen.jobs["interrupted"] += len(waiting)
        if not wait_until(all_run, RECOVERY_AT_ALL_SECONDS):
            self.wrong.append(f"not run again within {RECOVERY_AT_ALL_SECONDS:g} s: {sorted(islice(waiting, 5))}")
        return took

    def _await_work(self) -> None:
        """Until both run jobs."""
        for process in self._alive:
            if not wait_until(partial(_has_worked, process), READY_SECONDS):
                self.wrong.append(f"process {process.number} ran nothing within {READY_SECONDS:g} s")

    def _let_work(self) -> None:
        """For a time that the seed chooses: where in its work the blow hits is what is tried."""
        time.sleep(self._random.uniform(0.02, 0.3))

    def _is_all_done(self) -> bool:
        return not fetch(self.database, "SELECT 1 FROM durableq_jobs WHERE finished_at IS NULL LIMIT 1")

    def _note(self, wrong: str) -> None:
        if wrong:
            self.wrong.append(wrong)

    def _bear(self) -> Process:
        # Without a limit to crashes, each job that a kill interrupts has to run again.
        options = QueueSettings(retain_finished=None, max_crashes=1_000)
        [process] = self._nursery.bear(
            Orders(
                part="load",
                database=str(self.database),
                clock=str(self._clock_file),
                seed=self._random.getrandbits(32),
                options=options,
            )
        )
        return process


def _has_worked(process: Process) -> bool:
    return process.status is not None or process.ledger.has("start")


@contextlib.contextmanager
def _full_disk(process: Process) -> Iterator[None]:
    """A process cannot write beyond the beginning of a file, its ledger excepted."""
    if not hasattr(resource, "prlimit") or process.status is not None:
        yield
        return
    limit = process.ledger.size + _FULL_BEYOND_BYTES
    before = resource.prlimit(process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            resource.prlimit(process.pid, resource.RLIMIT_FSIZE, before)


@contextlib.contextmanager
def _locked(database: Path) -> Iterator[None]:
    """Hold the database's write lock for a second, whatever else happens."""
    with contextlib.closing(sqlite3.connect(database, timeout=10, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        until = time.monotonic() + LOCK_SECONDS
        try:
            yield
            time.sleep(max(until - time.monotonic(), 0))
        finally:
            connection.execute("ROLLBACK")


@contextlib.contextmanager
def _machine_delays() -> Iterator[list[float]]:
    """Measure beside it all how late a timer of this machine comes, in seconds."""
    delays: list[float] = []
    stop = threading.Event()

    def probe() -> None:
        while not stop.is_set():
            began_at = time.monotonic()
            time.sleep(_PROBE_SECONDS)
            delays.append(time.monotonic() - began_at - _PROBE_SECONDS)

    thread = threading.Thread(target=probe, daemon=True)
    thread.start()
    try:
        yield delays
    finally:
        stop.set()
        thread.join()


def quantile(values: list[float], share: float) -> float:
    """Return the smallest value that so large a share does not exceed; 0 for none."""
    return sorted(values)[max(math.ceil(len(values) * share) - 1, 0)] if values else 0.0


def _summary(values: list[float]) -> str:
    if not values:
        return "not measured"
    p50, p99, longest = (quantile(values, share) for share in (0.5, 0.99, 1.0))
    return f"p50 {p50 * 1000:,.0f} ms, p99 {p99 * 1000:,.0f} ms, max {longest * 1000:,.0f} ms, of {len(values):,}"


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())


CHECK: Final = Check(
    name="kills",
    promise="No acknowledged job is lost when a process is killed, and what it ran runs again within a second.",
    run=run,
)
