"""Calling a task as the plain function it is: what durableq would inject has to be passed."""

import inspect
import os
from collections.abc import Callable
from typing import Annotated, Any

import pytest
from fastapi import Depends, FastAPI
from fastapi.testclient import TestClient

from durableq.dependencies import INJECTED, Injection, injection_of


def injected(function: Callable[..., Any]) -> Injection:
    found = injection_of(function, "tasks:send")
    assert found is not None
    return found


async def get_number() -> int:
    return 7


Number = Annotated[int, Depends(get_number)]


@pytest.mark.parametrize(
    ("args", "kwargs"), [(("to",), {}), ((), {"to": "to"}), (("to",), {"session": 1}), (("to", 1), {})]
)
def test_a_direct_call_that_leaves_an_injected_parameter_out_is_told(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    async def send(to: str, session: Number = INJECTED, *, mailer: Number = INJECTED) -> None: ...

    missing = "mailer" if len(args) == 2 or "session" in kwargs else "session"
    message = f"parameter '{missing}' of 'tasks:send' is injected by durableq; pass it when calling the function dir"
    with pytest.raises(TypeError, match=message):
        injected(send).check_direct_call(args, kwargs)


def test_positional_arguments_do_not_stand_for_a_keyword_only_parameter() -> None:
    async def send(to: str, *more: str, mailer: Number = INJECTED) -> None: ...

    with pytest.raises(TypeError, match="parameter 'mailer' of 'tasks:send'"):
        injected(send).check_direct_call(("one", "two", "three"), {})


@pytest.mark.parametrize(
    ("args", "kwargs"), [(("to", 1), {"mailer": 2}), ((), {"to": "to", "session": None, "mailer": 2})]
)
def test_a_direct_call_that_passes_them_by_place_or_by_name_is_fine(
    args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    async def send(to: str, session: Number, *, mailer: int = Depends(get_number)) -> None: ...

    injected(send).check_direct_call(args, kwargs)


async def test_one_function_may_be_a_route_and_a_task() -> None:
    async def send(to: str, *, number: Number = INJECTED) -> str:
        return f"{number} to {to}"

    app = FastAPI()
    app.get("/")(send)
    with TestClient(app) as client:
        assert client.get("/", params={"to": "ann"}).json() == "7 to ann"
    async with injected(send).resolve({}) as values:
        assert await send("ann", **values) == "7 to ann"


def _enter(value: Any) -> None:
    with value:
        pass


async def _enter_async(value: Any) -> None:
    async with value:
        pass


async def _iterate(value: Any) -> None:
    async for _ in value:
        pass


async def _await(value: Any) -> None:
    await value


USES: list[Callable[[Any], Any]] = [
    lambda value: value.execute("select 1"),
    lambda value: setattr(value, "timeout", 1),
    lambda value: value(),
    lambda value: value["key"],
    lambda value: value.__setitem__("key", 1),
    lambda value: "key" in value,
    lambda value: bool(value),
    lambda value: len(value),
    lambda value: list(value),
    lambda value: next(value),
    lambda value: value + 1,
    lambda value: 1 + value,
    lambda value: value < 1,
    lambda value: int(value),
    lambda value: f"{value}",
    lambda value: str(value),
    os.fspath,
    lambda value: getattr(value, "execute", None),
    _enter,
    _enter_async,
    _iterate,
    _await,
]


@pytest.mark.parametrize("use", USES)
async def test_any_use_of_the_stand_in_says_that_the_value_is_injected(use: Callable[[Any], Any]) -> None:
    with pytest.raises(TypeError, match="injected by durableq; pass it yourself when you call the function directly"):
        result = use(INJECTED)
        if inspect.isawaitable(result):
            await result


def test_the_stand_in_can_be_looked_at() -> None:
    async def send(to: str, *, number: Number = INJECTED) -> None: ...

    assert repr(INJECTED) == "INJECTED"
    assert str(inspect.signature(send)).count("INJECTED") == 1
    assert not hasattr(INJECTED, "__wrapped__")
