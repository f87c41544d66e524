"""What becomes of a job whose attempt failed: functions from facts to an outcome, without I/O.

What an exception says is stored, logged and shown, so it is redacted before it becomes a `Failure`.
"""

import inspect
import os
import traceback
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, NamedTuple

from durableq.clock import SECOND, to_datetime
from durableq.context import CurrentJob, running_here
from durableq.errors import AttemptTimedOut, WorkerDied
from durableq.models import Cancelled, Dead, Failure, Lease, Retried, Snoozed
from durableq.redaction import Redactor
from durableq.retry import PermanentFailure, Retry, RetryPolicy, Snooze
from durableq.secret_names import secret_arguments

TYPE_CHARACTERS: Final = 400
MESSAGE_CHARACTERS: Final = 2_000
TRACEBACK_CHARACTERS: Final = 64_000
_LOOKED_AT_CHARACTERS: Final = 4 * TRACEBACK_CHARACTERS
"""More of a text is cut out before secrets are looked for, so that an endless one holds nobody up."""
WORKER_DIED: Final = "durableq.WorkerDied"
"""The error type of an attempt that ended with its worker."""
EXPIRED: Final = "durableq.Expired"
DEADLINE_PASSED: Final = "durableq.DeadlinePassed"
CANCELLED: Final = "durableq.Cancelled"

_PACKAGE: Final = str(Path(__file__).resolve().parent.parent) + os.sep


class Ruling(NamedTuple):
    """What an exception asks for, before the limits of its job are looked at. ``delay`` is in seconds."""

    action: Literal["retry", "snooze", "die"]
    delay: float = 0.0


DIE: Final = Ruling("die")


class RemoteFailure(Exception):
    """An attempt failed in a child process, where its exception stayed behind.

    ``kinds`` are the qualified names of the exception's types, itself first.
    """

    def __init__(self, failure: Failure, ruling: Ruling, kinds: tuple[str, ...]) -> None:
        super().__init__(f"{failure.type}: {failure.message}")
        self.failure = failure
        self.ruling = ruling
        self.kinds = kinds


def ruling_on(error: BaseException, policy: RetryPolicy, attempt: int, elapsed_seconds: float, now: int) -> Ruling:
    """Say what an exception asks for. ``now`` is wall time in microseconds, ``elapsed_seconds`` the job's age."""
    if isinstance(error, RemoteFailure):
        return error.ruling
    if isinstance(error, PermanentFailure):
        return DIE
    if isinstance(error, Snooze):
        return Ruling("snooze", error.delay)
    asked = error.seconds(to_datetime(now)) if isinstance(error, Retry) else None
    delay = policy.delay(attempt, error, elapsed_seconds) if asked is None else asked
    return DIE if delay is None else Ruling("retry", delay)


def after_error(lease: Lease, error: BaseException, policy: RetryPolicy, now: int) -> Retried | Dead | Snoozed:
    """Decide after the task raised. ``now`` is wall time in microseconds."""
    ruling = ruling_on(error, policy, lease.attempt, (now - lease.created_at) / SECOND, now)
    failure = failure_of(error)
    run_at = now + round(ruling.delay * SECOND)
    is_too_late = lease.deadline_at is not None and run_at >= lease.deadline_at
    if ruling.action == "die" or is_too_late:
        return Dead(failure, error=error)
    if ruling.action == "snooze":
        return Snoozed(run_at)
    return Dead(failure, error=error) if lease.attempt >= lease.max_attempts else Retried(failure, run_at, error=error)


def before_start(lease: Lease, now: int) -> Cancelled | Dead | None:
    """Decide whether a claimed job comes too late to be started at all."""
    if lease.deadline_at is not None and now >= lease.deadline_at:
        text = "the job's deadline passed before it could be finished"
        return Dead(Failure(DEADLINE_PASSED, text, text), error=AttemptTimedOut(text))
    if lease.expires_at is not None and now >= lease.expires_at:
        text = "the job expired: nobody started it in time"
        return Cancelled(Failure(EXPIRED, text, text))
    return None


def time_limit(lease: Lease, timeout: int | None, now: int) -> float:
    """Return how many seconds an attempt that starts now may take; there must be a ``timeout`` or a deadline."""
    limits = [timeout] if timeout is not None else []
    if lease.deadline_at is not None:
        limits.append(lease.deadline_at - now)
    return max(min(limits), 0) / SECOND


