"""The example app and the demo keep what the README says of them."""

import asyncio
import contextlib
import importlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from examples.demo.__main__ import MENDED
from examples.demo.look_around import leave_running
from examples.demo.mail import REFUSED, MailServer
from examples.demo.report import Report, verdict
from examples.demo.site import Site, free_port
from tests.support import eventually, eventually_sync

ROOT = Path(__file__).resolve().parent.parent
TOKEN = "a token of the tests"
OPERATOR = {"Authorization": f"Bearer {TOKEN}"}
ADA = {"email": "ada@example.org", "name": "Ada"}
DEMO_SECONDS = 40

MakeApp = Callable[..., FastAPI]


@pytest.fixture
def mail() -> Iterator[MailServer]:
    server = MailServer(put_off=["later@example.org"])
    with server.running():
        yield server


@pytest.fixture
def make_app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MakeApp:
    """Import the example as a fresh process would: it reads its settings from the environment."""

    def make(smtp_port: int, token: str | None = TOKEN) -> FastAPI:
        monkeypatch.setenv("DATABASE", str(tmp_path / "signup.db"))
        monkeypatch.setenv("SMTP_PORT", str(smtp_port))
        if token is None:
            monkeypatch.delenv("DEMO_ADMIN_TOKEN", raising=False)
        else:
            monkeypatch.setenv("DEMO_ADMIN_TOKEN", token)
        for name in ("examples.signup.app", "examples.signup.tasks"):
            monkeypatch.delitem(sys.modules, name, raising=False)
        app: FastAPI = importlib.import_module("examples.signup.app").app
        return app

    return make


@pytest.fixture
def client(make_app: MakeApp, mail: MailServer) -> Iterator[TestClient]:
    with TestClient(make_app(mail.port)) as client:
        yield client


def sign_up(client: TestClient, email: str) -> str:
    answer = client.post("/signup", json={"email": email, "name": "Somebody"})
    assert answer.status_code == 202
    job: str = answer.json()["job"]
    return job


def wait_for_state(client: TestClient, job: str, state: str) -> dict[str, Any]:
    status: dict[str, Any] = {}

    def is_there() -> bool:
        status.update(client.get(f"/jobs/{job}").json())
        return bool(status["state"] == state)

    eventually_sync(is_there)
    return status


# -- the app -------------------------------------------------------------------------------------------------


def test_a_sign_up_is_accepted_and_its_mail_is_delivered(client: TestClient, mail: MailServer) -> None:
    job = sign_up(client, "ada@example.org")

    status = wait_for_state(client, job, "succeeded")

    assert [one.address for one in mail.mails] == ["ada@example.org"]
    assert (status["attempt"], status["error"]) == (1, None)


def test_a_mail_that_is_put_off_is_sent_by_the_next_attempt(client: TestClient, mail: MailServer) -> None:
    status = wait_for_state(client, sign_up(client, "later@example.org"), "succeeded")

    assert status["attempt"] == 2
    assert mail.put_off == {"later@example.org"}
    assert [one.address for one in mail.mails] == ["later@example.org"]


def test_a_mail_that_is_sent_twice_keeps_its_message_id(client: TestClient, mail: MailServer) -> None:
    for email in ("ada@example.org", "ada@example.org", "bob@example.org"):
        wait_for_state(client, sign_up(client, email), "succeeded")

    ada, ada_again, bob = (one.message_id for one in mail.mails)
    assert ada == ada_again != bob


def test_a_refused_mail_is_a_dead_letter_that_an_operator_mends(client: TestClient, mail: MailServer) -> None:
    job = sign_up(client, REFUSED)
    status = wait_for_state(client, job, "dead")
    assert status["attempt"] == status["max_attempts"] == 4
    assert "550" in status["error"]

    dead = client.get("/admin/jobs", params={"state": "dead"}, headers=OPERATOR).json()["jobs"]
    assert [one["id"] for one in dead] == [job]
    args = client.get(f"/admin/jobs/{job}", headers=OPERATOR).json()["args"]
    edited = client.post(f"/admin/jobs/{job}/edit", json={"args": args | {"email": MENDED}}, headers=OPERATOR)
    assert edited.status_code == 200

    wait_for_state(client, job, "succeeded")
    assert [one.address for one in mail.mails] == [MENDED]
    assert client.get(f"/admin/jobs/{job}", headers=OPERATOR).json()["audit"][0]["who"] == "operator"


def test_without_a_mail_server_the_app_serves_and_shows_its_retries(make_app: MakeApp) -> None:
    with TestClient(make_app(smtp_port=free_port())) as client:
        status = wait_for_state(client, sign_up(client, "ada@example.org"), "scheduled")

    assert status["attempt"] >= 1
    assert status["next_attempt_at"] is not None
    assert status["error"].startswith("ConnectionRefusedError")


