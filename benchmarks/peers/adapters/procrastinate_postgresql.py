"""Procrastinate on PostgreSQL by psycopg's compiled pool, with PostgreSQL's defaults: an acknowledged job is on disk.

As its documentation says for short jobs: a pool with a connection to spare for each sub-worker, woken by LISTEN/NOTIFY.
More of them are no faster, as jobs are fetched one by one. What is done is deleted at once, and the loop is uvloop's.
"""

import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import psycopg
import uvloop
from procrastinate import App, PsycopgConnector

from benchmarks.peers.adapter import ADDRESS, Adapter, Message, Producer
from benchmarks.peers.job import begin

CONCURRENCY = 10
CONNECTIONS = 20

app = App(connector=PsycopgConnector(conninfo=ADDRESS, min_size=CONNECTIONS, max_size=CONNECTIONS))


@app.task
async def send(number: int, message: Message) -> None:
    begin()


@asynccontextmanager
async def connected() -> AsyncIterator[None]:
    """With its tables, whoever comes first."""
    async with app.open_async(), await psycopg.AsyncConnection.connect(ADDRESS, autocommit=True) as connection:
        await connection.execute("SELECT pg_advisory_lock(1)")
        if not await app.check_connection_async():
            await app.schema_manager.apply_schema_async()
        await connection.execute("SELECT pg_advisory_unlock(1)")
        yield


@asynccontextmanager
async def producer() -> AsyncIterator[Producer]:
    async def add(number: int, message: Message) -> None:
        await send.defer_async(number=number, message=message)

    async def add_all(jobs: Sequence[tuple[int, Message]]) -> None:
        await send.batch_defer_async(*({"number": number, "message": message} for number, message in jobs))

    async with connected():
        yield Producer(add, add_all=add_all)


async def work() -> None:
    async with connected():
        await app.run_worker_async(concurrency=CONCURRENCY, delete_jobs="always")


def main() -> None:
    logging.basicConfig(level=logging.ERROR)
    uvloop.run(work())


ADAPTER = Adapter(producer, ["-c", f"from {__name__} import main; main()"])
