"""The machine that the figures are from."""

import importlib.metadata
import os
import platform
import sqlite3
import tempfile
import time

from benchmarks.figures import percentile


def machine() -> dict[str, str]:
    """Return what a reader needs to know of the machine and the versions, by name."""
    versions = {name: importlib.metadata.version(name) for name in ("durableq", "fastapi", "uvicorn")}
    return {
        "CPUs": str(os.cpu_count()),
        "Python": platform.python_version(),
        "SQLite": sqlite3.sqlite_version,
        **versions,
        "load average": f"{os.getloadavg()[0]:.1f} before we began",
        "fdatasync p50": f"{_fdatasync_milliseconds():.2f} ms in {tempfile.gettempdir()}",
    }


def _fdatasync_milliseconds(times: int = 100) -> float:
    """Of one page appended: what a durable commit costs here at the very least."""
    taken = []
    with tempfile.TemporaryFile() as file:
        for _ in range(times):
            os.write(file.fileno(), bytes(4096))
            began = time.perf_counter()
            getattr(os, "fdatasync", os.fsync)(file.fileno())
            taken.append((time.perf_counter() - began) * 1_000)
    return percentile(taken, 0.5)
