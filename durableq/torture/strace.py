"""strace, which makes system calls fail, kills at them, or writes them down."""

import contextlib
import functools
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_ATTACH_SECONDS: Final = 20.0


@functools.cache
def why_not() -> str | None:
    """Say why strace cannot be used here, or None."""
    if shutil.which("strace") is None:
        return "strace is not installed: apt-get install strace"
    try:
        found = subprocess.run(
            ["strace", "-qq", "-e", "trace=none", "true"], capture_output=True, text=True, timeout=20, check=False
        )
    except subprocess.TimeoutExpired:
        return "strace does not come back here"
    return None if found.returncode == 0 else f"strace may not trace here: {found.stderr.strip().splitlines()[-1:]}"


@contextlib.contextmanager
def attached(pid: int, *arguments: str) -> Iterator[None]:
    """Trace a stopped process and all its threads to come, from now until the end of the block, or its own end.

    ``arguments`` are strace's own.
    """
    tracer = subprocess.Popen(
        ["strace", "-f", "-qq", "-p", str(pid), *arguments],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # a Ctrl-C shall not end it before what it traces
    )
    try:
        _wait_until_traced(pid, tracer)
        yield
    finally:
        with contextlib.suppress(subprocess.TimeoutExpired):
            tracer.wait(1)
        if tracer.poll() is None:
            tracer.terminate()
            tracer.wait(_ATTACH_SECONDS)


def _wait_until_traced(pid: int, tracer: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + _ATTACH_SECONDS
    while "TracerPid:\t0\n" in Path(f"/proc/{pid}/status").read_text():
        if tracer.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"strace cannot trace process {pid}")
        time.sleep(0.001)
