"""Encryption at rest: what the file holds, what opens it again, and what happens when it does not open."""

import asyncio
import base64
import contextlib
import copy
import hashlib
import json
import pickle
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from pydantic import BaseModel, TypeAdapter

from durableq import (
    ConfigurationError,
    DurableQ,
    IdempotencyConflict,
    Job,
    JobFilter,
    JobState,
    ResultUnavailable,
    Task,
    Unique,
    call,
    current_job,
)
from durableq.codec import checksum
from durableq.encryption import CannotOpen, Column, KeyRing, Rotation, new_key
from durableq.testing import ManualClock
from tests.engine.helpers import finished, in_state, sql
from tests.support import eventually, eventually_sync

ROOT: Final = Path(__file__).resolve().parents[1]
OCTOBER, NOVEMBER = bytes(range(32)), bytes(range(100, 132))
OLD: Final = KeyRing({"2026-10": OCTOBER})
NEW: Final = KeyRing({"2026-11": NOVEMBER, "2026-10": OCTOBER})
NEXT: Final = KeyRing({"2026-10": OCTOBER, "2026-11": NOVEMBER})
"""In between: it reads the new key, and writes with the old one."""
ONLY_NEW: Final = KeyRing({"2026-11": NOVEMBER})
READING: Final = KeyRing.from_text(f"clear, 2026-11:{base64.b64encode(NOVEMBER).decode()}")
CANARY: Final = "canary-4f1d0c"


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return tmp_path / "jobs.db"


def queue(database: Path, ring: KeyRing | None, *, worker: bool = True) -> DurableQ:
    """A queue with one task, which returns what it is given."""
    dq = DurableQ(database, encryption=ring, worker=worker)
    dq.task(name="echo", max_attempts=1)(echo)
    return dq


async def echo(text: str) -> str:
    return text


def echo_of(dq: DurableQ) -> Task[..., Any]:
    task = dq.find_task("echo")
    assert task is not None
    return task


async def stored(database: Path, ring: KeyRing | None, *texts: str) -> list[str]:
    """Add jobs of ``echo`` that nobody runs yet, and return their ids."""
    async with (dq := queue(database, ring, worker=False)).running():
        return [job.id for job in await dq.add_tasks([call(echo_of(dq), text) for text in texts])]


async def run_all(database: Path, ring: KeyRing | None) -> list[Job[Any]]:
    """Run what is there to be run, and return all jobs, the oldest first."""
    async with (dq := queue(database, ring)).running():
        await dq.drain(20)
        page = await dq.list(limit=1000)
        return [await dq.get(job) for job in reversed(page.jobs)]


def write_args(database: Path, job_id: str, args: str) -> None:
    """Do what somebody with access to the file can do: the checksum keeps nobody from it."""
    sql(database, "UPDATE durableq_jobs SET args = ?, checksum = ? WHERE id = ?", args, checksum(args), job_id)


def args_of(database: Path, job_id: str) -> str:
    return str(sql(database, "SELECT args FROM durableq_jobs WHERE id = ?", job_id)[0][0])


def key_names(database: Path) -> set[str | None]:
    """The names of the keys that arguments and results are under; None for what is in clear."""
    rows = sql(database, "SELECT args FROM durableq_jobs UNION ALL SELECT result FROM durableq_jobs")
    found = [json.loads(row[0]) for row in rows if row[0] is not None]
    return {
        value["$encrypted"]["key"] if isinstance(value, dict) and "$encrypted" in value else None for value in found
    }


# -- keys --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: KeyRing({}), "at least one"),
        (lambda: KeyRing({"a": NOVEMBER}, encrypt=False, refuse_plain=True), "would refuse its own"),
        (lambda: KeyRing({"a": b"sixteen byte key"}), "'a': expected 32 random bytes .* got 16 bytes"),
        (lambda: KeyRing({"a": base64.b64encode(b"sixteen byte key").decode()}), "got 16 bytes"),
        (lambda: KeyRing({"a": "sixteen byte key"}), "no base64"),
        (lambda: KeyRing({"a": 16}), "got a int"),  # type: ignore[dict-item]
        (lambda: KeyRing({"sixteen byte key": NOVEMBER}), "name of each"),
        (lambda: KeyRing.from_text("sixteen byte key"), "pair 1 is not"),
        (lambda: KeyRing.from_text(f"a:{new_key()},a:{new_key()}"), "two are named 'a'"),
        (lambda: DurableQ("x.db", encryption={"a": b"sixteen byte key"}), "expected encryption=KeyRing"),  # type: ignore[arg-type]
    ],
)
def test_what_is_no_key_is_refused_clearly_and_never_shown(make: Callable[[], object], said: str) -> None:
    with pytest.raises(ConfigurationError, match=said) as caught:
        make()
    assert "sixteen" not in str(caught.value)
    assert caught.value.__cause__ is None


