"""Ways to add a job: from the loop, from threads and scripts, many at once, and without waiting."""

import asyncio
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from durableq import (
    ConfigurationError,
    DuplicateJob,
    DurableQ,
    InvalidArguments,
    Job,
    JobState,
    QueueNotRunning,
    Unique,
    call,
)
from durableq.adding import BULK_BYTES, BULK_LIMIT
from tests.engine.helpers import finished, sql
from tests.engine.processes import ROOT
from tests.support import eventually, eventually_sync


async def double(number: int) -> int:
    return 2 * number


def count(database: Path) -> int:
    number: int = sql(database, "SELECT count(*) FROM durableq_jobs")[0][0]
    return number


async def test_a_job_is_on_disk_when_the_await_returns(database: Path) -> None:
    dq = DurableQ(database, worker=False)
    async with dq.running():
        job = await dq.add_task(double, 4)
        assert sql(database, "SELECT id, state, args FROM durableq_jobs") == [(job.id, "queued", '{"number":4}')]


async def test_a_forgotten_await_still_stores_the_job(database: Path) -> None:
    dq = DurableQ(database)
    async with dq.running():
        job = dq.add_task(double, 4).job
        await eventually(lambda: count(database) == 1)
        assert (await finished(dq, job)).result == 8


async def test_a_forgotten_await_right_before_the_end_still_stores_the_job(database: Path) -> None:
    dq = DurableQ(database, worker=False)
    async with dq.running():
        dq.add_task(double, 4)
    assert count(database) == 1


async def test_arguments_are_checked_at_the_call_not_at_the_await(database: Path) -> None:
    dq = DurableQ(database, worker=False)
    async with dq.running():
        with pytest.raises(InvalidArguments, match="argument 'number'"):
            dq.add_task(double, "many")  # type: ignore[call-overload]
        changing = [1]
        adding = dq.add_task(total, changing)
        changing.append(1_000)
        assert (await adding).args == {"numbers": [1]}, "encoded at the call: later changes are not in it"
    assert count(database) == 1


async def total(numbers: list[int]) -> int:
    return sum(numbers)


async def test_cancelling_the_await_changes_nothing(database: Path) -> None:
    dq = DurableQ(database, worker=False)

    async def add_and_wait() -> Job[int]:
        return await dq.add_task(double, 4)

    async with dq.running():
        adding = [asyncio.create_task(add_and_wait()) for _ in range(20)]
        for turns, task in enumerate(adding):
            for _ in range(turns % 4 + 1):
                await asyncio.sleep(0)
            task.cancel()
        await asyncio.gather(*adding, return_exceptions=True)
        await dq.add_task(double, 1)  # whatever was handed over before it is written with it
        assert count(database) == 21


async def test_a_thread_adds_with_add_task_sync(database: Path) -> None:
    dq = DurableQ(database)
    async with dq.running():
        job = await asyncio.to_thread(dq.add_task_sync, double, 21)
        assert count(database) == 1
        assert (await finished(dq, job)).result == 42


async def test_add_task_sync_is_refused_where_it_would_block_the_loop(database: Path) -> None:
    dq = DurableQ(database)
    async with dq.running():
        with pytest.raises(QueueNotRunning, match="would block the event loop"):
            dq.add_task_sync(double, 1)
    assert count(database) == 0


def test_a_script_adds_without_a_running_queue(database: Path) -> None:
    dq = DurableQ(database)
    jobs = [dq.add_task_sync(double, number) for number in range(3)]
    assert [row[0] for row in sql(database, "SELECT id FROM durableq_jobs ORDER BY seq")] == [job.id for job in jobs]
    eventually_sync(lambda: "durableq-writer" not in [thread.name for thread in threading.enumerate()])


def test_what_a_script_of_its_own_has_added_a_worker_runs(database: Path) -> None:
    # There is no file here to derive the app's own directory from, so the script names the module.
    script = (
        "import sys; from durableq import DurableQ; from tests.engine.test_adding import double\n"
        "dq = DurableQ(sys.argv[1], task_modules=['tests.engine.test_adding'])\n"
        "print(dq.add_task_sync(double, 5).id)"
    )
    command = [sys.executable, "-c", script, str(database)]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20, check=True).stdout

    async def run_it() -> object:
        dq = DurableQ(database)
        async with dq.running():
            return (await finished(dq, await dq.get(said.strip()))).result

    assert asyncio.run(run_it()) == 10


