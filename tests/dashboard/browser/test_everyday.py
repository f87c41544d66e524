"""What makes the pages pleasant holds in a real browser: they follow what happens without disturbing who reads, their
addresses keep, and keys, themes, times and copy buttons do what they say.
"""

import re
from typing import Any

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.dashboard.browser.conftest import Enter, Served, Visitor
from tests.support import eventually_sync


def tagged(served: Served, tag: str, state: str = "succeeded") -> str:
    """Add a job elsewhere, as another request or process would."""
    return served.add("mail.send", email="good@example.org", options={"tags": [tag]}, state=state)


def row(visitor: Visitor, job_id: str) -> Locator:
    return visitor.page.locator(f"#job-{job_id}")


def live(visitor: Visitor) -> Locator:
    return visitor.page.locator("[data-live-toggle]")


# -- live updates --------------------------------------------------------------------------------------------


def test_a_job_that_was_added_elsewhere_appears_by_itself(enter: Enter, served: Served) -> None:
    visitor = enter(role="read")
    tagged(served, "appears")
    visitor.open("jobs?tag=appears")
    visitor.page.evaluate("window.isTheSamePage = true")
    job_id = tagged(served, "appears")
    expect(row(visitor, job_id)).to_contain_text("succeeded")
    assert visitor.page.evaluate("window.isTheSamePage")


def test_every_figure_of_the_overview_follows(enter: Enter, served: Served) -> None:
    visitor = enter()
    served.add("mail.send", email="bad@example.org", state="dead")
    visitor.open()
    dead = visitor.page.locator(".card", has_text="Dead").locator(".card-value")
    before = int(dead.inner_text())
    served.add("mail.send", email="bad@example.org", state="dead")
    expect(dead).to_have_text(str(before + 1))
    expect(visitor.page.locator(".chart-canvas canvas")).to_have_count(2)


def test_the_page_of_a_job_follows_it_beyond_its_end(enter: Enter, served: Served) -> None:
    served.pause("gate")
    job_id = served.add("mail.send", email="good@example.org", options={"queue": "gate"}, state="queued")
    visitor, other = enter(), enter()
    visitor.open(f"jobs/{job_id}")
    expect(visitor.page.locator(".job-line .state")).to_have_text("queued")
    other.open("queues")
    other.page.locator("tr", has_text="gate").get_by_role("button", name="Resume").click()
    expect(visitor.page.locator(".job-line .state")).to_have_text("succeeded")
    expect(visitor.page.get_by_role("heading", name="Result")).to_be_visible()
    served.execute("UPDATE durableq_jobs SET state = 'dead', result = NULL WHERE id = ?", job_id)
    tagged(served, "something happens")
    expect(visitor.page.get_by_role("button", name="Retry")).to_be_visible()


def test_the_page_of_a_job_that_is_deleted_elsewhere_says_so(enter: Enter, served: Served) -> None:
    job_id = served.add("mail.send", email="bad@example.org", state="dead")
    visitor, other = enter(), enter()
    visitor.refusals = {404}
    visitor.open(f"jobs/{job_id}")
    other.open(f"jobs/{job_id}/delete")
    other.press("Delete the job")
    expect(live(visitor)).to_have_text("Gone")
    expect(visitor.page.locator("main .flash")).to_contain_text("This job is gone")
    expect(visitor.page.get_by_role("button", name="Retry")).to_be_disabled()
    expect(visitor.page.get_by_role("link", name="Delete…")).to_have_count(0)
    expect(visitor.page.locator(".job-problem")).to_contain_text("no such address")


def test_a_page_whose_reader_is_signed_out_says_so_and_goes_on_after_it(enter: Enter, served: Served) -> None:
    visitor = enter()
    visitor.refusals = {401}
    visitor.open("jobs?tag=signed+out")
    expect(live(visitor)).to_have_text("Live")
    visitor.context.clear_cookies(name="who")
    tagged(served, "signed out")
    expect(live(visitor)).to_have_text("Signed out")
    visitor.context.add_cookies([{"name": "who", "value": "anna", "url": served.base}])
    expect(row(visitor, tagged(served, "signed out"))).to_be_visible()
    expect(live(visitor)).to_have_text("Live")


