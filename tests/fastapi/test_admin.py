"""The admin routes: who may do what, what it does, and what it answers."""

import contextlib
import json
import logging
import sqlite3
import threading
from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any, get_args

import pytest
from fastapi import Depends, FastAPI, Header, HTTPException, Security
from fastapi.security import APIKeyHeader, HTTPBasic, OAuth2PasswordBearer
from fastapi.testclient import TestClient
from pydantic import BaseModel

from durableq import AuditEntry, ConfigurationError, DurableQ, DurableQError, Job, JobState, errors
from durableq.encryption import KeyRing, new_key
from durableq.fastapi import Principal, admin_filters, admin_models, admin_reports, admin_router
from durableq.fastapi.admin_answers import in_http_words
from durableq.fastapi.admin_reports import COUNTED, JobCounts
from durableq.fastapi.principals import Role
from tests.support import eventually_sync

ACCOUNTS: dict[str, Principal | str | None] = {
    "rita": Principal("rita", "read"),
    "otto": Principal("otto", "operate"),
    "anna": Principal("anna"),
    "tess": "tess",
    "nobody-in-particular": None,
}
READS = [
    ("GET", "/admin/counts"),
    ("GET", "/admin/jobs"),
    ("GET", "/admin/jobs/{id}"),
    ("GET", "/admin/jobs/{id}/events"),
    ("GET", "/admin/count"),
    ("GET", "/admin/queues"),
    ("GET", "/admin/workers"),
    ("GET", "/admin/tasks"),
    ("GET", "/admin/dead-letters"),
    ("GET", "/admin/history"),
    ("GET", "/admin/audit"),
    ("GET", "/admin/system"),
]
OPERATIONS = [
    ("POST", "/admin/jobs/{id}/retry"),
    ("POST", "/admin/retry"),
    ("POST", "/admin/jobs/{id}/cancel"),
    ("POST", "/admin/cancel"),
    ("POST", "/admin/queues/pause"),
    ("POST", "/admin/queues/resume"),
]
MENDING = [("POST", "/admin/jobs/{id}/edit"), ("DELETE", "/admin/jobs/{id}"), ("POST", "/admin/delete")]
WRITES = OPERATIONS + MENDING
SYSTEM = ("GET", "/admin/system")
BODIES: dict[str, Any] = {
    "/admin/retry": {},
    "/admin/cancel": {},
    "/admin/queues/pause": {"queue": "default"},
    "/admin/queues/resume": {"queue": "default"},
    "/admin/delete": {"state": "dead"},
    "/admin/jobs/{id}/edit": {"args": {"email": "good@example.org"}},
}


def account(x_user: Annotated[str | None, Header()] = None) -> Principal | str | None:
    if x_user not in ACCOUNTS:
        raise HTTPException(401, "who are you?")
    return ACCOUNTS[x_user]


@dataclass
class Site:
    """An application with the admin routes, running, and its queue."""

    client: TestClient
    dq: DurableQ
    release: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        @self.dq.task(name="mail.send", max_attempts=1)
        def send(email: str, copies: int = 1) -> str:
            if not email.startswith("good"):
                raise ValueError(f"no such address: {email}")
            return f"{copies} sent"

        @self.dq.task(name="report.build", queue="slow", max_attempts=1)
        def build() -> None:
            raise LookupError("no data")

        @self.dq.task(name="wait")
        def wait() -> None:
            assert self.release.wait(30)

        self.send, self.build, self.wait = send, build, wait

    def request(self, method: str, path: str, *, who: str | None = "anna", **options: Any) -> Any:
        headers = options.pop("headers", {}) | ({} if who is None else {"X-User": who})
        return self.client.request(method, path, headers=headers, **options)

    def call(self, route: tuple[str, str], job_id: str, *, who: str | None = "anna", **options: Any) -> Any:
        method, path = route
        if path in BODIES:
            options.setdefault("json", BODIES[path])
        return self.request(method, path.replace("{id}", job_id), who=who, **options)

    def get(self, path: str, **options: Any) -> Any:
        response = self.request("GET", f"/admin{path}", **options)
        assert response.status_code == 200, response.text
        return response.json()

    def post(self, path: str, body: Any = None, **options: Any) -> Any:
        return self.request("POST", f"/admin{path}", **options | ({} if body is None else {"json": body}))

    def dead_letter(self, task: Callable[..., Any] | None = None, *args: Any) -> Job[Any]:
        job = self.dq.add_task_sync(task or self.send, *(args if task else ("bad@example.org",)))
        self.wait_for(job, "dead")
        return job

    def wait_for(self, job: Job[Any], state: str) -> None:
        eventually_sync(lambda: self.state_of(job) == state)

    def state_of(self, job: Job[Any]) -> str:
        return str(self.get(f"/jobs/{job.id}")["state"])

    def audit_trail(self, job: Job[Any]) -> list[AuditEntry]:
        """From the queue itself: the routes have none to show for a job that was deleted."""
        assert self.client.portal is not None
        return self.client.portal.call(self.dq.audit_trail, job.id)

    def audited(self, job: Job[Any]) -> list[tuple[str, str]]:
        return [(entry.who, entry.action) for entry in self.audit_trail(job)]


