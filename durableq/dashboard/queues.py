"""The queues: how many jobs wait and run in each, since when, how they fared lately; pausing and resuming."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Annotated, Final

from fastapi import APIRouter, Depends
from pydantic import TypeAdapter, ValidationError
from starlette.responses import Response

from durableq.dashboard.forms import Form
from durableq.dashboard.refusals import Refused
from durableq.dashboard.site import Message, SentForm, Site, Visit
from durableq.history import Figures
from durableq.options import Name
from durableq.reports import QueueReport

SHOWN: Final = 200
"""So many queues are shown."""
_LATELY: Final = timedelta(hours=1)
_NAME: Final[TypeAdapter[str]] = TypeAdapter(Name)


def add(router: APIRouter, site: Site) -> None:
    dq = site.dq
    site.messages |= {
        "paused": Message("The queue “{name}” was paused: jobs are kept, none is started."),
        "resumed": Message("The queue “{name}” was resumed: its jobs are started again."),
    }

    @router.get("/queues")
    async def show_queues(visit: Annotated[Visit, Depends(site.reader)]) -> Response:
        history, reports = await dq.history(_LATELY), await dq.queues()
        return visit.page(
            "queues.html",
            section="queues",
            title="Queues",
            queues=most_telling(reports),
            there_are=len(reports),
            figures={one.queue: one.figures for one in history.queues},
            none_ended=Figures(),
            now=dq.now(),
        )

    @router.post("/queues/pause")
    async def pause_queue(sent: Annotated[SentForm, Depends(site.operator_form)]) -> Response:
        queue = queue_named_in(sent.form)
        await dq.pause(queue, who=sent.visit.who.name)
        return sent.visit.redirect("queues", message="paused", of=queue)

    @router.post("/queues/resume")
    async def resume_queue(sent: Annotated[SentForm, Depends(site.operator_form)]) -> Response:
        queue = queue_named_in(sent.form)
        await dq.resume(queue, who=sent.visit.who.name)
        return sent.visit.redirect("queues", message="resumed", of=queue)


def most_telling(reports: Sequence[QueueReport]) -> list[QueueReport]:
    """Return as many as a page shows, by name: of too many, those that are paused, and those with most to do."""
    telling = sorted(reports, key=lambda one: (not one.is_paused, -one.running - one.queued.number))[:SHOWN]
    return sorted(telling, key=lambda one: one.name)


def queue_named_in(form: Form) -> str:
    """Return the name of the queue that a form is about. Raises `Refused` for what cannot be one."""
    try:
        return _NAME.validate_python(form.text("queue"))
    except ValidationError:
        raise Refused(
            400, "That is no name of a queue", "Expected 1 to 200 characters, none of them a control character."
        ) from None
