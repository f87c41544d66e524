"""A job may wait for its time."""

from datetime import timedelta
from pathlib import Path

from durableq import DurableQ, JobState
from durableq.testing import ManualClock
from tests.support import eventually


async def test_a_job_waits_for_its_delay_or_its_moment(tmp_path: Path) -> None:
    clock = ManualClock()
    dq = DurableQ(tmp_path / "app.db", clock=clock)
    reminded: list[str] = []

    @dq.task(name="remind")
    async def remind(who: str) -> None:
        reminded.append(who)

    async with dq.running():
        tomorrow = clock.now + timedelta(days=1)
        await dq.add_task(remind.options(run_at=tomorrow), "ann")
        await dq.add_task(remind.options(delay=60), "ben")
        await dq.add_task(remind, "cleo")
        await dq.drain()
        assert reminded == ["cleo"]
        assert (await dq.counts())[JobState.SCHEDULED] == 2

        clock.advance(60)
        await eventually(lambda: reminded == ["cleo", "ben"])

        clock.advance(timedelta(days=1))
        await eventually(lambda: reminded == ["cleo", "ben", "ann"])


async def test_what_waits_runs_now_when_a_person_says_so(tmp_path: Path) -> None:
    dq = DurableQ(tmp_path / "app.db")

    @dq.task(name="remind", delay=timedelta(days=1))
    async def remind() -> None: ...

    async with dq.running():
        job = await dq.add_task(remind)
        assert job.state is JobState.SCHEDULED
        await dq.retry(job, who="operator")
        await dq.drain()
        assert (await dq.get(job)).state is JobState.SUCCEEDED
