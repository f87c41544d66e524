"""What cannot work without a request is refused when the task is registered, with the names of all concerned."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Optional

import fastapi
import fastapi.security
import pytest
import starlette.background
import starlette.requests
import starlette.responses
from fastapi import Body, Cookie, Depends, File, Form, Header, Path, Query, Security
from pydantic import Field

from durableq.dependencies import INJECTED, injection_of
from durableq.errors import InvalidTask
from durableq.fastapi import BackgroundTasks, TaskCollector
from tests import dependencies_postponed as postponed

Call = Callable[..., Any]


def refusal(function: Call) -> str:
    with pytest.raises(InvalidTask) as caught:
        injection_of(function, "tasks:send")
    return str(caught.value)


def refusal_of_dependency(dependency: Call) -> str:
    """Why a task may not depend on something that depends on this."""

    def between(inner: Annotated[Any, Depends(dependency)]) -> Any:
        return inner

    async def send(to: str, *, value: Any = Depends(between)) -> None: ...

    message = refusal(send)
    assert message.startswith("tasks:send: parameter 'value' cannot be injected: in between -> ")
    return message


class OwnRequest(starlette.requests.Request):
    pass


REQUEST_BOUND: list[Any] = [
    fastapi.Request,
    starlette.requests.Request,
    OwnRequest,
    fastapi.WebSocket,
    starlette.requests.HTTPConnection,
    fastapi.Response,
    starlette.responses.JSONResponse,
    fastapi.BackgroundTasks,
    starlette.background.BackgroundTasks,
    fastapi.security.SecurityScopes,
    fastapi.UploadFile,
    fastapi.Request | None,
    Optional[fastapi.Request],  # noqa: UP045 - the other spelling is another type
    Annotated[fastapi.Request, "noted"],
    Annotated[fastapi.Request | None, "noted"],
    list[fastapi.UploadFile],
]


@pytest.mark.parametrize("annotation", REQUEST_BOUND, ids=str)
def test_a_dependency_may_not_take_what_belongs_to_a_request(annotation: Any) -> None:
    def get_user(page: int = 1, *, concerned: annotation = None) -> None: ...

    message = refusal_of_dependency(get_user)
    assert "in between -> get_user, parameter 'concerned' (" in message
    assert "needs a request, and a task has none" in message


@pytest.mark.parametrize("annotation", REQUEST_BOUND, ids=str)
def test_the_task_itself_may_not_take_what_belongs_to_a_request(annotation: Any) -> None:
    async def send(to: str, concerned: annotation) -> None: ...

    message = refusal(send)
    assert message.startswith("tasks:send: parameter 'concerned' (")
    assert message.endswith(
        "needs a request, and a task has none; take what you need from the request in the route, and pass it to the "
        "task as an argument"
    )


MARKERS: list[Any] = [Query, Header, Cookie, Body, Form, File]


@pytest.mark.parametrize("marker", MARKERS)
def test_a_dependency_may_not_take_a_part_of_a_request(marker: Any) -> None:
    def by_default(page: int = marker(1)) -> None: ...
    def in_annotated(page: Annotated[int, marker()] = 1) -> None: ...

    for dependency in (by_default, in_annotated):
        assert f"parameter 'page' ({marker.__name__}) needs a request" in refusal_of_dependency(dependency)


def test_a_dependency_may_not_take_a_part_of_the_path() -> None:
    def get_item(item: Annotated[int, Path()]) -> None: ...

    assert "parameter 'item' (Path) needs a request" in refusal_of_dependency(get_item)


@pytest.mark.parametrize("marker", MARKERS)
def test_the_task_itself_may_not_have_a_part_of_a_request_as_default(marker: Any) -> None:
    async def send(page: int = marker(1)) -> None: ...

    assert refusal(send).startswith(f"tasks:send: parameter 'page' ({marker.__name__}) needs a request")


def test_a_constraint_in_the_tasks_own_annotation_needs_no_request() -> None:
    async def send(page: Annotated[int, Query(gt=0)], other: Annotated[int, Field(gt=0)] = 1) -> None: ...

    assert injection_of(send, "tasks:send") is None


def test_pydantics_field_as_a_default_would_not_be_the_default() -> None:
    def pages(limit: int = Field(10)) -> None: ...

    assert "'limit' (Field, which FastAPI would take from the query) needs a request" in refusal_of_dependency(pages)


SCHEMES: list[Any] = [
    fastapi.security.OAuth2PasswordBearer(tokenUrl="token"),
    fastapi.security.APIKeyHeader(name="x-key"),
    fastapi.security.HTTPBearer(),
]


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: type(scheme).__name__)
def test_a_security_scheme_needs_a_request(scheme: Any) -> None:
    message = refusal_of_dependency(scheme)
    assert f"in between -> {type(scheme).__name__}, parameter 'request' (" in message
    assert "needs a request, and a task has none" in message


def test_security_scopes_are_for_requests() -> None:
    async def send(*, value: None = Security(postponed.get_name, scopes=["read"])) -> None: ...

    assert refusal(send).startswith("tasks:send: parameter 'value' has Security(scopes=...)")


# -- our own BackgroundTasks --------------------------------------------------------------------------------------


async def with_the_alias(background_tasks: BackgroundTasks) -> None: ...
async def with_the_class(background_tasks: TaskCollector) -> None: ...
async def with_the_alias_or_none(background_tasks: BackgroundTasks | None = None) -> None: ...


@pytest.mark.parametrize("function", [with_the_alias, with_the_class])
def test_durable_background_tasks_belong_to_a_request_and_the_remedy_is_named(function: Call) -> None:
    expected = (
        "parameter 'background_tasks' is durableq's BackgroundTasks, which belongs to a request; in a task use 'await "
        "dq.add_task(...)' or 'current_job().add_task(...)'"
    )
    assert refusal(function) == f"tasks:send: {expected}"
    assert refusal_of_dependency(function).endswith(f"-> {function.__name__}, {expected}")


def test_durable_background_tasks_or_none_are_refused_too() -> None:
    assert "'background_tasks' is durableq's BackgroundTasks" in refusal(with_the_alias_or_none)


# -- what FastAPI would take from the query -----------------------------------------------------------------------


def test_a_dependencys_parameter_without_a_default_is_refused() -> None:
    def pages(limit: int, offset: int = 0) -> None: ...

    assert refusal_of_dependency(pages).endswith(
        "in between -> pages, parameter 'limit' has no default, and FastAPI would take it from the query; "
        "give it a default, or a Depends of its own"
    )


def test_a_class_may_ask_for_nothing_more_than_a_function() -> None:
    @dataclass
    class Pages:
        limit: int

    assert "in between -> Pages, parameter 'limit' has no default" in refusal_of_dependency(Pages)


def test_a_decorator_that_hides_the_parameters_is_told_of_wraps() -> None:
    def hidden(*args: Any, **kwargs: Any) -> None: ...

    message = refusal_of_dependency(hidden)
    assert "parameter 'args' is starred" in message
    assert "use functools.wraps in the decorator" in message


def test_a_positional_only_parameter_cannot_be_passed_by_name() -> None:
    def get_user(name: Annotated[str, Depends(postponed.get_name)], /) -> None: ...

    assert "parameter 'name' is positional-only" in refusal_of_dependency(get_user)


# -- markers in the wrong place -----------------------------------------------------------------------------------


def test_injected_without_a_depends_is_refused() -> None:
    async def send(to: str, *, session: Any = INJECTED) -> None: ...

    assert refusal(send) == (
        "tasks:send: parameter 'session' has the default INJECTED, but no Depends in its annotation; "
        "write session: Annotated[T, Depends(...)] = INJECTED"
    )


def test_injected_without_a_depends_is_refused_in_a_dependency_too() -> None:
    def get_user(session: Any = INJECTED) -> None: ...

    assert "in between -> get_user, parameter 'session' has the default INJECTED" in refusal_of_dependency(get_user)


def test_a_depends_where_fastapi_would_not_see_it_is_refused() -> None:
    async def send(*, name: Annotated[str, Depends(postponed.get_name)] | None = INJECTED) -> None: ...

    message = refusal(send)
    assert message.startswith("tasks:send: parameter 'name' has its Depends inside of ")
    assert message.endswith("write Annotated[T | None, Depends(...)]")


def test_two_markers_at_one_parameter_are_refused() -> None:
    marker: Any = Depends(postponed.get_name)

    async def send(*, name: Annotated[str, Depends(postponed.get_name)] = marker) -> None: ...

    assert "'name' has a FastAPI marker in its annotation and another as default" in refusal(send)


def test_depends_without_anything_to_call_is_refused() -> None:
    async def bare(*, value=Depends()) -> None: ...  # type: ignore[no-untyped-def]
    async def wrong(*, value: Annotated[None, Depends("text")] = INJECTED) -> None: ...

    for function in (bare, wrong):
        assert refusal(function) == (
            "tasks:send: parameter 'value' has Depends() without a function, and no class as annotation"
        )


def test_what_cannot_be_hashed_is_refused_as_fastapi_could_not_use_it_either() -> None:
    @dataclass
    class Checker:
        role: str = "admin"

        def __call__(self) -> None: ...

    async def send(*, value: None = Depends(Checker())) -> None: ...

    assert refusal(send).endswith("'value' depends on Checker, which has to be hashable")


def starred(*values: Annotated[str, Depends(postponed.get_name)]) -> None: ...
def starred_names(**values: Annotated[str, Depends(postponed.get_name)]) -> None: ...
def before_a_star(value: Annotated[str, Depends(postponed.get_name)], *rest: str) -> None: ...
def positional_only(value: Annotated[str, Depends(postponed.get_name)], /) -> None: ...
def after_positional_only(to: str, /, value: Annotated[str, Depends(postponed.get_name)]) -> None: ...


@pytest.mark.parametrize("task", [starred, starred_names, before_a_star, positional_only, after_positional_only])
def test_an_injected_parameter_must_be_out_of_the_way_of_positional_arguments(task: Call) -> None:
    message = refusal(task)
    assert message.startswith("tasks:send: parameter 'value")
    assert message.endswith("make it keyword-only")


# -- what cannot be understood ------------------------------------------------------------------------------------


def test_a_circle_of_dependencies_is_an_error_and_not_a_recursion() -> None:
    assert refusal(postponed.circular) == (
        "tasks:send: parameter 'value' cannot be injected: in one -> another -> one, the dependencies are circular"
    )


def test_an_annotation_that_cannot_be_resolved_is_refused_with_the_remedy() -> None:
    assert refusal(postponed.with_a_dependency_that_cannot_be_understood) == (
        "tasks:send: parameter 'value' cannot be injected: in needs_an_amount, the annotation 'Decimal' of parameter "
        "'amount' cannot be resolved (name 'Decimal' is not defined); import or define the names it uses at module "
        "level, above the task, not under TYPE_CHECKING"
    )
    assert refusal(postponed.that_cannot_be_understood).startswith(
        "tasks:send: the annotation 'Decimal' of parameter 'amount' cannot be resolved"
    )


def test_a_callable_without_a_signature_is_refused_with_the_remedy() -> None:
    class Builtin:
        __signature__ = "not known"

        def __call__(self) -> None: ...

    message = refusal_of_dependency(Builtin())
    assert "its signature cannot be read" in message
    assert message.endswith("wrap it in a function of your own")
