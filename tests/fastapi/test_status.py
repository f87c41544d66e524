"""How far a job is, for the application's own users: who is let in, what they see, and how they follow it."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import parse_qs, urlsplit

import pytest
from fastapi import APIRouter, Depends, FastAPI, Header, HTTPException, Request
from fastapi.security import APIKeyHeader
from fastapi.testclient import TestClient
from pydantic import SecretStr

from durableq import ConfigurationError, DurableQ, Job, Secret, Unique, current_job
from durableq.fastapi import BackgroundTasks, accepted, status_router, streaming
from durableq.fastapi.admin_answers import HEADERS
from durableq.fastapi.status import ROUTE
from durableq.fastapi.tokens import signed
from tests.fastapi.helpers import serving
from tests.fastapi.streams import Told
from tests.fastapi.streams import streaming as open_stream
from tests.support import eventually, eventually_sync

SECRET = "a secret of the tests, 32 bytes!"
KEY = SECRET.encode()
OWNERS = {"anna": "anna", "otto": "otto"}


async def user(x_user: Annotated[str | None, Header()] = None) -> str:
    if x_user not in OWNERS:
        raise HTTPException(401, "who are you?")
    return OWNERS[x_user]


class Shop:
    """An application that takes orders, and a worker that waits to be let go on."""

    def __init__(self, path: Path, **options: Any) -> None:
        self.dq = dq = DurableQ(path, grace=0.2)
        self.app = FastAPI(lifespan=dq.lifespan)
        self.steps: asyncio.Queue[str] = asyncio.Queue()
        self.options = options

        @dq.task(name="charge", max_attempts=1)
        async def charge(card: Annotated[str, Secret], amount: int = 1) -> dict[str, int]:
            job = current_job()
            job.progress(1, 3, f"asking the bank about {card}")
            while (step := await self.steps.get()) != "end":
                if step == "fail":
                    raise LookupError(f"no account for {card}")
                job.log(f"{step} of {card}")
                job.progress(2, 3)
            return {"paid": amount}

        self.charge = charge

        @self.app.post("/orders", status_code=202)
        def order(tasks: BackgroundTasks, request: Request, card: str = "4111-1111") -> Any:
            return accepted(tasks.add_task(charge, card), request)

        self.app.include_router(status_router(dq, **options), prefix="/jobs")

    def tell(self, *steps: str) -> None:
        for step in steps:
            self.steps.put_nowait(step)


@asynccontextmanager
async def open_shop(path: Path, **options: Any) -> AsyncIterator[tuple[Shop, int]]:
    shop = Shop(path, **options)
    async with serving(shop.app) as port:
        yield shop, port


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ends each stream after its first look: the test client reads an answer to its end."""
    monkeypatch.setattr(streaming, "LONGEST_SECONDS", 0.0)


def link(job: Job[Any], expires_in: float = 60, *, key: bytes = KEY, events: bool = False) -> str:
    token = signed(key, ROUTE, job.id, int(time.time() + expires_in))
    return f"/jobs/{job.id}{'/events' if events else ''}?token={token}"


# -- who is let in -------------------------------------------------------------------------------------------


def test_without_auth_and_secret_there_are_no_routes_and_the_log_says_how_to_enable_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "durableq.fastapi"):
        router = status_router(DurableQ(tmp_path / "app.db"))
    assert router.routes == []
    assert "auth=Depends(current_user)" in caplog.text


@pytest.fixture
def shop(tmp_path: Path, quick: None) -> Iterator[tuple[Shop, TestClient]]:
    shop = Shop(tmp_path / "app.db", secret=SECRET, auth=Depends(user))
    with TestClient(shop.app) as client:
        yield shop, client


@pytest.mark.parametrize("end", ["", "/events"])
def test_a_stranger_sees_nothing(shop: tuple[Shop, TestClient], end: str) -> None:
    job = shop[0].dq.add_task_sync(shop[0].charge, "4111-1111")
    assert shop[1].get(f"/jobs/{job.id}{end}").status_code == 401
    assert shop[1].get(f"/jobs/{job.id}{end}", headers={"x-user": "eve"}).status_code == 401


