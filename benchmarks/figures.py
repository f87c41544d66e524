"""What the benchmarks share: how much they do, the rows they fill, and the payload of every job."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

MESSAGE: Final = {"email": "ada@example.org", "body": "x" * 200}
"""Every job carries this and an int."""

Figures = dict[str, float]
"""What one round of a benchmark measured, by the key of its row."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much one round does. Rates of commits are taken over a time, so that a slow disk does not take for ever."""

    seconds: float = 0.8
    jobs: int = 20_000
    pick_ups: int = 400
    load_seconds: float = 2.0
    warm_up_seconds: float = 0.5
    rows: int = 1_000_000
    crowd: int = 100_000
    rest_seconds: float = 10.0
    flow_seconds: float = 4.0
    imports: int = 7


FULL: Final = Sizes()
QUICK: Final = Sizes(
    seconds=0.05,
    jobs=500,
    pick_ups=20,
    load_seconds=0.3,
    warm_up_seconds=0.1,
    rows=2_000,
    crowd=1_000,
    rest_seconds=0.2,
    flow_seconds=0.3,
    imports=1,
)
"""Says nothing about speed, only that everything works."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table; ``compared_to`` names the row of the same round that it is divided by."""

    key: str
    label: str
    unit: str
    compared_to: str | None = None


@dataclass(frozen=True, slots=True)
class Benchmark:
    """Something to measure in a fresh directory. Its name is what ``--only`` takes."""

    name: str
    rows: tuple[Row, ...]
    run: Callable[[Path, Sizes], Figures]
    is_long: bool = False
    """Left out unless it is asked for."""


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least ``share`` of the values do not exceed."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]
