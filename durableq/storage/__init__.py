"""Where jobs are kept. This is the one place that picks a backend."""

from collections.abc import Callable
from pathlib import Path

from durableq.clock import Clock
from durableq.errors import ConfigurationError
from durableq.settings import QueueOptions
from durableq.storage.protocol import Storage


def storage_factory(url_or_path: str | Path, options: QueueOptions, clock: Clock) -> Callable[[], Storage]:
    """Return what makes the storage that a URL or path names. No I/O. Raises `ConfigurationError`."""
    path = _database_path(str(url_or_path))

    def open_sqlite() -> Storage:
        from durableq.storage.sqlite.connection import Location
        from durableq.storage.sqlite.store import SqliteStorage

        # Resolved: a process that came by a symbolic link must find the same locks beside the file.
        location = Location(path.resolve(), options.durability, options.allow_network_filesystem)
        return SqliteStorage(location, clock, options)

    return open_sqlite


def require_queue(path: Path) -> None:
    """Raise `ConfigurationError` for a file that is no queue yet, or is not there; nothing is written.

    For those who must not make a queue of what they were given by mistake. Ask before the queue is opened in this
    process, not after: closing what this opens would drop SQLite's locks.
    """
    from durableq.storage.sqlite.schema import require_queue

    require_queue(path)


def back_up(source: Path, target: Path) -> int:
    """Copy a queue's file while it is in use: see `durableq.storage.sqlite.backup`."""
    from durableq.storage.sqlite.backup import back_up

    return back_up(source.resolve(), target.absolute())


def restore(backup: Path, target: Path, clock: Clock) -> int:
    """Make a copy a queue's file again: see `durableq.storage.sqlite.backup`."""
    from durableq.storage.sqlite.backup import restore

    return restore(backup.resolve(), target.absolute(), clock)


def _database_path(text: str) -> Path:
    if text in ("", ":memory:") or ":memory:" in text or "mode=memory" in text:
        raise ConfigurationError(
            f"expected a file, got {text!r}: jobs in memory would not survive; give a path such as 'app.db'"
        )
    if text.startswith("sqlite:///"):
        return Path(text.removeprefix("sqlite:///")).absolute()
    scheme, separator, _ = text.partition("://")
    if separator:
        raise ConfigurationError(
            f"expected a path or sqlite:///path, got a {scheme}:// URL; this version of durableq stores in SQLite"
        )
    return Path(text).expanduser().absolute()
