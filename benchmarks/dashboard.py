"""The dashboard beside very many jobs: how long the server takes for each page, and what looking costs those who add.

``python -m benchmarks.dashboard [JOBS]`` prints both tables, by default for a million jobs. The soak adds jobs at a
steady rate through a real uvicorn while pages are open: an event stream each, and a reload a second; the dashboard in
the application's own process, and in one beside it.
"""

import asyncio
import contextlib
import http.client
import itertools
import os
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from fastapi import Depends, FastAPI

from benchmarks import large
from benchmarks.app import application, serve
from benchmarks.figures import percentile
from durableq import DurableQ
from durableq.dashboard import dashboard

JOBS: Final = 1_000_000
ROUNDS: Final = 7
GOAL_MILLISECONDS: Final = 150
SOAK_SECONDS: Final = 10.0
WATCHERS: Final = 3
"""Open pages, each with its stream and its reloads."""
ADDS_PER_SECOND: Final = 100
PROJECT: Final = Path(__file__).resolve().parent.parent
WATCHED: Final = ("", "jobs", "jobs?state=dead", "dead", "queues", "workers")


def main() -> None:
    if len(sys.argv) == 4:
        serve(_application(sys.argv[1], sys.argv[2]), int(sys.argv[3]))
        return
    jobs = int(sys.argv[1]) if len(sys.argv) > 1 else JOBS
    with tempfile.TemporaryDirectory(prefix="durableq-benchmark-") as directory:
        database = Path(directory) / "large.db"
        asyncio.run(_made(database, jobs))
        print(
            f"{jobs:,} jobs, {database.stat().st_size / 2**20:,.0f} MiB; median of {ROUNDS} requests, and the slowest"
        )
        with _served("look", database) as port:
            for name, path in large.pages(jobs).items():
                _show_page(name, _times(port, path))
        _show_soak(database)


async def _made(database: Path, jobs: int) -> None:
    async with DurableQ(database, worker=False).running():
        pass
    large.fill(database, jobs)


def _application(kind: str, database: str) -> FastAPI:
    """Return what is served: the dashboard alone, an application that adds jobs, or one that has both."""
    if kind == "look":
        dq = DurableQ(database, worker=False)
        app = FastAPI(lifespan=dq.lifespan)
    else:
        app, dq = _adding(database)
    if kind != "add":
        app.include_router(dashboard(dq, auth=Depends(lambda: "admin")), prefix="/durableq")
    return app


def _adding(database: str) -> tuple[FastAPI, DurableQ]:
    dq = DurableQ(database)
    app = application("plain", database)
    app.router.lifespan_context = dq.lifespan

    @dq.task(name="benchmark.nothing")
    async def nothing(number: int, text: str) -> None: ...

    @app.post("/add", status_code=202)
    async def add() -> dict[str, str]:
        job = await dq.add_task(nothing, 1, "x" * 200)
        return {"id": job.id}

    return app, dq


# -- pages ---------------------------------------------------------------------------------------------------


def _times(port: int, path: str) -> list[float]:
    """Return how many milliseconds a page takes, as its first byte to its last are seen by a client next door."""
    found = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        _read(port, path)
        found.append((time.perf_counter() - began) * 1_000)
    return found


def _read(port: int, path: str) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/durableq/{path}", timeout=60) as response:
        response.read()


def _show_page(name: str, times: list[float]) -> None:
    median = statistics.median(times)
    print(f"{name:<30} {median:7.1f} ms {max(times):7.1f} ms{'  over' if median > GOAL_MILLISECONDS else ''}")


# -- the soak ------------------------------------------------------------------------------------------------


def _show_soak(database: Path) -> None:
    print(f"\n{ADDS_PER_SECOND} jobs added a second for {SOAK_SECONDS:.0f} s, one at a time; {WATCHERS} open pages")
    with _served("both", database) as port:
        alone = _adds(port)
        with _watched(port):
            same = _adds(port)
        again = _adds(port)
        with _served("look", database) as other, _watched(other):
            beside = _adds(port)
    base = statistics.mean((percentile(alone, 0.99), percentile(again, 0.99)))
    rows = (
        ("nobody looks", alone),
        ("in the same process", same),
        ("nobody looks, again", again),
        ("in another", beside),
    )
    for name, times in rows:
        p50, p99 = percentile(times, 0.5), percentile(times, 0.99)
        print(f"{name:<30} p50 {p50:6.1f} ms  p99 {p99:6.1f} ms  {p99 / base:.2f} of nobody's")


def _adds(port: int) -> list[float]:
    """Add jobs at a steady rate, and return the milliseconds that each answer took."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    found = []
    began = time.perf_counter()
    for number in itertools.count():
        due = began + number / ADDS_PER_SECOND
        if due - began > SOAK_SECONDS:
            break
        time.sleep(max(due - time.perf_counter(), 0))  # a fixed rate: else slow answers would be counted less often
        sent = time.perf_counter()
        connection.request("POST", "/add", headers={"Content-Length": "0"})
        if connection.getresponse().read() == b"":
            raise RuntimeError("expected the id of a job")
        found.append((time.perf_counter() - sent) * 1_000)
    connection.close()
    return found[len(found) // 10 :]


@contextlib.contextmanager
def _watched(port: int) -> Iterator[None]:
    """Keep pages open: each follows the event stream, and is loaded anew every second."""
    is_over = threading.Event()
    threads = [
        threading.Thread(target=work, args=(port, is_over, number))
        for number in range(WATCHERS)
        for work in (_follow, _reload)
    ]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        is_over.set()
        for thread in threads:
            thread.join()


def _follow(port: int, is_over: threading.Event, number: int) -> None:
    while not is_over.is_set():
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/durableq/live", timeout=90) as stream:
            while not is_over.is_set() and stream.readline():
                pass


def _reload(port: int, is_over: threading.Event, number: int) -> None:
    for path in itertools.islice(itertools.cycle(WATCHED), number * 2, None):
        if is_over.wait(1.0):
            return
        _read(port, path)


@contextlib.contextmanager
def _served(kind: str, database: Path) -> Iterator[int]:
    """Serve in a process of its own and give its port; clients that come too early wait."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listening:
        port: int = listening.getsockname()[1]
        command = [sys.executable, "-m", "benchmarks.dashboard", kind, str(database), str(listening.fileno())]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("DURABLEQ_")}
        server = subprocess.Popen(command, cwd=PROJECT, pass_fds=[listening.fileno()], env=environment)
    try:
        _read_until_there(port)
        yield port
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(60)


def _read_until_there(port: int) -> None:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/openapi.json", timeout=60) as response:
        response.read()


if __name__ == "__main__":
    main()
