"""What each field of an admin answer holds, and what is hidden in it, field by field."""

import contextlib
import logging
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import pytest
from fastapi import Depends, FastAPI, HTTPException, Query, Request
from fastapi.security import APIKeyQuery
from fastapi.testclient import TestClient
from pydantic import BaseModel
from starlette.types import Message, Scope

from durableq import ConfigurationError, DurableQ, Job, JobState, Secret, errors
from durableq.fastapi import Principal, admin_router
from durableq.fastapi.admin_answers import HEADERS, Answer, in_http_words
from durableq.fastapi.admin_filters import RetryMatching
from durableq.fastapi.admin_models import ENTRIES, LINES, JobDetail, JobList, JobSummary
from durableq.fastapi.principals import refuse_other_sites
from durableq.models import Attempt, AuditEntry, JobError, JobExtras, JobFilter, LogLine, Page, Progress
from durableq.redaction import HIDDEN, MASKED, Redactor

CANARY = "c4n4ry-5ea1"
MOMENT = datetime(2026, 1, 1, tzinfo=UTC)


def job(**fields: Any) -> Job[Any]:
    given: dict[str, Any] = {
        "id": "id", "task": "t", "queue": "q", "priority": 3, "state": JobState.DEAD, "args_json": '{"a":1}',
        "max_attempts": 5, "created_at": MOMENT, "run_at": MOMENT, "attempt": 2, "crashes": 1, "started_at": MOMENT,
        "finished_at": MOMENT,
    }  # fmt: skip
    return Job(**given | fields)


def redactor_of(of: Job[Any], *other: Any) -> Redactor:
    return Redactor(
        {"phrase"}, [one["phrase"] for one in (of.args, *other) if isinstance(one, dict) and "phrase" in one]
    )


def detail(of: Job[Any], **parts: Any) -> dict[str, Any]:
    given: dict[str, Any] = {"attempts": [], "logs": [], "audit": [], "redactor_of": lambda job, *other: Redactor()}
    return JobDetail.of(of, **given | parts).model_dump()


def attempt(number: int = 1, text: str = "boom") -> Attempt:
    return Attempt(
        lease_no=number, attempt=number, worker_id=7, started_at=MOMENT, finished_at=MOMENT + timedelta(seconds=1),
        error_type="E", error_message=f"message {text}", traceback=f"traceback {text}",
    )  # fmt: skip


# -- what is shown -------------------------------------------------------------------------------------------


def test_a_summary_shows_the_job_without_arguments_and_result() -> None:
    shown = job(
        result_json='"r"',
        error=JobError("E", f"no {CANARY}"),
        extras=JobExtras(tags=("a",), progress=Progress(1, 2, f"at {CANARY}"), cancel_requested=True, expires_at=0),
    )
    assert JobSummary.shown(shown, Redactor((), [CANARY])).model_dump() == {
        "id": "id", "task": "t", "queue": "q", "priority": 3, "state": JobState.DEAD, "attempt": 2, "max_attempts": 5,
        "crashes": 1, "created_at": MOMENT, "run_at": MOMENT, "started_at": MOMENT, "finished_at": MOMENT,
        "expires_at": datetime(1970, 1, 1, tzinfo=UTC), "deadline_at": None, "tags": ["a"],
        "progress": {"done": 1, "total": 2, "message": f"at {MASKED}"}, "cancel_requested": True,
        "error": {"type": "E", "message": f"no {MASKED}"},
    }  # fmt: skip
    plain = JobSummary.shown(job(extras=JobExtras(progress=Progress(1))), Redactor()).model_dump()
    assert (plain["error"], plain["progress"]) == (None, {"done": 1, "total": None, "message": None})


def test_a_list_has_a_redactor_for_each_job() -> None:
    shown = [
        job(id=name, args_json=f'{{"phrase":"{name}-word"}}', error=JobError("E", "a-word b-word")) for name in "ab"
    ]
    page = JobList.of(Page(shown, 7), redactor_of)
    assert [one.error.message for one in page.jobs if one.error] == [f"{MASKED} b-word", f"a-word {MASKED}"]
    assert (page.next_cursor, [one.id for one in page.jobs]) == (7, ["a", "b"])


