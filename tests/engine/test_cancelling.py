"""Ending a job that somebody no longer wants, wherever it is and whatever it is doing."""

import asyncio
import contextlib
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import anyio
import pytest
from fastapi import Depends
from tenacity import wait_fixed

from durableq import CurrentJob, DurableQ, Job, JobConflict, JobNotFound, JobState, RetryPolicy, current_job
from durableq.events import JobCancelled, JobDied, JobReleased, JobRetried, JobStarted, JobSucceeded
from tests.engine.helpers import AT_ONCE, Gate, collect, finished, in_state, sql
from tests.engine.processes import program
from tests.support import eventually

CANCELLED = "durableq.Cancelled"


class Witness:
    """An async task body that never ends, and remembers how it was ended."""

    def __init__(self) -> None:
        self.begun = 0
        self.ended_by: list[type[BaseException]] = []

    async def __call__(self) -> None:
        self.begun += 1
        try:
            await asyncio.Event().wait()
        except BaseException as error:
            await asyncio.sleep(0.01)  # clean-up takes its time
            self.ended_by.append(type(error))
            raise


# -- before it runs ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [JobState.QUEUED, JobState.SCHEDULED])
async def test_a_job_that_waits_is_cancelled_at_once_and_never_runs(database: Path, state: JobState) -> None:
    producer, dq = DurableQ(database, worker=False), DurableQ(database)
    ran: list[str] = []

    async def work(name: str) -> None:
        ran.append(name)

    task = producer.task(name="work")(work)
    dq.task(name="work")(work)
    async with producer.running():
        unwanted = task.options(delay=0.1) if state is JobState.SCHEDULED else task
        job = await producer.add_task(unwanted, "unwanted")
        assert job.state is state
        cancelled = await producer.cancel(job, who="somebody")
        assert cancelled.state is JobState.CANCELLED
        assert cancelled.finished_at is not None
        wanted = await producer.add_task(task.options(delay=0.2), "wanted")
        assert [(one.action, one.who) for one in await producer.audit_trail(job)] == [("cancel", "somebody")]
    async with dq.running():
        await finished(dq, wanted)
    assert ran == ["wanted"]


async def test_a_job_that_waits_for_its_retry_is_not_tried_again(database: Path) -> None:
    dq = DurableQ(database)
    tries = 0

    @dq.task(name="fail", retry=RetryPolicy(wait=wait_fixed(0.3)))
    async def fail() -> None:
        nonlocal tries
        tries += 1
        raise ConnectionError("refused")

    @dq.task(name="later")
    async def later() -> None: ...

    async with dq.running():
        job = await dq.add_task(fail)
        await in_state(dq, job, JobState.SCHEDULED)
        assert (await dq.cancel(job)).state is JobState.CANCELLED
        await finished(dq, await dq.add_task(later.options(delay=0.6)))
        assert len(await dq.attempts(job)) == 1, "its history is kept"
    assert tries == 1


@pytest.mark.parametrize("state", [JobState.SUCCEEDED, JobState.DEAD, JobState.CANCELLED])
async def test_a_finished_job_cannot_be_cancelled(database: Path, state: JobState) -> None:
    dq = DurableQ(database)

    @dq.task(name="work", max_attempts=1)
    async def work(fails: bool) -> None:
        if fails:
            raise RuntimeError("no")

    async with dq.running():
        job = await dq.add_task(work.options(delay=3600 if state is JobState.CANCELLED else 0), state is JobState.DEAD)
        if state is JobState.CANCELLED:
            await dq.cancel(job)
        await in_state(dq, job, state)
        with pytest.raises(JobConflict, match=f"cannot cancel job {job.id}: .* it is {state}"):
            await dq.cancel(job)
        assert (await dq.get(job)).state is state


async def test_an_unknown_job_cannot_be_cancelled(database: Path) -> None:
    async with (dq := DurableQ(database)).running():
        with pytest.raises(JobNotFound):
            await dq.cancel("nobody")


