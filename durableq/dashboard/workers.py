"""The processes that work on the database: which are there, what they run, and whether they are alive."""

from typing import Annotated

from fastapi import APIRouter, Depends
from starlette.responses import Response

from durableq.dashboard.overview import is_served
from durableq.dashboard.site import Site, Visit


def add(router: APIRouter, site: Site) -> None:
    @router.get("/workers")
    async def show_workers(visit: Annotated[Visit, Depends(site.reader)]) -> Response:
        workers = await site.dq.workers()
        return visit.page(
            "workers.html",
            section="workers",
            title="Workers",
            workers=workers,
            is_served=is_served(workers),
            now=site.dq.now(),
        )
