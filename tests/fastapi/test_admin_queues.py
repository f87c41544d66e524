"""The admin routes about queues, workers, tasks, dead letters, the past, and many jobs at once."""

import contextlib
import json
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated, Any

import pytest
from fastapi import Depends, FastAPI, Request
from fastapi.testclient import TestClient
from pydantic import BaseModel, SecretStr

from durableq import DurableQ, Job, Secret, current_job
from durableq.fastapi import Principal, admin_filters, admin_router
from durableq.redaction import HIDDEN
from tests.fastapi.helpers import serving
from tests.fastapi.streams import streaming
from tests.support import eventually_sync

BADGE = "badge-48-151623"


class Address(BaseModel):
    city: str
    password: str = "none"


def account(request: Request) -> Principal:
    return Principal(request.headers.get("x-user", "anna"))


class Site:
    """An application with the admin routes, and its queue."""

    def __init__(self, path: Path, **options: Any) -> None:
        self.dq = dq = DurableQ(path, grace=0.2, **options)
        self.app = FastAPI(lifespan=dq.lifespan)
        self.app.include_router(admin_router(dq, auth=Depends(account)), prefix="/admin")

        @dq.task(name="ship", max_attempts=1)
        def ship(
            number: int, to: Address | None = None, badge: Annotated[str, Secret] = BADGE, note: SecretStr | None = None
        ) -> int:
            if number < 0:
                raise ValueError(f"no parcel {number} for {badge}")
            current_job().log(f"parcel {number} with {badge}")
            return number

        @dq.task(name="count", queue="bulk", max_attempts=1)
        def count(badge: str) -> None:
            raise LookupError("nothing to count")

        self.ship, self.count = ship, count

    def add(self, number: int, **options: Any) -> Job[Any]:
        return self.dq.add_task_sync(
            self.ship.options(**options) if options else self.ship, number, Address(city="Bo"), BADGE
        )


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path / "app.db")


@pytest.fixture
def client(site: Site) -> Iterator[TestClient]:
    with TestClient(site.app, base_url="http://testserver/admin/") as client:
        yield client


def get(client: TestClient, path: str) -> Any:
    response = client.get(path)
    assert response.status_code == 200, response.text
    return response.json()


def post(client: TestClient, path: str, body: Any, status: int = 200) -> Any:
    response = client.post(path, json=body)
    assert response.status_code == status, response.text
    return response.json() if response.content else None


def finish(client: TestClient, *jobs: Job[Any]) -> None:
    eventually_sync(lambda: all(get(client, f"jobs/{job.id}")["finished_at"] for job in jobs))


# -- queues --------------------------------------------------------------------------------------------------


def test_a_paused_queue_shows_who_paused_it_and_starts_nothing_until_it_is_resumed(
    site: Site, client: TestClient
) -> None:
    post(client, "queues/pause", {"queue": "default"}, 204)
    job = site.add(1)
    [queue] = get(client, "queues")["queues"]
    assert (queue["name"], queue["queued"], queue["is_paused"]) == ("default", {"number": 1, "is_all": True}, True)
    assert queue["paused_by"] == "anna"
    post(client, "queues/resume", {"queue": "default"}, 204)
    finish(client, job)
    [queue] = get(client, "queues")["queues"]
    assert (queue["is_paused"], queue["paused_at"], queue["paused_by"]) == (False, None, None)


@pytest.mark.parametrize("name", ["a/b", "..", "ü %2F", "'; --", "x" * 200])
def test_a_queue_of_any_name_can_be_paused_ahead(client: TestClient, name: str) -> None:
    post(client, "queues/pause", {"queue": name}, 204)
    assert [(one["name"], one["is_paused"]) for one in get(client, "queues")["queues"]] == [(name, True)]


@pytest.mark.parametrize(
    "body", [{}, {"queue": ""}, {"queue": "x" * 201}, {"queue": "a\nb"}, {"name": "a"}, {"queue": 1}]
)
def test_what_is_no_name_of_a_queue_is_refused(client: TestClient, body: Any) -> None:
    post(client, "queues/pause", body, 422)
    assert get(client, "queues")["queues"] == []


