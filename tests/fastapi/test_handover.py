"""A request's jobs are on disk before its response starts, or not at all.

One suite over both ways to hand them over: at the bottom of FastAPI's exit stack, and by a ``yield`` dependency of
function scope. Where the two differ, the test says so and asserts both.
"""

import asyncio
import contextlib
import json
import logging
import resource
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, Depends, FastAPI, HTTPException, Request, Response, Security
from fastapi.exceptions import DependencyScopeError
from fastapi.middleware.cors import CORSMiddleware
from fastapi.middleware.gzip import GZipMiddleware
from fastapi.params import Depends as Dependency
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from fastapi.security import SecurityScopes
from fastapi.testclient import TestClient
from pydantic import AfterValidator, BaseModel
from starlette.background import BackgroundTask
from starlette.types import Message, Receive, Scope, Send

from durableq import CollectorClosed, DurableQ, InvalidArguments, Job
from durableq.fastapi import TaskCollector
from durableq.fastapi.background import collect, collect_by_yield
from durableq.storage.sqlite import inbox
from tests.fastapi import postponed
from tests.fastapi.helpers import AtResponseStart, Database, note, raised_by, request, serving
from tests.support import eventually


@pytest.fixture(
    params=[
        pytest.param(Depends(collect), id="bottom"),
        pytest.param(Depends(collect_by_yield, scope="function"), id="yield"),
    ]
)
def handover(request: pytest.FixtureRequest) -> Dependency:
    chosen: Dependency = request.param
    return chosen


def is_last_of_all(handover: Dependency) -> bool:
    """Whether the commit comes after every function-scoped dependency: the difference between the two ways."""
    return handover.dependency is collect


class Deliberate(Exception):
    """What the routes and dependencies below raise."""


def quiet(app: Any) -> TestClient:
    """A client that gets a failed request as a browser does: as a 500."""
    return TestClient(app, raise_server_exceptions=False)


# -- before the response -------------------------------------------------------------------------------------


@pytest.mark.fault("F1")
@pytest.mark.foreign_bug(25)
def test_the_jobs_of_an_async_route_are_committed_before_its_response_starts(
    handover: Dependency, app: FastAPI, database: Database
) -> None:
    @app.post("/")
    async def route(tasks: Annotated[TaskCollector, handover]) -> list[str]:
        return [tasks.add_task(note, "a").id, tasks.add_task(note, "b").id]

    watched = AtResponseStart(app, database)
    with TestClient(watched) as client:
        first, second = client.post("/").json()

    assert watched.seen == [["a", "b"]]
    assert database.label_of() == {first: "a", second: "b"}


def test_the_jobs_of_a_plain_route_are_committed_before_its_response_starts(
    handover: Dependency, app: FastAPI, database: Database
) -> None:
    @app.post("/")
    def route(tasks: Annotated[TaskCollector, handover]) -> str:
        return tasks.add_task(note, "a").id

    watched = AtResponseStart(app, database)
    with TestClient(watched) as client:
        job_id = client.post("/").json()

    assert watched.seen == [["a"]]
    assert database.label_of() == {job_id: "a"}


def test_nothing_is_written_while_the_route_runs(handover: Dependency, app: FastAPI, database: Database) -> None:
    @app.post("/")
    async def route(tasks: Annotated[TaskCollector, handover]) -> list[str]:
        tasks.add_task(note, "a")
        return database.labels()

    with TestClient(app) as client:
        assert client.post("/").json() == []
    assert database.labels() == ["a"]


def test_a_stream_starts_after_the_commit(handover: Dependency, app: FastAPI, database: Database) -> None:
    @app.get("/")
    async def route(tasks: Annotated[TaskCollector, handover]) -> Response:
        tasks.add_task(note, "a")

        async def body() -> AsyncIterator[str]:
            yield ",".join(database.labels())

        return StreamingResponse(body())

    with TestClient(app) as client:
        assert client.get("/").text == "a"


def test_a_request_that_adds_nothing_does_not_wait_for_the_disk(
    handover: Dependency, app: FastAPI, database: Database
) -> None:
    @app.post("/")
    async def route(tasks: Annotated[TaskCollector, handover]) -> int:
        return len(tasks.jobs)

    with TestClient(app) as client, database.locked():
        assert client.post("/").json() == 0


async def test_requests_side_by_side_keep_their_jobs_apart(
    handover: Dependency, dq: DurableQ, database: Database
) -> None:
    app = FastAPI()

    @app.post("/{number}")
    async def route(number: int, tasks: Annotated[TaskCollector, handover]) -> list[str]:
        first = tasks.add_task(note, f"{number} first")
        await asyncio.sleep(0)
        return [first.id, tasks.add_task(note, f"{number} second").id]

    async with dq.running():
        answers = await asyncio.gather(*(request(app, f"/{number}") for number in range(50)))

    expected: dict[str, str] = {}
    for number, answer in enumerate(answers):
        first, second = json.loads(answer.body)
        expected |= {first: f"{number} first", second: f"{number} second"}
    assert database.label_of() == expected


