"""Streams of events: what goes over the wire, and that each ends."""

import asyncio
import math
import signal
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.types import Message

from durableq.fastapi import streaming
from durableq.fastapi.following import LINES, Seen
from durableq.fastapi.streaming import Event, Events, EventStream, Seats, is_shutting_down
from tests.support import eventually


@pytest.mark.parametrize(
    ("event", "sent"),
    [
        (Event("end", {}), b"event: end\ndata: {}\n\n"),
        (Event("log", ["a\nb\r\n\u2028"], "7"), 'event: log\ndata: ["a\\nb\\r\\n\u2028"]\nid: 7\n\n'.encode()),
        (Event("log", "\udcff", "1\n2\r\n3"), b'event: log\ndata: "?"\nid: 123\n\n'),
    ],
)  # fmt: skip
def test_an_event_is_one_block_whatever_it_holds(event: Event, sent: bytes) -> None:
    assert event.encoded() == sent
    assert sent.count(b"\n\n") == 1


class Client:
    """Receives an answer, and may leave, or stop reading."""

    def __init__(self, reads: float = math.inf) -> None:
        self.sent: list[Message] = []
        self.gone = asyncio.Event()
        self._reads = reads

    async def receive(self) -> Message:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if len(self.sent) >= self._reads:
            await asyncio.Event().wait()
        self.sent.append(message)

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.sent)

    @property
    def is_complete(self) -> bool:
        return bool(self.sent) and self.sent[-1].get("more_body") is False


class Source:
    """Events without end, and whether it was closed."""

    def __init__(self, *events: Event) -> None:
        self.is_closed = False
        self._events = events

    async def events(self) -> Events:
        try:
            for event in self._events:
                yield event
            while True:
                await asyncio.sleep(0.01)
                yield None
        finally:
            self.is_closed = True


async def run(client: Client, source: Source, seats: Seats | None = None) -> None:
    async with asyncio.timeout(10):
        await EventStream(source.events(), seats or Seats(1))({"type": "http"}, client.receive, client.send)


async def test_a_stream_ends_when_its_client_leaves() -> None:
    client, source, seats = Client(), Source(Event("status", {})), Seats(1)
    client.gone.set()
    await run(client, source, seats)
    assert source.is_closed
    assert b"event: status" in client.body
    assert seats.take(), "its seat is free again"


async def test_a_stream_ends_when_nobody_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "_SEND_SECONDS", 0.05)
    client, source, seats = Client(reads=2), Source(Event("status", {})), Seats(1)
    await run(client, source, seats)
    assert len(client.sent) == 2
    assert source.is_closed
    assert seats.take()


async def test_a_server_that_says_that_the_client_has_left_ends_the_stream() -> None:
    client, source, seats = Client(), Source(Event("status", {})), Seats(1)

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            raise ConnectionResetError

    await EventStream(source.events(), seats)({"type": "http"}, client.receive, send)
    assert seats.take()


async def test_a_time_out_of_the_events_themselves_is_a_failure() -> None:
    async def slow() -> Events:
        yield None
        raise TimeoutError

    client = Client()
    with pytest.raises(TimeoutError):
        await EventStream(slow(), Seats(1))({"type": "http"}, client.receive, client.send)


@pytest.fixture
def handler() -> Iterator[Callable[[Any], None]]:
    before = signal.getsignal(signal.SIGTERM)

    def handle_by(handler: Any) -> None:
        signal.signal(signal.SIGTERM, handler)

    yield handle_by
    signal.signal(signal.SIGTERM, before)


class Server:
    """As uvicorn's, whose method handles the signal."""

    def __init__(self) -> None:
        self.should_exit: object = False

    def handle_exit(self, *_: object) -> None: ...


async def test_a_stream_ends_when_the_server_is_about_to(handler: Callable[[Any], None]) -> None:
    server, client, source = Server(), Client(), Source(Event("status", {}))
    handler(server.handle_exit)
    running = asyncio.create_task(run(client, source))
    await eventually(lambda: b"event: status" in client.body)
    assert not running.done()
    server.should_exit = True
    await running
    assert client.is_complete


@pytest.mark.parametrize("odd", [signal.SIG_DFL, signal.SIG_IGN, lambda *_: None, Server().handle_exit])
def test_what_cannot_be_told_of_the_server_does_not_end_streams(handler: Callable[[Any], None], odd: Any) -> None:
    handler(odd)
    assert not is_shutting_down()
    mock = SimpleNamespace(should_exit="yes")
    handler(Server.handle_exit.__get__(mock))
    assert not is_shutting_down()


async def test_a_stream_ends_after_its_time_with_its_answer_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "LONGEST_SECONDS", 0.05)
    client, source = Client(), Source()
    began = time.monotonic()
    await run(client, source)
    assert time.monotonic() - began >= 0.05
    assert client.is_complete
    assert source.is_closed


async def test_a_stream_that_fails_frees_its_seat_and_the_failure_is_heard_of() -> None:
    async def broken() -> Events:
        yield Event("status", {})
        raise LookupError("a defect")

    seats, client = Seats(1), Client()
    with pytest.raises(LookupError):
        await EventStream(broken(), seats)({"type": "http"}, client.receive, client.send)
    assert seats.take()
    assert not client.is_complete


def test_what_was_seen_is_told_by_the_id_of_an_event() -> None:
    for seen in (Seen(), Seen(7), Seen(7, end=True)):
        assert Seen.of(str(seen)) == seen
    assert LINES < 10**9, "an id holds the number of lines"
