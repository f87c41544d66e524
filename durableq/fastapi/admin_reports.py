"""What the admin routes tell of a queue beside its jobs, as pydantic models: the documented shape of every answer."""

import platform
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Annotated, Any, Final, Literal, Self

from pydantic import AfterValidator, Field

from durableq.errors import JobNotFound
from durableq.fastapi import admin_examples as examples
from durableq.fastapi.admin_models import AuditRecord, Record, audited, example
from durableq.fastapi.schemas import shown_schema
from durableq.fastapi.showing import Secrets
from durableq.health import Health
from durableq.history import History
from durableq.models import EDITED, AuditEntry, JobState
from durableq.queue import DurableQ
from durableq.redaction import HIDDEN, Redactor, cleaned, one_line, redacted_text
from durableq.reports import AuditPage, DeadLetterReport, DeadLetters, QueueReport, TaskReport, WorkerReport
from durableq.version import __version__

COUNTED: Final = 10_000
"""Jobs of each state are counted up to here."""
GROUPS: Final = 200
"""So many kinds of dead letters are told apart in one answer, those with the most jobs."""
WINDOWS: Final = {
    "15m": timedelta(minutes=15),
    "1h": timedelta(hours=1),
    "6h": timedelta(hours=6),
    "24h": timedelta(hours=24),
    "7d": timedelta(days=7),
}
Window = Literal["15m", "1h", "6h", "24h", "7d"]

Clean = Annotated[str, AfterValidator(one_line)]
"""What came from outside once, an environment or a header."""


# -- numbers of jobs -----------------------------------------------------------------------------------------


class JobCounts(Record):
    """How many jobs are in each state, counted up to `at_most`."""

    model_config = example(examples.COUNTS)

    blocked: int
    scheduled: int
    queued: int
    running: int
    succeeded: int
    dead: int
    cancelled: int
    at_most: int = Field(description="A count as high as this means: at least so many.")

    @classmethod
    def of(cls, counts: dict[JobState, int]) -> Self:
        return cls(**{state.value: number for state, number in counts.items()}, at_most=COUNTED)


class CountRecord(Record):
    """How many there are, as far as was counted."""

    model_config = example({"number": 210, "is_all": True}, {"number": 10_000, "is_all": False})

    number: int
    is_all: bool = Field(description="False: counting stopped here, there may be more.")


class Retried(Record):
    """How many jobs were queued again. As many as `limit`: there may be more."""

    model_config = example({"retried": 100})

    retried: int


class Cancelled(Record):
    """How many jobs were cancelled, or asked to end. As many as `limit`: there may be more."""

    model_config = example({"cancelled": 500})

    cancelled: int


class Deleted(Record):
    """How many jobs were deleted. As many as `limit`: there may be more."""

    model_config = example({"deleted": 100})

    deleted: int


# -- queues, workers, tasks ----------------------------------------------------------------------------------


class QueueRecord(Record):
    """How one queue is."""

    model_config = example(examples.QUEUE)

    name: str
    queued: CountRecord = Field(description="Jobs that may run as soon as a worker has room, and it is not paused.")
    running: int
    oldest_due: datetime | None = Field(description="When the job came due that has waited longest; null: none waits.")
    is_paused: bool
    paused_at: datetime | None
    paused_by: Clean | None


class QueueList(Record):
    """Every queue that was ever used, by name."""

    model_config = example({"queues": [examples.QUEUE]})

    queues: list[QueueRecord]

    @classmethod
    def of(cls, reports: Sequence[QueueReport]) -> Self:
        return cls(queues=[QueueRecord.model_validate(one) for one in reports])


class WorkerRecord(Record):
    """A process that works on the database."""

    model_config = example(examples.WORKER)

    id: int
    pid: int
    host: Clean = Field(description="The name of its machine; empty when it did not say.")
    software: Clean = Field(description="What it runs; empty when it did not say.")
    started_at: datetime
    runs_jobs: bool = Field(description="False: it only adds jobs, or looks.")
    is_alive: bool = Field(description="False: dead or hanging; another is about to take back what it holds.")
    running: int = Field(description="Jobs that it holds.")
    is_here: bool = Field(description="Whether it is the process that answers.")


class WorkerList(Record):
    """The processes that work on the database, the longest running first."""

    model_config = example({"workers": [examples.WORKER]})

    workers: list[WorkerRecord]

    @classmethod
    def of(cls, reports: Sequence[WorkerReport]) -> Self:
        return cls(workers=[WorkerRecord.model_validate(one) for one in reports])


class TaskRecord(Record):
    """A task of which a job was ever stored."""

    model_config = example(examples.TASK)

    name: str
    is_known: bool = Field(description="Whether this application has its code.")
    arguments_schema: dict[str, Any] | None = Field(
        description="The JSON schema of its arguments, without defaults and examples of secrets; null: none is stored."
    )


