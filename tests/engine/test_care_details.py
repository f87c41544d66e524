"""The care that goes on beside the jobs: dead workers, late and old jobs, and the lease, each loop on its own."""

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Callable, Collection, Coroutine
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from durableq.clock import SECOND
from durableq.engine import reaper
from durableq.engine.heartbeat import Heartbeat
from durableq.engine.reaper import ALONE_EVERY_NTH, OVERDUE_AT_ONCE, PRUNE_AT_ONCE, REAP_EVERY_SECONDS, Pruner, Reaper
from durableq.errors import DurableQError, QueueNotRunning
from durableq.events import (
    Emitter,
    JobCancelled,
    JobDied,
    LoopStalled,
    StorageTrouble,
    WorkerReaped,
)
from durableq.models import (
    Cancelled,
    Dead,
    Failure,
    JobExtras,
    JobState,
    Lease,
    LeaseKey,
    Succeeded,
)
from durableq.settings import queue_options
from durableq.storage.protocol import Storage
from durableq.testing import ManualClock
from tests.engine.helpers import collect
from tests.storage.contract_time import limited_job
from tests.storage.support import LEASE, Backend, PythonProcess, claim, settle, stored
from tests.support import eventually, eventually_sync

BOOM = Failure("ValueError", "boom", "Traceback: boom")


# -- periodic care -------------------------------------------------------------------------------------------


@pytest.fixture
async def backend(tmp_path: Path) -> AsyncIterator[Backend]:
    backend = Backend(str(tmp_path / "jobs.db"))
    yield backend
    await backend.close()


class Reports:
    """What a loop said of itself."""

    def __init__(self) -> None:
        self.all: list[tuple[str, DurableQError | None]] = []

    def __call__(self, doing: str, error: DurableQError | None) -> None:
        self.all.append((doing, error))


