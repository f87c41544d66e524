"""What no page has: an address that was mistyped, or cut. It is answered like the rest, with the menu."""

from typing import Annotated

from fastapi import APIRouter, Depends
from starlette.responses import RedirectResponse, Response

from durableq.dashboard.refusals import Refused
from durableq.dashboard.routes import UNKNOWN, unknown_route_class
from durableq.dashboard.site import Site, Visit


def add(router: APIRouter, site: Site) -> None:
    async def find_nothing(visit: Annotated[Visit, Depends(site.reader)]) -> Response:
        path = visit.request.path_params[UNKNOWN]
        if path.endswith("/") or not path:
            query = visit.request.url.query
            # Two slashes in front would be another host.
            return RedirectResponse(visit.url(path.strip("/")) + (f"?{query}" if query else ""), 307)
        raise Refused(404, "There is no such page", "Is the address complete? Start from the menu above.")

    router.add_api_route(f"/{{{UNKNOWN}:path}}", find_nothing, route_class_override=unknown_route_class(site))
