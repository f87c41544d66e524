"""What the admin routes show, and to whom: secrets, headers, errors, origins. Seen from outside, over HTTP."""

import contextlib
import json
import logging
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.testclient import TestClient
from pydantic import SecretStr

from durableq import DurableQ, Job, current_job
from durableq.fastapi import Principal, admin_router
from durableq.fastapi.admin_answers import HEADERS
from durableq.redaction import HIDDEN, MASKED
from durableq.secret_names import Secret
from tests.support import eventually_sync

PASSWORD = "hunter2-0f-the-mail"
LICENCE = "licence nobody sees"
DSN = f"smtp://app:{PASSWORD}@mail.example.org"


class Broken(Exception):
    """A defect of the application."""


def account(request: Request) -> Principal:
    match request.headers.get("x-user"):
        case None:
            raise HTTPException(401, "who are you?")
        case "broken":
            raise Broken(f"password={PASSWORD}")
        case name:
            return Principal(name, "read" if name == "rita" else "admin")


@dataclass
class Site:
    """An application with the admin routes, running, and what its one task can do."""

    client: TestClient
    dq: DurableQ

    def __post_init__(self) -> None:
        @self.dq.task(name="mail.send", max_attempts=1)
        def send(
            to: str, password: str, licence: Annotated[str, Secret], server: str, key: Annotated[SecretStr, Secret]
        ) -> dict[str, str]:
            current_job().log(f"using {licence}")
            current_job().progress(1, 2, f"at {server}")
            if to == "bad":
                raise ValueError(f"no such address: {to}, with {password!r} and {licence} at {server}")
            assert (password, licence, server, key.get_secret_value()) == (PASSWORD, LICENCE, DSN, "key-of-mail")
            return {"token": PASSWORD, "sent": f"to {to} under {licence}"}

        @self.dq.task(name="token.make", max_attempts=1)
        def make() -> Annotated[str, Secret]:
            return LICENCE

        self.send, self.make = send, make

    def add(self, to: str) -> Job[Any]:
        headers = {"authorization": f"Bearer {PASSWORD}", "trace": f"00-1;token={PASSWORD}", "tenant": "acme"}
        task = self.send.options(headers=headers, tags=("mail",))
        return self.dq.add_task_sync(task, to, PASSWORD, LICENCE, DSN, SecretStr("key-of-mail"))

    def ended(self, job: Job[Any]) -> Any:
        """Wait for the job's end, and return what is shown of it."""
        eventually_sync(lambda: self.shown(job)["state"] in ("dead", "succeeded"))
        return self.shown(job)

    def shown(self, job: Job[Any]) -> Any:
        return self.client.get(f"/admin/jobs/{job.id}", headers={"x-user": "rita"}).json()

    def edit(self, job: Job[Any], args: Any) -> Any:
        return self.client.post(f"/admin/jobs/{job.id}/edit", json={"args": args}, headers={"x-user": "anna"})

    def stored(self, job: Job[Any]) -> dict[str, Any]:
        assert self.client.portal is not None
        stored: Job[Any] = self.client.portal.call(self.dq.get, job.id)
        return stored.args


def site_on(path: Path, **options: Any) -> tuple[FastAPI, DurableQ]:
    dq = DurableQ(path, grace=0.5, **options)
    app = FastAPI(lifespan=dq.lifespan)
    app.include_router(admin_router(dq, auth=Depends(account)), prefix="/admin")
    return app, dq


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    app, dq = site_on(tmp_path / "app.db")
    with TestClient(app, raise_server_exceptions=False) as client:
        yield Site(client, dq)


# -- secrets -------------------------------------------------------------------------------------------------


