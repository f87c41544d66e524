"""Starts and kills servers, loads them with clients, and checks the ledger that their jobs wrote."""

import contextlib
import http.client
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.support import eventually_sync

ROOT = Path(__file__).resolve().parents[2]
APP = "tests.crash.app:app"
START_SECONDS = 20.0
RETRY_SECONDS = 0.05
HTTP_ERRORS = (OSError, http.client.HTTPException)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass
class Site:
    """The files of one test: a database, a ledger, and the logs of the servers."""

    directory: Path
    options: Mapping[str, object] = field(default_factory=dict)
    """durableq's options, by name; they travel in the environment."""

    @property
    def database(self) -> Path:
        return self.directory / "jobs.db"

    @property
    def ledger_file(self) -> Path:
        return self.directory / "ledger"

    def environment(self) -> dict[str, str]:
        options = {f"DURABLEQ_{name.upper()}": str(value) for name, value in self.options.items()}
        files = {"CRASH_DATABASE": str(self.database), "CRASH_LEDGER": str(self.ledger_file)}
        return {**os.environ, **options, **files}

    def log(self) -> str:
        """All that the servers have written."""
        return "".join(path.read_text() for path in sorted(self.directory.glob("server-*.log")))

    def rows(self, sql: str, *values: object) -> list[tuple[Any, ...]]:
        """Read the database from outside."""
        with contextlib.closing(sqlite3.connect(f"file:{self.database}?mode=ro", uri=True, timeout=10)) as connection:
            return connection.execute(sql, values).fetchall()

    def row(self, job_id: str) -> dict[str, Any]:
        columns = "state, attempt, crashes, lease_no, worker_id, result, error_type, error_message"
        found = self.rows(f"SELECT {columns} FROM durableq_jobs WHERE id = ?", job_id)
        return dict(zip(columns.split(", "), found[0], strict=True))

    def count_unfinished(self) -> int:
        count: int = self.rows("SELECT count(*) FROM durableq_jobs WHERE finished_at IS NULL")[0][0]
        return count

    def wait_finished(self, within: float) -> None:
        eventually_sync(lambda: self.count_unfinished() == 0, within)

    def ledger(self) -> "Ledger":
        return Ledger.read(self.ledger_file)


