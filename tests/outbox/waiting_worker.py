"""Another process with a worker: ``python -m tests.outbox.waiting_worker DATABASE`` says when each job started.

In monotonic seconds, which all processes of a machine share. It ends when its input does.
"""

import asyncio
import json
import sys
import time

from durableq import DurableQ

queue = DurableQ(sys.argv[1])


@queue.task(name="tests.outbox.waiting_worker:note")
async def note(x: int) -> None:
    print(json.dumps(time.monotonic()), flush=True)


async def main() -> None:
    async with queue.running():
        print('"ready"', flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    asyncio.run(main())
