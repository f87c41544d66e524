"""A worker process that does what it is told: ``python -m tests.storage.colleague URL``.

Says ``["ready", worker id]``, then reads one JSON list a line and answers each with one:
``["claim"]`` with the ids of the jobs it took, ``["finish"]`` with the moment (monotonic seconds) just before it
settled all that it holds as succeeded, ``["cancel", id]`` with such a moment too. When it is told that somebody wants
the end of its jobs it says ``["asked", ids]`` unasked.
"""

import asyncio
import json
import sys
import time
from collections.abc import Collection
from typing import Any

from durableq.models import Lease, LeaseKey
from durableq.storage.protocol import Storage
from tests.storage.support import DONE, Backend, claim, settle


def say(*words: Any) -> None:
    print(json.dumps(words), flush=True)


class Colleague:
    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._leases: list[Lease] = []
        self._asked: set[LeaseKey] = set()

    def cancel(self, keys: Collection[LeaseKey]) -> None:
        """Say which jobs, each once."""
        new = [lease for lease in self._leases if lease.key in keys and lease.key not in self._asked]
        self._asked.update(lease.key for lease in new)
        if new:
            say("asked", [lease.id for lease in new])

    async def obey(self, verb: str, *arguments: str) -> None:
        if verb == "claim":
            self._leases += await claim(self._storage)
            say("claim", [lease.id for lease in self._leases])
            return
        began = time.monotonic()
        if verb == "finish":
            await settle(self._storage, [(lease, DONE) for lease in self._leases])
            self._leases = []
        elif verb == "cancel":
            await self._storage.cancel(arguments[0], who="colleague")
        say(verb, began)


async def main(url: str) -> None:
    storage = await Backend(url).open()
    colleague = Colleague(storage)
    say("ready", await storage.register(lambda new_names: None, colleague.cancel))
    while line := await asyncio.to_thread(sys.stdin.readline):
        await colleague.obey(*json.loads(line))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
