"""What charts show, as plain numbers: for the drawing in the browser, for the table beside it, and for a sentence.

Pure. A page without JavaScript has the table and the sentence.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from durableq.dashboard.pages import duration
from durableq.history import Figures, History, Point

WINDOWS: Final = {
    "15m": timedelta(minutes=15),
    "1h": timedelta(hours=1),
    "6h": timedelta(hours=6),
    "24h": timedelta(hours=24),
    "7d": timedelta(days=7),
}
WINDOW_NAMES: Final = {
    "15m": "15 minutes",
    "1h": "hour",
    "6h": "6 hours",
    "24h": "24 hours",
    "7d": "7 days",
}
USUAL: Final = "1h"
_SHORTEST_SECONDS: Final = 10.0
"""So much of the running step is taken for passed at least: one try in its first second is no rate of 60."""
_SPARK: Final = (100, 24)


class Series(NamedTuple):
    """A line of a chart. ``style`` is a class of app.css, dashed lines are told apart without their colour."""

    label: str
    style: str
    is_dashed: bool
    value: Callable[[Figures], float | None]


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart of lines over time."""

    name: str
    title: str
    unit: str
    """``rate``: tries per minute; ``duration``: seconds, on a logarithmic scale."""
    sentence: str
    series: tuple[Series, ...]
    points: tuple[tuple[datetime, tuple[float | None, ...]], ...]

    @property
    def drawing(self) -> str:
        """What the browser draws from, as JSON."""
        return json.dumps(
            {
                "unit": self.unit,
                "series": [{"label": one.label, "style": one.style, "dashed": one.is_dashed} for one in self.series],
                "data": [
                    [int(at.timestamp()) for at, _ in self.points],
                    *([values[index] for _, values in self.points] for index in range(len(self.series))),
                ],
            },
            separators=(",", ":"),
        )


_THROUGHPUT: Final = (
    Series("succeeded", "series-1", False, lambda figures: figures.succeeded),
    Series("retried", "series-2", True, lambda figures: figures.retried),
    Series("dead", "series-3", False, lambda figures: figures.dead),
    Series("cancelled", "series-4", True, lambda figures: figures.cancelled),
)
_LATENCY: Final = (
    Series("wait, median", "series-5", False, lambda figures: figures.wait_p50),
    Series("wait, 95 %", "series-5", True, lambda figures: figures.wait_p95),
    Series("run, median", "series-6", False, lambda figures: figures.run_p50),
    Series("run, 95 %", "series-6", True, lambda figures: figures.run_p95),
)


def throughput(history: History, window: str, now: datetime) -> Chart:
    """Return how many tries ended in a minute, and how."""
    total = history.total
    told = (
        f"{total.ended:,} {'try' if total.ended == 1 else 'tries'} ended: {total.succeeded:,} succeeded, "
        f"{total.retried:,} failed and were to be tried again, {total.dead:,} failed for good, {total.cancelled:,} "
        "ended by a cancel"
    )
    sentence = f"In the last {WINDOW_NAMES[window]}, {told if total.ended else 'no try ended'}."
    points = tuple(
        (point.at, tuple(_per_minute(one.value(point.figures), point.at, history.step, now) for one in _THROUGHPUT))
        for point in history.points
    )
    return Chart("throughput", "Throughput", "rate", sentence, _THROUGHPUT, points)


def latency(history: History, window: str) -> Chart:
    """Return how long jobs that were due waited to start, and how long their tries ran."""
    total = history.total
    if total.wait_p50 is None and total.run_p50 is None:
        sentence = f"In the last {WINDOW_NAMES[window]}, no try started or ended."
    else:
        sentence = (
            f"In the last {WINDOW_NAMES[window]}, half of the jobs started within {duration(total.wait_p50)} and 95 % "
            f"within {duration(total.wait_p95)}; half ran for up to {duration(total.run_p50)}, 95 % for up to "
            f"{duration(total.run_p95)}."
        )
    points = tuple((point.at, tuple(one.value(point.figures) for one in _LATENCY)) for point in history.points)
    return Chart("latency", "Latency", "duration", sentence, _LATENCY, points)


def spark(points: Sequence[Point]) -> str:
    """Return the points of a small SVG line of how many tries ended, in a box of 100 by 24."""
    width, height = _SPARK
    ended = [point.figures.ended for point in points]
    highest = max(ended, default=0) or 1
    step = width / max(len(ended) - 1, 1)
    return " ".join(
        f"{index * step:.1f},{height - 1 - number / highest * (height - 2):.1f}" for index, number in enumerate(ended)
    )


def chosen_window(text: str | None) -> str:
    """Return the name of a window; the usual one for a name that is none."""
    return text if text in WINDOWS else USUAL


def _per_minute(count: float | None, begin: datetime, step: timedelta, now: datetime) -> float:
    passed = min(max((now - begin).total_seconds(), _SHORTEST_SECONDS), step.total_seconds())
    return round((count or 0) * 60 / passed, 2)
