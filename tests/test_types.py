"""What a type checker says about an application: mistakes in a call are found before it runs.

Each snippet is checked by mypy in strict mode. A line marked ``# refused`` must be an error, and no other may be.
"""

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

import pytest

PREAMBLE = """
from collections.abc import Coroutine
from datetime import timedelta
from typing import Annotated, Any, assert_type

from fastapi import Depends, FastAPI

from durableq import Call, DurableQ, Job, Task, call
from durableq.fastapi import BackgroundTasks, TaskCollector

dq = DurableQ("app.db")
app = FastAPI(lifespan=dq.lifespan)


async def send_welcome(email: str) -> int: ...


def render(page: int, *, title: str = '') -> str: ...


"""

SNIPPETS = {
    "the arguments of a background task are checked against its function": """
        @app.post("/")
        async def route(background_tasks: BackgroundTasks) -> None:
            background_tasks.add_task(send_welcome, "ada@example.com")
            background_tasks.add_task(send_welcome, email="ada@example.com")
            background_tasks.add_task(render, 1, title="x")
            background_tasks.add_task(send_welcome, 42)  # refused
            background_tasks.add_task(send_welcome)  # refused
            background_tasks.add_task(send_welcome, "ada", "bob")  # refused
            background_tasks.add_task(send_welcome, emial="ada")  # refused
            background_tasks.add_task(render, 1, title=2)  # refused
    """,
    "a background task gives a job of what its function returns": """
        @app.post("/")
        def route(background_tasks: BackgroundTasks) -> str:
            assert_type(background_tasks.add_task(send_welcome, "ada"), Job[int])
            assert_type(background_tasks.add_task(render, 1), Job[str])
            return background_tasks.add_task(render, 1).id
    """,
    "a helper may take the alias": """
        def greet(tasks: BackgroundTasks, email: str) -> Job[int]:
            return tasks.add_task(send_welcome, email)

        Bulk = Annotated[TaskCollector, Depends(dq.collector)]

        def greet_in_bulk(tasks: Bulk) -> None:
            greet(tasks, "ada")
            tasks.add_task(send_welcome, 42)  # refused
    """,
    "add_task gives a job of what the function returns": """
        async def add() -> None:
            assert_type(await dq.add_task(send_welcome, "ada"), Job[int])
            assert_type(await dq.add_task(render, 1), Job[str])
            assert_type(dq.add_task_sync(send_welcome, "ada"), Job[int])
            assert_type(dq.add_task_sync(render, 1), Job[str])
            await dq.add_task(send_welcome, 42)  # refused
            await dq.add_task(render, page="1")  # refused
            dq.add_task_sync(send_welcome, 42)  # refused
            await dq.add_task("send_welcome", "ada")  # refused
    """,
    "a task keeps its signature and its raw result": """
        @dq.task
        async def send(email: str) -> int: ...

        @dq.task(max_attempts=3, queue="mail")
        def draw(page: int) -> str: ...

        kept: Task[[str], Coroutine[Any, Any, int]] = send
        changed: Task[[int], Coroutine[Any, Any, int]] = send  # refused

        async def use() -> None:
            assert_type(await send("ada"), int)
            assert_type(draw(1), str)
            assert_type(await dq.add_task(send, "ada"), Job[int])
            assert_type(await dq.add_task(draw, 1), Job[str])
            await send(42)  # refused
            draw("1")  # refused
            await dq.add_task(send, 42)  # refused
            await draw(1)  # refused
    """,
    "the options of a task are checked by name and type": """
        @dq.task(max_attempts=3, priority=5, delay=1.5, queue="mail")
        async def send(email: str) -> int: ...

        @dq.task(max_atempts=3)  # refused
        async def misspelt(email: str) -> int: ...

        @dq.task(max_attempts="3")  # refused
        async def mistyped(email: str) -> int: ...

        send.options(delay=timedelta(minutes=1), queue="slow")
        send.options(dealy=1)  # refused
        send.options(priority="high")  # refused
    """,
    "options do not change what a task takes and gives": """
        @dq.task
        async def send(email: str) -> int: ...

        async def add(background_tasks: BackgroundTasks) -> None:
            assert_type(await send.options(delay=60)("ada"), int)
            assert_type(await dq.add_task(send.options(delay=60), "ada"), Job[int])
            assert_type(background_tasks.add_task(send.options(delay=60), "ada"), Job[int])
            await dq.add_task(send.options(delay=60), 42)  # refused
            background_tasks.add_task(send.options(delay=60), 42)  # refused
    """,
    "the calls of add_tasks are checked one by one": """
        async def add() -> None:
            assert_type(call(send_welcome, "ada"), Call[int])
            assert_type(await dq.add_tasks([call(send_welcome, "ada"), call(render, 1)]), list[Job[Any]])
            await dq.add_tasks([call(send_welcome, "ada"), call(send_welcome, 42)])  # refused
            await dq.add_tasks(call(render, page) for page in ["1"])  # refused
            await dq.add_tasks([send_welcome])  # refused
    """,
    "the settings of a queue are checked by name and type": """
        DurableQ("app.db", concurrency=8, grace=timedelta(seconds=5), durability="normal")
        DurableQ("app.db", concurency=8)  # refused
        DurableQ("app.db", concurrency="8")  # refused
        DurableQ("app.db", durability="fast")  # refused
    """,
    "a collector is given by FastAPI, not made": """
        def make() -> None:
            BackgroundTasks()  # refused
    """,
}


