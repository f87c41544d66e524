"""What the admin routes take and give, as pydantic models: the documented shape of every request and response."""

import json
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Final, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from durableq.models import Attempt, AuditEntry, Job, JobFilter, JobState, LogLine, Page

RETRY_LIMIT: Final = 1_000
"""Most jobs that one request may retry: they share one transaction."""

Name = Annotated[str, Field(min_length=1, max_length=200)]


class _Record(BaseModel):
    model_config = ConfigDict(from_attributes=True, frozen=True)


# -- what comes in -------------------------------------------------------------------------------------------


class EditedArguments(BaseModel):
    """The arguments a job shall have from now on: all of them, by name."""

    model_config = ConfigDict(extra="forbid")

    args: dict[str, Any] = Field(description="All arguments of the task, by name. They replace the stored ones.")


class RetryMatching(BaseModel):
    """Which dead jobs to retry; every given field must match. Without any, all dead jobs match."""

    model_config = ConfigDict(extra="forbid")  # a mistyped filter must not widen what is retried

    task: Name | None = None
    queue: Name | None = None
    error_type: Name | None = Field(None, description="Type of the last error, as the job shows it.")
    tag: Name | None = Field(None, description="One of its tags.")
    created_after: AwareDatetime | None = Field(None, description="Added at this moment or later.")
    created_before: AwareDatetime | None = Field(None, description="Added before this moment.")
    finished_after: AwareDatetime | None = Field(None, description="Died at this moment or later.")
    finished_before: AwareDatetime | None = Field(None, description="Died before this moment.")
    limit: int = Field(100, ge=1, le=RETRY_LIMIT, description="At most so many, the oldest first.")

    def as_filter(self) -> JobFilter:
        return JobFilter(state=JobState.DEAD, **self.model_dump(exclude={"limit"}))


# -- what goes out -------------------------------------------------------------------------------------------


class JobCounts(_Record):
    """How many jobs are in each state."""

    blocked: int
    scheduled: int
    queued: int
    running: int
    succeeded: int
    dead: int
    cancelled: int


class ErrorSummary(_Record):
    """Why the last attempt failed."""

    type: str
    message: str


class ProgressRecord(_Record):
    """How far a job says it is."""

    done: float
    total: float | None
    message: str | None


class JobSummary(_Record):
    """A job without its arguments and its result."""

    id: str
    task: str
    queue: str
    priority: int
    state: JobState
    attempt: int = Field(description="Number of the current or latest try; 0 before the first.")
    max_attempts: int
    crashes: int = Field(description="How often it took its process down.")
    created_at: datetime
    run_at: datetime = Field(description="The earliest time of the next attempt.")
    started_at: datetime | None = Field(description="When the latest attempt started.")
    finished_at: datetime | None
    expires_at: datetime | None = Field(description="Not started by then, it is cancelled.")
    deadline_at: datetime | None = Field(description="Not finished by then, it is dead.")
    tags: list[str]
    progress: ProgressRecord | None
    cancel_requested: bool = Field(description="It runs, and somebody has asked for its end.")
    error: ErrorSummary | None


class JobList(_Record):
    """Jobs, newest first."""

    jobs: list[JobSummary]
    next_cursor: int | None = Field(description="Give it as `cursor` for the next page; null at the end.")

    @classmethod
    def of(cls, page: Page) -> Self:
        return cls.model_validate(page)


class AttemptRecord(_Record):
    """One try that did not succeed."""

    attempt: int
    worker_id: int
    started_at: datetime
    finished_at: datetime
    error_type: str
    error_message: str
    traceback: str


class LogRecord(_Record):
    """A line that the job logged."""

    lease_no: int
    at: datetime
    message: str


class AuditRecord(_Record):
    """What a person did to the job."""

    at: datetime
    who: str
    action: str
    detail: dict[str, Any]


class JobDetail(JobSummary):
    """Everything that is known about a job."""

    args: dict[str, Any] | None = Field(description="The arguments by name; null when the stored text is damaged.")
    args_text: str | None = Field(description="The stored text of damaged arguments; else null.")
    result: Any = Field(description="What the task returned; null until it succeeded.")
    headers: dict[str, str] = Field(description="What rides along beside the arguments.")
    attempts: list[AttemptRecord] = Field(description="The tries that did not succeed, oldest first.")
    logs: list[LogRecord] = Field(description="What it logged while it ran, oldest first.")
    audit: list[AuditRecord] = Field(description="What people did to it, oldest first.")

    @classmethod
    def of(
        cls, job: Job[Any], attempts: Sequence[Attempt], logs: Sequence[LogLine], audit: Sequence[AuditEntry]
    ) -> Self:
        args = _read(job.args_json)
        is_damaged = not isinstance(args, dict)
        return cls(
            **JobSummary.model_validate(job).model_dump(),
            args=None if is_damaged else args,
            args_text=job.args_json if is_damaged else None,
            result=None if job.result_json is None else _read(job.result_json),
            headers=dict(job.headers),
            attempts=[AttemptRecord.model_validate(attempt) for attempt in attempts],
            logs=[LogRecord.model_validate(line) for line in logs],
            audit=[AuditRecord.model_validate(entry) for entry in audit],
        )


class Retried(_Record):
    """How many jobs were queued again. As many as `limit`: there may be more."""

    retried: int


class Problem(BaseModel):
    """What went wrong, in plain words."""

    message: str


class StateProblem(Problem):
    """The job's state does not allow it."""

    state: JobState | None = None


class ProblemAnswer(BaseModel):
    detail: Problem


class StateProblemAnswer(BaseModel):
    detail: StateProblem


def _read(text: str) -> Any:
    """Return a stored JSON value, or None for damaged text: a dead letter must be readable because it is damaged."""
    try:
        return json.loads(text)
    except ValueError:
        return None
