"""One peer, one round: each workload in its own environment, on a store that nothing was written to before."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any, Final

from benchmarks.figures import Figures, Sizes
from benchmarks.http import CONNECTIONS, load
from benchmarks.peers.environments import PROJECT, python_of
from benchmarks.peers.servers import LOOK_SECONDS, NewAddress
from benchmarks.peers.systems import System

ADDING: Final = ("serial", "producers", "bulk")
PATIENCE_SECONDS: Final = 180.0
"""For a workload, whichever."""
END_SECONDS: Final = 10.0
WAKE_SECONDS: Final = 1.0
"""What a worker needs, after its start, to be idle. One that takes longer shows in the first pick-ups, not counted."""


class PeerFailed(Exception):
    """A peer did not do what it was asked."""


def measured(system: System, sizes: Sizes, new_address: NewAddress, *, but: Sequence[str] = ()) -> Figures:
    """Return all figures of a peer, ``but`` some. Raises `PeerFailed`."""
    peer = Peer(system, sizes)
    figures: Figures = {}
    for workload in ADDING:
        figures |= peer.run(workload, new_address())
    measures = (peer.drain, peer.pick_up, peer.route) if peer.has_worker(new_address()) else (peer.route,)
    for measure in measures:
        if measure.__name__ not in but:
            figures |= measure(new_address())
    return figures


class Peer:
    """Runs the workloads of one peer."""

    def __init__(self, system: System, sizes: Sizes) -> None:
        self._system = system
        self._sizes = sizes
        self._python = str(python_of(system))
        self._arguments: list[str] | None = None

    def has_worker(self, address: str) -> bool:
        """Whether jobs can be run by a process of their own."""
        return bool(self._worker_arguments(address))

    def run(self, workload: str, address: str, jobs: int | None = None, **environment: str) -> Figures:
        """Run what adds."""
        sizes = self._sizes if jobs is None else replace(self._sizes, jobs=jobs)
        command = [
            self._python,
            "-m",
            "benchmarks.peers.run",
            self._system.adapter,
            workload,
            json.dumps(asdict(sizes)),
        ]
        try:
            done = subprocess.run(
                command,
                cwd=PROJECT,
                env=_environment(address, **environment),
                capture_output=True,
                text=True,
                timeout=PATIENCE_SECONDS,
                check=True,
            )
        except subprocess.CalledProcessError as error:
            raise PeerFailed(f"{self._system.name}, {workload}: {error.stderr[-2_000:]}") from None
        figures: Figures = json.loads(done.stdout.splitlines()[-1])
        return figures

    def drain(self, address: str) -> Figures:
        """Empty a full queue by one worker: jobs a second from the start of the first to that of the last."""
        jobs = min(self._system.drained, self._sizes.jobs)
        self.run("fill", address, jobs)
        with tempfile.TemporaryDirectory() as directory:
            report = Path(directory, "report.json")
            with self._worker(address, BENCHMARK_JOBS=str(jobs), BENCHMARK_REPORT=str(report)) as worker:
                worker.wait_until(report.exists, f"{self._system.name} has drained {jobs:,} jobs")
            said: dict[str, Any] = json.loads(report.read_text())
        return {
            "drain": (jobs - 1) / said["seconds"],
            "drain-cpu": said["cpu_seconds"] / jobs * 1_000_000,
            "drain-memory": said["peak_mebibytes"],
        }

    def pick_up(self, address: str) -> Figures:
        """Time how soon an idle worker, in a process of its own, starts a new job."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind(("127.0.0.1", 0))
            port = str(probe.getsockname()[1])
        with self._worker(address, BENCHMARK_PORT=port):
            time.sleep(WAKE_SECONDS)
            return self.run("pick_up", address, BENCHMARK_PORT=port)

    def route(self, address: str) -> Figures:
        """Load a route that adds one job. No worker competes with it."""
        with socket.create_server(("127.0.0.1", 0), backlog=2 * CONNECTIONS) as listening:
            port: int = listening.getsockname()[1]
            descriptor = listening.fileno()
            app = [self._python, "-m", "benchmarks.peers.app", self._system.adapter, str(descriptor)]
            server = subprocess.Popen(app, cwd=PROJECT, env=_environment(address), pass_fds=[descriptor])
        with _ended(server):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/ready", timeout=PATIENCE_SECONDS).close()
            return {"route": load(port, self._sizes)["requests_per_second"]}

    @contextlib.contextmanager
    def _worker(self, address: str, **environment: str) -> Iterator["_Worker"]:
        command = [self._python, *self._worker_arguments(address)]
        with tempfile.TemporaryFile() as log:
            process = subprocess.Popen(
                command,
                cwd=PROJECT,
                env=_environment(address, **environment),
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            with _ended(process):
                yield _Worker(process, log)

    def _worker_arguments(self, address: str) -> list[str]:
        """Asked of the adapter where it can be imported: in its own environment."""
        if self._arguments is None:
            module = f"benchmarks.peers.adapters.{self._system.adapter}"
            ask = [self._python, "-c", f"import json, {module} as peer; print(json.dumps(peer.ADAPTER.worker))"]
            done = subprocess.run(ask, cwd=PROJECT, env=_environment(address), stdout=subprocess.PIPE, check=True)
            self._arguments = list(json.loads(done.stdout))
        return self._arguments


def _environment(address: str, **more: str) -> dict[str, str]:
    return os.environ | {"BENCHMARK_ADDRESS": address, "PYTHONPATH": str(PROJECT)} | more


@dataclass(frozen=True)
class _Worker:
    process: "subprocess.Popen[bytes]"
    log: IO[bytes]

    def wait_until(self, check: Callable[[], bool], what: str) -> None:
        """Raises `PeerFailed`, with what the worker said last."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not check():
            if self.process.poll() is not None:
                raise PeerFailed(f"waited until {what}, but the worker ended: {self._last_words()}")
            if time.monotonic() > deadline:
                raise PeerFailed(f"waited {PATIENCE_SECONDS:.0f} s in vain until {what}: {self._last_words()}")
            time.sleep(LOOK_SECONDS)

    def _last_words(self) -> str:
        self.log.seek(0)
        return self.log.read()[-2_000:].decode(errors="replace")


@contextlib.contextmanager
def _ended(process: "subprocess.Popen[bytes]") -> Iterator[None]:
    """End a process afterwards, and all that it has started if it leads a session."""
    leads = os.getpgid(process.pid) == process.pid
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        if leads:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
