"""The first page: whether all is well, and if not, where to look."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated, Final, Literal

from fastapi import APIRouter, Depends, Query
from starlette.responses import Response

from durableq.dashboard.charts import WINDOW_NAMES, WINDOWS, chosen_window, latency, spark, throughput
from durableq.dashboard.site import Site, Visit
from durableq.fastapi.admin_models import JobSummary
from durableq.fastapi.showing import secrets_of
from durableq.history import TaskFigures
from durableq.models import JobFilter, JobState
from durableq.queue import DurableQ
from durableq.reports import Count, QueueReport, WorkerReport

COUNTED: Final = 10_000
"""Of each state so many jobs are counted."""
LOOK_AT: Final = 20_000
_FAILURES: Final = 6
_RETRYING_LOOKED_AT: Final = 50
_FAILING_TASKS: Final = 6


@dataclass(frozen=True, slots=True)
class Failure:
    """A job that lately failed."""

    job: JobSummary
    at: datetime


def add(router: APIRouter, site: Site) -> None:
    dq = site.dq

    @router.get("/")
    async def show_overview(
        visit: Annotated[Visit, Depends(site.reader)], window: Annotated[str | None, Query(max_length=10)] = None
    ) -> Response:
        chosen = chosen_window(window)
        now = dq.now()
        history = await dq.history(WINDOWS[chosen])
        reports, workers = await dq.queues(), await dq.workers()
        counts = {state: _counted(number) for state, number in (await dq.counts(at_most=COUNTED)).items()}
        return visit.page(
            "overview.html",
            section="overview",
            title="Overview",
            window=chosen,
            windows=WINDOW_NAMES,
            now=now,
            counts=counts,
            is_new=not reports and not any(count.number for count in counts.values()),
            health=await dq.health(),
            is_served=is_served(workers),
            history=history,
            per_minute=history.total.ended / (WINDOWS[chosen] / timedelta(minutes=1)),
            spark=spark(history.points),
            charts=(throughput(history, chosen, now), latency(history, chosen)),
            queues=reports,
            oldest=oldest_due(reports),
            held=held(reports),
            by_queue={one.queue: one.figures for one in history.queues},
            failing=failing(history.tasks),
            failures=await _latest_failures(dq),
        )


def is_served(workers: Sequence[WorkerReport]) -> bool:
    """Whether some process runs jobs."""
    return any(worker.runs_jobs and worker.is_alive for worker in workers)


def oldest_due(reports: Sequence[QueueReport]) -> datetime | None:
    """Return since when a job waits that could run; those of paused queues wait on purpose."""
    return min((one.oldest_due for one in reports if one.oldest_due is not None and not one.is_paused), default=None)


def held(reports: Sequence[QueueReport]) -> Literal["none", "some", "all"]:
    """Return how many of the queued jobs wait because their queue is paused."""
    waiting = [one.is_paused for one in reports if one.queued.number]
    return "all" if waiting and all(waiting) else "some" if any(waiting) else "none"


def failing(tasks: Sequence[TaskFigures]) -> list[TaskFigures]:
    """Return the tasks with the most failed tries."""
    return [one for one in tasks if one.figures.dead or one.figures.retried][:_FAILING_TASKS]


def _counted(number: int) -> Count:
    return Count(number, number < COUNTED)


async def _latest_failures(dq: DurableQ) -> list[Failure]:
    """Dead jobs, and those that will be tried again: of the newest of both, those that failed last."""
    dead = await dq.list(JobFilter(state=JobState.DEAD), limit=_FAILURES, look_at=LOOK_AT)
    waiting = await dq.list(JobFilter(state=JobState.SCHEDULED), limit=_RETRYING_LOOKED_AT, look_at=LOOK_AT)
    jobs = [*dead.jobs, *(job for job in waiting.jobs if job.attempt and job.error is not None)]
    secrets = await secrets_of(dq, (job.task for job in jobs))
    failures = [Failure(secrets.summary(job), job.finished_at or job.started_at or job.created_at) for job in jobs]
    return sorted(failures, key=lambda one: one.at, reverse=True)[:_FAILURES]
