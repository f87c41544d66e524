"""What becomes of stored jobs when the code changes: tasks are renamed, moved, retired, and take other arguments."""

import functools
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tenacity import wait_fixed, wait_none

from durableq import (
    ConfigurationError,
    DurableQ,
    InvalidArguments,
    Job,
    JobFilter,
    JobState,
    RetryPolicy,
    Task,
    call,
    current_job,
)
from durableq.testing import ManualClock
from tests.engine.helpers import finished, in_state
from tests.support import eventually

ROOT = Path(__file__).resolve().parents[2]


def remote(dq: DurableQ, name: str, **options: Any) -> Task[[Any], Any]:
    """A task of one argument whose code is run by another deployment."""

    def task(order: Any) -> Any:
        raise AssertionError(f"{name} ran here")

    return dq.task(name=name, **options)(task)


async def added_before(database: Path, name: str, *orders: Any, **options: Any) -> list[Job[Any]]:
    """Jobs of a task ``name(order)`` from a deployment that took anything, and has ended."""
    before = DurableQ(database, worker=False)
    task = remote(before, name, **options)
    async with before.running():
        return await before.add_tasks([call(task, order) for order in orders])


# -- renamed -------------------------------------------------------------------------------------------------


async def test_jobs_of_a_renamed_task_run_under_its_aliases(database: Path) -> None:
    jobs = await added_before(database, "shop:charge_card", 1) + await added_before(database, "shop.cards:charge", 2)
    after = DurableQ(database)

    @after.task(name="shop:charge", aliases=["shop:charge_card", "shop.cards:charge"])
    async def charge(order: int) -> str:
        return f"{order} as {current_job().task}"

    async with after.running():
        jobs.append(await after.add_task(charge, 3))
        results = [await after.result(job) for job in jobs]
    assert results == ["1 as shop:charge_card", "2 as shop.cards:charge", "3 as shop:charge"]


async def test_what_a_task_does_after_its_job_is_done_for_its_aliases_too(database: Path) -> None:
    bad, good = await added_before(database, "old", 1, 2, max_attempts=2)
    after = DurableQ(database)
    seen: list[tuple[str, str]] = []

    @after.task(
        name="new",
        aliases=["old"],
        retry=RetryPolicy(wait=wait_none()),
        on_retry=lambda job, error: seen.append(("retry", job.id)),
        on_dead=lambda job, error: seen.append(("dead", job.id)),
    )
    async def new(order: int) -> bytes:
        if order == 1:
            raise ValueError("no")
        return b"\xff"

    async with after.running():
        assert await after.result(good.id) == b"\xff", "of the type that the task of now declares"
        assert (await finished(after, bad)).attempt == 2, "the row keeps the tries that the job was given"
        await eventually(lambda: len(seen) == 2)
        mended = await after.retry(bad, args={"order": 3})
        assert (await finished(after, mended)).state is JobState.SUCCEEDED
    assert seen == [("retry", bad.id), ("dead", bad.id)]


async def test_a_retry_that_waits_goes_on_under_the_new_name(database: Path) -> None:
    clock = ManualClock()
    before, after = DurableQ(database, clock=clock), DurableQ(database, clock=clock)

    @before.task(name="old", retry=RetryPolicy(wait=wait_fixed(60)))
    async def old() -> str:
        raise ConnectionError("the other side is down")

    @after.task(name="new", aliases=["old"])
    async def new() -> str:
        return "done"

    async with before.running():
        job = await before.add_task(old)
        await in_state(before, job, JobState.SCHEDULED)
    async with after.running():
        clock.advance(60)
        job = await finished(after, job)
    assert (job.task, job.attempt, job.result) == ("old", 2, "done")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ('name="mail"', 'name="mail"'),
        ('name="mail"', 'name="post", aliases=["mail"]'),
        ('name="letter", aliases=["mail"]', 'name="mail"'),
        ('name="letter", aliases=["mail"]', 'name="post", aliases=["parcel", "mail"]'),
        ("", 'name="shop:send"'),
        ("", 'aliases=["shop:send"]'),
    ],
)
def test_two_tasks_of_one_name_are_refused_when_the_app_is_imported(tmp_path: Path, first: str, second: str) -> None:
    source = f"from durableq import DurableQ\ndq = DurableQ('never-opened.db')\n@dq.task({first})\ndef send(): ...\n\n"
    (tmp_path / "shop.py").write_text(f"{source}@dq.task({second})\ndef post(): ...\n")
    spec = importlib.util.spec_from_file_location("shop", tmp_path / "shop.py")
    assert spec is not None
    assert spec.loader is not None
    with pytest.raises(ConfigurationError, match=r"two tasks are named '(mail|shop:send)'") as caught:
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    assert "send (shop.py:3) and post (shop.py:6)" in str(caught.value)


