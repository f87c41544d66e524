"""A browser, and an application that it visits: Debian's Chromium, a real uvicorn, a real worker, a real file.

Whatever a test does, a visitor's browser may not complain: no error in its console, nothing that the content security
policy refused, no request that failed, none to anywhere else.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import pytest
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Request, Response, expect, sync_playwright

from tests.support import eventually_sync

PROJECT = Path(__file__).resolve().parents[3]
PATIENCE = 20.0
"""Seconds for what must come, on a machine that has much else to do."""
ARGUMENTS = ("--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu")
ABORTED = "net::ERR_ABORTED"
"""What a page asked for when it was left."""
WATCH = """
addEventListener("securitypolicyviolation", (event) =>
  console.error(`Content Security Policy: ${event.violatedDirective} ${event.blockedURI} ${event.sample}`));
"""

Theme = Literal["light", "dark"]


@dataclass
class Served:
    """A running application, its file, and how a test has its jobs made."""

    base: str
    database: Path

    def add(self, task: str, *, state: str = "", options: dict[str, Any] | None = None, **args: Any) -> str:
        """Have a job added as a route would, and wait until it is in a state. Return its id."""
        return self.add_many(task, 1, state=state, options=options, **args)[0]

    def add_many(
        self, task: str, times: int, *, state: str = "", options: dict[str, Any] | None = None, **args: Any
    ) -> list[str]:
        ids: list[str] = self._post(
            "/control/add", [{"task": task, "args": args, "options": options or {}, "times": times}]
        )
        if state:
            eventually_sync(lambda: all(self.state(job_id) == state for job_id in ids), PATIENCE)
        return ids

    def pause(self, queue: str) -> None:
        self._post(f"/control/pause/{queue}", None)

    def row(self, sql: str, *values: Any) -> tuple[Any, ...]:
        """Return the first row that is found, through a connection of its own."""
        with contextlib.closing(sqlite3.connect(self.database, timeout=PATIENCE)) as connection:
            return connection.execute(sql, values).fetchone() or ()

    def execute(self, sql: str, *values: Any) -> None:
        with contextlib.closing(sqlite3.connect(self.database, timeout=PATIENCE)) as connection, connection:
            connection.execute(sql, values)

    def state(self, job_id: str) -> str | None:
        """The state of a job as stored; None when it is gone."""
        found = self.row("SELECT state FROM durableq_jobs WHERE id = ?", job_id)
        return found[0] if found else None

    def states(self, tag: str) -> dict[str, int]:
        """How many jobs of a tag are in each state."""
        with contextlib.closing(sqlite3.connect(self.database, timeout=PATIENCE)) as connection:
            sql = "SELECT state, count(*) FROM durableq_jobs WHERE tags = ? GROUP BY state"
            return dict(connection.execute(sql, (json.dumps([tag]),)).fetchall())

    def audited(self, job_id: str) -> list[tuple[str, str]]:
        with contextlib.closing(sqlite3.connect(self.database, timeout=PATIENCE)) as connection:
            sql = "SELECT who, action FROM durableq_audit WHERE job_id = ? ORDER BY seq"
            return connection.execute(sql, (job_id,)).fetchall()

    def _post(self, path: str, body: Any) -> Any:
        request = urllib.request.Request(
            f"{self.base}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=PATIENCE) as response:
            return json.loads(response.read())


@contextlib.contextmanager
def served_by(module: str, database: Path, *arguments: str) -> Iterator[Served]:
    """Serve an application in a process of its own. Requests that come too early wait for it."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listening:
        port = listening.getsockname()[1]
        command = [sys.executable, "-m", module, str(database), str(listening.fileno()), *arguments]
        process = subprocess.Popen(command, cwd=PROJECT, pass_fds=[listening.fileno()], env=_environment())
    try:
        yield Served(f"http://127.0.0.1:{port}", database)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("DURABLEQ_")}


