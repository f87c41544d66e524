"""Signed tokens that let somebody see one job, and nothing else, until they expire.

A token is an expiry and an HMAC-SHA256 over it, the status route's name and the job's id. It can be checked without
storing anything, by every process that has the secret; who has another job's token, another route's, or a part of one,
learns nothing from trying. Pure.
"""

import hashlib
import hmac
import json
from base64 import urlsafe_b64encode
from typing import Final

from pydantic import SecretBytes, SecretStr

from durableq.errors import ConfigurationError

AnySecret = str | bytes | SecretStr | SecretBytes

_SHORTEST: Final = 16
"""Bytes of a secret: shorter ones can be guessed."""
_EXPIRY_DIGITS: Final = 12


def checked_secret(secret: AnySecret) -> bytes:
    """Return a secret's bytes. Raises `ConfigurationError` for one that can be guessed."""
    plain = secret.get_secret_value() if isinstance(secret, SecretStr | SecretBytes) else secret
    if not isinstance(plain, str | bytes):
        raise ConfigurationError(f"expected secret to be a text or bytes, got a {type(plain).__name__}")
    key = plain.encode() if isinstance(plain, str) else plain
    if len(key) < _SHORTEST:
        raise ConfigurationError(
            f"expected secret to have at least {_SHORTEST} bytes, got {len(key)}; make one with: "
            'python -c "import secrets; print(secrets.token_urlsafe(32))"'
        )
    return key


def signed(key: bytes, route: str, job_id: str, expires_at: int) -> str:
    """Return the token of a job for the status route of this name; ``expires_at`` is in seconds since the epoch."""
    # The first words keep what is signed here from being taken for anything else signed with the same secret.
    text = f"durableq: see this job\n{json.dumps([expires_at, route, job_id])}"
    digest = hmac.digest(key, text.encode(), hashlib.sha256)
    return f"{expires_at}.{urlsafe_b64encode(digest).decode().removesuffix('=')}"


def is_valid(key: bytes, route: str, job_id: str, token: str, now: float) -> bool:
    """Whether a token is this job's, for this route, and has not expired. Takes as long for a wrong one as for it."""
    expiry = token.partition(".")[0]
    if not (expiry.isascii() and expiry.isdigit() and len(expiry) <= _EXPIRY_DIGITS):
        return False
    expires_at = int(expiry)
    right = signed(key, route, job_id, expires_at)
    is_right = hmac.compare_digest(right.encode(), token.encode(errors="surrogatepass"))
    return is_right and now < expires_at
