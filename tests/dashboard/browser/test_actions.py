"""Whatever a person can do to jobs and queues, they do it here through the pages, once with JavaScript and once
without; its effect is looked up in the database, and on the page.
"""

from collections.abc import Callable

import pytest
from playwright.sync_api import Request, Route, expect

from tests.dashboard.browser.conftest import Enter, Served, Visitor
from tests.support import eventually_sync

Person = Callable[..., Visitor]


@pytest.fixture(params=[True, False], ids=["with scripts", "without scripts"])
def person(enter: Enter, request: pytest.FixtureRequest) -> Person:
    """Opens a window whose browser runs scripts, or does not."""
    return lambda **options: enter(script=request.param, **options)


def has_scripts(visitor: Visitor) -> bool:
    return bool(visitor.page.locator("html.js").count())


# -- one job -------------------------------------------------------------------------------------------------


def test_a_dead_job_is_retried(person: Person, served: Served) -> None:
    job_id = served.add("mail.send", email="bad@example.org", state="dead")
    visitor = person(who="otto", role="operate")
    visitor.open(f"jobs/{job_id}")
    visitor.press("Retry")
    visitor.says("One job is queued again.")
    eventually_sync(lambda: served.row("SELECT lease_no FROM durableq_jobs WHERE id = ?", job_id) == (2,))
    assert served.audited(job_id) == [("otto", "retry")]
    visitor.open(f"jobs/{job_id}")
    expect(visitor.page.locator(".trail")).to_contain_text("otto retried it")


def test_arguments_are_mended_and_the_job_runs_with_them(person: Person, served: Served) -> None:
    job_id = served.add("mail.send", email="bad@example.org", state="dead")
    visitor = person()
    visitor.refusals = {422}
    page = visitor.page
    visitor.open(f"jobs/{job_id}")
    visitor.press("Edit and retry…")
    page.get_by_label("Arguments, as one JSON object").fill('{\n  "email": "good@example.org",\n  "copies": "many"\n}')
    visitor.press("Review the change")
    expect(page.locator("#args-problem")).to_contain_text("Line 3")
    expect(page.locator("#args-problem")).to_contain_text("copies")
    assert served.state(job_id) == "dead", "a wrong value changes nothing"
    field = page.get_by_label("Arguments, as one JSON object")
    expect(field).to_have_attribute("aria-invalid", "true")
    field.fill(field.input_value().replace('"many"', "7"))
    visitor.press("Review the change")
    expect(page.locator(".diff")).to_contain_text("good@example.org")
    assert served.state(job_id) == "dead", "nothing is stored before it was looked at"
    visitor.press("Store and retry")
    visitor.says("with the arguments you gave it")
    eventually_sync(lambda: served.state(job_id) == "succeeded")
    assert '"sent":7' in served.row("SELECT result FROM durableq_jobs WHERE id = ?", job_id)[0].replace(" ", "")


def test_a_job_that_waits_is_cancelled_after_a_question(person: Person, served: Served) -> None:
    job_id = served.add("mail.send", email="good", options={"queue": "night"}, state="queued")
    visitor = person(role="operate")
    visitor.open(f"jobs/{job_id}")
    visitor.press("Cancel…")
    assert served.state(job_id) == "queued", "it asks first"
    visitor.press("Keep it")
    visitor.press("Cancel…")
    visitor.press("Cancel the job")
    visitor.says("One job is cancelled")
    assert served.state(job_id) == "cancelled"
    expect(visitor.page.locator(".job-line .state")).to_have_text("cancelled")


def test_a_job_that_runs_is_cancelled(person: Person, served: Served) -> None:
    job_id = served.add("wait", state="running")
    visitor = person(role="operate")
    visitor.open(f"jobs/{job_id}")
    visitor.press("Cancel…")
    visitor.press("Cancel the job")
    visitor.says("One job is cancelled, or was asked to end.")
    eventually_sync(lambda: served.state(job_id) == "cancelled")
    visitor.open(f"jobs/{job_id}")
    expect(visitor.page.locator(".job-line .state")).to_have_text("cancelled")


