"""When a failed job runs again: pure decisions in tenacity's vocabulary."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import httpx2
import pytest
import tenacity
from hypothesis import given
from hypothesis import strategies as some
from tenacity.wait import wait_base

from durableq import DurableQ, JobState, PermanentFailure, Retry, RetryPolicy, Snooze, wait_with_jitter
from durableq.engine.decisions import after_error
from durableq.models import Dead, Lease, Retried
from durableq.retry import DEFAULT_POLICY, LONGEST_DELAY_SECONDS
from tests.support import eventually

SECOND = 1_000_000


def lease(attempt: int = 1, max_attempts: int = 5, created_at: int = 0, crashes: int = 0) -> Lease:
    return Lease(1, attempt, "id", "tasks:work", "default", "{}", 0, attempt, max_attempts, crashes, created_at)


class garbage(wait_base):
    """A strategy that answers nonsense."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer

    def __call__(self, retry_state: tenacity.RetryCallState) -> float:
        if isinstance(self._answer, BaseException):
            raise self._answer
        answer: float = self._answer
        return answer


class TestDefault:
    @pytest.mark.parametrize("attempt", range(1, 15))
    def test_delays_double_with_up_to_a_quarter_more_and_end_at_ten_minutes(self, attempt: int) -> None:
        base = min(2.0 ** (attempt - 1), 600.0)
        delays = [DEFAULT_POLICY.delay(attempt, ValueError(), 0) for _ in range(200)]
        assert all(delay is not None and base <= delay <= 1.25 * base for delay in delays)
        assert len(set(delays)) > 100, "a herd of retries spreads out"

    def test_a_great_many_attempts_are_no_trouble(self) -> None:
        delay = DEFAULT_POLICY.delay(1_000_000, ValueError(), 1e9)
        assert delay is not None
        assert 600 <= delay <= 750

    @pytest.mark.parametrize(
        "error", [ValueError(), SystemExit(1), KeyboardInterrupt(), BaseExceptionGroup("x", [ValueError()])]
    )
    def test_every_failure_is_retried(self, error: BaseException) -> None:
        assert DEFAULT_POLICY.delay(1, error, 0) is not None