# -- workers, tasks, system ----------------------------------------------------------------------------------


def test_the_process_that_answers_is_among_the_workers(client: TestClient) -> None:
    [worker] = get(client, "workers")["workers"]
    assert (worker["runs_jobs"], worker["is_alive"], worker["is_here"]) == (True, True, True)
    assert worker["software"].startswith("durableq ")


def test_tasks_are_shown_with_a_schema_that_quotes_no_secret(site: Site, client: TestClient) -> None:
    finish(client, site.add(1))
    [task] = get(client, "tasks")["tasks"]
    assert (task["name"], task["is_known"]) == ("ship", True)
    properties = task["arguments_schema"]["properties"]
    assert properties.keys() == {"number", "to", "badge", "note"}
    assert properties["badge"]["writeOnly"] is True
    text = json.dumps(task)
    assert BADGE not in text
    assert '"none"' not in text, "the default of a property with a secret name"


def test_a_task_that_this_app_does_not_know_is_shown_as_such(site: Site, client: TestClient, tmp_path: Path) -> None:
    finish(client, site.add(1))
    with stranger(tmp_path) as other:
        [task] = get(other, "tasks")["tasks"]
    assert (task["name"], task["is_known"]) == ("ship", False)
    assert "number" in task["arguments_schema"]["properties"]


def test_the_system_tells_how_the_queue_is(client: TestClient) -> None:
    system = get(client, "system")
    assert system["health"]["status"] == "ok"
    assert system["health"]["storage"]["software"].startswith("SQLite ")


def test_a_queue_that_does_not_run_is_told_and_not_an_error(tmp_path: Path) -> None:
    dq = DurableQ(tmp_path / "app.db")
    app = FastAPI()
    app.include_router(admin_router(dq, auth=Depends(account)))
    health = get(TestClient(app), "/system")["health"]
    assert (health["status"], health["reasons"]) == ("failing", ["the queue is not running"])


# -- what went wrong, and what happened ----------------------------------------------------------------------


def test_dead_letters_are_grouped_by_task_and_error_the_most_numerous_first(site: Site, client: TestClient) -> None:
    jobs = [site.add(-1), site.add(-2), site.dq.add_task_sync(site.count, "x")]
    finish(client, *jobs)
    answer = get(client, "dead-letters")
    assert answer["is_all"] is True
    assert [(one["task"], one["error_type"], one["number"]) for one in answer["groups"]] == [
        ("ship", "ValueError", 2), ("count", "LookupError", 1),
    ]  # fmt: skip
    assert answer["groups"][0]["latest_id"] == jobs[1].id
    assert answer["groups"][0]["latest_message"] == "no parcel -2 for ***"


def test_the_messages_of_a_task_that_nobody_described_are_shown_without_its_arguments(
    tmp_path: Path, site: Site, client: TestClient
) -> None:
    finish(client, site.dq.add_task_sync(site.count, "a-word-of-it"))
    execute(tmp_path, "UPDATE durableq_tasks SET arguments_schema = NULL")
    execute(tmp_path, "UPDATE durableq_jobs SET error_message = 'not a-word-of-it'")
    with stranger(tmp_path) as other:
        assert get(other, "dead-letters")["groups"][0]["latest_message"] == "not ***"


def execute(tmp_path: Path, sql: str) -> None:
    with contextlib.closing(sqlite3.connect(tmp_path / "app.db", timeout=10)) as connection, connection:
        connection.execute(sql)


def test_the_history_counts_what_ended_of_all_or_of_one_queue_or_task(site: Site, client: TestClient) -> None:
    finish(client, site.add(1), site.add(-1), site.dq.add_task_sync(site.count, "x"))

    def counted(query: str) -> tuple[int, int]:
        total = get(client, f"history{query}")["total"]
        return total["succeeded"], total["dead"]

    assert counted("") == (1, 2)
    assert counted("?queue=bulk") == (0, 1)
    assert counted("?task=ship&window=15m") == (1, 1)
    assert counted("?task=nothing&window=7d") == (0, 0)
    history = get(client, "history?window=24h")
    assert {one["queue"] for one in history["queues"]} == {"default", "bulk"}
    assert len(history["points"]) * history["step_seconds"] == timedelta(hours=24).total_seconds()
    assert client.get("history?window=2h").status_code == 422


