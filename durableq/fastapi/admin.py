"""``admin_router``: the dead letters, and every other job, over HTTP for operators and their scripts.

No authentication, no routes. Every write is audited under the name of who asked, in the same transaction; what a
person may do follows from their role. Answers are never cached, and browsers cannot be made to write from another
site. The arguments of jobs are shown one job at a time only.
"""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Final, Literal, TypeVar, get_args
from urllib.parse import urlsplit

from fastapi import APIRouter, Body, Depends, HTTPException, Path, Query, Request
from fastapi.params import Depends as DependsMarker
from fastapi.security.base import SecurityBase
from pydantic import AwareDatetime

from durableq.errors import ConfigurationError, InvalidArguments, InvalidTask
from durableq.fastapi.admin_answers import AdminRoute, answers, unavailable
from durableq.fastapi.admin_answers import in_http_words as in_http_words
from durableq.fastapi.admin_models import (
    EditedArguments,
    JobCounts,
    JobDetail,
    JobList,
    JobSummary,
    Name,
    Retried,
    RetryMatching,
)
from durableq.models import Job, JobFilter, JobState
from durableq.queue import DurableQ
from durableq.redaction import (
    RESULT,
    PlaceholderSent,
    Redactor,
    cleaned,
    is_secret_name,
    one_line,
    restored,
    secret_arguments,
)

logger = logging.getLogger("durableq.fastapi")

Role = Literal["read", "operate", "admin"]
"""``read`` looks; ``operate`` also retries and cancels; ``admin`` also edits arguments and deletes."""

Allowed = Callable[..., Coroutine[Any, Any, "Principal"]]
T = TypeVar("T")

_ROLES: Final[tuple[Role, ...]] = get_args(Role)
_OWN_SITE: Final = frozenset({"same-origin", "none"})
_LARGEST_INTEGER: Final = 2**63 - 1
"""What SQLite can hold."""
_NAME_CHARACTERS: Final = 200
_ESCAPED: Final = 4
"""How much longer than stored the same arguments may come in: spaces, and characters written as escapes."""
_BODY_FLOOR: Final = 64 * 1024
LOOK_SECONDS: Final = 2.0
"""How long a search may take: what matches no index is looked for in every job there is."""


@dataclass(frozen=True, slots=True)
class Principal:
    """Who makes a request, and what they may do: what an ``auth`` dependency of `admin_router` returns.

    ``name`` is what the audit trail shows, at most 200 characters; control characters are left out of it. Raises
    `ConfigurationError`.
    """

    name: str
    role: Role = "admin"

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", one_line(self.name).strip())  # it may come from a header
        if not 1 <= len(self.name) <= _NAME_CHARACTERS:
            raise ConfigurationError(
                f"expected a principal's name of 1 to {_NAME_CHARACTERS} characters, got {len(self.name)}"
            )
        if self.role not in _ROLES:
            raise ConfigurationError(f"expected role to be one of {', '.join(_ROLES)}; got {self.role!r}")

    def may(self, role: Role) -> bool:
        """Whether this role includes ``role``."""
        return _ROLES.index(self.role) >= _ROLES.index(role)


def admin_router(dq: DurableQ, *, auth: Any = None) -> APIRouter:
    """Return the routes to look at and mend the jobs of ``dq``: ``app.include_router(..., prefix="/admin")``.

    ``auth`` is a FastAPI dependency, ``Depends(...)`` or ``Security(...)``, that refuses strangers by raising
    `HTTPException`. It may return a `Principal`; a text is the name of an administrator; one that returns nothing
    makes everybody it lets through an administrator named "admin". Without ``auth`` the router has no routes, and
    the log says so. Raises `ConfigurationError` for what authenticates nobody.
    """
    router = APIRouter(tags=["durableq"], route_class=_route_class(dq))
    if auth is None:
        logger.warning(
            "admin_router(%r) has no routes, because nobody would be asked who they are; to enable them pass a "
            "dependency that refuses strangers: admin_router(dq, auth=Depends(current_admin))",
            dq,
        )
        return router
    principal = _principal_of(_checked_auth(auth))
    _add_looking(router, dq, _at_least("read", principal))
    _add_operating(router, dq, _at_least("operate", principal))
    _add_mending(router, dq, _at_least("admin", principal))
    return router


# -- who may -------------------------------------------------------------------------------------------------


def _checked_auth(auth: Any) -> DependsMarker:
    if not isinstance(auth, DependsMarker) or auth.dependency is None:
        raise ConfigurationError(f"expected auth to be a dependency, as in auth=Depends(current_admin), got {auth!r}")
    if isinstance(auth.dependency, SecurityBase):
        raise ConfigurationError(
            f"auth=Depends({type(auth.dependency).__name__}(...)) only reads a credential and checks nothing, so "
            "anybody would be an administrator; pass a dependency that checks it and returns a name or a Principal"
        )
    return auth