class TestStrategies:
    def test_waits_compose_as_they_do_in_tenacity(self) -> None:
        chain = tenacity.wait_chain(tenacity.wait_fixed(1), tenacity.wait_fixed(5), tenacity.wait_fixed(30))
        policy = RetryPolicy(wait=chain + tenacity.wait_fixed(0.5))
        assert [policy.delay(attempt, ValueError(), 0) for attempt in (1, 2, 3, 4)] == [1.5, 5.5, 30.5, 30.5]

    def test_a_wait_may_look_at_the_error(self) -> None:
        def ask(error: BaseException) -> float:
            return float(getattr(error, "retry_after", 7))

        class TooManyRequests(Exception):
            retry_after = 42

        policy = RetryPolicy(wait=tenacity.wait_exception(ask))
        assert policy.delay(1, TooManyRequests(), 0) == 42
        assert policy.delay(1, ValueError(), 0) == 7

    def test_jitter_may_be_added_to_any_wait(self) -> None:
        policy = RetryPolicy(wait=wait_with_jitter(tenacity.wait_fixed(10), ratio=0.5))
        delays = [policy.delay(1, ValueError(), 0) for _ in range(100)]
        assert all(delay is not None and 10 <= delay <= 15 for delay in delays)
        assert RetryPolicy(wait=wait_with_jitter(tenacity.wait_fixed(10), ratio=0)).delay(1, ValueError(), 0) == 10

    def test_random_waits_stay_in_their_bounds(self) -> None:
        policy = RetryPolicy(wait=tenacity.wait_random_exponential(multiplier=1, max=60))
        for attempt in range(1, 10):
            delay = policy.delay(attempt, ValueError(), 0)
            assert delay is not None
            assert 0 <= delay <= min(60, 2**attempt)

    def test_stopping_counts_from_when_the_job_was_added(self) -> None:
        policy = RetryPolicy(wait=tenacity.wait_fixed(1), stop=tenacity.stop_after_delay(3600))
        assert policy.delay(1, ValueError(), elapsed_seconds=3599) == 1
        assert policy.delay(1, ValueError(), elapsed_seconds=3601) is None

    def test_stopping_may_look_ahead_to_the_next_attempt(self) -> None:
        policy = RetryPolicy(wait=tenacity.wait_fixed(10), stop=tenacity.stop_before_delay(60))
        assert policy.delay(1, ValueError(), elapsed_seconds=45) == 10
        assert policy.delay(1, ValueError(), elapsed_seconds=55) is None

    def test_stops_compose(self) -> None:
        policy = RetryPolicy(stop=tenacity.stop_after_attempt(2) | tenacity.stop_after_delay(60))
        assert policy.delay(1, ValueError(), 0) is not None
        assert policy.delay(2, ValueError(), 0) is None
        assert policy.delay(1, ValueError(), 61) is None

    def test_which_errors_are_retried_can_be_said_and_combined(self) -> None:
        is_transient = tenacity.retry_if_exception_type(OSError) & tenacity.retry_if_not_exception_type(
            FileNotFoundError
        )
        policy = RetryPolicy(retry=is_transient)
        assert policy.delay(1, ConnectionError(), 0) is not None
        assert policy.delay(1, FileNotFoundError(), 0) is None
        assert policy.delay(1, ValueError(), 0) is None
        by_text = RetryPolicy(retry=tenacity.retry_if_exception_message(match="try again"))
        assert by_text.delay(1, ValueError("try again later"), 0) is not None
        assert by_text.delay(1, ValueError("no"), 0) is None
        assert RetryPolicy(retry=tenacity.retry_never).delay(1, ValueError(), 0) is None

    def test_a_policy_never_sleeps(self) -> None:
        policy = RetryPolicy(wait=tenacity.wait_fixed(3600))
        assert policy.delay(1, ValueError(), 0) == 3600


class TestBounds:
    @pytest.mark.parametrize(
        ("answer", "delay"), [(-5, 0.0), (float("inf"), LONGEST_DELAY_SECONDS), (10**30, LONGEST_DELAY_SECONDS)]
    )
    def test_an_answer_out_of_bounds_is_brought_back(self, answer: float, delay: float) -> None:
        assert RetryPolicy(wait=garbage(answer)).delay(1, ValueError(), 0) == delay

    def test_a_wall_clock_that_stepped_back_is_no_trouble(self) -> None:
        policy = RetryPolicy(wait=tenacity.wait_fixed(1), stop=tenacity.stop_after_delay(60))
        assert policy.delay(1, ValueError(), elapsed_seconds=-86400) == 1

    @pytest.mark.parametrize(
        "answer", [float("nan"), None, "soon", timedelta(seconds=1), RuntimeError("defect")], ids=repr
    )
    async def test_when_a_policy_answers_nonsense_the_default_decides(self, tmp_path: Path, answer: Any) -> None:
        dq = DurableQ(tmp_path / "jobs.db")

        @dq.task(name="fails", retry=RetryPolicy(wait=garbage(answer)))
        async def fails() -> None:
            raise ValueError("boom")

        async with dq.running():
            job = await dq.add_task(fails)

            async def is_scheduled() -> bool:
                return (await dq.get(job)).state is JobState.SCHEDULED

            await eventually(is_scheduled)
            delay = (await dq.get(job)).run_at - job.run_at
            assert timedelta(seconds=1) <= delay < timedelta(seconds=10)


