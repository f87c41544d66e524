"""Dead letters by kind: what broke, how often, and what can be done about all of a kind."""

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import pytest

from durableq import operations
from durableq.dashboard import dead
from tests.dashboard.plain_browser import Office, Page, office


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Office]:
    with office(tmp_path) as running:
        yield running


def addresses(page: Page, label: str) -> list[dict[str, str]]:
    """Where the links of a label lead, as the conditions that they carry."""
    found = [address for address, words in page.links if words == label]
    return [dict(parse_qsl(urlsplit(address).query)) for address in found]


def test_dead_letters_are_grouped_by_task_and_error_the_most_numerous_first(site: Office) -> None:
    site.add(site.build, state="dead")
    site.dead_letter("bad1@example.org")
    site.dead_letter("bad2@example.org")
    page = site.open("dead")
    assert "3 dead jobs in 2 kinds" in page.text
    assert addresses(page, "See jobs") == [
        {"state": "dead", "task": "mail.send", "error_type": "ValueError"},
        {"state": "dead", "task": "report.build", "error_type": "LookupError"},
    ]
    assert "no such address: bad2@example.org" in page.text


def test_a_kind_leads_to_its_jobs_and_to_retrying_or_deleting_all_of_them(site: Office) -> None:
    site.add(site.build, state="dead")
    page = site.open("dead")
    kind = {"state": "dead", "task": "report.build", "error_type": "LookupError"}
    assert addresses(page, "Retry…") == [{"do": "retry", **kind}]
    assert addresses(page, "Delete…") == [{"do": "delete", **kind}]


def test_jobs_that_are_not_dead_are_no_dead_letters(site: Office) -> None:
    site.add(site.mail, "good@example.org", state="succeeded")
    page = site.open("dead")
    assert "No dead letters" in page.text
    assert "PermanentFailure" in page.text


def test_a_secret_in_the_latest_message_is_hidden_whoever_stored_it(site: Office, tmp_path: Path) -> None:
    job_id = site.add(site.login, "ann", "correct-horse", state="dead")
    with contextlib.closing(sqlite3.connect(tmp_path / "app.db", timeout=10)) as connection, connection:
        sql = "UPDATE durableq_jobs SET error_message = 'refused: correct-horse' WHERE id = ?"
        connection.execute(sql, (job_id,))
    page = site.open("dead")
    assert "correct-horse" not in page.html
    assert "refused: ***" in page.text


def test_only_the_most_numerous_kinds_are_shown_and_the_page_says_so(
    site: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dead, "SHOWN", 1)
    site.add(site.build, state="dead")
    site.dead_letter()
    site.dead_letter()
    page = site.open("dead")
    assert [kind["task"] for kind in addresses(page, "See jobs")] == ["mail.send"]
    assert "The 1 most numerous kinds of 2 are shown" in page.text


def test_what_was_not_all_looked_at_is_told_as_the_least_there_is(
    site: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.add(site.build, state="dead")
    site.dead_letter()
    site.dead_letter()
    monkeypatch.setattr(operations, "DEAD_LOOKED_AT", 2)
    page = site.open("dead")
    assert "2+ dead jobs in at least 1 kind " in page.text
    assert "2+jobs" in page.text
    assert "UTC or earlier, latest" in page.text


@pytest.mark.parametrize(("who", "offered"), [("rita", []), ("otto", ["Retry…"]), ("anna", ["Retry…", "Delete…"])])
def test_only_what_the_role_allows_is_offered(site: Office, who: str, offered: list[str]) -> None:
    site.dead_letter()
    page = site.as_(who).open("dead")
    assert [label for label in ("Retry…", "Delete…") if page.has_link(label)] == offered
