"""What people do by hand, without JavaScript: each form works, asks where it must, and is refused to who may not."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from durableq.dashboard import actions, bulk
from tests.dashboard.plain_browser import MOUNT, Failing, Office, Page, office
from tests.support import eventually_sync

POSTS = [
    ("operate", "jobs/{id}/retry", {}),
    ("operate", "jobs/{id}/cancel", {}),
    ("admin", "jobs/{id}/delete", {}),
    ("admin", "jobs/{id}/edit", {"args": '{"email": "good@x"}', "step": "confirm"}),
    ("operate", "jobs/selected", {"do": "retry", "id": "{id}"}),
    ("operate", "jobs/selected", {"do": "cancel", "id": "{id}", "sure": "yes"}),
    ("admin", "jobs/selected", {"do": "delete", "id": "{id}", "sure": "yes"}),
    ("operate", "bulk", {"do": "retry", "expected": "1", "is_all": "yes", "typed": "1"}),
    ("operate", "bulk", {"do": "cancel", "expected": "1", "is_all": "yes", "typed": "1"}),
    ("admin", "bulk", {"do": "delete", "expected": "1", "is_all": "yes", "typed": "1"}),
]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Office]:
    with office(tmp_path) as running:
        yield running


def later(site: Office) -> str:
    return site.add(site.mail.options(delay=timedelta(hours=1)), "good@example.org", state="scheduled")


def selecting(site: Office, button: str, ids: list[str], **query: str) -> Page:
    page = site.open("jobs", **query)
    return site.press(page.form("jobs/selected"), button, tick=ids)


def filled(fields: dict[str, str], job_id: str) -> list[tuple[str, str]]:
    return [(name, value.replace("{id}", job_id)) for name, value in fields.items()]


# -- who may -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("who", "path", "fields"),
    [("rita", path, fields) for _, path, fields in POSTS]
    + [("otto", path, fields) for role, path, fields in POSTS if role == "admin"],
)
def test_a_role_that_does_not_reach_is_refused_and_changes_nothing(
    site: Office, who: str, path: str, fields: dict[str, str]
) -> None:
    job_id = site.dead_letter()
    site.open("jobs")
    sent = site.with_token(filled(fields, job_id))
    page = site.as_(who).send(f"{MOUNT}/{path.replace('{id}', job_id)}", sent)
    assert page.status == 403
    assert "You may not do this" in page.text
    assert site.job(job_id).state == "dead"
    assert site.audited(job_id) == []


@pytest.mark.parametrize(("role", "path", "fields"), POSTS)
@pytest.mark.parametrize("token", ["", "x" * 32])
def test_a_form_without_the_token_of_this_browser_is_refused(
    site: Office, token: str, role: str, path: str, fields: dict[str, str]
) -> None:
    job_id = site.dead_letter()
    site.open("jobs")
    sent = [*filled(fields, job_id), *([("csrf", token)] if token else [])]
    assert site.send(f"{MOUNT}/{path.replace('{id}', job_id)}", sent).status == 403
    assert site.job(job_id).state == "dead"


@pytest.mark.parametrize(("role", "path", "fields"), POSTS)
def test_a_form_sent_from_another_site_is_refused(site: Office, role: str, path: str, fields: dict[str, str]) -> None:
    job_id = site.dead_letter()
    site.open("jobs")
    sent = site.with_token(filled(fields, job_id))
    url = f"{MOUNT}/{path.replace('{id}', job_id)}"
    assert site.send(url, sent, **{"Sec-Fetch-Site": "cross-site"}).status == 403
    assert site.job(job_id).state == "dead"


def test_every_page_that_leads_to_an_action_is_refused_to_readers(site: Office) -> None:
    job_id = site.dead_letter()
    for path in (f"jobs/{job_id}/edit", f"jobs/{job_id}/delete", f"jobs/{job_id}/cancel", "bulk?do=retry"):
        assert site.as_("rita").open(path).status == 403


@pytest.mark.parametrize("path", ["jobs", "jobs/{id}", "jobs/{id}/edit", "jobs/{id}/delete", "bulk?do=delete"])
def test_no_field_hides_from_scripts_where_its_form_is_sent(site: Office, path: str) -> None:
    page = site.open(path.replace("{id}", site.dead_letter()))
    sent = [form for form in page.forms if form.method == "post"]
    assert sent
    for form in sent:
        names = {name for name, _ in form.fields + form.boxes} | {name for name, _, _ in form.buttons}
        assert names.isdisjoint({"action", "method", "submit", "elements", "target"})


# -- one job -------------------------------------------------------------------------------------------------


def test_a_dead_job_is_retried_by_its_button(site: Office) -> None:
    job_id = site.dead_letter()
    page = site.press(site.open(f"jobs/{job_id}").form(f"jobs/{job_id}/retry"))
    assert "One job is queued again." in page.text
    assert site.audited(job_id) == [("anna", "retry")]


@pytest.mark.parametrize("action", ["retry", "delete"])
def test_a_page_that_was_made_before_a_job_ran_again_does_nothing_to_it(site: Office, action: str) -> None:
    job_id = site.dead_letter()
    page = site.open(f"jobs/{job_id}" if action == "retry" else f"jobs/{job_id}/{action}")
    site.call(site.dq.retry, job_id)
    eventually_sync(lambda: len(site.call(site.dq.attempts, job_id)) == 2)
    refused = site.press(page.form(f"jobs/{job_id}/{action}"))
    assert refused.status == 409
    assert "has run again since this page was made" in refused.text
    assert refused.link("Open the job") == f"{MOUNT}/jobs/{job_id}"
    assert site.job(job_id).state == "dead"
    assert len(site.audited(job_id)) == 1


def test_a_scheduled_job_runs_now_by_its_button(site: Office) -> None:
    job_id = later(site)
    site.press(site.open(f"jobs/{job_id}").form(f"jobs/{job_id}/retry"), "Run now")
    eventually_sync(lambda: site.job(job_id).state == "succeeded")


def test_cancelling_asks_first(site: Office) -> None:
    job_id = later(site)
    question = site.open(site.open(f"jobs/{job_id}").link("Cancel…"))
    assert site.job(job_id).state == "scheduled"
    site.press(question.form(f"jobs/{job_id}/cancel"))
    assert site.job(job_id).state == "cancelled"


def test_deleting_asks_first(site: Office) -> None:
    job_id = site.dead_letter()
    question = site.open(site.open(f"jobs/{job_id}").link("Delete…"))
    assert site.exists(job_id)
    page = site.press(question.form(f"jobs/{job_id}/delete"))
    assert "One job is deleted." in page.text
    assert not site.exists(job_id)


def test_what_the_state_does_not_allow_is_explained(site: Office) -> None:
    job_id = site.add(site.mail, "good@example.org", state="succeeded")
    site.open("jobs")
    page = site.send(f"{MOUNT}/jobs/{job_id}/retry", site.with_token([]))
    assert page.status == 409
    assert "it is succeeded" in page.text
    assert site.open(f"jobs/{job_id}/edit").status == 409
    assert site.open(f"jobs/{job_id}/cancel").status == 409
    assert site.open(f"jobs/{later(site)}/delete").status == 409


# -- a selection ---------------------------------------------------------------------------------------------


def test_ticked_jobs_are_retried_and_the_others_not(site: Office) -> None:
    ids = [site.dead_letter() for _ in range(3)]
    page = selecting(site, "retry", ids[:2], state="dead")
    assert "2 jobs are queued again." in page.text
    assert "state=dead" in page.url
    assert [len(site.audited(job_id)) for job_id in ids] == [1, 1, 0]


def test_ticked_jobs_are_deleted_after_a_question(site: Office) -> None:
    ids = [site.dead_letter() for _ in range(2)]
    question = selecting(site, "delete", ids)
    assert all(site.exists(job_id) for job_id in ids)
    page = site.press(question.form("jobs/selected"))
    assert "2 jobs are deleted." in page.text
    assert not any(site.exists(job_id) for job_id in ids)


def test_ticked_jobs_are_cancelled_after_a_question(site: Office) -> None:
    job_id = later(site)
    site.press(selecting(site, "cancel", [job_id]).form("jobs/selected"))
    assert site.job(job_id).state == "cancelled"


def test_a_ticked_job_that_cannot_does_not_keep_the_others_from_it(site: Office) -> None:
    dead, done = site.dead_letter(), site.add(site.mail, "good@example.org", state="succeeded")
    page = selecting(site, "retry", [dead, done])
    assert "One job is queued again. The others are gone, or in another state by now" in page.text
    assert site.audited(dead) == [("anna", "retry")]


def test_when_none_could_be_done_nothing_else_is_said(site: Office) -> None:
    page = selecting(site, "retry", [site.add(site.mail, "good@example.org", state="succeeded")])
    assert "Nothing was done: what was ticked is gone, or in another state by now." in page.text
    assert "queued again" not in page.text


def test_a_selection_that_stops_half_way_says_how_many_were_done(site: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = [site.dead_letter() for _ in range(3)]
    monkeypatch.setattr(site.dq, "retry", Failing(site.dq.retry, 3))
    page = selecting(site, "retry", ids)
    assert "2 jobs are queued again. Then the queue could not be reached." in page.text
    assert sorted(len(site.audited(job_id)) for job_id in ids) == [0, 1, 1]


def test_a_selection_that_fails_at_once_says_that_nothing_was_done(
    site: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [site.dead_letter() for _ in range(2)]
    monkeypatch.setattr(site.dq, "retry", Failing(site.dq.retry, 1))
    page = selecting(site, "retry", ids)
    assert page.status == 503
    assert "nothing was done" in page.text


def test_a_search_that_cannot_be_meant_is_not_repeated_after_an_action(site: Office) -> None:
    job_id = site.dead_letter()
    site.open("jobs")
    sent = [("do", "retry"), ("id", job_id), ("state", "nonsense")]
    page = site.send(f"{MOUNT}/jobs/selected", site.with_token(sent))
    assert page.status == 200
    assert "nonsense" not in page.url
    assert site.audited(job_id) == [("anna", "retry")]


def test_nothing_ticked_is_told(site: Office) -> None:
    site.dead_letter()
    assert "no job was ticked" in selecting(site, "delete", []).text


def test_an_unknown_action_is_refused(site: Office) -> None:
    job_id = site.dead_letter()
    site.open("jobs")
    sent = site.with_token([("do", "explode"), ("id", job_id)])
    assert site.send(f"{MOUNT}/jobs/selected", sent).status == 400


def test_the_addresses_of_forms_lead_to_the_list(site: Office) -> None:
    job_id = site.dead_letter()
    for path in ("jobs/selected", "bulk?state=dead"):
        page = site.open(path)
        assert (page.status, page.url.partition("?")[0]) == (200, f"{MOUNT}/jobs")
        assert job_id in page.html


def test_a_selection_is_bounded(site: Office) -> None:
    site.dead_letter()
    site.open("jobs")
    ids = [("id", str(number)) for number in range(actions.MOST_SELECTED + 1)]
    assert site.send(f"{MOUNT}/jobs/selected", site.with_token([("do", "retry"), *ids])).status == 400


# -- all that match ------------------------------------------------------------------------------------------


def asked(site: Office, action: str, **query: str) -> Page:
    page = site.open("bulk", do=action, **query)
    assert page.status == 200, page.text
    return page


def test_all_that_match_are_retried_once_the_number_is_typed(site: Office) -> None:
    ids = [site.dead_letter() for _ in range(3)]
    other = site.add(site.build, state="dead")
    page = asked(site, "retry", task="mail.send")
    assert "Retry 3 jobs?" in page.text
    assert site.audited(ids[0]) == []
    done = site.press(page.form("bulk"), typed="3")
    assert "3 jobs are queued again." in done.text
    assert [site.audited(job_id) for job_id in ids] == [[("anna", "retry")]] * 3
    assert site.audited(other) == []


@pytest.mark.parametrize("typed", ["", "2", "all", "yes"])
def test_another_word_than_the_one_asked_for_does_nothing(site: Office, typed: str) -> None:
    job_id = site.dead_letter()
    page = site.press(asked(site, "delete").form("bulk"), typed=typed)
    assert page.status == 422
    assert "Expected 1, got" in page.text
    assert site.exists(job_id)


def test_only_the_finished_are_deleted_and_only_the_unfinished_cancelled(site: Office) -> None:
    dead, waiting = site.dead_letter(), later(site)
    assert "Cancel 1 job?" in asked(site, "cancel").text
    site.press(asked(site, "cancel").form("bulk"), typed="1")
    assert (site.job(dead).state, site.job(waiting).state) == ("dead", "cancelled")
    site.press(asked(site, "delete").form("bulk"), typed="2")
    assert not site.exists(dead) and not site.exists(waiting)


def test_what_died_after_the_page_was_made_is_left_alone(site: Office) -> None:
    before = site.dead_letter()
    page = asked(site, "delete", state="dead")
    after = site.dead_letter()
    site.press(page.form("bulk"), typed="1")
    assert not site.exists(before)
    assert site.exists(after)


def test_what_was_added_after_the_page_was_made_is_not_cancelled(site: Office) -> None:
    before = later(site)
    page = asked(site, "cancel")
    after = later(site)
    site.press(page.form("bulk"), typed="1")
    assert (site.job(before).state, site.job(after).state) == ("cancelled", "scheduled")


def test_many_are_done_in_pieces_and_the_page_goes_on_until_none_is_left(
    site: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "PIECE", 2)
    monkeypatch.setattr(bulk, "WHOLE", 4)
    ids = [site.dead_letter() for _ in range(5)]
    page = site.press(asked(site, "delete").form("bulk"), typed="5")
    assert "4 of 5 deleted" in page.text
    assert any(tag == "progress" and (given["value"], given["max"]) == ("4", "5") for tag, given in page.elements)
    done = site.press(page.form("bulk"), "Go on")
    assert "5 jobs are deleted." in done.text
    assert not any(site.exists(job_id) for job_id in ids)


def test_with_a_script_that_presses_the_button_each_press_is_one_piece(
    site: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "PIECE", 2)
    for _ in range(3):
        site.dead_letter()
    form = asked(site, "delete").form("bulk")
    form.fields = [pair for pair in form.fields if pair[0] != "whole"]  # it stands in a <noscript>
    page = site.press(form, typed="3")
    assert "2 of 3 deleted" in page.text
    assert any("data-auto-submit" in given for tag, given in page.elements if tag == "form")


def test_a_work_that_stops_half_way_says_how_far_it_is_and_goes_on(
    site: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "PIECE", 2)
    ids = [site.dead_letter() for _ in range(5)]
    form = asked(site, "delete").form("bulk")
    monkeypatch.setattr(site.dq, "delete_matching", Failing(site.dq.delete_matching, 2))
    stopped = site.press(form, typed="5")
    assert "2 of 5 deleted" in stopped.text
    assert "could not be reached" in stopped.text
    assert not any("data-auto-submit" in given for _, given in stopped.elements)
    assert "5 jobs are deleted." in site.press(stopped.form("bulk"), "Go on").text
    assert not any(site.exists(job_id) for job_id in ids)


def test_a_work_that_fails_at_once_says_that_nothing_was_done(site: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    site.dead_letter()
    form = asked(site, "delete").form("bulk")
    monkeypatch.setattr(site.dq, "delete_matching", Failing(site.dq.delete_matching, 1))
    page = site.press(form, typed="1")
    assert page.status == 503
    assert "nothing was done" in page.text


def test_when_none_is_left_by_then_that_is_said(site: Office) -> None:
    job_id = site.dead_letter()
    form = asked(site, "retry").form("bulk")
    site.call(site.dq.delete, job_id)
    assert "No job was queued again: none is left." in site.press(form, typed="1").text


def test_when_none_was_found_among_those_looked_at_nothing_like_a_number_is_asked(
    site: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "LOOK_AT", 2)
    wanted = site.dead_letter("bad@first.example")
    for _ in range(3):
        site.dead_letter()
    page = asked(site, "delete", **{"arg.email": "bad@first.example"})
    assert "Delete older jobs?" in page.text
    assert "None of the 2 jobs that were looked at matches." in page.text
    site.press(page.form("bulk"), typed="all")
    assert not site.exists(wanted)


def test_more_than_can_be_counted_asks_for_a_word(site: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "LOOK_AT", 2)
    ids = [site.dead_letter() for _ in range(3)]
    page = asked(site, "delete", **{"error_text": "address"})
    assert "2 or more jobs" in page.text
    assert site.press(page.form("bulk"), typed="2").status == 422
    site.press(page.form("bulk"), typed="all")
    assert not any(site.exists(job_id) for job_id in ids)


def test_without_a_match_there_is_nothing_to_confirm(site: Office) -> None:
    page = asked(site, "retry")
    assert "nothing to do" in page.text
    assert not page.has_form("bulk")


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ({"do": "retry", "state": "running"}, "A running job cannot be retried"),
        ({"do": "cancel", "state": "dead"}, "A dead job cannot be cancelled"),
        ({"do": "delete", "state": "queued"}, "A queued job cannot be deleted"),
        ({"do": "explode"}, "no such action"),
        ({"do": "delete", "task": "send_*"}, "names are looked up whole"),
        ({"do": "delete", "arg.password": "x"}, "secret"),
        ({"do": "delete", "stat": "dead"}, "did you mean 'state'?"),
    ],
)
def test_an_action_that_cannot_be_meant_is_refused(site: Office, query: dict[str, str], said: str) -> None:
    page = site.open("bulk", **query)
    assert page.status == 400
    assert said in page.text
