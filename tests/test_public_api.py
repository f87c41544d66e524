"""What an application may import. Adding a name is a decision with a line in the changelog; so is taking one away."""

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import durableq
import durableq.fastapi
from durableq import errors

REPOSITORY = Path(__file__).resolve().parents[1]

DURABLEQ = [
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
    "INJECTED",
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
DURABLEQ_FASTAPI = [
    "BackgroundTasks",
    "DurableRoute",
    "IdempotencyKey",
    "Principal",
    "TaskCollector",
    "accepted",
    "admin_router",
    "status_router",
]
DURABLEQ_METHODS = [
    "add_jobs",
    "add_task",
    "add_task_sync",
    "add_tasks",
    "attempts",
    "audit",
    "audit_trail",
    "cancel",
    "cancel_matching",
    "check_edit",
    "collector",
    "count",
    "counts",
    "dead_letters",
    "delete",
    "delete_matching",
    "drain",
    "exception_handler",
    "find_task",
    "get",
    "health",
    "history",
    "lifespan",
    "list",
    "logs",
    "middleware",
    "new_job",
    "now",
    "pause",
    "queues",
    "result",
    "resume",
    "retry",
    "retry_matching",
    "retry_policy",
    "rotate_keys",
    "running",
    "start",
    "stop",
    "task",
    "tasks",
    "wait",
    "within",
    "workers",
]


def test_the_public_names_are_these() -> None:
    assert sorted(durableq.__all__) == DURABLEQ
    assert durableq.fastapi.__all__ == DURABLEQ_FASTAPI


def test_the_verbs_of_a_queue_are_these() -> None:
    assert [name for name in dir(durableq.DurableQ) if not name.startswith("_")] == DURABLEQ_METHODS


@pytest.mark.parametrize("module", [durableq, durableq.fastapi], ids=lambda module: module.__name__)
def test_every_public_name_is_there_and_documented(module: object) -> None:
    names: list[str] = module.__all__  # type: ignore[attr-defined]
    assert len(names) == len(set(names))
    for name in names:
        value = getattr(module, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert value.__doc__, name


def test_every_public_verb_is_documented() -> None:
    for name in DURABLEQ_METHODS:
        assert inspect.getdoc(getattr(durableq.DurableQ, name)), name


def test_every_error_is_public_and_drawn_in_the_tree() -> None:
    classes = {
        name: value
        for name, value in inspect.getmembers(errors, inspect.isclass)
        if value.__module__ == errors.__name__
    }
    assert set(classes) <= set(durableq.__all__)
    assert errors.__doc__ is not None
    for name, value in classes.items():
        assert issubclass(value, durableq.DurableQError)
        assert name in errors.__doc__


def test_errors_are_also_what_python_calls_such_errors() -> None:
    assert issubclass(durableq.ConfigurationError, ValueError)
    assert issubclass(durableq.InvalidTask, TypeError)
    assert issubclass(durableq.InvalidArguments, TypeError)
    assert issubclass(durableq.JobNotFound, LookupError)
    assert issubclass(durableq.StorageBusy, durableq.NotStored)
    assert issubclass(durableq.StorageFull, durableq.NotStored)
    assert not issubclass(durableq.OutcomeUnknown, durableq.NotStored)


def test_a_conflict_names_the_states_that_would_do() -> None:
    error = durableq.JobConflict("x", "running", wanted=["dead", "cancelled", "scheduled"], action="retry")
    assert str(error) == "cannot retry job x: expected it to be dead, cancelled or scheduled, it is running"
    assert (error.job_id, error.state) == ("x", "running")
    one = durableq.JobConflict("x", "running", wanted=["dead"], action="retry")
    assert "expected it to be dead, it is" in str(one)


def test_the_version_is_one() -> None:
    assert [part.isdigit() for part in durableq.__version__.split(".")] == [True] * 3


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("durableq", ["fastapi", "starlette", "durableq.fastapi", "uvicorn"]),
        ("durableq.storage", ["aiosqlite", "fastapi"]),
    ],
)
def test_importing_less_loads_less(module: str, absent: list[str]) -> None:
    script = f"import sys, {module}; print([name for name in {absent!r} if name in sys.modules])"
    loaded = subprocess.check_output([sys.executable, "-c", script], cwd=REPOSITORY, text=True, timeout=30)
    assert ast.literal_eval(loaded) == []


def test_importing_starts_nothing() -> None:
    script = "import threading, durableq.fastapi; print(threading.active_count())"
    threads = subprocess.check_output([sys.executable, "-c", script], cwd=REPOSITORY, text=True, timeout=30)
    assert int(threads) == 1


def test_every_module_opens_with_what_it_is_for() -> None:
    package = Path(durableq.__file__).parent
    for path in package.rglob("*.py"):
        name = ".".join(("durableq", *path.relative_to(package).with_suffix("").parts)).removesuffix(".__init__")
        if name.endswith("__main__"):
            continue
        assert importlib.import_module(name).__doc__, name
