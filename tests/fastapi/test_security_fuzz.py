"""Thousands of requests that nobody wrote, made from the admin routes' own OpenAPI: as it says, and against it.

None may be answered as a defect (5xx), none may succeed without authentication, and every answer carries the headers
of all. ``DURABLEQ_FUZZ_CASES=50000`` makes it a long run, with other cases each time.
"""

import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.testclient import TestClient

from durableq import DurableQ
from durableq.fastapi import admin_router, streaming
from durableq.fastapi.admin_answers import HEADERS

schemathesis = pytest.importorskip("schemathesis")
hypothesis = pytest.importorskip("hypothesis")

ASKED_NOTHING: Final = {f"/admin/{name}" for name in ("counts", "queues", "workers", "tasks", "dead-letters", "system")}
"""Routes that take no parameters: nothing can be said against their description."""
CASES: Final = 2_000
WANTED: Final = int(os.environ.get("DURABLEQ_FUZZ_CASES", CASES))
OF_TRANSPORT: Final = {
    "method": "method", "url": "url", "params": "params", "headers": "headers", "json": "json", "data": "content",
}  # fmt: skip
"""What schemathesis calls the parts of a request, and what the client calls them."""


def account(request: Request) -> str:
    if request.headers.get("x-user") != "anna":
        raise HTTPException(401, "who are you?")
    return "anna"


class Site:
    """An application with the admin routes, and jobs for the routes to act on."""

    def __init__(self, path: Path) -> None:
        self.dq = DurableQ(path, worker=False)
        self.app = FastAPI(lifespan=self.dq.lifespan)
        self.app.include_router(admin_router(self.dq, auth=Depends(account)), prefix="/admin")
        self.seen: Counter[tuple[str, int]] = Counter()

        @self.dq.task(name="mail.send")
        def send(to: str, password: str = "", copies: int = 1) -> None: ...

        self.send = send

    def job_id(self, client: TestClient, number: int) -> str:
        job = self.dq.add_task_sync(self.send, "a@example.org", password="hunter2")
        if number % 2:
            client.post(f"/admin/jobs/{job.id}/cancel", headers={"x-user": "anna"})
        return job.id

    def try_out(self, client: TestClient, case: Any, number: int) -> None:
        if "job_id" in case.path_parameters and number % 3:
            case.path_parameters["job_id"] = self.job_id(client, number)
        given = case.as_transport_kwargs(base_url="http://testserver")
        sent = {OF_TRANSPORT[name]: value for name, value in given.items() if name in OF_TRANSPORT}
        for who in (None, "anna"):
            headers = dict(sent["headers"]) | ({} if who is None else {"x-user": who})
            response = client.request(**{**sent, "headers": headers})
            self.seen[who or "anonymous", response.status_code] += 1
            assert response.status_code < 500, response.text
            assert who is not None or response.status_code >= 400, f"{case.method} {case.path} without authentication"
            assert {name: response.headers.get(name) for name in HEADERS} == HEADERS


def strategies(app: FastAPI) -> Iterator[tuple[Any, Any]]:
    """One for each route and way: as its description says, and against it (where it takes anything at all)."""
    for operation in schemathesis.openapi.from_dict(app.openapi()).get_all_operations():
        for mode in schemathesis.GenerationMode:
            if operation.ok().path not in ASKED_NOTHING or mode is schemathesis.GenerationMode.POSITIVE:
                yield mode, operation.ok().as_strategy(generation_mode=mode)


@pytest.mark.no_cover  # it would take half as long again
@pytest.mark.timeout(60 + WANTED // 5)
def test_no_generated_request_finds_a_defect_or_a_way_around_authentication(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "LONGEST_SECONDS", 0.0)  # the client reads an answer to its end
    site = Site(tmp_path / "app.db")
    ways = list(strategies(site.app))
    assert len(ways) == 36
    numbers = iter(range(10 * WANTED))
    share = WANTED // 130 + 1
    with TestClient(site.app) as client:
        for mode, way in ways:  # what breaks the rules takes long to make up, and does not get far
            explore(site, client, way, numbers, share if mode is schemathesis.GenerationMode.NEGATIVE else 9 * share)
    by_who = {who: sum(count for (one, _), count in site.seen.items() if one == who) for who in ("anonymous", "anna")}
    assert min(by_who.values()) >= WANTED, site.seen
    answered = {status for who, status in site.seen if who == "anna"}
    assert {200, 204, 400, 404, 409, 422} <= answered <= {200, 204, 400, 404, 405, 409, 413, 415, 422}
    assert {status for who, status in site.seen if who == "anonymous"} <= {400, 401, 404, 405, 413, 415, 422}


def explore(site: Site, client: TestClient, way: Any, numbers: Iterator[int], count: int) -> None:
    def run(case: Any) -> None:
        site.try_out(client, case, next(numbers))

    settings = hypothesis.settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=WANTED == CASES,
        suppress_health_check=list(hypothesis.HealthCheck),
        phases=[hypothesis.Phase.generate],
    )
    settings(hypothesis.given(case=way)(run))()
