"""What the storage tests share: a database under test, jobs to put in it, and processes to kill."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, Unpack

from durableq.clock import Clock, from_datetime
from durableq.errors import DurableQError
from durableq.ids import new_job_id
from durableq.models import ClaimRequest, Dead, Failure, Job, JobState, Lane, Lease, Outcome, Retried, Succeeded
from durableq.settings import QueueSettings, queue_options
from durableq.storage import storage_factory
from durableq.storage.protocol import Storage
from durableq.testing import ManualClock

REPOSITORY: Final = Path(__file__).resolve().parents[2]
WORK: Final = "tasks:work"
HEARTBEAT: Final = timedelta(seconds=5)
LEASE: Final = timedelta(seconds=30)
ENDLESS: Final = "WITH RECURSIVE n(x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n"
"""A read that ends only when it is interrupted."""
BOOM: Final = Failure("ValueError", "boom", "Traceback: boom")


@dataclass
class Backend:
    """One database of one backend, and every access to it that a test opened."""

    url: str
    clock: ManualClock = field(default_factory=ManualClock)
    opened: list[Storage] = field(default_factory=list)

    def new_storage(self, *, clock: Clock | None = None, **options: Unpack[QueueSettings]) -> Storage:
        return storage_factory(self.url, queue_options(dict(options), {}), clock or self.clock)()

    async def open(self, *, clock: Clock | None = None, **options: Unpack[QueueSettings]) -> Storage:
        storage = self.new_storage(clock=clock, **options)
        await storage.open()
        self.opened.append(storage)
        return storage

    async def worker(self, *, clock: Clock | None = None) -> Storage:
        """Open the database as a process that holds leases."""
        storage = await self.open(clock=clock)
        await storage.register(lambda new_names: None)
        return storage

    async def close(self) -> None:
        for storage in reversed(self.opened):
            with contextlib.suppress(DurableQError):
                await storage.deregister()
            await storage.close()

    def job(
        self,
        *,
        task: str = WORK,
        queue: str = "default",
        priority: int = 0,
        delay: float = 0,
        max_attempts: int = 5,
        args_json: str = "{}",
    ) -> Job[Any]:
        now = self.clock.now
        return Job(
            id=new_job_id(from_datetime(now)),
            task=task,
            queue=queue,
            priority=priority,
            state=JobState.SCHEDULED if delay else JobState.QUEUED,
            args_json=args_json,
            max_attempts=max_attempts,
            created_at=now,
            run_at=now + timedelta(seconds=delay),
        )

    async def added(self, storage: Storage, count: int = 1, **fields: Any) -> list[Job[Any]]:
        """Store jobs and return them."""
        jobs = [self.job(**fields) for _ in range(count)]
        await storage.insert(jobs)
        return jobs

    async def claimed(self, storage: Storage, count: int = 1, **fields: Any) -> list[Lease]:
        """Store jobs and claim them."""
        jobs = await self.added(storage, count, **fields)
        leases = await claim(storage, limit=count, tasks=(jobs[0].task,), queues=(jobs[0].queue,))
        assert [lease.id for lease in leases] == [job.id for job in jobs]
        return leases

    async def finished(self, storage: Storage, outcome: Outcome, count: int = 1, **fields: Any) -> list[Job[Any]]:
        """Store jobs and settle them all with one outcome."""
        leases = await self.claimed(storage, count, **fields)
        await settle(storage, [(lease, outcome) for lease in leases])
        return [await stored(storage, lease.id) for lease in leases]

    async def suspect(self, storage: Storage, **fields: Any) -> Job[Any]:
        """Store a job that is queued and has taken one process down."""
        [job] = await self.finished(storage, Retried(BOOM, run_at=None, crashed=True), **fields)
        return job


async def claim(
    storage: Storage,
    *,
    limit: int = 100,
    tasks: Iterable[str] = (WORK,),
    queues: Iterable[str] = ("default",),
    suspects: Iterable[str] = (),
) -> list[Lease]:
    """Claim in one lane; the order of the answer is made that of the choice."""
    lanes = (Lane("loop", tuple(tasks), limit),) if limit else ()
    exchanged = await storage.exchange([], ClaimRequest(tuple(queues), lanes, tuple(suspects)))
    return exchanged.leases


async def settle(storage: Storage, settled: Sequence[tuple[Lease, Outcome]]) -> frozenset[int]:
    """Settle, and return the ``seq`` of what was lost."""
    return (await storage.exchange(settled, None)).lost


async def stored(storage: Storage, job_id: str) -> Job[Any]:
    job = await storage.get(job_id)
    assert job is not None, f"job {job_id} is not stored"
    return job


def runs_again(lease: Lease, reason: str, charged: bool) -> Outcome:
    """What a reaper decides in most tests."""
    return Retried(Failure("WorkerDied", reason, reason), run_at=None, crashed=charged)


DEAD: Final = Dead(BOOM)
DONE: Final = Succeeded(None)


class PythonProcess:
    """A Python process of our own: speaks one JSON value a line on its standard output, reads lines."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *arguments], cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    @property
    def pid(self) -> int:
        return self.process.pid

    def read(self) -> Any:
        """Wait for the next line. (A process that dies answers with an end of file, and this with an error.)"""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"the process ended with {self.process.wait(10)} and said nothing more"
        return json.loads(line)

    def write(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)

    def __enter__(self) -> "PythonProcess":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.kill()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            with contextlib.suppress(BrokenPipeError):
                stream.close()
