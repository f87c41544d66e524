"""All checks, in the order in which they are run: the quickest to fail first."""

from typing import Final

from durableq.torture import crash_points, io_errors
from durableq.torture.verdicts import Check

CHECKS: Final[tuple[Check, ...]] = (crash_points.CHECK, io_errors.CHECK)
