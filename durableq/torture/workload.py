"""A busy queue whose every acknowledgement is said aloud: what a power cut must not take back.

Four producers, a worker and an operator use one storage at the same time. Before each write they say what they are
about to do, after it what the storage has acknowledged; `evidence` weighs a disk against that:

    ["adding", number, ids, parent or None]    ["added", number, ids that are there]
    ["ending", {id: state}]                    ["ended", {id: state}]
    ["reviving", id]                           ["revived", id]
    ["deleting", ids]                          ["deleted", ids]
"""

import asyncio
import json
import random
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

from durableq.clock import SystemClock, to_datetime
from durableq.errors import JobConflict
from durableq.ids import new_job_id
from durableq.models import (
    PLAIN,
    Cancelled,
    ClaimRequest,
    Dead,
    Failure,
    Job,
    JobExtras,
    JobState,
    Lane,
    Lease,
    Outcome,
    Released,
    Retried,
    Snoozed,
    Succeeded,
    UniqueClaim,
)
from durableq.settings import queue_options
from durableq.storage import storage_factory
from durableq.storage.protocol import Notes, Storage
from durableq.torture.children import Say

TASK: Final = "torture:work"
QUEUE: Final = "default"
PRODUCERS: Final = 4
BOOM: Final = Failure("ValueError", "boom", "Traceback (most recent call last): boom")
_ENDS: Final[Mapping[type, JobState]] = {
    Succeeded: JobState.SUCCEEDED,
    Dead: JobState.DEAD,
    Cancelled: JobState.CANCELLED,
}
_CLAIM_AT_ONCE: Final = 12
_LAST_LEASE: Final = 4
"""A job's claim of this number ends it."""
_PRUNE_FROM: Final = 40
_PRUNE_AT_ONCE: Final = 25
_LATER: Final = timedelta(hours=1)
_SOON: Final = timedelta(milliseconds=5)


def work(path: Path, durability: str, rounds: int, seed: int, say: Say) -> None:
    """Open a queue at ``path``, use it in every way for so many rounds, and close it."""
    asyncio.run(_work(path, durability, rounds, seed, say))


async def _work(path: Path, durability: str, rounds: int, seed: int, say: Say) -> None:
    storage = open_storage(path, durability)
    await storage.open()
    await storage.register(lambda new_names: None)
    party = Party(storage, random.Random(seed), say)
    worker = asyncio.ensure_future(party.run_jobs())
    operator = asyncio.ensure_future(party.operate())
    await asyncio.gather(*(party.produce(number, rounds) for number in range(PRODUCERS)))
    party.is_over = True
    await operator
    await worker
    await storage.deregister()
    await storage.close()


def open_storage(path: Path, durability: str = "full") -> Storage:
    """Return the storage of a file, not yet open."""
    return storage_factory(path, queue_options({"durability": durability}, {}), SystemClock())()


def new_job(*, text: str, run_in: timedelta | None = None, extras: JobExtras = PLAIN) -> Job[Any]:
    """Return a job of the one task that is used here."""
    now = SystemClock().wall()
    created_at = to_datetime(now)
    return Job(
        id=new_job_id(now),
        task=TASK,
        queue=QUEUE,
        priority=0,
        state=JobState.SCHEDULED if run_in else JobState.QUEUED,
        args_json=json.dumps({"text": text}),
        max_attempts=5,
        created_at=created_at,
        run_at=created_at + run_in if run_in else created_at,
        extras=extras,
    )