class TaskList(Record):
    """Every task of which a job was ever stored, by name."""

    model_config = example({"tasks": [examples.TASK]})

    tasks: list[TaskRecord]

    @classmethod
    def of(cls, reports: Sequence[TaskReport], dq: DurableQ) -> Self:
        return cls(
            tasks=[
                TaskRecord(
                    name=one.name,
                    is_known=dq.find_task(one.name) is not None,
                    arguments_schema=shown_schema(one.arguments_schema),
                )
                for one in reports
            ]
        )


# -- dead letters --------------------------------------------------------------------------------------------


class DeadLetterGroup(Record):
    """The dead jobs of one task that failed in the same way."""

    model_config = example(examples.DEAD_LETTERS)

    task: str
    error_type: str
    number: int
    first_at: datetime = Field(description="When the first of them died.")
    last_at: datetime
    latest_id: str
    latest_message: str


class DeadLetterList(Record):
    """Dead jobs by task and kind of error, the most numerous first."""

    model_config = example({"groups": [examples.DEAD_LETTERS], "is_all": True})

    groups: list[DeadLetterGroup] = Field(description=f"At most {GROUPS}.")
    is_all: bool = Field(description="False: only the latest dead jobs were looked at.")

    @classmethod
    async def of(cls, report: DeadLetterReport, dq: DurableQ, secrets: Secrets) -> Self:
        groups = []
        for one in report.groups[:GROUPS]:
            message = (await _redactor(one, dq, secrets)).text(one.latest_message)
            groups.append(DeadLetterGroup.model_validate(replace(one, latest_message=message)))
        return cls(groups=groups, is_all=report.is_all and len(groups) == len(report.groups))


async def _redactor(group: DeadLetters, dq: DurableQ, secrets: Secrets) -> Redactor:
    """What hides the secrets in a group's latest message.

    It was stored without those that its task declares. What a task that nobody described declares, nobody knows.
    """
    declared = secrets.declared(group.task)
    if declared.plain is None or declared.plain:
        return Redactor(declared.secret)
    try:
        return secrets.redactor(await dq.get(group.latest_id))
    except JobNotFound:
        return Redactor()


# -- history -------------------------------------------------------------------------------------------------


class FiguresRecord(Record):
    """Tries that ended in some span of time. Durations in seconds; null when there was no try."""

    model_config = example(examples.FIGURES)

    succeeded: int
    retried: int
    dead: int
    cancelled: int
    ended: int = Field(description="All of them.")
    success_share: float | None = Field(description="Of those that succeeded or failed, the share that succeeded.")
    wait_p50: float | None = Field(description="Half of them had been due no longer than this before they started.")
    wait_p95: float | None
    run_p50: float | None = Field(description="Half of them ran no longer than this.")
    run_p95: float | None


class PointRecord(Record):
    """One step."""

    at: datetime = Field(description="Its begin.")
    figures: FiguresRecord


class TaskFiguresRecord(Record):
    """One task in the whole window."""

    task: str
    figures: FiguresRecord


class QueueFiguresRecord(Record):
    """One queue in the whole window."""

    queue: str
    figures: FiguresRecord


class HistoryAnswer(Record):
    """What happened in a window of time, in steps of equal length, the earliest first."""

    model_config = example(examples.HISTORY)

    step_seconds: float
    points: list[PointRecord]
    total: FiguresRecord
    tasks: list[TaskFiguresRecord] = Field(description="Those with the most dead and retried tries first.")
    queues: list[QueueFiguresRecord]

    @classmethod
    def of(cls, history: History) -> Self:
        parts = {name: getattr(history, name) for name in ("points", "total", "tasks", "queues")}
        return cls.model_validate({"step_seconds": history.step.total_seconds(), **parts})


# -- the rest ------------------------------------------------------------------------------------------------


class AuditListEntry(AuditRecord):
    """What a person did to a job or a queue."""

    job_id: str = Field(description="Empty for what was done to a queue; `detail` names it.")


class AuditList(Record):
    """What people did, the latest first."""

    model_config = example(examples.AUDIT)

    entries: list[AuditListEntry]
    next_cursor: int | None = Field(description="Give it as `cursor` for the next page; null at the end.")

    @classmethod
    def of(cls, page: AuditPage) -> Self:
        return cls(entries=[_entry(one) for one in page.entries], next_cursor=page.next_cursor)


def _entry(entry: AuditEntry) -> AuditListEntry:
    # Which arguments are secret says the job's task: they are shown with the job only.
    detail = {name: HIDDEN if name in EDITED else value for name, value in entry.detail.items()}
    shown = audited(replace(entry, detail=detail), Redactor())
    return AuditListEntry(**shown.model_dump(), job_id=entry.job_id)


class SystemAnswer(Record):
    """What runs here, and how it is."""

    model_config = example(examples.SYSTEM)

    durableq: str = Field(description="The version.")
    python: str
    health: Health = Field(description="As `await dq.health()` tells it.")

    @classmethod
    def of(cls, health: Health) -> Self:
        reasons = tuple(redacted_text(cleaned(reason)) for reason in health.reasons)
        return cls(durableq=__version__, python=platform.python_version(), health=replace(health, reasons=reasons))
