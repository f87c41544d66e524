"""Two hundred texts that attack the page that shows them, in every place where a page shows a text: none runs, and
none becomes an element.

The browser is told to pass over the content security policy, which would stop most of them: escaping alone has to do.
Beside them stands one job of each state whose texts are harmless: what a hostile page is made of, its page is too.
"""

import re
from collections import Counter
from collections.abc import Iterator
from urllib.parse import quote, urlencode

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.dashboard.browser import hostile
from tests.dashboard.browser.conftest import Enter, Served, Visitor, served_by

CANARY = """window.pwned = () => { console.error("a payload ran"); return "pwned"; };"""
SKELETON = """(root) => {
  const found = [];
  const walk = (element, before) => {
    const names = [...element.attributes].map((one) => one.name).sort().join(" ");
    const chain = `${before}>${element.localName}[${names}]`;
    found.push(chain);
    for (const child of element.children) walk(child, chain);
    if (element.localName === "template") for (const child of element.content.children) walk(child, chain);
  };
  walk(root, "");
  return found;
}"""
"""What a page is made of: the chain of elements above each element, with the names of all their attributes."""
ADDRESSES = """() => [...document.querySelectorAll("[href], [src], [action], [formaction]")].flatMap((one) =>
  ["href", "src", "action", "formaction"].map((name) => one.getAttribute(name)).filter((address) => address !== null))
"""
HARMLESS = [f"harmless {number}" for number in range(len(hostile.STATES))]
"""The texts of six jobs, one in each state."""
ROWS = f"""() => Object.fromEntries([...document.querySelectorAll("[data-row]")].map((row) =>
  [row.id.replace("job-", ""), ({SKELETON})(row).join("\\n")]))"""
FETCHED = f"""async (addresses) => {{
  const skeleton = {SKELETON};
  const pages = await Promise.all(addresses.map(async (address) => (await fetch(address)).text()));
  const parsed = pages.map((page) => new DOMParser().parseFromString(page, "text/html").documentElement);
  return parsed.map(skeleton);
}}"""
"""What each of the pages at some addresses is made of."""
WORDS = [
    "harmless",
    *HARMLESS[-2:],
    "one two",
    'state:ded since:x nokey:1 "open',
    "a:b",
    "2030-01-31",
    "-1",
    "{}",
    '"x"',
    "a*b",
    "a\0b",
    " ",
]
"""What people type into addresses: what is found, what is not, and every kind of mistake."""
SHOWN = {"": 8, "dead": 25, "queues": 90, "workers": 90, "system": 12}
"""The other pages, and how many payloads each has room for, at the least."""


