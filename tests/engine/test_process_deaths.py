"""How child processes end, and what that costs: real kills, real signals, nothing left behind."""

import asyncio
import contextlib
import gc
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import pytest
import pytest_asyncio
import uvloop

from durableq.engine.decisions import RemoteFailure
from durableq.engine.processes import ChildDied, ProcessRunner
from tests.engine import process_tasks as tasks
from tests.engine.process_support import (
    Heard,
    call_of,
    failure_of,
    is_gone,
    outcome_of,
    pids_in,
    status_of,
    value_of,
)
from tests.support import eventually, eventually_sync

ROOT = Path(__file__).resolve().parents[2]
T = TypeVar("T")


@pytest_asyncio.fixture
async def runner() -> AsyncIterator[ProcessRunner]:
    runner = ProcessRunner(4)
    yield runner
    runner.stop()


@pytest.fixture
def note(tmp_path: Path) -> Path:
    return tmp_path / "note"


async def begun(runner: ProcessRunner, function: Callable[..., Any], note: Path) -> tuple[asyncio.Task[Any], list[int]]:
    """Start a task that notes its processes, and return once it has begun."""
    run = asyncio.create_task(runner.run(call_of(function, str(note)), Heard()))
    await eventually(lambda: pids_in(note) != [] or run.done())
    return run, pids_in(note)


async def death(run: Coroutine[Any, Any, Any] | asyncio.Task[Any]) -> ChildDied:
    with pytest.raises(ChildDied) as caught:
        await run
    return caught.value


async def cancelled(run: asyncio.Task[Any]) -> None:
    run.cancel()
    with pytest.raises(asyncio.CancelledError):
        await run


# -- kills -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("function", [tasks.spin, tasks.sleep, tasks.hold_the_gil, tasks.wait])
async def test_a_cancelled_job_is_killed_whatever_it_does(
    runner: ProcessRunner, note: Path, function: Callable[..., Any]
) -> None:
    run, [child] = await begun(runner, function, note)
    began = time.monotonic()
    await cancelled(run)
    assert time.monotonic() - began < 0.2, "nobody waits for the child"
    await eventually(lambda: status_of(child) is None, within=1)


@pytest.mark.fault("F7", "F13")
async def test_a_deadline_ends_an_endless_job_and_the_next_has_a_fresh_child(runner: ProcessRunner, note: Path) -> None:
    child = await value_of(runner, tasks.where)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await runner.run(call_of(tasks.spin, str(note)), Heard())
    await eventually(lambda: status_of(child) is None, within=1)
    assert await value_of(runner, tasks.where) != child


async def test_a_child_can_be_killed_before_it_has_started(runner: ProcessRunner, note: Path) -> None:
    run = asyncio.create_task(runner.run(call_of(tasks.spin, str(note)), Heard()))
    await eventually(lambda: children() != set())
    await cancelled(run)
    await eventually(lambda: children() == set(), within=1)
    assert pids_in(note) == []


@pytest.mark.parametrize("ending", ["cancelled", "died"])
async def test_what_a_job_has_started_dies_with_its_child(runner: ProcessRunner, note: Path, ending: str) -> None:
    if ending == "cancelled":
        run, [child, helper] = await begun(runner, tasks.sleep_with_a_helper, note)
        assert status_of(helper) is not None
        await cancelled(run)
    else:
        await death(runner.run(call_of(tasks.exit_with_a_helper, str(note)), Heard()))
        [child, helper] = pids_in(note)
    await eventually(lambda: status_of(child) is None and is_gone(helper), within=1)


# -- deaths ------------------------------------------------------------------------------------------------


@pytest.mark.fault("F7")
@pytest.mark.foreign_bug(4)
async def test_a_child_that_is_killed_from_outside_costs_one_attempt(runner: ProcessRunner, note: Path) -> None:
    run, [child] = await begun(runner, tasks.spin, note)
    other = asyncio.create_task(value_of(runner, tasks.meet, str(note.parent), "one", "other"))
    os.kill(child, signal.SIGKILL)
    error = await death(run)
    assert str(error) == "the child process that ran it died by signal 9 (SIGKILL); out of memory?"
    assert error.returncode == -signal.SIGKILL
    (note.parent / "other").touch()
    assert await other != child
    assert await value_of(runner, tasks.where) != child


