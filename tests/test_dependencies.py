"""FastAPI's ``Depends`` in a task's signature: the same values as in a route, anew for each attempt."""

import functools
import gc
import inspect
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import count
from typing import Annotated, Any

import pytest
from fastapi import Depends, FastAPI, Security
from fastapi.testclient import TestClient
from pydantic import BaseModel
from typing_extensions import TypeAliasType

from durableq.dependencies import INJECTED, Injection, injection_of
from durableq.errors import InvalidTask
from tests import dependencies_postponed as postponed

Call = Callable[..., Any]


def injected(function: Call) -> Injection:
    found = injection_of(function, "tasks:send")
    assert found is not None
    return found


async def values_of(function: Call, overrides: Mapping[Call, Call] | None = None) -> dict[str, Any]:
    async with injected(function).resolve(overrides or {}) as values:
        return values


def task_with(dependency: Call) -> Call:
    async def send(to: str, *, value: Any = Depends(dependency)) -> None: ...

    return send


# -- how it is written --------------------------------------------------------------------------------------------


@dataclass
class Settings:
    region: str = "north"


async def get_number() -> int:
    return 7


Number = Annotated[int, Depends(get_number)]
Aliased = TypeAliasType("Aliased", Annotated[int, Depends(get_number)])


async def in_annotated(to: str, *, value: Annotated[int, Depends(get_number)] = INJECTED) -> None: ...
async def without_default(to: str, *, value: Number) -> None: ...
async def as_default(to: str, *, value: int = Depends(get_number)) -> None: ...
async def by_a_type_alias(to: str, *, value: Aliased = INJECTED) -> None: ...
async def with_security(to: str, *, value: int = Security(get_number)) -> None: ...
async def among_the_others(value: Number, to: str = "") -> None: ...
def in_a_plain_function(to: str, *, value: Number = INJECTED) -> None: ...
async def the_last_marker_counts(*, value: Annotated[int, Depends(Settings), Depends(get_number)]) -> None: ...
async def scoped(*, value: Annotated[int, Depends(get_number, scope="function")] = INJECTED) -> None: ...


@pytest.mark.parametrize(
    "task",
    [
        in_annotated,
        without_default,
        as_default,
        by_a_type_alias,
        with_security,
        among_the_others,
        in_a_plain_function,
        the_last_marker_counts,
        scoped,
    ],
    ids=lambda task: task.__name__,
)
async def test_a_parameter_that_depends_is_injected_and_left_out_of_the_arguments(task: Call) -> None:
    assert injected(task).names == {"value"}
    assert await values_of(task) == {"value": 7}


def test_a_task_that_asks_for_nothing_has_no_injection() -> None:
    async def send(to: str, count: int | None = None, *rest: str, **more: float) -> None: ...

    assert injection_of(send, "tasks:send") is None


async def test_depends_without_a_function_takes_the_class_of_the_annotation() -> None:
    async def send(*, one: Annotated[Settings, Depends()] = INJECTED, two: Settings = Depends()) -> None: ...

    values = await values_of(send)
    assert values == {"one": Settings("north"), "two": Settings("north")}
    assert values["one"] is values["two"]


async def test_postponed_annotations_are_understood_everywhere() -> None:
    assert await values_of(postponed.send) == {"repository": postponed.Repository(postponed.Session("db"), 50)}


async def test_a_name_for_type_checkers_alone_does_no_harm_where_nobody_asks_for_it() -> None:
    assert await values_of(postponed.with_names_for_type_checkers) == {"value": "db"}


# -- what a dependency may be -------------------------------------------------------------------------------------


class Counter:
    def __init__(self, start: int = 5) -> None:
        self.start = start

    def method(self) -> int:
        return self.start

    async def async_method(self) -> int:
        return self.start


class Callable_(Counter):
    def __call__(self) -> int:
        return self.start


class AsyncCallable(Counter):
    async def __call__(self) -> int:
        return self.start


class GeneratorCallable(Counter):
    def __call__(self) -> Iterator[int]:
        yield self.start


class AsyncGeneratorCallable(Counter):
    async def __call__(self) -> AsyncIterator[int]:
        yield self.start


def plain(start: int = 5) -> int:
    return start


async def coroutine(start: int = 5) -> int:
    return start


def generator(start: int = 5) -> Iterator[int]:
    yield start


async def async_generator(start: int = 5) -> AsyncIterator[int]:
    yield start


def wrapped(function: Call) -> Call:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


def wrapped_in_a_coroutine(function: Call) -> Call:
    @functools.wraps(function)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


@pytest.mark.parametrize("function", [plain, coroutine, generator, async_generator])
async def test_functions_coroutines_and_generators_of_both_kinds_give_their_value(function: Call) -> None:
    assert await values_of(task_with(function)) == {"value": 5}


