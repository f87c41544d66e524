"""What goes in and what comes out: results that cannot be kept, arguments that were damaged or no longer fit."""

import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import pytest
from pydantic import BeforeValidator

from durableq import DurableQ, JobState
from durableq.events import ResultNotStored
from durableq.testing import ManualClock
from tests.engine.helpers import collect, finished, sql

# -- results -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [None, 0, "text", [1, 2], {"a": {"b": None}}, 1.5, True])
async def test_what_a_task_returns_is_kept(database: Path, value: Any) -> None:
    dq = DurableQ(database)

    @dq.task(name="give")
    async def give() -> Any:
        return value

    async with dq.running():
        assert (await finished(dq, await dq.add_task(give))).result == value


class Hostile:
    """An object that answers every attempt to write it with an error."""

    def __iter__(self) -> NoReturn:
        raise KeyError("written to death")

    @property
    def __dict__(self) -> NoReturn:  # type: ignore[override]
        raise KeyError("written to death")


@pytest.mark.fault("F45")
@pytest.mark.parametrize("value", [object(), float("nan"), "\ud800", {1, object()}, Hostile(), "x" * 2_000_000])
async def test_a_result_that_cannot_be_stored_leaves_the_job_succeeded_with_a_marker(
    database: Path, value: Any
) -> None:
    dq = DurableQ(database)
    not_stored = collect(dq.events, ResultNotStored)
    runs = 0

    @dq.task(name="give")
    async def give() -> Any:
        nonlocal runs
        runs += 1
        return value

    async with dq.running():
        job = await finished(dq, await dq.add_task(give))
    assert (job.state, job.attempt, runs, len(not_stored)) == (JobState.SUCCEEDED, 1, 1, 1)
    assert list(job.result) == ["durableq:not-storable"]


# -- arguments -----------------------------------------------------------------------------------------------


@pytest.mark.fault("F27", "F52")
@pytest.mark.foreign_bug(2)
@pytest.mark.parametrize(
    "damage",
    [
        pytest.param("""UPDATE durableq_jobs SET args = '{"amount":9000}'""", id="other arguments"),
        pytest.param("UPDATE durableq_jobs SET args = CAST(x'7b22616d6f756e74223ab17d' AS TEXT)", id="not UTF-8"),
        pytest.param("UPDATE durableq_jobs SET args = CAST(x'7b22616d6f756e74223a007d' AS TEXT)", id="a NUL"),
        pytest.param("UPDATE durableq_jobs SET args = ''", id="nothing left"),
        pytest.param("UPDATE durableq_jobs SET checksum = checksum + 1", id="the checksum itself"),
    ],
)
async def test_a_job_whose_arguments_were_damaged_is_never_executed_and_holds_up_no_other(
    database: Path, damage: str
) -> None:
    clock = ManualClock()
    dq = DurableQ(database, clock=clock)
    paid: list[int] = []

    @dq.task(name="pay")
    async def pay(amount: int) -> None:
        paid.append(amount)

    async with dq.running():
        damaged = await dq.add_task(pay.options(delay=60), 1)
        sql(database, damage)
        healthy = await dq.add_task(pay.options(delay=60), 2)
        clock.advance(61)
        assert (await finished(dq, healthy)).state is JobState.SUCCEEDED
        dead = await finished(dq, damaged)
    assert paid == [2]
    assert dead.error is not None
    assert (dead.state, dead.attempt, dead.error.type) == (JobState.DEAD, 1, "durableq.PayloadCorrupt")


@pytest.mark.fault("F42")
@pytest.mark.foreign_bug(7)
async def test_arguments_that_no_longer_fit_make_a_dead_letter_without_burning_retries(database: Path) -> None:
    async def before(amount: int) -> None: ...
    async def after(amount: int, currency: str) -> str:
        return f"{amount} {currency}"

    old, new = DurableQ(database, worker=False), DurableQ(database)
    task = old.task(name="pay")(before)
    new.task(name="pay")(after)
    async with old.running():
        job = await old.add_task(task, 5)
    async with new.running():
        dead = await finished(new, job)
        assert dead.error is not None
        assert (dead.state, dead.attempt, dead.error.type) == (JobState.DEAD, 1, "durableq.InvalidArguments")
        assert "argument 'currency' is missing" in dead.error.message
        mended = await new.retry(dead, args={"amount": 5, "currency": "EUR"})
        assert (await finished(new, mended)).result == "5 EUR"


_refuses_to_read = False


def _moody(value: Any) -> Any:
    if _refuses_to_read:
        raise LookupError("a validator of the app, broken")
    return value


async def test_a_validator_that_raises_in_the_worker_ends_its_attempt_and_nothing_else(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dq = DurableQ(database, concurrency=1)

    @dq.task(name="read", max_attempts=1)
    async def read(value: Annotated[int, BeforeValidator(_moody)]) -> int:
        return value

    async with dq.running():
        job = dq.new_job(read, (1,), {})
        monkeypatch.setattr(sys.modules[__name__], "_refuses_to_read", True)
        await dq.add_jobs([job])
        dead = await finished(dq, job)
        monkeypatch.undo()
        assert dead.error is not None
        assert (dead.state, dead.error.type) == (JobState.DEAD, "LookupError")
        assert (await finished(dq, await dq.add_task(read, 7))).result == 7
