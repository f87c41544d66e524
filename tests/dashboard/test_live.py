"""Live updates: a page is told of what changed and of nothing else, and looking costs the same for one as for many."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fastapi import Depends, FastAPI

from durableq import DurableQ
from durableq.dashboard import dashboard, live
from durableq.dashboard.live import OPEN_FOR_ONE, Share, told
from durableq.dashboard.watch import LookFailed, Watch, fingerprint
from durableq.fastapi.streaming import TICK_SECONDS, Event, Seats
from tests.dashboard.conftest import Application, Page
from tests.dashboard.plain_browser import account
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


class Blind:
    """Cannot look, until it is mended."""

    def __init__(self) -> None:
        self.number = 0
        self.is_mended = False

    async def look(self) -> str:
        self.number += 1
        if not self.is_mended:
            raise OSError("no such file")
        return "seen"


async def test_a_look_that_fails_is_told_once_ends_the_streams_and_is_tried_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    blind = Blind()
    watch = Watch(blind.look, seconds=0.0)
    for _ in range(3):
        with pytest.raises(LookFailed):
            await watch.now()
        assert await events_of(watch, "", 60.0) == []
    assert blind.number == 6
    assert [record.getMessage() for record in caplog.records] == [
        "live updates stand still, looking failed: OSError: no such file"
    ]
    assert not any(record.exc_info for record in caplog.records)
    blind.is_mended = True
    assert await watch.now() == "seen"


async def test_those_who_wait_for_a_look_that_fails_do_not_each_look_again() -> None:
    blind = Blind()
    watch = Watch(blind.look, seconds=60.0)
    assert [type(one) for one in await asyncio.gather(*(watch.now() for _ in range(9)), return_exceptions=True)] == [
        LookFailed
    ] * 9
    assert blind.number == 1


def test_a_page_learns_that_there_are_no_live_updates_while_looking_fails(
    site: Application, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*args: object, **kwargs: object) -> None:
        raise RuntimeError("a defect")

    monkeypatch.setattr(site.dq, "workers", broken)
    answer = site.get("/live")
    assert answer.status_code == 503
    assert answer.headers["retry-after"]
    assert "no live updates now" in answer.text


def test_one_person_cannot_take_all_seats() -> None:
    of_all = Seats(OPEN_FOR_ONE + 1)
    greedy, other = Share(of_all), Share(of_all)
    assert [greedy.take() for _ in range(OPEN_FOR_ONE + 1)] == [True] * OPEN_FOR_ONE + [False]
    assert [other.take(), other.take()] == [True, False]
    greedy.leave()
    assert other.take()
    assert not greedy.take(), "all are taken"


async def test_the_streams_of_one_name_share_its_seats(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live, "OPEN_FOR_ONE", 1)
    dq = DurableQ(database, worker=False)
    app = FastAPI(lifespan=dq.lifespan)
    app.include_router(dashboard(dq, auth=Depends(account)), prefix="/durableq")
    async with serving(app) as port, streaming(port, "/durableq/live", x_user="rita") as first:
        await first.until("changed")
        async with streaming(port, "/durableq/live", x_user="rita") as second:
            assert second.status == 503
        async with streaming(port, "/durableq/live", x_user="otto") as other:
            assert other.status == 200