@pytest.mark.parametrize("function", [plain, coroutine, generator, async_generator])
async def test_a_partial_gives_what_its_function_gives(function: Call) -> None:
    assert await values_of(task_with(functools.partial(function, start=6))) == {"value": 6}
    assert await values_of(task_with(functools.partial(functools.partial(function), 6))) == {"value": 6}


@pytest.mark.parametrize("function", [plain, coroutine, generator, async_generator])
async def test_a_wrapped_function_is_taken_for_what_it_wraps(function: Call) -> None:
    assert await values_of(task_with(wrapped(function))) == {"value": 5}
    assert await values_of(task_with(wrapped(wrapped(function)))) == {"value": 5}


async def test_a_function_wrapped_in_a_coroutine_is_awaited() -> None:
    assert await values_of(task_with(wrapped_in_a_coroutine(plain))) == {"value": 5}


@pytest.mark.parametrize("kind", [Callable_, AsyncCallable, GeneratorCallable, AsyncGeneratorCallable])
async def test_an_instance_is_taken_for_its_call_method(kind: Callable[[int], Any]) -> None:
    assert await values_of(task_with(kind(8))) == {"value": 8}


async def test_bound_methods_give_their_value() -> None:
    assert await values_of(task_with(Counter(8).method)) == {"value": 8}
    assert await values_of(task_with(Counter(9).async_method)) == {"value": 9}


async def test_a_class_gives_an_instance_with_its_own_dependencies() -> None:
    class Repository:
        def __init__(self, number: Number, page: int = 20) -> None:
            self.numbers = (number, page)

    class Filter(BaseModel):
        limit: int = 100

    assert (await values_of(task_with(Repository)))["value"].numbers == (7, 20)
    assert (await values_of(task_with(Filter)))["value"] == Filter(limit=100)
    assert isinstance((await values_of(task_with(AsyncGeneratorCallable)))["value"], AsyncGeneratorCallable)


# -- the graph ----------------------------------------------------------------------------------------------------


async def test_dependencies_of_dependencies_are_resolved_first() -> None:
    async def double(number: Number) -> int:
        return 2 * number

    def text(doubled: Annotated[int, Depends(double)], number: Number, mark: str = "!") -> str:
        return f"{doubled} {number}{mark}"

    async def send(*, line: Annotated[str, Depends(text)] = INJECTED, number: Number = INJECTED) -> None: ...

    assert await values_of(send) == {"line": "14 7!", "number": 7}


async def test_a_dependency_is_called_once_in_an_attempt_and_anew_in_the_next() -> None:
    numbers = count(1)

    async def number() -> int:
        return next(numbers)

    async def same(number: Annotated[int, Depends(number)]) -> int:
        return number

    async def send(
        *, one: int = Depends(number), other: int = Depends(same), third: int = Depends(number, scope="function")
    ) -> None: ...

    injection = injected(send)
    for attempt in (1, 2):
        async with injection.resolve({}) as values:
            assert values == dict.fromkeys(("one", "other", "third"), attempt)


async def test_two_attempts_at_once_share_nothing() -> None:
    injection = injected(task_with(Counter))
    async with injection.resolve({}) as one, injection.resolve({}) as other:
        assert one["value"] is not other["value"]


async def test_without_use_cache_a_dependency_is_called_each_time() -> None:
    numbers = count(1)

    async def number() -> int:
        return next(numbers)

    async def send(
        *,
        one: int = Depends(number, use_cache=False),
        two: int = Depends(number),
        three: int = Depends(number, use_cache=False),
    ) -> None: ...

    # As in FastAPI, the first value is kept for those who do not mind.
    assert await values_of(send) == {"one": 1, "two": 1, "three": 2}


variable: ContextVar[str] = ContextVar("variable", default="unset")


class Story:
    """A graph of every kind of dependency, which notes what happens, in which order, and what each of them sees."""

    def __init__(self) -> None:
        self.lines: list[str] = []

        def note(line: str) -> None:
            self.lines.append(f"{line}: {variable.get()}")

        def session() -> Iterator[str]:
            variable.set("by the session")
            note("session")
            try:
                yield "session"
            finally:
                note("session closed")

        async def tenant(session: Annotated[str, Depends(session)]) -> str:
            note("tenant")
            variable.set("by the tenant")
            return f"{session} of tenant"

        async def unit(tenant: Annotated[str, Depends(tenant)]) -> AsyncIterator[str]:
            note("unit")
            variable.set("by the unit")
            try:
                yield f"unit with {tenant}"
            finally:
                note("unit closed")

        class Mailer:
            def __init__(self, unit: Annotated[str, Depends(unit)], tenant: str = Depends(tenant)) -> None:
                note("mailer")
                variable.set("by the mailer")
                self.text = f"mailer with {unit}, {tenant}"

        def audit(session: str = Depends(session, use_cache=False)) -> Iterator[str]:
            note("audit")
            yield session
            note("audit closed")

        async def send(
            *, mailer: Annotated[Mailer, Depends()], audit: str = Depends(audit), tenant: str = Depends(tenant)
        ) -> str:
            note("task")
            return f"{mailer.text}, {audit}, {tenant}"

        self.send = send


