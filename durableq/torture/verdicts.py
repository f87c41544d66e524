"""What a check is asked, and what it answers."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of each check is done."""

    kills: int
    """Times a worker process is killed in the middle of its work."""
    images: int
    """Disks rebuilt as a power cut may leave them."""
    zombies: int
    """Workers stopped past their lease that wake up and try to write."""
    overlap_jobs: int
    """Jobs run by four processes side by side."""
    first_opens: int
    """Times four processes open a fresh file at once."""
    all_operations: bool
    """Whether crash points and I/O errors are tried in all operations, and beside a second process; else in the five
    main ones, and alone.
    """


QUICK = Sizes(kills=25, images=5_000, zombies=20, overlap_jobs=5_000, first_opens=50, all_operations=False)
"""About two minutes on two cores."""
FULL = Sizes(kills=1_000, images=200_000, zombies=500, overlap_jobs=200_000, first_opens=1_000, all_operations=True)
"""Within the hour on two cores."""


@dataclass(slots=True)
class Verdict:
    """What a check found. It holds what was promised when nothing went wrong and it was not skipped."""

    tried: int = 0
    """How many blows were dealt."""
    wrong: list[str] = field(default_factory=list)
    """What broke a promise, in sentences that name how to do it again: the operation, the seed, the place."""
    figures: dict[str, str] = field(default_factory=dict)
    """What was measured, by name, ready to be read."""
    skipped: str | None = None
    """Why nothing could be tried here."""

    @property
    def holds(self) -> bool:
        return not self.wrong and self.skipped is None


Progress = Callable[[int, int], None]
"""(done so far, of so many): told now and then by a check that is under way."""


@dataclass(frozen=True, slots=True)
class Check:
    """One kind of blow. ``run`` gets a directory of its own on the disk under test, the sizes and a seed."""

    name: str
    promise: str
    """What has to hold, as one sentence."""
    run: Callable[[Path, Sizes, int, Progress], Verdict]
