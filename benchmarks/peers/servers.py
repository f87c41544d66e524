"""The servers that peers need, started on loopback with a directory of their own, and ended afterwards.

`redis` and `postgresql` give a function that makes an address at which nothing is stored yet.
"""

import contextlib
import itertools
import os
import pwd
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from benchmarks.peers.systems import Store

NewAddress = Callable[[], str]
START_SECONDS: Final = 30.0
END_SECONDS: Final = 30.0
LOOK_SECONDS: Final = 0.05
"""Between looks at what another process does: nothing tells us."""


class Missing(Exception):
    """A server is not installed."""


@contextlib.contextmanager
def addresses(store: Store, directory: Path) -> Iterator[NewAddress]:
    """Start what a store needs. Raises `Missing`."""
    match store:
        case Store.REDIS:
            # "As installed": snapshots now and then, no log of the writes.
            with redis(directory, "--save", "3600 1 300 100 60 10000", "--appendonly", "no") as new_address:
                yield new_address
        case Store.REDIS_FSYNC:
            with redis(directory, "--save", "", "--appendonly", "yes", "--appendfsync", "always") as new_address:
                yield new_address
        case Store.POSTGRESQL:
            with postgresql(directory) as new_address:
                yield new_address
        case _:
            numbers = itertools.count()
            yield lambda: str(directory / f"{next(numbers)}.db")


@contextlib.contextmanager
def redis(directory: Path, *settings: str) -> Iterator[NewAddress]:
    """Run Debian's redis-server."""
    command = shutil.which("redis-server")
    if command is None:
        raise Missing("redis-server is not installed")
    port = _free_port()
    where = ["--bind", "127.0.0.1", "--port", str(port), "--dir", str(directory)]
    with _running([command, *where, *settings], port, directory / "redis.log", signal.SIGTERM):

        def new_address() -> str:
            with socket.create_connection(("127.0.0.1", port), END_SECONDS) as connection:
                connection.sendall(b"FLUSHALL\r\n")
                answer = connection.recv(100)
            if answer != b"+OK\r\n":
                raise RuntimeError(f"Redis cannot be emptied: {answer!r}")
            return f"redis://127.0.0.1:{port}/0"

        yield new_address


@contextlib.contextmanager
def postgresql(directory: Path) -> Iterator[NewAddress]:
    """Run Debian's PostgreSQL as it comes: fsync and synchronous_commit are on."""
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not programs:
        raise Missing("PostgreSQL is not installed")
    here, user = programs[-1], _unprivileged()
    if user:
        shutil.chown(directory, user)
    as_user = ["runuser", "-u", user, "--"] if user else []
    data, port = directory / "postgresql", _free_port()
    initdb = [str(here / "initdb"), "-D", str(data), "-A", "trust", "-U", "postgres", "-E", "UTF8", "--locale=C.UTF-8"]
    subprocess.run([*as_user, *initdb], check=True, stdout=subprocess.DEVNULL)
    server = [*as_user, str(here / "postgres"), "-D", str(data), "-h", "127.0.0.1", "-p", str(port), "-k", ""]
    with _running(server, port, directory / "postgresql.log", signal.SIGINT):  # a fast shutdown
        to = ["-h", "127.0.0.1", "-p", str(port), "-U", "postgres"]
        _until_ready([str(here / "pg_isready"), *to, "-q"])

        def new_address() -> str:
            subprocess.run(
                [here / "dropdb", *to, "--if-exists", "--force", "peer"], check=True, stderr=subprocess.DEVNULL
            )
            subprocess.run([here / "createdb", *to, "peer"], check=True)
            return f"postgresql://postgres@127.0.0.1:{port}/peer"

        yield new_address


@contextlib.contextmanager
def _running(command: list[str], port: int, log: Path, farewell: signal.Signals) -> Iterator[None]:
    with log.open("wb") as output:
        server = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
    try:
        _await_listening(server, port, log)
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):  # it has ended by itself
            os.killpg(server.pid, farewell)
        try:
            server.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def _await_listening(server: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        if server.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"a server did not start:\n{log.read_text(errors='replace')[-2_000:]}")
        time.sleep(LOOK_SECONDS)


def _until_ready(ask: list[str]) -> None:
    """It listens before it lets anybody in."""
    deadline = time.monotonic() + START_SECONDS
    while subprocess.run(ask, check=False).returncode != 0:
        if time.monotonic() > deadline:
            raise RuntimeError(f"a server was not ready within {START_SECONDS:.0f} s")
        time.sleep(LOOK_SECONDS)


def _unprivileged() -> str | None:
    """PostgreSQL refuses to run as root: Debian's package brings a user for it."""
    if os.geteuid() != 0:
        return None
    with contextlib.suppress(KeyError):
        return pwd.getpwnam("postgres").pw_name
    raise Missing("PostgreSQL does not run as root, and there is no user 'postgres'")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port
