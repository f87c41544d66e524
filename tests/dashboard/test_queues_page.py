"""The queues and the workers: what is shown of them, and that pausing holds and is audited."""

import asyncio
from pathlib import Path

import pytest

from durableq import DurableQ, JobState
from durableq.dashboard import queues
from durableq.dashboard.forms import Form
from durableq.dashboard.queues import queue_named_in
from durableq.dashboard.refusals import Refused
from tests.dashboard.conftest import Application, Page, serving
from tests.support import eventually_sync


def test_without_a_queue_the_page_tells_how_one_comes_to_be(site: Application) -> None:
    assert "No queue yet" in site.page("/queues").text


def test_each_queue_shows_what_waits_and_since_when(site: Application) -> None:
    for _ in range(2):
        site.add(site.send, "good@example.org")
    site.add(site.wait)
    page = site.page("/queues")
    assert "mail open 2 0" in page.text
    assert "default open 1 0" in page.text
    assert "/durableq/jobs?queue=mail&state=queued" in page.links


def test_what_ended_in_the_last_hour_is_shown(working: Application) -> None:
    working.add(working.send, "good@example.org")
    eventually_sync(lambda: "100 %" in working.page("/queues").text)


def test_pausing_holds_the_jobs_until_resuming_and_names_who_did_it(working: Application) -> None:
    working.add(working.send, "good@example.org")
    eventually_sync(lambda: working.call(working.dq.counts)[JobState.SUCCEEDED] == 1)
    form = working.page("/queues").form("/queues/pause", queue="mail")

    answer = working.send_form(form, who="otto")
    assert answer.status_code == 303
    assert answer.headers["location"].startswith("/durableq/queues?said=paused.")
    page = working.page(answer.headers["location"].removeprefix("/durableq"))
    assert "The queue “mail” was paused" in page.text
    assert "paused by otto" in page.text

    held = working.add(working.send, "good@example.org")
    other = working.add(working.wait)
    eventually_sync(lambda: working.call(working.dq.get, other.id).state == "running")
    assert working.call(working.dq.get, held.id).state == "queued"

    assert working.send_form(page.form("/queues/resume", queue="mail")).status_code == 303
    eventually_sync(lambda: working.call(working.dq.get, held.id).state == "succeeded")
    entries = working.call(working.dq.audit).entries
    assert [(entry.action, entry.who, entry.detail["queue"]) for entry in entries] == [
        ("resume", "anna", "mail"),
        ("pause", "otto", "mail"),
    ]


def test_a_paused_queue_survives_a_restart(database: Path) -> None:
    for site in serving(DurableQ(database, worker=False)):
        site.add(site.send, "good@example.org")
        site.send_form(site.page("/queues").form("/queues/pause", queue="mail"))
    for site in serving(DurableQ(database, worker=False)):
        assert "paused by anna" in site.page("/queues").text


@pytest.mark.parametrize("name", ["", "x" * 201, "a\nb"])
def test_a_name_that_no_queue_can_have_is_refused(site: Application, name: str) -> None:
    with pytest.raises(Refused, match=r"no name of a queue"):
        queue_named_in(Form((("queue", name),)))
    site.add(site.send, "good@example.org")
    answer = site.send_form(site.page("/queues").form("/queues/pause"), queue=name)
    assert answer.status_code == 400
    assert "no name of a queue" in Page(answer.text).text


def test_workers_are_listed_with_what_they_do(working: Application) -> None:
    page = working.page("/workers")
    assert "this process" in page.text
    assert "alive" in page.text
    assert "runs jobs" in page.text


def test_a_process_that_only_adds_jobs_is_shown_as_such(site: Application) -> None:
    page = site.page("/workers")
    assert "No worker is running" in page.text
    assert "adds or looks only" in page.text


def test_a_worker_that_joins_is_seen(site: Application, database: Path) -> None:
    async def with_another() -> Page:
        async with DurableQ(database).running():
            return await asyncio.to_thread(site.page, "/workers")

    page = asyncio.run(with_another())
    assert "runs jobs" in page.text
    assert "No worker is running" not in page.text


def test_of_too_many_queues_the_paused_and_the_busiest_are_shown(
    site: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queues, "SHOWN", 2)
    for name, number in (("a", 1), ("b", 1), ("c", 2), ("d", 1)):
        for _ in range(number):
            site.add(site.send.options(queue=name), "good@example.org")
    site.call(site.dq.pause, "d")
    page = site.page("/queues")
    shown = [link.partition("queue=")[2] for link in page.links if link.startswith("/durableq/jobs?queue=")]
    assert list(dict.fromkeys(name.partition("&")[0] for name in shown)) == ["c", "d"]
    assert "2 of 4 queues are shown" in page.text
