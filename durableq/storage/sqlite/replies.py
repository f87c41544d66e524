"""How the writer thread answers: an asyncio future, a waiting thread, or nobody."""

import asyncio
import contextlib
import logging
import threading
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any, Protocol, TypeVar

T = TypeVar("T")

logger = logging.getLogger("durableq.storage")


class Reply(Protocol):
    """Where the answer to an operation goes."""

    def answer(self, result: Any, calls: "LoopCalls") -> None:
        """Hand over a result, or an exception. Called once, on the writer thread."""
        ...


class LoopCalls:
    """What a group has to say to event loops, collected so that each loop is entered once."""

    def __init__(self) -> None:
        self._calls: dict[asyncio.AbstractEventLoop, list[Callable[[], None]]] = {}

    def add(self, loop: asyncio.AbstractEventLoop, call: Callable[[], None]) -> None:
        self._calls.setdefault(loop, []).append(call)

    def flush(self) -> None:
        if not self._calls:
            return
        pending, self._calls = self._calls, {}
        for loop, calls in pending.items():
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits there any more
                loop.call_soon_threadsafe(_call_all, calls)


class FutureReply:
    """Answers an asyncio future on its own loop."""

    __slots__ = ("_loop", "_result", "future")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._result: Any = None
        self.future: asyncio.Future[Any] = loop.create_future()

    def answer(self, result: Any, calls: LoopCalls) -> None:
        self._result = result
        calls.add(self._loop, self._deliver)

    def _deliver(self) -> None:
        if self.future.done():  # the waiter was cancelled; what it asked for stands
            return
        if isinstance(self._result, BaseException):
            self.future.set_exception(self._result)
        else:
            self.future.set_result(self._result)


class Later(Awaitable[T]):
    """What a coroutine function gives, awaited or not: the coroutine is not made before."""

    __slots__ = ("_wait",)

    def __init__(self, wait: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self._wait = wait

    def __await__(self) -> Generator[Any, None, T]:
        return self._wait().__await__()


class NoReply:
    """Answers nobody."""

    __slots__ = ()

    def answer(self, result: Any, calls: LoopCalls) -> None:
        pass


class ThreadReply:
    """Answers a thread that waits."""

    __slots__ = ("_done", "_result")

    def __init__(self) -> None:
        self._done = threading.Event()
        self._result: Any = None

    def answer(self, result: Any, calls: LoopCalls) -> None:
        self._result = result
        self._done.set()

    def wait(self) -> Any:
        """Block until answered; return the result, or raise the exception."""
        self._done.wait()
        if isinstance(self._result, BaseException):
            raise self._result
        return self._result


def _call_all(calls: list[Callable[[], None]]) -> None:
    for call in calls:
        call()
