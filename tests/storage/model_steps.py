"""What the steps of `test_model` are made of: jobs to be added, ends of attempts, rooms of workers.

Values are few and small, so that jobs get in each other's way, and so that a failure reads well.
"""

from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from typing import Any, Final, NamedTuple

import hypothesis.strategies as st

from durableq.clock import SECOND, from_datetime
from durableq.ids import derived_job_id
from durableq.models import (
    PLAIN,
    Cancelled,
    ClaimRequest,
    Dead,
    Failure,
    Job,
    JobExtras,
    JobState,
    Lane,
    Outcome,
    Released,
    Retried,
    Snoozed,
    Succeeded,
    UniqueClaim,
)


@dataclass(frozen=True)
class Wanted:
    """A job to be added. Durations are in seconds."""

    task: str = "a"
    queue: str = "one"
    priority: int = 0
    delay: int = 0
    max_attempts: int = 3
    expires: int | None = None
    deadline: int | None = None
    result_ttl: int | None = None
    unique: UniqueClaim | None = None
    idempotency_key: str | None = None
    args_json: str = "{}"

    def __repr__(self) -> str:
        told = [f"{one.name}={value!r}" for one in fields(self) if (value := getattr(self, one.name)) != one.default]
        return f"Wanted({', '.join(told)})"

    def job(self, number: int, now: datetime) -> Job[Any]:
        extras = JobExtras(
            expires_at=micros_after(now, self.expires),
            deadline_at=micros_after(now, self.deadline),
            result_ttl=None if self.result_ttl is None else self.result_ttl * SECOND,
            unique=self.unique,
            is_idempotent=self.idempotency_key is not None,
        )
        return Job(
            id=f"job-{number}" if self.idempotency_key is None else derived_job_id(self.task, self.idempotency_key),
            task=self.task,
            queue=self.queue,
            priority=self.priority,
            state=JobState.SCHEDULED if self.delay else JobState.QUEUED,
            args_json=self.args_json,
            max_attempts=self.max_attempts,
            created_at=now,
            run_at=now + timedelta(seconds=self.delay),
            extras=PLAIN if extras == PLAIN else extras,
        )


class Ending(NamedTuple):
    """How an attempt ends; ``delay`` is in seconds."""

    how: str
    delay: int | None = None

    def outcome(self, now: datetime) -> Outcome:
        run_at = micros_after(now, self.delay)
        match self.how:
            case "succeed":
                return Succeeded('{"done":true}')
            case "fail":
                return Retried(Failure("Fail", "", ""), run_at)
            case "crash":
                return Retried(Failure("Crash", "", ""), run_at, crashed=True)
            case "give up":
                return Dead(Failure("GiveUp", "", ""))
            case "stop":
                return Cancelled(Failure("Stop", "", ""))
            case "snooze":
                return Snoozed(run_at or 0)
            case _:
                return Released()


class Room(NamedTuple):
    """What a worker has room for."""

    limit: int = 50
    suspects: bool = True
    queues: tuple[str, ...] = ("one", "two")
    tasks: tuple[str, ...] = ("a", "b")

    @property
    def request(self) -> ClaimRequest:
        lanes = (Lane("loop", self.tasks, self.limit),) if self.limit else ()
        return ClaimRequest(self.queues, lanes, self.tasks if self.suspects else ())


def micros_after(now: datetime, seconds: int | None) -> int | None:
    return None if seconds is None else from_datetime(now) + seconds * SECOND


_ARGUMENTS: Final = st.sampled_from(["{}", '{"x":1}'])
_LIMITS: Final = st.sampled_from([None, 10, 60])
_PLAIN: Final = st.builds(
    Wanted,
    task=st.sampled_from(["a", "b"]),
    queue=st.sampled_from(["one", "two"]),
    priority=st.sampled_from([0, 1, -1]),
    delay=st.sampled_from([0, 10, 60]),
    max_attempts=st.sampled_from([3, 1]),
)
_LIMITED: Final = st.builds(
    Wanted,
    task=st.sampled_from(["a", "b"]),
    priority=st.sampled_from([0, 1]),
    delay=st.sampled_from([0, 10]),
    expires=_LIMITS,
    deadline=_LIMITS,
    result_ttl=_LIMITS,
).filter(lambda wanted: (wanted.expires, wanted.deadline, wanted.result_ttl) != (None, None, None))
_UNIQUE: Final = st.builds(
    Wanted,
    unique=st.builds(
        UniqueClaim,
        st.sampled_from(["k1", "k2"]),
        st.sampled_from([1, 0, 2, 4, 8, 15]),
        st.sampled_from(["return", "replace", "raise"]),
    ),
    priority=st.sampled_from([0, 1]),
    delay=st.sampled_from([0, 10]),
    max_attempts=st.sampled_from([3, 1]),
    expires=_LIMITS,
    args_json=_ARGUMENTS,
)
_IDEMPOTENT: Final = st.builds(Wanted, idempotency_key=st.sampled_from(["i1", "i2"]), args_json=_ARGUMENTS)
_SPECIAL: Final = _LIMITED | _UNIQUE | _IDEMPOTENT


def _some(wanted: st.SearchStrategy[Wanted]) -> st.SearchStrategy[list[Wanted]]:
    return st.lists(wanted, min_size=1, max_size=3)


SOME_JOBS: Final = _some(_PLAIN | _SPECIAL)
REQUESTS: Final = st.one_of(  # at once; were they mixed, it would depend on the moment which job comes first
    st.lists(SOME_JOBS, max_size=1),
    st.lists(_some(_PLAIN), max_size=3),
    st.lists(_some(_SPECIAL), max_size=3),
)
ENDINGS: Final = st.one_of(
    st.just(Ending("succeed")),
    st.builds(Ending, st.sampled_from(["fail", "crash"]), st.sampled_from([None, 0, 10, 60])),
    st.builds(Ending, st.just("snooze"), st.sampled_from([10, 0])),
    st.sampled_from([Ending("give up"), Ending("release"), Ending("stop")]),
)
ROOMS: Final = st.one_of(
    st.just(Room()),
    st.builds(
        Room,
        st.integers(0, 3),
        st.booleans(),
        st.sampled_from([("one", "two"), ("one",), ("two",)]),
        st.sampled_from([("a", "b"), ("a",), ("b",)]),
    ),
)
WORKERS: Final = st.sampled_from([0, 1])
ANY: Final = st.integers(0, 9)
"""Picks one of several, whatever their number."""
