"""durableq in a FastAPI application.

``BackgroundTasks`` is the drop-in: change the import, keep the route. `DurableRoute` makes a whole router durable
without touching its signatures. `IdempotencyKey` makes repeated requests safe. `status_router` and `accepted` tell an
app's own users how far their jobs are. `admin_router` gives operators the dead letters.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

from durableq.fastapi import checks as checks  # registers the start-up checks
from durableq.fastapi.background import BackgroundTasks, TaskCollector
from durableq.fastapi.idempotency import IdempotencyKey
from durableq.fastapi.routing import DurableRoute

if TYPE_CHECKING:
    from durableq.fastapi.admin import admin_router
    from durableq.fastapi.principals import Principal
    from durableq.fastapi.status import accepted, status_router

__all__ = [
    "BackgroundTasks",
    "DurableRoute",
    "IdempotencyKey",
    "Principal",
    "TaskCollector",
    "accepted",
    "admin_router",
    "status_router",
]

_WHEN_ASKED_FOR: Final = {
    "Principal": "principals",
    "accepted": "status",
    "admin_router": "admin",
    "status_router": "status",
}
"""Names whose modules describe dozens of requests and answers; most processes need none of them."""


def __getattr__(name: str) -> Any:
    if name not in _WHEN_ASKED_FOR:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_WHEN_ASKED_FOR[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHEN_ASKED_FOR})