# -- while it runs -------------------------------------------------------------------------------------------


async def test_a_running_task_is_cancelled_at_its_await_and_cleans_up(database: Path) -> None:
    dq = DurableQ(database)
    cancelled = collect(dq.events, JobCancelled)
    others = [collect(dq.events, kind) for kind in (JobSucceeded, JobRetried, JobDied, JobReleased)]
    witness = Witness()

    @dq.task(name="work")
    async def work() -> None:
        await witness()

    async with dq.running():
        job = await dq.add_task(work)
        await eventually(lambda: witness.begun == 1)
        asked = await dq.cancel(job)
        assert (asked.state, asked.cancel_requested) == (JobState.RUNNING, True), "its end is asked for, not over"
        ended = await dq.wait(job, timeout=5)
        [attempt] = await dq.attempts(job)
    assert (ended.state, ended.attempt) == (JobState.CANCELLED, 1)
    assert ended.error is not None
    assert (ended.error.type, ended.error.message) == (CANCELLED, "cancelled while running")
    assert ended.finished_at is not None
    assert witness.ended_by == [asyncio.CancelledError]
    assert "in work" in attempt.traceback, "where it was"
    assert [(one.lease.id, one.failure.type) for one in cancelled] == [(job.id, CANCELLED)]
    assert others == [[], [], [], []]


async def test_a_running_thread_sees_that_it_is_cancelled(database: Path) -> None:
    dq = DurableQ(database)
    begun = threading.Event()

    @dq.task(name="work")
    def work(obeys: bool) -> str:
        begun.set()
        while not current_job().cancelled:
            time.sleep(0.005)
        if obeys:
            raise InterruptedError("asked to stop")
        return "finished all the same"

    async with dq.running():
        for obeys in (True, False):
            begun.clear()
            job = await dq.add_task(work, obeys)
            await eventually(begun.is_set)
            await dq.cancel(job)
            ended = await dq.wait(job, timeout=5)
            if obeys:
                assert (ended.state, ended.attempt) == (JobState.CANCELLED, 1)
                assert "InterruptedError: asked to stop" in (await dq.attempts(job))[0].traceback
            else:
                assert (ended.state, ended.result) == (JobState.SUCCEEDED, "finished all the same")
                assert not ended.cancel_requested


async def test_a_task_that_returns_all_the_same_has_succeeded(database: Path) -> None:
    dq = DurableQ(database)
    cancelled, succeeded = collect(dq.events, JobCancelled), collect(dq.events, JobSucceeded)
    gate = Gate()

    @dq.task(name="save_what_there_is")
    async def save_what_there_is() -> str:
        with contextlib.suppress(asyncio.CancelledError):
            await gate()
        await asyncio.sleep(0)
        return "half of it"

    async with dq.running():
        job = await dq.add_task(save_what_there_is)
        await eventually(lambda: gate.inside == 1)
        await dq.cancel(job)
        ended = await dq.wait(job, timeout=5)
    assert (ended.state, ended.result, ended.cancel_requested) == (JobState.SUCCEEDED, "half of it", False)
    assert (len(cancelled), len(succeeded)) == (0, 1)


@pytest.mark.parametrize("error", [RuntimeError("a defect in the clean-up"), SystemExit(1), KeyboardInterrupt()])
async def test_whatever_a_task_raises_when_it_is_cancelled_it_is_cancelled(
    database: Path, error: BaseException
) -> None:
    dq = DurableQ(database)
    gate = Gate()

    @dq.task(name="work", retry=AT_ONCE)
    async def work() -> None:
        try:
            await gate()
        finally:
            raise error

    async with dq.running():
        job = await dq.add_task(work)
        await eventually(lambda: gate.inside == 1)
        await dq.cancel(job)
        ended = await dq.wait(job, timeout=5)
        [attempt] = await dq.attempts(job)
    assert ended.error is not None
    assert (ended.state, ended.error.type) == (JobState.CANCELLED, CANCELLED)
    assert type(error).__name__ in attempt.traceback


