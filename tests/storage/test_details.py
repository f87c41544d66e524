"""What is written of a job, what a batch of outcomes says of itself, and what people do by hand, to the last column."""

import json
import re
import sqlite3
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from durableq.clock import from_datetime
from durableq.codec import checksum
from durableq.encryption import Rewrite
from durableq.errors import DuplicateJob, InvariantBroken, JobConflict
from durableq.models import (
    PLAIN,
    Cancelled,
    Dead,
    Failure,
    Job,
    JobExtras,
    JobFilter,
    JobState,
    Lease,
    OnConflict,
    Outcome,
    Progress,
    Released,
    Retried,
    Snoozed,
    Succeeded,
    UniqueClaim,
)
from durableq.storage.protocol import Storage
from durableq.storage.sqlite import payloads, rows, searching
from durableq.storage.sqlite.insertion import batch_of, joined
from durableq.storage.sqlite.settling import (
    NOTHING,
    Settlement,
    Written,
    check_settled,
    exactly,
    numbers_in,
    settlement_of,
)
from durableq.storage.sqlite.statements import INSERTED_COLUMNS, SQL
from tests.storage.support import BOOM, DEAD, DONE, WORK, Backend, claim, settle, stored

NOW = 1_000_000
MOMENT = datetime(2026, 1, 1, tzinfo=UTC)


def lease(seq: int = 1, lease_no: int = 1, job_id: str = "id", settings: str | None = None) -> Lease:
    return Lease(seq, lease_no, job_id, WORK, "default", "{}", 0, 1, 5, 0, 0, settings=settings)


FULL = JobExtras(
    expires_at=from_datetime(MOMENT) + 1,
    deadline_at=from_datetime(MOMENT) + 2,
    timeout=3,
    result_ttl=4,
    unique=UniqueClaim("key", 5, "return"),
    tags=("a", "b"),
    headers={"trace": "x"},
    retry="patient",
)


# -- rows ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "extras",
    [
        FULL,
        JobExtras(expires_at=from_datetime(MOMENT) + 1),
        JobExtras(deadline_at=from_datetime(MOMENT) + 1),
        JobExtras(timeout=1),
        JobExtras(result_ttl=1),
        JobExtras(unique=UniqueClaim("key", 5, "return")),
        JobExtras(tags=("a",)),
        JobExtras(headers={"a": "b"}),
        JobExtras(retry="patient"),
    ],
)
async def test_all_that_a_job_was_given_comes_back(backend: Backend, storage: Storage, extras: JobExtras) -> None:
    job = replace(backend.job(priority=7, args_json='{"a":1}', max_attempts=3, delay=5), extras=extras)
    await storage.insert([job])
    assert await stored(storage, job.id) == job


async def test_a_plain_job_comes_back_as_a_plain_one(backend: Backend, storage: Storage) -> None:
    job = backend.job(queue="mail", priority=-1)
    await storage.insert([job])
    found = await stored(storage, job.id)
    assert found == job
    assert found.extras is PLAIN


def test_what_a_worker_reads_of_a_job_counts_from_when_it_was_added() -> None:
    job: Job[Any] = Job(
        id="id", task=WORK, queue="q", priority=0, state=JobState.QUEUED, args_json="{}", max_attempts=1,
        created_at=MOMENT, run_at=MOMENT, extras=FULL,
    )  # fmt: skip
    (row,) = json.loads(rows.special_rows([job]))
    assert row[10:16] == [FULL.expires_at, FULL.deadline_at, "key", 5, 4, '["a","b"]']
    assert json.loads(row[16]) == {
        "timeout": 3, "expires": 1, "deadline": 2, "unique": "key", "tags": ["a", "b"], "headers": {"trace": "x"},
        "retry": "patient", "result_ttl": 4,
    }  # fmt: skip
    (bare,) = json.loads(rows.special_rows([replace(job, extras=JobExtras(is_idempotent=True))]))
    assert bare[10:] == [None] * 7
    assert list(rows.insert_row(job)) == row[:10]
    assert {type(value) for value in rows.insert_row(job)} == {str, int}
    later = replace(job, run_at=MOMENT + timedelta(seconds=1))
    assert rows.insert_row(later)[8:] == (from_datetime(MOMENT), from_datetime(later.run_at))


