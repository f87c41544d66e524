"""A key ring byte by byte: how keys may be written, what an envelope holds, what a rotation counts."""

import asyncio
import base64
import json
import zlib
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from durableq.encryption import (
    CannotOpen,
    KeyRing,
    Payloads,
    Rewrite,
    Rotation,
    chosen_ring,
    is_sealed,
    new_key,
    opened,
    result_of,
    rotate,
    with_ring,
    without_a_ring,
)
from durableq.errors import ConfigurationError, ResultUnavailable
from durableq.models import PLAIN, Job, JobExtras, JobState, UniqueClaim

FIRST, SECOND = bytes(range(32)), bytes(range(200, 232))
RING = KeyRing({"b": SECOND, "a": FIRST})
OLD = KeyRing({"a": FIRST})
MOMENT = datetime(2026, 1, 1, tzinfo=UTC)


def job(**fields: Any) -> Job[Any]:
    given: dict[str, Any] = {
        "id": "id", "task": "t", "queue": "q", "priority": 0, "state": JobState.QUEUED, "args_json": "{}",
        "max_attempts": 1, "created_at": MOMENT, "run_at": MOMENT,
    }  # fmt: skip
    return Job(**given | fields)


def sealed_part(name: str, stored: str) -> bytes:
    return base64.b64decode(json.loads(stored)["$encrypted"][name])


# -- keys ----------------------------------------------------------------------------------------------------


def test_a_key_may_be_bytes_or_base64_of_either_alphabet_with_space_around() -> None:
    text = base64.b64encode(SECOND).decode()
    assert set("+/") & set(text)
    for given in (SECOND, text, f" {text}\n", base64.urlsafe_b64encode(SECOND).decode()):
        assert KeyRing({"b": given}).seal("x", "id", "t", "args") == KeyRing({"b": SECOND}).seal("x", "id", "t", "args")


def test_a_key_with_a_character_too_many_is_no_key() -> None:
    text = base64.b64encode(SECOND).decode()
    for wrong in (f"{text[:10]}!{text[10:]}", f"{text[:10]} {text[10:]}", text[:-1]):
        with pytest.raises(ConfigurationError, match="it is no base64"):
            KeyRing({"b": wrong})


def test_a_new_key_is_32_bytes_and_another_each_time() -> None:
    keys = {new_key() for _ in range(5)}
    assert len(keys) == 5
    assert {len(base64.b64decode(key, validate=True)) for key in keys} == {32}


@pytest.mark.parametrize("name", ["", "x" * 65, "a b", "a:b", "ä", 'a"b'])
def test_a_name_that_would_not_fit_an_envelope_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="1 to 64 letters"):
        KeyRing({name: FIRST})
    assert repr(KeyRing({"x" * 64: FIRST, "a.b-c_1": SECOND})) == f"<KeyRing {'x' * 64}, a.b-c_1>"


def test_a_ring_is_read_from_text_with_space_around_all_its_parts() -> None:
    first, second = (base64.b64encode(key).decode() for key in (FIRST, SECOND))
    ring = KeyRing.from_text(f" b : {second} ,, a:{first}, ")
    assert (repr(ring), ring.encrypts, ring.refuse_plain) == ("<KeyRing b, a>", True, False)
    assert ring.seal("x", "id", "t", "args") == RING.seal("x", "id", "t", "args")
    reading = KeyRing.from_text(f"clear,b:{second}")
    assert (repr(reading), reading.encrypts, reading.seal("x", "id", "t", "args")) == ("<KeyRing b>", False, "x")
    assert KeyRing.from_text(f"b:{second}", refuse_plain=True).refuse_plain
    with pytest.raises(ConfigurationError, match="pair 2 is not"):
        KeyRing.from_text(f"clear,b:{second},oops")
    with pytest.raises(ConfigurationError, match="at least one"):
        KeyRing.from_text(" , ")


def test_a_ring_that_is_given_goes_before_that_of_the_environment() -> None:
    environment = {"DURABLEQ_ENCRYPTION_KEYS": f" a:{base64.b64encode(FIRST).decode()} "}
    assert chosen_ring(RING, environment) is RING
    assert repr(chosen_ring(None, environment)) == "<KeyRing a>"
    assert chosen_ring(None, {}) is None
    assert chosen_ring(None, {"DURABLEQ_ENCRYPTION_KEYS": "  "}) is None
    with pytest.raises(ConfigurationError, match="got a str"):
        chosen_ring("a:b", {})


# -- envelopes -----------------------------------------------------------------------------------------------