@pytest.mark.fault("F48")
@pytest.mark.parametrize("how", ["raises", "cancels its own asyncio task", "a cancelled future"])
async def test_a_task_that_cancels_itself_has_failed(database: Path, how: str) -> None:
    """Nobody asked for its end: it is tried again, like any failure."""
    dq = DurableQ(database)
    cancelled, retried, died = (collect(dq.events, kind) for kind in (JobCancelled, JobRetried, JobDied))

    @dq.task(name="give_up", max_attempts=2, retry=AT_ONCE)
    async def give_up() -> None:
        if how == "raises":
            raise asyncio.CancelledError("my own")
        if how == "a cancelled future":
            future = asyncio.get_running_loop().create_future()
            future.cancel()
            await future
        current = asyncio.current_task()
        assert current is not None
        current.cancel()
        await asyncio.sleep(0)

    async with dq.running():
        job = await finished(dq, await dq.add_task(give_up))
    assert job.error is not None
    assert (job.state, job.attempt, job.error.type) == (JobState.DEAD, 2, "asyncio.exceptions.CancelledError")
    assert (len(cancelled), len(retried), len(died)) == (0, 1, 1)


@pytest.mark.fault("F48")
async def test_a_task_that_has_cancelled_itself_can_still_be_cancelled(database: Path) -> None:
    dq = DurableQ(database)
    gate = Gate()

    @dq.task(name="work", retry=AT_ONCE)
    async def work() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            raise asyncio.CancelledError("my own, and over")
        await gate()

    async with dq.running():
        job = await dq.add_task(work)
        await eventually(lambda: gate.inside == 1)
        await dq.cancel(job)
        assert (await dq.wait(job, timeout=5)).state is JobState.CANCELLED


async def test_asking_twice_cancels_once(database: Path) -> None:
    """A clean-up is not interrupted by somebody's impatience."""
    dq = DurableQ(database)
    cancelled = collect(dq.events, JobCancelled)
    cleaning, clean = asyncio.Event(), asyncio.Event()

    @dq.task(name="work")
    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cleaning.set()
            await clean.wait()

    async with dq.running():
        job = await dq.add_task(work)
        await in_state(dq, job, JobState.RUNNING)
        await dq.cancel(job, who="first")
        await cleaning.wait()
        assert (await dq.cancel(job, who="second")).cancel_requested
        await asyncio.sleep(0.3)  # also over the quarter-second look
        assert (await dq.get(job)).state is JobState.RUNNING
        clean.set()
        assert (await dq.wait(job, timeout=5)).state is JobState.CANCELLED
        assert [one.who for one in await dq.audit_trail(job)] == ["first", "second"]
    assert len(cancelled) == 1


# -- at the edges of an attempt ------------------------------------------------------------------------------


class Lock:
    """The write lock of a file, as another program would hold it."""

    def __init__(self, database: Path) -> None:
        self._connection = sqlite3.connect(database, timeout=5, isolation_level=None, check_same_thread=False)

    def __enter__(self) -> "Lock":
        self._connection.execute("BEGIN IMMEDIATE")
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
        self._connection.close()

    def release(self) -> None:
        if self._connection.in_transaction:
            self._connection.execute("ROLLBACK")


async def _gone(name: str) -> None:
    """Wait until no attempt of a task runs any more, and what came of it is on its way."""
    await eventually(lambda: all(one.get_name() != name for one in asyncio.all_tasks()))
    for _ in range(10):
        await asyncio.sleep(0)


