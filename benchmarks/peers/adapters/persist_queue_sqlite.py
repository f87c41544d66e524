"""persist-queue's `SQLiteAckQueue`: an item is acknowledged after its job. WAL, and SQLite's ``synchronous=FULL``.

The worker asks for the next in order, or each ``get`` would pass all that is acknowledged already. A blocking ``get``
is woken by its own process only, so an idle worker looks each millisecond.
"""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from persistqueue import Empty, SQLiteAckQueue

from benchmarks.peers.adapter import ADDRESS, Adapter, Message, Producer
from benchmarks.peers.job import begin

PATH: Final = Path(ADDRESS)
IDLE_SECONDS: Final = 0.001
"""Between looks at an empty queue: it has no way to wake a consumer of another process."""


def send(number: int, message: Message) -> None:
    begin()


@asynccontextmanager
async def producer() -> AsyncIterator[Producer]:
    # Without `auto_resume`, which would take back what the worker has in hand.
    queue = SQLiteAckQueue(str(PATH.parent), db_file_name=PATH.name, multithreading=True, auto_resume=False)

    def add(number: int, message: Message) -> None:
        queue.put((number, message))

    try:
        yield Producer(add=add, blocks=True)
    finally:
        queue.close()


def work() -> None:
    queue = SQLiteAckQueue(str(PATH.parent), db_file_name=PATH.name)
    last: int | None = None
    while True:
        try:
            item = queue.get(block=False, id=last, next_in_order=last is not None, raw=True)
        except Empty:
            time.sleep(IDLE_SECONDS)
            continue
        last = item["pqid"]
        send(*item["data"])
        queue.ack(id=last)


ADAPTER = Adapter(producer, ["-m", "benchmarks.peers.adapters.persist_queue_sqlite"])

if __name__ == "__main__":
    work()
