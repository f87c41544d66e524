"""The state of a job for the application's own users: a status to ask for, and events as they come.

It shows how far a job is, and of what it holds only what the application chose; never its arguments. Nobody sees a
job without being let in by the application's own ``auth``, or by a token that is signed for this very job.
"""

import asyncio
import logging
import time
import weakref
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated, Any, Final, Literal, get_args

from fastapi import APIRouter, Depends, Header, HTTPException, Path, Query, Request
from fastapi.params import Depends as DependsMarker
from fastapi.routing import APIRoute
from pydantic import Field
from starlette.datastructures import QueryParams
from starlette.responses import JSONResponse, Response
from starlette.routing import Match, NoMatchFound
from starlette.types import Receive, Scope, Send

from durableq.errors import ConfigurationError
from durableq.fastapi.admin_answers import AdminRoute, answers
from durableq.fastapi.admin_models import (
    ErrorSummary,
    ProgressRecord,
    Record,
    example,
    shown_error,
    shown_progress,
    shown_result,
)
from durableq.fastapi.background import RETRY_AFTER_SECONDS, STORED_AS_KEY
from durableq.fastapi.following import Seen, follow
from durableq.fastapi.principals import checked_auth
from durableq.fastapi.showing import secrets_of
from durableq.fastapi.streaming import EventStream, Seats, stream_answers
from durableq.fastapi.tokens import AnySecret, checked_secret, is_valid, signed
from durableq.models import Job, JobState
from durableq.queue import STATE_KEY, DurableQ, queues_running_here
from durableq.redaction import Redactor

logger = logging.getLogger("durableq.fastapi")

Shows = Literal["result", "error", "log"]
"""What of a job its user may see beside its state: what it returned, why it failed, what it logs."""

_LOG: Final[tuple[Shows, ...]] = ("log",)
ROUTE: Final = "durableq_job_status"
"""The name of the status route."""
_EVENTS: Final = "_events"
"""Appended to it: the name of the route of events."""
_DAY: Final = timedelta(days=1)
_LONGEST: Final = timedelta(days=365)
_PARAMETER: Final = "token"
_TOKEN_CHARACTERS: Final = 200
_BODY_LIMIT: Final = 64 * 1024


class JobStatus(Record):
    """How far a job is."""

    id: str
    state: JobState
    is_finished: bool = Field(description="Whether it has succeeded, is dead, or was cancelled.")
    attempt: int = Field(description="Number of the current or latest try; 0 before the first.")
    max_attempts: int
    created_at: datetime
    run_at: datetime = Field(description="The earliest time of the next attempt.")
    started_at: datetime | None = Field(description="When the latest attempt started.")
    finished_at: datetime | None
    progress: ProgressRecord | None = Field(description="What the task itself tells of it.")
    result: Any = Field(None, description="What the task returned; left out where the application does not show it.")
    error: ErrorSummary | None = Field(None, description="Why it failed; left out where it is not shown.")


class Accepted(Record):
    """A job was stored and will be done."""

    model_config = example(
        {
            "id": "0199c1f0-6d3a-7b41-9c55-1f0a5f0a2b3c",
            "status_url": "/jobs/0199c1f0-6d3a-7b41-9c55-1f0a5f0a2b3c",
            "events_url": "/jobs/0199c1f0-6d3a-7b41-9c55-1f0a5f0a2b3c/events",
        }
    )

    id: str
    status_url: str = Field(description="Ask here how far it is.")
    events_url: str = Field(description="Server-sent events: how far it is, as it happens.")


@dataclass(frozen=True, slots=True)
class _Access:
    """How the jobs of one status router are reached."""

    route: str
    key: bytes | None
    valid_for: timedelta

    def query(self, job_id: str) -> str:
        if self.key is None:
            return ""
        expires_at = int(time.time() + self.valid_for.total_seconds())
        return f"?{_PARAMETER}={signed(self.key, self.route, job_id, expires_at)}"


_by_queue: Final[weakref.WeakKeyDictionary[DurableQ, dict[str, _Access]]] = weakref.WeakKeyDictionary()


