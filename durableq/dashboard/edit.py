"""Mend the arguments of a dead or cancelled job and run it again: edit, look at what would change, confirm.

Nothing is stored before the confirmation, and what is confirmed is checked once more. A secret is shown as a
placeholder; left as it is, it stays what is stored. Somebody else's edit in between is noticed.
"""

import asyncio
from dataclasses import dataclass
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends
from starlette.responses import Response

from durableq.dashboard.actions import RUN_AGAIN, seen_of
from durableq.dashboard.diff import as_json, difference, hidden_changes
from durableq.dashboard.editing import Misread, Mistake, key_needed, line_of, mistake, read_arguments
from durableq.dashboard.refusals import Refused
from durableq.dashboard.site import Message, SentForm, Site, Visit
from durableq.errors import ConfigurationError, InvalidArguments, InvalidTask
from durableq.fastapi.schemas import shown_schema
from durableq.fastapi.showing import Secrets, arguments_of, as_stored, secrets_of, what_is_wrong
from durableq.models import Job, JobState
from durableq.placeholders import PlaceholderSent
from durableq.queue import DurableQ
from durableq.redaction import HIDDEN, MASKED, Redactor, cleaned

_EDITABLE: Final = (JobState.DEAD, JobState.CANCELLED)
LINES: Final = 1_000
"""So many lines of a change are shown."""
_SAID: Final = Message("The job is queued again, with the arguments you gave it.")


@dataclass(frozen=True, slots=True)
class _Editing:
    """A job whose arguments are edited, and what is known about its secrets."""

    dq: DurableQ
    job: Job[Any]
    secrets: Secrets

    @property
    def seen(self) -> str:
        return seen_of(self.job)

    def redactor(self, *other_arguments: Any) -> Redactor:
        return self.secrets.redactor(self.job, *other_arguments)

    def shown(self) -> Any:
        """The stored arguments as they may be shown."""
        return self.redactor().arguments(arguments_of(self.job))


@dataclass(frozen=True, slots=True)
class _Edited:
    """What was typed, and may be stored."""

    typed: dict[str, Any]
    args: dict[str, Any]
    """The same with its secrets."""
    stored: dict[str, Any]
    """How the job would hold them: checked, and brought to the types that the task declares."""


def add(router: APIRouter, site: Site) -> None:
    site.messages["edited"] = _SAID

    @router.get("/jobs/{job_id}/edit")
    async def show_editor(job_id: str, visit: Annotated[Visit, Depends(site.administrator)]) -> Response:
        editing = await _editing(site.dq, job_id)
        return await _editor(visit, editing, as_json(await asyncio.to_thread(editing.shown)))

    @router.post("/jobs/{job_id}/edit")
    async def go_on(job_id: str, sent: Annotated[SentForm, Depends(site.administrator_form)]) -> Response:
        visit, form = sent.visit, sent.form
        editing = await _editing(site.dq, job_id)
        text = form.text("args").replace("\r\n", "\n")
        if form.text("seen") != editing.seen:
            return await _editor(visit, editing, text, Mistake(_MEANWHILE), is_stale=True)
        if form.text("step") == "edit":
            return await _editor(visit, editing, text)
        edited = await _read(editing, text)
        if isinstance(edited, Mistake):
            return await _editor(visit, editing, text, edited)
        if form.text("step") != "confirm":
            return await asyncio.to_thread(_review, visit, editing, text, edited)
        await site.dq.retry(job_id, args=edited.args, who=visit.who.name)
        return visit.redirect(f"jobs/{job_id}", message="edited")


_MEANWHILE: Final = f"{RUN_AGAIN} Its arguments may be others by now."


async def _editing(dq: DurableQ, job_id: str) -> _Editing:
    job = await dq.get(job_id)
    if job.state not in _EDITABLE:
        raise Refused(
            409,
            "That is not possible now",
            f"Only the arguments of a dead or cancelled job can be edited; this one is {job.state}.",
        )
    key = key_needed(job)
    if key is not None:
        raise Refused(
            409,
            "These arguments are encrypted",
            f"They are encrypted with the key “{key}”, and this process could not open them: it lacks the key, or they "
            "were changed. Nothing was done. Edit them where that key is, or give this process the key.",
        )
    return _Editing(dq, job, await secrets_of(dq, [job.task]))


async def _read(editing: _Editing, text: str) -> Mistake | _Edited:
    """Return what was typed, or what is wrong with it. Stores nothing."""
    try:
        typed = await asyncio.to_thread(read_arguments, text)
    except Misread as error:
        return mistake(error.message, text, error.line)
    try:
        args = await asyncio.to_thread(lambda: as_stored(typed, editing.job, editing.redactor()))
        return _Edited(typed, args, await editing.dq.check_edit(editing.job, args))
    except PlaceholderSent as error:
        return mistake(str(error), text, line_of(text, error.argument))
    except InvalidArguments as error:
        return mistake(what_is_wrong(error, editing.redactor(typed)), text, line_of(text, error.argument))
    except (ConfigurationError, InvalidTask) as error:  # nothing is known of the task here
        return Mistake(cleaned(str(error)))


def _review(visit: Visit, editing: _Editing, text: str, edited: _Edited) -> Response:
    """Show what would change. A secret is no more shown new than old."""
    before = arguments_of(editing.job)
    redactor = editing.redactor(edited.typed, edited.stored)
    shown = redactor.arguments(edited.stored)
    lines = difference(as_json(redactor.arguments(before)), as_json(shown))
    return visit.page(
        "review.html",
        section="jobs",
        title="Review and retry",
        address=visit.url(f"jobs/{editing.job.id}/edit"),
        job=editing.secrets.summary(editing.job),
        seen=editing.seen,
        text=text,
        lines=lines[:LINES],
        more=max(0, len(lines) - LINES),
        hidden=hidden_changes(before, edited.stored, shown) if isinstance(before, dict) else [],
    )


async def _editor(
    visit: Visit, editing: _Editing, text: str, wrong: Mistake | None = None, *, is_stale: bool = False
) -> Response:
    return visit.page(
        "edit.html",
        section="jobs",
        title="Edit and retry",
        status=200 if wrong is None else 422,
        address=visit.url(f"jobs/{editing.job.id}/edit"),
        job=editing.secrets.summary(editing.job),
        seen=editing.seen,
        text=text,
        rows=min(max(text.count("\n") + 3, 8), 30),
        wrong=wrong,
        is_stale=is_stale,
        has_hidden=HIDDEN in text or MASKED in text,
        hidden=HIDDEN,
        schema=await _schema(editing),
    )


async def _schema(editing: _Editing) -> str:
    """The description of the arguments, as JSON; empty when none is stored."""
    stored = {task.name: task.arguments_schema for task in await editing.dq.tasks()}.get(editing.job.task)
    shown = None if stored is None else shown_schema(stored)
    return "" if shown is None else as_json(shown)
