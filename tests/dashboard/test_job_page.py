"""The page of one job: everything that is known about it, with its secrets hidden, and what may be done to it."""

import asyncio
import contextlib
import re
import sqlite3
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import pytest

from durableq import DurableQ, Secret, current_job
from durableq.dashboard import job
from durableq.dashboard.assets import ASSETS
from durableq.encryption import KeyRing, new_key
from tests.dashboard.plain_browser import MOUNT, Office, Page, application, office
from tests.support import eventually_sync

HOSTILE = "</textarea></pre><script>alert(1)</script>\"'><img src=x onerror=alert(1)>"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Office]:
    with office(tmp_path) as running:
        yield running


def offers(page: Page, job_id: str) -> set[str]:
    """What a person can begin on the page."""
    begun = {name for name in ("retry",) if page.has_form(f"jobs/{job_id}/{name}")}
    links = {address for address, _ in page.links}
    return begun | {name for name in ("edit", "cancel", "delete") if f"{MOUNT}/jobs/{job_id}/{name}" in links}


def test_a_dead_letter_shows_why_it_died(site: Office) -> None:
    page = site.open(f"jobs/{site.dead_letter()}")
    assert "no such address: bad@example.org" in page.text
    assert "Traceback (most recent call last):" in page.text
    assert "sending to bad@example.org" in page.text
    assert "Dead after 1 of 1 tries" in page.text


def test_every_try_has_its_own_traceback_and_log(site: Office) -> None:
    job_id = site.add(site.flaky, state="scheduled")
    site.call(site.dq.retry, job_id)
    eventually_sync(lambda: site.job(job_id).state == "dead")
    page = site.open(f"jobs/{job_id}")
    tries = [given["id"] for tag, given in page.elements if given.get("class") == "try"]
    assert tries == ["try-1", "try-0"]
    second, _, first = page.html.partition('id="try-0"')
    second = second.partition('id="try-1"')[2]
    assert "this is try 2" in second and "ValueError: failure 2" in second
    assert "failure 1" not in second and "this is try 1" not in second
    assert "this is try 1" in first and "ValueError: failure 1" in first
    assert {address for address, words in page.links if words == "ValueError"} == {"#try-0", "#try-1"}


def test_a_result_is_shown_exactly(site: Office) -> None:
    page = site.open(f"jobs/{site.add(site.mail, 'good@example.org', state='succeeded')}")
    assert '"number": 9223372036854775808' in page.text
    assert "Succeeded" in page.text


def test_arguments_are_shown_exactly_and_in_their_order(site: Office) -> None:
    options = {"b": 2**63, "a": [1, 2.5, None], "ü": "ü"}
    page = site.open(f"jobs/{site.add(site.mail, 'bad@x', options=options, state='dead')}")
    shown = '"options": {\n    "b": 9223372036854775808,\n    "a": [1, 2.5, null],\n    "ü": "ü"\n  }'
    assert any(shown in code for code in page.codes)


def test_secrets_are_hidden_wherever_they_turn_up(site: Office) -> None:
    @site.dq.task(name="leaky", max_attempts=1)
    def leaky(password: Annotated[str, Secret]) -> None:
        current_job().log(f"trying {password}")
        raise ValueError(f"refused: {password}")

    page = site.open(f"jobs/{site.add(leaky, 'correct-horse', state='dead')}")
    assert "correct-horse" not in page.html
    assert "refused: ***" in page.text


def test_a_running_job_shows_how_far_it_is(site: Office) -> None:
    @site.dq.task(name="slow")
    def slow() -> None:
        current_job().progress(30, 120, "page 30")
        assert site.release.wait(30)

    job_id = site.add(slow, state="running")
    eventually_sync(lambda: "30 of 120 · page 30" in site.open(f"jobs/{job_id}").text)
    page = site.open(f"jobs/{job_id}")
    assert any(tag == "progress" and given["value"] == "250" for tag, given in page.elements)
    assert "Try 1 runs for" in page.text


def test_the_life_of_a_job_is_drawn_and_told(site: Office) -> None:
    page = site.open(f"jobs/{site.dead_letter()}")
    drawn = [given["class"] for tag, given in page.elements if tag == "rect" and "life" in given.get("class", "")]
    assert drawn == ["life-ran life-failed"]
    assert "Waited" in page.text and "Try 1 failed after" in page.text