@pytest.mark.parametrize("end", ["", "/events"])
def test_either_auth_or_the_token_of_the_job_lets_in(shop: tuple[Shop, TestClient], end: str) -> None:
    job = shop[0].dq.add_task_sync(shop[0].charge, "4111-1111")
    assert shop[1].get(f"/jobs/{job.id}{end}", headers={"x-user": "anna"}).status_code == 200
    assert shop[1].get(link(job, events=bool(end))).status_code == 200


def wrong_tokens(job_id: str) -> list[str]:
    now = int(time.time())
    right = signed(KEY, ROUTE, job_id, now + 60)
    expiry, _, digest = right.partition(".")
    return [
        "",
        ".",
        "%00",
        "%ED%A0%80.%FF",
        expiry,
        f"{expiry}.",
        f".{digest}",
        f"{int(expiry) + 1}.{digest}",
        f"0{right}",
        f"{expiry}.{digest}=",
        f"{expiry}.{digest[:-1]}",
        f"-{right}",
        f"+{right}",
        f"%20{right}",
        f"{right}%0a",
        f"٣{right}",
        f"{10**11}.{digest}",
        f"nan.{digest}",
        signed(KEY, ROUTE, job_id, now - 1),
        signed(b"another secret of 32 bytes, so!", ROUTE, job_id, now + 60),
        signed(KEY, ROUTE, "another job", now + 60),
        signed(KEY, "another_route", job_id, now + 60),
    ]


@pytest.mark.parametrize("end", ["", "/events"])
@pytest.mark.parametrize("with_auth", [False, True])
def test_no_other_token_lets_in_whether_the_job_is_there_or_not(
    tmp_path: Path, quick: None, with_auth: bool, end: str
) -> None:
    shop = Shop(tmp_path / "app.db", secret=SECRET, auth=Depends(user) if with_auth else None)
    with TestClient(shop.app) as client:
        job = shop.dq.add_task_sync(shop.charge, "4111-1111")
        assert client.get(link(job, events=bool(end))).status_code == 200
        refusals = set()
        for job_id in (job.id, "no-such-job"):
            for token in wrong_tokens(job.id):
                answer = client.get(f"/jobs/{job_id}{end}?token={token}")
                assert answer.status_code == 403, token
                refusals.add(answer.text)
        assert len(refusals) == 1, "an answer that differs tells something"
        assert client.get(f"/jobs/{job.id}{end}?token={'1' * 201}").status_code == 422


def test_with_a_secret_alone_a_request_without_a_token_is_refused(tmp_path: Path) -> None:
    shop = Shop(tmp_path / "app.db", secret=SECRET)
    with TestClient(shop.app) as client:
        assert client.get("/jobs/some-job").status_code == 403


def test_a_right_token_beside_a_wrong_one_does_not_let_in(shop: tuple[Shop, TestClient]) -> None:
    job = shop[0].dq.add_task_sync(shop[0].charge, "4111-1111")
    right = parse_qs(urlsplit(link(job)).query)["token"][0]
    assert shop[1].get(f"/jobs/{job.id}?token={right}&token=x").status_code == 403


def test_auth_may_ask_whose_job_it_is(tmp_path: Path) -> None:
    mine: set[str] = set()

    async def owner(job_id: str, who: Annotated[str, Depends(user)]) -> None:
        if job_id not in mine:
            raise HTTPException(404, "no such job of yours")

    shop = Shop(tmp_path / "app.db", auth=Depends(owner))
    with TestClient(shop.app) as client:
        job, other = (shop.dq.add_task_sync(shop.charge, "4111-1111") for _ in range(2))
        mine.add(job.id)
        assert client.get(f"/jobs/{job.id}", headers={"x-user": "anna"}).status_code == 200
        assert client.get(f"/jobs/{other.id}", headers={"x-user": "anna"}).status_code == 404