def test_a_detail_shows_all_and_hides_what_is_secret_everywhere() -> None:
    audit = AuditEntry(
        at=MOMENT, who="ann\nbob", action="edit and retry", job_id="id",
        detail={"args_before": {"phrase": CANARY}, "args_after": {"phrase": "new-word"}, "was": "dead"},
    )  # fmt: skip
    shown = detail(
        job(args_json='{"a":1}', result_json=f'{{"x":"{CANARY} new-word"}}', extras=JobExtras(headers={"h": CANARY})),
        attempts=[attempt(1, CANARY)],
        logs=[LogLine(lease_no=1, at=MOMENT, message=f"said new-word {CANARY}")],
        audit=[audit],
        redactor_of=redactor_of,
    )
    assert (shown["args"], shown["args_text"]) == ({"a": 1}, None)
    assert shown["result"] == {"x": f"{MASKED} {MASKED}"}
    assert shown["headers"] == {"h": MASKED}
    assert shown["attempts"] == [
        {
            "attempt": 1, "worker_id": 7, "started_at": MOMENT, "finished_at": MOMENT + timedelta(seconds=1),
            "error_type": "E", "error_message": f"message {MASKED}", "traceback": f"traceback {MASKED}",
        }
    ]  # fmt: skip
    assert shown["logs"] == [{"lease_no": 1, "at": MOMENT, "message": f"said {MASKED} {MASKED}"}]
    assert shown["audit"] == [
        {
            "at": MOMENT, "who": "ann bob", "action": "edit and retry",
            "detail": {"args_before": {"phrase": HIDDEN}, "args_after": {"phrase": HIDDEN}, "was": "dead"},
        }
    ]  # fmt: skip


def test_where_a_secret_is_not_known_nothing_of_what_the_job_said_is_shown() -> None:
    of = job(extras=JobExtras(progress=Progress(1, 2, f"with {CANARY}")))
    unknowing = Redactor(knows_all=False)
    shown = detail(
        of,
        logs=[LogLine(lease_no=1, at=MOMENT, message=f"said {CANARY}")],
        redactor_of=lambda job, *other: unknowing,
    )
    assert [line["message"] for line in shown["logs"]] == [HIDDEN]
    assert shown["progress"] == {"done": 1, "total": 2, "message": HIDDEN}
    listed = JobSummary.shown(of, unknowing).progress
    assert listed is not None
    assert listed.message == HIDDEN


def test_the_type_of_an_error_and_tags_are_shown_without_secrets() -> None:
    of = job(error=JobError(type=f"Error_{CANARY}", message="m"), extras=JobExtras(tags=(f"of {CANARY}",)))
    shown = JobSummary.shown(of, Redactor((), [CANARY]))
    assert shown.error is not None
    assert (shown.error.type, shown.tags) == (f"Error_{MASKED}", [f"of {MASKED}"])
    tried = replace(attempt(), error_type=f"Error_{CANARY}")
    found = detail(job(), attempts=[tried], redactor_of=lambda job, *other: Redactor((), [CANARY]))["attempts"]
    assert found[0]["error_type"] == f"Error_{MASKED}"


def test_the_latest_entries_are_shown() -> None:
    shown = detail(
        job(),
        attempts=[attempt(number) for number in range(ENTRIES + 1)],
        logs=[LogLine(lease_no=1, at=MOMENT, message=str(number)) for number in range(LINES + 1)],
        audit=[AuditEntry(at=MOMENT, who=str(n), action="x", job_id="id", detail={}) for n in range(ENTRIES + 1)],
    )
    assert [one["attempt"] for one in shown["attempts"]] == list(range(1, ENTRIES + 1))
    assert [one["message"] for one in shown["logs"]] == [str(number) for number in range(1, LINES + 1)]
    assert [one["who"] for one in shown["audit"]] == [str(number) for number in range(1, ENTRIES + 1)]


@pytest.mark.parametrize("damaged", ["not JSON", '{"a": NaN}', "[1]", '"text"', '{"a": "\\ud800"}', "[" * 100_000])
def test_damaged_arguments_are_shown_as_text_unless_some_may_be_secret(damaged: str) -> None:
    shown = detail(job(args_json=damaged))
    assert (shown["args"], shown["args_text"]) == (None, damaged)
    hidden = detail(job(args_json=damaged), redactor_of=lambda of, *other: Redactor({"phrase"}))
    assert (hidden["args"], hidden["args_text"]) == (None, HIDDEN)


