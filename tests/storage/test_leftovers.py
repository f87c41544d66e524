"""A job that is gone leaves nothing in the file but its audit."""

import contextlib
import sqlite3
from dataclasses import replace

import pytest

from durableq.models import JobExtras, JobState, Progress
from durableq.storage.protocol import Notes, Storage
from durableq.testing import ManualClock
from tests.storage.contract_unique import unique_job
from tests.storage.support import DEAD, Backend, claim

TABLES = ("jobs", "attempts", "logs", "aliases")


def counts(backend: Backend) -> dict[str, int]:
    with contextlib.closing(sqlite3.connect(backend.url)) as outside:
        return {name: outside.execute(f"SELECT count(*) FROM durableq_{name}").fetchone()[0] for name in TABLES}


@pytest.mark.parametrize("verb", ["delete", "delete by an alias", "prune"])
async def test_nothing_of_it_stays(backend: Backend, storage: Storage, clock: ManualClock, verb: str) -> None:
    kept, gone = (unique_job(backend, key) for key in ("kept", "gone"))
    gone = replace(gone, extras=replace(gone.extras, tags=("t",), headers={"h": "x"}))
    aliases = [unique_job(backend, key) for key in ("kept", "gone", "gone")]
    await storage.insert([kept, gone, *aliases])
    for lease in await claim(storage):
        notes = Notes([(lease.key, Progress(1))], [(lease.key, 1, 0, "line")])
        await storage.exchange([(lease, DEAD)], None, notes)
        clock.advance(60)
    assert counts(backend) == {"jobs": 2, "attempts": 2, "logs": 2, "aliases": 3}
    match verb:
        case "delete":
            await storage.delete(gone.id, who="ann")
        case "delete by an alias":
            await storage.delete(aliases[2].id, who="ann")
        case _:
            await storage.retry(kept.id, who="ann")  # so that only the other one is finished
            assert await storage.prune(JobState.DEAD, clock.now, limit=10) == 1
    assert await storage.get(gone.id) is None
    assert counts(backend) == {"jobs": 1, "attempts": 1, "logs": 1, "aliases": 1}


async def test_what_was_only_on_its_way_leaves_nothing(backend: Backend, storage: Storage) -> None:
    """Words for leases that never were, or are over."""
    await storage.insert([replace(backend.job(), extras=JobExtras(tags=("t",)))])
    [lease] = await claim(storage)
    await storage.exchange([(lease, DEAD)], None)
    before = counts(backend)
    stale = [(key, 1, 0, "line") for key in (lease.key, (lease.seq, 9), (99, 1))]
    await storage.exchange([], None, Notes([(key, Progress(1)) for key, *_ in stale], stale))
    assert counts(backend) == before
