"""``python -m benchmarks``: everything in one run, so that figures of one machine and one hour are compared.

Rounds are interleaved: each runs every benchmark once, in a fresh directory, and a ratio is taken within its round.
The table shows medians over the rounds, and the extremes. The files are in the temporary directory: name another
disk by TMPDIR, and beware of one in memory, where an fsync costs nothing.
"""

import argparse
import dataclasses
import gc
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from benchmarks import growth, http, manners, processes, storage, syncs, worker
from benchmarks.figures import FULL, QUICK, Benchmark, Figures, Row, Sizes
from benchmarks.machine import machine

BENCHMARKS: Final = tuple(
    one for module in (storage, worker, http, processes, manners, syncs, growth) for one in module.BENCHMARKS
)
ROUNDS: Final = 3


@dataclasses.dataclass(frozen=True, slots=True)
class Line:
    """One row of the table, over all rounds."""

    row: Row
    values: list[float]
    ratios: list[float]
    """To the row it is compared to, round by round; empty when that was not measured."""


def main() -> None:
    options = _options()
    chosen = [one for one in BENCHMARKS if _is_chosen(one, options)]
    sizes = QUICK if options.quick else FULL
    described = machine()
    print("\n".join(f"{name:<16} {value}" for name, value in described.items()))
    began = time.monotonic()
    rounds = [_round(f"round {number} of {options.rounds}", chosen, sizes) for number in range(1, options.rounds + 1)]
    lines = _lines(chosen, rounds)
    print(f"\n{sizes.jobs:,} jobs in each bulk add and drain, {http.CONNECTIONS} connections.", end=" ")
    print(f"Median of {options.rounds} interleaved rounds (lowest to highest), {time.monotonic() - began:.0f} s.\n")
    print(_table(lines, _earlier(options.against)))
    if options.json:
        options.json.write_text(json.dumps(_report(described, sizes, lines), indent=2) + "\n")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=_positive, default=ROUNDS, help=f"how often everything runs ({ROUNDS})")
    names = [one.name for one in BENCHMARKS]
    parser.add_argument("--only", action="append", choices=names, metavar="NAME", help=f"one of {', '.join(names)}")
    parser.add_argument("--all", action="store_true", help="the long ones too")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every value to a file as well")
    parser.add_argument("--against", type=Path, metavar="FILE", help="show the change since an earlier --json")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: see that it works, not how fast")
    return parser.parse_args()


def _is_chosen(benchmark: Benchmark, options: argparse.Namespace) -> bool:
    return benchmark.name in options.only if options.only else options.all or not benchmark.is_long


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("expected at least 1")
    return number


def _round(title: str, benchmarks: Sequence[Benchmark], sizes: Sizes) -> Figures:
    figures: Figures = {}
    for one in benchmarks:
        _show_progress(f"{title}: {one.name}")
        with tempfile.TemporaryDirectory(prefix="durableq-benchmark-") as directory:
            gc.collect()
            figures |= one.run(Path(directory), sizes)
    _show_progress("")
    return figures


def _show_progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r{text:<40}\r", end="", file=sys.stderr, flush=True)


# -- the table -----------------------------------------------------------------------------------------------


def _lines(benchmarks: Sequence[Benchmark], rounds: Sequence[Figures]) -> list[Line]:
    return [Line(row, [one[row.key] for one in rounds], _ratios(row, rounds)) for b in benchmarks for row in b.rows]


def _ratios(row: Row, rounds: Sequence[Figures]) -> list[float]:
    return [one[row.key] / one[row.compared_to] for one in rounds if row.compared_to in one]


def _table(lines: Sequence[Line], earlier: dict[str, float]) -> str:
    cells = [_cells(line, earlier.get(line.row.key)) for line in lines]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(_aligned(row, widths).rstrip() for row in cells)


def _cells(line: Line, before: float | None) -> tuple[str, ...]:
    median = statistics.median(line.values)
    spread = f"({_number(min(line.values))} to {_number(max(line.values))})"
    change = f"{median / before - 1:+.0%} since {_number(before)}" if before else ""
    return line.row.label, _number(median), line.row.unit, spread, _comparison(line), change


def _comparison(line: Line) -> str:
    if not line.ratios:
        return ""
    label = next(row.label for one in BENCHMARKS for row in one.rows if row.key == line.row.compared_to)
    low, high = min(line.ratios), max(line.ratios)
    return f"{statistics.median(line.ratios):.2f} of {label} ({low:.2f} to {high:.2f})"


def _aligned(cells: Sequence[str], widths: Sequence[int]) -> str:
    label, median, *others = cells
    rest = "  ".join(cell.ljust(width) for cell, width in zip(others, widths[2:], strict=True))
    return f"{label:<{widths[0]}}  {median:>{widths[1]}} {rest}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 or value == round(value) else f"{value:.3g}"


# -- the file ------------------------------------------------------------------------------------------------


def _report(described: dict[str, str], sizes: Sizes, lines: Sequence[Line]) -> dict[str, Any]:
    rows = {
        line.row.key: {
            "label": line.row.label,
            "unit": line.row.unit,
            "median": statistics.median(line.values),
            "values": line.values,
            "compared_to": line.row.compared_to,
            "ratios": line.ratios,
        }
        for line in lines
    }
    return {"machine": described, "sizes": dataclasses.asdict(sizes), "rows": rows}


def _earlier(file: Path | None) -> dict[str, float]:
    """Return the medians of an earlier run, by row."""
    if file is None:
        return {}
    return {key: float(row["median"]) for key, row in json.loads(file.read_text())["rows"].items()}


if __name__ == "__main__":
    main()
