"""`Site` and `Visit`: what every screen stands on. Who asks and what they may do, where the dashboard is mounted,
how a page is made, and how an action answers.

A screen is a module with ``add(router, site)``, a template, and a line in `NAVIGATION`.
"""

import hmac
import secrets
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, NamedTuple
from urllib.parse import quote, urlencode

from fastapi import Depends, HTTPException, Request
from fastapi.responses import RedirectResponse
from fastapi.routing import APIRoute

from durableq.dashboard.forms import Form, check_token, cookie_name, is_token, new_token, read_form
from durableq.dashboard.pages import RenderedPage
from durableq.dashboard.refusals import Refused
from durableq.dashboard.routes import UNKNOWN, VISIT_KEY, route_class
from durableq.dashboard.watch import Watch, fingerprint
from durableq.fastapi.principals import Principal, Role, refuse_other_sites
from durableq.queue import DurableQ


class Screen(NamedTuple):
    """A line of the navigation."""

    section: str
    path: str
    title: str
    icon: str
    key: str
    """Pressed after ``g`` it leads there."""


NAVIGATION: Final = (
    Screen("overview", "", "Overview", "gauge", "o"),
    Screen("jobs", "jobs", "Jobs", "list", "j"),
    Screen("dead", "dead", "Dead letters", "dead", "d"),
    Screen("queues", "queues", "Queues", "queued", "q"),
    Screen("workers", "workers", "Workers", "cpu", "w"),
    Screen("system", "system", "System", "sliders", "s"),
)


class Message(NamedTuple):
    """What a page says after an action. ``{n}`` stands for a number, ``{name}`` for the name of what it is about."""

    text: str
    plural: str | None = None
    """The text for any other number than one."""
    kind: str = "good"
    """``good``, ``warn`` or ``bad``."""
    none: str | None = None
    """The text for none, where that needs its own; it is a warning."""

    def about(self, number: int | None, name: str = "") -> str:
        if number == 0 and self.none is not None:
            return self.none
        text = self.text if self.plural is None or number == 1 else self.plural
        return text.format(n=f"{number or 0:,}", name=name)

    def kind_about(self, number: int | None) -> str:
        return "warn" if number == 0 and self.none is not None else self.kind


class SentForm(NamedTuple):
    """A form that was believed, and who sent it."""

    visit: "Visit"
    form: Form


VisitDependency = Callable[..., Coroutine[Any, Any, "Visit"]]
FormDependency = Callable[..., Coroutine[Any, Any, SentForm]]


class Site:
    """One dashboard: its queue, who may what, and the words its actions answer with.

    ``reader``, ``operator`` and ``administrator`` are dependencies that give a `Visit` of somebody with at least that
    role; ``operator_form`` and ``administrator_form`` give a `SentForm`.
    """

    def __init__(self, dq: DurableQ, principal: Callable[..., Any]) -> None:
        self.dq = dq
        self.messages: dict[str, Message] = {}
        self.depths: dict[Any, int] = {}
        self.watch = Watch(lambda: fingerprint(dq))
        self.route_class: type[APIRoute] = route_class(self)
        self.reader = self._visit("read", principal)
        self.operator = self._visit("operate", principal)
        self.administrator = self._visit("admin", principal)
        self.operator_form = _form(self.operator)
        self.administrator_form = _form(self.administrator)

    def learn(self, endpoint: Any, path: str) -> None:
        """Note how deep below the mount an endpoint lies. The first time counts: later ones have a prefix."""
        self.depths.setdefault(endpoint, path.count("/"))

    def base(self, request: Request) -> str:
        """Return the path at which a browser finds this dashboard, without a slash at its end.

        Taken from the request itself, so it is right under a prefix, in a mounted application, and behind a proxy.
        """
        path = request.scope["path"]
        outer = request.scope.get("app_root_path", request.scope.get("root_path", "")).rstrip("/")
        if not path.startswith(f"{outer}/"):
            path = outer + path
        if UNKNOWN in request.path_params:
            base = path.removesuffix(f"/{request.path_params[UNKNOWN]}")
        else:
            base = path.rsplit("/", self.depths.get(request.scope.get("endpoint"), 1))[0]
        base = quote(base).lstrip("/")  # two slashes before it would name another host
        return f"/{base}" if base else ""

    def _visit(self, role: Role, principal: Callable[..., Any]) -> VisitDependency:
        async def visit(request: Request, who: Annotated[Principal, Depends(principal)]) -> Visit:
            made = Visit(self, request, who, self.base(request))
            request.scope[VISIT_KEY] = made
            if not who.may(role):
                raise Refused(
                    403,
                    "You may not do this",
                    f"It needs the role “{role}”, and you have “{who.role}”. Nothing was done. "
                    "Ask whoever runs this application.",
                )
            return made

        return visit