def test_an_envelope_names_its_key_and_begins_as_it_is_looked_for() -> None:
    stored = RING.seal('{"a":"ü"}', "id", "t", "args")
    assert stored.startswith(RING.prefix)
    assert not OLD.seal("{}", "id", "t", "args").startswith(RING.prefix)
    assert set(json.loads(stored)) == {"$encrypted"}
    assert set(json.loads(stored)["$encrypted"]) == {"key", "nonce", "data"}
    assert json.loads(stored)["$encrypted"]["key"] == "b"
    assert len(sealed_part("nonce", stored)) == 12
    assert RING.open(stored, "id", "t", "args") == '{"a":"ü"}'
    assert is_sealed(stored)
    assert not is_sealed('{"a":1}')


def test_each_part_of_its_place_and_its_text_makes_another_nonce() -> None:
    places = [("x", "id", "t", "args"), ("y", "id", "t", "args"), ("x", "di", "t", "args"), ("x", "id", "u", "args")]
    stored = [RING.seal(text, job_id, task, "args") for text, job_id, task, _ in places]
    stored += [RING.seal("x", "id", "t", "result"), OLD.seal("x", "id", "t", "args")]
    assert len({sealed_part("nonce", one) for one in stored}) == 6
    assert RING.seal("x", "id", "t", "args") == stored[0]


@pytest.mark.parametrize(
    "stored",
    [
        '{"$encrypted":{"key":"b"',
        '{"$encrypted":{"key":"b"}}',
        '{"$encrypted":{"key":"b","nonce":"AA==","data":"!"}}',
        '{"$encrypted":{"key":"b","nonce":1,"data":"AA=="}}',
        '{"$encrypted":{"key":"b","nonce":"AA==","data":"AA=="}}',
    ],
)
def test_a_damaged_envelope_is_opened_by_nobody(stored: str) -> None:
    with pytest.raises(CannotOpen) as caught:
        RING.open(stored, "id", "t", "args")
    assert "args" in str(caught.value)
    assert "not executed" in str(caught.value)


@pytest.mark.parametrize("part", ["nonce", "data"])
@pytest.mark.parametrize("added", ["!", " ", "\\n", "-"])
def test_a_character_added_to_an_envelope_is_noticed(part: str, added: str) -> None:
    stored = RING.seal("{}", "id", "t", "args").replace(f'"{part}":"', f'"{part}":"{added}')
    with pytest.raises(CannotOpen, match="the envelope of the stored args is damaged"):
        RING.open(stored, "id", "t", "args")


def test_what_a_queue_without_keys_cannot_read_is_said_with_the_name_of_the_key() -> None:
    assert without_a_ring('{"a":1}', "args") is None
    said = str(without_a_ring(RING.seal("{}", "id", "t", "args"), "args"))
    assert "'b'" in said
    assert "this queue has no keys" in said
    assert "damaged" in str(without_a_ring('{"$encrypted":{"key":"b"', "args"))
    with pytest.raises(CannotOpen, match=r"the key 'b', which is not on the ring \(a\)"):
        OLD.open(RING.seal("{}", "id", "t", "args"), "id", "t", "args")


def test_clear_text_is_opened_unless_it_is_refused() -> None:
    assert KeyRing({"a": FIRST}).open("{}", "id", "t", "args") == "{}"
    with pytest.raises(CannotOpen, match="the stored result are in clear"):
        KeyRing({"a": FIRST}, refuse_plain=True).open("{}", "id", "t", "result")


def test_arguments_that_move_to_another_row_can_be_read_there_and_only_there() -> None:
    stored = OLD.seal('{"a":1}', "id", "t", "args")
    moved = RING.moved(stored, "t", "id", "other")
    assert RING.open(moved, "other", "t", "args") == '{"a":1}'
    assert moved.startswith(RING.prefix)
    with pytest.raises(CannotOpen):
        RING.open(moved, "id", "t", "args")
    assert RING.moved(stored, "t", "not its id", "other") == stored
    assert RING.moved(stored, "not its task", "id", "other") == stored
    extras = with_ring(JobExtras(tags=("a",), unique=UniqueClaim("k", 1, "return"), timeout=3), RING)
    assert extras.moved_args(stored, "t", "id", "other") == moved
    assert (extras.tags, extras.timeout, extras.unique) == (("a",), 3, UniqueClaim("k", 1, "return"))
    assert PLAIN.moved_args(stored, "t", "id", "other") == stored


def test_a_digest_depends_on_the_key_whose_name_sorts_first_and_on_the_text() -> None:
    assert RING.digest("x") == OLD.digest("x") == KeyRing({"a": FIRST, "b": SECOND}).digest("x")
    assert len({RING.digest("x"), RING.digest("y"), KeyRing({"a": SECOND}).digest("x")}) == 3
    assert len(RING.digest("x")) == 64


