"""Child processes to be hurt: forked from this one, so that they start in a moment, and stopped until we are ready.

This process must have one thread only: a fork copies no other.
"""

import contextlib
import gc
import importlib
import json
import logging
import os
import select
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, Final

Say = Callable[[Any], None]
"""Tells the parent something, in one write: what was said before a blow has arrived."""

_LOADED_LATE: Final = ("aiosqlite", "anyio._backends._asyncio", "durableq.storage.sqlite.store")
"""What a queue imports when it starts."""
_LOOK_SECONDS: Final = 0.002
"""Between looks at whether it has ended."""
_LINE_BYTES: Final = 65_536


def be_ready_to_fork() -> None:
    """Do once what every child would do anew: import what a queue needs, and sort out what is no garbage."""
    for module in _LOADED_LATE:
        importlib.import_module(module)
    gc.freeze()  # so that no child copies all of it only to look for garbage


class Child:
    """A forked process. Whatever happens, end it: use it as a context manager."""

    def __init__(self, pid: int, ears: int, ack_fd: int) -> None:
        self.pid = pid
        self.ack_fd = ack_fd
        """The descriptor, in the child, that it speaks through."""
        self._ears = ears
        self._heard = b""
        self._status: int | None = None

    @classmethod
    def start(cls, function: Callable[[Say], None]) -> "Child":
        """Fork; the child stops itself before it runs ``function(say)``, until `resume`.

        An exception ends it with 1, and its traceback is the last that it says.
        """
        if threading.active_count() > 1:
            raise RuntimeError("this process has several threads, and a fork copies only one")
        ears, mouth = os.pipe()
        sys.stdout.flush()
        sys.stderr.flush()
        pid = os.fork()
        if pid == 0:
            os.close(ears)
            os._exit(_live(function, mouth))
        os.close(mouth)
        os.waitpid(pid, os.WUNTRACED)
        return cls(pid, ears, mouth)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """End it, if it has not ended."""
        if self._status is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)
            self.wait(10)

    def wait(self, timeout: float) -> int:
        """Return its exit code, negative for a signal. Raises `TimeoutError` after so many seconds."""
        deadline = time.monotonic() + timeout
        while self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._hear()
            if pid:
                self._status = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > deadline:
                raise TimeoutError(f"process {self.pid} has not ended in {timeout:.0f} s")
            else:
                time.sleep(_LOOK_SECONDS)
        return self._status

    def wait_until_said(self, timeout: float) -> None:
        """Return once it has said something. Raises `TimeoutError`."""
        if not self.said():
            select.select([self._ears], [], [], timeout)
        if not self.said():
            raise TimeoutError(f"process {self.pid} has said nothing in {timeout:.0f} s, or has ended")

    def said(self) -> list[Any]:
        """Everything it has said so far."""
        self._hear()
        return [json.loads(line) for line in self._heard.split(b"\n") if line]

    def _hear(self) -> None:
        os.set_blocking(self._ears, False)
        with contextlib.suppress(BlockingIOError):
            while heard := os.read(self._ears, _LINE_BYTES):
                self._heard += heard

    def __enter__(self) -> "Child":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.kill()
        os.close(self._ears)


def _live(function: Callable[[Say], None], mouth: int) -> int:
    """What a child does from its birth to its end."""

    def say(value: Any) -> None:
        line = json.dumps(value).encode() + b"\n"
        while line:
            line = line[os.write(mouth, line) :]

    logging.disable()  # that a blow was felt is no news
    try:
        os.kill(os.getpid(), signal.SIGSTOP)
        function(say)
    except BaseException:
        say({"raised": traceback.format_exc()})
        return 1
    return 0


@contextlib.contextmanager
def running(function: Callable[[Say], None]) -> Iterator[Child]:
    """A child that runs at once, and is ended with the block."""
    with Child.start(function) as child:
        child.resume()
        yield child
