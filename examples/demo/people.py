"""The people who sign up, and ask again until the app says yes."""

import asyncio
from dataclasses import dataclass
from typing import Final

import httpx2

from examples.demo.site import Site

SIGN_UPS: Final = 200
ASK_AGAIN_SECONDS: Final = 0.2


@dataclass
class Person:
    """Somebody who signs up."""

    email: str
    name: str
    job: str | None = None
    """The job that the app acknowledged."""
    unreachable: int = 0
    """Requests that found nobody listening."""
    cut_off: int = 0
    """Requests whose answer never came: stored, or not."""

    async def sign_up(self, site: Site, after_seconds: float) -> None:
        """Return when the app has said yes."""
        await asyncio.sleep(after_seconds)
        await self._ask(site)
        while self.job is None:
            await asyncio.sleep(ASK_AGAIN_SECONDS)
            await self._ask(site)

    async def _ask(self, site: Site) -> None:
        try:
            self.job = await site.sign_up(self.email, self.name)
        except httpx2.ConnectError:
            self.unreachable += 1
        except httpx2.TransportError:
            self.cut_off += 1


def acknowledged(people: list[Person]) -> list[Person]:
    """Return those who were told yes."""
    return [person for person in people if person.job is not None]
