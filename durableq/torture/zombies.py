"""Workers are stopped past their lease and wake up when others have taken over: nothing that they write counts.

Each wakes up with its job at its end, and tries to write what its way says: a result, progress, a line of the log and a
further job; a failure; a snooze; the success in a transaction of its own; or the job handed back at its exit. By then
the job runs in another process, or is finished by it.
"""

import random
import signal
import sqlite3
import time
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

from durableq.clock import SECOND, SystemClock
from durableq.settings import QueueSettings
from durableq.torture.ledger import Entry, Run, broken_promises, fetch, is_whole, tell
from durableq.torture.nursery import Nursery, Orders, Process, wait_until
from durableq.torture.subject import WAYS, name_of
from durableq.torture.verdicts import Check, Progress, Sizes, Verdict

AT_ONCE: Final = 10
RESCUERS: Final = 2
LEASE_SECONDS: Final = 1.0
READY_SECONDS: Final = 30.0
TAKE_OVER_SECONDS: Final = 10.0
ANSWER_SECONDS: Final = 8.0
LEAVE_SECONDS: Final = 20.0
TOLD_AT_MOST: Final = 20
_STOP_SECONDS: Final = 10.0
_LOOK_SECONDS: Final = 0.005


def run(directory: Path, sizes: Sizes, seed: int, progress: Progress) -> Verdict:
    verdict = Verdict()
    accepted, refused, ran_elsewhere = 0, 0, 0
    while verdict.tried < sizes.zombies and not verdict.wrong:
        place = directory / f"from-{verdict.tried}"
        place.mkdir()
        count = min(AT_ONCE, sizes.zombies - verdict.tried)
        with Nursery(place) as nursery:
            haunting = Haunting(place / "jobs.db", nursery, count, seed + verdict.tried)
            haunting.begin()
            haunting.wake_all()
            haunting.end()
        verdict.tried += haunting.size
        verdict.wrong += haunting.wrong
        accepted, refused = accepted + haunting.accepted, refused + haunting.refused
        ran_elsewhere += haunting.ran_elsewhere
        progress(verdict.tried, sizes.zombies)
    verdict.wrong = [f"{one} (seed {seed})" for one in verdict.wrong[:TOLD_AT_MOST]]
    verdict.figures = {
        "zombies": f"{verdict.tried:,}, {ran_elsewhere:,} of them while another ran the job, the others after its end",
        "their writes": f"{accepted:,} accepted, {refused:,} refused and told so",
    }
    return verdict


@dataclass(slots=True)
class Zombie:
    """A process that was stopped while it ran a job."""

    process: Process
    way: str
    run: Run
    is_early: bool
    """It wakes up while another runs the job, not after its end."""
    is_awake: bool = False


