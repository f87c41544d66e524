"""Tasks by name: which functions may be durable, and how a stored name leads back to one.

A name is ``module:qualname`` with the module derived from its *file*, so that ``python main.py``,
``uvicorn main:app`` and ``fastapi dev main.py`` give the same one. A name from the database is looked up among
registered tasks, then among functions defined in the app's own modules; nothing else in the database can name code.
"""

import dataclasses
import inspect
import json
import sys
import sysconfig
import types
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final, Generic, Literal, ParamSpec, TypeVar, Unpack

from pydantic.errors import PydanticUserError

from durableq.codec import ArgumentsCodec
from durableq.errors import ConfigurationError, InvalidTask
from durableq.options import TaskOptions, TaskSettings, checked

P = ParamSpec("P")
R_co = TypeVar("R_co", covariant=True)

RunnerName = Literal["loop", "thread"]

_PACKAGE_DIRECTORY: Final = Path(__file__).resolve().parent
_DEFAULTS: Final = TaskOptions()


@dataclasses.dataclass(frozen=True, eq=False)
class Task(Generic[P, R_co]):
    """A function with a stable name, ready to become jobs. Calling it runs the function here and now."""

    function: Callable[P, R_co]
    name: str
    settings: TaskOptions
    codec: ArgumentsCodec
    runner: RunnerName

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        return self.function(*args, **kwargs)

    def options(self, **changes: Unpack[TaskSettings]) -> "Task[P, R_co]":
        """Return the task with other options for the jobs added through it.

        Takes the fields of `TaskOptions`; the task itself stays as it is. Raises `ConfigurationError`.
        """
        given = {name: getattr(self.settings, name) for name in self.settings.model_fields_set} | dict(changes)
        if "delay" in changes and "run_at" not in changes:
            given.pop("run_at", None)
        if "run_at" in changes and "delay" not in changes:
            given.pop("delay", None)
        return dataclasses.replace(self, settings=checked(TaskOptions, given))


AnyTask = Task[..., Any]


class Registry:
    """The tasks of one `DurableQ`.

    ``root`` is the directory of the app's own code, or None when it has none (an interactive session).
    ``task_modules`` replaces it: exactly these modules may then hold tasks without a decorator.
    """

    def __init__(self, root: Path | None, task_modules: Iterable[str | types.ModuleType] | None = None) -> None:
        self._root = root
        self._modules = None if task_modules is None else tuple(task_modules)
        self._by_name: dict[str, AnyTask] = {}
        self._by_function: dict[Callable[..., Any], AnyTask] = {}

    def register(self, function: Callable[..., Any], *, name: str | None = None, options: Mapping[str, Any]) -> AnyTask:
        """Make ``function`` a task. Raises `InvalidTask`, `ConfigurationError`."""
        settings = checked(TaskOptions, options)
        if name is None:
            _require_module_level(function)
            name = name_of(function)
        known = self._by_name.get(name)
        if known is not None and not _same_definition(known.function, function):
            raise ConfigurationError(
                f"two tasks are named {name!r}: {_place(known.function)} and {_place(function)}; "
                "give one of them name=..."
            )
        return self._remember(_make_task(function, name, settings))

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
            return self._remember(_make_task(function, name, _DEFAULTS))
        except InvalidTask:  # after a deployment that changed its signature: for now, nobody knows the name
            return None

    def import_modules(self) -> None:
        """Import the modules that ``task_modules`` names, so that their tasks are known."""
        for module in self._modules or ():
            if isinstance(module, str):
                __import__(module)

    def arguments_schema(self, name: str) -> str | None:
        """Return the JSON schema of a known task's arguments, or None where JSON Schema cannot say it."""
        task = self._by_name.get(name)
        try:
            return None if task is None else json.dumps(task.codec.json_schema())
        except PydanticUserError:
            return None

    def _own(self, task: AnyTask) -> AnyTask:
        known = self._by_name.get(task.name)
        if known is None or known.codec is not task.codec:
            raise InvalidTask(f"task {task.name!r} is registered with another DurableQ, not with this one")
        return task

    def _adopt(self, function: Callable[..., Any]) -> AnyTask:
        _require_module_level(function)
        name = name_of(function)
        self._require_own_module(function)
        if self._look_up(name) is not function:
            raise InvalidTask(
                f"{_place(function)} cannot be a task: its name {name!r} leads to something else, so it could "
                "not be found again after a restart; decorate it with @dq.task, or give it a name of its own"
            )
        return self._remember(_make_task(function, name, _DEFAULTS))

    def _remember(self, task: AnyTask) -> AnyTask:
        self._by_name[task.name] = task
        self._by_function[task.function] = task
        return task

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
        for module in list(sys.modules.values()):
            if _derived_name(module) == module_name and self._offers(module):
                found = vars(module).get(qualname)
                if isinstance(found, types.FunctionType) and found.__module__ == module.__name__:
                    return found
        return None

    def _offers(self, module: types.ModuleType) -> bool:
        if self._modules is not None:
            return any(module is one or module.__name__ == one for one in self._modules)
        return self._root is not None and _is_own_code(module, self._root)


