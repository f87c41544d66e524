"""What other queues call what is an option of tasks here: whoever comes from them is told our word."""

from collections.abc import Mapping, Sequence
from typing import Final

ELSEWHERE: Final[Mapping[str, Sequence[str]]] = {
    "max_attempts": ("retries", "max_retries", "tries", "max_tries", "attempts"),
    "retry": ("retry_policy", "retry_delay", "retry_backoff", "default_retry_delay", "min_backoff", "max_backoff"),
    "retry_on": ("autoretry_for",),
    "give_up_on": ("dont_autoretry_for", "throws"),
    "delay": ("countdown", "defer", "defer_by"),
    "run_at": ("eta", "defer_until", "scheduled", "schedule_at"),
    "expires": ("max_age",),
    "timeout": ("time_limit", "soft_time_limit", "job_timeout"),
    "queue": ("queue_name",),
    "idempotency_key": ("job_id", "task_id"),
    "result_ttl": ("keep_result", "result_expires", "ignore_result"),
    "on_success": ("link",),
    "on_dead": ("on_failure", "link_error"),
}
"""By our option: the words of Celery, arq, SAQ, Huey, Dramatiq and RQ."""
MEANT_BY: Final = {word: option for option, words in ELSEWHERE.items() for word in words}
