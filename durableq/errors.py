"""Every error durableq raises, as one tree.

::

    DurableQError
    ├── ConfigurationError (ValueError)     a setting or option that cannot be right
    ├── InvalidTask (TypeError)             this function cannot be a durable task
    ├── InvalidArguments (TypeError)        the task's signature, or JSON, refuses an argument
    │   └── PayloadTooLarge                 the arguments are over the limit
    ├── CollectorClosed (RuntimeError)      add_task after the request's jobs were committed
    ├── QueueNotRunning (RuntimeError)      no running queue to take the job
    ├── JobNotFound (LookupError)           no stored job has this id
    ├── JobConflict (RuntimeError)          the job's state does not allow this
    │   ├── DuplicateJob                    another job holds this unique key
    │   └── IdempotencyConflict             the idempotency key was used for other arguments
    ├── JobFailed (RuntimeError)            the awaited job is dead
    │   └── JobWasCancelled                 the awaited job was cancelled
    ├── ResultUnavailable (LookupError)     the job succeeded, but its result was not kept
    ├── AttemptFailed (RuntimeError)        an attempt ended for a reason outside of the task's own code
    │   ├── AttemptTimedOut (TimeoutError)  it took longer than ``timeout`` or ``deadline`` allow
    │   ├── WorkerDied                      its process died
    │   └── CompletionRolledBack            complete_within's transaction was not committed
    ├── NoCurrentJob (RuntimeError)         current_job() outside of a task
    ├── TransactionRefused (RuntimeError)   within() cannot use this connection, or not now
    └── StorageError (RuntimeError)
        ├── NotStored                       nothing was written; trying again is safe
        │   ├── StorageBusy                 another holds the write lock, or too much is waiting
        │   └── StorageFull                 the disk or a quota is full
        ├── OutcomeUnknown                  COMMIT failed: the work may or may not be stored
        └── StorageUnusable                 the file cannot be used at all
            ├── SchemaTooNew                written by a newer durableq
            ├── FileReplaced                deleted or replaced while open
            └── InvariantBroken             a write did not do what it cannot but do

Messages say what was expected, what came, and what to do. Errors carry their facts as attributes.
"""

import json
import re
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from typing import Final


class DurableQError(Exception):
    """The root of all errors that durableq raises."""


class ConfigurationError(DurableQError, ValueError):
    """A setting or option has a value that cannot be right."""


class InvalidTask(DurableQError, TypeError):
    """The function cannot be a durable task: after a restart it could not be found again."""


class InvalidArguments(DurableQError, TypeError):
    """The arguments do not fit the task's signature, or JSON cannot carry them unchanged."""

    def __init__(self, message: str, *, task: str, argument: str | None = None) -> None:
        super().__init__(message)
        self.task = task
        self.argument = argument


class PayloadTooLarge(InvalidArguments):
    """The encoded arguments are larger than ``max_payload_bytes``."""


class CollectorClosed(DurableQError, RuntimeError):
    """``add_task`` came after this request's jobs were already committed."""


class QueueNotRunning(DurableQError, RuntimeError):
    """No running `DurableQ` can take the job."""


class JobNotFound(DurableQError, LookupError):
    """No stored job has this id: it never existed, is not stored yet, or was deleted or pruned."""

    def __init__(self, job_id: str) -> None:
        super().__init__(
            f"no job {job_id!r} is stored; it may have been deleted, or pruned by retention. One that was added in a "
            "route is stored only when the route has returned, one within a transaction when that commits"
        )
        self.job_id = job_id


class JobConflict(DurableQError, RuntimeError):
    """The job's state does not allow what was asked."""

    state: str | None = None
    """The state it is in; None where that is not what stands in the way."""

    def __init__(self, job_id: str, state: str, *, wanted: Sequence[str], action: str) -> None:
        super().__init__(f"cannot {action} job {job_id}: expected it to be {_either(wanted)}, it is {state}")
        self.job_id = job_id
        self.state = state


class DuplicateJob(JobConflict):
    """Another job holds this unique key, and the task says ``on_conflict="raise"``. Nothing was stored.

    ``arguments`` are the names of those that make the key; () for none, None for unknown ones.
    ``is_stored`` is False for a job that was to be stored together with the one that is refused.
    """

    def __init__(
        self, job_id: str, key: str, *, arguments: Sequence[str] | None = None, is_stored: bool = True
    ) -> None:
        claim = _claim_in_words(key, arguments)
        if is_stored:
            text = f"job {job_id} already holds {claim}; nothing was stored"
        else:
            text = (
                f"another call of this same addition wants {claim} too; nothing was stored. "
                "Add it once, or let on_conflict='return' make one job of both"
            )
        RuntimeError.__init__(self, text)
        self.is_stored = is_stored
        self.job_id = job_id
        self.key = key


