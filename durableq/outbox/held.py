"""Which write transactions the running code itself has open.

To add a job outside of such a transaction would be to wait for a lock that only the waiting code can give back. A
context variable knows, so that the attempt can be refused at once.
"""

import asyncio
import threading
from collections.abc import Callable
from contextvars import ContextVar
from pathlib import Path
from typing import Final

from durableq.errors import TransactionRefused
from durableq.outbox.locking import is_same_file
from durableq.storage.sqlite.writer import REMEDIES


class Hold:
    """A write transaction of the application, from before it has the lock until after its end."""

    __slots__ = ("_is_open", "_owner", "_path")

    def __init__(self, owner: object | None) -> None:
        self._owner = owner
        self._path = Path()
        self._is_open: Callable[[], bool] | None = None

    def begun(self, path: Path, is_open: Callable[[], bool]) -> None:
        """It has the lock; so every other one on that file is over, or is the same."""
        self._path = path
        self._is_open = is_open
        _held.set(tuple(one for one in _held.get() if one is self or one._path != path))

    def failed(self) -> None:
        """It did not get the lock, or gave it back at once."""
        self._is_open = _never

    @property
    def is_over(self) -> bool:
        return self._is_open is not None and not self._is_open()

    def stands_in_the_way(self, path: Path) -> bool:
        """Whether the lock of this file is held, and the code that runs here has to give it back."""
        if self._is_open is None or not self._is_open():
            return False
        return (self._owner is None or self._owner == _runner()) and is_same_file(self._path, path)


_held: Final[ContextVar[tuple[Hold, ...]]] = ContextVar("durableq_held", default=())


def note_hold(*, with_children: bool) -> Hold:
    """Note, in the calling context, a transaction that is about to take the lock.

    ``with_children``: what the calling code starts as tasks and threads of their own counts as part of it.
    """
    hold = Hold(None if with_children else _runner())
    _held.set((*(one for one in _held.get() if not one.is_over), hold))
    return hold


def refuse_self_deadlock(path: Path) -> None:
    """Raise `TransactionRefused` when the caller's own transaction holds the lock that an add would wait for."""
    held = _held.get()
    if held and any(one.stands_in_the_way(path) for one in held):
        raise TransactionRefused(
            f"this code has a write transaction open on {path}, and a job that is added outside of it would wait for "
            f"that very transaction; {REMEDIES}"
        )


def _never() -> bool:
    return False


def _runner() -> object:
    """Who runs here: an asyncio task, or a thread without an event loop."""
    try:
        return asyncio.current_task() or threading.get_ident()
    except RuntimeError:
        return threading.get_ident()
