"""Canaries: secrets that occur nowhere else, put wherever an application may have some, and looked for afterwards.

The server is real: another process, its standard streams kept. It answers with successes, failures, refusals and
trouble; nothing that it sends, logs, prints or stores of what a job said or why it failed may hold a canary.
"""

import contextlib
import hashlib
import http.client
import json
import logging
import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final

import pytest
from fastapi import Depends, FastAPI, HTTPException, Request
from pydantic import SecretStr

from durableq import DurableQ, current_job
from durableq.fastapi import Principal, admin_router, status_router
from durableq.redaction import HIDDEN
from durableq.secret_names import Secret
from tests.support import eventually_sync

PLACES: Final = ("declared", "named", "nested", "dsn", "pydantic", "header", "cookie", "result", "cause")
ROOT: Final = Path(__file__).parents[2]


def canary(place: str) -> str:
    """A secret of its own for each place. It stands in no file: what shows a line of source must not show it."""
    return f"{hashlib.sha256(place.encode()).hexdigest()[:20]}'\u00e9 {place}"


def parts() -> dict[str, str]:
    """What to look for: the beginning of each, which no way of quoting changes."""
    return {place: canary(place)[:20] for place in PLACES}


# -- the application, in the server's process ----------------------------------------------------------------


def account(request: Request) -> Principal:
    name = request.headers.get("x-user")
    if name is None:
        raise HTTPException(401, "who are you?")
    return Principal(name, "read" if name == "rita" else "admin")


def work(
    what: str,
    licence: Annotated[str, Secret],
    password: str,
    config: dict[str, Any],
    database: str,
    key: Annotated[SecretStr, Secret],
) -> Any:
    """Do what secrets are for, and spill them wherever a task can."""
    everything = f"{licence} {password!r} {config} {database} {key.get_secret_value()}"
    current_job().log(f"with {everything}")
    current_job().progress(1, 2, f"with {everything}")
    current_job().headers["x-api-key"] = canary("header")
    if what == "fail":
        try:
            raise KeyError(everything)
        except KeyError as error:
            raise ValueError(f"Authorization: Basic {canary('cause')}\n{everything}") from error
    if what == "unstorable":
        return {"token", everything}.__iter__()
    assert (licence, password, key.get_secret_value()) == (canary("declared"), canary("named"), canary("pydantic"))
    return {"session_token": canary("result"), "did": everything}


def work_elsewhere(what: str, licence: Annotated[str, Secret], password: str) -> None:
    """The same in a child process."""
    raise ValueError(f"{what} {licence!r} {password}")


def arguments(what: str) -> tuple[Any, ...]:
    config = {"servers": [{"apiKey": canary("nested")}]}
    dsn = f"amqp://app:{canary('dsn')[:20]}@mq/%2f"
    return what, canary("declared"), canary("named"), config, dsn, SecretStr(canary("pydantic"))


def make_app() -> FastAPI:
    logging.basicConfig(level=logging.DEBUG)
    dq = DurableQ(os.environ["CANARIES_DATABASE"], grace=0.5, processes=1)
    headers = {"authorization": f"Bearer {canary('header')}", "cookie": f"a=1; b={canary('cookie')}"}
    task = dq.task(name="work", max_attempts=2, headers=headers)(work)
    elsewhere = dq.task(name="work.elsewhere", max_attempts=1, runner="process")(work_elsewhere)
    app = FastAPI(lifespan=dq.lifespan)
    app.include_router(admin_router(dq, auth=Depends(account)), prefix="/admin")
    app.include_router(status_router(dq, auth=Depends(account), shows=("result", "error", "log")), prefix="/status")

    @app.post("/add/{what}")
    async def add(what: str) -> str:
        if what == "elsewhere":
            return (await dq.add_task(elsewhere, what, canary("declared"), canary("named"))).id
        return (await dq.add_task(task, *arguments(what))).id

    return app


# -- the test, in its own ------------------------------------------------------------------------------------