def test_a_page_that_reaches_no_server_says_since_when(enter: Enter, served: Served) -> None:
    visitor = enter()
    visitor.open("jobs")
    expect(live(visitor)).to_have_text("Live")
    visitor.refusals = {503}
    visitor.page.route("**/durableq/jobs", lambda route: route.fulfill(status=503, body="down"))
    tagged(served, "offline")
    expect(live(visitor)).to_have_text(re.compile(r"Offline since \d\d:\d\d"))


def test_nothing_moves_while_it_is_paused_and_a_choice_is_kept(enter: Enter, served: Served) -> None:
    visitor = enter()
    tagged(served, "paused page")
    visitor.open("jobs?tag=paused+page")
    visitor.page.keyboard.press("p")
    expect(live(visitor)).to_have_text("Paused")
    expect(live(visitor)).to_have_attribute("aria-pressed", "false")
    job_id = tagged(served, "paused page")
    other = enter()
    other.open("jobs?tag=paused+page")
    expect(row(other, job_id)).to_be_visible()
    watched = len(visitor.asked)
    tagged(served, "something else")
    visitor.page.wait_for_timeout(1_500)  # longer than an update takes; there is nothing that would tell of its absence
    assert visitor.asked[watched:] == []
    expect(row(visitor, job_id)).to_have_count(0)
    visitor.page.reload()
    expect(live(visitor)).to_have_text("Paused")
    live(visitor).click()
    expect(live(visitor)).to_have_text("Live")


def test_focus_and_place_survive_an_update(enter: Enter, served: Served) -> None:
    visitor = enter()
    first = tagged(served, "focus")
    visitor.open("jobs?tag=focus")
    link = row(visitor, first).locator("[data-open]")
    link.focus()
    visitor.page.locator("#all-matching").evaluate("details => details.open = true")
    job_id = tagged(served, "focus")
    expect(row(visitor, job_id)).to_be_visible()
    expect(link).to_be_focused()
    expect(visitor.page.locator("#all-matching")).to_have_attribute("open", "")


def test_when_the_row_with_the_focus_leaves_the_one_in_its_place_has_it(enter: Enter, served: Served) -> None:
    visitor = enter()
    first, second = tagged(served, "leaves"), tagged(served, "leaves")
    visitor.open("jobs?tag=leaves")
    expect(live(visitor)).to_have_text("Live")
    row(visitor, second).locator("[data-open]").focus()
    for job_id, heir in ((second, row(visitor, first).locator("[data-open]")), (first, visitor.page.locator("main"))):
        served.execute("DELETE FROM durableq_jobs WHERE id = ?", job_id)
        tagged(served, "something else leaves")
        expect(row(visitor, job_id)).to_have_count(0)
        expect(heir).to_be_focused()


def test_a_selection_is_not_disturbed_and_the_update_comes_after_it(enter: Enter, served: Served) -> None:
    visitor = enter()
    first = tagged(served, "ticked")
    visitor.open("jobs?tag=ticked")
    box = row(visitor, first).locator("input")
    box.check()
    job_id = tagged(served, "ticked")
    expect(live(visitor)).to_have_text("Waits")
    expect(row(visitor, job_id)).to_have_count(0)
    expect(box).to_be_checked()
    box.uncheck()
    expect(row(visitor, job_id)).to_be_visible()
    expect(live(visitor)).to_have_text("Live")


def test_nothing_moves_while_somebody_types(enter: Enter, served: Served) -> None:
    visitor = enter()
    tagged(served, "typing")
    visitor.open("jobs?tag=typing")
    search = visitor.page.locator("[data-search]")
    search.press("End")
    search.press_sequentially(" queue:m")
    job_id = tagged(served, "typing")
    expect(live(visitor)).to_have_text("Waits")
    expect(row(visitor, job_id)).to_have_count(0)
    expect(search).to_have_value("tag:typing queue:m")
    search.blur()
    expect(row(visitor, job_id)).to_be_visible()


# -- addresses -----------------------------------------------------------------------------------------------


