"""Tasks by name: which functions may be durable, and how a stored name leads back to one.

A name from the database is looked up among registered tasks and their aliases, then among functions defined in the
app's own modules; nothing else in the database can name code.
"""

import dataclasses
import functools
import inspect
import sys
import types
import warnings
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Final, Generic, ParamSpec, TypeVar, Unpack

from durableq.codec import ArgumentsCodec, ResultCodec
from durableq.dependencies import Injection, injection_of
from durableq.encryption import KeyRing
from durableq.errors import ConfigurationError, InvalidTask, near
from durableq.names import derived_name, is_own_code, name_of
from durableq.options import (
    CALLBACKS,
    CODE_OPTIONS,
    RunnerName,
    TaskOptions,
    TaskSettings,
    Unique,
    checked,
    require_callable_with,
    require_effect,
)
from durableq.retry import RetryPolicy

P = ParamSpec("P")
R_co = TypeVar("R_co", covariant=True)

_DEFAULTS: Final = TaskOptions()


@dataclasses.dataclass(frozen=True, eq=False)
class Task(Generic[P, R_co]):
    """A function with a stable name, ready to become jobs. Calling it runs the function here and now."""

    function: Callable[P, R_co]
    name: str
    settings: TaskOptions
    codec: ArgumentsCodec
    results: ResultCodec
    runner: RunnerName
    registry: "Registry"
    injection: Injection | None
    """What `Depends` in its signature asks for; None for nothing."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        if self.injection is not None:
            self.injection.check_direct_call(args, kwargs)
        return self.function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<Task {self.name!r}>"

    def options(self, **changes: Unpack[TaskSettings]) -> "Task[P, R_co]":
        """Return the task with other options for the jobs added through it.

        Takes the fields of `TaskSettings`; the task itself stays as it is. A retry policy must have a name, given
        by `DurableQ.retry_policy`: that is what the row can hold. Raises `ConfigurationError`.
        """
        _refuse_code(self.name, changes)
        given = {name: getattr(self.settings, name) for name in self.settings.model_fields_set} | dict(changes)
        for one, other in _EXCLUSIVE:
            if one in changes and other not in changes:
                given.pop(other, None)
            if other in changes and one not in changes:
                given.pop(one, None)
        settings = checked(TaskOptions, given)
        require_effect(settings, changes)
        if "retry" in changes:
            self.registry.require_named(settings.retry)
        if "unique" in changes:
            self.codec.require_names(_unique_arguments(settings), "Unique(args=...)")
        return dataclasses.replace(self, settings=settings)


_EXCLUSIVE: Final = (("delay", "run_at"), ("unique", "idempotency_key"))
"""Options of which the later given one replaces the other."""

AnyTask = Task[..., Any]


class Registry:
    """The tasks of one `DurableQ`.

    ``root`` is the directory of the app's own code, or None when it has none (an interactive session).
    ``task_modules`` replaces it: exactly these modules may then hold tasks without a decorator. ``keys`` are what
    their arguments and results are encrypted with; None: they are stored in clear.
    """

    def __init__(
        self,
        root: Path | None,
        task_modules: Iterable[str | types.ModuleType] | None = None,
        keys: KeyRing | None = None,
    ) -> None:
        self.keys = keys
        self._root = root
        self._modules = None if task_modules is None else tuple(task_modules)
        self._by_name: dict[str, AnyTask] = {}
        self._by_function: dict[Callable[..., Any], AnyTask] = {}
        self._policies: dict[str, RetryPolicy] = {}

    def register(
        self,
        function: Callable[..., Any],
        *,
        name: str | None = None,
        aliases: Iterable[str] = (),
        options: Mapping[str, Any],
    ) -> AnyTask:
        """Make a function, or a class with a ``run`` method, a task. Raises `InvalidTask`, `ConfigurationError`.

        ``aliases`` are names that the task had before: jobs stored under them run as this one.
        """
        _refuse_call(function)
        target = function
        if isinstance(function, type):
            options = {**_options_of_class(function), **options}
            function = _function_of_class(function)
        settings = checked(TaskOptions, options)
        require_effect(settings, options)
        if name is None:
            _require_module_level(function)
            name = name_of(function)
        if isinstance(aliases, str):
            raise ConfigurationError(f"expected aliases to be a list of names, got the text {aliases!r}")
        names: tuple[Any, ...] = (name, *aliases)
        for one in names:
            if not (isinstance(one, str) and one and one.isprintable()):
                raise ConfigurationError(f"expected the names of a task to be printable texts, got {one!r}")
            self._require_free(one, function, target)
        task = self._remember(self._make_task(function, name, settings), target)
        self._by_name.update(dict.fromkeys(names, task))
        return task

    def declare_policy(self, policy: RetryPolicy) -> None:
        """Make a named policy known. Raises `ConfigurationError` for a second one of the name."""
        name = policy.name or ""
        if self._policies.get(name, policy) != policy:
            raise ConfigurationError(f"two retry policies are named {name!r}; give one of them another name")
        self._policies[name] = policy

    def policy_named(self, name: str) -> RetryPolicy | None:
        return self._policies.get(name)

    def require_named(self, policy: RetryPolicy) -> None:
        """Raise `ConfigurationError` for a policy that a row could not name."""
        if policy.name is None or policy.name not in self._policies:
            raise ConfigurationError(
                "a retry policy is code, which a job's row cannot hold. Declare it with a name, "
                "gentle = dq.retry_policy('gentle', wait=...), and pass that to .options(retry=gentle); "
                "or give it to @dq.task(retry=...)"
            )

    def task_for(self, function: Callable[..., Any]) -> AnyTask:
        """Return the task behind what was given to ``add_task``. Raises `InvalidTask` saying why it cannot be one."""
        if isinstance(function, Task):
            return self._own(function)
        known = self._by_function.get(function) if _is_hashable(function) else None
        return known or self._adopt(function)

    def find(self, name: str) -> AnyTask | None:
        """Return the task that a stored name leads to, or None when this app offers none."""
        known = self._by_name.get(name)
        if known is not None:
            return known
        function = self._look_up(name)
        if function is None:
            return None
        try:
            return self._remember(self._make_task(function, name, _DEFAULTS))
        except InvalidTask:  # after a deployment that changed its signature: for now, nobody knows the name
            return None

    def import_modules(self) -> None:
        """Import the modules that ``task_modules`` names, so that their tasks are known."""
        for module in self._modules or ():
            if isinstance(module, str):
                __import__(module)

    def arguments_schema(self, name: str) -> str | None:
        """Return the JSON schema of a known task's arguments, or None where JSON Schema cannot say it."""
        task = self.find(name)
        return None if task is None else task.codec.json_schema

    def _own(self, task: AnyTask) -> AnyTask:
        if task.registry is not self:
            raise InvalidTask(f"task {task.name!r} is registered with another DurableQ, not with this one")
        return task

    def _adopt(self, function: Callable[..., Any]) -> AnyTask:
        _refuse_call(function)
        _require_module_level(function)
        name = name_of(function)
        self._require_own_module(function)
        found = self._look_up(name)
        if found is None or not _same_definition(found, function):
            raise InvalidTask(
                f"{_place(function)} cannot be a task: its name {name!r} leads to something else, so it could "
                "not be found again after a restart; decorate it with @dq.task, or give it a name of its own"
            )
        self._require_free(name, function, function)
        return self._remember(self._make_task(function, name, _DEFAULTS))

    def _remember(self, task: AnyTask, target: Callable[..., Any] | None = None) -> AnyTask:
        self._by_name[task.name] = task
        self._by_function[target or task.function] = task
        return task

    def _make_task(self, function: Callable[..., Any], name: str, settings: TaskOptions) -> AnyTask:
        if _is_generator(function):
            raise InvalidTask(f"{_place(function)} cannot be a task: {_GENERATOR}")
        if hasattr(function, "retry") and hasattr(function, "retry_with"):
            warnings.warn(
                f"{name} is wrapped by tenacity's @retry: its tries multiply with the task's own max_attempts",
                stacklevel=4,
            )
        injection = injection_of(function, name)
        codec = ArgumentsCodec(function, name, frozenset() if injection is None else injection.names)
        codec.require_names(_unique_arguments(settings), "Unique(args=...)")
        runner = _runner_of(function, name, settings.runner)
        return Task(function, name, settings, codec, ResultCodec(function), runner, self, injection)

    def _require_free(self, name: str, function: Callable[..., Any], target: Callable[..., Any]) -> None:
        known = self._by_name.get(name)
        if known is None or (_is_hashable(target) and known is self._by_function.get(target)):
            return
        if not _same_definition(known.function, function):
            raise ConfigurationError(
                f"two tasks are named {name!r}: {_place(known.function)} and {_place(function)}; "
                "give one of them name=..."
            )

    def _require_own_module(self, function: Callable[..., Any]) -> None:
        module = sys.modules.get(function.__module__)
        if module is None or not self._offers(module):
            raise InvalidTask(
                f"{_place(function)} cannot be a task: its module does not belong to this app"
                f"{f' (under {self._root})' if self._root else ''}; register it with @dq.task, wrap it in a "
                "function of your own, or name its module in task_modules="
            )

    def _look_up(self, name: str) -> Callable[..., Any] | None:
        module_name, _, qualname = name.partition(":")
        if not qualname.isidentifier():
            return None
        modules, program = list(sys.modules.values()), sys.modules.get("__main__")
        # The program comes last: uvicorn.run("main:app") loads main.py anew, and works with that.
        for module in sorted(modules, key=lambda module: module is program):
            if derived_name(module) == module_name and self._offers(module):
                found = vars(module).get(qualname)
                if isinstance(found, types.FunctionType) and found.__module__ == module.__name__:
                    return found
        return None

    def _offers(self, module: types.ModuleType) -> bool:
        if self._modules is not None:
            return any(module is one or module.__name__ == one for one in self._modules)
        return self._root is not None and is_own_code(module, self._root)


