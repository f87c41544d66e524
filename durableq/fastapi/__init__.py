"""durableq in a FastAPI application.

``BackgroundTasks`` is the drop-in: change the import, keep the route. `DurableRoute` makes a whole router durable
without touching its signatures. `IdempotencyKey` makes repeated requests safe. `admin_router` gives operators the
dead letters.
"""

from durableq.fastapi import checks as checks  # registers the start-up checks
from durableq.fastapi.admin import Principal, admin_router
from durableq.fastapi.background import BackgroundTasks, TaskCollector
from durableq.fastapi.idempotency import IdempotencyKey
from durableq.fastapi.routing import DurableRoute

__all__ = ["BackgroundTasks", "DurableRoute", "IdempotencyKey", "Principal", "TaskCollector", "admin_router"]
