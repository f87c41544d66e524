"""A disk that replays a recording, and shows what a power cut at any moment may leave of it.

A file keeps what it held at its last fsync; of what was written since, nothing, everything or any part may arrive:
in another order, and torn at 512 bytes. Directory entries are taken as durable, as SQLite syncs the directory itself.
The files really exist and are patched in place, so that an image costs little more than what differs in it.
"""

import contextlib
import os
import random
from collections.abc import Iterator
from enum import StrEnum
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from durableq.torture.recording import Operation, Said, Sync, Truncate, Unlink, Write

SECTOR: Final = 512
"""What a disk writes whole or not at all."""
_TORN: Final = 0.3
_ARRIVING: Final = (0.1, 0.5, 0.9)
"""Share of the writes under way that arrive."""

Change = Write | Truncate


class Fate(StrEnum):
    """What becomes of writes that were not synced."""

    LOST = "all of them lost"
    KEPT = "all of them kept"
    SOME = "some of them kept, reordered and torn"


class File:
    """One file: what is durable of it, and what is on its way."""

    def __init__(self, path: Path) -> None:
        self.durable = bytearray()
        self.pending: list[Change] = []
        self._path = path
        # While images are looked at, this descriptor stays open: closing it would drop the locks of SQLite.
        self._descriptor = self._open()

    def _open(self) -> int:
        return os.open(self._path, os.O_CREAT | os.O_RDWR | os.O_TRUNC, 0o600)

    def sync(self) -> None:
        for change in self.pending:
            self._make_durable(change)
            self.put(change)
        self.pending.clear()

    def put(self, change: Change) -> None:
        """Let a change be in the file as it is seen now."""
        if isinstance(change, Write):
            os.pwrite(self._descriptor, change.data, change.offset)
        else:
            os.ftruncate(self._descriptor, change.size)

    def take_back(self, change: Change) -> None:
        """Show what is durable where the change was; `cut` then restores the length."""
        start = change.offset if isinstance(change, Write) else change.size
        end = start + len(change.data) if isinstance(change, Write) else len(self.durable)
        os.pwrite(self._descriptor, self.durable[start:end], start)

    def cut(self) -> None:
        os.ftruncate(self._descriptor, len(self.durable))

    def rewrite(self) -> None:
        """Show what is durable, whatever others did to the file: they may have deleted it."""
        self.close()
        self._descriptor = self._open()
        os.pwrite(self._descriptor, self.durable, 0)

    def close(self) -> None:
        os.close(self._descriptor)

    def unlink(self) -> None:
        self.close()
        self._path.unlink()

    def _make_durable(self, change: Change) -> None:
        durable = self.durable
        if isinstance(change, Truncate):
            durable[change.size :] = bytes(max(0, change.size - len(durable)))
            return
        end = change.offset + len(change.data)
        if len(durable) < change.offset:
            durable.extend(bytes(change.offset - len(durable)))
        durable[change.offset : end] = change.data


class Disk:
    """The files of one database, as far as the recording was replayed."""

    def __init__(self, directory: Path, database: str) -> None:
        self.path = directory / database
        """The database file."""
        self._files = {database: File(self.path)}

    def replay(self, operation: Operation) -> None:
        """Go on by one operation."""
        if isinstance(operation, Said):
            return
        if isinstance(operation, Unlink):
            if file := self._files.pop(operation.file, None):
                file.unlink()
            return
        file = self._files.get(operation.file)
        if file is None:
            file = self._files[operation.file] = File(self.path.with_name(operation.file))
        if isinstance(operation, Sync):
            file.sync()
        else:
            file.pending.append(operation)

    @property
    def rolls_back(self) -> bool:
        """Whether there is a rollback journal: SQLite then writes when it opens the database."""
        return f"{self.path.name}-journal" in self._files

    @contextlib.contextmanager
    def after_a_power_cut(self, fate: Fate, chance: random.Random) -> Iterator[Path]:
        """Show what is left when the power goes now; afterwards the files are as they were."""
        arrived = [(file, change) for file in self._files.values() for change in arriving(file.pending, fate, chance)]
        for file, change in arrived:
            file.put(change)
        written = self.rolls_back
        try:
            yield self.path
        finally:
            self._tidy()
            if written:
                self._rewrite()
            else:
                self._take_back(arrived)

    def _rewrite(self) -> None:
        for file in self._files.values():
            file.rewrite()

    def _take_back(self, arrived: list[tuple[File, Change]]) -> None:
        for file, change in arrived:
            file.take_back(change)
        for file in self._files.values():
            file.cut()

    def _tidy(self) -> None:
        """Remove what SQLite has made itself: the shared memory, perhaps an empty log."""
        for suffix in ("-shm", "-wal"):
            if self.path.name + suffix not in self._files:
                self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files.values():
            file.close()


def arriving(pending: list[Change], fate: Fate, chance: random.Random) -> list[Change]:
    """Return the changes under way that reach the disk, in the order in which they do."""
    if fate == Fate.LOST:
        return []
    if fate == Fate.KEPT:
        return list(pending)
    share = chance.choice(_ARRIVING)
    arrived = [change for change in pending if chance.random() < share]
    chance.shuffle(arrived)
    return [
        part
        for change in arrived
        for part in (torn(change, chance) if isinstance(change, Write) and chance.random() < _TORN else (change,))
    ]


def torn(write: Write, chance: random.Random) -> list[Change]:
    """Return some of the sectors that a write covers: its first ones, or any."""
    cuts = [0, *range(SECTOR - write.offset % SECTOR, len(write.data), SECTOR), len(write.data)]
    sectors = list(pairwise(cuts))
    whole = chance.randrange(len(sectors)) if chance.random() < 0.5 else 0
    arrived = sectors[:whole] if whole else [sector for sector in sectors if chance.random() < 0.5]
    return [Write(write.file, write.offset + start, write.data[start:end]) for start, end in arrived]
