"""Where a job's code runs: on the loop, or in threads that are ours alone."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from functools import wraps
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest

from durableq import DurableQ, JobState, call
from tests.engine.helpers import finished, sql
from tests.support import eventually, eventually_sync

STARLETTES_THREADS = 40
"""How many threads Starlette has for ``def`` routes: anyio's default limiter."""


async def test_blocked_sync_jobs_take_none_of_the_threads_that_serve_routes(database: Path) -> None:
    dq = DurableQ(database, threads=STARLETTES_THREADS + 10)
    release, blocked = threading.Event(), threading.Semaphore(0)

    @dq.task(name="block")
    def block() -> None:
        blocked.release()
        release.wait()

    async with dq.running():
        try:
            await dq.add_tasks([call(block) for _ in range(STARLETTES_THREADS + 10)])
            await eventually(lambda: blocked._value == STARLETTES_THREADS + 10)
            limiter = anyio.to_thread.current_default_thread_limiter()
            assert (limiter.total_tokens, limiter.borrowed_tokens) == (STARLETTES_THREADS, 0)
            before = time.monotonic()
            assert await anyio.to_thread.run_sync(threading.get_ident) != threading.get_ident()
            assert time.monotonic() - before < 0.5
        finally:
            release.set()
        await dq.drain(timeout=10)


async def test_a_sync_job_runs_off_the_loop_in_a_daemon_thread(database: Path) -> None:
    dq = DurableQ(database)
    seen: list[threading.Thread] = []

    @dq.task(name="look")
    def look() -> None:
        seen.append(threading.current_thread())

    async with dq.running():
        await finished(dq, await dq.add_task(look))
    [thread] = seen
    assert thread is not threading.current_thread()
    assert thread.daemon, "an endless job must not hold the process"


async def test_an_async_job_runs_on_the_loop_of_the_app(database: Path) -> None:
    dq = DurableQ(database)
    seen: list[object] = []

    @dq.task(name="look")
    async def look() -> None:
        seen.extend([asyncio.get_running_loop(), threading.current_thread()])

    async with dq.running():
        await finished(dq, await dq.add_task(look))
    assert seen == [asyncio.get_running_loop(), threading.current_thread()]


async def test_the_loop_goes_on_while_sync_jobs_block(database: Path) -> None:
    dq = DurableQ(database, threads=2)
    release = threading.Event()

    @dq.task(name="block")
    def block() -> None:
        release.wait()

    @dq.task(name="brief")
    async def brief() -> None: ...

    async with dq.running():
        await dq.add_tasks([call(block), call(block), call(block)])
        jobs = await dq.add_tasks([call(brief) for _ in range(50)])
        for job in jobs:
            assert (await finished(dq, job, within=5)).state is JobState.SUCCEEDED
        release.set()


async def test_threads_are_used_again_and_end_with_the_queue(database: Path) -> None:
    dq = DurableQ(database, threads=3)
    idents: set[int] = set()

    @dq.task(name="look")
    def look() -> None:
        idents.add(threading.get_ident())

    def job_threads() -> list[threading.Thread]:
        return [one for one in threading.enumerate() if one.name.startswith("durableq-job")]

    async with dq.running():
        await dq.add_tasks([call(look) for _ in range(100)])
        await dq.drain(timeout=10)
        assert 1 <= len(job_threads()) <= 3
    assert len(idents) <= 3
    eventually_sync(lambda: job_threads() == [])


async def test_a_thread_that_was_given_up_keeps_its_slot_until_it_ends(database: Path) -> None:
    """An endless sync job outlives an eviction; no more threads than allowed come of it."""
    dq = DurableQ(database, threads=1, lease=2, heartbeat=0.2)
    release, starts = threading.Event(), threading.Semaphore(0)

    @dq.task(name="block")
    def block() -> None:
        starts.release()
        release.wait()

    async with dq.running():
        await dq.add_task(block)
        await eventually(lambda: starts._value == 1)
        sql(database, "DELETE FROM durableq_workers")  # another has taken it for dead
        await eventually(lambda: sql(database, "SELECT count(*) FROM durableq_workers") == [(1,)])
        await asyncio.sleep(0.5)
        assert starts._value == 1, "its one thread is still busy"
        release.set()
        await eventually(lambda: starts._value == 2)
        await dq.drain(timeout=10)


user: ContextVar[str] = ContextVar("user", default="nobody")


@pytest.mark.parametrize("runner", ["loop", "thread"])
async def test_context_variables_do_not_leak_from_job_to_job(database: Path, runner: str) -> None:
    dq = DurableQ(database, concurrency=1, threads=1)
    seen: list[str] = []

    async def on_the_loop(name: str) -> None:
        seen.append(user.get())
        user.set(name)
        assert user.get() == name

    def in_a_thread(name: str) -> None:
        seen.append(user.get())
        user.set(name)
        assert user.get() == name

    task = dq.task(name="become")(on_the_loop if runner == "loop" else in_a_thread)
    async with dq.running():
        await dq.add_tasks([call(task, name) for name in ("a", "b", "c")])
        await dq.drain(timeout=10)
        assert (await dq.counts())[JobState.SUCCEEDED] == 3
    assert seen == ["nobody"] * 3
    assert user.get() == "nobody"


async def test_context_variables_of_the_caller_do_not_reach_the_job(database: Path) -> None:
    """A job may run in another process a day later; what it needs stands in its arguments."""
    dq = DurableQ(database)

    @dq.task(name="who")
    async def who() -> str:
        return user.get()

    async with dq.running():
        token = user.set("the caller")
        job = await dq.add_task(who)
        user.reset(token)
        assert (await finished(dq, job)).result == "nobody"


def _wrapped(function: Callable[..., Awaitable[Any]]) -> Callable[..., Any]:
    @wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


async def test_what_a_sync_wrapper_of_an_async_function_hands_out_is_awaited_on_the_loop(database: Path) -> None:
    dq = DurableQ(database)

    async def on_the_loop() -> bool:
        await asyncio.sleep(0)
        return threading.current_thread() is threading.main_thread()

    task = dq.task(name="wrapped")(_wrapped(on_the_loop))
    async with dq.running():
        assert (await finished(dq, await dq.add_task(task))).result is True


async def test_a_sync_job_that_raises_stop_iteration_has_failed(database: Path) -> None:
    dq = DurableQ(database)

    @dq.task(name="next", max_attempts=1)
    def take_next() -> None:
        next(iter(()))

    async with dq.running():
        job = await finished(dq, await dq.add_task(take_next))
    assert job.error is not None
    assert (job.state, job.error.type) == (JobState.DEAD, "RuntimeError")
    assert "StopIteration" in job.error.message
