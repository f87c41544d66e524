"""How often a route syncs the disk for each job that it acknowledges: the price of "on disk before the response"."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import Final

from benchmarks.figures import Benchmark, Figures, Row, Sizes
from benchmarks.http import CONNECTIONS, PATIENCE_SECONDS, PROJECT, load


def fsyncs(directory: Path, sizes: Sizes) -> Figures:
    """What a route that adds one job syncs, counted by strace: alone, and with many connections. Nothing runs here."""
    if shutil.which("strace") is None:
        return {"fsyncs-1": float("nan"), "fsyncs-64": float("nan")}
    return {f"fsyncs-{number}": _fsyncs(directory, number, sizes) for number in (1, CONNECTIONS)}


def _fsyncs(directory: Path, connections: int, sizes: Sizes) -> float:
    counts = directory / f"fsyncs-{connections}"
    with socket.create_server(("127.0.0.1", 0), backlog=2 * CONNECTIONS) as listening:
        port: int = listening.getsockname()[1]
        descriptor = listening.fileno()
        strace = [
            "strace",
            "-f",
            "--seccomp-bpf",
            "-c",
            "-U",
            "name,calls",
            "-e",
            "trace=fsync,fdatasync",
            "-o",
            counts,
        ]
        app = [
            sys.executable,
            "-m",
            "benchmarks.app",
            "durable",
            f"{directory}/fsyncs-{connections}.db",
            str(descriptor),
        ]
        environment = os.environ | {"DURABLEQ_WORKER": "false"}
        server = subprocess.Popen([*map(str, strace), *app], cwd=PROJECT, pass_fds=[descriptor], env=environment)
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}/report", timeout=PATIENCE_SECONDS).close()
        answered = load(port, sizes, connections)["answered"]
    finally:
        children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
        for child in children:  # strace itself would let go of it
            os.kill(int(child), signal.SIGTERM)
        server.wait(PATIENCE_SECONDS)
    return sum(int(calls) for calls in re.findall(r"^\s*f(?:data)?sync\s+(\d+)", counts.read_text(), re.M)) / answered


BENCHMARKS: Final = (
    Benchmark(
        "fsyncs",
        (
            Row("fsyncs-1", "fsyncs for each request, 1 connection", ""),
            Row(f"fsyncs-{CONNECTIONS}", f"fsyncs for each request, {CONNECTIONS} connections", ""),
        ),
        fsyncs,
        is_long=True,
    ),
)
