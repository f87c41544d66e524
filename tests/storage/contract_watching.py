"""What every backend promises to those who wait for jobs to finish: they hear of it, whoever finished them."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from durableq.engine.decisions import before_start
from durableq.models import Cancelled, JobState, Lease, Outcome, Released, Retried, Snoozed, Succeeded
from durableq.storage.protocol import Storage
from tests.storage.contract_cancelling import die, forget, leave
from tests.storage.contract_time import limited_job
from tests.storage.support import BOOM, DEAD, DONE, Backend, PythonProcess, claim, settle
from tests.support import eventually

Finish = Callable[[Backend, Storage, Lease], Awaitable[Any]]


class Watcher:
    """Counts how often it was asked to look, and when last."""

    def __init__(self) -> None:
        self.looks = 0
        self.looked_at = 0.0

    def look(self) -> None:
        asyncio.get_running_loop()  # it is called on the event loop
        self.looks += 1
        self.looked_at = time.monotonic()


@contextlib.contextmanager
def watching(storage: Storage) -> Iterator[Watcher]:
    watcher = Watcher()
    unwatch = storage.watch(watcher.look)
    yield watcher
    unwatch()


async def is_quiet(watcher: Watcher) -> None:
    """Wait until what was committed before has been seen: other connections are looked at now and then."""

    async def nothing_came() -> bool:
        before = watcher.looks
        await asyncio.sleep(0.3)
        return watcher.looks == before

    await eventually(nothing_came)


def settled_as(outcome: Outcome) -> Finish:
    async def finish(backend: Backend, storage: Storage, lease: Lease) -> None:
        await settle(storage, [(lease, outcome)])

    return finish


FINISHES = [
    pytest.param(False, settled_as(DONE), id="succeeded"),
    pytest.param(False, settled_as(DEAD), id="dead"),
    pytest.param(False, settled_as(Cancelled(BOOM)), id="cancelled"),
    pytest.param(True, settled_as(Retried(BOOM, None)), id="cancelled instead of retried"),
    pytest.param(True, settled_as(Released()), id="cancelled instead of released"),
    pytest.param(True, settled_as(Snoozed(2**52)), id="cancelled instead of snoozed"),
    pytest.param(True, leave, id="cancelled, and its worker gone"),
    pytest.param(True, forget, id="cancelled, and lost on the way to its worker"),
    pytest.param(True, die, id="cancelled, and its worker dead"),
]


class FinishedAmong:
    async def test_it_names_the_finished_and_the_gone(self, backend: Backend, storage: Storage) -> None:
        done, dead, cancelled, running, back, gone = await backend.claimed(storage, 6)
        outcomes: list[Outcome] = [DONE, DEAD, Cancelled(BOOM), Released(), DONE]
        await settle(storage, list(zip((done, dead, cancelled, back, gone), outcomes, strict=True)))
        await storage.delete(gone.id, who="ann")
        [scheduled] = await backend.added(storage, delay=60)
        ids = [lease.id for lease in (done, dead, cancelled, running, back, gone)]
        found = await storage.finished_among([*ids, scheduled.id, "nothing-here", "'; --", ""])
        assert found == {done.id, dead.id, cancelled.id, gone.id, "nothing-here", "'; --", ""}

    async def test_among_none_there_is_none(self, storage: Storage) -> None:
        assert await storage.finished_among([]) == set()

    async def test_among_thousands(self, backend: Backend, storage: Storage) -> None:
        waiting = await backend.added(storage, 2_000, task="tasks:other")
        finished = await backend.finished(storage, Succeeded("1"), count=2_000)
        found = await storage.finished_among([job.id for job in [*waiting, *finished]])
        assert found == {job.id for job in finished}


class Watching:
    @pytest.mark.parametrize(("is_asked_to_end", "finish"), FINISHES)
    async def test_whoever_waits_hears_of_every_way_to_finish(
        self, backend: Backend, storage: Storage, is_asked_to_end: bool, finish: Finish
    ) -> None:
        waiting = await backend.open()
        await waiting.register(None)
        [lease] = await backend.claimed(storage)
        with watching(waiting) as watcher:
            if is_asked_to_end:
                await storage.cancel(lease.id, who="ann")
            await is_quiet(watcher)
            watcher.looks = 0

            async def has_heard() -> bool:
                """Look only when told to, as those who wait do."""
                looks, watcher.looks = watcher.looks, 0
                return looks > 0 and lease.id in await waiting.finished_among([lease.id])

            assert await waiting.finished_among([lease.id]) == set()
            await finish(backend, storage, lease)
            await eventually(has_heard, within=2)

    async def test_whoever_watches_hears_of_jobs_that_never_ran(self, backend: Backend, storage: Storage) -> None:
        with watching(storage) as watcher:
            [waiting] = await backend.added(storage, task="tasks:other")
            await is_quiet(watcher)
            before = watcher.looks
            await storage.cancel(waiting.id, who="ann")
            await eventually(lambda: watcher.looks > before, within=1)
            await storage.insert([limited_job(backend, expires=1)])
            await is_quiet(watcher)
            before = watcher.looks
            backend.clock.advance(1)
            assert len(await storage.give_up_overdue(before_start, 10)) == 1
            await eventually(lambda: watcher.looks > before, within=1)

    async def test_what_finishes_nothing_wakes_nobody(self, backend: Backend, storage: Storage) -> None:
        with watching(storage) as watcher:
            await is_quiet(watcher)
            before = watcher.looks
            await backend.claimed(storage, 3)
            assert await storage.give_up_overdue(before_start, 10) == []
            await asyncio.sleep(0)
            assert watcher.looks == before

    async def test_all_who_watch_are_told_until_they_leave(self, backend: Backend, storage: Storage) -> None:
        first, second = await backend.claimed(storage, 2)
        with watching(storage) as one:
            with watching(storage) as other:
                await settle(storage, [(first, DONE)])
                await eventually(lambda: one.looks > 0 and other.looks > 0, within=1)
            await is_quiet(one)
            left_with, before = other.looks, one.looks
            await settle(storage, [(second, DONE)])
            await eventually(lambda: one.looks > before, within=1)
            assert other.looks == left_with
        left_with = one.looks
        await backend.finished(storage, DONE)
        assert one.looks == left_with

    async def test_what_another_process_finishes_is_heard_of_promptly(self, backend: Backend, storage: Storage) -> None:
        waits = []
        with PythonProcess("-m", "tests.storage.colleague", backend.url) as colleague:
            await asyncio.to_thread(colleague.read)
            for _ in range(5):
                [job] = await backend.added(storage)
                colleague.write('["claim"]')
                await asyncio.to_thread(colleague.read)
                with watching(storage) as watcher:
                    await is_quiet(watcher)
                    colleague.write('["finish"]')
                    _, began = await asyncio.to_thread(colleague.read)
                    await eventually(lambda began=began, watcher=watcher: watcher.looked_at > began, within=2)  # type: ignore[misc]
                    assert await storage.finished_among([job.id]) == {job.id}
                    waits.append(watcher.looked_at - began)
        assert max(waits) <= 1
        assert sorted(waits)[2] < 0.25, f"it is told, and need not find out by looking: {waits}"

    async def test_watching_before_the_process_is_known_works_too(self, backend: Backend, storage: Storage) -> None:
        late = await backend.open()
        with watching(late) as watcher:
            await late.register(None)
            await is_quiet(watcher)
            before = watcher.looks
            await backend.finished(storage, DONE)
            await eventually(lambda: watcher.looks > before, within=1)

    async def test_a_process_that_is_not_known_hears_of_it_a_little_later(
        self, backend: Backend, storage: Storage
    ) -> None:
        unknown = await backend.open()
        with watching(unknown) as watcher:
            [lease] = await backend.claimed(storage)
            await settle(storage, [(lease, DONE)])
            assert (await storage.counts())[JobState.SUCCEEDED] == 1
            await eventually(lambda: watcher.looks > 0, within=1)
            assert await claim(storage) == []
