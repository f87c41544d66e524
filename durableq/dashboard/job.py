"""One job: where it is in its life, what it was given, what it said and returned, why it failed, who touched it.

Everything has gone through the redaction of the admin routes. The tracebacks are in the page, folded.
"""

import asyncio
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Query
from starlette.responses import Response

from durableq.dashboard.actions import POSSIBLE, seen_of
from durableq.dashboard.diff import as_json
from durableq.dashboard.editing import key_needed, result_key_needed
from durableq.dashboard.site import Site, Visit
from durableq.dashboard.timeline import timeline
from durableq.fastapi.admin_models import ENTRIES, LINES, JobDetail, LogRecord
from durableq.fastapi.showing import secrets_of
from durableq.models import Attempt, Job, JobState
from durableq.options import WAITING
from durableq.queue import DurableQ

TRIES: Final = 20
"""So many of the failed tries are shown unless all are asked for: their tracebacks may be long."""


def add(router: APIRouter, site: Site) -> None:
    @router.get("/jobs/{job_id}")
    async def show_job(
        job_id: str, visit: Annotated[Visit, Depends(site.reader)], tries: Annotated[str, Query(max_length=10)] = ""
    ) -> Response:
        dq = site.dq
        known = await dq.attempts(job_id)
        stored = await dq.get(job_id)
        left_out, attempts = _parted(known, ENTRIES if tries == "all" else TRIES)
        job = await _detail_of(dq, stored, left_out, attempts)
        logs = _said(job, attempts)
        key = key_needed(stored)
        return visit.page(
            "job.html",
            section="jobs",
            title=job.task,
            job=job,
            seen=seen_of(stored),
            key=key,
            line=timeline(job, dq.now(), left_out),
            tries=list(zip(job.attempts, logs[:-1], strict=True)),
            other_logs=logs[-1],
            is_retry=job.state == JobState.SCHEDULED and job.attempt > 0,
            is_known=dq.find_task(job.task) is not None,
            is_held=job.state in WAITING and await _is_paused(dq, job.queue),
            may_retry=job.state in POSSIBLE["retry"],
            may_edit=job.state in (JobState.DEAD, JobState.CANCELLED) and key is None,
            may_cancel=job.state in POSSIBLE["cancel"] and not job.cancel_requested,
            may_delete=job.state in POSSIBLE["delete"],
            arguments=None if job.args is None else as_json(job.args),
            result_key=result_key_needed(stored),
            result=as_json(job.result),
            headers=as_json(job.headers),
            changes=[{name: _in_words(value) for name, value in entry.detail.items()} for entry in job.audit],
            failed=len(known),
            may_show_more=len(attempts) < min(len(known), ENTRIES),
            lines=LINES,
        )


async def _is_paused(dq: DurableQ, queue: str) -> bool:
    return any(report.is_paused for report in await dq.queues() if report.name == queue)


def _parted(attempts: list[Attempt], shown: int) -> tuple[list[Attempt], list[Attempt]]:
    """Return the earlier tries, and so many of the latest."""
    at = max(0, len(attempts) - shown)
    return attempts[:at], attempts[at:]


async def _detail_of(dq: DurableQ, job: Job[Any], left_out: list[Attempt], attempts: list[Attempt]) -> JobDetail:
    """Return what may be shown of a job: without some tries, and what they logged, it costs less to make."""
    numbers = {attempt.lease_no for attempt in left_out}
    logs = [line for line in await dq.logs(job.id) if line.lease_no not in numbers]
    audit = await dq.audit_trail(job.id)
    secrets = await secrets_of(dq, [job.task])
    return await asyncio.to_thread(JobDetail.of, job, attempts, logs, audit, secrets.redactor)


def _said(job: JobDetail, attempts: list[Attempt]) -> list[list[LogRecord]]:
    """Return the lines that each shown try logged, and at the end those of tries that have no record: they go on, or
    succeeded."""
    numbers = [attempt.lease_no for attempt in attempts]
    of_tries = [[line for line in job.logs if line.lease_no == number] for number in numbers]
    return [*of_tries, [line for line in job.logs if line.lease_no not in numbers]]


def _in_words(value: Any) -> str:
    return as_json(value) if isinstance(value, dict | list) else str(value)