async def test_a_child_that_exits_costs_one_attempt(runner: ProcessRunner) -> None:
    child = await value_of(runner, tasks.where)
    error = await death(runner.run(call_of(tasks.exit_hard, 3), Heard()))
    assert (str(error), error.returncode) == ("the child process that ran it exited with status 3", 3)
    assert await value_of(runner, tasks.where) != child


async def test_an_answer_counts_that_came_with_the_end_of_its_child(runner: ProcessRunner, note: Path) -> None:
    run, [child] = await begun(runner, tasks.answer_and_exit, note)
    eventually_sync(lambda: status_of(child) is None)  # the loop gets no turn meanwhile
    assert (await run).result_json == '"the answer"'
    assert await value_of(runner, tasks.where) != child


@pytest.mark.fault("F7")
async def test_a_segmentation_fault_costs_one_attempt_and_leaves_a_trace(
    runner: ProcessRunner, capfd: pytest.CaptureFixture[str]
) -> None:
    error = await death(runner.run(call_of(tasks.crash), Heard()))
    assert (str(error), error.returncode) == ("the child process that ran it died by signal 11 (SIGSEGV)", -11)
    assert "in crash" in capfd.readouterr().err
    assert await value_of(runner, tasks.where) > 0


async def test_a_child_that_is_terminated_while_idle_costs_nothing(runner: ProcessRunner) -> None:
    """Not even when its death has not been noticed yet."""
    child = await value_of(runner, tasks.where)
    os.kill(child, signal.SIGTERM)
    eventually_sync(lambda: status_of(child) is None)  # the loop gets no turn meanwhile
    assert await value_of(runner, tasks.where) != child


async def test_a_forked_copy_of_a_child_does_not_hide_its_death(runner: ProcessRunner, note: Path) -> None:
    run, pids = await begun(runner, tasks.fork_and_exit, note)
    try:
        async with asyncio.timeout(2):
            assert (await death(run)).returncode == 3
    finally:
        os.kill(pids[1], signal.SIGKILL)


async def test_a_forked_copy_of_a_child_cannot_answer_in_its_place(runner: ProcessRunner) -> None:
    assert await value_of(runner, tasks.fork_and_return) == "the child"


async def test_ctrl_c_does_not_reach_a_job(runner: ProcessRunner, tmp_path: Path) -> None:
    """It is for the parent to decide about."""
    run = asyncio.create_task(value_of(runner, tasks.meet, str(tmp_path), "one", "other"))
    await eventually((tmp_path / "one").exists)
    [child] = children()
    os.kill(child, signal.SIGINT)
    (tmp_path / "other").touch()
    assert await run == child


async def test_a_child_can_be_terminated_also_when_its_parent_cannot(runner: ProcessRunner, note: Path) -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        run, [child] = await begun(runner, tasks.sleep, note)
    finally:
        signal.signal(signal.SIGTERM, before)
    os.kill(child, signal.SIGTERM)
    assert (await death(run)).returncode == -signal.SIGTERM


# -- memory ------------------------------------------------------------------------------------------------


@pytest.mark.fault("F7")
@pytest.mark.foreign_bug(47)
async def test_a_job_that_needs_too_much_memory_fails_and_its_child_is_replaced() -> None:
    runner = ProcessRunner(1, memory_bytes=1 << 30)
    child = await value_of(runner, tasks.where)
    assert await value_of(runner, tasks.take_memory, 200) == 200 << 20
    error = await failure_of(runner, tasks.take_memory, 2_000)
    assert error.failure.type == "MemoryError"
    assert "bytearray(mebibytes * 1024 * 1024)" in error.failure.traceback
    assert error.ruling.action == "retry"
    assert await value_of(runner, tasks.where) != child
    await eventually(lambda: status_of(child) is None, within=2)
    runner.stop()


async def test_a_job_that_leaves_no_memory_to_describe_its_failure_fails_all_the_same() -> None:
    runner = ProcessRunner(1, memory_bytes=400 << 20)
    error = await failure_of(runner, tasks.hoard_memory)
    assert error.failure.type == "MemoryError"
    assert "pieces.append(bytearray(size))" in error.failure.traceback
    assert await value_of(runner, tasks.where) > 0
    runner.stop()