def test_filters_stand_in_the_address_and_survive_a_reload_and_the_way_back(enter: Enter, served: Served) -> None:
    good = tagged(served, "address")
    bad = served.add("mail.send", email="bad@example.org", options={"tags": ["address"]}, state="dead")
    visitor = enter()
    page = visitor.page
    visitor.open("jobs")
    page.locator("[data-search]").fill("tag:address arg.email:bad@example.org")
    page.keyboard.press("Enter")
    expect(row(visitor, bad)).to_be_visible()
    expect(row(visitor, good)).to_have_count(0)
    assert "tag=address" in page.url
    assert "arg.email=bad%40example.org" in page.url
    page.reload()
    expect(row(visitor, bad)).to_be_visible()
    expect(row(visitor, good)).to_have_count(0)
    page.get_by_role("link", name="Without Argument email").click()
    expect(row(visitor, good)).to_be_visible()
    row(visitor, bad).locator("[data-open]").click()
    expect(page.get_by_role("heading", name="mail.send")).to_be_visible()
    page.go_back()
    expect(row(visitor, good)).to_be_visible()
    page.go_back()
    expect(row(visitor, good)).to_have_count(0)
    expect(row(visitor, bad)).to_be_visible()


def test_fields_and_states_narrow_a_search_and_a_mistake_is_shown_where_it_is(enter: Enter, served: Served) -> None:
    bad = served.add("mail.send", email="bad", options={"tags": ["fields"]}, state="dead")
    good = tagged(served, "fields")
    visitor = enter()
    visitor.refusals = {400}
    page = visitor.page
    visitor.open("jobs")
    page.locator("#more-filters summary").click()
    page.get_by_role("textbox", name="Tag").fill("fields")
    page.locator("#field-since").fill("yesterday")
    page.get_by_role("button", name="Filter").click()
    expect(page.locator("#problem-since")).to_contain_text("15m, 1h or 7d")
    expect(page.get_by_role("textbox", name="Tag")).to_have_value("fields")
    begins = page.locator("#field-since, #field-error_text").evaluate_all("all => all.map((one) => one.offsetTop)")
    assert len(set(begins)) == 1, "a mistake pushes no other field down"
    page.locator("#field-since").fill("1h")
    page.get_by_role("button", name="Filter").click()
    expect(row(visitor, good)).to_be_visible()
    page.locator(".states").get_by_role("link", name="dead").click()
    expect(row(visitor, bad)).to_be_visible()
    expect(row(visitor, good)).to_have_count(0)


def test_what_was_done_is_not_said_again_after_a_reload(enter: Enter, served: Served) -> None:
    job_id = served.add("mail.send", email="bad@example.org", state="dead")
    visitor = enter()
    visitor.open(f"jobs/{job_id}")
    visitor.press("Retry")
    visitor.says("One job is queued again.")
    assert "said" not in visitor.page.url
    visitor.page.reload()
    expect(visitor.page.locator("[data-flash]")).to_have_count(0)


MOUNTS = ("/durableq", "/inner/ops", "/behind/durableq", "/stripped/durableq")
"""Under a prefix, in a mounted application, and behind two kinds of proxy."""


@pytest.mark.parametrize("mount", MOUNTS)
def test_links_and_actions_work_wherever_it_is_mounted(enter: Enter, served: Served, mount: str) -> None:
    job_id = served.add("mail.send", email="bad@example.org", options={"tags": ["mounted"]}, state="dead")
    visitor = enter(mount=mount, script=False)
    visitor.open()
    for name in ("Dead letters", "Queues", "Workers", "System", "Overview", "Jobs"):
        visitor.page.get_by_label("Main").get_by_role("link", name=name).click()
        expect(visitor.page.get_by_role("heading", level=1)).to_have_text(name)
    row(visitor, job_id).locator("[data-open]").click()
    visitor.press("Retry")
    visitor.says("One job is queued again.")
    eventually_sync(lambda: served.row("SELECT lease_no FROM durableq_jobs WHERE id = ?", job_id) == (2,))
    assert all(asked.startswith(f"{served.base}{mount}/") for asked in visitor.asked)


@pytest.mark.parametrize("mount", MOUNTS)
def test_updates_arrive_wherever_it_is_mounted(enter: Enter, served: Served, mount: str) -> None:
    visitor = enter(mount=mount)
    tagged(served, "arrives")
    visitor.open("jobs?tag=arrives")
    expect(row(visitor, tagged(served, "arrives"))).to_be_visible()
    visitor.page.keyboard.press("j")
    visitor.page.keyboard.press("Enter")
    expect(visitor.page.get_by_role("heading", name="mail.send")).to_be_visible()
    assert all(asked.startswith(f"{served.base}{mount}/") for asked in visitor.asked)


