"""Starts child processes and ends them: what is particular to the operating system.

A child leads a session and a process group of its own, so that one signal reaches it and all that it has started. It
holds one end of a pipe, its *lifeline*, of which only this process has the other: however this process ends, the
kernel closes that, and the child is killed (see `durableq.engine.child`).
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Final

_START: Final = (
    "import sys; sys.path[:] = sys.argv[3:]; "
    "from durableq.engine.child import main; main(int(sys.argv[1]), int(sys.argv[2]))"
)
"""Not ``-m durableq.engine.child``: that looks durableq up before the path is set, and would let a ``json.py`` in the
working directory stand in for the standard library's."""


def start_process() -> tuple[subprocess.Popen[bytes], socket.socket, int]:
    """Start a child and return it with our ends of its connection, which does not block, and of its lifeline.

    The child dies when the lifeline is closed. Raises `OSError`, or `ValueError` where this cannot be done at all.
    """
    with contextlib.ExitStack() as ours, contextlib.ExitStack() as theirs:
        connection, its_connection = socket.socketpair()
        ours.enter_context(connection)
        theirs.enter_context(its_connection)
        its_lifeline, lifeline = os.pipe()
        _lifelines.add(lifeline)
        ours.callback(let_go, lifeline)
        theirs.callback(os.close, its_lifeline)
        connection.setblocking(False)
        fds = (its_connection.fileno(), its_lifeline)
        process = subprocess.Popen(  # noqa: S603 - our own interpreter and code
            _command(fds), stdin=subprocess.DEVNULL, pass_fds=fds, start_new_session=True
        )
        ours.pop_all()
    return process, connection, lifeline


def _command(fds: Sequence[int]) -> list[str]:
    flags = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined] # what multiprocessing does
    return [sys.executable, *flags, "-c", _START, *map(str, fds), *map(str, sys.path)]


_lifelines: Final[set[int]] = set()
"""Our ends of all lifelines."""


def let_go(lifeline: int) -> None:
    """Close a lifeline, of a child that is no more."""
    _lifelines.discard(lifeline)
    os.close(lifeline)


def _let_go_of_all() -> None:
    while _lifelines:
        os.close(_lifelines.pop())


if hasattr(os, "register_at_fork"):
    # A forked copy of this process, which may live on, must not keep our children alive.
    os.register_at_fork(after_in_child=_let_go_of_all)


def main_module() -> dict[str, str | None]:
    """Say where the program came from, for tasks that are defined in it."""
    main = sys.modules["__main__"]
    spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
    return {"main_name": getattr(spec, "name", None), "main_path": str(Path(file).absolute()) if file else None}


def wait_for_exit(process: subprocess.Popen[bytes]) -> bool:
    """Return when a child has exited; True when it has not been reaped yet."""
    try:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    except (AttributeError, ChildProcessError):  # macOS before Python 3.13; or something else here has reaped it
        process.wait()
        return False
    return True


def kill_group(pid: int) -> None:
    """Kill a child and all that it has started, unless that has made itself independent by a session of its own."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS: nothing but a zombie is left of it
        os.killpg(pid, signal.SIGKILL)
