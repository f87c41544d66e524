"""The admin routes about jobs: look at them, one or those that match, and mend them. See `durableq.fastapi.admin`."""

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Body, Depends, Header, HTTPException, Path, Query
from starlette.responses import Response

from durableq.errors import ConfigurationError, InvalidArguments, InvalidTask
from durableq.fastapi import admin_examples as examples
from durableq.fastapi.admin_answers import answers
from durableq.fastapi.admin_filters import (
    LOOK_AT,
    CancelMatching,
    DeleteMatching,
    RetryMatching,
    job_filter,
    refuse_secrets,
)
from durableq.fastapi.admin_models import EditedArguments, JobDetail, JobList, JobSummary
from durableq.fastapi.admin_reports import COUNTED, Cancelled, CountRecord, Deleted, JobCounts, Retried
from durableq.fastapi.following import Seen, follow
from durableq.fastapi.principals import NAME_CHARACTERS, WRITE, WRITE_WITH_BODY, Allowed, Principal
from durableq.fastapi.showing import Secrets, as_stored, secrets_of, what_is_wrong
from durableq.fastapi.streaming import EventStream, Seats, stream_answers
from durableq.models import LARGEST_NUMBER, Job, JobFilter
from durableq.placeholders import PlaceholderSent
from durableq.queue import DurableQ
from durableq.redaction import Redactor, cleaned

STREAMS = 100
"""So many streams of events are open at once."""

JobId = Annotated[str, Path(min_length=1, max_length=NAME_CHARACTERS, description="The job's id.")]
Cursor = Annotated[
    int | None, Query(ge=1, le=LARGEST_NUMBER, description="`next_cursor` of the page before.", examples=[4711])
]
Limit = Annotated[int, Query(ge=1, le=200, description="At most so many.")]
Filter = Annotated[JobFilter, Depends(job_filter)]


def add_looking(router: APIRouter, dq: DurableQ, reader: Allowed) -> None:
    """Add the routes that only look."""
    allowed = [Depends(reader)]

    @router.get("/counts", summary="Count jobs by state", dependencies=allowed, responses=answers())
    async def count_jobs() -> JobCounts:
        """How many jobs are in each state, counted up to 10,000 each."""
        return JobCounts.of(await dq.counts(at_most=COUNTED))

    @router.get("/count", summary="Count the jobs that match", dependencies=allowed, responses=answers())
    async def count_matching_jobs(where: Filter) -> CountRecord:
        """How many jobs match every given filter, of the newest 20,000; with a state, of the newest in that state."""
        await refuse_secrets(dq, where, "query", "arg")
        return CountRecord.model_validate(await dq.count(where, look_at=LOOK_AT))

    @router.get("/jobs", summary="List jobs", dependencies=allowed, responses=answers())
    async def list_jobs(where: Filter, cursor: Cursor = None, limit: Limit = 50) -> JobList:
        """Jobs that match every given filter, newest first, without their arguments.

        20,000 jobs are looked at for one page. When it `is_cut_short` there may be more: ask on with its
        `next_cursor`.
        """
        await refuse_secrets(dq, where, "query", "arg")
        page = await dq.list(where, cursor=cursor, limit=limit, look_at=LOOK_AT)
        secrets = await secrets_of(dq, (job.task for job in page.jobs))
        return await asyncio.to_thread(JobList.of, page, secrets.redactor)

    @router.get("/jobs/{job_id}", summary="Show a job", dependencies=allowed, responses=answers(404))
    async def show_job(job_id: JobId) -> JobDetail:
        """A job with its arguments, its result, the tries that failed, and what people did to it."""
        job = await dq.get(job_id)
        attempts, logs, audit = await dq.attempts(job_id), await dq.logs(job_id), await dq.audit_trail(job_id)
        secrets = await secrets_of(dq, [job.task])
        return await asyncio.to_thread(JobDetail.of, job, attempts, logs, audit, secrets.redactor)

    _add_following(router, dq, allowed)


def _add_following(router: APIRouter, dq: DurableQ, allowed: list[Any]) -> None:
    seats = Seats(STREAMS)

    @router.get(
        "/jobs/{job_id}/events",
        summary="Follow a job as it happens",
        dependencies=allowed,
        responses=stream_answers(examples.EVENTS),
        response_class=EventStream,
    )
    async def follow_job(
        job_id: JobId,
        last_event_id: Annotated[
            str | None, Header(max_length=200, description="What was seen last; browsers send it.")
        ] = None,
    ) -> Response:
        """Server-sent events until the job is finished: `status`, `progress` and `log` as they come, then `end`.

        `status` carries a job as the list shows it, `progress` that part of it alone, `log` a line.
        """
        job = await dq.get(job_id)
        seen = Seen.of(last_event_id)
        if seen.end and job.is_finished:
            return Response(status_code=204)  # tells a browser not to come back
        return EventStream(follow(dq, job, seen, _shown, lines=True), seats)


def _shown(job: Job[Any], redactor: Redactor) -> dict[str, Any]:
    return JobSummary.shown(job, redactor).model_dump(mode="json")


