"""`DurableRoute`: FastAPI's own ``BackgroundTasks`` become durable jobs, no signature touched."""

import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, HTTPException, Request, Response
from fastapi.middleware.cors import CORSMiddleware
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from fastapi.testclient import TestClient
from pydantic import BaseModel
from starlette.background import BackgroundTask

from durableq import ConfigurationError, DurableQ, InvalidArguments, InvalidTask, QueueNotRunning
from durableq.fastapi import DurableRoute, TaskCollector
from durableq.fastapi.background import collect
from durableq.storage.sqlite import inbox
from tests.fastapi.helpers import AtResponseStart, Database, note
from tests.support import named

ran: list[str] = []


def remember(label: str) -> None:
    """A task whose run can be seen."""
    ran.append(label)


class Deliberate(Exception):
    """What the routes and dependencies below raise."""


@pytest.fixture
def router() -> APIRouter:
    return APIRouter(route_class=DurableRoute)


@pytest.fixture
def serve(app: FastAPI, router: APIRouter) -> Callable[[], TestClient]:
    """Include the router, once its routes are declared, and give a client for the application."""

    def include() -> TestClient:
        app.include_router(router)
        return TestClient(app, raise_server_exceptions=False)

    return include


def test_injected_tasks_are_committed_before_the_response_starts(
    app: FastAPI, router: APIRouter, database: Database
) -> None:
    @router.post("/")
    async def route(tasks: BackgroundTasks) -> dict[str, str]:
        tasks.add_task(note, "a")
        tasks.add_task(note, label="b")
        return {"status": "accepted"}

    app.include_router(router)
    watched = AtResponseStart(app, database)
    with TestClient(watched) as client:
        answer = client.post("/")
    assert (answer.status_code, answer.json()) == (200, {"status": "accepted"})
    assert watched.seen == [["a", "b"]]


def test_tasks_of_dependencies_are_committed_with_those_of_the_route(
    serve: Callable[[], TestClient], router: APIRouter, database: Database
) -> None:
    def greet(tasks: BackgroundTasks) -> None:
        tasks.add_task(note, "dependency")

    @router.post("/", dependencies=[Depends(greet)])
    def route(tasks: BackgroundTasks) -> None:
        tasks.add_task(note, "route")

    with serve() as client:
        assert client.post("/").status_code == 200
        assert database.labels() == ["dependency", "route"]


@pytest.mark.foreign_bug(21)
def test_a_returned_background_task_is_stored(
    serve: Callable[[], TestClient], router: APIRouter, database: Database
) -> None:
    @router.post("/")
    async def route() -> Response:
        return PlainTextResponse("done", 201, {"x-kind": "plain"}, background=BackgroundTask(note, "a"))

    with serve() as client:
        answer = client.post("/")
        assert (answer.status_code, answer.text, answer.headers["x-kind"]) == (201, "done", "plain")
        assert database.labels() == ["a"]


def test_a_stream_starts_after_the_commit(
    serve: Callable[[], TestClient], router: APIRouter, database: Database
) -> None:
    @router.post("/")
    async def route(tasks: BackgroundTasks) -> Response:
        tasks.add_task(note, "a")

        async def body() -> AsyncIterator[str]:
            yield ",".join(database.labels())

        return StreamingResponse(body())

    with serve() as client:
        assert client.post("/").text == "a"


def test_the_tasks_do_not_run_in_memory_too(database: Database, router: APIRouter) -> None:
    dq = DurableQ(database.path)
    app = FastAPI(lifespan=dq.lifespan)
    ran.clear()

    @router.post("/")
    async def route(tasks: BackgroundTasks) -> None:
        tasks.add_task(remember, "once")

    app.include_router(router)
    with TestClient(app) as client:
        assert client.post("/").status_code == 200
        assert client.portal is not None
        client.portal.call(dq.drain, 10)
        assert database.state_of() == {"once": "succeeded"}
    assert ran == ["once"]


def test_the_route_class_is_per_router(app: FastAPI, router: APIRouter, database: Database) -> None:
    """As FastAPI has it: a router takes its own routes with it, not those of others."""
    plain = APIRouter()
    ran.clear()

    @router.post("/durable")
    async def durable(tasks: BackgroundTasks) -> None:
        tasks.add_task(remember, "stored")

    @plain.post("/plain")
    async def in_memory(tasks: BackgroundTasks) -> None:
        tasks.add_task(remember, "in memory")

    router.include_router(plain)
    app.include_router(router)
    with TestClient(app) as client:
        assert client.post("/durable").status_code == 200
        assert client.post("/plain").status_code == 200
    assert database.labels() == ["stored"]
    assert ran == ["in memory"]


def test_the_routes_of_an_application_itself_can_be_durable(app: FastAPI, database: Database) -> None:
    app.router.route_class = DurableRoute

    @app.post("/")
    async def route(tasks: BackgroundTasks) -> None:
        tasks.add_task(note, "a")

    with TestClient(app) as client:
        assert client.post("/").status_code == 200
        assert database.labels() == ["a"]


