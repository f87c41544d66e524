"""litequeue, as its example of a consumer does it: pop, work, done. It sets WAL and ``synchronous=NORMAL`` itself.

So an acknowledged message is with the operating system, but not on disk. An idle consumer looks again each millisecond.
"""

import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from litequeue import LiteQueue

from benchmarks.peers.adapter import ADDRESS, Adapter, Message, Producer
from benchmarks.peers.job import begin

IDLE_SECONDS: Final = 0.001
"""Between looks at an empty queue: it has no way to wake a consumer of another process."""


def send(number: int, message: Message) -> None:
    begin()


@asynccontextmanager
async def producer() -> AsyncIterator[Producer]:
    queue = LiteQueue(ADDRESS)

    def add(number: int, message: Message) -> None:
        queue.put(json.dumps([number, message]))

    try:
        yield Producer(add=add, blocks=True)
    finally:
        queue.close()


def work() -> None:
    queue = LiteQueue(ADDRESS)
    while True:
        message = queue.pop()
        if message is None:
            time.sleep(IDLE_SECONDS)
            continue
        send(*json.loads(message.data))
        if hasattr(message, "claim_id"):  # since 0.13
            queue.done(message.message_id, claim_id=message.claim_id)
        else:
            queue.done(message.message_id)


ADAPTER = Adapter(producer, ["-m", "benchmarks.peers.adapters.litequeue_sqlite"])

if __name__ == "__main__":
    work()
