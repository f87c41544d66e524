"""A browser without JavaScript: it reads pages, follows links and redirects, and sends the forms that it was shown.

So a test presses what a person would press, with every hidden field, and cannot send what no page offers.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlencode

from fastapi import Depends, FastAPI, Header, HTTPException
from fastapi.testclient import TestClient
from tenacity import wait_fixed

from durableq import AuditEntry, DurableQ, Job, JobNotFound, RetryPolicy, Secret, StorageBusy, current_job
from durableq.dashboard import dashboard
from durableq.fastapi import Principal
from tests.support import eventually_sync

ACCOUNTS = {"rita": Principal("rita", "read"), "otto": Principal("otto", "operate"), "anna": Principal("anna")}
MOUNT = "/durableq"


def account(x_user: Annotated[str | None, Header()] = None) -> Principal:
    """Who asks, as the tests say it: rita reads, otto operates, anna administrates; others are strangers."""
    if x_user not in ACCOUNTS:
        raise HTTPException(401, "who are you?")
    return ACCOUNTS[x_user]


@dataclass
class FoundForm:
    """A form of a page: where it goes, and what it holds."""

    action: str
    method: str
    fields: list[tuple[str, str]] = field(default_factory=list)
    boxes: list[tuple[str, str]] = field(default_factory=list)
    """Boxes that may be ticked; none is."""
    buttons: list[tuple[str, str, str]] = field(default_factory=list)
    """Name, value and text of each."""


@dataclass
class Page:
    """What came back, read."""

    status: int
    html: str
    url: str
    forms: list[FoundForm] = field(default_factory=list)
    links: list[tuple[str, str]] = field(default_factory=list)
    """Address and text of each."""
    text: str = ""
    codes: list[str] = field(default_factory=list)
    """Texts in which every space counts."""
    elements: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    """Every tag, with its attributes."""

    def form(self, path: str) -> FoundForm:
        """Return the one form that is sent to a path below the dashboard."""
        found = [form for form in self.forms if form.action == f"{MOUNT}/{path}" and form.method == "post"]
        assert len(found) == 1, f"{len(found)} forms to {path}, there are {[form.action for form in self.forms]}"
        return found[0]

    def has_form(self, path: str) -> bool:
        return any(form.action == f"{MOUNT}/{path}" and form.method == "post" for form in self.forms)

    def link(self, text: str) -> str:
        """Return where the one link of a text leads."""
        found = {address for address, words in self.links if words == text}
        assert len(found) == 1, f"{len(found)} links named {text!r}, there are {[words for _, words in self.links]}"
        return found.pop()

    def has_link(self, text: str) -> bool:
        return any(words == text for _, words in self.links)


class _Reader(HTMLParser):
    """Reads a page as a browser with scripts switched off: what stands in ``noscript`` counts."""

    def __init__(self, page: Page) -> None:
        super().__init__()
        self._page = page
        self._form: FoundForm | None = None
        self._words: list[str] = []
        self._link: tuple[str, int] | None = None
        self._button: tuple[str, str, int] | None = None
        self._area: tuple[str, int] | None = None
        self._code = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self._page.elements.append((tag, given))
        if tag == "form":
            self._form = FoundForm(given.get("action", ""), given.get("method", "get").lower())
            self._page.forms.append(self._form)
        elif tag == "a":
            self._link = given.get("href", ""), len(self._words)
        elif tag == "button":
            self._button = given.get("name", ""), given.get("value", ""), len(self._words)
        elif tag == "pre":
            self._code = len(self._words)
        elif tag == "textarea":
            self._area = given.get("name", ""), len(self._words)
        elif tag == "input" and self._form is not None and given.get("name"):
            kind = self._form.boxes if given.get("type") == "checkbox" else self._form.fields
            kind.append((given["name"], given.get("value", "")))

    def handle_endtag(self, tag: str) -> None:
        if tag == "form":
            self._form = None
        elif tag == "a" and self._link is not None:
            self._page.links.append((self._link[0], self._since(self._link[1])))
        elif tag == "pre":
            self._page.codes.append("".join(self._words[self._code :]))
        elif tag == "button" and self._button is not None and self._form is not None:
            name, value, begin = self._button
            self._form.buttons.append((name, value, self._since(begin)))
        elif tag == "textarea" and self._area is not None and self._form is not None:
            name, begin = self._area
            self._form.fields.append((name, "".join(self._words[begin:]).removeprefix("\n")))

    def handle_data(self, data: str) -> None:
        self._words.append(data)

    def _since(self, begin: int) -> str:
        return " ".join("".join(self._words[begin:]).split())

    def close(self) -> None:
        super().close()
        self._page.text = " ".join("".join(self._words).split())


def read(status: int, html: str, url: str) -> Page:
    page = Page(status, html, url)
    reader = _Reader(page)
    reader.feed(html)
    reader.close()
    return page


@dataclass
class Browser:
    """Somebody at the dashboard of a running application, and its queue."""

    client: TestClient
    dq: DurableQ
    who: str = "anna"

    def open(self, address: str, **query: Any) -> Page:
        """Open a page of the dashboard by its path or whole address."""
        url = address if address.startswith("/") else f"{MOUNT}/{address}"
        return self._read(self.client.get(f"{url}?{urlencode(query)}" if query else url, headers=self._headers()))

    def press(self, form: FoundForm, button: str = "", *, tick: list[str] | None = None, **typed: str) -> Page:
        """Press a button of a form, with some boxes ticked and some fields filled in; follow where it leads."""
        fields = [(name, typed.pop(name, value)) for name, value in form.fields]
        assert not typed, f"the form has no field {', '.join(typed)}"
        fields += [box for box in form.boxes if box[1] in (tick or [])]
        if button:
            found = [(name, value) for name, value, text in form.buttons if button in (text, value)]
            assert len(found) == 1, f"{len(found)} buttons {button!r}, there are {form.buttons}"
            fields += [pair for pair in found if pair[0]]
        return self.send(form.action, fields)

    def send(self, url: str, fields: list[tuple[str, str]], **headers: str) -> Page:
        """Send any fields anywhere, as nobody with a page before them would."""
        given = self._headers() | {"Content-Type": "application/x-www-form-urlencoded", **headers}
        return self._read(self.client.post(url, content=urlencode(fields), headers=given))

    def with_token(self, fields: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """Add the token of this browser's forms."""
        [token] = {value for name, value in self.client.cookies.items() if name.startswith("durableq_form")}
        return [*fields, ("csrf", token)]

    def as_(self, who: str) -> "Browser":
        return Browser(self.client, self.dq, who)

    # -- the queue behind it ---------------------------------------------------------------------------------

    def call(self, function: Any, *args: Any) -> Any:
        """Await something on the loop of the application."""
        assert self.client.portal is not None
        return self.client.portal.call(function, *args)

    def job(self, job_id: str) -> Job[Any]:
        job: Job[Any] = self.call(self.dq.get, job_id)
        return job

    def exists(self, job_id: str) -> bool:
        try:
            self.job(job_id)
        except JobNotFound:
            return False
        return True

    def audited(self, job_id: str) -> list[tuple[str, str]]:
        trail: list[AuditEntry] = self.call(self.dq.audit_trail, job_id)
        return [(entry.who, entry.action) for entry in trail]

    def add(self, task: Any, *args: Any, state: str = "", **kwargs: Any) -> str:
        """Add a job, and wait until it is in a state."""
        job_id: str = self.dq.add_task_sync(task, *args, **kwargs).id
        if state:
            eventually_sync(lambda: self.job(job_id).state == state)
        return job_id

    def _headers(self) -> dict[str, str]:
        return {"X-User": self.who} if self.who else {}

    def _read(self, response: Any) -> Page:
        return read(response.status_code, response.text, str(response.url.raw_path.decode()))


