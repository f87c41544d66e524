"""Keeps a worker's lease alive, on a thread, so that a busy event loop does not lose it.

What it writes is *the loop's last movement* plus the lease: a loop that is merely slow keeps its jobs, a loop that
hangs loses them in the end. It also notices a loop that stands still, and says what it was executing.
"""

import asyncio
import sys
import threading
import traceback
from collections.abc import Callable, Collection
from typing import Final

from durableq.clock import SECOND, Clock
from durableq.errors import DurableQError
from durableq.events import Emitter, LoopStalled, StorageTrouble
from durableq.models import LeaseKey

PING_SECONDS: Final = 1.0


class Heartbeat:
    """Calls ``renew(expires_at, held)`` every ``interval`` and ``evicted`` once that says the lease is gone.

    ``held`` is called on the heartbeat's thread and returns the keys of all leases in memory, or None while a
    claim is under way. Durations are in microseconds.
    """

    def __init__(
        self,
        *,
        clock: Clock,
        emitter: Emitter,
        interval: int,
        lease: int,
        stall_warning: int,
        renew: Callable[[int, Collection[LeaseKey] | None], bool],
        held: Callable[[], Collection[LeaseKey] | None],
        evicted: Callable[[], None],
    ) -> None:
        self._clock = clock
        self._emitter = emitter
        self._interval = interval
        self._lease = lease
        self._stall_warning = stall_warning
        self._renew = renew
        self._held = held
        self._evicted = evicted
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._moved_at = clock.boot()
        self._renewed_at = clock.boot()
        self._stalled_at: int | None = None
        self._warned_at: int | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="durableq-heartbeat", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread soon. Does not wait: it may be in the middle of a renewal."""
        self._stop.set()

    @property
    def is_late(self) -> bool:
        """Whether the lease was not prolonged for more than two intervals."""
        return self._clock.boot() - self._renewed_at > 2 * self._interval + SECOND

    @property
    def seconds_since_renewal(self) -> float:
        return (self._clock.boot() - self._renewed_at) / SECOND

    @property
    def seconds_since_movement(self) -> float:
        """How long ago the event loop was last seen to move; up to a second is nothing."""
        return (self._clock.boot() - self._moved_at) / SECOND

    @property
    def seconds_since_stall(self) -> float | None:
        """How long ago the event loop was last found to stand still for too long; None: never."""
        return None if self._stalled_at is None else (self._clock.boot() - self._stalled_at) / SECOND

    def _beat(self) -> None:
        next_renewal = self._clock.boot() + self._interval
        while not self._stop.wait(min(PING_SECONDS, self._interval / SECOND)):
            if not self._ping():
                return
            now = self._clock.boot()
            self._warn_when_stalled(now)
            if now >= next_renewal:
                next_renewal = now + self._interval
                self._renew_once()

    def _ping(self) -> bool:
        try:
            self._loop.call_soon_threadsafe(self._note_movement)
        except RuntimeError:
            return False  # the loop is closed
        return True

    def _note_movement(self) -> None:
        self._moved_at = self._clock.boot()

    def _renew_once(self) -> None:
        try:
            holds = self._renew(self._moved_at + self._lease, self._held())
        except DurableQError as error:
            if not self._stop.is_set():
                self._emitter.emit(StorageTrouble("prolonging the lease", error))
            return
        self._renewed_at = self._clock.boot()
        if not holds and not self._stop.is_set():
            self._loop.call_soon_threadsafe(self._evicted)

    def _warn_when_stalled(self, now: int) -> None:
        still_for = now - self._moved_at
        if still_for < self._stall_warning or self._warned_at == self._moved_at:
            return
        self._warned_at = self._moved_at  # once per stall
        self._stalled_at = now
        self._emitter.emit(LoopStalled(still_for / SECOND, self._where()))

    def _where(self) -> str:
        """What the loop's thread is executing: the running asyncio task's name, and the innermost frames."""
        frame = sys._current_frames().get(self._loop_thread)
        task = asyncio.current_task(self._loop)
        name = task.get_name() if task is not None else "no task"
        return f"{name}\n{''.join(traceback.format_stack(frame, limit=4)) if frame else ''}"
