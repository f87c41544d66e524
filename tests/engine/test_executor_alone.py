"""The executor by itself: what it tells the heartbeat, and what it leaves when its jobs are given up."""

import asyncio
import gc
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from durableq.clock import SystemClock
from durableq.codec import checksum
from durableq.engine.executor import Executor
from durableq.engine.hooks import Hooks
from durableq.engine.notes import Notebook
from durableq.engine.processes import ProcessRunner
from durableq.engine.runners import LoopSlots, ThreadRunner
from durableq.engine.running import Services
from durableq.events import Emitter
from durableq.jobs import JobMaker
from durableq.models import Completed, Job, Lease, Outcome
from durableq.registry import Registry
from durableq.settings import queue_options
from durableq.storage import storage_factory
from durableq.storage.protocol import Notes


class Bench:
    """An executor with one runner; what it hands on is kept."""

    def __init__(self, database: Path) -> None:
        self.registry = Registry(None)
        self.runner = LoopSlots(1_000_000)
        self.outcomes: list[tuple[Lease, Outcome | Completed]] = []
        emitter, clock = Emitter(), SystemClock()
        maker = JobMaker(registry=self.registry, clock=clock, max_payload_bytes=1000)
        self.executor = Executor(
            registry=self.registry,
            loop=self.runner,
            threads=ThreadRunner(1),
            processes=ProcessRunner(1),
            emitter=emitter,
            hooks=Hooks(self.registry, emitter),
            services=Services(clock, maker, Notebook(lambda: None), _complete, 1000),
            storage=storage_factory(database, queue_options({}, {}), clock)(),
            overrides=dict,
            finished=lambda lease, outcome: self.outcomes.append((lease, outcome)),
            freed=lambda: None,
        )
        self._seq = 0

    def register(self, function: Callable[..., Any], name: str) -> None:
        self.registry.register(function, name=name, options={})

    def start(self, name: str, crashes: int = 0) -> Lease:
        self._seq += 1
        lease = Lease(self._seq, 1, str(self._seq), name, "default", "{}", checksum("{}"), 1, 5, crashes, 0)
        self.executor.start(lease)
        return lease


async def _complete(
    transaction: Any, lease: Lease, result_json: str | None, follow_ups: Sequence[Job[Any]], notes: Notes
) -> None:
    raise AssertionError("no task here completes itself")


@pytest.fixture
async def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "app.db")


@pytest.fixture
def impatient_threads() -> Iterator[None]:
    """Let threads interrupt one another as often as Python can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


async def _nothing() -> None: ...


async def test_a_job_that_is_given_up_before_its_first_step_leaves_no_slot_occupied(bench: Bench) -> None:
    bench.register(_nothing, "nothing")
    lease = bench.start("nothing", crashes=1)
    assert await bench.executor.give_up() == [lease]
    assert (bench.runner.occupied, bench.executor.runs_a_suspect, bench.outcomes) == (0, False, [])


async def test_what_is_given_up_counts_as_held_until_it_has_cleaned_up(bench: Bench) -> None:
    """Or the heartbeat hands it back, and another worker starts it beside the clean-up."""
    held_meanwhile: list[tuple[Lease, ...]] = []
    is_running = asyncio.Event()

    async def cleans_up() -> None:
        is_running.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.05)
            held_meanwhile.append(bench.executor.leases)

    bench.register(cleans_up, "cleans up")
    lease = bench.start("cleans up")
    await is_running.wait()
    assert await bench.executor.give_up() == [lease]
    assert held_meanwhile == [(lease,)]
    assert bench.executor.leases == ()


async def test_the_heartbeats_thread_may_ask_for_the_leases_at_any_moment(
    bench: Bench, impatient_threads: None
) -> None:
    bench.register(_nothing, "nothing")
    errors: list[RuntimeError] = []
    stop = threading.Event()

    def ask_without_end() -> None:
        while not stop.is_set():
            try:
                _ = bench.executor.leases
            except RuntimeError as error:
                errors.append(error)

    asking = threading.Thread(target=ask_without_end)
    asking.start()
    for _ in range(10):
        for _ in range(1000):
            bench.start("nothing")
        await bench.executor.wait_idle(10)
    stop.set()
    asking.join()
    assert errors == []
    assert len(bench.outcomes) == 10_000


@pytest.mark.foreign_bug(76)
async def test_what_a_job_needed_is_freed_when_it_ends(bench: Bench) -> None:
    """Not only when the garbage collector comes: circles cost a tenth of the jobs' rate."""
    bench.register(_nothing, "nothing")
    await asyncio.sleep(0)
    gc.collect()
    gc.disable()
    try:
        for _ in range(100):
            bench.start("nothing")
        await bench.executor.wait_idle(10)
        await asyncio.sleep(0)
        assert gc.collect() < 100
    finally:
        gc.enable()
