"""Applications as FastAPI's tutorial teaches them, with the import line changed, a `DurableQ` and its lifespan.

https://fastapi.tiangolo.com/tutorial/background-tasks/ : a plain function that writes to a file, and a dependency
that adds a task of its own.
"""

import importlib
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
from fastapi.testclient import TestClient

from tests.fastapi.helpers import Database

CREATE_A_TASK_FUNCTION = """
from fastapi import BackgroundTasks, FastAPI

app = FastAPI()


def write_notification(email: str, message=""):
    with open("log.txt", "w") as log:
        print(email, message, sep=": ", file=log)


@app.post("/notify/{email}")
async def notify(email: str, background_tasks: BackgroundTasks):
    background_tasks.add_task(write_notification, email, message="you have mail")
    return {"notified": email}
"""

DEPENDENCY_INJECTION = """
from typing import Annotated

from fastapi import BackgroundTasks, Depends, FastAPI

app = FastAPI()


def write_log(line: str):
    with open("log.txt", "a") as log:
        print(line, file=log)


def get_query(background_tasks: BackgroundTasks, q: str | None = None):
    if q is not None:
        background_tasks.add_task(write_log, f"asked for {q}")
    return q


@app.post("/notify/{email}")
async def notify(email: str, background_tasks: BackgroundTasks, q: Annotated[str | None, Depends(get_query)]):
    background_tasks.add_task(write_log, f"notified {email}")
    return {"notified": email, "query": q}
"""


def with_the_import_changed(source: str) -> str:
    return source.replace(
        "from fastapi import BackgroundTasks, ", "from durableq.fastapi import BackgroundTasks\nfrom fastapi import "
    )


def with_a_queue(source: str) -> str:
    queue = 'from durableq import DurableQ\n\ndq = DurableQ("app.db")\napp = FastAPI(lifespan=dq.lifespan)\n'
    return source.replace("app = FastAPI()\n", queue)


def with_durable_routes(source: str) -> str:
    chosen = "from durableq.fastapi import DurableRoute\n\napp.router.route_class = DurableRoute\n\n\ndef "
    return source.replace("\ndef ", chosen, 1)


def changed(source: str, *changes: Callable[[str], str]) -> str:
    for change in changes:
        before, source = source, change(source)
        assert source != before
    return source


@pytest.fixture
def module_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], ModuleType]]:
    """Import a source as the ``main.py`` of a directory of its own, which is the current one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def write_and_import(source: str) -> ModuleType:
        (tmp_path / "main.py").write_text(source)
        sys.modules.pop("main", None)
        importlib.invalidate_caches()
        return importlib.import_module("main")

    yield write_and_import
    sys.modules.pop("main", None)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log.txt"


IN_EITHER_WAY = pytest.mark.parametrize(
    "change", [pytest.param(with_the_import_changed, id="import"), pytest.param(with_durable_routes, id="DurableRoute")]
)


@IN_EITHER_WAY
def test_create_a_task_function(
    module_of: Callable[[str], ModuleType], change: Callable[[str], str], database: Database, log: Path
) -> None:
    main = module_of(changed(CREATE_A_TASK_FUNCTION, change, with_a_queue))
    with TestClient(main.app) as client:
        answer = client.post("/notify/ada@example.com")
        assert (answer.status_code, answer.json()) == (200, {"notified": "ada@example.com"})
        assert client.portal is not None
        client.portal.call(main.dq.drain, 10)
        assert list(database.state_of().values()) == ["succeeded"]
    assert log.read_text() == "ada@example.com: you have mail\n"


@IN_EITHER_WAY
def test_dependency_injection(module_of: Callable[[str], ModuleType], change: Callable[[str], str], log: Path) -> None:
    main = module_of(changed(DEPENDENCY_INJECTION, change, with_a_queue))
    with TestClient(main.app) as client:
        answer = client.post("/notify/ada@example.com?q=engines")
        assert (answer.status_code, answer.json()) == (200, {"notified": "ada@example.com", "query": "engines"})
        assert client.post("/notify/bob@example.com").status_code == 200
        assert client.portal is not None
        client.portal.call(main.dq.drain, 10)
    # The tasks of one request are independent here: both run, in no promised order.
    written = sorted(log.read_text().splitlines())
    assert written == ["asked for engines", "notified ada@example.com", "notified bob@example.com"]


def test_the_route_still_documents_itself(module_of: Callable[[str], ModuleType]) -> None:
    plain = module_of(DEPENDENCY_INJECTION).app.openapi()
    durable = module_of(changed(DEPENDENCY_INJECTION, with_the_import_changed, with_a_queue)).app.openapi()
    assert durable == plain


ASK_AND_STOP = """
from fastapi.testclient import TestClient
import main

with TestClient(main.app) as client:
    assert client.post("/notify/ada@example.com").status_code == 200
"""

START_AND_DRAIN = """
from fastapi.testclient import TestClient
import main

with TestClient(main.app) as client:
    client.portal.call(main.dq.drain, 10)
"""


def test_a_task_that_had_not_run_when_its_process_ended_runs_in_the_next_one(tmp_path: Path, log: Path) -> None:
    """A plain function, without a decorator, is found again by its name."""
    (tmp_path / "main.py").write_text(changed(CREATE_A_TASK_FUNCTION, with_the_import_changed, with_a_queue))

    def run(script: str, **environment: str) -> None:
        command = [sys.executable, "-c", script]
        subprocess.run(command, cwd=tmp_path, env=os.environ | environment, check=True, timeout=50)

    run(ASK_AND_STOP, DURABLEQ_WORKER="false")
    assert not log.exists()
    run(START_AND_DRAIN)
    assert log.read_text() == "ada@example.com: you have mail\n"