def _principal_of(auth: DependsMarker) -> Allowed:
    async def principal(returned: Annotated[Any, auth]) -> Principal:
        if returned is None:
            return Principal("admin")
        if isinstance(returned, str):
            return Principal(returned)
        if isinstance(returned, Principal):
            return returned
        # Whatever it is (False, a credential, a user without a role), it does not say what this person may do.
        raise ConfigurationError(
            "expected the auth dependency of admin_router to return a Principal, a name or None, got a "
            f"{type(returned).__name__}; return Principal(name, role)"
        )

    return principal


def _at_least(role: Role, principal: Allowed) -> Allowed:
    async def allowed(who: Annotated[Principal, Depends(principal)]) -> Principal:
        if not who.may(role):
            raise HTTPException(403, {"message": f"this needs the role {role!r}; {who.name!r} has {who.role!r}"})
        return who

    return allowed


async def _refuse_other_sites(request: Request) -> None:
    """Refuse a write that a page of another site makes a browser send along with this site's cookies."""
    sites = request.headers.getlist("sec-fetch-site")
    if not (_OWN_SITE.issuperset(sites) if sites else _is_own_origin(request)):
        raise HTTPException(403, {"message": "requests that change something are not taken from other sites"})


def _is_own_origin(request: Request) -> bool:
    """What a browser says that is too old for ``Sec-Fetch-Site``. What is no browser says nothing, and is let in."""
    origins = request.headers.getlist("origin")
    host = request.headers.get("host", "")
    return all(_host_of(origin) == host.lower() for origin in origins)