def test_a_dead_letter_is_shown_without_its_secrets(site: Site) -> None:
    shown = site.ended(site.add("bad"))
    assert shown["args"] == {
        "to": "bad",
        "password": HIDDEN,
        "licence": HIDDEN,
        "server": f"smtp://app:{MASKED}@mail.example.org",
        "key": HIDDEN,
    }
    assert shown["headers"] == {"authorization": HIDDEN, "trace": f"00-1;token={MASKED}", "tenant": "acme"}
    says = f"no such address: bad, with '{MASKED}' and {MASKED} at smtp://app:{MASKED}@mail.example.org"
    assert shown["error"] == {"type": "ValueError", "message": says}
    assert says in shown["attempts"][0]["traceback"]
    assert "raise ValueError" in shown["attempts"][0]["traceback"]
    assert [line["message"] for line in shown["logs"]] == [f"using {MASKED}"]
    assert shown["progress"]["message"] == f"at smtp://app:{MASKED}@mail.example.org"
    assert shown["tags"] == ["mail"]


def test_a_result_is_shown_without_its_secrets(site: Site) -> None:
    assert site.ended(site.add("good"))["result"] == {"token": HIDDEN, "sent": f"to good under {MASKED}"}
    assert site.ended(site.dq.add_task_sync(site.make))["result"] == HIDDEN


def test_what_a_failure_says_is_stored_without_secrets(site: Site, tmp_path: Path) -> None:
    site.ended(site.add("bad"))
    with contextlib.closing(sqlite3.connect(tmp_path / "app.db")) as connection:
        stored = repr(connection.execute("SELECT * FROM durableq_attempts").fetchall())
        stored += repr(connection.execute("SELECT error_message FROM durableq_jobs").fetchall())
    assert "no such address" in stored
    assert PASSWORD not in stored
    assert LICENCE not in stored


def test_an_edit_that_sends_placeholders_back_keeps_what_is_stored(site: Site) -> None:
    job = site.add("bad")
    shown = site.ended(job)
    assert site.edit(job, shown["args"] | {"to": "good"}).status_code == 200
    shown = site.ended(job)
    assert shown["state"] == "succeeded"  # the task has looked at each secret
    [entry] = shown["audit"]
    assert entry["detail"]["args_before"] == shown["args"] | {"to": "bad"}
    assert entry["detail"]["args_after"] == shown["args"]


def test_secrets_that_a_job_had_before_it_was_edited_stay_hidden(site: Site) -> None:
    job = site.add("bad")
    shown = site.ended(job)
    site.edit(job, shown["args"] | {"password": "other-one-1", "licence": "other-two-2"})
    eventually_sync(lambda: len(site.shown(job)["attempts"]) == 2)
    everything = json.dumps(site.shown(job))
    assert not [secret for secret in (PASSWORD, LICENCE, "other-one-1", "other-two-2") if secret in everything]


def test_a_placeholder_in_the_wrong_place_is_refused_and_changes_nothing(site: Site) -> None:
    job = site.add("bad")
    shown = site.ended(job)
    response = site.edit(job, shown["args"] | {"to": HIDDEN})
    assert (response.status_code, response.json()["detail"][0]["loc"]) == (422, ["body", "args", "to"])
    assert site.stored(job)["to"] == "bad"
    assert site.stored(job)["password"] == PASSWORD


@pytest.mark.parametrize("argument", ["password", "licence", "key"])
def test_a_secret_that_does_not_fit_is_not_quoted(site: Site, argument: str) -> None:
    job = site.add("bad")
    shown = site.ended(job)
    response = site.edit(job, shown["args"] | {argument: ["new-c4n4ry"]})
    assert response.status_code == 422
    [problem] = response.json()["detail"]
    assert problem["loc"] == ["body", "args", argument]
    assert "it is a secret, so no more is said" in problem["msg"]  # what came may be too short to be found in a text
    assert "c4n4ry" not in response.text


def test_what_does_not_fit_is_not_sent_back(site: Site) -> None:
    for body in ({"args": ["c4n4ry"]}, {"args": {}, "\ud800": "c4n4ry"}, ["c4n4ry"]):
        content = json.dumps(body)
        headers = {"x-user": "anna", "content-type": "application/json"}
        response = site.client.post("/admin/jobs/some/edit", content=content, headers=headers)
        assert response.status_code == 422
        assert {"type", "loc", "msg"} == response.json()["detail"][0].keys()
        assert "c4n4ry" not in response.text