@contextlib.contextmanager
def serving(dq: DurableQ) -> Iterator[Site]:
    """An application with the admin routes of a queue, running."""
    app = FastAPI(lifespan=dq.lifespan)
    app.include_router(admin_router(dq, auth=Depends(account)), prefix="/admin")
    with TestClient(app) as client:
        running = Site(client, dq)
        yield running
        running.release.set()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    with serving(DurableQ(tmp_path / "app.db", threads=4, grace=0.5)) as running:
        yield running


@pytest.fixture(scope="module")
def common(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One application for tests whose requests are refused, or only look: making its routes takes a while."""
    with serving(DurableQ(tmp_path_factory.mktemp("common") / "app.db", threads=4, grace=0.5)) as running:
        yield running


# -- who may -------------------------------------------------------------------------------------------------


def test_without_auth_there_are_no_routes_and_the_log_says_how_to_enable_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    dq = DurableQ(tmp_path / "app.db")
    with caplog.at_level(logging.WARNING, "durableq.fastapi"):
        router = admin_router(dq)
    assert router.routes == []
    assert "admin_router(dq, auth=Depends(" in caplog.text
    app = FastAPI(lifespan=dq.lifespan)
    app.include_router(router, prefix="/admin")
    with TestClient(app) as client:
        assert [client.request(*route).status_code for route in READS + WRITES] == [404] * 21
    assert not [path for path in app.openapi()["paths"] if path.startswith("/admin")]


@pytest.mark.parametrize("route", READS + WRITES, ids=" ".join)
def test_a_stranger_gets_only_what_auth_answers(common: Site, route: tuple[str, str]) -> None:
    job = common.dead_letter()
    response = common.call(route, job.id, who=None)
    assert (response.status_code, response.json()) == (401, {"detail": "who are you?"})
    assert response.headers["cache-control"] == "no-store"
    assert common.state_of(job) == "dead"
    assert common.audited(job) == []


@pytest.mark.parametrize("route", READS, ids=" ".join)
def test_every_role_may_look(common: Site, route: tuple[str, str]) -> None:
    job = common.dead_letter()
    assert [common.call(route, job.id, who=who).status_code for who in ACCOUNTS] == [200] * len(ACCOUNTS)


@pytest.mark.parametrize(
    ("route", "who"), [(route, "rita") for route in WRITES] + [(route, "otto") for route in MENDING]
)
def test_a_role_that_does_not_reach_is_refused_and_changes_nothing(
    common: Site, route: tuple[str, str], who: str
) -> None:
    job = common.dead_letter()
    response = common.call(route, job.id, who=who)
    assert response.status_code == 403
    assert "needs the role" in response.json()["detail"]["message"]
    assert common.state_of(job) == "dead"
    assert common.audited(job) == []


@pytest.mark.parametrize(
    ("who", "name"), [("otto", "otto"), ("anna", "anna"), ("tess", "tess"), ("nobody-in-particular", "admin")]
)
def test_who_may_operate_can_retry_and_cancel_under_their_name(site: Site, who: str, name: str) -> None:
    one, many = site.dead_letter(), site.dead_letter(site.build)
    later = site.dq.add_task_sync(site.send.options(delay=3600), "bad@example.org")
    assert site.post(f"/jobs/{one.id}/retry", who=who).status_code == 200
    assert site.post("/retry", {"task": "report.build"}, who=who).json() == {"retried": 1}
    assert site.post(f"/jobs/{later.id}/cancel", who=who).json()["state"] == "cancelled"
    assert [site.audited(job) for job in (one, many, later)] == [
        [(name, "retry")],
        [(name, "retry")],
        [(name, "cancel")],
    ]


@pytest.mark.parametrize(("who", "name"), [("anna", "anna"), ("tess", "tess"), ("nobody-in-particular", "admin")])
def test_an_administrator_can_edit_and_delete_under_their_name(site: Site, who: str, name: str) -> None:
    edited, deleted = site.dead_letter(), site.dead_letter()
    assert site.call(MENDING[0], edited.id, who=who).status_code == 200
    response = site.call(MENDING[1], deleted.id, who=who)
    assert (response.status_code, response.content) == (204, b"")
    assert site.audited(edited) == [(name, "edit and retry")]
    assert site.audited(deleted) == [(name, "delete")]


@pytest.mark.parametrize("returned", [False, True, 0, {}, ["anna"], "", "x" * 201])
def test_what_auth_returns_is_never_guessed_at(tmp_path: Path, returned: object) -> None:
    dq = DurableQ(tmp_path / "app.db")
    app = FastAPI(lifespan=dq.lifespan)
    app.include_router(admin_router(dq, auth=Depends(lambda: returned)), prefix="/admin")
    with TestClient(app) as client, pytest.raises(ConfigurationError, match="expected"):
        client.get("/admin/counts")


@pytest.mark.parametrize(
    "auth",
    [
        account,
        "secret",
        Depends(),
        Depends(HTTPBasic()),
        Depends(APIKeyHeader(name="x-key")),
        Security(OAuth2PasswordBearer(tokenUrl="token")),
    ],
)
def test_an_auth_that_checks_nobody_is_refused_when_the_router_is_made(tmp_path: Path, auth: object) -> None:
    with pytest.raises(ConfigurationError, match=r"auth"):
        admin_router(DurableQ(tmp_path / "app.db"), auth=auth)


def test_auth_may_be_a_security_dependency_with_scopes_and_parameters_of_its_own(tmp_path: Path) -> None:
    def by_query(key: str) -> str:
        if key != "right":
            raise HTTPException(401)
        return "query"

    dq = DurableQ(tmp_path / "app.db")
    app = FastAPI(lifespan=dq.lifespan)
    app.include_router(admin_router(dq, auth=Security(by_query, scopes=["jobs"])))
    with TestClient(app) as client:
        assert client.get("/jobs", params={"key": "wrong"}).status_code == 401
        assert client.get("/jobs", params={"key": "right", "state": "dead"}).json() == {
            "jobs": [],
            "next_cursor": None,
            "is_cut_short": False,
        }
        assert client.get("/jobs", params={"key": "right", "state": "gone"}).status_code == 422


def test_a_principal_is_checked_when_it_is_made() -> None:
    with pytest.raises(ConfigurationError, match="read, operate, admin"):
        Principal("x", "root")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="1 to 200 characters"):
        Principal("")
    assert Principal("x").role == "admin"


def test_each_role_includes_those_below_it() -> None:
    roles: tuple[Role, ...] = get_args(Role)
    assert [[Principal("x", role).may(other) for other in roles] for role in roles] == [
        [True, False, False],
        [True, True, False],
        [True, True, True],
    ]


# -- from a browser ------------------------------------------------------------------------------------------


@pytest.mark.foreign_bug(91)
@pytest.mark.parametrize("route", WRITES, ids=" ".join)
@pytest.mark.parametrize("origin", ["cross-site", "same-site", "nonsense"])
def test_a_write_from_another_site_is_refused(common: Site, route: tuple[str, str], origin: str) -> None:
    job = common.dead_letter()
    response = common.call(route, job.id, headers={"Sec-Fetch-Site": origin})
    assert response.status_code == 403
    assert "other sites" in response.json()["detail"]["message"]
    assert common.state_of(job) == "dead"
    assert common.audited(job) == []


@pytest.mark.parametrize("origin", ["same-origin", "none"])
def test_a_write_from_the_same_origin_or_from_no_page_is_taken(site: Site, origin: str) -> None:
    headers = {"Sec-Fetch-Site": origin}
    assert site.call(OPERATIONS[0], site.dead_letter().id, headers=headers).status_code == 200
    assert site.call(MENDING[0], site.dead_letter().id, headers=headers).status_code == 200
    assert site.call(MENDING[1], site.dead_letter().id, headers=headers).status_code == 204


def test_a_read_is_answered_wherever_it_comes_from(common: Site) -> None:
    assert common.call(READS[0], "", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 200


@pytest.mark.parametrize("media_type", ["text/plain", "application/x-www-form-urlencoded", None])
@pytest.mark.parametrize("route", [route for route in WRITES if route[1] in BODIES], ids=" ".join)
def test_a_body_that_is_not_declared_as_json_is_refused(
    common: Site, route: tuple[str, str], media_type: str | None
) -> None:
    job = common.dead_letter()
    headers = {} if media_type is None else {"Content-Type": media_type}
    content = json.dumps(BODIES[route[1]]).encode()
    response = common.call(route, job.id, json=None, content=content, headers=headers)
    assert response.status_code == 415
    assert "application/json" in response.json()["detail"]["message"]
    assert common.state_of(job) == "dead"


def test_no_answer_is_kept_by_a_cache(site: Site) -> None:
    job = site.dead_letter()
    answers = [site.call(route, job.id) for route in READS]
    answers += [
        site.request("GET", "/admin/jobs/unknown"),
        site.request("GET", "/admin/jobs?limit=0"),
        site.post(f"/jobs/{job.id}/edit", {"args": {"email": 1}}),
        site.post(f"/jobs/{job.id}/cancel"),
        site.call(WRITES[0], job.id, headers={"Sec-Fetch-Site": "cross-site"}),
        site.call(MENDING[1], job.id, who="rita"),
        site.call(MENDING[1], job.id),
    ]
    assert [answer.status_code for answer in answers] == [*[200] * len(READS), 404, 422, 422, 409, 403, 403, 204]
    assert {answer.headers["cache-control"] for answer in answers} == {"no-store"}


async def test_an_endless_body_is_read_to_the_limit_only_whoever_sends_it(tmp_path: Path) -> None:
    dq = DurableQ(tmp_path / "app.db", max_payload_bytes=1_000)
    app = FastAPI()
    app.include_router(admin_router(dq, auth=Depends(account)), prefix="/admin")
    chunks, sent = 0, []

    async def receive() -> dict[str, Any]:
        nonlocal chunks
        chunks += 1
        return {"type": "http.request", "body": b" " * 16_384, "more_body": chunks < 1_000}

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    headers = [(b"content-type", b"application/json")]
    scope = {"type": "http", "method": "POST", "path": "/admin/retry", "query_string": b"", "headers": headers}
    await app(scope, receive, send)
    assert (sent[0]["status"], chunks) == (413, 5)


# -- looking -------------------------------------------------------------------------------------------------


def test_counts_name_every_state(site: Site) -> None:
    site.dead_letter()
    site.dead_letter(site.build)
    site.wait_for(site.dq.add_task_sync(site.send, "good@example.org"), "succeeded")
    site.dq.add_task_sync(site.send.options(delay=3600), "bad@example.org")
    site.wait_for(site.dq.add_task_sync(site.wait), "running")
    assert site.get("/counts") == {
        "blocked": 0,
        "scheduled": 1,
        "queued": 0,
        "running": 1,
        "succeeded": 1,
        "dead": 2,
        "cancelled": 0,
        "at_most": COUNTED,
    }


def test_the_model_of_counts_knows_every_state() -> None:
    assert list(JobCounts.model_fields) == [*(state.value for state in JobState), "at_most"]


def test_a_job_is_shown_with_its_arguments_attempts_and_audit_trail(site: Site) -> None:
    job = site.dead_letter()
    site.post(f"/jobs/{job.id}/retry", who="otto")
    eventually_sync(lambda: len(site.get(f"/jobs/{job.id}")["attempts"]) == 2)
    site.wait_for(job, "dead")
    shown = site.get(f"/jobs/{job.id}", who="rita")
    assert shown["id"] == job.id
    assert (shown["task"], shown["queue"], shown["attempt"], shown["max_attempts"]) == ("mail.send", "default", 1, 1)
    assert (shown["args"], shown["args_text"], shown["result"]) == ({"email": "bad@example.org"}, None, None)
    assert shown["error"] == {"type": "ValueError", "message": "no such address: bad@example.org"}
    assert datetime.fromisoformat(shown["created_at"]) == job.created_at
    assert [(one["attempt"], one["error_type"]) for one in shown["attempts"]] == [(1, "ValueError")] * 2
    assert "raise ValueError" in shown["attempts"][0]["traceback"]
    assert [(one["who"], one["action"], one["detail"]["was"]) for one in shown["audit"]] == [("otto", "retry", "dead")]


def test_a_result_is_shown_once_there_is_one(site: Site) -> None:
    job = site.dq.add_task_sync(site.send, "good@example.org", copies=2)
    site.wait_for(job, "succeeded")
    shown = site.get(f"/jobs/{job.id}")
    assert (shown["result"], shown["attempts"], shown["audit"]) == ("2 sent", [], [])


@pytest.mark.foreign_bug(96)
def test_a_list_shows_neither_arguments_nor_results(site: Site) -> None:
    site.dead_letter()
    site.wait_for(site.dq.add_task_sync(site.send, "good@example.org"), "succeeded")
    shown = site.get("/jobs")["jobs"]
    assert len(shown) == 2
    for job in shown:
        assert not {"args", "args_text", "args_json", "result", "result_json"} & job.keys()


def test_a_list_shows_the_jobs_that_match_every_filter(site: Site) -> None:
    sent, built = site.dead_letter(), site.dead_letter(site.build)
    fine = site.dq.add_task_sync(site.send, "good@example.org")
    site.wait_for(fine, "succeeded")

    def listed(**filters: object) -> set[str]:
        return {job["id"] for job in site.get("/jobs", params=filters)["jobs"]}

    assert listed() == {sent.id, built.id, fine.id}
    assert listed(state="dead") == {sent.id, built.id}
    assert listed(task="mail.send") == {sent.id, fine.id}
    assert listed(queue="slow") == {built.id}
    assert listed(error_type="ValueError") == {sent.id}
    assert listed(state="dead", task="mail.send") == {sent.id}
    assert listed(state="succeeded", queue="slow") == set()


def test_a_list_is_filtered_by_when_jobs_were_added_and_when_they_finished(site: Site) -> None:
    old, young = site.dead_letter(), site.dead_letter()

    def listed(**filters: datetime) -> set[str]:
        params = {name: moment.isoformat() for name, moment in filters.items()}
        return {job["id"] for job in site.get("/jobs", params=params)["jobs"]}

    finished = {job.id: datetime.fromisoformat(site.get(f"/jobs/{job.id}")["finished_at"]) for job in (old, young)}
    assert listed(created_before=young.created_at) == {old.id}
    assert listed(created_after=young.created_at) == {young.id}
    assert listed(finished_before=finished[young.id]) == {old.id}
    assert listed(finished_after=finished[young.id]) == {young.id}
    assert listed(finished_after=finished[old.id], finished_before=finished[young.id]) == {old.id}
    assert listed(created_after=datetime.now(UTC) + timedelta(hours=1)) == set()


def test_paging_visits_each_job_once_newest_first_while_others_are_added(site: Site) -> None:
    jobs = [site.dq.add_task_sync(site.send.options(delay=3600), "bad@example.org") for _ in range(7)]
    visited: list[str] = []
    sizes = []
    page: dict[str, Any] = {"next_cursor": None}
    while not visited or page["next_cursor"] is not None:
        cursor = {} if page["next_cursor"] is None else {"cursor": page["next_cursor"]}
        page = site.get("/jobs", params={"state": "scheduled", "limit": 3} | cursor)
        visited += [job["id"] for job in page["jobs"]]
        sizes.append(len(page["jobs"]))
        site.dq.add_task_sync(site.send.options(delay=3600), "bad@example.org")
    assert visited == [job.id for job in reversed(jobs)]
    assert sizes == [3, 3, 1]


def test_a_page_holds_50_jobs_unless_told_otherwise(site: Site) -> None:
    for _ in range(51):
        site.dq.add_task_sync(site.send.options(delay=3600), "bad@example.org")
    assert len(site.get("/jobs")["jobs"]) == 50
    assert len(site.get("/jobs?limit=200")["jobs"]) == 51


@pytest.mark.parametrize(
    "query",
    [
        "limit=0",
        "limit=201",
        "cursor=0",
        f"cursor={2**63}",
        "state=gone",
        f"task={'x' * 201}",
        f"queue={'x' * 201}",
        f"error_type={'x' * 201}",
        "task=",
        "created_after=2026-01-01T00:00:00",  # no time zone: nobody can say which moment that is
        "finished_before=yesterday",
    ],
)
def test_what_a_list_is_asked_for_is_bounded(common: Site, query: str) -> None:
    assert common.request("GET", f"/admin/jobs?{query}").status_code == 422


# -- mending -------------------------------------------------------------------------------------------------


def test_a_retried_dead_letter_runs_again_as_new(site: Site) -> None:
    job = site.dead_letter()
    response = site.post(f"/jobs/{job.id}/retry")
    assert response.status_code == 200
    assert (response.json()["state"], response.json()["attempt"]) == ("queued", 0)
    eventually_sync(lambda: len(site.get(f"/jobs/{job.id}")["attempts"]) == 2)


def test_a_scheduled_job_runs_now_when_it_is_retried(site: Site) -> None:
    job = site.dq.add_task_sync(site.send.options(delay=3600), "good@example.org")
    assert site.post(f"/jobs/{job.id}/retry").json()["state"] == "queued"
    site.wait_for(job, "succeeded")


def test_retry_by_filter_takes_the_oldest_dead_jobs_that_match_up_to_its_limit(site: Site) -> None:
    jobs = [site.dead_letter() for _ in range(3)]
    other = site.dead_letter(site.build)
    assert site.post("/retry", {"task": "mail.send", "limit": 2}, who="otto").json() == {"retried": 2}
    assert [site.audited(job) for job in jobs] == [[("otto", "retry")], [("otto", "retry")], []]
    assert site.audited(other) == []
    assert site.post("/retry", {"queue": "slow", "error_type": "LookupError"}).json() == {"retried": 1}
    assert site.post("/retry", {"queue": "slow", "error_type": "ValueError"}).json() == {"retried": 0}


def test_retry_by_filter_takes_ages(site: Site) -> None:
    old, young = site.dead_letter(), site.dead_letter()
    finished = site.get(f"/jobs/{young.id}")["finished_at"]
    assert site.post("/retry", {"finished_before": finished}).json() == {"retried": 1}
    assert site.post("/retry", {"created_after": young.created_at.isoformat()}).json() == {"retried": 1}
    assert len(site.audited(old)) == len(site.audited(young)) == 1


def test_retry_by_filter_leaves_jobs_alone_that_are_not_dead(site: Site) -> None:
    job = site.dq.add_task_sync(site.send.options(delay=3600), "good@example.org")
    assert site.post("/retry", {"task": "mail.send"}).json() == {"retried": 0}
    assert site.state_of(job) == "scheduled"


@pytest.mark.parametrize(
    "body",
    [
        {"limit": 0},
        {"limit": 1001},
        {"task": "x" * 201},
        {"taks": "mail.send"},
        {"state": "succeeded"},
        {"finished_before": "2026-01-01T00:00:00"},
        [],
        None,
    ],
)
def test_a_filter_that_cannot_be_meant_retries_nothing(common: Site, body: Any) -> None:
    job = common.dead_letter()
    headers = {"Content-Type": "application/json"}
    assert common.post("/retry", body, headers=headers).status_code == 422
    assert common.state_of(job) == "dead"


def test_an_edited_dead_letter_runs_with_its_new_arguments(site: Site) -> None:
    job = site.dead_letter()
    response = site.post(f"/jobs/{job.id}/edit", {"args": {"email": "good@example.org", "copies": "3"}})
    assert response.status_code == 200
    assert response.json()["state"] == "queued"
    site.wait_for(job, "succeeded")
    shown = site.get(f"/jobs/{job.id}")
    assert shown["result"] == "3 sent"  # "3" was made the number that the signature asks for
    assert shown["args"] == {"email": "good@example.org", "copies": 3}
    [entry] = shown["audit"]
    assert (entry["who"], entry["action"]) == ("anna", "edit and retry")
    assert entry["detail"]["args_before"] == {"email": "bad@example.org"}
    assert entry["detail"]["args_after"] == {"email": "good@example.org", "copies": 3}


@pytest.mark.parametrize(
    ("args", "argument", "says"),
    [
        ({"email": 3}, "email", "valid string"),
        ({"email": "good@example.org", "copies": "many"}, "copies", "valid integer"),
        ({}, "email", "missing"),
        ({"email": "good@example.org", "copie": 2}, "copie", "did you mean 'copies'"),
    ],
)
def test_edited_arguments_are_checked_against_the_signature_and_the_wrong_one_is_named(
    common: Site, args: dict[str, Any], argument: str, says: str
) -> None:
    job = common.dead_letter()
    response = common.post(f"/jobs/{job.id}/edit", {"args": args})
    assert response.status_code == 422
    [problem] = response.json()["detail"]
    assert (problem["type"], problem["loc"]) == ("invalid_arguments", ["body", "args", argument])
    assert says in problem["msg"]
    assert common.state_of(job) == "dead"
    assert common.audited(job) == []


@pytest.mark.parametrize(
    "body", ['{"args": {"email": "good", "copies": NaN}}', '{"args": {"email": "good", "copies": [1e999]}}']
)
def test_edited_arguments_that_json_would_change_are_refused(site: Site, body: str) -> None:
    @site.dq.task(name="loose", max_attempts=1)
    def loose(email: str, copies: Any = None) -> None:
        raise ValueError

    job = site.dead_letter(loose, "bad")
    headers = {"Content-Type": "application/json"}
    assert site.post(f"/jobs/{job.id}/edit", content=body, headers=headers).status_code == 422
    assert site.state_of(job) == "dead"


@pytest.mark.parametrize("body", [{}, {"args": []}, {"args": {"email": "good@example.org"}, "arg": {}}, [], "x"])
def test_an_edit_without_an_object_of_arguments_is_refused(common: Site, body: Any) -> None:
    job = common.dead_letter()
    assert common.post(f"/jobs/{job.id}/edit", body).status_code == 422
    assert common.state_of(job) == "dead"


def test_edited_arguments_over_the_limit_are_refused(tmp_path: Path) -> None:
    dq = DurableQ(tmp_path / "app.db", max_payload_bytes=1_000)
    with serving(dq) as site:
        job = site.dead_letter()
        response = site.post(f"/jobs/{job.id}/edit", {"args": {"email": "good" + "x" * 1_000}})
        assert response.status_code == 422
        assert "the limit is 1,000" in response.json()["detail"][0]["msg"]


@pytest.mark.parametrize("depth", [101, 400, 5_000, 200_000])
def test_arguments_nested_too_deep_are_refused_in_words(common: Site, depth: int) -> None:
    job = common.dead_letter()
    body = '{"args": {"email": ' + "[" * depth + "]" * depth + "}}"
    response = common.post(f"/jobs/{job.id}/edit", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code in (400, 422)
    if depth < 1_000:
        [problem] = response.json()["detail"]
        assert problem["loc"] == ["body", "args", "email"]
        assert "at most 100 levels deep" in problem["msg"]


def test_arguments_that_are_encrypted_with_a_key_of_others_cannot_be_edited(tmp_path: Path) -> None:
    def send(email: str) -> None: ...

    maker = DurableQ(tmp_path / "app.db", encryption=KeyRing({"theirs": new_key()}))
    maker.task(name="send")(send)
    job = maker.add_task_sync(send, "bad@example.org")
    dq = DurableQ(tmp_path / "app.db", worker=False)
    dq.task(name="send")(send)
    with serving(dq) as site:
        assert site.post(f"/jobs/{job.id}/cancel").status_code == 200
        response = site.call(MENDING[0], job.id)
        assert response.status_code == 409
        assert "encrypted with the key 'theirs'" in response.json()["detail"]["message"]


def forget_schemas(tmp_path: Path) -> None:
    """As if the app that added the jobs had never described its tasks."""
    with contextlib.closing(sqlite3.connect(tmp_path / "app.db", timeout=10)) as connection, connection:
        connection.execute("UPDATE durableq_tasks SET arguments_schema = NULL")


def test_arguments_of_a_task_that_this_app_does_not_know_cannot_be_edited(tmp_path: Path) -> None:
    maker = DurableQ(tmp_path / "app.db")

    @maker.task(name="elsewhere")
    def elsewhere(email: str) -> None: ...

    job = maker.add_task_sync(elsewhere, "bad@example.org")
    forget_schemas(tmp_path)
    dq = DurableQ(tmp_path / "app.db")
    with serving(dq) as site:
        assert site.post(f"/jobs/{job.id}/cancel").status_code == 200
        response = site.call(MENDING[0], job.id)
        assert response.status_code == 409
        assert "'elsewhere' is not known here" in response.json()["detail"]["message"]
        assert site.post(f"/jobs/{job.id}/retry").json()["state"] == "queued"


def damage(tmp_path: Path, job: Job[Any]) -> None:
    """What a failing disk may do to a row that is stored already."""
    with contextlib.closing(sqlite3.connect(tmp_path / "app.db", timeout=10)) as connection, connection:
        connection.execute("UPDATE durableq_jobs SET args = substr(args, 1, 9) WHERE id = ?", (job.id,))


def test_damaged_arguments_are_shown_as_they_are_stored(site: Site, tmp_path: Path) -> None:
    job = site.dead_letter()
    damage(tmp_path, job)
    shown = site.get(f"/jobs/{job.id}")
    assert (shown["args"], shown["args_text"]) == (None, '{"email":')


def test_damaged_arguments_can_be_replaced(site: Site, tmp_path: Path) -> None:
    job = site.dead_letter()
    damage(tmp_path, job)
    assert site.call(MENDING[0], job.id).status_code == 200
    site.wait_for(job, "succeeded")


def test_a_deleted_job_is_gone_and_its_audit_entry_stays(site: Site) -> None:
    job = site.dead_letter()
    assert site.call(MENDING[1], job.id).status_code == 204
    assert site.request("GET", f"/admin/jobs/{job.id}").status_code == 404
    assert site.get("/jobs")["jobs"] == []
    assert site.audited(job) == [("anna", "delete")]


# -- what does not work out ----------------------------------------------------------------------------------


@pytest.mark.parametrize("route", [route for route in READS + WRITES if "{id}" in route[1]], ids=" ".join)
def test_an_unknown_job_is_not_found(common: Site, route: tuple[str, str]) -> None:
    response = common.call(route, "00000000-0000-7000-8000-000000000000")
    assert response.status_code == 404
    assert "no job '00000000-" in response.json()["detail"]["message"]


@pytest.mark.parametrize("route", [route for route in READS + WRITES if "{id}" in route[1]], ids=" ".join)
def test_a_job_id_is_bounded(common: Site, route: tuple[str, str]) -> None:
    assert common.call(route, "x" * 201).status_code == 422


@pytest.mark.fault("F54")
def test_a_running_job_is_neither_retried_nor_edited_nor_deleted(site: Site) -> None:
    job = site.dq.add_task_sync(site.wait)
    site.wait_for(job, "running")
    responses = [site.call(route, job.id, json=None) for route in (OPERATIONS[0], MENDING[1])]
    responses.append(site.call(MENDING[0], job.id, json={"args": {}}))
    assert [(one.status_code, one.json()["detail"]["state"]) for one in responses] == [(409, "running")] * 3
    assert site.state_of(job) == "running"
    assert site.audited(job) == []


def test_a_succeeded_job_is_neither_retried_nor_cancelled(site: Site) -> None:
    job = site.dq.add_task_sync(site.send, "good@example.org")
    site.wait_for(job, "succeeded")
    responses = [site.call(route, job.id) for route in (OPERATIONS[0], OPERATIONS[2], MENDING[0])]
    assert [(one.status_code, one.json()["detail"]["state"]) for one in responses] == [(409, "succeeded")] * 3
    assert "it is succeeded" in responses[0].json()["detail"]["message"]
    assert site.audited(job) == []


def test_a_job_that_waits_is_not_deleted(site: Site) -> None:
    job = site.dq.add_task_sync(site.send.options(delay=3600), "good@example.org")
    response = site.call(MENDING[1], job.id)
    assert (response.status_code, response.json()["detail"]["state"]) == (409, "scheduled")
    assert site.state_of(job) == "scheduled"


@pytest.mark.parametrize("route", [route for route in READS + WRITES if route != SYSTEM], ids=" ".join)
def test_without_a_running_queue_the_answer_is_503_and_when_to_try_again(
    tmp_path: Path, route: tuple[str, str]
) -> None:
    dq = DurableQ(tmp_path / "app.db")
    app = FastAPI()
    app.include_router(admin_router(dq, auth=Depends(account)), prefix="/admin")
    response = Site(TestClient(app), dq).call(route, "some-job")
    assert response.status_code == 503
    assert response.headers["retry-after"] == "1"
    assert response.headers["cache-control"] == "no-store"
    assert "is not running" in response.json()["detail"]["message"]


def test_a_write_whose_database_was_taken_away_is_never_answered_as_done(site: Site, tmp_path: Path) -> None:
    job = site.dead_letter()
    (tmp_path / "app.db").rename(tmp_path / "away.db")
    for route in OPERATIONS[0], MENDING[0], MENDING[1]:
        response = site.call(route, job.id)
        assert (response.status_code, response.headers["retry-after"]) == (503, "1")
        assert "deleted or replaced" in response.json()["detail"]["message"]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (errors.StorageBusy("busy"), 503),
        (errors.StorageFull("full"), 503),
        (errors.StorageUnusable("unusable"), 503),
        (errors.OutcomeUnknown("unknown"), 500),
        (errors.ConfigurationError("defect"), None),
    ],
)
def test_only_what_is_known_not_to_be_done_is_called_so(error: DurableQError, status: int | None) -> None:
    answer = in_http_words(error)
    assert (answer and answer.status_code) == status
    assert ("Retry-After" in ((answer and answer.headers) or {})) == (status == 503)


# -- documentation -------------------------------------------------------------------------------------------


def test_openapi_describes_every_route_with_tag_summary_models_and_errors(tmp_path: Path) -> None:
    app = FastAPI()
    app.include_router(admin_router(DurableQ(tmp_path / "app.db"), auth=Depends(account)), prefix="/admin")
    schema = app.openapi()
    described = {(method.upper(), path): one for path, item in schema["paths"].items() for method, one in item.items()}
    assert described.keys() == {(method, path.replace("{id}", "{job_id}")) for method, path in READS + WRITES}
    for (method, path), operation in described.items():
        assert operation["tags"] == ["durableq"]
        assert operation["summary"]
        assert operation["description"]
        answers = operation["responses"]
        if method == "DELETE" or path.startswith("/admin/queues/"):
            assert "content" not in answers["204"]
        elif path.endswith("/events"):
            assert "event: end" in answers["200"]["content"]["text/event-stream"]["example"]
        else:
            assert set(answers["200"]["content"]["application/json"]["schema"]) == {"$ref"}
        expected = {"401", "403", "503"}
        expected |= {"404"} if "{job_id}" in path else set()
        expected |= {"409"} if "{job_id}" in path and method != "GET" else set()
        expected |= {"500"} if method != "GET" else set()
        expected |= {"413", "415"} if "requestBody" in operation else set()
        assert expected <= answers.keys()
        assert ("422" in answers) == ("parameters" in operation or "requestBody" in operation)
        for status in expected - {"401"}:
            problem = answers[status]["content"]["application/json"]["schema"]
            assert set(problem) == {"$ref"} or "detail" in problem["properties"]
        assert "Retry-After" in answers["503"]["headers"]


def test_openapi_shows_an_example_of_everything_sent_and_answered(tmp_path: Path) -> None:
    app = FastAPI()
    app.include_router(admin_router(DurableQ(tmp_path / "app.db"), auth=Depends(account)), prefix="/admin")
    schema = app.openapi()
    operations = [one for item in schema["paths"].values() for one in item.values()]
    bodies = [one["requestBody"] for one in operations if "requestBody" in one]
    bodies += [answer for one in operations for status, answer in one["responses"].items() if status != "422"]
    shown = [one["content"].get("application/json", {"schema": {}})["schema"] for one in bodies if "content" in one]
    names = {one["$ref"].rpartition("/")[2] for one in shown if "$ref" in one}
    assert len(names) > 20
    assert {name for name in names if not schema["components"]["schemas"][name].get("examples")} == set()


SHOWN = [
    one
    for module in (admin_reports, admin_models, admin_filters)
    for one in vars(module).values()
    if isinstance(one, type) and issubclass(one, BaseModel) and one.__module__ == module.__name__
]


@pytest.mark.parametrize("model", SHOWN)
def test_every_example_in_the_documentation_is_one(model: type[BaseModel]) -> None:
    for one in model.model_json_schema().get("examples", []):
        assert model.model_validate(one).model_dump(mode="json", exclude_unset=True) == one


def test_openapi_lists_every_filter_with_its_bounds(tmp_path: Path) -> None:
    app = FastAPI()
    app.include_router(admin_router(DurableQ(tmp_path / "app.db"), auth=Depends(account)))
    parameters = {one["name"]: one["schema"] for one in app.openapi()["paths"]["/jobs"]["get"]["parameters"]}
    names = {"state", "task", "queue", "error_type", "error_text", "tag", "arg", "cursor", "limit"}
    moments = {f"{what}_{when}" for what in ("created", "finished") for when in ("after", "before")}
    assert names | moments <= parameters.keys()
    assert (parameters["limit"]["minimum"], parameters["limit"]["maximum"]) == (1, 200)
    assert parameters["limit"]["default"] == 50
