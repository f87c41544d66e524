"""Waits for jobs to finish, whoever runs them: woken by events, never by polling the table.

Whoever waits subscribes first and looks then, so that nothing that happens in between is missed. All who wait share
one query per event, and one event however many come while it runs.
"""

import asyncio
from collections.abc import Callable

from durableq.storage.protocol import Storage


class FinishedJobs:
    """Lets many coroutines wait for jobs of one storage. Lives on one event loop."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage
        self._waiting: dict[str, set[asyncio.Future[None]]] = {}
        self._news = asyncio.Event()
        self._looking: asyncio.Task[None] | None = None
        self._unwatch: Callable[[], None] = _nothing
        self._stopped: Exception | None = None

    async def wait(self, job_id: str) -> None:
        """Return when the job is finished, or gone. Cancelling it ends only the waiting.

        Raises `StorageError`, and the reason of `stop`.
        """
        if self._stopped is not None:
            raise self._stopped
        finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if not self._waiting:
            self._begin()
        self._waiting.setdefault(job_id, set()).add(finished)
        self._news.set()
        try:
            await finished
        finally:
            self._forget(job_id, finished)

    def _begin(self) -> None:
        self._unwatch = self._storage.watch(self._news.set)
        self._looking = asyncio.get_running_loop().create_task(self._look(), name="durableq-waiting")

    def _forget(self, job_id: str, finished: asyncio.Future[None]) -> None:
        waiting = self._waiting.get(job_id)
        if waiting is not None:
            waiting.discard(finished)
            if not waiting:
                del self._waiting[job_id]
        if not self._waiting and self._looking is not None:
            self._unwatch()
            self._looking.cancel()
            self._looking = None

    async def _look(self) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            try:
                ended = await self._storage.finished_among(tuple(self._waiting))
            except Exception as error:  # whoever waits hears of it; the next who waits starts anew
                self._answer(tuple(self._waiting), error)
                continue
            self._answer(ended, None)

    def _answer(self, job_ids: "set[str] | tuple[str, ...]", error: Exception | None) -> None:
        for job_id in job_ids:
            for finished in tuple(self._waiting.get(job_id, ())):
                if finished.done():
                    continue
                if error is None:
                    finished.set_result(None)
                else:
                    finished.set_exception(error)

    def stop(self, reason: Exception) -> None:
        """End all waiting, by an error; who comes later gets it as well."""
        self._stopped = reason
        self._answer(tuple(self._waiting), reason)
        if self._looking is not None:
            self._unwatch()
            self._looking.cancel()
            self._looking = None


def _nothing() -> None:
    pass