async def test_a_job_that_is_cancelled_between_its_claim_and_its_start_never_runs(database: Path) -> None:
    dq = DurableQ(database, concurrency=1)
    cancelled = collect(dq.events, JobCancelled)
    gate = Gate()
    ran: list[bool] = []

    @dq.task(name="hold")
    async def hold() -> None:
        await gate()

    @dq.task(name="work")
    async def work() -> None:
        ran.append(True)

    async with dq.running():
        await dq.add_task(hold)
        await eventually(lambda: gate.inside == 1)
        job = await dq.add_task(work)
        with Lock(database) as lock:
            gate.open()
            await _gone("hold")  # its outcome, and the claim of the other, wait for the lock
            # From here on this loop, which would start the job, stands still.
            elsewhere = threading.Thread(target=_cancel_once_it_runs, args=(database, job))
            elsewhere.start()
            lock.release()
            elsewhere.join()
        ended = await dq.wait(job, timeout=5)
    assert ended.error is not None
    assert (ended.state, ended.error.type, ran) == (JobState.CANCELLED, CANCELLED, [])
    assert len(cancelled) == 1


def _cancel_once_it_runs(database: Path, job: Job[None]) -> None:
    async def cancel() -> None:
        async with (dq := DurableQ(database, worker=False)).running():
            await in_state(dq, job, JobState.RUNNING)
            await dq.cancel(job)

    asyncio.run(cancel())


@pytest.mark.parametrize("fails", [False, True])
async def test_a_job_that_has_just_finished_cannot_be_cancelled_any_more(database: Path, fails: bool) -> None:
    dq = DurableQ(database)
    gate = Gate()

    @dq.task(name="work", max_attempts=1)
    async def work() -> None:
        await gate()
        if fails:
            raise RuntimeError("no")

    async with dq.running():
        job = await dq.add_task(work)
        await eventually(lambda: gate.inside == 1)
        with Lock(database):
            gate.open()
            await _gone("work")  # its outcome waits for the lock
            cancelling = asyncio.ensure_future(dq.cancel(job))
            await asyncio.sleep(0)
        with pytest.raises(JobConflict):
            await cancelling
        assert (await dq.get(job)).state is (JobState.DEAD if fails else JobState.SUCCEEDED)


async def test_a_job_that_ends_while_the_request_is_on_its_way_keeps_its_success(database: Path) -> None:
    dq = DurableQ(database)
    succeeded, cancelled = collect(dq.events, JobSucceeded), collect(dq.events, JobCancelled)
    gate = Gate()

    @dq.task(name="work")
    async def work() -> str:
        await gate()
        return "done"

    async with dq.running():
        job = await dq.add_task(work)
        await eventually(lambda: gate.inside == 1)
        with Lock(database):
            cancelling = asyncio.ensure_future(dq.cancel(job))
            await asyncio.sleep(0)  # it waits for the lock
            gate.open()
            await _gone("work")
        await cancelling
        ended = await finished(dq, job)
    assert (ended.state, ended.result, ended.cancel_requested) == (JobState.SUCCEEDED, "done", False)
    assert (len(succeeded), len(cancelled)) == (1, 0)


async def test_a_job_that_fails_while_the_request_is_on_its_way_is_not_tried_again(database: Path) -> None:
    dq = DurableQ(database)
    started = collect(dq.events, JobStarted)
    gate = Gate()

    @dq.task(name="work", retry=AT_ONCE)
    async def work() -> None:
        await gate()
        raise ConnectionError("refused")

    async with dq.running():
        job = await dq.add_task(work)
        await eventually(lambda: gate.inside == 1)
        with Lock(database):
            cancelling = asyncio.ensure_future(dq.cancel(job))
            await asyncio.sleep(0)
            gate.open()
            await _gone("work")
        await cancelling
        ended = await finished(dq, job)
        assert ended.state is JobState.CANCELLED
        await dq.drain()
    assert len(started) == 1


@pytest.mark.foreign_bug(33)
async def test_a_job_that_ignores_its_cancellation_is_not_handed_back_to_be_run_again(database: Path) -> None:
    dq = DurableQ(database, grace=0)
    release, begun = threading.Event(), threading.Event()
    starts = collect(dq.events, JobStarted)

    @dq.task(name="deaf")
    def deaf() -> None:
        begun.set()
        release.wait()

    async with dq.running():
        job = await dq.add_task(deaf)
        await eventually(begun.is_set)
        await dq.cancel(job)
    async with dq.running():
        assert (await dq.get(job)).state is JobState.CANCELLED
        await dq.drain()
    release.set()
    assert len(starts) == 1


