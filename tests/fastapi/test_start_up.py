"""What cannot work fails when the application starts, not at its first request; what misleads is warned about."""

import contextlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

import fastapi
import pytest
from fastapi import APIRouter, Depends, FastAPI, WebSocket
from fastapi.testclient import TestClient

from durableq import ConfigurationError, DurableQ
from durableq.fastapi import BackgroundTasks, TaskCollector, background
from tests.fastapi.helpers import Database, note


class OwnTasks(fastapi.BackgroundTasks):
    """A subclass, in place of which FastAPI gives a plain ``BackgroundTasks``."""


def start(app: FastAPI) -> None:
    with TestClient(app):
        pass


@pytest.fixture(params=["application", "included router", "mounted application"])
def place(request: pytest.FixtureRequest, app: FastAPI) -> tuple[FastAPI | APIRouter, FastAPI]:
    """Where routes can be declared, and the application to start; which includes or mounts that place."""
    if request.param == "application":
        return app, app
    if request.param == "mounted application":
        mounted = FastAPI()
        app.mount("/mounted", mounted)
        return mounted, app
    return APIRouter(prefix="/included"), app


def start_with(place: tuple[FastAPI | APIRouter, FastAPI]) -> None:
    routes, app = place
    if isinstance(routes, APIRouter):
        outer = APIRouter()
        outer.include_router(routes)
        app.include_router(outer)
    start(app)


# -- subclasses of Starlette's class -------------------------------------------------------------------------


def test_a_route_that_asks_for_a_subclass_is_warned_about(
    place: tuple[FastAPI | APIRouter, FastAPI], caplog: pytest.LogCaptureFixture
) -> None:
    @place[0].post("/")
    async def send_mail(own_tasks: OwnTasks) -> None: ...

    start_with(place)
    [warning] = [record for record in caplog.records if record.name == "durableq.fastapi"]
    assert warning.levelno == logging.WARNING
    text = warning.getMessage()
    assert "'own_tasks'" in text
    assert "send_mail" in text
    assert "OwnTasks" in text
    assert "durableq.fastapi.BackgroundTasks" in text


def test_a_dependency_that_asks_for_a_subclass_is_warned_about(app: FastAPI, caplog: pytest.LogCaptureFixture) -> None:
    class Mailer:
        def __init__(self, own_tasks: OwnTasks) -> None: ...

    def greet(tasks_of_the_dependency: OwnTasks, mailer: Annotated[Mailer, Depends()]) -> None: ...

    @app.post("/")
    async def route(greeted: Annotated[None, Depends(greet)]) -> None: ...

    start(app)
    assert "'tasks_of_the_dependency'" in caplog.text
    assert "'own_tasks'" in caplog.text


def test_fastapis_own_class_and_ours_are_not_warned_about(app: FastAPI, caplog: pytest.LogCaptureFixture) -> None:
    @app.post("/")
    async def route(plain: fastapi.BackgroundTasks, durable: BackgroundTasks) -> None: ...

    start(app)
    assert not [record for record in caplog.records if record.name == "durableq.fastapi"]


# -- WebSockets ----------------------------------------------------------------------------------------------


def test_a_websocket_route_that_takes_background_tasks_is_refused(
    place: tuple[FastAPI | APIRouter, FastAPI],
) -> None:
    @place[0].websocket("/socket")
    async def route(websocket: WebSocket, background_tasks: BackgroundTasks) -> None: ...

    with pytest.raises(ConfigurationError, match=r"/socket' takes BackgroundTasks.*await dq\.add_task"):
        start_with(place)


def test_a_websocket_route_whose_dependency_takes_background_tasks_is_refused(
    place: tuple[FastAPI | APIRouter, FastAPI],
) -> None:
    def greet(background_tasks: BackgroundTasks) -> None: ...

    def welcome(greeted: Annotated[None, Depends(greet)]) -> None: ...

    @place[0].websocket("/socket", dependencies=[Depends(welcome)])
    async def route(websocket: WebSocket) -> None: ...

    with pytest.raises(ConfigurationError, match="WebSocket route"):
        start_with(place)


