"""`markdown` turns the results of all rounds into a page: what was measured, and one table for each question."""

import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, TypedDict

OURS: Final = "durableq"
IN_MEMORY: Final = "backgroundtasks"
REFERENCES: Final = {
    "raw": "the standard library's module with no queue around it: one row per commit for one caller, 64 rows per "
    "commit for 64. It shows what the disk allows",
    IN_MEMORY: "FastAPI's own tasks, in memory: they are gone with the process",
}
"""What is no queue: shown for scale, in italics."""
DASH: Final = "\N{EN DASH}"


class System(TypedDict):
    """One system at one setting."""

    key: str
    name: str
    store: str
    durability: str
    is_durable: bool
    version: str


class Results(TypedDict):
    """What a benchmark of all systems found, as it is stored in JSON."""

    machine: dict[str, str]
    rounds: int
    systems: list[System]
    figures: dict[str, dict[str, list[float]]]
    """By system and row: one value for each round."""


@dataclass(frozen=True, slots=True)
class Column:
    """What stands beside the names of a table."""

    title: str
    cell: Callable[[Results, System], str]


def markdown(results: Results) -> str:
    """Return the page."""
    return "\n\n".join((*_introduction(results), *_answers(results))) + "\n"


def values(results: Results, system: str, row: str) -> list[float]:
    """Return one value for each round: none, if that was not measured."""
    return results["figures"].get(system, {}).get(row, [])


def median(results: Results, system: str, row: str) -> float | None:
    found = values(results, system, row)
    return statistics.median(found) if found else None


def ratio(results: Results, system: str, base: str, row: str) -> float | None:
    """Return the median of the ratios within each round: none, if their rounds cannot be paired."""
    found, bases = values(results, system, row), values(results, base, row)
    if not found or len(found) != len(bases) or not all(bases):
        return None
    return statistics.median(one / other for one, other in zip(found, bases, strict=True))


def number(value: float) -> str:
    """Return three digits or so, or all of those before the point."""
    if value >= 100:
        return f"{value:,.0f}"
    if value >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if value >= 0.1 or value == 0 else f"{value:#.2g}"


def ranked(results: Results, row: str, *, lowest_first: bool = False) -> list[System]:
    """Return the systems that have a row: ours, and then the best first."""
    medians = {one["key"]: median(results, one["key"], row) for one in results["systems"]}

    def rank(system: System) -> tuple[bool, float]:
        value = medians[system["key"]] or 0.0
        return system["key"] != OURS, value if lowest_first else -value

    return sorted((one for one in results["systems"] if medians[one["key"]] is not None), key=rank)


def _introduction(results: Results) -> Iterator[str]:
    rounds = results["rounds"]
    yield "# Benchmarks"
    yield (
        "durableq beside other queues, on one machine and in one run. Another machine gives other figures: "
        "`python -m benchmarks.peers` measures them."
    )
    yield "## What was measured"
    yield "\n".join(
        (
            "- **The job** does nothing. It carries an int and a dict with an e-mail address and a body of 200 "
            "characters.",
            "- **Each system** starts each workload on an empty store, and is set as its documentation says for speed, "
            "as long as that keeps the durability named below.",
            f"- **A figure** is the median of {rounds} rounds, beside the lowest and the highest. The rounds are "
            "interleaved: each runs every system once.",
            "- **÷ durableq** is the median of the ratios to durableq's figure in the same round.",
            "- **The route's** process has called `gc.freeze()` after its start-up, whichever the system.",
            "- **†** marks what acknowledges a job before it is on disk, so that a power cut may lose it. All others "
            "acknowledge it when it is on disk.",
            *_references(results),
        )
    )
    yield _table(("Machine", ""), results["machine"].items(), right_from=2)
    yield _table(
        ("System", "Version", "Store", "Durability", "On disk when acknowledged"),
        (
            (_name(one), one["version"], one["store"], one["durability"], "yes" if one["is_durable"] else "no")
            for one in _ours_first(results["systems"])
        ),
        right_from=5,
    )


def _references(results: Results) -> list[str]:
    return [f"- {_name(one)} is {REFERENCES[one['key']]}." for one in results["systems"] if one["key"] in REFERENCES]


