"""Which functions may be tasks, what they are called, and how a stored name leads back to one."""

import functools
import gc
import importlib.util
import json
import sys
import types
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import AsyncMock, MagicMock, Mock

import pydantic
import pytest
import tenacity

import tests.support
from durableq.errors import ConfigurationError, InvalidTask
from durableq.names import root_of_caller
from durableq.registry import Registry
from tests.support import named

if TYPE_CHECKING:
    from decimal import Decimal as OnlyForTypeCheckers

HERE = "tests.test_registry"


def plain(number: int = 0) -> int:
    return number


async def coroutine() -> None: ...


def other() -> None: ...


renamed = other
shadowed = plain
anonymous = lambda: None  # noqa: E731 - a lambda with a name is still a lambda


def generator() -> Iterator[int]:
    yield 1


async def async_generator() -> AsyncIterator[int]:
    yield 1


class Mailer:
    def send(self) -> None: ...

    @classmethod
    def make(cls) -> None: ...

    @staticmethod
    def stamp() -> None: ...

    def __call__(self) -> None: ...


def make_closure() -> Callable[[], None]:
    def closure() -> None: ...

    return closure


def load_again(directory: Path, source: str) -> tuple[types.ModuleType, types.ModuleType]:
    """Load one file twice, as it happens to a program that is imported by its name as well."""
    (directory / "twice.py").write_text(source)
    loaded = []
    for _ in range(2):
        spec = importlib.util.spec_from_file_location("twice", directory / "twice.py")
        assert spec is not None
        assert spec.loader is not None
        loaded.append(importlib.util.module_from_spec(spec))
        spec.loader.exec_module(loaded[-1])
    return loaded[0], loaded[1]


@tenacity.retry(stop=tenacity.stop_after_attempt(2))
def retried() -> None: ...


def wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


@wrapped
def decorated(number: int) -> int:
    return number


@wrapped
def also_decorated(number: int) -> int:
    return -number


def not_resolvable(value: "OnlyForTypeCheckers") -> None: ...


def takes_a_mailer(mailer: Mailer) -> None: ...


def hidden() -> None: ...


visible = hidden
del hidden


@pytest.fixture
def registry() -> Registry:
    return Registry(root_of_caller())


