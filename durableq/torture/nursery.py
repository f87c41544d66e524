"""Starts the processes that are hurt, in a moment and several at the same instant, and leaves none behind.

A *cradle* is a process of one thread that has imported everything and opened nothing: it forks subjects on demand and
says when they end. When its standard input ends, as it does when we die, it kills those that are left. A `Nursery` is
our side of it.
"""

import contextlib
import dataclasses
import json
import os
import queue
import select
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Final, Literal, cast

from durableq.settings import QueueSettings
from durableq.torture.children import be_ready_to_fork
from durableq.torture.ledger import Ledger

COMMAND: Final[list[str]] = [sys.executable, "-m", "durableq.torture.subject"]
"""The program that becomes a cradle."""
BIRTH_SECONDS: Final = 30.0
_LOOK_SECONDS: Final = 0.005


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """What a subject is to do.

    ``load``: add jobs and run them, without end. ``batch``: add ``jobs`` jobs, run all there are. ``hold``: add
    ``jobs`` that run until SIGUSR2, or until the process wakes up from a SIGSTOP. ``open``: open the database, run one
    job, leave. SIGUSR1 ends the adding, SIGTERM all.
    """

    part: Literal["load", "batch", "hold", "open"]
    database: str
    number: int = 0
    """Names the process; its pid may be another's later."""
    ledger: str = ""
    clock: str = ""
    """A file that holds how far the host's clock was set forward; see `SteppedClock`."""
    seed: int = 0
    jobs: int = 0
    way: str = ""
    """For ``hold``: what its jobs try to write when they end in this process; empty: they succeed."""
    options: QueueSettings = dataclasses.field(default_factory=QueueSettings)


class Process:
    """A subject, as we see it."""

    def __init__(self, number: int, pid: int, ledger: Ledger, ends: Mapping[int, int]) -> None:
        self.number = number
        self.pid = pid
        self.ledger = ledger
        self._ends = ends

    @property
    def status(self) -> int | None:
        """Its exit code, as `os.waitstatus_to_exitcode` gives it; None while it lives."""
        return self._ends.get(self.number)

    def signal(self, number: signal.Signals) -> float:
        """Send a signal; return when that was. One that has ended gets none."""
        sent_at = time.monotonic()
        if self.status is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)
        return sent_at

    def wait_end(self, within: float) -> bool:
        """Return whether it has ended in time."""
        return wait_until(lambda: self.status is not None, within)

    def leave(self, within: float) -> str:
        """Have it leave in good order; return what went wrong with that, or nothing."""
        self.signal(signal.SIGTERM)
        if not self.wait_end(within):
            return f"process {self.number} did not leave within {within:g} s of SIGTERM"
        return f"process {self.number} ended with {self.status}: {self.why()}" if self.status else ""

    def why(self) -> str:
        """What it says went wrong."""
        self.ledger.read()
        return "; ".join(entry.note for entry in self.ledger.entries if entry.kind == "failed") or "it does not say"


