"""A client of server-sent events on a bare socket, as a browser is one: it reads events one by one, and may leave."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Told:
    """One event that came."""

    name: str
    data: Any
    id: str | None


@dataclass
class Stream:
    """An answer as it comes in."""

    status: int
    headers: dict[str, str]
    reader: asyncio.StreamReader = field(repr=False)
    comments: list[str] = field(default_factory=list)

    async def next(self) -> Told | None:
        """Return the next event; None at the end of the answer. Fails after ten seconds without one."""
        fields: dict[str, str] = {}
        async with asyncio.timeout(10):
            while line := await self.reader.readline():
                text = line.decode()
                if text == "\n" and "event" in fields:
                    return Told(fields["event"], json.loads(fields["data"]), fields.get("id"))
                if text.startswith(":"):
                    self.comments.append(text.strip())
                name, colon, value = text.rstrip("\n").partition(": ")
                if colon:  # sizes of chunks have none
                    fields[name] = value
        return None

    async def until(self, name: str) -> list[Told]:
        """Return the events up to the first of a name, that one included."""
        told: list[Told] = []
        while not told or told[-1].name != name:
            event = await self.next()
            assert event is not None, f"the stream ended without {name!r}, after {told}"
            told.append(event)
        return told

    async def body(self) -> Any:
        """Return the JSON of an answer that is no stream."""
        async with asyncio.timeout(10):
            return json.loads(await self.reader.readexactly(int(self.headers["content-length"])))


@contextlib.asynccontextmanager
async def streaming(port: int, path: str, **headers: str) -> AsyncIterator[Stream]:
    """Open a stream, and leave it at the end of the block. Underscores in the names of headers stand for hyphens."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    given = {"host": "testserver", **{name.replace("_", "-"): value for name, value in headers.items()}}
    lines = [f"GET {path} HTTP/1.1", *(f"{name}: {value}" for name, value in given.items()), "", ""]
    try:
        writer.write("\r\n".join(lines).encode())
        async with asyncio.timeout(10):
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        parts = (line.split(": ", 1) for line in head[1:] if line)
        yield Stream(int(head[0].split()[1]), {name.lower(): value for name, value in parts}, reader)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
