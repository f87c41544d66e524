"""Runs jobs in child processes: CPU work, and code that must be killable.

A child runs one job at a time and is kept warm for the next. Parent and child exchange JSON lines over a socket pair,
no pickle. Cancelling a run kills its child at once, together with every process that the child's jobs have started
(its process group). However a child dies, that costs the attempt it was running and nothing else. A child never
outlives this process. What a job says while it runs reaches its `RemoteListener` before its result.

No call costs a thread. Each child has one here that waits for its end, so none is left a zombie, whatever becomes of
the event loop. The other side is `durableq.engine.child`.
"""

import asyncio
import contextlib
import json
import logging
import signal
import socket
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, NamedTuple, Protocol

from pydantic import TypeAdapter

from durableq.engine.decisions import RemoteFailure, Ruling
from durableq.engine.spawning import kill_group, let_go, main_module, start_process, wait_for_exit
from durableq.errors import AttemptFailed
from durableq.models import Failure, Job

logger = logging.getLogger("durableq")

LEAVING_SECONDS: Final = 1.0
"""How long an idle child may take to end when it is told to, before it is killed."""

_RECEIVE_BYTES: Final = 64 * 1024
_SLACK_BYTES: Final = 1024 * 1024
"""What a line may hold beside arguments or a result: a traceback, headers, names."""


class ChildDied(AttemptFailed):
    """The child process that ran the attempt died. ``returncode`` is as `subprocess.Popen` has it, or None."""

    def __init__(self, message: str, returncode: int | None = None) -> None:
        super().__init__(message)
        self.returncode = returncode


@dataclass(frozen=True, slots=True)
class RemoteCall:
    """One attempt, as a child needs it."""

    function: Callable[..., Any]
    task: str
    """The task's name, as stored."""
    args_json: str
    job: Mapping[str, Any]
    """JSON facts for ``current_job()``."""
    attempt: int
    elapsed_seconds: float
    """The job's age, for the retry policy."""
    max_result_bytes: int
    max_payload_bytes: int
    policy: str | None = None
    """The name of a retry policy in place of the task's own."""


class RemoteListener(Protocol):
    """Hears what a running job says. Called on the event loop; must not raise."""

    def progress(self, done: float, total: float | None, message: str | None) -> None: ...

    def log(self, message: str) -> None: ...

    def add_job(self, job: Job[Any]) -> None: ...


class RemoteResult(NamedTuple):
    """What `durableq.codec.encode_result` made of the return value."""

    result_json: str | None
    not_kept: str | None


class ProcessRunner:
    """Runs jobs in up to ``limit`` child processes, on the event loop that first calls `run`.

    ``memory_bytes`` limits each child's address space (``RLIMIT_AS``: the interpreter, its libraries and the stacks
    of its threads included); a job that needs more fails with `MemoryError`, and its child is replaced.
    """

    def __init__(self, limit: int, memory_bytes: int | None = None) -> None:
        self.occupied = 0
        self._limit = limit
        self._memory_bytes = memory_bytes
        self._idle: list[_Child] = []
        self._busy: set[_Child] = set()
        self._is_stopped = False

    @property
    def free(self) -> int:
        return self._limit - self.occupied

    async def run(self, call: RemoteCall, listener: RemoteListener) -> RemoteResult:
        """Run one attempt in a child of its own for as long as it takes, and return its result.

        Raises `RemoteFailure` for what the task raised, whatever it was; `ChildDied` when the child died, or could
        not be started. When cancelled, the child is killed before the `CancelledError` is on its way.
        """
        if self._is_stopped:
            raise RuntimeError("this process runner was stopped")
        child = self._take()
        self._busy.add(child)
        try:
            return await child.run(call, listener)
        finally:
            self._busy.discard(child)
            if child.is_ready:
                self._idle.append(child)

    def stop(self) -> None:
        """Take nothing more. Busy children are killed, idle ones told to end, and killed if they take too long.

        Never blocks. The loop may be closed right after.
        """
        self._is_stopped = True
        for child in tuple(self._busy):
            child.kill("its runner was stopped")
        leaving, self._idle = self._idle, []
        for child in leaving:
            child.dismiss()
        if leaving:
            _kill_later(leaving)

    def _take(self) -> "_Child":
        while self._idle:
            child = self._idle.pop()  # the one that ran last: its caches are the warmest
            if child.is_alive():
                return child
            child.kill("it had closed its connection")
        try:
            return _Child(asyncio.get_running_loop(), self._memory_bytes, self._forget)
        except (OSError, ValueError) as error:
            raise ChildDied(f"no child process could be started: {error}") from error

    def _forget(self, child: "_Child") -> None:
        with contextlib.suppress(ValueError):
            self._idle.remove(child)