async def test_a_ring_comes_from_the_environment_newest_first(monkeypatch: pytest.MonkeyPatch, database: Path) -> None:
    one, other = new_key(), base64.urlsafe_b64encode(OCTOBER).decode()
    ring = KeyRing.from_environment({"DURABLEQ_ENCRYPTION_KEYS": f" b:{one}, a:{other} "})
    assert repr(ring) == "<KeyRing b, a>"
    assert KeyRing.from_environment({}) is KeyRing.from_environment({"DURABLEQ_ENCRYPTION_KEYS": ""}) is None
    monkeypatch.setenv("DURABLEQ_ENCRYPTION_KEYS", f"env:{one}")
    await stored(database, None, "x")
    assert key_names(database) == {"env"}
    monkeypatch.setenv("DURABLEQ_ENCRYPTION_KEYS", one)
    with pytest.raises(ConfigurationError, match="name:key"):
        DurableQ(database)


def test_a_ring_gives_away_no_key() -> None:
    said = [repr(NEW), str(vars(NEW)["_keys"])]
    assert not any(NOVEMBER.hex() in one or repr(NOVEMBER) in one for one in said)
    with pytest.raises(TypeError, match="holds keys"):
        pickle.dumps(NEW)
    assert copy.deepcopy({"ring": NEW})["ring"] is NEW


def test_without_the_library_only_a_ring_fails_and_says_what_to_install() -> None:
    program = (
        "import sys; sys.modules['cryptography'] = None\n"
        "from durableq import ConfigurationError, DurableQ\n"
        "from durableq.encryption import KeyRing\n"
        "DurableQ('x.db')\n"
        "try: KeyRing({'a': bytes(32)})\n"
        "except ConfigurationError as error: print(error)"
    )
    said = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert "pip install durableq[encryption]" in said.stdout, said.stderr


# -- envelopes ---------------------------------------------------------------------------------------------


def test_an_envelope_is_aes_256_gcm_bound_to_its_job_task_column_and_key() -> None:
    """Opened here without our code, as somebody else's program would do it."""
    content = json.loads(NEW.seal('{"x":1}', "the-id", "the-task", "args"))["$encrypted"]
    assert content.keys() == {"key", "nonce", "data"}
    nonce, data = base64.b64decode(content["nonce"]), base64.b64decode(content["data"])
    key = HKDFExpand(SHA256(), 32, b"durableq 1 encryption").derive(NOVEMBER)
    place = json.dumps(["durableq 1", "the-id", "the-task", "args", "2026-11"]).encode()
    assert (len(nonce), AESGCM(key).decrypt(nonce, data, place)) == (12, b'{"x":1}')


def test_a_nonce_comes_back_only_with_the_same_text_at_the_same_place() -> None:
    places: list[tuple[str, str, Column]] = [
        ("1", "t", "args"),
        ("1", "t", "result"),
        ("1t", "", "args"),
        ("1", "u", "args"),
        ("2", "t", "args"),
    ]
    envelopes = [ring.seal(text, *at) for ring in (OLD, NEW) for text in ("{}", "[]") for at in places]
    assert len({json.loads(one)["$encrypted"]["nonce"] for one in envelopes}) == len(envelopes) == 20
    assert NEW.seal("{}", "1", "t", "args") == ONLY_NEW.seal("{}", "1", "t", "args")


