"""A job's life as it is drawn: nothing of it is missing, nothing overlaps, and no duration is negative."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durableq.dashboard.timeline import TRIES_DRAWN, Timeline, timeline
from durableq.fastapi.admin_models import AttemptRecord, AuditRecord, JobDetail
from durableq.models import Attempt, JobState

T0 = datetime(2030, 1, 1, tzinfo=UTC)


def at(seconds: float) -> datetime:
    return T0 + timedelta(seconds=seconds)


def failed(number: int, begin: float, end: float) -> AttemptRecord:
    return AttemptRecord(
        attempt=number,
        worker_id=1,
        started_at=at(begin),
        finished_at=at(end),
        error_type="ValueError",
        error_message="boom",
        traceback="",
    )


def retried(seconds: float, action: str = "retry") -> AuditRecord:
    return AuditRecord(at=at(seconds), who="anna", action=action, detail={})


def job(**fields: Any) -> JobDetail:
    plain: dict[str, Any] = {
        "id": "1",
        "task": "t",
        "queue": "q",
        "priority": 0,
        "state": JobState.QUEUED,
        "attempt": 0,
        "max_attempts": 5,
        "crashes": 0,
        "created_at": T0,
        "run_at": T0,
        "started_at": None,
        "finished_at": None,
        "expires_at": None,
        "deadline_at": None,
        "tags": [],
        "progress": None,
        "cancel_requested": False,
        "error": None,
        "args": {},
        "args_text": None,
        "result": None,
        "headers": {},
        "attempts": [],
        "logs": [],
        "audit": [],
    }
    return JobDetail(**plain | fields)


def told(line: Timeline) -> list[tuple[str, str, float]]:
    return [(span.kind, span.ending, span.duration.total_seconds()) for span in line.spans]


def test_a_job_that_waits_has_waited_until_now() -> None:
    assert told(timeline(job(), at(3))) == [("waited", "", 3)]


def test_a_job_that_was_just_added_has_no_span_yet() -> None:
    assert timeline(job(), T0).spans == ()


def test_a_scheduled_job_shows_what_is_ahead() -> None:
    line = timeline(job(state=JobState.SCHEDULED, run_at=at(10)), at(4))
    assert told(line) == [("waited", "", 4), ("waited", "ahead", 6)]
    assert (line.begin, line.end) == (T0, at(10))


def test_a_success_at_the_first_try_is_a_wait_and_a_run() -> None:
    done = job(state=JobState.SUCCEEDED, attempt=1, started_at=at(2), finished_at=at(5))
    assert told(timeline(done, at(99))) == [("waited", "", 2), ("ran", "succeeded", 3)]


def test_what_lies_between_tries_is_the_back_off() -> None:
    done = job(
        state=JobState.SUCCEEDED,
        attempt=3,
        started_at=at(20),
        finished_at=at(21),
        attempts=[failed(1, 1, 2), failed(2, 6, 7)],
    )
    assert told(timeline(done, at(99))) == [
        ("waited", "", 1),
        ("ran", "failed", 1),
        ("backed_off", "", 4),
        ("ran", "failed", 1),
        ("backed_off", "", 13),
        ("ran", "succeeded", 1),
    ]


def test_the_try_that_killed_a_job_is_told_once() -> None:
    dead = job(state=JobState.DEAD, attempt=1, started_at=at(1), finished_at=at(2), attempts=[failed(1, 1, 2)])
    line = timeline(dead, at(99))
    assert told(line) == [("waited", "", 1), ("ran", "failed", 1)]
    assert line.spans[1].record == 0


def test_a_running_job_runs_until_now() -> None:
    runs = job(state=JobState.RUNNING, attempt=2, started_at=at(5), attempts=[failed(1, 1, 2)])
    assert told(timeline(runs, at(9)))[-1] == ("ran", "running", 4)


def test_a_retry_that_waits_for_its_time_is_a_back_off_that_is_ahead() -> None:
    waits = job(state=JobState.SCHEDULED, attempt=1, started_at=at(1), run_at=at(12), attempts=[failed(1, 1, 2)])
    assert told(timeline(waits, at(4)))[-2:] == [("backed_off", "", 2), ("backed_off", "ahead", 8)]


@pytest.mark.parametrize("action", ["retry", "edit and retry"])
def test_until_somebody_retried_it_a_dead_job_rested(action: str) -> None:
    again = job(
        state=JobState.SUCCEEDED,
        attempt=1,
        started_at=at(50),
        finished_at=at(51),
        attempts=[failed(1, 1, 2)],
        audit=[retried(40, action)],
    )
    assert told(timeline(again, at(99)))[2:] == [("rested", "", 38), ("waited", "", 10), ("ran", "succeeded", 1)]


def test_a_job_that_waits_after_a_retry_by_hand_is_not_backing_off() -> None:
    again = job(started_at=at(1), attempts=[failed(1, 1, 2)], audit=[retried(5)], run_at=at(5))
    assert told(timeline(again, at(7)))[2:] == [("rested", "", 3), ("waited", "", 2)]


def test_a_job_that_was_cancelled_before_it_ran_has_only_waited() -> None:
    assert told(timeline(job(state=JobState.CANCELLED, finished_at=at(4)), at(9))) == [("waited", "", 4)]


def test_of_many_tries_the_latest_are_drawn_and_the_others_counted() -> None:
    tries = [failed(number, number * 10, number * 10 + 1) for number in range(1, 31)]
    dead = job(state=JobState.DEAD, attempt=30, started_at=at(300), finished_at=at(301), attempts=tries)
    line = timeline(dead, at(999))
    assert (line.spans[0].kind, line.spans[0].tries) == ("earlier", 10)
    drawn = [span for span in line.spans if span.kind == "ran"]
    assert [span.record for span in drawn] == list(range(10, 10 + TRIES_DRAWN))


def test_clocks_that_disagree_make_no_negative_duration() -> None:
    odd = job(state=JobState.DEAD, attempt=1, started_at=at(-5), finished_at=at(-9), attempts=[failed(1, -5, -9)])
    line = timeline(odd, at(-20))
    assert line.duration >= timedelta()
    assert all(span.duration >= timedelta() for span in line.spans)


def test_a_short_run_after_a_long_wait_can_still_be_seen() -> None:
    done = job(state=JobState.SUCCEEDED, attempt=1, started_at=at(86_400), finished_at=at(86_400.001))
    waited, ran = timeline(done, at(99_999)).spans
    assert ran.width >= 1.5
    assert waited.x == 0
    assert waited.width + ran.width == pytest.approx(100)


@given(st.lists(st.floats(0, 1e6), min_size=0, max_size=80), st.booleans())
def test_spans_lie_side_by_side_over_the_whole_width(gaps: list[float], is_finished: bool) -> None:
    moments = [at(sum(gaps[: number + 1])) for number in range(len(gaps))]
    tries = [
        failed(number + 1, (begin - T0).total_seconds(), (end - T0).total_seconds())
        for number, (begin, end) in enumerate(zip(moments[::2], moments[1::2], strict=False))
    ]
    state = JobState.DEAD if is_finished else JobState.QUEUED
    finished_at = tries[-1].finished_at if tries and is_finished else None
    started_at = tries[-1].started_at if tries else None
    line = timeline(job(state=state, attempts=tries, started_at=started_at, finished_at=finished_at), at(sum(gaps) + 1))
    for before, after in zip(line.spans, line.spans[1:], strict=False):
        assert after.x == pytest.approx(before.x + before.width, abs=0.01)
        assert after.begin == before.end or before.kind == "earlier"
    if line.spans:
        assert line.spans[-1].x + line.spans[-1].width == pytest.approx(100, abs=0.2)
        assert all(span.width > 0 for span in line.spans)


def test_a_life_so_far_does_not_count_what_is_still_to_come() -> None:
    waiting = timeline(job(state=JobState.SCHEDULED, run_at=at(172_800)), at(12))
    assert waiting.duration == timedelta(days=2)
    assert waiting.lived == timedelta(seconds=12)
    ended = timeline(job(state=JobState.CANCELLED, finished_at=at(5)), at(12))
    assert ended.lived == ended.duration == timedelta(seconds=5)


def test_tries_that_the_job_does_not_show_are_one_span() -> None:
    left_out = [
        Attempt(lease_no=number, **failed(number, 2 * number - 1, 2 * number).model_dump()) for number in (1, 2)
    ]
    line = timeline(job(attempt=3, attempts=[failed(3, 10, 11)], run_at=at(20)), at(12), left_out)
    assert (line.spans[0].kind, line.spans[0].tries, line.spans[0].end) == ("earlier", 2, at(4))
    assert [span.attempt for span in line.spans if span.kind == "ran"] == [3]