class Haunting:
    """One round: workers that are stopped, those that take over from them, and what came of it."""

    def __init__(self, database: Path, nursery: Nursery, count: int, seed: int) -> None:
        self.wrong: list[str] = []
        self.accepted = 0
        self.refused = 0
        self.ran_elsewhere = 0
        self._database = database
        self._nursery = nursery
        self._random = random.Random(seed)
        self._ways = [WAYS[number % len(WAYS)] for number in range(count)]
        self._zombies: list[Zombie] = []
        self._rescuers: list[Process] = []
        self._expiries: dict[int, float] = {}

    def begin(self) -> None:
        """Have each worker hold a job, stop them all, and start those who will take over."""
        born = self._bear_workers()
        self._stop(born)
        workers = [worker for worker in born if _holds(worker)]
        self._expiries = self._read_expiries(born, workers)
        for worker in set(born).difference(workers):
            worker.signal(signal.SIGTERM)
            worker.signal(signal.SIGCONT)
        self._zombies = [
            Zombie(worker, self._ways[worker.number], worker.ledger.runs()[0], is_early=self._random.random() < 0.7)
            for worker in workers
        ]
        if not self._zombies:
            self.wrong.append("no worker could be stopped while it held a job")
        # A rescuer trusts that a lease has expired only after a heartbeat of its own.
        options = QueueSettings(heartbeat=LEASE_SECONDS / 2, concurrency=1, retain_finished=None)
        orders = Orders(part="hold", database=str(self._database), options=options)
        self._rescuers = self._nursery.bear(*[orders for _ in range(RESCUERS)])

    def wake_all(self) -> None:
        """Wake each zombie once another runs its job, or has finished it."""
        deadline = time.monotonic() + TAKE_OVER_SECONDS
        while asleep := [zombie for zombie in self._zombies if not zombie.is_awake]:
            time.sleep(_LOOK_SECONDS)
            self._let_others_go(asleep)
            for zombie in asleep:
                if self._wake_if_time(zombie):
                    deadline = time.monotonic() + TAKE_OVER_SECONDS
                if self.wrong:
                    return
            if time.monotonic() > deadline:
                self.wrong.append(f"{len(asleep)} jobs of stopped workers were not taken over")
                return

    def end(self) -> None:
        """Let everything be finished, and check it."""
        if not self.wrong:  # else it need not come to an end
            self._come_to_an_end()
        story = tell(self._database, self._nursery.ledgers, self._expiries)
        for zombie in self._zombies:
            self._check(zombie)
        self.wrong += broken_promises(story)
        if not is_whole(self._database):
            self.wrong.append("the database file is damaged")

    def _come_to_an_end(self) -> None:
        for zombie in self._zombies:
            if not zombie.process.wait_end(LEAVE_SECONDS):
                self.wrong.append(f"process {zombie.process.number} did not notice that it had lost its lease")
        if not wait_until(self._is_all_done, TAKE_OVER_SECONDS):
            self.wrong.append("jobs were left unfinished")
        self.wrong += [wrong for one in self._rescuers if (wrong := one.leave(LEAVE_SECONDS))]

    @property
    def size(self) -> int:
        """How many zombies there are."""
        return len(self._zombies)

    # -- stopping ------------------------------------------------------------------------------------------

    def _bear_workers(self) -> list[Process]:
        """Start workers that hold one job each. A few at a time: on a short lease, none may starve at its start."""
        workers: list[Process] = []
        options = QueueSettings(
            lease=LEASE_SECONDS, heartbeat=LEASE_SECONDS / 2, concurrency=1, grace=0, retain_finished=None
        )
        for way in self._ways:
            orders = Orders(part="hold", database=str(self._database), jobs=1, way=way, options=options)
            workers += self._nursery.bear(orders)
            if len(workers) % 4 == 0 or len(workers) == len(self._ways):
                wait_until(partial(_all_hold, workers), READY_SECONDS)
        return workers

    def _stop(self, workers: list[Process]) -> None:
        """Stop all at a moment when none holds the write lock, which nobody could take from it."""
        with closing(sqlite3.connect(self._database, timeout=0.05, isolation_level=None)) as probe:
            deadline = time.monotonic() + _STOP_SECONDS
            while time.monotonic() < deadline:
                for worker in workers:
                    worker.signal(signal.SIGSTOP)
                try:
                    probe.execute("BEGIN IMMEDIATE")
                except sqlite3.OperationalError:
                    for worker in workers:
                        worker.signal(signal.SIGCONT)
                    time.sleep(_LOOK_SECONDS)
                else:
                    probe.execute("ROLLBACK")
                    return
        self.wrong.append("the workers could not be stopped outside of a transaction")

    def _read_expiries(self, born: list[Process], stopped: list[Process]) -> dict[int, float]:
        """Until when each lease holds, on the clock of the ledgers; for one that is lost already, from its start on."""
        lost = {one.number: run.started_at for one in born for run in one.ledger.runs()[:1]}
        found = dict(fetch(self._database, "SELECT pid, expires_at FROM durableq_workers"))
        boot_to_monotonic = SystemClock().boot() / SECOND - time.monotonic()
        held = {one.number: found[one.pid] / SECOND - boot_to_monotonic for one in stopped if one.pid in found}
        return lost | held

    # -- waking --------------------------------------------------------------------------------------------

    def _wake_if_time(self, zombie: Zombie) -> bool:
        holder = self._holder(zombie)
        if self._is_settled(zombie):
            self._wake(zombie)
        elif holder is not None and zombie.is_early:
            self._wake(zombie)
            self.ran_elsewhere += 1
            self._expect_untouched(zombie, holder)
            if not self.wrong:
                self._let_go(holder, zombie)
        elif holder is not None:
            self._let_go(holder, zombie)
        else:
            return False
        return True

    def _wake(self, zombie: Zombie) -> None:
        """Wake it up with its job at its end, and wait until it has heard what its writes are worth."""
        zombie.is_awake = True
        if zombie.way == "leaves":
            zombie.process.signal(signal.SIGTERM)
        zombie.process.signal(signal.SIGCONT)
        if not wait_until(partial(_has_answer, zombie), ANSWER_SECONDS):
            self.wrong.append(f"process {zombie.process.number} heard nothing of its lost lease ({zombie.way})")

    def _let_go(self, holder: Process, zombie: Zombie) -> None:
        """Let the other's run end, and wait until that is written."""
        holder.signal(signal.SIGUSR2)
        if not wait_until(partial(self._is_settled, zombie), ANSWER_SECONDS):
            self.wrong.append(f"process {holder.number} heard nothing of the end of a job that it took over")

    def _let_others_go(self, asleep: list[Zombie]) -> None:
        """End what a rescuer holds that is no zombie's job: of a worker that lost its lease before it was stopped."""
        awaited = {zombie.run.job_id for zombie in asleep}
        for rescuer in self._rescuers:
            rescuer.ledger.read()
            held = {run.job_id for run in rescuer.ledger.runs() if run.ended_at is None}
            if held and not held & awaited:
                rescuer.signal(signal.SIGUSR2)

    def _holder(self, zombie: Zombie) -> Process | None:
        """Who runs the zombie's job now."""
        for rescuer in self._rescuers:
            rescuer.ledger.read()
            if any(run.job_id == zombie.run.job_id and run.ended_at is None for run in rescuer.ledger.runs()):
                return rescuer
        return None

    def _is_settled(self, zombie: Zombie) -> bool:
        """Whether somebody who took over has heard of the job's end."""
        return any(
            entry.kind in ("settled", "lost") and entry.job_id == zombie.run.job_id
            for rescuer in self._rescuers
            for entry in _read(rescuer)
        )

    def _expect_untouched(self, zombie: Zombie, holder: Process) -> None:
        lease_no = max(run.lease_no for run in holder.ledger.runs() if run.job_id == zombie.run.job_id)
        sql = "SELECT state, lease_no FROM durableq_jobs WHERE id = ?"
        found = fetch(self._database, sql, zombie.run.job_id)
        if found != [("running", lease_no)]:
            self.wrong.append(f"{_described(zombie)}: the job that another ran became {found}")

    def _is_all_done(self) -> bool:
        for rescuer in self._rescuers:  # a job may have come back from a zombie that worked on for a moment
            rescuer.signal(signal.SIGUSR2)
        return not fetch(self._database, "SELECT 1 FROM durableq_jobs WHERE finished_at IS NULL LIMIT 1")

    # -- checking ------------------------------------------------------------------------------------------

    def _check(self, zombie: Zombie) -> None:
        """See that its name stands nowhere, and that it was not told anything else."""
        me, job_id = name_of(zombie.process.number), zombie.run.job_id
        entries = [one for one in _read(zombie.process) if (one.job_id, one.lease_no) == (job_id, zombie.run.lease_no)]
        self.refused += sum(one.kind == "lost" for one in entries)
        traces = [f"it was told that {one.note!r} is written" for one in entries if one.kind == "settled"]
        traces += [where for where, sql in _TRACES.items() if fetch(self._database, sql, job_id, me) != [(0,)]]
        self.accepted += len(traces)
        self.wrong += [f"{_described(zombie)}: {one}" for one in traces]


