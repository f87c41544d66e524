"""What `tests.test_types` has type checkers read: applications in small, with the mistakes that they shall find.

A line that ends with ``# refused`` must be an error, and no other may be; ``# refused by mypy`` and ``# refused by
pyright`` are for the few that only one of them finds.
"""

from typing import Final

from tests.type_samples_of_tasks import CLASSES, TASKS

PREAMBLE: Final = """
import sqlite3
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterator
from datetime import datetime, timedelta
from typing import Annotated, Any, assert_type

import aiosqlite
from fastapi import Depends, FastAPI
from sqlalchemy import Connection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import Session
from sqlmodel import Session as ModelSession
from sqlmodel.ext.asyncio.session import AsyncSession as AsyncModelSession

from durableq import (
    INJECTED, Call, CurrentJob, DurableQ, Job, Progress, RetryPolicy, Task, Unique, call, current_job
)
from durableq.fastapi import BackgroundTasks, TaskCollector
from durableq.outbox import AsyncOutbox, Outbox

dq = DurableQ("app.db")
app = FastAPI(lifespan=dq.lifespan)


async def send_welcome(email: str) -> int: ...


def render(page: int, *, title: str = '') -> str: ...


"""

ADDING: Final = {
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
            background_tasks.add_task(render, 1, "x")  # refused
            background_tasks.add_task("send_welcome", "ada")  # refused
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
    "add_task gives a job of what the function returns, once it is awaited": """
        async def add() -> str:
            assert_type(await dq.add_task(send_welcome, "ada"), Job[int])
            assert_type(await dq.add_task(render, 1), Job[str])
            assert_type(dq.add_task(render, 1).job, Job[str])
            dq.add_task(render, 1).args  # refused
            return dq.add_task(render, 1)  # refused
    """,
    "the arguments of add_task are checked against its function": """
        async def add() -> None:
            await dq.add_task(send_welcome, 42)  # refused
            await dq.add_task(send_welcome)  # refused
            await dq.add_task(send_welcome, "ada", "bob")  # refused
            await dq.add_task(render, page="1")  # refused
            await dq.add_task(render, 1, titel="x")  # refused
            await dq.add_task("send_welcome", "ada")  # refused
    """,
    "add_task_sync is checked as add_task is": """
        def add() -> None:
            assert_type(dq.add_task_sync(send_welcome, "ada"), Job[int])
            assert_type(dq.add_task_sync(render, 1), Job[str])
            dq.add_task_sync(send_welcome, 42)  # refused
            dq.add_task_sync(send_welcome)  # refused
            dq.add_task_sync(render, 1, titel="x")  # refused

        async def wait_for_what_is_there() -> None:
            await dq.add_task_sync(send_welcome, "ada")  # refused
    """,
    "the calls of add_tasks are checked one by one": """
        async def add() -> None:
            assert_type(call(send_welcome, "ada"), Call[int])
            assert_type(call(render, 1), Call[str])
            assert_type(await dq.add_tasks([call(send_welcome, "ada"), call(render, 1)]), list[Job[Any]])
            await dq.add_tasks([call(send_welcome, "ada"), call(send_welcome, 42)])  # refused
            await dq.add_tasks(call(render, page) for page in ["1"])  # refused
            await dq.add_tasks([send_welcome])  # refused
            call(send_welcome)  # refused
            call(render, 1, titel="x")  # refused
    """,
    "follow-up jobs are checked as others are": """
        @dq.task
        async def order(number: int) -> None:
            assert_type(current_job(), CurrentJob)
            assert_type(current_job().add_task(send_welcome, "ada"), Job[int])
            assert_type(current_job().add_task(render, number), Job[str])
            current_job().add_task(send_welcome, number)  # refused
            current_job().add_task(send_welcome)  # refused
            current_job().add_task(render, number, titel="x")  # refused
    """,
    "jobs within a sync transaction are checked as others are": """
        def add(driver: sqlite3.Connection, connection: Connection, session: Session, model: ModelSession) -> None:
            assert_type(dq.within(driver), Outbox)
            assert_type(dq.within(driver).add_task(send_welcome, "ada"), Job[int])
            assert_type(dq.within(connection).add_task(send_welcome, "ada"), Job[int])
            assert_type(dq.within(session).add_task(send_welcome, "ada"), Job[int])
            assert_type(dq.within(model).add_task(send_welcome, "ada"), Job[int])
            assert_type(dq.within(model).add_task(render, 1), Job[str])
            dq.within(driver).add_task(send_welcome, 42)  # refused
            dq.within(connection).add_task(send_welcome, 42)  # refused
            dq.within(session).add_task(send_welcome, 42)  # refused
            dq.within(model).add_task(send_welcome, 42)  # refused
            dq.within(session).add_task(send_welcome)  # refused
            dq.within(session).add_task(render, 1, titel="x")  # refused

        async def wait_for_what_is_there(session: Session) -> None:
            await dq.within(session).add_task(send_welcome, "ada")  # refused
    """,
    "jobs within an async transaction are checked as others are, and are awaited": """
        async def add(
            driver: aiosqlite.Connection, connection: AsyncConnection, session: AsyncSession, model: AsyncModelSession
        ) -> str:
            assert_type(dq.within(driver), AsyncOutbox)
            assert_type(await dq.within(driver).add_task(send_welcome, "ada"), Job[int])
            assert_type(await dq.within(connection).add_task(send_welcome, "ada"), Job[int])
            assert_type(await dq.within(session).add_task(send_welcome, "ada"), Job[int])
            assert_type(await dq.within(model).add_task(send_welcome, "ada"), Job[int])
            assert_type(await dq.within(model).add_task(render, 1), Job[str])
            await dq.within(driver).add_task(send_welcome, 42)  # refused
            await dq.within(connection).add_task(send_welcome, 42)  # refused
            await dq.within(session).add_task(send_welcome, 42)  # refused
            await dq.within(model).add_task(send_welcome, 42)  # refused
            await dq.within(session).add_task(send_welcome)  # refused
            await dq.within(session).add_task(render, 1, titel="x")  # refused
            return dq.within(session).add_task(render, 1).id  # refused
    """,
    "what a function returns is kept, whatever it is": """
        async def nothing() -> None: ...
        def pages() -> list[str]: ...
        async def perhaps() -> int | None: ...
        def whatever() -> Any: ...

        async def add() -> None:
            assert_type(await dq.add_task(nothing), Job[None])
            assert_type(await dq.add_task(pages), Job[list[str]])
            assert_type(await dq.add_task(perhaps), Job[int | None])
            anything: Job[dict[str, int]] = await dq.add_task(whatever)
            wider: Job[object] = await dq.add_task(pages)
            narrower: Job[list[int]] = await dq.add_task(pages)  # refused
    """,
}

