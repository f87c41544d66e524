"""The storage keeps what the model promises, whatever happens to its jobs and in whatever order.

Hypothesis takes a real database, with two workers on it, and `tests.storage.model` through the same steps. They are
the same steps in every run; ``DURABLEQ_MODEL_EXAMPLES=2000`` tries as many other lives, for as long as it takes.
"""

import asyncio
import contextlib
import itertools
import os
import sqlite3
import tempfile
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

import hypothesis.strategies as st
import pytest
from hypothesis import HealthCheck, Phase, note, settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from durableq.clock import to_micros
from durableq.engine.decisions import after_crash, before_start
from durableq.errors import DuplicateJob, IdempotencyConflict
from durableq.history import SummedBy
from durableq.models import FINISHED, Dead, Job, JobFilter, JobState, Lease, LeaseKey, Outcome, Succeeded
from durableq.storage.protocol import Exchanged, Plan, Storage
from durableq.storage.sqlite import host
from durableq.storage.sqlite.connection import Location
from durableq.storage.sqlite.insertion import carry_out
from tests.storage.model import MAX_CRASHES, RESTARTABLE, LeaseName, Model, ModelJob, Refused
from tests.storage.model_steps import ANY, ENDINGS, REQUESTS, ROOMS, SOME_JOBS, WORKERS, Ending, Room, Wanted
from tests.storage.support import HEARTBEAT, LEASE, Backend
from tests.support import eventually

T = TypeVar("T")

OF_NAMES: Final[tuple[SummedBy, ...]] = ("queue", "task")
EXAMPLES: Final = int(os.environ.get("DURABLEQ_MODEL_EXAMPLES", "0"))
COMPARED: Final = (
    *("id", "task", "queue", "priority", "state", "args_json", "max_attempts", "attempt", "crashes", "result_json"),
    *("created_at", "run_at", "started_at", "finished_at", "expires_at", "deadline_at"),
    *("unique_key", "cancel_requested"),
)
"""What is compared of each job, beside its error."""
FITTING: Final = {
    "cancel": frozenset(JobState) - FINISHED,
    "cancel what runs": frozenset({JobState.RUNNING}),
    "retry": RESTARTABLE | {JobState.SCHEDULED},
    "edit and retry": RESTARTABLE,
    "delete": FINISHED,
}
"""The states in which each can be asked for."""


@dataclass
class Worker:
    storage: Storage
    id: int = 0
    told_to_cancel: list[LeaseKey] = field(default_factory=list)


