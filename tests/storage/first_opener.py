"""A process that opens databases at the same instant as others: ``python -m tests.storage.first_opener``.

Reads a path a line, opens it, adds one job, closes it, and says ``null`` or what went wrong.
"""

import asyncio
import json
import sys

from tests.storage.support import Backend


async def open_and_add(path: str) -> str | None:
    backend = Backend(path)
    try:
        storage = await backend.worker()
        await backend.added(storage)
        await backend.close()
    except Exception as error:
        return repr(error)
    return None


if __name__ == "__main__":
    print('"ready"', flush=True)
    for line in sys.stdin:
        print(json.dumps(asyncio.run(open_and_add(line.strip()))), flush=True)