def test_damaged_results_and_audits_are_shown_as_far_as_they_can_be() -> None:
    entry = AuditEntry(at=MOMENT, who="x", action="x", job_id="id", detail={"args_before": "not JSON", "n": [1]})
    shown = detail(job(result_json="not JSON"), audit=[entry])
    assert shown["result"] is None
    assert shown["audit"][0]["detail"] == {"args_before": "not JSON", "n": [1]}
    assert detail(job(result_json=None))["result"] is None
    assert detail(job(result_json="0"))["result"] == 0


def test_a_retry_of_many_becomes_a_filter_of_dead_jobs() -> None:
    where = RetryMatching.model_validate({"task": "t", "tag": "x", "created_after": MOMENT.isoformat(), "limit": 5})
    assert where.as_filter() == JobFilter(state=JobState.DEAD, task="t", tag="x", created_after=MOMENT)


# -- who may -------------------------------------------------------------------------------------------------


def test_a_name_has_one_to_200_characters() -> None:
    assert Principal("x" * 200).name == "x" * 200
    for name in ("", " \n", "x" * 201):
        with pytest.raises(ConfigurationError, match="1 to 200 characters"):
            Principal(name)


# -- over HTTP -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    path: Path = tmp_path_factory.mktemp("admin") / "app.db"
    dq = DurableQ(path, worker=False)

    @dq.task(name="work")
    def work(number: int = 0, place: str = "", password: str = "") -> None: ...

    @dq.task(name="vault")
    def vault(phrase: Annotated[str, Secret]) -> None: ...

    app = FastAPI(lifespan=dq.lifespan)
    app.include_router(admin_router(dq, auth=Depends(lambda: "ann")), prefix="/admin")
    with TestClient(app) as client:
        dq.add_task_sync(work.options(tags=["red", "blue"], queue="mail"), place="a:b")
        dq.add_task_sync(work.options(tags=["blue"]), number=1, place="c")
        dq.add_task_sync(vault, "open sesame")
        yield client


@pytest.mark.parametrize(
    ("query", "found"),
    [
        *(("tag=red", 1), ("tag=blue", 2), ("tag=green", 0), ("queue=mail", 1), ("task=work", 2), ("task=other", 0)),
        *(("state=queued", 3), ("state=dead", 0), ("error_type=ValueError", 0), ("error_text=boom", 0)),
        *(("arg=place:a:b", 1), ("arg=place:b", 0), ("arg=place:c&arg=number:1", 1), ("arg=place:c&arg=number:0", 0)),
        *(("arg.place=a:b", 1), ("arg.place=c&arg=number:1", 1), ("arg.place=c&arg.number=0", 0)),
        *(("created_after=2000-01-01T00:00:00Z", 3), ("created_after=2999-01-01T00:00:00Z", 0)),
        *(("created_before=2999-01-01T00:00:00Z", 3), ("created_before=2000-01-01T00:00:00Z", 0)),
        *(("finished_after=2000-01-01T00:00:00Z", 0), ("finished_before=2999-01-01T00:00:00Z", 0)),
    ],
)
def test_a_list_is_narrowed_by_each_filter(client: TestClient, query: str, found: int) -> None:
    answer = client.get(f"/admin/jobs?{query}")
    assert (answer.status_code, len(answer.json()["jobs"])) == (200, found)


def test_what_does_not_fit_is_refused_in_fastapis_shape_without_what_came(client: TestClient) -> None:
    answer = client.get(f"/admin/jobs?limit={CANARY}&state={CANARY}")
    assert answer.status_code == 422
    assert CANARY not in answer.text
    problems = answer.json()["detail"]
    assert [set(problem) for problem in problems] == [{"type", "loc", "msg"}] * 2
    assert {tuple(problem["loc"]): problem["type"] for problem in problems} == {
        ("query", "state"): "enum",
        ("query", "limit"): "int_parsing",
    }
    assert any("valid integer" in problem["msg"] for problem in problems)


