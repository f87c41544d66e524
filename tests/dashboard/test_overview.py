"""The overview: figures, charts and the tables beside them, what failed, and what a newcomer reads."""

import contextlib
import json
import sqlite3
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from durableq.dashboard.charts import WINDOWS, chosen_window, latency, spark, throughput
from durableq.dashboard.overview import failing, is_served, oldest_due
from durableq.dashboard.pages import duration, in_bytes, number, rate, share
from durableq.history import Figures, History, Measure, Point, Tally, TaskFigures, history_of
from durableq.reports import Count, QueueReport, WorkerReport
from tests.dashboard.conftest import Application
from tests.support import eventually_sync

NOON = datetime(2026, 5, 4, 12, 0, 30, tzinfo=UTC)


# -- the page --------------------------------------------------------------------------------------------------


def test_the_first_visit_teaches_how_to_add_a_job(site: Application) -> None:
    page = site.page()
    assert "No job yet" in page.text
    assert "from durableq.fastapi import BackgroundTasks" in page.text
    site.add(site.send, "good@example.org")
    assert "No job yet" not in site.page().text


def test_cards_show_how_many_jobs_are_where(site: Application) -> None:
    for _ in range(3):
        site.add(site.send, "good@example.org")
    page = site.page()
    assert "Queued 3 ready to run" in page.text
    assert "Dead 0 none to mend" in page.text
    assert "/durableq/jobs?state=queued" in page.links


def test_that_jobs_wait_in_paused_queues_is_said(site: Application) -> None:
    site.add(site.send, "good@example.org")
    site.call(site.dq.pause, "mail")
    page = site.page()
    assert "Queued 1 all in paused queues" in page.text
    assert "only in paused queues" in page.text
    assert "nothing waits" not in page.text
    site.add(site.send.options(queue="other"), "good@example.org")
    assert "Queued 2 some in paused queues" in site.page().text


def test_that_nothing_runs_the_jobs_is_said(site: Application) -> None:
    assert "No worker is running" in site.page().text


def test_with_a_worker_nothing_is_said(working: Application) -> None:
    assert "No worker is running" not in working.page().text


def test_what_failed_is_listed_without_its_secrets(working: Application, database: Path) -> None:
    working.add(working.send, "bad@example.org", password="hunter2-hunter2")
    eventually_sync(lambda: "ValueError" in working.page().text)
    with contextlib.closing(sqlite3.connect(database, timeout=10)) as connection, connection:
        # As if it had been stored by a version that hid less.
        connection.execute("UPDATE durableq_jobs SET error_message = 'hunter2-hunter2: bad@example.org'")
    page = working.page()
    assert "bad@example.org" in page.text
    assert "hunter2" not in page.html
    assert "dead after 1 try" in page.text
    assert "Dead 1 wait for a person" in page.text
    assert "mail.send 1 0 0 %" in page.text  # the most failing tasks: dead, retried, succeeding


def test_charts_and_their_tables_count_what_ended(working: Application) -> None:
    working.add(working.send, "good@example.org")
    eventually_sync(lambda: "1 succeeded" in working.page().text)
    page = working.page("/?window=15m")
    assert "In the last 15 minutes, 1 try ended: 1 succeeded" in page.text
    assert "chart-throughput-data" in page.elements


def test_a_window_is_chosen_by_the_address(site: Application) -> None:
    for window in WINDOWS:
        page = site.page(f"/?window={window}")
        assert f'href="/durableq/?window={window}" aria-current="true"' in page.html
    assert 'window=1h" aria-current="true"' in site.page("/?window=2y").html
    assert site.get("/?window=" + "x" * 100).status_code == 400


@pytest.mark.foreign_bug(100)
def test_what_a_page_is_made_of_is_escaped(site: Application) -> None:
    @site.dq.task(name="<img src=x onerror=alert(1)>", queue="<b>q</b>")
    def odd() -> None: ...

    site.add(odd)
    for path in ("/", "/queues"):
        page = site.page(path)
        assert "<b>q</b>" in page.text or "&lt;b&gt;" in page.html
        assert "<img" not in page.html
        assert "<b>q" not in page.html


# -- charts, without a page ------------------------------------------------------------------------------------


