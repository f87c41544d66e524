"""DBOS on SQLite: a workflow without steps, added by its `DBOSClient` and claimed by a queue that is asked each 10 ms.

Claims are not limited, so a full queue is claimed in one transaction, and run by a few threads; a client has one
connection: more of either only wait for the one lock of SQLite. DBOS leaves SQLite's journal as it comes, which is on
disk when a transaction ends. It has no call to add many, but ``enqueue_in_transaction``.
"""

import threading
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

import sqlalchemy
from dbos import DBOS, DBOSClient, EnqueueOptions, run_dbos_database_migrations

from benchmarks.peers.adapter import ADDRESS, Adapter, Message, Producer
from benchmarks.peers.job import begin

NAME: Final = "benchmark"
URL: Final = f"sqlite:///{ADDRESS}"
QUEUE: Final = "jobs"
POLLING_SECONDS: Final = 0.01
THREADS: Final = 4
OPTIONS: Final[EnqueueOptions] = {"workflow_name": "send", "queue_name": QUEUE}


@DBOS.workflow(name="send")
def send(number: int, message: Message) -> None:
    begin()


@asynccontextmanager
async def producer() -> AsyncIterator[Producer]:
    run_dbos_database_migrations(URL)
    client = DBOSClient(system_database_url=URL, application_name=NAME, system_database_pool_size=1, lazy=True)
    engine = sqlalchemy.create_engine(URL)

    def add(number: int, message: Message) -> None:
        client.enqueue(OPTIONS, number, message)

    def add_all(jobs: Sequence[tuple[int, Message]]) -> None:
        with engine.begin() as connection:
            for number, message in jobs:
                client.enqueue_in_transaction(connection, OPTIONS, number, message)

    try:
        yield Producer(add=add, blocks=True, add_all=add_all)
    finally:
        engine.dispose()
        client.destroy()


def work() -> None:
    DBOS(
        config={
            "name": NAME,
            "system_database_url": URL,
            "max_executor_threads": THREADS,
            "log_level": "WARNING",
        }
    )
    DBOS.listen_queues([QUEUE])
    DBOS.launch()
    DBOS.register_queue(QUEUE, polling_interval_sec=POLLING_SECONDS)
    threading.Event().wait()


ADAPTER = Adapter(producer, ["-m", "benchmarks.peers.adapters.dbos_sqlite"])

if __name__ == "__main__":
    work()
