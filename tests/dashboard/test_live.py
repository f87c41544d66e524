"""Live updates: a page is told of what changed and of nothing else, and looking costs the same for one as for many."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fastapi import Depends, FastAPI

from durableq import DurableQ
from durableq.dashboard import dashboard
from durableq.dashboard.live import told
from durableq.dashboard.watch import Watch, fingerprint
from durableq.fastapi.streaming import TICK_SECONDS, Event
from tests.dashboard.conftest import Page, account
from tests.fastapi.helpers import serving
from tests.fastapi.streams import streaming


@pytest.fixture
async def dq(database: Path) -> AsyncIterator[DurableQ]:
    queue = DurableQ(database, worker=False)
    async with queue.running():
        yield queue


def note(label: str) -> None: ...


class Looks:
    """Counts how often somebody looks, and what there is to see."""

    def __init__(self) -> None:
        self.number = 0
        self.sees = "first"

    async def look(self) -> str:
        self.number += 1
        await asyncio.sleep(0)
        return self.sees


async def events_of(watch: Watch, known: str, seconds: float) -> list[Event]:
    return [event async for event in told(watch, known, seconds) if event is not None]


async def test_a_page_that_knows_what_there_is_is_told_nothing() -> None:
    assert await events_of(Watch(Looks().look), "first", 0.1) == []


async def test_a_page_that_knows_something_else_is_told_once() -> None:
    looks = Looks()
    events = await events_of(Watch(looks.look, seconds=0.0), "before", TICK_SECONDS * 1.5)
    assert events == [Event("changed", "first", "first")]
    assert looks.number > 1


async def test_a_page_is_told_when_something_changes() -> None:
    looks = Looks()
    stream = told(Watch(looks.look, seconds=0.0), "first")
    assert await anext(stream) is None
    looks.sees = "second"
    async with asyncio.timeout(10):
        assert await anext(event async for event in stream if event is not None) == Event("changed", "second", "second")
    await stream.aclose()


async def test_many_pages_share_one_look() -> None:
    looks = Looks()
    watch = Watch(looks.look, seconds=60.0)
    assert watch.latest == ""
    assert await asyncio.gather(*(watch.now() for _ in range(50))) == ["first"] * 50
    assert looks.number == 1
    assert watch.latest == "first"


async def test_nobody_looks_while_no_page_is_open() -> None:
    looks = Looks()
    assert asyncio.all_tasks() == {asyncio.current_task()}
    await events_of(Watch(looks.look), "", 0.1)
    assert looks.number == 1
    assert asyncio.all_tasks() == {asyncio.current_task()}


async def test_a_page_that_leaves_while_it_looks_does_not_keep_the_others_waiting() -> None:
    looking = asyncio.Event()

    async def slow() -> str:
        looking.set()
        await asyncio.sleep(60 if not first.cancelling() else 0)
        return "seen"

    watch = Watch(slow)
    first = asyncio.ensure_future(watch.now())
    await looking.wait()
    second = asyncio.ensure_future(watch.now())
    first.cancel()
    async with asyncio.timeout(10):
        assert await second == "seen"


def test_a_watch_works_on_one_event_loop_after_another() -> None:
    watch = Watch(Looks().look)
    assert asyncio.run(watch.now()) == asyncio.run(watch.now()) == "first"


async def test_the_fingerprint_changes_with_what_pages_show_and_only_then(dq: DurableQ) -> None:
    seen = [await fingerprint(dq), await fingerprint(dq)]
    assert seen[0] == seen[1]
    job = await dq.add_task(note, "a")
    seen.append(await fingerprint(dq))
    await dq.cancel(job.id)
    seen.append(await fingerprint(dq))
    await dq.pause("default")
    seen.append(await fingerprint(dq))
    await dq.delete(job.id)
    seen.append(await fingerprint(dq))
    assert len(set(seen)) == 5
    assert await fingerprint(dq) == seen[-1]


async def test_a_queue_that_does_not_answer_has_a_fingerprint_too(database: Path) -> None:
    assert await fingerprint(DurableQ(database))


async def test_a_page_is_told_of_a_change_over_the_wire_and_the_next_page_knows_it(database: Path) -> None:
    dq = DurableQ(database, worker=False)
    app = FastAPI(lifespan=dq.lifespan)
    app.include_router(dashboard(dq, auth=Depends(account)), prefix="/durableq")
    async with serving(app) as port:
        assert await live_address(port) == "/durableq/live?known="
        async with streaming(port, "/durableq/live", x_user="rita") as stream:
            assert stream.headers["content-type"].startswith("text/event-stream")
            assert stream.headers["cache-control"] == "no-store"
            first = (await stream.until("changed"))[0]
            await dq.add_task(note, "a")
            second = (await stream.until("changed"))[0]
        assert (first.id, second.id) == (first.data, second.data)
        assert first.id != second.id
        assert await live_address(port) == f"/durableq/live?known={second.id}"


async def live_address(port: int) -> str | None:
    """The address under which a page made now hears of changes."""
    async with streaming(port, "/durableq/queues", x_user="rita") as answer:
        text = (await answer.reader.readexactly(int(answer.headers["content-length"]))).decode()
    return Page(text).body["data-live-url"]