def _runner_of(function: Callable[..., Any], name: str, wanted: RunnerName | None) -> RunnerName:
    is_async = inspect.iscoroutinefunction(function)
    if wanted == "loop" and not is_async:
        raise ConfigurationError(
            f"{name} is a plain def: on the event loop it would block the whole server; "
            "leave runner out (it runs in a thread), or use runner='process'"
        )
    if wanted == "thread" and is_async:
        raise ConfigurationError(f"{name} is an async def, which runs on the event loop; leave runner out, or use def")
    return wanted or ("loop" if is_async else "thread")


def _refuse_code(task: str, changes: Mapping[str, Any]) -> None:
    code = sorted(CODE_OPTIONS & changes.keys())
    if code:
        raise ConfigurationError(
            f"option {code[0]!r} of {task} is code and belongs to the task as it is deployed, no single job can change "
            "it; set it with @dq.task(...)"
        )


def _unique_arguments(settings: TaskOptions) -> Iterable[str]:
    return (settings.unique.args or ()) if isinstance(settings.unique, Unique) else ()


def _options_of_class(cls: type) -> dict[str, Any]:
    """The options that a class gives as attributes, and its handlers, which are called on a fresh instance."""
    known = TaskOptions.model_fields.keys()
    given = {name: getattr(cls, name) for name in known if hasattr(cls, name)}
    for name, arguments in CALLBACKS.items():
        if inspect.isfunction(given.get(name)):
            require_callable_with(inspect.getattr_static(cls, name).__get__(cls), *arguments)  # self is given
            given[name] = functools.partial(_call_on_instance, cls, name)
    for owner in cls.__mro__:
        for name, value in vars(owner).items():
            meant = CALLBACKS if callable(value) else known
            if name not in known and not name.startswith("_") and get_close_matches(name, meant, n=1, cutoff=0.8):
                raise ConfigurationError(f"{owner.__qualname__}: unknown option {name!r}{near(name, meant)}")
    return given


