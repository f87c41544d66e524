"""Dead letters by task and kind of error: what broke, how often, since when, and what to do about all of a kind."""

import asyncio
from collections.abc import Sequence
from typing import Annotated, Any, Final, NamedTuple

from fastapi import APIRouter, Depends
from starlette.responses import Response

from durableq.dashboard.site import Site, Visit
from durableq.errors import JobNotFound
from durableq.fastapi.showing import Secrets, secrets_of
from durableq.models import Job
from durableq.queue import DurableQ
from durableq.reports import DeadLetters

SHOWN: Final = 100
"""So many kinds of failure are shown, the most numerous."""


class Group(NamedTuple):
    """Dead letters of one kind, and the message of the latest as it may be shown."""

    letters: DeadLetters
    message: str


def add(router: APIRouter, site: Site) -> None:
    @router.get("/dead")
    async def show_dead(visit: Annotated[Visit, Depends(site.reader)]) -> Response:
        report = await site.dq.dead_letters()
        return visit.page(
            "dead.html",
            section="dead",
            title="Dead letters",
            groups=await _shown(site.dq, report.groups[:SHOWN]),
            kinds=len(report.groups),
            total=sum(letters.number for letters in report.groups),
            is_all=report.is_all,
        )


async def _shown(dq: DurableQ, found: Sequence[DeadLetters]) -> list[Group]:
    """Return groups whose messages are redacted with what is known of the very job that each is of."""
    secrets = await secrets_of(dq, {letters.task for letters in found})
    latest = [await _latest(dq, letters) for letters in found]
    return await asyncio.to_thread(
        lambda: [Group(letters, _message(secrets, job)) for letters, job in zip(found, latest, strict=True)]
    )


async def _latest(dq: DurableQ, letters: DeadLetters) -> Job[Any] | None:
    try:
        return await dq.get(letters.latest_id)
    except JobNotFound:  # deleted since
        return None


def _message(secrets: Secrets, job: Job[Any] | None) -> str:
    error = None if job is None else secrets.summary(job).error
    return "" if error is None else error.message
