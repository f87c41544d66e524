"""What people and their tools do to a running queue through `DurableQ` itself."""

import asyncio
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import pytest

from durableq import ConfigurationError, DurableQ, InvalidArguments, JobFilter, JobState, Secret
from durableq.encryption import KeyRing, new_key
from durableq.testing import ManualClock
from tests.engine.helpers import AT_ONCE, finished, sql
from tests.engine.processes import program
from tests.support import eventually


async def echo(value: int) -> int:
    return value


async def charge(amount: int, card: Annotated[str, Secret()]) -> None:
    raise ValueError("declined")


async def test_a_paused_queue_starts_nothing_and_a_resumed_one_at_once(database: Path) -> None:
    dq = DurableQ(database)
    dq.task(name="echo")(echo)
    async with dq.running():
        await finished(dq, await dq.add_task(echo, 0))
        await dq.pause("default", who="ann")
        held = await dq.add_task(echo, 1)
        await dq.drain(timeout=5)  # what is paused cannot run, so it is not waited for
        assert (await dq.get(held)).state is JobState.QUEUED
        await dq.resume("default", who="ann")
        assert (await dq.wait(held, timeout=2)).result == 1


async def test_a_pause_in_one_process_holds_in_another(database: Path) -> None:
    async with (dq := DurableQ(database, worker=False)).running():
        dq.task(name="echo")(echo)
        with program(database) as worker:
            first = await dq.add_task(echo, 1)
            assert (await dq.wait(first, timeout=10)).result == 1
            await dq.pause("default")
            held = await dq.add_task(echo, 2)
            await asyncio.to_thread(worker.tell, "echo", 3)
            assert (await dq.counts())[JobState.QUEUED] == 2
            await dq.resume("default")
            assert (await dq.wait(held, timeout=10)).result == 2


async def test_history_counts_every_try_and_survives_a_restart(database: Path) -> None:
    dq = DurableQ(database)
    dq.task(name="echo")(echo)
    dq.task(name="charge", max_attempts=2, retry=AT_ONCE)(charge)
    async with dq.running():
        await finished(dq, await dq.add_task(echo, 1))
        await finished(dq, await dq.add_task(charge, 1, "4111"))
    async with dq.running():
        history = await dq.history(timedelta(hours=1))
        total = history.total
        assert (total.succeeded, total.retried, total.dead) == (1, 1, 1)
        assert sum(point.figures.ended for point in history.points) == 3
        assert [one.task for one in history.tasks] == ["charge", "echo"]
        assert (await dq.history(timedelta(hours=1), task="echo")).total.ended == 1
        assert total.run_p95 is not None and total.wait_p95 is not None


async def test_a_worker_makes_tallies_coarser_as_they_age(database: Path) -> None:
    clock = ManualClock()
    dq = DurableQ(database, clock=clock)
    dq.task(name="echo")(echo)
    async with dq.running():
        await finished(dq, await dq.add_task(echo, 1))
    clock.advance(timedelta(days=2, minutes=7))

    def is_coarse() -> bool:
        return all(at % 3600 == 0 for (at,) in sql(database, "SELECT at FROM durableq_tallies"))

    async with dq.running():
        await eventually(is_coarse)
        assert sum(number for (number,) in sql(database, "SELECT count FROM durableq_tallies")) == 2


async def test_an_app_without_a_tasks_code_checks_edited_arguments_by_what_is_stored_of_it(database: Path) -> None:
    dq = DurableQ(database)
    dq.task(name="charge", max_attempts=1)(charge)
    async with dq.running():
        job = await finished(dq, await dq.add_task(charge, 1, "4111"))
    async with (stranger := DurableQ(database, worker=False)).running():
        assert await stranger.check_edit(job, {"amount": 2, "card": "x"}) == {"amount": 2, "card": "x"}
        with pytest.raises(InvalidArguments, match="argument 'amount'") as refused:
            await stranger.check_edit(job, {"amount": "two", "card": "x"})
        assert refused.value.argument == "amount"
        for wrong in ({"amount": 2}, {"amount": 2, "card": "x", "tip": 1}, {"amount": float("nan"), "card": "x"}):
            with pytest.raises(InvalidArguments):
                await stranger.retry(job, args=wrong)
        edited = await stranger.retry(job, args={"amount": 2, "card": "x"}, who="ann")
        assert (edited.args["amount"], edited.state) == (2, JobState.QUEUED)


async def test_where_nobody_ever_described_a_task_its_arguments_are_not_edited(database: Path) -> None:
    dq = DurableQ(database)
    dq.task(name="charge", max_attempts=1)(charge)
    async with dq.running():
        job = await finished(dq, await dq.add_task(charge, 1, "4111"))
    sql(database, "UPDATE durableq_tasks SET arguments_schema = NULL")
    async with (stranger := DurableQ(database, worker=False)).running():
        with pytest.raises(ConfigurationError, match="not known here"):
            await stranger.retry(job, args={"amount": 2, "card": "x"})


async def test_what_is_edited_under_encryption_is_stored_encrypted(database: Path) -> None:
    ring = KeyRing({"k1": new_key()})
    dq = DurableQ(database, encryption=ring)
    dq.task(name="charge", max_attempts=1)(charge)
    async with dq.running():
        job = await finished(dq, await dq.add_task(charge, 1, "4111"))
        await dq.pause("default")
        edited = await dq.retry(job, args={"amount": 77, "card": "5222"})
        assert edited.args == {"amount": 77, "card": "5222"}
        [(stored,)] = sql(database, "SELECT args FROM durableq_jobs")
        assert "amount" not in stored and "5222" not in stored