def add_operating(router: APIRouter, dq: DurableQ, operator: Allowed) -> None:
    """Add the routes that retry and cancel."""

    @router.post("/jobs/{job_id}/retry", summary="Retry a job", dependencies=WRITE, responses=answers(404, 409, 500))
    async def retry_job(job_id: JobId, who: Annotated[Principal, Depends(operator)]) -> JobSummary:
        """Queue a dead or cancelled job as new, its history kept. A scheduled job runs now."""
        return await _summary(dq, await dq.retry(job_id, who=who.name))

    @router.post("/jobs/{job_id}/cancel", summary="Cancel a job", dependencies=WRITE, responses=answers(404, 409, 500))
    async def cancel_job(job_id: JobId, who: Annotated[Principal, Depends(operator)]) -> JobSummary:
        """End a job that waits; ask for the end of one that runs, which may take it a moment."""
        return await _summary(dq, await dq.cancel(job_id, who=who.name))

    _add_operating_on_many(router, dq, operator)


def _add_operating_on_many(router: APIRouter, dq: DurableQ, operator: Allowed) -> None:
    @router.post(
        "/retry",
        summary="Retry the dead jobs that match",
        dependencies=WRITE_WITH_BODY,
        responses=answers(413, 415, 500),
    )
    async def retry_matching_jobs(
        where: Annotated[RetryMatching, Body()], who: Annotated[Principal, Depends(operator)]
    ) -> Retried:
        """Queue dead jobs that match every given filter as new, the oldest first. Each is audited."""
        await refuse_secrets(dq, where.as_filter(), "body", "arguments")
        return Retried(retried=await dq.retry_matching(where.as_filter(), limit=where.limit, who=who.name))

    @router.post(
        "/cancel",
        summary="Cancel the jobs that match",
        dependencies=WRITE_WITH_BODY,
        responses=answers(413, 415, 500),
    )
    async def cancel_matching_jobs(
        where: Annotated[CancelMatching, Body()], who: Annotated[Principal, Depends(operator)]
    ) -> Cancelled:
        """End unfinished jobs that match every given filter, the oldest first. Each is audited.

        Those that run are asked to end, which may take them a moment.
        """
        await refuse_secrets(dq, where.as_filter(), "body", "arguments")
        return Cancelled(cancelled=await dq.cancel_matching(where.as_filter(), limit=where.limit, who=who.name))


def add_mending(router: APIRouter, dq: DurableQ, administrator: Allowed) -> None:
    """Add the routes that edit and delete."""

    @router.post(
        "/jobs/{job_id}/edit",
        summary="Edit the arguments of a job and retry it",
        dependencies=WRITE_WITH_BODY,
        responses=answers(404, 409, 413, 415, 500),
    )
    async def edit_job(
        job_id: JobId, edited: Annotated[EditedArguments, Body()], who: Annotated[Principal, Depends(administrator)]
    ) -> JobSummary:
        """Queue a dead or cancelled job as new with other arguments, checked against the task's signature.

        A hidden value that comes back as it was shown stays what it is.
        """
        return await _edited(dq, await dq.get(job_id), edited, who)

    @router.delete(
        "/jobs/{job_id}",
        summary="Delete a job",
        status_code=204,
        dependencies=WRITE,
        responses=answers(404, 409, 500),
    )
    async def delete_job(job_id: JobId, who: Annotated[Principal, Depends(administrator)]) -> None:
        """Remove a finished job and its history. The audit trail stays in the database."""
        await dq.delete(job_id, who=who.name)

    _add_mending_many(router, dq, administrator)


def _add_mending_many(router: APIRouter, dq: DurableQ, administrator: Allowed) -> None:
    @router.post(
        "/delete",
        summary="Delete the finished jobs that match",
        dependencies=WRITE_WITH_BODY,
        responses=answers(413, 415, 500),
    )
    async def delete_matching_jobs(
        where: Annotated[DeleteMatching, Body()], who: Annotated[Principal, Depends(administrator)]
    ) -> Deleted:
        """Remove finished jobs of one state that match every given filter, the oldest first. Each is audited."""
        await refuse_secrets(dq, where.as_filter(), "body", "arguments")
        return Deleted(deleted=await dq.delete_matching(where.as_filter(), limit=where.limit, who=who.name))


async def _edited(dq: DurableQ, job: Job[Any], edited: EditedArguments, who: Principal) -> JobSummary:
    secrets = await secrets_of(dq, [job.task])
    try:
        args = await asyncio.to_thread(_as_stored, edited, job, secrets)
        return secrets.summary(await dq.retry(job.id, args=args, who=who.name))
    except PlaceholderSent as error:
        raise _refused(error.argument, str(error)) from None
    except InvalidArguments as error:
        raise _refused(error.argument, what_is_wrong(error, secrets.redactor(job, edited.args))) from None
    except (ConfigurationError, InvalidTask) as error:  # nobody here can say whether they fit the task
        raise HTTPException(409, {"message": cleaned(str(error))}) from error


def _as_stored(edited: EditedArguments, job: Job[Any], secrets: Secrets) -> dict[str, Any]:
    return as_stored(edited.args, job, secrets.redactor(job))


async def _summary(dq: DurableQ, job: Job[Any]) -> JobSummary:
    return (await secrets_of(dq, [job.task])).summary(job)


def _refused(argument: str | None, message: str) -> HTTPException:
    # The shape of FastAPI's own 422, so that clients read one.
    location = ["body", "args", *filter(None, (argument,))]
    return HTTPException(422, [{"type": "invalid_arguments", "loc": location, "msg": cleaned(message)}])