async def test_without_a_limit_a_job_may_take_what_there_is(runner: ProcessRunner) -> None:
    assert await value_of(runner, tasks.take_memory, 200) == 200 << 20


# -- bad company -------------------------------------------------------------------------------------------


async def test_a_child_that_sends_an_endless_line_is_killed(runner: ProcessRunner) -> None:
    error = await death(runner.run(call_of(tasks.write_to_the_connection, "x" * 10_000, 1_000), Heard()))
    assert "it sent a line of more than 1,248,576 bytes" in str(error)
    await eventually(lambda: children() == set(), within=1)
    assert await value_of(runner, tasks.where) > 0


@pytest.mark.parametrize("line", ["no JSON", '["job", {}]'])
async def test_a_child_that_sends_nonsense_is_killed(
    runner: ProcessRunner, line: str, caplog: pytest.LogCaptureFixture
) -> None:
    error = await death(runner.run(call_of(tasks.write_to_the_connection, f"{line}\n", 1), Heard()))
    assert "it sent what could not be taken in" in str(error)
    assert "what a child process sent could not be taken in" in caplog.text
    await eventually(lambda: children() == set(), within=1)


@pytest.mark.parametrize("function", [tasks.close_everything, tasks.turn_into_another_program])
async def test_a_child_that_has_closed_its_connection_is_killed(
    runner: ProcessRunner, function: Callable[..., Any]
) -> None:
    error = await death(runner.run(call_of(function), Heard()))
    assert str(error) == "the child process that ran it was killed: it had closed its connection"
    await eventually(lambda: children() == set(), within=1)