@dataclass
class Office(Browser):
    """A browser at a small application: tasks that fail, succeed and wait on demand."""

    release: threading.Event = field(default_factory=threading.Event)
    mail: Any = None
    """Takes ``email`` and ``copies``; fails unless the address begins with "good"."""
    login: Any = None
    """Takes a secret ``answer`` and fails."""
    build: Any = None
    """Of the queue "slow"; fails with a `LookupError`."""
    wait: Any = None
    """Runs until it is released."""
    flaky: Any = None
    """Says which try it is, and fails; the second try comes in an hour, and is the last."""

    def __post_init__(self) -> None:
        @self.dq.task(name="mail.send", queue="mail", max_attempts=1)
        def send(email: str, copies: int = 1, options: dict[str, Any] | None = None) -> dict[str, Any]:
            current_job().log(f"sending to {email}")
            if not email.startswith("good"):
                raise ValueError(f"no such address: {email}")
            return {"sent": copies, "number": 2**63}

        @self.dq.task(name="account.login", max_attempts=1)
        def login(user: str, answer: Annotated[str, Secret]) -> None:
            raise PermissionError("refused")

        @self.dq.task(name="report.build", queue="slow", max_attempts=1)
        def build() -> None:
            raise LookupError("no data")

        @self.dq.task(name="wait")
        def wait() -> None:
            assert self.release.wait(30)

        @self.dq.task(name="flaky", max_attempts=2, retry=RetryPolicy(wait=wait_fixed(3_600)))
        def flaky() -> None:
            current_job().log(f"this is try {current_job().attempt}")
            raise ValueError(f"failure {current_job().attempt}")

        self.flaky = flaky
        self.mail, self.login, self.build, self.wait = send, login, build, wait

    def dead_letter(self, email: str = "bad@example.org") -> str:
        return self.add(self.mail, email, state="dead")


class Failing:
    """Does what it stands for, but says at one call that the database is busy."""

    def __init__(self, work: Callable[..., Any], at_call: int) -> None:
        self.calls = 0
        self._work, self._at_call = work, at_call

    async def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        if self.calls == self._at_call:
            raise StorageBusy("the database is busy")
        return await self._work(*args, **kwargs)


@contextlib.contextmanager
def application(dq: DurableQ) -> Iterator[Browser]:
    """Serve an application with the dashboard of a queue, and look at it as its administrator."""
    app = FastAPI(lifespan=dq.lifespan)
    app.include_router(dashboard(dq, auth=Depends(account)), prefix=MOUNT)
    with TestClient(app) as client:
        yield Browser(client, dq)


@contextlib.contextmanager
def office(directory: Path) -> Iterator[Office]:
    """The same of a queue of its own, with the tasks of an `Office`."""
    with application(DurableQ(directory / "app.db", threads=4, grace=0.5)) as browser:
        running = Office(browser.client, browser.dq)
        yield running
        running.release.set()
