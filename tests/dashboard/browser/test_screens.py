"""Every screen opens: on a desk and on a telephone, light and dark, without a complaint of the browser, without a
page that scrolls sideways, and without a violation that axe finds (WCAG 2.2 AA).

The jobs are of all kinds and states, with texts as long and strange as they come.
"""

import re
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe  # type: ignore[import-untyped]  # the package has no type hints
from playwright.sync_api import Page

from tests.dashboard.browser.conftest import PATIENCE, Enter, Served, Theme
from tests.support import eventually_sync

LONG = "a-very-long-word-that-nobody-has-broken-" * 12
STRANGE = "Łódź 東京 🚀 ‮right to left‬ é́́́́ " + "العربية"
RULES = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
DEVICES: list[tuple[int, Theme]] = [(1280, "light"), (390, "dark")]
"""Where axe looks: at every size and at every theme. Each page is shown in the other theme too."""


@pytest.fixture(scope="module")
def jobs(served: Served) -> dict[str, str]:
    """Jobs of all kinds. Return some by what they are."""
    tags = ["season:spring", "Łódź", "import", LONG[:200]]
    headers = {"tenant": "acme", "trace": LONG[:300]}
    found = {
        "dead": served.add(
            "mail.send", email="bad@example.org", copies=3, options={"tags": tags, "headers": headers}, state="dead"
        ),
        "strange": served.add("mail.send", email=f"{STRANGE}<b>{LONG}", options={"tags": tags}, state="dead"),
        "secret": served.add("account.login", user="ada", password="hunter2-swordfish", state="dead"),
        "succeeded": served.add("mail.send", email="good@example.org", options={"headers": headers}, state="succeeded"),
        "running": served.add("products.import", file="spring.csv", state="running"),
        "retrying": served.add("invoice.render", number=1047, customer="Brandt & Söhne <Hamburg>"),
        "later": served.add("mail.send", email="good@example.org", options={"delay": 7_200}, state="scheduled"),
        "queued": served.add("mail.send", email=LONG, options={"queue": "night"}, state="queued"),
        "blocked": served.add("mail.send", email="good@example.org", options={"queue": "night"}, state="queued"),
        "cancelled": served.add("mail.send", email="x", options={"queue": "night", "expires": 0.05}, state="cancelled"),
    }
    served.add("mail.send", email="bad@example.org", state="dead", options={"queue": LONG[:200]})
    served.execute("UPDATE durableq_jobs SET state = 'blocked' WHERE id = ?", found["blocked"])
    tried = "SELECT attempt, state FROM durableq_jobs WHERE id = ?"
    eventually_sync(lambda: served.row(tried, found["retrying"]) == (2, "scheduled"), PATIENCE)
    eventually_sync(
        lambda: served.row("SELECT progress FROM durableq_jobs WHERE id = ?", found["running"]) != (None,), PATIENCE
    )
    served.execute(
        "UPDATE durableq_jobs SET error_type = ?, error_message = ? WHERE id = ?",
        LONG,
        f"{LONG}\n{LONG}",
        found["strange"],
    )
    of_strange = "SELECT seq FROM durableq_jobs WHERE id = ?"
    served.execute(f"UPDATE durableq_attempts SET error_type = ? WHERE seq = ({of_strange})", LONG, found["strange"])
    return found


SCREENS = {
    "overview": "",
    "jobs": "jobs",
    "jobs, filtered": "jobs?state=dead&task=mail.send&tag=import&since=7d",
    "jobs, none found": "jobs?task=nobody",
    "dead letters": "dead",
    "queues": "queues",
    "workers": "workers",
    "system": "system",
    "a dead job": "jobs/{dead}",
    "a job of strange texts": "jobs/{strange}",
    "a job with a secret": "jobs/{secret}",
    "a job that succeeded": "jobs/{succeeded}",
    "a job that runs": "jobs/{running}",
    "a job that is retried": "jobs/{retrying}",
    "a job that waits": "jobs/{queued}",
    "the editor": "jobs/{dead}/edit",
    "the editor beside strange texts": "jobs/{strange}/edit",
    "whether to delete": "jobs/{dead}/delete",
    "whether to cancel": "jobs/{later}/cancel",
    "what to do to all": "bulk?do=retry&state=dead&task=mail.send",
}
REFUSED = {
    "a search that cannot be meant": ("jobs?since=yesterday&state=ded", 400),
    "a job that is gone": ("jobs/00000000-0000-7000-8000-000000000000", 404),
}