def status_router(
    dq: DurableQ,
    *,
    auth: Any = None,
    secret: AnySecret | None = None,
    valid_for: timedelta = _DAY,
    shows: Collection[Shows] = _LOG,
    streams: int = 100,
    name: str = ROUTE,
) -> APIRouter:
    """Return routes by which users see how far their jobs are: ``app.include_router(..., prefix="/jobs")``.

    ``GET /{job_id}`` answers a `JobStatus`, ``GET /{job_id}/events`` the same as server-sent events until the job is
    finished. ``auth`` is the application's own dependency, ``Depends(...)``, that refuses whom it does not let in by
    raising `HTTPException`; it may take the path's ``job_id``, and should, where not everybody may see every job. What
    it keeps open by a ``yield`` stays open as long as events are sent, unless it is ``Depends(..., scope="function")``.
    With ``secret``, at least 16 bytes, a link made by `accepted` lets in whoever has it, to that one job, for
    ``valid_for``. With both either will do; with none the router has no routes, and the log says so.

    ``shows`` is what of a job is shown beside its state and progress. ``streams`` are open at once, at most; who comes
    later gets a 503. ``name`` is that of the status route, for applications with several such routers. Raises
    `ConfigurationError`.
    """
    router = APIRouter(tags=["jobs"], route_class=_StatusRoute)
    if auth is None and secret is None:
        logger.warning(
            "status_router(%r) has no routes, because anybody could see any job; to enable them pass a dependency that "
            "refuses strangers, status_router(dq, auth=Depends(current_user)), or a secret to sign links with",
            dq,
        )
        return router
    access = _Access(name, None if secret is None else checked_secret(secret), _checked_time(valid_for))
    routes = _Routes(dq, _checked_words(shows), Seats(_checked_number(streams)), access)
    if access.key is not None:
        by_token = [Depends(_token_of(access.key, access.route))]
        routes.add(router, _StatusRoute if auth is None else _RouteWithToken, by_token, in_schema=auth is None)
    if auth is not None:
        documented = [Depends(_token_is_documented)] if access.key is not None else []
        routes.add(router, _StatusRoute, [Depends(_let_in(checked_auth(auth))), *documented], in_schema=True)
    _by_queue.setdefault(dq, {})[name] = access
    return router


def accepted(
    job: Job[Any], request: Request, *, name: str | None = None, headers: Mapping[str, str] | None = None
) -> Response:
    """Return the answer that a job was taken on: 202, with links to its status and its events.

    The links stand in the body and the first in ``Location``; they are relative to the host, and signed where the
    status router has a secret. For jobs of the request's collector too: the answer leaves after they are stored.
    ``name`` is that of the `status_router`, where the application has several; ``headers`` go along. For the
    documentation of the route: ``responses={202: {"model": Accepted}}``, from `durableq.fastapi.status`. Raises
    `ConfigurationError` when there is no status router to link to.
    """
    return _AcceptedAnswer(job.id, _access_of(request, name), request, headers)


class _AcceptedAnswer(JSONResponse):
    """Made with the id that a job has; sent with the one it is stored under, which may be an equal one's."""

    def __init__(self, job_id: str, access: _Access, request: Request, headers: Mapping[str, str] | None) -> None:
        self._job_id, self._access, self._request = job_id, access, request
        links = self._links(job_id)
        super().__init__(links.model_dump(), 202, headers={**(headers or {}), **_SOON, "Location": links.status_url})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        stored_as = scope.get(STORED_AS_KEY, {}).get(self._job_id)
        if stored_as is not None:
            links = self._links(stored_as)
            self.body = self.render(links.model_dump())
            self.headers.update({"Location": links.status_url, "Content-Length": str(len(self.body))})
        await super().__call__(scope, receive, send)

    def _links(self, job_id: str) -> Accepted:
        query = self._access.query(job_id)
        return Accepted(
            id=job_id,
            status_url=_url(self._request, self._access.route, job_id) + query,
            events_url=_url(self._request, self._access.route + _EVENTS, job_id) + query,
        )


def _access_of(request: Request, name: str | None) -> _Access:
    running = request.scope.get("state", {}).get(STATE_KEY) or queues_running_here()
    known = [one for dq in dict.fromkeys(running) for one in _by_queue.get(dq, {}).values()]
    found = [one for one in known if name in (None, one.route)]
    if len(found) != 1:
        names = ", ".join(repr(one.route) for one in known) or "none"
        raise ConfigurationError(
            f"expected one status router to link to, found {len(found)} (known: {names}); include "
            "status_router(dq, ...) in the application, and where it has several name one: accepted(..., name=...)"
        )
    return found[0]


def _url(request: Request, route: str, job_id: str) -> str:
    try:
        return request.url_for(route, job_id=job_id).path
    except NoMatchFound:
        raise ConfigurationError(
            f"the status router {route!r} is not part of this application; app.include_router(status_router(...)) in "
            "the one whose route calls accepted()"
        ) from None


# -- the routes ----------------------------------------------------------------------------------------------

_SOON: Final = {"Cache-Control": "no-store", "Retry-After": RETRY_AFTER_SECONDS}
_EXAMPLE: Final = {
    "id": "0199c1f0-6d3a-7b41-9c55-1f0a5f0a2b3c",
    "state": "running",
    "is_finished": False,
    "attempt": 1,
    "max_attempts": 20,
    "created_at": "2026-03-01T09:30:00Z",
    "run_at": "2026-03-01T09:30:00Z",
    "started_at": "2026-03-01T09:30:01Z",
    "finished_at": None,
    "progress": {"done": 40.0, "total": 100.0, "message": "40 of 100 pages"},
}
_EVENTS_EXAMPLE: Final = (
    'event: progress\ndata: {"done":40.0,"total":100.0,"message":"40 of 100 pages"}\nid: 1\n\n'
    'event: log\ndata: {"at":"2026-03-01T09:30:02+00:00","message":"page 41 is empty"}\nid: 2\n\n'
    "event: end\ndata: {}\nid: 2.end\n\n"
)

JobId = Annotated[str, Path(min_length=1, max_length=200)]
LastEventId = Annotated[str | None, Header(max_length=200, description="What was seen last; browsers send it.")]
Token = Annotated[str | None, Query(max_length=_TOKEN_CHARACTERS, description="The one of the link to this job.")]


