"""All checks, in the order in which they are run: the quickest to fail first."""

from typing import Final

from durableq.torture import crash_points, first_opens, io_errors, kills, overlaps, power_cuts, zombies
from durableq.torture.verdicts import Check

CHECKS: Final[tuple[Check, ...]] = (
    crash_points.CHECK,
    io_errors.CHECK,
    power_cuts.CHECK,
    first_opens.CHECK,
    overlaps.CHECK,
    zombies.CHECK,
    kills.CHECK,
)