WAITING: Final = {
    "the result of a job is what its task returns": """
        async def use(job: Job[int]) -> None:
            assert_type(await dq.result(job), int)
            assert_type(await dq.result(job, timeout=5), int)
            assert_type(await dq.result(job, timeout=timedelta(seconds=5)), int)
            assert_type(await dq.result(await dq.add_task(render, 1)), str)
            text: str = await dq.result(job)  # refused
            await dq.result(42)  # refused
            await dq.result(job, 5)  # refused
            await dq.result(job, timeout="5")  # refused
    """,
    "the result of an id can be anything": """
        async def use(job: Job[int]) -> None:
            assert_type(await dq.result(job.id), Any)
            assert_type(await dq.wait(job.id), Job[Any])
            assert_type(await dq.get(job.id), Job[Any])
            text: str = await dq.result(job.id)
    """,
    "a job that is read again is a job of the same": """
        async def use(job: Job[int]) -> None:
            assert_type(await dq.get(job), Job[int])
            assert_type(await dq.wait(job, timeout=5), Job[int])
            assert_type(job.progress, Progress | None)
            other: Job[str] = await dq.wait(job)  # refused
            another: Job[str] = await dq.get(job)  # refused
            await dq.wait(None)  # refused
    """,
}

SETTING_UP: Final = {
    "the settings of a queue are checked by name and type": """
        DurableQ("app.db", concurrency=8, grace=timedelta(seconds=5), durability="normal")
        DurableQ("app.db", concurency=8)  # refused
        DurableQ("app.db", concurrency="8")  # refused
        DurableQ("app.db", durability="fast")  # refused
        DurableQ()  # refused
    """,
    "a collector is given by FastAPI, not made": """
        def make() -> None:
            BackgroundTasks()  # refused
    """,
    "a handler of failures takes a job and the error that it is for": """
        @dq.exception_handler(ConnectionError)
        async def note(job: Job[Any], error: ConnectionError) -> None: ...

        @dq.exception_handler(KeyError)
        def count(job: Job[Any], error: Exception) -> int: ...

        @dq.exception_handler(KeyError)  # refused
        def for_another(job: Job[Any], error: ValueError) -> None: ...

        @dq.exception_handler(KeyError)  # refused
        def without_the_error(job: Job[Any]) -> None: ...

        @dq.exception_handler(KeyError)  # refused
        def the_wrong_way_round(error: KeyError, job: Job[Any]) -> None: ...

        @dq.exception_handler("KeyError")  # refused
        def by_name(job: Job[Any], error: KeyError) -> None: ...

        @dq.exception_handler(int)  # refused
        def no_error(job: Job[Any], error: int) -> None: ...

        async def test_handlers(job: Job[Any]) -> None:
            assert_type(await note(job, ConnectionError()), None)
            assert_type(count(job, KeyError()), int)
            await note(job, KeyError())  # refused
    """,
    "middleware is an async generator function of the job": """
        @dq.middleware
        async def timed(job: CurrentJob) -> AsyncIterator[None]:
            job.headers["seen"] = "yes"
            yield

        @dq.middleware
        async def traced(job: CurrentJob) -> AsyncGenerator[None, None]:
            yield

        kept: Callable[[CurrentJob], AsyncGenerator[None, None]] = traced

        @dq.middleware  # refused
        async def never_yields(job: CurrentJob) -> None: ...

        @dq.middleware  # refused
        def sync(job: CurrentJob) -> Iterator[None]:
            yield

        @dq.middleware  # refused
        async def of_a_job_as_stored(job: Job[Any]) -> AsyncIterator[None]:
            yield

        @dq.middleware  # refused
        async def of_nothing() -> AsyncIterator[None]:
            yield
    """,
    "what a running job is asked is checked": """
        async def task(session: AsyncSession) -> None:
            job = current_job()
            assert_type(job.attempt, int)
            assert_type(job.cancelled, bool)
            assert_type(job.tags, tuple[str, ...])
            job.progress(1, 10, "a tenth")
            job.log("a line")
            await job.complete_within(session, result={"any": "thing"})
            job.progress("half")  # refused
            job.log(1)  # refused
            job.headers["tenant"] = 1  # refused
            await job.complete_within(session, {"any": "thing"})  # refused
            job.attempt = 2  # refused
    """,
}

SAMPLES: Final = ADDING | TASKS | CLASSES | WAITING | SETTING_UP