def _call_on_instance(cls: type, name: str, *args: Any) -> Any:
    return getattr(cls(), name)(*args)


def _function_of_class(cls: type) -> Callable[..., Any]:
    """Return a function that makes an instance, and runs its ``run``."""
    run = inspect.getattr_static(cls, "run", None)
    if not inspect.isfunction(run):
        raise InvalidTask(
            f"{cls.__qualname__} cannot be a task: expected a class with a method run(self, ...), it has none"
        )
    if _is_generator(run):
        raise InvalidTask(f"{cls.__qualname__}.run cannot be a task: {_GENERATOR}")
    if inspect.isabstract(cls) or _needs_arguments(cls):
        raise InvalidTask(f"{cls.__qualname__} cannot be a task: it must be possible to make one without arguments")

    async def run_async(*args: Any, **kwargs: Any) -> Any:
        return await run(cls(), *args, **kwargs)

    def run_plain(*args: Any, **kwargs: Any) -> Any:
        return run(cls(), *args, **kwargs)

    function: Any = run_async if inspect.iscoroutinefunction(run) else run_plain
    functools.update_wrapper(function, run)
    signature = inspect.signature(run)
    function.__signature__ = signature.replace(parameters=list(signature.parameters.values())[1:])
    function.__qualname__, function.__name__, function.__module__ = cls.__qualname__, cls.__name__, cls.__module__
    return function  # type: ignore[no-any-return]


