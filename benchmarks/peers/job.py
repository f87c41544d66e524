"""The body of every peer's job: does nothing, but is counted, and says when it began.

Imported by a worker in the peer's own environment, so it needs the standard library only. What it shall tell comes by
the environment: with ``BENCHMARK_JOBS`` it writes ``BENCHMARK_REPORT`` when so many have begun, as seconds of time and
of CPU since the first, and its peak of memory; with ``BENCHMARK_PORT`` it sends the clock to that UDP port each time.
"""

import itertools
import json
import os
import resource
import socket
import time
from pathlib import Path
from typing import Final

_JOBS: Final = int(os.environ.get("BENCHMARK_JOBS", "0"))
_REPORT: Final = os.environ.get("BENCHMARK_REPORT", "")
_PORT: Final = int(os.environ.get("BENCHMARK_PORT", "0"))

_numbers: Final = itertools.count(1)
_socket: Final = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
_first: Final[list[tuple[float, float]]] = []


def begin() -> None:
    """Note that a job has begun. Usable from any thread."""
    if _PORT:
        _socket.sendto(str(time.monotonic()).encode(), ("127.0.0.1", _PORT))
    number = next(_numbers)
    if number == 1:
        _first.append((time.perf_counter(), time.process_time()))
    if number == _JOBS:
        _report()


def _report() -> None:
    seconds, cpu_seconds = _first[0]
    report = {
        "seconds": time.perf_counter() - seconds,
        "cpu_seconds": time.process_time() - cpu_seconds,
        "peak_mebibytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    draft = Path(f"{_REPORT}.draft")
    draft.write_text(json.dumps(report))
    draft.replace(_REPORT)  # whole, or not there
