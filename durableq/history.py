"""What a queue did lately, from the tallies that settling jobs keeps: throughput, and how long jobs waited and ran.

A tally counts the tries of one minute, queue and task that ended in one way, or waited, by how long that took. Times
are known by the bucket they fell in, so that a quantile is exact to its bucket (1, 2, 5, 10, 20, 50... ms) and
interpolated within it.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, Literal, NamedTuple

from durableq.errors import ConfigurationError

Measure = Literal["succeeded", "retried", "dead", "cancelled", "waited"]
"""How a try ended, counted by how long it ran; or ``waited``: a try by how long it had been due before it started."""

SummedBy = Literal["step", "queue", "task"]
"""What tallies are told apart by."""

BUCKETS: Final[tuple[float, ...]] = tuple(
    mantissa * 10.0**exponent for exponent in range(-3, 4) for mantissa in (1, 2, 5)
)
"""Upper ends in seconds, from 1 ms to 5,000 s; what took longer is in one further bucket."""
ENDINGS: Final[tuple[Measure, ...]] = ("succeeded", "retried", "dead", "cancelled")


class Tally(NamedTuple):
    """So many tries of one kind."""

    at: int
    """Begin of the span, in seconds since the epoch."""
    queue: str
    task: str
    measure: Measure
    bucket: int
    """The number of the first of `BUCKETS` that is not smaller; their count for what is beyond all."""
    number: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Tries that ended in some span of time. Durations in seconds; None when there was no try."""

    succeeded: int = 0
    retried: int = 0
    dead: int = 0
    cancelled: int = 0
    wait_p50: float | None = None
    wait_p95: float | None = None
    run_p50: float | None = None
    run_p95: float | None = None

    @property
    def ended(self) -> int:
        """All tries."""
        return self.succeeded + self.retried + self.dead + self.cancelled

    @property
    def success_share(self) -> float | None:
        """Of the tries that succeeded or failed, the share that succeeded; None when there was none."""
        judged = self.succeeded + self.retried + self.dead
        return self.succeeded / judged if judged else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One step of a history."""

    at: datetime
    """Its begin."""
    figures: Figures


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskFigures:
    """The figures of one task in the whole window."""

    task: str
    figures: Figures


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueFigures:
    """The figures of one queue in the whole window."""

    queue: str
    figures: Figures


@dataclass(frozen=True, slots=True, kw_only=True)
class History:
    """What happened in a window of time, in steps of equal length, the earliest first. Steps in which nothing
    happened are there too."""

    step: timedelta
    points: Sequence[Point]
    total: Figures
    tasks: Sequence[TaskFigures]
    """Tasks of which a try ended, those with the most dead and retried ones first."""
    queues: Sequence[QueueFigures]


LONGEST: Final = timedelta(days=7)
_STEPS: Final = ((timedelta(hours=3), 1), (timedelta(hours=6), 5), (timedelta(hours=24), 15), (LONGEST, 60))
"""Windows, and the minutes of their steps: never finer than what is kept of that age."""


def step_of(window: timedelta) -> timedelta:
    """Return the step in which a window is shown. Raises `ConfigurationError` for none, and more than 7 days."""
    if not timedelta() < window <= LONGEST:
        raise ConfigurationError(f"expected a window of more than nothing and at most 7 days, got {window}")
    return next(timedelta(minutes=minutes) for longest, minutes in _STEPS if window <= longest)


def steps_of(until: datetime, window: timedelta) -> range:
    """Return when the steps of a window begin, in seconds since the epoch. ``until`` lies in the last."""
    step = step_of(window)
    seconds = int(step.total_seconds())
    last = int(until.timestamp()) // seconds * seconds
    return range(last - seconds * (math.ceil(window / step) - 1), last + 1, seconds)


def history_of(
    tallies: Sequence[Tally],
    until: datetime,
    window: timedelta,
    *,
    by_name: Iterable[Tally] | None = None,
) -> History:
    """Sum up tallies. The window ends with the step that ``until`` lies in.

    ``by_name`` are the same ones by queue and task, summed up over the steps; by default ``tallies`` tell all.
    """
    starts = steps_of(until, window)
    total, by_start = _Sum(), defaultdict[int, _Sum](_Sum)
    of_tasks, of_queues = defaultdict[str, _Sum](_Sum), defaultdict[str, _Sum](_Sum)
    for tally in _within(tallies, starts):
        total.add(tally)
        by_start[tally.at // starts.step * starts.step].add(tally)
    for tally in _within(tallies if by_name is None else by_name, starts):
        of_tasks[tally.task].add(tally)
        of_queues[tally.queue].add(tally)
    return History(
        step=step_of(window),
        points=[
            Point(
                at=datetime.fromtimestamp(start, UTC),
                figures=by_start[start].figures() if start in by_start else _NOTHING,
            )
            for start in starts
        ],
        total=total.figures(),
        tasks=sorted(
            (TaskFigures(task=task, figures=one.figures()) for task, one in of_tasks.items()),
            key=lambda one: (-one.figures.dead, -one.figures.retried, -one.figures.ended, one.task),
        ),
        queues=sorted(
            (QueueFigures(queue=queue, figures=one.figures()) for queue, one in of_queues.items()),
            key=lambda one: one.queue,
        ),
    )


def _within(tallies: Iterable[Tally], starts: range) -> Iterator[Tally]:
    """Those of the steps: a clock that was ahead may have counted beyond them."""
    return (tally for tally in tallies if starts[0] <= tally.at < starts[-1] + starts.step)


def quantile(buckets: Mapping[int, int], share: float) -> float | None:
    """Return, in seconds, what ``share`` of the counted did not exceed: interpolated within its bucket.

    None when nothing was counted. Beyond the last bucket the answer is its lower end: "at least".
    """
    wanted = share * sum(buckets.values())
    if not wanted:
        return None
    below = 0
    for bucket in sorted(buckets):
        if below + buckets[bucket] >= wanted:
            low = BUCKETS[min(bucket, len(BUCKETS)) - 1] if bucket > 0 else 0.0
            high = BUCKETS[bucket] if 0 <= bucket < len(BUCKETS) else low
            return low + (high - low) * (wanted - below) / buckets[bucket]
        below += buckets[bucket]
    return None


_NOTHING: Final = Figures()


class _Sum:
    """Plain dicts: there is one for each step, queue and task, and counting in a `Counter` takes twice as long."""

    __slots__ = ("_ended", "_ran", "_waited")

    def __init__(self) -> None:
        self._ended: dict[Measure, int] = {}
        self._ran: dict[int, int] = {}
        self._waited: dict[int, int] = {}

    def add(self, tally: Tally) -> None:
        _, _, _, measure, bucket, number = tally
        spent = self._waited
        if measure != "waited":
            spent = self._ran
            self._ended[measure] = self._ended.get(measure, 0) + number
        spent[bucket] = spent.get(bucket, 0) + number

    def figures(self) -> Figures:
        return Figures(
            **{ending: self._ended.get(ending, 0) for ending in ENDINGS},
            wait_p50=quantile(self._waited, 0.5),
            wait_p95=quantile(self._waited, 0.95),
            run_p50=quantile(self._ran, 0.5),
            run_p95=quantile(self._ran, 0.95),
        )
