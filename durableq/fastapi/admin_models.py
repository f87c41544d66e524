"""What the admin routes take and give, as pydantic models: the documented shape of every request and response.

What goes out has gone through a `Redactor`: no model is made of a job without one.
"""

import json
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any, Final, NoReturn, Self

from pydantic import BaseModel, ConfigDict, Field

from durableq.fastapi import admin_examples as examples
from durableq.models import EDITED, Attempt, AuditEntry, Job, JobState, LogLine, Page
from durableq.redaction import HIDDEN, Redactor, one_line

RedactorOf = Callable[..., Redactor]
"""(job, other arguments it has had...): what hides the secrets of a job."""

ENTRIES: Final = 200
"""So many of a job's attempts, and of its audit entries, are shown: the latest."""
LINES: Final = 1_000


class Record(BaseModel):
    """What is sent. It cannot be changed."""

    model_config = ConfigDict(from_attributes=True, frozen=True)


def example(value: Any, *others: Any) -> ConfigDict:
    """The configuration of a model whose documentation shows this."""
    return ConfigDict(json_schema_extra={"examples": [value, *others]})


# -- what comes in -------------------------------------------------------------------------------------------


class Asked(BaseModel):
    """What is asked for. What is mistyped in it is refused, so that it cannot widen what is done."""

    model_config = ConfigDict(extra="forbid")


class EditedArguments(Asked):
    """The arguments a job shall have from now on: all of them, by name."""

    model_config = example({"args": {"to": "ann@example.org", "api_key": HIDDEN}})

    args: dict[str, Any] = Field(description="All arguments of the task, by name. They replace the stored ones.")


# -- what goes out -------------------------------------------------------------------------------------------


class ErrorSummary(Record):
    """Why the last attempt failed."""

    type: str
    message: str


class ProgressRecord(Record):
    """How far a job says it is."""

    done: float
    total: float | None
    message: str | None


class JobSummary(Record):
    """A job without its arguments and its result."""

    model_config = example(examples.SUMMARY)

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

    @classmethod
    def shown(cls, job: Job[Any], redactor: Redactor) -> "JobSummary":
        return cls(**_summary(job, redactor))


class JobList(Record):
    """Jobs, newest first."""

    model_config = example(examples.LIST)

    jobs: list[JobSummary]
    next_cursor: int | None = Field(description="Give it as `cursor` for the next page; null at the end.")
    is_cut_short: bool = Field(
        description="Looking stopped before it had found as many as were asked for, even none; from `next_cursor` on "
        "there may be more."
    )

    @classmethod
    def of(cls, page: Page, redactor_of: RedactorOf) -> Self:
        jobs = [JobSummary.shown(job, redactor_of(job)) for job in page.jobs]
        return cls(jobs=jobs, next_cursor=page.next_cursor, is_cut_short=page.is_cut_short)


class AttemptRecord(Record):
    """One try that did not succeed."""

    attempt: int
    worker_id: int
    started_at: datetime
    finished_at: datetime
    error_type: str
    error_message: str
    traceback: str


class LogRecord(Record):
    """A line that the job logged."""

    lease_no: int
    at: datetime
    message: str


class AuditRecord(Record):
    """What a person did to the job."""

    at: datetime
    who: str
    action: str
    detail: dict[str, Any]


class JobDetail(JobSummary):
    """Everything that is known about a job."""

    model_config = example(examples.DETAIL)

    args: dict[str, Any] | None = Field(
        description="The arguments by name; null when the stored text is damaged. Secrets are hidden, and as long as "
        "this application does not know the task, every argument is one."
    )
    args_text: str | None = Field(description="The stored text of damaged arguments; else null.")
    result: Any = Field(description="What the task returned; null until it succeeded.")
    headers: dict[str, str] = Field(description="What rides along beside the arguments.")
    attempts: list[AttemptRecord] = Field(description=f"The latest {ENTRIES} tries that did not succeed, oldest first.")
    logs: list[LogRecord] = Field(description=f"The latest {LINES:,} lines that it logged, oldest first.")
    audit: list[AuditRecord] = Field(description=f"The latest {ENTRIES} things that people did to it, oldest first.")

    @classmethod
    def of(
        cls,
        job: Job[Any],
        attempts: Sequence[Attempt],
        logs: Sequence[LogLine],
        audit: Sequence[AuditEntry],
        redactor_of: RedactorOf,
    ) -> Self:
        args = _read(job.args_json)
        is_damaged = not isinstance(args, dict)
        redactor = redactor_of(job, *other_arguments(audit))
        return cls(
            **_summary(job, redactor),
            args=None if is_damaged else redactor.arguments(args),
            args_text=_damaged(job.args_json, redactor) if is_damaged else None,
            result=shown_result(job, redactor),
            headers=redactor.value(dict(job.headers)),
            attempts=[_attempt(attempt, redactor) for attempt in attempts[-ENTRIES:]],
            logs=[
                LogRecord(lease_no=line.lease_no, at=line.at, message=redactor.said(line.message))
                for line in logs[-LINES:]
            ],
            audit=[audited(entry, redactor) for entry in audit[-ENTRIES:]],
        )