def _needs_arguments(cls: type) -> bool:
    try:
        inspect.signature(cls).bind()
    except TypeError:
        return True
    except ValueError:  # made by code that is not Python's; nobody can tell
        return False
    return False


def _require_module_level(function: object) -> None:
    reason = _why_not(function)
    if reason is not None:
        raise InvalidTask(
            f"{_place(function)} cannot be a task: {reason}; after a restart it could not be found again. "
            "Use a function at the top level of a module"
        )


def _refuse_call(function: object) -> None:
    """Tell who has called the task, in place of naming it, how to add it."""
    if inspect.iscoroutine(function):
        name = function.__name__
        came = f"{name}(...), which is called already"
        function.close()  # or Python would warn that nobody awaits it
    elif function is None:
        name, came = "send", "None, which may be what a call has returned"
    else:
        return
    raise InvalidTask(
        f"expected a function and its arguments, got {came}: pass them apart, {name}, 1 and not {name}(1)"
    )


def _why_not(function: object) -> str | None:
    if type(function) is not types.FunctionType:  # isinstance believes a mock that was made with spec=
        return f"expected a function, got {_kind(function)}"
    if _is_generator(function):
        return _GENERATOR
    if function.__name__ == "<lambda>":
        return "it is a lambda"
    if "<locals>" in function.__qualname__:
        return "it is defined inside another function"
    if "." in function.__qualname__:
        return "it belongs to a class"
    return None


_GENERATOR: Final = "it is a generator, calling it runs nothing"


def _is_generator(function: object) -> bool:
    return inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)


def _kind(function: object) -> str:
    kinds = {
        types.MethodType: "a bound method",
        types.BuiltinFunctionType: "a built-in function",
        type: "a class",
    }
    name = type(function).__name__
    return kinds.get(type(function)) or (
        "a functools.partial" if name == "partial" else f"{_article(name)} {name} object"
    )


def _article(word: str) -> str:
    return "an" if word[0] in "AEIOUaeiou" else "a"


def _place(function: object) -> str:
    code = _code_of(function)
    name = getattr(function, "__qualname__", None)
    if not (isinstance(name, str) and name):  # a mock has a mock of one
        name = repr(function)
    return f"{name} ({Path(code.co_filename).name}:{code.co_firstlineno})" if code else name


def _same_definition(one: Callable[..., Any], other: Callable[..., Any]) -> bool:
    """Whether both come from the same line: a module that was loaded twice, as __main__ and by its name."""
    first, second = _code_of(one), _code_of(other)
    if one is other or first is None or second is None:
        return one is other
    if first is second and "<locals>" in one.__qualname__:  # two that one function made
        return False
    places = [(code.co_filename, code.co_firstlineno) for code in (first, second)]
    return places[0] == places[1] and one.__qualname__ == other.__qualname__


def _code_of(function: object) -> types.CodeType | None:
    """The code under all wrappers: those of one decorator share theirs."""
    try:
        code = getattr(inspect.unwrap(function), "__code__", None)  # type: ignore[arg-type]
    except ValueError:  # wrappers in a circle
        return None
    return code if type(code) is types.CodeType else None  # an AsyncMock has a mock of one, which isinstance believes


def _is_hashable(function: object) -> bool:
    return getattr(function, "__hash__", None) is not None
