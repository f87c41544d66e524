"""Tasks for child processes. The tests call them by a `ProcessRunner`; their module is imported in the child."""

import asyncio
import atexit
import ctypes
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from datetime import datetime
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel
from tenacity import retry_if_not_exception_type, stop_after_delay, wait_fixed

from durableq.context import current_job
from durableq.engine import follow_ups
from durableq.errors import ConfigurationError
from durableq.registry import AnyTask, Registry
from durableq.retry import PermanentFailure, Retry, RetryPolicy, Snooze

F = TypeVar("F", bound=Callable[..., Any])

registry = Registry(Path(__file__).resolve().parents[2])


def task(**options: Any) -> Callable[[F], F]:
    """Register a function for child processes."""

    def register(function: F) -> F:
        registered: Any = registry.register(function, options={"runner": "process", **options})
        return registered  # type: ignore[no-any-return] # the child shall find the task, as with the app's decorator

    return register


def named(function: Callable[..., Any]) -> AnyTask:
    return registry.task_for(function)


def append(file: str, text: str) -> None:
    with open(file, "a") as stream:
        stream.write(f"{text}\n")


# -- plain work --------------------------------------------------------------------------------------------


@task()
def where() -> int:
    return os.getpid()


class Order(BaseModel):
    number: int
    placed_at: datetime


@task()
def kinds_of(order: Order, data: bytes, *rest: int, **more: str) -> list[str]:
    values = [order, order.placed_at, data, *rest, *more.values()]
    return [type(value).__name__ for value in values]


@task()
def echo(text: str) -> str:
    return text


@task()
def nothing() -> None: ...


@task()
def unstorable() -> object:
    return threading.Lock()


@task()
def surroundings() -> dict[str, Any]:
    return {
        "cwd": os.getcwd(),
        "path": sys.path,
        "argv": sys.argv,
        "sees_environment": "PYTHON_TEST_SURROUNDINGS" in os.environ,
        "main_thread": threading.current_thread() is threading.main_thread(),
    }


@task()
def meet(directory: str, me: str, other: str) -> int:
    """Return once the other has come as well."""
    (Path(directory) / me).touch()
    while not (Path(directory) / other).exists():
        time.sleep(0.005)
    return os.getpid()


# -- async -------------------------------------------------------------------------------------------------


@task()
async def loop_id() -> int:
    await asyncio.sleep(0)
    return id(asyncio.get_running_loop())


def _wrapped(function: Callable[..., Awaitable[Any]]) -> Callable[..., Any]:
    @wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


@task()
@_wrapped
async def wrapped_async() -> int:
    await asyncio.sleep(0)
    return os.getpid()


async def _note_the_end(file: str) -> None:
    try:
        await asyncio.sleep(3600)
    finally:
        append(file, "cancelled")


@task()
async def leave_a_task(file: str) -> int:
    _left.add(asyncio.create_task(_note_the_end(file)))
    await asyncio.sleep(0)
    return os.getpid()


async def _never_end() -> None:
    while True:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(3600)


@task()
async def leave_a_stubborn_task() -> int:
    _left.add(asyncio.create_task(_never_end()))
    await asyncio.sleep(0)
    return os.getpid()


_left: set[asyncio.Task[None]] = set()


# -- failures ----------------------------------------------------------------------------------------------


class Broken(Exception):
    pass


@task(retry=RetryPolicy(wait=wait_fixed(7), retry=retry_if_not_exception_type(KeyError), stop=stop_after_delay(100)))
def fail(kind: str) -> None:
    if kind == "KeyError":
        raise KeyError("no retry for this")
    try:
        raise ValueError("the cause")
    except ValueError as error:
        raise Broken("the effect") from error


@task(give_up_on=LookupError)
def look_up() -> None:
    raise KeyError("never to be found")


@task()
async def fail_async() -> None:
    await asyncio.sleep(0)
    raise Broken("on the loop")


@task()
def ask_for(what: str) -> None:
    if what == "retry":
        raise Retry(delay=30)
    if what == "snooze":
        raise Snooze(60)
    raise PermanentFailure("for ever")