def _host_of(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc.lower() or None
    except ValueError:
        return None


async def _require_json(request: Request) -> None:
    """Refuse a body that is not declared as JSON: only such a one makes a browser ask before it crosses sites.

    FastAPI alone depends on its version, and on the application's ``strict_content_type``.
    """
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "application/json":
        raise HTTPException(415, {"message": "expected the header 'Content-Type: application/json'"})


_WRITE: Final = [Depends(_refuse_other_sites)]
_WRITE_WITH_BODY: Final = [Depends(_refuse_other_sites), Depends(_require_json)]


# -- the routes ----------------------------------------------------------------------------------------------

JobId = Annotated[str, Path(min_length=1, max_length=_NAME_CHARACTERS)]
NameQuery = Annotated[Name | None, Query()]


async def _job_filter(
    state: Annotated[JobState | None, Query()] = None,
    task: NameQuery = None,
    queue: NameQuery = None,
    error_type: Annotated[Name | None, Query(description="Type of the last error, as the job shows it.")] = None,
    tag: Annotated[Name | None, Query(description="One of its tags.")] = None,
    created_after: Annotated[AwareDatetime | None, Query(description="Added at this moment or later.")] = None,
    created_before: Annotated[AwareDatetime | None, Query(description="Added before this moment.")] = None,
    finished_after: Annotated[AwareDatetime | None, Query(description="Finished at this moment or later.")] = None,
    finished_before: Annotated[AwareDatetime | None, Query(description="Finished before this moment.")] = None,
) -> JobFilter:
    # Age is a moment, not a number of seconds ago: it means the same on every page of a list, and in the retry
    # that follows the look.
    return JobFilter(
        state=state,
        task=task,
        queue=queue,
        error_type=error_type,
        tag=tag,
        created_after=created_after,
        created_before=created_before,
        finished_after=finished_after,
        finished_before=finished_before,
    )


def _add_looking(router: APIRouter, dq: DurableQ, reader: Allowed) -> None:
    allowed = [Depends(reader)]

    @router.get("/counts", summary="Count jobs by state", dependencies=allowed, responses=answers())
    async def count_jobs() -> JobCounts:
        """How many jobs are in each state."""
        return JobCounts(**await _soon(dq.counts()))

    @router.get("/jobs", summary="List jobs", dependencies=allowed, responses=answers())
    async def list_jobs(
        where: Annotated[JobFilter, Depends(_job_filter)],
        cursor: Annotated[
            int | None, Query(ge=1, le=_LARGEST_INTEGER, description="`next_cursor` of the page before.")
        ] = None,
        limit: Annotated[int, Query(ge=1, le=200)] = 50,
    ) -> JobList:
        """Jobs that match every given filter, newest first, without their arguments."""
        page = await _soon(dq.list(where, cursor=cursor, limit=limit))
        return await asyncio.to_thread(JobList.of, page, partial(_redactor_of, dq))

    @router.get("/jobs/{job_id}", summary="Show a job", dependencies=allowed, responses=answers(404))
    async def show_job(job_id: JobId) -> JobDetail:
        """A job with its arguments, its result, the tries that failed, and what people did to it."""
        job = await dq.get(job_id)
        attempts, logs, audit = await dq.attempts(job_id), await dq.logs(job_id), await dq.audit_trail(job_id)
        return await asyncio.to_thread(JobDetail.of, job, attempts, logs, audit, partial(_redactor_of, dq))


def _add_operating(router: APIRouter, dq: DurableQ, operator: Allowed) -> None:
    @router.post("/jobs/{job_id}/retry", summary="Retry a job", dependencies=_WRITE, responses=answers(404, 409, 500))
    async def retry_job(job_id: JobId, who: Annotated[Principal, Depends(operator)]) -> JobSummary:
        """Queue a dead or cancelled job as new, its history kept. A scheduled job runs now."""
        return _summary(dq, await dq.retry(job_id, who=who.name))

    @router.post(
        "/retry",
        summary="Retry the dead jobs that match",
        dependencies=_WRITE_WITH_BODY,
        responses=answers(413, 415, 500),
    )
    async def retry_matching_jobs(
        where: Annotated[RetryMatching, Body()], who: Annotated[Principal, Depends(operator)]
    ) -> Retried:
        """Queue dead jobs that match every given filter as new, the oldest first, all in one transaction."""
        retried = await dq.retry_matching(where.as_filter(), limit=where.limit, who=who.name)
        return Retried(retried=retried)

    @router.post("/jobs/{job_id}/cancel", summary="Cancel a job", dependencies=_WRITE, responses=answers(404, 409, 500))
    async def cancel_job(job_id: JobId, who: Annotated[Principal, Depends(operator)]) -> JobSummary:
        """End a job that waits; ask for the end of one that runs, which may take it a moment."""
        return _summary(dq, await dq.cancel(job_id, who=who.name))


def _add_mending(router: APIRouter, dq: DurableQ, administrator: Allowed) -> None:
    @router.post(
        "/jobs/{job_id}/edit",
        summary="Edit the arguments of a job and retry it",
        dependencies=_WRITE_WITH_BODY,
        responses=answers(404, 409, 413, 415, 500),
    )
    async def edit_job(
        job_id: JobId, edited: Annotated[EditedArguments, Body()], who: Annotated[Principal, Depends(administrator)]
    ) -> JobSummary:
        """Queue a dead or cancelled job as new with other arguments, checked against the task's signature.

        A hidden value that comes back as it was shown stays what it is.
        """
        job = await dq.get(job_id)
        try:
            args = _as_stored(edited.args, job, _redactor_of(dq, job))
            return _summary(dq, await dq.retry(job_id, args=args, who=who.name))
        except PlaceholderSent as error:
            raise _refused(error.argument, str(error)) from None
        except InvalidArguments as error:
            raise _refused(error.argument, _what_is_wrong(error, _redactor_of(dq, job, edited.args))) from None
        except (ConfigurationError, InvalidTask) as error:  # this app does not offer the task
            raise HTTPException(409, {"message": cleaned(str(error))}) from error

    @router.delete(
        "/jobs/{job_id}",
        summary="Delete a job",
        status_code=204,
        dependencies=_WRITE,
        responses=answers(404, 409, 500),
    )
    async def delete_job(job_id: JobId, who: Annotated[Principal, Depends(administrator)]) -> None:
        """Remove a finished job and its history. The audit trail stays in the database."""
        await dq.delete(job_id, who=who.name)


async def _soon(looking: Awaitable[T]) -> T:
    """Wait for what may have to look at every job, but not for ever."""
    try:
        async with asyncio.timeout(LOOK_SECONDS):
            return await looking
    except TimeoutError as error:
        raise unavailable(f"it took longer than {LOOK_SECONDS:g} s; narrow it down with filters", error) from None


def _route_class(dq: DurableQ) -> type[AdminRoute]:
    class RouteOfThisQueue(AdminRoute):
        body_limit = _BODY_FLOOR + _ESCAPED * dq.settings.max_payload_bytes

    return RouteOfThisQueue


# -- what is shown -------------------------------------------------------------------------------------------


def _redactor_of(dq: DurableQ, job: Job[Any], *other_arguments: Any) -> Redactor:
    """Return what hides a job's secrets: those of its arguments, and of what they were or shall be."""
    arguments = (_arguments_of(job), *other_arguments)
    task = dq.find_task(job.task)
    if task is not None:
        return Redactor.of(secret_arguments(task.function), *arguments)
    # Nobody here knows which of its arguments the task calls secret.
    return Redactor.of({name for one in arguments if isinstance(one, dict) for name in one} | {RESULT}, *arguments)


def _arguments_of(job: Job[Any]) -> Any:
    try:
        return json.loads(job.args_json)
    except (ValueError, RecursionError):  # damaged
        return {}


def _summary(dq: DurableQ, job: Job[Any]) -> JobSummary:
    return JobSummary.shown(job, _redactor_of(dq, job))


def _as_stored(edited: dict[str, Any], job: Job[Any], redactor: Redactor) -> dict[str, Any]:
    stored = _arguments_of(job)
    return restored(edited, redactor.arguments(stored), stored) if isinstance(stored, dict) else edited


def _refused(argument: str | None, message: str) -> HTTPException:
    # The shape of FastAPI's own 422, so that clients read one.
    location = ["body", "args", *filter(None, (argument,))]
    return HTTPException(422, [{"type": "invalid_arguments", "loc": location, "msg": cleaned(message)}])


def _what_is_wrong(error: InvalidArguments, redactor: Redactor) -> str:
    argument = error.argument or ""
    if argument in redactor.names or is_secret_name(argument):  # the error shows what came
        return f"argument {argument!r} is not what the task's signature asks for; it is a secret, so no more is said"
    return redactor.text(str(error))
