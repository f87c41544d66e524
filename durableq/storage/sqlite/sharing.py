"""One writer per process and file, however many queues use the file."""

import contextlib
import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final

from durableq.clock import Clock
from durableq.errors import ConfigurationError
from durableq.storage.sqlite import host
from durableq.storage.sqlite.connection import Location
from durableq.storage.sqlite.writer import Writer

_guard: Final = threading.Lock()
_writers: Final[dict[tuple[int, str], tuple[Writer, int]]] = {}
"""Writer and number of users, by (fork count, real path): a forked child must not inherit a writer."""


def acquire_writer(location: Location, clock: Clock) -> Writer:
    """Return the writer of a file, starting it if need be. Wait for its ``opened`` before using it.

    Raises `StorageUnusable` for a path that cannot be a database, `ConfigurationError` when the file is already
    open here with another durability.
    """
    key = _key(location)
    with _guard:
        writer, users = _writers.get(key, (None, 0))
        if writer is None or (writer.opened.done() and writer.opened.exception() is not None):
            writer, users = Writer(location, clock), 0
        elif writer.location.durability != location.durability:
            raise ConfigurationError(
                f"{location.path} is already open in this process with durability={writer.location.durability!r}; "
                f"expected the same, got {location.durability!r}"
            )
        _writers[key] = (writer, users + 1)
        return writer


def release_writer(writer: Writer) -> None:
    """Give a writer back; the last user's release closes it. Its ``closed`` tells when that is done."""
    with _guard:
        key = next((key for key, (known, _) in _writers.items() if known is writer), None)
        if key is None:
            return
        users = _writers[key][1] - 1
        if users > 0:
            _writers[key] = (writer, users)
        else:
            del _writers[key]
            writer.close()


def giving_way(path: Path) -> AbstractContextManager[None]:
    """Hold back this process' writer of a file for a moment, when it has one: see `Writer.giving_way`."""
    writer = _writer_of(path)
    return contextlib.nullcontext() if writer is None else writer.giving_way()


def turns_of(path: Path) -> Callable[[], int]:
    """Return what tells how often this process' writer of a file has had the write lock; 0 when it has no writer."""
    writer = _writer_of(path)
    return _no_turns if writer is None else lambda: writer.turns


def _writer_of(path: Path) -> Writer | None:
    with _guard:
        writer, _ = _writers.get((host.forks(), os.path.realpath(path)), (None, 0))
    return writer


def _no_turns() -> int:
    return 0


def _key(location: Location) -> tuple[int, str]:
    return host.forks(), os.path.realpath(location.path)