def _broken_policy(_: object) -> bool:
    raise SystemExit("even this")


@task(retry=RetryPolicy(retry=_broken_policy))
def fail_with_a_broken_policy() -> None:
    raise Broken


_UNUSUAL: dict[str, Callable[[], BaseException]] = {
    "SystemExit": lambda: SystemExit(4),
    "KeyboardInterrupt": KeyboardInterrupt,
    "GeneratorExit": GeneratorExit,
    "CancelledError": asyncio.CancelledError,
}


@task()
def raise_unusual(kind: str) -> None:
    raise _UNUSUAL[kind]()


@task()
async def raise_unusual_async(kind: str) -> None:
    await asyncio.sleep(0)
    raise _UNUSUAL[kind]()


async def _exit() -> None:
    raise SystemExit(5)


@task()
async def exit_beside() -> None:
    beside = asyncio.create_task(_exit())
    await asyncio.sleep(3600)
    await beside


class Hostile(Exception):
    def __str__(self) -> str:
        raise SystemExit


@task()
def raise_hostile() -> None:
    raise Hostile("\udc80 and \0")


class _Refuses:
    def __repr__(self) -> str:
        raise SystemExit

    def __iter__(self) -> None:
        raise SystemExit


@task()
def return_hostile() -> object:
    return {"value": _Refuses()}


# -- dying -------------------------------------------------------------------------------------------------


@task()
def spin(note: str) -> None:
    write_note(note, os.getpid())
    while True:
        pass


@task()
def sleep(note: str) -> None:
    write_note(note, os.getpid())
    time.sleep(3600)


@task()
def hold_the_gil(note: str) -> None:
    write_note(note, os.getpid())
    re.match(r"(a+)+$", "a" * 64 + "b")


@task()
async def wait(note: str) -> None:
    write_note(note, os.getpid())
    await asyncio.sleep(3600)


@task()
def sleep_with_a_helper(note: str) -> None:
    helper = subprocess.Popen(["sleep", "3600"])
    write_note(note, os.getpid(), helper.pid)
    helper.wait()


@task()
def exit_with_a_helper(note: str) -> None:
    helper = subprocess.Popen(["sleep", "3600"])
    write_note(note, os.getpid(), helper.pid)
    os._exit(3)


@task()
def fork_and_exit(note: str) -> None:
    """The copy lives on, with all that its parent had open."""
    copy = os.fork()
    if copy == 0:
        os.setsid()
        time.sleep(20)
        os._exit(0)
    write_note(note, os.getpid(), copy)
    os._exit(3)


@task()
def fork_and_return() -> str:
    """Forget that the copy returns as well."""
    if os.fork() == 0:
        return "the copy"
    os.wait()
    return "the child"


@task()
def exit_hard(status: int) -> None:
    os._exit(status)


@task()
def answer_and_exit(note: str) -> str:
    """Leave a thread behind that ends the process a moment after the answer, which comes a moment after the note."""

    def exit_soon() -> None:
        time.sleep(0.3)
        os._exit(3)

    threading.Thread(target=exit_soon).start()
    write_note(note, os.getpid())
    time.sleep(0.15)
    return "the answer"


@task()
def crash() -> None:
    ctypes.string_at(0)


@task()
def take_memory(mebibytes: int) -> int:
    block = bytearray(mebibytes * 1024 * 1024)
    return len(block)


@task()
def hoard_memory() -> None:
    """Take the last crumb, so that not even a word about it finds room."""
    pieces, size = [], 1 << 20
    while True:
        try:
            pieces.append(bytearray(size))
        except MemoryError:
            if size == 1:
                raise
            size //= 2


@task()
def at_exit(file: str, stay: bool) -> int:
    """Have something done when the interpreter ends."""

    def leave() -> None:
        Path(file).touch()
        while stay:
            time.sleep(1)

    atexit.register(leave)
    return os.getpid()


def write_note(path: str, *pids: int) -> None:
    """Tell the test which processes there are. The file appears with its content, and never replaces another."""
    file = Path(path)
    draft = file.with_suffix(".draft")
    draft.write_text(" ".join(map(str, pids)))
    os.link(draft, file)
    draft.unlink()


