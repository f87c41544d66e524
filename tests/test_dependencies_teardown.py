"""What dependencies with ``yield`` are promised: they are torn down, in order, and know how the attempt ended."""

import asyncio
import contextlib
import sys
import textwrap
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Annotated, Any

import anyio
import anyio.lowlevel
import pytest
from fastapi import Depends

from durableq.dependencies import INJECTED, Injection, injection_of
from tests.support import eventually

Call = Callable[..., Any]
Body = Callable[[], Awaitable[None]]


class Boom(Exception):
    pass


class Other(Exception):
    pass


def injected(function: Call) -> Injection:
    found = injection_of(function, "tasks:send")
    assert found is not None
    return found


async def attempt(function: Call, body: Body | None = None) -> None:
    async with injected(function).resolve({}):
        if body is not None:
            await body()


async def raise_boom() -> None:
    raise Boom


async def wait_for_ever() -> None:
    await asyncio.Event().wait()


class Log:
    """Dependencies that note how they end; ``outer`` is set up first, then ``middle``, then ``inner``."""

    def __init__(self, *, in_threads: bool = False) -> None:
        self.lines: list[str] = []
        self.errors: list[BaseException] = []
        log = self

        def outer() -> Iterator[None]:
            with log.noted("outer"):
                yield

        def middle(outer: Annotated[None, Depends(outer)]) -> Iterator[None]:
            with log.noted("middle"):
                yield

        async def async_outer() -> AsyncIterator[None]:
            with log.noted("outer"):
                yield
                await anyio.lowlevel.checkpoint()

        async def async_middle(outer: Annotated[None, Depends(async_outer)]) -> AsyncIterator[None]:
            with log.noted("middle"):
                yield
                await anyio.lowlevel.checkpoint()

        self.middle: Call = middle if in_threads else async_middle

    def noted(self, name: str) -> "Noted":
        return Noted(self, name)

    def around(self, inner: Call) -> Call:
        async def send(*, middle: None = Depends(self.middle), inner: None = Depends(inner)) -> None: ...

        return send


class Noted:
    def __init__(self, log: Log, name: str) -> None:
        self._log = log
        self._name = name

    def __enter__(self) -> None:
        self._log.lines.append(self._name)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._log.lines.append(f"{self._name} ends" if error is None else f"{self._name} sees {type(error).__name__}")
        if error is not None:
            self._log.errors.append(error)


def quiet() -> None:
    pass


async def quiet_coroutine() -> None:
    pass


@pytest.fixture(params=["on the loop", "in threads"])
def log(request: pytest.FixtureRequest) -> Log:
    return Log(in_threads=request.param == "in threads")


# -- order --------------------------------------------------------------------------------------------------------


async def test_teardown_goes_in_reverse_order_after_the_attempt(log: Log) -> None:
    async def body() -> None:
        log.lines.append("task")

    await attempt(log.around(quiet), body)
    assert log.lines == ["outer", "middle", "task", "middle ends", "outer ends"]


async def test_each_attempt_is_torn_down_for_itself(log: Log) -> None:
    injection = injected(log.around(quiet))
    for _ in range(2):
        async with injection.resolve({}):
            pass
    assert log.lines == ["outer", "middle", "middle ends", "outer ends"] * 2


# -- the task's error ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [Boom, SystemExit, KeyboardInterrupt, GeneratorExit, asyncio.CancelledError])
async def test_every_dependency_sees_the_tasks_own_error(log: Log, kind: type[BaseException]) -> None:
    error = kind()

    async def body() -> None:
        raise error

    with pytest.raises(kind) as caught:
        await attempt(log.around(quiet), body)
    assert caught.value is error
    assert log.lines == ["outer", "middle", f"middle sees {kind.__name__}", f"outer sees {kind.__name__}"]
    assert log.errors == [error, error]


async def test_a_cancelled_task_is_seen_as_cancelled(log: Log) -> None:
    job = asyncio.create_task(attempt(log.around(quiet), wait_for_ever))
    await eventually(lambda: len(log.lines) == 2)
    job.cancel()
    with pytest.raises(asyncio.CancelledError):
        await job
    assert log.lines[2:] == ["middle sees CancelledError", "outer sees CancelledError"]


async def test_a_timeout_passes_through_and_is_still_a_timeout(log: Log) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(None) as limit:

            async def body() -> None:
                limit.reschedule(0)  # over, now that everything is set up
                await wait_for_ever()

            await attempt(log.around(quiet), body)
    assert log.lines[2:] == ["middle sees CancelledError", "outer sees CancelledError"]


def swallows() -> Iterator[None]:
    with contextlib.suppress(BaseException):
        yield


