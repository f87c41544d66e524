"""One attempt while it runs: what the executor knows of it, and what the task sees by ``current_job()``."""

import asyncio
import json
import math
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic_core import from_json

from durableq.clock import Clock
from durableq.codec import encode_result
from durableq.encryption import KeyRing
from durableq.engine.decisions import redactor_of, storable
from durableq.engine.follow_ups import Allowance, has_ended
from durableq.engine.notes import LINE_CHARACTERS, LOG_LINES, LOOKED_AT_CHARACTERS, Notebook
from durableq.engine.runners import Slots
from durableq.jobs import JobMaker
from durableq.models import Job, Lease, Progress
from durableq.options import TaskOptions, checked
from durableq.redaction import Redactor
from durableq.registry import AnyTask
from durableq.secret_names import may_name_secrets, secret_arguments
from durableq.storage.protocol import Notes

Complete = Callable[[Any, Lease, str | None, Sequence[Job[Any]], Notes], Awaitable[None]]
"""(transaction of the application, lease, result, follow-up jobs, what it said): settle the lease in it."""


@dataclass(frozen=True, slots=True)
class Services:
    """What all attempts of a worker share."""

    clock: Clock
    maker: JobMaker
    notebook: Notebook
    complete: Complete
    max_result_bytes: int


@dataclass(slots=True, eq=False)
class RunningJob:
    """Implements `durableq.context.CurrentJob`. Made for every start, so it computes nothing before it is asked."""

    lease: Lease
    """As claimed; with the arguments in clear once they are to be used."""
    definition: AnyTask
    slots: Slots
    _services: Services
    asyncio_task: asyncio.Task[None] | None = None
    has_begun: bool = False
    given_up: bool = False
    """We cancelled it ourselves; what it still does has no outcome."""
    cancel_asked: bool = False
    """Somebody wants the job's end."""
    timed_out: float | None = None
    """Its limit in seconds, once that is over."""
    deadline_is_the_limit: bool = False
    """The job's deadline comes before the attempt's timeout."""
    completes_itself: bool = False
    """It has written its success in a transaction of its own."""
    completed_with: str | None = None
    """The result that it wrote then, as it is stored."""
    _follow_ups: list[Job[Any]] | None = None
    _allowance: Allowance | None = None
    _is_closed: bool = False
    _settings: dict[str, Any] | None = None
    _headers: MutableMapping[str, str] | None = None
    _lines: int = 0
    _redactor: Redactor | None = None

    @property
    def settings(self) -> Mapping[str, Any]:
        """What the row says beside the columns; see `JobExtras`."""
        if self._settings is None:
            self._settings = {} if self.lease.settings is None else from_json(self.lease.settings)
        return self._settings

    # -- what the task sees --------------------------------------------------------------------------------

    @property
    def function(self) -> Callable[..., Any]:
        return self.definition.function

    @property
    def id(self) -> str:
        return self.lease.id

    @property
    def task(self) -> str:
        return self.lease.task

    @property
    def queue(self) -> str:
        return self.lease.queue

    @property
    def attempt(self) -> int:
        return self.lease.attempt

    @property
    def max_attempts(self) -> int:
        return self.lease.max_attempts

    @property
    def args(self) -> Mapping[str, Any]:
        decoded: dict[str, Any] = json.loads(self.lease.args_json)
        return decoded

    @property
    def idempotency_key(self) -> str:
        return self.lease.id

    @property
    def tags(self) -> tuple[str, ...]:
        return tuple(self.settings.get("tags", ()))

    @property
    def headers(self) -> MutableMapping[str, str]:
        if self._headers is None:
            self._headers = dict(self.settings.get("headers", {}))
        return self._headers

    @property
    def cancelled(self) -> bool:
        return self.cancel_asked or self.given_up or self.timed_out is not None

    def progress(self, done: float, total: float | None = None, message: str | None = None) -> None:
        text = None if message is None else self._storable(str(message))
        done, total = float(done), None if total is None else float(total)
        if math.isfinite(done):  # what is not says nothing, and JSON has no word for it
            known = total is not None and math.isfinite(total)
            self._services.notebook.progress(self.lease.key, Progress(done, total if known else None, text))

    def log(self, message: str) -> None:
        self._lines += 1
        if self._lines > LOG_LINES:
            return
        text = self._storable(str(message)) if self._lines < LOG_LINES else f"{LOG_LINES:,} lines; no more is kept"
        self._services.notebook.log(self.lease.key, self._lines, self._services.clock.wall(), text)

    def add_task(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Job[Any]:
        if self._is_closed:
            raise has_ended(self.id)
        job = self._services.maker.new(fn, args, kwargs, headers=self._inherited())
        if self._allowance is None:
            self._allowance = Allowance()
        self._allowance.take(job)
        self._follow(job)
        return job

    def complete_within(self, transaction: Any, *, result: Any = None) -> Awaitable[None]:
        result_json, _ = encode_result(result, self._services.max_result_bytes)
        if self.settings.get("result_ttl") == 0:
            result_json = None
        keys = self._services.maker.keys
        if keys is not None and result_json is not None:
            result_json = keys.seal(result_json, self.id, self.task, "result")
        self.completed_with = result_json
        self.completes_itself = True  # from here on it is the commit that counts, not what the task returns or raises
        notes = self._services.notebook.of(self.lease.key)
        return self._services.complete(transaction, self.lease, result_json, self.close(), notes)

    # -- for the engine ------------------------------------------------------------------------------------

    def open_args(self, keys: KeyRing) -> None:
        """Decrypt the arguments, for the task and all that hear of it later. Raises `CannotOpen`."""
        lease = self.lease
        self.lease = lease._replace(args_json=keys.open(lease.args_json, lease.id, lease.task, "args"))

    def close(self) -> tuple[Job[Any], ...]:
        """Take no more follow-up jobs, and return those that came."""
        self._is_closed = True
        return tuple(self._follow_ups or ())

    def add_job(self, job: Job[Any]) -> None:
        """Take in a follow-up job that was made in a child process, which may not have the keys."""
        self._follow(self._services.maker.sealed(job))

    def _storable(self, text: str) -> str:
        """Return what the task says as it is kept: without its secrets, which stand in clear nowhere but in arguments.

        What only looks like a secret is hidden when it is shown, so that a job without secrets pays nothing here.
        """
        redactor = self._redactor
        if redactor is None:
            has_secrets = secret_arguments(self.function) or may_name_secrets(self.lease.args_json)
            redactor = self._redactor = redactor_of(self.function, self) if has_secrets else Redactor()
        if redactor.hides_values:
            text = redactor.text(text[:LOOKED_AT_CHARACTERS])
        return storable(text[:LINE_CHARACTERS])

    def _follow(self, job: Job[Any]) -> None:
        if self._follow_ups is None:
            self._follow_ups = []
        self._follow_ups.append(job)

    def facts(self) -> dict[str, Any]:
        """What a child process is told of the job."""
        return {
            "id": self.id,
            "task": self.task,
            "queue": self.queue,
            "attempt": self.attempt,
            "max_attempts": self.max_attempts,
            "idempotency_key": self.idempotency_key,
            "tags": list(self.tags),
            "headers": dict(self.headers),
        }

    def _inherited(self) -> Mapping[str, str] | None:
        """The headers for follow-up jobs, without parsing anything for the many jobs that have none."""
        if self._headers is None:
            return None if self.lease.settings is None else self.settings.get("headers")
        return checked(TaskOptions, {"headers": self._headers}).headers  # whatever was put in there
