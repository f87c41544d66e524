"""What an application hangs on its jobs: exception handlers, callbacks, middleware, events."""

import asyncio
import contextlib
import inspect
import logging
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import Any

import anyio.to_thread
import pytest
from fastapi import Depends
from tenacity import wait_fixed

from durableq import (
    AttemptFailed,
    AttemptTimedOut,
    ConfigurationError,
    CurrentJob,
    DurableQ,
    Job,
    JobState,
    NoCurrentJob,
    PermanentFailure,
    Retry,
    RetryPolicy,
    Snooze,
    WorkerDied,
    call,
    current_job,
)
from durableq.engine import hooks
from durableq.events import JobCancelled, JobDied, JobReleased, JobRetried, JobSnoozed, JobStarted, JobSucceeded
from durableq.testing import ManualClock
from tests.engine.helpers import AT_ONCE, Gate, collect, finished, in_state, sql
from tests.engine.processes import ROOT, program
from tests.support import eventually, named

OUTCOMES = (JobSucceeded, JobRetried, JobDied, JobCancelled, JobSnoozed, JobReleased)

Told = list[tuple[str, Job[Any], BaseException | None]]


def _count(told: list[Any], number: int) -> bool:
    return len(told) == number


async def are_told(told: list[Any], number: int) -> None:
    """Wait until so many have been told; nothing more may come."""
    await eventually(partial(_count, told, number))


# -- exception handlers --------------------------------------------------------------------------------------


class AppError(Exception):
    pass


class MailError(AppError):
    pass


class BounceError(MailError):
    pass


@pytest.mark.parametrize(
    ("raised", "heard_by"),
    [(BounceError, "mail"), (MailError, "mail"), (AppError, "app"), (ValueError, "any"), (SystemExit, None)],
)
async def test_the_handler_of_the_nearest_type_hears_of_a_failure(
    dq: DurableQ, raised: type[BaseException], heard_by: str | None
) -> None:
    told: Told = []

    # The order in which they are registered is of no interest.
    @dq.exception_handler(Exception)
    async def any_error(job: Job[Any], error: Exception) -> None:
        told.append(("any", job, error))

    @dq.exception_handler(MailError)
    async def mail_error(job: Job[Any], error: MailError) -> None:
        told.append(("mail", job, error))

    @dq.exception_handler(AppError)
    async def app_error(job: Job[Any], error: AppError) -> None:
        told.append(("app", job, error))

    @dq.task(name="fail", max_attempts=1)
    async def fail() -> None:
        raise raised("no")

    async with dq.running():
        job = await finished(dq, await dq.add_task(fail))
        await are_told(told, 0 if heard_by is None else 1)
    assert [name for name, _, _ in told] == ([] if heard_by is None else [heard_by])
    assert all(one.id == job.id and type(error) is raised for _, one, error in told)


@pytest.mark.parametrize("form", ["async", "sync"])
async def test_a_handler_hears_of_each_failed_attempt_and_of_the_death_once_it_is_stored(
    dq: DurableQ, form: str
) -> None:
    told: Told = []
    seen_in_the_file: list[tuple[int, JobState]] = []
    errors = [ConnectionError(f"try {number}") for number in (1, 2, 3)]

    @dq.task(name="fail", max_attempts=3, retry=RetryPolicy(wait=wait_fixed(0.2)), tags=["a"], headers={"tenant": "t"})
    async def fail() -> None:
        raise errors[current_job().attempt - 1]

    async def handle_async(job: Job[Any], error: ConnectionError) -> None:
        stored = await dq.get(job)
        seen_in_the_file.append((stored.attempt, stored.state))
        told.append(("heard", job, error))

    def handle_sync(job: Job[Any], error: ConnectionError) -> None:
        assert threading.current_thread() is not threading.main_thread()
        [row] = sql(database_of(dq), "SELECT attempt, state FROM durableq_jobs")
        seen_in_the_file.append(row)
        told.append(("heard", job, error))

    dq.exception_handler(ConnectionError)(handle_async if form == "async" else handle_sync)
    async with dq.running():
        await finished(dq, await dq.add_task(fail))
        await are_told(told, 3)
    states = [JobState.SCHEDULED, JobState.SCHEDULED, JobState.DEAD]
    assert seen_in_the_file == list(zip((1, 2, 3), states, strict=True))
    assert [error for _, _, error in told] == errors, "the exception itself, not a copy"
    for number, (_, job, error) in enumerate(told, start=1):
        assert (job.attempt, job.state, job.max_attempts) == (number, states[number - 1], 3)
        assert job.error is not None
        assert (job.error.type, job.error.message) == ("ConnectionError", str(error))
        assert (job.task, job.tags, job.headers) == ("fail", ("a",), {"tenant": "t"})
        if job.state is JobState.SCHEDULED:
            assert job.run_at > job.created_at


