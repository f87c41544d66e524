"""What people do to one job, or to those they ticked. Retrying is done at once; cancelling and deleting asks first.

Each job of a selection stands for itself: one that is gone, or in another state by now, does not keep the others from
it, and the page says so afterwards.
"""

from typing import Annotated, Any, Final, Literal

from fastapi import APIRouter, Depends
from starlette.responses import Response

from durableq.dashboard.filters import Search, read_query
from durableq.dashboard.refusals import Refused
from durableq.dashboard.site import Message, SentForm, Site, Visit
from durableq.errors import JobConflict, JobNotFound, QueueNotRunning, StorageError
from durableq.fastapi.admin_answers import in_http_words
from durableq.fastapi.principals import Role
from durableq.fastapi.showing import secrets_of
from durableq.models import CANCELLABLE, DELETABLE, RESTARTABLE, Job, JobState

Action = Literal["retry", "cancel", "delete"]

ROLES: Final[dict[Action, Role]] = {"retry": "operate", "cancel": "operate", "delete": "admin"}
MOST_SELECTED: Final = 500
MESSAGES: Final = {
    "retry": Message(
        "One job is queued again.", "{n} jobs are queued again.", none="No job was queued again: none is left."
    ),
    "cancel": Message(
        "One job is cancelled, or was asked to end.",
        "{n} jobs are cancelled, or were asked to end.",
        none="No job was cancelled: none is left.",
    ),
    "delete": Message("One job is deleted.", "{n} jobs are deleted.", none="No job was deleted: none is left."),
}
_OTHERS: Final = "The others are gone, or in another state by now; nothing was done to them."
_ALL_GONE: Final = "Nothing was done: what was ticked is gone, or in another state by now."
_STOPPED: Final = (
    "Then the queue could not be reached. The others may be as they were: look before you do it to them again."
)
_SOME: Final = {
    f"some_{action}": Message(f"{said.text} {_OTHERS}", f"{said.plural} {_OTHERS}", "warn", _ALL_GONE)
    for action, said in MESSAGES.items()
} | {
    f"stopped_{action}": Message(f"{said.text} {_STOPPED}", f"{said.plural} {_STOPPED}", "bad")
    for action, said in MESSAGES.items()
}
_NONE: Final = Message("Nothing was done: no job was ticked.", kind="warn")
UNREACHABLE: Final = (StorageError, QueueNotRunning)
"""What stops a work of many steps half-way."""


def add(router: APIRouter, site: Site) -> None:
    site.messages |= MESSAGES | _SOME | {"none_ticked": _NONE}
    _add_selection(router, site)
    _add_one(router, site)


def checked_action(text: str, visit: Visit) -> Action:
    """Return an action that this person may do. Raises `Refused`."""
    for action, role in ROLES.items():
        if text == action:
            if not visit.may(role):
                raise Refused(403, "You may not do this", f"It needs the role “{role}”. Nothing was done.")
            return action
    raise Refused(400, "There is no such action", "Expected retry, cancel or delete. Nothing was done.")


async def act(visit: Visit, action: Action, job_id: str) -> None:
    """Do it to one job. Raises `JobNotFound` and `JobConflict`."""
    dq, who = visit.site.dq, visit.who.name
    match action:
        case "retry":
            await dq.retry(job_id, who=who)
        case "cancel":
            await dq.cancel(job_id, who=who)
        case "delete":
            await dq.delete(job_id, who=who)


# -- one -----------------------------------------------------------------------------------------------------


def _add_one(router: APIRouter, site: Site) -> None:
    @router.post("/jobs/{job_id}/retry")
    async def retry_job(job_id: str, sent: Annotated[SentForm, Depends(site.operator_form)]) -> Response:
        await _refuse_stale(sent, "retry", job_id)
        await act(sent.visit, "retry", job_id)
        return sent.visit.redirect(f"jobs/{job_id}", message="retry", n=1)

    @router.get("/jobs/{job_id}/cancel")
    async def ask_whether_to_cancel(job_id: str, visit: Annotated[Visit, Depends(site.operator)]) -> Response:
        return await _ask(visit, "cancel", job_id)

    @router.post("/jobs/{job_id}/cancel")
    async def cancel_job(job_id: str, sent: Annotated[SentForm, Depends(site.operator_form)]) -> Response:
        await act(sent.visit, "cancel", job_id)
        return sent.visit.redirect(f"jobs/{job_id}", message="cancel", n=1)

    @router.get("/jobs/{job_id}/delete")
    async def ask_whether_to_delete(job_id: str, visit: Annotated[Visit, Depends(site.administrator)]) -> Response:
        return await _ask(visit, "delete", job_id)

    @router.post("/jobs/{job_id}/delete")
    async def delete_job(job_id: str, sent: Annotated[SentForm, Depends(site.administrator_form)]) -> Response:
        await _refuse_stale(sent, "delete", job_id)
        await act(sent.visit, "delete", job_id)
        return sent.visit.redirect("jobs", message="delete", n=1)


