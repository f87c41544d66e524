"""One writer for a file: from its first user to its last, and how it gives way to others."""

import concurrent.futures
import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from durableq.errors import (
    StorageUnusable,
)
from durableq.storage.sqlite import writer as writing
from durableq.storage.sqlite.connection import (
    Location,
)
from durableq.storage.sqlite.operation import Transact
from durableq.storage.sqlite.replies import LoopCalls
from durableq.storage.sqlite.sharing import acquire_writer, giving_way, release_writer, turns_of
from durableq.storage.sqlite.writer import Writer
from durableq.testing import ManualClock
from tests.storage.support import Backend
from tests.support import eventually_sync


@pytest.fixture
def location(tmp_path: Path) -> Location:
    return Location(tmp_path / "jobs.db")


class Answer(concurrent.futures.Future[Any]):
    """Where the answer to an operation goes."""

    def answer(self, result: Any, calls: LoopCalls) -> None:
        self.set_result(result)


def rarer(run: Callable[[sqlite3.Connection], Any] = lambda connection: None) -> tuple[Transact, Answer]:
    answer = Answer()
    return Transact(reply=answer, run=run), answer


@pytest.fixture
def writer(location: Location) -> Iterator[Writer]:
    writer = acquire_writer(location, ManualClock())
    writer.opened.result(5)
    yield writer
    release_writer(writer)
    writer.closed.result(5)


def test_a_writer_lives_until_its_last_user_gives_it_back(location: Location) -> None:
    users = [acquire_writer(location, ManualClock()) for _ in range(3)]
    writer = users[0]
    assert all(one is writer for one in users)
    for _ in range(2):
        release_writer(writer)
        assert not writer.is_closing
    release_writer(writer)
    assert writer.is_closing
    writer.closed.result(5)
    later = acquire_writer(location, ManualClock())
    assert later is not writer
    release_writer(writer)
    assert not later.is_closing, "what was given back is given back once"
    release_writer(later)
    later.closed.result(5)


def test_a_writer_that_could_not_open_its_file_is_replaced(location: Location) -> None:
    location.path.write_bytes(b"dear diary\n" * 100)
    broken = [acquire_writer(location, ManualClock())]
    with pytest.raises(StorageUnusable):
        broken[0].opened.result(5)
    location.path.unlink()
    working = acquire_writer(location, ManualClock())
    working.opened.result(5)
    assert acquire_writer(location, ManualClock()) is working
    release_writer(broken[0])
    release_writer(working)
    assert not working.is_closing
    release_writer(working)
    working.closed.result(5)


def test_the_thread_that_writes_has_its_name_and_holds_up_no_process(location: Location) -> None:
    eventually_sync(lambda: not writing_threads())
    writer = acquire_writer(location, ManualClock())
    writer.opened.result(5)
    assert [thread.daemon for thread in writing_threads()] == [True]
    assert writer.locks.path == location.directory / "locks"
    assert turns_of(location.path)() == 0
    release_writer(writer)
    writer.closed.result(5)


def writing_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "durableq-writer"]


async def test_a_file_that_is_damaged_is_found_out_when_it_is_opened(backend: Backend, location: Location) -> None:
    storage = await backend.open()
    await backend.added(storage, 30, args_json=json.dumps("x" * 20_000))
    await storage.close()
    damage(location.path)
    with pytest.raises(StorageUnusable, match="is damaged"):
        await backend.open()


def damage(path: Path) -> None:
    """Overwrite a third of the file, in the middle: arguments only, that opening does not read by itself."""
    content = bytearray(path.read_bytes())
    third = len(content) // 3
    content[third : 2 * third] = bytes(255 - byte for byte in content[third : 2 * third])
    path.write_bytes(content)


def test_how_often_the_writer_had_the_lock_is_told_however_the_file_is_named(
    location: Location, writer: Writer
) -> None:
    link = location.path.with_name("link.db")
    link.symlink_to(location.path)
    turns = [turns_of(location.path), turns_of(link)]
    before = turns[0]()
    for number in range(1, 3):
        operation, answer = rarer()
        writer.submit(operation)
        answer.result(5)
        assert [one() for one in turns] == [before + number] * 2


def test_a_file_without_a_writer_has_had_no_turns_and_nobody_to_hold_back(location: Location) -> None:
    assert turns_of(location.path)() == 0
    with giving_way(location.path):
        pass


def test_the_writer_begins_nothing_while_somebody_of_its_process_wants_the_lock(
    location: Location, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "GIVE_WAY_SECONDS", 5.0)
    with giving_way(location.path):
        operation, first = rarer()
        writer.submit(operation)
        first.result(5)
        operation, second = rarer()
        writer.submit(operation)
        with pytest.raises(TimeoutError):
            second.result(0.05)
    began = time.monotonic()
    second.result(5)
    assert time.monotonic() - began < 1, "it goes on at once"


def test_the_writer_gives_way_for_a_moment_only(location: Location, writer: Writer) -> None:
    with giving_way(location.path):
        for _ in range(3):
            operation, answer = rarer()
            writer.submit(operation)
            answer.result(5)
