"""A damaged row is seen, and can be deleted, because it is damaged; and it takes no other row along."""

import contextlib
import sqlite3
from typing import Any

import pytest

from durableq.models import JobFilter, JobState
from durableq.storage.protocol import Storage
from tests.storage.support import DEAD, Backend, stored

DAMAGE: list[tuple[str, Any]] = [
    ("task", b"\xff\xfe"),
    ("task", 5),
    ("queue", b"\xff"),
    ("priority", "abc"),
    ("args", "{not json"),
    ("args", b"\x00\xff"),
    ("max_attempts", "many"),
    ("attempt", "one"),
    ("crashes", b"\x00"),
    ("created_at", 2**62),
    ("created_at", -(2**62)),
    ("run_at", "yesterday"),
    ("started_at", 2**62),
    ("finished_at", -(2**62)),
    ("finished_at", "never"),
    ("result", b"\xff"),
    ("error_type", 5),
    ("error_message", b"\xff"),
    ("expires_at", 2**62),
    ("deadline_at", "soon"),
    ("unique_key", 7),
    ("unique_covers", "all"),
    ("result_ttl", "long"),
    ("tags", "not json"),
    ("tags", "{}"),
    ("tags", "[1, null]"),
    ("settings", "5"),
    ("settings", "not json"),
    ("settings", '{"headers": 5, "timeout": "x", "retry": 7}'),
    ("progress", "[]"),
    ("progress", '["x"]'),
    ("progress", "[1e999, 1e999, null]"),
    ("progress", "{"),
]


def damage(storage: Storage, table: str, column: str, value: Any) -> None:
    with contextlib.closing(sqlite3.connect(storage.path, isolation_level=None, timeout=10)) as connection:
        connection.execute("PRAGMA ignore_check_constraints=ON")
        connection.execute(f"UPDATE {table} SET {column} = ? WHERE seq = 1", (value,))


@pytest.mark.parametrize(("column", "value"), DAMAGE, ids=repr)
async def test_a_damaged_job_is_listed_beside_the_others_and_can_be_deleted(
    backend: Backend, storage: Storage, column: str, value: Any
) -> None:
    [damaged, whole] = await backend.finished(storage, DEAD, 2)
    damage(storage, "durableq_jobs", column, value)
    page = await storage.find(JobFilter(state=JobState.DEAD), cursor=None, limit=10, look_at=10)
    assert [job.id for job in page.jobs] == [whole.id, damaged.id]
    assert sum(group.number for group in (await storage.dead_letters(look_at=10)).groups) == 2
    assert (await stored(storage, damaged.id)).id == damaged.id
    await storage.delete(damaged.id, who="ann")
    assert await storage.get(damaged.id) is None


@pytest.mark.parametrize("column", ["started_at", "finished_at", "attempt"])
@pytest.mark.parametrize("value", ["x", 2**62, b"\xff"], ids=repr)
async def test_a_damaged_try_is_shown_with_the_others(
    backend: Backend, storage: Storage, column: str, value: Any
) -> None:
    [job] = await backend.finished(storage, DEAD)
    damage(storage, "durableq_attempts", column, value)
    [attempt] = await storage.attempts(job.id)
    assert attempt.error_message == "boom"


@pytest.mark.parametrize("value", ["[]", "no json", b"\xff"], ids=repr)
async def test_a_damaged_audit_entry_is_shown_with_the_others(backend: Backend, storage: Storage, value: Any) -> None:
    for job in await backend.added(storage, 2):
        await storage.cancel(job.id, who="ann")
    damage(storage, "durableq_audit", "detail", value)
    found = (await storage.audit(cursor=None, limit=10)).entries
    assert [(one.action, bool(one.detail)) for one in found] == [("cancel", True), ("cancel", False)]
