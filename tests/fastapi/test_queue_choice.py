"""Which queue takes a request's jobs: the alias's own, the application's, the one that runs here; never a guess."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

import pytest
from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.testclient import TestClient

from durableq import ConfigurationError, DurableQ, QueueNotRunning
from durableq.fastapi import BackgroundTasks, TaskCollector
from tests.fastapi.helpers import AtResponseStart, Database, note, request, serving


@pytest.fixture
def other_database(tmp_path: Path) -> Database:
    return Database(tmp_path / "other.db")


@pytest.fixture
def other(other_database: Database) -> DurableQ:
    """A second queue."""
    return DurableQ(other_database.path, worker=False)


def add_route(app: FastAPI | APIRouter) -> None:
    """Declare ``POST /``, which takes the plain alias."""

    @app.post("/")
    async def route(background_tasks: BackgroundTasks) -> None:
        background_tasks.add_task(note, "a")


# -- the application's queue ---------------------------------------------------------------------------------


def test_the_lifespan_of_the_application_names_the_queue(app: FastAPI, database: Database) -> None:
    add_route(app)
    with TestClient(app) as client:
        assert client.post("/").status_code == 200
        assert database.labels() == ["a"]


async def test_an_application_keeps_to_its_queue_though_another_runs_on_the_same_loop(
    app: FastAPI, database: Database, other: DurableQ, other_database: Database
) -> None:
    add_route(app)
    state: dict[str, Any] = {}

    async def with_state(scope: Any, receive: Any, send: Any) -> None:
        scope["state"] = dict(state)
        await app(scope, receive, send)

    async with other.running(), app.router.lifespan_context(app) as given:
        state.update(given or {})
        assert (await request(with_state)).status == 200
        assert (database.labels(), other_database.labels()) == (["a"], [])


def test_a_lifespan_of_ones_own_hands_on_the_state(dq: DurableQ, database: Database) -> None:
    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        async with dq.running() as state:
            yield {"greeting": "hello", **state}

    app = FastAPI(lifespan=lifespan)

    @app.post("/")
    async def route(request: Request, background_tasks: BackgroundTasks) -> str:
        background_tasks.add_task(note, "a")
        return str(request.state.greeting)

    with TestClient(app) as client:
        assert client.post("/").json() == "hello"
        assert database.labels() == ["a"]


def test_a_lifespan_of_ones_own_may_forget_the_state(dq: DurableQ, database: Database) -> None:
    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with dq.running():
            yield

    app = FastAPI(lifespan=lifespan)
    add_route(app)
    with TestClient(app) as client:
        assert client.post("/").status_code == 200
        assert database.labels() == ["a"]


def test_the_lifespan_of_an_included_router_counts_too(dq: DurableQ, database: Database) -> None:
    app, router = FastAPI(), APIRouter(lifespan=dq.lifespan)
    add_route(router)
    app.include_router(router)
    with TestClient(app) as client:
        assert client.post("/").status_code == 200
        assert database.labels() == ["a"]


def test_a_queue_that_is_started_twice_by_one_application_is_still_one(
    app: FastAPI, dq: DurableQ, database: Database
) -> None:
    router = APIRouter(lifespan=dq.lifespan)
    add_route(router)
    app.include_router(router)
    with TestClient(app) as client:
        assert client.post("/").status_code == 200
        assert database.labels() == ["a"]


def test_an_application_may_be_started_again(app: FastAPI, database: Database) -> None:
    add_route(app)
    for stored in (["a"], ["a", "a"], ["a", "a", "a"]):
        with TestClient(app) as client:
            assert client.post("/").status_code == 200
            assert database.labels() == stored


async def test_a_real_server_hands_on_the_state(
    app: FastAPI, database: Database, other: DurableQ, other_database: Database
) -> None:
    add_route(app)
    async with other.running(), serving(app) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert (database.labels(), other_database.labels()) == (["a"], [])


# -- the one that runs here ----------------------------------------------------------------------------------


async def test_the_one_queue_that_runs_on_this_loop_is_taken(dq: DurableQ, database: Database) -> None:
    app = FastAPI()
    add_route(app)
    async with dq.running():
        assert (await request(app)).status == 200
        assert database.labels() == ["a"]


async def test_a_queue_that_was_stopped_is_not_taken(dq: DurableQ, other: DurableQ, other_database: Database) -> None:
    app = FastAPI()
    add_route(app)
    async with other.running():
        async with dq.running():
            pass
        assert (await request(app)).status == 200
        assert other_database.labels() == ["a"]


# -- none, or several ----------------------------------------------------------------------------------------


async def test_with_no_queue_the_error_names_each_way_to_start_one() -> None:
    app = FastAPI()
    add_route(app)
    with pytest.raises(QueueNotRunning) as refused:
        await request(app)
    text = str(refused.value)
    assert "FastAPI(lifespan=dq.lifespan)" in text
    assert "async with dq.running(app) as state: yield state" in text
    assert "mounted app" in text
    assert "with TestClient(app) as client:" in text


def test_a_test_client_without_with_runs_no_lifespan_and_the_error_says_so(app: FastAPI) -> None:
    add_route(app)
    with pytest.raises(QueueNotRunning, match="TestClient runs lifespans only as 'with TestClient"):
        TestClient(app).post("/")


def test_the_lifespan_of_a_mounted_app_never_runs_and_the_error_says_so(app: FastAPI) -> None:
    add_route(app)
    outer = FastAPI()
    outer.mount("/mounted", app)
    with (
        TestClient(outer) as client,
        pytest.raises(QueueNotRunning, match="lifespan of a mounted app never runs: put it on the outer app"),
    ):
        client.post("/mounted/")


async def test_two_queues_on_this_loop_are_ambiguous_and_the_error_names_both(dq: DurableQ, other: DurableQ) -> None:
    app = FastAPI()
    add_route(app)
    async with dq.running(), other.running():
        with pytest.raises(QueueNotRunning, match=r"ambiguous.*Annotated\[TaskCollector, Depends") as refused:
            await request(app)
    assert repr(dq) in str(refused.value)
    assert repr(other) in str(refused.value)


def test_two_lifespans_on_one_application_are_refused_where_a_route_does_not_choose(
    app: FastAPI, other: DurableQ
) -> None:
    app.include_router(APIRouter(lifespan=other.lifespan))
    add_route(app)
    with (
        pytest.raises(ConfigurationError, match=r"several queues run in this application, and the route '/' does not"),
        TestClient(app),
    ):
        pass


def test_one_queue_that_is_entered_twice_is_no_choice(app: FastAPI, dq: DurableQ, database: Database) -> None:
    app.include_router(APIRouter(lifespan=dq.lifespan))
    add_route(app)
    with TestClient(app) as client:
        client.post("/")
        assert len(database.labels()) == 1


def test_two_queues_in_a_lifespan_of_ones_own_are_ambiguous_and_the_last_does_not_win(
    dq: DurableQ, database: Database, other: DurableQ, other_database: Database
) -> None:
    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        async with dq.running() as first, other.running() as second:
            yield {**first, **second}

    app = FastAPI(lifespan=lifespan)
    add_route(app)
    with TestClient(app) as client:
        with pytest.raises(QueueNotRunning, match="ambiguous"):
            client.post("/")
        assert (database.labels(), other_database.labels()) == ([], [])


# -- an alias per queue --------------------------------------------------------------------------------------


def two_queues(dq: DurableQ, other: DurableQ) -> FastAPI:
    """An application whose lifespan runs both."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        async with dq.running() as state, other.running():
            yield state

    return FastAPI(lifespan=lifespan)


