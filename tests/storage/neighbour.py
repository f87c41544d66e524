"""Another process on the same file.

``python -m tests.storage.neighbour URL adds COUNT`` adds large jobs without pause, and says the largest size of the
log it saw. ``... waits COUNT`` measures how long an application's own transactions wait for the
write lock, asking every half millisecond as durableq's do; it says ``"ready"``, and after a line of
input milliseconds, sorted.
"""

import asyncio
import json
import os
import sqlite3
import sys
import time

from durableq.storage.sqlite.connection import begin
from tests.storage.support import Backend

ARGUMENTS = json.dumps("x" * 2_000)


async def add_without_pause(backend: Backend, count: int) -> None:
    storage = await backend.open()
    await storage.register(None)
    largest = 0
    for _ in range(count // 50):
        await backend.added(storage, 50, args_json=ARGUMENTS)
        largest = max(largest, os.stat(backend.url + "-wal").st_size)
    await backend.close()
    print(json.dumps(largest), flush=True)


def measure_waits(url: str, count: int) -> list[float]:
    connection = sqlite3.connect(url, isolation_level=None, timeout=0)
    begin(connection, wait_seconds=10)
    connection.execute("CREATE TABLE mine (x)")
    connection.execute("COMMIT")
    waits = []
    for number in range(count):
        time.sleep(0.002)
        asked = time.monotonic()
        begin(connection, wait_seconds=10)
        waits.append((time.monotonic() - asked) * 1_000)
        connection.execute("INSERT INTO mine VALUES (?)", (number,))
        connection.execute("COMMIT")
    connection.close()
    return waits


async def wait_for_the_lock(backend: Backend, count: int) -> None:
    storage = await backend.open()
    await storage.register(None)
    print('"ready"', flush=True)
    sys.stdin.readline()
    waits = await asyncio.to_thread(measure_waits, backend.url, count)
    await backend.close()
    print(json.dumps(sorted(waits)), flush=True)


if __name__ == "__main__":
    url, what, number = sys.argv[1:]
    neighbour = add_without_pause if what == "adds" else wait_for_the_lock
    asyncio.run(neighbour(Backend(url), int(number)))
