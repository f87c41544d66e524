"""Where code lives: the stable names of functions, and which modules belong to the app.

A name is ``module:qualname`` with the module derived from its *file*, so that ``python main.py``,
``uvicorn main:app`` and ``fastapi dev main.py`` give the same one.
"""

import sys
import sysconfig
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

_PACKAGE_DIRECTORY: Final = Path(__file__).resolve().parent


def name_of(function: Callable[..., Any]) -> str:
    """Return the stable name ``module:qualname`` of a function, its module derived from its file."""
    module = sys.modules.get(function.__module__)
    derived = (module and derived_name(module)) or function.__module__
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


def is_own_code(module: types.ModuleType, root: Path) -> bool:
    """Whether a module's file lies under ``root`` and is neither installed nor durableq's own."""
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


def derived_name(module: types.ModuleType) -> str | None:
    """Return the name that a module's file gives it, None for what has no file."""
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


_DERIVED: Final[dict[str, str]] = {}
"""Names already derived, by file: a look-up walks all of ``sys.modules``."""
