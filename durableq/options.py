"""Settings, validated together before anything starts.

Each queue setting may come from the environment as ``DURABLEQ_<NAME>``; what the code says wins. Durations are
`timedelta`, or a number of seconds.
"""

import os
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Annotated, Any, Final, Literal, Self, TypedDict, TypeVar

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from durableq.errors import ConfigurationError, near
from durableq.retry import DEFAULT_POLICY, RetryPolicy

ENVIRONMENT_PREFIX: Final = "DURABLEQ_"

Name = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")]
"""Of a queue: up to 200 characters, none of them a control character."""
Duration = Annotated[timedelta, Field(gt=timedelta(0))]
Priority = Annotated[int, Field(ge=-1_000_000, le=1_000_000)]

_M = TypeVar("_M", bound=BaseModel)


class _Options(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)


class TaskSettings(TypedDict, total=False):
    """The options of a task, for type checkers; `TaskOptions` says what each means."""

    queue: str
    priority: int
    max_attempts: int
    retry: RetryPolicy
    delay: timedelta | float | None
    run_at: datetime | None


class QueueSettings(TypedDict, total=False):
    """The options of a `DurableQ`, for type checkers; `QueueOptions` says what each means."""

    durability: Literal["full", "normal"]
    worker: bool
    queues: Sequence[str] | None
    concurrency: int
    threads: int
    lease: timedelta | float
    heartbeat: timedelta | float
    grace: timedelta | float
    max_crashes: int
    max_payload_bytes: int
    retain_finished: timedelta | float | None
    retain_dead: timedelta | float | None
    loop_stall_warning: timedelta | float
    allow_network_filesystem: bool


class TaskOptions(_Options):
    """How jobs of a task are queued and retried."""

    queue: Name = "default"
    priority: Priority = 0
    """Higher runs first within a queue."""
    max_attempts: Annotated[int, Field(ge=1, le=1_000_000)] = 5
    """Total tries, the first included."""
    retry: RetryPolicy = DEFAULT_POLICY
    delay: Annotated[timedelta, Field(ge=timedelta(0))] | None = None
    """Earliest start, counted from ``add_task``."""
    run_at: AwareDatetime | None = None
    """Earliest start, as a moment."""

    @model_validator(mode="after")
    def _one_start(self) -> Self:
        if self.delay is not None and self.run_at is not None:
            raise ValueError("expected delay or run_at, got both")
        return self


class QueueOptions(_Options):
    """How a `DurableQ` stores and runs jobs."""

    durability: Literal["full", "normal"] = "full"
    """``full``: fsynced before ``add_task`` answers. ``normal``: survives the process, not a power cut."""
    worker: bool = True
    """False: only add jobs here; other processes run them."""
    queues: tuple[Name, ...] | None = None
    """The queues this worker serves; None: all."""
    concurrency: Annotated[int, Field(ge=1, le=100_000)] = 64
    """How many ``async def`` jobs run at once on the event loop."""
    threads: Annotated[int, Field(ge=1, le=10_000)] = Field(default_factory=lambda: (os.cpu_count() or 1) + 4)
    """How many ``def`` jobs run at once, in threads of their own."""
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
    loop_stall_warning: Duration = timedelta(seconds=10)
    """Warn when the event loop has not moved for so long."""
    allow_network_filesystem: bool = False
    """True: open a file on NFS, SMB and the like all the same. SQLite's locks do not hold there."""

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


def checked(model: type[_M], given: Mapping[str, Any]) -> _M:
    """Build ``model`` from ``given``, or raise `ConfigurationError` in plain words."""
    try:
        return model(**given)
    except ValidationError as error:
        known = model.model_fields.keys()
        raise ConfigurationError("; ".join(_plain(one, known) for one in error.errors())) from None


def _from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in QueueOptions.model_fields:
        text = environment.get(ENVIRONMENT_PREFIX + name.upper())
        if text is None:
            continue
        if name == "queues":  # an empty list means all
            found[name] = tuple(part.strip() for part in text.split(",") if part.strip()) or None
        else:
            found[name] = _seconds_or_text(text)
    return found


def _seconds_or_text(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _plain(error: Any, known: Any) -> str:
    if error["type"] == "extra_forbidden":
        word = str(error["loc"][0])
        return f"unknown option {word!r}{near(word, known) or '; known: ' + ', '.join(known)}"
    if not error["loc"]:  # a cross-field check: its text says it all
        return str(error["ctx"]["error"])
    name = ".".join(str(part) for part in error["loc"][:1])
    message = error["msg"][0].lower() + error["msg"][1:]
    return f"option {name!r}: {message}, got {error['input']!r}"
