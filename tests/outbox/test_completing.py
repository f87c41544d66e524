"""`current_job().complete_within`: a task's own writes and its success are one commit."""

import asyncio
import contextlib
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Annotated, Any

import pytest
from fastapi import Depends
from sqlalchemy import Engine, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

from durableq import INJECTED, DurableQ, JobState, current_job
from durableq.errors import CollectorClosed, JobConflict, TransactionRefused
from durableq.storage.sqlite import lookout
from tests.outbox.support import AT_ONCE, Disk, Kind
from tests.support import eventually

INSERT = text("INSERT INTO mine VALUES (1)")


async def errors_of(dq: DurableQ, job_id: str) -> list[str]:
    return [attempt.error_type for attempt in await dq.attempts(job_id)]


async def test_the_success_its_result_and_its_follow_ups_commit_with_the_tasks_own_writes(
    working: DurableQ, kind: Kind, disk: Disk
) -> None:
    may_commit, has_written = asyncio.Event(), asyncio.Event()

    @working.task(name="follow", queue="elsewhere")
    async def follow(x: int) -> None: ...

    @working.task(name="pay")
    async def pay(x: int) -> dict[str, int]:
        async with kind.transaction() as transaction:
            await transaction.insert(x)
            current_job().add_task(follow, x + 1)
            await _complete(transaction.given, result={"paid": x})
            has_written.set()
            await may_commit.wait()
            assert (disk.mine, disk.jobs) == ([], [1])
            await transaction.commit()
            assert disk.rows("SELECT state, result FROM durableq_jobs WHERE task = 'pay'") == [
                ("succeeded", '{"paid":1}')
            ]
        return {"paid": -1}  # what was committed counts

    job = await working.add_task(pay, 1)
    waiting = asyncio.create_task(_result(working, job))
    await has_written.wait()
    assert not waiting.done()
    may_commit.set()
    assert await asyncio.wait_for(waiting, 5) == {"paid": 1}
    await working.drain(10)
    assert (disk.mine, disk.jobs) == ([1], [1, 2])
    stored = await working.get(job)
    assert (stored.state, stored.attempt) == (JobState.SUCCEEDED, 1)
    assert await errors_of(working, job.id) == []


async def _result(dq: DurableQ, job: Any) -> Any:
    return await dq.result(job)


async def _complete(transaction: Any, *, result: Any = None) -> None:
    await current_job().complete_within(transaction, result=result)


async def test_whoever_hears_of_the_success_hears_of_its_result(working: DurableQ, kind: Kind) -> None:
    told: list[Any] = []

    @working.task(name="pay", on_success=lambda job: told.append(job.result))
    async def pay(x: int) -> None:
        async with kind.transaction() as transaction:
            await _complete(transaction.given, result={"paid": x})
            await transaction.commit()

    await working.add_task(pay, 7)
    await eventually(lambda: told == [{"paid": 7}])


async def test_a_rollback_makes_the_attempt_fail_and_the_next_one_counts(
    working: DurableQ, kind: Kind, disk: Disk
) -> None:
    @working.task(name="pay", retry=AT_ONCE)
    async def pay(x: int) -> None:
        async with kind.transaction() as transaction:
            await transaction.insert(current_job().attempt)
            await _complete(transaction.given)
            await (transaction.rollback() if current_job().attempt == 1 else transaction.commit())

    job = await working.add_task(pay, 1)
    await asyncio.wait_for(working.wait(job), 10)
    assert disk.mine == [2]
    assert (await working.get(job)).state is JobState.SUCCEEDED
    assert await errors_of(working, job.id) == ["durableq.CompletionRolledBack"]


async def test_a_rolled_back_savepoint_and_a_forgotten_commit_are_rollbacks_too(
    working: DurableQ, kind: Kind, disk: Disk
) -> None:
    @working.task(name="pay", retry=AT_ONCE, max_attempts=2)
    async def pay(x: int) -> None:
        async with kind.transaction() as transaction:
            if current_job().attempt == 1:
                await transaction.insert(1)
                with contextlib.suppress(KeyError):
                    async with transaction.savepoint():
                        await _complete(transaction.given)
                        raise KeyError
                await transaction.commit()
            else:
                await transaction.insert(2)
                await _complete(transaction.given)

    job = await working.add_task(pay, 1)
    await asyncio.wait_for(working.wait(job), 10)
    assert disk.mine == [1]
    assert (await working.get(job)).state is JobState.DEAD
    assert await errors_of(working, job.id) == ["durableq.CompletionRolledBack"] * 2
    await eventually(lambda: not disk.is_locked())


async def test_an_error_before_the_commit_is_an_ordinary_failure(working: DurableQ, kind: Kind, disk: Disk) -> None:
    @working.task(name="pay", retry=AT_ONCE, max_attempts=2)
    async def pay(x: int) -> None:
        async with kind.transaction() as transaction:
            await transaction.insert(1)
            await _complete(transaction.given)
            raise ZeroDivisionError

    job = await working.add_task(pay, 1)
    await asyncio.wait_for(working.wait(job), 10)
    assert disk.mine == []
    assert await errors_of(working, job.id) == ["ZeroDivisionError"] * 2