@dataclass
class Server:
    """A real server, and all that came out of it."""

    process: subprocess.Popen[bytes]
    output: Path
    port: int = 0
    heard: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        eventually_sync(lambda: re.search(r"running on http://127.0.0.1:\d+", self.said()) is not None, within=30)
        self.port = int(re.findall(r"running on http://127.0.0.1:(\d+)", self.said())[0])

    def said(self) -> str:
        return self.output.read_text("utf-8", "replace")

    def ask(
        self, method: str, path: str, body: Any = None, who: str | None = "anna", **headers: str
    ) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        with contextlib.closing(connection):
            sent = {} if who is None else {"x-user": who}
            if body is not None:
                sent["content-type"] = "application/json"
            connection.request(method, path, None if body is None else json.dumps(body), sent | headers)
            response = connection.getresponse()
            text = response.read().decode()
            self.heard.append(f"{response.getheaders()} {text}")
            is_json = response.getheader("content-type") == "application/json"
        return response.status, json.loads(text) if is_json else text

    def job(self, job_id: str) -> Any:
        return self.ask("GET", f"/admin/jobs/{job_id}", who="rita")[1]

    def ended(self, what: str) -> Any:
        job_id = self.ask("POST", f"/add/{what}")[1]
        return self.until(job_id, "dead", "succeeded")

    def until(self, job_id: str, *states: str) -> Any:
        def is_there() -> bool:
            job = self.job(job_id)
            if job["state"] == "scheduled":  # its second attempt need not wait
                self.ask("POST", f"/admin/jobs/{job_id}/retry")
            return job["state"] in states and (
                job["state"] != "dead" or len(job["attempts"]) > 1 or job["max_attempts"] == 1
            )

        eventually_sync(is_there, within=30)
        return self.job(job_id)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        self.process.wait(20)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    output = tmp_path / "output"
    command = [sys.executable, "-m", "uvicorn", "--factory", f"{__name__}:make_app", "--port", "0"]
    environment = os.environ | {"CANARIES_DATABASE": str(tmp_path / "app.db")}
    with output.open("wb") as stream:
        process = subprocess.Popen(command, stdout=stream, stderr=stream, env=environment, cwd=ROOT)
    server = None
    try:
        server = Server(process, output)
        yield server
    finally:
        process.kill() if server is None else server.end()
        process.wait(20)


def test_no_canary_leaves_the_server(server: Server, tmp_path: Path) -> None:
    done, unstorable, failed, elsewhere = map(server.ended, ("succeed", "unstorable", "fail", "elsewhere"))
    assert (done["state"], unstorable["state"], failed["state"], elsewhere["state"]) == (
        "succeeded",
        "succeeded",
        "dead",
        "dead",
    )
    assert "in work_elsewhere" in elsewhere["attempts"][0]["traceback"]
    path = f"/admin/jobs/{failed['id']}"
    edited = failed["args"] | {"what": "succeed"}
    assert failed["args"]["licence"] == failed["args"]["key"] == HIDDEN
    for status, (method, where, body, who) in {
        401: ("GET", path, None, None),
        403: ("POST", f"{path}/edit", {"args": edited}, "rita"),
        404: ("GET", "/admin/jobs/unknown", None, "anna"),
        405: ("PUT", path, {"args": edited}, "anna"),
        409: ("POST", f"/admin/jobs/{done['id']}/cancel", None, "anna"),
        422: ("POST", f"{path}/edit", {"args": edited | {"licence": [canary("declared")]}}, "anna"),
    }.items():
        assert server.ask(method, where, body, who)[0] == status
    assert server.ask("POST", f"{path}/edit", {"args": edited, "more": canary("named")})[0] == 422
    assert server.ask("POST", f"{path}/edit", {"args": edited | {"config": canary("nested")}})[0] == 422
    assert server.ask("POST", f"{path}/edit", {"args": edited})[0] == 200
    assert server.until(failed["id"], "succeeded")["args"] == edited  # it has checked what it got
    for name in ("jobs?limit=200", "tasks", "dead-letters", "audit", "queues", "workers", "history", "system"):
        assert server.ask("GET", f"/admin/{name}")[0] == 200
    for one in (done, failed, elsewhere):
        for shown_to in (f"/admin/jobs/{one['id']}/events", f"/status/{one['id']}", f"/status/{one['id']}/events"):
            assert server.ask("GET", shown_to)[0] == 200
    stored = stored_of_what_was_said(tmp_path / "app.db")
    (tmp_path / "app.db").rename(tmp_path / "away.db")
    assert server.ask("DELETE", f"/admin/jobs/{elsewhere['id']}")[0] == 503
    server.end()

    assert "job is dead" in server.said()
    assert "Traceback" in server.said()
    assert "in work" in stored
    shown = {
        "over HTTP": "\n".join(server.heard),
        "on its standard streams": server.said(),
        "among what jobs said": stored,
    }
    found = [
        f"{place} {where}: {text[max(0, text.index(part) - 100) :][:200]!r}"
        for where, text in shown.items()
        for place, part in parts().items()
        if part in text
    ]
    assert found == []


def stored_of_what_was_said(path: Path) -> str:
    with contextlib.closing(sqlite3.connect(path, timeout=10)) as connection:
        attempts = connection.execute("SELECT * FROM durableq_attempts").fetchall()
        lines = connection.execute("SELECT * FROM durableq_logs").fetchall()
        jobs = connection.execute("SELECT error_message, progress FROM durableq_jobs").fetchall()
        assert lines
        return f"{attempts} {lines} {jobs}"


def test_every_canary_is_where_it_can_be_found(tmp_path: Path) -> None:
    """The other test finds nothing: this one shows that there is something."""
    places = {place for place, part in parts().items() if part in f"{arguments('fail')} {canary('cause')}"}
    assert {"declared", "named", "nested", "dsn", "cause"} <= places
    assert canary("pydantic") == arguments("fail")[-1].get_secret_value()
    assert len(set(parts().values())) == len(PLACES)
