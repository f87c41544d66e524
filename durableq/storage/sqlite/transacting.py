"""What is done in a transaction of its own, by the writer of the process."""

import asyncio
import sqlite3
from collections.abc import Callable
from typing import TypeVar

from durableq.errors import QueueNotRunning
from durableq.storage.sqlite.connection import Location
from durableq.storage.sqlite.handover import HandOver
from durableq.storage.sqlite.operation import Transact
from durableq.storage.sqlite.replies import FutureReply
from durableq.storage.sqlite.writer import Writer

T = TypeVar("T")


class Transacting:
    """The way of `SqliteStorage` to its writer, while it is open."""

    _location: Location
    _loop: asyncio.AbstractEventLoop
    _opened: Writer | None
    _outgoing: HandOver

    @property
    def _writer(self) -> Writer:
        if self._opened is None:
            raise self._not_running()
        return self._opened

    @property
    def _hand_over(self) -> HandOver:
        if self._opened is None:
            raise self._not_running()
        return self._outgoing

    def _not_running(self) -> QueueNotRunning:
        return QueueNotRunning(f"the queue on {self._location.path} is not running")

    async def _transact(
        self,
        run: Callable[[sqlite3.Connection], T],
        *,
        makes_work: Callable[[T], bool] | None = None,
        finishes: Callable[[T], bool] | None = None,
        cancels: bool = False,
        solitary: bool = False,
    ) -> T:
        reply = FutureReply(self._loop)
        operation = Transact(
            reply=reply, run=run, makes_work=makes_work, finishes=finishes, cancels=cancels, solitary=solitary
        )
        self._hand_over.submit(operation)
        answer: T = await reply.future
        return answer


def always(_: object) -> bool:
    """For a change that always makes work, or finishes something, whatever it returns."""
    return True
