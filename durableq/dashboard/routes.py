"""What holds for every answer of the dashboard, whoever gives it: the page, ``auth``, FastAPI, or a defect.

No cache keeps it, no other site frames or reads it, and nothing runs in it but our own files. An error is a page that
says what to do, and shows nothing of the inside: the log says more under the id that the page names.
"""

import logging
import secrets
from collections.abc import Callable, Coroutine
from typing import Any, Final, Protocol

from fastapi import Request
from fastapi.exception_handlers import http_exception_handler
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match
from starlette.types import Receive, Scope, Send

from durableq.dashboard.pages import RenderedPage
from durableq.dashboard.refusals import Refused
from durableq.errors import DurableQError
from durableq.fastapi.admin_answers import HEADERS, Answer, at_most, in_http_words
from durableq.fastapi.background import RETRY_AFTER_SECONDS
from durableq.queue import DurableQ

logger = logging.getLogger("durableq.dashboard")

CONTENT_SECURITY_POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
PAGE_HEADERS: Final = {**HEADERS, "Content-Security-Policy": CONTENT_SECURITY_POLICY, "Referrer-Policy": "same-origin"}
"""The browser names our own pages to ourselves, so that a form knows where it was sent from; never to another site."""
_FORM_FLOOR: Final = 256 * 1024
_ESCAPED: Final = 6
"""How much longer than stored the same arguments may come in from a form: characters written as escapes."""
_TITLES: Final = {
    404: "There is no such page",
    409: "That is not possible now",
    500: "It may or may not have been done",
    503: "The queue cannot be reached",
}

_NOT_LET_IN: Final = {401: "Please sign in", 403: "You may not look at this"}

UNKNOWN: Final = "unknown_path"
"""The parameter of the path that no page has."""
VISIT_KEY: Final = "durableq.dashboard.visit"
"""Where a request's visit is left in its scope, for the page of an error."""

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class Place(Protocol):
    """What a route has to know of its site."""

    dq: DurableQ

    def learn(self, endpoint: Any, path: str) -> None: ...

    def base(self, request: Request) -> str: ...


class DashboardRoute(APIRoute):
    """A route whose every answer is a page, or the file of one."""

    place: Place

    def __init__(self, path: str, endpoint: Callable[..., Any], **options: Any) -> None:
        self.place.learn(endpoint, path)
        self._body_limit = _FORM_FLOOR + _ESCAPED * self.place.dq.settings.max_payload_bytes
        super().__init__(path, endpoint, **options)

    def get_route_handler(self) -> Handler:
        handle = super().get_route_handler()

        async def handle_in_words(request: Request) -> Response:
            try:
                return await handle(request)
            except (Refused, RequestValidationError, DurableQError) as error:
                refused = in_words(error)
                if refused is None:
                    raise
                return error_page(self.place, request, refused)
            except HTTPException as error:  # of ``auth``
                if not _is_for_people(request, error):
                    raise
                page = error_page(self.place, request, _not_let_in(error))
                page.headers.update(error.headers or {})
                return page

        return handle_in_words

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = Answer(send, PAGE_HEADERS, may_differ=True)
        try:
            await super().handle(scope, at_most(self._body_limit, receive, _too_much), answer)
        except HTTPException as error:  # a method that the route does not have
            if answer.has_begun:
                raise
            page = error_page(self.place, Request(scope), _no_such_action(error))
            page.headers.update(error.headers or {})
            await page(scope, receive, answer)
        except Exception as error:
            # The server, and what tracks errors in it, hear of it as of any other; the reader sees no details.
            if not answer.has_begun:
                page = error_page(self.place, Request(scope), _defect(error))
                await page(scope, receive, answer)
            raise


class UnknownRoute(DashboardRoute):
    """A route for all paths below the mount that nothing else answers.

    It gives way to every other route, of the application too, wherever that stands. It is also for the mount without
    its slash: Starlette would send that to an address without the prefix that a proxy has taken away.
    """

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        match, found = super().matches(scope)
        if match is Match.NONE and scope["type"] == "http":
            match, found = super().matches({**scope, "path": f"{scope['path']}/"})
        return (Match.PARTIAL if match is Match.FULL else match), found


def route_class(site: Place) -> type[DashboardRoute]:
    """Return the class of the routes of a site."""

    class RouteOfThisSite(DashboardRoute):
        place = site

    return RouteOfThisSite


def unknown_route_class(site: Place) -> type[UnknownRoute]:
    """Return the class of the one route of a site that answers what no other does."""

    class UnknownRouteOfThisSite(UnknownRoute):
        place = site

    return UnknownRouteOfThisSite


def in_words(error: Exception) -> Refused | None:
    """Return what a page says for an error, or None for one that is a defect."""
    match error:
        case Refused():
            return error
        case RequestValidationError():
            return Refused(
                400,
                "This address is not right",
                "A part of it is not what the page expects. Start from the menu above.",
            )
        case DurableQError():
            said = in_http_words(error)
            return None if said is None else _as_refused(said)
    return None


def error_page(site: Place, request: Request, refused: Refused) -> RenderedPage:
    """Return the page of something that was not done: with the menu, for those who were let in."""
    visit = request.scope.get(VISIT_KEY)
    page: RenderedPage
    if visit is None:
        page = RenderedPage("bare.html", {"base": site.base(request), "error": refused}, refused.status)
    else:
        page = visit.page("error.html", section="", title=refused.title, status=refused.status, error=refused)
    if refused.status == 503:
        page.headers["Retry-After"] = RETRY_AFTER_SECONDS
    return page


def _is_for_people(request: Request, error: HTTPException) -> bool:
    """Whether a person reads that they are not let in, and the application has no answer of its own to it."""
    if error.status_code not in _NOT_LET_IN or "text/html" not in request.headers.get("accept", ""):
        return False
    handlers = request.app.exception_handlers
    own = [handlers.get(kind) for kind in (error.status_code, *type(error).__mro__) if handlers.get(kind)]
    return not own or own[0] is http_exception_handler


def _not_let_in(error: HTTPException) -> Refused:
    detail: Any = error.detail
    return Refused(error.status_code, _NOT_LET_IN[error.status_code], detail if isinstance(detail, str) else "")


def _as_refused(said: HTTPException) -> Refused:
    detail: Any = said.detail
    incident = f" The log says more under the id {detail['id']}." if detail.get("id") else ""
    text = str(detail["message"])
    return Refused(said.status_code, _TITLES[said.status_code], f"{text[:1].upper()}{text[1:]}.{incident}")


def _no_such_action(error: HTTPException) -> Refused:
    return Refused(error.status_code, "This address is for something else", "Go back, and use the buttons of the page.")


def _defect(error: Exception) -> Refused:
    incident = secrets.token_hex(8)
    logger.error("a page of the dashboard failed, id=%s: %s: %s", incident, type(error).__name__, error)
    return Refused(
        500, "This went wrong inside of the application", f"The log of the server says more under the id {incident}."
    )


def _too_much(limit: int) -> Refused:
    return Refused(413, "This is too much at once", f"Expected at most {limit:,} bytes. Nothing was done.")
