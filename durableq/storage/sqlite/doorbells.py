"""The doorbells that hang at a process' door, and what it does when one of them rings."""

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path

from durableq.storage.sqlite import host


class Doorbells:
    """Those of one queue, rung by other processes and heard on its event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, directory: Path) -> None:
        self._loop = loop
        self._directory = directory
        self._hanging: list[host.Doorbell] = []

    def hang(self, kind: host.Bell, worker_id: int, rung: Callable[[], None]) -> None:
        """Call ``rung`` on the loop whenever somebody rings, until it is taken down."""
        with contextlib.suppress(OSError, NotImplementedError):  # without it, work of others is seen in 0.25 s
            doorbell = host.Doorbell(self._directory, worker_id, kind)
            self._hanging.append(doorbell)

            def on_ring() -> None:
                doorbell.drain()
                rung()

            self._loop.add_reader(doorbell.socket, on_ring)

    def take_down(self, kind: host.Bell | None = None) -> None:
        """Take down those of a kind, or all."""
        for doorbell in [one for one in self._hanging if kind is None or one.kind == kind]:
            self._hanging.remove(doorbell)
            self._loop.remove_reader(doorbell.socket)
            doorbell.close()
