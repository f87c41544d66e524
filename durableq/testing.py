"""What tests of an application, and our own, need: a clock that is moved by hand."""

from datetime import UTC, datetime, timedelta

from durableq.clock import from_datetime, to_datetime, to_micros


class ManualClock:
    """A `durableq.clock.Clock` that stands still until it is moved.

    Hand it in as ``DurableQ(..., clock=clock)``. A running queue notices a move within a quarter of a second.
    """

    def __init__(self, start: datetime = datetime(2026, 1, 1, tzinfo=UTC)) -> None:
        self._wall = from_datetime(start)
        self._boot = 3_600_000_000
        self._boot_id = "manual-boot"

    def wall(self) -> int:
        return self._wall

    def boot(self) -> int:
        return self._boot

    def boot_id(self) -> str:
        return self._boot_id

    @property
    def now(self) -> datetime:
        return to_datetime(self._wall)

    def advance(self, duration: timedelta | float) -> None:
        """Let time pass, for both clocks."""
        self._wall += to_micros(duration)
        self._boot += to_micros(duration)

    def step_wall(self, duration: timedelta | float) -> None:
        """Set the host's clock forward or back, as an administrator would; no time passes."""
        self._wall += to_micros(duration)

    def reboot(self, name: str = "manual-boot-2") -> None:
        """Start the kernel anew."""
        self._boot_id = name
        self._boot = 1_000_000