def _answers(results: Results) -> Iterator[str]:
    yield "## Adding"
    yield "Jobs a second. A call returns when its job is acknowledged. No worker runs."
    yield "**One caller**, who waits for each job before adding the next."
    yield _ranking(results, "serial", "jobs/s")
    yield "**64 callers** at once, each waiting for its own job: coroutines, or threads where a call blocks."
    yield _ranking(results, "producers", "jobs/s")
    yield "**Many in one call**, where a system documents a way to do so."
    yield _ranking(results, "bulk", "jobs/s")

    yield "## Draining"
    yield (
        "One worker process empties a full queue: jobs a second, from the start of the first job to that of the last. "
        "CPU time and the peak of memory are those of the process that runs the jobs. What a Redis or PostgreSQL "
        "server uses comes on top of it and is not counted; SQLite works inside the process and is."
    )
    yield _ranking(
        results,
        "drain",
        "jobs/s",
        _figure("drain-cpu", "CPU ms per 1,000 jobs"),
        _figure("drain-memory", "MiB"),
    )

    yield "## Pick-up"
    yield (
        "Milliseconds from just before a job is added to the first line of its body, in an idle worker. Lower is "
        "better, and a ratio above 1 is slower than durableq."
    )
    yield "**A worker in another process.**"
    yield _ranking(results, "pick-up-p50", "p50 ms", *_tail("pick-up-p99"), lowest_first=True)
    if any(values(results, one["key"], "pick-up-here-p50") for one in results["systems"]):
        yield "**A worker in the same process**, for those that have one."
        yield _ranking(
            results, "pick-up-here-p50", "p50 ms", *_tail("pick-up-here-p99"), lowest_first=True, names_missing=False
        )

    yield "## A route that adds one job"
    yield (
        "Requests a second that a FastAPI route answers on uvicorn, loaded over 64 connections. The share is of the "
        "same route with Starlette's BackgroundTasks, in the same round; of these shares, the median. durableq and "
        "BackgroundTasks run the jobs meanwhile in the same process; no worker of the others runs."
    )
    yield _ranking(results, "route", "requests/s", Column("of BackgroundTasks", _share))


def _ranking(
    results: Results,
    row: str,
    unit: str,
    *more: Column,
    lowest_first: bool = False,
    names_missing: bool = True,
) -> str:
    """Return a table for one row, and who is not in it."""
    columns = (
        _figure(row, unit),
        _spread(row),
        Column("÷ durableq", lambda results, system: _or_nothing(ratio(results, system["key"], OURS, row))),
        *more,
    )
    systems = ranked(results, row, lowest_first=lowest_first)
    if not systems:
        return "Not measured."
    table = _table(
        ("System", "Store", *(column.title for column in columns)),
        ((_name(one), one["store"], *(column.cell(results, one) for column in columns)) for one in systems),
        right_from=2,
    )
    return "\n\n".join((table, *_notes(results, systems, names_missing=names_missing)))


def _notes(results: Results, shown: Sequence[System], *, names_missing: bool) -> Iterator[str]:
    """Yield what the marks mean, where they are read, and who is not in a table."""
    if not all(one["is_durable"] for one in shown):
        yield "† acknowledges a job before it is on disk."
    missing = [one for one in results["systems"] if one not in shown and one["key"] not in REFERENCES]
    if missing and names_missing:
        names = ", ".join(f"{_name(one)} ({one['store']})" for one in missing)
        yield f"No figure: {names}."


def _figure(row: str, title: str) -> Column:
    return Column(title, lambda results, system: _or_nothing(median(results, system["key"], row)))


def _spread(row: str) -> Column:
    def cell(results: Results, system: System) -> str:
        found = values(results, system["key"], row)
        return f"{number(min(found))}{DASH}{number(max(found))}" if found else DASH

    return Column(f"lowest{DASH}highest", cell)


def _tail(row: str) -> tuple[Column, Column]:
    return _figure(row, "p99 ms"), _spread(row)


def _share(results: Results, system: System) -> str:
    share = ratio(results, system["key"], IN_MEMORY, "route")
    return DASH if share is None else f"{share * 100:.0f} %"


def _name(system: System) -> str:
    name = f"{system['name']}{'' if system['is_durable'] else ' †'}"
    if system["key"] == OURS:
        return f"**{name}**"
    return f"*{name}*" if system["key"] in REFERENCES else name


def _ours_first(systems: Sequence[System]) -> list[System]:
    return sorted(systems, key=lambda one: one["key"] != OURS)


def _or_nothing(value: float | None) -> str:
    return DASH if value is None else number(value)


def _table(titles: Sequence[str], rows: Iterable[Sequence[str]], *, right_from: int) -> str:
    """Return a table whose columns are numbers, on the right, from one on."""
    rule = ["---" if column < right_from else "---:" for column in range(len(titles))]
    lines = (titles, rule, *rows)
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