class IdempotencyConflict(JobConflict):
    """The idempotency key was used before, for other arguments. Nothing was stored."""

    def __init__(self, job_id: str) -> None:
        RuntimeError.__init__(
            self,
            f"job {job_id} was stored under this idempotency key with other arguments; nothing was stored. "
            "Repeat a request unchanged, or use a new key",
        )
        self.job_id = job_id


class JobFailed(DurableQError, RuntimeError):
    """The awaited job is dead. Its message holds the task's own error, and its traceback."""

    def __init__(self, message: str, *, job_id: str, error_type: str, traceback: str) -> None:
        super().__init__(message)
        self.job_id = job_id
        self.error_type = error_type
        self.traceback = traceback
        """The traceback of the last attempt, as text."""


class JobWasCancelled(JobFailed):
    """The awaited job was cancelled."""


class ResultUnavailable(DurableQError, LookupError):
    """The job succeeded, but its result was not kept, or is no longer."""


class AttemptFailed(DurableQError, RuntimeError):
    """An attempt ended for a reason outside of the task's own code."""


class AttemptTimedOut(AttemptFailed, TimeoutError):
    """The attempt took longer than ``timeout`` or ``deadline`` allow."""


class WorkerDied(AttemptFailed):
    """The process that ran the attempt died."""


class CompletionRolledBack(AttemptFailed):
    """The task returned, but the transaction of its ``complete_within`` was not committed."""


class NoCurrentJob(DurableQError, RuntimeError):
    """``current_job()`` was called outside of a task."""

    def __init__(self) -> None:
        super().__init__(
            "no job is running here: current_job() works inside a task that a worker runs (and what it awaits or "
            "calls). In a unit test, call what needs no job, or run the task through a DurableQ"
        )


class TransactionRefused(DurableQError, RuntimeError):
    """A transaction cannot carry jobs, or must not wait for the write lock that it holds itself."""


class StorageError(DurableQError, RuntimeError):
    """The storage could not do what was asked."""


class NotStored(StorageError):
    """Nothing of the operation was written. Trying again is safe."""


class StorageBusy(NotStored):
    """The write lock could not be had in time, or too much is already waiting for it."""


class StorageFull(NotStored):
    """The disk, a quota or a size limit is full."""


class OutcomeUnknown(StorageError):
    """COMMIT failed, and so did its repetition: the jobs may or may not be stored. ``job_ids`` names them."""

    def __init__(self, message: str, *, job_ids: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.job_ids = tuple(job_ids)


class StorageUnusable(StorageError):
    """The database file cannot be used."""


class SchemaTooNew(StorageUnusable):
    """A newer durableq wrote this file."""

    def __init__(self, found: int, known: int) -> None:
        super().__init__(
            f"the database schema is at version {found}, this durableq knows up to {known}; "
            "upgrade durableq here, or open the file with the version that wrote it (nothing was changed)"
        )
        self.found = found
        self.known = known


class FileReplaced(StorageUnusable):
    """The database file, or its ``-wal``, was deleted or replaced while it was open."""


class InvariantBroken(StorageUnusable):
    """A write had another effect than it can have: something else changes durableq's tables, or there is a defect.

    The transaction that found it was rolled back, the worker has stopped, and everything is refused from then on:
    going on would build on what cannot be trusted.
    """

    def __init__(self, doing: str, *, expected: object, found: object) -> None:
        super().__init__(
            f"{doing}: expected {expected}, found {found}. durableq stops here rather than go on wrong: look for what "
            "else writes to its tables (a trigger, a script, a restored copy), run PRAGMA integrity_check, restart"
        )
        self.doing = doing
        self.expected = expected
        self.found = found


def _claim_in_words(key: str, arguments: Sequence[str] | None) -> str:
    """Tell a unique key, as it is stored, by its task and what makes it: a hash of arguments says nothing."""
    try:
        task, value = json.loads(key)[:2]
    except (ValueError, TypeError, LookupError):  # one that was made in some other way
        return f"the unique key {key!r}"
    if _HASH.fullmatch(str(value)) is None:
        return f"the unique key {value!r} of {task}"
    if arguments is None:
        return f"the unique key that {task} makes of its arguments"
    return f"the unique key that {task} makes of {', '.join(arguments)}" if arguments else f"the unique key of {task}"


_HASH: Final = re.compile("[0-9a-f]{32}")


def near(word: str, known: Iterable[str]) -> str:
    """Return ``", did you mean 'x'?"`` for the nearest known word, or an empty string."""
    matches = get_close_matches(word, list(known), n=1)
    return f", did you mean {matches[0]!r}?" if matches else ""


def _either(words: Sequence[str]) -> str:
    return " or ".join((", ".join(words[:-1]), words[-1])) if len(words) > 1 else words[0]