class TestWhichFunctions:
    @pytest.mark.parametrize("function", [plain, coroutine, decorated])
    def test_a_function_at_the_top_of_an_own_module_needs_no_decorator(
        self, registry: Registry, function: Callable[..., Any]
    ) -> None:
        task = registry.task_for(function)
        assert task.function is function
        assert task.name == f"{HERE}:{function.__name__}"
        assert registry.task_for(function) is task

    @pytest.mark.parametrize(
        ("function", "reason"),
        [
            (anonymous, "it is a lambda"),
            (lambda: None, "it is a lambda"),
            (make_closure(), "it is defined inside another function"),
            (Mailer().send, "a bound method"),
            (Mailer.make, "a bound method"),
            (Mailer.send, "it belongs to a class"),
            (Mailer.stamp, "it belongs to a class"),
            (Mailer(), "a Mailer object"),
            (Mailer, "a class"),
            (functools.partial(plain, 1), "a functools.partial"),
            (print, "a built-in function"),
            (len, "a built-in function"),
            (functools.lru_cache(plain), "got a"),
            (generator, "it is a generator"),
            (async_generator, "it is a generator"),
            (None, "expected a function"),
            ("plain", "expected a function"),
            (["unhashable"], "expected a function"),
        ],
        ids=named,
    )
    def test_what_could_not_be_found_again_is_refused_with_the_reason(
        self, registry: Registry, function: Any, reason: str
    ) -> None:
        with pytest.raises(InvalidTask, match=reason):
            registry.task_for(function)
        with pytest.raises(InvalidTask, match=reason):
            registry.register(function, options={})

    def test_a_call_in_place_of_a_function_is_refused_and_not_left_to_be_awaited(self, registry: Registry) -> None:
        named = functools.partial(registry.register, name="work", options={})
        takers: list[Any] = [registry.task_for, functools.partial(registry.register, options={}), named]
        for take in takers:
            with pytest.raises(InvalidTask) as caught:
                take(coroutine())
            assert str(caught.value) == (
                "expected a function and its arguments, got coroutine(...), which is called already: "
                "pass them apart, coroutine, 1 and not coroutine(1)"
            )
            with pytest.raises(
                InvalidTask, match=r"got None, which may be .* pass them apart, send, 1 and not send\(1\)"
            ):
                take(None)
        with warnings.catch_warnings(record=True) as heard:
            warnings.simplefilter("always")
            gc.collect()
        assert heard == []

    @pytest.mark.parametrize("spec", [None, plain], ids=["anything", "a function"])
    @pytest.mark.parametrize(
        ("kind", "named"), [(Mock, "a Mock"), (MagicMock, "a MagicMock"), (AsyncMock, "an AsyncMock")]
    )
    def test_a_mock_is_refused_by_its_name_whatever_it_claims_to_be(
        self, registry: Registry, kind: Any, named: str, spec: Any
    ) -> None:
        with pytest.raises(
            InvalidTask, match=rf"^<{kind.__name__} name='send' .*expected a function, got {named} object"
        ):
            registry.task_for(kind(name="send", spec=spec))

    @pytest.mark.parametrize(
        "foreign", [json.dumps, warnings.warn_explicit, pydantic.create_model, tenacity.retry], ids=named
    )
    def test_the_code_of_others_is_refused_without_a_decorator(self, registry: Registry, foreign: Any) -> None:
        with pytest.raises(InvalidTask):
            registry.task_for(foreign)

    def test_the_code_of_others_may_be_registered(self, registry: Registry) -> None:
        task = registry.register(json.loads, name="parse", options={})
        assert registry.task_for(json.loads) is task
        assert registry.find("parse") is task

    def test_a_function_whose_name_leads_to_another_is_refused(self, registry: Registry) -> None:
        with pytest.raises(InvalidTask, match=r"test_registry:hidden.*leads to something else"):
            registry.task_for(visible)
        assert registry.task_for(renamed).name == f"{HERE}:other"

    def test_a_name_of_its_own_allows_a_function_anywhere(self, registry: Registry) -> None:
        task = registry.register(make_closure(), name="inner", options={})
        assert registry.find("inner") is task

    @pytest.mark.parametrize("function", [generator, async_generator])
    def test_a_name_of_its_own_makes_no_task_of_what_runs_nothing(
        self, registry: Registry, function: Callable[..., Any]
    ) -> None:
        with pytest.raises(InvalidTask, match="it is a generator"):
            registry.register(function, name="inner", options={})
        assert registry.find("inner") is None

    def test_annotations_that_cannot_be_resolved_are_refused(self, registry: Registry) -> None:
        with pytest.raises(InvalidTask, match="cannot be resolved"):
            registry.task_for(not_resolvable)

    def test_a_function_that_retries_by_itself_is_taken_with_a_warning(self, registry: Registry) -> None:
        with pytest.warns(UserWarning, match="multiply"):
            assert registry.task_for(retried).name == f"{HERE}:retried"

    def test_coroutine_functions_run_on_the_loop_and_others_in_threads(self, registry: Registry) -> None:
        assert registry.task_for(coroutine).runner == "loop"
        assert registry.task_for(plain).runner == "thread"

    @pytest.mark.parametrize("function", [coroutine, plain])
    def test_any_function_may_run_in_a_child_process(self, registry: Registry, function: Callable[..., Any]) -> None:
        assert registry.register(function, options={"runner": "process"}).runner == "process"

    def test_a_plain_function_may_not_block_the_event_loop(self, registry: Registry) -> None:
        with pytest.raises(ConfigurationError, match=r"test_registry:plain is a plain def.*block the whole server"):
            registry.register(plain, options={"runner": "loop"})
        assert registry.register(coroutine, options={"runner": "loop"}).runner == "loop"

    def test_a_coroutine_function_does_not_run_in_a_thread(self, registry: Registry) -> None:
        with pytest.raises(ConfigurationError, match=r"test_registry:coroutine is an async def.*leave runner out"):
            registry.register(coroutine, options={"runner": "thread"})
        assert registry.register(plain, options={"runner": "thread"}).runner == "thread"

    def test_an_interactive_session_has_no_code_of_its_own(self) -> None:
        with pytest.raises(InvalidTask, match="does not belong to this app"):
            Registry(None).task_for(plain)