@pytest.mark.parametrize(
    ("query", "argument", "why"),
    [
        ("arg=password:x", "password", "its name says that it is secret"),
        ("arg=place:a&arg=place.pin:x", "place.pin", "its name says that it is secret"),
        ("arg=place.value:x", "place.value", "what stands in a 'value' may be secret, by the name beside it"),
        ("arg=phrase:x&task=vault", "phrase", "task 'vault' declares it secret, or nothing is known about it"),
        ("arg=phrase:x", "phrase", "it is, or may be, a secret of task 'vault'; give the task you mean, too"),
    ],
)
def test_a_filter_by_a_secret_is_refused_and_says_which(
    client: TestClient, query: str, argument: str, why: str
) -> None:
    """Its answer would tell whether a guess is right."""
    answer = client.get(f"/admin/jobs?{query}")
    message = f"jobs cannot be looked for by argument {argument!r}: {why}"
    problem = {"type": "filter_refused", "loc": ["query", "arg", argument], "msg": message}
    assert (answer.status_code, answer.json()) == (422, {"detail": [problem]})


@pytest.mark.parametrize(
    ("query", "name", "message"),
    [
        ("stat=dead", "stat", "there is no parameter 'stat'; there are arg, created_after, created_before, "),
        ("state=dead&nonsense=", "nonsense", "there is no parameter 'nonsense'; there are arg, "),
        ("x" * 300 + "=1", "x" * 200, "there is no parameter"),
        ("arg.a b=1", "arg", "expected arg.name=value"),
        ("arg.=1", "arg", "expected arg.name=value"),
        ("&".join(f"arg.a{number}=1" for number in range(6)), "arg", "expected at most 5 arguments, got 6"),
        ("arg=place:a&arg.place=b", "arg", "argument 'place' is asked for twice"),
    ],
)
@pytest.mark.parametrize("route", ["jobs", "count"])
def test_a_parameter_that_is_unknown_is_refused_and_does_not_widen_a_filter(
    client: TestClient, route: str, query: str, name: str, message: str
) -> None:
    answer = client.get(f"/admin/{route}?{query}")
    [problem] = answer.json()["detail"]
    assert (answer.status_code, problem["loc"]) == (422, ["query", name])
    assert problem["msg"].startswith(message)


@pytest.mark.parametrize("name", ["task", "queue", "error_type", "error_text", "tag", "arg"])
def test_the_character_at_which_the_storage_ends_a_text_is_refused(client: TestClient, name: str) -> None:
    given = "place:\0" if name == "arg" else "\0x"
    answer = client.get("/admin/count", params={name: given})
    assert answer.status_code == 422, answer.text
    assert name == "arg" or "without the character NUL (U+0000)" in answer.text
    body = {"arguments": {"place": "\0"}} if name == "arg" else {name: "\0x"}
    assert client.post("/admin/retry", json=body).status_code == 422


def test_what_the_auth_dependency_takes_from_the_query_is_known(tmp_path: Path) -> None:
    class Given(BaseModel):
        tenant: str = ""

    def account(key: Annotated[str, Depends(APIKeyQuery(name="api-key"))], given: Annotated[Given, Query()]) -> str:
        return key + given.tenant

    dq = DurableQ(tmp_path / "app.db", worker=False)
    app = FastAPI(lifespan=dq.lifespan)
    app.include_router(admin_router(dq, auth=Depends(account)), prefix="/admin")
    with TestClient(app) as client:
        assert client.get("/admin/jobs?api-key=right&tenant=acme&limit=1").status_code == 200
        assert client.get("/admin/count?api-key=right&tenants=acme").status_code == 422


def test_an_argument_is_asked_for_once(client: TestClient) -> None:
    answer = client.get("/admin/jobs?arg=place:a&arg=place:b")
    message = "argument 'place' is asked for twice; a job has one value of it"
    problem = {"type": "filter_refused", "loc": ["query", "arg"], "msg": message}
    assert (answer.status_code, answer.json()) == (422, {"detail": [problem]})


def test_an_argument_that_another_task_keeps_secret_may_be_looked_for_where_it_is_none(client: TestClient) -> None:
    assert client.get("/admin/jobs?arg=phrase:x&task=work").json()["jobs"] == []