def test_a_websocket_route_that_takes_an_alias_of_a_queue_is_refused(app: FastAPI, dq: DurableQ) -> None:
    @app.websocket("/socket")
    async def route(websocket: WebSocket, tasks: Annotated[TaskCollector, Depends(dq.collector)]) -> None: ...

    with pytest.raises(ConfigurationError, match="WebSocket route"):
        start(app)


def test_a_websocket_route_may_add_tasks_through_the_queue(app: FastAPI, dq: DurableQ, database: Database) -> None:
    @app.websocket("/socket")
    async def route(websocket: WebSocket) -> None:
        await websocket.accept()
        await dq.add_task(note, "a")
        await websocket.send_json(database.labels())
        await websocket.close()

    with TestClient(app) as client, client.websocket_connect("/socket") as socket:
        assert socket.receive_json() == ["a"]


def test_a_websocket_route_that_no_start_up_check_saw_is_refused_when_it_is_opened() -> None:
    app = FastAPI()

    @app.websocket("/socket")
    async def route(websocket: WebSocket, background_tasks: BackgroundTasks) -> None: ...

    with pytest.raises(ConfigurationError, match=r"await dq\.add_task"), TestClient(app).websocket_connect("/socket"):
        pass


def test_a_websocket_route_is_refused_at_the_latest_when_it_is_opened_if_its_router_is_included_with_background_tasks(
    app: FastAPI,
) -> None:
    def greet(background_tasks: BackgroundTasks) -> None: ...

    router = APIRouter()

    @router.websocket("/socket")
    async def route(websocket: WebSocket) -> None: ...

    app.include_router(router, dependencies=[Depends(greet)])
    with (
        pytest.raises(ConfigurationError, match=r"await dq\.add_task"),
        TestClient(app) as client,
        client.websocket_connect("/socket"),
    ):
        pass


# -- FastAPI's exit stack ------------------------------------------------------------------------------------


def test_a_fastapi_without_the_exit_stack_fails_at_start_up_and_names_the_setting(
    app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "STACK_KEY", "not there")
    with pytest.raises(ConfigurationError, match="DURABLEQ_HANDOVER=yield"):
        start(app)


def test_a_fastapi_whose_exit_stack_is_something_else_fails_at_start_up(
    app: FastAPI, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "STACK_KEY", "path")
    with pytest.raises(ConfigurationError, match="DURABLEQ_HANDOVER=yield"):
        start(app)


