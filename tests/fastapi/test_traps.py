"""What works with FastAPI's own ``BackgroundTasks`` and cannot work here says so, at once and in plain words."""

import asyncio
import functools
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from fastapi import Depends, FastAPI, Response
from fastapi.responses import StreamingResponse
from fastapi.testclient import TestClient

from durableq import CollectorClosed, ConfigurationError, DurableQ, InvalidArguments, InvalidTask, JobNotFound
from durableq.fastapi import BackgroundTasks, TaskCollector
from tests.fastapi.helpers import Database, note, raised_by


@pytest.fixture
def collector(app: FastAPI) -> TaskCollector:
    """The collector of a request that has ended."""
    collectors: list[TaskCollector] = []

    @app.post("/collector")
    async def route(background_tasks: BackgroundTasks) -> None:
        collectors.append(background_tasks)

    with TestClient(app) as client:
        assert client.post("/collector").status_code == 200
    return collectors[0]


# -- annotations ---------------------------------------------------------------------------------------------


def test_an_optional_annotation_is_refused_when_the_route_is_declared() -> None:
    with pytest.raises(ConfigurationError, match=r"'BackgroundTasks \| None' cannot be injected.*always given"):

        @FastAPI().post("/")
        async def route(background_tasks: BackgroundTasks | None = None) -> None: ...


def test_the_bare_class_is_refused_when_the_route_is_declared() -> None:
    with pytest.raises(ConfigurationError, match=r"annotate .* with durableq\.fastapi\.BackgroundTasks"):

        @FastAPI().post("/")
        async def route(background_tasks: TaskCollector) -> None: ...


def test_depends_beside_the_annotation_is_refused_when_the_route_is_declared() -> None:
    with pytest.raises(AssertionError, match="Cannot specify `Depends` in `Annotated` and default value together"):

        @FastAPI().post("/")
        async def route(background_tasks: BackgroundTasks = Depends()) -> None: ...


def test_a_default_of_none_is_still_given_the_collector(app: FastAPI, database: Database) -> None:
    @app.post("/")
    async def route(background_tasks: BackgroundTasks = None) -> None:  # type: ignore[assignment]
        background_tasks.add_task(note, "a")

    with TestClient(app) as client:
        assert client.post("/").status_code == 200
        assert database.labels() == ["a"]


# -- Starlette's other attributes ----------------------------------------------------------------------------


def test_there_is_no_list_of_tasks_to_change(collector: TaskCollector) -> None:
    with pytest.raises(AttributeError, match=r"read '\.jobs'"):
        collector.tasks.append(note)


async def test_a_collector_is_not_called_to_run_its_tasks(collector: TaskCollector) -> None:
    with pytest.raises(TypeError, match=r"run by a worker, not by calling them.*drain"):
        await collector()


def test_the_jobs_can_be_read_and_not_changed(app: FastAPI, database: Database) -> None:
    @app.post("/")
    async def route(background_tasks: BackgroundTasks) -> list[str]:
        background_tasks.add_task(note, "a")
        before = background_tasks.jobs
        background_tasks.add_task(note, "b")
        assert len(before) == 1
        return [job.id for job in background_tasks.jobs]

    with TestClient(app) as client:
        assert client.post("/").json() == list(database.label_of())


def test_a_job_cannot_be_awaited_in_the_route_that_adds_it(app: FastAPI, dq: DurableQ) -> None:
    @app.post("/")
    async def route(background_tasks: BackgroundTasks) -> None:
        await dq.result(background_tasks.add_task(note, "a"), timeout=30)

    with TestClient(app) as client, pytest.raises(JobNotFound) as caught:
        client.post("/")
    assert "One that was added in a route is stored only when the route has returned" in str(caught.value)


def test_the_jobs_of_a_request_that_failed_are_forgotten(app: FastAPI) -> None:
    collectors: list[TaskCollector] = []

    @app.post("/")
    async def route(background_tasks: BackgroundTasks) -> None:
        collectors.append(background_tasks)
        background_tasks.add_task(note, "a")
        raise ZeroDivisionError

    with TestClient(app, raise_server_exceptions=False) as client:
        assert client.post("/").status_code == 500
    assert collectors[0].jobs == ()


# -- after the commit ----------------------------------------------------------------------------------------


@pytest.mark.fault("F57")
def test_add_task_in_a_streaming_body_raises(app: FastAPI, database: Database) -> None:
    errors: list[BaseException | None] = []

    @app.get("/")
    async def route(background_tasks: BackgroundTasks) -> Response:
        async def body() -> AsyncIterator[str]:
            errors.append(raised_by(lambda: background_tasks.add_task(note, "too late")))
            yield "streamed"

        background_tasks.add_task(note, "in time")
        return StreamingResponse(body())

    with TestClient(app) as client:
        assert client.get("/").text == "streamed"
        assert database.labels() == ["in time"]
    assert isinstance(errors[0], CollectorClosed)
    assert "await dq.add_task(...)" in str(errors[0])


