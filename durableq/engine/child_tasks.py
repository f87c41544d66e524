"""Finds tasks in a child process, by where their functions are defined, and remembers them."""

import importlib
import runpy
import sys
import types
from functools import reduce
from typing import Any, Final

from durableq.errors import ConfigurationError, InvalidTask
from durableq.registry import AnyTask, Registry, Task

_MAIN: Final = "__mp_main__"
"""The program's main module is loaded under this name, as `multiprocessing` does, so that what stands under
``if __name__ == "__main__":`` does not run."""


_UNGUARDED: Final = (
    "the program starts a queue, or a server, when it is loaded, and a child process has to load it to find its tasks: "
    "put the start under if __name__ == '__main__':"
)


class _MainModule:
    """Whether a child process is loading the program's main module, and whether that has tried to start a queue."""

    is_loading = False
    has_started = False


def refuse_to_start_while_loading() -> None:
    """Raise `ConfigurationError` when a queue is started by the main module that a child process loads.

    It would run jobs beside the one of its parent, and mostly ends in an address that is in use.
    """
    if _MainModule.is_loading:
        _MainModule.has_started = True
        raise ConfigurationError(_UNGUARDED)


class ChildTasks:
    """The tasks that this process has been asked for. ``main_name`` and ``main_path`` say what the parent was
    started with: a module, or else a file."""

    def __init__(self, main_name: str | None, main_path: str | None) -> None:
        self._main_name = main_name
        self._main_path = main_path
        self._found: dict[tuple[str, str, str], AnyTask] = {}

    def find(self, module: str, qualname: str, name: str) -> AnyTask:
        """Return a task, importing its module if need be. Raises `InvalidTask`, and what the import raises."""
        key = (module, qualname, name)
        task = self._found.get(key)
        if task is None:
            task = self._found[key] = self._look_up(*key)
        return task

    def _look_up(self, module_name: str, qualname: str, name: str) -> AnyTask:
        if "<locals>" in qualname:
            raise InvalidTask(
                f"{name} is defined inside another function, where a child process cannot find it; "
                "move it to the top level of its module, or leave out runner='process'"
            )
        module = self._load(module_name)
        try:
            found: Any = reduce(getattr, qualname.split("."), module)
        except AttributeError:
            raise InvalidTask(
                f"{name}: a child process found no {qualname!r} in the module {module_name!r}; it must be defined "
                "whenever the module is imported, not under a condition such as if __name__ == '__main__'"
            ) from None
        if isinstance(found, Task):
            return found.registry.find(name) or found
        return _registered(name) or Registry(None).register(found, name=name, options={})

    def _load(self, name: str) -> types.ModuleType:
        if name not in ("__main__", _MAIN):
            return importlib.import_module(name)
        return sys.modules.get(_MAIN) or self._load_main()

    def _load_main(self) -> types.ModuleType:
        _MainModule.is_loading = True
        try:
            content = self._run_main()
        except BaseException as error:  # also the SystemExit of a server
            if _MainModule.has_started:
                raise InvalidTask(_UNGUARDED) from error
            raise
        finally:
            _MainModule.is_loading = False
        module = types.ModuleType(_MAIN)
        vars(module).update(content)
        sys.modules["__main__"] = sys.modules[_MAIN] = module
        return module

    def _run_main(self) -> dict[str, Any]:
        if self._main_name not in (None, "__main__"):  # started with python -m
            return runpy.run_module(self._main_name, run_name=_MAIN, alter_sys=True)
        if self._main_path is not None:
            return runpy.run_path(self._main_path, run_name=_MAIN)
        raise InvalidTask("a child process cannot find what is defined in an interactive session; use a file")


def _registered(name: str) -> AnyTask | None:
    """Find a task that does not stand under its function's own name, by the registries of those that do."""
    for module in tuple(sys.modules.values()):
        for value in tuple(getattr(module, "__dict__", {}).values()):
            if type(value) is Task and (task := value.registry.find(name)) is not None:
                return task
    return None


def as_in_the_parent(name: str) -> str:
    """Return the qualified name that something defined here has in the parent."""
    return name.replace(f"{_MAIN}.", "__main__.", 1) if name.startswith(f"{_MAIN}.") else name