def test_the_audit_trail_tells_what_was_done_to_any_job_or_queue_page_by_page(site: Site, client: TestClient) -> None:
    job = site.add(-1)
    finish(client, job)
    post(client, "queues/pause", {"queue": "bulk"}, 204)
    post(client, f"jobs/{job.id}/edit", {"args": {"number": 2, "badge": "another-badge"}})
    finish(client, job)
    assert client.delete(f"jobs/{job.id}").status_code == 204
    entries, query = [], "audit?limit=1"
    while True:
        page = get(client, query)
        entries += page["entries"]
        if page["next_cursor"] is None:
            break
        query = f"audit?limit=1&cursor={page['next_cursor']}"
    assert [(one["action"], one["job_id"]) for one in entries] == [
        ("delete", job.id), ("edit and retry", job.id), ("pause", ""),
    ]  # fmt: skip
    assert entries[1]["detail"]["args_after"] == HIDDEN
    assert entries[2]["detail"] == {"queue": "bulk"}
    assert {one["who"] for one in entries} == {"anna"}
    assert "another-badge" not in json.dumps(entries)


# -- looking for jobs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("arg=number:-1", 1),
        ("arg=number:2&arg=to.city:Bo", 2),
        ("arg=number:2&arg=to.city:Oslo", 0),
        ("arg=to.city:", 0),
        ("arg=nothing:x", 0),
        ("error_text=no parcel", 1),
        ("error_text=%25", 0),
        ("error_text=PARCEL&state=dead", 1),
        ("state=succeeded", 2),
        ("tag=none", 0),
    ],
)
def test_a_list_and_a_count_take_the_same_filters(site: Site, client: TestClient, query: str, found: int) -> None:
    finish(client, site.add(-1), site.add(2), site.add(2))
    assert len(get(client, f"jobs?{query}")["jobs"]) == found
    assert get(client, f"count?{query}") == {"number": found, "is_all": True}


SECRET_PATHS = ["badge", "password", "to.password", "note", "headers.value", "api_key", "number.token"]


@pytest.mark.parametrize("task", [None, "ship"])
@pytest.mark.parametrize("route", ["jobs", "count", "retry", "cancel", "delete"])
def test_nobody_can_ask_whether_a_guess_at_a_secret_is_right(
    site: Site, client: TestClient, route: str, task: str | None
) -> None:
    finish(client, site.add(-1))
    for path in SECRET_PATHS:
        answers = [ask(client, route, path, guess, task) for guess in (BADGE, "no")]
        assert {answer.status_code for answer in answers} == {422}, path
        assert len({answer.text for answer in answers}) == 1
    assert get(client, "counts")["dead"] == 1


def ask(client: TestClient, route: str, path: str, guess: str, task: str | None) -> Any:
    which = {} if task is None else {"task": task}
    if route in ("jobs", "count"):
        return client.get(route, params={"arg": f"{path}:{guess}", **which})
    state = {"state": "dead"} if route == "delete" else {}
    return client.post(route, json={"arguments": {path: guess}, **which, **state})


def test_a_name_that_is_secret_in_one_task_may_be_asked_for_in_another(site: Site, client: TestClient) -> None:
    finish(client, site.add(-1), site.dq.add_task_sync(site.count, "x"))
    refused = client.get("jobs?arg=badge:x")
    assert refused.status_code == 422
    assert "task 'ship'; give the task you mean" in refused.json()["detail"][0]["msg"]
    assert refused.json()["detail"][0]["loc"] == ["query", "arg", "badge"]
    assert len(get(client, "jobs?arg=badge:x&task=count")["jobs"]) == 1