def name_of(function: Callable[..., Any]) -> str:
    """Return the stable name ``module:qualname`` of a function, its module derived from its file."""
    module = sys.modules.get(function.__module__)
    derived = (module and _derived_name(module)) or function.__module__
    return f"{derived}:{function.__qualname__}"


def root_of_caller() -> Path | None:
    """Return the directory that holds the top-level package or file of the first caller outside durableq."""
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None:
        file = frame.f_globals.get("__file__")
        if file is None and frame.f_globals.get("__name__") == "__main__":
            return None
        if file is not None and _PACKAGE_DIRECTORY not in (path := Path(file).resolve()).parents:
            return _root_directory(path)
        frame = frame.f_back
    return None


def _root_directory(file: Path) -> Path:
    top = file
    while (top.parent / "__init__.py").exists():
        top = top.parent
    # An installed application must not take the whole of site-packages for its own.
    return top if top != file and _is_installed(top) else top.parent


def _is_own_code(module: types.ModuleType, root: Path) -> bool:
    file = _file_of(module)
    if not file:
        return False
    path = Path(file).resolve()
    if root not in path.parents or _PACKAGE_DIRECTORY in path.parents:
        return False
    return not _is_installed(path) or _is_installed(root)


def _is_installed(path: Path) -> bool:
    if {"site-packages", "dist-packages"} & set(path.parts):
        return True
    return Path(sysconfig.get_paths()["stdlib"]) in path.parents


def _file_of(module: object) -> str | None:
    """A module's file, without running what lazy modules run when an attribute is asked for."""
    try:
        file = vars(module).get("__file__")
    except TypeError:
        return None  # not a module: anything may stand in sys.modules
    return file if isinstance(file, str) else None


def _derived_name(module: types.ModuleType) -> str | None:
    file = _file_of(module)
    if file is None or not file.endswith(".py"):
        return None
    cached = _DERIVED.get(file)
    if cached is None:
        cached = _DERIVED[file] = _name_from_file(Path(file).resolve())
    return cached


def _name_from_file(path: Path) -> str:
    parts = [] if path.name == "__init__.py" else [path.stem]
    directory = path.parent
    while (directory / "__init__.py").exists():
        parts.append(directory.name)
        directory = directory.parent
    return ".".join(reversed(parts))


_DERIVED: dict[str, str] = {}
"""Names already derived, by file: a look-up walks all of ``sys.modules``."""


def _make_task(function: Callable[..., Any], name: str, settings: TaskOptions) -> AnyTask:
    if hasattr(function, "retry") and hasattr(function, "retry_with"):
        warnings.warn(
            f"{name} is wrapped by tenacity's @retry: its tries multiply with the task's own max_attempts",
            stacklevel=4,
        )
    runner: RunnerName = "loop" if inspect.iscoroutinefunction(function) else "thread"
    return Task(function, name, settings, ArgumentsCodec(function, name), runner)


def _require_module_level(function: object) -> None:
    reason = _why_not(function)
    if reason is not None:
        raise InvalidTask(
            f"{_place(function)} cannot be a task: {reason}; after a restart it could not be found again. "
            "Use a function at the top level of a module"
        )


def _why_not(function: object) -> str | None:
    if not isinstance(function, types.FunctionType):
        return f"expected a function, got {_kind(function)}"
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        return "it is a generator, calling it runs nothing"
    if function.__name__ == "<lambda>":
        return "it is a lambda"
    if "<locals>" in function.__qualname__:
        return "it is defined inside another function"
    if "." in function.__qualname__:
        return "it belongs to a class"
    return None


def _kind(function: object) -> str:
    kinds = {
        types.MethodType: "a bound method",
        types.BuiltinFunctionType: "a built-in function",
        type: "a class",
    }
    name = type(function).__name__
    return kinds.get(type(function)) or ("a functools.partial" if name == "partial" else f"a {name} object")


def _place(function: object) -> str:
    code = getattr(function, "__code__", None)
    name = getattr(function, "__qualname__", None) or repr(function)
    return f"{name} ({Path(code.co_filename).name}:{code.co_firstlineno})" if code else str(name)


def _same_definition(one: Callable[..., Any], other: Callable[..., Any]) -> bool:
    """Whether both come from the same line: a module that was loaded twice, as __main__ and by its name."""
    first, second = getattr(one, "__code__", None), getattr(other, "__code__", None)
    if first is None or second is None:
        return one is other
    return (first.co_filename, first.co_firstlineno) == (second.co_filename, second.co_firstlineno)


def _is_hashable(function: object) -> bool:
    return getattr(function, "__hash__", None) is not None