async def test_a_child_that_cannot_be_started_fails_the_attempt(
    runner: ProcessRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = open_files()
    monkeypatch.setattr(sys, "executable", "/no/such/python")
    error = await death(runner.run(call_of(tasks.where), Heard()))
    assert "no child process could be started" in str(error)
    assert error.returncode is None
    assert open_files() == before
    monkeypatch.undo()
    assert await value_of(runner, tasks.where) > 0


async def test_where_no_thread_can_be_had_no_child_is_left_unwatched(
    runner: ProcessRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    idle = ProcessRunner(1)
    child = await value_of(idle, tasks.where)
    files = open_files()
    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert "can't start new thread" in str(await death(runner.run(call_of(tasks.where), Heard())))
    assert (children(), open_files()) == ({child}, files)
    idle.stop()
    monkeypatch.undo()
    await eventually(lambda: status_of(child) is None)


async def test_a_child_that_breaks_down_at_its_start_fails_the_attempt(
    runner: ProcessRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [])
    assert (await death(runner.run(call_of(tasks.where), Heard()))).returncode == 1


# -- the end of the parent ---------------------------------------------------------------------------------


@contextmanager
def parent(mode: str, task: str, *notes: Path) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-m", "tests.engine.process_parent", mode, task, *notes], cwd=ROOT)
    try:
        eventually_sync(lambda: all(pids_in(note) for note in notes))
        yield process
    finally:
        process.kill()
        process.wait()
        for pid in [pid for note in notes for pid in pids_in(note)]:
            with suppress(ProcessLookupError):  # which it should be; else a failing test would leave it spinning
                os.kill(pid, signal.SIGKILL)


@pytest.mark.fault("F7")
@pytest.mark.parametrize(
    ("mode", "task"),
    [
        ("plain", "spin"),
        ("plain", "hold_the_gil"),
        ("plain", "sleep_with_a_helper"),
        ("thread", "spin"),
        ("idle", "-"),
    ],
)
def test_children_and_what_they_started_die_with_a_killed_parent(note: Path, mode: str, task: str) -> None:
    with parent(mode, task, note) as process:
        pids = pids_in(note)
        assert all(status_of(pid) in ("R", "S") for pid in pids)
        process.kill()
        eventually_sync(lambda: all(map(is_gone, pids)), within=1)


def test_a_forked_copy_of_the_parent_does_not_keep_its_children(note: Path, tmp_path: Path) -> None:
    with parent("fork", "spin", note, tmp_path / "copy") as process:
        [child], [copy] = pids_in(note), pids_in(tmp_path / "copy")
        process.kill()
        eventually_sync(lambda: is_gone(child), within=1)
        assert not is_gone(copy)


# -- stopping ----------------------------------------------------------------------------------------------


async def test_stopping_ends_idle_children_and_kills_busy_ones_without_waiting(note: Path) -> None:
    runner = ProcessRunner(2)
    idle = await value_of(runner, tasks.where)
    keep = asyncio.create_task(value_of(runner, tasks.meet, str(note.parent), "a", "b"))
    run, [busy] = await begun(runner, tasks.spin, note)
    (note.parent / "b").touch()
    assert await keep == idle
    began = time.monotonic()
    runner.stop()
    assert time.monotonic() - began < 0.1
    await eventually(lambda: status_of(idle) is None and status_of(busy) is None, within=2)
    assert "its runner was stopped" in str(await death(run))
    with pytest.raises(RuntimeError, match="stopped"):
        await value_of(runner, tasks.where)
    runner.stop()


async def test_an_idle_child_ends_in_good_order_and_is_killed_when_it_does_not(tmp_path: Path) -> None:
    in_order, stuck = ProcessRunner(1), ProcessRunner(1)
    await value_of(in_order, tasks.at_exit, str(tmp_path / "file"), stay=False)
    child = await value_of(stuck, tasks.at_exit, str(tmp_path / "other"), stay=True)
    in_order.stop()
    await eventually((tmp_path / "file").exists)
    stuck.stop()
    await eventually((tmp_path / "other").exists)
    await eventually(lambda: status_of(child) is None, within=3)


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("state", ["idle", "busy"])
def test_the_loop_may_be_closed_right_after_stop(
    note: Path, new_loop: Callable[[], asyncio.AbstractEventLoop], state: str
) -> None:
    async def use_and_stop() -> int:
        runner = ProcessRunner(1)
        child = await value_of(runner, tasks.where)
        if state == "busy":
            _, [child] = await begun(runner, tasks.spin, note)
        runner.stop()
        return int(child)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loop = new_loop()
        child = loop.run_until_complete(use_and_stop())
        for task in asyncio.all_tasks(loop):
            task._log_destroy_pending = False  # type: ignore[attr-defined] # that is what this test does
        loop.close()
        eventually_sync(lambda: status_of(child) is None, within=3)
        gc.collect()


@pytest.mark.parametrize("run_loop", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("place", ["main thread", "thread"])
def test_it_works_on_any_loop_in_any_thread_and_again_on_the_next(
    note: Path, run_loop: Callable[[Coroutine[Any, Any, None]], None], place: str
) -> None:
    async def use() -> None:
        runner = ProcessRunner(2)
        assert await value_of(runner, tasks.echo, "x" * 80_000) == "x" * 80_000
        assert isinstance(await outcome_of(runner, call_of(tasks.fail, "Broken")), RemoteFailure)
        run, [child] = await begun(runner, tasks.spin, note)
        await cancelled(run)
        await eventually(lambda: status_of(child) is None, within=1)
        assert (await death(runner.run(call_of(tasks.exit_hard, 7), Heard()))).returncode == 7
        runner.stop()

    if place == "main thread":
        run_loop(use())
        note.unlink()
        run_loop(use())
        return
    failures: list[BaseException] = []

    def in_a_thread() -> None:
        try:
            run_loop(use())
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=in_a_thread)
    thread.start()
    thread.join()
    assert failures == []


async def test_nothing_is_left_behind(tmp_path: Path) -> None:
    files, threads = open_files(), threading.active_count()
    for number in range(3):
        runner = ProcessRunner(3)
        await value_of(runner, tasks.where)
        run, _ = await begun(runner, tasks.spin, tmp_path / str(number))
        await cancelled(run)
        await death(runner.run(call_of(tasks.exit_hard, 3), Heard()))
        runner.stop()
    await eventually(lambda: open_files() == files and threading.active_count() == threads and not children())


def children() -> set[int]:
    """Our own child processes, zombies included. Those of a thread that ends meanwhile are another's by then."""
    found: set[int] = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            found |= set(map(int, (task / "children").read_text().split()))
    return found


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))
