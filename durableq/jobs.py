"""Makes jobs: a call, checked and encoded, with what its task's options make of it. No I/O."""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, timedelta
from typing import Any

from durableq.clock import Clock, to_datetime, to_micros
from durableq.encryption import KeyRing, is_sealed, with_ring
from durableq.ids import derived_job_id, new_job_id
from durableq.models import PLAIN, Job, JobExtras, JobState, UniqueClaim
from durableq.options import Unique
from durableq.registry import AnyTask, Registry


class JobMaker:
    """Turns calls of the tasks of one registry into jobs."""

    def __init__(self, *, registry: Registry, clock: Clock, max_payload_bytes: int) -> None:
        self._registry = registry
        self._clock = clock
        self.keys = registry.keys
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
            extras = _extras(task, args_json, now, headers or {}, self.keys)
            if settings.idempotency_key is not None:
                job_id = derived_job_id(task.name, settings.idempotency_key)
        if job_id is None:
            job_id = new_job_id(now)
        if self.keys is not None:
            args_json, extras = _sealed(args_json, extras, job_id, task.name, self.keys)
        return Job(
            id=job_id,
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

    def sealed(self, job: Job[Any]) -> Job[Any]:
        """Return a job that was made in another process as this one would store it: encrypted, if there are keys."""
        if self.keys is None:
            return job
        args_json, extras = _sealed(job.args_json, job.extras, job.id, job.task, self.keys)
        return replace(job, args_json=args_json, extras=extras)


def _sealed(args_json: str, extras: JobExtras, job_id: str, task: str, keys: KeyRing) -> tuple[str, JobExtras]:
    """Encrypt arguments; those that may meet others of the same id or key shall be comparable with them."""
    if not is_sealed(args_json):
        args_json = keys.seal(args_json, job_id, task, "args")
    if extras.is_idempotent or extras.unique is not None:
        extras = with_ring(extras, keys)
    return args_json, extras


def _extras(task: AnyTask, args_json: str, now: int, inherited: Mapping[str, str], keys: KeyRing | None) -> JobExtras:
    settings = task.settings
    return JobExtras(
        expires_at=_after(now, settings.expires),
        deadline_at=_after(now, settings.deadline),
        timeout=settings.timeout_micros,
        result_ttl=None if settings.result_ttl is None else to_micros(settings.result_ttl),
        unique=_claim(task, args_json, now, keys),
        is_idempotent=settings.idempotency_key is not None,
        tags=settings.tags,
        headers={**inherited, **settings.headers},
        retry=settings.retry.name,
    )


def _after(now: int, duration: timedelta | None) -> int | None:
    return None if duration is None else now + to_micros(duration)


def _claim(task: AnyTask, args_json: str, now: int, keys: KeyRing | None) -> UniqueClaim | None:
    unique = task.settings.unique
    if unique is None:
        return None
    if isinstance(unique, str):
        unique = Unique(key=unique)
    parts = [task.name, unique.key if unique.key is not None else _digest(args_json, unique.args, keys)]
    if unique.period is not None:
        parts.append(str(now // to_micros(unique.period)))
    made_of = () if unique.key is not None else task.codec.names if unique.args is None else tuple(unique.args)
    # As JSON, for names and keys may hold any separator.
    return UniqueClaim(json.dumps(parts, ensure_ascii=False), unique.covers, unique.on_conflict, made_of)


def _digest(args_json: str, names: Any, keys: KeyRing | None) -> str:
    """Name a set of arguments by a hash: of the same values, whatever their order, it is the same.

    Who reads the hash can find out arguments that can be guessed by hashing guesses, a telephone number for instance;
    with a key ring it is an HMAC, which tells them no more than which jobs are equal.
    """
    values = json.loads(args_json)
    if names is not None:
        values = {name: values[name] for name in names if name in values}
    text = json.dumps(values, sort_keys=True)
    return (keys.digest(text) if keys is not None and keys.encrypts else hashlib.sha256(text.encode()).hexdigest())[:32]