async def test_functions_behind_one_decorator_stay_what_they_are(database: Path) -> None:
    def noted(function: Callable[..., str]) -> Callable[..., str]:
        @functools.wraps(function)
        def wrapper(*args: Any, **kwargs: Any) -> str:
            return f"noted {function(*args, **kwargs)}"

        return wrapper

    def deployment() -> tuple[DurableQ, list[Callable[..., str]]]:
        dq = DurableQ(database)

        @dq.task(name="print")
        @noted
        def draw(page: int) -> str:
            return f"page {page}"

        @dq.task(name="send")
        @noted
        def send(to: str) -> str:
            return f"to {to}"

        return dq, [draw, send]

    before, (draw, send) = deployment()
    async with before.running():
        jobs = [await before.add_task(draw, 1), await before.add_task(send, "ann")]
        with pytest.raises(InvalidArguments):
            before.add_task(draw, to="ann")
        results = [await before.result(job) for job in jobs]
    assert results == ["noted page 1", "noted to ann"]
    assert [job.task for job in jobs] == ["print", "send"]


# -- retired -------------------------------------------------------------------------------------------------


@pytest.mark.fault("F41")
@pytest.mark.foreign_bug(8)
async def test_jobs_of_a_retired_task_wait_in_sight_until_some_code_has_their_name(database: Path) -> None:
    [job] = await added_before(database, "retired", 1)
    without, again = DurableQ(database), DurableQ(database)

    @without.task(name="other")
    async def other() -> str:
        return "other"

    @again.task(name="back", aliases=["retired"])
    async def back(order: int) -> str:
        return f"{order} at last"

    async with without.running():
        assert await without.result(await without.add_task(other)) == "other"
        await without.drain(timeout=5)  # it does not wait for what this app cannot run
        [waiting] = (await without.list(JobFilter(task="retired"))).jobs
        assert (waiting.id, waiting.state, waiting.attempt) == (job.id, JobState.QUEUED, 0)
    async with again.running():
        assert await again.result(job) == "1 at last"


# -- other arguments -----------------------------------------------------------------------------------------


@pytest.mark.fault("F42")
@pytest.mark.foreign_bug(8)
async def test_arguments_that_no_longer_fit_are_dead_letters_that_can_be_edited_and_retried(database: Path) -> None:
    fits, worded, nothing = await added_before(database, "charge", "7", "seven", None)
    after = DurableQ(database)
    ran: list[int] = []

    @after.task(name="charge", max_attempts=5)
    async def charge(order: int) -> int:
        ran.append(order)
        return order

    async with after.running():
        assert await after.result(fits) == 7, "what still fits is converted"
        for job in (worded, nothing):
            dead = await finished(after, job)
            assert (dead.state, dead.attempt) == (JobState.DEAD, 1), "trying again would not mend it"
            assert dead.error is not None
            assert dead.error.type == "durableq.InvalidArguments"
            assert "charge: argument 'order': input should be a valid integer" in dead.error.message
            assert "edit the arguments and retry" in dead.error.message
        assert ran == [7]

        again = await finished(after, await after.retry(worded))
        assert again.state is JobState.DEAD, "unchanged, they fit no better"
        for bad in ({"order": "eight"}, {"number": 8}, {}):
            with pytest.raises(InvalidArguments, match="charge: "):
                await after.retry(worded, args=bad)
        assert (await after.get(worded)).args == {"order": "seven"}
        mended = await finished(after, await after.retry(worded, args={"order": "8"}, who="ann"))
        assert (mended.state, mended.result, mended.args) == (JobState.SUCCEEDED, 8, {"order": 8})
        assert {entry.who for entry in await after.audit_trail(worded)} == {"application", "ann"}
    assert ran == [7, 8]


