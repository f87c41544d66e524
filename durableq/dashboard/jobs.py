"""The list of jobs: what is looked for stands in the address, and a page is found without scanning the table.

A search that no index answers looks at a bounded stretch and offers to go on from there. Arguments and results are
not shown here.
"""

import asyncio
from datetime import datetime
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Query
from starlette.responses import Response

from durableq.dashboard.filters import LONGEST_TEXT, Problem, Search, read_query, read_text
from durableq.dashboard.site import Site, Visit
from durableq.fastapi.admin_models import JobList
from durableq.fastapi.parameters import declared_in_query
from durableq.fastapi.showing import SecretFilter, refuse_secret_filters, secrets_of
from durableq.models import LARGEST_NUMBER, JobFilter, JobState, Page
from durableq.queue import DurableQ

PAGE: Final = 50
LOOK_AT: Final = 20_000
"""So many jobs are compared with what no index answers, before a page is shown as it is."""
COUNTED: Final = 10_000
_SUGGESTED: Final = 200
"""So many names of tasks are suggested."""
_FORM_ONLY: Final = frozenset({"arg_name", "arg_value"})

Cursor = Annotated[int | None, Query(ge=1, le=LARGEST_NUMBER)]


def add(router: APIRouter, site: Site) -> None:
    @router.get("/jobs")
    async def show_jobs(
        visit: Annotated[Visit, Depends(site.reader)], q: str | None = None, cursor: Cursor = None
    ) -> Response:
        at = site.dq.now()
        if q is not None:
            return await _searched(visit, q, at)
        given = visit.request.query_params.multi_items()
        search, problems, _ = read_query(given, at, declared_in_query(visit.request))
        if problems:
            return await _page(visit, search, problems=problems)
        if any(name in _FORM_ONLY or not value for name, value in given):
            return visit.redirect("jobs", **search.fields())  # an address without what a form left empty
        return await _found(visit, search, search.where(at), cursor)


async def refusal(dq: DurableQ, where: JobFilter) -> list[Problem]:
    """Return why jobs may not be looked for like this: it would tell a secret."""
    try:
        await refuse_secret_filters(dq, where)
    except SecretFilter as error:
        return [Problem("q", str(error))]
    return []


async def _searched(visit: Visit, text: str, at: datetime) -> Response:
    """Answer the search box: by the address of what was meant."""
    search, problems, job_id = read_text(text, at)
    if job_id is not None:
        return visit.redirect(f"jobs/{job_id}")
    if problems:
        return await _page(visit, search, problems=problems, text=text[:LONGEST_TEXT])
    return visit.redirect("jobs", **search.fields())


async def _found(visit: Visit, search: Search, where: JobFilter, cursor: int | None) -> Response:
    dq = visit.site.dq
    problems = await refusal(dq, where)
    if problems:
        return await _page(visit, search, problems=problems)
    page = await dq.list(where, cursor=cursor, limit=PAGE, look_at=LOOK_AT)
    return await _page(visit, search, page=page, listed=await _shown(dq, page), cursor=cursor)


async def _shown(dq: DurableQ, page: Page) -> JobList:
    secrets = await secrets_of(dq, (job.task for job in page.jobs))
    return await asyncio.to_thread(JobList.of, page, secrets.redactor)


async def _page(visit: Visit, search: Search, **found: Any) -> Response:
    dq = visit.site.dq
    values: dict[str, Any] = {"page": None, "listed": None, "cursor": None, "problems": [], "text": None}
    values |= found
    return visit.page(
        "jobs.html",
        section="jobs",
        title="Jobs",
        status=400 if values["problems"] else 200,
        search=search,
        states=list(JobState),
        counts=await dq.counts(at_most=COUNTED),
        counted=COUNTED,
        tasks=[task.name for task in await dq.tasks()][:_SUGGESTED],
        looked_at=LOOK_AT,
        **values,
    )