class JobsLife(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.directory = tempfile.TemporaryDirectory(prefix="durableq-model-")
        self.runner = asyncio.Runner()
        self.backend = Backend(str(Path(self.directory.name) / "jobs.db"))
        self.clock = self.backend.clock
        self.model = Model(self.clock.now)
        self.numbers = itertools.count(1)
        self.given: dict[str, Job[Any]] = {}
        """Every job that was handed over, stored or not."""
        self.leases: dict[LeaseKey, LeaseName] = {}
        """Every lease that was ever given, and its name in the model."""
        self.held: list[Lease] = []
        """Those that nobody has tried to settle, whether they still hold or not."""
        self.spent: list[Lease] = []
        self.settled: set[LeaseKey] = set()
        self.compared: dict[int, int] = {}
        """How many failures of each job were compared."""
        self.calm = 0
        """How many steps ago a worker was disturbed."""
        self.workers = [self.started(), self.started()]

    def teardown(self) -> None:
        for worker in self.workers:
            self.stop(worker)
        self.runner.close()
        self.directory.cleanup()

    # -- work ----------------------------------------------------------------------------------------------

    @rule(
        worker=WORKERS,
        requests=REQUESTS,
        ends=st.lists(st.tuples(ANY, ENDINGS), max_size=3),
        room=st.none() | ROOMS,
    )
    def work(
        self, worker: int, requests: list[list[Wanted]], ends: list[tuple[int, Ending]], room: Room | None
    ) -> None:
        """Several requests add jobs at once; then a worker settles some of what is held, and claims.

        The lease alone is the fence: which of the workers brings the outcome does not matter.
        """
        self.add(worker, [self.made(wanted) for wanted in requests])
        self.exchange(worker, self.ended(ends), room)

    more_work = and_more = work
    """Half of all that happens. (Until it has, nothing else can: see the preconditions.)"""

    @precondition(lambda self: self.given)
    @rule(worker=WORKERS, wanted=SOME_JOBS, ends=st.lists(st.tuples(ANY, ENDINGS), max_size=2), room=ROOMS)
    def add_beside_a_round_trip(
        self, worker: int, wanted: list[Wanted], ends: list[tuple[int, Ending]], room: Room
    ) -> None:
        """The same in one transaction: a round trip sets out when jobs are on their way."""
        storage, settled = self.workers[worker].storage, self.ended(ends)
        trips: list[Awaitable[Exchanged]] = []
        storage.before_adding(lambda: trips.append(storage.exchange(settled, room.request)))
        self.add(worker, [self.made(wanted)])
        storage.before_adding(None)
        self.exchange(worker, settled, room, trip=trips[0] if trips else None)

    @precondition(lambda self: self.held)
    @rule(worker=WORKERS, number=ANY, wanted=SOME_JOBS)
    def succeed_with_follow_ups(self, worker: int, number: int, wanted: list[Wanted]) -> None:
        with self.any_order_of_what_is_added():
            self.exchange(worker, [(self.taken(number), Succeeded("1", tuple(self.made(wanted))))])

    @precondition(lambda self: self.spent)
    @rule(worker=WORKERS, number=ANY, ending=ENDINGS)
    def settle_once_more(self, worker: int, number: int, ending: Ending) -> None:
        lease = self.spent[-1 - number % len(self.spent)]
        job = self.model.claimed(self.leases[lease.key])
        state = self.run(self.workers[worker].storage.state_of_lease(lease))
        assert state == (None if job is None else job.state)
        self.exchange(worker, [(lease, ending.outcome(self.clock.now))])
        self.compared.pop(self.leases[lease.key][0], None)

    @precondition(lambda self: self.given)
    @rule(worker=WORKERS, what=st.sampled_from(["add", "roll back", "complete"]), number=ANY, wanted=SOME_JOBS)
    def write_within_a_transaction(self, worker: int, what: str, number: int, wanted: list[Wanted]) -> None:
        """On a connection of the application: it adds jobs, or completes one with follow-ups, or thinks again."""
        storage, jobs = self.workers[worker].storage, self.made(wanted)
        with self.any_order_of_what_is_added():
            if what == "roll back":
                with contextlib.suppress(DuplicateJob, IdempotencyConflict):
                    self.run(self.carried_out(storage, storage.adding(jobs), commits=False))
            elif what == "add":
                self.both(
                    partial(self.model.add, jobs),
                    partial(self.carried_out, storage, storage.adding(jobs), commits=True),
                )
            elif self.held:
                lease = self.taken(number)
                self.spent.append(lease)
                self.both(
                    partial(self.model.complete, self.leases[lease.key], Succeeded("1", tuple(jobs))),
                    partial(self.carried_out, storage, storage.completing(lease, "1", jobs), commits=True),
                )

    # -- by hand -------------------------------------------------------------------------------------------

    @precondition(lambda self: self.given)
    @rule(worker=WORKERS, number=ANY, what=st.sampled_from([*FITTING, "add", "look"]), fits=st.sampled_from([1, 1, 0]))
    def by_hand(self, worker: int, number: int, what: str, fits: int) -> None:
        """To a job of which it can be asked, or to any."""
        job_id = self.chosen(number, what if fits else None)
        storage = self.workers[worker].storage
        note(f"# {what} {job_id}")
        match what:
            case "cancel" | "cancel what runs":
                self.do(job_id, partial(self.model.cancel, job_id), partial(storage.cancel, job_id, who="ann"))
                self.run(eventually(self.all_are_told_to_cancel))
            case "delete":
                self.do(job_id, partial(self.model.delete, job_id), partial(storage.delete, job_id, who="ann"))
            case "add":  # the very same job, as after an answer that was lost
                self.add(worker, [[self.given[job_id]]])
                self.wait_for_what_is_due()
            case "look":
                assert seen(self.run(storage.get(job_id))) == expected(self.model.find(job_id))
            case _:
                edited = '{"edited":true}' if what == "edit and retry" else None
                retry = partial(storage.retry, job_id, who="ann", args_json=edited)
                self.do(job_id, partial(self.model.retry, job_id, edited), retry)

    @rule(worker=WORKERS, queue=st.sampled_from(["one", "two"]))
    def pause_or_resume(self, worker: int, queue: str) -> None:
        storage, is_paused = self.workers[worker].storage, queue in self.model.paused
        self.run((storage.resume if is_paused else storage.pause)(queue, who="ann"))
        self.model.paused ^= {queue}

    # -- time ----------------------------------------------------------------------------------------------

    @precondition(lambda self: self.given)
    @rule(seconds=st.sampled_from([1, 10, 60, 3600]))
    def pass_time(self, seconds: int) -> None:
        self.step(timedelta(seconds=seconds))
        for worker in self.workers:
            self.renew(worker, self.remembered(worker))
        self.wait_for_what_is_due()

    @precondition(lambda self: self.given)
    @rule(
        worker=WORKERS, what=st.sampled_from(["late", "dead", "results", *sorted(FINISHED)]), number=st.integers(1, 3)
    )
    def tidy_up(self, worker: int, what: str, number: int) -> None:
        """Give up what is late, retry what is dead, drop old results, or prune what finished in a state."""
        storage, before = self.workers[worker].storage, self.clock.now - timedelta(seconds=20 * number - 20)
        match what:
            case "late":
                found = self.run(storage.give_up_overdue(before_start, 100))
                assert {lease.id for lease, _ in found} == self.model.overdue().keys()
                self.model.give_up_overdue()
            case "dead":
                retry = partial(storage.retry_matching, JobFilter(), who="ann", limit=number)
                self.both(partial(self.model.retry_dead, number), retry)
            case "results":
                self.both(self.model.drop_results, partial(storage.drop_results, 100))
            case _:
                state = JobState(what)
                self.both(partial(self.model.prune, state, before), partial(storage.prune, state, before, 100))

    # -- workers -------------------------------------------------------------------------------------------

    @precondition(lambda self: self.calm >= 5)
    @rule(worker=WORKERS, what=st.sampled_from(["forget", "restart", "restart all", "die", "hang"]), number=ANY)
    def disturb(self, worker: int, what: str, number: int) -> None:
        self.calm = 0
        one, other = self.workers[worker], self.workers[1 - worker]
        match what:
            case "forget":
                self.forget_a_claim(one, number)
            case "restart":
                self.restart([worker])
            case "restart all":
                self.restart([worker, 1 - worker])
            case "die" if one.id in self.model.workers:
                self.die(one, other)
            case "hang" if {one.id, other.id} <= self.model.workers.keys():
                self.hang(one, other)

    def forget_a_claim(self, worker: Worker, number: int) -> None:
        """The answer to a claim was lost; an even ``number`` says that it may still be on its way."""
        for _ in range(2):
            held = sorted(self.remembered(worker))
            self.renew(worker, {*held[: number // 2], *held[number // 2 + 1 :]})
            if number % 2 == 0:
                self.renew(worker, None)

    def restart(self, numbers: list[int]) -> None:
        for number in numbers:
            self.stop(self.workers[number])
        for number in numbers:
            self.workers[number] = self.started()

    def die(self, dead: Worker, other: Worker) -> None:
        """The kernel lets go of what the dead process had locked, and the other sees it at its next look."""
        locks = host.open_lock_file(Location(dead.storage.path).directory / "locks")
        locks.release(dead.id)
        host.close_lock_file(locks)
        self.reap(other, dead)

    def hang(self, hung: Worker, other: Worker) -> None:
        """A worker renews its lease no more, while the other looks at every heartbeat."""
        self.renew(hung, None)
        self.reap(other)
        for _ in range(LEASE // HEARTBEAT):
            self.step(HEARTBEAT)
            self.reap(other)
        self.step(HEARTBEAT)
        self.reap(other, hung)
        self.wait_for_what_is_due()

    # -- what always holds ---------------------------------------------------------------------------------

    @invariant()
    def every_job_is_as_the_model_says(self) -> None:
        self.calm += bool(self.given)
        stored, counts = self.run(self.looked())
        assert [seen(job) for job in stored] == [expected(job) for job in self.model.jobs.values()]
        states = [job.state for job in self.model.jobs.values()]
        assert counts == {state: states.count(state) for state in JobState}

    @invariant()
    def every_try_is_counted_once(self) -> None:
        storage, ways = self.workers[0].storage, [OF_NAMES]
        [tallies] = self.run(storage.tallies(range(0, 2**33, 86_400), ways=ways, queue=None, task=None))
        counted: Counter[tuple[str, str, str]] = Counter()
        for one in tallies:
            counted[one.queue, one.task, one.measure] += one.number
        assert counted == self.model.tallies

    @invariant()
    def every_failure_is_kept(self) -> None:
        for job in self.model.jobs.values():
            if self.compared.get(job.number) != len(job.failures):
                attempts = self.run(self.workers[0].storage.attempts(job.id))
                assert [(one.lease_no, one.attempt, one.error_type) for one in attempts] == job.failures
                self.compared[job.number] = len(job.failures)

    # -- the model and the storage, side by side -----------------------------------------------------------

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)

    def both(self, promised: Callable[[], object], done: Callable[[], Coroutine[Any, Any, object]]) -> None:
        """Ask both for the same: they answer the same, or refuse for the same reason."""
        try:
            answer = promised()
        except Refused as refused:
            with pytest.raises(refused.errors) as caught:
                self.run(done())
            assert caught.type in refused.errors
        else:
            assert self.run(done()) == answer

    def do(
        self, job_id: str, promised: Callable[[], ModelJob | None], done: Callable[[], Coroutine[Any, Any, Any]]
    ) -> None:
        """Do the same to a job by hand; the trail tells all that was done, and nothing that was refused."""
        job = self.model.find(job_id)

        async def look() -> object:
            return seen(await done())

        self.both(lambda: expected(promised()), look)
        if job is not None:
            trail = self.run(self.workers[0].storage.audit_trail(job.id))
            assert [entry.action for entry in trail] == self.model.audit.get(job.id, [])

    def add(self, worker: int, requests: list[list[Job[Any]]]) -> None:
        """Several requests add their jobs at once."""
        with self.any_order_of_what_is_added():
            answers = self.run(self.inserted(worker, requests))
            for jobs, answer in zip(requests, answers, strict=True):
                self.both(partial(self.model.add, jobs), partial(result_of, answer))

    def exchange(
        self,
        worker: int,
        settled: Sequence[tuple[Lease, Outcome]],
        room: Room | None = None,
        trip: Awaitable[Exchanged] | None = None,
    ) -> None:
        """Settle and claim in one round trip. What is claimed too late is settled at once, as workers do."""
        one = self.workers[worker]
        lost = self.model.settle([(self.leases[lease.key], outcome) for lease, outcome in settled])
        overdue = self.model.overdue()
        promised = [] if room is None else self.model.claim(one.id, **room._asdict())
        claim = None if room is None else room.request
        found = self.run(exchanged(lambda: trip or one.storage.exchange(settled, claim)))
        assert {self.leases[lease.key] for lease, _ in settled if lease.seq in found.lost} == lost
        self.note_settled({lease.key for lease, _ in settled if lease.seq not in found.lost})
        self.note_claimed(found.leases, promised)
        verdicts = [(lease, before_start(lease, self.clock.wall())) for lease in found.leases]
        late = [(lease, verdict) for lease, verdict in verdicts if verdict is not None]
        assert {lease.id: isinstance(verdict, Dead) for lease, verdict in late} == {
            job.id: overdue[job.id] is JobState.DEAD for job in promised if job.id in overdue
        }
        note(
            f"# settled {[(*lease[:3],) for lease, _ in settled]}, claimed {[(*lease[:3],) for lease in found.leases]}"
        )
        self.spent += [lease for lease, _ in (*settled, *late)]
        self.held += [lease for lease, verdict in verdicts if verdict is None]
        if late:
            self.exchange(worker, late)

    def note_settled(self, keys: set[LeaseKey]) -> None:
        assert not keys & self.settled, "settled twice"
        self.settled |= keys

    def note_claimed(self, leases: list[Lease], promised: list[ModelJob]) -> None:
        assert [
            (one.id, one.lease_no, one.attempt, one.crashes, one.args_json, one.max_attempts) for one in leases
        ] == [(one.id, one.lease_no, one.attempt, one.crashes, one.args_json, one.max_attempts) for one in promised]
        assert not self.leases.keys() & {lease.key for lease in leases}, "the number of a claim was used before"
        self.leases |= {lease.key: job.lease for lease, job in zip(leases, promised, strict=True)}

    @contextlib.contextmanager
    def any_order_of_what_is_added(self) -> Iterator[None]:
        """What is added together is in no promised order: the model takes over the storage's."""
        before = self.model.jobs.keys() - set()
        yield
        stored, _ = self.run(self.looked())
        for job in stored:
            if job.id in self.model.jobs and job.id not in before:
                self.model.jobs[job.id] = self.model.jobs.pop(job.id)

    def reap(self, reaper: Worker, dead: Worker | None = None) -> None:
        """Look for dead workers: this one is found, and no other."""
        found = self.run(reaper.storage.reap(partial(after_crash, max_crashes=MAX_CRASHES)))
        assert [one.worker_id for one in found] == ([] if dead is None else [dead.id])
        if dead is not None:
            self.model.bury(dead.id)

    def renew(self, worker: Worker, remembered: set[LeaseKey] | None) -> None:
        names = None if remembered is None else {self.leases[key] for key in remembered}
        holds = worker.storage.renew(self.clock.boot() + to_micros(LEASE), remembered)
        assert holds == self.model.renew(worker.id, names)

    def step(self, duration: timedelta) -> None:
        self.clock.advance(duration)
        self.model.pass_time(duration)

    def wait_for_what_is_due(self) -> None:
        """Jobs are made ready by a timer of the storage's own."""
        self.model.promote()
        scheduled = sum(job.state is JobState.SCHEDULED for job in self.model.jobs.values())

        async def is_as_promised() -> bool:
            return (await self.workers[0].storage.counts())[JobState.SCHEDULED] == scheduled

        self.run(eventually(is_as_promised, within=2))

    def started(self) -> Worker:
        worker = Worker(self.backend.new_storage(durability="normal"))
        self.run(worker.storage.open())
        cancel = worker.told_to_cancel.extend
        worker.id = self.run(worker.storage.register(lambda new_names: None, cancel))
        assert worker.id not in self.model.workers
        self.model.workers[worker.id] = set()
        return worker

    def stop(self, worker: Worker) -> None:
        self.run(worker.storage.deregister())
        self.run(worker.storage.close())
        self.model.leave(worker.id)

    # -- small words ---------------------------------------------------------------------------------------

    async def inserted(self, worker: int, requests: list[list[Job[Any]]]) -> list[Any]:
        adding = [self.workers[worker].storage.insert(jobs) for jobs in requests]
        return await asyncio.gather(*adding, return_exceptions=True)

    async def carried_out(self, storage: Storage, plan: Plan[T], *, commits: bool) -> T:
        """Do in a transaction of the application's what a plan says, and end it either way."""
        with contextlib.closing(sqlite3.connect(storage.path, timeout=10, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                result = carry_out(connection, plan)
                connection.execute("COMMIT" if commits else "ROLLBACK")
            finally:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
        return result

    async def looked(self) -> tuple[list[Job[Any]], dict[JobState, int]]:
        storage = self.workers[0].storage
        page, counts = await asyncio.gather(storage.find(JobFilter(), cursor=None, limit=10_000), storage.counts())
        return page.jobs[::-1], counts

    def remembered(self, worker: Worker) -> set[LeaseKey]:
        held = {job.lease for job in self.model.held_by(worker.id)}
        return {key for key, name in self.leases.items() if name in held}

    def all_are_told_to_cancel(self) -> bool:
        """Each worker hears which of its jobs shall end."""
        return all(
            job.lease in {self.leases[key] for key in worker.told_to_cancel}
            for worker in self.workers
            for job in self.model.held_by(worker.id)
            if job.cancel_requested
        )

    def ended(self, ends: list[tuple[int, Ending]]) -> list[tuple[Lease, Outcome]]:
        settled = [(self.taken(number), end.outcome(self.clock.now)) for number, end in ends[: len(self.held)]]
        latest = dict(sorted(lease.key for lease, _ in settled))  # nobody has two leases of one job
        return [one for one in settled if one[0].key in latest.items()]

    def taken(self, number: int) -> Lease:
        return self.held.pop(number % len(self.held))

    def chosen(self, number: int, what: str | None) -> str:
        """Pick a job of which this can be asked, or else any."""
        fitting = FITTING.get(what or "", frozenset())
        ids = [job.id for job in self.model.jobs.values() if job.state in fitting] or list(self.given)
        return ids[-1 - number % len(ids)]

    def made(self, wanted: list[Wanted]) -> list[Job[Any]]:
        jobs = [one.job(next(self.numbers), self.clock.now) for one in wanted]
        self.given |= {job.id: job for job in jobs}
        return jobs


def expected(job: ModelJob | None) -> dict[str, object] | None:
    return None if job is None else {**{name: getattr(job, name) for name in COMPARED}, "error": job.error_type}


def seen(job: Job[Any] | None) -> dict[str, object] | None:
    if job is None:
        return None
    return {**{name: getattr(job, name) for name in COMPARED}, "error": job.error and job.error.type}


async def exchanged(set_out: Callable[[], Awaitable[Exchanged]]) -> Exchanged:
    return await set_out()


async def result_of(answer: Any) -> object:
    if isinstance(answer, BaseException):
        raise answer
    return answer or {}


@pytest.mark.no_cover  # it would take twice as long
@pytest.mark.timeout(0 if EXAMPLES else 600)  # a failure takes its time: it is made as small as possible
def test_a_job_lives_as_the_model_says() -> None:
    run_state_machine_as_test(
        JobsLife,
        settings=settings(
            max_examples=EXAMPLES or 200,
            stateful_step_count=50,
            derandomize=not EXAMPLES,
            database=None,
            deadline=None,
            report_multiple_bugs=False,
            phases=(Phase.generate, Phase.shrink),
            suppress_health_check=list(HealthCheck),
        ),
    )