@pytest.mark.parametrize(("width", "theme"), DEVICES)
def test_every_screen_opens_on_every_device(enter: Enter, jobs: dict[str, str], width: int, theme: Theme) -> None:
    visitor = enter(width=width, theme=theme)
    found: list[str] = []
    for name, path in SCREENS.items():
        visitor.open(path.format(**jobs))
        found += faults(visitor.page, name)
        found += [f"{name} shows a secret"] * ("swordfish" in visitor.page.content())
        visitor.page.emulate_media(color_scheme="dark" if theme == "light" else "light")
        found += sideways(visitor.page, name)
        visitor.page.emulate_media(color_scheme=theme)
    assert found == []


@pytest.mark.parametrize("name", REFUSED)
def test_a_page_that_refuses_is_as_good_as_any(enter: Enter, jobs: dict[str, str], name: str) -> None:
    path, status = REFUSED[name]
    visitor = enter(width=390)
    visitor.refusals = {status}
    visitor.open(path)
    assert faults(visitor.page, name) == []


def test_what_opens_above_a_page_is_as_good_as_it(enter: Enter, jobs: dict[str, str]) -> None:
    visitor = enter()
    visitor.open("jobs")
    visitor.press("Keyboard shortcuts")
    found = faults(visitor.page, "the help")
    visitor.page.keyboard.press("Escape")
    visitor.page.locator("#more-filters summary").click()
    visitor.page.locator("#all-matching summary").click()
    found += faults(visitor.page, "menus")
    visitor.open(f"jobs/{jobs['strange']}")
    for details in visitor.page.locator("details").all():
        details.evaluate("details => details.open = true")
    assert found + faults(visitor.page, "all details") == []


WIDER = """() => [...document.querySelectorAll("body *")].filter((one) => {
  const right = one.getBoundingClientRect().right;
  for (let box = one.parentElement; box; box = box.parentElement) {
    if (getComputedStyle(box).overflowX !== "visible") return false;
  }
  return right > innerWidth + 0.5;
}).map((one) => one.outerHTML.slice(0, 120)).slice(-3)"""
"""What sticks out of the window, and out of no box of its own that scrolls."""


def faults(page: Page, name: str) -> list[str]:
    """Return what is wrong with a page: what is wider than the window, and what axe says."""
    options: dict[str, Any] = {"runOnly": RULES, "resultTypes": ["violations"]}
    axe = Axe().run(page, options=options)
    return sideways(page, name) + ([f"{name}: {axe.generate_report()}"] if axe.violations_count else [])


def sideways(page: Page, name: str) -> list[str]:
    if page.evaluate("document.documentElement.scrollWidth <= innerWidth"):
        return []
    return [f"{name} scrolls sideways: {page.evaluate(WIDER)}"]


@pytest.mark.parametrize("width", [320, 390, 640, 900, 1280])
def test_a_queue_can_be_paused_and_resumed_without_scrolling_sideways(
    enter: Enter, jobs: dict[str, str], width: int
) -> None:
    visitor = enter(width=width)
    visitor.open("queues")
    buttons = visitor.page.get_by_role("button", name=re.compile("Pause|Resume")).and_(visitor.page.locator("td *"))
    assert buttons.count() >= 3
    for button in buttons.all():
        box = button.bounding_box()
        assert box is not None
        assert box["x"] + box["width"] <= width