@pytest.mark.parametrize(
    ("outcome", "row", "is_final", "is_ready", "next_run"),
    [
        (Succeeded("7"), ["succeeded", 0, 0, None, NOW, "7", None, None], True, False, None),
        (Released(), ["queued", 1, 0, NOW, None, None, None, None], False, True, None),
        (Retried(BOOM, None), ["queued", 0, 0, NOW, None, None, "ValueError", "boom"], False, True, None),
        (Retried(BOOM, NOW), ["queued", 0, 0, NOW, None, None, "ValueError", "boom"], False, True, NOW),
        (
            Retried(BOOM, NOW + 1, crashed=True),
            ["scheduled", 0, 1, NOW + 1, None, None, "ValueError", "boom"],
            False,
            False,
            NOW + 1,
        ),
        (Dead(BOOM), ["dead", 0, 0, None, NOW, None, "ValueError", "boom"], True, False, None),
        (Dead(BOOM, crashed=True), ["dead", 0, 1, None, NOW, None, "ValueError", "boom"], True, False, None),
        (Cancelled(BOOM), ["cancelled", 0, 0, None, NOW, None, "ValueError", "boom"], True, False, None),
        (Snoozed(NOW), ["queued", 1, 0, NOW, None, None, None, None], False, True, NOW),
        (Snoozed(NOW + 1), ["scheduled", 1, 0, NOW + 1, None, None, None, None], False, False, NOW + 1),
    ],
)
def test_an_outcome_says_where_its_job_goes(
    outcome: Outcome, row: list[Any], is_final: bool, is_ready: bool, next_run: int | None
) -> None:
    assert list(rows.outcome_row(lease(3, 4), outcome, NOW)) == [3, 4, *row]
    assert rows.is_final(outcome) is is_final
    assert rows.is_ready_again(outcome, NOW) is is_ready
    assert rows.next_run(outcome) == next_run
    assert (rows.attempts_json([(lease(), outcome)]) is not None) is isinstance(outcome, Retried | Dead | Cancelled)


def test_what_is_no_text_or_no_number_any_more_is_shown_as_one() -> None:
    row: list[Any] = ["id", 7, "q", "much", "dead", "{}", 5, 0, 0, 1, 0, *[None] * 14]
    job = rows.job_from_row(row)
    assert (job.task, job.priority) == ("7", 0)


def test_a_progress_without_a_total_or_a_word_comes_back() -> None:
    for progress in (Progress(1), Progress(1, 2.5), Progress(1, 2, "half")):
        [(seq, lease_no, text)] = json.loads(rows.progress_json([(lease().key, progress)]))
        assert (seq, lease_no, Progress(*json.loads(text))) == (1, 1, progress)


async def test_each_part_of_a_failed_try_comes_back(backend: Backend, storage: Storage) -> None:
    first = await storage.register(lambda new_names: None)
    begun = backend.clock.now
    [one] = await backend.claimed(storage)
    backend.clock.advance(2)
    await settle(storage, [(one, Retried(Failure("E", "message", "trace"), None))])
    [tried] = await storage.attempts(one.id)
    assert (tried.lease_no, tried.attempt, tried.worker_id) == (one.lease_no, 1, first)
    assert (tried.started_at, tried.finished_at) == (begun, begun + timedelta(seconds=2))
    assert (tried.error_type, tried.error_message, tried.traceback) == ("E", "message", "trace")


# -- settling ------------------------------------------------------------------------------------------------


def test_nothing_settled_is_nothing_to_write() -> None:
    assert settlement_of([], NOW) is NOTHING
    assert NOTHING.size == len("[]")


def test_a_settlement_of_successes_has_nothing_else_to_look_for() -> None:
    settlement = settlement_of([(lease(1), DONE), (lease(2), DONE)], NOW)
    assert (settlement.count, settlement.attempts, settlement.waiting, settlement.special) == (2, None, None, None)
    assert (list(settlement.failed), settlement.first_due) == ([], None)
    assert (settlement.has_queued, settlement.has_final) == (False, True)
    assert list(settlement.follow_ups) == []