def test_as_long_as_nobody_knows_the_task_every_argument_is_a_secret(site: Site, tmp_path: Path) -> None:
    job = site.ended(site.add("bad"))
    with contextlib.closing(sqlite3.connect(tmp_path / "app.db", timeout=10)) as connection, connection:
        connection.execute("UPDATE durableq_tasks SET arguments_schema = NULL")
    app, _ = site_on(tmp_path / "app.db", worker=False)
    with TestClient(app) as client:
        shown = client.get(f"/admin/jobs/{job['id']}", headers={"x-user": "anna"}).json()
    assert set(shown["args"].values()) == {HIDDEN}
    assert LICENCE not in json.dumps(shown)


def test_damaged_arguments_of_a_task_with_secrets_are_not_shown(site: Site, tmp_path: Path) -> None:
    job = site.add("bad")
    site.ended(job)
    with contextlib.closing(sqlite3.connect(tmp_path / "app.db", timeout=10)) as connection, connection:
        connection.execute("UPDATE durableq_jobs SET args = substr(args, 9) WHERE id = ?", (job.id,))
    shown = site.shown(job)
    assert (shown["args"], shown["args_text"]) == (None, HIDDEN)


def test_a_list_shows_no_secrets(site: Site) -> None:
    site.ended(site.add("bad"))
    listed = site.client.get("/admin/jobs", headers={"x-user": "rita"})
    assert listed.json()["jobs"][0]["error"]["message"].startswith("no such address")
    assert not [secret for secret in (PASSWORD, LICENCE) if secret in listed.text]


def test_log_lines_show_no_secrets(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, "durableq"):
        site.ended(site.add("bad"))
        eventually_sync(lambda: "job is dead" in caplog.text)
    assert "no such address" in caplog.text
    assert not [secret for secret in (PASSWORD, LICENCE) if secret in caplog.text]


# -- every answer --------------------------------------------------------------------------------------------


def test_every_answer_carries_the_headers_of_all_whoever_gives_it(site: Site) -> None:
    job = site.ended(site.add("bad"))["id"]
    asked: dict[int, tuple[str, str, str | None, dict[str, Any]]] = {
        200: ("GET", f"/jobs/{job}", "rita", {}),
        401: ("GET", "/counts", None, {}),
        403: ("DELETE", f"/jobs/{job}", "rita", {}),
        404: ("GET", "/jobs/unknown", "anna", {}),
        405: ("PUT", f"/jobs/{job}", "anna", {}),
        409: ("POST", f"/jobs/{job}/cancel", "anna", {}),
        415: ("POST", "/retry", "anna", {"content": b"{}"}),
        413: ("POST", "/retry", "anna", {"json": "x" * 5_000_000}),
        422: ("GET", "/jobs?limit=0", "anna", {}),
        400: ("POST", "/retry", "anna", {"content": b"\xff", "headers": {"content-type": "application/json"}}),
        500: ("GET", "/counts", "broken", {}),
    }
    for status, (method, path, who, options) in asked.items():
        headers = options.pop("headers", {}) | ({} if who is None else {"x-user": who})
        response = site.client.request(method, f"/admin{path}", headers=headers, **options)
        assert response.status_code == status, response.text
        assert {name: response.headers[name] for name in HEADERS} == HEADERS
        assert response.headers["content-type"] == "application/json"
        assert not [name for name in response.headers if name.startswith("access-control")]


def test_a_method_that_a_route_does_not_have_is_refused_in_the_shape_of_all_errors(site: Site) -> None:
    for method in ("PUT", "PATCH", "OPTIONS"):
        headers = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
        response = site.client.request(method, "/admin/retry", headers=headers)
        assert (response.status_code, response.headers["allow"]) == (405, "POST")
        assert response.json() == {"detail": {"message": "Method Not Allowed"}}