def database_of(dq: DurableQ) -> Path:
    return Path(dq._name)


async def test_handlers_hear_of_deaths_that_no_code_of_the_task_has_caused(database: Path) -> None:
    clock = ManualClock()
    dq = DurableQ(database, clock=clock)
    told: Told = []

    @dq.exception_handler(AttemptTimedOut)
    async def timed_out(job: Job[Any], error: AttemptTimedOut) -> None:
        told.append(("timed out", job, error))

    @dq.exception_handler(AttemptFailed)
    async def failed(job: Job[Any], error: AttemptFailed) -> None:
        told.append(("failed", job, error))

    @dq.task(name="work", max_attempts=1)
    async def work(name: str) -> None:
        await asyncio.Event().wait()

    async with dq.running():
        overran = await finished(dq, await dq.add_task(work.options(timeout=0.05), "overran"))
        late = await dq.add_task(work.options(deadline=60, run_at=clock.now.replace(year=2027)), "late")
        damaged = await dq.add_task(work.options(run_at=clock.now.replace(year=2027)), "damaged")
        sql(database, "UPDATE durableq_jobs SET args = '{}' WHERE id = ?", damaged.id)
        clock.advance(61)
        await finished(dq, late)
        await dq.retry(damaged)
        await finished(dq, damaged)
        await are_told(told, 3)
    assert [(name, job.id) for name, job, _ in told] == [
        ("timed out", overran.id),
        ("timed out", late.id),
        ("failed", damaged.id),
    ]
    assert [job.error.type for _, job, _ in told if job.error is not None] == [
        "durableq.AttemptTimedOut",
        "durableq.DeadlinePassed",
        "durableq.PayloadCorrupt",
    ]


async def test_a_job_that_took_its_worker_down_once_too_often_is_told_of_as_such(database: Path) -> None:
    """By the worker that found it out."""
    dq = DurableQ(database, max_crashes=1)
    told: Told = []

    @dq.exception_handler(WorkerDied)
    async def died(job: Job[Any], error: WorkerDied) -> None:
        told.append(("died", job, error))

    def on_dead(job: Job[Any], error: BaseException) -> None:
        told.append(("on_dead", job, error))

    @dq.task(name="until_exists", on_dead=on_dead)
    async def until_exists(path: str) -> None: ...

    with program(database) as other:
        job_id = other.tell("until_exists", "never")["id"]
        other.hear("started", id=job_id)
        async with dq.running():
            other.kill()
            await are_told(told, 2)
    assert sorted(name for name, _, _ in told) == ["died", "on_dead"]
    assert {(job.id, job.state, type(error)) for _, job, error in told} == {(job_id, JobState.DEAD, WorkerDied)}
    assert "process died" in str(told[0][2])


async def test_what_expires_or_is_cancelled_has_not_failed(dq: DurableQ) -> None:
    told: Told = []

    @dq.exception_handler(BaseException)
    async def any_error(job: Job[Any], error: BaseException) -> None:
        told.append(("any", job, error))

    gate = Gate()

    @dq.task(name="work", on_dead=lambda job, error: told.append(("on_dead", job, error)))
    async def work() -> None:
        await gate()

    @dq.task(name="later")
    async def later() -> None: ...

    async with dq.running():
        running = await dq.add_task(work)
        await eventually(lambda: gate.inside == 1)
        await dq.cancel(running)
        await finished(dq, running)
        expired = await dq.add_task(work.options(expires=0.05, run_at=running.created_at.replace(year=2099)))
        await finished(dq, expired)
        await finished(dq, await dq.add_task(later))
    assert told == []


