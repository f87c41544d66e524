"""The queue, and the one thing it does: send the mail that a sign-up promised.

Settings come from the environment: ``DATABASE`` is the file, ``SMTP_HOST`` and ``SMTP_PORT`` the mail server.
"""

import hashlib
import os
import smtplib
from email.message import EmailMessage
from typing import Annotated, Final

from pydantic import StringConstraints
from tenacity import wait_exponential

from durableq import DurableQ, RetryPolicy

SENDER: Final = "hello@signup.example"
CONNECTIONS: Final = 8
"""How many mails are on their way at once. Each is sent by a thread of the queue's own, never by the server's."""
SMTP_TIMEOUT_SECONDS: Final = 10.0

# Narrower than the standards allow: printable ASCII, and nothing that could start another header.
Email = Annotated[
    str, StringConstraints(max_length=254, pattern=r"^[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9-]+(\.[A-Za-z0-9-]+)+$")
]
Name = Annotated[str, StringConstraints(min_length=1, max_length=100)]

dq = DurableQ(os.environ.get("DATABASE", "./signup.db"), threads=CONNECTIONS)

# Short waits, so that whoever watches sees the retries. A service would rather keep the default: 1 s, 2 s, 4 s, ...
in_a_moment = RetryPolicy(wait=wait_exponential(multiplier=0.25, max=2))


@dq.task(max_attempts=4, retry=in_a_moment)
def send_welcome(email: Email, name: Name) -> None:
    """Send one welcome mail. Whatever the mail server refuses is raised, and so becomes a retry."""
    message = welcome(email, name)
    host, port = os.environ.get("SMTP_HOST", "127.0.0.1"), int(os.environ.get("SMTP_PORT", "1025"))
    # With a name of our own smtplib need not ask DNS for one, which takes seconds where there is none.
    with smtplib.SMTP(host, port, local_hostname="localhost", timeout=SMTP_TIMEOUT_SECONDS) as server:
        server.send_message(message, to_addrs=[email])


def welcome(email: str, name: str) -> EmailMessage:
    """Write the mail."""
    message = EmailMessage()
    message["From"] = SENDER
    message["To"] = email
    message["Subject"] = "Welcome"
    message["Message-ID"] = message_id(email)
    message.set_content(f"Hello {name},\n\nyou have signed up as {email}. Welcome!\n")
    return message


def message_id(email: str) -> str:
    """Return the same id for the same mail, each time it is sent.

    A process that dies between sending a mail and writing that down sends it once more after its restart: no queue
    can know. A receiver can, by this id, and shows the mail once.
    """
    return f"<welcome.{hashlib.sha256(email.lower().encode()).hexdigest()[:32]}@signup.example>"
