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
    └── StorageError (RuntimeError)
        ├── NotStored                       nothing was written; trying again is safe
        │   ├── StorageBusy                 another holds the write lock, or too much is waiting
        │   └── StorageFull                 the disk or a quota is full
        ├── OutcomeUnknown                  COMMIT failed: the work may or may not be stored
        └── StorageUnusable                 the file cannot be used at all
            ├── SchemaTooNew                written by a newer durableq
            └── FileReplaced                deleted or replaced while open

Messages say what was expected, what came, and what to do. Errors carry their facts as attributes.
"""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches


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
    """No stored job has this id: it never existed, or it was deleted or pruned."""

    def __init__(self, job_id: str) -> None:
        super().__init__(f"no job {job_id!r} is stored; it may have been deleted, or pruned by retention")
        self.job_id = job_id


class JobConflict(DurableQError, RuntimeError):
    """The job's state does not allow what was asked."""

    def __init__(self, job_id: str, state: str, *, wanted: Sequence[str], action: str) -> None:
        super().__init__(f"cannot {action} job {job_id}: expected it to be {_either(wanted)}, it is {state}")
        self.job_id = job_id
        self.state = state


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


def near(word: str, known: Iterable[str]) -> str:
    """Return ``", did you mean 'x'?"`` for the nearest known word, or an empty string."""
    matches = get_close_matches(word, list(known), n=1)
    return f", did you mean {matches[0]!r}?" if matches else ""


def _either(words: Sequence[str]) -> str:
    return " or ".join((", ".join(words[:-1]), words[-1])) if len(words) > 1 else words[0]