def test_a_settlement_says_what_follows_from_each_outcome() -> None:
    settled: list[tuple[Lease, Outcome]] = [
        (lease(1, settings="{}"), DONE),
        (lease(2), Retried(BOOM, NOW + 9)),
        (lease(3), Snoozed(NOW + 5)),
        (lease(4), DEAD),
        (lease(5), Cancelled(BOOM)),
        (lease(6), Released()),
    ]
    settlement = settlement_of(settled, NOW)
    assert settlement.count == 6
    assert list(settlement.failed) == [2, 4, 5]
    assert json.loads(settlement.waiting or "") == [2, 3, 6]
    assert sorted(json.loads(settlement.special or "")) == [1, 2, 3, 5, 6]
    assert settlement.first_due == NOW + 5
    assert (settlement.has_queued, settlement.has_final) == (True, True)
    assert [one[0] for one in json.loads(settlement.attempts or "")] == [2, 4, 5]
    assert settlement.size == len(settlement.outcomes) + len(settlement.attempts or "")


SETTINGS, LATER = '{"timeout": 1}', Succeeded(None, (Backend("").job(),))


@pytest.mark.parametrize(
    ("settled", "seqs"),
    [
        ([(lease(1), DONE), (lease(2), DONE)], [1, 2]),
        ([(lease(1, lease_no=2), DONE), (lease(2, lease_no=2), DONE)], [1, 2]),
        ([(lease(1), DONE), (lease(2, lease_no=2), DONE)], None),
        ([(lease(1), DONE), (lease(2, settings=SETTINGS), DONE)], None),
        ([(lease(1), DONE), (lease(2), Succeeded("7"))], None),
        ([(lease(1), DONE), (lease(2), LATER)], None),
        ([(lease(1), DONE), (lease(2), DEAD)], None),
    ],
)
def test_successes_of_which_there_is_nothing_else_to_write_are_told_by_their_numbers(
    settled: list[tuple[Lease, Outcome]], seqs: list[int] | None
) -> None:
    settlement = settlement_of(settled, NOW)
    assert settlement.count == 2
    assert settlement.has_final
    if seqs is None:
        assert settlement.succeeded is None
    else:
        assert json.loads(settlement.succeeded or "") == seqs
        assert settlement.size == len(settlement.succeeded or "")
    assert [one[0] for one in json.loads(settlement.outcomes)] == [1, 2], "for when some are lost"


def test_a_settlement_without_an_end_says_so() -> None:
    waiting = settlement_of([(lease(1), Snoozed(NOW + 1)), (lease(2), Retried(BOOM, NOW + 2))], NOW)
    assert (waiting.has_final, waiting.has_queued, waiting.first_due) == (False, False, NOW + 1)
    dead = settlement_of([(lease(1), DEAD)], NOW)
    assert (dead.has_final, dead.waiting, dead.special, dead.first_due) == (True, None, None, None)


@pytest.mark.parametrize(
    ("written", "lost", "is_right"),
    [
        (Written(2, 1), (), True),
        (Written(1, 1), (1,), True),
        (Written(1, 0), (2,), True),
        (Written(2, 1), (1,), False),
        (Written(1, 1), (2,), False),
        (Written(1, 1), (), False),
        (Written(2, 0), (), False),
        (Written(3, 1), (), False),
    ],
)
def test_a_settlement_that_changed_other_rows_than_it_should_stops_the_queue(
    written: Written, lost: tuple[int, ...], is_right: bool
) -> None:
    settlement = settlement_of([(lease(1), DONE), (lease(2), DEAD)], NOW)
    if is_right:
        check_settled(settlement, written, lost)
    else:
        with pytest.raises(InvariantBroken, match="settl"):
            check_settled(settlement, written, lost)


def test_a_count_that_is_not_right_is_told_with_both_numbers() -> None:
    exactly(2, 2, "writing")
    with pytest.raises(InvariantBroken) as caught:
        exactly(1, 2, "writing")
    assert "writing" in str(caught.value)
    assert "2 rows to change" in str(caught.value)
    assert "1 changed" in str(caught.value)


@pytest.mark.parametrize(("array", "count"), [("[]", 0), ("[1]", 1), ("[1,2]", 2), ("[1,22,333]", 3)])
def test_numbers_in_an_array_are_counted(array: str, count: int) -> None:
    assert numbers_in(array) == count


def test_a_settlement_of_its_own_is_empty() -> None:
    assert Settlement() == NOTHING


# -- insertion -----------------------------------------------------------------------------------------------