class TestExceptionTypes:
    """The plain form of tenacity's ``retry``."""

    def test_only_the_named_types_are_retried(self) -> None:
        policy = RetryPolicy(retry_on=OSError)
        assert policy.delay(1, ConnectionError(), 0) is not None, "and what is derived from them"
        assert policy.delay(1, ValueError(), 0) is None
        assert RetryPolicy(retry_on=(OSError, KeyError)).delay(1, KeyError(), 0) is not None

    def test_the_named_types_are_never_retried(self) -> None:
        policy = RetryPolicy(give_up_on=(ValueError, KeyError))
        assert policy.delay(1, UnicodeError(), 0) is None
        assert policy.delay(1, KeyError(), 0) is None
        assert policy.delay(1, OSError(), 0) is not None

    def test_to_give_up_counts_more(self) -> None:
        policy = RetryPolicy(retry_on=OSError, give_up_on=FileNotFoundError)
        assert policy.delay(1, FileNotFoundError(), 0) is None
        assert policy.delay(1, PermissionError(), 0) is not None

    def test_they_go_together_with_tenacitys_own(self) -> None:
        policy = RetryPolicy(retry_on=OSError, retry=tenacity.retry_if_exception_message(match="again"))
        assert policy.delay(1, OSError("again"), 0) is not None
        assert policy.delay(1, OSError("no"), 0) is None
        assert policy.delay(1, ValueError("again"), 0) is None


NOW = datetime(2026, 1, 1, tzinfo=UTC)


class TestRetry:
    def test_without_a_delay_the_policy_decides(self) -> None:
        assert Retry().seconds(NOW) is None

    @pytest.mark.parametrize(
        ("delay", "seconds"), [(0, 0.0), (5, 5.0), (1.5, 1.5), (timedelta(minutes=1), 60.0), (float("inf"), None)]
    )
    def test_a_delay_is_in_seconds_or_a_timedelta_and_has_an_end(
        self, delay: float | timedelta, seconds: float | None
    ) -> None:
        assert Retry(delay=delay).seconds(NOW) == (LONGEST_DELAY_SECONDS if seconds is None else seconds)
        assert Snooze(delay).delay == (LONGEST_DELAY_SECONDS if seconds is None else seconds)

    @pytest.mark.parametrize("delay", [-1, float("nan"), timedelta(seconds=-1)])
    @pytest.mark.parametrize("make", [lambda delay: Retry(delay=delay), Snooze])
    def test_a_delay_that_cannot_be_is_refused_where_it_is_made(
        self, make: Callable[[Any], object], delay: Any
    ) -> None:
        with pytest.raises(ValueError, match="expected a delay of 0 seconds or more"):
            make(delay)

    def test_they_say_what_they_are(self) -> None:
        assert str(Retry()) == "the task asked to be retried"
        assert str(Retry("busy", delay=5)) == "busy"
        assert str(Snooze(timedelta(minutes=1))) == "snoozed for 60 s"
        assert str(PermanentFailure("no such customer")) == "no such customer"


DATE = "Thu, 01 Jan 2026 00:02:00 GMT"


