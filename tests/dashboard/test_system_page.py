"""The system: health, the database, the settings without secrets, and the audit trail of everything."""

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fastapi import Depends, FastAPI
from pydantic import Field
from starlette.testclient import TestClient

from durableq import DurableQ
from durableq.dashboard import dashboard
from durableq.dashboard.system import ENTRIES, deed_of, settings_of, versions
from durableq.models import AuditEntry
from durableq.settings import QueueOptions
from tests.dashboard.conftest import Application, Page
from tests.dashboard.plain_browser import account

NOON = datetime(2026, 5, 4, 12, tzinfo=UTC)


def entry(action: str, job_id: str = "", **detail: Any) -> AuditEntry:
    return AuditEntry(at=NOON, who="anna", action=action, job_id=job_id, detail=detail)


def test_the_page_tells_how_the_database_is(working: Application) -> None:
    text = working.page("/system").text
    assert "Health ok" in text
    assert re.search(r"File [\d.]+ KiB", text)
    assert "Durability full (on disk before the answer)" in text
    assert "SQLite 3." in text
    assert re.search(r"Worker here running \(number \d+\)", text)


def test_reasons_are_given_for_what_is_wrong(working: Application) -> None:
    async def broken() -> Any:
        return condition

    condition = working.call(working.dq.health)
    object.__setattr__(condition, "status", "degraded")
    object.__setattr__(condition, "reasons", ("the heartbeat is late",))
    working.dq.health = broken  # type: ignore[method-assign]
    for path in ("/", "/system"):
        assert "The heartbeat is late." in working.page(path).text


def test_every_setting_is_shown_and_marked_when_it_was_set(site: Application) -> None:
    shown = {setting.name: setting for setting in settings_of(site.dq.settings)}
    assert shown.keys() == QueueOptions.model_fields.keys()
    assert (shown["lease"].value, shown["lease"].is_usual) == ("30 s", True)
    assert (shown["worker"].value, shown["worker"].is_usual) == ("no", False)
    assert (shown["queues"].value, shown["retain_dead"].value) == ("all", "for ever")
    assert shown["max_payload_bytes"].value == "1.0 MiB"
    assert "no set here" in site.page("/system").text


def test_a_list_of_settings_is_shown_as_one(database: Any) -> None:
    options = DurableQ(database, queues=["mail", "bulk"]).settings
    assert next(one.value for one in settings_of(options) if one.name == "queues") == "mail, bulk"


def test_a_setting_whose_name_is_secret_is_hidden() -> None:
    class WithPassword(QueueOptions):
        password: str = Field("swordfish")

    shown = next(one for one in settings_of(WithPassword(password="hunter2")) if one.name == "password")
    assert "hunter2" not in shown.value


def test_versions_name_what_it_runs_on() -> None:
    found = versions()
    assert {"durableq", "Python", "fastapi", "starlette", "pydantic"} <= found.keys()


# -- the audit trail -------------------------------------------------------------------------------------------


def test_before_anything_was_done_the_trail_says_what_it_is_for(site: Application) -> None:
    assert "Nobody did anything yet" in site.page("/system").text


def test_what_people_did_is_listed_the_latest_first_with_links(site: Application) -> None:
    job = site.add(site.send, "good@example.org")
    site.call(site.dq.cancel, job.id, who="otto")
    site.call(site.dq.pause, "mail", who="anna")
    page = site.page("/system")
    assert re.search(r"anna paused queue mail .* otto cancelled", page.text)
    assert f"/durableq/jobs/{job.id}" in page.links


def test_the_trail_is_paged_without_losing_an_entry(site: Application) -> None:
    for number in range(ENTRIES + 5):
        site.call(site.dq.pause, f"q{number:03}", who="anna")
        site.call(site.dq.resume, f"q{number:03}", who="anna")
    seen: list[str] = []
    path: str | None = "/system"
    while path is not None:
        page = site.page(path)
        seen += re.findall(r"anna (?:paused|resumed) queue (q\d+)", page.text)
        earlier = next((link for link in page.links if "cursor=" in link), None)
        path = None if earlier is None else earlier.removeprefix("/durableq").partition("#")[0]
    assert seen == [f"q{number:03}" for number in reversed(range(ENTRIES + 5)) for _ in range(2)]


def test_an_earlier_page_of_the_trail_stays_as_it_is(site: Application) -> None:
    assert "data-live" in site.page("/system").elements["audit"]
    assert "data-live" not in site.page("/system?cursor=1").elements["audit"]


def test_the_trail_shows_no_arguments_and_no_secrets() -> None:
    deed = deed_of(entry("edit and retry", "1", args_before={"to": "x"}, args_after={"to": "y"}, token="t0ps3cret"))
    assert deed.action == "edited and retried"
    assert "t0ps3cret" not in deed.what
    assert "'x'" not in deed.what
    assert "args" not in deed.what


def test_a_long_detail_is_cut_and_an_unknown_action_named_as_it_is() -> None:
    deed = deed_of(entry("moved", "1", note="x" * 1_000))
    assert deed.action == "moved"
    assert len(deed.what) < 400
    assert deed.what.endswith("…")


def test_who_cannot_turn_the_text_of_the_page() -> None:
    odd = AuditEntry(at=NOON, who="an\u202ena\x1b[31m", action="pause", job_id="", detail={"queue": "q\u202e"})
    assert (deed_of(odd).who, deed_of(odd).queue) == ("anna", "q")


def test_while_the_queue_does_not_run_the_page_says_so_and_shows_the_rest(database: Path) -> None:
    app = FastAPI()
    app.include_router(dashboard(DurableQ(database), auth=Depends(account)), prefix="/durableq")
    answer = TestClient(app).get("/durableq/system", headers={"X-User": "anna"})
    assert answer.status_code == 200
    text = Page(answer.text).text
    assert "The queue does not run here" in text
    assert "Settings of this process" in text
    assert "Nobody did anything yet" not in text
