"""A failed attempt is tried again, later each time."""

from datetime import timedelta
from functools import partial
from pathlib import Path

from tenacity import wait_fixed

from durableq import DurableQ, Job, JobState, RetryPolicy
from durableq.testing import ManualClock
from tests.support import eventually


async def test_a_task_that_fails_is_tried_again_after_its_wait(tmp_path: Path) -> None:
    clock = ManualClock()
    dq = DurableQ(tmp_path / "app.db", clock=clock)
    tries: list[int] = []

    @dq.task(name="call a shaky service", max_attempts=5, retry=RetryPolicy(wait=wait_fixed(30)))
    async def call_shaky_service() -> str:
        tries.append(len(tries) + 1)
        if len(tries) < 3:
            raise ConnectionError("not now")
        return "at last"

    async with dq.running():
        job: Job[str] = await dq.add_task(call_shaky_service)
        for number in (1, 2):
            await dq.drain()  # a retry lies ahead; it is not waited for
            job = await dq.get(job)
            assert (job.state, job.attempt) == (JobState.SCHEDULED, number)
            assert job.run_at - clock.now == timedelta(seconds=30)
            clock.advance(30)
            await eventually(partial(tries.__contains__, number + 1))
        await dq.drain()
        job = await dq.get(job)

    assert (job.state, job.attempt, job.result) == (JobState.SUCCEEDED, 3, "at last")
    assert tries == [1, 2, 3]
