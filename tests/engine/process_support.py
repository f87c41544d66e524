"""What the tests of child processes need."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from durableq.engine.decisions import RemoteFailure
from durableq.engine.processes import ProcessRunner, RemoteCall, RemoteResult
from durableq.models import Job
from durableq.registry import Task
from tests.engine import process_tasks


class Heard:
    """Keeps what a job has said."""

    def __init__(self) -> None:
        self.all: list[tuple[Any, ...]] = []

    def progress(self, done: float, total: float | None, message: str | None) -> None:
        self.all.append(("progress", done, total, message))

    def log(self, message: str) -> None:
        self.all.append(("log", message))

    def add_job(self, job: Job[Any]) -> None:
        self.all.append(("job", job))

    @property
    def progresses(self) -> list[tuple[Any, ...]]:
        return [said[1:] for said in self.all if said[0] == "progress"]

    @property
    def lines(self) -> list[str]:
        return [said[1] for said in self.all if said[0] == "log"]

    @property
    def jobs(self) -> list[Job[Any]]:
        return [said[1] for said in self.all if said[0] == "job"]


def call_of(function: Callable[..., Any], *args: Any, job: dict[str, Any] | None = None, **changes: Any) -> RemoteCall:
    """Make the call that the executor would make. ``changes`` are fields of it, then keyword arguments."""
    fields = {name: changes.pop(name) for name in RemoteCall.__slots__ if name in changes}
    if "args_json" in fields:
        name = fields["task"] if "task" in fields else process_tasks.named(function).name
    else:
        task = function if isinstance(function, Task) else process_tasks.named(function)
        name, fields["args_json"] = task.name, task.codec.encode(args, changes, 1 << 24)
    facts: dict[str, Any] = {
        "id": "the-id",
        "task": name,
        "queue": "default",
        "attempt": 1,
        "max_attempts": 5,
        "idempotency_key": "the-key",
        "tags": [],
        "headers": {},
    }
    called = function.function if isinstance(function, Task) else function
    defaults: dict[str, Any] = {
        "function": called,
        "task": name,
        "job": facts | (job or {}),
        "attempt": 1,
        "elapsed_seconds": 0.0,
        "max_result_bytes": 100_000,
        "max_payload_bytes": 100_000,
    }
    return RemoteCall(**(defaults | fields))


async def outcome_of(runner: ProcessRunner, call: RemoteCall) -> RemoteResult | RemoteFailure:
    try:
        return await runner.run(call, Heard())
    except RemoteFailure as error:
        return error


async def value_of(
    runner: ProcessRunner, function: Callable[..., Any], *args: Any, heard: Heard | None = None, **changes: Any
) -> Any:
    """Run a task and return its value."""
    result = await runner.run(call_of(function, *args, **changes), heard or Heard())
    assert result.not_kept is None, result.not_kept
    return None if result.result_json is None else json.loads(result.result_json)


async def failure_of(runner: ProcessRunner, function: Callable[..., Any], *args: Any, **changes: Any) -> RemoteFailure:
    """Run a task that fails."""
    outcome = await outcome_of(runner, call_of(function, *args, **changes))
    assert isinstance(outcome, RemoteFailure), outcome
    return outcome


def status_of(pid: int) -> str | None:
    """Return the state letter of a process, Z for a zombie, or None when there is none of this number."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return stat.rpartition(")")[2].split()[0]


def is_gone(pid: int) -> bool:
    """Whether a process of somebody else's has ended, be it that nobody has taken note of it yet."""
    return status_of(pid) in (None, "Z", "X")


def pids_in(note: Path) -> list[int]:
    """Return what a task has noted, or nothing while it has not."""
    return [int(pid) for pid in note.read_text().split()] if note.exists() else []