def test_the_page_links_to_similar_jobs(site: Office) -> None:
    job_id, other = site.dead_letter(), site.dead_letter()
    page = site.open(f"jobs/{job_id}")
    for words in ("all of this task", "those with the same error"):
        similar = site.open(page.link(words))
        assert {given.get("id") for tag, given in similar.elements if tag == "tr"} >= {f"job-{job_id}", f"job-{other}"}


def test_what_people_did_is_told_with_their_names(site: Office) -> None:
    job_id = site.dead_letter()
    site.as_("otto").press(site.as_("otto").open(f"jobs/{job_id}").form(f"jobs/{job_id}/retry"))
    eventually_sync(lambda: site.job(job_id).state == "dead")
    page = site.open(f"jobs/{job_id}")
    assert "otto retried it" in page.text
    assert "At rest for" in page.text


@pytest.mark.parametrize(
    ("state", "offered"),
    [
        ("dead", {"retry", "edit", "delete"}),
        ("succeeded", {"delete"}),
        ("scheduled", {"retry", "cancel"}),
        ("running", {"cancel"}),
        ("cancelled", {"retry", "edit", "delete"}),
    ],
)
def test_only_what_its_state_allows_is_offered(site: Office, state: str, offered: set[str]) -> None:
    later = site.mail.options(delay=timedelta(hours=1))
    task, address = {"dead": (site.mail, "bad@x"), "succeeded": (site.mail, "good@x")}.get(state, (later, "good@x"))
    job_id = site.add(site.wait, state="running") if state == "running" else site.add(task, address)
    if state == "cancelled":
        site.call(site.dq.cancel, job_id)
    eventually_sync(lambda: site.job(job_id).state == state)
    assert offers(site.open(f"jobs/{job_id}"), job_id) == offered


@pytest.mark.parametrize(
    ("who", "offered"), [("rita", set()), ("otto", {"retry"}), ("anna", {"retry", "edit", "delete"})]
)
def test_only_what_the_role_allows_is_offered(site: Office, who: str, offered: set[str]) -> None:
    job_id = site.dead_letter()
    page = site.as_(who).open(f"jobs/{job_id}")
    assert offers(page, job_id) == offered
    assert ("Read only" in page.text) == (who == "rita")


def test_a_job_that_is_not_stored_is_a_page_that_says_so(site: Office) -> None:
    page = site.open("jobs/0197c8e1-7b5a-7c3d-8e2f-0123456789ab")
    assert page.status == 404
    assert "may have been deleted" in page.text


def test_damaged_arguments_are_shown_as_what_they_are(site: Office, tmp_path: Path) -> None:
    job_id = site.add(site.build, state="dead")
    with contextlib.closing(sqlite3.connect(tmp_path / "app.db", timeout=10)) as connection, connection:
        connection.execute("UPDATE durableq_jobs SET args = '{\"a\": ' WHERE id = ?", (job_id,))
    page = site.open(f"jobs/{job_id}")
    assert "it is damaged" in page.text
    assert '{"a":' in page.text


def test_hostile_arguments_results_logs_errors_and_names_stay_text(site: Office) -> None:
    @site.dq.task(name="echo", max_attempts=1)
    def echo(text: Any, fails: bool) -> Any:
        current_job().log(HOSTILE)
        if fails:
            raise ValueError(text)
        return {HOSTILE: text}

    hostile = echo.options(headers={HOSTILE: HOSTILE}, tags=[HOSTILE[:40]])
    for fails, state in ((True, "dead"), (False, "succeeded")):
        job_id = site.add(hostile, HOSTILE, fails, state=state)
        pages = [site.open(f"jobs/{job_id}"), site.open(f"jobs/{job_id}/delete")]
        pages += [site.open(f"jobs/{job_id}/edit")] if fails else []
        for page in pages:
            assert page.status == 200
            assert not any(tag == "img" or "onerror" in given for tag, given in page.elements)
            assert all(given.get("src") for tag, given in page.elements if tag == "script")


def test_a_hostile_id_in_the_address_stays_text(site: Office) -> None:
    page = site.open(f"{MOUNT}/jobs/%3Cimg%20src=x%20onerror=alert(1)%3E")
    assert page.status == 404
    assert not any(tag == "img" for tag, _ in page.elements)


