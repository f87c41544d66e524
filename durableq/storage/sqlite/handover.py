"""From the event loop to the writer: what one turn of the loop brings goes across together.

It then shares a transaction. Waking the writer for each operation would make it contend with the loop for the
interpreter lock, a dozen times per transaction.
"""

import asyncio
import logging
from collections.abc import Callable
from itertools import groupby
from operator import attrgetter
from typing import Final

from durableq.errors import NotStored
from durableq.models import JobState
from durableq.storage.sqlite.operation import HEAVY, Addition, Operation, make_insert
from durableq.storage.sqlite.replies import LoopCalls
from durableq.storage.sqlite.writer import Writer

logger = logging.getLogger("durableq.storage")

TOGETHER: Final = 32
"""So many additions of one turn of the loop go across at once; the rest of the turn overlaps with their commit."""


class HandOver:
    """Collects what one event loop wants written. ``schema_of`` gives the arguments' schema of a task."""

    def __init__(self, loop: asyncio.AbstractEventLoop, writer: Writer, schema_of: Callable[[str], str | None]) -> None:
        self._loop = loop
        self._writer = writer
        self._schema_of = schema_of
        self._is_due = False
        self._is_handing_over = False
        self._additions: list[Addition] = []
        self._operations: list[Operation] = []
        self.before_adding: Callable[[], None] | None = None
        """Called when jobs that may run at once are about to go across; what it submits goes with them."""

    def add(self, addition: Addition) -> None:
        """Take an addition over; its reply is answered exactly once. Raises as `Writer.admit`."""
        self._writer.admit(addition.size)
        self._additions.append(addition)
        self._hand_over_soon(at_once=len(self._additions) >= TOGETHER)

    def submit(self, operation: Operation) -> None:
        """The same with anything else."""
        self._writer.admit(operation.size)
        self._operations.append(operation)
        self._hand_over_soon()

    def now(self) -> None:
        """Bring everything to the writer."""
        self._is_due = False
        if self.before_adding is not None and self._additions and not self._writer.lookout.others:
            self._let_ride_along(self.before_adding)
        additions, self._additions = self._additions, []
        others, self._operations = self._operations, []
        operations: list[Operation] = []
        light = [addition for addition in additions if len(addition.jobs) <= HEAVY]
        for _, alike in groupby(light, _impatience):
            operations += self._encoded(list(alike))
        if len(light) < len(additions):
            for addition in additions:
                if len(addition.jobs) > HEAVY:
                    operations += self._encoded([addition])
        operations += others  # a claim finds what goes before it
        if operations:
            self._writer.hand_over(operations)

    def _let_ride_along(self, call: Callable[[], None]) -> None:
        """Not where other processes work: they may start at once what this one starts when its loop moves on."""
        self._is_handing_over = True
        try:
            if any(map(_has_queued, self._additions)):
                call()
        except Exception:
            logger.exception("a worker failed as it set out beside new jobs; they are stored without it")
        finally:
            self._is_handing_over = False

    def _hand_over_soon(self, *, at_once: bool = False) -> None:
        """At once when the writer sleeps, else at the end of this turn of the loop."""
        if self._is_handing_over:
            return
        if at_once or self._writer.is_idle:
            self.now()
        elif not self._is_due:
            self._is_due = True
            self._loop.call_soon(self.now)

    def _encoded(self, additions: list[Addition]) -> list[Operation]:
        """Put additions into operations. One that cannot be encoded, by a defect, must not take others along."""
        try:
            return [make_insert(additions, self._schema_of)]
        except Exception as error:
            if len(additions) > 1:
                return [operation for addition in additions for operation in self._encoded([addition])]
            calls = LoopCalls()
            additions[0].reply.answer(NotStored(f"the jobs cannot be encoded ({error!r}); nothing was stored"), calls)
            calls.flush()
            self._writer.forget(additions[0].size)
            return []


_impatience: Final = attrgetter("impatient")


def _has_queued(addition: Addition) -> bool:
    """Whether it may be. Its first job tells: jobs of one call are mostly alike, and nothing depends on it."""
    return bool(addition.jobs) and addition.jobs[0].state is JobState.QUEUED
