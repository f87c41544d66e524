"""Whether the books of both sides agree: the service's orders and jobs, and the merchant's bookings."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

COMPLAINTS: Final = {
    "not marked as notified": "SELECT id FROM orders WHERE NOT notified",
    "not in the merchant's books": 'SELECT id FROM orders WHERE id NOT IN (SELECT "order" FROM bookings)',
    "booked, but never ordered": 'SELECT "order" FROM bookings WHERE "order" NOT IN (SELECT id FROM orders)',
    "booked more than once": 'SELECT "order" FROM bookings GROUP BY "order" HAVING count(*) > 1',
    "booked with another amount": """
        SELECT id FROM orders JOIN bookings ON "order" = id WHERE orders.cents <> bookings.cents
    """,
    "callback has not succeeded": """
        SELECT json_extract(args, '$.order_id') FROM durableq_jobs WHERE state <> 'succeeded'
    """,
    "does not have exactly one callback": """
        SELECT orders.id FROM orders LEFT JOIN durableq_jobs ON json_extract(args, '$.order_id') = orders.id
        GROUP BY orders.id HAVING count(seq) <> 1
    """,
}
"""What can be wrong, and a query for the orders of which it is true."""

FIGURES: Final = {
    "orders": "SELECT count(*) FROM orders",
    "callbacks made": "SELECT count(*) FROM calls",
    "answered by 500": "SELECT count(*) FROM calls WHERE answer = 500",
    "told to come back later": "SELECT count(*) FROM calls WHERE not_before IS NOT NULL",
    "taken, but left without an answer": "SELECT count(*) FROM calls WHERE answer IS NULL",
    "cut off by the kill": "SELECT count(*) FROM durableq_attempts WHERE error_type = 'durableq.WorkerDied'",
    "mended by an operator": "SELECT count(DISTINCT job_id) FROM durableq_audit WHERE action = 'retry'",
    "in the merchant's books": "SELECT count(*) FROM bookings",
}


def complaints(service: Path, merchant: Path) -> list[str]:
    """Say of which orders what is wrong; nothing, when the books balance."""
    with both(service, merchant) as connection:
        found = {what: [row[0] for row in connection.execute(query)] for what, query in COMPLAINTS.items()}
    return [f"{what}: {', '.join(orders)}" for what, orders in found.items() if orders]


def figures(service: Path, merchant: Path) -> dict[str, int]:
    """Count what happened."""
    with both(service, merchant) as connection:
        return {what: connection.execute(query).fetchone()[0] for what, query in FIGURES.items()}


@contextmanager
def both(service: Path, merchant: Path) -> Iterator[sqlite3.Connection]:
    """Open the two files as one. Their owners should have ended, or be at rest."""
    with closing(sqlite3.connect(service)) as connection:
        connection.execute("ATTACH ? AS merchant", (str(merchant),))
        yield connection