class _StatusRoute(AdminRoute):
    body_limit = _BODY_LIMIT


class _RouteWithToken(_StatusRoute):
    """Beside the route of the same path that asks ``auth``: this one is for requests that bring a token."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        if scope["type"] == "http" and _PARAMETER not in QueryParams(scope.get("query_string", b"")):
            return Match.NONE, {}
        return super().matches(scope)


class _Routes:
    """What the routes have in common, whoever is let in by them."""

    def __init__(self, dq: DurableQ, shows: frozenset[str], seats: Seats, access: _Access) -> None:
        self._dq = dq
        self._shows = shows
        self._seats = seats
        self._name = access.route

    def add(self, router: APIRouter, route: type[APIRoute], allowed: list[DependsMarker], *, in_schema: bool) -> None:
        """Add the routes for those that ``allowed`` lets in."""
        common: dict[str, Any] = {
            "methods": ["GET"],
            "dependencies": allowed,
            "route_class_override": route,
            "include_in_schema": in_schema,
        }
        router.add_api_route(
            "/{job_id}",
            self.show,
            summary="Show how far a job is",
            name=self._name,
            response_model=JobStatus,
            response_model_exclude_unset=True,
            responses={200: {"content": {"application/json": {"example": _EXAMPLE}}}, **answers(404)},
            **common,
        )
        router.add_api_route(
            "/{job_id}/events",
            self.follow,
            summary="Follow a job as it happens",
            name=self._name + _EVENTS,
            response_class=EventStream,
            responses=stream_answers(_EVENTS_EXAMPLE),
            **common,
        )

    async def show(self, job_id: JobId, response: Response) -> JobStatus:
        """The state of a job, and how far it says it is. Ask again after `Retry-After` until it is finished."""
        job = await self._dq.get(job_id)
        if not job.is_finished:
            response.headers["Retry-After"] = RETRY_AFTER_SECONDS
        redactor = (await secrets_of(self._dq, [job.task])).redactor(job)
        return await asyncio.to_thread(self._status, job, redactor)

    async def follow(self, job_id: JobId, last_event_id: LastEventId = None) -> Response:
        """Server-sent events until the job is finished: `status`, `progress` and `log` as they come, then `end`.

        `status` carries what the plain status answers, `progress` that part of it alone. A browser's `EventSource`
        that comes back after a break goes on where it was. Close it at `end`; one that comes back is told not to.
        """
        job = await self._dq.get(job_id)
        seen = Seen.of(last_event_id)
        if seen.end and job.is_finished:
            return Response(status_code=204)  # tells a browser not to come back
        return EventStream(follow(self._dq, job, seen, self._shown, lines="log" in self._shows), self._seats)

    def _status(self, job: Job[Any], redactor: Redactor) -> JobStatus:
        fields: dict[str, Any] = {name: getattr(job, name) for name in _PLAIN}
        if "result" in self._shows:
            fields["result"] = shown_result(job, redactor)
        if "error" in self._shows:
            fields["error"] = shown_error(job, redactor)
        return JobStatus(**fields, progress=shown_progress(job, redactor))

    def _shown(self, job: Job[Any], redactor: Redactor) -> dict[str, Any]:
        return self._status(job, redactor).model_dump(mode="json", exclude_unset=True)


_PLAIN: Final = sorted(JobStatus.model_fields.keys() - {"progress", "result", "error"})


# -- who is let in -------------------------------------------------------------------------------------------


def _token_of(key: bytes, route: str) -> Callable[..., Any]:
    async def token_fits(job_id: JobId, token: Token = None) -> None:
        if token is None or not is_valid(key, route, job_id, token, time.time()):
            raise HTTPException(403, {"message": "the link to this job's status is incomplete, or has expired"})

    return token_fits


async def _token_is_documented(token: Token = None) -> None:
    """With a token the other route of this path is taken, which is not in the documentation."""


def _let_in(auth: DependsMarker) -> Callable[..., Any]:
    async def let_in(returned: Annotated[Any, auth]) -> None:
        if returned is False:
            raise ConfigurationError(
                "the auth dependency of status_router returned False, which refuses nobody; raise HTTPException(403)"
            )

    return let_in


# -- what is given -------------------------------------------------------------------------------------------


def _checked_words(shows: Collection[str]) -> frozenset[str]:
    known = get_args(Shows)
    for word in (shows,) if isinstance(shows, str) else shows:
        if isinstance(shows, str) or word not in known:
            raise ConfigurationError(f"expected shows to be a list of some of {', '.join(known)}; got {shows!r}")
    return frozenset(shows)


def _checked_number(streams: int) -> int:
    if streams < 1:
        raise ConfigurationError(f"expected streams to be at least 1, got {streams}")
    return streams


def _checked_time(valid_for: timedelta) -> timedelta:
    if not timedelta(seconds=1) <= valid_for <= _LONGEST:
        raise ConfigurationError(f"expected valid_for to be from a second to {_LONGEST.days} days, got {valid_for}")
    return valid_for