def test_of_many_tries_the_latest_are_shown_and_a_link_leads_to_the_others(
    site: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(job, "TRIES", 1)
    job_id = site.add(site.flaky, state="scheduled")
    site.call(site.dq.retry, job_id)
    eventually_sync(lambda: site.job(job_id).state == "dead")
    page = site.open(f"jobs/{job_id}")
    assert [given["id"] for tag, given in page.elements if given.get("class") == "try"] == ["try-0"]
    assert "the latest 1 of 2" in page.text and "1 earlier try failed" in page.text
    assert "failure 2" in page.text and "this is try 2" in page.text
    assert "failure 1" not in page.text and "this is try 1" not in page.text
    everything = site.open(page.link("show earlier ones"))
    assert "failure 1" in everything.text and "this is try 1" in everything.text
    assert not everything.has_link("show earlier ones")


def test_a_job_without_arguments_was_given_none(site: Office) -> None:
    assert "It was given none." in site.open(f"jobs/{site.add(site.build, state='dead')}").text


def test_a_job_that_is_due_in_two_days_is_not_two_days_old(site: Office) -> None:
    job_id = site.add(site.mail.options(delay=timedelta(days=2)), "good@example.org", state="scheduled")
    text = site.open(f"jobs/{job_id}").text
    assert "so far" in text
    assert "2 d so far" not in text


@pytest.mark.parametrize(
    "what", [".job-title h1", ".job-name a", ".job-error span", ".tag", ".logs li > span", ".job-problem-text"]
)
def test_marks_that_turn_the_direction_of_writing_end_with_what_a_job_says(what: str) -> None:
    rules = re.findall(r"([^{}]+)\{([^{}]*)\}", ASSETS["jobs.css"].content.decode())
    isolated = [names for names, body in rules if "unicode-bidi: isolate" in body]
    assert any(what in (name.strip().rpartition("*/")[2].strip() for name in names.split(",")) for names in isolated)


def test_a_result_whose_key_is_not_here_is_told_and_not_shown_as_it_is_stored(tmp_path: Path) -> None:
    async def run() -> str:
        dq = DurableQ(tmp_path / "sealed.db", encryption=KeyRing({"2026-11": new_key()}))

        @dq.task(name="echo")
        def echo(text: str) -> str:
            return text

        async with dq.running():
            added = await dq.add_task(echo, "in-clear-nowhere")
            await dq.result(added, timeout=20)
            return added.id

    job_id = asyncio.run(run())
    with application(DurableQ(tmp_path / "sealed.db", worker=False)) as keyless:
        page = keyless.open(f"jobs/{job_id}")
    assert "It is encrypted with the key “2026-11”, and this process could not open it" in page.text
    assert "nonce" not in page.text and "in-clear-nowhere" not in page.text


def test_a_job_that_was_asked_to_end_is_not_told_as_cancelled(site: Office) -> None:
    job_id = site.add(site.wait, state="running")
    site.call(partial(site.dq.cancel, who="anna"), job_id)
    page = site.open(f"jobs/{job_id}")
    assert "anna asked it to end" in page.text
    assert "cancelled it" not in page.text


def test_a_job_that_died_before_its_first_try_failed_in_none(site: Office, tmp_path: Path) -> None:
    job_id = site.dead_letter()
    with contextlib.closing(sqlite3.connect(tmp_path / "app.db", timeout=10)) as connection, connection:
        connection.execute("UPDATE durableq_jobs SET attempt = 0 WHERE id = ?", (job_id,))
    page = site.open(f"jobs/{job_id}")
    assert "before its first try" in page.text
    assert "in the last try" not in page.text


def test_a_job_whose_queue_is_paused_says_why_it_does_not_start(site: Office) -> None:
    site.call(site.dq.pause, "mail")
    held, done = site.add(site.mail, "good@example.org", state="queued"), site.add(site.build, state="dead")
    page = site.open(f"jobs/{held}")
    assert "Its queue is paused" in page.text
    assert page.link("Look at the queues") == f"{MOUNT}/queues"
    assert "Its queue is paused" not in site.open(f"jobs/{done}").text
    site.call(site.dq.resume, "mail")
    assert "Its queue is paused" not in site.open(f"jobs/{held}").text