def _form(visitor: VisitDependency) -> FormDependency:
    async def form(request: Request, visit: Annotated[Visit, Depends(visitor)]) -> SentForm:
        try:
            await refuse_other_sites(request)
        except HTTPException:
            raise Refused(
                403,
                "This came from another site",
                "Nothing was done. Open the dashboard itself, and do it there. If you did just that, a proxy before it "
                "hides the address that you typed; it has to hand it on, in nginx “proxy_set_header Host $http_host;”.",
            ) from None
        sent = await read_form(request)
        check_token(sent, request.cookies.get(cookie_name(visit.base)))
        return SentForm(visit, sent)

    return form


@dataclass
class Visit:
    """One request of somebody who may make it."""

    site: Site
    request: Request
    who: Principal
    base: str
    token: str = field(init=False)
    """The token of the forms of this browser."""
    known: str = field(init=False)
    """What was seen before anything of this page was read: what comes later, the page is told."""

    def __post_init__(self) -> None:
        self.known = self.site.watch.latest
        cookie = self.request.cookies.get(cookie_name(self.base))
        self.token = cookie if cookie is not None and is_token(cookie) else new_token()

    def may(self, role: Role) -> bool:
        return self.who.may(role)

    def url(self, path: str = "", **query: Any) -> str:
        """Return the address of a page of this dashboard; what is None is left out of the query."""
        given = [(name, value) for name, value in query.items() if value is not None]
        return f"{self.base}/{quote(path)}" + (f"?{urlencode(given, doseq=True)}" if given else "")

    def page(
        self, template: str, *, section: str, title: str, status: int = 200, address: str = "", **values: Any
    ) -> RenderedPage:
        """Return a page. ``section`` is the line of the navigation that it belongs to.

        ``address`` is where to find it, or what is next to it, once it has answered a form.
        """
        address = (address or self._above) if self.request.method == "POST" else ""
        values |= {"visit": self, "section": section, "title": title, "navigation": NAVIGATION, "address": address}
        response = RenderedPage(template, values, status)
        response.set_cookie(
            cookie_name(self.base),
            self.token,
            path=f"{self.base}/",
            secure=self.request.url.scheme == "https",
            httponly=True,
            samesite="lax",  # "strict" would give one who comes by a link a new token, and break the pages open before
        )
        return response

    def redirect(
        self, path: str, *, message: str | None = None, n: int | None = None, of: str | None = None, **query: Any
    ) -> RedirectResponse:
        """Answer an action by a page, which says ``message``: a key of `Site.messages`, of a number or a name.

        The address is signed for this browser: a link that somebody else made says nothing.
        """
        said = None if message is None else f"{message}.{self._signature(message, n, of or '')}"
        return RedirectResponse(self.url(path, **query, said=said, n=n, of=of), 303)

    @property
    def _above(self) -> str:
        """The page on which the form of this request stood: one above the path that it was sent to."""
        depth = self.site.depths.get(self.request.scope.get("endpoint"), 1)
        below_the_mount = self.request.scope["path"].rsplit("/", depth)[1:]
        return self.url("/".join(below_the_mount[:-1]))

    @property
    def message(self) -> tuple[str, str] | None:
        """What the address asks this page to say, as (kind, text): one of our own texts, with a number or a name."""
        query = self.request.query_params
        name, _, signature = query.get("said", "").rpartition(".")
        said, text, of = self.site.messages.get(name), query.get("n", ""), query.get("of", "")
        number = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None
        expected = self._signature(name, number, of)
        if said is None or not secrets.compare_digest(signature.encode(), expected.encode()):
            return None
        return said.kind_about(number), said.about(number, of)

    def _signature(self, message: str, number: int | None, of: str) -> str:
        signed = f"{message} {number} {of}".encode(errors="replace")
        return hmac.digest(self.token.encode(), signed, "sha256").hex()[:16]
