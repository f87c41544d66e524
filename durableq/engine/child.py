"""What runs in a child process of `durableq.engine.processes`: one call after the other, one answer each.

Nothing that a task raises ends the child, nor does what it prints reach the connection: standard output goes where
standard error goes, standard input is empty. The child ends when its parent closes the connection; when the parent
dies, it is killed with all that its jobs have started, whatever it is doing then. Modules, codecs and the event loop
of ``async def`` tasks are kept from job to job; what a job leaves on that loop is cancelled when the job ends.
"""

import asyncio
import contextvars
import faulthandler
import fcntl
import inspect
import io
import json
import logging
import os
import resource
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from functools import cache
from typing import Any, Final, NamedTuple, NoReturn

from pydantic import TypeAdapter

from durableq.clock import SystemClock
from durableq.codec import encode_result
from durableq.context import set_current
from durableq.engine.child_tasks import ChildTasks, as_in_the_parent
from durableq.engine.decisions import DIE, Ruling, failure_of, redactor_of, ruling_on
from durableq.engine.follow_ups import Allowance, has_ended
from durableq.engine.notes import LOG_LINES, LOOKED_AT_CHARACTERS
from durableq.errors import InvalidArguments
from durableq.jobs import JobMaker
from durableq.models import Job
from durableq.redaction import Redactor
from durableq.registry import AnyTask
from durableq.retry import DEFAULT_POLICY, RetryPolicy

logger = logging.getLogger("durableq")

PROGRESS_SECONDS: Final = 0.05
"""Progress is sent this often at most, and the latest always."""
CLEAN_UP_SECONDS: Final = 1.0
"""How long what a job has left on the event loop may take to end once it is cancelled."""

_Call = Mapping[str, Any]
_Answer = list[Any]


def main(connection_fd: int, lifeline_fd: int) -> None:
    """Serve the parent until it closes the connection."""
    _die_with_the_parent(lifeline_fd)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent to decide about
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    _protect_the_streams()
    connection = _Connection(connection_fd)
    setup = connection.receive()
    if setup is None:
        return
    sys.argv[:] = setup["argv"]
    _limit_memory(setup["memory_bytes"])
    _Service(connection, ChildTasks(setup["main_name"], setup["main_path"])).serve()


