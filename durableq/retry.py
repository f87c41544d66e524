"""When a failed job runs again: pure decisions in tenacity's vocabulary.

tenacity's ``wait_*``, ``stop_*`` and ``retry_if_*`` objects are evaluated on the attempt number that the row
holds; tenacity never sleeps here, and nothing of a policy is stored but the time it computed.
"""

import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any, Final

from tenacity import (
    RetryCallState,
    retry_if_exception_type,
    stop_never,
    wait_exponential,
)
from tenacity.retry import RetryBaseT
from tenacity.stop import StopBaseT
from tenacity.wait import WaitBaseT, wait_base

LONGEST_DELAY_SECONDS: Final = 365 * 24 * 3600.0
"""A wait strategy's answer is cut here, so that no row is scheduled beyond what a datetime can hold."""


ExceptionTypes = type[BaseException] | tuple[type[BaseException], ...]


class Retry(Exception):
    """Raised by a task: this attempt failed, try again after ``delay`` (seconds or `timedelta`).

    Without a delay the task's policy says when. The attempt counts, ``max_attempts`` holds, and which errors the
    policy retries is not asked. ``raise Retry(delay=30) from error`` keeps the error in the traceback. Raises
    ``ValueError`` for a negative delay.
    """

    def __init__(self, message: str = "the task asked to be retried", *, delay: timedelta | float | None = None):
        super().__init__(message)
        self.delay: float | None = None if delay is None else _seconds(delay)
        self.at: datetime | None = None
        """The moment of the next attempt, in place of ``delay``."""

    @classmethod
    def after(cls, response_or_headers: Any, *, message: str | None = None) -> "Retry":
        """Read ``Retry-After`` (RFC 9110 §10.2.3: seconds, or an HTTP date) from a response, or from headers.

        A response is anything with ``headers``. When the header is absent, or says nothing that can be read, the
        task's policy decides.
        """
        value = _header(getattr(response_or_headers, "headers", response_or_headers), "retry-after")
        retry = cls(message or f"the other side asked to wait (Retry-After: {value})")
        retry.delay, retry.at = _delay_or_moment(value)
        return retry

    def seconds(self, now: datetime) -> float | None:
        """Return seconds from ``now`` until the next attempt, or None for the policy to decide."""
        if self.at is not None:
            return max((self.at - now).total_seconds(), 0.0)
        return self.delay


class Snooze(Exception):
    """Raised by a task: not now, run me again after ``delay`` (seconds or `timedelta`). It costs no attempt.

    Raises ``ValueError`` for a negative delay.
    """

    def __init__(self, delay: timedelta | float) -> None:
        self.delay = _seconds(delay)
        super().__init__(f"snoozed for {self.delay:g} s")


class PermanentFailure(Exception):
    """Raised by a task: no other attempt can succeed. The job becomes a dead letter at once."""


class wait_with_jitter(wait_base):
    """Add a random share of up to ``ratio`` to another strategy's wait, so that a herd of retries spreads out."""

    def __init__(self, wait: WaitBaseT, ratio: float = 0.25) -> None:
        self._wait = wait
        self._ratio = ratio

    def __call__(self, retry_state: RetryCallState) -> float:
        spread = random.uniform(0, self._ratio)  # noqa: S311 - spreads load, guards no secret
        return float(self._wait(retry_state)) * (1 + spread)


_DEFAULT_WAIT: Final = wait_with_jitter(wait_exponential(multiplier=1, max=600))
_ANY_FAILURE: Final = retry_if_exception_type(BaseException)


@dataclass(frozen=True)
class RetryPolicy:
    """How long to wait after a failed attempt, and which failures not to retry.

    Any tenacity strategies will do and compose as they do there. The number of attempts is the task's
    ``max_attempts``; ``stop`` can end earlier. ``stop_after_delay`` counts from when the job was added.
    ``retry_on`` and ``give_up_on`` are the plain form of ``retry``: exception types, of which only the former are
    retried and the latter never. ``name`` is what a row can hold, see `DurableQ.retry_policy`.
    Defaults: every failure is retried, after 1 s, 2 s, 4 s … up to 10 min, each plus up to 25 %.
    """

    wait: WaitBaseT = _DEFAULT_WAIT
    stop: StopBaseT = stop_never
    retry: RetryBaseT = _ANY_FAILURE
    retry_on: ExceptionTypes = ()
    give_up_on: ExceptionTypes = ()
    name: str | None = None

    def delay(self, attempt: int, error: BaseException, elapsed_seconds: float) -> float | None:
        """Return seconds until the next attempt, or None when there shall be none.

        ``attempt`` is the number of the try that failed, from 1; ``elapsed_seconds`` the job's age.
        """
        if isinstance(error, self.give_up_on) or (self.retry_on and not isinstance(error, self.retry_on)):
            return None
        state = _call_state(attempt, error, elapsed_seconds)
        if not self.retry(state):
            return None
        wait = min(max(float(self.wait(state)), 0.0), LONGEST_DELAY_SECONDS)
        state.upcoming_sleep = wait  # what stop_before_delay looks at
        return None if self.stop(state) else wait


DEFAULT_POLICY: Final = RetryPolicy()


def _call_state(attempt: int, error: BaseException, elapsed_seconds: float) -> RetryCallState:
    # tenacity allows for a state without a retry object only in its implementation, not in its types.
    state = RetryCallState(retry_object=None, fn=None, args=(), kwargs={})  # type: ignore[arg-type]
    state.attempt_number = attempt
    state.set_exception((type(error), error, error.__traceback__))
    state.outcome_timestamp = time.monotonic()  # only the difference to start_time is ever looked at
    state.start_time = state.outcome_timestamp - elapsed_seconds
    return state


def _seconds(delay: timedelta | float) -> float:
    seconds = delay.total_seconds() if isinstance(delay, timedelta) else float(delay)
    if not seconds >= 0:  # also refuses NaN
        raise ValueError(f"expected a delay of 0 seconds or more, got {delay!r}")
    return min(seconds, LONGEST_DELAY_SECONDS)


def _header(headers: Mapping[Any, Any], name: str) -> str | None:
    """Look a header up whatever its case, in mappings that care about case and in those that do not."""
    for key, value in headers.items():
        text = key.decode("latin-1") if isinstance(key, bytes) else str(key)
        if text.lower() == name:
            return value.decode("latin-1") if isinstance(value, bytes) else str(value)
    return None


def _delay_or_moment(value: str | None) -> tuple[float | None, datetime | None]:
    text = (value or "").strip()
    if text.isascii() and text.isdigit():
        return min(float(text[:12]), LONGEST_DELAY_SECONDS), None
    try:
        moment = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return None, None
    return None, moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
