"""Retry, cancel or delete all jobs that match: told how many beforehand, confirmed by typing, done in pieces.

What is added, or ends, after the page was made is left alone: the page carries its moment. A piece is done
in short transactions, and others get their turn between them. Stopped half-way nothing is lost: going on does the rest.
"""

from dataclasses import dataclass, replace
from typing import Annotated, Final, Literal

from fastapi import APIRouter, Depends
from starlette.responses import RedirectResponse, Response

from durableq.dashboard.actions import POSSIBLE, UNREACHABLE, Action, checked_action
from durableq.dashboard.filters import Search, read_query
from durableq.dashboard.jobs import LOOK_AT, refusal
from durableq.dashboard.refusals import Refused
from durableq.dashboard.site import SentForm, Site, Visit
from durableq.fastapi.admin_answers import in_http_words
from durableq.fastapi.parameters import declared_in_query
from durableq.models import JobFilter, JobState
from durableq.reports import Count

PIECE: Final = 500
"""Jobs done by one press of the button by a script, which shows how far it is in between."""
WHOLE: Final = 5_000
"""Jobs done by one press of the button where no script presses it again."""
_STATES: Final[dict[Action, tuple[JobState, ...]]] = {**POSSIBLE, "retry": (JobState.DEAD,)}
"""Many are retried at a time only when they are dead."""


@dataclass(frozen=True, slots=True)
class _Task:
    """What to do to which jobs."""

    action: Action
    search: Search
    where: JobFilter


def add(router: APIRouter, site: Site) -> None:
    @router.get("/bulk")
    async def ask(visit: Annotated[Visit, Depends(site.operator)]) -> Response:
        given = visit.request.query_params
        if "do" not in given:  # the address of a form that was sent, typed or reloaded
            query = visit.request.url.query
            return RedirectResponse(visit.url("jobs") + (f"?{query}" if query else ""), 303)
        task = await _task(visit, given.get("do", ""), given.multi_items())
        found = await _count(visit, task)
        return _page(visit, task, found.number, is_all=found.is_all)

    @router.post("/bulk")
    async def go_on(sent: Annotated[SentForm, Depends(site.operator_form)]) -> Response:
        visit, form = sent.visit, sent.form
        task = await _task(visit, form.text("do"), form.fields)
        expected, is_all = form.number("expected"), form.text("is_all") == "yes"
        typed, done = form.text("typed").strip(), form.number("done")
        if typed.replace(",", "").lower() != _word(expected, is_all=is_all):
            return _page(visit, task, expected, is_all=is_all, wrong=typed or "nothing")
        done, end = await _do(visit, task, WHOLE if form.text("whole") else PIECE, done)
        if end == "over":
            return visit.redirect("jobs", message=task.action, n=done, **_goes_back_to(task).fields())
        return _page(visit, task, expected, is_all=is_all, typed=typed, done=done, is_stopped=end == "stopped")


async def _task(visit: Visit, action_text: str, pairs: list[tuple[str, str]] | tuple[tuple[str, str], ...]) -> _Task:
    action = checked_action(action_text, visit)
    at = visit.site.dq.now()
    search, problems, _ = read_query(pairs, at, declared_in_query(visit.request))
    problems = problems or await refusal(visit.site.dq, search.where(at))
    if problems:
        raise Refused(400, "This search cannot be meant", " ".join(f"{problem.message}." for problem in problems))
    states = _STATES[action]
    if search.state and JobState(search.state) not in states:
        raise Refused(
            400,
            f"A {search.state} job cannot be {_DONE[action]} here",
            f"Look for jobs that are {' or '.join(states)}, and try again. Nothing was done.",
        )
    if len(states) == 1:
        search = replace(search, state=states[0].value)
    search = search.fixed(at).ending_before("until" if action == "cancel" else "finished_until", at)
    return _Task(action, search, search.where(at))


_DONE: Final[dict[Action, str]] = {"retry": "retried", "cancel": "cancelled", "delete": "deleted"}


async def _count(visit: Visit, task: _Task) -> Count:
    """How many jobs match, of those in the states that the action is for."""
    states = _STATES[task.action] if task.where.state is None else (task.where.state,)
    counts = [await visit.site.dq.count(replace(task.where, state=state), look_at=LOOK_AT) for state in states]
    return Count(sum(count.number for count in counts), all(count.is_all for count in counts))


async def _do(visit: Visit, task: _Task, most: int, done: int) -> tuple[int, Literal["over", "more", "stopped"]]:
    """Do it to at most so many more jobs; return to how many by now, and whether there may be more.

    ``stopped``: the queue failed after some were done. If none was done yet, its error is raised.
    """
    dq, who = visit.site.dq, visit.who.name
    matching = {"retry": dq.retry_matching, "cancel": dq.cancel_matching, "delete": dq.delete_matching}[task.action]
    until = done + most
    while done < until:
        try:
            number = await matching(task.where, limit=PIECE, who=who)
        except UNREACHABLE as error:
            if not done:
                raise
            in_http_words(error)  # the log gets what is behind it
            return done, "stopped"
        done += number
        if number < PIECE:
            return done, "over"
    return done, "more"


def _word(expected: int, *, is_all: bool) -> str:
    """What is typed to confirm."""
    return str(expected) if is_all else "all"


def _goes_back_to(task: _Task) -> Search:
    """The list to show afterwards: without the moment, which would hide what has become of them."""
    return replace(task.search, state="", until="", finished_until="")


def _page(
    visit: Visit,
    task: _Task,
    expected: int,
    *,
    is_all: bool,
    wrong: str = "",
    typed: str = "",
    done: int = 0,
    is_stopped: bool = False,
) -> Response:
    return visit.page(
        "bulk.html",
        section="jobs",
        title=f"{task.action.capitalize()} all that match",
        status=422 if wrong else 200,
        address=visit.url("bulk", do=task.action, **task.search.fields()),
        action=task.action,
        search=task.search,
        back=_goes_back_to(task),
        expected=expected,
        is_all=is_all,
        word=_word(expected, is_all=is_all),
        wrong=wrong,
        typed=typed,
        done=done,
        is_stopped=is_stopped,
        looked_at=LOOK_AT,
        whole=WHOLE,
        states=_STATES[task.action] if task.where.state is None else (),
    )
