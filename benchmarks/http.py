"""A FastAPI route under load: with no task, with Starlette's in-memory task, and with a durable one.

A real uvicorn in its own process and a client in another, over a loopback socket, afresh for each kind of route.
A rate counts only if the work was done: after the load every task that a response promised must have run.
"""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from benchmarks.figures import Benchmark, Figures, Row, Sizes
from benchmarks.storage import raw_rows_per_second

KINDS: Final = ("plain", "memory", "durable")
CONNECTIONS: Final = 64
PATIENCE_SECONDS: Final = 30.0
"""For what must come: the server's answer, the last job, the end of a process."""
PROJECT: Final = Path(__file__).resolve().parent.parent


def route(directory: Path, sizes: Sizes) -> Figures:
    figures: Figures = {}
    for kind in KINDS:
        with _served(kind, directory / f"{kind}.db") as port:
            figures |= _measure(kind, port, sizes)
    return figures


def _measure(kind: str, port: int, sizes: Sizes) -> Figures:
    before = _report(port)
    answers = load(port, sizes)
    promised = 0 if kind == "plain" else int(answers["answered"])
    still_to_run = promised - _report(port)["ran"]
    after = _when_all_have_run(port, promised)
    figures = {
        f"http-{kind}": answers["requests_per_second"],
        f"http-{kind}-p99": answers["p99"],
        f"http-{kind}-cpu": (after["cpu_seconds"] - before["cpu_seconds"]) / answers["answered"] * 1_000_000,
    }
    return figures | ({"http-backlog": still_to_run} if kind == "durable" else {})


def _when_all_have_run(port: int, promised: int) -> Figures:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (now := _report(port))["ran"] < promised:
        if time.monotonic() > deadline:
            raise RuntimeError(f"{promised - now['ran']:.0f} tasks that a response promised have not run")
        time.sleep(0.02)
    return now


def load(port: int, sizes: Sizes, connections: int = CONNECTIONS) -> Figures:
    """Load a served route by a client in a process of its own."""
    seconds = (str(sizes.warm_up_seconds), str(sizes.load_seconds))
    command = [sys.executable, "-m", "benchmarks.load", str(port), "/accept", str(connections), *seconds]
    timeout = sizes.warm_up_seconds + sizes.load_seconds + PATIENCE_SECONDS
    done = subprocess.run(command, cwd=PROJECT, stdout=subprocess.PIPE, check=True, timeout=timeout)
    return _figures(done.stdout)


def _report(port: int) -> Figures:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/report", timeout=PATIENCE_SECONDS) as response:
        return _figures(response.read())


def _figures(text: bytes) -> Figures:
    figures: Figures = json.loads(text)
    return figures


@contextlib.contextmanager
def _served(kind: str, database: Path) -> Iterator[int]:
    """Serve an app in a process of its own and give its port; clients that come too early wait in the backlog."""
    with socket.create_server(("127.0.0.1", 0), backlog=2 * CONNECTIONS) as listening:
        port: int = listening.getsockname()[1]
        descriptor = listening.fileno()
        command = [sys.executable, "-m", "benchmarks.app", kind, str(database), str(descriptor)]
        server = subprocess.Popen(command, cwd=PROJECT, pass_fds=[descriptor], env=_environment())
    try:
        yield port
    finally:
        server.send_signal(signal.SIGTERM)
        try:
            server.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def _environment() -> dict[str, str]:
    """The defaults of durableq are measured, whatever the shell says."""
    return {name: value for name, value in os.environ.items() if not name.startswith("DURABLEQ_")}


def alone(directory: Path, sizes: Sizes) -> Figures:
    """One connection, so that nothing is shared; and what a commit of one row takes on this disk."""
    figures = {"alone-commit": 1_000 / raw_rows_per_second(directory / "commit.db", 1, sizes.seconds)}
    for kind in ("memory", "durable"):
        with _served(kind, directory / f"{kind}.db") as port:
            _report(port)
            figures[f"alone-{kind}"] = load(port, sizes, connections=1)["p50"]
    return figures


def _rate(key: str, label: str, compared_to: str | None = None) -> Row:
    return Row(f"http-{key}", label, "requests/s", compared_to)


def _cpu(key: str, label: str, compared_to: str | None = None) -> Row:
    return Row(f"http-{key}-cpu", f"{label}, CPU", "ms/1,000", compared_to)


BENCHMARKS: Final = (
    Benchmark(
        "http",
        (
            _rate("plain", "route, no task", "http-memory"),
            _rate("memory", "route, Starlette BackgroundTasks"),
            _rate("durable", "route, durableq", "http-memory"),
            _cpu("plain", "route, no task", "http-memory-cpu"),
            _cpu("memory", "route, Starlette BackgroundTasks"),
            _cpu("durable", "route, durableq, job included", "http-memory-cpu"),
            Row("http-memory-p99", "route, Starlette BackgroundTasks, p99", "ms"),
            Row("http-durable-p99", "route, durableq, p99", "ms", "http-memory-p99"),
            Row("http-backlog", "route, durableq: jobs still to run when the load ends", "jobs"),
        ),
        route,
    ),
    Benchmark(
        "http-alone",
        (
            Row("alone-commit", "raw sqlite3, a commit of one row, mean", "ms"),
            Row("alone-memory", "route, 1 connection, Starlette BackgroundTasks, p50", "ms"),
            Row("alone-durable", "route, 1 connection, durableq, p50", "ms", "alone-memory"),
        ),
        alone,
    ),
)
