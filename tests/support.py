"""Helpers shared by tests."""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable


async def eventually(check: Callable[[], bool | Awaitable[bool]], within: float = 10.0) -> None:
    """Return once ``check`` is true; fail after ``within`` seconds. For what another thread or process does."""
    deadline = time.monotonic() + within
    while True:
        result = check()
        if result if isinstance(result, bool) else await result:
            return
        assert time.monotonic() < deadline, f"still not true after {within} s: {check}"
        await asyncio.sleep(0.01)


def eventually_sync(check: Callable[[], bool], within: float = 10.0) -> None:
    """The same outside of an event loop."""
    deadline = time.monotonic() + within
    while not check():
        assert time.monotonic() < deadline, f"still not true after {within} s: {check}"
        time.sleep(0.01)


def named(value: object) -> str:
    """Names a parameter of a test the same in every process: its address is none of its name."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))
