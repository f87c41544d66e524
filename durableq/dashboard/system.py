"""The system: how the database is, what this process is set to, and what people did."""

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated, Any, Final

from fastapi import APIRouter, Depends, Query
from starlette.responses import Response

from durableq.dashboard.pages import duration, in_bytes
from durableq.dashboard.site import Site, Visit
from durableq.errors import QueueNotRunning
from durableq.models import EDITED, LARGEST_NUMBER, AuditEntry
from durableq.queue import DurableQ
from durableq.redaction import HIDDEN, Redactor, one_line
from durableq.reports import AuditPage
from durableq.secret_names import is_secret_name
from durableq.settings import QueueOptions
from durableq.version import __version__

ENTRIES: Final = 50
"""Of the audit trail, on one page."""
_LIBRARIES: Final = ("fastapi", "starlette", "pydantic", "uvicorn")
_DONE: Final = {
    "retry": "retried",
    "edit and retry": "edited and retried",
    "cancel": "cancelled",
    "delete": "deleted",
    "pause": "paused",
    "resume": "resumed",
}
_SHOWN_CHARACTERS: Final = 300
_NOTHING: Final = {
    "queues": "all",
    "process_memory": "no limit",
    "retain_finished": "for ever",
    "retain_dead": "for ever",
}
"""What None means, where it does not mean none."""


@dataclass(frozen=True, slots=True)
class Setting:
    """An option of the queue, in words."""

    name: str
    value: str
    is_usual: bool


@dataclass(frozen=True, slots=True)
class Deed:
    """What somebody did, in words."""

    at: datetime
    who: str
    action: str
    job_id: str
    queue: str
    """The queue that it was done to; empty for a job."""
    what: str


def add(router: APIRouter, site: Site) -> None:
    dq = site.dq

    @router.get("/system")
    async def show_system(
        visit: Annotated[Visit, Depends(site.reader)],
        cursor: Annotated[int | None, Query(ge=1, le=LARGEST_NUMBER)] = None,
    ) -> Response:
        trail = await _trail(dq, cursor)
        return visit.page(
            "system.html",
            section="system",
            title="System",
            health=await dq.health(),
            versions=versions(),
            settings=settings_of(dq.settings),
            deeds=None if trail is None else [deed_of(entry) for entry in trail.entries],
            next_cursor=None if trail is None else trail.next_cursor,
            is_first=cursor is None,
        )


async def _trail(dq: DurableQ, cursor: int | None) -> AuditPage | None:
    """Return what people did; None while the queue does not run here, which this page says in its own words."""
    try:
        return await dq.audit(cursor=cursor, limit=ENTRIES)
    except QueueNotRunning:
        return None


def versions() -> dict[str, str]:
    """Return what this process runs on."""
    found = {"durableq": __version__, "Python": platform.python_version(), "System": platform.platform(terse=True)}
    for library in _LIBRARIES:
        try:
            found[library] = version(library)
        except PackageNotFoundError:
            continue
    return found


def settings_of(options: QueueOptions) -> list[Setting]:
    """Return the options of a queue. Those whose names say that they are secret are not told."""
    usual = {
        name: field.get_default(call_default_factory=True, validated_data={})
        for name, field in type(options).model_fields.items()
    }
    return [
        Setting(name, HIDDEN if is_secret_name(name) else _in_words(name, value), value == usual[name])
        for name, value in options
    ]


def deed_of(entry: AuditEntry) -> Deed:
    """Return an entry of the audit trail as it is shown. Arguments are not: the job's own page knows what is secret."""
    detail = {name: value for name, value in entry.detail.items() if name not in EDITED}
    queue = "" if entry.job_id else one_line(str(detail.pop("queue", "")))
    told = one_line(_details_in_words(Redactor().value(detail)))
    return Deed(entry.at, one_line(entry.who), _DONE.get(entry.action, entry.action), entry.job_id, queue, told)


def _details_in_words(detail: Mapping[str, Any]) -> str:
    words = ", ".join(f"{name.replace('_', ' ')}: {value}" for name, value in detail.items() if value is not None)
    return words if len(words) <= _SHOWN_CHARACTERS else f"{words[:_SHOWN_CHARACTERS]}…"


def _in_words(name: str, value: Any) -> str:
    match value:
        case None:
            return _NOTHING.get(name, "none")
        case bool():
            return "yes" if value else "no"
        case timedelta():
            return duration(value)
        case int():
            return in_bytes(value) if name.endswith("_bytes") or name == "process_memory" else f"{value:,}"
        case tuple():
            return ", ".join(map(str, value)) or "none"
        case _:
            return str(value)
