"""Queues keep kinds of work apart; a worker may serve some of them only."""

from pathlib import Path

from durableq import DurableQ, JobFilter, JobState


async def test_each_worker_takes_from_the_queues_it_serves(tmp_path: Path) -> None:
    async def work(name: str) -> None:
        done.append(name)

    done: list[str] = []
    web = DurableQ(tmp_path / "app.db", queues=["default"])
    reports = DurableQ(tmp_path / "app.db", queues=["reports"])
    mail_from_web = web.task(name="mail")(work)
    report_from_web = web.task(name="report", queue="reports")(work)
    reports.task(name="report", queue="reports")(work)

    async with web.running():
        await web.add_task(mail_from_web, "a mail")
        report = await web.add_task(report_from_web, "a long report")
        await web.drain()
        assert done == ["a mail"]
        assert [job.id for job in (await web.list(JobFilter(queue="reports"))).jobs] == [report.id]

    async with reports.running():
        await reports.drain()
        assert done == ["a mail", "a long report"]
        assert (await reports.counts())[JobState.SUCCEEDED] == 2
