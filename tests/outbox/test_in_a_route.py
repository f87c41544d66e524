"""A route whose own session holds the write lock is answered soon, with nothing stored and the remedy in the log."""

import asyncio
import contextlib
import logging
import sqlite3
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Annotated, Any

import pytest
from fastapi import Depends, FastAPI
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session

from durableq import DurableQ, Task
from durableq.fastapi import BackgroundTasks
from tests.fastapi.helpers import Answer, request
from tests.outbox.support import Disk

A_SECOND = (0.9, 3.5)
"""When a refusal may come; all others wait for five."""
AT_ONCE = (0.0, 0.8)
INSERT = text("INSERT INTO mine VALUES (1)")


@pytest.fixture
def send(dq: DurableQ) -> Task[[int], int]:
    @dq.task(name="send")
    def send(x: int) -> int:
        return x

    return send


@pytest.fixture
def plain_engine(disk: Disk) -> Iterator[Engine]:
    """An engine that nobody configured."""
    engine = create_engine(f"sqlite:///{disk.path}", connect_args={"check_same_thread": False})
    yield engine
    engine.dispose()


def session_of(engine: Engine) -> Callable[[], Iterator[Session]]:
    """The dependency of FastAPI's own tutorial; by default it commits once the response is sent."""

    def get_session() -> Iterator[Session]:
        with Session(engine) as session:
            yield session
            session.commit()

    return get_session


async def answered(app: FastAPI, within: tuple[float, float]) -> Answer:
    began = time.monotonic()
    answer = await request(app)
    took = time.monotonic() - began
    assert within[0] <= took < within[1], f"{answer} after {took:.2f} s"
    return answer


def refusal(caplog: pytest.LogCaptureFixture) -> str:
    [message] = [one.getMessage() for one in caplog.records if one.name == "durableq.fastapi"]
    return message


def check_remedies(message: str) -> None:
    for remedy in ("commit it in the route", 'Depends(get_session, scope="function")', "dq.within(session)"):
        assert remedy in message


@pytest.fixture
def quiet(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.ERROR)
    return caplog


@pytest.mark.fault("R9")
async def test_an_uncommitted_session_of_the_request_is_refused_after_a_second(
    dq: DurableQ, send: Task[[int], int], plain_engine: Engine, disk: Disk, quiet: pytest.LogCaptureFixture
) -> None:
    app = FastAPI()
    get_session = session_of(plain_engine)

    @app.post("/", status_code=202)
    async def route(session: Annotated[Session, Depends(get_session)], background_tasks: BackgroundTasks) -> None:
        session.execute(INSERT)
        background_tasks.add_task(send, 1)

    answer = await answered(app, A_SECOND)
    assert answer.status == 503
    message = refusal(quiet)
    assert "took no write for 1 s: it was locked by a transaction of this very process" in message
    check_remedies(message)
    assert disk.jobs == []
    assert not disk.is_locked()


async def test_one_in_a_thread_is_refused_likewise(
    dq: DurableQ, send: Task[[int], int], engine: Engine, disk: Disk, quiet: pytest.LogCaptureFixture
) -> None:
    app = FastAPI()
    get_session = session_of(engine)

    @app.post("/", status_code=202)
    def route(session: Annotated[Session, Depends(get_session)], background_tasks: BackgroundTasks) -> None:
        session.execute(INSERT)
        background_tasks.add_task(send, 1)

    assert (await answered(app, A_SECOND)).status == 503
    check_remedies(refusal(quiet))
    assert disk.jobs == []


@pytest.mark.fault("R9")
@pytest.mark.parametrize("statement", ["INSERT INTO mine VALUES (1)", "SELECT * FROM mine"])
async def test_one_of_a_configured_engine_is_refused_at_once(
    dq: DurableQ,
    send: Task[[int], int],
    async_engine: AsyncEngine,
    disk: Disk,
    quiet: pytest.LogCaptureFixture,
    statement: str,
) -> None:
    app = FastAPI()

    async def get_session() -> AsyncIterator[AsyncSession]:
        async with AsyncSession(async_engine) as session:
            yield session
            await session.commit()

    @app.post("/", status_code=202)
    async def route(session: Annotated[AsyncSession, Depends(get_session)], background_tasks: BackgroundTasks) -> None:
        await session.execute(text(statement))
        background_tasks.add_task(send, 1)

    assert (await answered(app, AT_ONCE)).status == 503
    check_remedies(refusal(quiet))
    assert disk.jobs == []