def test_no_address_can_smuggle_in_another_mail(client: TestClient, mail: MailServer) -> None:
    for email in (
        "ada",
        "ada@example.org\r\nBcc: bob@example.org",
        "<ada@example.org>",
        "a@b.c, d@e.f",
        "ä@example.org",
    ):
        assert client.post("/signup", json=ADA | {"email": email}).status_code == 422
    counts = client.get("/admin/counts", headers=OPERATOR).json()
    assert {number for state, number in counts.items() if state != "at_most"} == {0}
    assert not mail.mails


def test_an_unknown_job_is_not_found(client: TestClient) -> None:
    assert client.get("/jobs/no-such-job").status_code == 404


def test_the_admin_routes_want_the_token(client: TestClient) -> None:
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer "}, {"Authorization": TOKEN}):
        answer = client.get("/admin/counts", headers=headers)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"] == "Basic"
    assert client.get("/admin/counts", headers=OPERATOR).status_code == 200


@pytest.mark.parametrize("token", [None, ""])
def test_without_a_token_of_ones_own_there_are_no_admin_routes(
    make_app: MakeApp, token: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    with TestClient(make_app(smtp_port=free_port(), token=token)) as client:
        for headers in ({}, {"Authorization": "Bearer "}):
            assert client.get("/admin/counts", headers=headers).status_code == 404
    assert "DEMO_ADMIN_TOKEN" in caplog.text


def test_the_example_starts_with_one_command_and_says_where_to_look(tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "examples.signup", "--port", str(port)]
    environment = os.environ | {"DATABASE": str(tmp_path / "signup.db")}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            eventually_sync(lambda: answers(f"{url}/docs"))
            assert httpx2.post(f"{url}/signup", json=ADA, trust_env=False).status_code == 202
        finally:
            process.terminate()
            said, _ = process.communicate(timeout=20)
    assert f"{url}/docs" in said
    assert f"curl {url}/signup" in said


def answers(url: str) -> bool:
    try:
        return httpx2.get(url, trust_env=False).status_code == 200
    except httpx2.TransportError:
        return False


# -- the demo ------------------------------------------------------------------------------------------------


def test_the_demo_loses_nothing_and_ends_in_time() -> None:
    started = time.monotonic()
    status, said = run_demo()

    assert status == 0, said
    assert time.monotonic() - started < DEMO_SECONDS
    for row in ("acknowledged +200", "lost +0", "delivered +200", "dead letters +1", "recovered +1"):
        assert re.search(rf"^ *{row}\b", said, re.MULTILINE), said
    assert "kill -9 of pid" in said


def run_demo() -> tuple[int, str]:
    """Run the demo in a process group of its own, so that nothing of it is left whatever happens."""
    with subprocess.Popen(
        [sys.executable, "-m", "examples.demo"],
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            said, _ = process.communicate(timeout=DEMO_SECONDS)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    return process.returncode, said


GOOD = Report(
    acknowledged=200,
    acknowledged_before_kill=110,
    delivered_before_kill=30,
    delivered=200,
    mails=204,
    stored=203,
    succeeded=203,
    cut_off=5,
    dead=["nobody"],
    recovered=1,
)


def test_the_demo_is_content_when_every_promise_was_kept() -> None:
    assert GOOD.broken_promises() == []
    assert (GOOD.lost, GOOD.delivered_twice, GOOD.signed_up_twice) == (0, 1, 3)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"acknowledged": 199}, "199 of 200 sign-ups were acknowledged"),
        ({"forgotten": {"ada@example.org"}}, "1 acknowledged jobs were forgotten: ada@example.org"),
        ({"undelivered": {"ada@example.org"}}, "1 promised mails never came: ada@example.org"),
        ({"succeeded": 202}, "202 of 203 stored jobs succeeded"),
        ({"dead": []}, "expected one dead letter, found 0"),
        ({"recovered": 0}, "expected one dead letter to be recovered"),
        ({"stored": 206, "succeeded": 206, "mails": 206}, "206 jobs are stored for 200 people"),
        ({"mails": 202}, "203 jobs succeeded, but only 202 mails came"),
        ({"mails": 203 + 9}, "9 mails came twice"),
        ({"delivered_before_kill": 110}, "proves nothing"),
    ],
)
def test_the_demo_says_which_promise_was_broken(
    changes: dict[str, Any], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    report = replace(GOOD, **changes)

    assert verdict(report) is False

    assert words in capsys.readouterr().out


async def test_the_app_that_the_demo_leaves_running_starts_again_when_killed(
    tmp_path: Path, mail: MailServer, capsys: pytest.CaptureFixture[str]
) -> None:
    site = Site(tmp_path, mail.port)
    try:
        await site.start()
        first = site.process.pid
        leaving = asyncio.create_task(leave_running(site))
        await eventually(lambda: "Ctrl-C" in capsys.readouterr().out)
        os.kill(first, signal.SIGKILL)
        await eventually(lambda: site.process.pid != first)
        await eventually(lambda: "pid" in capsys.readouterr().out)

        assert not leaving.done()
        os.kill(os.getpid(), signal.SIGINT)  # what Ctrl-C sends

        await asyncio.wait_for(leaving, 10)
    finally:
        await site.kill()
        print(site.log.read_text())
        asyncio.get_running_loop().remove_signal_handler(signal.SIGINT)