def test_a_job_is_deleted_after_a_question(person: Person, served: Served) -> None:
    job_id = served.add("mail.send", email="bad@example.org", state="dead")
    visitor = person(who="anna")
    visitor.open(f"jobs/{job_id}")
    visitor.press("Delete…")
    assert served.state(job_id) == "dead", "it asks first"
    visitor.press("Delete the job")
    visitor.says("One job is deleted.")
    assert served.state(job_id) is None
    assert served.audited(job_id) == [("anna", "delete")]
    visitor.refusals = {404}
    visitor.open(f"jobs/{job_id}")
    expect(visitor.page.locator("main")).to_contain_text(job_id)


# -- queues --------------------------------------------------------------------------------------------------


def test_a_queue_is_paused_and_resumed(person: Person, served: Served) -> None:
    visitor = person(who="otto", role="operate")
    queue = "tides"
    served.add("mail.send", email="good", options={"queue": queue}, state="succeeded")
    visitor.open("queues")
    row = visitor.page.locator("tr", has_text=queue)
    row.get_by_role("button", name="Pause").click()
    if has_scripts(visitor):
        assert not is_paused(served, queue), "it asks first"
        visitor.page.get_by_role("dialog").get_by_role("button", name="Pause").click()
    visitor.says(f"The queue “{queue}” was paused")
    assert is_paused(served, queue)
    expect(row).to_contain_text("by otto")
    job_id = served.add("mail.send", email="good", options={"queue": queue})
    row.get_by_role("button", name="Resume").click()
    visitor.says(f"The queue “{queue}” was resumed")
    eventually_sync(lambda: served.state(job_id) == "succeeded")
    assert not is_paused(served, queue)


def is_paused(served: Served, queue: str) -> bool:
    return served.row("SELECT paused_at FROM durableq_queues WHERE name = ?", queue) != (None,)


# -- a selection ---------------------------------------------------------------------------------------------


def dead_letters(served: Served, tag: str, number: int = 3) -> list[str]:
    """Dead jobs of a tag that no test before has used."""
    return served.add_many("mail.send", number, email="bad", state="dead", options={"tags": [tag]})


def tick(visitor: Visitor, ids: list[str]) -> None:
    for job_id in ids:
        visitor.page.locator(f"#job-{job_id} input[type=checkbox]").check()


def test_ticked_jobs_are_deleted_after_a_question_and_others_are_not(person: Person, served: Served) -> None:
    first, second, third = dead_letters(served, "to tick")
    visitor = person()
    visitor.open("jobs?tag=to+tick")
    tick(visitor, [first, third])
    if has_scripts(visitor):
        expect(visitor.page.locator("[data-selected-count]")).to_have_text("2")
    visitor.press("Delete…")
    expect(visitor.page.get_by_role("heading")).to_contain_text("Delete 2 jobs?")
    assert served.state(first) == "dead", "it asks first"
    visitor.press("Delete 2 jobs")
    visitor.says("2 jobs are deleted.")
    assert [served.state(one) for one in (first, second, third)] == [None, "dead", None]
    assert "tag=to+tick" in visitor.page.url
    served.execute("DELETE FROM durableq_jobs WHERE id = ?", second)


def test_ticked_jobs_are_retried_and_one_that_is_gone_does_not_keep_the_others_from_it(
    person: Person, served: Served
) -> None:
    first, second = dead_letters(served, "ticked again", 2)
    visitor = person(role="operate")
    visitor.open("jobs?tag=ticked+again&state=dead")
    tick(visitor, [first, second])
    served.execute("DELETE FROM durableq_jobs WHERE id = ?", second)
    visitor.press("Retry")
    visitor.says("One job is queued again. The others are gone")
    eventually_sync(lambda: served.row("SELECT lease_no FROM durableq_jobs WHERE id = ?", first) == (2,))


