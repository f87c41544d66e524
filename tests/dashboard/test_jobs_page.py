"""The list of jobs: it shows what matches, its address says what is looked for, and it keeps arguments to itself."""

import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from fastapi import Depends, FastAPI
from fastapi.testclient import TestClient

from durableq import DurableQ
from durableq.dashboard import dashboard, jobs
from tests.dashboard.plain_browser import MOUNT, Office, Page, office

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(1)>{{7*7}}"


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Office]:
    with office(tmp_path) as running:
        yield running


def listed(page: Page) -> list[str]:
    """The ids of the jobs on a page, in its order."""
    assert page.status == 200, page.text
    return [given["id"].removeprefix("job-") for tag, given in page.elements if tag == "tr" and "id" in given]


def query(page: Page) -> dict[str, str]:
    return dict(parse_qsl(urlsplit(page.url).query))


def test_jobs_are_listed_newest_first(site: Office) -> None:
    ids = [site.dead_letter(), site.add(site.mail, "good@example.org", state="succeeded"), site.dead_letter()]
    assert listed(site.open("jobs")) == ids[::-1]


@pytest.mark.parametrize(
    "conditions",
    [
        {"state": "dead", "task": "mail.send"},
        {"queue": "mail", "error_type": "ValueError"},
        {"error_text": "such address", "state": "dead"},
        {"tag": "wanted"},
        {"arg.email": "bad@example.org", "since": "1h"},
        {"task": "mail.send", "finished_since": "1h", "state": "dead"},
        {"q": 'dead task:mail.send error:"such address" arg.email:bad@example.org'},
    ],
)
def test_every_condition_of_the_address_must_hold(site: Office, conditions: dict[str, str]) -> None:
    wanted = site.add(site.mail.options(tags=["wanted"]), "bad@example.org", state="dead")
    site.add(site.mail, "good@example.org", state="succeeded")
    site.add(site.build, state="dead")
    assert listed(site.open("jobs", **conditions)) == [wanted]


def test_a_time_in_the_past_leaves_newer_jobs_out(site: Office) -> None:
    job_id = site.dead_letter()
    assert listed(site.open("jobs", until="1h")) == []
    assert listed(site.open("jobs", since="1h")) == [job_id]


def test_the_search_box_leads_to_the_address_of_what_was_meant(site: Office) -> None:
    page = site.open("jobs", q='state:dead arg.user_id:42 error:"timed out" since:1h')
    assert query(page) == {"state": "dead", "arg.user_id": "42", "error_text": "timed out", "since": "1h"}


def test_the_id_of_a_job_in_the_search_box_opens_it(site: Office) -> None:
    job_id = site.dead_letter()
    assert urlsplit(site.open("jobs", q=job_id).url).path == f"{MOUNT}/jobs/{job_id}"


def test_the_form_of_fields_leads_to_an_address_without_what_was_left_empty(site: Office) -> None:
    page = site.open("jobs", task="mail.send", queue="", since=" ", arg_name="user_id", arg_value="42")
    assert query(page) == {"task": "mail.send", "arg.user_id": "42"}


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"q": "task:send_*"}, "names are looked up whole"),
        ({"q": "tsk:x"}, "did you mean 'task'?"),
        ({"state": "deed"}, "did you mean 'dead'?"),
        ({"since": "yesterday"}, "expected an age such as 15m, 1h or 7d"),
        ({"arg.password": "hunter2"}, "its name says that it is secret"),
        ({"task": "account.login", "arg.answer": "hunter2"}, "declares it secret"),
    ],
)
def test_what_cannot_be_looked_for_is_refused_in_words_and_lists_nothing(
    site: Office, asked: dict[str, str], said: str
) -> None:
    site.dead_letter()
    page = site.open("jobs", **asked)
    assert page.status == 400
    assert said.lower() in page.text.lower()
    assert not page.has_link("mail.send")


