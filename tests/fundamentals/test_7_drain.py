"""``await dq.drain()`` returns when nothing is left to run: what tests need."""

import asyncio
from pathlib import Path

import pytest

from durableq import DurableQ, JobState


async def test_drain_waits_for_all_that_can_run_and_for_what_it_adds_in_turn(tmp_path: Path) -> None:
    dq = DurableQ(tmp_path / "app.db")
    visited: list[int] = []

    @dq.task(name="visit")
    async def visit(page: int) -> None:
        await asyncio.sleep(0.001)
        visited.append(page)
        if page < 5:
            await dq.add_task(visit, page + 1)

    async with dq.running():
        await dq.add_task(visit, 1)
        await dq.drain()
        assert visited == [1, 2, 3, 4, 5]


async def test_drain_does_not_wait_for_what_is_scheduled_ahead(tmp_path: Path) -> None:
    dq = DurableQ(tmp_path / "app.db")

    @dq.task(name="remind", delay=3600)
    async def remind() -> None: ...

    @dq.task(name="fail")
    async def fail() -> None:
        raise RuntimeError("the next try is a second away")

    async with dq.running():
        later, retried = await dq.add_task(remind), await dq.add_task(fail)
        await dq.drain(timeout=0.9)
        assert [(await dq.get(job)).state for job in (later, retried)] == [JobState.SCHEDULED] * 2


async def test_drain_gives_up_after_its_timeout(tmp_path: Path) -> None:
    dq = DurableQ(tmp_path / "app.db", grace=0)

    @dq.task(name="never ends")
    async def never_ends() -> None:
        await asyncio.Event().wait()

    async with dq.running():
        await dq.add_task(never_ends)
        with pytest.raises(TimeoutError, match=r"^after 0\.2 s, there are still jobs running, or due, that this app"):
            await dq.drain(timeout=0.2)


async def test_drain_of_an_empty_queue_returns_at_once(tmp_path: Path) -> None:
    dq = DurableQ(tmp_path / "app.db")
    async with dq.running():
        await dq.drain(timeout=1)


async def test_drain_waits_for_what_other_processes_run_too(tmp_path: Path) -> None:
    """Here: another queue on the same file, that has the worker."""
    adding, working = DurableQ(tmp_path / "app.db", worker=False), DurableQ(tmp_path / "app.db")
    done = asyncio.Event()

    async def work() -> None:
        await asyncio.sleep(0.2)
        done.set()

    task = adding.task(name="work")(work)
    working.task(name="work")(work)
    async with adding.running(), working.running():
        await adding.add_task(task)
        await adding.drain()
        assert done.is_set()
