"""The exact numbers and forms of retrying: how much is added by chance, what a header may look like."""

from datetime import UTC, datetime, timedelta

import pytest
from tenacity import RetryCallState, retry_if_exception_message, wait_fixed
from tenacity.wait import wait_base

from durableq.retry import LONGEST_DELAY_SECONDS, Retry, RetryPolicy, wait_with_jitter

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def test_chance_adds_up_to_a_quarter_unless_told_otherwise() -> None:
    policy = RetryPolicy(wait=wait_with_jitter(wait_fixed(100)))
    waits = [policy.delay(1, ValueError(), 0.0) or 0.0 for _ in range(200)]
    assert 100 <= min(waits) < 105
    assert 120 < max(waits) <= 125


def test_a_strategy_sees_the_attempt_and_the_error() -> None:
    seen: list[RetryCallState] = []

    class ByAttempt(wait_base):
        def __call__(self, retry_state: RetryCallState) -> float:
            seen.append(retry_state)
            return float(retry_state.attempt_number)

    error = ValueError("no")
    assert RetryPolicy(wait=ByAttempt(), retry=retry_if_exception_message("no")).delay(7, error, 0.0) == 7.0
    (state,) = seen
    assert state.outcome is not None
    assert state.outcome.exception() is error
    assert (state.args, state.kwargs) == ((), {})


@pytest.mark.parametrize("value", ["", "   ", "soon", "1.5", "-1", "٣", "1 2"])
def test_a_header_that_cannot_be_read_leaves_it_to_the_policy(value: str) -> None:
    assert Retry.after({"Retry-After": value}).seconds(NOW) is None


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({b"retry-after": b"7"}, 7.0),
        ({"RETRY-AFTER": " 7 "}, 7.0),
        ({b"x-caf\xe9": b"1", b"Retry-After": b"7"}, 7.0),
        ({"Retry-After": 7}, 7.0),
        ({"Retry-After": "9" * 30}, LONGEST_DELAY_SECONDS),
        ({"Retry-After": "Thu, 01 Jan 2026 00:01:00 GMT"}, 60.0),
        ({"Retry-After": b"Thu, 01 Jan 2026 00:01:00 GMT"}, 60.0),
        ({"Retry-After": "Thu, 01 Jan 2026 00:01:00 -0000"}, 60.0),
        ({"Retry-After": "Thu, 01 Jan 2026 02:01:00 +0200"}, 60.0),
        ({"Retry-After": "Wed, 31 Dec 2025 00:00:00 GMT"}, 0.0),
    ],
)
def test_a_header_is_read_whatever_its_form(headers: dict[object, object], seconds: float) -> None:
    assert Retry.after(headers).seconds(NOW) == seconds


def test_a_header_that_cannot_be_text_leaves_it_to_the_policy() -> None:
    assert Retry.after({b"retry-after": b"\xff"}).seconds(NOW) is None


def test_the_moment_counts_from_when_it_is_asked() -> None:
    retry = Retry.after({"Retry-After": "Thu, 01 Jan 2026 00:01:00 GMT"})
    assert retry.seconds(NOW + timedelta(seconds=20)) == 40.0