@pytest.mark.parametrize("error", [ZeroDivisionError, asyncio.CancelledError, SystemExit])
async def test_whatever_is_raised_after_the_commit_it_has_succeeded(
    working: DurableQ, disk: Disk, engine: Engine, error: type[BaseException]
) -> None:
    @working.task(name="pay", retry=AT_ONCE)
    async def pay(x: int) -> None:
        with Session(engine) as session:
            session.execute(INSERT)
            await _complete(session)
            session.commit()
        raise error

    job = await working.add_task(pay, 1)
    await asyncio.wait_for(working.wait(job), 10)
    await working.drain(10)
    assert disk.mine == [1]
    assert (await working.get(job)).state is JobState.SUCCEEDED
    assert await errors_of(working, job.id) == []


@pytest.mark.parametrize("given", ["session", "connection", "sqlite3"])
async def test_a_plain_function_in_a_thread_completes_at_the_call(
    working: DurableQ, disk: Disk, engine: Engine, given: str
) -> None:
    @working.task(name="pay")
    def pay(x: int) -> str:
        with contextlib.ExitStack() as stack:
            if given == "sqlite3":
                one: Any = stack.enter_context(contextlib.closing(sqlite3.connect(disk.path)))
                one.execute("INSERT INTO mine VALUES (1)")
            else:
                one = stack.enter_context(Session(engine) if given == "session" else engine.connect())
                one.execute(INSERT)
            current_job().complete_within(one, result="paid")
            assert disk.is_locked()
            one.commit()
        return "ignored"

    job = await working.add_task(pay, 1)
    assert await working.result(job, timeout=10) == "paid"
    assert disk.mine == [1]
    assert await errors_of(working, job.id) == []