async def reaped_jobs(backend: Backend, max_crashes: int, emitter: Emitter) -> tuple[int, list[Lease]]:
    """Let a worker that holds two jobs go silent, and another take them back."""
    hung, living = await backend.worker(), await backend.worker()
    held = await backend.claimed(hung, 2)
    reaper = Reaper(living, backend.clock, emitter, max_crashes, Reports())
    for _ in range(LEASE // timedelta(seconds=5) + 2):
        await reaper.reap()
        await asyncio.to_thread(living.renew, backend.clock.boot() + 30 * SECOND, None)
        backend.clock.advance(timedelta(seconds=5))
    await reaper.reap()
    return len(held), [lease for lease in held if (await stored(living, lease.id)).state is JobState.DEAD]


async def test_what_a_hung_worker_held_is_taken_back_and_told(backend: Backend) -> None:
    emitter = Emitter()
    reaped, died = collect(emitter, WorkerReaped), collect(emitter, JobDied)
    held, dead = await reaped_jobs(backend, 3, emitter)
    assert [(event.worker_id, event.jobs) for event in reaped] == [(1, held)]
    assert reaped[0].reason
    assert (dead, died) == ([], [])


@pytest.mark.parametrize("max_crashes", [1, 2])
async def test_a_crash_too_many_ends_a_job_and_is_told(backend: Backend, max_crashes: int) -> None:
    emitter = Emitter()
    died, reaped = collect(emitter, JobDied), collect(emitter, WorkerReaped)
    living = await backend.worker()
    await backend.added(living)
    with PythonProcess("-m", "tests.storage.doomed_worker", backend.url, "1") as killed:
        killed.read()
        killed.kill()
    reaper = Reaper(living, backend.clock, emitter, max_crashes, Reports())
    await reaper.reap()
    assert [event.jobs for event in reaped] == [1]
    assert len(died) == (1 if max_crashes == 1 else 0)
    for event in died:
        assert "crash 1 of at most 1" in event.failure.message
        assert (await stored(living, event.lease.id)).state is JobState.DEAD


async def test_jobs_that_come_too_late_are_ended_and_told(backend: Backend) -> None:
    emitter = Emitter()
    died, cancelled = collect(emitter, JobDied), collect(emitter, JobCancelled)
    storage = await backend.worker()
    late, expired, timely = (
        limited_job(backend, deadline=1),
        limited_job(backend, expires=1),
        limited_job(backend, deadline=60),
    )
    await storage.insert([late, expired, timely])
    backend.clock.advance(2)
    await Reaper(storage, backend.clock, emitter, 3, Reports()).give_up_overdue()
    assert [event.lease.id for event in died] == [late.id]
    assert [event.lease.id for event in cancelled] == [expired.id]
    assert (await stored(storage, timely.id)).state is JobState.QUEUED


@pytest.mark.parametrize("count", [OVERDUE_AT_ONCE + 1])
async def test_what_is_overdue_is_ended_a_bounded_number_at_a_time(backend: Backend, count: int) -> None:
    storage = await backend.worker()
    await storage.insert([limited_job(backend, deadline=1) for _ in range(count)])
    backend.clock.advance(2)
    reaper = Reaper(storage, backend.clock, Emitter(), 3, Reports())
    await reaper.give_up_overdue()
    assert (await storage.counts())[JobState.DEAD] == OVERDUE_AT_ONCE
    await reaper.give_up_overdue()
    assert (await storage.counts())[JobState.DEAD] == count


@contextlib.asynccontextmanager
async def running(*loops: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(loop) for loop in loops]
    yield
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_loop_of_care_says_that_it_works(backend: Backend) -> None:
    storage = await backend.worker()
    reaping, pruning = Reports(), Reports()
    pruner = Pruner(storage, backend.clock, queue_options({}, {}), pruning)
    begun = time.monotonic()
    async with running(Reaper(storage, backend.clock, Emitter(), 3, reaping).run(), pruner.run()):
        await eventually(lambda: len(reaping.all) >= 3)
    assert time.monotonic() - begun >= 2 * REAP_EVERY_SECONDS
    assert reaping.all[0] == ("looking for dead workers and late jobs", None)
    assert pruning.all == [("deleting old jobs", None)]


async def test_a_worker_that_is_alone_asks_for_no_transaction_again_and_again(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = await backend.worker()
    asked: list[str] = []
    for verb in ("reap", "give_up_overdue"):
        monkeypatch.setattr(storage, verb, _told(asked, verb, getattr(storage, verb)))
    await eventually(lambda: storage.is_alone)
    reports = Reports()
    async with running(Reaper(storage, backend.clock, Emitter(), 3, reports).run()):
        await eventually(lambda: len(reports.all) >= 4)
        assert asked == ["reap"]
        other = await backend.worker()
        await eventually(lambda: asked.count("reap") >= 2)
        await other.deregister()
        await storage.insert([limited_job(backend, expires=1)])
        backend.clock.advance(2)
        await eventually(lambda: "give_up_overdue" in asked)


async def test_a_worker_that_is_alone_looks_for_dead_ones_in_every_twelfth_turn(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = await backend.worker()
    await eventually(lambda: storage.is_alone)
    asked: list[str] = []
    monkeypatch.setattr(storage, "reap", _told(asked, "reap", storage.reap))
    monkeypatch.setattr(reaper, "REAP_EVERY_SECONDS", 0.0)
    turns: list[int] = []
    async with running(Reaper(storage, backend.clock, Emitter(), 3, lambda *_: turns.append(len(asked))).run()):
        await eventually(lambda: len(turns) > 2 * ALONE_EVERY_NTH)
    assert turns[:25] == [*[1] * 12, *[2] * 12, 3]


async def test_a_job_is_given_up_at_the_very_moment_it_expires(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = await backend.worker()
    job = limited_job(backend, expires=1)
    await storage.insert([job])
    backend.clock.advance(1)
    monkeypatch.setattr(reaper, "REAP_EVERY_SECONDS", 0.01)
    async with running(Reaper(storage, backend.clock, Emitter(), 3, Reports()).run()):
        await eventually(lambda: is_in(storage, job.id, JobState.CANCELLED), within=3)


async def is_in(storage: Storage, job_id: str, state: JobState) -> bool:
    return (await stored(storage, job_id)).state is state


def _told(asked: list[str], verb: str, call: Callable[..., Any]) -> Callable[..., Any]:
    def telling(*args: Any) -> Any:
        asked.append(verb)
        return call(*args)

    return telling


async def test_a_loop_of_care_says_what_it_met_and_goes_on_more_slowly(backend: Backend) -> None:
    storage = await backend.worker()
    await storage.close()
    reaping, pruning = Reports(), Reports()
    pruner = Pruner(storage, backend.clock, queue_options({}, {}), pruning)
    begun = time.monotonic()
    async with running(Reaper(storage, backend.clock, Emitter(), 3, reaping).run(), pruner.run()):
        await eventually(lambda: len(reaping.all) >= 2)
    assert time.monotonic() - begun >= 1.0
    assert [doing for doing, _ in (*reaping.all[:1], *pruning.all)] == [
        "looking for dead workers and late jobs",
        "deleting old jobs",
    ]
    assert all(isinstance(error, DurableQError) for _, error in (*reaping.all, *pruning.all))


@pytest.mark.parametrize(
    ("kept", "left"),
    [
        ({}, {JobState.DEAD}),
        ({"retain_finished": None}, {JobState.SUCCEEDED, JobState.CANCELLED, JobState.DEAD}),
        ({"retain_dead": 60}, set()),
        ({"retain_finished": timedelta(days=30), "retain_dead": 60}, {JobState.SUCCEEDED, JobState.CANCELLED}),
    ],
)
async def test_each_kind_of_finished_job_is_kept_as_long_as_its_setting_says(
    backend: Backend, kept: dict[str, Any], left: set[JobState]
) -> None:
    storage = await backend.worker()
    for outcome in (Succeeded(None), Dead(BOOM), Cancelled(BOOM)):
        await backend.finished(storage, outcome)
    backend.clock.advance(timedelta(days=7, seconds=1))
    await Pruner(storage, backend.clock, queue_options(kept, {}), Reports()).prune()
    assert {state for state, count in (await storage.counts()).items() if count} == left


async def test_pruning_goes_on_until_nothing_old_is_left(backend: Backend) -> None:
    storage = await backend.worker()
    await backend.finished(storage, Succeeded(None), PRUNE_AT_ONCE + 1)
    backend.clock.advance(timedelta(days=7, seconds=1))
    await Pruner(storage, backend.clock, queue_options({}, {}), Reports()).prune()
    assert not any((await storage.counts()).values())


async def test_tallies_are_condensed_to_the_last_every_quarter_of_an_hour(
    backend: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = await backend.worker()
    pruner = Pruner(storage, backend.clock, queue_options({}, {}), Reports())
    has_more, asked = [True, True, False], []

    async def condense(now: datetime) -> bool:
        asked.append(now)
        return bool(has_more) and has_more.pop(0)

    monkeypatch.setattr(storage, "condense_tallies", condense)
    counts = []
    for seconds in (0, 0, 899.999_999, 0.000_001, 899, 1):
        backend.clock.advance(seconds)
        await pruner.prune()
        counts.append(len(asked))
    assert counts == [3, 3, 3, 4, 4, 5]
    assert asked[-1] == backend.clock.now
    backend.clock.step_wall(-1)
    await pruner.prune()
    assert len(asked) == 6, "who knows how long ago it was"


async def test_results_past_their_time_to_live_are_dropped_to_the_last(backend: Backend) -> None:
    storage = await backend.worker()
    short = JobExtras(result_ttl=SECOND)
    jobs = [replace(backend.job(), extras=short) for _ in range(PRUNE_AT_ONCE + 1)]
    await storage.insert(jobs)
    claimed = await claim(storage, limit=len(jobs))
    await settle(storage, [(one, Succeeded('"r"')) for one in claimed])
    pruner = Pruner(storage, backend.clock, queue_options({}, {}), Reports())
    await pruner.prune()
    assert (await stored(storage, jobs[-1].id)).result_json == '"r"'
    backend.clock.advance(1.5)
    await pruner.prune()
    assert {(await stored(storage, job.id)).result_json for job in jobs} == {None}


# -- the lease -----------------------------------------------------------------------------------------------


class Pulse:
    """A heartbeat of this test's loop, and what it wrote."""

    def __init__(self, *, interval: int = SECOND // 50, stall_warning: int = 10 * SECOND) -> None:
        self.clock = ManualClock()
        self.emitter = Emitter()
        self.written: list[tuple[int, Collection[LeaseKey] | None]] = []
        self.answer: Callable[[], bool] = lambda: True
        self.held: Collection[LeaseKey] | None = {(1, 1)}
        self.evictions: list[int] = []
        self.threads: set[str] = set()
        self.heartbeat = Heartbeat(
            clock=self.clock,
            emitter=self.emitter,
            interval=interval,
            lease=30 * SECOND,
            stall_warning=stall_warning,
            renew=self._renew,
            held=lambda: self.held,
            evicted=lambda: self.evictions.append(threading.get_ident()),
        )

    def _renew(self, expires_at: int, held: Collection[LeaseKey] | None) -> bool:
        self.threads.add(threading.current_thread().name)
        self.written.append((expires_at, held))
        return self.answer()

    def is_late(self) -> bool:
        return self.heartbeat.is_late

    async def beats(self, number: int = 1) -> None:
        """Let time pass until so many more renewals were written."""
        wanted = len(self.written) + number
        while len(self.written) < wanted:
            self.clock.advance(0.004)
            await asyncio.sleep(0.005)

    def beat_while_the_loop_stands(self, seconds: float) -> None:
        """Let so much time pass at once, until the heartbeat has seen it."""
        written = len(self.written)
        self.clock.advance(seconds)
        eventually_sync(lambda: len(self.written) > written)

    def __enter__(self) -> "Pulse":
        self.heartbeat.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.heartbeat.stop()


async def test_a_lease_is_prolonged_from_the_loops_last_movement() -> None:
    with Pulse() as pulse:
        await pulse.beats(3)
        until, held = pulse.written[-1]
        assert 20 * SECOND < until - pulse.clock.boot() <= 30 * SECOND
        assert held == {(1, 1)}
        pulse.held = None
        await pulse.beats(2)
        assert pulse.written[-1][1] is None
        assert pulse.threads == {"durableq-heartbeat"}
        thread = next(one for one in threading.enumerate() if one.name == "durableq-heartbeat")
        assert thread.daemon
        # The loop stands still from here on: what is written no longer moves.
        moved = {until for until, _ in pulse.written}
        written = len(pulse.written)
        for _ in range(5):
            pulse.beat_while_the_loop_stands(0.5)
        assert len({until for until, _ in pulse.written[written + 1 :]} - moved) <= 1
        assert pulse.heartbeat.seconds_since_movement >= 2.0
    await eventually(lambda: not thread.is_alive())


async def test_nothing_is_written_more_often_than_asked() -> None:
    with Pulse(interval=SECOND // 20) as pulse:
        await asyncio.sleep(0.3)
        assert pulse.written == [], "no time has passed on the clock it goes by"
        pulse.clock.advance(0.05)
        await eventually(lambda: len(pulse.written) == 1)
        pulse.clock.advance(0.04)
        await asyncio.sleep(0.3)
        assert len(pulse.written) == 1
        pulse.clock.advance(0.01)
        await eventually(lambda: len(pulse.written) == 2)


async def test_a_lease_that_is_gone_is_told_on_the_loop() -> None:
    with Pulse() as pulse:
        await pulse.beats()
        assert pulse.evictions == []
        pulse.answer = lambda: False
        await pulse.beats()
        await eventually(lambda: bool(pulse.evictions))
        assert set(pulse.evictions) == {threading.get_ident()}


async def test_trouble_is_told_and_the_lease_is_late_after_more_than_two_intervals() -> None:
    def fail() -> bool:
        raise QueueNotRunning("no")

    with Pulse() as pulse:
        trouble = collect(pulse.emitter, StorageTrouble)
        await pulse.beats()
        await asyncio.sleep(0.05)
        assert pulse.heartbeat.seconds_since_renewal < 0.2
        pulse.answer = fail
        await pulse.beats(2)
        assert [(one.doing, type(one.error)) for one in trouble[:1]] == [("prolonging the lease", QueueNotRunning)]
        assert pulse.evictions == []
        late = 1.0 + 2 * 0.02 - pulse.heartbeat.seconds_since_renewal
        pulse.clock.advance(late)
        assert pulse.heartbeat.seconds_since_renewal == pytest.approx(1.04)
        assert pulse.is_late() is False
        pulse.clock.advance(0.001)
        assert pulse.is_late() is True
        pulse.answer = lambda: True
        await pulse.beats()
        await eventually(lambda: not pulse.is_late())


async def test_a_loop_that_stands_still_is_told_of_once_with_what_it_does() -> None:
    with Pulse(stall_warning=3 * SECOND) as pulse:
        stalls = collect(pulse.emitter, LoopStalled)
        await pulse.beats()
        assert pulse.heartbeat.seconds_since_stall is None
        current = asyncio.current_task()
        assert current is not None
        current.set_name("the one that blocks")
        await eventually(lambda: pulse.heartbeat.seconds_since_movement == 0)
        pulse.beat_while_the_loop_stands(2.9)
        assert stalls == []
        pulse.clock.advance(0.2)
        eventually_sync(lambda: bool(stalls))
        pulse.beat_while_the_loop_stands(1.0)
        assert len(stalls) == 1
        assert stalls[0].seconds == pytest.approx(3.1)
        name, *frames = stalls[0].where.splitlines()
        assert name == "the one that blocks"
        assert any("eventually_sync" in frame for frame in frames)
        assert sum(frame.startswith("  File ") for frame in frames) == 4, "the innermost frames"
        assert pulse.heartbeat.seconds_since_stall == pytest.approx(1.0)
        await pulse.beats(2)
        pulse.clock.advance(3.1)
        eventually_sync(lambda: len(stalls) == 2)


async def test_a_loop_that_stands_still_in_a_callback_is_told_of_without_the_name_of_a_task() -> None:
    with Pulse(stall_warning=3 * SECOND) as pulse:
        stalls = collect(pulse.emitter, LoopStalled)

        def stand_still() -> None:
            pulse.clock.advance(3.1)
            eventually_sync(lambda: bool(stalls))

        asyncio.get_running_loop().call_soon(stand_still)
        await eventually(lambda: bool(stalls))
        name, *frames = stalls[0].where.splitlines()
        assert name == "no task"
        assert any("stand_still" in frame for frame in frames)


def test_a_heartbeat_ends_with_its_loop() -> None:
    async def begin() -> threading.Thread:
        pulse = Pulse()
        pulse.heartbeat.start()
        return next(one for one in threading.enumerate() if one.name == "durableq-heartbeat")

    thread = asyncio.run(begin())
    thread.join(5)
    assert not thread.is_alive()
