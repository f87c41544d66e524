"""What running jobs say about themselves, until it is written: progress and log lines.

Written a moment later, many at once, and at the latest together with the job's outcome. Bounded per attempt.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from itertools import islice
from typing import Final

from durableq.models import LeaseKey, Progress
from durableq.storage.protocol import NO_NOTES, Notes

LOG_LINES: Final = 1_000
LINE_CHARACTERS: Final = 2_000
LOOKED_AT_CHARACTERS: Final = 2 * LINE_CHARACTERS
"""In so much of a line secrets are looked for, so that none is cut in two before it is found."""
SOON_SECONDS: Final = 0.1
"""How long the first word waits for others, so that a chatty job costs ten transactions a second at most."""
_AT_ONCE: Final = 2_000


class Notebook:
    """Collects from any thread; the worker's exchange takes. Lives on the event loop but for `progress` and `log`."""

    def __init__(self, due: Callable[[], None]) -> None:
        """``due`` is called on the loop when there is something to write."""
        self._due = due
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._progress: dict[LeaseKey, Progress] = {}
        self._logs: deque[tuple[LeaseKey, int, int, str]] = deque()
        self._will_tell = False
        self._is_due = False

    def progress(self, key: LeaseKey, progress: Progress) -> None:
        """Remember the latest word of a job about its progress."""
        self._progress[key] = progress
        self._tell_soon()

    def log(self, key: LeaseKey, no: int, at: int, message: str) -> None:
        """Keep line ``no`` of an attempt, said at ``at`` (microseconds)."""
        self._logs.append((key, no, at, message))
        self._tell_soon()

    def take(self, *, at_once: bool = True) -> Notes:
        """Return what is to be written: whatever there is, or, unless ``at_once``, what has waited long enough.

        It stays here until `written`.
        """
        if not (at_once or self._is_due) or (not self._progress and not self._logs):
            return NO_NOTES
        logs = [self._logs[at] for at in range(min(len(self._logs), _AT_ONCE))]
        self._is_due = len(self._logs) > len(logs)
        return Notes(tuple(self._progress.copy().items()), logs)

    def unsaid(self, notes: Notes) -> set[LeaseKey]:
        """Return whose lines are not among ``notes``: once they are settled, nothing is written for them."""
        rest = self._logs.copy() if len(self._logs) > len(notes.logs) else ()
        return {line[0] for line in islice(rest, len(notes.logs), None)}

    def of(self, key: LeaseKey) -> Notes:
        """Return what one attempt has said and is not written yet. From any thread; it stays here."""
        progress = self._progress.get(key)
        logs = [line for line in self._logs.copy() if line[0] == key]
        return Notes(() if progress is None else ((key, progress),), logs)

    def written(self, notes: Notes) -> None:
        """Forget what was written; a newer word that came meanwhile stays."""
        for key, progress in notes.progress:
            if self._progress.get(key) is progress:
                del self._progress[key]
        for _ in notes.logs:
            self._logs.popleft()

    def _tell_soon(self) -> None:
        if self._will_tell:
            return
        self._will_tell = True
        if threading.get_ident() == self._thread:
            self._loop.call_later(SOON_SECONDS, self._tell)
            return
        with suppress(RuntimeError):  # the loop is closed: a thread that was left behind is still talking
            self._loop.call_soon_threadsafe(self._loop.call_later, SOON_SECONDS, self._tell)

    def _tell(self) -> None:
        self._will_tell = False
        self._is_due = True
        self._due()