class TestTasks:
    @pytest.mark.foreign_bug(39)
    def test_calling_a_task_runs_its_function(self, registry: Registry) -> None:
        assert registry.register(plain, options={})(3) == 3

    def test_a_task_may_be_given_in_place_of_its_function(self, registry: Registry) -> None:
        task = registry.register(plain, options={})
        assert registry.task_for(task) is task
        with_options = task.options(priority=3)
        assert registry.task_for(with_options) is with_options

    def test_a_task_of_another_queue_is_refused(self, registry: Registry) -> None:
        theirs = Registry(root_of_caller()).register(plain, options={})
        with pytest.raises(InvalidTask, match="another DurableQ"):
            registry.task_for(theirs)
        registry.register(plain, options={})
        with pytest.raises(InvalidTask, match="another DurableQ"):
            registry.task_for(theirs)

    def test_a_function_that_was_loaded_anew_has_the_schema_of_its_new_arguments(
        self, registry: Registry, tmp_path: Path
    ) -> None:
        path = tmp_path / "reloaded.py"
        for arguments in ("a: int", "a: int, pin: str"):
            path.write_text(f"def work({arguments}): ...\n")
            names: dict[str, Any] = {"__name__": __name__}
            exec(compile(path.read_text(), str(path), "exec"), names)
            registry.register(names["work"], name="work", options={})
            schema = json.loads(registry.arguments_schema("work") or "{}")
        assert sorted(schema["properties"]) == ["a", "pin"]

    def test_registering_a_function_again_replaces_its_options(self, registry: Registry) -> None:
        first = registry.register(plain, options={"priority": 1})
        registry.register(plain, options={"priority": 2})
        assert registry.task_for(plain).settings.priority == 2
        assert registry.task_for(first).settings.priority == 1, "who holds the task of before may still add jobs by it"

    def test_a_task_is_shown_by_its_name(self, registry: Registry) -> None:
        assert repr(registry.register(plain, options={})) == f"<Task '{HERE}:plain'>"

    def test_the_schema_of_the_arguments_is_known_for_known_tasks(self, registry: Registry) -> None:
        registry.register(plain, name="plain", aliases=["former"], options={})
        for name in ("plain", "former"):
            schema = registry.arguments_schema(name)
            assert schema is not None
            assert "number" in json.loads(schema)["properties"]
        assert registry.arguments_schema("unknown") is None


class TestNames:
    def test_two_tasks_of_one_name_are_refused_and_both_are_placed(self, registry: Registry) -> None:
        registry.register(plain, name="same", options={})
        with pytest.raises(
            ConfigurationError, match=r"plain \(test_registry.py:\d+\) and other \(test_registry.py:\d+\)"
        ):
            registry.register(other, name="same", options={})
        assert registry.find("same").function is plain  # type: ignore[union-attr]

    def test_functions_behind_one_decorator_are_tasks_of_their_own(self, registry: Registry) -> None:
        names = {registry.task_for(function).name for function in (decorated, also_decorated)}
        assert names == {f"{HERE}:decorated", f"{HERE}:also_decorated"}
        assert [registry.task_for(function)(3) for function in (decorated, also_decorated)] == [3, -3]
        registry.register(decorated, name="same", options={})
        with pytest.raises(ConfigurationError, match=r"two tasks are named 'same': decorated .* and also_decorated"):
            registry.register(also_decorated, name="same", options={})

    def test_functions_made_by_one_function_are_not_the_same(self, registry: Registry) -> None:
        first = registry.register(make_closure(), name="same", options={})
        with pytest.raises(ConfigurationError, match=r"two tasks are named 'same'.*closure"):
            registry.register(make_closure(), name="same", options={})
        assert registry.find("same") is first

    def test_a_module_that_is_loaded_twice_has_its_tasks_once(self, registry: Registry, tmp_path: Path) -> None:
        source = "def work(): ...\nclass Base:\n    def run(self): ...\nclass Task(Base): ...\n"
        first, second = load_again(tmp_path, source)
        for name in ("work", "Task"):
            before, after = getattr(first, name), getattr(second, name)
            registry.register(before, name=name, options={})
            task = registry.register(after, name=name, options={})
            assert registry.find(name) is task
            assert registry.task_for(after) is task

    def test_an_alias_leads_to_the_task_of_now(self, registry: Registry) -> None:
        task = registry.register(plain, name="now", aliases=["before", "long before"], options={})
        assert [registry.find(name) for name in ("now", "before", "long before")] == [task] * 3
        assert registry.task_for(plain).name == "now"
        assert registry.task_for(task.options(priority=1)).name == "now"

    @pytest.mark.parametrize(
        ("name", "aliases"),
        [("taken", []), ("taken too", []), ("free", ["taken"]), ("free", ["taken too"]), ("free", ["ok", "taken too"])],
    )
    def test_a_name_is_taken_by_a_task_or_by_an_alias(self, registry: Registry, name: str, aliases: list[str]) -> None:
        first = registry.register(plain, name="taken", aliases=["taken too"], options={})
        with pytest.raises(ConfigurationError, match=r"two tasks are named 'taken( too)?': plain \(.*\) and other \("):
            registry.register(other, name=name, aliases=aliases, options={})
        assert registry.find("taken") is registry.find("taken too") is first
        assert registry.find("free") is registry.find("ok") is None, "what is refused leaves nothing behind"

    def test_an_alias_is_not_taken_over_by_the_function_that_is_still_called_so(self, registry: Registry) -> None:
        task = registry.register(plain, aliases=[f"{HERE}:other"], options={})
        with pytest.raises(ConfigurationError, match=rf"two tasks are named '{HERE}:other': plain .* and other"):
            registry.task_for(other)
        assert registry.find(f"{HERE}:other") is task

    @pytest.mark.parametrize(
        ("name", "aliases", "text"),
        [
            ("", [], "to be printable texts, got ''"),
            (7, [], "to be printable texts, got 7"),
            ("a\0b", [], r"got 'a\\x00b'"),
            ("\ud800", [], r"got '\\ud800'"),
            ("ok", [""], "got ''"),
            ("ok", ["before\n"], "got 'before"),
            ("ok", [None], "got None"),
            ("ok", "before", "a list of names, got the text 'before'"),
        ],
    )
    def test_a_name_is_a_text(self, registry: Registry, name: Any, aliases: Any, text: str) -> None:
        with pytest.raises(ConfigurationError, match=text):
            registry.register(plain, name=name, aliases=aliases, options={})
        assert registry.find("ok") is None