# -- what comes after ----------------------------------------------------------------------------------------


async def test_a_cancelled_job_that_is_retried_by_hand_runs_anew(database: Path) -> None:
    dq = DurableQ(database)
    gate = Gate()

    @dq.task(name="work")
    async def work() -> str:
        await gate()
        assert not current_job().cancelled
        return f"attempt {current_job().attempt}"

    async with dq.running():
        job = await dq.add_task(work)
        await eventually(lambda: gate.inside == 1)
        await dq.cancel(job)
        await in_state(dq, job, JobState.CANCELLED)
        gate.open()
        queued = await dq.retry(job)
        assert (queued.state, queued.attempt, queued.cancel_requested) == (JobState.QUEUED, 0, False)
        ended = await dq.wait(job, timeout=5)
        assert (ended.state, ended.result) == (JobState.SUCCEEDED, "attempt 1")
        assert [one.error_type for one in await dq.attempts(job)] == [CANCELLED], "its history is kept"


@pytest.mark.foreign_bug(46)
async def test_a_job_whose_worker_died_after_the_request_is_cancelled_and_not_run_again(database: Path) -> None:
    producer, dq = DurableQ(database, worker=False), DurableQ(database)
    ran: list[str] = []

    @dq.task(name="until_exists")
    async def take_over(path: str) -> None:
        ran.append(path)

    with program(database) as other:
        job_id = other.tell("until_exists", "never")["id"]
        other.hear("started", id=job_id)
        async with producer.running():
            other.kill()
            await producer.cancel(job_id)
    async with dq.running():
        job = await finished(dq, await dq.get(job_id))
        assert (job.state, ran) == (JobState.CANCELLED, [])


async def test_a_job_is_cancelled_from_another_process(database: Path) -> None:
    async with (dq := DurableQ(database, worker=False)).running():
        with program(database) as other:
            seconds = []
            for number in range(5):
                job_id = other.tell("until_exists", "never")["id"]
                other.hear("started", id=job_id)
                await asyncio.sleep(0.05 + 0.04 * number)  # at another point of the quarter-second look
                asked_at = time.monotonic()
                asked = await dq.cancel(job_id)
                assert asked.cancel_requested
                ended = await dq.wait(job_id, timeout=5)
                seconds.append(time.monotonic() - asked_at)
                assert (ended.state, ended.attempt) == (JobState.CANCELLED, 1)
                assert "until_exists" in (await dq.attempts(job_id))[0].traceback
    assert sorted(seconds)[2] < 0.1, "it is rung for; the quarter-second look alone would give 0.125 and more"


# -- structured concurrency inside a task --------------------------------------------------------------------


async def _inside_timeout(log: list[str]) -> None:
    try:
        async with asyncio.timeout(30):
            await asyncio.Event().wait()
    except TimeoutError:
        log.append("mistaken for a timeout")
        raise
    except asyncio.CancelledError:
        log.append("cancelled")
        raise


async def _inside_task_group(log: list[str]) -> None:
    async def child() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            log.append("cancelled")

    async with asyncio.TaskGroup() as group:
        group.create_task(child())
        await asyncio.Event().wait()


async def _inside_anyio(log: list[str]) -> None:
    async def child() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            log.append("cancelled")

    async with anyio.create_task_group() as group:
        group.start_soon(child)
        with anyio.fail_after(30):
            await anyio.sleep_forever()


async def _inside_gather(log: list[str]) -> None:
    async def child() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            log.append("cancelled")

    await asyncio.gather(child())


