"""How a `DurableQ` stores and runs jobs, as users state it. Pure; every mistake is named in plain words.

Each setting may come from the environment as ``DURABLEQ_<NAME>``; what the code says wins. Durations are `timedelta`,
or a number of seconds.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from datetime import timedelta
from difflib import get_close_matches
from typing import Annotated, Any, Final, Literal, Self, TypedDict

from pydantic import AfterValidator, Field, model_validator

from durableq.options import Duration, Name, Options, Text, checked

logger = logging.getLogger("durableq")

ENVIRONMENT_PREFIX: Final = "DURABLEQ_"
_ALSO_READ: Final = ("ENCRYPTION_KEYS", "HANDOVER")
"""What other modules read from the environment."""


class QueueSettings(TypedDict, total=False):
    """The options of a `DurableQ`, for type checkers; `QueueOptions` says what each means."""

    durability: Literal["full", "normal"]
    worker: bool
    queues: Sequence[str] | None
    concurrency: int
    threads: int
    processes: int
    process_memory: int | None
    lease: timedelta | float
    heartbeat: timedelta | float
    grace: timedelta | float
    max_crashes: int
    max_payload_bytes: int
    retain_finished: timedelta | float | None
    retain_dead: timedelta | float | None
    loop_stall_warning: timedelta | float
    redact: Sequence[str]
    allow_network_filesystem: bool
    sqlite_with_wal_bug: Literal["allow", "refuse"]


def _redactable(name: str) -> str:
    if not name.isascii() or not any(character.isalnum() for character in name):
        raise ValueError(
            f"expected names of ASCII letters and digits, got {name!r}; declare such an argument by "
            "Annotated[..., Secret]"
        )
    return name


class QueueOptions(Options):
    """How a `DurableQ` stores and runs jobs."""

    durability: Literal["full", "normal"] = "full"
    """``full``: fsynced before ``add_task`` answers. ``normal``: survives the process, not a power cut."""
    worker: bool = True
    """False: only add jobs here; other processes run them."""
    queues: tuple[Name, ...] | None = None
    """The queues this worker serves; None: all."""
    concurrency: Annotated[int, Field(ge=1, le=100_000)] = 64
    """How many ``async def`` jobs run at once on the event loop."""
    threads: Annotated[int, Field(ge=1, le=10_000)] = 40
    """How many ``def`` jobs run at once, in threads of their own: as many as Starlette has for its background tasks."""
    processes: Annotated[int, Field(ge=1, le=1_000)] = Field(default_factory=lambda: os.cpu_count() or 1)
    """How many jobs of tasks with ``runner="process"`` run at once, each in a child process."""
    process_memory: Annotated[int, Field(ge=256 * 1024 * 1024)] | None = None
    """Address space of such a child, in bytes, of which an idle one takes about 120 MiB; None: no limit of ours."""
    lease: Duration = timedelta(seconds=30)
    """How long after its event loop last moved a worker still owns its jobs."""
    heartbeat: Duration = timedelta(seconds=5)
    """How often a worker prolongs its lease."""
    grace: Annotated[timedelta, Field(ge=timedelta(0))] = timedelta(seconds=10)
    """How long running jobs may go on once the queue is stopping."""
    max_crashes: Annotated[int, Field(ge=1)] = 3
    """A job that was running this often when its process died is dead."""
    max_payload_bytes: Annotated[int, Field(ge=1, le=64 * 1024 * 1024)] = 1024 * 1024
    """Largest encoded arguments, and largest stored result."""
    retain_finished: Duration | None = timedelta(days=7)
    """How long succeeded and cancelled jobs are kept; None: for ever."""
    retain_dead: Duration | None = None
    """How long dead letters are kept; None: for ever."""
    redact: tuple[Annotated[Text, AfterValidator(_redactable)], ...] = ()
    """Names under which values are hidden wherever they are shown, beside those that say so (password, token, ...).

    Of arguments, headers, keys of objects; whatever their case and separators. In the whole process. ASCII names: those
    of other letters have no case and separators to look past; declare such arguments by ``Annotated[..., Secret]``.
    """
    loop_stall_warning: Duration = timedelta(seconds=10)
    """Warn when the event loop has not moved for so long."""
    allow_network_filesystem: bool = False
    """True: open a file on NFS, SMB and the like all the same. SQLite's locks do not hold there."""
    sqlite_with_wal_bug: Literal["allow", "refuse"] = "allow"
    """``refuse``: do not start on a SQLite with the WAL-reset bug (before 3.51.3, except 3.50.7+ and 3.44.6+).

    durableq's own checkpoints cannot meet it; those of other programs, on a file that is shared with them, can.
    """

    @model_validator(mode="after")
    def _lease_outlives_heartbeats(self) -> Self:
        if self.lease < 2 * self.heartbeat:
            raise ValueError(f"expected lease to be at least two heartbeats ({2 * self.heartbeat}), got {self.lease}")
        return self


def queue_options(given: Mapping[str, Any], environment: Mapping[str, str]) -> QueueOptions:
    """Build settings from what the code gave and, below that, from the environment.

    Raises `ConfigurationError` that names the setting, what was expected and what came.
    """
    return checked(QueueOptions, {**_from_environment(environment), **given})


def warn_of_misspelt(environment: Mapping[str, str]) -> None:
    """Log which variables were probably meant for us, and are not read. Others of our prefix may be the app's own."""
    known = [name.upper() for name in QueueOptions.model_fields] + list(_ALSO_READ)
    given = [name.removeprefix(ENVIRONMENT_PREFIX) for name in environment if name.startswith(ENVIRONMENT_PREFIX)]
    meant = {name: get_close_matches(name, known, n=1, cutoff=0.8) for name in sorted(given) if name not in known}
    hints = [
        f"{ENVIRONMENT_PREFIX}{name} (did you mean {ENVIRONMENT_PREFIX}{nearest[0]}?)"
        for name, nearest in meant.items()
        if nearest
    ]
    if hints:
        logger.warning("environment variables that durableq does not know, and ignores: %s", ", ".join(hints))


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in QueueOptions.model_fields:
        text = environment.get(ENVIRONMENT_PREFIX + name.upper())
        if text is None:
            continue
        if name in ("queues", "redact"):
            parts = tuple(part.strip() for part in text.split(",") if part.strip())
            found[name] = parts or (None if name == "queues" else ())  # no queues means all
        else:
            found[name] = _seconds_or_text(text)
    return found


def _seconds_or_text(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
