"""One job: where it is in its life, what it was given, what it said and returned, why it failed, who touched it.

Everything has gone through the redaction of the admin routes. The tracebacks are in the page, folded.
"""

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from starlette.responses import Response

from durableq.dashboard.actions import possible
from durableq.dashboard.diff import as_json
from durableq.dashboard.jobs import now
from durableq.dashboard.site import Site, Visit
from durableq.dashboard.timeline import timeline
from durableq.fastapi.admin_models import ENTRIES, LINES, JobDetail, LogRecord
from durableq.fastapi.showing import secrets_of
from durableq.models import Attempt, JobState
from durableq.queue import DurableQ


def add(router: APIRouter, site: Site) -> None:
    @router.get("/jobs/{job_id}")
    async def show_job(job_id: str, visit: Annotated[Visit, Depends(site.reader)]) -> Response:
        dq = site.dq
        attempts = await dq.attempts(job_id)
        job = await detail_of(dq, job_id, attempts)
        logs = _said(job, attempts)
        return visit.page(
            "job.html",
            section="jobs",
            title=job.task,
            job=job,
            line=timeline(job, now()),
            tries=list(zip(job.attempts, logs[:-1], strict=True)),
            other_logs=logs[-1],
            is_retry=job.state == JobState.SCHEDULED and job.attempt > 0,
            is_known=dq.find_task(job.task) is not None,
            may_retry=job.state in possible("retry"),
            may_edit=job.state in (JobState.DEAD, JobState.CANCELLED),
            may_cancel=job.state in possible("cancel") and not job.cancel_requested,
            may_delete=job.state in possible("delete"),
            arguments=None if job.args is None else as_json(job.args),
            result=as_json(job.result),
            headers=as_json(job.headers),
            changes=[{name: _in_words(value) for name, value in entry.detail.items()} for entry in job.audit],
            entries=ENTRIES,
            lines=LINES,
        )


async def detail_of(dq: DurableQ, job_id: str, attempts: list[Attempt]) -> JobDetail:
    """Return all that may be shown of a job. Raises `JobNotFound`."""
    job = await dq.get(job_id)
    logs, audit = await dq.logs(job_id), await dq.audit_trail(job_id)
    secrets = await secrets_of(dq, [job.task])
    return await asyncio.to_thread(JobDetail.of, job, attempts, logs, audit, secrets.redactor)


def _said(job: JobDetail, attempts: list[Attempt]) -> list[list[LogRecord]]:
    """Return the lines that each shown try logged, and at the end those of tries that have no record: they go on, or
    succeeded."""
    numbers = [attempt.lease_no for attempt in attempts[-ENTRIES:]]
    of_tries = [[line for line in job.logs if line.lease_no == number] for number in numbers]
    return [*of_tries, [line for line in job.logs if line.lease_no not in numbers]]


def _in_words(value: Any) -> str:
    return as_json(value) if isinstance(value, dict | list) else str(value)