# -- keys ----------------------------------------------------------------------------------------------------


def test_keys_lead_through_the_pages(enter: Enter, served: Served) -> None:
    ids = [served.add("mail.send", email="bad", options={"tags": ["keys"]}, state="dead") for _ in range(3)]
    visitor = enter()
    page, keys = visitor.page, visitor.page.keyboard
    visitor.open()
    for key, title in {
        "d": "Dead letters",
        "q": "Queues",
        "w": "Workers",
        "s": "System",
        "o": "Overview",
        "j": "Jobs",
    }.items():
        keys.press("g")
        keys.press(key)
        visitor.reaches(title)
    keys.press("/")
    expect(page.locator("[data-search]")).to_be_focused()
    keys.type("tag:keys")
    keys.press("Enter")
    expect(row(visitor, ids[0])).to_be_visible()
    visitor.reaches("Jobs")
    keys.press("j")
    keys.press("j")
    expect(row(visitor, ids[1]).locator("[data-open]")).to_be_focused()
    keys.press("x")
    expect(row(visitor, ids[1]).locator("input")).to_be_checked()
    expect(page.locator("[data-selected-count]")).to_have_text("1")
    keys.press("k")
    expect(row(visitor, ids[2]).locator("[data-open]")).to_be_focused()
    keys.press("Enter")
    visitor.reaches("mail.send")
    assert ids[2] in page.url
    keys.press("r")
    expect(page.get_by_role("button", name="Retry")).to_be_focused()
    assert served.audited(ids[2]) == [], "a key alone does nothing to a job"
    keys.press("Enter")
    visitor.says("One job is queued again.")
    visitor.reaches("mail.send")
    keys.press("?")
    expect(page.get_by_role("dialog")).to_contain_text("Keyboard shortcuts")
    keys.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)


def test_keys_do_nothing_but_write_while_somebody_types(enter: Enter, served: Served) -> None:
    visitor = enter()
    visitor.open("jobs")
    visitor.page.locator("[data-search]").focus()
    visitor.page.keyboard.type("gdtpjxkr?/")
    expect(visitor.page.locator("[data-search]")).to_have_value("gdtpjxkr?/")
    expect(live(visitor)).to_have_attribute("aria-pressed", "true")
    expect(visitor.page.get_by_role("dialog")).to_have_count(0)
    assert theme_of(visitor.page) is None
    assert visitor.page.url.endswith("/jobs")


def test_keys_of_the_browser_stay_the_browsers(enter: Enter, served: Served) -> None:
    visitor = enter()
    visitor.open("jobs")
    for key in ("Control+p", "Alt+t", "Meta+p"):
        visitor.page.keyboard.press(key)
    expect(live(visitor)).to_have_text("Live")
    assert theme_of(visitor.page) is None


def test_the_content_is_one_key_away(enter: Enter, served: Served) -> None:
    visitor = enter()
    visitor.open("queues")
    visitor.page.keyboard.press("Tab")
    expect(visitor.page.get_by_role("link", name="Skip to the content")).to_be_focused()
    visitor.page.keyboard.press("Enter")
    expect(visitor.page.locator("#main")).to_be_focused()


# -- themes, times, copies -----------------------------------------------------------------------------------


def theme_of(page: Page) -> Any:
    return page.evaluate("document.documentElement.dataset.theme ?? null")


def test_the_chosen_theme_is_there_after_a_reload_before_anything_is_painted(enter: Enter, served: Served) -> None:
    visitor = enter(theme="light")
    visitor.open("queues")
    bright = visitor.page.evaluate("getComputedStyle(document.body).backgroundColor")
    visitor.press("Light or dark")
    assert theme_of(visitor.page) == "dark"
    visitor.page.reload(wait_until="commit")
    visitor.page.wait_for_selector("body", state="attached")
    assert theme_of(visitor.page) == "dark"
    visitor.page.wait_for_load_state()
    assert visitor.page.evaluate("getComputedStyle(document.body).backgroundColor") != bright


def test_times_are_shown_in_the_zone_that_was_chosen(enter: Enter, served: Served) -> None:
    job_id = tagged(served, "times")
    visitor = enter()
    visitor.open(f"jobs/{job_id}")
    added = visitor.page.locator("dl.facts time").first
    expect(added).to_contain_text(" UTC")
    utc = added.inner_text()
    visitor.page.locator("[data-zone-toggle]").click()
    expect(added).to_contain_text("UTC\N{MINUS SIGN}")
    expect(added).to_have_attribute("title", f"{utc}\n{(added.get_attribute('title') or '').splitlines()[1]}")
    visitor.page.reload()
    expect(added).to_contain_text("UTC\N{MINUS SIGN}")


