"""How many jobs one job may add, and until when: they are stored in one transaction, together with its success."""

from typing import Any, Final

from durableq.codec import utf8_length
from durableq.errors import CollectorClosed, ConfigurationError
from durableq.models import Job

FOLLOW_UPS: Final = 10_000
"""Most jobs that one attempt may add."""
FOLLOW_UP_BYTES: Final = 16 * 1024 * 1024
"""Of their arguments, as UTF-8."""


class Allowance:
    """What one attempt may still add."""

    __slots__ = ("_bytes", "_jobs")

    def __init__(self) -> None:
        self._jobs = 0
        self._bytes = 0

    def take(self, job: Job[Any]) -> None:
        """Count a job. Raises `ConfigurationError` when it is one too many; it does not count then."""
        size = utf8_length(job.args_json)
        if self._jobs >= FOLLOW_UPS or self._bytes + size > FOLLOW_UP_BYTES:
            raise ConfigurationError(
                f"expected at most {FOLLOW_UPS:,} follow-up jobs and {FOLLOW_UP_BYTES:,} bytes of arguments from one "
                "job: they are stored in one transaction; add some that add the rest, or use 'await dq.add_tasks(...)'"
            )
        self._jobs += 1
        self._bytes += size


def has_ended(job_id: str) -> CollectorClosed:
    """Return the refusal of a job that comes too late."""
    return CollectorClosed(
        f"job {job_id} has ended, or has completed itself: what it adds now would never be stored; add it "
        "before, or with 'await dq.add_task(...)'"
    )