class Problem(BaseModel):
    """What went wrong, in plain words."""

    message: str
    id: str | None = Field(None, description="With a 5xx: the log says more under this id.")


class StateProblem(Problem):
    """The job's state does not allow it."""

    state: JobState | None = None


class ProblemAnswer(BaseModel):
    """What went wrong."""

    model_config = example(examples.PROBLEM)

    detail: Problem


class StateProblemAnswer(BaseModel):
    """What went wrong, and in which state the job is."""

    model_config = example(examples.STATE_PROBLEM)

    detail: StateProblem


def _summary(job: Job[Any], redactor: Redactor) -> dict[str, Any]:
    """The fields of a `JobSummary`: texts that user code wrote go through the redactor."""
    fields: dict[str, Any] = {name: getattr(job, name) for name in JobSummary.model_fields}
    tags = [redactor.text(tag) for tag in job.tags]
    return fields | {"tags": tags, "error": shown_error(job, redactor), "progress": shown_progress(job, redactor)}


def shown_error(job: Job[Any], redactor: Redactor) -> ErrorSummary | None:
    """Return why a job's last attempt failed, as it may be shown."""
    if job.error is None:
        return None
    return ErrorSummary(type=redactor.text(job.error.type), message=redactor.text(job.error.message))


def shown_progress(job: Job[Any], redactor: Redactor) -> ProgressRecord | None:
    """Return how far a job says it is, as it may be shown."""
    if job.progress is None:
        return None
    done, total, message = job.progress
    return ProgressRecord(done=done, total=total, message=None if message is None else redactor.said(message))


def shown_result(job: Job[Any], redactor: Redactor) -> Any:
    """Return what a job's task returned, as it may be shown; None until there is a result that can be read."""
    return None if job.result_json is None else redactor.result(_read(job.result_json))


def _attempt(attempt: Attempt, redactor: Redactor) -> AttemptRecord:
    record = AttemptRecord.model_validate(attempt)
    texts = {name: redactor.text(getattr(attempt, name)) for name in ("error_type", "error_message", "traceback")}
    return record.model_copy(update=texts)


def other_arguments(audit: Sequence[AuditEntry]) -> list[Any]:
    """Return what else a job's arguments were, before and after each edit, as the audit trail has them."""
    found = (entry.detail.get(which) for entry in audit for which in EDITED)
    return [one for one in found if one is not None]


def audited(entry: AuditEntry, redactor: Redactor) -> AuditRecord:
    detail = {name: _audited_value(name, value, redactor) for name, value in entry.detail.items()}
    return AuditRecord(at=entry.at, who=one_line(entry.who), action=entry.action, detail=detail)


def _audited_value(name: str, value: Any, redactor: Redactor) -> Any:
    if name not in EDITED:
        return redactor.value(value)
    return redactor.arguments(value) if isinstance(value, dict) else _damaged(str(value), redactor)


def _damaged(text: str, redactor: Redactor) -> str:
    """In a damaged text nobody can say where a declared secret begins and ends."""
    return HIDDEN if redactor.names else redactor.text(text)


def _read(text: str) -> Any:
    """Return a stored JSON value, or None for damaged text: a dead letter must be readable because it is damaged."""
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
        json.dumps(value, ensure_ascii=False).encode()  # damage may leave what cannot be sent
    except (ValueError, RecursionError):
        return None
    return value


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")