async def test_a_value_that_is_returned_and_not_given_is_missed_aloud(
    working: DurableQ, disk: Disk, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    @working.task(name="pay")
    def pay(x: int) -> str:
        with Session(engine) as session:
            session.execute(INSERT)
            current_job().complete_within(session)
            session.commit()
        return "paid"

    job = await working.add_task(pay, 1)
    assert await working.result(job, timeout=10) is None
    assert disk.mine == [1]
    await eventually(lambda: f"job {job.id} returned a value that is not stored" in caplog.text)


async def test_a_forgotten_await_is_not_a_success(working: DurableQ, disk: Disk, async_engine: AsyncEngine) -> None:
    """With an async transaction nothing happens before; that must not pass for one that was committed."""
    kept: list[Any] = []

    @working.task(name="pay", max_attempts=1)
    async def pay(x: int) -> None:
        async with AsyncSession(async_engine) as session:
            await session.execute(INSERT)
            kept.append(current_job().complete_within(session))
            await session.commit()

    job = await working.add_task(pay, 1)
    await asyncio.wait_for(working.wait(job), 10)
    kept[0].close()
    assert await errors_of(working, job.id) == ["durableq.CompletionRolledBack"]


class TestDependencies:
    """A session that is given by ``Depends`` commits when the task is over."""

    async def test_an_async_one_commits_in_its_teardown(
        self, working: DurableQ, disk: Disk, async_engine: AsyncEngine
    ) -> None:
        async def get_session() -> AsyncIterator[AsyncSession]:
            async with AsyncSession(async_engine) as session:
                yield session
                await session.commit()

        @working.task(name="pay")
        async def pay(x: int, *, session: Annotated[AsyncSession, Depends(get_session)] = INJECTED) -> str:
            await session.execute(INSERT)
            await current_job().complete_within(session, result="paid")
            return "ignored"

        await self._check(working, disk, pay)

    @pytest.mark.parametrize("in_thread", [False, True])
    async def test_a_sync_one_commits_in_its_teardown(
        self, working: DurableQ, disk: Disk, engine: Engine, in_thread: bool
    ) -> None:
        def get_session() -> Iterator[Session]:
            with Session(engine) as session:
                yield session
                session.commit()

        given = Annotated[Session, Depends(get_session)]

        async def pay(x: int, *, session: given = INJECTED) -> str:
            session.execute(INSERT)
            await current_job().complete_within(session, result="paid")
            return "ignored"

        def sync_pay(x: int, *, session: given = INJECTED) -> str:
            session.execute(INSERT)
            current_job().complete_within(session, result="paid")
            return "ignored"

        await self._check(working, disk, working.task(name="pay")(sync_pay if in_thread else pay))

    async def _check(self, working: DurableQ, disk: Disk, pay: Callable[..., Any]) -> None:
        job = await working.add_task(pay, 1)
        assert await working.result(job, timeout=10) == "paid"
        assert disk.mine == [1]
        assert await errors_of(working, job.id) == []
        await eventually(lambda: not disk.is_locked())

    async def test_a_teardown_that_fails_to_commit_makes_the_attempt_fail(
        self, working: DurableQ, disk: Disk, engine: Engine
    ) -> None:
        def get_session() -> Iterator[Session]:
            with Session(engine) as session:
                yield session
                if current_job().attempt == 1:
                    raise ConnectionError
                session.commit()

        @working.task(name="pay", retry=AT_ONCE)
        async def pay(x: int, *, session: Annotated[Session, Depends(get_session)] = INJECTED) -> None:
            session.execute(INSERT)
            await current_job().complete_within(session)

        job = await working.add_task(pay, 1)
        await asyncio.wait_for(working.wait(job), 10)
        assert disk.mine == [1]
        assert await errors_of(working, job.id) == ["ConnectionError"]


async def test_who_lost_the_lease_is_refused_and_nothing_of_it_is_stored(
    working: DurableQ, kind: Kind, disk: Disk
) -> None:
    refused: list[BaseException] = []

    async def pay_too_late() -> None:
        async with kind.transaction() as transaction:
            await transaction.insert(1)
            await _complete(transaction.given)

    @working.task(name="pay", retry=AT_ONCE)
    async def pay(x: int) -> None:
        with contextlib.closing(sqlite3.connect(disk.path)) as thief, thief:
            thief.execute("UPDATE durableq_jobs SET lease_no = lease_no + 1")
        try:
            await pay_too_late()
        except JobConflict as error:  # its transaction is over: nothing of it is open when the test ends
            refused.append(error)
            raise

    job = await working.add_task(pay, 1)

    await eventually(lambda: bool(refused))
    assert job.id in str(refused[0])
    assert disk.mine == []


async def test_what_cannot_carry_it_is_refused_and_the_task_may_go_on(working: DurableQ, disk: Disk) -> None:
    @working.task(name="pay", max_attempts=1)
    async def pay(x: int) -> str:
        with contextlib.closing(sqlite3.connect(":memory:")) as elsewhere, pytest.raises(TransactionRefused):
            await current_job().complete_within(elsewhere)
        with contextlib.closing(sqlite3.connect(disk.path)) as connection:
            await current_job().complete_within(connection, result="after all")
            connection.commit()
        return "ignored"

    assert await working.result(await working.add_task(pay, 1), timeout=10) == "after all"


async def test_a_second_try_after_a_rollback_counts(working: DurableQ, disk: Disk, engine: Engine) -> None:
    @working.task(name="pay", max_attempts=1)
    async def pay(x: int) -> None:
        with Session(engine) as session:
            for is_last in (False, True):
                session.execute(INSERT)
                await current_job().complete_within(session)
                if is_last:
                    session.commit()
                else:
                    session.rollback()

    job = await working.add_task(pay, 1)
    assert (await asyncio.wait_for(working.wait(job), 10)).state is JobState.SUCCEEDED
    assert disk.mine == [1]


async def test_a_follow_up_that_comes_too_late_is_refused(working: DurableQ, disk: Disk, engine: Engine) -> None:
    @working.task(name="pay", max_attempts=1)
    async def pay(x: int) -> None:
        with Session(engine) as session:
            await current_job().complete_within(session)
            with pytest.raises(CollectorClosed):
                current_job().add_task(pay, 2)
            with pytest.raises(TransactionRefused):
                await working.add_task(pay, 3)
            session.commit()

    job = await working.add_task(pay, 1)
    assert (await asyncio.wait_for(working.wait(job), 10)).state is JobState.SUCCEEDED
    assert disk.jobs == [1]


async def test_a_result_that_is_not_to_be_kept_is_not(working: DurableQ, disk: Disk, engine: Engine) -> None:
    @working.task(name="pay", result_ttl=0)
    async def pay(x: int) -> None:
        with Session(engine) as session:
            await current_job().complete_within(session, result="secret")
            session.commit()

    await asyncio.wait_for(working.wait(await working.add_task(pay, 1)), 10)
    assert disk.rows("SELECT result FROM durableq_jobs") == [(None,)]


async def test_who_waits_for_the_result_hears_of_the_commit_at_once(
    working: DurableQ, disk: Disk, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not only when the task has returned."""
    monkeypatch.setattr(lookout, "LOOK_SECONDS", 60.0)
    may_return = asyncio.Event()

    @working.task(name="pay")
    async def pay(x: int) -> str:
        with Session(engine) as session:
            await current_job().complete_within(session, result="paid")
            await asyncio.sleep(0.05)
            session.commit()
        await may_return.wait()
        return "ignored"

    began = time.monotonic()
    assert await working.result(await working.add_task(pay, 1), timeout=10) == "paid"
    assert time.monotonic() - began < 5
    may_return.set()


async def test_a_unique_key_is_free_again_with_the_commit(working: DurableQ, disk: Disk, engine: Engine) -> None:
    @working.task(name="pay", unique="one")
    async def pay(x: int) -> None:
        with Session(engine) as session:
            await current_job().complete_within(session)
            if x == 1:
                working.within(session).add_task(pay, 2)  # sees the key free, in the same transaction
            session.commit()

    await working.add_task(pay, 1)
    await working.drain(10)
    assert disk.rows("SELECT json_extract(args, '$.x'), state FROM durableq_jobs ORDER BY seq") == [
        (1, "succeeded"),
        (2, "succeeded"),
    ]
