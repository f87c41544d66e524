"""A merchant to try it on: takes callbacks, keeps books, and is as moody as real ones.

``python -m examples.payments.merchant --port 9000`` serves ``/callbacks``; at ``/old`` it says 410 for ever. It checks
signatures, and books each idempotency key once. What it answers follows from the seed, the order, and how often it was
called for that order.
"""

import argparse
import json
import math
import random
import sqlite3
import threading
import time
from contextlib import closing, suppress
from email.utils import formatdate
from enum import Enum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final

from examples.payments.signature import HEADER, is_genuine

SECONDS_PER_CALL: Final = 0.03
RETRY_AFTER_SECONDS: Final = 1

TABLES: Final = """
    CREATE TABLE IF NOT EXISTS bookings (key TEXT PRIMARY KEY, "order" TEXT NOT NULL, cents INTEGER NOT NULL);
    CREATE TABLE IF NOT EXISTS calls (
        "order" TEXT, at REAL NOT NULL, answer INTEGER, not_before REAL  -- seconds since 1970; no answer: dropped
    );
"""


class Mood(Enum):
    """What comes of a call."""

    GOOD = "books the order, and says so"
    BROKEN = "says 500"
    BUSY = "says 429: come back in a second"
    CLOSED = "says 503: come back at such a time"
    HANGS_UP = "books the order, and hangs up before saying so"


OUT_OF_A_HUNDRED: Final = {Mood.GOOD: 48, Mood.BROKEN: 33, Mood.BUSY: 5, Mood.CLOSED: 4, Mood.HANGS_UP: 10}


def mood(seed: int, order: str, calls_before: int) -> Mood:
    """Throw the dice; they fall the same way each time."""
    dice = random.Random(f"{seed}/{order}/{calls_before}")
    return dice.choices(list(OUT_OF_A_HUNDRED), list(OUT_OF_A_HUNDRED.values()))[0]


class Books:
    """What the merchant writes down: each call, and each order once."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._connection.executescript(TABLES)
        self._lock = threading.Lock()

    def close(self) -> None:
        self._connection.close()

    def calls(self, order: str) -> int:
        """Return how often somebody called for an order."""
        with self._lock:
            count: int = self._connection.execute('SELECT count(*) FROM calls WHERE "order" = ?', (order,)).fetchone()[
                0
            ]
        return count

    def book(self, key: str, order: str, cents: int) -> None:
        """Book an order, unless it was under this key before."""
        with self._lock:
            self._connection.execute("INSERT OR IGNORE INTO bookings VALUES (?, ?, ?)", (key, order, cents))

    def note(self, order: str | None, answer: int | None, not_before: float | None = None) -> None:
        """Note a call, and what was answered."""
        with self._lock:
            self._connection.execute("INSERT INTO calls VALUES (?, ?, ?, ?)", (order, time.time(), answer, not_before))


class Callbacks(ThreadingHTTPServer):
    """The merchant's server, a thread for each call."""

    request_queue_size = 128

    def __init__(self, port: int, books: Books, secret: str, seed: int) -> None:
        super().__init__(("127.0.0.1", port), Callback)
        self.books, self.secret, self.seed = books, secret, seed


class Callback(BaseHTTPRequestHandler):
    """One call."""

    server: Callbacks

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        key = self.headers.get("Idempotency-Key", "")
        if not is_genuine(self.headers.get(HEADER, ""), self.server.secret, key, body):
            self._answer(None, 401)
            return
        time.sleep(SECONDS_PER_CALL)
        self._hear(key, **json.loads(body))

    def _hear(self, key: str, order: str, cents: int) -> None:
        if self.path == "/old":
            self._answer(order, 410)
            return
        books = self.server.books
        match mood(self.server.seed, order, books.calls(order)):
            case Mood.GOOD:
                books.book(key, order, cents)
                self._answer(order, 200)
            case Mood.BROKEN:
                self._answer(order, 500)
            case Mood.BUSY:
                not_before = time.time() + RETRY_AFTER_SECONDS
                self._answer(order, 429, not_before, str(RETRY_AFTER_SECONDS))
            case Mood.CLOSED:
                not_before = math.ceil(time.time() + RETRY_AFTER_SECONDS / 2)  # HTTP dates know whole seconds only
                self._answer(order, 503, not_before, formatdate(not_before, usegmt=True))
            case Mood.HANGS_UP:
                books.book(key, order, cents)
                books.note(order, None)  # and says nothing: the connection is closed on return

    def _answer(
        self, order: str | None, status: int, not_before: float | None = None, retry_after: str | None = None
    ) -> None:
        self.server.books.note(order, status, not_before)  # first: nobody shall know of a call that is not noted
        self.send_response(status)
        self.send_header("Content-Length", "0")
        if retry_after is not None:
            self.send_header("Retry-After", retry_after)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: it is all in the books."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m examples.payments.merchant", description="A moody merchant.")
    parser.add_argument("--port", type=int, default=9000, help="port to listen on (default: %(default)s)")
    parser.add_argument("--books", type=Path, default=Path("merchant.db"), help="SQLite file (default: %(default)s)")
    parser.add_argument("--secret", default="only for this example", help="what signs callbacks")
    parser.add_argument("--seed", type=int, default=1, help="other seeds, other moods (default: %(default)s)")
    options = parser.parse_args()
    with (
        closing(Books(options.books)) as books,
        Callbacks(options.port, books, options.secret, options.seed) as server,
        suppress(KeyboardInterrupt),
    ):
        server.serve_forever()


if __name__ == "__main__":
    main()