def test_a_batch_keeps_plain_jobs_apart_from_those_that_need_more(tmp_path: Path) -> None:
    backend = Backend(str(tmp_path / "unused.db"))
    plain, tagged = backend.job(), replace(backend.job(), extras=JobExtras(tags=("a",)))
    unique = replace(backend.job(), extras=JobExtras(unique=UniqueClaim("key", 0, "replace")))
    repeated = replace(backend.job(), extras=JobExtras(is_idempotent=True))
    batch = batch_of([plain, tagged, unique, repeated])
    assert [row[0] for row in batch.plain] == [plain.id]
    assert [row[0] for row in json.loads(batch.special)] == [tagged.id, unique.id, repeated.id]
    assert batch.keyed == [unique, repeated]
    only_plain = batch_of([plain])
    assert (only_plain.special, only_plain.keyed) == ("", [])
    assert joined([batch]) is batch
    both = joined([only_plain, batch, only_plain, batch])
    assert [row[0] for row in both.plain] == [plain.id] * 4
    assert json.loads(both.special) == json.loads(batch.special) * 2
    assert both.keyed == batch.keyed * 2
    assert joined([only_plain, only_plain]).special == ""


def test_a_batch_knows_when_the_first_of_its_jobs_is_late() -> None:
    limits = (None, None), (9, None), (None, 5), (7, 8)
    jobs = [replace(Backend("").job(), extras=JobExtras(expires_at=one, deadline_at=other)) for one, other in limits]
    assert [batch_of(jobs[:count]).first_limit for count in range(1, 5)] == [None, 9, 5, 5]


@pytest.mark.parametrize("number", [1, 63, 64, 65, 200])
async def test_every_number_of_jobs_is_stored_in_its_order(backend: Backend, storage: Storage, number: int) -> None:
    jobs = [backend.job(priority=index) for index in range(number)]
    await storage.insert(jobs)
    page = await storage.find(JobFilter(), cursor=None, limit=number + 1)
    assert page.jobs == jobs[::-1]


def test_both_statements_that_store_plain_jobs_name_the_same_columns() -> None:
    named = re.search(r"INSERT INTO durableq_jobs \((.*?)\)", SQL["insert_jobs"], re.DOTALL)
    assert named is not None
    assert tuple(named[1].replace("\n", "").replace(" ", "").split(",")) == INSERTED_COLUMNS


async def test_of_several_conflicts_in_one_call_only_those_that_replace_do_so(
    backend: Backend, storage: Storage
) -> None:
    def unique(key: str, number: int, on_conflict: OnConflict) -> Job[Any]:
        job = backend.job(args_json=f'{{"number":{number}}}')
        return replace(job, extras=JobExtras(unique=UniqueClaim(key, 0, on_conflict)))

    kept, replaced = unique("a", 1, "return"), unique("b", 1, "return")
    await storage.insert([kept, replaced])
    again, instead, fresh = unique("a", 2, "return"), unique("b", 2, "replace"), unique("c", 2, "replace")
    assert await storage.insert([again, instead, fresh]) == {again.id: kept.id, instead.id: replaced.id}
    assert [(await stored(storage, job.id)).args["number"] for job in (kept, replaced, fresh)] == [1, 2, 2]


# -- by hand -------------------------------------------------------------------------------------------------


def test_a_filter_becomes_conditions_and_values() -> None:
    where = JobFilter(
        state=JobState.DEAD, task="t", queue="q", error_type="e", tag="x",
        created_after=MOMENT, created_before=MOMENT, finished_after=MOMENT, finished_before=MOMENT,
    )  # fmt: skip
    conditions, values = searching.matching(where)
    assert conditions == (
        " AND state = 'dead' AND task = :task AND queue = :queue AND error_type = :error_type"
        " AND created_at >= :created_after AND created_at < :created_before"
        " AND finished_at >= :finished_after AND finished_at < :finished_before"
        " AND json_valid(tags) AND :tag IN (SELECT value FROM json_each(tags))"
    )
    at = from_datetime(MOMENT)
    assert values == {
        "task": "t", "queue": "q", "error_type": "e", "tag": "x",
        "created_after": at, "created_before": at, "finished_after": at, "finished_before": at,
    }  # fmt: skip
    assert searching.matching(JobFilter()) == ("", {})
    assert searching.matching(JobFilter(queue="q")) == (" AND queue = :queue", {"queue": "q"})