async def swallows_on_the_loop() -> AsyncIterator[None]:
    with contextlib.suppress(BaseException):
        yield


@pytest.mark.parametrize("inner", [swallows, swallows_on_the_loop])
@pytest.mark.parametrize("kind", [Boom, asyncio.CancelledError])
async def test_an_error_that_a_dependency_swallows_is_still_the_attempts_and_seen_by_the_others(
    log: Log, inner: Call, kind: type[BaseException]
) -> None:
    error = kind()

    async def body() -> None:
        raise error

    with pytest.raises(kind) as caught:
        await attempt(log.around(inner), body)
    assert caught.value is error
    assert log.errors == [error, error]


# -- errors of the teardown itself --------------------------------------------------------------------------------


def raises_another() -> Iterator[None]:
    try:
        yield
    finally:
        raise Other


async def raises_another_on_the_loop() -> AsyncIterator[None]:
    try:
        yield
    finally:
        raise Other


def swallows_then_raises_another() -> Iterator[None]:
    with contextlib.suppress(Boom):
        yield
    raise Other


@pytest.mark.parametrize("inner", [raises_another, raises_another_on_the_loop, swallows_then_raises_another])
async def test_an_error_in_a_teardown_takes_over_and_leads_back_to_the_tasks(log: Log, inner: Call) -> None:
    with pytest.raises(Other) as caught:
        await attempt(log.around(inner), raise_boom)
    assert isinstance(caught.value.__context__, Boom)
    assert log.errors == [caught.value, caught.value]


async def test_two_errors_in_teardowns_are_chained() -> None:
    async def outer() -> AsyncIterator[None]:
        with contextlib.suppress(Other):
            yield
        raise LookupError

    async def send(*, outer: None = Depends(outer), inner: None = Depends(raises_another)) -> None: ...

    with pytest.raises(LookupError) as caught:
        await attempt(send, raise_boom)
    assert isinstance(caught.value.__context__, Other)
    assert isinstance(caught.value.__context__.__context__, Boom)


@pytest.mark.parametrize("inner", [raises_another, raises_another_on_the_loop])
async def test_a_failing_teardown_fails_an_attempt_that_had_succeeded(log: Log, inner: Call) -> None:
    with pytest.raises(Other):
        await attempt(log.around(inner))
    assert log.lines[2:] == ["middle sees Other", "outer sees Other"]


def never_yields() -> Iterator[None]:
    yield from ()


def yields_twice() -> Iterator[None]:
    yield
    yield


@pytest.mark.parametrize("inner", [never_yields, yields_twice])
async def test_a_generator_that_does_not_yield_once_fails_the_attempt(log: Log, inner: Call) -> None:
    with pytest.raises(RuntimeError, match="generator didn't"):
        await attempt(log.around(inner))
    assert log.lines[2:] == ["middle sees RuntimeError", "outer sees RuntimeError"]


# -- errors while setting up --------------------------------------------------------------------------------------


def fails() -> None:
    raise Boom


async def fails_on_the_loop() -> None:
    raise Boom


def generator_fails() -> Iterator[None]:
    fails()
    yield


async def generator_fails_on_the_loop() -> AsyncIterator[None]:
    fails()
    yield


class Fails:
    def __init__(self) -> None:
        raise Boom


@pytest.mark.parametrize("inner", [fails, fails_on_the_loop, generator_fails, generator_fails_on_the_loop, Fails])
async def test_an_error_while_setting_up_tears_down_what_came_before(log: Log, inner: Call) -> None:
    async def body() -> None:
        raise AssertionError("the task must not run")

    with pytest.raises(Boom) as caught:
        await attempt(log.around(inner), body)
    assert log.lines == ["outer", "middle", "middle sees Boom", "outer sees Boom"]
    assert log.errors == [caught.value, caught.value]


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, StopIteration, GeneratorExit])
async def test_what_a_plain_function_raises_ends_the_attempt_and_not_the_loop(kind: type[BaseException]) -> None:
    def exits() -> None:
        raise kind

    async def send(*, value: None = Depends(exits)) -> None: ...

    # No coroutine can raise a StopIteration: Python makes a RuntimeError of it.
    with pytest.raises(RuntimeError if kind is StopIteration else kind):
        await attempt(send)
    await anyio.lowlevel.checkpoint()


# -- cancelled while setting up -----------------------------------------------------------------------------------


async def test_cancelled_while_a_coroutine_is_setting_up_what_came_before_is_torn_down(log: Log) -> None:
    job = asyncio.create_task(attempt(log.around(wait_for_ever)))
    await eventually(lambda: len(log.lines) == 2)
    job.cancel()
    with pytest.raises(asyncio.CancelledError):
        await job
    assert log.lines[2:] == ["middle sees CancelledError", "outer sees CancelledError"]


