"""The dashboard: pages on which people see how a queue is, understand what went wrong, and mend it.

Closed until it is told who may look. Server-rendered: every page reads and every action works without JavaScript.
What it shows of jobs has gone through the same redaction as the admin routes, and what it does is audited.
Needs the extra ``durableq[dashboard]``.
"""

import logging
from typing import Any

from fastapi import APIRouter

from durableq.dashboard import (
    actions,
    assets,
    bulk,
    dead,
    edit,
    job,
    jobs,
    live,
    overview,
    queues,
    system,
    unknown,
    workers,
)
from durableq.dashboard.site import Site
from durableq.fastapi.principals import checked_auth, principal_of
from durableq.queue import DurableQ

__all__ = ["dashboard"]

logger = logging.getLogger("durableq.dashboard")

_SCREENS = (overview, jobs, dead, bulk, actions, edit, job, queues, workers, system, live, assets, unknown)


def dashboard(dq: DurableQ, *, auth: Any = None) -> APIRouter:
    """Return the pages for ``dq``: ``app.include_router(dashboard(dq, auth=...), prefix="/durableq")``.

    ``auth`` is a FastAPI dependency, ``Depends(...)`` or ``Security(...)``, that refuses strangers by raising
    `HTTPException`, exactly as for `durableq.fastapi.admin_router`; it may return a `durableq.fastapi.Principal`
    whose role says what this person may do. Without ``auth`` the router has no routes, and the log says so. Raises
    `ConfigurationError` for what authenticates nobody.
    """
    if auth is None:
        logger.warning(
            "dashboard(%r) has no pages, because nobody would be asked who they are; to enable them pass a "
            "dependency that refuses strangers: dashboard(dq, auth=Depends(current_admin))",
            dq,
        )
        return APIRouter()
    site = Site(dq, principal_of(checked_auth(auth)))
    router = APIRouter(route_class=site.route_class, include_in_schema=False)
    for screen in _SCREENS:
        screen.add(router, site)
    return router
