"""From a queue's start to its stop: everything with I/O, threads, or a tie to an event loop.

A `DurableQ` is settings and names; what it is while it runs stands here. Starting twice on one loop counts
references; what a closed loop or the parent of a forked process left behind is passed over.
"""

import asyncio
import contextlib
import dataclasses
import logging
import os
import threading
from collections.abc import Callable
from functools import partial
from typing import Final

from durableq.engine.child_tasks import refuse_to_start_while_loading
from durableq.errors import DurableQError, QueueNotRunning
from durableq.storage.protocol import Storage
from durableq.waiting import FinishedJobs
from durableq.worker import Worker

logger = logging.getLogger("durableq")

_LEAVE_SECONDS: Final = 0.3
"""How long taking this process off the list may wait for the write lock."""


@dataclasses.dataclass(eq=False)
class Run:
    """One run of a queue."""

    loop: asyncio.AbstractEventLoop
    storage: Storage
    thread: int = dataclasses.field(default_factory=threading.get_ident)
    """The loop's: cheaper to compare than the running loop, on the path of every add."""
    process: int = dataclasses.field(default_factory=os.getpid)
    users: int = 1
    worker: Worker | None = None
    working: asyncio.Task[None] | None = None
    stop: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)
    ready: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)
    stopped: asyncio.Event = dataclasses.field(default_factory=asyncio.Event)
    error: BaseException | None = None

    def __post_init__(self) -> None:
        self.finished_jobs = FinishedJobs(self.storage)

    @property
    def is_alive(self) -> bool:
        return not self.loop.is_closed() and self.process == os.getpid()


class Life:
    """Starts and stops the storage and the worker of one queue.

    ``new_worker`` returns None for a queue that only adds jobs. ``name`` is for messages.
    """

    def __init__(
        self, name: str, new_storage: Callable[[], Storage], new_worker: Callable[[Storage], Worker | None]
    ) -> None:
        self._name = name
        self._new_storage = new_storage
        self._new_worker = new_worker
        self._run: Run | None = None

    @property
    def run(self) -> Run | None:
        """The current run, whichever thread asks."""
        return self._run

    def here(self) -> Run:
        """Return the run of this event loop, or say why there is none. Raises `QueueNotRunning`."""
        run = self._run
        if run is not None and run.thread == threading.get_ident():
            return run
        if run is None:
            raise QueueNotRunning(
                f"{self._name} is not running; start it with FastAPI(lifespan=dq.lifespan), or inside "
                "'async with dq.running():'. (TestClient runs the lifespan only as 'with TestClient(app) as client:')"
            )
        if loop_here() is None:
            raise QueueNotRunning(f"no event loop runs in this thread; use dq.add_task_sync(...) here ({self._name})")
        raise QueueNotRunning(
            f"{self._name} is running on another event loop than this one. (That of a TestClient is reached by its "
            "portal: client.portal.call(dq.drain))"
        )

    async def start(self) -> bool:
        """Begin a run, or join the one on this loop; return whether it was begun."""
        refuse_to_start_while_loading()
        loop = loop_here()
        if loop is None:
            raise QueueNotRunning(
                "durableq runs on asyncio; no asyncio event loop is running here (trio is not supported)"
            )
        while self._run is not None and self._run.is_alive and self._run.loop is loop and self._run.users == 0:
            await self._run.stopped.wait()
        if self._run is not None and self._run.is_alive:
            await self._join(self._run, loop)
            return False
        self._run = run = Run(loop, self._new_storage())
        try:
            await self._open(run)
        except BaseException as error:
            run.error = error
            self._run = None
            raise
        finally:
            run.ready.set()
        return True

    def leave(self) -> bool:
        """Count one user out; True when it was the last, and `stop` is due."""
        if self._run is None:
            return False
        self._run.users -= 1
        return self._run.users == 0

    async def stop(self) -> None:
        """End the run in good order. Never raises for what tasks do."""
        run = self._run
        if run is None:
            return
        try:
            if run.working is not None:
                run.stop.set()
                await asyncio.wait([run.working])
            run.finished_jobs.stop(QueueNotRunning(f"{self._name} has been stopped"))
            if run.working is None or run.working.exception() is not None:
                with contextlib.suppress(DurableQError, TimeoutError):
                    await asyncio.wait_for(run.storage.deregister(), _LEAVE_SECONDS)
        finally:
            try:
                await run.storage.close()
            finally:
                self._run = None
                run.stopped.set()

    async def _join(self, run: Run, loop: asyncio.AbstractEventLoop) -> None:
        if run.loop is not loop:
            raise QueueNotRunning(f"{self._name} is already running on another event loop; stop it there first")
        run.users += 1
        await run.ready.wait()
        if run.error is not None:
            raise run.error

    async def _open(self, run: Run) -> None:
        await run.storage.open()
        try:
            run.worker = self._new_worker(run.storage)
            if run.worker is None:
                await run.storage.register(None)
                return
            await run.worker.start()
        except BaseException:
            with contextlib.suppress(DurableQError):
                await run.storage.deregister()
            await run.storage.close()
            raise
        run.working = asyncio.create_task(run.worker.run(run.stop), name="durableq-worker")
        run.working.add_done_callback(partial(_tell_of_the_end, run))


def loop_here() -> asyncio.AbstractEventLoop | None:
    """Return the event loop that runs in this thread, or None."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _tell_of_the_end(run: Run, working: asyncio.Task[None]) -> None:
    """Log a defect; and let nobody wait for jobs on a storage that is broken."""
    if not working.cancelled() and working.exception() is not None:
        logger.critical("the worker stopped on a defect; jobs are stored but not run", exc_info=working.exception())
    if run.storage.trouble is not None:
        run.finished_jobs.stop(run.storage.trouble)
