"""The only reader of time.

Two clocks, never mixed: *wall* time is what people mean (``run_at``, ``created_at``) and may step; *boot* time
counts how long this kernel has been up, suspended time included, reads the same in every process of the host and
never steps, so leases are measured in it. Both are integers of microseconds, as storage holds them. A test hands
in a clock that it moves by hand.
"""

import time
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final, Protocol

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
SECOND: Final = 1_000_000
"""Microseconds in a second."""
_MICROSECOND: Final = timedelta(microseconds=1)


class Clock(Protocol):
    """Reads time; both readings in microseconds."""

    def wall(self) -> int:
        """Return microseconds since the Unix epoch, UTC. May step when the host's clock is set."""
        ...

    def boot(self) -> int:
        """Return microseconds since the kernel started, suspended time included. Never steps."""
        ...

    def boot_id(self) -> str:
        """Return a name for this run of the kernel. Readings of ``boot`` compare only under one name."""
        ...


class SystemClock:
    """The host's own clocks."""

    def wall(self) -> int:
        return time.time_ns() // 1_000

    def boot(self) -> int:
        return _boot_ns() // 1_000

    def boot_id(self) -> str:
        return _BOOT_ID


def to_datetime(micros: int) -> datetime:
    """Turn stored microseconds into an aware UTC datetime, exactly."""
    return EPOCH + timedelta(0, 0, micros)  # by position: every new job comes by here


def from_datetime(moment: datetime) -> int:
    """Turn an aware datetime into microseconds, exactly. Raises `ValueError` for a naive one."""
    if moment.tzinfo is None:
        raise ValueError(f"expected a datetime with a time zone, got the naive {moment!r}; add tzinfo=UTC")
    return (moment - EPOCH) // _MICROSECOND


def to_micros(duration: timedelta | float) -> int:
    """Turn a `timedelta`, or a number of seconds, into microseconds."""
    if isinstance(duration, timedelta):
        return duration // _MICROSECOND
    return round(duration * SECOND)


def _boot_ns() -> int:
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    return time.monotonic_ns()  # macOS: its monotonic clock is shared by all processes as well


def _read_boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        # Without one, the moment of boot to the minute names it: stable across processes, new after a reboot.
        booted_minute = (time.time_ns() - _boot_ns()) // 60_000_000_000
        return str(uuid.uuid5(uuid.NAMESPACE_OID, f"{uuid.getnode()}-{booted_minute}"))


_BOOT_ID: Final = _read_boot_id()