def _die_with_the_parent(lifeline_fd: int) -> None:
    """Have this whole process group killed as soon as nobody holds the other end of the lifeline any more."""
    os.set_inheritable(lifeline_fd, False)
    threading.Thread(target=_watch, args=(lifeline_fd,), name="durableq-lifeline", daemon=True).start()
    if hasattr(fcntl, "F_SETSIG"):
        # The thread needs the GIL, which C code may hold for hours. Linux can send the signal by itself: unlike
        # PR_SET_PDEATHSIG to the whole group, and whichever thread of the parent has started us.
        fcntl.fcntl(lifeline_fd, fcntl.F_SETOWN, -os.getpgrp())
        fcntl.fcntl(lifeline_fd, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(lifeline_fd, fcntl.F_SETFL, fcntl.fcntl(lifeline_fd, fcntl.F_GETFL) | os.O_ASYNC)


def _watch(lifeline_fd: int) -> None:
    os.read(lifeline_fd, 1)  # nothing is ever written to it
    os.killpg(os.getpgrp(), signal.SIGKILL)


def _protect_the_streams() -> None:
    try:
        os.dup2(2, 1)
    except OSError:  # the parent has no standard error
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.close(null)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # else what a job prints before it is killed would be lost
    if sys.stderr is not None:
        faulthandler.enable()  # says where a segmentation fault happened


def _limit_memory(limit: int | None) -> None:
    if limit is None:
        return
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


class _Connection:
    """Lines of JSON to and from the parent."""

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(fileno=fd)
        self._socket.set_inheritable(False)
        self._incoming = self._socket.makefile("rb")
        # A copy of this process, made by a task, must not keep the parent from noticing the end of this one.
        os.register_at_fork(after_in_child=self._close)

    def receive(self) -> dict[str, Any] | None:
        """Return the next message, or None when the parent has closed the connection."""
        line = self._incoming.readline()
        return json.loads(line) if line.endswith(b"\n") else None

    def send(self, *message: Any) -> None:
        # A lone surrogate becomes the escape that JSON has for it.
        line = json.dumps(message, ensure_ascii=False).encode("utf-8", "backslashreplace")
        self._socket.sendall(line + b"\n")

    def _close(self) -> None:
        self._incoming.close()
        self._socket.close()


class _Job:
    """Implements `durableq.context.CurrentJob` by sending what the task says to the parent. Usable from any thread.

    Once the attempt has ended, threads that it left behind are not heard any more.
    """

    cancelled: Final = False
    """It is killed, not asked."""

    def __init__(self, call: _Call, connection: _Connection) -> None:
        facts = call["job"]
        self.id: str = facts["id"]
        self.task: str = facts["task"]
        self.queue: str = facts["queue"]
        self.attempt: int = facts["attempt"]
        self.max_attempts: int = facts["max_attempts"]
        self.idempotency_key: str = facts["idempotency_key"]
        self.tags: tuple[str, ...] = tuple(facts["tags"])
        self.headers: MutableMapping[str, str] = facts["headers"]
        self.definition: AnyTask | None = None
        """Known once its module is imported."""
        self._call = call
        self._connection = connection
        self._speaking = threading.Lock()
        self._has_ended = False
        self._allowance = Allowance()
        self._lines = 0
        self._progress: tuple[float, float | None, str | None] | None = None
        self._progress_sent_at = float("-inf")
        self._progress_is_due = False

    @property
    def function(self) -> Callable[..., Any]:
        return self._known().function

    @property
    def args(self) -> Mapping[str, Any]:
        decoded: dict[str, Any] = json.loads(self._call["args_json"])
        return decoded

    def progress(self, done: float, total: float | None = None, message: str | None = None) -> None:
        text = None if message is None else str(message)[:LOOKED_AT_CHARACTERS]
        with self._speaking:
            self._progress = (float(done), None if total is None else float(total), text)
            wait = self._progress_sent_at + PROGRESS_SECONDS - time.monotonic()
            if wait <= 0 or not self._will_send_progress_after(wait):
                self._send_progress()

    def log(self, message: str) -> None:
        text = str(message)[:LOOKED_AT_CHARACTERS]
        with self._speaking:
            self._lines += 1
            if self._lines <= LOG_LINES and not self._has_ended:
                self._connection.send("log", text)

    def add_task(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Job[Any]:
        maker = JobMaker(
            registry=self._known().registry, clock=_CLOCK, max_payload_bytes=self._call["max_payload_bytes"]
        )
        job = maker.new(fn, args, kwargs, headers=self.headers)
        fields = _job_adapter().dump_python(job, mode="json", warnings="error")
        with self._speaking:
            if self._has_ended:
                raise has_ended(self.id)
            self._allowance.take(job)
            self._connection.send("job", fields)
        return job

    def complete_within(self, transaction: Any, *, result: Any = None) -> NoReturn:
        raise RuntimeError(
            "complete_within is not possible in a child process: the job's row belongs to the worker's own process. "
            "Use it in a task with runner='thread', or in an async def task without runner"
        )

    def end(self, *answer: Any) -> None:
        """Send the answer, after all else."""
        with self._speaking:
            self._send_progress()
            self._has_ended = True
            self._connection.send(*answer)

    def _known(self) -> AnyTask:
        if self.definition is None:
            raise RuntimeError("this job's task is not known yet")
        return self.definition

    def _will_send_progress_after(self, seconds: float) -> bool:
        if not self._progress_is_due:
            timer = threading.Timer(seconds, self._send_due_progress)
            timer.daemon = True
            try:
                timer.start()
            except RuntimeError:  # no more threads to be had
                return False
            self._progress_is_due = True
        return True

    def _send_due_progress(self) -> None:
        with self._speaking:
            self._progress_is_due = False
            self._send_progress()

    def _send_progress(self) -> None:
        if self._progress is not None and not self._has_ended:
            self._connection.send("progress", *self._progress)
            self._progress, self._progress_sent_at = None, time.monotonic()


class _Outcome(NamedTuple):
    """How a coroutine ended. Carried as a value: raised, some kinds of errors would end the event loop's run."""

    value: Any = None
    error: BaseException | None = None
    leaves_nothing: bool = True
    """Whether all that it had started on the loop has ended with it."""

    def unwrap(self) -> Any:
        if self.error is not None:
            raise self.error
        return self.value


class _Service:
    """Answers calls until the parent hangs up, or until this process has become unfit for another job."""

    def __init__(self, connection: _Connection, tasks: ChildTasks) -> None:
        self._connection = connection
        self._tasks = tasks
        self._loop: asyncio.Runner | None = None
        self._is_fit = True

    def serve(self) -> None:
        try:
            while self._is_fit and (call := self._connection.receive()) is not None:
                job = _Job(call, self._connection)
                answer = self._attempt(call, job)
                job.end(*answer, self._is_fit)
                del job, answer
        finally:
            self._close_loop()

    def _attempt(self, call: _Call, job: _Job) -> _Answer:
        """Run one attempt. User code runs under BaseException: even SystemExit ends only the attempt."""
        started, task = time.monotonic(), None
        try:
            task = self._tasks.find(call["module"], call["qualname"], call["task"])
            job.definition = task
            try:
                args, kwargs = task.codec.decode(call["args_json"])
            except InvalidArguments as error:
                return _refused(error, redactor_of(task.function, job))
            value = contextvars.copy_context().run(self._run, job, task, args, kwargs)
            return ["succeeded", *encode_result(value, call["max_result_bytes"])]
        except BaseException as error:
            self._look_for_damage(error)
            age = call["elapsed_seconds"] + time.monotonic() - started
            redactor = Redactor() if task is None else redactor_of(task.function, job)
            return _failed(error, redactor, _policy(task, call["policy"]), call["attempt"], age)

    def _run(self, job: _Job, task: AnyTask, args: list[Any], kwargs: dict[str, Any]) -> Any:
        set_current(job)
        if task.injection is not None:
            return self._on_the_loop(_injected(task, args, kwargs))
        value = task.function(*args, **kwargs)
        return self._on_the_loop(value) if inspect.isawaitable(value) else value

    def _on_the_loop(self, awaitable: Awaitable[Any]) -> Any:
        if self._loop is None:
            self._loop = asyncio.Runner()
        try:
            outcome = self._loop.run(_completed(awaitable), context=contextvars.copy_context())
        except BaseException:  # SystemExit of a task beside it: that has ended the loop's run, but nothing else on it
            self._close_loop()
            raise
        self._is_fit = self._is_fit and outcome.leaves_nothing
        return outcome.unwrap()

    def _close_loop(self) -> None:
        loop, self._loop = self._loop, None
        if loop is not None:
            loop.close()

    def _look_for_damage(self, error: BaseException) -> None:
        """After a lack of memory nobody knows what else is missing: a fresh process takes the next job."""
        if isinstance(error, MemoryError):
            self._is_fit = False
            traceback.clear_frames(error.__traceback__)  # what they hold is needed now, to describe the failure


def _policy(task: AnyTask | None, name: str | None) -> RetryPolicy:
    if task is None:  # it could not be found
        return DEFAULT_POLICY
    named = None if name is None else task.registry.policy_named(name)
    # A policy of the job leaves in force what the code says of exception types.
    return task.settings.policy if named is None else task.options(retry=named).settings.policy


async def _completed(awaitable: Awaitable[Any]) -> _Outcome:
    """Await a task's coroutine, and end what it leaves on the loop, as `asyncio.run` would."""
    try:
        outcome = _Outcome(await awaitable)
    except BaseException as error:
        outcome = _Outcome(error=error)
    left = asyncio.all_tasks() - {asyncio.current_task()}
    if not left:
        return outcome
    for one in left:
        one.cancel()
    _, stubborn = await asyncio.wait(left, timeout=CLEAN_UP_SECONDS)
    return outcome._replace(leaves_nothing=not stubborn)


async def _injected(task: AnyTask, args: list[Any], kwargs: dict[str, Any]) -> Any:
    """Run a task with what its dependencies give; a ``def`` in a thread, so that it may use event loops of its own."""
    assert task.injection is not None  # noqa: S101 - for type checkers
    async with task.injection.resolve({}) as injected:
        kwargs.update(injected)
        if inspect.iscoroutinefunction(task.function):
            return await task.function(*args, **kwargs)
        outcome = await asyncio.to_thread(_called, task.function, args, kwargs)
        value = outcome.unwrap()
        return await value if inspect.isawaitable(value) else value


def _called(function: Callable[..., Any], args: list[Any], kwargs: dict[str, Any]) -> _Outcome:
    try:
        return _Outcome(function(*args, **kwargs))
    except BaseException as error:  # StopIteration for one cannot cross from thread to loop by itself
        return _Outcome(error=error)


def _refused(error: InvalidArguments, redactor: Redactor) -> _Answer:
    text = f"{redactor.text(str(error))}; edit the arguments and retry"
    return ["failed", ["durableq.InvalidArguments", text, text], DIE, _kinds(error)]


def _failed(
    error: BaseException, redactor: Redactor, policy: RetryPolicy, attempt: int, elapsed_seconds: float
) -> _Answer:
    failure = failure_of(error, redactor)
    facts = [as_in_the_parent(failure.type), failure.message, failure.traceback]
    return ["failed", facts, _ruling(error, policy, attempt, elapsed_seconds), _kinds(error)]


def _ruling(error: BaseException, policy: RetryPolicy, attempt: int, elapsed_seconds: float) -> Ruling:
    now = _CLOCK.wall()
    try:
        return ruling_on(error, policy, attempt, elapsed_seconds, now)
    except BaseException:
        logger.exception("a retry policy raised; the default policy decides")
        return ruling_on(error, DEFAULT_POLICY, attempt, elapsed_seconds, now)


def _kinds(error: BaseException) -> list[str]:
    return [as_in_the_parent(f"{kind.__module__}.{kind.__qualname__}") for kind in type(error).__mro__]


@cache
def _job_adapter() -> TypeAdapter[Job[Any]]:
    return TypeAdapter(Job[Any])


_CLOCK: Final = SystemClock()
