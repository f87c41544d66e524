"""What is checked when an application starts, so that it fails then and not at its first request."""

import inspect
import logging
import typing
from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any

from fastapi import FastAPI
from starlette.background import BackgroundTasks
from starlette.requests import HTTPConnection
from starlette.routing import WebSocketRoute

from durableq import queue
from durableq.errors import ConfigurationError
from durableq.fastapi import background
from durableq.fastapi.routing import DurableRoute
from durableq.queue import DurableQ

logger = logging.getLogger("durableq.fastapi")


async def check_application(dq: DurableQ, app: Any) -> None:
    """Check FastAPI itself, then every route of the application that starts ``dq``."""
    if background.HANDOVER == "stack":
        await require_exit_stack()
    has_another = app is not None and any(one is not dq for one in queue.queues_of(app))
    routes = list(_routes(getattr(app, "routes", ())))
    in_memory = sorted({route.path for route in routes if _stays_in_memory(route)})
    if in_memory:
        logger.info("routes with FastAPI's own BackgroundTasks, whose tasks stay in memory: %s", ", ".join(in_memory))
    for route in routes:
        _check_route(route)
        if has_another and _names_no_queue(route):
            raise ConfigurationError(
                f"several queues run in this application, and the route {route.path!r} does not say which it means; "
                "name one by an alias in place of BackgroundTasks: "
                "Bulk = Annotated[TaskCollector, Depends(bulk.collector)]"
            )


async def require_exit_stack() -> None:
    """Raise `ConfigurationError` unless FastAPI keeps its function-scoped exit stack where we look for it.

    Asks FastAPI itself: one request to a small application, in memory.
    """
    found: list[object] = []

    async def look(connection: HTTPConnection) -> None:
        found.append(connection.scope.get(background.STACK_KEY))

    probe = FastAPI(openapi_url=None)
    probe.get("/")(look)
    await probe(_PROBE_SCOPE | {"app": probe}, _receive_nothing, _send_nowhere)
    if not found or not isinstance(found[0], AsyncExitStack):
        raise ConfigurationError(background._NO_STACK)


def _check_route(route: Any) -> None:
    for call in _calls(getattr(route, "dependant", None)):
        if isinstance(route, WebSocketRoute) and _is_collector(call):
            raise ConfigurationError(
                f"the WebSocket route {route.path!r} takes BackgroundTasks, whose jobs would be stored only when the "
                "socket closes; use 'await dq.add_task(...)' there"
            )
        for name, annotation in _annotations(call):
            if _is_subclass_of_starlettes(annotation):
                logger.warning(
                    "parameter %r of %s is annotated with %s, a subclass of Starlette's BackgroundTasks: FastAPI "
                    "gives it a plain one, in memory. Annotate it with durableq.fastapi.BackgroundTasks",
                    name,
                    getattr(call, "__qualname__", call),
                    annotation.__qualname__,
                )


def _routes(routes: Any) -> Iterator[Any]:
    """All routes, also those of included routers (kept whole by newer FastAPI) and of mounted applications."""
    for route in routes:
        yield route
        inner = getattr(route, "original_router", route)
        yield from _routes(getattr(inner, "routes", None) or ())


def _dependants(dependant: Any) -> Iterator[Any]:
    """What FastAPI knows of a route's function, and of all its dependencies."""
    if dependant is not None:
        yield dependant
        for dependency in dependant.dependencies:
            yield from _dependants(dependency)


def _calls(dependant: Any) -> Iterator[Callable[..., Any]]:
    """A route's function and those of all its dependencies."""
    return (one.call for one in _dependants(dependant) if one.call is not None)


def _stays_in_memory(route: Any) -> bool:
    return not isinstance(route, DurableRoute) and any(
        one.background_tasks_param_name for one in _dependants(getattr(route, "dependant", None))
    )


def _names_no_queue(route: Any) -> bool:
    """Whether a route stores jobs, and leaves it to the application in which queue."""
    unnamed = (background.collect, background.collect_by_yield)
    return isinstance(route, DurableRoute) or any(call in unnamed for call in _calls(getattr(route, "dependant", None)))


def _is_collector(call: Callable[..., Any]) -> bool:
    return getattr(call, "__module__", None) == background.__name__


def _annotations(call: Callable[..., Any]) -> list[tuple[str, Any]]:
    try:
        function = call.__init__ if inspect.isclass(call) else call
        return list(typing.get_type_hints(function).items())
    except Exception:  # what FastAPI itself could resolve in another way: nothing to warn about
        return []


def _is_subclass_of_starlettes(annotation: Any) -> bool:
    if not (inspect.isclass(annotation) and issubclass(annotation, BackgroundTasks)):
        return False
    return not annotation.__module__.startswith(("starlette.", "fastapi."))


_PROBE_SCOPE: dict[str, Any] = {
    "type": "http",
    "asgi": {"version": "3.0"},
    "http_version": "1.1",
    "method": "GET",
    "scheme": "http",
    "path": "/",
    "raw_path": b"/",
    "root_path": "",
    "query_string": b"",
    "headers": [],
    "client": None,
    "server": None,
}


async def _receive_nothing() -> dict[str, Any]:
    return {"type": "http.request", "body": b"", "more_body": False}


async def _send_nowhere(message: Any) -> None:
    pass


queue.start_up_hooks.append(check_application)
