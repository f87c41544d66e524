"""When a failed job runs again: pure decisions in tenacity's vocabulary.

tenacity's ``wait_*``, ``stop_*`` and ``retry_if_*`` objects are evaluated on the attempt number that the row
holds; tenacity never sleeps here, and nothing of a policy is stored but the time it computed.
"""

import random
import time
from dataclasses import dataclass
from typing import Final

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
    Defaults: every failure is retried, after 1 s, 2 s, 4 s … up to 10 min, each plus up to 25 %.
    """

    wait: WaitBaseT = _DEFAULT_WAIT
    stop: StopBaseT = stop_never
    retry: RetryBaseT = _ANY_FAILURE

    def delay(self, attempt: int, error: BaseException, elapsed_seconds: float) -> float | None:
        """Return seconds until the next attempt, or None when there shall be none.

        ``attempt`` is the number of the try that failed, from 1; ``elapsed_seconds`` the job's age.
        """
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
