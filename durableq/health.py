"""Whether a queue works, in words for people and in figures for machines.

Looking writes nothing, asks the database one cheap question, waits a second for the answer at most, and never raises
for a queue that is ill: that is what it is asked about.
"""

import asyncio
import threading
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from durableq.life import Run
from durableq.settings import QueueOptions
from durableq.storage.protocol import Storage, StorageCondition
from durableq.worker import WorkerCondition

LOOK_SECONDS: Final = 1.0
"""How long the database has to answer."""
UNKNOWN_SECONDS: Final = 600.0
"""Jobs of tasks that this process does not know may be run by another: for so long that is no news."""
STALL_SECONDS: Final = 60.0
"""For so long a stall of the event loop counts."""

Status = Literal["ok", "degraded", "failing"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """How a queue is. Made of plain values only, so that pydantic, and with it FastAPI, can serialise it."""

    status: Status
    """``ok``; ``degraded``: goes on, not as it should; ``failing``: jobs are not taken, or not run."""
    reasons: tuple[str, ...] = ()
    """What is wrong, the worst first."""
    worker: Literal["running", "stopped", "none"] = "none"
    """"none": this process only adds jobs, or its queue does not run."""
    worker_id: int | None = None
    leases_held: int = 0
    """Jobs that run here, or whose end is still to be written."""
    seconds_since_heartbeat: float | None = None
    """Since the worker's lease was last prolonged."""
    longest_wait_seconds: float | None = None
    """How long a job has been due that is the next of its queue and task; None: none waits, or nobody could tell."""
    storage: StorageCondition | None = None
    """None when the queue does not run."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that is wrong."""

    status: Status
    reason: str


async def examine(run: Run | None, options: QueueOptions) -> Health:
    """Tell how a run of a queue is; None: there is none. Never raises; cancelling it changes nothing."""
    if run is None or not run.is_alive:
        return Health(status="failing", reasons=("the queue is not running",))
    if not run.ready.is_set():
        return Health(status="failing", reasons=("the queue is starting",))
    condition = run.storage.condition()
    worker = None if run.worker is None else run.worker.condition()
    findings = [*_of_run(run, worker), *_of_storage(run.storage, condition)]
    if worker is not None:
        findings += of_worker(worker, options)
    waits: Mapping[str, float] = {}
    if run.storage.trouble is None and run.thread == threading.get_ident():  # its readers belong to its event loop
        waits, unanswered = await _waits(run.storage)
        findings += unanswered
        findings += () if worker is None else of_waits(waits, worker.unknown_tasks)
    findings.sort(key=lambda one: one.status != "failing")
    return Health(
        status=findings[0].status if findings else "ok",
        reasons=tuple(dict.fromkeys(one.reason for one in findings)),
        worker="none" if worker is None else "stopped" if _has_stopped(run) else "running",
        worker_id=None if worker is None else worker.worker_id,
        leases_held=0 if worker is None else worker.leases_held,
        seconds_since_heartbeat=None if worker is None else worker.since_heartbeat,
        longest_wait_seconds=max(waits.values(), default=None),
        storage=condition,
    )


def _has_stopped(run: Run) -> bool:
    return run.working is not None and run.working.done()


def _of_run(run: Run, worker: WorkerCondition | None) -> Iterator[Finding]:
    if run.stop.is_set():
        yield Finding("failing", "the queue is stopping")
        return
    if worker is not None and worker.broken is not None:
        yield Finding("failing", f"the worker has stopped, jobs are not run: {worker.broken}")
    elif run.working is not None and run.working.done():
        defect = "" if run.working.cancelled() else f": {run.working.exception()!r}"
        yield Finding("failing", f"the worker stopped on a defect, jobs are stored but not run{defect}")


def _of_storage(storage: Storage, condition: StorageCondition) -> Iterator[Finding]:
    if storage.trouble is not None:
        yield Finding("failing", f"the storage is broken, jobs are refused: {storage.trouble}")
    if condition.database_bytes is None:
        yield Finding("failing", "the database file is gone, or cannot be looked at")
    if condition.log_bytes > condition.log_bytes_alarm:
        yield Finding(
            "degraded",
            f"the write-ahead log has grown to {condition.log_bytes // 2**20} MiB: some connection keeps a read "
            "transaction open, so it cannot be taken in",
        )


def of_worker(worker: WorkerCondition, options: QueueOptions) -> Iterator[Finding]:
    """Judge how a worker says that it is. Pure."""
    if worker.is_evicted:
        yield Finding("degraded", "the worker was taken for dead and lost its leases; it registers anew")
    for trouble in worker.troubles:
        yield Finding("degraded", f"storage trouble while {trouble}")
    if worker.is_heartbeat_late:
        yield Finding(
            "degraded",
            f"the heartbeat is late: the lease was last prolonged {worker.since_heartbeat:.0f} s ago, and after "
            f"{options.lease.total_seconds():.0f} s others take this worker's jobs",
        )
    if worker.since_loop_moved > options.loop_stall_warning.total_seconds() + 1.0:  # it is looked at once a second
        yield Finding("degraded", f"the event loop has not moved for {worker.since_loop_moved:.0f} s")
    elif worker.since_loop_stalled is not None and worker.since_loop_stalled < STALL_SECONDS:
        yield Finding(
            "degraded",
            f"the event loop stood still for too long, {worker.since_loop_stalled:.0f} s ago; the log says where",
        )


def of_waits(waits: Mapping[str, float], unknown: Collection[str]) -> Iterator[Finding]:
    """Judge how long jobs have waited for tasks that this process does not know. Pure."""
    late = {task: seconds for task, seconds in waits.items() if task in unknown and seconds >= UNKNOWN_SECONDS}
    if late:
        yield Finding(
            "degraded",
            f"jobs have waited for {max(late.values()):.0f} s for tasks that no code here has: "
            f"{', '.join(sorted(late))}. Was one renamed? Register it with aliases=[...], or let another deployment "
            "run them",
        )


async def _waits(storage: Storage) -> tuple[Mapping[str, float], list[Finding]]:
    try:
        async with asyncio.timeout(LOOK_SECONDS):
            return await storage.waits(), []
    except TimeoutError:
        return {}, [Finding("degraded", f"the database did not answer a read within {LOOK_SECONDS:.0f} s")]
    except Exception as error:  # whatever is wrong with it is the answer
        return {}, [Finding("degraded", f"the database cannot be read: {error}")]