@dataclass(slots=True, eq=False)
class _Call:
    """One attempt on its way through a child."""

    listener: RemoteListener
    outcome: asyncio.Future[RemoteResult | Exception]
    longest_line: int


class _Child:
    """One child process, and the connection to it. Lives on its event loop, but for the thread that waits for it."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, memory_bytes: int | None, gone: Callable[["_Child"], None]
    ) -> None:
        self._loop = loop
        self._gone = gone
        self._call: _Call | None = None
        self._partial: list[bytes] = []
        """The beginning of a line whose end has not come yet."""
        self._unsent = bytearray()
        self._is_connected = True
        self._reason: str | None = None
        """Why we killed it ourselves."""
        self._last_chance: asyncio.TimerHandle | None = None
        self._reaping = threading.Lock()
        self._is_reaped = False
        self._process, self._connection, self._lifeline = start_process()
        self._have_a_thread_wait()
        loop.add_reader(self._connection.fileno(), self._receive)
        self._send({"memory_bytes": memory_bytes, "argv": sys.argv, **main_module()})

    @property
    def is_ready(self) -> bool:
        """Whether it can take a job: nothing runs in it, and nothing ended it."""
        return self._is_connected and self._call is None

    def is_alive(self) -> bool:
        """Look whether an idle child has died, or said something unasked, since it became idle."""
        try:
            self._connection.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return True
        except OSError:
            return False
        return False

    async def run(self, call: RemoteCall, listener: RemoteListener) -> RemoteResult:
        longest_line = 2 * max(call.max_result_bytes, call.max_payload_bytes) + _SLACK_BYTES  # quotes are escaped
        pending = self._call = _Call(listener, self._loop.create_future(), longest_line)
        try:
            self._send(_as_message(call))
            outcome = await pending.outcome
        finally:
            if self._call is pending:  # no answer has come: cancelled
                self._call = None
                self.kill("its attempt was given up")
        if isinstance(outcome, RemoteResult):
            return outcome
        raise outcome

    def dismiss(self) -> None:
        """Let it end in good order: the end of the connection tells it to."""
        self._disconnect()

    def kill(self, reason: str) -> None:
        """End it and what it has started, at once. May be called from any thread once it is disconnected."""
        self._reason = self._reason or reason
        self._disconnect()
        with self._reaping:
            if not self._is_reaped:  # afterwards the number may be another's
                kill_group(self._process.pid)

    def _send(self, message: Any) -> None:
        self._unsent += json.dumps(message).encode() + b"\n"
        self._write()
        if self._unsent:
            self._loop.add_writer(self._connection.fileno(), self._go_on_writing)

    def _go_on_writing(self) -> None:
        self._write()
        if not self._unsent:
            self._loop.remove_writer(self._connection.fileno())

    def _write(self) -> None:
        try:
            del self._unsent[: self._connection.send(self._unsent)]
        except BlockingIOError:
            pass
        except OSError:  # it has closed its side: what that means, reading or waiting will tell
            self._unsent.clear()

    def _receive(self) -> bool:
        """Take in what has come. Return False when there is nothing more to read for now."""
        try:
            data = self._connection.recv(_RECEIVE_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self._hang_up()
            return False
        *lines, rest = data.split(b"\n")
        for line in lines:
            self._partial.append(line)
            self._take_in(b"".join(self._partial))
            self._partial.clear()
        if rest:
            self._partial.append(rest)
            self._refuse_endless_lines()
        return self._is_connected

    def _refuse_endless_lines(self) -> None:
        longest = _SLACK_BYTES if self._call is None else self._call.longest_line
        if sum(map(len, self._partial)) > longest:
            self._partial.clear()
            self._break_off(f"it sent a line of more than {longest:,} bytes")

    def _take_in(self, line: bytes) -> None:
        call = self._call
        if call is None:
            return  # a thread that a job has left behind
        try:
            self._act_on(call, json.loads(line))
        except Exception:
            logger.exception("what a child process sent could not be taken in")
            self._break_off("it sent what could not be taken in; the log says why")

    def _act_on(self, call: _Call, message: Sequence[Any]) -> None:
        match message:
            case ["progress", done, total, text]:
                call.listener.progress(done, total, text)
            case ["log", text]:
                call.listener.log(text)
            case ["job", fields]:
                call.listener.add_job(_job_adapter().validate_python(fields))
            case ["succeeded", result_json, not_kept, stays]:
                self._finish(RemoteResult(result_json, not_kept), stays)
            case ["failed", failure, ruling, kinds, stays]:
                self._finish(RemoteFailure(Failure(*failure), Ruling(*ruling), tuple(kinds)), stays)
            case _:
                raise ValueError(f"unknown message: {message!r:.200}")

    def _finish(self, outcome: RemoteResult | Exception, stays: bool) -> None:
        call, self._call = self._call, None
        if not stays:
            self.kill("it was not fit for another job")
        if call is not None and not call.outcome.done():
            # Never as the future's exception: nobody fetches that when the call was cancelled in this very turn.
            call.outcome.set_result(outcome)

    def _break_off(self, reason: str) -> None:
        self.kill(reason)
        self._finish(_death(-signal.SIGKILL, reason), stays=False)

    def _hang_up(self) -> None:
        """The child has closed its side. Usually that is its death, of which the waiting thread will tell more."""
        self._disconnect()
        self._last_chance = self._loop.call_later(LEAVING_SECONDS, self.kill, "it had closed its connection")

    def _disconnect(self) -> None:
        if not self._is_connected:
            return
        self._is_connected = False
        if not self._loop.is_closed():
            self._loop.remove_reader(self._connection.fileno())
            self._loop.remove_writer(self._connection.fileno())
        self._connection.close()

    def _have_a_thread_wait(self) -> None:
        """Not a pidfd or asyncio's child watcher: this works on every loop, and also when that is closed."""
        waiting = threading.Thread(target=self._wait, name=f"durableq-child-{self._process.pid}", daemon=True)
        try:
            waiting.start()
        except RuntimeError as error:  # no more threads to be had
            self.kill("nothing could watch it")
            self._wait()
            raise OSError(str(error)) from error

    def _wait(self) -> None:
        """In a thread of its own: wait for its end, whatever brings it, and leave nothing of it behind."""
        is_unreaped = wait_for_exit(self._process)
        with self._reaping:
            if is_unreaped:  # its number is still its own, and its group's
                kill_group(self._process.pid)
            self._process.wait()
            self._is_reaped = True
        let_go(self._lifeline)
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is interested any more
            self._loop.call_soon_threadsafe(self._ended)

    def _ended(self) -> None:
        if self._last_chance is not None:
            self._last_chance.cancel()
        while self._is_connected and self._receive():  # its answer may have come with its end
            pass
        self._disconnect()
        self._gone(self)
        if self._call is not None:
            self._finish(_death(self._process.returncode, self._reason), stays=False)