def test_every_changed_character_of_an_envelope_is_noticed() -> None:
    envelope = NEW.seal('{"x":1}', "1", "t", "args")
    body = envelope.index('"nonce"')
    assert NEW.open(envelope, "1", "t", "args") == '{"x":1}'
    for at in range(body, len(envelope)):
        changed = envelope[:at] + ("A" if envelope[at] != "A" else "B") + envelope[at + 1 :]
        with pytest.raises(CannotOpen) as caught:
            NEW.open(changed, "1", "t", "args")
        assert caught.value.kind == "durableq.PayloadCorrupt"


# -- what the file holds -----------------------------------------------------------------------------------


class Card(BaseModel):
    number: str


async def test_neither_arguments_nor_results_are_in_the_file_but_whoever_may_sees_them(database: Path) -> None:
    dq, seen = DurableQ(database, encryption=NEW), list[Any]()

    @dq.task(name="pay", on_success=lambda job: seen.extend([job.args, job.result]))
    async def pay(card: Card) -> Card:
        seen.append(current_job().args)
        current_job().add_task(note, CANARY)
        return Card(number=card.number[::-1])

    @dq.task(name="note", max_attempts=1)
    def note(text: str) -> None:
        raise ValueError

    dq.exception_handler(ValueError)(lambda job, error: seen.append(job.args))
    async with dq.running():
        added = await dq.add_task(pay, Card(number=CANARY))
        assert await dq.result(added, timeout=10) == Card(number=CANARY[::-1])
        shown = await dq.get(added)
        assert (shown.args, shown.result) == ({"card": {"number": CANARY}}, {"number": CANARY[::-1]})
        assert (await dq.wait(added)).result == shown.result
        await eventually(lambda: len(seen) == 4)
        listed = (await dq.list()).jobs
        assert [[*job.args] for job in listed] == [["$encrypted"]] * 2
        raw = b"".join(file.read_bytes() for file in database.parent.glob("jobs.db*") if file.is_file())
    assert sorted(map(str, seen)) == sorted(map(str, [shown.args, shown.args, shown.result, {"text": CANARY}]))
    assert len(raw) > 10_000
    assert CANARY.encode() not in raw
    assert CANARY[::-1].encode() not in raw


async def test_a_result_that_a_task_stores_itself_is_encrypted_too(database: Path) -> None:
    dq = DurableQ(database, encryption=NEW)

    @dq.task(name="pay")
    def pay() -> str:
        with contextlib.closing(sqlite3.connect(database, timeout=10)) as connection:
            connection.execute("CREATE TABLE mine (x)")
            connection.execute("INSERT INTO mine VALUES (1)")
            current_job().complete_within(connection, result=CANARY)
            connection.commit()
        return ""

    async with dq.running():
        assert await dq.result(await dq.add_task(pay), timeout=10) == CANARY
    assert key_names(database) == {"2026-11"}


async def test_edited_arguments_are_encrypted_again_also_in_the_audit_trail(database: Path) -> None:
    [job_id] = await stored(database, NEW, "x")
    async with (dq := queue(database, NEW, worker=False)).running():
        await dq.cancel(job_id)
        retried = await dq.retry(job_id, args={"text": CANARY})
        assert retried.args == {"text": CANARY}
        [entry] = [one for one in await dq.audit_trail(job_id) if one.action == "edit and retry"]
        assert entry.detail["args_after"] == {"text": CANARY}, "opened where the key is"
    async with (dq := queue(database, None, worker=False)).running():
        assert CANARY not in str(await dq.audit_trail(job_id))
    with contextlib.closing(sqlite3.connect(database)) as connection:
        assert CANARY not in str(connection.execute("SELECT detail FROM durableq_audit").fetchall())
    assert CANARY not in args_of(database, job_id)
    [job] = await run_all(database, NEW)
    assert job.result == CANARY


async def test_without_a_ring_nothing_is_asked_of_the_cipher(database: Path) -> None:
    """Looked at from below, so that no call can be overlooked."""
    calls: list[str] = []

    def note(frame: Any, event: str, argument: Any) -> None:
        if event == "call" and frame.f_code.co_filename.endswith("durableq/encryption.py"):
            calls.append(frame.f_code.co_name)

    async with (dq := queue(database, None)).running():
        task = echo_of(dq)
        sys.setprofile(note)
        try:
            await dq.add_tasks([call(task, "x")] * 20)
            await dq.drain(10)
        finally:
            sys.setprofile(None)
        assert (await dq.counts())[JobState.SUCCEEDED] == 20
    assert calls == []


