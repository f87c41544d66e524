"""How a callback proves where it comes from: both sides know a secret."""

import hmac
from typing import Final

HEADER: Final = "X-Signature"


def signature(secret: str, key: str, body: bytes) -> str:
    """Return the HMAC-SHA256 of a callback.

    It covers the idempotency key too: whoever overhears a callback cannot have it booked again under another key.
    """
    return "sha256=" + hmac.new(secret.encode(), f"{key}.".encode() + body, "sha256").hexdigest()


def is_genuine(given: str, secret: str, key: str, body: bytes) -> bool:
    """Compare in constant time: an ordinary comparison takes the longer, the more of a signature was guessed."""
    return hmac.compare_digest(given.encode(), signature(secret, key, body).encode())