class TestFindingAgain:
    def test_an_undecorated_function_is_found_by_a_registry_that_never_saw_it(self, registry: Registry) -> None:
        task = registry.find(f"{HERE}:plain")
        assert task is not None
        assert task.function is plain
        assert registry.find("tests.support:eventually") is not None

    @pytest.mark.foreign_bug(93, 94)
    @pytest.mark.parametrize(
        "name",
        [
            "os:system",
            "subprocess:run",
            "builtins:eval",
            "json:dumps",
            "pydantic.main:create_model",
            f"{HERE}:json",
            f"{HERE}:root_of_caller",
            f"{HERE}:Mailer",
            f"{HERE}:Mailer.send",
            f"{HERE}:HERE",
            f"{HERE}:missing",
            f"{HERE}:__import__",
            f"{HERE}:__builtins__",
            f"{HERE}:",
            f"{HERE}:plain.__globals__",
            f"{HERE}:plain\x00",
            ":plain",
            "plain",
            ":",
            "",
            "not_imported_module:plain",
            "durableq.registry:name_of",
            "durableq.queue:call",
        ],
    )
    def test_a_stored_name_cannot_lead_out_of_the_app(self, registry: Registry, name: str) -> None:
        assert registry.find(name) is None

    @pytest.mark.foreign_bug(93)
    def test_a_name_is_not_imported(self, registry: Registry, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "trap.py").write_text("raise SystemExit('imported by a stored name')\n")
        monkeypatch.syspath_prepend(tmp_path)
        assert registry.find("trap:work") is None
        assert "trap" not in sys.modules

    @pytest.mark.parametrize("name", ["not_resolvable", "takes_a_mailer"])
    def test_a_stored_name_whose_function_can_no_longer_be_a_task_is_unknown(
        self, registry: Registry, name: str
    ) -> None:
        """One such job must not stop a worker: it is left alone like any task that this app does not offer."""
        assert registry.find(f"{HERE}:{name}") is None

    def test_modules_that_misbehave_when_looked_at_are_passed_over(
        self, registry: Registry, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        class Lazy(types.ModuleType):
            def __getattr__(self, name: str) -> Any:
                raise ImportError(f"{name} needs a package that is not installed")

        monkeypatch.setitem(sys.modules, "a_lazy_module", Lazy("a_lazy_module"))
        monkeypatch.setitem(sys.modules, "an_empty_place", None)
        assert registry.find(f"{HERE}:coroutine") is not None
        assert registry.find("nowhere:nothing") is None


class TestTaskModules:
    def test_only_the_named_modules_hold_tasks(self) -> None:
        registry = Registry(root_of_caller(), ["json"])
        assert registry.task_for(json.dumps).name == "json:dumps"
        assert registry.find("json:loads") is not None
        with pytest.raises(InvalidTask, match="task_modules="):
            registry.task_for(plain)

    def test_a_module_may_be_given_itself(self) -> None:
        registry = Registry(None, [tests.support])
        assert registry.find("tests.support:eventually") is not None
        with pytest.raises(InvalidTask):
            registry.task_for(plain)

    def test_named_modules_are_imported_at_the_start(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "jobs_of_mine.py").write_text("def work() -> None: ...\n")
        monkeypatch.syspath_prepend(tmp_path)
        registry = Registry(None, ["jobs_of_mine"])
        assert registry.find("jobs_of_mine:work") is None
        registry.import_modules()
        assert registry.find("jobs_of_mine:work") is not None
        monkeypatch.delitem(sys.modules, "jobs_of_mine")
