"""The service and the merchant as the story has them: processes of their own, spoken to over HTTP only."""

import asyncio
import contextlib
import os
import secrets
import signal
import sqlite3
import sys
from pathlib import Path
from typing import Any, Final

import httpx2

from examples.demo.site import ROOT, DemoFailed, free_port, until


class Program:
    """A Python module that serves HTTP on a port of 127.0.0.1."""

    def __init__(self, module: str, *arguments: str, log: Path, **environment: str) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = log
        self._command = (sys.executable, "-m", module, *arguments, f"--port={self.port}")
        self._environment = os.environ | environment
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start a process and return when it listens."""
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._command, cwd=ROOT, env=self._environment, stdout=log, stderr=log
            )
        await until(self._listens, f"{self.url} answers")

    async def kill(self) -> None:
        """End the process from one instruction to the next: it gets no chance to do anything."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    async def stop(self) -> None:
        """Ask the process to end, and wait until it has."""
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()
            await self._process.wait()

    async def _listens(self) -> bool:
        if self._process is None or self._process.returncode is not None:
            raise DemoFailed(f"{self._command} ended while starting")
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            return False
        writer.close()
        return True


ASK_AGAIN_SECONDS: Final = 0.1
SECRET: Final = "known to the service and the merchant"


def merchant(directory: Path, seed: int) -> Program:
    """Return the merchant, whose books are ``merchant.db``."""
    books = f"--books={directory / 'merchant.db'}"
    return Program(
        "examples.payments.merchant", books, f"--seed={seed}", f"--secret={SECRET}", log=directory / "merchant.log"
    )


class Service(Program):
    """The payment service, whichever process serves it at the moment, and an operator's key to it."""

    def __init__(self, directory: Path) -> None:
        token = secrets.token_urlsafe(16)
        self._database = directory / "payments.db"
        super().__init__(
            "examples.payments",
            "--serve",
            log=directory / "service.log",
            DATABASE=str(self._database),
            ADMIN_TOKEN=token,
        )
        # A connection that is kept open dies with the process, and the next request on it would seem cut off.
        limits = httpx2.Limits(max_keepalive_connections=0)
        headers = {"Authorization": f"Bearer {token}"}
        self._client = httpx2.AsyncClient(base_url=self.url, headers=headers, limits=limits, trust_env=False)

    async def ask(self, method: str, path: str, json: Any = None) -> Any:
        """Ask the service for something, as its operator. Raises `DemoFailed` when it refuses."""
        answer = await self._client.request(method, path, json=json)
        if not answer.is_success:
            raise DemoFailed(f"{method} {path} gave {answer.status_code}: {answer.text[:500]}")
        return answer.json() if answer.content else None

    async def kill_amid_a_callback(self) -> None:
        """Kill the process at a moment at which its file says that a callback is running."""
        await until(self._stands_amid_a_callback, "a callback is running")
        await self.kill()

    def _stands_amid_a_callback(self) -> bool:
        """Make the process stand still, and leave it so if a callback runs: nothing changes while one looks."""
        if self._process is None or self._process.returncode is not None:
            raise DemoFailed("the service has ended by itself")
        self._process.send_signal(signal.SIGSTOP)
        with contextlib.closing(sqlite3.connect(self._database)) as connection:
            running = connection.execute("SELECT count(*) FROM durableq_jobs WHERE state = 'running'").fetchone()[0]
        if not running:
            self._process.send_signal(signal.SIGCONT)
        return bool(running)

    async def take(self, order: dict[str, Any]) -> None:
        """Place an order as a customer does: again and again, until the service says that it is stored.

        409 says that too: the order was stored, and its answer lost. Raises `DemoFailed` for any other refusal.
        """
        while True:
            with contextlib.suppress(httpx2.TransportError):
                answer = await self._client.post("/orders", json=order)
                if answer.status_code in (201, 409):
                    return
                if answer.is_client_error:
                    raise DemoFailed(f"order {order} was refused: {answer.text[:500]}")
            await asyncio.sleep(ASK_AGAIN_SECONDS)