# -- requests that fail --------------------------------------------------------------------------------------


def test_a_route_that_raises_stores_nothing(handover: Dependency, app: FastAPI, database: Database) -> None:
    @app.post("/")
    async def route(tasks: Annotated[TaskCollector, handover]) -> None:
        tasks.add_task(note, "a")
        raise Deliberate

    with quiet(app) as client:
        assert client.post("/").status_code == 500
        assert database.labels() == []


@pytest.mark.foreign_bug(24)
@pytest.mark.parametrize("status", [200, 404, 500])
def test_an_http_exception_stores_nothing_whatever_its_status(
    handover: Dependency, app: FastAPI, database: Database, status: int
) -> None:
    @app.post("/")
    def route(tasks: Annotated[TaskCollector, handover]) -> None:
        tasks.add_task(note, "a")
        raise HTTPException(status)

    with quiet(app) as client:
        assert client.post("/").status_code == status
        assert database.labels() == []


def test_a_response_that_does_not_fit_its_model_stores_nothing(
    handover: Dependency, app: FastAPI, database: Database
) -> None:
    class Receipt(BaseModel):
        number: int

    @app.post("/", response_model=Receipt)
    async def route(tasks: Annotated[TaskCollector, handover]) -> dict[str, str]:
        tasks.add_task(note, "a")
        return {"number": "none"}

    with quiet(app) as client:
        assert client.post("/").status_code == 500
        assert database.labels() == []


def test_a_request_that_does_not_validate_stores_nothing(
    handover: Dependency, app: FastAPI, database: Database
) -> None:
    def greet(tasks: Annotated[TaskCollector, handover]) -> None:
        tasks.add_task(note, "from a dependency")

    @app.post("/", dependencies=[Depends(greet)])
    async def route(number: int, tasks: Annotated[TaskCollector, handover]) -> None:
        tasks.add_task(note, "from the route")

    with quiet(app) as client:
        assert client.post("/?number=x").status_code == 422
        assert database.labels() == []
        assert client.post("/?number=1").status_code == 200
        assert database.labels() == ["from a dependency", "from the route"]


def test_a_dependency_that_raises_stores_nothing(handover: Dependency, app: FastAPI, database: Database) -> None:
    def allow(tasks: Annotated[TaskCollector, handover]) -> None:
        tasks.add_task(note, "a")
        raise HTTPException(403)

    @app.post("/", dependencies=[Depends(allow)])
    async def route(tasks: Annotated[TaskCollector, handover]) -> None:
        tasks.add_task(note, "b")

    with quiet(app) as client:
        assert client.post("/").status_code == 403
        assert database.labels() == []


def test_an_error_that_a_handler_turns_into_a_200_stores_nothing(
    handover: Dependency, app: FastAPI, database: Database
) -> None:
    @app.exception_handler(Deliberate)
    async def all_is_well(request: Request, error: Exception) -> Response:
        return PlainTextResponse("fine")

    @app.post("/")
    async def route(tasks: Annotated[TaskCollector, handover]) -> None:
        tasks.add_task(note, "a")
        raise Deliberate

    with TestClient(app) as client:
        answer = client.post("/")
        assert (answer.status_code, answer.text) == (200, "fine")
        assert database.labels() == []


@pytest.mark.parametrize("status", [400, 500])
def test_an_error_response_that_the_route_returns_stores_its_jobs(
    handover: Dependency, app: FastAPI, database: Database, status: int
) -> None:
    @app.post("/")
    async def route(tasks: Annotated[TaskCollector, handover]) -> Response:
        tasks.add_task(note, "a")
        return JSONResponse({"detail": "no"}, status)

    with TestClient(app) as client:
        assert client.post("/").status_code == status
        assert database.labels() == ["a"]


def test_one_refused_argument_stores_none_of_the_requests_jobs(
    handover: Dependency, app: FastAPI, database: Database
) -> None:
    @app.post("/")
    async def route(tasks: Annotated[TaskCollector, handover]) -> None:
        tasks.add_task(note, "a")
        tasks.add_task(note, label=object())  # type: ignore[call-overload]

    with quiet(app) as client:
        assert client.post("/").status_code == 500
        assert database.labels() == []


def test_a_route_that_survives_a_refused_argument_stores_the_others(
    handover: Dependency, app: FastAPI, database: Database
) -> None:
    @app.post("/")
    async def route(tasks: Annotated[TaskCollector, handover]) -> None:
        tasks.add_task(note, "a")
        with contextlib.suppress(InvalidArguments):
            tasks.add_task(note, label=object())  # type: ignore[call-overload]
        tasks.add_task(note, "b")

    with TestClient(app) as client:
        assert client.post("/").status_code == 200
        assert database.labels() == ["a", "b"]