# -- what does not open ------------------------------------------------------------------------------------


def changed_data(database: Path, mine: str, other: str) -> None:
    content = json.loads(args_of(database, mine))
    data = bytearray(base64.b64decode(content["$encrypted"]["data"]))
    data[0] ^= 1
    content["$encrypted"]["data"] = base64.b64encode(data).decode()
    write_args(database, mine, json.dumps(content, separators=(",", ":")))


def swapped_rows(database: Path, mine: str, other: str) -> None:
    first, second = args_of(database, mine), args_of(database, other)
    write_args(database, mine, second)
    write_args(database, other, first)


def another_task(database: Path, mine: str, other: str) -> None:
    sql(database, "UPDATE durableq_jobs SET task = 'echo' WHERE id = ?", mine)


def half_an_envelope(database: Path, mine: str, other: str) -> None:
    write_args(database, mine, args_of(database, mine)[:60])


@pytest.mark.parametrize("tamper", [changed_data, swapped_rows, another_task, half_an_envelope])
async def test_arguments_that_were_tampered_with_are_never_run(
    database: Path, tamper: Callable[[Path, str, str], None]
) -> None:
    dq, ran = DurableQ(database, encryption=NEW, worker=False), list[str]()
    working = DurableQ(database, encryption=NEW)

    async def run(text: str) -> None:
        ran.append(text)

    transfer, other_task = dq.task(name="transfer")(run), dq.task(name="echo")(echo)
    working.task(name="transfer")(run)
    working.task(name="echo")(echo)
    async with dq.running():
        await dq.add_task(other_task, "fine")
        mine, other = await dq.add_tasks([call(transfer, "mine"), call(transfer, "other")])
    tamper(database, mine.id, other.id)
    async with working.running():
        dead = await finished(working, mine)
        await working.drain(10)
    assert (dead.state, dead.error and dead.error.type) == (JobState.DEAD, "durableq.PayloadCorrupt")
    assert "mine" not in ran


async def test_a_result_that_was_moved_from_another_row_is_not_given_out(database: Path) -> None:
    ids = await stored(database, NEW, "a", "b")
    await run_all(database, NEW)
    sql(
        database,
        "UPDATE durableq_jobs SET result = (SELECT result FROM durableq_jobs WHERE id = ?) WHERE id = ?",
        *ids,
    )
    async with (dq := queue(database, NEW)).running():
        assert await dq.result(ids[0]) == "a"
        with pytest.raises(ResultUnavailable, match="belong to another job"):
            await dq.result(ids[1])


@pytest.mark.parametrize("ring", [None, OLD], ids=["no ring", "another ring"])
async def test_a_job_whose_key_is_missing_waits_as_a_dead_letter_until_it_is_back(
    database: Path, ring: KeyRing | None
) -> None:
    [job_id] = await stored(database, ONLY_NEW, CANARY)
    await run_all(database, ring)
    [dead] = await run_all(database, ring)
    assert dead.error is not None
    assert (dead.id, dead.state, dead.error.type, dead.attempt) == (job_id, JobState.DEAD, "durableq.KeyMissing", 1)
    assert "'2026-11'" in dead.error.message
    assert [*dead.args] == ["$encrypted"]
    assert base64.b64encode(OCTOBER).decode() not in dead.error.message
    async with (dq := queue(database, NEW)).running():
        assert await dq.retry_matching(JobFilter(state=JobState.DEAD, error_type="durableq.KeyMissing")) == 1
        assert await dq.result(job_id, timeout=10) == CANARY
        assert (await dq.get(job_id)).attempt == 1  # of the one it may have


async def test_a_result_whose_key_is_missing_says_which_one(database: Path) -> None:
    [job_id] = await stored(database, NEW, CANARY)
    await run_all(database, NEW)
    for ring in (None, OLD):
        async with (dq := queue(database, ring)).running():
            with pytest.raises(ResultUnavailable, match="'2026-11'"):
                await dq.result(job_id)


async def test_another_key_of_the_same_name_opens_nothing(database: Path) -> None:
    await stored(database, NEW, "x")
    [dead] = await run_all(database, KeyRing({"2026-11": OCTOBER}))
    assert dead.error is not None
    assert dead.error.type == "durableq.PayloadCorrupt"
    assert "another key named '2026-11'" in dead.error.message