def test_of_a_task_that_nobody_described_nothing_can_be_asked(site: Site, client: TestClient, tmp_path: Path) -> None:
    finish(client, site.dq.add_task_sync(site.count, "x"))
    execute(tmp_path, "UPDATE durableq_tasks SET arguments_schema = NULL")
    with stranger(tmp_path) as other:
        assert other.get("jobs?arg=badge:x").status_code == 422
        assert other.get("jobs?arg=badge:x&task=count").status_code == 422


@pytest.mark.parametrize(
    "query",
    [
        *("arg=", "arg=x", "arg=:x", "arg=a..b:x", 'arg=a"b:x', "arg=a[0]:x", "arg=a:1&arg=a:2"),
        *("&".join(["arg=a:1"] * 6), f"arg=a:{'x' * 1_200}", "error_text=", f"error_text={'x' * 201}"),
        *("state=lost", "limit=0", "limit=201", "cursor=0"),
    ],
)
def test_a_filter_that_cannot_be_meant_is_refused(client: TestClient, query: str) -> None:
    assert client.get(f"jobs?{query}").status_code == 422


def test_a_look_that_was_cut_short_says_so_and_goes_on_from_its_cursor(
    site: Site, client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish(client, site.add(-1), *(site.add(number) for number in range(5)))
    monkeypatch.setattr("durableq.fastapi.admin_jobs.LOOK_AT", 2)
    page = get(client, "jobs?error_text=parcel")
    assert (page["jobs"], page["is_cut_short"]) == ([], True)
    assert get(client, "count?error_text=parcel") == {"number": 0, "is_all": False}
    while page["is_cut_short"]:
        page = get(client, f"jobs?error_text=parcel&cursor={page['next_cursor']}")
    assert [job["state"] for job in page["jobs"]] == ["dead"]


# -- a task that another application offers ------------------------------------------------------------------


@contextlib.contextmanager
def stranger(tmp_path: Path) -> Iterator[TestClient]:
    """An application on the same file without the code of the tasks."""
    dq = DurableQ(tmp_path / "app.db", worker=False)
    app = FastAPI(lifespan=dq.lifespan)
    app.include_router(admin_router(dq, auth=Depends(account)), prefix="/admin")
    with TestClient(app, base_url="http://testserver/admin/") as client:
        yield client


def test_its_stored_description_says_what_is_secret(site: Site, client: TestClient, tmp_path: Path) -> None:
    job = site.add(-1)
    finish(client, job)
    with stranger(tmp_path) as other:
        args = get(other, f"jobs/{job.id}")["args"]
        assert args == {"number": -1, "to": {"city": "Bo", "password": HIDDEN}, "badge": HIDDEN}
        assert get(other, "jobs?task=ship&arg=number:-1")["jobs"][0]["error"]["message"] == "no parcel -1 for ***"
        assert other.get("jobs?task=ship&arg=badge:x").status_code == 422
        assert other.get("jobs?task=ship&arg=unheard_of:x").status_code == 422


def test_it_is_edited_by_its_stored_description(site: Site, client: TestClient, tmp_path: Path) -> None:
    pytest.importorskip("jsonschema")
    job = site.add(-1)
    finish(client, job)
    with stranger(tmp_path) as other:
        shown = get(other, f"jobs/{job.id}")["args"]
        for wrong in (
            {"number": "many"},
            {"number": 1, "badge": ["guess-at-it"]},
            {"number": 1, "to": {"password": "p"}},
        ):
            response = other.post(f"jobs/{job.id}/edit", json={"args": shown | wrong})
            assert response.status_code == 422
            assert "guess-at-it" not in response.text
            assert BADGE not in response.text
        post(other, f"jobs/{job.id}/edit", {"args": shown | {"number": 3}})
    finish(client, job)
    assert get(client, f"jobs/{job.id}")["result"] == 3
    with contextlib.closing(sqlite3.connect(tmp_path / "app.db", timeout=10)) as connection:
        [(args,)] = connection.execute("SELECT args FROM durableq_jobs").fetchall()
    assert json.loads(args)["badge"] == BADGE


# -- many at once --------------------------------------------------------------------------------------------


def test_the_unfinished_jobs_that_match_are_cancelled_and_audited(site: Site, client: TestClient) -> None:
    later = [site.add(number, delay=3_600) for number in (1, 1, 2)]
    assert post(client, "cancel", {"arguments": {"number": "1"}, "limit": 1}) == {"cancelled": 1}
    assert post(client, "cancel", {"arguments": {"number": "1"}}) == {"cancelled": 1}
    assert post(client, "cancel", {"state": "queued"}) == {"cancelled": 0}
    assert [get(client, f"jobs/{job.id}")["state"] for job in later] == ["cancelled", "cancelled", "scheduled"]
    assert [one["action"] for one in get(client, "audit")["entries"]] == ["cancel", "cancel"]


def test_the_finished_jobs_of_a_state_that_match_are_deleted_and_audited(site: Site, client: TestClient) -> None:
    finish(client, site.add(-1), site.add(1), site.add(2))
    waiting = site.add(1, delay=3_600)
    assert post(client, "delete", {"state": "succeeded", "arguments": {"number": "1"}}) == {"deleted": 1}
    assert post(client, "delete", {"state": "dead"}) == {"deleted": 1}
    assert {job["state"] for job in get(client, "jobs")["jobs"]} == {"succeeded", "scheduled"}
    assert get(client, f"jobs/{waiting.id}")["state"] == "scheduled"
    assert [one["action"] for one in get(client, "audit")["entries"]] == ["delete", "delete"]


def test_retry_by_filter_takes_the_message_of_the_error_and_arguments(site: Site, client: TestClient) -> None:
    finish(client, site.add(-1), site.add(-2))
    assert post(client, "retry", {"error_text": "parcel -1 "}) == {"retried": 1}
    assert post(client, "retry", {"arguments": {"number": "-3"}}) == {"retried": 0}


@pytest.mark.parametrize(
    ("route", "body"),
    [
        ("delete", {}),
        ("delete", {"state": "running"}),
        ("delete", {"state": "queued"}),
        ("delete", {"state": "dead", "limit": 1_001}),
        ("cancel", {"state": "dead"}),
        ("cancel", {"states": "queued"}),
        ("cancel", {"finished_after": "2026-01-01T00:00:00Z"}),
        ("cancel", {"created_before": "2026-01-01T00:00:00"}),
        ("cancel", {"arguments": {"a..b": "x"}}),
        ("cancel", {"arguments": {"number": 1}}),
        ("cancel", {"arguments": {f"a{number}": "x" for number in range(6)}}),
        ("cancel", {"error_text": ""}),
        ("retry", {"state": "dead"}),
    ],
)
def test_what_cannot_be_meant_changes_nothing(site: Site, client: TestClient, route: str, body: Any) -> None:
    finish(client, site.add(-1))
    site.add(1, delay=3_600)
    post(client, route, body, 422)
    counts = get(client, "counts")
    assert (counts["dead"], counts["scheduled"]) == (1, 1)


def test_jobs_that_came_later_are_left_alone(site: Site, client: TestClient) -> None:
    site.add(1, delay=3_600)
    moment = datetime.now(UTC)
    site.add(1, delay=3_600)
    assert post(client, "cancel", {"created_before": moment.isoformat()}) == {"cancelled": 1}


def test_the_limits_are_those_of_the_documentation() -> None:
    assert (admin_filters.LOOK_AT, admin_filters.AT_ONCE) == (20_000, 1_000)


# -- events --------------------------------------------------------------------------------------------------


async def test_operators_follow_a_job_with_its_lines_and_without_its_secrets(tmp_path: Path) -> None:
    site = Site(tmp_path / "app.db")
    async with serving(site.app) as port:
        job = await site.dq.add_task(site.ship, 7, None, BADGE)
        async with streaming(port, f"/admin/jobs/{job.id}/events") as stream:
            assert (stream.status, stream.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
            told = await stream.until("end")
    assert [one.data["message"] for one in told if one.name == "log"] == ["parcel 7 with ***"]
    assert told[-2].data["state"] == "succeeded"
    assert "args" not in told[-2].data