def test_a_wrong_field_says_so_where_it_is(site: Office) -> None:
    page = site.open("jobs", since="yesterday")
    [field] = [given for tag, given in page.elements if tag == "input" and given.get("name") == "since"]
    assert field["value"] == "yesterday"
    assert field["aria-invalid"] == "true"
    assert any(given.get("id") == field["aria-describedby"] for _, given in page.elements)


def test_each_condition_can_be_taken_out_by_a_link(site: Office) -> None:
    page = site.open("jobs", state="dead", task="mail.send", **{"arg.email": "a b"})
    links = [given["href"] for tag, given in page.elements if given.get("aria-label", "").startswith("Without ")]
    assert [dict(parse_qsl(urlsplit(link).query)) for link in links] == [
        {"task": "mail.send", "arg.email": "a b"},
        {"state": "dead", "arg.email": "a b"},
        {"state": "dead", "task": "mail.send"},
    ]


def test_paging_shows_each_job_once(site: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "PAGE", 2)
    ids = [site.dead_letter(f"bad{number}@example.org") for number in range(5)]
    seen = []
    page = site.open("jobs", state="dead")
    for _ in range(2):
        seen += listed(page)
        page = site.open(page.link("Older"))
        assert query(page)["state"] == "dead"
    seen += listed(page)
    assert seen == ids[::-1]
    assert listed(site.open(page.link("Newest"))) == ids[:-3:-1]


