"""A process that races others for keys: ``python -m tests.storage.racer URL SEED ADDITIONS``.

Says ``"ready"``, and after a line of input adds jobs of a few keys, runs them to all kinds of ends, cancels and retries
some, as fast as it can. Then it says what it was told of each job that it added: ``[id, key, who holds the key]``, its
own id when the job was stored, none when it was refused; and in the end how many jobs it ran.
"""

import asyncio
import contextlib
import json
import random
import sys
from typing import Any

from durableq.errors import DuplicateJob, JobConflict, JobNotFound
from durableq.models import JobFilter, Lease, OnConflict, Outcome, Released, Retried, Snoozed, Succeeded
from durableq.storage.protocol import Storage
from tests.storage.contract_unique import keyed_job, numbered, unique_job
from tests.storage.support import BOOM, DEAD, DONE, Backend, claim, settle

KEYS = ("a", "b", "c")
TASKS = {key: f"tasks:{key}" for key in KEYS}
WAYS: tuple[OnConflict, ...] = ("return", "replace", "raise")


class Racer:
    def __init__(self, backend: Backend, storage: Storage, seed: int) -> None:
        self._backend = backend
        self._storage = storage
        self._random = random.Random(seed)
        self.told: list[tuple[str, str, str | None]] = []
        self.ran = 0

    async def add(self) -> None:
        key, way = self._random.choice(KEYS), self._random.choice(WAYS)
        job = unique_job(self._backend, key, on_conflict=way, task=TASKS[key], args_json=numbered(len(self.told)))
        try:
            conflicts = await self._storage.insert([self._backend.job(task="tasks:beside"), job])
            holder: str | None = (conflicts or {}).get(job.id, job.id)
        except DuplicateJob:
            holder = None
        self.told.append((job.id, key, holder))

    async def work(self) -> None:
        leases = await claim(self._storage, tasks=TASKS.values(), limit=2)
        self.ran += len(leases)
        await settle(self._storage, [(lease, self._outcome(lease)) for lease in leases])

    def _outcome(self, lease: Lease) -> Outcome:
        if self._random.random() < 0.2:  # it goes on as another job, under its own key
            key = lease.task.removeprefix("tasks:")
            return Succeeded(None, (unique_job(self._backend, key, task=lease.task),))
        ends: tuple[Outcome, ...] = (DONE, DEAD, Retried(BOOM, None), Released(), Snoozed(0))
        return self._random.choice(ends)

    async def meddle(self) -> None:
        """Cancel or retry something."""
        found = (await self._storage.find(JobFilter(task=TASKS[self._random.choice(KEYS)]), cursor=None, limit=5)).jobs
        if found:
            job = self._random.choice(found)
            verb = self._storage.retry if job.is_finished else self._storage.cancel
            with contextlib.suppress(JobConflict, JobNotFound):  # somebody was quicker, or holds its key
                await verb(job.id, who="racer")

    async def race(self, additions: int) -> None:
        adding = asyncio.ensure_future(self._add_many(additions))
        while not adding.done():
            await self.work()
            await self.meddle()
        await adding

    async def _add_many(self, count: int) -> None:
        while len(self.told) < count:
            await asyncio.gather(*(self.add() for _ in range(self._random.randint(1, 4))))


async def race_for_ids(backend: Backend, storage: Storage, seed: int, count: int) -> list[Any]:
    """Add jobs of the same idempotency keys as the others; every third with arguments of one's own."""
    answers: list[Any] = []
    for number in range(count):
        args = numbered(seed if number % 3 == 0 else -1)
        try:
            await storage.insert([keyed_job(backend, str(number), args_json=args)])
            answers.append(json.loads(args)["n"])
        except JobConflict:
            answers.append(None)
    return answers


async def main(url: str, seed: int, additions: int) -> None:
    backend = Backend(url)
    storage = await backend.worker()
    print('"ready"', flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    if seed < 0:
        print(json.dumps(await race_for_ids(backend, storage, seed, additions)), flush=True)
    else:
        racer = Racer(backend, storage, seed)
        await racer.race(additions)
        print(json.dumps(racer.told), flush=True)
        print(json.dumps(racer.ran), flush=True)
    await backend.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))
