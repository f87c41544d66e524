"""The sign-up app under uvicorn, in a process of its own: started, killed, and asked over HTTP."""

import asyncio
import contextlib
import inspect
import os
import random
import secrets
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import httpx2

ROOT: Final = Path(__file__).resolve().parents[2]
LOOK_AGAIN_SECONDS: Final = 0.01
STEP_SECONDS: Final = 15.0
"""No single step of the demo may take longer."""


class DemoFailed(Exception):
    """Something did not happen that had to."""


class Site:
    """The app at its address, with its files, whichever process serves it at the moment."""

    def __init__(self, directory: Path, smtp_port: int) -> None:
        self.database = directory / "signup.db"
        self.log = directory / "server.log"
        self.token = secrets.token_urlsafe(16)
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        # A connection that is kept open dies with the process, and the next request on it would seem cut off.
        limits = httpx2.Limits(max_keepalive_connections=0)
        operator = {"Authorization": f"Bearer {self.token}"}
        self._client = httpx2.AsyncClient(base_url=self.url, headers=operator, limits=limits, trust_env=False)
        self._smtp_port = smtp_port
        self._process: asyncio.subprocess.Process | None = None

    @property
    def process(self) -> asyncio.subprocess.Process:
        """The process that was started last."""
        if self._process is None:
            raise DemoFailed("the app was not started")
        return self._process

    async def start(self) -> None:
        """Start a process and return when it answers."""
        command = (sys.executable, "-m", "uvicorn", "examples.signup.app:app", "--log-level", "warning")
        settings = {
            "DATABASE": str(self.database),
            "SMTP_HOST": "127.0.0.1",
            "SMTP_PORT": str(self._smtp_port),
            "DEMO_ADMIN_TOKEN": self.token,
        }
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *command, f"--port={self._port}", cwd=ROOT, env=os.environ | settings, stdout=log, stderr=log
            )
        await until(self._answers, "the app answers")

    async def kill(self) -> None:
        """End the process from one instruction to the next: it gets no chance to do anything."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    async def sign_up(self, email: str, name: str) -> Any:
        """Return the job that the app acknowledged, or None for "not stored, try again"."""
        answer = await self._client.post("/signup", json={"email": email, "name": name})
        return None if answer.status_code == 503 else content(answer)["job"]

    async def job(self, job_id: str | None) -> Any:
        """Return all about a job, or None when the app does not know it."""
        answer = await self._client.get(f"/admin/jobs/{job_id}")
        return None if answer.status_code == 404 else content(answer)

    async def dead_letters(self) -> list[Any]:
        """Return all about each of them."""
        listed = content(await self._client.get("/admin/jobs?state=dead"))["jobs"]
        return [await self.job(job["id"]) for job in listed]

    async def edit(self, job_id: str, args: dict[str, Any]) -> None:
        """Give a dead letter other arguments, which runs it again."""
        content(await self._client.post(f"/admin/jobs/{job_id}/edit", json={"args": args}))

    async def final_counts(self) -> Any:
        """Count the jobs in each state, or return None while some are under way."""
        counts = content(await self._client.get("/admin/counts"))
        del counts["at_most"]
        finished = counts["succeeded"] + counts["dead"] + counts["cancelled"]
        return counts if finished == sum(counts.values()) else None

    async def _answers(self) -> bool:
        if self.process.returncode is not None:
            raise DemoFailed("the app ended while starting")
        try:
            return (await self._client.get("/docs")).is_success
        except httpx2.TransportError:
            return False


def content(answer: httpx2.Response) -> Any:
    """Return what the app said. Raises `DemoFailed` when it refused."""
    if not answer.is_success:
        raise DemoFailed(f"{answer.request.method} {answer.url} gave {answer.status_code}: {answer.text[:500]}")
    return answer.json()


async def until(look: Callable[[], Any], what: str) -> Any:
    """Look again and again, and return what is seen first. Raises `DemoFailed` when that takes too long."""
    try:
        async with asyncio.timeout(STEP_SECONDS):
            while True:
                seen = look()
                if seen := await seen if inspect.isawaitable(seen) else seen:
                    return seen
                await asyncio.sleep(LOOK_AGAIN_SECONDS)
    except TimeoutError:
        raise DemoFailed(f"waited {STEP_SECONDS:.0f} s in vain until {what}") from None


def free_port() -> int:
    """Find a port below those of outgoing connections.

    A client that tries to reach the dead app could be given the very port that it tries to reach, and would keep it.
    """
    for port in random.sample(range(20_000, 30_000), 50):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
    raise DemoFailed("no free port was found between 20,000 and 30,000")