@pytest.fixture(scope="module")
def served(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """An application that looks at the hostile file; nothing runs in it."""
    database = tmp_path_factory.mktemp("hostile") / "app.db"
    with served_by("tests.dashboard.browser.app", database, "idle") as running:
        running.pause("harmless")  # it is there now
        yield running


@pytest.fixture(scope="module")
def attacks() -> list[str]:
    return hostile.payloads()


@pytest.fixture(scope="module")
def ids(served: Served, attacks: list[str]) -> list[str]:
    """The job of each payload; behind them the harmless ones, one in each state, and one more, to be deleted."""
    return hostile.fill(served.database, [*attacks, *HARMLESS, "deleted"])


@pytest.fixture
def victim(enter: Enter) -> Visitor:
    visitor = enter(bypass_csp=True)
    visitor.context.add_init_script(CANARY)
    visitor.page.on("dialog", lambda dialog: visitor.complaints.append(f"a dialog: {dialog.message}"))
    return visitor


def test_there_are_two_hundred_attacks_and_no_two_are_alike(attacks: list[str]) -> None:
    assert len(attacks) == len(set(attacks)) == 200


def test_the_canary_sings_when_a_payload_runs(victim: Visitor) -> None:
    victim.open("queues")
    with victim.page.expect_console_message(lambda message: message.text == "a payload ran"):
        show(victim, "<p><img src=data:, onerror=pwned()></p>")
    assert victim.complaints == ["console: a payload ran"]
    victim.complaints.clear()


def test_nothing_of_a_list_runs_or_becomes_an_element_however_often_it_is_updated(
    victim: Visitor, served: Served, ids: list[str], attacks: list[str]
) -> None:
    rows: dict[str, str] = {}
    victim.open("jobs")
    while True:
        rows |= read_rows(victim.page)
        older = victim.page.get_by_role("link", name="Older")
        if not older.count():
            break
        older.click()
    assert set(ids) <= set(rows)
    for number, job_id in enumerate(ids):
        twin = ids[len(attacks) + (number - len(attacks)) % len(hostile.STATES)]
        assert rows[job_id] == rows[twin], f"a row of {text_of(attacks, number)}"

    victim.open("jobs")
    before = victim.page.evaluate(SKELETON, victim.page.locator("body").element_handle())
    served.execute("UPDATE durableq_jobs SET error_message = error_message || ' again' WHERE state = 'dead'")
    served.execute("DELETE FROM durableq_jobs WHERE seq = (SELECT max(seq) FROM durableq_jobs)")
    expect(victim.page.locator(f"#job-{ids[-1]}")).to_have_count(0)
    after = victim.page.evaluate(SKELETON, victim.page.locator("body").element_handle())
    assert set(after) <= set(before)


def read_rows(page: Page) -> dict[str, str]:
    """What each row of the list is made of, by the id of its job."""
    page.wait_for_function("[...document.querySelectorAll('time')].every((one) => one.title)")  # scripts have run
    found: dict[str, str] = page.evaluate(ROWS)
    return found


def text_of(attacks: list[str], number: int) -> str:
    return repr(attacks[number]) if number < len(attacks) else "a harmless job"


@pytest.mark.foreign_bug(92, 98)
def test_nothing_of_any_screen_runs(victim: Visitor, served: Served, ids: list[str], attacks: list[str]) -> None:
    plain = [attack for attack in attacks if attack.isprintable() and attack == " ".join(attack.split())]
    for path in SHOWN:
        victim.open(path)
        check_addresses(victim)
        text = " ".join((victim.page.locator("main").text_content() or "").split())
        shown = sum(attack in text for attack in plain)
        assert shown >= SHOWN[path], f"only {shown} payloads are on the page {path!r}"
    victim.open(f"jobs/{ids[0]}/edit")
    check_addresses(victim)


@pytest.mark.foreign_bug(95, 97, 99, 104)
@pytest.mark.timeout(180)
def test_nothing_of_a_job_becomes_an_element_or_runs(
    victim: Visitor, served: Served, ids: list[str], attacks: list[str]
) -> None:
    victim.open("workers")
    own = ids[len(attacks) : len(attacks) + len(HARMLESS)]
    twins = [Counter(page) for page in skeletons(victim, [f"jobs/{job_id}" for job_id in own])]
    for number, attack in enumerate(attacks):
        enter_as(victim, attack)
        [page] = skeletons(victim, [f"jobs/{ids[number]}"])
        twin = twins[(number - len(attacks)) % len(hostile.STATES)]
        assert Counter(page) == twin, f"{attack!r} made {Counter(page) - twin}"
    for number in range(0, len(attacks), 5):
        show(victim, fetched(victim, f"jobs/{ids[number]}"))
        check_addresses(victim)


@pytest.mark.timeout(180)
def test_nothing_of_an_address_becomes_an_element_or_runs(
    victim: Visitor, served: Served, ids: list[str], attacks: list[str]
) -> None:
    victim.refusals = {400, 404}
    victim.open("jobs/nobody")
    known: set[str] = set()
    for words in WORDS:
        known |= made_of(victim, words)
    for attack in attacks:
        for address, page in zip(addresses_with(attack), skeletons(victim, addresses_with(attack)), strict=True):
            assert set(page) <= known, f"{attack!r} made {set(page) - known} of {address}"
    for number, attack in enumerate(attacks[::8]):
        show(victim, fetched(victim, addresses_with(attack)[number % 2]))
        check_addresses(victim)
        show(victim, fetched(victim, "?" + urlencode({"window": attack[:10], "said": attack, "n": attack})))
        check_addresses(victim)


def made_of(victim: Visitor, text: str) -> set[str]:
    """Return what all pages are made of whose address has a text in it."""
    return {chain for page in skeletons(victim, addresses_with(text)) for chain in page}


def addresses_with(text: str) -> list[str]:
    """Return addresses that have a text wherever one may be written."""
    fields = ("task", "queue", "tag", "error_type", "error_text")
    job = quote(text.replace("/", "|"), safe="")
    return [
        "jobs?" + urlencode({"q": text}),
        "jobs?"
        + urlencode(dict.fromkeys(fields, text) | {f"arg.{text}": text, "state": "dead", "said": "retry", "n": text}),
        "jobs?" + urlencode({"state": text, "since": text, "finished_until": text, "cursor": 1}),
        "bulk?" + urlencode({"do": "retry", "tag": text, f"arg.{text}": text}),
        f"jobs/{job}?" + urlencode({text: text}),
        "bulk?" + urlencode({"do": text}),
    ]


def enter_as(victim: Visitor, who: str) -> None:
    """Be somebody else from now on."""
    victim.context.add_cookies([{"name": "who", "value": quote(who), "url": victim.base}])


def skeletons(victim: Visitor, paths: list[str]) -> list[list[str]]:
    """Return what each of some pages is made of."""
    found: list[list[str]] = victim.page.evaluate(FETCHED, [f"{victim.mount}/{path}" for path in paths])
    return found


def fetched(victim: Visitor, path: str) -> str:
    return victim.context.request.get(f"{victim.base}{victim.mount}/{path}").text()


def show(victim: Visitor, html: str) -> None:
    """Show a page without its own scripts and styles, which are known, and take their time."""
    own = re.compile(r'<(script src|link rel="stylesheet" href)="/durableq/static/[^"]*"[^>]*>')
    victim.page.set_content(own.sub(r"<\1='data:,'>", html), wait_until="commit")


def check_addresses(victim: Visitor) -> None:
    """See that every address on the page leads into the dashboard."""
    foreign = [
        one for one in victim.page.evaluate(ADDRESSES) if not one.startswith((f"{victim.mount}/", "#", "data:,"))
    ]
    assert foreign == []
