"""What holds for every page: who may see it, where its links lead, that nothing foreign runs in it, and forms."""

import html
import logging
import re
from pathlib import Path
from typing import Any

import pytest
from fastapi import Depends, FastAPI, HTTPException, Request
from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.responses import RedirectResponse, Response
from starlette.testclient import TestClient

from durableq import ConfigurationError, DurableQ
from durableq.dashboard import dashboard
from durableq.dashboard.assets import ASSETS, VERSION, address
from durableq.dashboard.forms import Form, is_token, new_token
from durableq.dashboard.refusals import Refused
from durableq.dashboard.site import NAVIGATION, Message
from tests.dashboard.conftest import Application, Page
from tests.dashboard.plain_browser import account

PATHS = [f"/{screen.path}" for screen in NAVIGATION]


# -- who may ---------------------------------------------------------------------------------------------------


def test_without_auth_there_are_no_pages_and_the_log_says_so(database: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert dashboard(DurableQ(database)).routes == []
    assert "has no pages" in caplog.text


def test_what_authenticates_nobody_is_refused(database: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"auth=Depends"):
        dashboard(DurableQ(database), auth="secret")


@pytest.mark.parametrize("path", [*PATHS, "/live"])
def test_a_stranger_is_answered_by_the_applications_own_authentication(site: Application, path: str) -> None:
    answer = site.get(path, who=None)
    assert (answer.status_code, answer.json()) == (401, {"detail": "who are you?"})
    assert answer.headers["cache-control"] == "no-store"


@pytest.mark.parametrize("path", PATHS)
def test_who_may_only_read_sees_every_page_and_is_told_so(site: Application, path: str) -> None:
    site.add(site.send, "good@example.org")
    page = site.page(path, who="rita")
    assert "Read only" in page.text
    assert not [form for form in page.forms if form.method == "post" and form.buttons]
    assert "Read only" not in site.page(path, who="otto").text


@pytest.mark.parametrize("path", ["/queues", "/jobs"])
def test_who_may_do_more_has_the_buttons_for_it(site: Application, path: str) -> None:
    site.add(site.send, "good@example.org")
    assert [form for form in site.page(path, who="otto").forms if form.method == "post" and form.buttons]


def test_the_server_refuses_what_a_reader_sends_all_the_same(site: Application) -> None:
    site.add(site.send, "good@example.org")
    form = site.page("/queues").form("/queues/pause")
    answer = site.send_form(form, who="rita")
    assert answer.status_code == 403
    page = Page(answer.text)
    assert "You may not do this" in page.text
    assert "operate" in page.text
    assert not site.call(site.dq.queues)[0].is_paused


# -- where it is mounted ---------------------------------------------------------------------------------------


def mounted(dq: DurableQ, how: str) -> tuple[FastAPI, str]:
    """An application with a dashboard, and the path at which a browser finds it."""
    inner = FastAPI(lifespan=dq.lifespan)
    inner.include_router(dashboard(dq, auth=Depends(account)), prefix="" if how == "bare" else "/a b/{tenant}")
    if how in ("bare", "prefix"):
        return inner, "" if how == "bare" else "/a%20b/blue"
    outer = FastAPI(lifespan=dq.lifespan)
    outer.mount("/inner", inner)
    return outer, "/inner/a%20b/blue"


@pytest.mark.parametrize("root_path", ["", "/proxy"])
@pytest.mark.parametrize("how", ["bare", "prefix", "mounted"])
def test_all_addresses_of_a_page_lead_to_the_dashboard_wherever_it_is(database: Path, how: str, root_path: str) -> None:
    app, base = mounted(DurableQ(database, worker=False), how)
    with TestClient(app, root_path=root_path) as client:
        # Some proxies take their own prefix away; links have it all the same. Starlette mounts nothing behind those.
        asked = base if how != "mounted" else root_path + base
        page = Page(client.get(f"{asked}/queues", headers={"X-User": "anna"}).text)
    outside = root_path + base
    assert {link for link in page.links if not link.startswith("#")} == {
        f"{outside}/{screen.path}" for screen in NAVIGATION
    }
    assert all(file.startswith(f"{outside}/static/") for file in page.files)
    assert (page.body["data-live-url"] or "").startswith(f"{outside}/live")


def test_the_cookie_of_the_forms_belongs_to_the_dashboard_alone(site: Application) -> None:
    cookie = site.get().headers["set-cookie"]
    assert "Path=/durableq/" in cookie
    assert "HttpOnly" in cookie
    assert "SameSite=lax" in cookie
    assert "Secure" not in cookie
    secure = TestClient(site.client.app, base_url="https://testserver")
    assert "Secure" in secure.get("/durableq/system", headers={"X-User": "anna"}).headers["set-cookie"]


# -- what runs in it -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS)
def test_nothing_runs_in_a_page_but_its_own_files(site: Application, path: str) -> None:
    answer = site.get(path)
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son[a-z]+=|javascript:", answer.text)
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["cache-control"] == "no-store"


def test_every_file_that_pages_name_is_served_and_kept(site: Application) -> None:
    for file in site.page().files:
        answer = site.client.get(file)
        assert answer.status_code == 200
        assert "immutable" in answer.headers["cache-control"]


def test_the_modules_that_scripts_load_are_served_beside_them() -> None:
    for name, asset in ASSETS.items():
        for imported in re.findall(rb'from "\./([^"]+)"', asset.content):
            assert imported.decode() in ASSETS, name


def test_a_file_of_another_version_is_not_kept(site: Application) -> None:
    answer = site.client.get("/durableq/static/000000000000/app.css")
    assert (answer.status_code, answer.headers["cache-control"]) == (200, "no-store")


@pytest.mark.parametrize("name", ["../site.py", "..%2fsite.py", "htmx-LICENSE.txt", "base.html", "%2e%2e%2fforms.py"])
def test_no_other_file_is_served(site: Application, name: str) -> None:
    assert site.get(f"/static/{VERSION}/{name}").status_code == 404


def test_a_template_that_names_a_file_which_is_not_there_is_an_error() -> None:
    with pytest.raises(KeyError, match=r"no static file is named 'app\.cs'"):
        address("app.cs")


@pytest.mark.parametrize("library", ["htmx", "uplot"])
def test_what_others_wrote_comes_with_its_licence(library: str) -> None:
    vendor = Path(__file__).parents[2] / "durableq" / "dashboard" / "static" / "vendor"
    assert list(vendor.glob(f"{library}-[0-9]*.min.js"))
    assert "Permission" in (vendor / f"{library}-LICENSE.txt").read_text()


# -- forms -----------------------------------------------------------------------------------------------------


def a_form(site: Application) -> Any:
    site.add(site.send, "good@example.org")
    return site.page("/queues").form("/queues/pause")


def is_paused(site: Application) -> bool:
    return site.call(site.dq.queues)[0].is_paused


def test_a_form_without_the_token_of_the_browser_is_refused(site: Application) -> None:
    form = a_form(site)
    for token in ("", "x", new_token()):
        answer = site.send_form(form, csrf=token)
        assert answer.status_code == 403
        assert "out of date" in Page(answer.text).text
    site.client.cookies.clear()
    assert site.send_form(form).status_code == 403
    assert not is_paused(site)


def test_a_form_from_another_site_is_refused(site: Application) -> None:
    form = a_form(site)
    for headers in ({"Sec-Fetch-Site": "cross-site"}, {"Origin": "https://evil.example"}):
        answer = site.request("POST", form.action, data=dict(form.fields), headers=headers)
        assert answer.status_code == 403
        assert "text/html" in answer.headers["content-type"]
    assert not is_paused(site)


def test_a_body_that_is_no_form_is_refused(site: Application) -> None:
    form = a_form(site)
    assert site.request("POST", form.action, json=dict(form.fields)).status_code == 415
    for body in (b"queue=%ff", b"\xff", b"&".join([b"a=1"] * 3000)):
        headers = {"Content-Type": "application/x-www-form-urlencoded"}
        assert site.request("POST", form.action, content=body, headers=headers).status_code == 400
    assert not is_paused(site)


def test_a_body_is_not_read_beyond_what_arguments_may_take(site: Application) -> None:
    form = a_form(site)
    answer = site.send_form(form, queue="x" * 8_000_000)
    assert answer.status_code == 413
    assert "Nothing was done" in answer.text


def test_pages_that_are_open_stay_good_when_another_is_opened(site: Application) -> None:
    form = a_form(site)
    site.page("/system")
    assert site.send_form(form).status_code == 303


@pytest.mark.parametrize("planted", ["planted-by-somebody", "x" * 31 + ">"])
def test_a_planted_cookie_does_not_get_into_a_page(site: Application, planted: str) -> None:
    a_form(site)
    name = site.get().headers["set-cookie"].partition("=")[0]
    site.client.cookies.clear()
    answer = site.get("/queues", headers={"Cookie": f"{name}={planted}"})
    assert planted not in html.unescape(answer.text)
    assert not is_token(planted)
    assert is_token(new_token())


@pytest.mark.parametrize(("text", "number"), [("", 7), ("0", 0), (" 1,204 ", 1204)])
def test_a_number_of_a_form_is_read_as_people_write_it(text: str, number: int) -> None:
    assert Form((("count", text),)).number("count", 7) == number


@pytest.mark.parametrize("text", ["-1", "1.5", "abc", "\u0661", "9" * 19])
def test_what_is_no_number_is_refused(text: str) -> None:
    with pytest.raises(Refused, match=r"not a number"):
        Form((("count", text),)).number("count")


def test_a_field_may_be_there_several_times() -> None:
    form = Form((("id", "a"), ("other", "b"), ("id", "c")))
    assert (form.texts("id"), form.text("id"), form.text("none", "-")) == (["a", "c"], "a", "-")


# -- what a page says ------------------------------------------------------------------------------------------


def test_a_page_says_only_our_own_words_after_an_action(site: Application) -> None:
    where = site.send_form(a_form(site)).headers["location"].removeprefix("/durableq")
    assert "The queue “mail” was paused" in site.page(where).text
    for query in ("said=<b>hello</b>", "said=", "said=paused2&n=<i>"):
        assert 'class="flash' not in site.page(f"/queues?{query}").html


def test_a_link_that_somebody_else_made_says_nothing(site: Application) -> None:
    where = site.send_form(a_form(site)).headers["location"].removeprefix("/durableq")
    for forged in ("/jobs?said=delete&n=123456789", "/jobs?said=delete.&n=3", f"{where}&n=9", where[:-1] + "z"):
        assert 'class="flash' not in site.page(forged).html
    site.client.cookies.clear()
    assert 'class="flash' not in site.page(where).html


def test_a_message_is_in_the_plural_for_many() -> None:
    message = Message("One job is queued again.", "{n} jobs are queued again.")
    assert [message.about(number) for number in (1, 2, 1204, None)] == [
        "One job is queued again.",
        "2 jobs are queued again.",
        "1,204 jobs are queued again.",
        "0 jobs are queued again.",
    ]


def test_none_is_a_warning_in_its_own_words() -> None:
    message = Message("One job is queued again.", "{n} jobs are queued again.", none="None was.")
    assert (message.about(0), message.kind_about(0)) == ("None was.", "warn")
    assert (message.about(2), message.kind_about(2)) == ("2 jobs are queued again.", "good")


# -- errors ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/nothing", "/jobs/1/nothing", "/static/x"])
def test_an_address_that_there_is_not_is_a_page_with_the_menu(site: Application, path: str) -> None:
    answer = site.get(path)
    assert answer.status_code == 404
    assert answer.headers["content-security-policy"]
    page = Page(answer.text)
    assert "There is no such page" in page.text
    assert "/durableq/jobs" in page.links
    assert site.get(path, who=None).status_code == 401


def test_the_page_of_unknown_addresses_gives_way_to_routes_of_the_application(database: Path) -> None:
    app = FastAPI()
    app.include_router(dashboard(DurableQ(database), auth=Depends(account)))
    app.get("/own")(lambda: "mine")
    answer = TestClient(app).get("/own", headers={"X-User": "anna"})
    assert (answer.status_code, answer.json()) == (200, "mine")


@pytest.mark.parametrize("path", ["//evil.example/", "///evil.example//", "/%5Cevil.example/"])
def test_no_address_leads_to_another_site(database: Path, path: str) -> None:
    app = FastAPI()
    app.include_router(dashboard(DurableQ(database), auth=Depends(account)))
    answer = TestClient(app).get(f"http://testserver{path}", headers={"X-User": "anna"}, follow_redirects=False)
    assert not answer.headers.get("location", "").startswith(("//", "/\\", "http"))


def test_no_link_leads_to_another_host_whatever_the_path_before_the_dashboard_is(database: Path) -> None:
    dq = DurableQ(database, worker=False)
    app = FastAPI(lifespan=dq.lifespan)
    app.include_router(dashboard(dq, auth=Depends(account)), prefix="/{tenant:path}/q")
    with TestClient(app) as client:
        page = Page(client.get("http://testserver//evil.example/q/queues", headers={"X-User": "anna"}).text)
    assert "/evil.example/q/jobs" in page.links
    assert not [link for link in [*page.links, *page.files] if link.startswith("//")]


@pytest.mark.parametrize("root_path", ["", "/api"])
def test_the_mount_without_its_slash_leads_to_the_overview_behind_a_proxy_too(
    site: Application, root_path: str
) -> None:
    client = TestClient(site.client.app, root_path=root_path)
    answer = client.get("/durableq", headers={"X-User": "anna"}, follow_redirects=False)
    assert answer.headers["location"] == f"{root_path}/durableq/"
    slash = client.get("/durableq/jobs/?state=dead", headers={"X-User": "anna"}, follow_redirects=False)
    assert slash.headers["location"] == f"{root_path}/durableq/jobs?state=dead"


def test_who_sends_a_form_through_a_proxy_that_hides_the_host_is_told_what_to_set(site: Application) -> None:
    form = a_form(site)
    answer = site.request("POST", form.action, data=dict(form.fields), headers={"Origin": "https://queue.example"})
    assert "proxy_set_header Host" in Page(answer.text).text


def test_an_address_that_is_not_right_is_explained_without_repeating_it(site: Application) -> None:
    answer = site.get("/system?cursor=<script>")
    assert answer.status_code == 400
    assert "<script>" not in answer.text
    assert "To the overview" in answer.text


def test_an_address_of_an_action_is_explained_to_who_opens_it(site: Application) -> None:
    answer = site.get("/queues/pause")
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
    assert "use the buttons of the page" in answer.text
    assert answer.headers["content-security-policy"]


def test_a_queue_that_does_not_run_is_a_page_with_an_id_for_the_log(
    database: Path, caplog: pytest.LogCaptureFixture
) -> None:
    app = FastAPI()
    app.include_router(dashboard(DurableQ(database), auth=Depends(account)), prefix="/durableq")
    answer = TestClient(app).get("/durableq/queues", headers={"X-User": "anna"})
    assert answer.status_code == 503
    assert answer.headers["retry-after"].isdigit()
    found = re.search(r"under the id ([0-9a-f]{16})", answer.text)
    assert found is not None
    assert found[1] in caplog.text


@pytest.mark.parametrize("defect", [RuntimeError("the secret is 42"), ConfigurationError("the secret is 42")])
def test_a_defect_is_a_page_that_tells_nothing_of_the_inside(
    site: Application, defect: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken() -> None:
        raise defect

    monkeypatch.setattr(site.dq, "queues", broken)
    answer = site.get_broken("/queues")
    assert answer.status_code == 500
    assert "secret" not in answer.text
    found = re.search(r"under the id ([0-9a-f]{16})", answer.text)
    assert found is not None
    assert found[1] in caplog.text


HTML = {"Accept": "text/html,application/xhtml+xml"}


@pytest.mark.parametrize("status", [401, 403])
def test_a_stranger_with_a_browser_reads_a_page_with_the_status_and_headers_of_auth(
    database: Path, status: int
) -> None:
    def refuse() -> None:
        raise HTTPException(status, "who <are> you?", {"WWW-Authenticate": "Basic"})

    app = FastAPI()
    app.include_router(dashboard(DurableQ(database), auth=Depends(refuse)), prefix="/durableq")
    client = TestClient(app)
    for answer in (client.get("/durableq/jobs", headers=HTML), client.post("/durableq/bulk", headers=HTML)):
        assert (answer.status_code, answer.headers["www-authenticate"]) == (status, "Basic")
        assert answer.headers["content-security-policy"]
        assert Page(answer.text).links == ["/durableq/"]
        assert "who &lt;are&gt; you?" in answer.text
    assert client.get("/durableq/jobs").json() == {"detail": "who <are> you?"}


@pytest.mark.parametrize("kind", [401, HTTPException, AnyHTTPException])
def test_what_an_application_answers_strangers_itself_stays_its_own(database: Path, kind: Any) -> None:
    app = FastAPI()

    @app.exception_handler(kind)
    async def sign_in(request: Request, error: Exception) -> Response:
        return RedirectResponse("/login", 303)

    app.include_router(dashboard(DurableQ(database), auth=Depends(account)), prefix="/durableq")
    answer = TestClient(app).get("/durableq/jobs", headers=HTML, follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "/login")
