"""What a finished job gives to who waits for it: what its task returned, or the error that says why there is none."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from durableq.clock import from_datetime
from durableq.encryption import KeyRing, result_of
from durableq.errors import JobFailed, JobWasCancelled, ResultUnavailable
from durableq.models import Attempt, Job
from durableq.registry import AnyTask


def returned(job: Job[Any], task: AnyTask | None, keys: KeyRing | None, now: int) -> Any:
    """Return what the task of a job that succeeded returned, of the type that it declares. Raises `ResultUnavailable`.

    ``now`` is the wall clock, in microseconds.
    """
    if job.result_json is None and _was_dropped(job, now):
        raise ResultUnavailable(f"the result of job {job.id} was not kept, or is no longer (result_ttl)")
    job = dataclasses.replace(job, result_json=result_of(job, keys))
    return job.result if task is None else task.results.decode(job.result_json)


def why_dead(job: Job[Any], attempts: Sequence[Attempt]) -> JobFailed:
    """Return the error for a job that is dead, with the traceback of its last attempt."""
    trace = attempts[-1].traceback if attempts else ""
    text = f"job {job.id} of {job.task} is dead after {job.attempt} attempts: {_last_words(job)}\n{trace}".rstrip()
    return JobFailed(text, job_id=job.id, error_type=_error_type(job), traceback=trace)


def why_cancelled(job: Job[Any], attempts: Sequence[Attempt]) -> JobWasCancelled:
    """The same for one that was cancelled."""
    trace = attempts[-1].traceback if attempts else ""
    text = f"job {job.id} of {job.task} was cancelled ({_last_words(job)})"
    return JobWasCancelled(text, job_id=job.id, error_type=_error_type(job), traceback=trace)


def _was_dropped(job: Job[Any], now: int) -> bool:
    ttl = job.extras.result_ttl
    if ttl is None or job.finished_at is None:
        return False
    return from_datetime(job.finished_at) + ttl <= now


def _error_type(job: Job[Any]) -> str:
    return "" if job.error is None else job.error.type


def _last_words(job: Job[Any]) -> str:
    return "by request" if job.error is None else f"{job.error.type}: {job.error.message}"