async def test_a_handler_sees_the_arguments_of_a_job_that_never_started_in_clear(database: Path) -> None:
    seen: list[Any] = []
    clock = ManualClock()
    adding = DurableQ(database, encryption=NEW, clock=clock, worker=False)
    working = DurableQ(database, encryption=NEW, clock=clock)
    task = adding.task(name="echo", deadline=60)(echo)
    working.task(name="echo", on_dead=lambda job, error: seen.append(job.args))(echo)
    async with adding.running():
        await adding.add_task(task, CANARY)
    clock.advance(61)
    async with working.running():
        await eventually(lambda: seen == [{"text": CANARY}])


async def test_no_message_quotes_encrypted_arguments_that_do_not_fit_any_more(database: Path) -> None:
    await stored(database, NEW, CANARY)
    dq = DurableQ(database, encryption=NEW)

    @dq.task(name="echo")
    async def changed(text: int) -> None: ...

    async with dq.running():
        dead = await in_state(dq, (await dq.list()).jobs[0], JobState.DEAD)
        assert dead.error is not None
        assert dead.error.type == "durableq.InvalidArguments"
        assert "'text'" in dead.error.message
        assert CANARY not in dead.error.message + str(await dq.attempts(dead))


# -- from clear to encrypted -------------------------------------------------------------------------------


async def test_what_was_stored_in_clear_runs_after_encryption_was_switched_on(database: Path) -> None:
    await stored(database, None, "plain")
    await stored(database, NEW, "sealed")
    assert [job.result for job in await run_all(database, NEW)] == ["plain", "sealed"]


@pytest.mark.parametrize("other", [None, NEW], ids=["has no keys yet", "encrypts already"])
async def test_beside_a_ring_that_only_reads_processes_are_replaced_one_by_one(
    database: Path, other: KeyRing | None
) -> None:
    for writer, reader in ((READING, other), (other, READING)):
        await stored(database, writer, "x")
        assert (await run_all(database, reader))[-1].result == "x"
    assert [job.result for job in await run_all(database, READING)] == ["x", "x"]
    async with (dq := queue(database, READING)).running():
        with pytest.raises(ConfigurationError, match="nothing to rotate to"):
            await dq.rotate_keys()


async def test_a_strict_ring_refuses_what_is_in_clear_until_it_was_rotated(database: Path) -> None:
    strict = KeyRing({"2026-11": NOVEMBER}, refuse_plain=True)
    await stored(database, None, "plain")
    [dead] = await run_all(database, strict)
    assert (dead.state, dead.error and dead.error.type) == (JobState.DEAD, "durableq.NotEncrypted")
    async with (dq := queue(database, strict, worker=False)).running():
        assert await dq.rotate_keys() == Rotation(looked_at=1, args=0, results=0, unreadable=1)
    async with (dq := queue(database, NEW, worker=False)).running():
        assert await dq.rotate_keys() == Rotation(looked_at=1, args=1, results=0, unreadable=0)
        await dq.retry(dead)
    [job] = await run_all(database, strict)
    assert job.result == "plain"


# -- the same again ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("first", [None, OLD, NEW], ids=["in clear", "older key", "same key"])
async def test_a_call_repeated_under_its_idempotency_key_is_the_same_job_whatever_the_key(
    database: Path, first: KeyRing | None
) -> None:
    ids = set()
    for ring in (first, NEW):
        async with (dq := queue(database, ring, worker=False)).running():
            task = echo_of(dq).options(idempotency_key="k")
            ids.add((await dq.add_task(task, CANARY)).id)
            with pytest.raises(IdempotencyConflict):
                await dq.add_task(task, "other")
            with pytest.raises(IdempotencyConflict):
                await dq.add_tasks([call(task, CANARY), call(task, "other")])
    assert len(ids) == 1


async def test_what_replaces_the_arguments_of_a_waiting_job_can_be_read_there(database: Path) -> None:
    async with (dq := queue(database, NEW, worker=False)).running():
        task = echo_of(dq).options(unique=Unique(key="u", on_conflict="replace"))
        first, second = await dq.add_task(task, "first"), await dq.add_task(task, CANARY)
        assert first.id == second.id
        assert (await dq.get(first)).args == {"text": CANARY}
    [job] = await run_all(database, NEW)
    assert job.result == CANARY


