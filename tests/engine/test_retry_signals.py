"""What a task says by raising: try again then, not now, never again; and what its options say of other errors."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from email.utils import format_datetime
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest
from tenacity import retry_if_exception, retry_if_not_exception_type, stop_after_attempt, wait_fixed, wait_none

from durableq import (
    CurrentJob,
    DurableQ,
    Job,
    JobState,
    PermanentFailure,
    Retry,
    RetryPolicy,
    Snooze,
    current_job,
)
from durableq.events import JobDied, JobRetried, JobSnoozed
from durableq.testing import ManualClock
from tests.engine.helpers import AT_ONCE, collect, finished, in_state, sql
from tests.support import eventually

EVERY_HOUR = RetryPolicy(wait=wait_fixed(3600))


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def dq(database: Path, clock: ManualClock) -> DurableQ:
    return DurableQ(database, clock=clock)


def seconds_until(job: Job[Any], clock: ManualClock) -> float:
    return (job.run_at - clock.now).total_seconds()


async def waits(dq: DurableQ, job: Job[Any]) -> Job[Any]:
    return await in_state(dq, job, JobState.SCHEDULED, JobState.DEAD, JobState.SUCCEEDED)


def _has(events: list[Any], count: int) -> bool:
    return len(events) == count


def _is_attempt(database: Path, number: int) -> bool:
    return sql(database, "SELECT attempt FROM durableq_jobs") == [(number,)]


# -- Retry ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delay", [90, 90.0, timedelta(seconds=90)])
@pytest.mark.parametrize("runner", ["loop", "thread"])
async def test_a_task_may_say_when_it_wants_to_be_tried_again(
    dq: DurableQ, clock: ManualClock, delay: float, runner: str
) -> None:
    retried = collect(dq.events, JobRetried)

    async def ask_async() -> None:
        raise Retry("the other side is busy", delay=delay)

    def ask_sync() -> None:
        raise Retry("the other side is busy", delay=delay)

    task = dq.task(name="ask", retry=EVERY_HOUR)(ask_async if runner == "loop" else ask_sync)
    async with dq.running():
        job = await waits(dq, await dq.add_task(task))
    assert (job.state, job.attempt, seconds_until(job, clock)) == (JobState.SCHEDULED, 1, 90.0)
    assert job.error is not None
    assert (job.error.type, job.error.message) == ("durableq.Retry", "the other side is busy")
    assert [type(one.error) for one in retried] == [Retry]


async def test_each_asked_for_retry_counts_and_the_last_attempt_is_the_last(dq: DurableQ) -> None:
    died = collect(dq.events, JobDied)

    @dq.task(name="ask", max_attempts=3)
    async def ask() -> None:
        raise Retry(delay=0)

    async with dq.running():
        job = await finished(dq, await dq.add_task(ask))
        attempts = await dq.attempts(job)
    assert (job.state, job.attempt, [one.attempt for one in attempts]) == (JobState.DEAD, 3, [1, 2, 3])
    assert [one.failure.type for one in died] == ["durableq.Retry"]


async def test_without_a_delay_the_policy_says_when(dq: DurableQ, clock: ManualClock) -> None:
    @dq.task(name="ask", retry=RetryPolicy(wait=wait_fixed(33)))
    async def ask() -> None:
        raise Retry

    async with dq.running():
        job = await waits(dq, await dq.add_task(ask))
    assert (job.state, seconds_until(job, clock)) == (JobState.SCHEDULED, 33.0)


@pytest.mark.parametrize("options", [{"retry_on": ConnectionError}, {"give_up_on": Exception}])
async def test_which_errors_are_retried_is_not_asked_when_the_task_asks_itself(
    dq: DurableQ, clock: ManualClock, options: dict[str, Any]
) -> None:
    @dq.task(name="ask", retry=EVERY_HOUR, **options)
    async def ask() -> None:
        raise Retry(delay=5)

    async with dq.running():
        job = await waits(dq, await dq.add_task(ask))
    assert (job.state, seconds_until(job, clock)) == (JobState.SCHEDULED, 5.0)


async def test_the_error_behind_a_retry_is_kept_with_its_traceback(dq: DurableQ) -> None:
    def fetch() -> None:
        raise ConnectionResetError("by peer")

    @dq.task(name="ask")
    async def ask() -> None:
        try:
            fetch()
        except ConnectionResetError as error:
            raise Retry(delay=60) from error

    async with dq.running():
        job = await waits(dq, await dq.add_task(ask))
        [attempt] = await dq.attempts(job)
    assert "in fetch" in attempt.traceback
    assert "ConnectionResetError: by peer" in attempt.traceback
    assert "direct cause" in attempt.traceback
    assert attempt.error_type == "durableq.Retry"


async def test_a_retry_that_would_come_after_the_deadline_ends_the_job(dq: DurableQ) -> None:
    @dq.task(name="ask", deadline=60)
    async def ask() -> None:
        raise Retry(delay=61)

    async with dq.running():
        job = await finished(dq, await dq.add_task(ask))
    assert (job.state, job.attempt) == (JobState.DEAD, 1)


# -- Retry.after ---------------------------------------------------------------------------------------------


class _Response:
    def __init__(self, headers: Any) -> None:
        self.headers = headers


FORMS: dict[str, Callable[[str], Any]] = {
    "a dict": lambda value: {"Retry-After": value},
    "a dict in lower case": lambda value: {"content-type": "text/plain", "retry-after": value},
    "a dict in upper case": lambda value: {"RETRY-AFTER": value},
    "bytes, as in ASGI": lambda value: {b"retry-after": value.encode()},
    "a response of httpx2": lambda value: httpx2.Response(429, headers={"retry-AFTER": value}),
    "headers of httpx2": lambda value: httpx2.Headers({"Retry-After": value}),
    "anything with headers": lambda value: _Response({"Retry-After": value}),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("value", ["120", "date"])
async def test_the_other_sides_wish_is_read_from_its_answer(
    dq: DurableQ, clock: ManualClock, form: str, value: str
) -> None:
    """A date is measured by the queue's own clock, whatever the host's may say."""
    wish = format_datetime(clock.now + timedelta(seconds=120), usegmt=True) if value == "date" else value

    @dq.task(name="ask", retry=EVERY_HOUR)
    async def ask() -> None:
        raise Retry.after(FORMS[form](wish))

    async with dq.running():
        job = await waits(dq, await dq.add_task(ask))
    assert (job.state, seconds_until(job, clock)) == (JobState.SCHEDULED, 120.0)
    assert job.error is not None
    assert wish in job.error.message


async def test_a_real_answer_of_a_server_is_understood(dq: DurableQ, clock: ManualClock) -> None:
    def answer(request: httpx2.Request) -> httpx2.Response:
        return httpx2.Response(503, headers={"Retry-After": "7"}, request=request)

    @dq.task(name="ask", retry=EVERY_HOUR)
    async def ask() -> None:
        async with httpx2.AsyncClient(transport=httpx2.MockTransport(answer)) as client:
            response = await client.get("http://other.side/")
            try:
                response.raise_for_status()
            except httpx2.HTTPStatusError as error:
                raise Retry.after(error.response) from error

    async with dq.running():
        job = await waits(dq, await dq.add_task(ask))
        [attempt] = await dq.attempts(job)
    assert seconds_until(job, clock) == 7.0
    assert "503 Service Unavailable" in attempt.traceback


@pytest.mark.parametrize(
    "headers", [{}, {"Retry-After": ""}, {"Retry-After": "soon"}, {"Retry-After": "-5"}, {"Retry-After": "1.5"}]
)
async def test_what_cannot_be_read_leaves_it_to_the_policy(
    dq: DurableQ, clock: ManualClock, headers: dict[str, str]
) -> None:
    @dq.task(name="ask", retry=RetryPolicy(wait=wait_fixed(33)))
    async def ask() -> None:
        raise Retry.after(headers)

    async with dq.running():
        job = await waits(dq, await dq.add_task(ask))
    assert (job.state, seconds_until(job, clock)) == (JobState.SCHEDULED, 33.0)


async def test_a_date_that_is_past_means_now(dq: DurableQ, clock: ManualClock) -> None:
    @dq.task(name="ask", retry=EVERY_HOUR)
    async def ask() -> str:
        if current_job().attempt == 1:
            raise Retry.after({"Retry-After": format_datetime(clock.now - timedelta(days=1), usegmt=True)})
        return "done"

    async with dq.running():
        job = await finished(dq, await dq.add_task(ask))
    assert (job.attempt, job.result) == (2, "done")


# -- Snooze --------------------------------------------------------------------------------------------------


async def test_a_snoozed_job_runs_later_and_pays_no_attempt_however_often(
    dq: DurableQ, database: Path, clock: ManualClock
) -> None:
    snoozed, retried = collect(dq.events, JobSnoozed), collect(dq.events, JobRetried)
    starts: list[int] = []

    @dq.task(name="poll", max_attempts=2)
    async def poll() -> str:
        starts.append(current_job().attempt)
        if len(starts) <= 10:
            raise Snooze(timedelta(minutes=1))
        return "ready"

    async with dq.running():
        job = await dq.add_task(poll)
        for number in range(1, 11):
            await eventually(partial(_has, snoozed, number))
            waiting = await in_state(dq, job, JobState.SCHEDULED)
            assert (waiting.attempt, seconds_until(waiting, clock), waiting.error) == (0, 60.0, None)
            clock.advance(60)
        ended = await finished(dq, job)
        assert await dq.attempts(job) == []
    assert (ended.state, ended.attempt, ended.result, starts) == (JobState.SUCCEEDED, 1, "ready", [1] * 11)
    assert [one.lease.id for one in snoozed] == [job.id] * 10
    assert retried == []


async def test_a_snooze_between_failures_gives_back_only_its_own_attempt(dq: DurableQ) -> None:
    answers: list[Exception] = [ValueError("first"), Snooze(0), Snooze(0), ValueError("second"), Snooze(0)]

    @dq.task(name="work", max_attempts=3, retry=AT_ONCE)
    async def work() -> int:
        if answers:
            raise answers.pop(0)
        return current_job().attempt

    async with dq.running():
        job = await finished(dq, await dq.add_task(work))
        assert [one.error_message for one in await dq.attempts(job)] == ["first", "second"]
    assert (job.state, job.attempt, job.result) == (JobState.SUCCEEDED, 3, 3)


async def test_a_snooze_leaves_the_last_error_to_be_seen(dq: DurableQ) -> None:
    @dq.task(name="work", retry=AT_ONCE)
    async def work() -> None:
        if current_job().attempt == 1:
            raise ConnectionError("refused")
        raise Snooze(60)

    async with dq.running():
        job = await dq.add_task(work)
        waiting = await in_state(dq, job, JobState.SCHEDULED)
    assert waiting.error is not None
    assert (waiting.attempt, waiting.error.type) == (1, "ConnectionError")


async def test_a_job_is_snoozed_until_its_deadline_and_no_longer(dq: DurableQ, clock: ManualClock) -> None:
    snoozed = collect(dq.events, JobSnoozed)

    @dq.task(name="poll", deadline=150)
    async def poll() -> None:
        raise Snooze(60)

    async with dq.running():
        job = await dq.add_task(poll)
        for number in (1, 2):
            await eventually(partial(_has, snoozed, number))
            clock.advance(60)
        ended = await finished(dq, job)
    assert (ended.state, len(snoozed)) == (JobState.DEAD, 2)


async def test_a_middleware_may_snooze_what_it_does_not_let_through(dq: DurableQ) -> None:
    """A rate limit, for instance: the task has not run, and has not failed."""
    let_through: list[bool] = [False, False, True]

    @dq.middleware
    async def limit(job: CurrentJob) -> AsyncIterator[None]:
        if not let_through.pop(0):
            raise Snooze(0)
        yield

    @dq.task(name="work", max_attempts=1)
    async def work() -> str:
        return "done"

    async with dq.running():
        job = await finished(dq, await dq.add_task(work))
    assert (job.state, job.attempt, job.result) == (JobState.SUCCEEDED, 1, "done")


# -- PermanentFailure ----------------------------------------------------------------------------------------


class NoSuchCustomer(PermanentFailure):
    pass


@pytest.mark.parametrize("kind", [PermanentFailure, NoSuchCustomer])
@pytest.mark.parametrize("runner", ["loop", "thread"])
async def test_a_permanent_failure_is_dead_at_once(dq: DurableQ, kind: type[PermanentFailure], runner: str) -> None:
    retried = collect(dq.events, JobRetried)
    customers: dict[str, int] = {}

    def look_up() -> None:
        try:
            customers["customer"]
        except KeyError as error:
            raise kind("no such customer") from error

    async def look_up_async() -> None:
        look_up()

    task = dq.task(name="look_up", max_attempts=10, retry=AT_ONCE, retry_on=Exception)(
        look_up_async if runner == "loop" else look_up
    )
    async with dq.running():
        job = await finished(dq, await dq.add_task(task))
        [attempt] = await dq.attempts(job)
    assert job.error is not None
    assert (job.state, job.attempt, job.error.message) == (JobState.DEAD, 1, "no such customer")
    assert job.error.type == ("durableq.PermanentFailure" if kind is PermanentFailure else f"{__name__}.NoSuchCustomer")
    assert "KeyError: 'customer'" in attempt.traceback
    assert retried == []


# -- retry_on and give_up_on ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "retried", "given_up"),
    [
        ({"retry_on": ConnectionError}, ConnectionResetError, ValueError),
        ({"retry_on": (ConnectionError, TimeoutError)}, TimeoutError, ValueError),
        ({"retry_on": [ConnectionError, TimeoutError]}, TimeoutError, ValueError),
        ({"give_up_on": ValueError}, ConnectionError, UnicodeError),
        ({"give_up_on": (ValueError, KeyError)}, ConnectionError, KeyError),
        ({"retry_on": OSError, "give_up_on": FileNotFoundError}, PermissionError, FileNotFoundError),
        ({"retry": RetryPolicy(wait=wait_none(), retry_on=OSError)}, PermissionError, ValueError),
        ({"retry": RetryPolicy(wait=wait_none(), give_up_on=OSError)}, ValueError, PermissionError),
        ({"retry": RetryPolicy(give_up_on=OSError), "give_up_on": KeyError}, ValueError, PermissionError),
        ({"retry": RetryPolicy(give_up_on=OSError), "give_up_on": KeyError}, ValueError, KeyError),
        (
            {"retry": RetryPolicy(retry=retry_if_not_exception_type(FileNotFoundError)), "retry_on": OSError},
            PermissionError,
            FileNotFoundError,
        ),
        (
            {
                "retry": RetryPolicy(
                    wait=wait_fixed(1) + wait_fixed(2),
                    retry=retry_if_exception(lambda error: "again" in str(error))
                    & retry_if_not_exception_type(KeyError),
                ),
                "give_up_on": ValueError,
            },
            ConnectionError,
            KeyError,
        ),
    ],
)
async def test_which_errors_are_retried_can_be_said_in_plain_types_and_with_tenacity(
    dq: DurableQ, options: dict[str, Any], retried: type[Exception], given_up: type[Exception]
) -> None:
    options = {"retry": RetryPolicy(wait=wait_fixed(60))} | options

    @dq.task(name="fail", max_attempts=2, **options)
    async def fail(which: str) -> None:
        raise (retried if which == "retried" else given_up)("again")

    async with dq.running():
        died = await finished(dq, await dq.add_task(fail, "given up"))
        assert (died.state, died.attempt) == (JobState.DEAD, 1)
        again = await waits(dq, await dq.add_task(fail, "retried"))
        assert (again.state, again.attempt) in [(JobState.SCHEDULED, 1), (JobState.DEAD, 2)]


# -- policies by name ----------------------------------------------------------------------------------------


async def test_a_policy_with_a_name_may_be_chosen_for_one_call(dq: DurableQ, clock: ManualClock) -> None:
    gentle = dq.retry_policy("gentle", wait=wait_fixed(600), stop=stop_after_attempt(9))

    @dq.task(name="fail", retry=RetryPolicy(wait=wait_fixed(1)))
    async def fail() -> None:
        raise ConnectionError("refused")

    async with dq.running():
        usual = await waits(dq, await dq.add_task(fail))
        gently = await waits(dq, await dq.add_task(fail.options(retry=gentle)))
    assert (seconds_until(usual, clock), seconds_until(gently, clock)) == (1.0, 600.0)


async def test_what_the_task_says_of_exception_types_holds_for_a_policy_chosen_for_one_call_too(dq: DurableQ) -> None:
    """They are code, which belongs to the task as it is deployed."""
    gentle = dq.retry_policy("gentle", wait=wait_fixed(600), give_up_on=KeyError)

    @dq.task(name="fail", give_up_on=ValueError)
    async def fail(kind: str) -> None:
        raise {"value": ValueError, "key": KeyError, "other": OSError}[kind]

    async with dq.running():
        jobs = [await dq.add_task(fail.options(retry=gentle), kind) for kind in ("value", "key", "other")]
        ended = [(await waits(dq, job)).state for job in jobs]
    assert ended == [JobState.DEAD, JobState.DEAD, JobState.SCHEDULED]


async def test_a_job_whose_policy_the_deployment_no_longer_knows_follows_its_task(
    dq: DurableQ, database: Path, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    earlier = DurableQ(database, clock=clock, worker=False)

    async def fail() -> None:
        raise ConnectionError("refused")

    here = earlier.task(name="fail")(fail)
    dq.task(name="fail", retry=RetryPolicy(wait=wait_fixed(42)))(fail)
    async with earlier.running():
        job = await earlier.add_task(here.options(retry=earlier.retry_policy("gentle", wait=wait_fixed(600))))
    with caplog.at_level(logging.WARNING, "durableq"):
        async with dq.running():
            waiting = await waits(dq, job)
    assert seconds_until(waiting, clock) == 42.0
    assert "no retry policy is named 'gentle' here; that of fail decides" in caplog.text


# -- later ---------------------------------------------------------------------------------------------------


async def test_a_job_that_asked_to_be_retried_runs_when_its_time_has_come_and_not_before(
    dq: DurableQ, database: Path, clock: ManualClock
) -> None:
    @dq.task(name="ask", retry=EVERY_HOUR)
    async def ask() -> str:
        if current_job().attempt == 1:
            raise Retry.after({"Retry-After": "120"})
        return "done"

    async with dq.running():
        job = await dq.add_task(ask)
        await in_state(dq, job, JobState.SCHEDULED)
        clock.advance(119)
        await asyncio.sleep(0.35)  # the queue has looked at the clock by now
        assert (await dq.get(job)).state is JobState.SCHEDULED
        clock.advance(1)
        await eventually(partial(_is_attempt, database, 2))
        assert (await finished(dq, job)).result == "done"
