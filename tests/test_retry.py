"""When a failed job runs again: pure decisions in tenacity's vocabulary."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import tenacity
from tenacity.wait import wait_base

from durableq import DurableQ, JobState, RetryPolicy, wait_with_jitter
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


def test_retries_of_one_moment_spread_out() -> None:
    """Ten thousand jobs that failed together must not come back together."""
    moments = [DEFAULT_POLICY.delay(12, ValueError(), 0) or 0.0 for _ in range(10_000)]
    busiest = max(sum(start <= moment < start + 10 for moment in moments) for start in range(600, 750, 10))
    assert busiest < 1_000