@pytest.mark.parametrize(
    "rings", [(OLD, NEXT, NEW), (None, READING)], ids=["a key being renewed", "encryption being switched on"]
)
async def test_equal_arguments_stay_unique_through(database: Path, rings: tuple[KeyRing | None, ...]) -> None:
    for ring, expected in zip(rings, (0, 1, 1), strict=False):
        async with (dq := queue(database, ring, worker=False)).running():
            task = echo_of(dq).options(unique=Unique(args=["text"]))
            before = (await dq.counts())[JobState.QUEUED]
            await dq.add_task(task, "a")
            assert (before, (await dq.counts())[JobState.QUEUED]) == (expected, 1)


def test_the_name_of_unique_arguments_is_no_hash_that_can_be_guessed(database: Path) -> None:
    guess = hashlib.sha256(b'{"text": "a"}').hexdigest()[:32]
    for ring, is_guessed in ((None, True), (NEW, False)):
        dq = queue(database, ring)
        job = dq.new_job(echo_of(dq).options(unique=Unique()), ("a",), {})
        assert (guess in str(job.unique_key)) is is_guessed


# -- in a child process ------------------------------------------------------------------------------------


def in_a_child(text: str) -> str:
    if "again" not in text:
        current_job().add_task(in_a_child, f"{text} again")
    return f"{current_job().args['text']} done"


async def test_a_child_process_gets_its_arguments_in_clear_and_what_it_adds_is_encrypted(database: Path) -> None:
    dq = DurableQ(database, encryption=NEW)
    task = dq.task(name=f"{__name__}:in_a_child", runner="process")(in_a_child)
    async with dq.running():
        job = await dq.add_task(task, CANARY)
        assert await dq.result(job, timeout=20) == f"{CANARY} done"
        await dq.drain(20)
        results = {(await dq.get(one)).result for one in (await dq.list()).jobs}
    assert results == {f"{CANARY} done", f"{CANARY} again done"}
    assert key_names(database) == {"2026-11"}
    # And without a key it gets nothing.
    sql(database, "UPDATE durableq_jobs SET state = 'queued', finished_at = NULL, result = NULL, attempt = 0")
    dq = DurableQ(database)
    dq.task(name=task.name, runner="process")(in_a_child)
    async with dq.running():
        await dq.drain(20)
        dead = (await dq.list()).jobs
    assert {job.error.type for job in dead if job.error} == {"durableq.KeyMissing"}


def test_a_job_that_a_child_adds_passes_the_pipe(database: Path) -> None:
    dq = queue(database, NEW)
    job = dq.new_job(echo_of(dq).options(idempotency_key="k", tags=["t"]), (CANARY,), {})
    adapter = TypeAdapter(Job[Any])
    fields = json.loads(json.dumps(adapter.dump_python(job, mode="json", warnings="error")))
    again = dq._maker.sealed(adapter.validate_python(fields))
    assert again == job
    assert CANARY not in str(fields)


# -- rotation ----------------------------------------------------------------------------------------------


async def test_rotation_brings_everything_under_the_newest_key_and_a_second_one_finds_nothing(database: Path) -> None:
    await stored(database, None, "plain")
    await stored(database, OLD, *"abc")
    await run_all(database, OLD)
    waiting = await stored(database, OLD, *"def")
    await stored(database, NEW, "new")
    assert key_names(database) == {None, "2026-10", "2026-11"}
    async with (dq := queue(database, NEW, worker=False)).running():
        assert await dq.rotate_keys(batch=2) == Rotation(looked_at=8, args=7, results=4, unreadable=0)
        assert await dq.rotate_keys(batch=2) == Rotation(looked_at=8, args=0, results=0, unreadable=0)
        assert (await dq.get(waiting[0])).args == {"text": "d"}
    assert key_names(database) == {"2026-11"}
    jobs = await run_all(database, ONLY_NEW)
    assert [job.result for job in jobs] == ["plain", *"abcdef", "new"]


