"""Log lines for events: searchable sentences with fields, under the logger ``durableq``.

Whatever durableq logs, here or elsewhere, passes `Guard`: no secrets, no terminal escapes, and nothing that a task or
a stored name says can look like a log line of its own.
"""

import logging
import traceback
from typing import Final

from durableq.events import (
    AttemptOverran,
    Emitter,
    JobCancelled,
    JobDied,
    JobReleased,
    JobRetried,
    JobSnoozed,
    LeaseLost,
    LoopStalled,
    ResultNotStored,
    StorageTrouble,
    UnknownTasks,
    WorkerEvicted,
    WorkerReaped,
    WorkerStarted,
    WorkerStopped,
)
from durableq.models import Lease
from durableq.redaction import cleaned, redacted_text

logger: Final = logging.getLogger("durableq")

_LOGGERS: Final = ("durableq", "durableq.dashboard", "durableq.fastapi", "durableq.storage")
_CONTINUED: Final = "\n  | "


class Guard(logging.Filter):
    """Makes log records fit to be shown: what is filled into a message, and the traceback that comes with it.

    Continuation lines are indented, so that none can pass for a record. A handler that formats tracebacks itself, an
    error tracker for instance, sees the exception as it is.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(one if isinstance(one, int | float) else _Shown(one) for one in record.args)
        if record.exc_info and not record.exc_text:
            trace = "".join(traceback.format_exception(record.exc_info[1]))
            record.exc_text = f"  | {_shown(trace)}"
        return True


class _Shown:
    """Stands for a value in a log message. The message itself is ours, and stays as it is."""

    __slots__ = ("_value",)

    def __init__(self, value: object) -> None:
        self._value = value

    def __str__(self) -> str:
        return _shown(str(self._value))

    def __repr__(self) -> str:
        return _shown(repr(self._value))


_GUARD: Final = Guard()


def _shown(text: str) -> str:
    return redacted_text(cleaned(text)).rstrip("\n").replace("\n", _CONTINUED)


def log_events(emitter: Emitter) -> None:
    """Log what an operator wants to read. A job that simply succeeds is not news."""
    for name in _LOGGERS:
        logging.getLogger(name).addFilter(_GUARD)  # there once, however often it is added
    emitter.subscribe(JobRetried, _job_retried)
    emitter.subscribe(JobDied, _job_died)
    emitter.subscribe(JobCancelled, _job_cancelled)
    emitter.subscribe(JobSnoozed, _job_snoozed)
    emitter.subscribe(JobReleased, _job_released)
    emitter.subscribe(AttemptOverran, _attempt_overran)
    emitter.subscribe(LeaseLost, _lease_lost)
    emitter.subscribe(ResultNotStored, _result_not_stored)
    emitter.subscribe(UnknownTasks, _unknown_tasks)
    emitter.subscribe(WorkerStarted, _worker_started)
    emitter.subscribe(WorkerStopped, _worker_stopped)
    emitter.subscribe(WorkerReaped, _worker_reaped)
    emitter.subscribe(WorkerEvicted, _worker_evicted)
    emitter.subscribe(LoopStalled, _loop_stalled)
    emitter.subscribe(StorageTrouble, _storage_trouble)


def _job_retried(event: JobRetried) -> None:
    logger.warning(
        "job failed, will be retried: %s error=%s: %s", _fields(event.lease), event.failure.type, event.failure.message
    )


def _job_died(event: JobDied) -> None:
    logger.error("job is dead: %s error=%s\n  | %s", _fields(event.lease), event.failure.type, event.failure.traceback)


def _job_cancelled(event: JobCancelled) -> None:
    logger.info("job cancelled: %s reason=%s", _fields(event.lease), event.failure.message)


def _job_snoozed(event: JobSnoozed) -> None:
    logger.debug("job snoozed: %s", _fields(event.lease))


def _attempt_overran(event: AttemptOverran) -> None:
    logger.error(
        "an attempt was stopped by its time limit, but its code goes on in the %s runner: %s (%d such now). Let it "
        "look at current_job().cancelled, or run it with runner='process'",
        event.runner,
        _fields(event.lease),
        event.left_behind,
    )


def _job_released(event: JobReleased) -> None:
    logger.info("job handed back unfinished, uncounted: %s", _fields(event.lease))


def _lease_lost(event: LeaseLost) -> None:
    logger.warning("lease lost, what this worker did for it has no effect: %s", _fields(event.lease))


def _result_not_stored(event: ResultNotStored) -> None:
    logger.warning("job succeeded but its result was not kept: %s reason=%s", _fields(event.lease), event.reason)


def _unknown_tasks(event: UnknownTasks) -> None:
    logger.warning(
        "jobs of these tasks are left alone, no code here has the names: %s. Import their modules, register them "
        "with @dq.task, or let another deployment run them",
        ", ".join(event.names),
    )


def _worker_started(event: WorkerStarted) -> None:
    logger.info("worker %d started", event.worker_id)


def _worker_stopped(event: WorkerStopped) -> None:
    logger.info("worker %d stopped, %d jobs handed back", event.worker_id, event.released)


def _worker_reaped(event: WorkerReaped) -> None:
    logger.warning("took back %d jobs of worker %d: %s", event.jobs, event.worker_id, event.reason)


def _worker_evicted(event: WorkerEvicted) -> None:
    logger.error(
        "worker %d was taken for dead while this process was held up; its leases are lost, it starts over",
        event.worker_id,
    )


def _loop_stalled(event: LoopStalled) -> None:
    logger.warning("the event loop has not moved for %.1f s; it is executing %s", event.seconds, event.where)


def _storage_trouble(event: StorageTrouble) -> None:
    logger.error("storage trouble while %s, will try again: %s", event.doing, event.error)


def _fields(lease: Lease) -> str:
    return f"job_id={lease.id} task={lease.task} attempt={lease.attempt}/{lease.max_attempts}"