def test_an_auth_that_returns_false_is_an_error_and_lets_nobody_in(tmp_path: Path) -> None:
    shop = Shop(tmp_path / "app.db", auth=Depends(lambda: False))
    with TestClient(shop.app, raise_server_exceptions=False) as client:
        job = shop.dq.add_task_sync(shop.charge, "4111-1111")
        assert client.get(f"/jobs/{job.id}").status_code == 500


@pytest.mark.parametrize(
    "options",
    [
        {"auth": user},
        {"auth": Depends(APIKeyHeader(name="x-key"))},
        {"secret": "too short"},
        {"secret": b"fifteen bytes.."},
        {"secret": 12345678901234567890},
        {"secret": SecretStr("too short")},
        {"secret": SECRET, "valid_for": timedelta(0)},
        {"secret": SECRET, "valid_for": timedelta(days=366)},
        {"secret": SECRET, "streams": 0},
        {"secret": SECRET, "shows": ["arguments"]},
        {"secret": SECRET, "shows": "log"},
    ],
)
def test_what_would_let_in_anybody_or_cannot_be_meant_is_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        status_router(DurableQ(tmp_path / "app.db"), **options)


@pytest.mark.parametrize("secret", [SECRET, KEY, SecretStr(SECRET)])
def test_a_secret_may_be_a_text_bytes_or_one_of_pydantics(tmp_path: Path, secret: Any) -> None:
    shop = Shop(tmp_path / "app.db", secret=secret)
    with TestClient(shop.app) as client:
        job = shop.dq.add_task_sync(shop.charge, "4111-1111")
        assert client.get(link(job)).status_code == 200


# -- what is seen --------------------------------------------------------------------------------------------


def finished(shop: Shop, client: TestClient, *steps: str) -> Any:
    job = shop.dq.add_task_sync(shop.charge, "4111-1111")
    assert client.portal is not None
    client.portal.call(shop.tell, *steps)
    answer: dict[str, Any] = {}

    def is_finished() -> bool:
        answer.update(client.get(link(job)).json())
        return bool(answer["is_finished"])

    eventually_sync(is_finished)
    return answer


def test_the_status_tells_how_far_a_job_is_and_nothing_of_what_it_holds(shop: tuple[Shop, TestClient]) -> None:
    answer = finished(*shop, "step", "end")
    assert answer.keys() == {
        "id", "state", "is_finished", "attempt", "max_attempts", "created_at", "run_at", "started_at", "finished_at",
        "progress",
    }  # fmt: skip
    assert answer["state"] == "succeeded"
    assert answer["progress"] == {"done": 2.0, "total": 3.0, "message": None}


def test_the_application_chooses_what_else_is_shown(tmp_path: Path) -> None:
    shop = Shop(tmp_path / "app.db", secret=SECRET, shows=["result", "error"])
    with TestClient(shop.app) as client:
        paid, failed = finished(shop, client, "end"), finished(shop, client, "fail")
    assert (paid["result"], paid["error"]) == ({"paid": 1}, None)
    assert (failed["state"], failed["result"]) == ("dead", None)
    assert failed["error"] == {"type": "LookupError", "message": "no account for ***"}


def test_a_job_that_is_not_finished_is_to_be_asked_for_again(shop: tuple[Shop, TestClient]) -> None:
    job = shop[0].dq.add_task_sync(shop[0].charge, "4111-1111")
    answer = shop[1].get(link(job))
    assert answer.headers["retry-after"] == "1"
    assert {name: answer.headers[name] for name in HEADERS} == HEADERS
    assert "4111" not in answer.text


@pytest.mark.parametrize(
    "job_id", ["nobody", "%00", "..", "%2e%2e", "'; DROP TABLE x; --", "%ED%A0%80", "٣", "x" * 200]
)
@pytest.mark.parametrize("end", ["", "/events"])
def test_an_id_that_is_no_jobs_is_not_found(shop: tuple[Shop, TestClient], job_id: str, end: str) -> None:
    assert shop[1].get(f"/jobs/{job_id}{end}", headers={"x-user": "anna"}).status_code == 404
    assert shop[1].get(f"/jobs/{'x' * 201}{end}", headers={"x-user": "anna"}).status_code == 422


