"""What does not work with the storage: tried again while it may pass, the end of the worker when it cannot."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

from durableq.errors import DurableQError, StorageError
from durableq.events import Emitter, StorageBroken, StorageTrouble
from durableq.storage.protocol import Storage

_FIRST_BACKOFF_SECONDS: Final = 0.05
_LONGEST_BACKOFF_SECONDS: Final = 2.0

T = TypeVar("T")


class Troubles:
    """Notes what fails, by what was being done; ``broken`` is called once, when nothing can work any more."""

    def __init__(self, storage: Storage, emitter: Emitter, broken: Callable[[], None]) -> None:
        self._storage = storage
        self._emitter = emitter
        self._tell = broken
        self._now: dict[str, DurableQError] = {}
        self.broken: DurableQError | None = None
        """Why the storage cannot be used or trusted any more."""

    @property
    def in_words(self) -> tuple[str, ...]:
        """What does not work, and is tried again. From any thread."""
        return tuple(f"{doing}: {error}" for doing, error in self._now.copy().items())

    def report(self, doing: str, error: DurableQError | None) -> None:
        """Note whether something works."""
        if error is None:
            self._now.pop(doing, None)
        elif self._storage.trouble is not None:
            self._break(self._storage.trouble)
        else:
            self._now[doing] = error
            self._emitter.emit(StorageTrouble(doing, error))

    async def insist(self, doing: str, attempt: Callable[[], Awaitable[T]]) -> T:
        """Try until it works: outcomes stay in memory, so that a full disk does not make work be done again."""
        backoff = _FIRST_BACKOFF_SECONDS
        while True:
            try:
                result = await attempt()
            except StorageError as error:
                self.report(doing, error)
            else:
                self.report(doing, None)
                return result
            await asyncio.sleep(backoff * random.uniform(0.5, 1.5))  # noqa: S311 - spreads load, guards no secret
            backoff = min(backoff * 2, _LONGEST_BACKOFF_SECONDS)

    def _break(self, error: DurableQError) -> None:
        if self.broken is None:
            self.broken = error
            self._emitter.emit(StorageBroken(error))
            self._tell()
