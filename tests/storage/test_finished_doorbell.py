"""The socket on which other processes say that a job is finished: it hangs only while somebody waits."""

import asyncio
import os
import stat
from pathlib import Path

import pytest

from durableq.models import LeaseKey
from durableq.storage.protocol import Storage
from durableq.storage.sqlite import lookout
from tests.storage.contract_watching import is_quiet, watching
from tests.storage.support import DONE, Backend, PythonProcess
from tests.support import eventually


@pytest.fixture
def directory(url: str) -> Path:
    return Path(url + ".durableq")


@pytest.fixture
def no_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let storages that are opened from now on not find out by themselves what others have committed."""
    monkeypatch.setattr(lookout, "LOOK_SECONDS", 60.0)


def bells(directory: Path) -> list[str]:
    return sorted(file.name for file in directory.iterdir() if file.suffix == ".done")


def nothing() -> None:
    pass


async def test_it_hangs_while_somebody_waits_and_is_gone_after(
    backend: Backend, storage: Storage, directory: Path
) -> None:
    assert bells(directory) == []
    unwatch = storage.watch(nothing)
    [bell] = bells(directory)
    assert stat.S_ISSOCK((directory / bell).stat().st_mode)
    assert stat.S_IMODE((directory / bell).stat().st_mode) == 0o600
    unwatch()
    assert bells(directory) == []
    unwatch = storage.watch(nothing)
    assert bells(directory) == [bell]
    unwatch()


async def test_it_hangs_until_the_last_one_has_left(backend: Backend, storage: Storage, directory: Path) -> None:
    leave = [storage.watch(lambda number=number: None) for number in range(3)]  # type: ignore[misc]
    for number, unwatch in enumerate(leave):
        assert len(bells(directory)) == 1, number
        unwatch()
    assert bells(directory) == []


async def test_it_is_hung_for_those_who_waited_before_the_process_was_known(backend: Backend, directory: Path) -> None:
    storage = await backend.open()
    unwatch = storage.watch(nothing)
    assert bells(directory) == []
    worker_id = await storage.register(None)
    assert bells(directory) == [f"{worker_id}.done"]
    unwatch()
    assert bells(directory) == []


async def test_leaving_takes_it_down_and_so_does_the_last_who_waited(
    backend: Backend, storage: Storage, directory: Path
) -> None:
    unwatch = storage.watch(nothing)
    await storage.deregister()
    assert bells(directory) == []
    unwatch()
    await storage.close()
    assert bells(directory) == []


async def test_a_storage_that_is_closed_calls_nobody_any_more(backend: Backend, storage: Storage) -> None:
    closed = await backend.open()
    looks: list[bool] = []
    unwatch = closed.watch(lambda: looks.append(True))
    await backend.finished(storage, DONE)
    await eventually(lambda: bool(looks))
    await closed.close()
    looks.clear()
    watched: list[bool] = []
    stop = storage.watch(lambda: watched.append(True))
    await backend.finished(storage, DONE)
    await eventually(lambda: bool(watched))
    assert looks == []
    unwatch()
    stop()


async def test_that_a_job_is_finished_is_heard_without_a_look_at_the_file(
    no_looks: None, backend: Backend, storage: Storage
) -> None:
    await backend.added(storage)
    with PythonProcess("-m", "tests.storage.colleague", backend.url) as colleague, watching(storage) as watcher:
        await asyncio.to_thread(colleague.read)
        colleague.write('["claim"]')
        await asyncio.to_thread(colleague.read)
        await is_quiet(watcher)
        before = watcher.looks
        colleague.write('["finish"]')
        await asyncio.to_thread(colleague.read)
        await eventually(lambda: watcher.looks > before, within=1)


async def test_that_a_job_is_to_end_is_heard_without_a_look_at_the_file(no_looks: None, backend: Backend) -> None:
    asked: set[LeaseKey] = set()
    storage = await backend.open()
    await storage.register(lambda new_names: None, asked.update)
    with PythonProcess("-m", "tests.storage.colleague", backend.url) as colleague, watching(storage) as watcher:
        await asyncio.to_thread(colleague.read)
        [lease] = await backend.claimed(storage)
        await is_quiet(watcher)
        colleague.write(f'["cancel", "{lease.id}"]')
        await asyncio.to_thread(colleague.read)
        await eventually(lambda: asked == {lease.key}, within=1)


async def test_a_bell_that_cannot_be_hung_only_makes_it_slower(
    backend: Backend, storage: Storage, directory: Path
) -> None:
    other = await backend.open()
    worker_id = await other.register(None)
    os.mkdir(directory / f"{worker_id}.done")  # in the way
    looks: list[bool] = []
    unwatch = other.watch(lambda: looks.append(True))
    await backend.finished(storage, DONE)
    await eventually(lambda: bool(looks), within=1)
    unwatch()
