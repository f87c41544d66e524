"""Where plain ``def`` dependencies run, and how many of them at once."""

import asyncio
import gc
import inspect
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Annotated, Any

import anyio.lowlevel
import anyio.to_thread
import pytest
from fastapi import Depends

from durableq.dependencies import Injection, injection_of
from durableq.dependencies.threads import THREADS, Threads, threads
from tests.support import eventually


def injected(function: Callable[..., Any]) -> Injection:
    found = injection_of(function, "tasks:send")
    assert found is not None
    return found


def task_with(dependency: Callable[..., Any]) -> Callable[..., Any]:
    async def send(*, value: Any = Depends(dependency)) -> None: ...

    return send


async def values_of(function: Callable[..., Any]) -> dict[str, Any]:
    async with injected(function).resolve({}) as values:
        return values


def generator() -> Iterator[int]:
    yield 5


async def test_plain_functions_classes_and_generators_run_in_daemon_threads() -> None:
    seen: list[threading.Thread] = []

    def function() -> None:
        seen.append(threading.current_thread())

    class Kind:
        def __init__(self, function: Annotated[None, Depends(function)]) -> None:
            seen.append(threading.current_thread())

    def generator(kind: Annotated[Kind, Depends()]) -> Iterator[None]:
        seen.append(threading.current_thread())
        yield
        seen.append(threading.current_thread())

    await values_of(task_with(generator))

    assert len(seen) == 4
    assert threading.current_thread() not in seen
    assert all(thread.daemon for thread in seen)
    assert len(set(seen)) == 1, "a thread that is free is used again"


async def test_threads_that_serve_routes_are_not_taken() -> None:
    limiter = anyio.to_thread.current_default_thread_limiter()
    limiter.total_tokens = 1
    async with limiter, asyncio.timeout(10):
        assert await values_of(task_with(generator)) == {"value": 5}


class Gate:
    """Holds threads up, and knows how many it holds."""

    def __init__(self) -> None:
        self.waiting = 0
        self._open = threading.Event()
        self._guard = threading.Lock()

    def __call__(self) -> None:
        with self._guard:
            self.waiting += 1
        assert self._open.wait(10)

    def open(self) -> None:
        self._open.set()


async def test_no_more_than_a_fixed_number_of_plain_functions_run_at_once() -> None:
    gate = Gate()
    injection = injected(task_with(gate))

    async def attempt() -> None:
        async with injection.resolve({}):
            pass

    async with asyncio.TaskGroup() as group:
        for _ in range(THREADS + 3):
            group.create_task(attempt())
        await eventually(lambda: gate.waiting >= THREADS)
        assert gate.waiting == THREADS
        gate.open()
    assert gate.waiting == THREADS + 3


async def test_a_teardown_gets_a_thread_though_all_are_waiting_for_what_it_gives_back() -> None:
    gate = Gate()

    def connection() -> Iterator[None]:
        yield
        gate.open()

    def waits_for_a_connection() -> None:
        gate()

    waiting = injected(task_with(waits_for_a_connection))

    async def attempt() -> None:
        async with waiting.resolve({}):
            pass

    connected = injected(task_with(connection))
    async with asyncio.timeout(10), asyncio.TaskGroup() as group, connected.resolve({}):
        for _ in range(THREADS):
            group.create_task(attempt())
        await eventually(lambda: gate.waiting == THREADS)


def test_each_event_loop_has_its_own_threads_and_takes_them_along() -> None:
    injection = injected(task_with(generator))

    async def attempt() -> tuple["weakref.ref[asyncio.AbstractEventLoop]", "weakref.ref[Threads]"]:
        async with injection.resolve({}) as values:
            assert values == {"value": 5}
        return weakref.ref(asyncio.get_running_loop()), weakref.ref(threads())

    ended = [asyncio.run(attempt()) for _ in range(3)]
    gc.collect()
    assert [(loop(), own()) for loop, own in ended] == [(None, None)] * 3


class Crowd:
    """Counts how many are inside at once."""

    def __init__(self) -> None:
        self.inside = 0
        self.most = 0

    async def generator(self) -> AsyncIterator[None]:
        self.inside += 1
        self.most = max(self.most, self.inside)
        yield
        self.inside -= 1

    async def coroutine(self) -> None:
        async for _ in self.generator():
            await anyio.lowlevel.checkpoint()


@pytest.mark.parametrize("kind", ["generator", "coroutine"])
async def test_a_limit_on_concurrency_holds_and_for_a_generator_until_its_teardown(kind: str) -> None:
    if "max_concurrency" not in inspect.signature(Depends).parameters:
        pytest.skip("this FastAPI has no max_concurrency")
    crowd = Crowd()
    limits: dict[str, Any] = {"max_concurrency": 2}

    async def send(*, value: None = Depends(getattr(crowd, kind), **limits)) -> None: ...

    injection = injected(send)

    async def attempt() -> None:
        async with injection.resolve({}):
            await anyio.lowlevel.checkpoint()

    async with asyncio.TaskGroup() as group:
        for _ in range(7):
            group.create_task(attempt())
    assert (crowd.most, crowd.inside) == (2, 0)
