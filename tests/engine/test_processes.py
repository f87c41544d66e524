"""What the process runner does for a job: it finds its task, runs it in a child, and brings back all it has to say."""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from pydantic_core import to_json

from durableq.engine.decisions import RemoteFailure
from durableq.engine.follow_ups import FOLLOW_UP_BYTES
from durableq.engine.notes import LOOKED_AT_CHARACTERS
from durableq.engine.processes import ProcessRunner, RemoteResult
from durableq.models import JobState
from tests.engine import process_injected as injected
from tests.engine import process_tasks as tasks
from tests.engine.helpers import sql
from tests.engine.process_support import Heard, call_of, failure_of, outcome_of, value_of
from tests.support import eventually

MEBIBYTE = 1024 * 1024

shares_a_loop = pytest.mark.asyncio(loop_scope="module")
"""For tests that share a warm child, as starting one takes a while."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def warm() -> AsyncIterator[ProcessRunner]:
    runner = ProcessRunner(2)
    yield runner
    runner.stop()


@pytest_asyncio.fixture
async def fresh() -> AsyncIterator[ProcessRunner]:
    runner = ProcessRunner(2)
    yield runner
    runner.stop()


# -- where and how it runs ---------------------------------------------------------------------------------


@shares_a_loop
async def test_a_job_runs_in_another_process_and_the_next_one_in_the_same(warm: ProcessRunner) -> None:
    first = await value_of(warm, tasks.where)
    assert first != os.getpid()
    assert [await value_of(warm, tasks.where) for _ in range(3)] == [first] * 3


@shares_a_loop
async def test_two_jobs_run_at_the_same_time_in_two_processes(warm: ProcessRunner, tmp_path: Path) -> None:
    one = value_of(warm, tasks.meet, str(tmp_path), "one", "other")
    other = value_of(warm, tasks.meet, str(tmp_path), "other", "one")
    pids = await asyncio.gather(one, other)
    assert len({*pids, os.getpid()}) == 3


@shares_a_loop
async def test_a_child_has_the_surroundings_of_its_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHON_TEST_SURROUNDINGS", "1")
    runner = ProcessRunner(1)
    seen = await value_of(runner, tasks.surroundings)
    runner.stop()
    assert (seen["cwd"], seen["path"], seen["argv"]) == (os.getcwd(), sys.path, sys.argv)
    assert seen["sees_environment"]
    assert seen["main_thread"]


@shares_a_loop
async def test_arguments_are_rebuilt_to_their_types_in_the_child(warm: ProcessRunner) -> None:
    order = tasks.Order.model_validate({"number": 1, "placed_at": "2024-05-06T07:08:09Z"})
    assert await value_of(warm, tasks.kinds_of, order, b"\xff", 1, 2, three="x") == [
        *("Order", "datetime", "bytes", "int", "int", "str")
    ]


@shares_a_loop
async def test_a_mebibyte_of_arguments_and_of_result_passes(warm: ProcessRunner) -> None:
    text = 'ü"\\\n\U0001f40e\u2028' * (MEBIBYTE // 16)
    assert len(text.encode()) > MEBIBYTE / 2
    call = call_of(tasks.echo, text, max_result_bytes=2 * MEBIBYTE, max_payload_bytes=2 * MEBIBYTE)
    result = await warm.run(call, Heard())
    assert result.result_json == to_json(text).decode()


@shares_a_loop
async def test_what_cannot_be_kept_of_a_result_is_said_and_fails_nothing(warm: ProcessRunner) -> None:
    assert await warm.run(call_of(tasks.nothing), Heard()) == RemoteResult(None, None)
    result = await warm.run(call_of(tasks.unstorable), Heard())
    assert result.not_kept is not None
    assert "lock" in result.not_kept
    assert json.loads(result.result_json or "") == {"durableq:not-storable": result.not_kept}
    result = await warm.run(call_of(tasks.echo, "x" * 1000, max_result_bytes=100), Heard())
    assert result.not_kept is not None
    assert "the limit is 100" in result.not_kept


@shares_a_loop
async def test_async_tasks_run_on_one_event_loop_that_is_kept(warm: ProcessRunner) -> None:
    assert await value_of(warm, tasks.loop_id) == await value_of(warm, tasks.loop_id)
    assert await value_of(warm, tasks.wrapped_async) == await value_of(warm, tasks.where)


@shares_a_loop
async def test_what_an_async_job_leaves_on_the_loop_ends_with_it(warm: ProcessRunner, tmp_path: Path) -> None:
    child = await value_of(warm, tasks.leave_a_task, str(tmp_path / "end"))
    assert (tmp_path / "end").read_text() == "cancelled\n"
    assert await value_of(warm, tasks.where) == child


async def test_a_child_with_something_endless_on_its_loop_takes_no_other_job(fresh: ProcessRunner) -> None:
    child = await value_of(fresh, tasks.leave_a_stubborn_task)
    assert await value_of(fresh, tasks.where) != child


@shares_a_loop
async def test_what_a_job_prints_goes_to_standard_error_at_once_and_nothing_can_be_read(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)
    fresh = ProcessRunner(1)  # its output is what this test captures
    assert await value_of(fresh, tasks.chatter, "hello") == "nothing to read"
    printed = capfd.readouterr()
    fresh.stop()
    assert printed.out == ""
    assert "hello\n" in printed.err
    assert "hello to the descriptor\n" in printed.err


# -- failures ----------------------------------------------------------------------------------------------


@shares_a_loop
async def test_a_failure_comes_with_its_whole_traceback_and_the_names_of_its_types(warm: ProcessRunner) -> None:
    error = await failure_of(warm, tasks.fail, "Broken")
    assert (error.failure.type, error.failure.message) == ("tests.engine.process_tasks.Broken", "the effect")
    assert "ValueError: the cause\n\nThe above exception was the direct cause" in error.failure.traceback
    assert 'raise Broken("the effect") from error' in error.failure.traceback
    assert "durableq/engine" not in error.failure.traceback
    assert error.kinds == ("tests.engine.process_tasks.Broken", *("builtins." + one for one in _ABOVE))
    error = await failure_of(warm, tasks.fail_async)
    assert error.failure.message == "on the loop"
    assert "asyncio" not in error.failure.traceback
    assert "durableq/engine" not in error.failure.traceback


_ABOVE = ("Exception", "BaseException", "object")


@shares_a_loop
async def test_the_tasks_own_policy_rules_on_the_exception_itself(warm: ProcessRunner) -> None:
    async def ruling(function: Callable[..., Any], *args: Any, **facts: Any) -> Any:
        outcome = await outcome_of(warm, call_of(function, *args, **facts))
        assert isinstance(outcome, RemoteFailure)
        return outcome.ruling

    assert await ruling(tasks.fail, "Broken") == ("retry", 7.0)
    assert await ruling(tasks.fail, "KeyError") == ("die", 0.0)
    assert await ruling(tasks.fail, "Broken", elapsed_seconds=101) == ("die", 0.0)
    assert await ruling(tasks.fail_async, attempt=3) == ("retry", pytest.approx(4.5, abs=0.5))
    assert await ruling(tasks.ask_for, "retry") == ("retry", 30.0)
    assert await ruling(tasks.ask_for, "snooze") == ("snooze", 60.0)
    assert await ruling(tasks.ask_for, "end") == ("die", 0.0)


@shares_a_loop
async def test_a_policy_named_by_the_job_takes_the_place_of_the_tasks_own(warm: ProcessRunner) -> None:
    outcome = await outcome_of(warm, call_of(tasks.fail, "KeyError", policy="patient"))
    assert isinstance(outcome, RemoteFailure)
    assert outcome.ruling == ("retry", 3600.0)
    outcome = await outcome_of(warm, call_of(tasks.look_up, policy="patient"))
    assert isinstance(outcome, RemoteFailure)
    assert outcome.ruling.action == "die", "which errors the task gives up on, no job can change"
    outcome = await outcome_of(warm, call_of(tasks.fail, "Broken", policy="unknown"))
    assert isinstance(outcome, RemoteFailure)
    assert outcome.ruling == ("retry", 7.0)


@shares_a_loop
async def test_when_a_policy_raises_the_default_policy_rules(warm: ProcessRunner) -> None:
    error = await failure_of(warm, tasks.fail_with_a_broken_policy)
    assert error.failure.type == "tests.engine.process_tasks.Broken"
    assert error.ruling.action == "retry"
    assert 1 <= error.ruling.delay <= 1.25


@shares_a_loop
async def test_arguments_that_no_longer_fit_are_a_dead_letter(warm: ProcessRunner) -> None:
    outcome = await outcome_of(warm, call_of(tasks.echo, args_json='{"text": {}}'))
    assert isinstance(outcome, RemoteFailure)
    assert outcome.ruling.action == "die"
    assert outcome.failure.type == "durableq.InvalidArguments"
    assert "'text'" in outcome.failure.message
    assert outcome.failure.message.endswith("; edit the arguments and retry")


@shares_a_loop
@pytest.mark.parametrize("raising", [tasks.raise_unusual, tasks.raise_unusual_async], ids=["sync", "async"])
@pytest.mark.parametrize("kind", ["SystemExit", "KeyboardInterrupt", "GeneratorExit", "CancelledError"])
async def test_no_exception_of_a_task_ends_the_child(warm: ProcessRunner, raising: Any, kind: str) -> None:
    child = await value_of(warm, tasks.where)
    error = await failure_of(warm, raising, kind)
    assert error.failure.type.removeprefix("asyncio.exceptions.") == kind
    assert await value_of(warm, tasks.where) == child


@shares_a_loop
async def test_an_exit_beside_the_task_fails_the_attempt_and_leaves_a_working_loop(warm: ProcessRunner) -> None:
    child = await value_of(warm, tasks.where)
    assert (await failure_of(warm, tasks.exit_beside)).failure.type == "SystemExit"
    assert (await value_of(warm, tasks.loop_id)) > 0
    assert await value_of(warm, tasks.where) == child


@shares_a_loop
async def test_hostile_objects_fail_the_attempt_at_most(warm: ProcessRunner) -> None:
    child = await value_of(warm, tasks.where)
    assert "__str__ raised SystemExit" in (await failure_of(warm, tasks.raise_hostile)).failure.message
    await outcome_of(warm, call_of(tasks.return_hostile))
    assert await value_of(warm, tasks.where) == child


# -- finding the task --------------------------------------------------------------------------------------


@shares_a_loop
async def test_a_task_is_found_that_does_not_stand_under_its_functions_name(warm: ProcessRunner) -> None:
    """Registered without a decorator, with settings of its own, and stored under a name that it had before."""
    assert (await warm.run(call_of(tasks.undecorated, 5), Heard())).result_json == "5"
    assert (await warm.run(call_of(tasks.undecorated, 5, task="its old name"), Heard())).result_json == "5"
    error = await failure_of(warm, tasks.undecorated, 5, job={"attempt": None})
    assert error.failure.type == "TypeError"
    assert error.ruling == ("retry", 11.0)


@shares_a_loop
async def test_a_task_that_the_child_cannot_find_fails_readably(warm: ProcessRunner) -> None:
    error = await failure_of(warm, tasks.make_inner(), args_json="{}", task="inner")
    assert error.failure.type == "durableq.InvalidTask"
    assert "inner is defined inside another function" in error.failure.message
    error = await failure_of(warm, tasks.only_in_the_parent, args_json="{}", task="only")
    assert "found no 'only_in_the_parent' in the module 'tests.engine.process_tasks'" in error.failure.message
    assert error.ruling.action == "retry", "the next deployment may have it"


async def test_a_module_that_cannot_be_imported_fails_readably(
    fresh: ProcessRunner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = tmp_path / "unimportable.py"
    module.write_text("def work() -> None: ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    import unimportable  # type: ignore[import-not-found]

    module.write_text("import no_such_library\n")
    try:
        error = await failure_of(fresh, unimportable.work, args_json="{}", task="unimportable:work")
    finally:
        del sys.modules["unimportable"]
    assert error.failure.type == "ModuleNotFoundError"
    assert error.failure.message == "No module named 'no_such_library'"
    assert "unimportable.py" in error.failure.traceback


_PROGRAM = """
import asyncio, os, sys
from pathlib import Path
from durableq.engine.processes import ProcessRunner, RemoteFailure
from durableq.registry import Registry
from tests.engine.process_support import failure_of, value_of