@pytest.mark.parametrize("inside", [_inside_timeout, _inside_task_group, _inside_anyio, _inside_gather])
async def test_what_a_task_has_started_ends_with_it(
    database: Path, inside: Callable[[list[str]], Awaitable[None]]
) -> None:
    dq = DurableQ(database)
    log: list[str] = []
    begun = asyncio.Event()

    @dq.task(name="work")
    async def work() -> None:
        begun.set()
        await inside(log)

    async with dq.running():
        job = await dq.add_task(work)
        await begun.wait()
        await asyncio.sleep(0)
        await dq.cancel(job)
        ended = await dq.wait(job, timeout=5)
    assert ended.error is not None
    assert (ended.state, ended.error.type, log) == (JobState.CANCELLED, CANCELLED, ["cancelled"])


async def _clean_up(log: list[str]) -> None:
    """All of this must work though the attempt was cancelled: the cancellation has arrived, and is over."""
    await asyncio.sleep(0)
    try:
        async with asyncio.timeout(0.01):
            await asyncio.Event().wait()
    except TimeoutError:
        log.append("asyncio.timeout")
    async with asyncio.TaskGroup() as group:
        group.create_task(asyncio.sleep(0))
    log.append("TaskGroup")
    with anyio.move_on_after(0.01) as scope:
        await anyio.sleep_forever()
    if scope.cancelled_caught:
        log.append("anyio.move_on_after")
    with anyio.CancelScope(shield=True):
        await anyio.sleep(0.01)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(anyio.sleep, 0.01)
    log.append("anyio task group")


CLEAN = ["asyncio.timeout", "TaskGroup", "anyio.move_on_after", "anyio task group"]


@pytest.mark.parametrize("where", ["task", "dependency", "middleware"])
async def test_a_clean_up_after_a_cancellation_may_use_all_of_asyncio_and_anyio(database: Path, where: str) -> None:
    dq = DurableQ(database)
    gate = Gate()
    log: list[str] = []

    async def resource() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            if where == "dependency":
                await _clean_up(log)

    if where == "middleware":

        @dq.middleware
        async def around(job: CurrentJob) -> AsyncIterator[None]:
            try:
                yield
            finally:
                await _clean_up(log)

    @dq.task(name="work")
    async def work(value: int = Depends(resource)) -> None:
        try:
            await gate()
        finally:
            if where == "task":
                await _clean_up(log)

    async with dq.running():
        job = await dq.add_task(work)
        await eventually(lambda: gate.inside == 1)
        await dq.cancel(job)
        ended = await dq.wait(job, timeout=5)
    assert (ended.state, log) == (JobState.CANCELLED, CLEAN)


async def test_a_job_that_is_cancelled_while_its_dependencies_are_made_never_runs(database: Path) -> None:
    dq = DurableQ(database)
    begun = asyncio.Event()
    log: list[str] = []

    async def first() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            await asyncio.sleep(0)
            log.append("first torn down")

    async def second(value: int = Depends(first)) -> int:
        begun.set()
        await asyncio.Event().wait()
        return value

    @dq.task(name="work")
    async def work(value: int = Depends(second)) -> None:
        log.append("ran")

    async with dq.running():
        job = await dq.add_task(work)
        await begun.wait()
        await dq.cancel(job)
        assert (await dq.wait(job, timeout=5)).state is JobState.CANCELLED
    assert log == ["first torn down"]


async def test_two_cancellations_of_one_task_group_do_not_get_in_each_others_way(database: Path) -> None:
    """The task's own timeout strikes while the clean-up after ours is going on."""
    dq = DurableQ(database)
    begun = asyncio.Event()
    log: list[str] = []

    @dq.task(name="work")
    async def work() -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.1):
                begun.set()
                try:
                    await asyncio.Event().wait()
                finally:
                    await asyncio.shield(asyncio.sleep(0.2))
        log.append("went on")

    async with dq.running():
        job = await dq.add_task(work)
        await begun.wait()
        await dq.cancel(job)
        ended = await dq.wait(job, timeout=5)
    assert (ended.state, log) == (JobState.CANCELLED, []), "it was never told that this was its own timeout"


@pytest.fixture(autouse=True)
def no_row_is_left_running(database: Path) -> Iterator[None]:
    yield
    assert not database.exists() or sql(database, "SELECT id FROM durableq_jobs WHERE state = 'running'") == []
