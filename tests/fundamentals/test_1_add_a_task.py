"""A task is a function; a job is one durable call of it."""

from pathlib import Path

from fastapi import FastAPI
from fastapi.testclient import TestClient

from durableq import DurableQ, JobState
from durableq.fastapi import BackgroundTasks


async def test_a_job_is_one_call_of_a_task_and_keeps_what_it_returned(tmp_path: Path) -> None:
    dq = DurableQ(tmp_path / "app.db")

    @dq.task(name="add")
    async def add(a: int, b: int) -> int:
        return a + b

    async with dq.running():
        job = await dq.add_task(add, 1, b=2)
        assert (job.task, job.args) == ("add", {"a": 1, "b": 2})
        await dq.drain()
        job = await dq.get(job)

    assert (job.state, job.attempt, job.result) == (JobState.SUCCEEDED, 1, 3)


async def test_a_job_outlives_the_process_that_added_it(tmp_path: Path) -> None:
    """What one run of the queue has added, the next one runs: the file is all that they share."""
    adding = DurableQ(tmp_path / "app.db", worker=False)
    async with adding.running():
        job = await adding.add_task(greet, "you")

    working = DurableQ(tmp_path / "app.db")
    async with working.running():
        await working.drain()
        assert (await working.get(job)).result == "hello you"


async def greet(name: str) -> str:
    """A plain function, at the top level of a module: no decorator needed."""
    return f"hello {name}"


def test_a_route_adds_a_job_that_is_on_disk_before_its_response_leaves(tmp_path: Path) -> None:
    dq = DurableQ(tmp_path / "app.db")
    app = FastAPI(lifespan=dq.lifespan)

    @app.post("/greet", status_code=202)
    async def greet_later(name: str, background_tasks: BackgroundTasks) -> str:
        return background_tasks.add_task(greet, name).id

    @app.get("/jobs/{job_id}")
    async def look(job_id: str) -> object:
        await dq.drain()
        return (await dq.get(job_id)).result

    with TestClient(app) as client:
        response = client.post("/greet?name=you")
        assert response.status_code == 202
        assert client.get(f"/jobs/{response.json()}").json() == "hello you"
