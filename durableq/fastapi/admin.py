"""``admin_router``: everything that operators see and do, over HTTP for their scripts and pages of their own.

No authentication, no routes. Every write is audited under the name of who asked, in the same transaction; what a
person may do follows from their role. Answers are never cached, and browsers cannot be made to write from another
site. The arguments of jobs are shown one job at a time only. No look goes over all jobs there are.
"""

import logging
from typing import Any, Final

from fastapi import APIRouter

from durableq.fastapi import admin_jobs, admin_queues
from durableq.fastapi.admin_answers import AdminRoute
from durableq.fastapi.principals import at_least, checked_auth, principal_of
from durableq.queue import DurableQ

logger = logging.getLogger("durableq.fastapi")

_ESCAPED: Final = 4
"""How much longer than stored the same arguments may come in: spaces, and characters written as escapes."""
_BODY_FLOOR: Final = 64 * 1024


def admin_router(dq: DurableQ, *, auth: Any = None) -> APIRouter:
    """Return the routes to look at and mend the jobs of ``dq``: ``app.include_router(..., prefix="/admin")``.

    ``auth`` is a FastAPI dependency, ``Depends(...)`` or ``Security(...)``, that refuses strangers by raising
    `HTTPException`. It may return a `Principal`; a text is the name of an administrator; one that returns nothing
    makes everybody it lets through an administrator named "admin". Without ``auth`` the router has no routes, and
    the log says so. Raises `ConfigurationError` for what authenticates nobody.
    """
    router = APIRouter(tags=["durableq"], route_class=_route_class(dq))
    if auth is None:
        logger.warning(
            "admin_router(%r) has no routes, because nobody would be asked who they are; to enable them pass a "
            "dependency that refuses strangers: admin_router(dq, auth=Depends(current_admin))",
            dq,
        )
        return router
    principal = principal_of(checked_auth(auth))
    for routes in (admin_jobs, admin_queues):
        routes.add_looking(router, dq, at_least("read", principal))
        routes.add_operating(router, dq, at_least("operate", principal))
    admin_jobs.add_mending(router, dq, at_least("admin", principal))
    return router


def _route_class(dq: DurableQ) -> type[AdminRoute]:
    class RouteOfThisQueue(AdminRoute):
        body_limit = _BODY_FLOOR + _ESCAPED * dq.settings.max_payload_bytes

    return RouteOfThisQueue
