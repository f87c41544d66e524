"""The admin routes about everything but single jobs: queues, workers, tasks, what went wrong, what happened lately."""

import asyncio
from typing import Annotated

from fastapi import APIRouter, Depends, Query

from durableq.fastapi.admin_answers import answers
from durableq.fastapi.admin_filters import NameQuery, QueueMeant
from durableq.fastapi.admin_jobs import Cursor, Limit
from durableq.fastapi.admin_reports import (
    WINDOWS,
    AuditList,
    DeadLetterList,
    HistoryAnswer,
    QueueList,
    SystemAnswer,
    TaskList,
    Window,
    WorkerList,
)
from durableq.fastapi.principals import WRITE_WITH_BODY, Allowed, Principal
from durableq.fastapi.showing import secrets_of
from durableq.queue import DurableQ


def add_looking(router: APIRouter, dq: DurableQ, reader: Allowed) -> None:
    """Add the routes that only look."""
    allowed = [Depends(reader)]

    @router.get("/queues", summary="List queues", dependencies=allowed, responses=answers())
    async def list_queues() -> QueueList:
        """Every queue that was ever used: what waits in it, counted up to 10,000, what runs, and who paused it."""
        return QueueList.of(await dq.queues())

    @router.get("/workers", summary="List workers", dependencies=allowed, responses=answers())
    async def list_workers() -> WorkerList:
        """The processes that work on the database, the longest running first."""
        return WorkerList.of(await dq.workers())

    @router.get("/tasks", summary="List tasks", dependencies=allowed, responses=answers())
    async def list_tasks() -> TaskList:
        """Every task of which a job was ever stored, with the JSON schema of its arguments."""
        return TaskList.of(await dq.tasks(), dq)

    @router.get("/dead-letters", summary="Group the dead jobs", dependencies=allowed, responses=answers())
    async def group_dead_letters() -> DeadLetterList:
        """Dead jobs by task and kind of error, the most numerous first: of the latest 10,000."""
        report = await dq.dead_letters()
        return await DeadLetterList.of(report, dq, await secrets_of(dq, (one.task for one in report.groups)))

    _add_looking_back(router, dq, reader)


def _add_looking_back(router: APIRouter, dq: DurableQ, reader: Allowed) -> None:
    allowed = [Depends(reader)]

    @router.get("/history", summary="Show what happened lately", dependencies=allowed, responses=answers())
    async def show_history(
        window: Annotated[Window, Query(description="How far back.")] = "1h",
        queue: NameQuery = None,
        task: NameQuery = None,
    ) -> HistoryAnswer:
        """How many tries ended, how, and how long they waited and ran, in steps; of one queue or task, when given.

        Counted where jobs are settled: nothing is missing after a restart.
        """
        history = await dq.history(WINDOWS[window], queue=queue, task=task)
        return await asyncio.to_thread(HistoryAnswer.of, history)

    @router.get("/audit", summary="Show what people did", dependencies=allowed, responses=answers())
    async def show_audit(cursor: Cursor = None, limit: Limit = 50) -> AuditList:
        """What people did to any job or queue, the latest first. Arguments that were edited are shown with the job."""
        page = await dq.audit(cursor=cursor, limit=limit)
        return await asyncio.to_thread(AuditList.of, page)

    @router.get("/system", summary="Show how the queue is", dependencies=allowed, responses=answers())
    async def show_system() -> SystemAnswer:
        """Whether the queue works, in words and figures, and what it runs on. Always a 200: ill is an answer too."""
        return SystemAnswer.of(await dq.health())


def add_operating(router: APIRouter, dq: DurableQ, operator: Allowed) -> None:
    """Add the routes that pause queues and let them go on."""

    @router.post(
        "/queues/pause",
        summary="Pause a queue",
        status_code=204,
        dependencies=WRITE_WITH_BODY,
        responses=answers(413, 415, 500),
    )
    async def pause_queue(meant: QueueMeant, who: Annotated[Principal, Depends(operator)]) -> None:
        """Claim no more of its jobs, in any process, until it is resumed; what runs goes on, and adding too.

        It stays paused over restarts. Does nothing to a queue that is paused already.
        """
        await dq.pause(meant.queue, who=who.name)

    @router.post(
        "/queues/resume",
        summary="Resume a queue",
        status_code=204,
        dependencies=WRITE_WITH_BODY,
        responses=answers(413, 415, 500),
    )
    async def resume_queue(meant: QueueMeant, who: Annotated[Principal, Depends(operator)]) -> None:
        """Start its jobs again. Does nothing to a queue that is not paused."""
        await dq.resume(meant.queue, who=who.name)