def test_an_alias_names_its_queue_where_there_are_two(
    dq: DurableQ, database: Database, other: DurableQ, other_database: Database
) -> None:
    app = two_queues(dq, other)

    @app.post("/first")
    async def first(tasks: Annotated[TaskCollector, Depends(dq.collector)]) -> None:
        tasks.add_task(note, "first")

    @app.post("/second")
    def second(tasks: Annotated[TaskCollector, Depends(other.collector)]) -> None:
        tasks.add_task(note, "second")

    watched = AtResponseStart(app, database)
    watched_too = AtResponseStart(watched, other_database)
    with TestClient(watched_too) as client:
        assert client.post("/second").status_code == 200
        assert client.post("/first").status_code == 200
    assert watched.seen == [[], ["first"]]
    assert watched_too.seen == [["second"], ["second"]]


def test_one_request_may_add_to_both_queues(
    dq: DurableQ, database: Database, other: DurableQ, other_database: Database
) -> None:
    app = two_queues(dq, other)

    @app.post("/")
    async def route(
        tasks: Annotated[TaskCollector, Depends(dq.collector)], bulk: Annotated[TaskCollector, Depends(other.collector)]
    ) -> None:
        tasks.add_task(note, "first")
        bulk.add_task(note, "second")

    @app.post("/failing")
    async def failing(
        tasks: Annotated[TaskCollector, Depends(dq.collector)], bulk: Annotated[TaskCollector, Depends(other.collector)]
    ) -> None:
        tasks.add_task(note, "first")
        bulk.add_task(note, "second")
        raise ZeroDivisionError

    with TestClient(app, raise_server_exceptions=False) as client:
        assert client.post("/failing").status_code == 500
        assert (database.labels(), other_database.labels()) == ([], [])
        assert client.post("/").status_code == 200
        assert (database.labels(), other_database.labels()) == (["first"], ["second"])