class TestRemedies:
    @pytest.fixture(params=["plain", "configured"])
    def get_session(
        self, request: pytest.FixtureRequest, plain_engine: Engine, engine: Engine
    ) -> Callable[[], Iterator[Session]]:
        return session_of(plain_engine if request.param == "plain" else engine)

    async def test_to_commit_in_the_route(
        self, dq: DurableQ, send: Task[[int], int], get_session: Callable[[], Iterator[Session]], disk: Disk
    ) -> None:
        app = FastAPI()

        @app.post("/", status_code=202)
        async def route(session: Annotated[Session, Depends(get_session)], background_tasks: BackgroundTasks) -> None:
            session.execute(INSERT)
            background_tasks.add_task(send, 1)
            session.commit()

        assert (await answered(app, AT_ONCE)).status == 202
        assert (disk.mine, disk.jobs) == ([1], [1])

    async def test_to_give_the_session_the_scope_of_the_function(
        self, dq: DurableQ, send: Task[[int], int], get_session: Callable[[], Iterator[Session]], disk: Disk
    ) -> None:
        app = FastAPI()

        @app.post("/", status_code=202)
        async def route(
            background_tasks: BackgroundTasks, session: Annotated[Session, Depends(get_session, scope="function")]
        ) -> None:
            session.execute(INSERT)
            background_tasks.add_task(send, 1)

        assert (await answered(app, AT_ONCE)).status == 202
        assert (disk.mine, disk.jobs) == ([1], [1])

    @pytest.mark.parametrize("in_thread", [False, True])
    async def test_to_add_within_the_session(
        self,
        dq: DurableQ,
        send: Task[[int], int],
        get_session: Callable[[], Iterator[Session]],
        disk: Disk,
        in_thread: bool,
    ) -> None:
        app = FastAPI()

        async def route(session: Annotated[Session, Depends(get_session)]) -> None:
            session.execute(INSERT)
            dq.within(session).add_task(send, 1)

        def sync_route(session: Annotated[Session, Depends(get_session)]) -> None:
            session.execute(INSERT)
            dq.within(session).add_task(send, 1)

        app.post("/", status_code=202)(sync_route if in_thread else route)
        assert (await answered(app, AT_ONCE)).status == 202
        assert (disk.mine, disk.jobs) == ([1], [1])

    async def test_a_route_that_fails_after_adding_within_stores_neither(
        self, dq: DurableQ, send: Task[[int], int], get_session: Callable[[], Iterator[Session]], disk: Disk
    ) -> None:
        app = FastAPI()

        @app.post("/")
        async def route(session: Annotated[Session, Depends(get_session)]) -> None:
            session.execute(INSERT)
            dq.within(session).add_task(send, 1)
            raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await request(app)
        assert (disk.mine, disk.jobs) == ([], [])
        assert not disk.is_locked()


def adding_app(send: Task[[int], int]) -> FastAPI:
    app = FastAPI()

    @app.post("/", status_code=202)
    async def route(background_tasks: BackgroundTasks) -> None:
        background_tasks.add_task(send, 1)

    return app


async def test_others_wait_for_a_transaction_of_this_process_as_long_as_ever(
    dq: DurableQ, send: Task[[int], int], disk: Disk, quiet: pytest.LogCaptureFixture
) -> None:
    """Only a response is in a hurry, and may be what the transaction itself waits for."""
    with contextlib.closing(sqlite3.connect(disk.path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        patient = asyncio.ensure_future(dq.add_task(send, 2))
        in_a_thread = asyncio.create_task(asyncio.to_thread(dq.add_task_sync, send, 3))
        assert (await answered(adding_app(send), A_SECOND)).status == 503
        assert not patient.done()
        assert not in_a_thread.done()
        connection.execute("COMMIT")
        await asyncio.wait_for(asyncio.gather(patient, in_a_thread), 5)
    assert sorted(disk.jobs) == [2, 3]


async def test_a_transaction_of_another_process_is_waited_for_longer(
    dq: DurableQ, send: Task[[int], int], disk: Disk
) -> None:
    """It is not the request's own, so it may well end in time."""
    script = (
        "import sqlite3, sys, time\n"
        "connection = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "connection.execute('BEGIN IMMEDIATE')\n"
        "print('locked', flush=True)\n"
        "time.sleep(1.8)\n"
        "connection.execute('COMMIT')\n"
    )
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, str(disk.path), stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    await process.stdout.readline()
    assert (await answered(adding_app(send), (1.0, 5.0))).status == 202
    assert disk.jobs == [1]
    await process.wait()


async def test_a_short_transaction_of_this_process_is_waited_for(
    dq: DurableQ, send: Task[[int], int], disk: Disk
) -> None:
    with contextlib.closing(sqlite3.connect(disk.path, isolation_level=None, check_same_thread=False)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        timer = threading.Timer(0.1, connection.execute, ("COMMIT",))
        timer.start()
        assert (await answered(adding_app(send), (0.05, 3.0))).status == 202
        timer.join()
    assert disk.jobs == [1]


async def test_additions_of_one_turn_are_told_apart(
    dq: DurableQ, send: Task[[int], int], disk: Disk, quiet: pytest.LogCaptureFixture
) -> None:
    """They share a hand-over and a transaction, but not their patience."""
    app = adding_app(send)
    with contextlib.closing(sqlite3.connect(disk.path, isolation_level=None)) as connection:
        connection.execute("BEGIN IMMEDIATE")
        adding: list[Any] = [dq.add_task(send, 2), request(app), dq.add_task(send, 3), request(app)]
        waiting = [asyncio.ensure_future(one) for one in adding]
        first, second = await asyncio.wait_for(asyncio.gather(waiting[1], waiting[3]), 4)
        assert (first.status, second.status) == (503, 503)
        assert not waiting[0].done()
        connection.execute("COMMIT")
        await asyncio.wait_for(asyncio.gather(*waiting), 5)
    assert disk.jobs == [2, 3]
