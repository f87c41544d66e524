"""The life of a job as spans of time: waits, tries, back-offs, and what is still to come. Pure.

Only tries that failed are stored one by one, so a job that succeeded, or runs, has one more: the latest. Durations
are never negative, whatever the clocks of several hosts said. A span is drawn no narrower than can be seen; the
rest of the width is to scale.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import accumulate
from typing import Final, Literal

from durableq.fastapi.admin_models import AttemptRecord, JobDetail
from durableq.models import FINISHED, Attempt, JobState

Kind = Literal["waited", "ran", "backed_off", "rested", "earlier"]
"""``rested``: it was dead or cancelled until somebody queued it again. ``earlier``: tries that are not drawn."""
Ending = Literal["failed", "succeeded", "cancelled", "running", "ahead", ""]

TRIES_DRAWN: Final = 20
_NARROWEST: Final = 1.5
"""Per cent of the width."""
_BACK_IN_THE_QUEUE: Final = ("retry", "edit and retry")
"""Names in the audit trail of what queues a job again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A stretch of a job's life."""

    kind: Kind
    begin: datetime
    end: datetime
    ending: Ending = ""
    attempt: int = 0
    """The number of the try, for one that ran."""
    error_type: str = ""
    record: int | None = None
    """Which of the shown attempts it is, counted from 0; None for one without an error."""
    tries: int = 0
    """How many it stands for, when they are `earlier`."""
    x: float = 0.0
    """Where it is drawn, and how wide: per cent of the whole."""
    width: float = 0.0

    @property
    def duration(self) -> timedelta:
        return max(self.end - self.begin, timedelta())


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeline:
    """A job's life, from when it was added until its end, or until now."""

    begin: datetime
    end: datetime
    spans: tuple[Span, ...]
    now: datetime

    @property
    def lived(self) -> timedelta:
        """How long it is in the queue, or was, without what is still to come."""
        return max(min(self.end, self.now) - self.begin, timedelta())

    @property
    def duration(self) -> timedelta:
        return max(self.end - self.begin, timedelta())


def timeline(job: JobDetail, now: datetime, left_out: Sequence[Attempt] = ()) -> Timeline:
    """Return a job's life as it is known at ``now``. ``left_out``: failed tries before those that the job shows."""
    spans = _tries(job, now, left_out)
    spans = _with_waits(job, spans)
    spans = [*spans, *_ahead(job, spans, now)]
    end = spans[-1].end if spans else job.created_at
    return Timeline(begin=job.created_at, end=end, spans=tuple(_laid_out(spans)), now=now)


def _tries(job: JobDetail, now: datetime, left_out: Sequence[Attempt]) -> list[Span]:
    """What ran. The latest try is one that failed and is among the records, or the one the job itself tells of."""
    first = max(0, len(job.attempts) - TRIES_DRAWN)
    drawn = [_failed(record, first + at) for at, record in enumerate(job.attempts[first:])]
    if earlier := first + len(left_out):
        until = job.attempts[first - 1].finished_at if first else left_out[-1].finished_at
        drawn.insert(0, Span(kind="earlier", begin=job.created_at, end=until, tries=earlier))
    latest = _latest(job, now)
    return drawn if latest is None else [*drawn, latest]


def _failed(record: AttemptRecord, number: int) -> Span:
    return Span(
        kind="ran",
        begin=record.started_at,
        end=record.finished_at,
        ending="failed",
        attempt=record.attempt,
        error_type=record.error_type,
        record=number,
    )


def _latest(job: JobDetail, now: datetime) -> Span | None:
    if job.started_at is None or any(record.started_at >= job.started_at for record in job.attempts):
        return None
    if job.state == JobState.RUNNING:
        return Span(kind="ran", begin=job.started_at, end=now, ending="running", attempt=job.attempt)
    if job.state not in FINISHED or job.finished_at is None:
        return None  # handed back at a shutdown, or snoozed: it was no try
    ending: Ending = "succeeded" if job.state == JobState.SUCCEEDED else "cancelled"
    if job.state == JobState.DEAD:
        ending = "failed"
    return Span(kind="ran", begin=job.started_at, end=job.finished_at, ending=ending, attempt=job.attempt)


def _with_waits(job: JobDetail, tries: Sequence[Span]) -> list[Span]:
    """Fill what lies between the tries."""
    spans: list[Span] = []
    at = job.created_at
    for one in tries:
        spans += _between(job, at, one.begin, is_first=not spans)
        spans.append(one)
        at = max(at, one.end)
    return spans


def _between(job: JobDetail, begin: datetime, end: datetime, *, is_first: bool) -> list[Span]:
    if begin >= end:
        return []
    if is_first:
        return [Span(kind="waited", begin=begin, end=end)]
    queued_at = _queued_again(job, begin, end)
    if queued_at is None:
        return [Span(kind="backed_off", begin=begin, end=end)]
    return [Span(kind="rested", begin=begin, end=queued_at), Span(kind="waited", begin=queued_at, end=end)]


def _queued_again(job: JobDetail, begin: datetime, end: datetime) -> datetime | None:
    """When somebody retried it by hand in between, the latest time."""
    found = [entry.at for entry in job.audit if entry.action in _BACK_IN_THE_QUEUE and begin <= entry.at <= end]
    return found[-1] if found else None


def _ahead(job: JobDetail, spans: Sequence[Span], now: datetime) -> list[Span]:
    """What an unfinished job waits for, or what a job waited for that ended without running once more."""
    begin = max((span.end for span in spans), default=job.created_at)
    if job.state == JobState.RUNNING:
        return []
    if job.finished_at is not None:
        return _between(job, begin, job.finished_at, is_first=not spans)
    waits = _between(job, begin, now, is_first=not spans)
    if job.run_at > now:
        kind: Kind = "backed_off" if spans and _queued_again(job, begin, now) is None else "waited"
        waits.append(Span(kind=kind, begin=max(begin, now), end=job.run_at, ending="ahead"))
    return waits


def _laid_out(spans: Sequence[Span]) -> list[Span]:
    """Give each span its place: as wide as it is long, but none so narrow that nobody sees it."""
    if not spans:
        return []
    narrowest = min(_NARROWEST, 100 / len(spans))
    seconds = [span.duration.total_seconds() for span in spans]
    widths = _shared_out(seconds, 100.0, narrowest)
    begins = accumulate([0.0, *widths[:-1]])
    return [
        replace(span, x=round(x, 3), width=round(width, 3))
        for span, x, width in zip(spans, begins, widths, strict=True)
    ]


def _shared_out(seconds: Sequence[float], width: float, narrowest: float) -> list[float]:
    """Share a width out in proportion, the too narrow ones first set to the narrowest."""
    narrow = {at for at, one in enumerate(seconds) if one <= 0}
    while True:
        room = width - narrowest * len(narrow)
        total = sum(one for at, one in enumerate(seconds) if at not in narrow)
        more = {at for at, one in enumerate(seconds) if at not in narrow and one / total * room < narrowest - 1e-9}
        if not more:
            break
        narrow |= more
    if not total:
        return [width / len(seconds)] * len(seconds)
    return [narrowest if at in narrow else one / total * room for at, one in enumerate(seconds)]