def test_ticked_jobs_are_cancelled_after_a_question(person: Person, served: Served) -> None:
    ids = served.add_many("mail.send", 2, email="good", options={"queue": "night", "tags": ["to cancel"]})
    visitor = person(role="operate")
    visitor.open("jobs?tag=to+cancel&state=queued")
    tick(visitor, ids)
    visitor.press("Cancel…")
    visitor.press("Cancel 2 jobs")
    visitor.says("2 jobs are cancelled")
    assert [served.state(one) for one in ids] == ["cancelled", "cancelled"]


# -- all that match ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("action", "done"), [("Retry", "queued again"), ("Delete", "deleted")])
def test_all_that_match_are_dealt_with_once_their_number_is_typed(
    person: Person, served: Served, action: str, done: str
) -> None:
    tag = f"{action} all"
    dead_letters(served, tag)
    other = served.add("mail.send", email="bad", state="dead", options={"tags": ["not meant"]})
    visitor = person()
    visitor.refusals = {422}
    visitor.open("jobs?state=dead&tag=" + tag.replace(" ", "+"))
    visitor.page.locator("#all-matching summary").click()
    visitor.press(f"{action} them all…")
    later = served.add("mail.send", email="bad", state="dead", options={"tags": [tag]})
    visitor.page.get_by_label("to confirm").fill("2")
    visitor.press(f"{action} them all")
    expect(visitor.page.locator("#typed-problem")).to_contain_text("Expected 3, got 2. Nothing was done.")
    assert served.states(tag) == {"dead": 4}
    visitor.page.get_by_label("to confirm").fill("3")
    visitor.press(f"{action} them all")
    visitor.says(f"3 jobs are {done}.")
    assert served.state(later) == "dead", "what died after the page was made is left alone"
    assert served.row("SELECT lease_no FROM durableq_jobs WHERE id = ?", later) == (1,)
    assert served.row("SELECT state, lease_no FROM durableq_jobs WHERE id = ?", other) == ("dead", 1)
    if action == "Retry":
        eventually_sync(
            lambda: served.row("SELECT sum(lease_no) FROM durableq_jobs WHERE tags = ?", f'["{tag}"]') == (7,)
        )
    else:
        assert served.states(tag) == {"dead": 1}
    served.execute("DELETE FROM durableq_jobs WHERE tags = ?", f'["{tag}"]')


def test_a_thousand_jobs_are_cancelled_in_pieces_and_a_bar_shows_how_far_it_is(enter: Enter, served: Served) -> None:
    served.add_many("mail.send", 1_200, email="good", options={"queue": "night", "tags": ["a crowd"]})
    visitor = enter(role="operate")
    held: list[Route] = []
    pieces = 0

    def hold(route: Route, request: Request) -> None:
        nonlocal pieces
        pieces += 1
        if pieces == 2:
            held.append(route)
        else:
            route.continue_()

    visitor.page.route("**/bulk", hold)
    visitor.open("bulk?do=cancel&tag=a+crowd")
    expect(visitor.page.get_by_role("heading")).to_contain_text("Cancel 1,200 jobs?")
    visitor.page.get_by_label("to confirm").fill("1,200")
    visitor.press("Cancel them all")
    bar = visitor.page.get_by_role("progressbar", name="Done so far")
    expect(bar).to_have_js_property("value", 500)
    expect(bar).to_have_js_property("max", 1_200)
    assert served.states("a crowd") == {"queued": 700, "cancelled": 500}
    eventually_sync(lambda: bool(held) or visitor.page.evaluate("false"))
    held[0].continue_()
    visitor.says("1,200 jobs are cancelled")
    assert served.states("a crowd") == {"cancelled": 1_200}