def test_what_may_be_sent_and_what_is_answered_has_an_example(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    assert document["paths"]["/admin/jobs"]["get"]["tags"] == ["durableq"]
    schemas = document["components"]["schemas"]
    for name in ("RetryMatching", "CancelMatching", "DeleteMatching", "QueueMeant", "EditedArguments", "JobDetail"):
        assert schemas[name]["examples"], f"{name} has no example"
    for name in ("RetryMatching", "CancelMatching", "DeleteMatching", "QueueMeant"):
        assert schemas[name]["additionalProperties"] is False


def test_the_place_of_what_does_not_fit_is_shown_to_a_length(client: TestClient) -> None:
    answer = client.post("/admin/retry", json={"x" * 300: 1})
    assert answer.status_code == 422
    assert answer.json()["detail"][0]["loc"] == ["body", "x" * 200]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Content-Type": "application/json; charset=utf-8"}, 200),
        ({"Content-Type": "Application/JSON"}, 200),
        ({"Content-Type": "application/json ;x=y"}, 200),
        ({"Content-Type": "text/plain"}, 415),
        ({"Content-Type": "application/jsonp"}, 415),
        ({"Content-Type": ""}, 415),
        ({}, 415),
        ({"Content-Type": "application/json", "Origin": "http://testserver"}, 200),
        ({"Content-Type": "application/json", "Origin": "http://TESTSERVER"}, 200),
        ({"Content-Type": "application/json", "Origin": "http://elsewhere"}, 403),
        ({"Content-Type": "application/json", "Origin": "null"}, 403),
        ({"Content-Type": "application/json", "Origin": "http://[broken"}, 403),
        ({"Content-Type": "application/json", "Origin": "http://testserver", "Host": ""}, 403),
        ({"Content-Type": "application/json", "Origin": "http://elsewhere", "Sec-Fetch-Site": "same-origin"}, 200),
        ({"Content-Type": "application/json", "Sec-Fetch-Site": "none"}, 200),
        ({"Content-Type": "application/json", "Sec-Fetch-Site": "same-site"}, 403),
        ({"Content-Type": "application/json", "Origin": "http://testserver", "Sec-Fetch-Site": "cross-site"}, 403),
    ],
)
def test_a_write_is_taken_as_json_and_from_this_site_only(
    client: TestClient, headers: Mapping[str, str], status: int
) -> None:
    answer = client.post("/admin/retry", content=b"{}", headers=dict(headers))
    assert answer.status_code == status, answer.text


def test_of_two_content_types_none_is_taken(client: TestClient) -> None:
    for types in (("application/json", "text/plain"), ("text/plain", "application/json"), ("application/json",) * 2):
        answer = client.post("/admin/retry", content=b"{}", headers=[("Content-Type", one) for one in types])
        assert answer.status_code == 415


@pytest.mark.parametrize(
    ("hosts", "is_taken"), [(["us"], True), (["US"], True), ([], False), (["us", "us"], False), (["us", "them"], False)]
)
async def test_a_page_is_of_this_site_only_where_the_request_names_its_one_host(
    hosts: Sequence[str], is_taken: bool
) -> None:
    headers = [(b"origin", b"http://us"), *((b"host", host.encode()) for host in hosts)]
    request = Request({"type": "http", "headers": headers})
    with contextlib.nullcontext() if is_taken else pytest.raises(HTTPException, match="not taken from other sites"):
        await refuse_other_sites(request)


def small_admin(path: Path) -> FastAPI:
    """An application whose jobs may have arguments of one byte."""
    dq = DurableQ(path, worker=False, max_payload_bytes=1)
    app = FastAPI(lifespan=dq.lifespan)
    app.include_router(admin_router(dq, auth=Depends(lambda: "ann")), prefix="/admin")
    return app


def test_a_body_of_exactly_the_limit_is_read_and_no_longer_one(tmp_path: Path) -> None:
    limit = 64 * 1024 + 4
    with TestClient(small_admin(tmp_path / "app.db")) as client:
        for size, status in ((limit, 200), (limit + 1, 413)):
            answer = client.post(
                "/admin/retry", content=b"{}".ljust(size), headers={"Content-Type": "application/json"}
            )
            assert answer.status_code == status
    assert answer.json() == {"detail": {"message": "expected at most 65,540 bytes"}}


