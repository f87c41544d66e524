"""`draw` makes one picture of the results: a row for each queue, a column of bars for each question.

Every axis is linear and begins at zero, and the value stands at each bar. What is no queue is left out, as its bars
would make the others too small to compare: the tables of `report` have it.
"""

import importlib
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from benchmarks.peers.report import DASH, IN_MEMORY, OURS, REFERENCES, Results, System, median, number, ratio

WIDTH: Final = 9.0
"""Inches: 900 pixels of a page, drawn at twice as many."""
DOTS: Final = 200
ROW: Final = 0.2
"""Inches, as are the next."""
HEAD: Final = 0.56
FOOT: Final = 0.36
NAMES: Final = 1.88
MARGIN: Final = 0.12
STORES: Final = 1.06
SWATCH: Final = 0.22
GAP: Final = 0.22
BAR: Final = 0.58
"""Of a row."""
ROOM: Final = 0.46
"""Of the widest bar, for the value beside it."""
SHORT: Final = {"Redis, AOF fsync always": "Redis, fsync"}


@dataclass(frozen=True, slots=True)
class Panel:
    """One column."""

    row: str
    title: str
    subtitle: str


@dataclass(frozen=True, slots=True)
class Colours:
    """Of one picture."""

    page: str
    text: str
    faint: str
    track: str
    """What is left up to the whole of a share."""
    ours: str
    durable: str
    hatch: str


PANELS: Final = (
    Panel("serial", "One caller", "jobs added/s"),
    Panel("producers", "64 callers", "jobs added/s"),
    Panel("drain", "One worker", "jobs drained/s"),
    Panel("pick-up-p50", "Pick-up", "ms, p50; less is better"),
    Panel("route", "Route", "of BackgroundTasks"),
)
ORDER: Final = "producers"
"""The row by which queues are sorted, best first."""
LIGHT: Final = Colours("#ffffff", "#1f2328", "#6e7781", "#f0f2f4", "#0969da", "#8c959f", "#afb8c1")
DARK: Final = Colours("#0d1117", "#e6edf3", "#8b949e", "#1b2129", "#4493f8", "#7d8590", "#545d68")


def draw(results: Results, path: Path | str, dark: bool) -> None:
    """Write a PNG for a light page or a dark one. Raises `ImportError` where matplotlib is not installed."""
    matplotlib: Any = importlib.import_module("matplotlib")
    matplotlib_figure: Any = importlib.import_module("matplotlib.figure")
    colours = DARK if dark else LIGHT
    lines = _lines(results)
    rows = ROW * len(lines)
    height = HEAD + rows + FOOT
    width = (WIDTH - NAMES - GAP * len(PANELS)) / len(PANELS)
    with matplotlib.rc_context({"font.family": "DejaVu Sans", "hatch.linewidth": 0.8, "text.color": colours.text}):
        figure = matplotlib_figure.Figure(figsize=(WIDTH, height), dpi=DOTS, facecolor=colours.page)
        for place, panel in enumerate(PANELS):
            left = NAMES + place * (width + GAP)
            axes = figure.add_axes((left / WIDTH, FOOT / height, width / WIDTH, rows / height), facecolor="none")
            _panel(axes, panel, [(one, one and _value(results, one, panel)) for one in lines], colours)
        page = figure.add_axes((0, 0, 1, 1), facecolor="none", xlim=(0, WIDTH), ylim=(height, 0))
        page.axis("off")
        _names(page, lines, colours)
        _legend(page, lines, colours)
        page.text(
            MARGIN,
            height - 0.16,
            f"Medians of {results['rounds']} rounds. Each axis is linear and begins at zero. The queues are sorted by "
            "the second column, below durableq.",
            va="center_baseline",
            size=7,
            color=colours.faint,
        )
        figure.savefig(path, facecolor=colours.page)


def _lines(results: Results) -> list[System | None]:
    """Return the queues from top to bottom: what is durable, ours first, and what is not, each below an empty line."""
    queues = sorted(
        (one for one in results["systems"] if one["key"] not in REFERENCES),
        key=lambda one: (one["key"] != OURS, -(median(results, one["key"], ORDER) or 0.0)),
    )
    lines: list[System | None] = []
    for is_durable in (True, False):
        group = [one for one in queues if one["is_durable"] is is_durable]
        if group:
            lines.extend((None, None) if lines else (None,))
            lines.extend(group)
    return lines


def _value(results: Results, system: System, panel: Panel) -> float | None:
    if panel.row == "route":
        return ratio(results, system["key"], IN_MEMORY, "route")
    return median(results, system["key"], panel.row)


def _panel(axes: Any, panel: Panel, bars: list[tuple[System | None, float | None]], colours: Colours) -> None:
    is_share = panel.row == "route"
    widest = 1.0 if is_share else max((value for _, value in bars if value is not None), default=1.0)
    axes.set(xlim=(0, widest * (1 + ROOM)), ylim=(len(bars) - 0.5, -0.5), xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    for row, (system, value) in enumerate(bars):
        if system is None:
            continue
        if value is None:
            axes.annotate(DASH, (0, row), (3, 0), **_BESIDE, color=colours.faint)
            continue
        is_ours = system["key"] == OURS
        if is_share:
            axes.barh(row, 1.0, BAR, color=colours.track)
        axes.barh(row, value, BAR, **_look(system, colours))
        text = f"{value * 100:.0f} %" if is_share else number(value)
        axes.annotate(
            text,
            (max(value, 1.0) if is_share else value, row),
            (3, 0),
            **_BESIDE,
            color=colours.ours if is_ours else colours.text,
            weight="bold" if is_ours else "normal",
        )
    title = {"xycoords": "axes fraction", "textcoords": "offset points", "annotation_clip": False}
    axes.annotate(panel.title, (0, 1), (0, 19), **title, size=9, weight="bold")
    axes.annotate(panel.subtitle, (0, 1), (0, 7), **title, size=7, color=colours.faint)


_BESIDE: Final[dict[str, Any]] = {"textcoords": "offset points", "va": "center_baseline", "size": 7}


def _look(system: System, colours: Colours) -> dict[str, Any]:
    if system["key"] == OURS:
        return {"color": colours.ours}
    if system["is_durable"]:
        return {"color": colours.durable}
    return {"facecolor": "none", "edgecolor": colours.hatch, "hatch": "//////", "linewidth": 0.8}


def _names(page: Any, lines: list[System | None], colours: Colours) -> None:
    for row, system in enumerate(lines):
        if system is None:
            continue
        middle = HEAD + ROW * (row + 0.5)
        is_ours = system["key"] == OURS
        weight, colour = ("bold", colours.ours) if is_ours else ("normal", colours.text)
        page.text(MARGIN, middle, system["name"], va="center_baseline", size=8, weight=weight, color=colour)
        store = SHORT.get(system["store"], system["store"])
        page.text(STORES, middle, store, va="center_baseline", size=7, color=colours.faint)


def _legend(page: Any, lines: list[System | None], colours: Colours) -> None:
    """Say above each group what its bars mean."""
    for row, (above, first) in enumerate(itertools.pairwise(lines)):
        if above is not None or first is None:
            continue
        middle = HEAD + ROW * (row + 0.5)
        text = "on disk when acknowledged" if first["is_durable"] else "acknowledged before on disk"
        look = _look({**first, "key": ""}, colours)
        page.barh(middle, SWATCH, ROW * BAR, left=MARGIN, **look)
        page.text(MARGIN + SWATCH + 0.07, middle, text, va="center_baseline", size=7, color=colours.faint)
