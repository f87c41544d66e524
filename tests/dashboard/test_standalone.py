"""The dashboard by itself: it opens for one browser, from this machine, on a file that is there."""

import builtins
import contextlib
import http.client
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from starlette.testclient import TestClient

from durableq import ConfigurationError, DurableQ
from durableq.dashboard import standalone
from durableq.dashboard.standalone import address, application, check_host, serve
from durableq.storage import require_queue
from tests.dashboard.conftest import Page
from tests.support import eventually_sync


def note(label: str) -> None: ...


@pytest.fixture
def existing(database: Path) -> Path:
    """The file of a queue with a job."""
    DurableQ(database).add_task_sync(note, "a")
    return database


@pytest.fixture
def opened(existing: Path) -> Iterator[tuple[TestClient, str]]:
    app, token = application(DurableQ(existing, worker=False), "operate", 8765)
    with TestClient(app, base_url="http://127.0.0.1:8765") as client:
        yield client, token


def test_nobody_sees_a_page_before_opening_the_address(opened: tuple[TestClient, str]) -> None:
    client, _ = opened
    for path in ("/", "/jobs", "/live"):
        answer = client.get(path)
        assert answer.status_code == 401
        assert "open the printed address" in answer.text
        assert "default" not in answer.text


def test_the_address_opens_the_dashboard_and_leaves_no_token_behind(opened: tuple[TestClient, str]) -> None:
    client, token = opened
    entered = client.get("/enter", params={"token": token}, follow_redirects=False)
    assert (entered.status_code, entered.headers["location"]) == (303, "/")
    assert "HttpOnly" in entered.headers["set-cookie"]
    assert token not in entered.headers["set-cookie"]
    assert entered.headers["referrer-policy"]
    page = Page(client.get("/").text)
    assert "Queued 1 ready to run" in page.text
    assert "(operate)" in page.text


def test_the_token_works_once(opened: tuple[TestClient, str]) -> None:
    client, token = opened
    assert client.get("/enter", params={"token": token}).status_code == 200
    stranger = TestClient(client.app, base_url="http://127.0.0.1:8765")
    again = stranger.get("/enter", params={"token": token})
    assert again.status_code == 401
    assert "used already" in again.text
    assert stranger.get("/").status_code == 401
    # The browser that it let in may follow it again.
    assert client.get("/enter", params={"token": token}).status_code == 200


@pytest.mark.parametrize("token", ["", "x", "é", "x" * 200, "x" * 3_000])
def test_a_guess_opens_nothing_and_does_not_use_the_token_up(opened: tuple[TestClient, str], token: str) -> None:
    client, right = opened
    answer = client.get("/enter", params={"token": token})
    assert answer.status_code == 401
    assert answer.headers["content-security-policy"]
    assert not token or f">{token}" not in answer.text
    assert client.get("/enter", params={"token": right}).status_code == 200


def test_its_actions_are_audited_under_the_name_of_the_user(opened: tuple[TestClient, str], existing: Path) -> None:
    client, token = opened
    client.get("/enter", params={"token": token})
    form = Page(client.get("/queues").text).form("/queues/pause")
    assert client.post(form.action, data=dict(form.fields)).status_code == 200
    assert standalone._user() in client.get("/system").text


def test_a_user_without_a_name_is_called_admin(monkeypatch: pytest.MonkeyPatch) -> None:
    def nameless() -> str:
        raise OSError("no such user")

    monkeypatch.setattr("getpass.getuser", nameless)
    assert standalone._user() == "admin"


def test_it_offers_nothing_beside_the_dashboard(opened: tuple[TestClient, str]) -> None:
    client, token = opened
    client.get("/enter", params={"token": token})
    for path in ("/docs", "/redoc", "/openapi.json"):
        answer = client.get(path)
        assert answer.status_code == 404
        assert "There is no such page" in Page(answer.text).text
        assert answer.headers["content-security-policy"]


# -- the file, the host and the port ---------------------------------------------------------------------------


def test_a_file_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    missing = tmp_path / "ap.db"
    with pytest.raises(ConfigurationError, match=r"there is no .*ap\.db"):
        serve(missing, tell=lambda text: None)
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_file_of_a_queue_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.db").touch()
    (tmp_path / "text.db").write_text("not a database, but long enough to look like something " * 20)
    with closing(sqlite3.connect(tmp_path / "other.db")) as connection:
        connection.execute("CREATE TABLE orders (id)")
    for path in (tmp_path, *tmp_path.glob("*.db")):
        with pytest.raises(ConfigurationError, match=r"holds none"):
            require_queue(path)
    with closing(sqlite3.connect(tmp_path / "other.db")) as connection:
        assert connection.execute("SELECT name FROM sqlite_schema").fetchall() == [("orders",)]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org"])
def test_other_machines_are_let_in_only_when_that_is_said(existing: Path, host: str) -> None:
    with pytest.raises(ConfigurationError, match=r"other machines"):
        serve(existing, host=host, tell=lambda text: None)
    check_host(host, allow_network=True)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.53", "::1", "localhost"])
def test_this_machine_is_always_let_in(host: str) -> None:
    check_host(host, allow_network=False)


def test_a_port_that_is_taken_is_said(existing: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=rf"port {port}.*give another port"):
            serve(existing, port=port, tell=lambda text: None)


def test_that_uvicorn_is_missing_is_said_with_what_to_do(existing: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without_uvicorn(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "uvicorn":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_uvicorn)
    with pytest.raises(ConfigurationError, match=r"pip install uvicorn"):
        serve(existing, tell=lambda text: None)


def test_the_address_names_the_port_that_was_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert address(listener, "a-b_c") == f"http://127.0.0.1:{port}/enter?token=a-b_c"


def test_a_process_of_its_own_serves_until_it_is_interrupted(existing: Path) -> None:
    script = f"from durableq.dashboard.standalone import serve; serve({str(existing)!r}, port=0, tell=print)"
    with subprocess.Popen([sys.executable, "-u", "-c", script], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            url = process.stdout.readline().strip()
            eventually_sync(lambda: is_answered(url))
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(20) in (0, -signal.SIGINT)
        assert process.stdout.read() == ""  # no token in a log of requests


def is_answered(url: str) -> bool:
    """Whether a server lets one in who opens an address."""
    place = urlsplit(url)
    connection = http.client.HTTPConnection(place.netloc, timeout=10)
    with contextlib.closing(connection):
        try:
            connection.request("GET", f"{place.path}?{place.query}")
        except ConnectionRefusedError:
            return False
        return connection.getresponse().status == 303


def test_it_serves_what_it_has_told(existing: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    served: list[tuple[Any, int]] = []
    monkeypatch.setattr(
        standalone, "_server", lambda: lambda app, listener: served.append((app, listener.getsockname()[1]))
    )
    serve(existing, port=0, role="read", tell=told.append)
    (app, port), (url,) = served[0], told
    assert f":{port}/enter?token=" in url
    with TestClient(app) as client:
        client.get(url.partition(str(port))[2])
        assert "Read only" in client.get("/").text