def test_openapi_describes_the_routes_with_examples(shop: tuple[Shop, TestClient]) -> None:
    paths = shop[1].get("/openapi.json").json()["paths"]
    assert {path for path in paths if path.startswith("/jobs")} == {"/jobs/{job_id}", "/jobs/{job_id}/events"}
    for path in ("/jobs/{job_id}", "/jobs/{job_id}/events"):
        route = paths[path]["get"]
        assert route["summary"]
        assert route["description"]
        assert "example" in next(iter(route["responses"]["200"]["content"].values()))
        assert "token" in [one["name"] for one in route["parameters"]]


# -- accepted ------------------------------------------------------------------------------------------------


def test_an_accepted_job_is_answered_with_links_that_work(shop: tuple[Shop, TestClient]) -> None:
    answer = shop[1].post("/orders")
    body = answer.json()
    assert answer.status_code == 202
    assert answer.headers["location"] == body["status_url"]
    assert answer.headers["retry-after"] == "1"
    assert body["status_url"].startswith(f"/jobs/{body['id']}?token=")
    for url in (body["status_url"], body["events_url"]):
        assert shop[1].get(url).status_code == 200


def test_a_link_holds_as_long_as_was_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shop = Shop(tmp_path / "app.db", secret=SECRET, valid_for=timedelta(minutes=5))
    with TestClient(shop.app) as client:
        url = client.post("/orders").json()["status_url"]
        now = time.time()
        monkeypatch.setattr("durableq.fastapi.status.time.time", lambda: now + 298)
        assert client.get(url).status_code == 200
        monkeypatch.setattr("durableq.fastapi.status.time.time", lambda: now + 301)
        assert client.get(url).status_code == 403


def test_links_know_the_prefix_of_a_proxy(tmp_path: Path) -> None:
    shop = Shop(tmp_path / "app.db", auth=Depends(user))
    with TestClient(shop.app, root_path="/shop") as client:
        body = client.post("/orders").json()
    assert body["status_url"] == f"/shop/jobs/{body['id']}"
    assert body["events_url"] == f"/shop/jobs/{body['id']}/events"


def test_links_lead_to_the_job_that_was_there_already(tmp_path: Path) -> None:
    dq = DurableQ(tmp_path / "app.db", worker=False)
    app = FastAPI(lifespan=dq.lifespan)
    app.include_router(status_router(dq, secret=SECRET), prefix="/jobs")

    @dq.task(name="sync", unique=Unique(on_conflict="return"))
    def sync(account: int) -> None: ...

    @app.post("/sync")
    def start(tasks: BackgroundTasks, request: Request) -> Any:
        answer = accepted(tasks.add_task(sync, 1), request, headers={"X-Given": "1"})
        answer.set_cookie("seen", "1")
        return answer

    with TestClient(app) as client:
        first, second = client.post("/sync"), client.post("/sync")
        assert (second.headers["x-given"], second.cookies["seen"]) == ("1", "1")
        assert first.json()["id"] == second.json()["id"]
        assert client.get(second.headers["location"]).json()["id"] == first.json()["id"]


@pytest.mark.parametrize("routers", [0, 2])
def test_accepted_says_which_router_it_misses(tmp_path: Path, routers: int) -> None:
    dq = DurableQ(tmp_path / "app.db", worker=False)
    app = FastAPI(lifespan=dq.lifespan)
    for number in range(routers):
        app.include_router(status_router(dq, secret=SECRET, name=f"status_{number}"), prefix=f"/jobs{number}")

    @dq.task(name="work")
    def work() -> None: ...

    @app.post("/work")
    async def start(request: Request, name: str | None = None) -> Any:
        return accepted(await dq.add_task(work), request, name=name)

    with TestClient(app) as client:
        with pytest.raises(ConfigurationError, match=f"found {routers}"):
            client.post("/work")
        for number in range(routers):
            url = client.post(f"/work?name=status_{number}").json()["status_url"]
            assert url.startswith(f"/jobs{number}/")
            assert client.get(url).status_code == 200