class Server:
    """One uvicorn, in a session of its own so that none of its children outlives it."""

    def __init__(self, site: Site, *arguments: str, port: int | None = None) -> None:
        self.site = site
        self.port = port or free_port()
        self.died_at: float | None = None
        number = len(list(site.directory.glob("server-*.log")))
        self._log = (site.directory / f"server-{number:03}.log").open("wb")
        command = [sys.executable, "-m", "uvicorn", APP, "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--log-config", str(_log_config(site.directory)), "--no-access-log", *arguments]
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=site.environment(),
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            start_new_session=True,
        )

    @property
    def pid(self) -> int:
        return self.process.pid

    def wait_ready(self) -> None:
        """Return when it answers requests: uvicorn opens its socket once the lifespan, and so the worker, is up."""
        eventually_sync(self._is_ready, START_SECONDS)

    def _is_ready(self) -> bool:
        assert self.process.poll() is None, self.site.log()
        with contextlib.suppress(*HTTP_ERRORS):
            return request(self.port, "GET", "/ready")[0] == 200
        return False

    def add(self, path: str) -> list[str]:
        """Add jobs by one request, and return their ids."""
        status, body = request(self.port, "POST", path)
        assert status == 202, (status, body)
        ids: list[str] = json.loads(body)
        return ids

    def signal(self, number: signal.Signals) -> float:
        """Send a signal to the server; return when it was sent."""
        sent_at = time.monotonic()
        self.process.send_signal(number)
        return sent_at

    def wait_exit(self, within: float) -> float:
        """Wait for its end, and return when that was."""
        self.process.wait(within)
        self.died_at = time.monotonic()
        self._log.close()
        return self.died_at

    def kill(self) -> float:
        """SIGKILL, to it and to all of its children; return the instant after which none of them ran any more."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        return self.wait_exit(10)


@contextlib.contextmanager
def serving(site: Site, *arguments: str, port: int | None = None) -> Iterator[Server]:
    """Run a server for a block, however the block ends."""
    server = Server(site, *arguments, port=port)
    try:
        server.wait_ready()
        yield server
    finally:
        server.kill()


def request(port: int, method: str, path: str, timeout: float = 10.0) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)
    try:
        connection.request(method, path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


class Clients:
    """Threads that post to ``path`` without end and keep the ids that a 2xx acknowledged.

    A request that dies with its server acknowledges nothing; its client goes on with the next server on that port.
    """

    def __init__(self, port: int, *, count: int = 16, path: str = "/add", pause: float = 0.01) -> None:
        self.acknowledged: list[str] = []
        self.refused: list[tuple[int, bytes]] = []
        """Answers that were neither 2xx nor 503."""
        self._port = port
        self._path = path
        self._pause = pause
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._post_without_end, daemon=True) for _ in range(count)]

    def __enter__(self) -> "Clients":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _post_without_end(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=10)
        while not self._stop.wait(self._pause):
            try:
                connection.request("POST", self._path)
                response = connection.getresponse()
                status, body = response.status, response.read()
            except HTTP_ERRORS:
                connection.close()
                self._stop.wait(RETRY_SECONDS)  # the processor belongs to the server that is starting
                continue
            if 200 <= status < 300:
                self.acknowledged.extend(json.loads(body))
            elif status != 503:
                self.refused.append((status, body))
        connection.close()


@dataclass
class Run:
    """One start of a job, and its end where there was one."""

    id: str
    task: str
    lease: int
    attempt: int
    pid: int
    started_at: float
    ended_at: float | None = None


@dataclass
class Ledger:
    """What the jobs and the processes wrote, in the order of writing."""

    events: list[dict[str, Any]]
    runs: dict[str, list[Run]]
    """By job, in the order of their start."""

    @classmethod
    def read(cls, path: Path) -> "Ledger":
        events = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
        runs: dict[str, list[Run]] = defaultdict(list)
        open_runs: dict[tuple[str, int], Run] = {}
        for event in events:
            if event["event"] == "start":
                run = Run(*(event[name] for name in ("id", "task", "lease", "attempt", "pid", "at")))
                runs[run.id].append(run)
                open_runs[run.id, run.lease] = run
            elif event["event"] == "end":
                open_runs[event["id"], event["lease"]].ended_at = event["at"]
        return cls(events, dict(runs))

    def first(self, event: str, pid: int) -> float:
        """When a process first wrote an event."""
        return next(float(one["at"]) for one in self.events if one["event"] == event and one["pid"] == pid)

    def starts(self, task: str) -> int:
        return sum(run.task == task for runs in self.runs.values() for run in runs)


def check_ledger(site: Site, died_at: Mapping[int, float]) -> None:
    """Assert what must hold of every job, acknowledged or not, once all have finished.

    ``died_at`` gives, per killed process, an instant at which it was dead: a run without an end ended by then.
    """
    ledger = site.ledger()
    tried = defaultdict(set)
    for job_id, attempt in site.rows("SELECT id, a.attempt FROM durableq_attempts a JOIN durableq_jobs USING (seq)"):
        tried[job_id].add(attempt)
    for job_id, state, attempt, lease_no in site.rows("SELECT id, state, attempt, lease_no FROM durableq_jobs"):
        runs = ledger.runs.get(job_id, [])
        _check_no_overlap(runs, died_at)
        _check_fences(runs, lease_no if state == "succeeded" else None)
        attempts = tried[job_id] | {run.attempt for run in runs}
        assert attempts == set(range(1, attempt + 1)), f"holes in the attempts of {job_id}: {attempts}, {runs}"


def _check_no_overlap(runs: list[Run], died_at: Mapping[int, float]) -> None:
    for earlier, later in pairwise(runs):
        ended_at = earlier.ended_at if earlier.ended_at is not None else died_at.get(earlier.pid)
        assert ended_at is not None, f"started again while it ran: {earlier}, {later}"
        assert ended_at <= later.started_at, f"two runs overlap: {earlier}, {later}"


def _check_fences(runs: list[Run], last_lease: int | None) -> None:
    """Each run has a lease of its own, later ones higher; the one that succeeded is the one the row names."""
    leases = [run.lease for run in runs]
    assert leases == sorted(set(leases)), f"a lease ran twice, or out of order: {runs}"
    if last_lease is not None:
        assert leases[-1] == last_lease, f"the row names lease {last_lease}, the last run was {runs[-1]}"
        assert runs[-1].ended_at is not None, f"succeeded without having ended: {runs[-1]}"


def died_of_crashes(site: Site) -> list[str]:
    """Ids of the jobs that were running at three deaths of a process: a legitimate end. Asserts that no other died."""
    dead = site.rows("SELECT id, error_type, crashes FROM durableq_jobs WHERE state = 'dead'")
    assert all((kind, crashes) == ("durableq.WorkerDied", 3) for _, kind, crashes in dead), dead
    return [job_id for job_id, _, _ in dead]


def _log_config(directory: Path) -> Path:
    """Log everything from INFO up, durableq's lines too, to the server's log file."""
    path = directory / "logging.json"
    if not path.exists():
        handler = {"class": "logging.StreamHandler", "formatter": "plain"}
        config = {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"plain": {"format": "%(process)d %(name)s %(levelname)s %(message)s"}},
            "handlers": {"stderr": handler},
            "root": {"level": "INFO", "handlers": ["stderr"]},
        }
        path.write_text(json.dumps(config))
    return path
