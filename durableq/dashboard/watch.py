"""Whether anything has changed since a page was made, found out for all pages at once.

However many pages are open, a process looks once a second at most, and never while none is open.
"""

import asyncio
import hashlib
import logging
import weakref
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Final

from durableq.errors import DurableQError
from durableq.models import JobFilter, JobState
from durableq.queue import DurableQ

logger = logging.getLogger("durableq.dashboard")

LOOK_SECONDS: Final = 1.0
_COUNTED: Final = 10_000
_RUNNING_LOOKED_AT: Final = 50


class Watch:
    """One look for all who ask within ``seconds``. Its lock and its look belong to an event loop, as the queue does."""

    def __init__(self, look: Callable[[], Awaitable[str]], seconds: float = LOOK_SECONDS) -> None:
        self._look = look
        self.seconds = seconds
        self._seen: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Seen] = weakref.WeakKeyDictionary()

    @property
    def latest(self) -> str:
        """The fingerprint that was seen last, however long ago; empty before the first look. Does not look."""
        seen = self._seen.get(asyncio.get_running_loop())
        return (seen and seen.fingerprint) or ""

    async def now(self) -> str:
        """Return the fingerprint of what there is, at most a second old. Raises `LookFailed`."""
        loop = asyncio.get_running_loop()
        seen = self._seen.setdefault(loop, _Seen())
        async with seen.lock:
            if seen.at is None or loop.time() - seen.at >= self.seconds:
                await self._look_into(seen)
                seen.at = loop.time()
            if seen.fingerprint is None:
                raise LookFailed
            return seen.fingerprint

    async def _look_into(self, seen: "_Seen") -> None:
        """Look once. Whatever goes wrong is told to the log once, not every second until it is mended."""
        try:
            seen.fingerprint = await self._look()
            seen.has_failed = False
        except Exception as error:
            seen.fingerprint = None
            if not seen.has_failed:
                logger.error("live updates stand still, looking failed: %s: %s", type(error).__name__, error)
            seen.has_failed = True


class LookFailed(Exception):
    """What there is could not be found out just now; the log says why."""


class _Seen:
    def __init__(self) -> None:
        self.lock = asyncio.Lock()
        self.fingerprint: str | None = None
        self.at: float | None = None
        self.has_failed = False


async def fingerprint(dq: DurableQ) -> str:
    """Return a text that is another one whenever a page would look different. Bounded reads, and few."""
    try:
        facts: tuple[object, ...] = (
            await dq.counts(at_most=_COUNTED),
            [(one.id, one.is_alive) for one in await dq.workers()],
            (await dq.history(timedelta(minutes=15))).total,
            [(job.id, job.state) for job in (await dq.list(limit=1, look_at=1)).jobs],
            await _progress(dq),
            [(entry.at, entry.action) for entry in (await dq.audit(limit=1)).entries],
        )
    except DurableQError as error:
        facts = (type(error).__name__,)
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:16]


async def _progress(dq: DurableQ) -> list[tuple[object, ...]]:
    running = await dq.list(JobFilter(state=JobState.RUNNING), limit=_RUNNING_LOOKED_AT, look_at=_RUNNING_LOOKED_AT)
    return [(job.id, job.attempt, job.progress, job.cancel_requested) for job in running.jobs]