_TRACES: Final = {
    "its result is stored": "SELECT count(*) FROM durableq_jobs WHERE id = ?1 AND result LIKE '%' || ?2 || '\"%'",
    "its progress is stored": "SELECT count(*) FROM durableq_jobs WHERE id = ?1 AND progress LIKE '%' || ?2 || '\"%'",
    "its failure is on record": (
        "SELECT count(*) FROM durableq_attempts AS tried JOIN durableq_jobs USING (seq) "
        "WHERE id = ?1 AND tried.error_message = ?2"
    ),
    "its line is in the log": (
        "SELECT count(*) FROM durableq_logs JOIN durableq_jobs USING (seq) WHERE id = ?1 AND message = ?2"
    ),
    "its further job is stored": "SELECT count(*) FROM durableq_jobs WHERE id <> ?1 AND args LIKE '%' || ?2 || '\"%'",
}
"""Where a zombie's name would stand if one of its writes had been accepted."""


def _described(zombie: Zombie) -> str:
    when = "while another ran its job" if zombie.is_early else "after its job's end"
    return f"process {zombie.process.number}, woken {when}, which {zombie.way}"


def _read(process: Process) -> list[Entry]:
    process.ledger.read()
    return process.ledger.entries


def _all_hold(workers: list[Process]) -> bool:
    return all(worker.status is not None or worker.ledger.has("start") for worker in workers)


def _holds(worker: Process) -> bool:
    """Whether it runs a job. On a busy machine, one may have lost its lease before it was stopped."""
    worker.ledger.read()
    runs = worker.ledger.runs()
    return worker.status is None and bool(runs) and runs[0].ended_at is None


def _has_answer(zombie: Zombie) -> bool:
    return zombie.process.status is not None or any(
        entry.kind in ("lost", "evicted", "settled") and entry.at > zombie.run.started_at
        for entry in _read(zombie.process)
    )


CHECK: Final = Check(
    name="zombies",
    promise="Once a worker has lost its lease, nothing that it writes for it has effect.",
    run=run,
)
