"""Where a job's code runs: on the event loop, or in threads of our own."""

import asyncio
import contextlib
import contextvars
import inspect
import queue
import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Final, Protocol

OUT_OF_TIME: Final = "out of time"
"""The message of a cancellation that comes from a time limit."""


class Slots(Protocol):
    """Room for a number of jobs at once. ``occupied`` is counted by the executor."""

    occupied: int

    @property
    def free(self) -> int:
        """How many more it can take now."""
        ...

    def stop(self) -> None:
        """Take nothing more. What still runs is left alone and never holds the process."""
        ...


class LoopSlots:
    """Room for ``async def`` tasks on the event loop. They need nothing else: the executor awaits them."""

    def __init__(self, limit: int) -> None:
        self.occupied = 0
        self._limit = limit

    @property
    def free(self) -> int:
        return self._limit - self.occupied

    def stop(self) -> None:
        pass


class _Call:
    """One call on its way through a thread."""

    __slots__ = ("abandoned", "error", "finished", "function", "future", "loop", "replaced", "value")

    def __init__(self, function: Callable[[], Any], loop: asyncio.AbstractEventLoop) -> None:
        self.function = function
        self.loop = loop
        self.future: asyncio.Future[None] = loop.create_future()
        self.value: Any = None
        self.error: BaseException | None = None
        self.abandoned = False
        self.replaced = False
        self.finished = False


class ThreadRunner:
    """Runs ``def`` tasks in daemon threads of its own, so that they never take the 40 that serve ``def`` routes.

    A thread cannot be interrupted. When its job is given up the thread goes on and keeps its slot until it ends;
    being a daemon, it does not hold the process. When its job ran out of time the slot is replaced, for as many threads
    as there are slots; beyond that it is missing until one ends.
    """

    def __init__(self, limit: int, freed: Callable[[], None] = lambda: None) -> None:
        """``freed`` is called on the loop when the thread of a job that was given up has ended after all."""
        self.occupied = 0
        self._limit = limit
        self._freed = freed
        self._abandoned = 0
        self._replaced = 0
        self._idle = 0
        self._threads = 0
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._finished: deque[_Call] = deque()
        self._is_reporting = False

    @property
    def free(self) -> int:
        return self._limit - self.occupied - self._abandoned + min(self._replaced, self._limit)

    @property
    def left_behind(self) -> int:
        """How many threads go on though nobody waits for them."""
        return self._abandoned

    async def run(
        self, function: Callable[..., Any], args: list[Any], kwargs: dict[str, Any], *, to_the_end: bool = False
    ) -> Any:
        """Call a function in a thread. Cancelled, it leaves the thread alone, unless it shall wait ``to_the_end``."""
        context = contextvars.copy_context()
        call = _Call(partial(context.run, function, *args, **kwargs), asyncio.get_running_loop())
        self._hand_over(call)
        try:
            await call.future
        except asyncio.CancelledError as cancellation:
            if to_the_end:
                await _ended(call)
            elif not call.finished:
                call.abandoned = True
                call.replaced = cancellation.args == (OUT_OF_TIME,)
                self._abandoned += 1
                self._replaced += call.replaced
            raise
        if call.error is not None:
            raise call.error
        # A plain function that wraps an async one hands out its coroutine: run it where it belongs.
        return await call.value if inspect.isawaitable(call.value) else call.value

    def stop(self) -> None:
        for _ in range(self._threads):
            self._calls.put(None)
        self._threads = self._idle = 0

    def _hand_over(self, call: _Call) -> None:
        if self._idle:
            self._idle -= 1
        else:
            self._threads += 1
            threading.Thread(target=self._work, name=f"durableq-job-{self._threads}", daemon=True).start()
        self._calls.put(call)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            try:
                call.value = call.function()
            except BaseException as error:  # also SystemExit: it must not end the thread silently
                call.error = error
            self._finished.append(call)
            if not self._is_reporting:  # else the report that is on its way will bring this one too
                self._is_reporting = True
                try:
                    call.loop.call_soon_threadsafe(self._report)
                except RuntimeError:
                    return  # the loop is closed: nobody is interested any more
            del call

    def _report(self) -> None:
        """On the loop: take in all that has finished. Entering the loop costs more than most of what it brings."""
        self._is_reporting = False  # before looking: whoever finishes from now on reports anew
        while self._finished:
            self._done(self._finished.popleft())

    def _done(self, call: _Call) -> None:
        """The thread is free again, and the job has its answer."""
        call.finished = True
        self._idle += 1
        if call.abandoned:
            self._abandoned -= 1
            self._replaced -= call.replaced
            self._freed()
        elif not call.future.done():  # it is when the job was cancelled in this very turn of the loop
            # Not as the future's exception: asyncio treats some kinds, GeneratorExit for one, in ways of its own.
            call.future.set_result(None)


async def _ended(call: _Call) -> None:
    """Return when a call's thread has let go of it, however often the waiting is cancelled."""
    while not call.finished:
        call.future = call.loop.create_future()
        with contextlib.suppress(asyncio.CancelledError):
            await call.future
