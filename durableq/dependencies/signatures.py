"""What a callable asks for in its signature, as FastAPI reads it; and what of that a task cannot have.

Everything is looked at once, when a task is registered, or when an override is first met.
"""

import inspect
import types
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from enum import Enum, auto
from functools import partial
from typing import Annotated, Any, Final, NoReturn, get_args, get_origin

from durableq.dependencies.sentinel import INJECTED

_WEB: Final = ("fastapi", "starlette")
_REQUEST_BOUND: Final = frozenset(
    {"Request", "WebSocket", "HTTPConnection", "Response", "BackgroundTasks", "SecurityScopes", "UploadFile"}
)
_TRANSPARENT: Final = (Annotated, typing.Union, types.UnionType, list, tuple, set, frozenset, Sequence)


class Refused(Exception):
    """Why a function cannot be used in a task; the message does not say yet which task."""


class Kind(Enum):
    """How a callable gives its value."""

    COROUTINE = auto()
    ASYNC_GENERATOR = auto()
    GENERATOR = auto()
    FUNCTION = auto()


@dataclass(frozen=True, slots=True, eq=False)
class Use:
    """One ``Depends``: the parameter it stands at, and what it asks for."""

    parameter: str
    call: Callable[..., Any]
    is_cached: bool
    limit: Any
    """The marker itself when it has ``max_concurrency``, else None."""


@dataclass(frozen=True, slots=True, eq=False)
class Provider:
    """One callable of the graph, looked at once."""

    call: Callable[..., Any]
    open: Callable[..., Any]
    """The callable itself, or what makes a context manager of it."""
    kind: Kind
    uses: tuple[Use, ...]


def analyse(call: Callable[..., Any]) -> Provider:
    """Look at one dependency. Raises `Refused` when it needs a request, or cannot be understood."""
    uses: list[Use] = []
    for parameter, hint in parameters_of(call):
        use = _use_at(parameter, hint)
        if use is None:
            _require_default(parameter, hint)
        elif parameter.kind is parameter.POSITIONAL_ONLY:
            raise Refused(f"parameter {parameter.name!r} is positional-only; FastAPI passes values by name")
        else:
            uses.append(use)
    kind = _kind_of(call)
    makers: dict[Kind, Callable[..., Any]] = {
        Kind.GENERATOR: contextmanager,
        Kind.ASYNC_GENERATOR: asynccontextmanager,
    }
    maker = makers.get(kind)
    return Provider(call, call if maker is None else maker(call), kind, tuple(uses))


def parameters_of(call: Callable[..., Any]) -> list[tuple[inspect.Parameter, Any]]:
    """Return the parameters of a callable, each with its annotation resolved. Raises `Refused` where that fails."""
    try:
        signature = inspect.signature(call)
    except (ValueError, TypeError, NameError) as error:
        raise Refused(f"its signature cannot be read ({error}); wrap it in a function of your own") from error
    namespace = _namespace_of(call)
    return [(parameter, _hint_of(parameter, namespace)) for parameter in signature.parameters.values()]


def _hint_of(parameter: inspect.Parameter, namespace: dict[str, Any]) -> Any:
    annotation = parameter.annotation
    if isinstance(annotation, type):
        return annotation
    holder = types.SimpleNamespace(__annotations__={"hint": annotation})
    try:
        return _unaliased(typing.get_type_hints(holder, namespace, include_extras=True)["hint"])
    except Exception as error:  # an annotation may be any expression
        if _is_depends(parameter.default) and parameter.default.dependency is not None:
            return Any
        raise Refused(
            f"the annotation {annotation!r} of parameter {parameter.name!r} cannot be resolved ({error}); import or "
            "define the names it uses at module level, above the task, not under TYPE_CHECKING"
        ) from error


def use_in_task(parameter: inspect.Parameter, hint: Any) -> Use | None:
    """Return what is injected into a parameter of the task itself; what is not comes with the job's arguments."""
    use = _use_at(parameter, hint)
    if use is not None:
        return use
    _refuse_request_bound(parameter, hint)
    if _is_field(parameter.default):
        _refuse_as_request(parameter, type(parameter.default).__name__)
    return None


def _use_at(parameter: inspect.Parameter, hint: Any) -> Use | None:
    marker = _marker_at(parameter, hint)
    if marker is None:
        return None
    call = _base_of(hint) if marker.dependency is None else marker.dependency
    if call is inspect.Parameter.empty or not callable(call):
        raise Refused(f"parameter {parameter.name!r} has Depends() without a function, and no class as annotation")
    if (getattr(call, "__module__", None) or "").startswith("durableq.fastapi"):
        _refuse_collector(parameter)
    if getattr(marker, "scopes", None):
        raise Refused(
            f"parameter {parameter.name!r} has Security(scopes=...), which are checked against a request; "
            "use Depends in a task"
        )
    limit = marker if getattr(marker, "max_concurrency", None) is not None else None
    try:
        hash((call, limit))
    except TypeError:
        raise Refused(f"parameter {parameter.name!r} depends on {short_name(call)}, which has to be hashable") from None
    return Use(parameter.name, call, marker.use_cache, limit)


def _marker_at(parameter: inspect.Parameter, hint: Any) -> Any:
    """Return the ``Depends`` that FastAPI would obey here, or None."""
    markers = [one for one in getattr(hint, "__metadata__", ()) if _is_depends(one) or _is_field(one)]
    if not _is_depends(parameter.default):
        return markers[-1] if markers and _is_depends(markers[-1]) else None
    if markers:
        raise Refused(f"parameter {parameter.name!r} has a FastAPI marker in its annotation and another as default")
    return parameter.default


