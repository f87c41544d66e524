"""What happens to one job, as events: ``status``, ``progress``, ``log``, and at the end ``end``.

Nothing is missed: whoever comes back with the id of the last event gets the lines after it, and the status as it is
now. The end is told as soon as it is there; progress and lines are looked for once a second, by reads that are as
small as what is new.
"""

import asyncio
import logging
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from durableq.errors import DurableQError, JobNotFound, QueueNotRunning
from durableq.fastapi.admin_models import other_arguments
from durableq.fastapi.showing import Secrets, secrets_of
from durableq.fastapi.streaming import TICK_SECONDS, Event, Events
from durableq.models import AuditEntry, Job, JobState, LogLine
from durableq.queue import DurableQ
from durableq.redaction import Redactor

logger = logging.getLogger("durableq.fastapi")

Shown = dict[str, Any]
Show = Callable[[Job[Any], Redactor], Shown]
"""Returns a job's status as JSON, with its progress under ``progress``."""

LOOK_SECONDS: Final = 1.0
"""How often a job is looked at."""
LINES: Final = 1_000
"""So many earlier lines are sent at most, the latest."""
_EVENT_ID: Final = re.compile(r"([0-9]{1,9})(\.end)?")


@dataclass(frozen=True, slots=True)
class Seen:
    """What a client that comes back has seen: how many lines of the log, and whether the end."""

    lines: int = 0
    end: bool = False

    @classmethod
    def of(cls, last_event_id: str | None) -> "Seen":
        """Read the id of an event. One that is none of ours means: nothing."""
        found = _EVENT_ID.fullmatch(last_event_id or "")
        return cls() if found is None else cls(int(found[1]), found[2] is not None)

    def __str__(self) -> str:
        return f"{self.lines}{'.end' if self.end else ''}"


async def follow(dq: DurableQ, job: Job[Any], seen: Seen, show: Show, *, lines: bool) -> Events:
    """Tell what happens to a job until it is finished, or gone. ``lines``: also what it logs."""
    secrets = await secrets_of(dq, [job.task])
    following = _Following(show, secrets, seen.lines)
    looking = _looks(dq, job)
    try:
        async for look in looking:
            if look is None:
                yield None
                continue
            if following.is_other(look):
                following.learn(look, await dq.audit_trail(look))
            may_have_said = following.take(look)
            if lines and may_have_said:
                for event in following.said(await dq.logs(look, skip=following.lines)):
                    yield event
            for event in following.news(look):
                yield event
    except JobNotFound:  # deleted
        pass
    except QueueNotRunning:  # it stops; whoever comes back is told so
        return
    except DurableQError as error:
        logger.warning("following job %s came to an end: %s: %s", job.id, type(error).__name__, error)
        return
    finally:
        await looking.aclose()
    yield Event("end", {}, str(Seen(following.lines, end=True)))


class _Following:
    """What was told of a job, and what is news."""

    def __init__(self, show: Show, secrets: Secrets, lines: int) -> None:
        self.lines = lines
        self._show = show
        self._secrets = secrets
        self._told: Shown = {}
        self._job: Job[Any] | None = None

    def is_other(self, job: Job[Any]) -> bool:
        """Whether the job has other arguments than at the look before, or this is the first."""
        return self._job is None or self._job.args_json != job.args_json

    def learn(self, job: Job[Any], audit: Sequence[AuditEntry]) -> None:
        """Know its secrets, also those of the arguments it had before: of these its earlier lines may tell."""
        self._redactor = self._secrets.redactor(job, *other_arguments(audit))

    def take(self, job: Job[Any]) -> bool:
        """Take in what a look found; return whether the job may have logged something since the one before."""
        before, self._job = self._job, job
        return job.state is JobState.RUNNING or job != before

    def said(self, lines: list[LogLine]) -> Iterator[Event]:
        """The lines after those that were told."""
        self.lines += max(len(lines) - LINES, 0)
        for line in lines[-LINES:]:
            self.lines += 1
            yield self._event("log", {"at": line.at.isoformat(), "message": self._redactor.said(line.message)})

    def news(self, job: Job[Any]) -> Iterator[Event]:
        """The status when it has changed; when nothing else has, the progress."""
        status = self._show(job, self._redactor)
        changed = {name for name, value in status.items() if name not in self._told or self._told[name] != value}
        self._told = status
        if changed == {"progress"}:
            yield self._event("progress", status["progress"])
        elif changed:
            yield self._event("status", status)

    def _event(self, name: str, data: Any) -> Event:
        return Event(name, data, str(Seen(self.lines)))


async def _looks(dq: DurableQ, job: Job[Any]) -> AsyncGenerator[Job[Any] | None]:
    """Look at a job again and again until it is finished; None while there is nothing to look at."""
    finished = asyncio.ensure_future(dq.wait(job.id))
    try:
        while True:
            yield job
            if job.is_finished:
                return
            async for _ in _ticks(finished):
                yield None
            if finished.done():
                finished.exception()  # what it may be, looking raises too
                finished = asyncio.ensure_future(dq.wait(job.id))
            job = await dq.get(job.id)
    finally:
        finished.cancel()
        await asyncio.gather(finished, return_exceptions=True)


async def _ticks(finished: asyncio.Future[Job[Any]]) -> AsyncIterator[None]:
    """Wait for the next look: until the job is finished, or for a moment."""
    loop = asyncio.get_running_loop()
    until = loop.time() + LOOK_SECONDS
    while (left := until - loop.time()) > 0:
        yield
        if (await asyncio.wait([finished], timeout=min(left, TICK_SECONDS)))[0]:
            return
