"""Which jobs match a filter, as SQL, and how far to look for them.

What an index leads to is found however rare it is; the rest is compared row by row, over a bounded stretch.
"""

import re
from typing import Any, Final, NamedTuple

from durableq.clock import from_datetime
from durableq.models import CANCELLABLE, JobFilter, JobState

_STATES: Final = {
    JobState.QUEUED: ("state = 'queued' AND crashes = 0", "state = 'queued' AND crashes > 0"),
    JobState.SCHEDULED: ("state = 'scheduled'",),
    JobState.RUNNING: ("state = 'running'",),
}
"""Conditions that have an index, which does not give the order of adding."""
_UNSAYABLE: Final = re.compile(r'["\\\x00-\x1f]')
"""What a path into JSON cannot say; arguments with it in their names are not found."""
_ORDERED: Final = frozenset({JobState.DEAD, JobState.CANCELLED})
"""States that have an index in the order of adding."""


class Matching(NamedTuple):
    """A filter as conditions to append after a WHERE, each with its AND, and their values."""

    conditions: str
    values: dict[str, Any]


def matching(where: JobFilter) -> Matching:
    """Return a filter as SQL."""
    exact = {"task": where.task, "queue": where.queue, "error_type": where.error_type}
    values: dict[str, Any] = {name: value for name, value in exact.items() if value is not None}
    conditions = [f"{name} = :{name}" for name in values]
    if where.state is not None:
        # Spelt out: SQLite uses a partial index only for a condition that it can read when it prepares.
        conditions.insert(0, f"state = '{JobState(where.state).value}'")
    _add_moments(where, conditions, values)
    if where.tag is not None:
        conditions.append("json_valid(tags) AND :tag IN (SELECT value FROM json_each(tags))")
        values["tag"] = where.tag
    if where.error_text is not None:
        conditions.append("error_message LIKE :error_text ESCAPE '\\'")
        values["error_text"] = f"%{_literally(where.error_text)}%"
    _add_arguments(where, conditions, values)
    return Matching("".join(f" AND {condition}" for condition in conditions), values)


def _add_moments(where: JobFilter, conditions: list[str], values: dict[str, Any]) -> None:
    bounds = {
        "created_at >= ": ("created_after", where.created_after),
        "created_at < ": ("created_before", where.created_before),
        "finished_at >= ": ("finished_after", where.finished_after),
        "finished_at < ": ("finished_before", where.finished_before),
    }
    for comparison, (name, moment) in bounds.items():
        if moment is not None:
            conditions.append(f"{comparison}:{name}")
            values[name] = from_datetime(moment)


def _add_arguments(where: JobFilter, conditions: list[str], values: dict[str, Any]) -> None:
    """Compare single values, as the text they are shown as. Damaged and encrypted arguments match nothing.

    Nor do arrays and objects: something inside may be secret, and whoever may ask whether it is this or that knows it.
    """
    for number, (name, value) in enumerate(where.arguments.items()):
        path = f":path_{number}"
        conditions.append(
            f"CASE WHEN NOT json_valid(args) THEN NULL ELSE CASE json_type(args, {path}) "
            "WHEN 'true' THEN 'true' WHEN 'false' THEN 'false' WHEN 'null' THEN 'null' "
            "WHEN 'array' THEN NULL WHEN 'object' THEN NULL "
            f"ELSE CAST(json_extract(args, {path}) AS TEXT) END END = :value_{number}"
        )
        values[f"path_{number}"] = "$" + "".join(f'."{part}"' for part in _UNSAYABLE.sub("\ufffd", name).split("."))
        values[f"value_{number}"] = value


def _literally(text: str) -> str:
    return text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")


def lowest(state: JobState | None, cursor: int | None, look_at: int) -> tuple[str, dict[str, Any]]:
    """Return the query for the ``seq`` at which a look at so many jobs, newest first, ends.

    In a state that has an index in the order of adding these are jobs of that state; else all, by number.
    """
    values = {"cursor": cursor, "look_at": look_at}
    if state in _ORDERED:
        found = f"SELECT seq FROM durableq_jobs WHERE state = '{state}' AND (:cursor IS NULL OR seq < :cursor)"
        return f"SELECT min(seq) FROM ({found} ORDER BY seq DESC LIMIT :look_at)", values
    return "SELECT coalesce(:cursor - 1, (SELECT max(seq) FROM durableq_jobs)) - :look_at + 1", values


def next_below(state: JobState | None) -> str:
    """Return the query for the newest job below ``low`` that could match: from there looking goes on."""
    condition = f"state = '{state}' AND " if state in _ORDERED else ""
    return f"SELECT max(seq) FROM durableq_jobs WHERE {condition}seq < :low"


def few_in_state(state: JobState | None) -> tuple[str, str] | None:
    """Return the query that counts a state by its index up to ``look_at``, and a condition that uses the index.

    None when no index leads there, or one that gives the order of adding, which SQLite chooses by itself.
    """
    if state not in _STATES:
        return None
    found = " UNION ALL ".join(f"SELECT seq FROM durableq_jobs WHERE {one}" for one in _STATES[state])
    return f"SELECT count(*) FROM (SELECT 1 FROM ({found}) LIMIT :look_at)", f" AND seq IN ({found})"


UNFINISHED: Final = f" AND state IN ({', '.join(repr(state.value) for state in CANCELLABLE)})"
"""Compared row by row: `oldest_first` is asked about one stretch after another, and an index gives no such stretch."""
FINISHED: Final = " AND finished_at IS NOT NULL"
RETRYABLE: Final = (
    " AND NOT EXISTS (SELECT 1 FROM durableq_jobs AS holder"
    " WHERE json_valid(durableq_jobs.settings)"
    " AND holder.unique_key = json_extract(durableq_jobs.settings, '$.unique')"
    " AND holder.seq <> durableq_jobs.seq)"
)
"""Leaves out those whose unique key another job holds. Index: unique."""


def oldest_first(where: JobFilter, hint: str, *, after: int, until: int, limit: int) -> tuple[str, dict[str, Any]]:
    """Return the query for the ``seq`` of jobs that match, from above ``after`` to ``until``."""
    conditions, values = matching(where)
    sql = (
        f"SELECT seq FROM durableq_jobs WHERE seq > :after AND seq <= :until{conditions}{hint} "
        "ORDER BY seq LIMIT :limit"
    )
    return sql, values | {"after": after, "until": until, "limit": limit}