def test_a_work_whose_server_does_not_answer_says_that_it_stopped_and_goes_on(enter: Enter, served: Served) -> None:
    served.add_many("mail.send", 1_100, email="good", options={"queue": "night", "tags": ["a stop"]})
    visitor = enter(role="operate")
    visitor.refusals = {502}
    pieces = 0

    def fail_once(route: Route, request: Request) -> None:
        nonlocal pieces
        pieces += 1
        if pieces == 2:
            route.fulfill(status=502, body="bad gateway")
        else:
            route.continue_()

    visitor.page.route("**/bulk", fail_once)
    visitor.open("bulk?do=cancel&tag=a+stop")
    visitor.page.get_by_label("to confirm").fill("1100")
    visitor.press("Cancel them all")
    expect(visitor.page.get_by_role("heading")).to_have_text("Cancel 1,100 jobs: stopped")
    expect(visitor.page.get_by_text("The server did not answer as it should.")).to_be_visible()
    assert served.states("a stop") == {"queued": 600, "cancelled": 500}
    visitor.press("Go on")
    visitor.says("1,100 jobs are cancelled")
    assert served.states("a stop") == {"cancelled": 1_100}


def test_without_scripts_a_button_goes_on_where_five_thousand_were_not_all(enter: Enter, served: Served) -> None:
    served.add_many("mail.send", 5_100, email="good", options={"queue": "night", "tags": ["a flood"]})
    visitor = enter(role="operate", script=False)
    visitor.open("bulk?do=cancel&tag=a+flood")
    visitor.page.get_by_label("to confirm").fill("5100")
    visitor.press("Cancel them all")
    expect(visitor.page.get_by_role("status")).to_contain_text("5,000 of 5,100 cancelled")
    assert served.states("a flood") == {"queued": 100, "cancelled": 5_000}
    visitor.press("Go on")
    visitor.says("5,100 jobs are cancelled")
    assert served.states("a flood") == {"cancelled": 5_100}


# -- the way back --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mount", ["/durableq", "/stripped/durableq"])
def test_pages_that_answer_a_form_can_be_left_come_back_to_and_reloaded(
    enter: Enter, served: Served, mount: str
) -> None:
    served.execute("DELETE FROM durableq_jobs WHERE tags = ?", '["way back"]')
    [job_id] = dead_letters(served, "way back", 1)
    visitor = enter(mount=mount)
    visitor.refusals = {422, 409}
    page = visitor.page

    def leave_and_come_back(title: str) -> None:
        page.get_by_label("Main").get_by_role("link", name="System").click()
        expect(page.get_by_role("heading", level=1)).to_have_text("System")
        page.go_back()
        expect(page.get_by_role("heading", level=1)).to_have_text(title)
        page.reload()
        expect(page.get_by_role("heading", level=1)).to_have_text(title)

    visitor.open("jobs?tag=way+back")
    tick(visitor, [job_id])
    visitor.press("Delete…")
    expect(page.get_by_role("heading", level=1)).to_have_text("Delete 1 job?")
    leave_and_come_back("Jobs")
    assert page.url.endswith("/jobs?tag=way+back")
    visitor.open("bulk?do=delete&tag=way+back")
    page.get_by_label("to confirm").fill("7")
    visitor.press("Delete it")
    expect(page.locator("#typed-problem")).to_be_visible()
    leave_and_come_back("Delete 1 job?")
    visitor.open(f"jobs/{job_id}/edit")
    visitor.press("Review the change")
    expect(page.get_by_role("heading", level=1)).to_have_text("Review and retry")
    leave_and_come_back("Edit and retry")
    visitor.open(f"jobs/{job_id}")
    page.keyboard.press("p")
    expect(page.locator("[data-live-toggle]")).to_have_text("Paused")
    served.execute("UPDATE durableq_jobs SET state = 'succeeded' WHERE id = ?", job_id)
    visitor.press("Retry")
    expect(page.get_by_role("heading", level=1)).to_have_text("That is not possible now")
    leave_and_come_back("mail.send")
    assert served.state(job_id) == "succeeded"