@pytest.mark.parametrize(("options", "kept"), [({}, b"no-store"), ({"may_differ": True}, b"public")])
async def test_an_answer_has_all_headers_and_its_own_only_where_they_may_differ(
    options: dict[str, bool], kept: bytes
) -> None:
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    answer = Answer(send, HEADERS, **options)
    await answer({"type": "http.response.start", "status": 200, "headers": [(b"cache-control", b"public")]})
    await answer({"type": "http.response.body", "body": b"x"})
    headers = dict(sent[0]["headers"])
    assert headers.pop(b"cache-control") == kept
    assert headers == {
        name.lower().encode(): value.encode() for name, value in HEADERS.items() if name != "Cache-Control"
    }
    assert sent[1] == {"type": "http.response.body", "body": b"x"}


async def test_an_answer_that_has_begun_is_not_begun_again_when_it_cannot_be_sent(tmp_path: Path) -> None:
    begun: list[int] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        if message["type"] != "http.response.start":
            raise ConnectionResetError("gone")
        begun.append(message["status"])

    scope: Scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET", "scheme": "http",
        "path": "/admin/counts", "raw_path": b"/admin/counts", "root_path": "", "query_string": b"", "headers": [],
        "client": ("127.0.0.1", 1), "server": ("testserver", 80),
    }  # fmt: skip
    app = small_admin(tmp_path / "app.db")
    async with app.router.lifespan_context(app):
        with pytest.raises(ConnectionResetError):
            await app(scope, receive, send)
    assert begun == [200]


def test_of_a_task_that_nobody_here_knows_every_argument_and_the_result_is_a_secret(tmp_path: Path) -> None:
    path = tmp_path / "app.db"
    other = DurableQ(path, worker=False)

    @other.task(name="gone")
    def gone(word: str, number: int) -> None: ...

    stored = other.add_task_sync(gone, CANARY, 7)
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        connection.execute(
            "UPDATE durableq_jobs SET result = ?, error_type = 'E', error_message = ?", ('"fine"', f"no {CANARY}")
        )
        connection.execute("UPDATE durableq_tasks SET arguments_schema = NULL")
    dq = DurableQ(path, worker=False)
    app = FastAPI(lifespan=dq.lifespan)
    app.include_router(admin_router(dq, auth=Depends(lambda: "ann")), prefix="/admin")
    with TestClient(app) as client:
        shown = client.get(f"/admin/jobs/{stored.id}").json()
    assert (shown["args"], shown["result"]) == ({"word": HIDDEN, "number": HIDDEN}, HIDDEN)
    assert shown["error"]["message"] == f"no {MASKED}"


# -- errors --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (errors.OutcomeUnknown("inside"), 500, "it may or may not have been done, look before you repeat"),
        (errors.QueueNotRunning("inside"), 503, "the queue is not running in this application"),
        (errors.StorageBusy("inside"), 503, "the database is busy, nothing was done; try again"),
        (errors.StorageFull("inside"), 503, "the disk is full, nothing was done"),
        (
            errors.FileReplaced("inside"),
            503,
            "the database file was deleted or replaced while it was open; the latest writes may be lost, look again",
        ),
        (errors.StorageError("inside"), 503, "the database cannot be used now, nothing was done"),
    ],
)
def test_trouble_inside_is_told_in_plain_words_with_an_id_under_which_the_log_has_the_rest(
    error: errors.DurableQError, status: int, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR, "durableq.fastapi"):
        answer = in_http_words(error)
    assert answer is not None
    problem: Any = answer.detail
    assert (answer.status_code, problem["message"]) == (status, message)
    assert len(problem["id"]) == 16
    assert problem["id"] in caplog.text
    assert f"{type(error).__name__}: inside" in caplog.text
    assert (answer.headers is not None and "Retry-After" in answer.headers) is (status == 503)


def test_what_is_not_there_and_what_the_state_forbids_is_told_without_secrets() -> None:
    missing = in_http_words(errors.JobNotFound("id-1"))
    conflict = in_http_words(errors.JobConflict("id-1", JobState.RUNNING, wanted=(JobState.DEAD,), action="retry"))
    answers: list[HTTPException] = [one for one in (missing, conflict) if one is not None]
    assert [one.status_code for one in answers] == [404, 409]
    details: list[Any] = [one.detail for one in answers]
    assert all("id-1" in one["message"] for one in details)
    assert details[1]["state"] == JobState.RUNNING
    assert in_http_words(errors.ConfigurationError("x")) is None