def test_a_route_without_tasks_needs_no_queue(router: APIRouter) -> None:
    app = FastAPI()

    @router.get("/")
    async def route() -> str:
        return "fine"

    app.include_router(router)
    assert TestClient(app).get("/").json() == "fine"


def test_a_route_with_tasks_and_no_queue_says_how_to_start_one(router: APIRouter) -> None:
    app = FastAPI()

    @router.post("/")
    async def route(tasks: BackgroundTasks) -> None:
        tasks.add_task(note, "a")

    app.include_router(router)
    with pytest.raises(QueueNotRunning, match=r"lifespan=dq\.lifespan"):
        TestClient(app).post("/")


# -- requests that fail --------------------------------------------------------------------------------------


def raise_it() -> None:
    raise Deliberate


def raise_http() -> None:
    raise HTTPException(409)


@pytest.mark.parametrize(("fail", "status"), [(raise_it, 500), (raise_http, 409)])
def test_a_route_that_raises_stores_nothing(
    serve: Callable[[], TestClient], router: APIRouter, database: Database, fail: Callable[[], None], status: int
) -> None:
    @router.post("/")
    async def route(tasks: BackgroundTasks) -> None:
        tasks.add_task(note, "a")
        fail()

    with serve() as client:
        assert client.post("/").status_code == status
        assert database.labels() == []


def test_a_response_that_does_not_fit_its_model_stores_nothing(
    serve: Callable[[], TestClient], router: APIRouter, database: Database
) -> None:
    class Receipt(BaseModel):
        number: int

    @router.post("/", response_model=Receipt)
    async def route(tasks: BackgroundTasks) -> dict[str, str]:
        tasks.add_task(note, "a")
        return {"number": "none"}

    with serve() as client:
        assert client.post("/").status_code == 500
        assert database.labels() == []


def test_a_request_that_does_not_validate_stores_nothing(
    serve: Callable[[], TestClient], router: APIRouter, database: Database
) -> None:
    def greet(tasks: BackgroundTasks) -> None:
        tasks.add_task(note, "a")

    @router.post("/", dependencies=[Depends(greet)])
    async def route(number: int) -> None: ...

    with serve() as client:
        assert client.post("/?number=x").status_code == 422
        assert database.labels() == []


def test_an_error_that_a_handler_turns_into_a_200_stores_nothing(
    app: FastAPI, serve: Callable[[], TestClient], router: APIRouter, database: Database
) -> None:
    @app.exception_handler(Deliberate)
    async def all_is_well(request: Request, error: Exception) -> Response:
        return PlainTextResponse("fine")

    @router.post("/")
    async def route(tasks: BackgroundTasks) -> None:
        tasks.add_task(note, "a")
        raise Deliberate

    with serve() as client:
        assert client.post("/").status_code == 200
        assert database.labels() == []


def test_an_error_response_that_the_route_returns_stores_its_jobs(
    serve: Callable[[], TestClient], router: APIRouter, database: Database
) -> None:
    @router.post("/")
    async def route(tasks: BackgroundTasks) -> Response:
        tasks.add_task(note, "a")
        return JSONResponse({"detail": "no"}, 400)

    with serve() as client:
        assert client.post("/").status_code == 400
        assert database.labels() == ["a"]


@pytest.mark.parametrize("session_first", [True, False])
def test_a_function_scoped_session_commits_before_the_jobs(
    serve: Callable[[], TestClient], router: APIRouter, database: Database, session_first: bool
) -> None:
    stored_at_its_commit: list[list[str]] = []

    async def session() -> AsyncIterator[None]:
        yield
        stored_at_its_commit.append(database.labels())

    def greet(tasks: BackgroundTasks) -> None:
        tasks.add_task(note, "a")

    opened, greeted = Depends(session, scope="function"), Depends(greet)

    @router.post("/", dependencies=[opened, greeted] if session_first else [greeted, opened])
    async def route() -> None: ...

    with serve() as client:
        assert client.post("/").status_code == 200
        assert stored_at_its_commit == [[]]
        assert database.labels() == ["a"]


def test_a_function_scoped_session_that_cannot_commit_drops_the_jobs(
    serve: Callable[[], TestClient], router: APIRouter, database: Database
) -> None:
    async def session() -> AsyncIterator[None]:
        yield
        raise Deliberate

    @router.post("/")
    async def route(opened: Annotated[None, Depends(session, scope="function")], tasks: BackgroundTasks) -> None:
        tasks.add_task(note, "a")

    with serve() as client:
        assert client.post("/").status_code == 500
        assert database.labels() == []