# -- beside other function-scoped dependencies ---------------------------------------------------------------


def test_a_function_scoped_session_listed_first_commits_before_the_jobs_only_from_the_bottom(
    handover: Dependency, app: FastAPI, database: Database
) -> None:
    stored_at_its_commit: list[list[str]] = []

    async def session() -> AsyncIterator[None]:
        yield
        stored_at_its_commit.append(database.labels())

    @app.post("/")
    async def route(
        opened: Annotated[None, Depends(session, scope="function")], tasks: Annotated[TaskCollector, handover]
    ) -> None:
        tasks.add_task(note, "a")

    watched = AtResponseStart(app, database)
    with TestClient(watched) as client:
        assert client.post("/").status_code == 200

    assert stored_at_its_commit == [[] if is_last_of_all(handover) else ["a"]]
    assert watched.seen == [["a"]]


def test_a_function_scoped_session_listed_first_that_cannot_commit_drops_the_jobs_only_from_the_bottom(
    handover: Dependency, app: FastAPI, database: Database
) -> None:
    def session() -> Iterator[None]:
        yield
        raise Deliberate

    @app.post("/")
    async def route(
        opened: Annotated[None, Depends(session, scope="function")], tasks: Annotated[TaskCollector, handover]
    ) -> None:
        tasks.add_task(note, "a")

    with quiet(app) as client:
        assert client.post("/").status_code == 500
        assert database.labels() == ([] if is_last_of_all(handover) else ["a"])


def test_a_function_scoped_session_listed_later_commits_before_the_jobs(
    handover: Dependency, app: FastAPI, database: Database
) -> None:
    stored_at_its_commit: list[list[str]] = []

    def session() -> Iterator[None]:
        yield
        stored_at_its_commit.append(database.labels())

    @app.post("/")
    async def route(
        tasks: Annotated[TaskCollector, handover], opened: Annotated[None, Depends(session, scope="function")]
    ) -> None:
        tasks.add_task(note, "a")

    with TestClient(app) as client:
        assert client.post("/").status_code == 200

    assert stored_at_its_commit == [[]]
    assert database.labels() == ["a"]


def test_a_function_scoped_session_listed_later_that_cannot_commit_drops_the_jobs(
    handover: Dependency, app: FastAPI, database: Database
) -> None:
    async def session() -> AsyncIterator[None]:
        yield
        raise HTTPException(409)

    @app.post("/")
    async def route(
        tasks: Annotated[TaskCollector, handover], opened: Annotated[None, Depends(session, scope="function")]
    ) -> None:
        tasks.add_task(note, "a")

    with quiet(app) as client:
        assert client.post("/").status_code == 409
        assert database.labels() == []


@pytest.mark.fault("R6")
def test_an_error_that_a_later_dependency_swallows_drops_the_jobs_only_from_the_bottom(
    handover: Dependency, app: FastAPI, database: Database
) -> None:
    async def forgiving() -> AsyncIterator[None]:
        with contextlib.suppress(Deliberate):
            yield

    @app.post("/")
    async def route(
        tasks: Annotated[TaskCollector, handover], opened: Annotated[None, Depends(forgiving, scope="function")]
    ) -> None:
        tasks.add_task(note, "a")
        raise Deliberate

    with quiet(app) as client:
        assert client.post("/").status_code == 500  # FastAPI's own: there is no response to send
        assert database.labels() == ([] if is_last_of_all(handover) else ["a"])


@pytest.mark.fault("R6")
def test_an_error_that_an_earlier_dependency_swallows_drops_the_jobs(
    handover: Dependency, app: FastAPI, database: Database
) -> None:
    async def forgiving() -> AsyncIterator[None]:
        with contextlib.suppress(Deliberate):
            yield

    @app.post("/")
    async def route(
        opened: Annotated[None, Depends(forgiving, scope="function")], tasks: Annotated[TaskCollector, handover]
    ) -> None:
        tasks.add_task(note, "a")
        raise Deliberate

    with quiet(app) as client:
        assert client.post("/").status_code == 500
        assert database.labels() == []


def test_only_a_job_added_before_the_swallowing_dependency_was_entered_outlives_the_error(
    handover: Dependency, app: FastAPI, database: Database
) -> None:
    """The limit of the witness: it stands where the last job was added, and hears nothing from above."""

    def greet(tasks: Annotated[TaskCollector, handover]) -> None:
        tasks.add_task(note, "a")

    async def forgiving() -> AsyncIterator[None]:
        with contextlib.suppress(Deliberate):
            yield

    @app.post("/")
    async def route(
        greeted: Annotated[None, Depends(greet)], opened: Annotated[None, Depends(forgiving, scope="function")]
    ) -> None:
        raise Deliberate

    with quiet(app) as client:
        assert client.post("/").status_code == 500
        assert database.labels() == ["a"]


