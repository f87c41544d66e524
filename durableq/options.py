"""Options of tasks, validated together when they are declared. Durations are `timedelta`, or a number of seconds."""

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cached_property
from typing import Annotated, Any, Final, Literal, Self, TypedDict, TypeVar

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from durableq.clock import to_micros
from durableq.errors import ConfigurationError, near
from durableq.models import COVERS, JobState, OnConflict
from durableq.retry import DEFAULT_POLICY, ExceptionTypes, RetryPolicy
from durableq.words import MEANT_BY

Name = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")]
"""Of a queue: up to 200 characters, none of them a control character."""
LONGEST: Final = timedelta(days=36_525)
"""A hundred years: what is counted from now then still fits a datetime."""
Duration = Annotated[timedelta, Field(gt=timedelta(0), le=LONGEST)]
Key = Annotated[str, Field(min_length=1, max_length=1_000)]
Priority = Annotated[int, Field(ge=-1_000_000, le=1_000_000)]

_M = TypeVar("_M", bound=BaseModel)


class Options(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)


WAITING: Final = frozenset({JobState.BLOCKED, JobState.SCHEDULED, JobState.QUEUED})
UNFINISHED: Final = WAITING | {JobState.RUNNING}
RunnerName = Literal["loop", "thread", "process"]
Callback = Callable[..., Any]


class _PlainUnique(Options):
    key: Key | None
    period: Annotated[timedelta, Field(le=LONGEST)] | None


@dataclass(frozen=True)
class Unique:
    """What makes two jobs of a task the same, and what to do with the second.

    ``args``: names of the arguments that count (None: all). ``period``: the key is new in each such stretch of
    time since 1970, UTC. ``states``: where the first one must be to stand in the way; the waiting states always
    count, by default the running one too. ``on_conflict``: "return" the job that is there, "replace" its arguments,
    priority and time as long as it waits, or "raise" `DuplicateJob`. ``key``: a text in place of the arguments.
    Raises `ConfigurationError`.
    """

    args: Sequence[str] | None = None
    period: timedelta | float | None = None
    states: Collection[JobState | str] = UNFINISHED
    on_conflict: OnConflict = "return"
    key: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.args, str):
            raise ConfigurationError(f"expected Unique(args=...) to be a list of names, got the text {self.args!r}")
        if self.args is not None and self.key is not None:
            raise ConfigurationError("expected Unique(args=...) or Unique(key=...), got both")
        plain = checked(_PlainUnique, {"key": self.key, "period": self.period})
        object.__setattr__(self, "period", plain.period)  # seconds are a duration from now on
        if plain.period is not None and plain.period <= timedelta(0):
            raise ConfigurationError(f"expected Unique(period=...) to be longer than nothing, got {self.period}")
        if self.on_conflict not in ("return", "replace", "raise"):
            raise ConfigurationError(
                f"expected on_conflict to be 'return', 'replace' or 'raise', got {self.on_conflict!r}"
            )
        known = {str(state) for state in JobState}
        for state in self.states:
            if str(state) not in known:
                raise ConfigurationError(f"unknown state {str(state)!r} in Unique(states=...){near(str(state), known)}")

    @cached_property
    def covers(self) -> int:
        """The bits of the states that count beside the waiting ones."""
        return sum(COVERS.get(state, 0) for state in {JobState(one) for one in self.states})


class TaskSettings(TypedDict, total=False):
    """The options of a task that each call may change, for type checkers; `TaskOptions` says what each means."""

    queue: str
    priority: int
    max_attempts: int
    retry: RetryPolicy
    delay: timedelta | float | None
    run_at: datetime | None
    expires: timedelta | float | None
    timeout: timedelta | float | None
    deadline: timedelta | float | None
    unique: str | Unique | None
    idempotency_key: str | None
    result_ttl: timedelta | float | None
    tags: Sequence[str]
    headers: Mapping[str, str]


class RegistrationSettings(TaskSettings, total=False):
    """The options of a task, for type checkers: those that each call may change, and those that are code."""

    retry_on: ExceptionTypes
    give_up_on: ExceptionTypes
    runner: RunnerName | None
    on_success: Callback | None
    on_retry: Callback | None
    on_dead: Callback | None


