"""What waits for the writer: bounded, by arrival, the urgent first, never longer than promised."""

import contextlib
import math
import queue
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import Final

from durableq.errors import StorageBusy
from durableq.storage.sqlite.operation import Insert, Operation

BEGIN_WITHIN_SECONDS: Final = 5.0
"""An operation whose transaction has not begun after this long is removed: "not stored"."""
IMPATIENT_SECONDS: Final = 1.0
"""The same for an impatient one, when a transaction of this very process has the lock."""
GROUP_WEIGHT: Final = 1_500
"""Rows in one transaction: about 20 ms at the measured 60,000 to 86,000 a second."""
WAITING_BYTES: Final = 64 * 1024 * 1024
"""What may wait before an operation is refused at once."""


class Inbox:
    """Any thread puts operations in; the writer thread takes groups out."""

    def __init__(self) -> None:
        self._arrivals: queue.SimpleQueue[Sequence[Operation]] = queue.SimpleQueue()
        self._waiting: deque[Operation] = deque()
        self.is_idle = False
        """Whether the writer sleeps, with nothing handed over to it."""
        self.is_held_by_us = False
        """Whether the writer waits for a transaction of this very process, and has done so for a while."""
        self._latest = math.inf
        self._bytes = 0
        self._bytes_guard = threading.Lock()

    def admit(self, size: int) -> None:
        """Count bytes in before they are `put`. Raises `StorageBusy`, with nothing done, when too much waits."""
        with self._bytes_guard:
            if self._bytes + size > WAITING_BYTES:
                raise StorageBusy(
                    f"{self._bytes:,} bytes of jobs already wait to be written; nothing was stored, try again later"
                )
            self._bytes += size

    def put(self, operations: Sequence[Operation]) -> None:
        """Hand over operations that were admitted. None at all: just wake the writer thread."""
        begin_by = time.monotonic() + BEGIN_WITHIN_SECONDS
        for operation in operations:
            operation.begin_by = begin_by
        self.is_idle = False
        self._arrivals.put(operations)

    def gather(self, timeout: float | None) -> None:
        """Take in what has arrived; when nothing waits, sleep up to ``timeout`` seconds until something does."""
        with contextlib.suppress(queue.Empty):
            if not self._waiting and (timeout is None or timeout > 0):
                self.is_idle = self._arrivals.empty()
                self._take_in(self._arrivals.get(timeout=timeout))
                self.is_idle = False
            while True:
                self._take_in(self._arrivals.get_nowait())

    def is_empty(self) -> bool:
        return not self._waiting and self._arrivals.empty()

    def next_group(self) -> list[Operation]:
        """Return what goes into the next transaction: about 20 ms of work, or one heavy operation alone."""
        group: list[Operation] = []
        weight = 0
        while self._waiting and weight < GROUP_WEIGHT:
            operation = self._waiting[0]
            if operation.alone:
                return group or self._heavy_or_what_it_must_not_delay()
            if group and weight + operation.weight > GROUP_WEIGHT:
                break
            group.append(self._waiting.popleft())
            weight += operation.weight
        return group

    def hurry(self, seconds: float) -> None:
        """Let nothing wait longer than this from now on: the queue is stopping."""
        self._latest = time.monotonic() + seconds

    def is_late(self, operation: Operation, now: float) -> bool:
        """Whether an operation that has not begun is to be removed."""
        begin_by = operation.begin_by
        if operation.impatient and self.is_held_by_us:
            begin_by -= BEGIN_WITHIN_SECONDS - IMPATIENT_SECONDS
        return min(begin_by, self._latest) < now

    def expired(self) -> list[Operation]:
        """Remove and return what has waited too long."""
        now = time.monotonic()
        if not self._waiting:
            return []
        oldest = min(self._waiting[0], self._waiting[-1], key=_begin_by)  # what is urgent was put in front
        if not self.is_late(oldest, now) and not self.is_held_by_us:
            return []
        late = [one for one in self._waiting if self.is_late(one, now)]
        self._waiting = deque(one for one in self._waiting if not self.is_late(one, now))
        return late

    def done(self, group: list[Operation]) -> None:
        """Count operations out once they are answered."""
        self.release(sum(operation.size for operation in group))

    def release(self, size: int) -> None:
        """Count bytes out."""
        with self._bytes_guard:
            self._bytes -= size

    def _take_in(self, operations: Sequence[Operation]) -> None:
        for operation in operations:
            if operation.urgent:
                self._waiting.appendleft(operation)
            else:
                self._waiting.append(operation)

    def _heavy_or_what_it_must_not_delay(self) -> list[Operation]:
        """Heartbeats and settles that wait behind a heavy insert go first; else it goes alone."""
        heavy = self._waiting.popleft()
        first: list[Operation] = [one for one in self._waiting if not isinstance(one, Insert) and not one.alone]
        if not first:
            return [heavy]
        self._waiting = deque([heavy, *(one for one in self._waiting if isinstance(one, Insert) or one.alone)])
        return first


def _begin_by(operation: Operation) -> float:
    return operation.begin_by
