"""What a peer's adapter is. Needs the standard library only: adapters run in the peer's own environment.

An adapter is a module in `benchmarks.peers.adapters` that has an ``ADAPTER``. It finds its database or server in
`ADDRESS`, is written as the peer's own documentation says, and takes the fastest settings of it that keep the promise
named in `systems`.
"""

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Any, Final

ADDRESS: Final = os.environ.get("BENCHMARK_ADDRESS", "")
"""A path for SQLite; a URL for Redis and PostgreSQL. Nothing is there yet that another run has left."""

Message = dict[str, str]


@dataclass(frozen=True, slots=True)
class Producer:
    """The side that adds. Each is awaited, unless it ``blocks``: then it is called in a thread for each producer."""

    add: Callable[[int, Message], Any]
    """Returns once the job is acknowledged."""
    blocks: bool = False
    add_all: Callable[[Sequence[tuple[int, Message]]], Any] | None = None
    """The documented way to add many at once, if there is one."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """One peer."""

    producer: Callable[[], AbstractAsyncContextManager[Producer]]
    worker: Sequence[str]
    """Arguments for Python: a worker in one process, at its best setting for jobs that do nothing.

    None at all: its jobs run in the process that adds them, and are not measured.
    """