@pytest.mark.fault("F57")
def test_add_task_in_a_spawned_task_raises_once_the_request_is_over(app: FastAPI, database: Database) -> None:
    errors: list[BaseException | None] = []
    spawned: list[asyncio.Task[None]] = []

    @app.post("/")
    async def route(background_tasks: BackgroundTasks) -> None:
        async def later() -> None:
            await over.wait()
            errors.append(raised_by(lambda: background_tasks.add_task(note, "too late")))

        over = asyncio.Event()
        overs.append(over)
        spawned.append(asyncio.create_task(later()))

    overs: list[asyncio.Event] = []

    async def let_it_go_on() -> None:
        overs[0].set()
        await spawned[0]

    with TestClient(app) as client:
        assert client.post("/").status_code == 200
        assert client.portal is not None
        client.portal.call(let_it_go_on)
        assert database.labels() == []
    assert isinstance(errors[0], CollectorClosed)


# -- what cannot be a task -----------------------------------------------------------------------------------


def closure_over(text: str) -> Callable[[], str]:
    def closure() -> str:
        return text

    return closure


def generator() -> Any:
    yield 1


class Mailer:
    def send(self, label: str) -> None: ...

    @classmethod
    def send_all(cls) -> None: ...

    def __call__(self) -> None: ...


REFUSED = [
    pytest.param(lambda: None, "it is a lambda", id="lambda"),
    pytest.param(closure_over("x"), "inside another function", id="closure"),
    pytest.param(functools.partial(note, "x"), "a functools.partial", id="partial"),
    pytest.param(print, "a built-in function", id="builtin"),
    pytest.param(Mailer().send, "a bound method", id="bound method"),
    pytest.param(Mailer.send_all, "a bound method", id="class method"),
    pytest.param(Mailer.send, "belongs to a class", id="function of a class"),
    pytest.param(Mailer(), "a Mailer object", id="callable object"),
    pytest.param(Mailer, "a class", id="class"),
    pytest.param(generator, "generator", id="generator"),
    pytest.param(functools.reduce, "a built-in function", id="C function"),
    pytest.param(asyncio.sleep, "does not belong to this app", id="somebody else's function"),
]


@pytest.mark.parametrize(("function", "reason"), REFUSED)
def test_what_could_not_be_found_after_a_restart_is_refused_at_the_call(
    app: FastAPI, database: Database, function: Callable[..., Any], reason: str
) -> None:
    raised: list[BaseException | None] = []

    @app.post("/")
    async def route(background_tasks: BackgroundTasks) -> None:
        background_tasks.add_task(note, "before")
        raised.append(raised_by(lambda: background_tasks.add_task(function)))
        background_tasks.add_task(function)

    with TestClient(app, raise_server_exceptions=False) as client:
        assert client.post("/").status_code == 500
        assert database.labels() == []
    assert isinstance(raised[0], InvalidTask)
    assert reason in str(raised[0])


# -- arguments -----------------------------------------------------------------------------------------------


def count(label: str, times: int = 1) -> None: ...


@pytest.mark.parametrize(
    ("args", "kwargs", "argument", "reason"),
    [
        pytest.param((), {}, "label", "is missing", id="missing"),
        pytest.param(("a", 1, 2), {}, None, "expected at most 2 positional arguments, got 3", id="too many"),
        pytest.param(("a",), {"tiems": 2}, "tiems", "did you mean 'times'", id="misspelt"),
        pytest.param(("a",), {"label": "b"}, "label", "given twice", id="twice"),
        pytest.param((object(),), {}, "label", "valid string", id="wrong type"),
        pytest.param(("a", "many"), {}, "times", "valid integer", id="no number"),
    ],
)
def test_arguments_that_the_signature_refuses_fail_the_request_at_the_call(
    app: FastAPI,
    database: Database,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    argument: str | None,
    reason: str,
) -> None:
    function: Callable[..., Any] = count

    @app.post("/")
    async def route(background_tasks: BackgroundTasks) -> None:
        background_tasks.add_task(note, "before")
        background_tasks.add_task(function, *args, **kwargs)

    with TestClient(app) as client:
        with pytest.raises(InvalidArguments, match=reason) as refused:
            client.post("/")
        assert refused.value.argument == argument
        assert database.labels() == []
    with TestClient(app, raise_server_exceptions=False) as client:
        assert client.post("/").status_code == 500
        assert database.labels() == []