def timed_out(lease: Lease, seconds: float, now: int) -> AttemptTimedOut:
    """Return the error of an attempt that was stopped after so many seconds."""
    if lease.deadline_at is not None and now >= lease.deadline_at:
        return AttemptTimedOut(f"attempt {lease.attempt} was stopped at the job's deadline, after {seconds:g} s")
    return AttemptTimedOut(f"attempt {lease.attempt} was stopped: it took longer than its timeout of {seconds:g} s")


def after_cancellation(error: BaseException | None) -> Cancelled:
    """Describe the end of an attempt that somebody asked for; ``error`` is what the task raised meanwhile."""
    text = "cancelled while running"
    trace = text if error is None else failure_of(error).traceback
    return Cancelled(Failure(CANCELLED, text, trace))


def after_crash(lease: Lease, reason: str, charged: bool, max_crashes: int) -> Retried | Dead:
    """Decide after the job's worker died. The start was counted by the claim; a crash that is ``charged`` counts too.

    The job may run again at once, unless it was its last attempt or it has taken too many processes down.
    """
    crashes = lease.crashes + int(charged)
    if charged and crashes >= max_crashes:
        text = f"worker died while running: {reason}; that was crash {crashes} of at most {max_crashes}"
        return Dead(Failure(WORKER_DIED, text, text), crashed=True, error=WorkerDied(text))
    text = f"worker died while running: {reason}"
    failure = Failure(WORKER_DIED, text, text)
    if lease.attempt >= lease.max_attempts:
        return Dead(failure, crashed=charged, error=WorkerDied(text))
    return Retried(failure, run_at=None, crashed=charged, error=WorkerDied(text))


def failure_of(error: BaseException, redactor: Redactor | None = None) -> Failure:
    """Describe an exception for storage: full chained traceback, no locals, capped, whatever its methods do.

    Secrets are hidden, by default those of the job that is running here.
    """
    if isinstance(error, RemoteFailure):
        return error.failure
    if redactor is None:
        redactor = _redactor_here()
    return Failure(
        _cut(_type_name(error), TYPE_CHARACTERS),
        _cut(_redacted(_message(error), redactor), MESSAGE_CHARACTERS),
        _cut(_redacted(_traceback(error), redactor), TRACEBACK_CHARACTERS),
    )


def redactor_of(function: Callable[..., Any], job: CurrentJob) -> Redactor:
    """Return what hides the secrets of a job of this task: those it was given, and those that stand in for them."""
    names = secret_arguments(function)
    try:
        return Redactor.of(names, {**_defaults(function), **job.args})
    except (ValueError, RecursionError):  # the arguments are damaged, and the task was not called with them
        return Redactor(names)


def _defaults(function: Callable[..., Any]) -> dict[str, str]:
    """Return the texts that a task takes for arguments which are not given."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return {}
    return {one.name: one.default for one in parameters if isinstance(one.default, str)}


def _redactor_here() -> Redactor:
    """Asked of the context, not of each caller: an exception is described wherever it happens to be caught."""
    job = running_here()
    return Redactor() if job is None else redactor_of(job.function, job)


def _redacted(text: str, redactor: Redactor) -> str:
    """Hide the secrets of a text that may be of any length; what is cut out afterwards is not looked at."""
    return redactor.text(_cut(text, _LOOKED_AT_CHARACTERS))


def _type_name(error: BaseException) -> str:
    kind = type(error)
    if kind.__module__.startswith("durableq."):  # where it is defined is no part of its name
        return f"durableq.{kind.__qualname__}"
    return storable(kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}")


def _message(error: BaseException) -> str:
    try:
        return storable(str(error))
    except BaseException as broken:  # it may raise anything, SystemExit included
        return f"<{type(error).__name__}: its __str__ raised {type(broken).__name__}>"


def _traceback(error: BaseException) -> str:
    try:
        lines = traceback.TracebackException(type(error), error, _from_user_code(error.__traceback__)).format()
        return storable("".join(lines))
    except BaseException as broken:  # a hostile exception; its own text is lost, the attempt is not
        return f"<the traceback could not be formatted: {type(broken).__name__}>"


def _from_user_code(trace: TracebackType | None) -> TracebackType | None:
    """Skip durableq's own frames at the top of a traceback; keep all when there are no others."""
    frame = trace
    while frame is not None and frame.tb_frame.f_code.co_filename.startswith(_PACKAGE):
        frame = frame.tb_next
    return frame or trace


def storable(text: str) -> str:
    """Make any text fit for a database: lone surrogates and NUL become visible escapes."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")


def _cut(text: str, limit: int) -> str:
    """Keep the beginning and the end, which say most."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n... {len(text) - 2 * half:,} characters left out ...\n{text[-half:]}"
