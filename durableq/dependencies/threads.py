"""Threads for plain ``def`` dependencies: daemons of our own, apart from the 40 that serve an application's routes.

Each event loop has its own limit. A thread that hangs never holds the process, as one of anyio's would. A call that
has begun is waited for to its end, also when the one who waits is cancelled: what it set up can then be torn down.
"""

import asyncio
import contextvars
import queue
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, Final, TypeVar

from anyio import CancelScope, CapacityLimiter
from anyio.lowlevel import RunVar

T = TypeVar("T")

THREADS: Final = 64
"""How many plain ``def`` dependencies are set up at once on one event loop; as many as it runs jobs by default."""
IDLE_SECONDS: Final = 10.0
"""How long a thread waits for more to do before it ends."""


class Threads:
    """The threads of one event loop, started as needed."""

    def __init__(self) -> None:
        self._limiter = CapacityLimiter(THREADS)
        self._calls: queue.SimpleQueue[_Call] = queue.SimpleQueue()
        self._idle = threading.Semaphore(0)

    async def run(self, function: Callable[[], T]) -> T:
        """Call a function as soon as fewer than ``THREADS`` are running. See `run_at_once`."""
        async with self._limiter:
            return await self.run_at_once(function)

    async def run_at_once(self, function: Callable[[], T]) -> T:
        """Call a function in a thread, with the context variables of here. Cancelled, it waits for the end first."""
        call = _Call(partial(contextvars.copy_context().run, function))
        if not self._idle.acquire(blocking=False):
            threading.Thread(target=_work, args=(self._calls, self._idle), name="durableq-depends", daemon=True).start()
        self._calls.put(call)
        cancellation: asyncio.CancelledError | None = None
        with CancelScope(shield=True):
            while not call.ended.done():
                try:
                    await asyncio.shield(call.ended)
                except asyncio.CancelledError as error:
                    cancellation = error
        try:
            if call.error is not None:
                raise call.error
            value: T = call.value
            return value
        finally:
            del call  # the error's traceback leads to this frame: a cycle would keep all that those frames hold
            if cancellation is not None:
                raise cancellation


class _Call:
    __slots__ = ("_function", "_loop", "ended", "error", "value")

    def __init__(self, function: Callable[[], Any]) -> None:
        self._function = function
        self._loop = asyncio.get_running_loop()
        self.ended: asyncio.Future[None] = self._loop.create_future()
        self.error: BaseException | None = None
        self.value: Any = None

    def run(self) -> None:
        try:
            self.value = self._function()
        except BaseException as error:  # also SystemExit: it is the attempt's error, not the thread's end
            self.error = error

    def report(self) -> None:
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self.ended.set_result, None)


def _work(calls: "queue.SimpleQueue[_Call]", idle: threading.Semaphore) -> None:
    while True:
        try:
            call = calls.get(timeout=IDLE_SECONDS)
        except queue.Empty:
            if idle.acquire(blocking=False):
                return
            continue  # somebody counts on this thread: a call is on its way
        call.run()
        idle.release()  # before the report: whoever hears of it may have the next call at once
        call.report()
        del call


_threads_here: Final[RunVar[Threads]] = RunVar("durableq_dependency_threads")


def threads() -> Threads:
    """Return the threads of the running event loop."""
    found = _threads_here.get(None)
    if found is None:
        found = Threads()
        _threads_here.set(found)
    return found