# -- bad company -------------------------------------------------------------------------------------------


@task()
def chatter(text: str) -> str:
    try:
        heard = input()
    except EOFError:
        heard = "nothing to read"
    os.write(1, f"{text} to the descriptor\n".encode())
    print(text)
    return heard


def _sockets() -> list[int]:
    fds = [int(name) for name in os.listdir("/proc/self/fd")]
    return [fd for fd in fds if fd > 2 and _target(fd).startswith("socket:")]


def _target(fd: int) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{fd}")
    except OSError:
        return ""


@task()
def write_to_the_connection(text: str, times: int) -> None:
    for _ in range(times):
        for fd in _sockets()[:1]:
            os.write(fd, text.encode())
    time.sleep(3600)


@task()
def close_everything() -> None:
    os.closerange(3, 256)
    time.sleep(3600)


@task()
def turn_into_another_program() -> None:
    os.execvp("sleep", ["sleep", "3600"])


# -- current_job -------------------------------------------------------------------------------------------


@task()
def facts() -> dict[str, Any]:
    job = current_job()
    names = (
        "id",
        "task",
        "queue",
        "attempt",
        "max_attempts",
        "args",
        "idempotency_key",
        "tags",
        "headers",
        "cancelled",
    )
    return {name: getattr(job, name) for name in names}


@task()
async def facts_async() -> str:
    await asyncio.sleep(0)
    return current_job().id


@task()
def speak() -> None:
    current_job().progress(1, 2, "half-way")
    current_job().log("a line, \udc80 included")
    current_job().progress(2, 2)


@task()
def flood() -> None:
    job = current_job()
    for number in range(3_000):
        job.progress(number, 3_000, "y" * 5_000)
        job.log(f"{number} " + "x" * 5_000)


@task()
def report_once_more_then_work(note: str, until: str) -> None:
    """The last word is held back, as it came too soon after another."""
    current_job().progress(1)
    current_job().progress(2)
    write_note(note, os.getpid())
    while not Path(until).exists():
        time.sleep(0.005)


@task()
def go_on_talking(file: str) -> None:
    """A thread that outlives the job and wants to be heard."""
    job = current_job()

    def talk() -> None:
        for number in range(2_000):
            job.progress(number)
            job.log(str(number))
            time.sleep(0.0005)
            if number == 1_000:
                with suppress(RuntimeError):
                    job.add_task(nothing)
                    Path(file).write_text("added")
        Path(file).touch()

    threading.Thread(target=talk, daemon=True).start()


@task(queue="mail", priority=3, tags=["follow-up"], max_attempts=9)
def follow_up(order: Order) -> None: ...


@task()
def add_follow_ups(count: int) -> list[str]:
    current_job().headers["added"] = "in the child"
    order = Order(number=1, placed_at=datetime.fromisoformat("2024-05-06T07:08:09+00:00"))
    return [current_job().add_task(follow_up, order).id for _ in range(count)]


@task()
def add_too_many() -> int:
    for number in range(follow_ups.FOLLOW_UPS + 1):
        try:
            current_job().add_task(write_down, "x" * 20_000)
        except ConfigurationError:
            return number
    return -1


@task()
def write_down(text: str) -> None: ...


@task()
def add_wrongly(what: str) -> None:
    add: Any = current_job().add_task
    if what == "headers":
        headers: dict[str, Any] = {"number": 1}
        current_job().headers.update(headers)
        add(nothing)
    add(echo, object())


@task()
async def complete_itself() -> None:
    await current_job().complete_within(None)


# -- names -------------------------------------------------------------------------------------------------


def undecorated(number: int) -> int:
    return number * current_job().attempt


registry.register(
    undecorated,
    name="under another name",
    aliases=["its old name"],
    options={"runner": "process", "retry": RetryPolicy(wait=wait_fixed(11))},
)


def make_inner() -> Callable[[], None]:
    def inner() -> None: ...

    return inner


if "pytest" in sys.modules:

    def only_in_the_parent() -> None: ...


registry.declare_policy(RetryPolicy(name="patient", wait=wait_fixed(3600)))
