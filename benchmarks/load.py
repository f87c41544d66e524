"""The load: so many keep-alive connections that each send one request, await its response, and send the next.

``python -m benchmarks.load PORT PATH CONNECTIONS WARM_UP_SECONDS SECONDS`` prints one JSON object. A process of its
own, and as little Python per request as there can be, because it shares the machine with what it measures.
"""

import asyncio
import json
import math
import sys
import time
from typing import Any, Final

import uvloop

from benchmarks.figures import percentile

HEAD_END: Final = b"\r\n\r\n"
LENGTH: Final = b"\r\ncontent-length: "
"""In uvicorn's spelling."""


class Tally:
    """What all connections add to. ``is_over`` makes each stop once it has its response."""

    def __init__(self) -> None:
        self.answered = 0
        self.is_over = False
        self.latencies: list[float] | None = None
        """In seconds, while they are taken."""


class Connection(asyncio.Protocol):
    """One client. A response that is not a 202, or a connection that breaks, ends the whole run."""

    def __init__(self, request: bytes, tally: Tally) -> None:
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._request = request
        self._tally = tally
        self._received = b""
        self._sent_at = 0.0
        self._transport: asyncio.Transport

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._send()

    def _send(self) -> None:
        self._sent_at = time.perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        received = self._received + data
        head = received.find(HEAD_END)
        if head < 0 or len(received) < head + len(HEAD_END) + _content_length(received[:head]):
            self._received = received
            return
        self._received = b""
        if not received.startswith(b"HTTP/1.1 202"):
            self._fail(f"expected a 202, got {received[:500]!r}")
            return
        self._tally.answered += 1
        if self._tally.latencies is not None:
            self._tally.latencies.append(time.perf_counter() - self._sent_at)
        if self._tally.is_over:
            self._end()
        else:
            self._send()

    def connection_lost(self, error: Exception | None) -> None:
        self._fail(f"the server closed a connection ({error})")

    def _end(self) -> None:
        if not self.ended.done():
            self.ended.set_result(None)
        self._transport.close()

    def _fail(self, reason: str) -> None:
        if not self.ended.done():
            self.ended.set_exception(ConnectionError(reason))
        self._transport.close()


def _content_length(head: bytes) -> int:
    start = head.index(LENGTH) + len(LENGTH)
    end = head.find(b"\r\n", start)
    return int(head[start : end if end >= 0 else None])


async def load(port: int, path: str, connections: int, warm_up: float, seconds: float) -> dict[str, float]:
    """Load a server on this host; return how much it answered, warm-up and tail included, and at what rate."""
    request = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: 0\r\n\r\n".encode()
    tally = Tally()
    loop = asyncio.get_running_loop()
    opened = [
        await loop.create_connection(lambda: Connection(request, tally), "127.0.0.1", port) for _ in range(connections)
    ]
    ended = asyncio.gather(*(connection.ended for _, connection in opened))
    await _unless_it_ends(ended, warm_up)
    latencies: list[float] = []
    tally.latencies = latencies
    before, began = tally.answered, time.perf_counter()
    await _unless_it_ends(ended, seconds)
    rate = (tally.answered - before) / (time.perf_counter() - began)
    tally.is_over, tally.latencies = True, None
    await ended
    return {
        "answered": tally.answered,
        "requests_per_second": rate,
        "p50": percentile(latencies or [math.inf], 0.5) * 1_000,
        "p99": percentile(latencies or [math.inf], 0.99) * 1_000,
        "cpu_seconds": time.process_time(),
    }


async def _unless_it_ends(ended: "asyncio.Future[Any]", seconds: float) -> None:
    """Let time pass; raise at once when a connection has failed."""
    await asyncio.wait([ended], timeout=seconds)
    if ended.done():
        ended.result()


if __name__ == "__main__":
    arguments = int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4]), float(sys.argv[5])
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(json.dumps(runner.run(load(*arguments))))
