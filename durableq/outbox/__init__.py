"""Jobs inside the application's own transaction: its commit stores both, its rollback neither.

For connections of `sqlite3` and `aiosqlite`, and connections and sessions of SQLAlchemy and SQLModel, sync and async,
on the queue's own file. The statements run on the caller's connection, so nothing can come between its writes and its
jobs. What could not keep that promise is refused: another file, another SQLite library, a lower ``synchronous``, a
connection that commits each statement by itself.

`DurableQ.within` adds jobs. `configure` and `begin` make the application's transactions get the write lock soon,
however busy the queue is.
"""

from durableq.outbox.beginning import begin, configure
from durableq.outbox.carriers import AiosqliteConnection, AsyncConnection, AsyncTransaction
from durableq.outbox.held import refuse_self_deadlock
from durableq.outbox.locking import READ_ONLY
from durableq.outbox.writing import AsyncOutbox, Outbox, outbox_for, write_within

__all__ = [
    "READ_ONLY",
    "AiosqliteConnection",
    "AsyncConnection",
    "AsyncOutbox",
    "AsyncTransaction",
    "Outbox",
    "begin",
    "configure",
    "outbox_for",
    "refuse_self_deadlock",
    "write_within",
]