@pytest.mark.parametrize("other", [None, KeyRing({"k2": new_key()})])
async def test_arguments_under_a_key_that_is_not_here_are_not_replaced(database: Path, other: KeyRing | None) -> None:
    """They would be stored in clear, or under a key that the job's worker lacks."""
    dq = DurableQ(database, encryption=KeyRing({"k1": new_key()}))
    dq.task(name="charge", max_attempts=1)(charge)
    async with dq.running():
        job = await finished(dq, await dq.add_task(charge, 1, "4111"))
    stored = sql(database, "SELECT args FROM durableq_jobs")
    async with (keyless := DurableQ(database, worker=False, encryption=other)).running():
        keyless.task(name="charge")(charge)
        for act in (keyless.retry, keyless.check_edit):
            with pytest.raises(ConfigurationError, match="encrypted with the key 'k1'"):
                await act(job.id, args={"amount": 2, "card": "5222"})
        assert sql(database, "SELECT args FROM durableq_jobs") == stored
        assert (await keyless.retry(job.id)).state is JobState.QUEUED


async def test_a_damaged_envelope_is_mended_by_an_edit_where_the_key_is(database: Path) -> None:
    dq = DurableQ(database, encryption=KeyRing({"k1": new_key()}))
    dq.task(name="charge", max_attempts=1)(charge)
    async with dq.running():
        job = await finished(dq, await dq.add_task(charge, 1, "4111"))
        sql(database, "UPDATE durableq_jobs SET args = replace(args, 'data', 'lost')")
        await dq.pause("default")
        assert (await dq.retry(job.id, args={"amount": 2, "card": "5222"})).args == {"amount": 2, "card": "5222"}


async def test_the_audit_trail_is_read_in_clear_where_the_key_is(database: Path) -> None:
    dq = DurableQ(database, encryption=KeyRing({"k1": new_key()}))
    dq.task(name="charge", max_attempts=1)(charge)
    async with dq.running():
        job = await finished(dq, await dq.add_task(charge, 1, "4111"))
        await dq.pause("default")
        await dq.retry(job, args={"amount": 2, "card": "5222"})
        [entry] = await dq.audit_trail(job)
        assert entry.detail["args_before"] == {"amount": 1, "card": "4111"}
        assert entry.detail["args_after"] == {"amount": 2, "card": "5222"}
    async with (keyless := DurableQ(database, worker=False)).running():
        [entry] = await keyless.audit_trail(job)
        assert [*entry.detail["args_before"]] == ["$encrypted"]


async def test_the_stored_description_of_a_task_follows_its_code(database: Path) -> None:
    async with (dq := DurableQ(database)).running():
        dq.task(name="work")(echo)
        await finished(dq, await dq.add_task(echo, 1))

    async def newer(value: int, unit: str = "s") -> None: ...

    async with (dq := DurableQ(database)).running():
        dq.task(name="work")(newer)
        await finished(dq, await dq.add_task(newer, 1, unit="m"))
        [task] = await dq.tasks()
        assert task.arguments_schema is not None and '"unit"' in task.arguments_schema


async def test_many_are_cancelled_and_deleted_as_one_asks(database: Path) -> None:
    async with (dq := DurableQ(database, worker=False)).running():
        dq.task(name="echo")(echo)
        jobs = [await dq.add_task(echo, number) for number in range(3)]
        assert await dq.cancel_matching(JobFilter(arguments={"value": "1"}), who="ann") == 1
        assert (await dq.get(jobs[1])).state is JobState.CANCELLED
        assert (await dq.count(JobFilter(state=JobState.QUEUED), look_at=100)).number == 2
        assert await dq.delete_matching(JobFilter(), who="ann") == 1
        assert [entry.action for entry in (await dq.audit()).entries] == ["delete", "cancel"]


async def test_a_number_that_cannot_be_meant_is_refused_and_nothing_is_done(database: Path) -> None:
    """To SQLite, a negative limit is none, which would be everything; and it has no number of more than 64 bits."""
    everything = JobFilter()
    async with (dq := DurableQ(database, worker=False)).running():
        dq.task(name="echo")(echo)
        job = await dq.add_task(echo, 1)
        for refused in (
            dq.list(limit=0),
            dq.list(look_at=0),
            dq.count(everything, look_at=0),
            dq.counts(at_most=0),
            dq.audit(limit=-1),
            dq.logs(job, skip=-1),
            dq.retry_matching(everything, limit=-1),
            dq.cancel_matching(everything, limit=-1),
            dq.delete_matching(everything, limit=-1),
        ):
            with pytest.raises(
                ConfigurationError, match=r"^expected (limit|look_at|at_most|skip) to be [01] or more, got"
            ):
                await refused
        for refused in (dq.list(limit=2**63), dq.list(cursor=2**63 - 1), dq.audit(limit=2**63 - 1)):
            with pytest.raises(ConfigurationError, match=r"^expected \w+ to be at most 9223372036854775806, got"):
                await refused
        assert await dq.list(cursor=2**63 - 2) == await dq.list(limit=2**63 - 2)
        assert await dq.cancel_matching(everything, limit=0) == 0
        assert (await dq.get(job)).state is JobState.QUEUED
