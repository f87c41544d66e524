"""Histories: what tallies add up to."""

from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest

from durableq import history
from durableq.errors import ConfigurationError
from durableq.history import BUCKETS, ENDINGS, Figures, Tally, history_of, quantile, step_of
from durableq.storage.sqlite import transitions

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


def tally(
    ago: float = 0, measure: str = "succeeded", number: int = 1, *, task: str = "t", queue: str = "q", bucket: int = 0
) -> Tally:
    """One of ``ago`` seconds before noon."""
    return Tally(int(NOON.timestamp() - ago), queue, task, measure, bucket, number)  # type: ignore[arg-type]


def test_the_window_is_full_of_steps_also_where_nothing_happened() -> None:
    history = history_of([], NOON + timedelta(seconds=30), HOUR)
    assert [point.at for point in history.points] == [NOON - timedelta(minutes=59 - n) for n in range(60)]
    assert {point.figures for point in history.points} == {Figures()} == {history.total}
    assert (history.tasks, history.queues) == ([], [])


def test_each_tally_is_counted_in_its_step_and_what_is_older_is_not() -> None:
    history = history_of([tally(), tally(59 * 60, number=2), tally(60 * 60, number=4)], NOON, HOUR)
    assert [point.figures.succeeded for point in history.points] == [2, *[0] * 58, 1]
    assert history.total.succeeded == 3


def test_endings_are_summed_up_by_task_and_queue_those_in_trouble_first() -> None:
    tallies = [tally(0, measure, number, task="b") for number, measure in enumerate(ENDINGS, start=1)]
    tallies += [tally(number=100, task="a", queue="z"), tally(measure="retried", number=7, task="c", queue="a")]
    tallies += [tally(number=3, task="_", queue="a")]
    history = history_of(tallies, NOON, HOUR)
    b = history.tasks[0].figures
    assert (b.succeeded, b.retried, b.dead, b.cancelled, b.ended) == (1, 2, 3, 4, 10)
    assert [one.task for one in history.tasks] == ["b", "c", "a", "_"]
    assert [(one.queue, one.figures.ended) for one in history.queues] == [("a", 10), ("q", 10), ("z", 100)]
    assert history.total.ended == 120


def test_waiting_is_not_an_end_and_running_not_a_wait() -> None:
    history = history_of([tally(bucket=3), tally(measure="waited", bucket=9)], NOON, HOUR)
    assert history.total.ended == 1
    assert (history.total.run_p95 or 0) <= BUCKETS[3] < BUCKETS[8] <= (history.total.wait_p50 or 0)


def test_waits_and_runs_have_a_median_and_what_19_of_20_did_not_exceed() -> None:
    tallies = [tally(number=60, bucket=0), tally(number=30, bucket=2), tally(number=10, bucket=5)]
    waits = [one._replace(measure="waited", bucket=one.bucket + 6) for one in tallies]
    figures = history_of([*tallies, *waits], NOON, HOUR).total
    found = [figures.run_p50, figures.run_p95, figures.wait_p50, figures.wait_p95]
    assert found == pytest.approx([0.001 * 50 / 60, 0.035, 0.05 + 0.05 * 50 / 60, 3.5])


def test_the_share_of_successes_leaves_out_what_was_cancelled() -> None:
    assert Figures(succeeded=3, retried=1, cancelled=9).success_share == 0.75
    assert Figures(cancelled=9).success_share is None


@pytest.mark.parametrize(
    ("window", "step"),
    [
        (timedelta(minutes=15), timedelta(minutes=1)),
        (timedelta(hours=1), timedelta(minutes=1)),
        (timedelta(hours=6), timedelta(minutes=5)),
        (timedelta(days=1), timedelta(minutes=15)),
        (timedelta(days=7), timedelta(hours=1)),
        (timedelta(hours=12), timedelta(minutes=15)),
        (timedelta(hours=36), timedelta(hours=1)),
    ],
)
def test_longer_windows_have_longer_steps(window: timedelta, step: timedelta) -> None:
    assert step_of(window) == step
    assert len(history_of([], NOON, window).points) == -(-window // step) <= 180


@pytest.mark.parametrize("window", [timedelta(), timedelta(seconds=-1), timedelta(days=8)])
def test_a_window_that_is_not_kept_is_refused(window: timedelta) -> None:
    with pytest.raises(ConfigurationError, match="at most 7 days"):
        history_of([], NOON, window)


def test_what_a_clock_that_was_ahead_has_counted_is_left_out() -> None:
    assert history_of([tally(-60), tally(-3600)], NOON, HOUR).total == Figures()


@pytest.mark.parametrize(
    ("buckets", "share", "expected"),
    [
        ({}, 0.5, None),
        ({0: 1}, 1.0, 0.001),
        ({0: 10}, 0.5, 0.0005),
        ({1: 10}, 0.5, 0.0015),
        ({2: 10}, 0.5, 0.0035),
        ({0: 50, 1: 30, 2: 20}, 0.95, 0.00425),
        ({0: 50, 3: 50}, 0.5, 0.001),
        ({0: 50, 3: 50}, 0.95, 0.0095),
        ({len(BUCKETS): 5}, 0.5, BUCKETS[-1]),
    ],
)
def test_a_quantile_is_interpolated_within_its_bucket(
    buckets: dict[int, int], share: float, expected: float | None
) -> None:
    found = quantile(Counter(buckets), share)
    assert found == (None if expected is None else pytest.approx(expected))


def test_tasks_and_queues_may_come_summed_up_already() -> None:
    history = history_of(
        [tally(task="", queue="")],
        NOON,
        HOUR,
        by_name=[
            tally(59 * 60, task="t", queue="q", number=5),
            tally(59 * 60, task="t", queue="r", number=2),
            tally(-3600, task="later"),
        ],
    )
    assert history.total.succeeded == 1
    assert [(one.task, one.figures.succeeded) for one in history.tasks] == [("t", 7)]
    assert [(one.queue, one.figures.succeeded) for one in history.queues] == [("q", 5), ("r", 2)]


def test_no_chart_has_finer_steps_than_what_is_kept_of_its_age() -> None:
    for age, span in transitions.CONDENSED:
        steps = [minutes * 60 for window, minutes in history._STEPS if window > timedelta(seconds=age)]
        assert min(steps) >= span
    assert timedelta(seconds=transitions.TALLIES_KEPT) > history.LONGEST