@pytest.mark.parametrize("form", ["async", "sync"])
@pytest.mark.parametrize("error", [RuntimeError("a defect"), SystemExit(3), KeyboardInterrupt(), StopIteration()])
async def test_a_handler_that_raises_is_logged_and_harms_nothing(
    dq: DurableQ, form: str, error: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    called: list[bool] = []

    async def raise_async(job: Job[Any], _: BaseException | None = None) -> None:
        called.append(True)
        raise error

    def raise_sync(job: Job[Any], _: BaseException | None = None) -> None:
        called.append(True)
        raise error

    handler = raise_async if form == "async" else raise_sync
    dq.exception_handler(ValueError)(handler)

    @dq.task(name="fail", max_attempts=1, on_dead=handler)
    async def fail() -> None:
        raise ValueError("no")

    @dq.task(name="work", on_success=handler)
    async def work() -> None: ...

    def is_logged() -> bool:
        return caplog.text.count("a handler of job") == 2

    async with dq.running():
        job = await finished(dq, await dq.add_task(fail))
        await eventually(is_logged)
        assert (await finished(dq, await dq.add_task(fail))).state is JobState.DEAD, "the worker lives"
    assert job.id in caplog.text
    assert len(called) == 4, "each of them is called all the same"


async def test_a_handler_that_cancels_itself_is_logged_too(dq: DurableQ, caplog: pytest.LogCaptureFixture) -> None:
    @dq.exception_handler(ValueError)
    async def give_up(job: Job[Any], error: ValueError) -> None:
        raise asyncio.CancelledError("my own")

    @dq.task(name="fail", max_attempts=1)
    async def fail() -> None:
        raise ValueError("no")

    async with dq.running():
        await finished(dq, await dq.add_task(fail))
        await eventually(lambda: "a handler of job" in caplog.text)


async def test_a_handler_has_no_current_job_and_may_add_others(dq: DurableQ) -> None:
    told: list[object] = []

    @dq.task(name="compensate")
    async def compensate(job_id: str) -> None:
        told.append(job_id)

    @dq.exception_handler(ValueError)
    async def handle(job: Job[Any], error: ValueError) -> None:
        try:
            current_job()
        except NoCurrentJob:
            told.append("no current job")
        await dq.add_task(compensate, job.id)

    @dq.task(name="fail", max_attempts=1)
    async def fail() -> None:
        raise ValueError("no")

    async with dq.running():
        job = await finished(dq, await dq.add_task(fail))
        await are_told(told, 2)
    assert told == ["no current job", job.id]


async def test_an_awaitable_from_a_plain_handler_is_awaited_on_the_loop(dq: DurableQ) -> None:
    told: list[threading.Thread] = []

    async def report() -> None:
        told.append(threading.current_thread())

    @dq.exception_handler(ValueError)
    def handle(job: Job[Any], error: ValueError) -> Any:
        return report()

    @dq.task(name="fail", max_attempts=1)
    async def fail() -> None:
        raise ValueError("no")

    async with dq.running():
        await finished(dq, await dq.add_task(fail))
        await are_told(told, 1)
    assert told == [threading.main_thread()]


async def test_plain_handlers_take_none_of_the_threads_that_serve_routes_and_few_of_their_own(dq: DurableQ) -> None:
    release = threading.Event()
    inside = threading.Semaphore(0)

    @dq.exception_handler(ValueError)
    def block(job: Job[Any], error: ValueError) -> None:
        inside.release()
        release.wait()

    @dq.task(name="fail", max_attempts=1)
    async def fail() -> None:
        raise ValueError("no")

    async with dq.running():
        try:
            for job in await dq.add_tasks([call(fail) for _ in range(2 * hooks.HANDLER_THREADS)]):
                await finished(dq, job)
            await eventually(lambda: inside._value == hooks.HANDLER_THREADS)
            assert anyio.to_thread.current_default_thread_limiter().borrowed_tokens == 0
        finally:
            release.set()
        await eventually(lambda: inside._value == 2 * hooks.HANDLER_THREADS)


async def test_handlers_that_still_run_at_the_end_are_given_a_moment_and_no_more(dq: DurableQ) -> None:
    told: list[str] = []
    begun, ended = asyncio.Event(), asyncio.Event()

    @dq.exception_handler(ValueError)
    async def slow(job: Job[Any], error: ValueError) -> None:
        begun.set()
        try:
            await asyncio.sleep(0.05)
            told.append("quick")
            await asyncio.sleep(3600)
        finally:
            told.append("cancelled")
            ended.set()

    @dq.task(name="fail", max_attempts=1)
    async def fail() -> None:
        raise ValueError("no")

    async with dq.running():
        await finished(dq, await dq.add_task(fail))
        await begun.wait()
        stopped_at = time.monotonic()
    assert time.monotonic() - stopped_at < 2
    assert told == ["quick", "cancelled"]


UNENDING = """
import asyncio, sys, time
from durableq import DurableQ
from durableq.events import JobDied

dq = DurableQ(sys.argv[1], grace=0.1)

@dq.exception_handler(ValueError)
def blocks(job, error):
    time.sleep(3600)

@dq.exception_handler(KeyError)
async def swallows(job, error):
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            pass

@dq.task(name="fail", max_attempts=1)
async def fail(kind: str) -> None:
    raise {"block": ValueError, "swallow": KeyError}[kind]

async def main() -> None:
    async with dq.running():
        for kind in ("block", "swallow"):
            await dq.wait(await dq.add_task(fail, kind))

asyncio.run(main())
print("left")
"""


def test_handlers_that_never_end_hold_neither_the_queue_nor_the_process(database: Path) -> None:
    began_at = time.monotonic()
    ended = subprocess.run(
        [sys.executable, "-c", UNENDING, str(database)], cwd=ROOT, capture_output=True, text=True, timeout=30
    )
    assert (ended.returncode, ended.stdout) == (0, "left\n"), ended.stderr
    assert time.monotonic() - began_at < 10


async def test_two_handlers_of_one_type_are_refused(dq: DurableQ) -> None:
    @dq.exception_handler(ValueError)
    async def first(job: Job[Any], error: ValueError) -> None: ...

    with pytest.raises(ConfigurationError, match="ValueError already has a handler"):
        dq.exception_handler(ValueError)(first)
    with pytest.raises(ConfigurationError, match="expected an exception type"):
        dq.exception_handler("ValueError")(first)  # type: ignore[arg-type]


async def of_nothing() -> None: ...
async def of_one(job: Any) -> None: ...
def of_two(job: Any, error: Any) -> None: ...
def of_three(job: Any, error: Any, more: Any) -> None: ...
def of_keywords(*, job: Any, error: Any = None) -> None: ...
def of_any(*args: Any) -> None: ...
def of_one_or_two(job: Any, error: Any = None) -> None: ...


class Handlers:
    def of_two(self, job: Any, error: Any) -> None: ...
    def __call__(self, job: Any, error: Any) -> None: ...


@pytest.mark.parametrize(
    ("handler", "came"),
    [
        (of_nothing, "of_nothing(): too many positional arguments"),
        (of_one, "of_one(job): too many positional arguments"),
        (of_three, "of_three(job, error, more): missing a required argument: 'more'"),
        (of_keywords, "of_keywords(*, job, error): too many positional arguments"),
        (Handlers.of_two, "Handlers.of_two(self, job, error): missing a required argument: 'error'"),
    ],
    ids=named,
)
def test_what_cannot_be_called_with_a_job_and_an_error_is_refused_when_it_is_declared(
    dq: DurableQ, handler: Any, came: str
) -> None:
    """And not when the first job dies."""
    declarations: list[tuple[Callable[[], Any], str]] = [
        (lambda: dq.exception_handler(ValueError)(handler), ""),
        (lambda: dq.task(name="a", on_retry=handler)(of_two), "option 'on_retry': "),
        (lambda: dq.task(name="b", on_dead=handler)(of_two), "option 'on_dead': "),
    ]
    for declare, where in declarations:
        with pytest.raises(ConfigurationError) as caught:
            declare()
        assert str(caught.value) == f"{where}expected a callable that takes (job, error), got {came}"


@pytest.mark.parametrize("handler", [of_nothing, of_two, of_keywords], ids=named)
def test_what_cannot_be_called_with_a_job_is_refused_when_it_is_declared(dq: DurableQ, handler: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"'on_success': expected a callable that takes \(job\), got of_"):
        dq.task(name="a", on_success=handler)(of_two)


def test_what_can_be_called_or_cannot_be_read_is_taken(dq: DurableQ) -> None:
    taken: list[Any] = [of_two, of_any, of_one_or_two, Handlers().of_two, Handlers(), partial(of_three, 1), max, print]
    with pytest.raises(ValueError, match="no signature found"):
        inspect.signature(max)
    for number, handler in enumerate(taken):
        dq.exception_handler(type(f"Error{number}", (Exception,), {}))(handler)
        dq.task(name=f"task {number}", on_retry=handler, on_dead=handler)(of_two)
    heard: list[Any] = [of_one, of_any, of_one_or_two]
    for number, handler in enumerate(heard):
        dq.task(name=f"other {number}", on_success=handler)(of_two)


def test_a_middleware_that_takes_no_job_is_refused(dq: DurableQ) -> None:
    with pytest.raises(ConfigurationError, match=r"takes \(job\), got .*greedy\(job, call_next\): missing"):

        @dq.middleware  # type: ignore[type-var]  # type checkers refuse it too
        async def greedy(job: CurrentJob, call_next: Any) -> AsyncIterator[None]:
            yield


# -- callbacks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["async", "sync", "class"])
@pytest.mark.parametrize("runner", ["loop", "thread"])
async def test_callbacks_are_called_once_each_when_it_is_stored(dq: DurableQ, form: str, runner: str) -> None:
    told: list[tuple[Any, ...]] = []

    async def succeeded_async(job: Job[Any]) -> None:
        told.append(("success", job.state, job.attempt, (await dq.get(job)).state))

    def succeeded_sync(job: Job[Any]) -> None:
        told.append(("success", job.state, job.attempt, stored_state(job)))

    async def retried_async(job: Job[Any], error: BaseException) -> None:
        told.append(("retry", job.state, job.attempt, str(error)))

    def retried_sync(job: Job[Any], error: BaseException) -> None:
        told.append(("retry", job.state, job.attempt, str(error)))

    async def dead_async(job: Job[Any], error: BaseException) -> None:
        told.append(("dead", job.state, job.attempt, str(error)))

    def dead_sync(job: Job[Any], error: BaseException) -> None:
        told.append(("dead", job.state, job.attempt, str(error)))

    def stored_state(job: Job[Any]) -> JobState:
        return JobState(sql(database_of(dq), "SELECT state FROM durableq_jobs WHERE id = ?", job.id)[0][0])

    def act(fails: int) -> str:
        if current_job().attempt <= fails:
            raise ConnectionError(f"try {current_job().attempt}")
        return "done"

    async def act_async(fails: int) -> str:
        return act(fails)

    class Work:
        max_attempts = 3
        retry = RetryPolicy(wait=wait_fixed(0.01))

        async def run(self, fails: int) -> str:
            return act(fails)

        async def on_success(self, job: Job[Any]) -> None:
            await succeeded_async(job)

        def on_retry(self, job: Job[Any], error: BaseException) -> None:
            retried_sync(job, error)

        async def on_dead(self, job: Job[Any], error: BaseException) -> None:
            await dead_async(job, error)

    if form == "class":
        task: Any = dq.task(name="work")(Work)
    else:
        task = dq.task(
            name="work",
            max_attempts=3,
            retry=RetryPolicy(wait=wait_fixed(0.01)),
            on_success=succeeded_async if form == "async" else succeeded_sync,
            on_retry=retried_async if form == "async" else retried_sync,
            on_dead=dead_async if form == "async" else dead_sync,
        )(act_async if runner == "loop" else act)

    async with dq.running():
        await finished(dq, await dq.add_task(task, 1))
        await are_told(told, 2)
        first, told[:] = sorted(told), []
        await finished(dq, await dq.add_task(task, 9))
        await are_told(told, 3)
    assert first == [
        ("retry", JobState.SCHEDULED, 1, "try 1"),
        ("success", JobState.SUCCEEDED, 2, JobState.SUCCEEDED),
    ]
    assert sorted(told) == [
        ("dead", JobState.DEAD, 3, "try 3"),
        ("retry", JobState.SCHEDULED, 1, "try 1"),
        ("retry", JobState.SCHEDULED, 2, "try 2"),
    ]


async def test_the_callbacks_of_one_task_do_not_hear_of_another(dq: DurableQ) -> None:
    told: list[str] = []

    @dq.task(name="loud", on_success=lambda job: told.append(job.task))
    async def loud() -> None: ...

    @dq.task(name="quiet")
    async def quiet() -> None: ...

    async with dq.running():
        await finished(dq, await dq.add_task(quiet))
        await finished(dq, await dq.add_task(loud))
        await are_told(told, 1)
    assert told == ["loud"]


async def test_a_lost_lease_is_nobodys_success(dq: DurableQ, database: Path) -> None:
    """What the worker did has no effect: the one who runs the job now will tell."""
    told: list[str] = []
    gate = Gate()

    @dq.task(name="work", on_success=lambda job: told.append("success"))
    async def work() -> None:
        await gate()

    @dq.task(name="after")
    async def after() -> None: ...

    async with dq.running():
        job = await dq.add_task(work)
        await eventually(lambda: gate.inside == 1)
        sql(database, "UPDATE durableq_jobs SET state = 'cancelled', worker_id = NULL, finished_at = 1")
        gate.open()
        await finished(dq, await dq.add_task(after))
        await dq.drain()
        assert (await dq.get(job)).state is JobState.CANCELLED
    assert told == []


# -- middleware ----------------------------------------------------------------------------------------------


Middleware = Callable[[CurrentJob], AsyncIterator[None]]


def noting(log: list[str], name: str) -> Middleware:
    async def note(job: CurrentJob) -> AsyncIterator[None]:
        log.append(f"{name} in")
        try:
            yield
        except BaseException as error:
            log.append(f"{name} {type(error).__name__}")
            raise
        log.append(f"{name} out")

    return note


@pytest.mark.parametrize("runner", ["loop", "thread"])
async def test_the_first_middleware_stands_outermost_around_every_attempt(dq: DurableQ, runner: str) -> None:
    log: list[str] = []
    for name in ("outer", "inner"):
        dq.middleware(noting(log, name))

    async def resource() -> AsyncIterator[int]:
        log.append("dependency in")
        yield 1
        log.append("dependency out")

    def work(value: int = Depends(resource)) -> str:
        log.append("work")
        return "done"

    async def work_async(value: int = Depends(resource)) -> str:
        return work(value)

    task = dq.task(name="work")(work if runner == "thread" else work_async)
    async with dq.running():
        job = await finished(dq, await dq.add_task(task))
    assert job.result == "done"
    assert log == ["outer in", "inner in", "dependency in", "work", "dependency out", "inner out", "outer out"]


async def test_a_middleware_sees_the_error_of_each_attempt_and_the_success(dq: DurableQ) -> None:
    log: list[str] = []
    dq.middleware(noting(log, "outer"))

    @dq.task(name="work", retry=AT_ONCE)
    def work() -> None:
        if current_job().attempt < 3:
            raise (ValueError("no") if current_job().attempt == 1 else SystemExit(1))

    async with dq.running():
        assert (await finished(dq, await dq.add_task(work))).attempt == 3
    assert log == ["outer in", "outer ValueError", "outer in", "outer SystemExit", "outer in", "outer out"]


@pytest.mark.parametrize("runner", ["loop", "thread"])
async def test_a_middleware_that_swallows_an_error_does_not_hide_the_failure(dq: DurableQ, runner: str) -> None:
    @dq.middleware
    async def swallow(job: CurrentJob) -> AsyncIterator[None]:
        with contextlib.suppress(BaseException):
            yield

    dq.middleware(noting([], "inner"))

    def fail() -> None:
        raise ValueError("no")

    async def fail_async() -> None:
        fail()

    task = dq.task(name="fail", max_attempts=1)(fail if runner == "thread" else fail_async)
    async with dq.running():
        job = await finished(dq, await dq.add_task(task))
        [attempt] = await dq.attempts(job)
    assert (job.state, attempt.error_type) == (JobState.DEAD, "ValueError")
    assert "in fail" in attempt.traceback


async def test_an_outer_middleware_cannot_hide_that_an_inner_one_let_nothing_through(dq: DurableQ) -> None:
    """The task has not run: that is no success."""
    ran: list[bool] = []

    @dq.middleware
    async def swallow(job: CurrentJob) -> AsyncIterator[None]:
        with contextlib.suppress(Exception):
            yield

    @dq.middleware
    async def refuse(job: CurrentJob) -> AsyncIterator[None]:
        if job.queue == "default":
            raise PermissionError("not from this queue")
        yield

    @dq.task(name="work", max_attempts=1)
    async def work() -> None:
        ran.append(True)

    async with dq.running():
        job = await finished(dq, await dq.add_task(work))
    assert job.error is not None
    assert (job.state, job.error.type, ran) == (JobState.DEAD, "PermissionError", [])


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_middleware_that_raises_fails_the_attempt(dq: DurableQ, when: str) -> None:
    """Even after the task itself has returned."""
    runs: list[int] = []

    @dq.middleware
    async def fragile(job: CurrentJob) -> AsyncIterator[None]:
        if when == "before" and job.attempt == 1:
            raise RuntimeError("a defect of the middleware")
        yield
        if when == "after" and job.attempt == 1:
            raise RuntimeError("a defect of the middleware")

    @dq.task(name="work", retry=AT_ONCE)
    async def work() -> str:
        runs.append(current_job().attempt)
        return "done"

    async with dq.running():
        job = await finished(dq, await dq.add_task(work))
        [attempt] = await dq.attempts(job)
    assert (job.state, job.attempt, job.result) == (JobState.SUCCEEDED, 2, "done")
    assert attempt.error_message == "a defect of the middleware"
    assert runs == ([2] if when == "before" else [1, 2])


async def test_a_middleware_may_put_another_error_in_place_of_the_tasks(dq: DurableQ) -> None:
    @dq.middleware
    async def translate(job: CurrentJob) -> AsyncIterator[None]:
        try:
            yield
        except KeyError as error:
            raise PermanentFailure("no such customer") from error

    @dq.task(name="fail", retry=AT_ONCE)
    async def fail() -> None:
        raise KeyError("customer")

    async with dq.running():
        job = await finished(dq, await dq.add_task(fail))
        [attempt] = await dq.attempts(job)
    assert (job.state, job.attempt, attempt.error_type) == (JobState.DEAD, 1, "durableq.PermanentFailure")
    assert "KeyError: 'customer'" in attempt.traceback


@pytest.mark.parametrize("times", [0, 2])
async def test_a_middleware_that_does_not_yield_exactly_once_fails_the_attempt(dq: DurableQ, times: int) -> None:
    @dq.middleware
    async def odd(job: CurrentJob) -> AsyncIterator[None]:
        for _ in range(times):
            yield

    @dq.task(name="work", max_attempts=1)
    async def work() -> None: ...

    async with dq.running():
        job = await finished(dq, await dq.add_task(work))
    assert job.error is not None
    assert (job.state, job.error.type) == (JobState.DEAD, "RuntimeError")


def test_only_an_async_generator_function_can_be_middleware(dq: DurableQ) -> None:
    with pytest.raises(ConfigurationError, match="async generator function"):

        @dq.middleware  # type: ignore[type-var]
        async def no_generator(job: CurrentJob) -> None: ...


async def test_a_middleware_reads_headers_and_adds_some_that_follow_up_jobs_inherit(dq: DurableQ) -> None:
    seen: list[dict[str, str]] = []

    @dq.middleware
    async def trace(job: CurrentJob) -> AsyncIterator[None]:
        seen.append(dict(job.headers))
        job.headers["span"] = f"{job.headers.get('span', '')}/{job.task}"
        yield

    @dq.task(name="second")
    async def second() -> None: ...

    @dq.task(name="first")
    def first() -> None:
        current_job().add_task(second)
        current_job().add_task(second.options(headers={"tenant": "another"}))

    async with dq.running():
        await dq.add_task(first.options(headers={"tenant": "t", "span": "request"}))
        await dq.drain(timeout=10)
    assert seen[0] == {"tenant": "t", "span": "request"}
    assert sorted(seen[1:], key=lambda one: one["tenant"]) == [
        {"tenant": "another", "span": "request/first"},
        {"tenant": "t", "span": "request/first"},
    ]


tenant: ContextVar[str] = ContextVar("tenant", default="nobody")


async def test_what_a_middleware_sets_in_its_context_is_seen_by_the_task(dq: DurableQ) -> None:
    @dq.middleware
    async def enter(job: CurrentJob) -> AsyncIterator[None]:
        token = tenant.set(job.headers["tenant"])
        yield
        tenant.reset(token)

    @dq.task(name="who_async")
    async def who_async() -> str:
        return tenant.get()

    @dq.task(name="who_sync")
    def who_sync() -> str:
        return tenant.get()

    async with dq.running():
        for task in (who_async, who_sync):
            job = await dq.add_task(task.options(headers={"tenant": "t"}))
            assert (await finished(dq, job)).result == "t"


async def test_middleware_sees_a_cancellation_and_cannot_hide_it(dq: DurableQ) -> None:
    log: list[str] = []
    gate = Gate()

    @dq.middleware
    async def swallow(job: CurrentJob) -> AsyncIterator[None]:
        try:
            yield
        except asyncio.CancelledError:
            log.append("cancelled")

    @dq.task(name="work")
    async def work() -> None:
        await gate()

    async with dq.running():
        job = await dq.add_task(work)
        await eventually(lambda: gate.inside == 1)
        await dq.cancel(job)
        assert (await finished(dq, job)).state is JobState.CANCELLED
    assert log == ["cancelled"]


# -- events --------------------------------------------------------------------------------------------------


def _raise(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize(
    ("act", "expected", "state"),
    [
        (lambda: None, [JobSucceeded], JobState.SUCCEEDED),
        (lambda: _raise(ValueError()), [JobRetried, JobDied], JobState.DEAD),
        (lambda: _raise(Retry(delay=0)), [JobRetried, JobDied], JobState.DEAD),
        (lambda: _raise(PermanentFailure()), [JobDied], JobState.DEAD),
        (lambda: _raise(Snooze(3600)), [JobSnoozed], JobState.SCHEDULED),
    ],
)
async def test_each_outcome_is_told_once(
    dq: DurableQ, act: Callable[[], None], expected: list[type], state: JobState
) -> None:
    told: list[Any] = []
    for kind in OUTCOMES:
        dq.events.subscribe(kind, told.append)
    starts = collect(dq.events, JobStarted)

    @dq.task(name="work", max_attempts=2, retry=AT_ONCE)
    async def work() -> None:
        act()

    async with dq.running():
        job = await in_state(dq, await dq.add_task(work), state)
        await eventually(partial(_count, told, len(expected)))
    assert [type(one) for one in told] == expected
    assert {one.lease.id for one in told} == {job.id}
    assert [one.lease.attempt for one in starts] == list(range(1, len(expected) + 1))


async def test_what_is_handed_back_at_the_end_is_told(database: Path) -> None:
    dq = DurableQ(database, grace=0)
    released = collect(dq.events, JobReleased)
    gate = Gate()

    @dq.task(name="work")
    async def work() -> None:
        await gate()

    async with dq.running():
        job = await dq.add_task(work)
        await eventually(lambda: gate.inside == 1)
    assert [one.lease.id for one in released] == [job.id]


async def test_a_success_of_which_nobody_wants_to_hear_costs_no_event(dq: DurableQ) -> None:
    @dq.task(name="work")
    async def work() -> None: ...

    assert not dq.events.wants(JobSucceeded)
    dq.task(name="loud", on_success=logging.info)(work.function)
    assert dq.events.wants(JobSucceeded)