registry = Registry(Path(__file__).parent)
print("loaded as", __name__, "in", "the parent" if os.environ["PARENT"] == str(os.getpid()) else "a child", flush=True)

class Broken(Exception): ...

def work(number: int) -> int:
    assert sys.stdin.read() == "", "what the parent may read is not for its children"
    if number < 0:
        raise Broken
    return number + 1

registry.register(work, options={"runner": "process"})

async def main() -> None:
    runner = ProcessRunner(1)
    print("result", await value_of(runner, registry.task_for(work), 1))
    error = await failure_of(runner, registry.task_for(work), -1)
    print("failure", error.failure.type, error.kinds[0])
    runner.stop()

if __name__ == "__main__":
    asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("file", "arguments"),
    [
        ("program.py", ["program.py"]),
        ("package/module.py", ["-m", "package.module"]),
        ("package/__main__.py", ["-m", "package"]),
        ("package/__main__.py", ["package"]),
    ],
    ids=["script", "module", "package", "directory"],
)
def test_tasks_of_the_main_module_are_found_and_its_main_part_does_not_run(
    tmp_path: Path, file: str, arguments: list[str]
) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("import os\nos.environ.setdefault('PARENT', str(os.getpid()))\n" + _PROGRAM)
    if arguments[0] == "-m":
        (tmp_path / "package/__init__.py").touch()
    ended = subprocess.run(
        [sys.executable, *arguments],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        input="for the parent",
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert ended.returncode == 0, ended.stderr
    said = ended.stdout.splitlines()
    assert said == ["loaded as __main__ in the parent", "result 2", "failure __main__.Broken __main__.Broken"]
    assert ended.stderr.splitlines() == ["loaded as __mp_main__ in a child"]


_UNGUARDED_PROGRAM = """
import asyncio, sys
from durableq import DurableQ

dq = DurableQ(sys.argv[1])

@dq.task(runner="process", max_attempts=1)
def work(number: int) -> int:
    return number + 1

async def main() -> None:
    async with dq.running():
        job = await dq.wait(await dq.add_task(work, 1), timeout=20)
        print("result", job.result, "error", job.error and job.error.message)

asyncio.run(main())
"""


def test_a_program_that_starts_whenever_it_is_loaded_is_told_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(_UNGUARDED_PROGRAM)
    ended = subprocess.run(
        [sys.executable, "program.py", "jobs.db"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert ended.returncode == 0, ended.stderr
    assert "result None error the program starts a queue, or a server, when it is loaded" in ended.stdout
    assert "put the start under if __name__ == '__main__':" in ended.stdout
    registered = sql(tmp_path / "jobs.db", "SELECT seq FROM sqlite_sequence WHERE name = 'durableq_workers'")
    assert registered == [(1,)], "the child has registered nobody"


async def test_the_working_directory_does_not_stand_in_for_the_standard_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('the wrong json')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [one for one in sys.path if one])
    runner = ProcessRunner(1)
    assert await value_of(runner, tasks.surroundings) is not None
    runner.stop()


# -- current_job -------------------------------------------------------------------------------------------


@shares_a_loop
async def test_a_job_knows_its_facts_in_the_child(warm: ProcessRunner) -> None:
    assert await value_of(warm, tasks.facts, job={"tags": ["a"], "headers": {"h": "v"}}) == {
        "id": "the-id",
        "task": "tests.engine.process_tasks:facts",
        "queue": "default",
        "attempt": 1,
        "max_attempts": 5,
        "args": {},
        "idempotency_key": "the-key",
        "tags": ["a"],
        "headers": {"h": "v"},
        "cancelled": False,
    }
    assert await value_of(warm, tasks.facts_async) == "the-id"


@shares_a_loop
async def test_what_a_job_says_is_heard_before_its_result(warm: ProcessRunner) -> None:
    heard = Heard()
    await warm.run(call_of(tasks.speak), heard)
    assert heard.all == [
        ("progress", 1.0, 2.0, "half-way"),
        ("log", "a line, \udc80 included"),
        ("progress", 2.0, 2.0, None),
    ]


@shares_a_loop
async def test_a_chatty_job_is_heard_in_measure_and_its_last_progress_always(warm: ProcessRunner) -> None:
    heard = Heard()
    began = time.monotonic()
    await warm.run(call_of(tasks.flood), heard)
    took = time.monotonic() - began
    assert 1 <= len(heard.progresses) <= 4 + took / 0.05  # of 3,000
    assert heard.progresses[-1] == (2999.0, 3000.0, "y" * LOOKED_AT_CHARACTERS)
    assert len(heard.lines) == 1_000
    assert {len(line) for line in heard.lines} == {LOOKED_AT_CHARACTERS}


@shares_a_loop
async def test_progress_that_was_held_back_is_sent_while_the_job_goes_on(warm: ProcessRunner, tmp_path: Path) -> None:
    heard, note, until = Heard(), tmp_path / "note", tmp_path / "until"
    run = asyncio.create_task(warm.run(call_of(tasks.report_once_more_then_work, str(note), str(until)), heard))
    await eventually(lambda: heard.progresses[-1:] == [(2.0, None, None)])
    assert not run.done()
    until.touch()
    await run
    assert heard.progresses == [(1.0, None, None), (2.0, None, None)]


@shares_a_loop
async def test_a_thread_that_a_job_left_behind_is_not_heard_any_more(warm: ProcessRunner, tmp_path: Path) -> None:
    file, first, later = tmp_path / "file", Heard(), Heard()
    await warm.run(call_of(tasks.go_on_talking, str(file)), first)
    while not file.exists():
        await warm.run(call_of(tasks.nothing), later)
    assert later.all == []
    assert file.read_text() == "", "a job added then must be refused: nothing would store it"


@shares_a_loop
async def test_jobs_that_a_job_adds_arrive_as_they_were_made(warm: ProcessRunner) -> None:
    heard = Heard()
    [first, second] = await value_of(warm, tasks.add_follow_ups, 2, job={"headers": {"trace": "t"}}, heard=heard)
    assert [job.id for job in heard.jobs] == [first, second]
    job = heard.jobs[0]
    assert (job.task, job.queue, job.priority) == ("tests.engine.process_tasks:follow_up", "mail", 3)
    assert (job.state, job.max_attempts) == (JobState.QUEUED, 9)
    assert job.args == {"order": {"number": 1, "placed_at": "2024-05-06T07:08:09Z"}}
    assert (job.tags, job.headers) == (("follow-up",), {"trace": "t", "added": "in the child"})
    assert job.created_at.tzinfo is not None


@shares_a_loop
async def test_jobs_that_a_job_adds_are_bounded_in_a_child_as_well(warm: ProcessRunner) -> None:
    heard = Heard()
    added = await value_of(warm, tasks.add_too_many, heard=heard)
    assert added == len(heard.jobs) == FOLLOW_UP_BYTES // len('{"text":""}' + "x" * 20_000)


@shares_a_loop
async def test_a_job_that_cannot_be_added_is_refused_where_it_is_added(warm: ProcessRunner) -> None:
    error = await failure_of(warm, tasks.add_wrongly, "arguments")
    assert error.failure.type == "durableq.InvalidArguments"
    assert error.ruling.action == "retry", "the job's own arguments are right"
    error = await failure_of(warm, tasks.add_wrongly, "headers")
    assert "add(nothing)" in error.failure.traceback


@shares_a_loop
async def test_completing_within_a_transaction_is_refused_in_a_child(warm: ProcessRunner) -> None:
    error = await failure_of(warm, tasks.complete_itself)
    assert error.failure.type == "RuntimeError"
    assert "complete_within is not possible in a child process" in error.failure.message


# -- dependencies ------------------------------------------------------------------------------------------


@shares_a_loop
@pytest.mark.parametrize("function", [injected.with_resource, injected.with_resource_async], ids=["sync", "async"])
async def test_dependencies_are_resolved_in_the_child_and_torn_down_after_the_attempt(
    warm: ProcessRunner, tmp_path: Path, function: Callable[..., Any]
) -> None:
    journal = tmp_path / "journal"
    job = {"headers": {"journal": str(journal)}}
    child = await value_of(warm, tasks.where)
    assert await value_of(warm, function, 1, job=job) == [1, "of the-id", "done", child]
    assert journal.read_text().split("\n")[:-1] == ["set up", "used", "torn down"]
    await failure_of(warm, function, -1, job=job)
    [*_, saw, end] = journal.read_text().splitlines()
    assert saw.startswith("saw ")
    assert end == "torn down"
