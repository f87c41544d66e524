"""Repeated requests: idempotency keys and unique jobs, as a client of the application sees them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from durableq import DurableQ, Unique
from durableq.fastapi import BackgroundTasks, IdempotencyKey


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    dq = DurableQ(tmp_path / "app.db", worker=False)
    app = FastAPI(lifespan=dq.lifespan)

    @dq.task(name="charge")
    async def charge(order: int) -> None: ...

    @dq.task(name="report", unique=Unique(on_conflict="raise"))
    async def report(day: str) -> None: ...

    @dq.task(name="refresh", unique=Unique(args=[]))
    async def refresh(user: str) -> None: ...

    @app.post("/orders/{order}", status_code=202)
    async def add_order(order: int, background_tasks: BackgroundTasks, key: IdempotencyKey = None) -> dict[str, str]:
        return {"job": background_tasks.add_task(charge.options(idempotency_key=key), order).id}

    @app.post("/reports/{day}", status_code=202)
    def add_report(day: str, background_tasks: BackgroundTasks) -> dict[str, str]:
        background_tasks.add_task(charge, 1)
        return {"job": background_tasks.add_task(report, day).id}

    @app.post("/reports/{day}/twice", status_code=202)
    def add_report_twice(day: str, background_tasks: BackgroundTasks) -> None:
        background_tasks.add_task(report, day)
        background_tasks.add_task(report, day)

    @app.post("/refresh/{user}", status_code=202)
    def add_refresh(user: str, background_tasks: BackgroundTasks) -> dict[str, str]:
        return {"job": background_tasks.add_task(refresh, user).id}

    @app.get("/jobs/{job_id}")
    async def show(job_id: str) -> dict[str, Any]:
        job = await dq.get(job_id)
        return {"id": job.id, "args": job.args}

    @app.get("/count")
    async def count() -> int:
        return sum((await dq.counts()).values())

    with TestClient(app) as client:
        yield client


@pytest.mark.fault("F2")
def test_a_repeated_request_has_the_same_answer_and_adds_nothing(client: TestClient) -> None:
    answers = [client.post("/orders/7", headers={"Idempotency-Key": "k1"}) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [202] * 3
    assert len({answer.text for answer in answers}) == 1
    assert client.get("/count").json() == 1


def test_another_key_and_no_key_are_other_jobs(client: TestClient) -> None:
    ids = {client.post("/orders/7", headers=headers).json()["job"] for headers in ({"Idempotency-Key": "k2"}, {}, {})}
    assert len(ids) == 3
    assert client.get("/count").json() == 3


def test_a_key_that_was_used_for_other_arguments_is_a_422_and_nothing_is_stored(client: TestClient) -> None:
    first = client.post("/orders/7", headers={"Idempotency-Key": "k1"}).json()["job"]
    answer = client.post("/orders/8", headers={"Idempotency-Key": "k1"})
    assert answer.status_code == 422
    assert answer.json()["detail"]["job"] == first
    assert "other arguments" in answer.json()["detail"]["message"]
    assert client.get("/count").json() == 1


def test_an_overlong_key_is_refused_by_fastapi_itself(client: TestClient) -> None:
    assert client.post("/orders/7", headers={"Idempotency-Key": "k" * 201}).status_code == 422
    assert client.get("/count").json() == 0


def test_a_taken_unique_key_is_a_409_and_nothing_of_that_request_is_stored(client: TestClient) -> None:
    first = client.post("/reports/monday").json()["job"]
    answer = client.post("/reports/monday")
    assert answer.status_code == 409
    assert answer.json()["detail"]["job"] == first
    assert client.get("/count").json() == 2, "the first request's two; none of the second's"


def test_two_calls_of_one_request_for_one_key_are_told_as_such(client: TestClient) -> None:
    """No job holds it: neither of the two is stored, so no id would lead anywhere."""
    answer = client.post("/reports/monday/twice")
    message = (
        "another call of this same addition wants the unique key that report makes of day too; nothing was stored. "
        "Add it once, or let on_conflict='return' make one job of both"
    )
    assert (answer.status_code, answer.json()) == (409, {"detail": {"message": message, "job": None}})
    assert client.get("/count").json() == 0


def test_every_id_that_a_client_holds_resolves(client: TestClient) -> None:
    first, second = (client.post(f"/refresh/{user}").json()["job"] for user in ("ann", "bob"))
    assert first != second, "a route's id is final before its commit"
    assert client.get(f"/jobs/{second}").json() == {"id": first, "args": {"user": "ann"}}
    assert client.get("/count").json() == 1
