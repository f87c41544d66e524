"""How a page is made of its template: in slices, whole, or not at all."""

import asyncio
import threading
from collections.abc import Iterator
from typing import Any, NoReturn

import jinja2
import pytest
from starlette.types import Message

from durableq import current_job
from durableq.dashboard import pages
from durableq.dashboard.pages import RenderedPage
from durableq.dashboard.refusals import Refused
from durableq.engine.notes import LOG_LINES
from tests.dashboard.conftest import Application

ERROR = Refused(404, "There is no such page", "Słowo 東京")


async def sent(page: RenderedPage) -> list[Message]:
    """Have a page sent; return what the server gets."""
    messages: list[Message] = []

    async def receive() -> NoReturn:
        raise AssertionError("expected a page not to wait for its reader")

    async def send(message: Message) -> None:
        messages.append(message)

    await page({"type": "http"}, receive, send)
    return messages


async def test_the_application_goes_on_while_a_page_is_rendered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "SLICE_SECONDS", 0.0)
    monkeypatch.setattr(pages, "REST_SECONDS", 0.0)
    sending = asyncio.ensure_future(sent(RenderedPage("bare.html", {"base": "", "error": ERROR}, 404)))
    turns = 0
    while not sending.done():
        turns += 1
        await asyncio.sleep(0)
    assert turns > 5


async def test_templates_are_compiled_beside_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled_on: list[int] = []
    compile_one = jinja2.Environment.compile

    def noted(environment: jinja2.Environment, *args: Any, **options: Any) -> Any:
        compiled_on.append(threading.get_ident())
        return compile_one(environment, *args, **options)

    monkeypatch.setattr(jinja2.Environment, "compile", noted)
    pages._compile_all.cache_clear()
    pages._environment.cache_clear()
    for _ in range(2):
        await sent(RenderedPage("bare.html", {"base": "", "error": ERROR}, 404))
    assert len(compiled_on) == len(pages._environment().list_templates()) > 10
    assert threading.get_ident() not in compiled_on


def test_a_long_log_is_rendered_in_small_pieces(working: Application, monkeypatch: pytest.MonkeyPatch) -> None:
    @working.dq.task(name="talk", max_attempts=1)
    def talk(fails: bool) -> None:
        for number in range(LOG_LINES):
            current_job().log(f"line {number}")
        assert not fails

    lengths: list[int] = []

    async def noted(pieces: Iterator[str]) -> str:
        found = list(pieces)
        lengths.extend(map(len, found))
        return "".join(found)

    monkeypatch.setattr(pages, "_in_slices", noted)
    for fails in (False, True):
        job = working.add(talk, fails)
        working.call(working.dq.wait, job)
        lengths.clear()
        page = working.page(f"/jobs/{job.id}")
        assert "line 998" in page.text
        assert max(lengths) < 10_000 < sum(lengths)


async def test_pages_at_a_time_take_no_more_than_one(monkeypatch: pytest.MonkeyPatch) -> None:
    rests: list[float] = []
    sleep = asyncio.sleep

    async def noted(seconds: float) -> None:
        rests.append(seconds)
        await sleep(0)

    monkeypatch.setattr(pages, "SLICE_SECONDS", 0.0)
    monkeypatch.setattr("durableq.dashboard.pages.asyncio.sleep", noted)
    await asyncio.gather(*(pages._in_slices(iter("abc")) for _ in range(3)))
    await pages._in_slices(iter("abc"))
    assert rests[:3] == [pages.REST_SECONDS, 2 * pages.REST_SECONDS, 3 * pages.REST_SECONDS]
    assert rests[-3:] == [pages.REST_SECONDS] * 3
    assert pages._under_way == []


async def test_a_page_is_sent_whole_and_with_its_length_in_bytes() -> None:
    start, body = await sent(RenderedPage("bare.html", {"base": "", "error": ERROR}, 404, {"X-Own": "1"}))
    headers = dict(start["headers"])
    assert start["status"] == 404
    assert headers[b"content-length"] == str(len(body["body"])).encode()
    assert headers[b"x-own"] == b"1"
    assert "Słowo 東京" in body["body"].decode()
    assert body["body"].decode().rstrip().endswith("</html>")


def test_a_page_that_fails_half_way_is_a_defect_and_nothing_of_it_is_sent(
    site: Application, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(value: Any) -> NoReturn:
        raise RuntimeError("the secret is 42")

    job = site.add(site.send, "good@x")
    monkeypatch.setitem(pages._environment().filters, "utc", broken)
    answer = site.get_broken(f"/jobs/{job.id}")
    assert answer.status_code == 500
    assert "good@x" not in answer.text
    assert "secret" not in answer.text
    assert "the secret is 42" in caplog.text
