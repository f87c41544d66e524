"""A group of operations in one transaction: in how few statements it is done, and what it adds up to."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from durableq.models import PLAIN, Failure, JobExtras, Lease, Outcome, Released, Retried
from durableq.storage.sqlite import schema
from durableq.storage.sqlite.connection import Location, connect
from durableq.storage.sqlite.group import LOOKED_FOR, Effects, GroupRunner
from durableq.storage.sqlite.operation import Addition, Exchange, Insert, Operation, Transact, make_insert
from durableq.storage.sqlite.replies import NoReply
from durableq.storage.sqlite.rows import leases_from_json
from durableq.storage.sqlite.settling import settlement_of
from durableq.storage.sqlite.statements import SQL
from tests.storage.support import DONE, WORK, Backend

NOW = 1_000_000
LATER = Retried(Failure("ValueError", "no", "no"), run_at=10**18)


class Groups:
    """Runs groups on a connection of its own, as the writer does."""

    def __init__(self, path: Path) -> None:
        self.connection = connect(Location(path))
        schema.migrate(self.connection, now=0)
        self.connection.execute(SQL["register_worker"], {"pid": 1, "boot_id": "boot", "expires_at": 1, "now": 0})
        self.jobs = Backend(str(path))
        self.runner = GroupRunner(lambda: NOW)
        self.statements: list[str] = []
        """The first word of each statement of the latest group."""
        self._latest = ""

    def insert(self, *, queue: str = "default", delay: float = 0, extras: JobExtras = PLAIN) -> Insert:
        job = replace(self.jobs.job(queue=queue, delay=delay), extras=extras)
        return make_insert([Addition([job], NoReply())], lambda name: None)

    def exchange(self, settled: Sequence[tuple[Lease, Outcome]] = (), room: int = 0) -> Exchange:
        lanes = ((f'["{WORK}"]', room),) if room else ()
        return Exchange(
            reply=NoReply(), worker_id=1, settlement=settlement_of(settled, NOW), lanes=lanes, queues='["default"]'
        )

    def run(self, *group: Operation) -> tuple[list[Any], Effects]:
        effects = Effects()
        self.connection.execute("BEGIN IMMEDIATE")
        self.statements, self._latest = [], ""
        self.connection.set_trace_callback(self._note)
        answers = self.runner.run(self.connection, group, effects)
        self.connection.set_trace_callback(None)
        self.connection.execute("COMMIT")
        self.runner.known_queues |= effects.new_queues
        self.runner.known_tasks |= effects.new_tasks
        self.runner.described_tasks |= effects.new_tasks
        return answers, effects

    def _note(self, statement: str) -> None:
        """A statement is told again for each program of a trigger, and virtual tables tell theirs as comments."""
        if not statement.startswith("--") and statement != self._latest:
            self.statements.append(statement.split()[0])
            self._latest = statement

    def claimed(self, count: int) -> list[Lease]:
        """Add so many jobs and claim them."""
        self.run(*(self.insert() for _ in range(count)))
        [(_, leases)], _ = self.run(self.exchange(room=count))
        return leases_from_json(leases)


@pytest.fixture
def groups(tmp_path: Path) -> Iterator[Groups]:
    groups = Groups(tmp_path / "jobs.db")
    yield groups
    groups.connection.close()


def test_all_inserts_of_a_group_are_one_statement(groups: Groups) -> None:
    groups.run(groups.insert())
    groups.run(*(groups.insert() for _ in range(5)))
    assert groups.statements == ["INSERT"]


def test_names_are_stored_when_they_are_new_only(groups: Groups) -> None:
    _, effects = groups.run(groups.insert(), groups.insert(queue="mail"))
    assert (effects.new_queues, effects.new_tasks) == ({"default", "mail"}, {WORK})
    _, effects = groups.run(groups.insert(queue="mail"))
    assert (effects.new_queues, effects.new_tasks) == (set(), set())
    _, effects = groups.run(groups.insert(queue="sms"))
    assert (effects.new_queues, effects.new_tasks) == ({"sms"}, set())


def test_a_claim_is_two_statements_and_one_when_there_is_nothing(groups: Groups) -> None:
    groups.run(groups.insert())
    groups.run(groups.exchange(room=2))
    assert groups.statements == ["SELECT", "UPDATE"]
    groups.run(groups.exchange(room=2))
    assert groups.statements == ["SELECT"]


def test_a_settle_whose_leases_hold_is_one_statement(groups: Groups) -> None:
    leases = groups.claimed(3)
    groups.run(groups.exchange([(lease, DONE) for lease in leases]))
    assert groups.statements == ["UPDATE"]


def test_work_that_any_of_a_group_makes_is_told(groups: Groups) -> None:
    ready, waiting = groups.insert(), groups.insert(delay=60)
    assert groups.run(ready, waiting)[1].made_work
    assert groups.run(groups.insert(delay=60), groups.insert())[1].made_work
    assert not groups.run(groups.insert(delay=60))[1].made_work
    first, second = groups.claimed(2)
    handed_back, done = groups.exchange([(first, Released())]), groups.exchange([(second, DONE)])
    assert groups.run(handed_back, done)[1].made_work


def test_an_end_that_any_of_a_group_brings_is_told(groups: Groups) -> None:
    first, second, third = groups.claimed(3)
    assert not groups.run(groups.exchange([(first, LATER)]))[1].finished
    assert groups.run(groups.exchange([(second, DONE)]), groups.exchange([(third, LATER)]))[1].finished


def test_the_end_of_a_job_that_was_to_be_cancelled_is_told(groups: Groups) -> None:
    first, second = groups.claimed(2)
    groups.connection.execute("UPDATE durableq_jobs SET cancel_requested_at = 1 WHERE seq = ?", (first.seq,))
    group = groups.exchange([(first, LATER)]), groups.exchange([(second, LATER)])
    assert groups.run(*group)[1].finished


def test_what_a_group_writes_adds_up(groups: Groups) -> None:
    first, second = groups.claimed(2)
    plain, tagged = groups.insert(), groups.insert(extras=JobExtras(tags=("tag" * 50,)))
    done, retried = groups.exchange([(first, DONE)]), groups.exchange([(second, LATER)])
    _, effects = groups.run(plain, tagged, done, retried)
    settled = done.settlement.size + retried.settlement.size
    assert effects.written_bytes == plain.size + tagged.size + settled


def test_what_a_rarer_operation_brings_about_is_told_from_its_answer(groups: Groups) -> None:
    def rarer(answer: int, *, cancels: bool = False) -> Transact:
        return Transact(
            reply=NoReply(),
            run=lambda connection: answer,
            makes_work=lambda result: result == 1,
            finishes=lambda result: result == 2,
            cancels=cancels,
        )

    told = [groups.run(rarer(0)), groups.run(rarer(1)), groups.run(rarer(2)), groups.run(rarer(3, cancels=True))]
    assert [(effects.made_work, effects.finished, effects.asked_to_cancel) for _, effects in told] == [
        (False, False, False),
        (True, False, False),
        (False, True, False),
        (False, False, True),
    ]


def test_nobody_is_woken_for_jobs_that_were_claimed_with_their_addition(groups: Groups) -> None:
    assert groups.run(groups.insert())[1].made_work
    groups.run(groups.exchange(room=1))
    _, effects = groups.run(groups.insert(), groups.insert(delay=60), groups.exchange(room=5))
    assert (effects.made_work, effects.first_due is not None) == (False, True)


def test_somebody_is_woken_for_jobs_that_a_claim_beside_them_left_or_could_not_know(groups: Groups) -> None:
    assert groups.run(groups.insert(), groups.insert(), groups.exchange(room=1))[1].made_work
    groups.run(groups.exchange(room=9))
    assert groups.run(groups.insert(), groups.insert(queue="other"), groups.exchange(room=5))[1].made_work
    groups.claimed(1)
    assert groups.run(groups.insert(), groups.exchange())[1].made_work
    many = [groups.insert() for _ in range(LOOKED_FOR + 1)]
    assert groups.run(*many, groups.exchange(room=500))[1].made_work


def test_work_of_another_kind_is_told_though_all_new_jobs_were_claimed(groups: Groups) -> None:
    [lease] = groups.claimed(1)
    released = groups.exchange([(lease, Released())])
    assert groups.run(groups.insert(), groups.exchange(room=1), released)[1].made_work
