"""Makes jobs: a call, checked and encoded, with what its task's options make of it. No I/O."""

import hashlib
import json
from collections.abc import Callable, Mapping
from datetime import UTC, timedelta
from typing import Any

from durableq.clock import Clock, to_datetime, to_micros
from durableq.models import PLAIN, Job, JobExtras, JobState, UniqueClaim, derived_job_id, new_job_id
from durableq.options import Unique
from durableq.registry import AnyTask, Registry


class JobMaker:
    """Turns calls of the tasks of one registry into jobs."""

    def __init__(self, *, registry: Registry, clock: Clock, max_payload_bytes: int) -> None:
        self._registry = registry
        self._clock = clock
        self.max_payload_bytes = max_payload_bytes

    def new(
        self,
        fn: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        *,
        headers: Mapping[str, str] | None = None,
    ) -> Job[Any]:
        """Check and encode a call, and return the job that it would be; nothing is stored yet.

        ``headers`` are inherited, below those of the task. Raises `InvalidTask`, `InvalidArguments`.
        """
        task = self._registry.task_for(fn)
        settings = task.settings
        args_json = task.codec.encode(args, kwargs, self.max_payload_bytes)
        now = self._clock.wall()
        created_at = run_at = to_datetime(now)
        if settings.delay is not None:
            run_at = created_at + settings.delay
        elif settings.run_at is not None:
            run_at = settings.run_at.astimezone(UTC)
        extras = PLAIN
        job_id = None
        if headers or not settings.is_plain or settings.retry.name is not None:
            extras = _extras(task, args_json, now, headers or {})
            if settings.idempotency_key is not None:
                job_id = derived_job_id(task.name, settings.idempotency_key)
        return Job(
            id=job_id or new_job_id(now),
            task=task.name,
            queue=settings.queue,
            priority=settings.priority,
            state=JobState.SCHEDULED if run_at > created_at else JobState.QUEUED,
            args_json=args_json,
            max_attempts=settings.max_attempts,
            created_at=created_at,
            run_at=run_at,
            extras=extras,
        )


def _extras(task: AnyTask, args_json: str, now: int, inherited: Mapping[str, str]) -> JobExtras:
    settings = task.settings
    return JobExtras(
        expires_at=_after(now, settings.expires),
        deadline_at=_after(now, settings.deadline),
        timeout=settings.timeout_micros,
        result_ttl=None if settings.result_ttl is None else to_micros(settings.result_ttl),
        unique=_claim(task, args_json, now),
        is_idempotent=settings.idempotency_key is not None,
        tags=settings.tags,
        headers={**inherited, **settings.headers},
        retry=settings.retry.name,
    )


def _after(now: int, duration: timedelta | None) -> int | None:
    return None if duration is None else now + to_micros(duration)


def _claim(task: AnyTask, args_json: str, now: int) -> UniqueClaim | None:
    unique = task.settings.unique
    if unique is None:
        return None
    if isinstance(unique, str):
        unique = Unique(key=unique)
    parts = [task.name, unique.key if unique.key is not None else _digest(args_json, unique.args)]
    if unique.period is not None:
        parts.append(str(now // to_micros(unique.period)))
    # As JSON, for names and keys may hold any separator.
    return UniqueClaim(json.dumps(parts, ensure_ascii=False), unique.covers, unique.on_conflict)


def _digest(args_json: str, names: Any) -> str:
    """Name a set of arguments by a hash: of the same values, whatever their order, it is the same."""
    values = json.loads(args_json)
    if names is not None:
        values = {name: values[name] for name in names if name in values}
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:32]
