"""The SQL of ``queries.sql``, loaded once, by name."""

from collections.abc import Collection
from functools import cache
from importlib import resources
from typing import Final

from durableq.history import SummedBy

_MARK: Final = "-- name: "
_LEASE_COLUMNS: Final = (
    "seq, lease_no, id, task, queue, args, checksum, attempt, max_attempts, crashes, created_at, "
    "priority, expires_at, deadline_at, settings"
)


_PAUSED: Final = "(SELECT name FROM durableq_queues WHERE paused_at IS NOT NULL)"


def _load() -> dict[str, str]:
    text = resources.files(__package__).joinpath("queries.sql").read_text(encoding="utf-8")
    blocks: dict[str, str] = {}
    for block in text.split(_MARK)[1:]:
        name, _, body = block.partition("\n")
        lines = [line for line in body.splitlines() if not line.startswith("--")]
        blocks[name.strip()] = "\n".join(lines).strip().replace(" IN PAUSED", f" IN {_PAUSED}")
    return blocks


SQL: Final = _load()


INSERTED_COLUMNS: Final = (
    "id",
    "task",
    "queue",
    "priority",
    "state",
    "args",
    "checksum",
    "max_attempts",
    "created_at",
    "run_at",
)
"""In the order of `rows.insert_row`."""
INSERTED_AT_ONCE: Final = 64
"""So many rows go into one statement. Of each number up to this one, the connection keeps a prepared statement."""


@cache
def insert_statement(rows: int) -> str:
    """Return the statement that stores so many jobs, whose values are bound one after the other.

    The same as ``insert_jobs`` in less than half its time (3.8 µs a job against 8.2, forty at a time): nobody writes
    JSON, and SQLite does not read it.
    """
    row = f"({', '.join('?' * len(INSERTED_COLUMNS))})"
    return (
        f"INSERT INTO durableq_jobs ({', '.join(INSERTED_COLUMNS)})\n"
        f"VALUES {', '.join([row] * rows)}\n"
        "ON CONFLICT (id) DO NOTHING"
    )


@cache
def choose_statement(lanes: int, with_suspect: bool) -> str:
    """Return the SELECT that chooses what to claim.

    It gives one row: the chosen ``seq`` as a JSON array, the chosen leases as a JSON array of arrays in the order of
    `durableq.models.Lease`, and how many of them have settings. One row, because each row fetched hands over the
    interpreter lock.
    """
    parts = [SQL["choose_lane"].replace("LANE", str(lane)) for lane in range(lanes)]
    if with_suspect:
        parts.append(SQL["choose_suspect"])
    union = "\nUNION ALL\n".join(parts)
    return (
        f"SELECT json_group_array(seq), json_group_array(json_array({_LEASE_COLUMNS})), count(settings)\n"
        f"FROM (\n{union}\n)\n"
        # A worker that was reaped while it was held up must not take jobs in a name that nobody watches any more.
        "WHERE EXISTS (SELECT 1 FROM durableq_workers WHERE id = :worker_id)"
    )


_TOLD_APART: Final[dict[SummedBy, tuple[str, str]]] = {
    "step": ("at / :step * :step", ":since"),
    "queue": ("queue", "''"),
    "task": ("task", "''"),
}
"""What tallies are told apart by: the column, and what stands there where they are not."""


@cache
def tallies_statement(ways: tuple[Collection[SummedBy], ...]) -> str:
    """Return the SELECT that sums tallies up once for each way. Its rows begin with the number of the way."""
    return "\nUNION ALL\n".join(_tallies_of(number, way) for number, way in enumerate(ways))


def _tallies_of(number: int, way: Collection[SummedBy]) -> str:
    statement = SQL["tallies"].replace("WAY", str(number))
    for name, (column, otherwise) in _TOLD_APART.items():
        statement = statement.replace(name.upper(), column if name in way else otherwise)
    return statement.replace("GROUPED", "".join(f"{_TOLD_APART[name][0]}, " for name in way))
