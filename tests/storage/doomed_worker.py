"""A worker process for tests to kill: registers, claims, says what it holds, and waits for its end.

``python -m tests.storage.doomed_worker URL COUNT [reap]`` claims COUNT jobs; with 0 it is a process that only adds
jobs. With ``reap`` it then looks for dead workers once, and says whom it found.
"""

import asyncio
import json
import sys

from tests.storage.support import Backend, claim, runs_again


async def main(url: str, count: int, reaps: bool) -> None:
    backend = Backend(url)
    storage = await backend.open()
    worker_id = await storage.register((lambda new_names: None) if count else None)
    leases = await claim(storage, limit=count) if count else []
    print(json.dumps([worker_id, [lease.id for lease in leases]]), flush=True)
    if reaps:
        print(json.dumps([dead.worker_id for dead in await storage.reap(runs_again)]), flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], int(sys.argv[2]), "reap" in sys.argv[3:]))