# -- jobs ----------------------------------------------------------------------------------------------------


def test_a_job_is_shown_in_clear_as_far_as_it_can_be_opened() -> None:
    stored = job(args_json=RING.seal('{"a":1}', "id", "t", "args"), result_json=RING.seal('"r"', "id", "t", "result"))
    assert opened(stored, None) is stored
    clear = opened(stored, RING)
    assert (clear.args_json, clear.result_json) == ('{"a":1}', '"r"')
    assert opened(stored, OLD) == stored
    assert opened(job(), RING).result_json is None
    swapped = replace(stored, args_json=RING.seal('"r"', "id", "t", "result"))
    assert opened(swapped, RING).args_json == swapped.args_json


def test_a_result_is_given_out_or_the_reason_why_not() -> None:
    sealed = RING.seal('"r"', "id", "t", "result")
    assert result_of(job(), RING) is None
    assert result_of(job(result_json=sealed), RING) == '"r"'
    assert result_of(job(result_json='"r"'), None) == '"r"'
    for ring, why in ((OLD, "not on the ring"), (None, "no keys")):
        with pytest.raises(ResultUnavailable, match=f"the result of job id cannot be read: .*{why}"):
            result_of(job(result_json=sealed), ring)


# -- renewing ------------------------------------------------------------------------------------------------


class Rows:
    """Stored rows, and what was asked of them."""

    def __init__(self, *rows: Payloads) -> None:
        self.rows, self.asked = rows, list[tuple[str, int, int]]()
        self.args, self.results = list[Rewrite](), list[Rewrite]()

    async def payloads(self, prefix: str, *, after: int, limit: int) -> list[Payloads]:
        self.asked.append((prefix, after, limit))
        return [row for row in self.rows if row.seq > after][:limit]

    async def rewrite(self, args: Sequence[Rewrite], results: Sequence[Rewrite]) -> tuple[int, int]:
        self.args += args
        self.results += results
        return len(args), len(results)


def row(seq: int, args: str | None, result: str | None = None, *, damaged: bool = False) -> Payloads:
    return Payloads(seq, f"id-{seq}", "t", zlib.crc32((args or "").encode()) + damaged, args, result)


def test_a_rotation_counts_what_it_looked_at_rewrote_and_could_not_read() -> None:
    old = OLD.seal('{"a":1}', "id-2", "t", "args")
    rows = Rows(
        row(2, old, '"r"'),
        row(3, None, OLD.seal('"s"', "id-3", "t", "result")),
        row(5, "{}", damaged=True),
        row(7, KeyRing({"c": FIRST}).seal("{}", "id-7", "t", "args"), "1"),
        row(9, "{}"),
    )
    assert asyncio.run(rotate(rows, RING, 2)) == Rotation(5, 2, 3, 2)
    assert rows.asked == [(RING.prefix, after, 2) for after in (0, 3, 7, 9)]
    sealed = RING.seal('{"a":1}', "id-2", "t", "args")
    assert rows.args[0] == Rewrite(2, old, sealed, zlib.crc32(sealed.encode()))
    assert [one.seq for one in rows.args] == [2, 9]
    assert [(one.seq, RING.open(one.after, f"id-{one.seq}", "t", "result")) for one in rows.results] == [
        (2, '"r"'),
        (3, '"s"'),
        (7, "1"),
    ]


def test_a_rotation_that_finds_nothing_to_rewrite_writes_nothing() -> None:
    class ReadOnly(Rows):
        async def rewrite(self, args: Sequence[Rewrite], results: Sequence[Rewrite]) -> tuple[int, int]:
            raise AssertionError("there is nothing to write")

    assert asyncio.run(rotate(ReadOnly(row(1, None)), RING, 10)) == Rotation(1, 0, 0, 0)
    assert asyncio.run(rotate(ReadOnly(), RING, 10)) == Rotation(0, 0, 0, 0)
    lost = KeyRing({"c": FIRST})
    unreadable = row(1, lost.seal("{}", "id-1", "t", "args"), lost.seal("1", "id-1", "t", "result"))
    assert asyncio.run(rotate(ReadOnly(unreadable), RING, 10)) == Rotation(1, 0, 0, 2), "each value counts"


@pytest.mark.parametrize(("batch", "is_allowed"), [(0, False), (1, True), (10_000, True), (10_001, False)])
def test_a_batch_is_one_to_ten_thousand_jobs(batch: int, is_allowed: bool) -> None:
    if is_allowed:
        assert asyncio.run(rotate(Rows(), RING, batch)).looked_at == 0
    else:
        with pytest.raises(ConfigurationError, match=f"got {batch}"):
            asyncio.run(rotate(Rows(), RING, batch))