@dataclass
class Visitor:
    """Somebody with a browser window at the dashboard, and what their browser complained about."""

    context: BrowserContext
    base: str
    mount: str = "/durableq"
    refusals: set[int] = field(default_factory=set)
    """The answers of 400 and more that the test provokes."""
    complaints: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    """Addresses of all requests."""

    def __post_init__(self) -> None:
        self.page = self.context.new_page()
        self.page.on("console", self._heard)
        self.page.on("pageerror", lambda error: self.complaints.append(f"error in a script: {error}"))
        self.page.on("requestfailed", self._failed)
        self.page.on("response", self._answered)
        self.page.on("request", self._asked)

    def open(self, path: str = "") -> Response | None:
        """Open a page of the dashboard, by its path below the mount."""
        return self.page.goto(f"{self.base}{self.mount}/{path}")

    def press(self, name: str) -> None:
        """Press a button, or follow a link, by the words on it."""
        button = self.page.get_by_role("button", name=name, exact=True)
        (button.or_(self.page.get_by_role("link", name=name, exact=True))).first.click()

    def reaches(self, title: str) -> None:
        """See that a page is there, with its scripts: a key that is pressed before they listen is lost."""
        expect(self.page.get_by_role("heading", level=1)).to_have_text(title)
        self.page.wait_for_load_state("load")

    def says(self, text: str) -> None:
        """See that the page says how it went."""
        expect(self.page.locator("[data-flash]")).to_contain_text(text)

    def _heard(self, message: ConsoleMessage) -> None:
        status = re.search(r"responded with a status of (\d+)", message.text)
        is_expected = status is not None and int(status[1]) in self.refusals
        if message.type in ("error", "warning") and not is_expected:
            self.complaints.append(f"console: {message.text}")

    def _failed(self, request: Request) -> None:
        if request.failure != ABORTED:
            self.complaints.append(f"failed: {request.url}: {request.failure}")

    def _answered(self, response: Response) -> None:
        if response.status >= 400 and response.status not in self.refusals:
            self.complaints.append(f"answered {response.status}: {response.url}")

    def _asked(self, request: Request) -> None:
        self.asked.append(request.url)
        if not request.url.startswith((f"{self.base}/", "data:")):
            self.complaints.append(f"asked another site: {request.url}")


Enter = Callable[..., Visitor]
"""Opens a window: ``who``, ``role``, ``width``, ``theme``, ``script``, and what else a context takes."""


def chromium() -> str | None:
    """Return where the browser is. None is downloaded."""
    return shutil.which("chromium")


@contextlib.contextmanager
def browsing() -> Iterator[Browser]:
    """Start the browser. Not for longer than a file of tests: while it runs, this thread can run no other loop."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium(), args=ARGUMENTS)
        try:
            yield browser
        finally:
            browser.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    if chromium() is None:
        pytest.skip("Chromium is not installed: apt-get install chromium")
    expect.set_options(timeout=PATIENCE * 1_000)
    with browsing() as started:
        yield started


@pytest.fixture(scope="module")
def served(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One application for all tests of a file: each looks only at jobs of its own, or at what they all may see."""
    with served_by("tests.dashboard.browser.app", tmp_path_factory.mktemp("browser") / "app.db") as running:
        running.pause("night")
        yield running


@pytest.fixture
def enter(browser: Browser, served: Served) -> Iterator[Enter]:
    """Opens windows. At the end none of their browsers may have complained."""
    visitors: list[Visitor] = []

    def opened(
        who: str = "anna",
        role: str = "admin",
        *,
        width: int = 1280,
        theme: Theme = "light",
        script: bool = True,
        mount: str = "/durableq",
        **options: Any,
    ) -> Visitor:
        context = browser.new_context(
            viewport={"width": width, "height": 900},
            color_scheme=theme,
            reduced_motion="reduce",
            java_script_enabled=script,
            timezone_id="America/New_York",
            **options,
        )
        context.set_default_timeout(PATIENCE * 1_000)
        context.add_init_script(WATCH)
        context.add_cookies(
            [
                {"name": name, "value": quote(value), "url": served.base}
                for name, value in (("who", who), ("role", role))
            ]
        )
        visitors.append(Visitor(context, served.base, mount))
        return visitors[-1]

    yield opened
    for visitor in visitors:
        visitor.context.close()
    assert [complaint for visitor in visitors for complaint in visitor.complaints] == []
