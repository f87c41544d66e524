"""What other queues got wrong about requests, people, secrets and recovery."""

import ast
import asyncio
import http.client
import logging
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
from fastapi import FastAPI, Request, Response
from starlette.middleware.base import BaseHTTPMiddleware

import durableq
from durableq import DurableQ, Job, JobConflict, JobState
from durableq.events import JobStarted
from durableq.fastapi import BackgroundTasks
from durableq.storage.sqlite.statements import SQL
from durableq.testing import ManualClock
from tests.engine.helpers import AT_ONCE, collect, finished, in_state
from tests.fastapi.helpers import serving
from tests.storage.faults import record_statements
from tests.storage.support import Backend, PythonProcess, claim, runs_again
from tests.support import eventually

HELD_BY_THE_DEAD = 3_000
CANARY = "canary-5f1d"
CODE_FROM_DATA = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "yaml", "jsonpickle"}


@pytest.fixture
def dq(tmp_path: Path) -> DurableQ:
    return DurableQ(tmp_path / "jobs.db")


@pytest.mark.fault("F53")
@pytest.mark.foreign_bug(42, 66, 67)
async def test_bug_66_everything_that_a_dead_worker_held_is_taken_back_at_once(backend: Backend) -> None:
    survivor = await backend.worker()
    await backend.added(survivor, HELD_BY_THE_DEAD)
    with PythonProcess("-m", "tests.storage.doomed_worker", backend.url, str(HELD_BY_THE_DEAD)) as doomed:
        _, taken = doomed.read()
        own = await backend.claimed(survivor, task="tasks:own")
        doomed.kill()
    assert len(taken) == HELD_BY_THE_DEAD
    [dead] = await survivor.reap(runs_again)
    assert [lease.id for lease, _ in dead.leases] == taken
    assert await survivor.counts() == {
        **dict.fromkeys(JobState, 0),
        JobState.QUEUED: HELD_BY_THE_DEAD,
        JobState.RUNNING: len(own),
    }
    assert await claim(survivor) == [], "all of them are suspects now, and those come one at a time"


@pytest.mark.fault("F54")
async def test_of_two_people_who_retry_one_job_at_once_one_does_and_the_other_is_told(dq: DurableQ) -> None:
    gate = asyncio.Event()
    starts = collect(dq.events, JobStarted)

    @dq.task(name="fail", max_attempts=1)
    async def fail() -> None:
        if not gate.is_set():
            raise RuntimeError("no")

    async with dq.running():
        job = await finished(dq, await dq.add_task(fail))
        gate.set()
        answers = await asyncio.gather(*(dq.retry(job, who=who) for who in ("ann", "bob")), return_exceptions=True)
        assert {type(answer) for answer in answers} == {Job, JobConflict}
        assert (await finished(dq, job)).state is JobState.SUCCEEDED
        assert len(await dq.audit_trail(job)) == 1
    assert len(starts) == 2


@pytest.mark.foreign_bug(23)
async def test_bug_23_middleware_neither_cancels_a_job_nor_waits_for_it(dq: DurableQ) -> None:
    app = FastAPI(lifespan=dq.lifespan)
    gate = asyncio.Event()

    @dq.task(name="slow")
    async def slow() -> str:
        await gate.wait()
        return "done"

    async def pass_on(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        return await call_next(request)

    for _ in range(2):
        app.add_middleware(BaseHTTPMiddleware, dispatch=pass_on)

    @app.post("/", status_code=202)
    async def route(background_tasks: BackgroundTasks) -> str:
        return background_tasks.add_task(slow).id

    def post(port: int) -> str:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
        connection.request("POST", "/")
        answer = connection.getresponse().read().decode()
        connection.close()
        return answer.strip('"')

    async with serving(app) as port:
        job_id = await asyncio.to_thread(post, port)
        job = await in_state(dq, await dq.get(job_id), JobState.RUNNING)
        gate.set()
        assert (await finished(dq, job)).result == "done"


@pytest.mark.foreign_bug(28)
async def test_bug_28_a_job_that_is_due_in_many_leases_time_runs_once(tmp_path: Path) -> None:
    clock = ManualClock()
    queues = [DurableQ(tmp_path / "jobs.db", clock=clock) for _ in range(2)]
    starts = [collect(one.events, JobStarted) for one in queues]

    async def later() -> None: ...

    tasks = [one.task(name="later")(later) for one in queues]
    async with queues[0].running(), queues[1].running():
        job = await queues[0].add_task(tasks[0].options(delay=timedelta(hours=3)))
        for _ in range(5):
            clock.advance(timedelta(minutes=35))
            await asyncio.sleep(0.05)
        assert starts == [[], []]
        clock.advance(timedelta(minutes=5))
        done = await finished(queues[0], job)
    assert (done.attempt, len(starts[0]) + len(starts[1])) == (1, 1)


@pytest.mark.foreign_bug(101)
async def test_bug_101_arguments_and_results_are_never_logged(dq: DurableQ, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)

    @dq.task(name="login", max_attempts=2, retry=AT_ONCE)
    async def login(body: str, *, fails: bool) -> str:
        if fails:
            raise RuntimeError("no")
        return body

    async with dq.running():
        for fails in (True, False):
            await finished(dq, await dq.add_task(login, CANARY, fails=fails))
    assert "login" in caplog.text, "the failures were logged"
    assert CANARY not in caplog.text


@pytest.mark.foreign_bug(93, 94)
def test_bug_93_nothing_stored_can_become_code() -> None:
    """No module loads a format that can carry code, or evaluates text."""
    for path in Path(durableq.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id not in ("eval", "exec"), path
            assert not CODE_FROM_DATA & {name.split(".")[0] for name in names}, path


@pytest.mark.fault("F50")
async def test_ten_thousand_retries_that_are_due_at_once_do_not_hold_up_a_new_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are made ready a few hundred at a time; whatever else is written goes in between."""
    statements = record_statements(monkeypatch)
    clock = ManualClock()
    dq = DurableQ(tmp_path / "jobs.db", clock=clock, concurrency=8)

    @dq.task(name="herd")
    async def herd() -> None:
        await asyncio.sleep(0)

    @dq.task(name="fresh", priority=1)
    async def fresh() -> None: ...

    async with dq.running():
        await dq.add_tasks([durableq.call(herd.options(delay=60)) for _ in range(10_000)])
        clock.advance(60)
        began = time.monotonic()
        await dq.wait(await dq.add_task(fresh), timeout=10)
        waited = time.monotonic() - began
        assert (await dq.counts())[JobState.SCHEDULED] + (await dq.counts())[JobState.QUEUED] > 0, "the herd is done"
        await eventually(partial(_nothing_scheduled, dq))
    assert waited < 1.0
    assert statements.count(SQL["promote_due"]) >= 20, "ten thousand in one transaction hold up all others"


async def _nothing_scheduled(dq: DurableQ) -> bool:
    return (await dq.counts())[JobState.SCHEDULED] == 0