class Nursery:
    """Gives birth to subjects, and ends those that are left. Use it as a context manager."""

    def __init__(self, directory: Path) -> None:
        self.processes: list[Process] = []
        """All that were ever born here."""
        self._directory = directory
        self._log = directory / "subjects.log"
        self._ends: dict[int, int] = {}
        self._born: queue.SimpleQueue[list[int]] = queue.SimpleQueue()

    def __enter__(self) -> "Nursery":
        environment = {name: value for name, value in os.environ.items() if not name.startswith("DURABLEQ_")}
        with self._log.open("ab") as log:
            self._cradle = subprocess.Popen(
                COMMAND, env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log
            )
        self._mouth, self._ears = cast("IO[str]", self._cradle.stdin), cast("IO[str]", self._cradle.stdout)
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._mouth.close()
        try:
            self._cradle.wait(10)
        except subprocess.TimeoutExpired:
            self._cradle.kill()
            self._cradle.wait()
        self._listener.join(10)
        self._ears.close()

    def bear(self, *orders: Orders) -> list[Process]:
        """Start subjects that begin at the same instant. Raises `RuntimeError` when the cradle cannot."""
        first = len(self.processes)
        told = [self._with_number(order, number) for number, order in enumerate(orders, first)]
        with contextlib.suppress(BrokenPipeError):
            self._mouth.write(json.dumps([dataclasses.asdict(order) for order in told]) + "\n")
            self._mouth.flush()
        pids = self._born.get(timeout=BIRTH_SECONDS)
        if not pids:
            raise RuntimeError(f"no processes can be started: {self._log.read_text()[-2_000:]}")
        born = [
            Process(order.number, pid, Ledger(Path(order.ledger), order.number), self._ends)
            for order, pid in zip(told, pids, strict=True)
        ]
        self.processes += born
        return born

    @property
    def ledgers(self) -> Iterator[Ledger]:
        return (process.ledger for process in self.processes)

    def _with_number(self, order: Orders, number: int) -> Orders:
        return dataclasses.replace(order, number=number, ledger=str(self._directory / f"ledger-{number}"))

    def _listen(self) -> None:
        for line in self._ears:
            said = json.loads(line)
            if "born" in said:
                self._born.put(said["born"])
            else:
                self._ends[said["ended"]] = said["status"]
        self._born.put([])  # the cradle is gone


class Barrier:
    """Holds all who were born together until the last of them has come here."""

    def __init__(self) -> None:
        self._wait, self._gate = os.pipe()

    def pass_through(self) -> None:
        os.close(self._gate)
        os.read(self._wait, 1)  # ends when nobody holds the other end any more
        os.close(self._wait)

    def drop(self) -> None:
        """Hold nobody up: for the one who made it."""
        os.close(self._gate)
        os.close(self._wait)


class Cradle:
    """The process that forks. ``live`` is what a child does."""

    def __init__(self, live: Callable[[Orders, Barrier], None]) -> None:
        self._live = live
        self._alive: dict[int, int] = {}
        self._wake_up, wake_up = os.pipe()
        for end in (self._wake_up, wake_up):
            os.set_blocking(end, False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(wake_up, warn_on_full_buffer=False)

    def serve(self) -> None:
        """Fork what standard input orders, a JSON array of `Orders` a line, until it ends."""
        be_ready_to_fork()
        heard = b""
        while True:
            ready = select.select([0, self._wake_up], [], [])[0]
            if self._wake_up in ready:
                os.read(self._wake_up, 4_096)
                self._bury()
            if 0 in ready:
                text = os.read(0, 65_536)
                if not text:
                    return self._end_all()
                *lines, heard = (heard + text).split(b"\n")
                for line in lines:
                    _say(born=self._bear([Orders(**order) for order in json.loads(line)]))

    def _bear(self, orders: Sequence[Orders]) -> list[int]:
        barrier = Barrier()
        pids = [self._fork(order, barrier) for order in orders]
        barrier.drop()
        return pids

    def _fork(self, order: Orders, barrier: Barrier) -> int:
        pid = os.fork()
        if pid:
            self._alive[pid] = order.number
            return pid
        status = 1
        try:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _let_go_of_standard_streams()
            self._live(order, barrier)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)

    def _bury(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while (found := os.waitpid(-1, os.WNOHANG)) != (0, 0):
                _say(ended=self._alive.pop(found[0]), status=os.waitstatus_to_exitcode(found[1]))

    def _end_all(self) -> None:
        for pid in self._alive:  # not waited for yet, so these pids are nobody else's
            os.kill(pid, signal.SIGKILL)
        for pid in self._alive:
            os.waitpid(pid, 0)


def wait_until(check: Callable[[], bool], within: float) -> bool:
    """Return whether ``check`` became true within so many seconds."""
    deadline = time.monotonic() + within
    while not check():
        if time.monotonic() > deadline:
            return False
        time.sleep(_LOOK_SECONDS)
    return True


def _say(**facts: Any) -> None:
    os.write(1, f"{json.dumps(facts)}\n".encode())


def _let_go_of_standard_streams() -> None:
    """They are the cradle's: a child that held them would keep our side from seeing it end."""
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    os.close(nothing)