def test_a_link_to_one_status_router_does_not_open_another_that_shows_more(tmp_path: Path) -> None:
    dq = DurableQ(tmp_path / "app.db", worker=False)
    app = FastAPI(lifespan=dq.lifespan)
    app.include_router(status_router(dq, secret=SECRET, name="plain", shows=[]), prefix="/plain")
    app.include_router(status_router(dq, secret=SECRET, name="full", shows=["result", "error"]), prefix="/full")

    @dq.task(name="work")
    def work() -> None: ...

    @app.post("/work")
    async def start(request: Request) -> Any:
        return accepted(await dq.add_task(work), request, name="plain")

    with TestClient(app) as client:
        url = client.post("/work").json()["status_url"]
        assert client.get(url).status_code == 200
        assert client.get(url.replace("/plain/", "/full/")).status_code == 403


def test_accepted_says_when_the_router_is_not_part_of_the_application(tmp_path: Path) -> None:
    dq = DurableQ(tmp_path / "app.db", worker=False)
    app = FastAPI(lifespan=dq.lifespan)
    kept: APIRouter = status_router(dq, secret=SECRET)

    @dq.task(name="work")
    def work() -> None: ...

    @app.post("/work")
    async def start(request: Request) -> Any:
        return accepted(await dq.add_task(work), request)

    with TestClient(app) as client, pytest.raises(ConfigurationError, match="not part of this application"):
        client.post("/work")
    assert kept.routes


# -- events --------------------------------------------------------------------------------------------------


async def test_a_job_is_followed_from_its_start_to_its_end(tmp_path: Path) -> None:
    async with open_shop(tmp_path / "app.db", secret=SECRET, shows=["result", "log"]) as (shop, port):
        job = await shop.dq.add_task(shop.charge, "4111-1111")
        async with open_stream(port, link(job, events=True)) as stream:
            assert (stream.status, stream.headers["content-type"]) == (200, "text/event-stream; charset=utf-8")
            assert stream.headers["cache-control"] == "no-store"
            told = await stream.until("status")
            while told[-1].data["state"] != "running":
                told += await stream.until("status")
            shop.tell("first", "second")
            while not {"second of ***"} <= {one.data.get("message") for one in told}:
                told += await stream.until("log")
            shop.tell("end")
            told += await stream.until("end")
            assert await stream.next() is None
    assert [one.data["message"] for one in told if one.name == "log"] == ["first of ***", "second of ***"]
    assert "progress" in [one.name for one in told]
    last = [one.data for one in told if one.name == "status"][-1]
    assert (last["state"], last["is_finished"], last["result"]) == ("succeeded", True, {"paid": 1})
    assert told[-1] == Told("end", {}, "2.end")


async def test_the_end_is_told_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from durableq.fastapi import following

    monkeypatch.setattr(following, "LOOK_SECONDS", 3_600.0)
    async with open_shop(tmp_path / "app.db", secret=SECRET) as (shop, port):
        job = await shop.dq.add_task(shop.charge, "4111-1111")
        async with open_stream(port, link(job, events=True)) as stream:
            await stream.until("status")
            shop.tell("end")
            assert [one.name for one in await stream.until("end")] == ["status", "end"]


async def test_who_comes_back_gets_the_lines_after_those_it_saw(tmp_path: Path) -> None:
    async with open_shop(tmp_path / "app.db", secret=SECRET) as (shop, port):
        job = await shop.dq.add_task(shop.charge, "4111-1111")
        shop.tell("1", "2", "3", "end")
        await shop.dq.wait(job)
        async with open_stream(port, link(job, events=True)) as stream:
            assert [one.id for one in await stream.until("end")] == ["1", "2", "3", "3", "3.end"]
        async with open_stream(port, link(job, events=True), last_event_id="2") as stream:
            told = await stream.until("end")
            assert [one.data["message"] for one in told if one.name == "log"] == ["3 of ***"]
            assert told[-2].data["state"] == "succeeded"
        async with open_stream(port, link(job, events=True), last_event_id="3.end") as stream:
            assert stream.status == 204, "which tells a browser not to come back"