def test_a_copy_button_copies_where_there_is_no_clipboard_for_pages(enter: Enter, served: Served) -> None:
    job_id = tagged(served, "copied")
    visitor = enter()
    visitor.page.add_init_script("Object.defineProperty(window, 'isSecureContext', { value: false })")
    visitor.page.add_init_script("Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    visitor.open(f"jobs/{job_id}")
    visitor.page.get_by_role("button", name="Copy the id").click()
    expect(visitor.page.locator("#announcement")).to_have_text("Copied")
    expect(visitor.page.get_by_role("button", name="Copy the id")).to_be_focused()
    visitor.open("jobs")
    visitor.page.locator("[data-search]").fill("")
    visitor.page.keyboard.press("Control+v")
    expect(visitor.page.locator("[data-search]")).to_have_value(job_id)


def test_a_copy_button_copies_when_the_clipboard_is_refused(enter: Enter, served: Served) -> None:
    job_id = tagged(served, "refused")
    visitor = enter()
    visitor.page.add_init_script("navigator.clipboard.writeText = () => Promise.reject(new DOMException('denied'))")
    visitor.open(f"jobs/{job_id}")
    visitor.page.get_by_role("button", name="Copy the id").click()
    expect(visitor.page.locator("#announcement")).to_have_text("Copied")


# -- who may only look ---------------------------------------------------------------------------------------


def test_who_may_only_look_sees_everything_and_no_button_that_does_something(enter: Enter, served: Served) -> None:
    job_id = served.add("mail.send", email="bad@example.org", state="dead")
    waits = served.add("mail.send", email="good", options={"queue": "night"})
    visitor = enter(role="read")
    for path in ("", "jobs", "dead", "queues", "workers", "system", f"jobs/{job_id}", f"jobs/{waits}"):
        visitor.open(path)
        expect(visitor.page.get_by_text("Read only")).to_be_visible()
        assert visitor.page.locator("form[method=post], [href*=bulk], [href*=edit], [href$=delete]").count() == 0, path
    visitor.refusals = {403}
    visitor.open(f"jobs/{job_id}/delete")
    expect(visitor.page.get_by_role("heading")).to_have_text("You may not do this")
    assert served.state(job_id) == "dead"


def test_an_operator_is_not_offered_what_is_for_administrators(enter: Enter, served: Served) -> None:
    job_id = served.add("mail.send", email="bad@example.org", state="dead")
    visitor = enter(role="operate")
    visitor.open(f"jobs/{job_id}")
    expect(visitor.page.get_by_role("button", name="Retry")).to_be_visible()
    expect(visitor.page.get_by_text("Edit and retry…")).to_have_count(0)
    expect(visitor.page.get_by_text("Delete…")).to_have_count(0)


# -- texts ---------------------------------------------------------------------------------------------------


def test_the_lines_of_an_error_stay_lines(enter: Enter, served: Served) -> None:
    job_id = served.add("mail.send", email="bad\n    line 2\n    line 3", state="dead")
    visitor = enter()
    for path in (f"jobs/{job_id}", f"jobs/{job_id}/edit"):
        visitor.open(path)
        message = visitor.page.locator(".error-message")
        assert message.inner_text() == "no such address: bad\n    line 2\n    line 3"


def test_a_menu_closes_by_escape_and_by_a_click_elsewhere(enter: Enter, served: Served) -> None:
    tagged(served, "menu")
    visitor = enter()
    visitor.open("jobs?tag=menu")
    menu, summary = visitor.page.locator("#all-matching"), visitor.page.locator("#all-matching summary")
    summary.click()
    expect(menu).to_have_attribute("open", "")
    visitor.page.keyboard.press("Tab")
    visitor.page.keyboard.press("Escape")
    expect(menu).not_to_have_attribute("open", "")
    expect(summary).to_be_focused()
    summary.click()
    expect(menu).to_have_attribute("open", "")
    visitor.page.get_by_role("heading", level=1).click()
    expect(menu).not_to_have_attribute("open", "")