def _as_message(call: RemoteCall) -> dict[str, Any]:
    return {
        "module": call.function.__module__,
        "qualname": call.function.__qualname__,
        "task": call.task,
        "args_json": call.args_json,
        "job": dict(call.job),
        "attempt": call.attempt,
        "elapsed_seconds": call.elapsed_seconds,
        "max_result_bytes": call.max_result_bytes,
        "max_payload_bytes": call.max_payload_bytes,
        "policy": call.policy,
    }


@cache
def _job_adapter() -> TypeAdapter[Job[Any]]:
    return TypeAdapter(Job[Any])


def _kill_later(children: Sequence[_Child]) -> None:
    """Not on the loop, which may be closed by then."""

    def kill() -> None:
        for child in children:
            child.kill("it took too long to end")

    timer = threading.Timer(LEAVING_SECONDS, kill)
    timer.name, timer.daemon = "durableq-children-leave", True
    try:
        timer.start()
    except RuntimeError:  # no more threads to be had
        kill()


def _death(returncode: int, reason: str | None) -> ChildDied:
    if reason is not None:
        text = f"was killed: {reason}"
    elif returncode >= 0:
        text = f"exited with status {returncode}"
    else:
        text = f"died by signal {-returncode}{_signal_name(-returncode)}"
        text += "; out of memory?" if returncode == -signal.SIGKILL else ""
    return ChildDied(f"the child process that ran it {text}", returncode)


def _signal_name(number: int) -> str:
    try:
        return f" ({signal.Signals(number).name})"
    except ValueError:
        return ""
