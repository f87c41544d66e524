"""``python -m durableq``: what an operator types, and reads."""

import asyncio
import signal
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from urllib.request import HTTPCookieProcessor, build_opener

import pytest
from typer.testing import CliRunner, Result

import durableq
from durableq import DurableQ
from durableq.cli import app
from durableq.encryption import KeyRing, new_key

runner = CliRunner()


async def echo(text: str) -> str:
    return text


def stored_in_clear(path: Path) -> Path:
    async def store() -> None:
        dq = DurableQ(path, worker=False)
        dq.task(name="echo")(echo)
        async with dq.running():
            for text in ("one", "two"):
                await dq.add_task(echo, text)

    asyncio.run(store())
    return path


def all_arguments(path: Path) -> str:
    with closing(sqlite3.connect(path)) as connection:
        return " ".join(args for (args,) in connection.execute("SELECT args FROM durableq_jobs"))


def rotate(path: Path, keys: str) -> Result:
    return runner.invoke(app, ["rotate-keys", str(path)], env={"DURABLEQ_ENCRYPTION_KEYS": keys})


def test_a_new_key_is_one_that_a_key_ring_takes() -> None:
    printed = [runner.invoke(app, ["new-key"]).stdout.strip() for _ in range(2)]
    assert printed[0] != printed[1]
    KeyRing({"2026-11": printed[0]})


def test_rotate_keys_encrypts_what_is_stored_and_says_how_much(tmp_path: Path) -> None:
    path = stored_in_clear(tmp_path / "jobs.db")
    first, second = new_key(), new_key()
    ran = rotate(path, f"first:{first}")
    assert (ran.exit_code, ran.stdout) == (0, "2 jobs: 2 arguments and 0 results encrypted anew.\n")
    assert "one" not in all_arguments(path)
    ran = rotate(path, f"second:{second},first:{first}")
    assert (ran.exit_code, ran.stdout) == (0, "2 jobs: 2 arguments and 0 results encrypted anew.\n")
    ran = rotate(path, f"second:{second}")
    assert (ran.exit_code, ran.stdout) == (0, "2 jobs: 0 arguments and 0 results encrypted anew.\n")


def test_rotate_keys_leaves_what_it_cannot_read_and_fails(tmp_path: Path) -> None:
    path = stored_in_clear(tmp_path / "jobs.db")
    assert rotate(path, f"lost:{new_key()}").exit_code == 0
    before = all_arguments(path)
    ran = rotate(path, f"other:{new_key()}")
    assert ran.exit_code == 1
    assert "2 could not be read" in ran.stdout
    assert all_arguments(path) == before


def test_rotate_keys_without_keys_says_where_to_put_them(tmp_path: Path) -> None:
    ran = rotate(stored_in_clear(tmp_path / "jobs.db"), "")
    assert ran.exit_code == 2
    assert "DURABLEQ_ENCRYPTION_KEYS" in ran.stderr
    assert "Traceback" not in ran.output


def test_rotate_keys_of_a_file_that_is_not_there_makes_none(tmp_path: Path) -> None:
    ran = rotate(tmp_path / "typo.db", f"first:{new_key()}")
    assert ran.exit_code == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("command", ["torture", "new-key", "rotate-keys", "backup", "restore", "dashboard"])
def test_every_command_explains_itself(command: str) -> None:
    ran = runner.invoke(app, [command, "--help"])
    assert ran.exit_code == 0
    assert "Usage:" in ran.stdout


def test_without_typer_the_command_says_what_to_install() -> None:
    script = "import sys; sys.modules['typer'] = None; from durableq.__main__ import main; main()"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert ran.returncode == 1
    assert "pip install 'durableq[cli]'" in ran.stderr


# -- the dashboard -------------------------------------------------------------------------------------------


def test_the_dashboard_prints_an_address_that_opens_and_ends_with_an_interrupt(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "durableq", "dashboard", "--db", str(stored_in_clear(tmp_path / "jobs.db"))]
    with subprocess.Popen([*command, "--port", "0"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        address = next(line.strip() for line in process.stdout if "http://" in line)
        with build_opener(HTTPCookieProcessor()).open(address, timeout=20) as page:
            assert "Overview" in page.read().decode()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 0


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--db", "nothing.db"], "there is no 'nothing.db'"),
        (["--db", "jobs.db", "--host", "0.0.0.0"], "can be reached from other machines"),
        (["--db", "jobs.db", "--role", "boss"], "expected role to be one of read, operate, admin; got 'boss'"),
    ],
)
def test_what_the_dashboard_cannot_do_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], says: str
) -> None:
    stored_in_clear(tmp_path / "jobs.db")
    monkeypatch.chdir(tmp_path)
    ran = runner.invoke(app, ["dashboard", *options])
    assert ran.exit_code == 2
    assert says in " ".join(ran.stderr.replace("│", " ").split())
    assert not Path("nothing.db").exists()


def test_without_its_packages_the_dashboard_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.startswith("durableq.dashboard")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "jinja2", None)
    ran = runner.invoke(app, ["dashboard", "--db", str(stored_in_clear(tmp_path / "jobs.db"))])
    assert ran.exit_code == 2
    assert "pip install 'durableq[dashboard]'" in ran.stderr


def test_the_version_is_told_with_that_of_sqlite() -> None:
    told = runner.invoke(app, ["--version"])
    assert (told.exit_code, told.output.split(",")[:2]) == (
        0,
        [f"durableq {durableq.__version__}", f" SQLite {sqlite3.sqlite_version}"],
    )
