"""The mail server of the demo: real SMTP on loopback, but slow, and choosy about what it takes."""

import asyncio
import contextlib
import email
import random
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from aiosmtpd.smtp import SMTP, Envelope, Session
from anyio.from_thread import start_blocking_portal

REFUSED: Final = "nobody@invalid.example"
"""No mail for this address is ever taken."""


@dataclass(frozen=True)
class Mail:
    """A mail that was received whole; its sender is told so an instant later."""

    address: str
    message_id: str
    at: float


class MailServer:
    """Takes its time for each mail, and tells some addresses once to try again later."""

    def __init__(self, *, put_off: Iterable[str] = (), seconds_per_mail: float = 0.0) -> None:
        self.port = 0
        self.mails: list[Mail] = []
        self.put_off: set[str] = set()
        """Who was told to try again later."""
        self._to_put_off = set(put_off)
        self._seconds_per_mail = seconds_per_mail

    @property
    def addresses(self) -> set[str]:
        """Who got a mail."""
        return {mail.address for mail in self.mails}

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Listen on a free port of 127.0.0.1 while the block runs, in a thread of its own."""
        with start_blocking_portal() as portal, portal.wrap_async_context_manager(self._listening()):
            yield

    @contextlib.asynccontextmanager
    async def _listening(self) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: SMTP(self, hostname="localhost", loop=loop), "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield
        finally:
            server.close()

    async def handle_RCPT(self, server: SMTP, session: Session, envelope: Envelope, to: str, options: list[str]) -> str:
        if to == REFUSED:
            return "550 5.1.1 there is no such mailbox"
        if to in self._to_put_off:
            self._to_put_off.discard(to)
            self.put_off.add(to)
            return "451 4.7.1 please try again later"
        envelope.rcpt_tos.append(to)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        await asyncio.sleep(self._seconds_per_mail * random.uniform(0.5, 1.5))
        message_id = email.message_from_bytes(envelope.original_content or b"")["Message-ID"]
        self.mails += [Mail(address, message_id, time.monotonic()) for address in envelope.rcpt_tos]
        return "250 OK"
