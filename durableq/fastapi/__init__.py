"""durableq in a FastAPI application.

``BackgroundTasks`` is the drop-in: change the import, keep the route. `DurableRoute` makes a whole router durable
without touching its signatures. `IdempotencyKey` makes repeated requests safe. `admin_router` gives operators the
dead letters. `status_router` shows the app's own users how far their jobs are, `accepted` answers with a link to it.
"""

from durableq.fastapi import checks as checks  # registers the start-up checks
from durableq.fastapi.admin import admin_router
from durableq.fastapi.background import BackgroundTasks, TaskCollector
from durableq.fastapi.idempotency import IdempotencyKey
from durableq.fastapi.principals import Principal
from durableq.fastapi.routing import DurableRoute
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
