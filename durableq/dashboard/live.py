"""Tells open pages that something has changed, so that they look again. Costs nothing while nobody looks.

A page names the fingerprint that it knows, also when it comes back: it is not told twice, and misses nothing,
whichever process answers.
"""

import asyncio
from typing import Annotated, Final

from fastapi import APIRouter, Depends, Header, Query
from starlette.responses import Response

from durableq.dashboard.site import Site, Visit
from durableq.dashboard.watch import Watch
from durableq.fastapi.streaming import TICK_SECONDS, Event, Events, EventStream, Seats

STREAM_SECONDS: Final = 60.0
"""A stream ends after this, and the page opens another: whoever may no longer look is out by then, and what the
``auth`` dependency holds for the length of a request, a session for instance, is given back."""
OPEN_AT_ONCE: Final = 200


def add(router: APIRouter, site: Site) -> None:
    seats = Seats(OPEN_AT_ONCE)

    @router.get("/live")
    async def stream_changes(
        visit: Annotated[Visit, Depends(site.reader)],
        known: Annotated[str, Query(max_length=100)] = "",
        last_event_id: Annotated[str | None, Header(max_length=100)] = None,
    ) -> Response:
        return EventStream(told(site.watch, last_event_id or known), seats)


async def told(watch: Watch, known: str, seconds: float = STREAM_SECONDS) -> Events:
    """Yield ``changed``, with the fingerprint, whenever what there is, is not what the page knows."""
    loop = asyncio.get_running_loop()
    ends_at = loop.time() + seconds
    looks_at = loop.time()
    while loop.time() < ends_at:
        if loop.time() >= looks_at:
            looks_at = loop.time() + watch.seconds
            current = await watch.now()
            if current != known:
                known = current
                yield Event("changed", current, current)
        yield None
        await asyncio.sleep(TICK_SECONDS)