async def test_rotation_leaves_alone_what_it_cannot_read_and_hides_no_damage(database: Path) -> None:
    damaged, moved, _ = await stored(database, None, "plain", "moved", "fine")
    [lost] = await stored(database, OLD, "x")
    sql(database, """UPDATE durableq_jobs SET args = '{"text":"evil"}' WHERE id = ?""", damaged)
    write_args(database, moved, NEW.seal('{"text":"y"}', damaged, "echo", "args").replace("2026-11", "2026-12"))
    before = [args_of(database, one) for one in (damaged, moved, lost)]
    async with (dq := queue(database, ONLY_NEW, worker=False)).running():
        assert await dq.rotate_keys() == Rotation(looked_at=4, args=1, results=0, unreadable=3)
    assert [args_of(database, one) for one in (damaged, moved, lost)] == before
    jobs = await run_all(database, ONLY_NEW)
    assert [job.error.type if job.error else job.result for job in jobs] == [
        *("durableq.PayloadCorrupt", "durableq.KeyMissing", "fine", "durableq.KeyMissing")
    ]


async def test_rotation_beside_a_running_worker_loses_and_changes_nothing(database: Path) -> None:
    """Two of them at once, while a process that still writes with the older key adds and runs jobs."""
    ran: list[int] = []
    old, new = DurableQ(database, encryption=NEXT), queue(database, NEW)

    @old.task(name="count")
    async def count(number: int) -> int:
        ran.append(number)
        return number

    async with old.running(), new.running():

        async def add() -> list[Job[int]]:
            return [await old.add_task(count, number) for number in range(300)]

        async def rotate_while(adding: "asyncio.Task[Any]") -> int:
            done = 0
            while not adding.done():
                done += (await new.rotate_keys(batch=7)).args
            return done

        adding = asyncio.create_task(add())
        rotated = sum(await asyncio.gather(rotate_while(adding), rotate_while(adding)))
        await old.drain(20)
        jobs = adding.result()
        await new.rotate_keys()
        assert [await new.result(job) for job in jobs] == list(range(300))
    assert rotated > 0
    assert sorted(ran) == list(range(300))
    assert key_names(database) == {"2026-11"}


ROTATE: Final = """
import asyncio, sys
from durableq import DurableQ
from durableq.encryption import KeyRing

async def main():
    dq = DurableQ(sys.argv[1], encryption=KeyRing.from_text(sys.argv[2]), worker=False)
    async with dq.running():
        print(await dq.rotate_keys(batch=1), flush=True)

asyncio.run(main())
"""


def renewed(database: Path) -> int:
    [(count,)] = sql(database, "SELECT count(*) FROM durableq_jobs WHERE args LIKE '%2026-11%'")
    return int(count)


def has_renewed(database: Path, rows: int) -> bool:
    return renewed(database) >= rows


def test_a_rotation_that_is_killed_anywhere_loses_nothing_and_goes_on(database: Path) -> None:
    texts = [f"text {number}" for number in range(1500)]
    asyncio.run(stored(database, OLD, *texts))
    keys = f"2026-11:{base64.b64encode(NOVEMBER).decode()},2026-10:{base64.b64encode(OCTOBER).decode()}"
    for target in (1, 200, 500):
        process = subprocess.Popen([sys.executable, "-c", ROTATE, str(database), keys], cwd=ROOT)
        try:
            eventually_sync(partial(has_renewed, database, target), 20)
        finally:
            process.kill()
            process.wait(10)
        rows = sql(database, "SELECT id, args, checksum FROM durableq_jobs ORDER BY seq")
        assert all(checksum(args) == stored_sum for _, args, stored_sum in rows)
        opened = [NEW.open(args, job_id, "echo", "args") for job_id, args, _ in rows]
        assert [json.loads(text)["text"] for text in opened] == texts
        assert key_names(database) == {"2026-10", "2026-11"}, "it had ended before it was killed"
    done = renewed(database)
    assert asyncio.run(rotated(database)) == Rotation(looked_at=1500, args=1500 - done, results=0, unreadable=0)
    assert key_names(database) == {"2026-11"}


async def rotated(database: Path) -> Rotation:
    async with (dq := queue(database, NEW, worker=False)).running():
        return await dq.rotate_keys()