@dataclass(frozen=True)
class Checked:
    """A snippet as mypy read it, and what mypy said about its lines."""

    lines: list[str]
    errors: dict[int, str]

    def marked(self) -> dict[int, str]:
        return {number: line for number, line in enumerate(self.lines, 1) if line.endswith("# refused")}


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> dict[str, Checked]:
    """All snippets after one run of mypy. It reads FastAPI and pydantic once, and next time its cache of them."""
    directory = tmp_path_factory.mktemp("snippets")
    sources = {title: PREAMBLE + dedent(text).strip() + "\n" for title, text in SNIPPETS.items()}
    files = {title: f"snippet_{number}.py" for number, title in enumerate(sources)}
    for title, source in sources.items():
        (directory / files[title]).write_text(source)
    assert pytestconfig.cache is not None
    errors = run_mypy(directory, pytestconfig.cache.mkdir("mypy"))
    return {title: Checked(source.splitlines(), errors.get(files[title], {})) for title, source in sources.items()}


def run_mypy(directory: Path, cache: Path) -> dict[str, dict[int, str]]:
    """Check all files of a directory; return the errors by file and line."""
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", f"--cache-dir={cache}"]
    command += ["--disable-error-code=empty-body", "--hide-error-context", "--no-pretty", "--no-error-summary", "."]
    ended = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=170)
    assert ended.returncode in (0, 1), ended.stdout + ended.stderr
    errors: dict[str, dict[int, str]] = {}
    for line in ended.stdout.splitlines():
        found = re.fullmatch(r"(snippet_\d+\.py):(\d+): error: (.*)", line)
        if found is not None:
            errors.setdefault(found[1], {})[int(found[2])] = found[3]
        else:
            assert ": note: " in line, ended.stdout  # an error elsewhere: the snippets were not checked as meant
    return errors


@pytest.mark.timeout(180)
@pytest.mark.parametrize("title", SNIPPETS)
def test_a_type_checker_finds_the_mistakes_and_nothing_else(checked: dict[str, Checked], title: str) -> None:
    snippet = checked[title]
    unexpected = {number: text for number, text in snippet.errors.items() if number not in snippet.marked()}
    missed = {number: line for number, line in snippet.marked().items() if number not in snippet.errors}
    assert (unexpected, missed) == ({}, {})