def require_passable_by_name(uses: Sequence[Use], kinds: Mapping[str, Any]) -> None:
    """What is injected is passed by name, the job's own arguments as they were given: keep them apart."""
    names_only = inspect.Parameter.KEYWORD_ONLY
    by_place = {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.VAR_POSITIONAL} & set(kinds.values())
    for use in uses:
        kind = kinds[use.parameter]
        if kind is not names_only and (by_place or kind is inspect.Parameter.VAR_KEYWORD):
            raise Refused(
                f"parameter {use.parameter!r} is injected by name and may not stand among positional-only or starred "
                "ones; make it keyword-only"
            )


def _require_default(parameter: inspect.Parameter, hint: Any) -> None:
    """Refuse a dependency's parameter that only a request can fill."""
    _refuse_request_bound(parameter, hint)
    for marker in (parameter.default, *_parts(hint)):
        if _is_field(marker):
            _refuse_as_request(parameter, type(marker).__name__)
    if _descends(type(parameter.default), {"FieldInfo"}, ("pydantic",)):
        _refuse_as_request(parameter, "Field, which FastAPI would take from the query")
    if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
        raise Refused(
            f"parameter {parameter.name!r} is starred, which FastAPI would take from the query; "
            "name the parameters, or use functools.wraps in the decorator"
        )
    if parameter.default is parameter.empty:
        raise Refused(
            f"parameter {parameter.name!r} has no default, and FastAPI would take it from the query; "
            "give it a default, or a Depends of its own"
        )


def _refuse_request_bound(parameter: inspect.Parameter, hint: Any) -> None:
    for part in _parts(hint):
        if _is_depends(part):
            raise Refused(
                f"parameter {parameter.name!r} has its Depends inside of {hint}, where FastAPI does not see it; "
                "write Annotated[T | None, Depends(...)]"
            )
        if isinstance(part, type) and _descends(part, {"TaskCollector"}, ("durableq",)):
            _refuse_collector(parameter)
        if isinstance(part, type) and _descends(part, _REQUEST_BOUND):
            _refuse_as_request(parameter, part.__name__)
    if parameter.default is INJECTED:
        raise Refused(
            f"parameter {parameter.name!r} has the default INJECTED, but no Depends in its annotation; "
            f"write {parameter.name}: Annotated[T, Depends(...)] = INJECTED"
        )


def _refuse_as_request(parameter: inspect.Parameter, what: str) -> NoReturn:
    raise Refused(
        f"parameter {parameter.name!r} ({what}) needs a request, and a task has none; "
        "take what you need from the request in the route, and pass it to the task as an argument"
    )


def _refuse_collector(parameter: inspect.Parameter) -> NoReturn:
    raise Refused(
        f"parameter {parameter.name!r} is durableq's BackgroundTasks, which belongs to a request; in a task use "
        "'await dq.add_task(...)' or 'current_job().add_task(...)'"
    )


def _parts(hint: Any) -> Iterator[Any]:
    """What an annotation is made of: members of unions, items of sequences, and all that Annotated adds."""
    hint = _unaliased(hint)
    if get_origin(hint) in _TRANSPARENT:
        for part in get_args(hint):
            yield from _parts(part)
    else:
        yield hint


def _base_of(hint: Any) -> Any:
    return get_args(hint)[0] if get_origin(hint) is Annotated else hint


def _unaliased(hint: Any) -> Any:
    while type(hint).__name__ == "TypeAliasType":  # typing's, and the one of typing_extensions
        hint = hint.__value__
    return hint


def _is_depends(value: object) -> bool:
    return _descends(type(value), {"Depends"})


def _is_field(value: object) -> bool:
    """Whether this is Query, Header, Cookie, Path, Body, Form or File."""
    return _descends(type(value), {"Param", "Body"})


def _descends(kind: type, names: Set[str], packages: tuple[str, ...] = _WEB) -> bool:
    return any(base.__name__ in names and base.__module__.partition(".")[0] in packages for base in kind.__mro__)


def _namespace_of(call: Callable[..., Any]) -> dict[str, Any]:
    """The globals in which a callable's postponed annotations were written."""
    target = _unwrapped(call)
    owners = ("__init__", "__new__") if isinstance(target, type) else ("__call__",)
    for candidate in (target, *(getattr(target, name, None) for name in owners)):
        found = getattr(inspect.unwrap(candidate), "__globals__", None) if callable(candidate) else None
        if found is not None:
            namespace: dict[str, Any] = found
            return namespace
    return {}


def _kind_of(call: Callable[..., Any]) -> Kind:
    """What FastAPI takes a callable for: itself, what it wraps, or the ``__call__`` of either may decide."""
    bare, inner = _impartial(call), _unwrapped(call)
    faces = [bare, inner]
    if not isinstance(inner, type):
        for one in (bare, inner):
            method = getattr(one, "__call__", None)  # noqa: B004 - wanted itself, not whether there is one
            faces += [method, _unwrapped(method)]
    if any(map(inspect.isasyncgenfunction, faces)):
        return Kind.ASYNC_GENERATOR
    if any(map(inspect.isgeneratorfunction, faces)):
        return Kind.GENERATOR
    return Kind.COROUTINE if any(map(inspect.iscoroutinefunction, faces)) else Kind.FUNCTION


def _unwrapped(call: Any) -> Any:
    return inspect.unwrap(_impartial(call))


def _impartial(call: Any) -> Any:
    while isinstance(call, partial):
        call = call.func
    return call


def short_name(call: Callable[..., Any]) -> str:
    """Return what to call a callable in an error."""
    inner = _unwrapped(call)
    name = getattr(inner, "__qualname__", None) or type(inner).__qualname__
    return str(name).rpartition("<locals>.")[2]