def test_two_aliases_of_one_queue_and_the_plain_one_share_a_collector(
    app: FastAPI, dq: DurableQ, database: Database
) -> None:
    @app.post("/")
    async def route(
        plain: BackgroundTasks,
        one: Annotated[TaskCollector, Depends(dq.collector)],
        other: Annotated[TaskCollector, Depends(dq.collector)],
    ) -> bool:
        for number, tasks in enumerate((plain, one, other)):
            tasks.add_task(note, str(number))
        return plain is one is other

    watched = AtResponseStart(app, database)
    with TestClient(watched) as client:
        assert client.post("/").json() is True
    assert watched.seen == [["0", "1", "2"]]


def test_an_alias_of_a_route_that_fails_stores_nothing(app: FastAPI, dq: DurableQ, database: Database) -> None:
    @app.post("/")
    async def route(tasks: Annotated[TaskCollector, Depends(dq.collector)]) -> None:
        tasks.add_task(note, "a")
        raise ZeroDivisionError

    with TestClient(app, raise_server_exceptions=False) as client:
        assert client.post("/").status_code == 500
        assert database.labels() == []


def test_an_alias_whose_queue_does_not_run_says_how_to_start_it(dq: DurableQ) -> None:
    app = FastAPI()

    @app.post("/")
    async def route(tasks: Annotated[TaskCollector, Depends(dq.collector)]) -> None:
        tasks.add_task(note, "a")

    with pytest.raises(QueueNotRunning, match=r"lifespan=dq\.lifespan"):
        TestClient(app).post("/")


# -- mounted applications ------------------------------------------------------------------------------------


def test_a_mounted_app_uses_the_queue_of_the_outer_one_although_it_names_its_own(
    app: FastAPI, database: Database, other: DurableQ, other_database: Database
) -> None:
    """Starlette never runs the lifespan of a mounted app, so its queue cannot take anything."""
    mounted = FastAPI(lifespan=other.lifespan)
    add_route(mounted)
    app.mount("/mounted", mounted)
    with TestClient(app) as client:
        assert client.post("/mounted/").status_code == 200
        assert database.labels() == ["a"]
        assert not other_database.path.exists()


def test_a_mounted_app_can_use_an_alias_when_the_outer_lifespan_runs_its_queue(
    dq: DurableQ, database: Database, other: DurableQ, other_database: Database
) -> None:
    app, mounted = two_queues(dq, other), FastAPI()

    @mounted.post("/")
    async def route(tasks: Annotated[TaskCollector, Depends(other.collector)]) -> None:
        tasks.add_task(note, "a")

    app.mount("/mounted", mounted)
    with TestClient(app) as client:
        assert client.post("/mounted/").status_code == 200
        assert (database.labels(), other_database.labels()) == ([], ["a"])
