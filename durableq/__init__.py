"""Background tasks that survive: FastAPI's ``add_task``, on disk before the response leaves.

Change one import in a FastAPI app (`durableq.fastapi.BackgroundTasks`) and ``background_tasks.add_task(...)`` is
committed to a SQLite file before the client has its answer; a worker in the same process runs it, retries it, and
keeps what cannot succeed as a dead letter.
"""

from durableq.errors import (
    CollectorClosed,
    ConfigurationError,
    DurableQError,
    FileReplaced,
    InvalidArguments,
    InvalidTask,
    JobConflict,
    JobNotFound,
    NotStored,
    OutcomeUnknown,
    PayloadTooLarge,
    QueueNotRunning,
    SchemaTooNew,
    StorageBusy,
    StorageError,
    StorageFull,
    StorageUnusable,
)
from durableq.models import Attempt, AuditEntry, Job, JobError, JobFilter, JobState, Page
from durableq.queue import Call, DurableQ, call
from durableq.registry import Task
from durableq.retry import RetryPolicy, wait_with_jitter

__version__ = "0.1.0"

__all__ = [
    "Attempt",
    "AuditEntry",
    "Call",
    "CollectorClosed",
    "ConfigurationError",
    "DurableQ",
    "DurableQError",
    "FileReplaced",
    "InvalidArguments",
    "InvalidTask",
    "Job",
    "JobConflict",
    "JobError",
    "JobFilter",
    "JobNotFound",
    "JobState",
    "NotStored",
    "OutcomeUnknown",
    "Page",
    "PayloadTooLarge",
    "QueueNotRunning",
    "RetryPolicy",
    "SchemaTooNew",
    "StorageBusy",
    "StorageError",
    "StorageFull",
    "StorageUnusable",
    "Task",
    "call",
    "wait_with_jitter",
]
