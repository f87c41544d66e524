"""Background tasks that survive: FastAPI's ``add_task``, on disk before the response leaves.

Change one import in a FastAPI app (`durableq.fastapi.BackgroundTasks`) and ``background_tasks.add_task(...)`` is
committed to a SQLite file before the client has its answer; a worker in the same process runs it, retries it, and
keeps what cannot succeed as a dead letter.
"""

from durableq.adding import Call, call
from durableq.context import CurrentJob, current_job
from durableq.dependencies import INJECTED
from durableq.errors import (
    AttemptFailed,
    AttemptTimedOut,
    CollectorClosed,
    CompletionRolledBack,
    ConfigurationError,
    DuplicateJob,
    DurableQError,
    FileReplaced,
    IdempotencyConflict,
    InvalidArguments,
    InvalidTask,
    InvariantBroken,
    JobConflict,
    JobFailed,
    JobNotFound,
    JobWasCancelled,
    NoCurrentJob,
    NotStored,
    OutcomeUnknown,
    PayloadTooLarge,
    QueueNotRunning,
    ResultUnavailable,
    SchemaTooNew,
    StorageBusy,
    StorageError,
    StorageFull,
    StorageUnusable,
    TransactionRefused,
    WorkerDied,
)
from durableq.health import Health
from durableq.models import Attempt, AuditEntry, Job, JobError, JobFilter, JobState, LogLine, Page, Progress
from durableq.options import Unique
from durableq.queue import DurableQ
from durableq.registry import Task
from durableq.retry import PermanentFailure, Retry, RetryPolicy, Snooze, wait_with_jitter
from durableq.secret_names import Secret
from durableq.version import __version__ as __version__

__all__ = [
    "INJECTED",
    "Attempt",
    "AttemptFailed",
    "AttemptTimedOut",
    "AuditEntry",
    "Call",
    "CollectorClosed",
    "CompletionRolledBack",
    "ConfigurationError",
    "CurrentJob",
    "DuplicateJob",
    "DurableQ",
    "DurableQError",
    "FileReplaced",
    "Health",
    "IdempotencyConflict",
    "InvalidArguments",
    "InvalidTask",
    "InvariantBroken",
    "Job",
    "JobConflict",
    "JobError",
    "JobFailed",
    "JobFilter",
    "JobNotFound",
    "JobState",
    "JobWasCancelled",
    "LogLine",
    "NoCurrentJob",
    "NotStored",
    "OutcomeUnknown",
    "Page",
    "PayloadTooLarge",
    "PermanentFailure",
    "Progress",
    "QueueNotRunning",
    "ResultUnavailable",
    "Retry",
    "RetryPolicy",
    "SchemaTooNew",
    "Secret",
    "Snooze",
    "StorageBusy",
    "StorageError",
    "StorageFull",
    "StorageUnusable",
    "Task",
    "TransactionRefused",
    "Unique",
    "WorkerDied",
    "call",
    "current_job",
    "wait_with_jitter",
]
