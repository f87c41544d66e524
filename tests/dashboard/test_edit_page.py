"""Edit and retry: mistakes are told where they are, a change is shown before it is stored, secrets stay hidden."""

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from durableq import DurableQ
from durableq.dashboard import edit
from durableq.dashboard.editing import read_arguments
from durableq.encryption import KeyRing, new_key
from durableq.fastapi.showing import as_stored
from tests.dashboard.plain_browser import Browser, Office, Page, application, office
from tests.support import eventually_sync


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Office]:
    with office(tmp_path) as running:
        yield running


def review(site: Browser, job_id: str, text: str) -> Page:
    editor = site.open(f"jobs/{job_id}/edit")
    return site.press(editor.form(f"jobs/{job_id}/edit"), "review", args=text)


def test_edited_arguments_are_stored_after_the_change_was_shown(site: Office) -> None:
    job_id = site.dead_letter()
    editor = site.open(f"jobs/{job_id}/edit")
    [(_, text)] = [pair for pair in editor.form(f"jobs/{job_id}/edit").fields if pair[0] == "args"]
    assert json.loads(text)["email"] == "bad@example.org"
    page = review(site, job_id, text.replace("bad@", "good@"))
    assert site.job(job_id).state == "dead"
    marked = [given["class"] for tag, given in page.elements if given.get("class") in ("diff-removed", "diff-added")]
    assert marked == ["diff-removed", "diff-added"]
    done = site.press(page.form(f"jobs/{job_id}/edit"), "confirm")
    assert "queued again, with the arguments you gave it" in done.text
    eventually_sync(lambda: site.job(job_id).state == "succeeded")
    assert site.job(job_id).args["email"] == "good@example.org"
    assert site.audited(job_id) == [("anna", "edit and retry")]


def test_from_the_review_one_can_go_back_and_nothing_typed_is_lost(site: Office) -> None:
    job_id = site.dead_letter()
    typed = '{"email": "good@example.org",\n   "copies": 3}'
    back = site.press(review(site, job_id, typed).form(f"jobs/{job_id}/edit"), "edit")
    assert ("args", typed) in back.form(f"jobs/{job_id}/edit").fields
    assert site.job(job_id).state == "dead"


@pytest.mark.parametrize(
    ("text", "said", "line"),
    [
        ('{\n  "email": "good@x",\n  "copies": "many"\n}', "copies", "3"),
        ('{\n  "email": "good@x",\n  "surprise": 1\n}', "surprise", "3"),
        ('{\n  "email": "good@x"\n  "copies": 1\n}', "this is not JSON", "3"),
        ('{\n  "email": "good@x",\n  "email": "bad@x"\n}', "stands twice", "2"),
        ('{\n  "email": "good@x', "the text ends before it is complete", "2"),
        ("[1]", "expected one object", "1"),
        ('{"copies": NaN}', "NaN is not JSON", None),
        ('{\n  "copies": 1\n}', "email", None),
        ("", "the text ends before it is complete", "1"),
    ],
)
def test_a_mistake_is_told_next_to_its_line_and_nothing_is_stored(
    site: Office, text: str, said: str, line: str | None
) -> None:
    job_id = site.dead_letter()
    page = review(site, job_id, text)
    assert page.status == 422
    assert said in page.text
    assert (f"Line {line}:" in page.text) if line else ("Line " not in page.text)
    [area] = [given for tag, given in page.elements if tag == "textarea"]
    assert "args-problem" in area["aria-describedby"]
    assert ("args", text) in page.form(f"jobs/{job_id}/edit").fields
    assert site.job(job_id).state == "dead"


def test_a_hidden_value_that_comes_back_as_shown_stays_what_it_is(site: Office) -> None:
    job_id = site.add(site.login, "ann", "correct-horse", state="dead")
    editor = site.open(f"jobs/{job_id}/edit")
    assert "correct-horse" not in editor.html
    [(_, text)] = [pair for pair in editor.form(f"jobs/{job_id}/edit").fields if pair[0] == "args"]
    page = site.press(editor.form(f"jobs/{job_id}/edit"), "review", args=text.replace("ann", "bob"))
    assert "correct-horse" not in page.html
    site.press(page.form(f"jobs/{job_id}/edit"), "confirm")
    assert site.job(job_id).args == {"user": "bob", "answer": "correct-horse"}


def test_a_new_secret_is_told_by_name_only(site: Office) -> None:
    job_id = site.add(site.login, "ann", "correct-horse", state="dead")
    page = review(site, job_id, '{"user": "ann", "answer": "battery-staple"}')
    assert "What is secret changes too, and is shown neither old nor new: answer." in page.text
    assert page.html.count("battery-staple") == 1, "beside the field that carries it, it is nowhere"
    site.press(page.form(f"jobs/{job_id}/edit"), "confirm")
    assert site.job(job_id).args["answer"] == "battery-staple"