def a_history(*tallies: tuple[timedelta, Measure, int, int]) -> History:
    """What ended before noon: how long before, how, in which bucket, how many."""
    found = [
        Tally(int((NOON - before).timestamp()) // 60 * 60, "mail", "send", measure, bucket, count)
        for before, measure, bucket, count in tallies
    ]
    return history_of(found, NOON, timedelta(minutes=15))


def test_a_rate_is_that_of_a_minute_and_of_the_running_one_of_what_has_passed() -> None:
    history = a_history((timedelta(minutes=1), "succeeded", 3, 30), (timedelta(0), "succeeded", 3, 30))
    drawing = json.loads(throughput(history, "15m", NOON).drawing)
    assert drawing["unit"] == "rate"
    assert drawing["data"][0][-1] == int(NOON.timestamp()) - 30
    assert drawing["data"][1][-2:] == [30, 60]
    assert {len(line) for line in drawing["data"]} == {15}


def test_a_running_minute_of_a_second_makes_no_rate_of_sixty() -> None:
    now = NOON - timedelta(seconds=29)
    chart = throughput(a_history((timedelta(0), "succeeded", 3, 1)), "15m", now)
    assert chart.points[-1][1][0] == 6


def test_where_nothing_ran_the_latency_has_a_gap_and_no_zero() -> None:
    history = a_history((timedelta(minutes=2), "waited", 3, 4))
    drawing = json.loads(latency(history, "15m").drawing)
    assert drawing["data"][1][-3] > 0
    assert drawing["data"][1][-1] is None
    assert drawing["data"][3] == [None] * 15


def test_lines_of_one_colour_are_told_apart_without_it() -> None:
    for chart in (throughput(a_history(), "1h", NOON), latency(a_history(), "1h")):
        seen = [(one["style"], one["dashed"]) for one in json.loads(chart.drawing)["series"]]
        assert len(set(seen)) == len(seen)


def test_a_chart_says_what_it_shows() -> None:
    history = a_history((timedelta(minutes=1), "dead", 3, 1204), (timedelta(minutes=1), "waited", 9, 5))
    assert (
        "1,204 tries ended: 0 succeeded, 0 failed and were to be tried again, 1,204 failed for good"
        in throughput(history, "15m", NOON).sentence
    )
    assert "half of the jobs started within" in latency(history, "15m").sentence
    assert "no try ended" in throughput(a_history(), "1h", NOON).sentence
    assert "no try started or ended" in latency(a_history(), "1h").sentence


def test_a_small_line_stays_in_its_box() -> None:
    points = [Point(at=NOON, figures=Figures(succeeded=count)) for count in (0, 5, 10)]
    assert spark(points) == "0.0,23.0 50.0,12.0 100.0,1.0"
    assert spark([]) == ""
    assert spark(points[:1]) == "0.0,23.0"


def test_an_unknown_window_is_the_usual_one() -> None:
    assert [chosen_window(text) for text in ("7d", "8d", None)] == ["7d", "1h", "1h"]


def a_worker(**changed: Any) -> WorkerReport:
    usual: dict[str, Any] = {
        "id": 1,
        "pid": 2,
        "host": "",
        "software": "",
        "started_at": NOON,
        "runs_jobs": True,
        "is_alive": True,
        "running": 0,
        "is_here": False,
    }
    return WorkerReport(**(usual | changed))


def test_only_a_living_worker_that_runs_jobs_serves() -> None:
    assert is_served([a_worker(is_alive=False), a_worker()])
    assert not is_served([a_worker(is_alive=False), a_worker(runs_jobs=False)])


def test_the_oldest_waiting_job_is_not_one_of_a_paused_queue() -> None:
    def report(name: str, minutes: int | None, paused: bool = False) -> QueueReport:
        due = None if minutes is None else NOON - timedelta(minutes=minutes)
        return QueueReport(name=name, queued=Count(0), running=0, oldest_due=due, paused_at=NOON if paused else None)

    assert oldest_due([report("a", 1), report("b", 5), report("c", None), report("d", 9, paused=True)]) == (
        NOON - timedelta(minutes=5)
    )
    assert oldest_due([report("c", None)]) is None


def test_tasks_that_never_fail_are_not_among_the_failing() -> None:
    tasks = [TaskFigures(task=str(number), figures=Figures(dead=number)) for number in range(9, -1, -1)]
    assert [one.task for one in failing(tasks)] == ["9", "8", "7", "6", "5", "4"]
    assert failing([TaskFigures(task="calm", figures=Figures(succeeded=5))]) == []
    assert len(failing([TaskFigures(task="again", figures=Figures(retried=1))])) == 1


# -- figures in words ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 ms"),
        (0.0031, "3.1 ms"),
        (0.25, "250 ms"),
        (0.9996, "1 s"),
        (4.21, "4.2 s"),
        (42.4, "42 s"),
        (59.6, "1 min"),
        (200, "3 min 20 s"),
        (3_600, "1 h"),
        (3_725, "1 h 2 min"),
        (187_200, "2 d 4 h"),
        (-5, "0 ms"),
        (None, "\N{EN DASH}"),
        (timedelta(minutes=2), "2 min"),
    ],
)
def test_a_duration_is_told_in_two_digits_or_two_units(seconds: Any, text: str) -> None:
    assert duration(seconds) == text


def test_numbers_say_when_they_were_not_counted_to_the_end() -> None:
    assert [number(one) for one in (1204, Count(10_000, False), Count(3), None)] == [
        "1,204",
        "10,000+",
        "3",
        "\N{EN DASH}",
    ]


def test_a_share_is_never_all_or_nothing_unless_it_is() -> None:
    assert [share(one) for one in (1.0, 0.99999, 0.997, 0.5, 0.0001, 0.0, None)] == [
        "100 %",
        "> 99.9 %",
        "99.7 %",
        "50 %",
        "< 0.1 %",
        "0 %",
        "\N{EN DASH}",
    ]


def test_sizes_and_rates_are_told_as_people_say_them() -> None:
    assert [in_bytes(one) for one in (0, 1536, 5 * 2**20, 3 * 2**40, 5 * 2**50, None)] == [
        "0 B",
        "1.5 KiB",
        "5.0 MiB",
        "3.0 TiB",
        "5120.0 TiB",
        "\N{EN DASH}",
    ]
    assert [rate(one) for one in (0, 0.25, 7, 12.6, 1234.5)] == ["0", "0.2", "7", "13", "1,234"]
