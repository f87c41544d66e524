"""The page and the picture of `python -m benchmarks.peers`, made of figures that are made up."""

from pathlib import Path

import pytest

from benchmarks.peers import chart, report
from benchmarks.peers.report import Results, System


def system(key: str, name: str, store: str, *, is_durable: bool) -> System:
    return System(key=key, name=name, store=store, durability="as set", is_durable=is_durable, version="1.0")


RESULTS = Results(
    machine={"cpu": "one | two cores"},
    rounds=3,
    systems=[
        system("slow", "Slow", "PostgreSQL", is_durable=True),
        system("fast", "Fast", "Redis", is_durable=False),
        system("backgroundtasks", "BackgroundTasks", "memory", is_durable=False),
        system("durableq", "durableq", "SQLite", is_durable=True),
        system("raw", "raw sqlite3", "SQLite", is_durable=True),
        system("failed", "Failed", "SQLite", is_durable=True),
    ],
    figures={
        "durableq": {
            "serial": [1_000.0, 2_000.0, 4_000.0],
            "pick-up-p50": [1.0, 2.0, 3.0],
            "pick-up-p99": [4.0, 5.0, 6.0],
            "route": [800.0, 900.0, 1_600.0],
        },
        "slow": {"serial": [100.0, 1_000.0, 800.0], "pick-up-p50": [9.0, 0.05, 0.04], "route": [50.0, 100.0]},
        "fast": {"serial": [5_000.0, 5_000.0, 5_000.0], "pick-up-p50": [8.0, 8.0, 8.0]},
        "raw": {"serial": [6_000.0, 6_000.0, 6_000.0]},
        "backgroundtasks": {"route": [1_000.0, 1_000.0, 2_000.0]},
    },
)


def table_after(page: str, text: str) -> list[str]:
    """The lines of a table, its two of heading left out."""
    table = page.partition(text)[2].partition("| --- |")[2].partition("\n\n")[0]
    return table.splitlines()[1:]


def notes_after(page: str, text: str) -> list[str]:
    return page.partition(text)[2].split("\n\n")[2:4]


def test_ours_comes_first_then_the_best() -> None:
    page = report.markdown(RESULTS)
    assert [line.split(" | ")[0] for line in table_after(page, "**One caller**")] == [
        "| **durableq**",
        "| *raw sqlite3*",
        "| Fast †",
        "| Slow",
    ]
    assert [line.split(" | ")[0] for line in table_after(page, "**A worker in another process.**")] == [
        "| **durableq**",
        "| Slow",  # the shortest time is the best
        "| Fast †",
    ]


def test_a_line_has_the_median_the_extremes_and_the_median_of_the_ratios_within_rounds() -> None:
    ours, _, _, slow = table_after(report.markdown(RESULTS), "**One caller**")
    assert ours == "| **durableq** | SQLite | 2,000 | 1,000\N{EN DASH}4,000 | 1.00 |"
    # By round 0.1, 0.5 and 0.2: not 0.4, the ratio of the medians.
    assert slow == "| Slow | PostgreSQL | 800 | 100\N{EN DASH}1,000 | 0.20 |"


def test_what_is_acknowledged_before_it_is_on_disk_is_marked_and_the_mark_explained() -> None:
    page = report.markdown(RESULTS)
    assert "| cpu | one \\| two cores |" in page
    assert "| Fast † | 1.0 | Redis | as set | no |" in page
    assert "| Slow | 1.0 | PostgreSQL | as set | yes |" in page
    assert notes_after(page, "**One caller**")[0] == "† acknowledges a job before it is on disk."


def test_who_has_no_figure_is_named() -> None:
    page = report.markdown(RESULTS)
    assert notes_after(page, "**One caller**")[1] == "No figure: Failed (SQLite)."
    assert page.partition("**Many in one call**")[2].split("\n\n")[1] == "Not measured."
    assert "**A worker in the same process**" not in page
    assert "p99 ms | lowest\N{EN DASH}highest |" in page
    assert f"| Slow | PostgreSQL | 0.050 | 0.040\N{EN DASH}9.00 | 0.025 | {report.DASH} | {report.DASH} |" in page


def test_the_share_of_a_route_is_of_in_memory_tasks_in_the_same_round() -> None:
    ours, in_memory, slow = table_after(report.markdown(RESULTS), "## A route")
    assert ours.endswith("| 80 % |")
    assert in_memory.endswith("| 100 % |")
    assert slow.endswith(f"| {report.DASH} | {report.DASH} |")  # a round failed: which, nobody knows


@pytest.mark.parametrize("dark", [False, True])
def test_the_picture_is_drawn_with_what_there_is(tmp_path: Path, dark: bool) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "chart.png"
    chart.draw(RESULTS, path, dark=dark)
    assert path.read_bytes().startswith(b"\x89PNG")