def test_a_placeholder_never_becomes_a_value(site: Office) -> None:
    job_id = site.add(site.login, "ann", "correct-horse", state="dead")
    page = review(site, job_id, '{"user": "**********", "answer": "x"}')
    assert page.status == 422
    assert "stands for something hidden" in page.text


def test_somebody_elses_change_in_between_is_noticed(site: Office) -> None:
    job_id = site.dead_letter()
    page = review(site, job_id, '{"email": "good@example.org"}')
    site.call(site.dq.retry, job_id)
    eventually_sync(lambda: site.job(job_id).state == "dead" and len(site.audited(job_id)) == 1)
    refused = site.press(page.form(f"jobs/{job_id}/edit"), "confirm")
    assert refused.status == 422
    assert "has run again since this page was made" in refused.text
    anew = site.open(refused.link("Edit what is stored now"))
    assert (anew.status, anew.has_form(f"jobs/{job_id}/edit")) == (200, True)
    assert site.job(job_id).args["email"] == "bad@example.org"


def test_hostile_arguments_stay_text_in_the_editor_and_in_the_review(site: Office) -> None:
    job_id = site.dead_letter()
    hostile: dict[str, Any] = {"email": "</textarea><script>alert(1)</script>", "copies": 2}
    for text in (
        json.dumps(hostile),
        json.dumps(hostile | {"<img src=x onerror=alert(1)>": 1}),
        "</textarea><img src=x>",
    ):
        page = review(site, job_id, text)
        assert not any(tag == "img" for tag, _ in page.elements)
        assert all(given.get("src") for tag, given in page.elements if tag == "script")
        assert ("args", text) in page.form(f"jobs/{job_id}/edit").fields


def test_a_task_that_is_only_known_by_its_stored_description_can_be_edited(site: Office, tmp_path: Path) -> None:
    job_id = site.dead_letter()
    with application(DurableQ(tmp_path / "app.db", worker=False)) as elsewhere:
        page = review(elsewhere, job_id, '{"email": "good@example.org", "copies": "many"}')
        assert "Line 1:" in page.text and "copies" in page.text
        page = review(elsewhere, job_id, '{"email": "good@example.org", "copies": 2}')
        elsewhere.press(page.form(f"jobs/{job_id}/edit"), "confirm")
        assert elsewhere.job(job_id).args == {"email": "good@example.org", "copies": 2}


def test_a_change_of_many_lines_is_shown_in_part_and_the_page_says_so(
    site: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(edit, "LINES", 3)
    page = review(site, site.dead_letter(), '{"email": "good@x", "options": {"a": 1, "b": 2}}')
    assert len([given for tag, given in page.elements if given.get("class", "").startswith("diff-text")]) == 3
    assert "more lines are not shown" in page.text


@pytest.mark.parametrize("depth", [150, 400, 900])
def test_what_is_nested_too_deep_is_a_mistake_and_no_defect(site: Office, depth: int) -> None:
    job_id = site.dead_letter()
    page = review(site, job_id, '{"email": "good@x",\n"options": {"a": ' + "[" * depth + "]" * depth + "}}")
    assert page.status == 422
    assert "Line 2:" in page.text and "at most 100 levels deep" in page.text


def test_large_arguments_are_not_read_where_all_requests_are_served(
    site: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = []

    def noticed(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            threads.append(threading.get_ident())
            return function(*args)

        return call

    monkeypatch.setattr(edit, "read_arguments", noticed(read_arguments))
    monkeypatch.setattr(edit, "as_stored", noticed(as_stored))
    assert review(site, site.dead_letter(), '{"email": "good@x"}').status == 200

    async def serving_thread() -> int:
        return threading.get_ident()

    assert len(threads) == 2
    assert site.call(serving_thread) not in threads


def encrypted_letter(path: Path) -> str:
    """Store a cancelled job under a key, and return its id."""

    async def add() -> str:
        dq = DurableQ(path, worker=False, encryption=KeyRing({"2026-11": new_key()}))
        async with dq.running():
            job = await dq.add_task(note, "in-clear-nowhere")
            await dq.cancel(job.id)
            return job.id

    return asyncio.run(add())


def note(label: str) -> None: ...


def test_arguments_whose_key_is_not_here_are_neither_shown_nor_edited(tmp_path: Path) -> None:
    job_id = encrypted_letter(tmp_path / "app.db")
    with application(DurableQ(tmp_path / "app.db", worker=False)) as keyless:
        page = keyless.open(f"jobs/{job_id}")
        assert "encrypted with the key “2026-11”, and this process could not open them" in page.text
        assert "nonce" not in page.text
        assert not page.has_link("Edit and retry…")
        editor = keyless.open(f"jobs/{job_id}/edit")
        assert editor.status == 409
        assert "encrypted with the key “2026-11”" in editor.text
        token = keyless.with_token([("args", '{"label": "x"}'), ("seen", ""), ("step", "confirm")])
        assert keyless.send(f"/durableq/jobs/{job_id}/edit", token).status == 409
        assert keyless.job(job_id).state == "cancelled"