def test_an_error_that_a_function_scoped_dependency_swallows_drops_the_jobs(
    serve: Callable[[], TestClient], router: APIRouter, database: Database
) -> None:
    async def forgiving() -> AsyncIterator[None]:
        with contextlib.suppress(Deliberate):
            yield

    @router.post("/")
    async def route(tasks: BackgroundTasks, opened: Annotated[None, Depends(forgiving, scope="function")]) -> None:
        tasks.add_task(note, "a")
        raise Deliberate

    with serve() as client:
        assert client.post("/").status_code == 500
        assert database.labels() == []


def test_jobs_that_could_not_be_stored_are_a_503_that_passes_cors(
    app: FastAPI,
    serve: Callable[[], TestClient],
    router: APIRouter,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(inbox, "BEGIN_WITHIN_SECONDS", 0.2)
    app.add_middleware(CORSMiddleware, allow_origins=["https://shop.example"])

    @router.post("/")
    async def route(tasks: BackgroundTasks) -> None:
        tasks.add_task(note, "a")

    with serve() as client:
        with database.locked():
            answer = client.post("/", headers={"origin": "https://shop.example"})
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.headers["access-control-allow-origin"] == "https://shop.example"
        assert database.labels() == []


def closure_over(text: str) -> Callable[[], str]:
    return lambda: text


class Mailer:
    def send(self, label: str) -> None: ...


@pytest.mark.parametrize("function", [lambda: None, closure_over("x"), print, Mailer().send], ids=named)
def test_a_function_that_cannot_be_a_task_fails_the_request_and_stores_nothing(
    app: FastAPI, router: APIRouter, database: Database, function: Callable[..., Any]
) -> None:
    @router.post("/")
    async def route(tasks: BackgroundTasks) -> None:
        tasks.add_task(note, "a")
        tasks.add_task(function)

    app.include_router(router)
    with TestClient(app) as client:
        with pytest.raises(InvalidTask, match="cannot be a task"):
            client.post("/")
        assert database.labels() == []


def test_an_argument_that_does_not_fit_fails_the_request_and_stores_nothing(
    app: FastAPI, router: APIRouter, database: Database
) -> None:
    @router.post("/")
    async def route(tasks: BackgroundTasks) -> None:
        tasks.add_task(note, "a")
        tasks.add_task(note, lable="b")  # type: ignore[call-arg]

    app.include_router(router)
    with TestClient(app) as client:
        with pytest.raises(InvalidArguments, match="did you mean 'label'"):
            client.post("/")
        assert database.labels() == []


# -- together with other things ------------------------------------------------------------------------------


def test_a_route_may_take_both_kinds_of_background_tasks(app: FastAPI, router: APIRouter, database: Database) -> None:
    @router.post("/")
    async def route(plain: BackgroundTasks, durable: Annotated[TaskCollector, Depends(collect)]) -> None:
        plain.add_task(note, "plain")
        durable.add_task(note, "durable")

    app.include_router(router)
    watched = AtResponseStart(app, database)
    with TestClient(watched) as client:
        assert client.post("/").status_code == 200
    assert sorted(watched.seen[0]) == ["durable", "plain"]


def test_a_route_class_of_ones_own_may_add_headers_as_fastapis_guide_does(app: FastAPI, database: Database) -> None:
    """https://fastapi.tiangolo.com/how-to/custom-request-and-route/"""

    class TimedRoute(DurableRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            original_route_handler = super().get_route_handler()

            async def custom_route_handler(request: Request) -> Response:
                response = await original_route_handler(request)
                assert response.status_code == 202
                response.headers["X-Response-Time"] = "0.1"
                return response

            return custom_route_handler

    app.router.route_class = TimedRoute

    @app.post("/", status_code=202)
    async def route(tasks: BackgroundTasks) -> None:
        tasks.add_task(note, "a")

    watched = AtResponseStart(app, database)
    with TestClient(watched, raise_server_exceptions=False) as client:
        answer = client.post("/")
    assert (answer.status_code, answer.headers.get("X-Response-Time")) == (202, "0.1")
    assert watched.seen == [["a"]]


def test_routes_of_a_mounted_app_use_the_queue_of_the_outer_one(
    app: FastAPI, router: APIRouter, database: Database
) -> None:
    @router.post("/")
    async def route(tasks: BackgroundTasks) -> None:
        tasks.add_task(note, "a")

    mounted = FastAPI()
    mounted.include_router(router)
    app.mount("/mounted", mounted)
    with TestClient(app) as client:
        assert client.post("/mounted/").status_code == 200
        assert database.labels() == ["a"]


def test_two_queues_on_one_application_are_ambiguous_for_it(tmp_path: Path, router: APIRouter) -> None:
    one, other = (DurableQ(tmp_path / name, worker=False) for name in ("one.db", "other.db"))
    app = FastAPI(lifespan=one.lifespan)

    @router.post("/")
    async def route(tasks: BackgroundTasks) -> None:
        tasks.add_task(note, "a")

    router.lifespan_context = other.lifespan
    app.include_router(router)
    with pytest.raises(ConfigurationError, match="several queues run in this application"), TestClient(app):
        pass
