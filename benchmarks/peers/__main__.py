"""``python -m benchmarks.peers``: durableq beside the others, in one run, written to ``docs/benchmarks.md``.

Rounds are interleaved, as in ``python -m benchmarks``: each measures every system once. A system that fails, or whose
server is not installed, is left out and said so.
"""

import argparse
import contextlib
import importlib.metadata
import json
import sqlite3
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from benchmarks import http, storage, worker
from benchmarks.figures import FULL, QUICK, Figures, Sizes
from benchmarks.machine import machine
from benchmarks.peers import chart, report
from benchmarks.peers.environments import PROJECT, python_of
from benchmarks.peers.measure import PeerFailed, measured
from benchmarks.peers.servers import Missing, NewAddress, addresses
from benchmarks.peers.systems import DURABLEQ, SYSTEMS, Store, System

ROUNDS: Final = 5
DOCS: Final = PROJECT / "docs"

RAW: Final[report.System] = {
    "key": "raw",
    "name": "raw sqlite3",
    "store": Store.SQLITE.value,
    "durability": "WAL, synchronous=FULL",
    "is_durable": True,
    "version": sqlite3.sqlite_version,
}
BACKGROUND_TASKS: Final[report.System] = {
    "key": "backgroundtasks",
    "name": "Starlette BackgroundTasks",
    "store": Store.MEMORY.value,
    "durability": "none",
    "is_durable": False,
    "version": importlib.metadata.version("starlette"),
}


def main() -> None:
    options = _options()
    sizes = QUICK if options.quick else FULL
    chosen = [one for one in SYSTEMS if not options.only or one.key in options.only]
    figures: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    with contextlib.ExitStack() as stack:
        stores = _opened(stack, {one.store for one in (*chosen, DURABLEQ)})
        chosen = [one for one in chosen if one.store in stores]
        for number in range(1, options.rounds + 1):
            for key, found in _round(f"round {number} of {options.rounds}", chosen, sizes, stores):
                for row, value in found.items():
                    figures[key][row].append(value)
    # Rounds are compared one by one: who missed one cannot be.
    figures = {key: rows for key, rows in figures.items() if all(len(one) == options.rounds for one in rows.values())}
    results: report.Results = {
        "machine": machine(),
        "rounds": options.rounds,
        "systems": [
            _described(DURABLEQ),
            RAW,
            BACKGROUND_TASKS,
            *(_described(one) for one in chosen if one.key in figures),
        ],
        "figures": figures,
    }
    _write(results, options.to)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"how often everything runs ({ROUNDS})")
    keys = [one.key for one in SYSTEMS]
    parser.add_argument("--only", action="append", choices=keys, metavar="KEY", help=f"one of {', '.join(keys)}")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: see that it works, not how fast")
    parser.add_argument("--to", type=Path, default=DOCS, metavar="DIRECTORY", help="where the report goes (docs)")
    return parser.parse_args()


def _opened(stack: contextlib.ExitStack, wanted: set[Store]) -> dict[Store, NewAddress]:
    stores = {}
    for store in wanted:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="durableq-peers-")))
        try:
            stores[store] = stack.enter_context(addresses(store, directory))
        except Missing as why:
            print(f"left out: what is on {store.value}: {why}", file=sys.stderr)
    return stores


def _round(
    title: str, chosen: list[System], sizes: Sizes, stores: dict[Store, NewAddress]
) -> Iterator[tuple[str, Figures]]:
    print(f"{title}: durableq, and what it is compared to", file=sys.stderr)
    yield from _of_ours(sizes, stores[Store.SQLITE])
    for system in chosen:
        print(f"{title}: {system.name} on {system.store.value}", file=sys.stderr)
        try:
            yield system.key, measured(system, sizes, stores[system.store])
        except (PeerFailed, subprocess.SubprocessError, OSError) as error:
            print(f"left out of this round: {error}", file=sys.stderr)


def _of_ours(sizes: Sizes, new_address: NewAddress) -> Iterator[tuple[str, Figures]]:
    with tempfile.TemporaryDirectory(prefix="durableq-benchmark-") as name:
        directory = Path(name)
        raw = storage.raw(directory, sizes)
        routes = http.route(directory, sizes)
        here = worker.pick_up(directory, sizes)
    ours = measured(DURABLEQ, sizes, new_address, but=("route",))
    yield "raw", {"serial": raw["raw-1"], "producers": raw["raw-64"]}
    yield "backgroundtasks", {"route": routes["http-memory"]}
    yield (
        DURABLEQ.key,
        ours
        | {"route": routes["http-durable"]}
        | {f"pick-up-here-{share}": here[f"pick-up-{share}"] for share in ("p50", "p99")},
    )


def _described(system: System) -> report.System:
    return {
        "key": system.key,
        "name": system.name,
        "store": system.store.value,
        "durability": system.durability,
        "is_durable": system.is_durable,
        "version": _version(system),
    }


def _version(system: System) -> str:
    ask = f"import importlib.metadata as m; print(m.version({system.package!r}))"
    asked = subprocess.run([python_of(system), "-c", ask], stdout=subprocess.PIPE, text=True, check=True)
    return asked.stdout.strip()


def _write(results: report.Results, to: Path) -> None:
    to.mkdir(parents=True, exist_ok=True)
    (to / "benchmarks.json").write_text(json.dumps(results, indent=1) + "\n")
    (to / "benchmarks.md").write_text(report.markdown(results))
    for dark in (False, True):
        chart.draw(results, to / f"benchmarks-{'dark' if dark else 'light'}.png", dark=dark)
    print(f"written: {to / 'benchmarks.md'}")


if __name__ == "__main__":
    main()