async def test_the_audit_trail_says_what_was_done_to_what(backend: Backend, storage: Storage) -> None:
    [dead] = await backend.finished(storage, DEAD, args_json='{"a":1}')
    await storage.retry(dead.id, who="ann", args_json='{"a":2}')
    await storage.cancel(dead.id, who="bob")
    await storage.retry(dead.id, who="cat", args_json=None)
    await storage.cancel(dead.id, who="bob")
    await storage.delete(dead.id, who="dan")
    trail = sorted(await storage.audit_trail(dead.id), key=lambda entry: (entry.at, entry.action))
    said = {(entry.who, entry.action, json.dumps(entry.detail, sort_keys=True)) for entry in trail}
    assert len(trail) == 5
    assert said == {
        ("ann", "edit and retry", '{"args_after": {"a": 2}, "args_before": {"a": 1}, "attempt": 1, "was": "dead"}'),
        ("bob", "cancel", '{"was": "queued"}'),
        ("cat", "retry", '{"attempt": 0, "was": "cancelled"}'),
        ("dan", "delete", f'{{"task": "{WORK}", "was": "cancelled"}}'),
    }
    assert {entry.job_id for entry in trail} == {dead.id}


async def test_a_refusal_names_what_was_asked_and_what_the_state_is(backend: Backend, storage: Storage) -> None:
    [queued] = await backend.added(storage)
    [later] = await backend.added(storage, delay=60)
    for refused, action in (
        (storage.retry(queued.id, who="x", args_json=None), "retry"),
        (storage.retry(later.id, who="x", args_json="{}"), "edit and retry"),
        (storage.delete(queued.id, who="x"), "delete"),
    ):
        with pytest.raises(JobConflict, match=f"cannot {action}|{action}") as caught:
            await refused
        assert caught.value.state in (JobState.QUEUED, JobState.SCHEDULED)
        assert "dead" in str(caught.value)


async def test_retrying_many_takes_the_oldest_and_no_more_than_asked(backend: Backend, storage: Storage) -> None:
    dead = await backend.finished(storage, DEAD, 5)
    assert await storage.retry_matching(JobFilter(), who="ann", limit=2) == 2
    states = [(await stored(storage, job.id)).state for job in dead]
    assert states == [JobState.QUEUED] * 2 + [JobState.DEAD] * 3
    assert [entry.who for entry in await storage.audit_trail(dead[0].id)] == ["ann"]
    assert await storage.retry_matching(JobFilter(), who="ann", limit=100) == 3


async def test_of_two_dead_jobs_of_one_key_one_is_retried(backend: Backend, storage: Storage) -> None:
    extras = JobExtras(unique=UniqueClaim("key", 0, "return"))
    dead = []
    for _ in range(2):
        job = replace(backend.job(), extras=extras)
        await storage.insert([job])
        await settle(storage, [(one, DEAD) for one in await claim(storage)])
        dead.append(job)
    assert await storage.retry_matching(JobFilter(), who="ann", limit=100) == 1
    assert [(await stored(storage, job.id)).state for job in dead] == [JobState.QUEUED, JobState.DEAD]
    with pytest.raises(DuplicateJob) as caught:
        await storage.retry(dead[1].id, who="ann", args_json=None)
    assert caught.value.job_id == dead[0].id


async def test_damaged_arguments_are_kept_as_text_in_the_audit_trail(backend: Backend, storage: Storage) -> None:
    [dead] = await backend.finished(storage, DEAD)
    with sqlite3.connect(backend.url) as connection:
        connection.execute("UPDATE durableq_jobs SET args = ?", ("not JSON",))
    connection.close()
    await storage.retry(dead.id, who="ann", args_json="{}")
    [entry] = await storage.audit_trail(dead.id)
    assert entry.detail["args_before"] == "not JSON"


# -- payloads ------------------------------------------------------------------------------------------------


async def test_only_what_is_still_the_same_is_rewritten(backend: Backend, storage: Storage) -> None:
    first, second = await backend.finished(storage, Succeeded('"r"'), 2, args_json='{"a":1}')
    with sqlite3.connect(backend.url) as connection:
        seqs = dict(connection.execute("SELECT id, seq FROM durableq_jobs").fetchall())
        args = [
            Rewrite(seqs[first.id], '{"a":1}', '{"a":2}', checksum('{"a":2}')),
            Rewrite(seqs[second.id], "other", "new", 0),
        ]
        assert payloads.rewrite(connection, args, [Rewrite(seqs[second.id], '"r"', '"s"', 0)]) == (1, 1)
        assert payloads.rewrite(connection, [], []) == (0, 0)
    connection.close()
    assert [(await stored(storage, job.id)).args_json for job in (first, second)] == ['{"a":2}', '{"a":1}']
    assert [(await stored(storage, job.id)).result_json for job in (first, second)] == ['"r"', '"s"']
