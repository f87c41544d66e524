"""An application with a dashboard, on a real file, without a browser: what tests of its pages share.

Nothing runs the jobs unless a test asks for a worker; they stay where they are put.
"""

import html
import re
import threading
import warnings
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, TypeVar

import pytest
from fastapi import Depends, FastAPI

from durableq import DurableQ
from durableq.dashboard import dashboard

with warnings.catch_warnings():
    # The oldest Starlette uses a name that the newest anyio calls deprecated. Later imports find the module loaded.
    warnings.simplefilter("ignore", DeprecationWarning)
    from starlette.testclient import TestClient

from tests.dashboard.plain_browser import account

R = TypeVar("R")


@dataclass
class SentForm:
    """A form as it stands in a page."""

    method: str
    action: str
    fields: list[tuple[str, str]] = field(default_factory=list)
    buttons: int = 0
    """How many buttons send it."""


class Page(HTMLParser):
    """What a page holds: its forms, its links, the elements with an id, and its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.html = text
        self.forms: list[SentForm] = []
        self.links: list[str] = []
        self.files: list[str] = []
        self.elements: dict[str, dict[str, str | None]] = {}
        self.body: dict[str, str | None] = {}
        self._is_in_form = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag == "form":
            self.forms.append(SentForm(given.get("method") or "get", given.get("action") or ""))
            self._is_in_form = True
        if tag in ("input", "button") and self._is_in_form and given.get("name"):
            self.forms[-1].fields.append((given["name"] or "", given.get("value") or ""))
        if tag == "button" and self._is_in_form and given.get("type", "submit") == "submit":
            self.forms[-1].buttons += 1
        if tag == "a":
            self.links.append(given.get("href") or "")
        if tag in ("script", "link"):
            self.files.append(given.get("src") or given.get("href") or "")
        if tag == "body":
            self.body = given
        if given.get("id"):
            self.elements[given["id"] or ""] = given

    def handle_endtag(self, tag: str) -> None:
        if tag == "form":
            self._is_in_form = False

    @property
    def text(self) -> str:
        """What people read, with single spaces."""
        return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", self.html)).split())

    def form(self, action: str, **having: str) -> SentForm:
        """Return the form that is sent to a path, and has these fields."""
        return next(
            one
            for one in self.forms
            if one.action.endswith(action) and all(pair in one.fields for pair in having.items())
        )


@dataclass
class Application:
    """An application with a dashboard, running, and a browser without JavaScript that knows how to look at it."""

    client: TestClient
    dq: DurableQ
    prefix: str = "/durableq"
    release: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        @self.dq.task(name="mail.send", queue="mail", max_attempts=1)
        def send(email: str, password: str = "") -> str:
            if not email.startswith("good"):
                raise ValueError(f"no such address: {email} {password}")
            return "sent"

        @self.dq.task(name="wait")
        def wait() -> None:
            assert self.release.wait(30)

        self.send, self.wait = send, wait

    def request(self, method: str, path: str, *, who: str | None = "anna", **options: Any) -> Any:
        headers = options.pop("headers", {}) | ({} if who is None else {"X-User": who})
        return self.client.request(method, path, headers=headers, **options)

    def get(self, path: str = "/", **options: Any) -> Any:
        return self.request("GET", f"{self.prefix}{path}", **options)

    def page(self, path: str = "/", **options: Any) -> Page:
        answer = self.get(path, **options)
        assert answer.status_code == 200, answer.text
        return Page(answer.text)

    def get_broken(self, path: str) -> Any:
        """Ask for a page that has a defect, and return what the server answers before the defect comes up to it.

        The test client would raise the defect instead.
        """
        server = TestClient(self.client.app, str(self.client.base_url), raise_server_exceptions=False)
        server.portal = self.client.portal  # the queue runs on that event loop
        return server.get(f"{self.prefix}{path}", headers={"X-User": "anna"})

    def send_form(self, form: SentForm, *, who: str = "anna", **changed: str) -> Any:
        """Press the button of a form. The redirect that answers is not followed."""
        fields = dict(form.fields) | changed
        return self.request(form.method.upper(), form.action, who=who, data=fields, follow_redirects=False)

    def call(self, function: Callable[..., Coroutine[Any, Any, R]], *args: Any, **kwargs: Any) -> R:
        """Await something of the queue, on its own event loop."""
        assert self.client.portal is not None

        async def awaited() -> R:
            return await function(*args, **kwargs)

        return self.client.portal.call(awaited)

    def add(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        async def added() -> Any:
            return await self.dq.add_task(function, *args, **kwargs)

        return self.call(added)


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "app.db"


def serving(dq: DurableQ) -> Iterator[Application]:
    """An application with the dashboard of a queue."""
    app = FastAPI(lifespan=dq.lifespan)
    app.include_router(dashboard(dq, auth=Depends(account)), prefix="/durableq")
    with TestClient(app, base_url="http://testserver") as client:
        application = Application(client, dq)
        yield application
        application.release.set()


@pytest.fixture
def site(database: Path) -> Iterator[Application]:
    """Jobs stay where they are put."""
    yield from serving(DurableQ(database, worker=False))


@pytest.fixture
def working(database: Path) -> Iterator[Application]:
    """Jobs are run."""
    yield from serving(DurableQ(database))