async def test_a_new_parameter_with_a_default_fits_jobs_of_before(database: Path) -> None:
    [job] = await added_before(database, "charge", 1)
    after = DurableQ(database)

    @after.task(name="charge")
    async def charge(order: int, *, currency: str = "EUR") -> str:
        return f"{order} {currency}"

    async with after.running():
        assert await after.result(job) == "1 EUR"


async def test_a_job_that_does_not_fit_the_new_code_fits_again_once_that_is_rolled_back(database: Path) -> None:
    [job] = await added_before(database, "charge", 1)
    wrong, rolled_back = DurableQ(database), DurableQ(database)

    @wrong.task(name="charge")
    async def charge_in(currency: str, number: int) -> int:
        return number

    @rolled_back.task(name="charge")
    async def charge(order: int) -> int:
        return order

    async with wrong.running():
        dead = await finished(wrong, job)
        assert dead.error is not None
        assert "argument 'currency' is missing" in dead.error.message
    async with rolled_back.running():
        assert await rolled_back.retry_matching(JobFilter(error_type="durableq.InvalidArguments")) == 1
        assert await rolled_back.result(job) == 1


# -- two deployments side by side ----------------------------------------------------------------------------

SHOP = """
import asyncio, os, sys
from durableq import DurableQ

dq = DurableQ(sys.argv[1])
{tasks}

async def main():
    async with dq.running():
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.read)


asyncio.run(main())
"""
OLD = """
@dq.task
async def charge(order: int) -> int:
    return os.getpid()
"""
NEW = """
@dq.task(aliases=["shop:charge"])
async def bill(order: int) -> int:
    return os.getpid()

@dq.task
async def refund(order: int) -> int:
    return os.getpid()
"""


@contextmanager
def deployed(directory: Path, tasks: str, database: Path) -> Iterator[tuple[int, Path]]:
    """Run a version of shop.py in a process of its own; give its pid and its log. It leaves in good order."""
    directory.mkdir()
    (directory / "shop.py").write_text(SHOP.format(tasks=tasks))
    log = directory / "log"
    with (
        log.open("w") as stderr,
        subprocess.Popen(
            [sys.executable, str(directory / "shop.py"), str(database)],
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        ) as process,
    ):
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "ready\n", log.read_text()
            yield process.pid, log
            process.stdin.close()
            assert process.wait(15) == 0, log.read_text()
        finally:
            process.kill()


@pytest.mark.fault("F18")
async def test_while_two_versions_run_side_by_side_each_takes_only_what_it_knows(
    tmp_path: Path, database: Path
) -> None:
    dq = DurableQ(database, worker=False)
    charge, bill, refund = (remote(dq, f"shop:{name}") for name in ("charge", "bill", "refund"))

    async def pids_of(jobs: list[Job[Any]]) -> set[int]:
        return {await dq.result(job, timeout=15) for job in jobs}

    async with dq.running():
        with deployed(tmp_path / "old", OLD, database) as (old, log):
            refunds = await dq.add_tasks([call(refund, order) for order in range(20)])
            charges = await dq.add_tasks([call(charge, order) for order in range(20)])
            assert await pids_of(charges) == {old}, "what it does not know does not stand in the way of the rest"
            await eventually(lambda: "shop:refund" in log.read_text())
            waiting = [await dq.get(job) for job in refunds]
            assert {(job.state, job.attempt) for job in waiting} == {(JobState.QUEUED, 0)}

            with deployed(tmp_path / "new", NEW, database) as (new, _):
                bills = await dq.add_tasks([call(bill, order) for order in range(20)])
                charges = await dq.add_tasks([call(charge, order) for order in range(200)])
                assert await pids_of(refunds + bills) == {new}
                assert await pids_of(charges) <= {old, new}
                done = [await dq.get(job) for job in refunds + bills + charges]
                assert {job.attempt for job in done} == {1}

        with deployed(tmp_path / "newer", NEW, database) as (newer, log):
            assert await pids_of(await dq.add_tasks([call(charge, order) for order in range(5)])) == {newer}
            assert "left alone" not in log.read_text()