def test_a_defect_is_answered_without_its_inside_and_logged_under_the_id_of_the_answer(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    app, _ = site_on(tmp_path / "app.db")
    with TestClient(app) as client, pytest.raises(Broken):  # those who track errors still hear of it
        client.get("/admin/counts", headers={"x-user": "broken"})
    with TestClient(app, raise_server_exceptions=False) as client:
        response = client.get("/admin/counts", headers={"x-user": "broken"})
    problem = response.json()["detail"]
    assert problem.keys() == {"message", "id"}
    assert "Broken" not in response.text
    assert "password" not in response.text
    [line] = [record.getMessage() for record in caplog.records if problem["id"] in record.getMessage()]
    assert "Broken: password=***" in line


def test_trouble_with_the_storage_is_answered_without_paths_and_logged_under_an_id(
    site: Site, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    job = site.ended(site.add("bad"))["id"]
    (tmp_path / "app.db").rename(tmp_path / "away.db")
    response = site.client.post(f"/admin/jobs/{job}/retry", headers={"x-user": "anna"})
    problem = response.json()["detail"]
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    assert str(tmp_path) not in response.text
    [line] = [record.getMessage() for record in caplog.records if problem["id"] in record.getMessage()]
    assert str(tmp_path) in line


def test_a_detail_shows_the_latest_lines_only_however_many_there_are(site: Site) -> None:
    @site.dq.task(name="chatty", max_attempts=2, retry_on=ValueError)
    def chatty() -> None:
        for number in range(700):
            current_job().log(f"{current_job().attempt}: {number}")
        raise LookupError if current_job().attempt == 2 else ValueError

    job = site.dq.add_task_sync(chatty)
    eventually_sync(lambda: site.shown(job)["state"] == "scheduled")
    site.client.post(f"/admin/jobs/{job.id}/retry", headers={"x-user": "anna"})
    lines = [line["message"] for line in site.ended(job)["logs"]]
    assert (len(lines), lines[0], lines[-1]) == (1_000, "1: 400", "2: 699")


# -- who asks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("origin", "status"),
    [
        ("https://evil.example", 403),
        ("http://testserver.evil.example", 403),
        ("null", 403),
        ("http://[", 403),
        ("http://testserver", 200),
        (None, 200),
    ],
)
def test_a_browser_too_old_for_sec_fetch_site_writes_from_its_own_origin_only(
    site: Site, origin: str | None, status: int
) -> None:
    job = site.ended(site.add("bad"))["id"]
    headers = {"x-user": "anna"} | ({} if origin is None else {"origin": origin})
    assert site.client.post(f"/admin/jobs/{job}/retry", headers=headers).status_code == status


def test_sec_fetch_site_decides_where_there_is_one_and_a_proxy_may_have_changed_the_host(site: Site) -> None:
    job = site.ended(site.add("bad"))["id"]
    headers = {"x-user": "anna", "origin": "https://public.example", "sec-fetch-site": "same-origin"}
    assert site.client.post(f"/admin/jobs/{job}/retry", headers=headers).status_code == 200


def test_names_in_the_audit_trail_hold_no_control_characters(site: Site) -> None:
    job = site.add("bad")
    site.ended(job)
    headers = {"x-user": "\x1b[31manna\x1b[0m\x07"}
    assert site.client.post(f"/admin/jobs/{job.id}/retry", headers=headers).status_code == 200
    assert [entry["who"] for entry in site.shown(job)["audit"]] == ["anna"]
    assert Principal("a\r\nb\u202e").name == "a b"


def test_what_was_stored_under_a_hostile_name_is_shown_clean(site: Site) -> None:
    job = site.add("bad")
    site.ended(job)
    assert site.client.portal is not None
    site.client.portal.call(lambda: site.dq.retry(job.id, who="eve\x1b[2J\nroot"))
    assert [entry["who"] for entry in site.shown(job)["audit"]] == ["eve root"]
