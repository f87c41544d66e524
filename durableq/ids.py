"""Ids of jobs: random ones in the order of time, and those that are derived from an idempotency key."""

import hashlib
import os
from typing import Final


def new_job_id(wall_micros: int) -> str:
    """Return a UUIDv7 (RFC 9562 §5.7): 48 bits of milliseconds, then 74 random bits.

    The random bits come from the operating system, a few hundred ids' worth at a time: asking for each costs more
    than all the rest. A forked process starts with none of them, so that two never share an id.
    """
    noise = _next_noise()
    millis = f"{wall_micros // 1000:012x}"
    return f"{millis[:8]}-{millis[8:]}-7{noise[:3]}-{_VARIANT[noise[3]]}{noise[4:7]}-{noise[7:19]}"


def derived_job_id(task: str, key: str) -> str:
    """Return the id that every job of this task and idempotency key has: a UUIDv8 (RFC 9562 §5.8) of their SHA-256."""
    digest = hashlib.sha256(f"{task}\0{key}".encode()).hexdigest()
    return f"{digest[:8]}-{digest[8:12]}-8{digest[13:16]}-{_VARIANT[digest[16]]}{digest[17:20]}-{digest[20:32]}"


def _next_noise() -> str:
    while True:
        try:
            return _noise.pop()
        except IndexError:  # not asked beforehand: another thread may take the last one in between
            pool = os.urandom(_NOISE_BYTES * 256).hex()
            _noise.extend(pool[at : at + 2 * _NOISE_BYTES] for at in range(0, len(pool), 2 * _NOISE_BYTES))


_NOISE_BYTES: Final = 10
_VARIANT: Final = {digit: "89ab"[int(digit, 16) & 3] for digit in "0123456789abcdef"}
_noise: Final[list[str]] = []
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_noise.clear)