async def test_adding_from_a_sync_job_works(database: Path) -> None:
    dq = DurableQ(database)

    @dq.task(name="parent")
    def parent() -> str:
        return dq.add_task_sync(double, 3).id

    async with dq.running():
        child = (await finished(dq, await dq.add_task(parent))).result
        assert (await finished(dq, await dq.get(child))).result == 6


async def test_many_are_added_in_one_transaction_in_their_order(database: Path) -> None:
    dq = DurableQ(database, worker=False)
    async with dq.running():
        jobs = await dq.add_tasks([call(double, number) for number in range(6_000)])
        assert await dq.add_tasks([]) == []
    assert [row[0] for row in sql(database, "SELECT id FROM durableq_jobs ORDER BY seq")] == [job.id for job in jobs]


@pytest.mark.parametrize(
    ("unique", "claim"),
    [
        ({"args": ["order"]}, "the unique key that charge makes of order"),
        ({}, "the unique key that charge makes of order, note"),
        ({"args": []}, "the unique key of charge"),
        ({"key": "daily"}, "the unique key 'daily' of charge"),
    ],
)
async def test_who_holds_a_unique_key_is_told_by_task_and_arguments(
    database: Path, unique: dict[str, Any], claim: str
) -> None:
    """Whichever way it was asked for: the hash that the key is made of says nothing."""
    dq = DurableQ(database, worker=False)

    @dq.task(name="charge", unique=Unique(on_conflict="raise", **unique))
    async def charge(order: int, note: str = "") -> None: ...

    ways: list[Callable[[], Any]] = [
        lambda: dq.add_task(charge, 1),
        lambda: dq.add_tasks([call(double, 1), call(charge, 1)]),
        lambda: asyncio.to_thread(dq.add_task_sync, charge, 1),
    ]
    async with dq.running():
        with pytest.raises(DuplicateJob, match=f"^another call of this same addition wants {claim} too; nothing was"):
            await dq.add_tasks([call(charge, 1), call(charge, 1)])
        holder = await dq.add_task(charge, 1)
        for add in ways:
            with pytest.raises(DuplicateJob) as caught:
                await add()
            assert str(caught.value) == f"job {holder.id} already holds {claim}; nothing was stored"
            assert caught.value.job_id == holder.id
    assert count(database) == 1


async def test_one_bad_call_among_many_stores_none(database: Path) -> None:
    dq = DurableQ(database, worker=False)
    async with dq.running():
        with pytest.raises(InvalidArguments):
            dq.add_tasks([call(double, 1), call(double, "x"), call(double, 2)])  # type: ignore[call-overload]
    assert count(database) == 0


@pytest.mark.parametrize(
    ("calls", "came"),
    [
        ([double], "one with double itself in it"),
        ([call(double, 1), (double, 1)], "one with an object of type tuple in it"),
        (call(double, 1), "an object of type Call"),
        (double, "double itself"),
    ],
    ids=["function", "tuple", "one call", "no list"],
)
async def test_what_is_no_list_of_calls_is_refused_with_how_to_make_one(database: Path, calls: Any, came: str) -> None:
    dq = DurableQ(database, worker=False)
    async with dq.running():
        with pytest.raises(ConfigurationError) as caught:
            await dq.add_tasks(calls)
        assert str(caught.value).startswith(f"expected a list of calls, got {came}; wrap each in call(fn, ...): ")
        assert count(database) == 0


async def test_more_than_a_hundred_thousand_at_once_are_refused_with_nothing_stored(database: Path) -> None:
    dq = DurableQ(database, worker=False)
    async with dq.running():
        job = dq.new_job(double, (1,), {})
        with pytest.raises(ConfigurationError, match="too many for one transaction; split it"):
            dq.add_jobs([job] * (BULK_LIMIT + 1))
    assert count(database) == 0


async def test_more_than_64_mib_at_once_are_refused_with_nothing_stored(database: Path) -> None:
    dq = DurableQ(database, worker=False, max_payload_bytes=2 * 1024 * 1024)

    @dq.task(name="big")
    async def big(text: str) -> None: ...

    async with dq.running():
        job = dq.new_job(big, ("x" * 1024 * 1024,), {})
        with pytest.raises(ConfigurationError, match="too many for one transaction; split it"):
            dq.add_jobs([job] * (BULK_BYTES // (1024 * 1024) + 1))
        assert (await dq.counts())[JobState.QUEUED] == 0
        two_bytes_a_letter = dq.new_job(big, ("é" * 512 * 1024,), {})
        with pytest.raises(ConfigurationError, match="too many for one transaction; split it"):
            dq.add_jobs([two_bytes_a_letter] * (BULK_BYTES // (1024 * 1024) + 1))