def test_the_teardown_of_a_later_function_scoped_dependency_may_add_jobs(
    handover: Dependency, app: FastAPI, database: Database
) -> None:
    async def audit(tasks: Annotated[TaskCollector, handover]) -> AsyncIterator[None]:
        yield
        tasks.add_task(note, "teardown")

    @app.post("/")
    async def route(
        tasks: Annotated[TaskCollector, handover], audited: Annotated[None, Depends(audit, scope="function")]
    ) -> None:
        tasks.add_task(note, "route")

    watched = AtResponseStart(app, database)
    with TestClient(watched) as client:
        assert client.post("/").status_code == 200
    assert watched.seen == [["route", "teardown"]]


# -- beside request-scoped dependencies ----------------------------------------------------------------------


def test_a_request_scoped_session_commits_after_the_jobs_and_after_the_response(
    handover: Dependency, app: FastAPI, database: Database
) -> None:
    """FastAPI's default scope. Documented: commit in the route, or give the session function scope."""
    seen: list[str | list[str]] = []

    async def session() -> AsyncIterator[None]:
        yield
        seen.append(["session", *database.labels()])

    @app.post("/")
    async def route(
        opened: Annotated[None, Depends(session)], tasks: Annotated[TaskCollector, handover]
    ) -> PlainTextResponse:
        tasks.add_task(note, "a")
        return PlainTextResponse("done")

    async def watched(scope: Scope, receive: Receive, send: Send) -> None:
        async def note_and_send(message: Message) -> None:
            seen.append(message["type"])
            await send(message)

        await app(scope, receive, note_and_send if scope["type"] == "http" else send)

    with TestClient(watched) as client:
        assert client.post("/").status_code == 200
    assert seen == ["http.response.start", "http.response.body", ["session", "a"]]


def test_a_request_scoped_session_that_cannot_commit_leaves_the_jobs_stored(
    handover: Dependency, app: FastAPI, database: Database
) -> None:
    async def session() -> AsyncIterator[None]:
        yield
        raise Deliberate

    @app.post("/")
    async def route(opened: Annotated[None, Depends(session)], tasks: Annotated[TaskCollector, handover]) -> None:
        tasks.add_task(note, "a")

    with quiet(app) as client:
        assert client.post("/").status_code == 200
        assert database.labels() == ["a"]


def test_a_request_scoped_session_that_rolls_back_sees_the_error_of_the_route(
    handover: Dependency, app: FastAPI, database: Database
) -> None:
    seen: list[str] = []

    async def session() -> AsyncIterator[None]:
        try:
            yield
        except Deliberate:
            seen.append("rolled back")
            raise

    @app.post("/")
    async def route(opened: Annotated[None, Depends(session)], tasks: Annotated[TaskCollector, handover]) -> None:
        tasks.add_task(note, "a")
        raise Deliberate

    with quiet(app) as client:
        assert client.post("/").status_code == 500
    assert seen == ["rolled back"]


def test_a_request_scoped_yield_dependency_can_take_the_collector_only_from_the_bottom(
    handover: Dependency, app: FastAPI, database: Database
) -> None:
    refused: list[BaseException | None] = []

    async def session(tasks: Annotated[TaskCollector, handover]) -> AsyncIterator[None]:
        tasks.add_task(note, "a")
        yield
        refused.append(raised_by(lambda: tasks.add_task(note, "too late")))

    def add_route() -> None:
        @app.post("/")
        async def route(opened: Annotated[None, Depends(session)]) -> None:
            pass

    if not is_last_of_all(handover):
        with pytest.raises(DependencyScopeError, match="cannot depend on dependencies with scope"):
            add_route()
        return

    add_route()
    with TestClient(app) as client:
        assert client.post("/").status_code == 200
    assert database.labels() == ["a"]
    assert isinstance(refused[0], CollectorClosed)


# -- when the commit fails -----------------------------------------------------------------------------------