async def test_cancelled_while_a_generator_is_setting_up_in_its_thread_it_is_torn_down_too(log: Log) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slow() -> Iterator[None]:
        begun.set()
        assert go_on.wait(10)
        with log.noted("slow"):
            yield

    job = asyncio.create_task(attempt(log.around(slow)))
    await eventually(begun.is_set)
    for _ in range(2):  # impatience changes nothing: a thread cannot be interrupted
        job.cancel()
        await asyncio.wait([job], timeout=0.01)
    assert log.lines == ["outer", "middle"], "nothing may be torn down under a thread that is still at work"
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await job
    ends = ["slow sees CancelledError", "middle sees CancelledError", "outer sees CancelledError"]
    assert log.lines[2:] == ["slow", *ends]


async def test_cancelled_while_a_plain_function_runs_its_error_is_not_lost() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slow() -> None:
        begun.set()
        assert go_on.wait(10)
        raise Boom

    async def send(*, value: None = Depends(slow)) -> None: ...

    job = asyncio.create_task(attempt(send))
    await eventually(begun.is_set)
    job.cancel()
    go_on.set()
    with pytest.raises(asyncio.CancelledError) as caught:
        await job
    assert isinstance(caught.value.__context__, Boom)


async def test_a_cancel_scope_of_anyio_waits_for_a_thread_without_turning_the_loop_all_the_time() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slow() -> None:
        begun.set()
        assert go_on.wait(10)

    async def send(*, value: None = Depends(slow)) -> None: ...

    async def attempt_within(scope: anyio.CancelScope) -> None:
        with scope:
            await attempt(send, wait_for_ever)

    scope = anyio.CancelScope()
    job = asyncio.create_task(attempt_within(scope))
    await eventually(begun.is_set)
    scope.cancel()
    before = time.thread_time()
    await asyncio.wait([job], timeout=0.2)
    spent = time.thread_time() - before
    go_on.set()
    await job
    assert scope.cancelled_caught
    assert spent < 0.02


async def test_cancelled_during_a_teardown_in_a_thread_the_others_wait_for_it(log: Log) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slow() -> Iterator[None]:
        with log.noted("slow"):
            yield
            begun.set()
            assert go_on.wait(10)

    job = asyncio.create_task(attempt(log.around(slow)))
    await eventually(begun.is_set)
    job.cancel()
    await asyncio.wait([job], timeout=0.01)
    assert log.lines == ["outer", "middle", "slow"]
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await job
    assert log.lines[3:] == ["slow ends", "middle sees CancelledError", "outer sees CancelledError"]


async def test_a_teardown_may_await_though_a_cancel_scope_of_anyio_is_cancelled(log: Log) -> None:
    async def session() -> AsyncIterator[None]:
        try:
            yield
        finally:
            await anyio.lowlevel.checkpoint()
            log.lines.append("session closed")

    with anyio.CancelScope() as scope:

        async def body() -> None:
            scope.cancel()
            await wait_for_ever()

        await attempt(log.around(session), body)
    assert scope.cancelled_caught
    assert log.lines[2:] == ["session closed", "middle sees CancelledError", "outer sees CancelledError"]


async def test_a_dependency_may_hold_a_task_group_open() -> None:
    async def group() -> AsyncIterator[Any]:
        async with anyio.create_task_group() as group:
            yield group

    async def send(*, group: Annotated[Any, Depends(group)] = INJECTED) -> None:
        group.start_soon(anyio.lowlevel.checkpoint)

    async with injected(send).resolve({}) as values:
        await send(**values)


# -- a thread that hangs ------------------------------------------------------------------------------------------

HANGING = """
    import asyncio, threading
    from fastapi import Depends
    from durableq.dependencies import injection_of

    def hangs() -> None:
        print("hangs", flush=True)
        threading.Event().wait()

    async def send(*, value: None = Depends(hangs)) -> None: ...

    async def main() -> None:
        async with injection_of(send, "tasks:send").resolve({}):
            pass

    async def leave_behind() -> None:
        job = asyncio.create_task(main())
        await asyncio.wait([job], timeout=0.5)
        asyncio._unregister_task(job)

    asyncio.run(leave_behind())
    print("ends", flush=True)
"""


async def test_a_plain_function_that_hangs_does_not_hold_the_process() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        textwrap.dedent(HANGING),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        output, _ = await asyncio.wait_for(process.communicate(), 20)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert (output, process.returncode) == (b"hangs\nends\n", 0)
