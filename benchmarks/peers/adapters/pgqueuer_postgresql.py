"""PgQueuer on PostgreSQL by asyncpg, with its default durability: an acknowledged job is on disk.

As its guide to performance says: a pool for producers, large batches for short jobs, tables tuned by ``autovac``, and
uvloop, as ``pgq run`` takes. The worker has a pool too, which is faster: it claims jobs while others are completed.
"""

import json
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import asyncpg
import pgqueuer
import uvloop
from pgqueuer import PgQueuer, Queries
from pgqueuer.models import Job

from benchmarks.peers.adapter import ADDRESS, Adapter, Message, Producer
from benchmarks.peers.job import begin

CONNECTIONS = 20
BATCH = 1_000


@asynccontextmanager
async def connected() -> AsyncIterator[asyncpg.Pool]:
    """With its tables, whoever comes first."""
    connection = await asyncpg.connect(ADDRESS)
    try:
        queries = Queries.from_asyncpg_connection(connection)
        async with queries.schema_lock():
            if not await queries.schema_is_installed():
                await queries.install()
                await queries.optimize_autovacuum()
    finally:
        await connection.close()
    async with asyncpg.create_pool(ADDRESS, min_size=CONNECTIONS, max_size=CONNECTIONS, reset=keep) as pool:
        yield pool


async def keep(connection: asyncpg.Connection) -> None:
    """PgQueuer changes nothing in a session, so there is nothing to reset: a round trip less for each job."""


@asynccontextmanager
async def producer() -> AsyncIterator[Producer]:
    async with connected() as pool:
        queries = Queries.from_asyncpg_pool(pool)

        async def add(number: int, message: Message) -> None:
            await queries.enqueue("send", payload(number, message))

        async def add_all(jobs: Sequence[tuple[int, Message]]) -> None:
            await queries.enqueue(["send"] * len(jobs), [payload(*job) for job in jobs], [0] * len(jobs))

        yield Producer(add, add_all=add_all)


def payload(number: int, message: Message) -> bytes:
    return json.dumps([number, message]).encode()


@asynccontextmanager
async def worker() -> AsyncIterator[PgQueuer]:
    async with connected() as pool:
        queuer = PgQueuer.from_asyncpg_pool(pool)

        @queuer.entrypoint("send")
        async def send(job: Job) -> None:
            _number, _message = json.loads(job.payload or b"")
            begin()

        yield queuer


def main() -> None:
    logging.basicConfig(level=logging.ERROR)
    uvloop.run(pgqueuer.run(worker, batch_size=BATCH))


ADAPTER = Adapter(producer, ["-c", f"from {__name__} import main; main()"])
