"""Within a queue the higher priority runs first; equals run in the order they came."""

from pathlib import Path

from durableq import DurableQ, call


async def test_higher_priorities_run_first(tmp_path: Path) -> None:
    order: list[str] = []

    async def note(name: str) -> None:
        order.append(name)

    adding = DurableQ(tmp_path / "app.db", worker=False)
    task = adding.task(name="note")(note)
    async with adding.running():
        await adding.add_tasks([call(task, "first"), call(task, "second")])
        await adding.add_task(task.options(priority=10), "urgent")
        await adding.add_task(task.options(priority=-10), "whenever")

    working = DurableQ(tmp_path / "app.db", concurrency=1)  # one at a time, so that the order shows
    working.task(name="note")(note)
    async with working.running():
        await working.drain()
    assert order == ["urgent", "first", "second", "whenever"]