@pytest.mark.fault("F24")
def test_jobs_that_could_not_be_stored_are_a_503_that_passes_middleware(
    handover: Dependency, app: FastAPI, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbox, "BEGIN_WITHIN_SECONDS", 0.2)
    app.add_middleware(GZipMiddleware, minimum_size=1)
    app.add_middleware(CORSMiddleware, allow_origins=["https://shop.example"])

    @app.middleware("http")
    async def stamp(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        response = await call_next(request)
        response.headers["x-stamp"] = "stamped"
        return response

    @app.post("/")
    async def route(tasks: Annotated[TaskCollector, handover]) -> None:
        tasks.add_task(note, "a")
        tasks.add_task(note, "b")

    with TestClient(app) as client:
        with database.locked():
            answer = client.post("/", headers={"origin": "https://shop.example", "accept-encoding": "gzip"})
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.headers["access-control-allow-origin"] == "https://shop.example"
        assert answer.headers["content-encoding"] == "gzip"
        assert answer.headers["x-stamp"] == "stamped"
        assert "not stored" in answer.json()["detail"]["message"]
        assert database.labels() == []

        assert client.post("/").status_code == 200
        assert database.labels() == ["a", "b"]


def test_the_reason_of_a_503_is_logged(
    handover: Dependency,
    app: FastAPI,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(inbox, "BEGIN_WITHIN_SECONDS", 0.1)

    @app.post("/")
    async def route(tasks: Annotated[TaskCollector, handover]) -> None:
        tasks.add_task(note, "a")

    with TestClient(app) as client, database.locked():
        assert client.post("/").status_code == 503
    assert f"jobs were not stored: {database.path} took no write for 5 s: it was locked" in caplog.text


def test_one_row_that_the_database_refuses_stores_none_of_the_requests_jobs(
    handover: Dependency, app: FastAPI, database: Database
) -> None:
    @app.post("/{label}")
    async def route(label: str, tasks: Annotated[TaskCollector, handover]) -> None:
        for word in ("first", label, "last"):
            tasks.add_task(note, word)

    with TestClient(app) as client:
        database.execute(
            "CREATE TRIGGER refuse BEFORE INSERT ON durableq_jobs WHEN instr(NEW.args, 'poison')"
            " BEGIN SELECT RAISE(ABORT, 'refused'); END"
        )
        assert client.post("/poison").status_code == 503
        assert database.labels() == []
        assert client.post("/middle").status_code == 200
        assert database.labels() == ["first", "middle", "last"]


@contextlib.contextmanager
def full_disk(database: Database) -> Iterator[None]:
    """Let no file of this process grow beyond the write-ahead log, so that the next COMMIT fails for real."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    log = database.path.with_name(database.path.name + "-wal")
    resource.setrlimit(resource.RLIMIT_FSIZE, (log.stat().st_size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.fault("F22")
def test_a_commit_whose_outcome_nobody_knows_is_a_500_that_names_the_jobs(
    handover: Dependency, app: FastAPI, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    added: list[str] = []

    @app.post("/")
    async def route(tasks: Annotated[TaskCollector, handover]) -> None:
        added.extend(tasks.add_task(note, letter * 20_000).id for letter in "ab")

    with TestClient(app) as client:
        for _ in range(5):  # a log that outgrows what others in this process may want to write meanwhile
            assert client.post("/").status_code == 200
        added.clear()
        with full_disk(database):
            answer = client.post("/")

    assert answer.status_code == 500
    assert answer.json()["detail"]["jobs"] == added
    assert "may or may not be stored" in answer.json()["detail"]["message"]
    assert "retry-after" not in answer.headers
    assert "may or may not be stored" in caplog.text


@pytest.mark.fault("F28")
def test_a_file_found_replaced_after_the_commit_is_never_reported_as_not_stored(
    handover: Dependency, app: FastAPI, database: Database
) -> None:
    @app.post("/")
    async def route(tasks: Annotated[TaskCollector, handover]) -> str:
        return tasks.add_task(note, "a").id

    away = database.path.with_name("away.db")
    with TestClient(app) as client:
        database.path.rename(away)
        answer = client.post("/")
        away.rename(database.path)

    assert database.labels() == ["a"]  # the file is back, and so is the job
    assert answer.status_code == 500


# -- one collector per request -------------------------------------------------------------------------------


def test_a_route_and_all_its_dependencies_share_one_collector(
    handover: Dependency, app: FastAPI, database: Database
) -> None:
    def from_a_thread(tasks: Annotated[TaskCollector, handover]) -> TaskCollector:
        tasks.add_task(note, "def")
        return tasks

    async def from_the_loop(
        tasks: Annotated[TaskCollector, handover], inner: Annotated[TaskCollector, Depends(from_a_thread)]
    ) -> TaskCollector:
        tasks.add_task(note, "async def")
        assert inner is tasks
        return tasks

    class Mailer:
        def __init__(self, tasks: Annotated[TaskCollector, handover]) -> None:
            self.tasks = tasks

        def send(self, label: str) -> Job[None]:
            return self.tasks.add_task(note, label)

    @app.post("/")
    def route(
        inner: Annotated[TaskCollector, Depends(from_the_loop)],
        mailer: Annotated[Mailer, Depends()],
        tasks: Annotated[TaskCollector, handover],
    ) -> list[str]:
        mailer.send("class")
        tasks.add_task(note, "route")
        assert inner is tasks
        assert mailer.tasks is tasks
        return [job.id for job in tasks.jobs]

    watched = AtResponseStart(app, database)
    with TestClient(watched) as client:
        ids = client.post("/").json()

    labels = ["def", "async def", "class", "route"]
    assert watched.seen == [labels]
    assert database.label_of() == dict(zip(ids, labels, strict=True))


def test_security_scopes_do_not_make_a_second_collector(handover: Dependency, app: FastAPI, database: Database) -> None:
    def user(scopes: SecurityScopes, tasks: Annotated[TaskCollector, handover]) -> TaskCollector:
        tasks.add_task(note, scopes.scope_str)
        return tasks

    @app.post("/")
    async def route(
        reader: Annotated[TaskCollector, Security(user, scopes=["read"])],
        writer: Annotated[TaskCollector, Security(user, scopes=["write"])],
        tasks: Annotated[TaskCollector, handover],
    ) -> bool:
        tasks.add_task(note, "route")
        return reader is writer is tasks

    with TestClient(app) as client:
        assert client.post("/").json() is True
    assert database.labels() == ["read", "write", "route"]


def test_security_scopes_do_not_store_what_a_failing_route_added(
    handover: Dependency, app: FastAPI, database: Database
) -> None:
    def user(tasks: Annotated[TaskCollector, handover]) -> None:
        tasks.add_task(note, "user")

    @app.post("/")
    async def route(
        reader: Annotated[None, Security(user, scopes=["read"])],
        writer: Annotated[None, Security(user, scopes=["write"])],
        tasks: Annotated[TaskCollector, handover],
    ) -> None:
        raise Deliberate

    with quiet(app) as client:
        assert client.post("/").status_code == 500
        assert database.labels() == []


def test_a_dependency_without_cache_gets_the_same_collector(
    handover: Dependency, app: FastAPI, database: Database
) -> None:
    fresh = Depends(handover.dependency, use_cache=False, scope=handover.scope)

    @app.post("/")
    async def route(tasks: Annotated[TaskCollector, handover], other: Annotated[TaskCollector, fresh]) -> bool:
        tasks.add_task(note, "a")
        other.add_task(note, "b")
        return tasks is other

    with TestClient(app) as client:
        assert client.post("/").json() is True
    assert database.labels() == ["a", "b"]


def test_two_requests_get_two_collectors(handover: Dependency, app: FastAPI, database: Database) -> None:
    collectors: list[TaskCollector] = []

    @app.post("/")
    async def route(tasks: Annotated[TaskCollector, handover]) -> int:
        collectors.append(tasks)
        tasks.add_task(note, "a")
        return len(tasks.jobs)

    with TestClient(app) as client:
        assert [client.post("/").json(), client.post("/").json()] == [1, 1]
    assert collectors[0] is not collectors[1]
    assert database.labels() == ["a", "a"]


@pytest.mark.parametrize("path", ["/bottom", "/yield"])
def test_annotations_may_be_postponed(app: FastAPI, database: Database, path: str) -> None:
    app.include_router(postponed.router)
    watched = AtResponseStart(app, database)
    with TestClient(watched) as client:
        assert client.post(path).status_code == 200
    assert watched.seen == [["dependency", "route"]]


# -- wherever the route is -----------------------------------------------------------------------------------


def test_routes_of_included_routers_and_their_own_dependencies_store_jobs(
    handover: Dependency, app: FastAPI, database: Database
) -> None:
    def greet(tasks: Annotated[TaskCollector, handover]) -> None:
        tasks.add_task(note, "inner router")

    def welcome(tasks: Annotated[TaskCollector, handover]) -> None:
        tasks.add_task(note, "outer router")

    inner = APIRouter(prefix="/inner", dependencies=[Depends(greet)])
    outer = APIRouter(prefix="/outer")

    @inner.post("/")
    async def route(tasks: Annotated[TaskCollector, handover]) -> None:
        tasks.add_task(note, "route")

    outer.include_router(inner, dependencies=[Depends(welcome)])
    app.include_router(outer)

    watched = AtResponseStart(app, database)
    with TestClient(watched) as client:
        assert client.post("/outer/inner/").status_code == 200
    assert watched.seen == [["outer router", "inner router", "route"]]


def test_routes_of_a_mounted_app_store_jobs_in_the_queue_of_the_outer_one(
    handover: Dependency, app: FastAPI, database: Database
) -> None:
    mounted = FastAPI()

    @mounted.post("/")
    def route(tasks: Annotated[TaskCollector, handover]) -> None:
        tasks.add_task(note, "a")

    @mounted.post("/failing")
    def failing(tasks: Annotated[TaskCollector, handover]) -> None:
        tasks.add_task(note, "b")
        raise Deliberate

    app.mount("/mounted", mounted)
    watched = AtResponseStart(app, database)
    with quiet(watched) as client:
        assert client.post("/mounted/").status_code == 200
        assert client.post("/mounted/failing").status_code == 500
    assert watched.seen == [["a"], ["a"]]


@pytest.mark.parametrize("method", ["HEAD", "OPTIONS"])
def test_other_methods_on_a_post_route_are_refused_and_store_nothing(
    handover: Dependency, app: FastAPI, database: Database, method: str
) -> None:
    @app.post("/")
    async def route(tasks: Annotated[TaskCollector, handover]) -> None:
        tasks.add_task(note, "a")

    with TestClient(app) as client:
        assert client.request(method, "/").status_code == 405
        assert database.labels() == []


def test_a_head_route_stores_its_jobs(handover: Dependency, app: FastAPI, database: Database) -> None:
    @app.head("/")
    async def route(tasks: Annotated[TaskCollector, handover]) -> None:
        tasks.add_task(note, "a")

    watched = AtResponseStart(app, database)
    with TestClient(watched) as client:
        assert client.head("/").status_code == 200
    assert watched.seen == [["a"]]


def test_a_cors_preflight_stores_nothing(handover: Dependency, app: FastAPI, database: Database) -> None:
    app.add_middleware(CORSMiddleware, allow_origins=["*"], allow_methods=["*"])

    @app.post("/")
    async def route(tasks: Annotated[TaskCollector, handover]) -> None:
        tasks.add_task(note, "a")

    with TestClient(app) as client:
        preflight = {"origin": "https://shop.example", "access-control-request-method": "POST"}
        assert client.options("/", headers=preflight).status_code == 200
        assert database.labels() == []


@pytest.mark.foreign_bug(21)
def test_a_returned_background_task_stays_in_memory(handover: Dependency, app: FastAPI, database: Database) -> None:
    ran: list[list[str]] = []

    def in_memory() -> None:
        ran.append(database.labels())

    @app.post("/")
    async def route(tasks: Annotated[TaskCollector, handover]) -> Response:
        tasks.add_task(note, "a")
        return PlainTextResponse("done", background=BackgroundTask(in_memory))

    with TestClient(app) as client:
        assert client.post("/").status_code == 200
    assert ran == [["a"]]
    assert database.labels() == ["a"]


def test_an_application_that_is_called_twice_for_one_request_stores_the_jobs_of_each_call(
    handover: Dependency, app: FastAPI, database: Database
) -> None:
    """As middleware does that tries again: the same scope goes through the application a second time."""

    @app.post("/")
    async def route(tasks: Annotated[TaskCollector, handover]) -> None:
        tasks.add_task(note, "a")

    async def nowhere(message: Message) -> None:
        pass

    async def twice(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await app(scope, receive, nowhere)
        await app(scope, receive, send)

    with quiet(twice) as client:
        assert client.post("/").status_code == 200
        assert database.labels() == ["a", "a"]


# -- clients that leave, and requests that are cancelled -----------------------------------------------------


@pytest.mark.fault("F49")
async def test_a_client_that_left_before_the_commit_loses_nothing(
    handover: Dependency, app: FastAPI, database: Database
) -> None:
    inside = asyncio.Event()

    @app.post("/")
    async def route(request: Request, tasks: Annotated[TaskCollector, handover]) -> None:
        tasks.add_task(note, "a")
        inside.set()
        while not await request.is_disconnected():  # noqa: ASYNC110 - FastAPI has no event for it
            await asyncio.sleep(0.005)
        tasks.add_task(note, "b")

    async with serving(app) as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\n\r\n")
        await inside.wait()
        writer.close()
        await writer.wait_closed()
        await eventually(lambda: database.labels() == ["a", "b"])


@pytest.mark.fault("F49")
async def test_a_request_cancelled_in_its_route_stores_nothing(
    handover: Dependency, dq: DurableQ, database: Database
) -> None:
    app = FastAPI()
    inside = asyncio.Event()

    @app.post("/")
    async def route(tasks: Annotated[TaskCollector, handover]) -> None:
        tasks.add_task(note, "a")
        inside.set()
        await asyncio.Event().wait()

    async with dq.running():
        asking = asyncio.create_task(request(app))
        await inside.wait()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert database.labels() == []


@pytest.mark.fault("F49")
@pytest.mark.foreign_bug(54)
async def test_a_request_cancelled_in_its_commit_stores_all_of_its_jobs(
    handover: Dependency, dq: DurableQ, database: Database
) -> None:
    app = FastAPI()
    committing = asyncio.Event()

    async def session() -> AsyncIterator[None]:
        yield
        committing.set()  # what follows, up to the wait for the disk, gives the event loop no turn

    @app.post("/")
    async def route(
        tasks: Annotated[TaskCollector, handover], opened: Annotated[None, Depends(session, scope="function")]
    ) -> None:
        tasks.add_task(note, "a")
        tasks.add_task(note, "b")

    async with dq.running():
        with database.locked():
            asking = asyncio.create_task(request(app))
            await committing.wait()
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            assert database.labels() == []
        await eventually(lambda: database.labels() == ["a", "b"])


# -- after the commit ----------------------------------------------------------------------------------------


async def test_a_task_added_while_the_request_commits_is_refused(
    handover: Dependency, dq: DurableQ, database: Database
) -> None:
    app = FastAPI()
    collectors: list[TaskCollector] = []
    committing = asyncio.Event()

    async def session() -> AsyncIterator[None]:
        yield
        committing.set()  # what follows, up to the wait for the disk, gives the event loop no turn

    @app.post("/")
    async def route(
        tasks: Annotated[TaskCollector, handover], opened: Annotated[None, Depends(session, scope="function")]
    ) -> None:
        collectors.append(tasks)
        tasks.add_task(note, "a")

    async with dq.running():
        with database.locked():
            asking = asyncio.create_task(request(app))
            await committing.wait()
            with pytest.raises(CollectorClosed, match=r"await dq\.add_task"):
                collectors[0].add_task(note, "too late")
        assert (await asking).status == 200
        assert database.labels() == ["a"]


@pytest.mark.fault("F57")
def test_a_task_added_after_the_request_is_refused(handover: Dependency, app: FastAPI, database: Database) -> None:
    collectors: list[TaskCollector] = []

    @app.post("/")
    async def route(tasks: Annotated[TaskCollector, handover]) -> None:
        collectors.append(tasks)

    with TestClient(app) as client:
        assert client.post("/").status_code == 200
        with pytest.raises(CollectorClosed, match=r"await dq\.add_task"):
            collectors[0].add_task(note, "too late")
        assert database.labels() == []


def test_a_task_added_after_the_route_failed_is_refused(handover: Dependency, app: FastAPI, database: Database) -> None:
    """Already in the exception handler, which has no other way to learn that its job would not be stored."""
    collectors: list[TaskCollector] = []

    @app.exception_handler(Deliberate)
    async def report(request: Request, error: Exception) -> Response:
        refused = raised_by(lambda: collectors[0].add_task(note, "too late"))
        return PlainTextResponse(type(refused).__name__)

    @app.post("/")
    async def route(tasks: Annotated[TaskCollector, handover]) -> None:
        collectors.append(tasks)
        raise Deliberate

    with TestClient(app) as client:
        assert client.post("/").text == "CollectorClosed"
        assert database.labels() == []


@pytest.mark.fault("F57")
def test_a_job_is_never_dropped_silently_when_a_thread_adds_it_during_the_commit(
    handover: Dependency, app: FastAPI, dq: DurableQ, database: Database
) -> None:
    """``add_task`` looks whether the collector is closed, checks arguments, and only then notes the job."""
    checking, committed = threading.Event(), threading.Event()
    adding: list[threading.Thread] = []
    outcomes: list[BaseException | None] = []

    def slow(label: str) -> str:
        checking.set()
        assert committed.wait(10)
        return label

    @dq.task(name="checks slowly")
    def task(label: Annotated[str, AfterValidator(slow)]) -> None: ...

    @app.post("/")
    def route(tasks: Annotated[TaskCollector, handover]) -> None:
        adding.append(threading.Thread(target=lambda: outcomes.append(raised_by(lambda: tasks.add_task(task, "a")))))
        adding[0].start()
        assert checking.wait(10)

    with TestClient(app) as client:
        assert client.post("/").status_code == 200
        committed.set()
        adding[0].join(10)
        assert isinstance(outcomes[0], CollectorClosed)
        assert database.labels() == []


@pytest.mark.foreign_bug(22)
def test_the_jobs_of_one_request_are_independent(
    handover: Dependency, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    dq = DurableQ(database.path)
    app = FastAPI(lifespan=dq.lifespan)
    caplog.set_level(logging.CRITICAL, "durableq")

    @dq.task(name="boom", max_attempts=1)
    async def boom(label: str) -> None:
        raise Deliberate

    @app.post("/")
    async def route(tasks: Annotated[TaskCollector, handover]) -> None:
        tasks.add_task(boom, "first")
        tasks.add_task(note, "second")
        tasks.add_task(note, "third")

    with TestClient(app) as client:
        assert client.post("/").status_code == 200
        assert client.portal is not None
        client.portal.call(dq.drain, 10)
        assert database.state_of() == {"first": "dead", "second": "succeeded", "third": "succeeded"}