async def _ask(visit: Visit, action: Action, job_id: str) -> Response:
    """Show what would be done to one job, with a button that does it."""
    stored = await visit.site.dq.get(job_id)
    job = (await secrets_of(visit.site.dq, [stored.task])).summary(stored)
    if job.state not in POSSIBLE[action]:
        raise Refused(409, "That is not possible now", f"The job is {job.state}. {_WHEN[action]}")
    values: dict[str, Any] = {"action": action, "job": job, "seen": seen_of(stored), "ids": [], "search": None}
    return visit.page("sure.html", section="jobs", title=_TITLES[action], **values)


def seen_of(job: Job[Any]) -> str:
    """Name this very end of a job: once it has run again, it has another."""
    return "" if job.finished_at is None else job.finished_at.isoformat()


async def _refuse_stale(sent: SentForm, action: Action, job_id: str) -> None:
    """Refuse what was decided by the look of another end than the job has now. A wrong state is told elsewhere."""
    job = await sent.visit.site.dq.get(job_id)
    if job.state in POSSIBLE[action] and sent.form.text("seen") != seen_of(job):
        raise Refused(409, "That is not possible now", f"{RUN_AGAIN} Open it to see how it is now.", f"jobs/{job_id}")


RUN_AGAIN: Final = "The job has run again since this page was made, so nothing was done."


_TITLES: Final[dict[Action, str]] = {"retry": "Retry", "cancel": "Cancel", "delete": "Delete"}
_WHEN: Final[dict[Action, str]] = {
    "retry": "Only a dead, cancelled or scheduled job can be retried.",
    "cancel": "Only a job that has not ended can be cancelled.",
    "delete": "Only a job that has ended can be deleted; cancel it first.",
}


POSSIBLE: Final[dict[Action, tuple[JobState, ...]]] = {
    "retry": RESTARTABLE,
    "cancel": CANCELLABLE,
    "delete": DELETABLE,
}
"""The states in which a job can be retried, cancelled or deleted."""


# -- a selection ---------------------------------------------------------------------------------------------


def _add_selection(router: APIRouter, site: Site) -> None:
    @router.get("/jobs/selected")
    async def show_list(visit: Annotated[Visit, Depends(site.reader)]) -> Response:
        return visit.redirect("jobs")  # whoever comes back to the question has ticked nothing

    @router.post("/jobs/selected")
    async def act_on_selection(sent: Annotated[SentForm, Depends(site.operator_form)]) -> Response:
        visit, form = sent.visit, sent.form
        action = checked_action(form.text("do"), visit)
        search, problems, _ = read_query(form.fields, visit.site.dq.now())
        search = Search() if problems else search  # it is only where to go back to
        ids = list(dict.fromkeys(form.texts("id")))
        if len(ids) > MOST_SELECTED:
            raise Refused(400, "These are too many", f"Expected at most {MOST_SELECTED} ticked jobs, got {len(ids)}.")
        if not ids:
            return _back(visit, search, "none_ticked", 0)
        if action != "retry" and form.text("sure") != "yes":
            title = f"{_TITLES[action]} {len(ids)} job{'' if len(ids) == 1 else 's'}"
            values: dict[str, Any] = {"action": action, "job": None, "seen": "", "ids": ids, "search": search}
            address = visit.url("jobs", **search.fields())
            return visit.page("sure.html", section="jobs", title=title, address=address, **values)
        done, is_stopped = await _act_on_each(visit, action, ids)
        said = f"stopped_{action}" if is_stopped else action if done == len(ids) else f"some_{action}"
        return _back(visit, search, said, done)


async def _act_on_each(visit: Visit, action: Action, ids: list[str]) -> tuple[int, bool]:
    """Do it to each that it can be done to; return to how many, and whether the queue failed before the last."""
    done = 0
    for job_id in ids:
        try:
            await act(visit, action, job_id)
        except (JobConflict, JobNotFound):
            continue
        except UNREACHABLE as error:
            if not done:
                raise
            in_http_words(error)  # the log gets what is behind it
            return done, True
        done += 1
    return done, False


def _back(visit: Visit, search: Search, message: str, number: int) -> Response:
    return visit.redirect("jobs", message=message, n=number, **search.fields())
