"""What cannot succeed is kept as a dead letter, until a person reads it, mends it and runs it again."""

from pathlib import Path

from tenacity import wait_none

from durableq import DurableQ, JobFilter, JobState, RetryPolicy


async def test_a_dead_letter_is_read_mended_and_run_again(tmp_path: Path) -> None:
    dq = DurableQ(tmp_path / "app.db")
    delivered: list[str] = []

    @dq.task(name="deliver", max_attempts=2, retry=RetryPolicy(wait=wait_none()))
    async def deliver(address: str) -> None:
        if "@" not in address:
            raise ValueError(f"{address!r} is no address")
        delivered.append(address)

    async with dq.running():
        await dq.add_task(deliver, "ann at example.org")
        await dq.drain()

        # Read it: what failed, how often, and where.
        [dead] = (await dq.list(JobFilter(state=JobState.DEAD))).jobs
        assert (dead.task, dead.args, dead.attempt) == ("deliver", {"address": "ann at example.org"}, 2)
        attempts = await dq.attempts(dead)
        assert [attempt.error_type for attempt in attempts] == ["ValueError", "ValueError"]
        assert "in deliver" in attempts[0].traceback

        # Mend its arguments, and run it as if it were new.
        await dq.retry(dead, args={"address": "ann@example.org"}, who="operator")
        await dq.drain()
        mended = await dq.get(dead)

        assert (mended.state, mended.attempt, delivered) == (JobState.SUCCEEDED, 1, ["ann@example.org"])
        assert len(await dq.attempts(mended)) == 2, "its history is kept"
        [entry] = await dq.audit_trail(mended)
        assert (entry.who, entry.action) == ("operator", "edit and retry")


async def test_a_bug_is_mended_by_a_deployment_and_its_dead_letters_are_run_again_together(tmp_path: Path) -> None:
    buggy, mended = DurableQ(tmp_path / "app.db"), DurableQ(tmp_path / "app.db")

    @buggy.task(name="halve", max_attempts=1)
    async def halve_wrongly(number: int) -> float:
        return number / 0

    @mended.task(name="halve")
    async def halve(number: int) -> float:
        return number / 2

    async with buggy.running():
        jobs = [await buggy.add_task(halve_wrongly, number) for number in (2, 4, 6)]
        await buggy.drain()
        assert (await buggy.counts())[JobState.DEAD] == 3

    async with mended.running():
        assert await mended.retry_matching(JobFilter(task="halve", error_type="ZeroDivisionError")) == 3
        await mended.drain()
        assert [(await mended.get(job)).result for job in jobs] == [1, 2, 3]
