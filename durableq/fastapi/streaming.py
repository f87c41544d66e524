"""Server-sent events: an answer that goes on as long as there is something to tell, and always ends.

It ends when its client leaves or stops reading, when the server shuts down (uvicorn waits for open answers before it
lets the application know), and after five minutes at the latest: browsers then come back by themselves and say what
they saw last, and who they are is asked anew. No more than a certain number is open at once.
"""

import asyncio
import contextlib
import json
import re
import signal
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any, Final

from starlette.responses import JSONResponse, Response
from starlette.types import Receive, Scope, Send

from durableq.fastapi import admin_examples
from durableq.fastapi.admin_answers import Answers, answers
from durableq.fastapi.admin_models import Problem
from durableq.fastapi.background import RETRY_AFTER_SECONDS

LONGEST_SECONDS: Final = 300.0
"""How long one answer goes on."""
KEEP_ALIVE_SECONDS: Final = 15.0
"""After so long without an event there is a comment: proxies close what is silent."""
TICK_SECONDS: Final = 0.5
"""How often an idle stream looks whether it should end."""
_SEND_SECONDS: Final = 20.0
"""How long a client may leave what is sent to it unread."""
_RETRY_MILLISECONDS: Final = 2_000
_LINE_BREAKS: Final = re.compile(r"[\r\n]")


@dataclass(frozen=True, slots=True)
class Event:
    """One event: its name, what JSON it carries, and the id that a client sends when it comes back."""

    name: str
    data: Any
    id: str | None = None

    def encoded(self) -> bytes:
        """Return the event as it goes over the wire."""
        lines = [f"event: {self.name}", f"data: {json.dumps(self.data, ensure_ascii=False, separators=(',', ':'))}"]
        if self.id is not None:
            lines.append(f"id: {_LINE_BREAKS.sub('', self.id)}")
        return ("\n".join(lines) + "\n\n").encode("utf-8", "replace")


Events = AsyncGenerator[Event | None, None]
"""What there is to tell, as it happens; None, at least every `TICK_SECONDS`, when there is nothing."""


class Seats:
    """How many streams may be open at once. Lives on one event loop."""

    def __init__(self, number: int) -> None:
        self._free = number

    def take(self) -> bool:
        """Take one; False when all are taken."""
        if self._free < 1:
            return False
        self._free -= 1
        return True

    def leave(self) -> None:
        self._free += 1


class EventStream(Response):
    """Sends events until there are no more, or it has to end."""

    media_type = "text/event-stream"

    def __init__(self, events: Events, seats: Seats, status_code: int = 200) -> None:  # FastAPI reads the default
        super().__init__(status_code=status_code, headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events = events
        self._seats = seats

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not self._seats.take():
            await _all_taken()(scope, receive, send)
            return
        leaving = asyncio.ensure_future(_until_gone(receive))
        try:
            async with contextlib.aclosing(self._events) as events:
                await self._send_all(events, send, leaving)
        except _NobodyThere:
            pass
        finally:
            self._seats.leave()
            leaving.cancel()
            await asyncio.gather(leaving, return_exceptions=True)

    async def _send_all(self, events: Events, send: Send, leaving: asyncio.Future[None]) -> None:
        loop = asyncio.get_running_loop()
        began = last = loop.time()
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await _sent(send, f"retry: {_RETRY_MILLISECONDS}\n\n".encode())
        async for event in events:
            if event is not None:
                await _sent(send, event.encoded())
                last = loop.time()
            elif loop.time() - last >= KEEP_ALIVE_SECONDS:
                await _sent(send, b": still here\n\n")
                last = loop.time()
            if event is None and (leaving.done() or is_shutting_down() or loop.time() - began >= LONGEST_SECONDS):
                break
        await _sent(send, b"", more=False)


def is_shutting_down() -> bool:
    """Whether uvicorn is about to stop, as far as can be told: it waits for answers to end, and tells nobody."""
    server = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    return getattr(server, "should_exit", False) is True


class _NobodyThere(Exception):
    """The client has left, or does not read."""


async def _sent(send: Send, body: bytes, *, more: bool = True) -> None:
    try:
        async with asyncio.timeout(_SEND_SECONDS):
            await send({"type": "http.response.body", "body": body, "more_body": more})
    except OSError as error:  # `TimeoutError` is one; others are what servers raise for a client that has left
        raise _NobodyThere from error


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def stream_answers(example: str) -> Answers:
    """The answers of a route of events, for its documentation."""
    content = {"text/event-stream": {"schema": {"type": "string"}, "example": example}}
    return {
        200: {"description": "Events as they come", "content": content},
        204: {"description": "It was all seen: do not come back"},
        **{status: _as_json(answer) for status, answer in answers(404).items()},
    }


def _as_json(answer: dict[str, Any]) -> dict[str, Any]:
    """An answer with its model written out: FastAPI would document it as a stream too."""
    model = answer.get("model")
    if model is None:
        return answer
    schema = {"type": "object", "properties": {"detail": Problem.model_json_schema()}, "required": ["detail"]}
    content = {"application/json": {"schema": schema, "example": admin_examples.PROBLEM}}
    return {**{name: part for name, part in answer.items() if name != "model"}, "content": content}


def _all_taken() -> Response:
    problem = {"message": "too many event streams are open; ask for the plain status instead, or come back later"}
    return JSONResponse({"detail": problem}, 503, headers={"Retry-After": RETRY_AFTER_SECONDS})
