"""Works off whatever waits in a file, and says by how many bytes its memory has grown at most.

``python -m tests.faults.backlog DATABASE``
"""

import asyncio
import json
import resource
import sys

from durableq import DurableQ
from durableq.registry import Task

dq = DurableQ(sys.argv[1] if len(sys.argv) > 1 else "backlog.db")


async def weigh(letter: str) -> int:
    return len(letter)


def task() -> Task[[str], object]:
    return dq.task(name="weigh")(weigh)


def _most_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


async def main() -> None:
    weigh_task = task()
    async with dq.running():
        assert await dq.result(await dq.add_task(weigh_task, "warm")) == 4
        before = _most_memory()
        await dq.drain()
        grown = _most_memory() - before
    print(json.dumps(grown), flush=True)


if __name__ == "__main__":
    asyncio.run(main())