async def test_a_graph_is_resolved_in_the_order_and_with_the_context_variables_of_a_route() -> None:
    in_a_route, in_a_task = Story(), Story()
    app = FastAPI()
    app.get("/")(in_a_route.send)
    with TestClient(app) as client:
        answer = client.get("/").json()

    async with injected(in_a_task.send).resolve({}) as values:
        assert await in_a_task.send(**values) == answer

    assert in_a_task.lines == in_a_route.lines
    assert "task: by the unit" in in_a_task.lines


async def test_signatures_are_read_once_and_not_for_each_attempt() -> None:
    reads = count(0)

    class Watched:
        @property
        def __signature__(self) -> inspect.Signature:
            next(reads)
            return inspect.Signature()

        async def __call__(self) -> int:
            return 1

    original, override = Watched(), Watched()
    injection = injected(task_with(original))
    attempts: list[dict[Call, Call]] = [{}, {}, {original: override}, {original: override}]
    for overrides in attempts:
        async with injection.resolve(overrides):
            pass
    assert next(reads) == 2


# -- overrides ----------------------------------------------------------------------------------------------------


async def test_overrides_are_obeyed_wherever_the_dependency_stands() -> None:
    def get_settings() -> Settings:
        raise AssertionError("it is overridden")

    async def get_session(settings: Annotated[Settings, Depends(get_settings)]) -> str:
        return f"session in {settings.region}"

    async def send(*, session: str = Depends(get_session), settings: Settings = Depends(get_settings)) -> None: ...

    app = FastAPI()
    app.dependency_overrides[get_settings] = lambda: Settings("south")
    assert await values_of(send, app.dependency_overrides) == {
        "session": "session in south",
        "settings": Settings("south"),
    }


async def test_an_override_brings_its_own_dependencies_and_drops_those_of_the_original() -> None:
    def get_url() -> str:
        raise AssertionError("nobody asks for it")

    async def get_session(url: Annotated[str, Depends(get_url)]) -> str:
        return url

    async def fake_session(number: Number) -> AsyncIterator[str]:
        yield f"fake {number}"
        closed.append("fake")

    closed: list[str] = []
    overrides: dict[Call, Call] = {get_session: fake_session, get_number: lambda: 8}
    assert await values_of(task_with(get_session), overrides) == {"value": "fake 8"}
    assert closed == ["fake"]


async def test_overrides_count_from_the_attempt_that_follows_them() -> None:
    app = FastAPI()
    injection = injected(task_with(get_number))

    async def attempt() -> object:
        async with injection.resolve(app.dependency_overrides) as values:
            return values["value"]

    assert await attempt() == 7
    app.dependency_overrides[get_number] = lambda: 8
    assert await attempt() == 8
    app.dependency_overrides.clear()
    assert await attempt() == 7


async def test_what_is_overridden_is_called_once_in_an_attempt_too() -> None:
    async def send(*, one: Counter = Depends(get_number), other: Counter = Depends(get_number)) -> None: ...

    values = await values_of(send, {get_number: Counter})
    assert values["one"] is values["other"]


async def test_many_overrides_do_not_pile_up() -> None:
    injection = injected(task_with(get_number))
    references = []
    for number in range(1000):
        override = functools.partial(coroutine, start=number)
        references.append(weakref.ref(override))
        async with injection.resolve({get_number: override}) as values:
            assert values == {"value": number}
    del override
    gc.collect()
    assert sum(reference() is not None for reference in references) < 300


def test_an_override_that_needs_a_request_is_refused_by_name() -> None:
    def override(page: int) -> int:
        return page

    with pytest.raises(InvalidTask, match=r"tasks:send: parameter 'value' .*in override, parameter 'page'"):
        injected(task_with(get_number)).resolve({get_number: override})


def test_an_override_that_asks_for_what_it_overrides_is_refused() -> None:
    async def override(number: Number) -> int:
        return number

    with pytest.raises(InvalidTask, match="override -> override, the dependencies are circular"):
        injected(task_with(get_number)).resolve({get_number: override})
