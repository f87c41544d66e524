"""One writer per process and file, and a file that others use as well: the log stays bounded, others get the lock."""

import asyncio
import contextlib
import json
import logging
import os
import sqlite3
import threading
from pathlib import Path

import pytest

from durableq.errors import ConfigurationError
from durableq.models import JobState
from durableq.storage.protocol import Storage
from durableq.storage.sqlite import checkpoint
from tests.storage.support import Backend, PythonProcess, claim, stored
from tests.support import eventually

ARGUMENTS = json.dumps("x" * 2_000)
LOG_BYTES = 20 * 10**6
"""What the log may reach: a checkpoint is due every thousand pages, which is 4 MB, and may come late once."""


def writers() -> int:
    return sum(thread.name == "durableq-writer" for thread in threading.enumerate())


async def no_writers() -> None:
    """Wait for the threads of earlier tests to end."""
    await eventually(lambda: writers() == 0)


def open_files() -> int:
    return len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 0


def wal_bytes(backend: Backend) -> int:
    return os.stat(backend.url + "-wal").st_size


class TestOneWriter:
    @pytest.mark.fault("R4")
    async def test_two_queues_on_one_file_share_one_writer(self, backend: Backend, tmp_path: Path) -> None:
        await no_writers()
        one = await backend.worker()
        (tmp_path / "elsewhere").mkdir()
        link = tmp_path / "elsewhere" / "link.db"
        link.symlink_to(backend.url)
        other_backend = Backend(str(link), backend.clock)
        other = await other_backend.worker()
        assert writers() == 1
        [job] = await backend.added(one)
        assert [lease.id for lease in await claim(other)] == [job.id]
        await other_backend.close()
        await backend.added(one)
        assert writers() == 1, "the first still uses it"

    @pytest.mark.fault("R4")
    async def test_a_process_that_comes_by_another_path_sees_who_is_alive(
        self, backend: Backend, storage: Storage, tmp_path: Path
    ) -> None:
        """A worker's lock must be found however its file is named: ``current/app.db``, a mounted directory."""
        await backend.claimed(storage)
        (tmp_path / "elsewhere").mkdir()
        link = tmp_path / "elsewhere" / "link.db"
        link.symlink_to(backend.url)
        with PythonProcess("-m", "tests.storage.doomed_worker", str(link), "0", "reap") as other:
            other.read()
            assert other.read() == [], "the worker lives"

    async def test_the_last_to_close_ends_the_thread(self, backend: Backend) -> None:
        await no_writers()
        one, other = await backend.open(), await backend.open()
        await one.close()
        assert writers() == 1
        await other.close()
        await no_writers()

    async def test_a_file_may_be_closed_and_opened_many_times(self, backend: Backend) -> None:
        files = open_files()
        for _ in range(20):
            storage = await backend.open()
            await backend.added(storage)
            await storage.close()
        assert (await (await backend.open()).counts())[JobState.QUEUED] == 20
        assert open_files() < files + 15

    async def test_another_durability_on_the_same_file_is_refused(self, backend: Backend) -> None:
        await backend.open()
        with pytest.raises(ConfigurationError, match="durability='full'"):
            await backend.open(durability="normal")

    @pytest.mark.fault("F15")
    @pytest.mark.foreign_bug(25)
    async def test_both_durabilities_reach_sqlite(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        for durability, level in (("full", 2), ("normal", 1)):
            found: list[int] = []
            backend = Backend(str(tmp_path / f"{durability}.db"))
            storage = await backend.open(durability=durability)  # type: ignore[arg-type]

            def read_level(connection: sqlite3.Connection, found: list[int] = found) -> None:
                found.append(connection.execute("PRAGMA synchronous").fetchone()[0])

            await storage._transact(read_level)  # type: ignore[attr-defined]
            assert found == [level]
            await backend.close()


class TestHearingOfOthers:
    async def test_a_job_added_by_another_process_wakes_the_worker(self, backend: Backend) -> None:
        woken: list[bool] = []
        storage = await backend.open()
        await storage.register(woken.append)
        with PythonProcess("-m", "tests.storage.neighbour", backend.url, "adds", "50") as neighbour:
            await eventually(lambda: any(woken))
            await asyncio.to_thread(neighbour.read)
        await eventually(lambda: bool(storage.names().tasks))
        assert await claim(storage)

    async def test_a_job_scheduled_by_another_process_is_made_ready_in_time(self, backend: Backend) -> None:
        storage = await backend.worker()
        script = (
            "import asyncio\nfrom tests.storage.support import Backend\n"
            f"backend = Backend({backend.url!r})\njob = backend.job(delay=60)\n"
            "backend.new_storage().insert_and_wait([job])\nprint('\"' + job.id + '\"')\n"
        )
        with PythonProcess("-c", script) as neighbour:
            job_id = await asyncio.to_thread(neighbour.read)
        assert (await stored(storage, job_id)).state is JobState.SCHEDULED
        backend.clock.advance(60)

        async def is_ready() -> bool:
            return (await stored(storage, job_id)).state is JobState.QUEUED

        await eventually(is_ready)


class TestLog:
    @pytest.mark.foreign_bug(74)
    async def test_the_log_stays_bounded_under_load(self, backend: Backend, storage: Storage) -> None:
        largest = 0
        for _ in range(180):
            await asyncio.gather(*(backend.added(storage, 10, args_json=ARGUMENTS) for _ in range(8)))
            largest = max(largest, wal_bytes(backend))
        assert os.stat(backend.url).st_size + largest > 30 * 10**6, "too little was written to show anything"
        assert largest < LOG_BYTES

    @pytest.mark.foreign_bug(74)
    async def test_the_log_stays_bounded_when_few_but_large_jobs_come(self, backend: Backend, storage: Storage) -> None:
        await backend.added(storage, 2_000)
        largest = 0
        for _ in range(150):
            await backend.added(storage, args_json=json.dumps("x" * 500_000))
            largest = max(largest, wal_bytes(backend))
        assert largest < LOG_BYTES

    @pytest.mark.fault("F25")
    @pytest.mark.foreign_bug(74)
    async def test_the_log_stays_bounded_with_two_processes_writing(self, backend: Backend, storage: Storage) -> None:
        count = 25_000
        with PythonProcess("-m", "tests.storage.neighbour", backend.url, "adds", str(count)) as neighbour:
            reading = asyncio.ensure_future(asyncio.to_thread(neighbour.read))
            own, largest = 0, 0
            while not reading.done():
                await asyncio.gather(*(backend.added(storage, 10, args_json=ARGUMENTS) for _ in range(5)))
                own, largest = own + 50, max(largest, wal_bytes(backend))
            largest = max(largest, await reading)
        assert (await storage.counts())[JobState.QUEUED] == own + count
        assert (own + count) * 2_500 > 110 * 10**6, "too little was written to show anything"
        assert largest < 110 * 10**6, f"the log has {largest / 10**6:.0f} MB, {own + count} jobs were added"

    @pytest.mark.fault("F32")
    async def test_a_long_reader_raises_an_alarm_and_ends_without_harm(
        self, backend: Backend, storage: Storage, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(checkpoint, "WAL_ALARM_BYTES", 6 * 2**20)
        monkeypatch.setattr(checkpoint, "_BACKED_OFF_SECONDS", 0.01)
        await backend.added(storage)
        reader = sqlite3.connect(backend.url, isolation_level=None)
        with contextlib.closing(reader), caplog.at_level(logging.WARNING, "durableq.storage"):
            reader.execute("BEGIN")
            reader.execute("SELECT count(*) FROM durableq_jobs").fetchone()
            alarms: list[str] = []
            while not alarms and wal_bytes(backend) < 60 * 10**6:
                await backend.added(storage, 100, args_json=ARGUMENTS)
                alarms = _alarms(caplog)
            for _ in range(50):
                await backend.added(storage, 100, args_json=ARGUMENTS)
            assert len(_alarms(caplog)) == 1, "said once a minute, not with every commit"
            assert "read transaction" in alarms[0]
            reader.execute("COMMIT")
        await eventually(lambda: _stops_growing(backend, storage))

    @pytest.mark.fault("F32")
    @pytest.mark.foreign_bug(75)
    async def test_reads_leave_no_snapshot_behind(self, backend: Backend, storage: Storage) -> None:
        """A read that was cancelled must not keep the log from being taken in."""
        jobs = await backend.added(storage, 200)
        for number in range(20):
            reading = asyncio.ensure_future(storage.get(jobs[number].id))
            for _ in range(number % 4):
                await asyncio.sleep(0)
            reading.cancel()
            await asyncio.wait([reading])
        assert await stored(storage, jobs[0].id) == jobs[0]
        largest = 0
        for _ in range(150):
            await backend.added(storage, 100, args_json=ARGUMENTS)
            largest = max(largest, wal_bytes(backend))
        assert largest < LOG_BYTES


def _alarms(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if "write-ahead log" in record.getMessage()]


async def _stops_growing(backend: Backend, storage: Storage) -> bool:
    before = wal_bytes(backend)
    for _ in range(30):
        await backend.added(storage, 100, args_json=ARGUMENTS)
    return wal_bytes(backend) == before


@pytest.mark.fault("R8")
async def test_an_applications_own_transaction_gets_the_lock_under_our_full_load(
    backend: Backend, storage: Storage
) -> None:
    with PythonProcess("-m", "tests.storage.neighbour", backend.url, "waits", "150") as neighbour:
        assert await asyncio.to_thread(neighbour.read) == "ready"
        await backend.added(storage, 1)
        neighbour.write("go")
        measuring = asyncio.ensure_future(asyncio.to_thread(neighbour.read))
        load = 0
        while not measuring.done():
            await asyncio.gather(*(backend.added(storage, 8) for _ in range(32)))
            load += 256
        waits = await measuring
    assert load > 2_000, "there was no load to speak of"
    assert waits[int(len(waits) * 0.95)] <= 50, f"p50 {waits[len(waits) // 2]:.1f} ms, max {waits[-1]:.1f} ms"
