"""The one thread that writes: groups share a commit, and one bad operation hurts only itself."""

import asyncio
import contextlib
import sqlite3
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from durableq.clock import to_micros
from durableq.errors import JobNotFound, NotStored, StorageBusy
from durableq.models import Job, JobState, Lease, Outcome
from durableq.storage.protocol import Conflicts, Storage
from durableq.storage.sqlite import inbox, writer
from durableq.storage.sqlite.operation import Operation
from durableq.testing import ManualClock
from tests.storage.faults import record_statements, write_lock, write_lock_elsewhere
from tests.storage.support import DEAD, DONE, HEARTBEAT, LEASE, Backend, claim, runs_again, settle, stored


async def handed_over(futures: list[asyncio.Future[Conflicts | None]]) -> list[asyncio.Future[Conflicts | None]]:
    """Give the loop the turns it needs to bring operations to the writer."""
    for _ in range(3):
        await asyncio.sleep(0)
    return futures


def tell_when_submitted(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Return an event that is set once a thread has brought an operation to a writer."""
    submitted = threading.Event()
    submit = writer.Writer.submit

    def submit_and_tell(self: writer.Writer, operation: Operation) -> None:
        submit(self, operation)
        submitted.set()

    monkeypatch.setattr(writer.Writer, "submit", submit_and_tell)
    return submitted


def commits(statements: list[str]) -> int:
    return statements.count("COMMIT")


class TestGroups:
    async def test_adds_that_come_together_share_a_commit(
        self, backend: Backend, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        statements = record_statements(monkeypatch)
        storage = await backend.open()
        before = commits(statements)
        jobs = [backend.job() for _ in range(400)]
        await asyncio.gather(*(storage.insert([job]) for job in jobs))
        assert commits(statements) - before <= 20
        assert (await storage.counts())[JobState.QUEUED] == 400

    async def test_adds_that_come_while_another_commits_share_the_next(
        self, backend: Backend, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        statements = record_statements(monkeypatch)
        storage = await backend.open()
        with write_lock(backend.url):
            before = commits(statements)
            first = await handed_over([storage.insert([backend.job()])])
            rest = []
            for _ in range(50):
                rest += await handed_over([storage.insert([backend.job()])])
            assert not any(future.done() for future in first + rest)
        await asyncio.gather(*first, *rest)
        assert commits(statements) - before <= 2

    async def test_a_claim_finds_what_is_added_in_the_same_transaction(
        self, backend: Backend, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        statements = record_statements(monkeypatch)
        storage = await backend.worker()
        await backend.claimed(storage)
        with write_lock(backend.url):
            blocking = await handed_over([storage.insert([backend.job(task="tasks:other")])])
            before = commits(statements)
            claiming = asyncio.ensure_future(claim(storage))
            adding = await handed_over([storage.insert([backend.job()])])
        await asyncio.gather(*blocking, *adding)
        assert len(await claiming) == 1
        assert commits(statements) - before <= 2

    async def test_a_heartbeat_and_a_settle_do_not_wait_for_a_heavy_add(
        self, backend: Backend, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        storage = await backend.worker()
        [lease] = await backend.claimed(storage)
        submitted = tell_when_submitted(monkeypatch)
        order: list[str] = []
        heavy = [backend.job(task="tasks:heavy") for _ in range(5_001)]
        with write_lock(backend.url):
            first = await handed_over([storage.insert([backend.job()])])
            adding = await handed_over([storage.insert(heavy)])
            adding[0].add_done_callback(lambda done: order.append("heavy"))
            settling = asyncio.ensure_future(settle(storage, [(lease, DONE)]))
            settling.add_done_callback(lambda done: order.append("settle"))
            expires_at = clock.boot() + to_micros(LEASE)
            renewing = asyncio.ensure_future(asyncio.to_thread(storage.renew, expires_at, None))
            renewing.add_done_callback(lambda done: order.append("heartbeat"))
            assert await asyncio.to_thread(submitted.wait, 10)
        await asyncio.gather(*first, *adding, settling, renewing)
        assert order[-1] == "heavy"

    @pytest.mark.foreign_bug(50)
    async def test_a_heartbeat_goes_before_whatever_else_waits(
        self, backend: Backend, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        statements = record_statements(monkeypatch)
        storage = await backend.worker()
        with write_lock(backend.url):
            adding = await handed_over([storage.insert([backend.job()])])
            begun = len(statements)
            for _ in range(60):  # more than two transactions take
                adding += await handed_over([storage.insert([backend.job() for _ in range(60)])])
            submitted = tell_when_submitted(monkeypatch)
            renewing = asyncio.ensure_future(asyncio.to_thread(storage.renew, clock.boot() + to_micros(LEASE), None))
            assert await asyncio.to_thread(submitted.wait, 10)
        await asyncio.gather(*adding, renewing)
        renewed = next(at for at, sql in enumerate(statements[begun:]) if sql.startswith("UPDATE durableq_workers"))
        assert commits(statements[begun:]) >= 3
        assert commits(statements[begun : begun + renewed]) <= 1, "only what had begun went before"

    async def test_a_heavy_add_has_a_transaction_of_its_own(
        self, backend: Backend, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        statements = record_statements(monkeypatch)
        storage = await backend.open()
        heavy = [backend.job() for _ in range(5_001)]
        with write_lock(backend.url):
            first = await handed_over([storage.insert([backend.job()])])
            before = commits(statements)
            rest = await handed_over([storage.insert(heavy), storage.insert([backend.job()])])
        await asyncio.gather(*first, *rest)
        assert commits(statements) - before >= 2
        assert (await storage.counts())[JobState.QUEUED] == 5_003

    @pytest.mark.fault("F49")
    @pytest.mark.foreign_bug(54)
    async def test_a_cancelled_verb_is_done_whole_or_not_at_all(self, backend: Backend, storage: Storage) -> None:
        jobs = await backend.added(storage, 40)
        for number, job in enumerate(jobs):
            cancelling = asyncio.ensure_future(storage.cancel(job.id, who="ann"))
            for _ in range(number % 5):
                await asyncio.sleep(0)
            cancelling.cancel()
            await asyncio.wait([cancelling])
        await backend.added(storage)
        for job in jobs:
            is_cancelled = (await stored(storage, job.id)).state is JobState.CANCELLED
            assert len(await storage.audit_trail(job.id)) == int(is_cancelled)


class TestOneBadOperation:
    async def test_a_bad_add_hurts_only_itself(self, backend: Backend, storage: Storage) -> None:
        good: list[list[Job[Any]]] = [[backend.job()] for _ in range(20)]
        bad = [[backend.job(), backend.job(max_attempts=0)] for _ in range(3)]
        futures = [storage.insert(batch) for batch in good[:10] + bad + good[10:]]
        results = await asyncio.gather(*futures, return_exceptions=True)
        assert [isinstance(result, NotStored) for result in results] == [False] * 10 + [True] * 3 + [False] * 10
        for [job] in good:
            assert (await stored(storage, job.id)).state is JobState.QUEUED
        for batch in bad:
            assert [await storage.get(job.id) for job in batch] == [None, None]

    async def test_what_an_operation_wrote_before_it_raised_is_undone_alone(
        self, backend: Backend, storage: Storage, clock: ManualClock
    ) -> None:
        held = await backend.claimed(storage)
        other = await backend.worker()
        held += await backend.claimed(other)
        reaper = await backend.worker()
        await reaper.reap(runs_again)
        for _ in range(LEASE // HEARTBEAT):
            clock.advance(HEARTBEAT)
            await reaper.reap(runs_again)
        clock.advance(HEARTBEAT)
        decided: list[Lease] = []

        def raise_at_the_second(lease: Lease, reason: str, charged: bool) -> Outcome:
            decided.append(lease)
            if len(decided) == 2:
                raise RuntimeError("a defect of the caller")
            return runs_again(lease, reason, charged)

        reaping = asyncio.ensure_future(reaper.reap(raise_at_the_second))
        added, missing, _ = await asyncio.gather(
            backend.added(reaper), reaper.cancel("nothing-here", who="ann"), reaping, return_exceptions=True
        )
        assert isinstance(reaping.exception(), RuntimeError)
        assert isinstance(missing, JobNotFound)
        assert isinstance(added, list)
        assert (await stored(storage, added[0].id)).state is JobState.QUEUED
        for lease in held:
            assert (await stored(storage, lease.id)).state is JobState.RUNNING

    async def test_an_administrative_write_and_its_audit_are_one(self, backend: Backend, storage: Storage) -> None:
        [job] = await backend.added(storage)
        outside = sqlite3.connect(backend.url, isolation_level=None)
        outside.execute(
            "CREATE TRIGGER no_audit BEFORE INSERT ON durableq_audit BEGIN SELECT raise(ABORT, 'no audit'); END"
        )
        with pytest.raises(NotStored, match="no audit"):
            await storage.cancel(job.id, who="ann")
        assert (await stored(storage, job.id)).state is JobState.QUEUED
        outside.execute("DROP TRIGGER no_audit")
        outside.close()
        assert (await storage.cancel(job.id, who="ann")).state is JobState.CANCELLED


class TestWaiting:
    @pytest.mark.fault("F24")
    async def test_a_lock_held_elsewhere_too_long_is_busy_and_names_the_holder(
        self, backend: Backend, storage: Storage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for module in (inbox, writer):
            monkeypatch.setattr(module, "BEGIN_WITHIN_SECONDS", 0.2)
        job = backend.job()
        with write_lock_elsewhere(backend.url) as pid:
            began = time.monotonic()
            with pytest.raises(StorageBusy, match=f"by process {pid}"):
                await storage.insert([job])
            assert 0.2 <= time.monotonic() - began < 3
            with pytest.raises(StorageBusy):
                await storage.cancel(job.id, who="ann")
        assert await storage.get(job.id) is None
        await storage.insert([job])
        assert await stored(storage, job.id) == job

    async def test_a_lock_held_by_this_process_is_said_to_be(
        self, backend: Backend, storage: Storage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for module in (inbox, writer):
            monkeypatch.setattr(module, "BEGIN_WITHIN_SECONDS", 0.1)
        with write_lock(backend.url), pytest.raises(StorageBusy, match="this very process"):
            await storage.insert([backend.job()])

    async def test_what_waited_too_long_is_refused_and_what_came_later_is_not(
        self, backend: Backend, storage: Storage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(inbox, "BEGIN_WITHIN_SECONDS", 0.2)
        with write_lock(backend.url):
            early = await handed_over([storage.insert([backend.job()]) for _ in range(3)])
            monkeypatch.setattr(inbox, "BEGIN_WITHIN_SECONDS", 30.0)
            late = await handed_over([storage.insert([backend.job()]) for _ in range(3)])
            refused = await asyncio.gather(*early, return_exceptions=True)
            assert [type(one) for one in refused] == [StorageBusy] * 3
            assert not any(future.done() for future in late)
        await asyncio.gather(*late)
        assert (await storage.counts())[JobState.QUEUED] == 3

    async def test_what_waits_is_bounded_and_more_is_refused_at_once(
        self, backend: Backend, storage: Storage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(inbox, "WAITING_BYTES", 100_000)
        accepted: list[asyncio.Future[Conflicts | None]] = []
        with write_lock(backend.url):
            with pytest.raises(StorageBusy, match="already wait"):
                for _ in range(1_000):
                    accepted += await handed_over([storage.insert([backend.job(args_json=f'"{"x" * 1_000}"')])])
            assert 30 < len(accepted) < 110
        await asyncio.gather(*accepted)
        assert (await storage.counts())[JobState.QUEUED] == len(accepted)
        for _ in range(2 * len(accepted)):
            await storage.insert([backend.job(args_json=f'"{"x" * 1_000}"')])

    async def test_closing_gives_up_what_cannot_be_written_and_says_so(
        self, backend: Backend, url: str, tmp_path: Path
    ) -> None:
        storage = await backend.open()
        with write_lock(url):
            [adding] = await handed_over([storage.insert([backend.job()])])
            began = time.monotonic()
            await storage.close()
            assert time.monotonic() - began < 5
        with pytest.raises(StorageBusy):
            await adding

    async def test_closing_writes_what_still_waits(self, backend: Backend) -> None:
        storage = await backend.open()
        jobs = [backend.job() for _ in range(50)]
        futures = [storage.insert([job]) for job in jobs]
        await storage.close()
        await asyncio.gather(*futures)
        again = await backend.open()
        assert (await again.counts())[JobState.QUEUED] == 50


async def test_the_schema_of_a_tasks_arguments_is_stored_with_its_name(backend: Backend) -> None:
    storage = await backend.open()
    storage.describe_tasks_with({"tasks:a": '{"type": "object"}'}.get)
    await backend.added(storage, task="tasks:a")
    await backend.added(storage, task="tasks:b")
    with contextlib.closing(sqlite3.connect(backend.url)) as outside:
        rows = outside.execute("SELECT name, arguments_schema FROM durableq_tasks ORDER BY name").fetchall()
    assert rows == [("tasks:a", '{"type": "object"}'), ("tasks:b", None)]


async def test_nothing_of_a_job_that_is_gone_stays_in_the_file(backend: Backend, clock: ManualClock) -> None:
    storage = await backend.worker()
    deleted, pruned = await backend.finished(storage, DEAD, count=2)
    await storage.delete(deleted.id, who="ann")
    clock.advance(1)
    assert await storage.prune(JobState.DEAD, clock.now, limit=10) == 1
    assert await storage.get(pruned.id) is None
    with contextlib.closing(sqlite3.connect(backend.url)) as outside:
        assert outside.execute("SELECT count(*) FROM durableq_attempts").fetchone() == (0,)


@pytest.mark.parametrize("bad", [{"args_json": "\ud800"}, {"task": "\ud800"}, {"priority": 2**63}])
async def test_an_addition_that_cannot_be_encoded_takes_no_other_along(
    backend: Backend, storage: Storage, bad: dict[str, Any]
) -> None:
    first, refused = storage.insert([backend.job()]), storage.insert([replace(backend.job(), **bad)])
    last = storage.insert([backend.job()])
    await asyncio.gather(first, last)
    with pytest.raises(NotStored, match="cannot be encoded"):
        await refused
    assert sum((await storage.counts()).values()) == 2