@pytest.mark.parametrize("seen", ["x", "-1", "1.5", "٣", "9" * 10, "1.end.end", "", "' OR 1=1"])
async def test_a_last_event_id_that_is_none_of_ours_begins_anew(tmp_path: Path, seen: str) -> None:
    async with open_shop(tmp_path / "app.db", secret=SECRET) as (shop, port):
        job = await shop.dq.add_task(shop.charge, "4111-1111")
        shop.tell("1", "end")
        await shop.dq.wait(job)
        async with open_stream(port, link(job, events=True), last_event_id=seen) as stream:
            assert [one.name for one in await stream.until("end")] == ["log", "status", "end"]


async def test_lines_are_shown_only_where_the_application_says_so(tmp_path: Path) -> None:
    async with open_shop(tmp_path / "app.db", secret=SECRET, shows=[]) as (shop, port):
        job = await shop.dq.add_task(shop.charge, "4111-1111")
        shop.tell("1", "end")
        await shop.dq.wait(job)
        async with open_stream(port, link(job, events=True)) as stream:
            assert [one.name for one in await stream.until("end")] == ["status", "end"]


async def test_a_job_that_is_deleted_meanwhile_ends_the_stream(tmp_path: Path) -> None:
    async with open_shop(tmp_path / "app.db", secret=SECRET) as (shop, port):
        job = await shop.dq.add_task(shop.charge.options(delay=timedelta(days=1)), "4111-1111")
        async with open_stream(port, link(job, events=True)) as stream:
            await stream.until("status")
            await shop.dq.cancel(job)
            await shop.dq.delete(job)
            assert (await stream.until("end"))[-1].name == "end"


async def test_streams_end_when_the_server_shuts_down(tmp_path: Path) -> None:
    async with open_shop(tmp_path / "app.db", secret=SECRET) as (shop, port):
        job = await shop.dq.add_task(shop.charge.options(delay=timedelta(days=1)), "4111-1111")
        told: list[Told] = []
        ended = asyncio.create_task(read_to_the_end(port, link(job, events=True), told))
        await eventually(lambda: bool(told))
        began = time.monotonic()
    assert time.monotonic() - began < 5, "uvicorn waits for open streams"
    await ended
    assert [one.data["state"] for one in told] == ["scheduled"]


async def read_to_the_end(port: int, path: str, told: list[Told]) -> None:
    async with open_stream(port, path) as stream:
        while (event := await stream.next()) is not None:
            told.append(event)


async def test_a_stream_ends_after_a_while_for_the_client_to_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "LONGEST_SECONDS", 0.1)
    async with open_shop(tmp_path / "app.db", secret=SECRET) as (shop, port):
        job = await shop.dq.add_task(shop.charge.options(delay=timedelta(days=1)), "4111-1111")
        told: list[Told] = []
        await read_to_the_end(port, link(job, events=True), told)
        assert [one.name for one in told] == ["status"]


async def test_a_silent_stream_is_kept_open_by_comments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "KEEP_ALIVE_SECONDS", 0.1)
    async with open_shop(tmp_path / "app.db", secret=SECRET) as (shop, port):
        job = await shop.dq.add_task(shop.charge.options(delay=timedelta(days=1)), "4111-1111")
        async with open_stream(port, link(job, events=True)) as stream:
            await stream.until("status")
            waiting = asyncio.create_task(stream.next())
            await eventually(lambda: len(stream.comments) >= 2)
            waiting.cancel()


async def test_only_so_many_streams_are_open_at_once_and_who_leaves_makes_room(tmp_path: Path) -> None:
    async with open_shop(tmp_path / "app.db", secret=SECRET, streams=1) as (shop, port):
        job = await shop.dq.add_task(shop.charge.options(delay=timedelta(days=1)), "4111-1111")
        path = link(job, events=True)
        async with open_stream(port, path) as first:
            await first.until("status")
            async with open_stream(port, path) as second:
                assert (second.status, second.headers["retry-after"]) == (503, "1")
                assert "too many" in (await second.body())["detail"]["message"]

        async def is_let_in() -> bool:
            async with open_stream(port, path) as third:
                return third.status == 200

        await eventually(is_let_in)