def test_a_search_that_was_cut_short_can_be_continued(site: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = site.dead_letter()
    for _ in range(4):
        site.add(site.mail, "good@example.org", state="succeeded")
    monkeypatch.setattr(jobs, "LOOK_AT", 2)
    page = site.open("jobs", **{"arg.email": "bad@example.org"})
    assert "Nothing found yet" in page.text
    for _ in range(4):
        if not page.has_link("Continue searching"):
            break
        page = site.open(page.link("Continue searching"))
    assert listed(page) == [wanted]


def test_an_empty_list_says_how_to_fill_it(site: Office) -> None:
    page = site.open("jobs")
    assert "No jobs yet" in page.text
    assert "background_tasks.add_task" in page.text


def test_a_search_without_matches_says_what_to_try(site: Office) -> None:
    page = site.open("jobs", error_text="ValueError")
    assert "No job matches" in page.text
    assert query(site.open(page.link("the type of the error"))) == {"error_type": "ValueError"}


def test_a_list_shows_neither_arguments_nor_results(site: Office) -> None:
    site.add(site.mail, "good-address@example.org", copies=77, state="succeeded")
    page = site.open("jobs")
    assert "good-address" not in page.html
    assert str(2**63) not in page.html


def test_a_reader_is_offered_nothing_to_press(site: Office) -> None:
    site.dead_letter()
    page = site.as_("rita").open("jobs")
    assert "Read only" in page.text
    assert all(not form.boxes and not form.buttons for form in page.forms if form.method == "post")
    assert not any("bulk" in address for address, _ in page.links)


def test_an_operator_is_not_offered_to_delete(site: Office) -> None:
    site.dead_letter()
    page = site.as_("otto").open("jobs")
    assert {value for _, value, _ in page.form("jobs/selected").buttons} == {"retry", "cancel"}
    assert not any("do=delete" in address for address, _ in page.links)


def test_strangers_see_nothing(site: Office) -> None:
    assert site.as_("").open("jobs").status == 401


@pytest.mark.parametrize(
    "name", ["q", "task", "queue", "tag", "error_type", "error_text", "since", "arg.x", "arg_value"]
)
def test_hostile_text_in_the_address_stays_text(site: Office, name: str) -> None:
    page = site.open("jobs", **{name: HOSTILE})
    assert HOSTILE.partition("{{")[0] not in page.html
    assert not any(tag == "img" or "onerror" in given for tag, given in page.elements)


def test_hostile_text_in_a_job_stays_text(site: Office) -> None:
    @site.dq.task(name="evil", max_attempts=1)
    def evil() -> None:
        raise ValueError(HOSTILE)

    job_id = site.add(evil.options(tags=[HOSTILE[:40]], queue="mail"), state="dead")
    for page in (site.open("jobs"), site.open(f"jobs/{job_id}"), site.open("dead")):
        assert page.status == 200
        assert "alert(1)" in page.text
        assert not any(tag == "img" or "onerror" in given for tag, given in page.elements)
        assert all(given.get("src") for tag, given in page.elements if tag == "script")


def test_a_waiting_retry_is_told_from_what_was_never_tried(site: Office) -> None:
    site.add(site.flaky, state="scheduled")
    site.add(site.mail.options(delay=timedelta(hours=1)), "good@example.org", state="scheduled")
    states = [
        given["class"] for tag, given in site.open("jobs").elements if given.get("class", "").startswith("state ")
    ]
    assert states == ["state state-scheduled", "state state-retrying"]


def test_no_page_is_kept_by_a_cache_or_lets_scripts_of_others_in(site: Office) -> None:
    response: Any = site.client.get(f"{MOUNT}/jobs", headers={"X-User": "anna"})
    assert response.headers["cache-control"] == "no-store"
    assert "script-src 'self'" in response.headers["content-security-policy"]
    assert not re.search(r"\sstyle=|\son[a-z]+=|<style|<script>", response.text)


def test_a_search_of_thousands_of_conditions_is_refused_by_a_small_page(site: Office) -> None:
    for address in ("&".join(f"arg.{n}=1" for n in range(3_000)), "q=" + "+".join(f"key{n}:1" for n in range(3_000))):
        page = site.open(f"{MOUNT}/jobs?{address}")
        assert page.status == 400
        assert len(page.html) < 100_000
        assert re.search(r"Expected .*at most", page.text)


def test_words_in_the_search_box_are_looked_for_in_the_errors(site: Office) -> None:
    job_id = site.dead_letter()
    page = site.open("jobs", q="dead such address")
    assert query(page) == {"state": "dead", "error_text": "such address"}
    assert listed(page) == [job_id]


def test_a_word_that_no_error_has_may_be_the_name_of_a_task(site: Office) -> None:
    job_id = site.dead_letter()
    page = site.open("jobs", q="mail.send")
    assert listed(site.open(page.link("the name of a task"))) == [job_id]


def test_not_every_name_of_a_task_is_put_into_the_page(site: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    def suggested() -> list[str]:
        options = [given["value"] for tag, given in site.open("jobs").elements if tag == "option"]
        return [value for value in options if not re.fullmatch("[0-9]+[mhd]", value)]

    for task in (site.mail, site.build, site.flaky):
        site.add(task, *(["good@x"] if task is site.mail else []))
    assert len(suggested()) > 2
    monkeypatch.setattr(jobs, "_SUGGESTED", 2)
    assert len(suggested()) == 2


def test_what_the_auth_dependency_takes_from_an_address_is_no_filter(tmp_path: Path) -> None:
    def by_query(key: str) -> str:
        return key

    dq = DurableQ(tmp_path / "keys.db", worker=False)
    app = FastAPI(lifespan=dq.lifespan)
    app.include_router(dashboard(dq, auth=Depends(by_query)), prefix=MOUNT)
    with TestClient(app) as client:
        assert client.get(f"{MOUNT}/jobs?key=right&state=dead").status_code == 200
        assert client.get(f"{MOUNT}/bulk?key=right&do=retry").status_code == 200
        assert client.get(f"{MOUNT}/jobs?key=right&kye=wrong").status_code == 400


def test_an_unknown_name_in_the_address_is_refused_in_words(site: Office) -> None:
    page = site.open("jobs", error_typ="TimeoutError")
    assert page.status == 400
    assert "There is no filter 'error_typ'; did you mean 'error_type'?" in page.text


def test_a_moment_that_is_meant_as_utc_is_shown_so(site: Office) -> None:
    assert "Added since 2030-05-01 10:30 UTC" in site.open("jobs", since="2030-05-01T10:30").text
