"""What becomes of a job whose attempt failed: pure functions from facts to an outcome."""

import os
import traceback
from pathlib import Path
from types import TracebackType
from typing import Final

from durableq.clock import SECOND
from durableq.models import Dead, Failure, Lease, Retry
from durableq.retry import RetryPolicy

TYPE_CHARACTERS: Final = 400
MESSAGE_CHARACTERS: Final = 2_000
TRACEBACK_CHARACTERS: Final = 64_000
WORKER_DIED: Final = "durableq.WorkerDied"
"""The error type of an attempt that ended with its worker."""

_PACKAGE: Final = str(Path(__file__).resolve().parent.parent) + os.sep


def after_error(lease: Lease, error: BaseException, policy: RetryPolicy, now: int) -> Retry | Dead:
    """Decide after the task raised. ``now`` is wall time in microseconds."""
    failure = failure_of(error)
    if lease.attempt >= lease.max_attempts:
        return Dead(failure)
    delay = policy.delay(lease.attempt, error, (now - lease.created_at) / SECOND)
    return Dead(failure) if delay is None else Retry(failure, now + round(delay * SECOND))


def after_crash(lease: Lease, reason: str, charged: bool, max_crashes: int) -> Retry | Dead:
    """Decide after the job's worker died. The start was counted by the claim; a crash that is ``charged`` counts too.

    The job may run again at once, unless it was its last attempt or it has taken too many processes down.
    """
    crashes = lease.crashes + int(charged)
    if charged and crashes >= max_crashes:
        text = f"worker died while running: {reason}; that was crash {crashes} of at most {max_crashes}"
        return Dead(Failure(WORKER_DIED, text, text), crashed=True)
    text = f"worker died while running: {reason}"
    failure = Failure(WORKER_DIED, text, text)
    if lease.attempt >= lease.max_attempts:
        return Dead(failure, crashed=charged)
    return Retry(failure, run_at=None, crashed=charged)


def failure_of(error: BaseException) -> Failure:
    """Describe an exception for storage: full chained traceback, no locals, capped, whatever its methods do."""
    return Failure(
        _cut(_type_name(error), TYPE_CHARACTERS),
        _cut(_message(error), MESSAGE_CHARACTERS),
        _cut(_traceback(error), TRACEBACK_CHARACTERS),
    )


def _type_name(error: BaseException) -> str:
    kind = type(error)
    return _storable(kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}")


def _message(error: BaseException) -> str:
    try:
        return _storable(str(error))
    except BaseException as broken:  # it may raise anything, SystemExit included
        return f"<{type(error).__name__}: its __str__ raised {type(broken).__name__}>"


def _traceback(error: BaseException) -> str:
    try:
        lines = traceback.TracebackException(type(error), error, _from_user_code(error.__traceback__)).format()
        return _storable("".join(lines))
    except BaseException as broken:  # a hostile exception; its own text is lost, the attempt is not
        return f"<the traceback could not be formatted: {type(broken).__name__}>"


def _from_user_code(trace: TracebackType | None) -> TracebackType | None:
    """Skip durableq's own frames at the top of a traceback; keep all when there are no others."""
    frame = trace
    while frame is not None and frame.tb_frame.f_code.co_filename.startswith(_PACKAGE):
        frame = frame.tb_next
    return frame or trace


def _storable(text: str) -> str:
    """Make any text fit for a database: lone surrogates and NUL become visible escapes."""
    return text.encode("utf-8", "backslashreplace").decode().replace("\0", "\\x00")


def _cut(text: str, limit: int) -> str:
    """Keep the beginning and the end, which say most."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n... {len(text) - 2 * half:,} characters left out ...\n{text[-half:]}"