class Party:
    """All who use the storage."""

    def __init__(self, storage: Storage, chance: random.Random, say: Say) -> None:
        self.is_over = False
        """Whether the producers have ended."""
        self._storage = storage
        self._chance = chance
        self._say = say
        self._additions = 0
        self._waiting: dict[str, None] = {}
        """Plain jobs that may be waiting, oldest first."""
        self._ended: dict[str, JobState] = {}
        """Jobs whose end is acknowledged and that have not been touched since."""
        self._succeeding: set[str] = set()
        """Jobs whose success is under way."""

    # -- producers -----------------------------------------------------------------------------------------

    async def produce(self, number: int, rounds: int) -> None:
        """Add jobs, of every kind and in batches, one addition after another."""
        for turn in range(rounds):
            jobs = self._some_jobs(f"{number}-{turn}")
            said = self._say_adding(jobs)
            if turn % 10 == 9:
                conflicts = await asyncio.to_thread(self._storage.insert_and_wait, jobs)
            else:
                conflicts = await self._storage.insert(jobs)
            self._say_added(said, jobs, conflicts or {})

    def _some_jobs(self, name: str) -> list[Job[Any]]:
        kind = self._chance.randrange(10)
        if kind <= 1:
            return [self._plain_job() for _ in range(self._chance.randrange(2, 9))]
        if kind == 2:  # of the two that share a key, the later one is not stored
            return [self._special_job(f"shared-{self._chance.randrange(8)}")]
        if kind == 3:
            return [self._plain_job(), *(self._special_job(f"{name}-{each}") for each in range(3)), self._plain_job()]
        if kind == 4:
            return [new_job(text=self._text(), run_in=self._chance.choice((_SOON, _SOON, _LATER)))]
        return [self._plain_job()]

    def _plain_job(self) -> Job[Any]:
        return new_job(text=self._text())

    def _special_job(self, key: str) -> Job[Any]:
        claim = UniqueClaim(key, 1, "return")
        return new_job(text=self._text(), extras=JobExtras(unique=claim, tags=("torture", key), headers={"trace": key}))

    def _text(self) -> str:
        """Mostly short; now and then longer than a page of the database."""
        return self._chance.randbytes(3_000 if self._chance.random() < 0.02 else self._chance.randrange(20, 120)).hex()

    def _say_adding(self, jobs: Iterable[Job[Any]], parent: str | None = None) -> int:
        self._additions += 1
        self._say(["adding", self._additions, [job.id for job in jobs], parent])
        return self._additions

    def _say_added(self, addition: int, jobs: Iterable[Job[Any]], conflicts: Mapping[str, str]) -> None:
        self._say(["added", addition, [conflicts.get(job.id, job.id) for job in jobs]])
        self._waiting.update({job.id: None for job in jobs if job.id not in conflicts and job.extras.unique is None})

    # -- the worker ----------------------------------------------------------------------------------------

    async def run_jobs(self) -> None:
        """Claim and settle until nothing is left that could run."""
        held: list[Lease] = []
        turn = 0
        while not (self.is_over and not held and not await self._storage.has_runnable((QUEUE,), (TASK,))):
            held = await self._exchange(held)
            turn += 1
            if turn % 20 == 0:
                await self._renew(held)
            if not held:
                await asyncio.sleep(0.001)

    async def _exchange(self, held: list[Lease]) -> list[Lease]:
        settled = [(lease, self._outcome(lease)) for lease in held]
        ends = {lease.id: _ENDS[type(outcome)] for lease, outcome in settled if type(outcome) in _ENDS}
        additions = self._say_settling(settled, ends)
        notes = Notes(logs=[(lease.key, 0, SystemClock().wall(), "well under way") for lease in held[:2]])
        lanes = (Lane("loop", (TASK,), _CLAIM_AT_ONCE),)
        exchanged = await self._storage.exchange(settled, ClaimRequest((QUEUE,), lanes, (TASK,)), notes)
        if exchanged.lost:
            raise AssertionError(f"leases were lost, though nobody took them: {exchanged.lost}")
        self._say_settled(ends, additions)
        return exchanged.leases

    def _outcome(self, lease: Lease) -> Outcome:
        at = SystemClock().wall()
        choice = self._chance.random()
        if lease.lease_no < _LAST_LEASE:
            if choice < 0.1:
                return Retried(BOOM, run_at=None, crashed=choice < 0.03)
            if choice < 0.15:
                return Retried(BOOM, run_at=at + 5_000)
            if choice < 0.2:
                return Snoozed(at + 5_000)
            if choice < 0.25:
                return Released()
        if choice < 0.4:
            return Dead(BOOM)
        if choice < 0.5:
            return Cancelled(BOOM)
        if choice < 0.55:
            return Succeeded('"done"', follow_ups=(self._plain_job(), self._plain_job()))
        return Succeeded(json.dumps(self._text()))

    def _say_settling(
        self, settled: list[tuple[Lease, Outcome]], ends: dict[str, JobState]
    ) -> list[tuple[int, tuple[Job[Any], ...]]]:
        followed = [(lease.id, one.follow_ups) for lease, one in settled if isinstance(one, Succeeded)]
        additions = [(self._say_adding(jobs, parent), jobs) for parent, jobs in followed if jobs]
        if ends:
            self._say(["ending", ends])
        self._succeeding.update(job_id for job_id, state in ends.items() if state == JobState.SUCCEEDED)
        return additions

    def _say_settled(self, ends: dict[str, JobState], additions: list[tuple[int, tuple[Job[Any], ...]]]) -> None:
        if ends:
            self._say(["ended", ends])
        self._ended.update(ends)
        self._succeeding.difference_update(ends)
        for job_id in ends:
            self._waiting.pop(job_id, None)
        for addition, jobs in additions:
            self._say_added(addition, jobs, {})

    async def _renew(self, held: list[Lease]) -> None:
        until = SystemClock().boot() + 60_000_000
        await asyncio.to_thread(self._storage.renew, until, [lease.key for lease in held])

    # -- the operator --------------------------------------------------------------------------------------

    async def operate(self) -> None:
        """Cancel, retry, delete and prune, as people and timers do, for as long as there are producers."""
        while not self.is_over:
            await self._cancel_a_waiting_job()
            await self._retry_a_dead_job()
            await self._delete_a_cancelled_job()
            await self._prune()
            await asyncio.sleep(0.005)

    async def _cancel_a_waiting_job(self) -> None:
        if not self._waiting:
            return
        job_id = self._chance.choice(list(self._waiting))
        self._say(["ending", {job_id: JobState.CANCELLED}])
        with suppress(JobConflict):  # it has ended in the meantime
            job = await self._storage.cancel(job_id, who="torture")
            if job.state == JobState.CANCELLED:
                self._say_settled({job_id: JobState.CANCELLED}, [])

    async def _retry_a_dead_job(self) -> None:
        job_id = self._pick(JobState.DEAD)
        if job_id is not None:
            self._say(["reviving", job_id])
            with suppress(JobConflict):  # another has its unique key by now
                await self._storage.retry(job_id, who="torture")
                self._say(["revived", job_id])

    async def _delete_a_cancelled_job(self) -> None:
        job_id = self._pick(JobState.CANCELLED)
        if job_id is not None:
            self._say(["deleting", [job_id]])
            await self._storage.delete(job_id, who="torture")
            self._say(["deleted", [job_id]])

    def _pick(self, state: JobState) -> str | None:
        """Take a job that ended in a state, and is the operator's alone from now on."""
        found = [job_id for job_id, end in self._ended.items() if end == state]
        if not found:
            return None
        job_id = self._chance.choice(found)
        del self._ended[job_id]
        return job_id

    async def _prune(self) -> None:
        before = SystemClock().wall()
        ended = [job_id for job_id, end in self._ended.items() if end == JobState.SUCCEEDED]
        if len(ended) < _PRUNE_FROM:
            return
        self._say(["deleting", [*ended, *self._succeeding]])
        while await self._storage.prune(JobState.SUCCEEDED, to_datetime(before), _PRUNE_AT_ONCE) == _PRUNE_AT_ONCE:
            pass
        self._say(["deleted", ended])
        for job_id in ended:
            del self._ended[job_id]
