"""Tells open pages that something has changed, so that they look again. Costs nothing while nobody looks.

A page names the fingerprint that it knows, also when it comes back: it is not told twice, and misses nothing,
whichever process answers.
"""

import asyncio
import weakref
from typing import Annotated, Final

from fastapi import APIRouter, Depends, Header, Query
from starlette.responses import Response

from durableq.dashboard.refusals import Refused
from durableq.dashboard.site import Site, Visit
from durableq.dashboard.watch import LookFailed, Watch
from durableq.fastapi.streaming import TICK_SECONDS, Event, Events, EventStream, Seats

STREAM_SECONDS: Final = 60.0
"""A stream ends after this, and the page opens another: whoever may no longer look is out by then, and what the
``auth`` dependency holds for the length of a request, a session for instance, is given back."""
OPEN_AT_ONCE: Final = 200
OPEN_FOR_ONE: Final = 50
"""Of these, for one name: nobody keeps the others from it."""


def add(router: APIRouter, site: Site) -> None:
    seats = Seats(OPEN_AT_ONCE)
    shares: weakref.WeakValueDictionary[str, Share] = weakref.WeakValueDictionary()

    @router.get("/live")
    async def stream_changes(
        visit: Annotated[Visit, Depends(site.reader)],
        known: Annotated[str, Query(max_length=100)] = "",
        last_event_id: Annotated[str | None, Header(max_length=100)] = None,
    ) -> Response:
        try:
            await site.watch.now()
        except LookFailed:
            # Not a stream that ends at once: the page would take it for a live one, again and again.
            raise Refused(503, "There are no live updates now", "The log of the server says why.") from None
        share = shares.setdefault(visit.who.name, Share(seats))
        return EventStream(told(site.watch, last_event_id or known), share)


class Share(Seats):
    """The seats that one person may take, of those of all."""

    def __init__(self, of_all: Seats) -> None:
        super().__init__(OPEN_FOR_ONE)
        self._of_all = of_all

    def take(self) -> bool:
        if not super().take():
            return False
        if not self._of_all.take():
            super().leave()
            return False
        return True

    def leave(self) -> None:
        super().leave()
        self._of_all.leave()


async def told(watch: Watch, known: str, seconds: float = STREAM_SECONDS) -> Events:
    """Yield ``changed``, with the fingerprint, whenever what there is, is not what the page knows.

    It ends early when that cannot be found out: the page comes back, and learns that there are no live updates.
    """
    loop = asyncio.get_running_loop()
    ends_at = loop.time() + seconds
    looks_at = loop.time()
    while loop.time() < ends_at:
        if loop.time() >= looks_at:
            looks_at = loop.time() + watch.seconds
            try:
                current = await watch.now()
            except LookFailed:
                return
            if current != known:
                known = current
                yield Event("changed", current, current)
        yield None
        await asyncio.sleep(TICK_SECONDS)