def test_a_request_never_commits_in_another_way_when_the_exit_stack_is_missing(
    app: FastAPI, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    @app.post("/")
    async def route(background_tasks: BackgroundTasks) -> None:
        background_tasks.add_task(note, "a")

    with TestClient(app) as client:
        monkeypatch.setattr(background, "STACK_KEY", "not there")
        with pytest.raises(ConfigurationError, match="DURABLEQ_HANDOVER=yield"):
            client.post("/")
        assert database.labels() == []


def own_lifespan(dq: DurableQ) -> Any:
    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        async with dq.running() as state:
            yield state

    return lifespan


def test_a_missing_exit_stack_fails_at_start_up_with_a_lifespan_of_ones_own_too(
    dq: DurableQ, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "STACK_KEY", "not there")
    with pytest.raises(ConfigurationError, match="DURABLEQ_HANDOVER=yield"):
        start(FastAPI(lifespan=own_lifespan(dq)))


# -- the way by FastAPI's public interface alone -------------------------------------------------------------

BY_YIELD = """
import json
import sqlite3
import sys
from contextlib import closing
from typing import Annotated

from fastapi import Depends, FastAPI
from fastapi.testclient import TestClient

from durableq import DurableQ
from durableq.fastapi import BackgroundTasks, TaskCollector, background

background.STACK_KEY = "not there"  # as in a FastAPI that keeps no such stack

dq = DurableQ("app.db", worker=False)
app = FastAPI(lifespan=dq.lifespan)
at_start = []


def note(label: str) -> None: ...


@app.post("/plain")
def plain(background_tasks: BackgroundTasks) -> str:
    return background_tasks.add_task(note, "plain").id


@app.post("/alias")
def alias(tasks: Annotated[TaskCollector, Depends(dq.collector)]) -> str:
    return tasks.add_task(note, "alias").id


@app.post("/failing")
def failing(background_tasks: BackgroundTasks) -> str:
    background_tasks.add_task(note, "failing")
    raise ZeroDivisionError


def stored():
    with closing(sqlite3.connect("app.db")) as connection:
        return [row[0] for row in connection.execute("SELECT id FROM durableq_jobs ORDER BY seq")]


async def watched(scope, receive, send):
    async def look_and_send(message):
        if message["type"] == "http.response.start":
            at_start.append(stored())
        await send(message)

    await app(scope, receive, look_and_send)


with TestClient(watched, raise_server_exceptions=False) as client:
    answer = client.post(sys.argv[1])
    print(json.dumps([background.HANDOVER, answer.status_code, at_start, stored()]))
"""


def run(directory: Path, script: str, *arguments: str, handover: str) -> subprocess.CompletedProcess[str]:
    (directory / "main.py").write_text(script)
    return subprocess.run(
        [sys.executable, "main.py", *arguments],
        cwd=directory,
        env=os.environ | {"DURABLEQ_HANDOVER": handover},
        capture_output=True,
        text=True,
        timeout=50,
    )


def run_by_yield(directory: Path, path: str) -> tuple[int, list[list[str]], list[str]]:
    """Send one request in a process of its own. Return its status, what was stored at its start, and at the end."""
    ended = run(directory, BY_YIELD, path, handover="yield")
    assert ended.returncode == 0, ended.stderr
    handover, status, at_start, stored = json.loads(ended.stdout)
    assert handover == "yield"
    return status, at_start, stored


def test_the_setting_that_the_error_names_works_without_the_exit_stack(tmp_path: Path) -> None:
    status, at_start, stored = run_by_yield(tmp_path, "/plain")
    assert status == 200
    assert len(stored) == 1
    assert at_start == [stored]


def test_the_setting_that_the_error_names_stores_nothing_of_a_route_that_fails(tmp_path: Path) -> None:
    assert run_by_yield(tmp_path, "/failing") == (500, [[]], [])


def test_the_setting_that_the_error_names_commits_an_aliass_jobs_before_the_response_too(tmp_path: Path) -> None:
    status, at_start, stored = run_by_yield(tmp_path, "/alias")
    assert status == 200
    assert len(stored) == 1
    assert at_start == [stored]


def test_an_unknown_way_is_refused_at_import(tmp_path: Path) -> None:
    ended = run(tmp_path, "import durableq.fastapi", handover="magic")
    assert ended.returncode != 0
    assert "expected DURABLEQ_HANDOVER to be 'stack' or 'yield', got 'magic'" in ended.stderr


def test_routes_whose_tasks_stay_in_memory_are_told_once(app: FastAPI, caplog: pytest.LogCaptureFixture) -> None:
    def audited(background_tasks: fastapi.BackgroundTasks) -> None: ...

    app.get("/audited", dependencies=[Depends(audited)])(lambda: None)
    app.add_api_route("/forgotten", _forgotten, methods=["GET", "POST"])
    with caplog.at_level(logging.INFO, "durableq.fastapi"), TestClient(app):
        pass
    assert [one.getMessage() for one in caplog.records if "in memory" in one.getMessage()] == [
        "routes with FastAPI's own BackgroundTasks, whose tasks stay in memory: /audited, /forgotten"
    ]


def _forgotten(background_tasks: fastapi.BackgroundTasks) -> None: ...
