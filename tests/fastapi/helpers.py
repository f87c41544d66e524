"""What the tests of the drop-in share: a task, a look at the disk, an application called without a server, and one
served for real.
"""

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tests.support import eventually


def note(label: str) -> None:
    """The task that most tests add: what matters is whether its job is stored."""


@dataclass(frozen=True)
class Database:
    """A queue's file, as another program sees it: through a connection of its own, committed rows only."""

    path: Path

    def labels(self) -> list[str]:
        """The ``label`` argument of each stored job, in the order of adding."""
        return [label for _, label, _ in self._jobs()]

    def label_of(self) -> dict[str, str]:
        """The label of each stored job, by the job's id."""
        return {job_id: label for job_id, label, _ in self._jobs()}

    def state_of(self) -> dict[str, str]:
        """The state of each stored job, by its label."""
        return {label: state for _, label, state in self._jobs()}

    def execute(self, sql: str) -> None:
        """Run a statement and commit it."""
        with contextlib.closing(sqlite3.connect(self.path, timeout=10)) as connection, connection:
            connection.execute(sql)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the write lock, as a session does that has written and not committed."""
        with contextlib.closing(sqlite3.connect(self.path, timeout=10, isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            yield
            connection.execute("ROLLBACK")

    def _jobs(self) -> list[tuple[str, str, str]]:
        with contextlib.closing(sqlite3.connect(self.path, timeout=10)) as connection:
            sql = "SELECT id, json_extract(args, '$.label'), state FROM durableq_jobs ORDER BY seq"
            return connection.execute(sql).fetchall()


class AtResponseStart:
    """An application around another, which looks at the database whenever a response is about to start."""

    def __init__(self, app: ASGIApp, database: Database) -> None:
        self.seen: list[list[str]] = []
        self._app = app
        self._database = database

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def look_and_send(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.seen.append(self._database.labels())
            await send(message)

        await self._app(scope, receive, look_and_send)


@dataclass(frozen=True)
class Answer:
    status: int
    body: str


async def request(app: ASGIApp, path: str = "/", *, method: str = "POST") -> Answer:
    """Send an empty request to an application on this very event loop. Its lifespan is not run."""
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    scope: Scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(b"host", b"testserver")],
        "client": ("127.0.0.1", 1),
        "server": ("testserver", 80),
    }
    await app(scope, receive, send)
    body = b"".join(message.get("body", b"") for message in sent)
    return Answer(sent[0]["status"], body.decode())


@contextlib.asynccontextmanager
async def serving(app: ASGIApp) -> AsyncIterator[int]:
    """Serve an application with uvicorn on a free port of the loopback, and give the port."""
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None, ws="none", lifespan="on"))
    running = asyncio.create_task(server.serve())
    try:
        await eventually(lambda: server.started or running.done())
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        await running


def raised_by(action: Callable[[], object]) -> BaseException | None:
    """Return what an action raises, for code that has to note it and go on."""
    try:
        action()
    except Exception as error:
        return error
    return None