Text = Annotated[str, Field(min_length=1, max_length=200)]
_Exceptions = tuple[type[BaseException], ...]
CODE_OPTIONS: Final = frozenset({"retry_on", "give_up_on", "runner", "on_success", "on_retry", "on_dead"})
"""What belongs to the task as it is deployed: no row can hold it, so no single call can change it."""


CALLBACKS: Final = {"on_success": ("job",), "on_retry": ("job", "error"), "on_dead": ("job", "error")}
"""What each is called with."""


def _as_tuple(value: Any) -> Any:
    return (value,) if isinstance(value, type) else value


def require_callable_with(function: Callback, *given: str) -> None:
    """Raise `ConfigurationError` for a function that cannot be called so: it would be found out when a job dies."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # made by code that is not Python's; nobody can tell
        return
    try:
        signature.bind(*given)
    except TypeError as error:
        bare = [one.replace(annotation=one.empty, default=one.empty) for one in signature.parameters.values()]
        bare_signature = signature.replace(parameters=bare, return_annotation=signature.empty)
        came = f"{getattr(function, '__qualname__', repr(function))}{bare_signature}"
        raise ConfigurationError(f"expected a callable that takes ({', '.join(given)}), got {came}: {error}") from None


def _called_with(*given: str) -> AfterValidator:
    def check(function: Callback | None) -> Callback | None:
        if function is not None:
            require_callable_with(function, *given)
        return function

    return AfterValidator(check)


def _a_policy(value: Any) -> Any:
    if isinstance(value, RetryPolicy | dict):
        return value
    hint = f"; how often it is tried is max_attempts={value}" if type(value) is int and value > 0 else ""
    raise ValueError(f"expected a RetryPolicy, got {value!r}{hint}")


class TaskOptions(Options):
    """How jobs of a task are queued, run and retried. Durations are `timedelta` or seconds."""

    queue: Name = "default"
    priority: Priority = 0
    """Higher runs first within a queue."""
    max_attempts: Annotated[int, Field(ge=1, le=1_000_000)] = 5
    """Total tries, the first included."""
    retry: Annotated[RetryPolicy, BeforeValidator(_a_policy)] = DEFAULT_POLICY
    delay: Annotated[timedelta, Field(ge=timedelta(0), le=LONGEST)] | None = None
    """Earliest start, counted from ``add_task``."""
    run_at: AwareDatetime | None = None
    """Earliest start, as a moment."""
    expires: Duration | None = None
    """Schedule to start: a job not started so long after ``add_task`` is cancelled."""
    timeout: Duration | None = None
    """Start to close: longest duration of one attempt. It then fails with `AttemptTimedOut`, and is retried."""
    deadline: Duration | None = None
    """Schedule to close: so long after ``add_task`` the job is dead, whatever its attempts."""
    unique: Key | Unique | None = None
    """A key that only one unfinished job of the task may hold, or a `Unique` that says more."""
    idempotency_key: Key | None = None
    """Jobs of the task with one key are one job: its id is derived from it. Until it is pruned."""
    result_ttl: Annotated[timedelta, Field(ge=timedelta(0), le=LONGEST)] | None = None
    """How long the return value is kept; 0: not at all; None: as long as the job."""
    tags: Annotated[tuple[Text, ...], Field(max_length=50)] = ()
    """Words to find the job by."""
    headers: Mapping[Text, Annotated[str, Field(max_length=4_000)]] = Field(default_factory=dict, max_length=50)
    """Texts that ride along beside the arguments, for middleware: a trace context, a tenant."""
    retry_on: Annotated[_Exceptions, BeforeValidator(_as_tuple)] = ()
    """Retry only these exception types."""
    give_up_on: Annotated[_Exceptions, BeforeValidator(_as_tuple)] = ()
    """Never retry these exception types."""
    runner: RunnerName | None = None
    """Where it runs; None: ``async def`` on the event loop, ``def`` in a thread. "process": a child process."""
    on_success: Annotated[Callback | None, _called_with(*CALLBACKS["on_success"])] = None
    """Called with the `Job` once its success is stored. These three may be async; what they raise is logged.

    The job has its arguments, result, error, attempt, tags and headers. What is not in it, the times of its attempt and
    its limits, is got by ``await dq.get(job.id)``.
    """
    on_retry: Annotated[Callback | None, _called_with(*CALLBACKS["on_retry"])] = None
    """Called with the `Job` and the exception once a retry is stored."""
    on_dead: Annotated[Callback | None, _called_with(*CALLBACKS["on_dead"])] = None
    """Called with the `Job` and the exception once its death is stored."""

    @model_validator(mode="after")
    def _one_start(self) -> Self:
        if self.delay is not None and self.run_at is not None:
            raise ValueError("expected delay or run_at, got both")
        return self

    @model_validator(mode="after")
    def _one_identity(self) -> Self:
        if self.unique is not None and self.idempotency_key is not None:
            raise ValueError("expected unique or idempotency_key, got both")
        return self

    @model_validator(mode="after")
    def _start_before_the_end(self) -> Self:
        for name, limit in (("expires", self.expires), ("deadline", self.deadline)):
            if limit is not None and self.delay is not None and self.delay >= limit:
                raise ValueError(f"expected delay to be shorter than {name} ({limit}), got {self.delay}")
        return self

    @model_validator(mode="after")
    def _retried_or_not(self) -> Self:
        both = [one.__qualname__ for one in self.retry_on if one in self.give_up_on]
        if both:
            raise ValueError(f"expected {both[0]} in retry_on or give_up_on, got it in both")
        return self

    @cached_property
    def policy(self) -> RetryPolicy:
        """The retry policy, with ``retry_on`` and ``give_up_on`` in it."""
        if not self.retry_on and not self.give_up_on:
            return self.retry
        return replace(
            self.retry,
            retry_on=self.retry_on or self.retry.retry_on,
            give_up_on=(*self.give_up_on, *_as_tuple(self.retry.give_up_on)),
        )

    @cached_property
    def is_plain(self) -> bool:
        """Whether jobs have nothing that would stand in `JobExtras`."""
        return self.model_fields_set.isdisjoint(_EXTRA_OPTIONS)

    @cached_property
    def timeout_micros(self) -> int | None:
        return None if self.timeout is None else to_micros(self.timeout)


def require_effect(settings: TaskOptions, given: Collection[str]) -> None:
    """Raise `ConfigurationError` for a limit that can do nothing, as the deadline comes first.

    Only for two that were given together: the deadline of a single call goes before the limits of its task.
    """
    timeout, expires, deadline = settings.timeout, settings.expires, settings.deadline
    if deadline is None or "deadline" not in given:
        return
    if "timeout" in given and timeout is not None and timeout > deadline:
        raise ConfigurationError(f"expected timeout to be no longer than deadline ({deadline}), got {timeout}")
    if "expires" in given and expires is not None and expires >= deadline:
        raise ConfigurationError(f"expected expires to be shorter than deadline ({deadline}), got {expires}")


_EXTRA_OPTIONS: Final = frozenset(
    {"expires", "timeout", "deadline", "unique", "idempotency_key", "result_ttl", "tags", "headers"}
)


def option_meant_by(word: str) -> str | None:
    """Return the option of tasks that a word names, here or in another queue; None for none."""
    return word if word in TaskOptions.model_fields else MEANT_BY.get(word.lstrip("_"))  # arq's begin with one


def checked(model: type[_M], given: Mapping[str, Any]) -> _M:
    """Build ``model`` from ``given``, or raise `ConfigurationError` in plain words."""
    try:
        return model(**given)
    except ValidationError as error:
        known = model.model_fields.keys()
        raise ConfigurationError("; ".join(_plain(one, known) for one in error.errors())) from None


def _elsewhere(word: str, known: Any) -> str:
    meant = option_meant_by(word)
    if meant not in known:
        return ""
    counts = " It counts the first try too" if meant == "max_attempts" else ""
    return f", did you mean {meant!r}?{counts}"


def _plain(error: Any, known: Any) -> str:
    if error["type"] == "extra_forbidden":
        word = str(error["loc"][0])
        return (
            f"unknown option {word!r}{_elsewhere(word, known) or near(word, known) or '; known: ' + ', '.join(known)}"
        )
    if not error["loc"]:  # a cross-field check: its text says it all
        return str(error["ctx"]["error"])
    name = ".".join(str(part) for part in error["loc"][:1])
    if error["type"] == "value_error":
        return f"option {name!r}: {error['ctx']['error']}"
    message = error["msg"][0].lower() + error["msg"][1:]
    return f"option {name!r}: {message}, got {error['input']!r}"