class TestRetryAfter:
    @pytest.mark.parametrize(
        ("value", "seconds"),
        [
            ("120", 120.0),
            (" 120 ", 120.0),
            ("0", 0.0),
            ("007", 7.0),
            ("9" * 400, LONGEST_DELAY_SECONDS),
            (DATE, 120.0),
            ("Thursday, 01-Jan-26 00:02:00 GMT", 120.0),
            ("Thu Jan  1 00:02:00 2026", 120.0),
            ("Thu, 01 Jan 2026 01:02:00 +0100", 120.0),
            ("Thu, 01 Jan 2026 00:02:00 -0000", 120.0),
            ("Wed, 31 Dec 2025 00:00:00 GMT", 0.0),
        ],
    )
    def test_seconds_and_dates_are_read(self, value: str, seconds: float) -> None:
        assert Retry.after({"Retry-After": value}).seconds(NOW) == seconds

    @pytest.mark.parametrize(
        "value",
        [
            *(
                "",
                "  ",
                "soon",
                "-5",
                "+5",
                "1.5",
                "1e3",
                "0x10",
                "\N{ARABIC-INDIC DIGIT ONE}",
                "120, 120",
                "Thu",
                "\0",
            ),
            "Wed, 21 Oct 2015 99999999999:28:00 GMT",
        ],
    )
    def test_what_cannot_be_read_is_left_to_the_policy(self, value: str) -> None:
        assert Retry.after({"Retry-After": value}).seconds(NOW) is None

    def test_an_absent_header_is_left_to_the_policy(self) -> None:
        for headers in ({}, {"Content-Length": "5"}, httpx2.Headers(), httpx2.Response(429)):
            assert Retry.after(headers).seconds(NOW) is None

    @pytest.mark.parametrize("name", ["Retry-After", "retry-after", "RETRY-AFTER", b"retry-after", b"Retry-After"])
    def test_case_does_not_matter_whatever_the_mapping(self, name: Any) -> None:
        value = b"7" if isinstance(name, bytes) else "7"
        assert Retry.after({"X-Other": "1", name: value}).seconds(NOW) == 7.0

    def test_responses_and_headers_of_http_clients_are_read(self) -> None:
        response = httpx2.Response(429, headers={"Retry-After": "7"})
        assert Retry.after(response).seconds(NOW) == 7.0
        assert Retry.after(response.headers).seconds(NOW) == 7.0

    def test_the_message_says_what_the_other_side_asked_for_or_what_it_is_given(self) -> None:
        assert DATE in str(Retry.after({"Retry-After": DATE}))
        assert str(Retry.after({"Retry-After": "7"}, message="busy")) == "busy"

    @given(some.datetimes(datetime(1971, 1, 1), datetime(2100, 1, 1), timezones=some.just(UTC)))
    def test_every_date_that_is_written_as_http_wants_it_is_read(self, moment: datetime) -> None:
        moment = moment.replace(microsecond=0)
        retry = Retry.after({"Retry-After": format_datetime(moment, usegmt=True)})
        assert retry.at == moment
        assert retry.seconds(moment - timedelta(seconds=5)) == 5.0


class TestOutcomes:
    def test_a_failed_attempt_is_retried_after_its_delay(self) -> None:
        outcome = after_error(lease(), ValueError("boom"), RetryPolicy(wait=tenacity.wait_fixed(5)), now=100 * SECOND)
        assert isinstance(outcome, Retried)
        assert outcome.run_at == 105 * SECOND
        assert (outcome.failure.type, outcome.failure.message) == ("ValueError", "boom")
        assert not outcome.crashed

    def test_the_last_attempt_ends_the_job(self) -> None:
        for attempt, kind in ((4, Retried), (5, Dead), (6, Dead)):
            assert type(after_error(lease(attempt), ValueError(), DEFAULT_POLICY, now=0)) is kind

    def test_a_policy_that_gives_up_ends_the_job_sooner(self) -> None:
        policy = RetryPolicy(retry=tenacity.retry_if_exception_type(OSError))
        assert isinstance(after_error(lease(), ValueError(), policy, now=0), Dead)

    def test_a_policy_sees_how_old_the_job_is(self) -> None:
        policy = RetryPolicy(stop=tenacity.stop_after_delay(60))
        for now, kind in ((150, Retried), (170, Dead)):
            outcome = after_error(lease(created_at=100 * SECOND), ValueError(), policy, now * SECOND)
            assert type(outcome) is kind


@pytest.mark.fault("F50")
@pytest.mark.foreign_bug(105, 106)
def test_retries_of_one_moment_spread_out() -> None:
    """Ten thousand jobs that failed together must not come back together."""
    moments = [DEFAULT_POLICY.delay(12, ValueError(), 0) or 0.0 for _ in range(10_000)]
    busiest = max(sum(start <= moment < start + 10 for moment in moments) for start in range(600, 750, 10))
    assert busiest < 1_000
