"""Runs a group of operations in one transaction.

The common way is *batched*: one statement for all inserts of the group, one for a worker's settles, two for its
claim. If anything is out of the ordinary, the whole group is rolled back and run *carefully*: each operation in a
savepoint of its own, so that a bad one hurts only itself. Except a write that changes other rows than those chosen
for it: that rolls back the whole group, and stops the queue.
"""

import json
import sqlite3
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from durableq.errors import InvariantBroken, JobConflict, NotStored
from durableq.models import JobState, Lease
from durableq.storage.protocol import Conflicts
from durableq.storage.sqlite.insertion import joined, store
from durableq.storage.sqlite.operation import Addition, Exchange, Insert, Operation, make_insert
from durableq.storage.sqlite.replies import NoReply
from durableq.storage.sqlite.settling import check_settled, exactly, numbers_in, settle
from durableq.storage.sqlite.statements import SQL, choose_statement

LOOKED_FOR: Final = 64
"""So many new jobs are looked for among those that were claimed with them."""
_ID: Final = Lease._fields.index("id")


@dataclass(slots=True)
class Effects:
    """What a group's commit changed that others must hear of."""

    made_work: bool = False
    finished: bool = False
    """Some job is finished."""
    asked_to_cancel: bool = False
    new_queues: set[str] = field(default_factory=set)
    new_tasks: set[str] = field(default_factory=set)
    first_due: int | None = None
    first_limit: int | None = None
    """When the first new job expires, or should be finished."""
    changed_rows: int = 0
    written_bytes: int = 0

    def include(self, other: "Effects") -> None:
        self.made_work |= other.made_work
        self.finished |= other.finished
        self.asked_to_cancel |= other.asked_to_cancel
        self.written_bytes += other.written_bytes
        self.new_queues |= other.new_queues
        self.new_tasks |= other.new_tasks
        self.first_due = earlier(self.first_due, other.first_due)
        self.first_limit = earlier(self.first_limit, other.first_limit)


def earlier(one: int | None, other: int | None) -> int | None:
    """Return the earlier of two instants, either of which may be missing."""
    if one is None or other is None:
        return other if one is None else one
    return min(one, other)


def _conflicts_of(operation: Insert, conflicts: Conflicts) -> list[Conflicts] | None:
    """The conflicts of each addition of one insert, None for none at all."""
    if not conflicts:
        return None
    return [
        {job.id: conflicts[job.id] for job in addition.jobs if job.id in conflicts} for addition in operation.additions
    ]


class Irregular(Exception):
    """The batched way met something it does not handle; run the group carefully."""


class GroupRunner:
    """Executes operations on the writing connection, inside a transaction that the writer began."""

    def __init__(self, wall: Callable[[], int]) -> None:
        self._wall = wall
        self.known_queues: set[str] = set()
        self.known_tasks: set[str] = set()
        self.described_tasks: set[str] = set()
        """Those that this process has told of: what it knows of their arguments may be newer than what was there."""

    def run(self, connection: sqlite3.Connection, group: Sequence[Operation], effects: Effects) -> list[Any]:
        """Run the group batched; return an answer per operation.

        Raises `Irregular`, or what SQLite raised; the caller rolls back.
        """
        inserts = [operation for operation in group if isinstance(operation, Insert)]
        conflicts: Conflicts = {}
        added = Effects()
        if inserts:  # first, so that a claim in the same group finds them
            try:
                conflicts = self._insert(connection, inserts, added)
            except (JobConflict, NotStored) as error:
                raise Irregular("a job is refused") from error
        answers = [
            _conflicts_of(operation, conflicts)
            if isinstance(operation, Insert)
            else self._other(connection, operation, effects)
            for operation in group
        ]
        if added.made_work and _all_are_claimed(inserts, group, answers):
            added.made_work = False
        effects.include(added)
        return answers

    def run_carefully(self, connection: sqlite3.Connection, group: Sequence[Operation], effects: Effects) -> list[Any]:
        """Run each operation, and each addition of an insert, in a savepoint; an error is its own answer.

        Raises what SQLite raised only when it has rolled the whole transaction back.
        """
        answers: list[Any] = []
        for operation in group:
            if isinstance(operation, Insert):
                parts = [make_insert([addition], operation.schema_of) for addition in operation.additions]
                answers.append([self._in_savepoint(connection, part, effects) for part in parts])
            else:
                answers.append(self._in_savepoint(connection, operation, effects))
        return answers

    def _other(self, connection: sqlite3.Connection, operation: Operation, effects: Effects) -> Any:
        if isinstance(operation, Exchange):
            return self._exchange(connection, operation, effects)
        return self._in_savepoint(connection, operation, effects)

    def _in_savepoint(self, connection: sqlite3.Connection, operation: Operation, effects: Effects) -> Any:
        connection.execute("SAVEPOINT durableq_operation")
        own = Effects()
        try:
            answer = self._alone(connection, operation, own)
        except InvariantBroken:
            raise  # nothing of this transaction may be committed
        except Exception as error:
            if not connection.in_transaction:
                raise  # SQLite rolled everything back: there is no savepoint to return to
            connection.execute("ROLLBACK TO durableq_operation")
            answer = error
        else:
            effects.include(own)
        connection.execute("RELEASE durableq_operation")
        return answer

    def _alone(self, connection: sqlite3.Connection, operation: Operation, effects: Effects) -> Any:
        if isinstance(operation, Insert):
            return self._insert(connection, [operation], effects)
        if isinstance(operation, Exchange):
            return self._exchange(connection, operation, effects, careful=True)
        result = operation.run(connection)
        effects.made_work |= operation.makes_work is not None and operation.makes_work(result)
        effects.finished |= operation.finishes is not None and operation.finishes(result)
        effects.asked_to_cancel |= operation.cancels
        return result

    def _insert(
        self, connection: sqlite3.Connection, inserts: list[Insert], effects: Effects, *, refuses: bool = True
    ) -> Conflicts:
        changes = connection.total_changes
        conflicts = store(connection, joined([operation.batch for operation in inserts]), refuses=refuses)
        if connection.total_changes - changes < sum(operation.count for operation in inserts):
            _find_all(connection, inserts, conflicts)
        for operation in inserts:
            effects.written_bytes += operation.size
            if not operation.queues <= self.known_queues or not operation.tasks <= self.described_tasks:
                self._learn_names(connection, operation, effects)
            effects.made_work |= operation.has_queued
            effects.first_due = earlier(effects.first_due, operation.first_due)
            effects.first_limit = earlier(effects.first_limit, operation.batch.first_limit)
        return conflicts

    def _learn_names(self, connection: sqlite3.Connection, operation: Insert, effects: Effects) -> None:
        queues = operation.queues - self.known_queues
        tasks = operation.tasks - self.described_tasks
        connection.execute(SQL["insert_queue_names"], {"names": json.dumps(sorted(queues))})
        described = [[name, operation.schema_of(name)] for name in sorted(tasks)]
        connection.execute(SQL["insert_task_names"], {"names": json.dumps(described)})
        effects.new_queues |= queues
        effects.new_tasks |= tasks

    def _exchange(
        self, connection: sqlite3.Connection, operation: Exchange, effects: Effects, *, careful: bool = False
    ) -> tuple[list[int], str]:
        self._take_notes(connection, operation)
        settlement = operation.settlement
        careful = careful or bool(settlement.follow_ups)
        lost = self._settle(connection, operation, effects, careful=careful) if settlement.count else []
        effects.made_work |= settlement.has_queued
        effects.finished |= settlement.has_final
        effects.first_due = earlier(effects.first_due, settlement.first_due)
        effects.written_bytes += settlement.size
        return lost, (self._claim(connection, operation) if operation.claims else "[]")

    def _take_notes(self, connection: sqlite3.Connection, operation: Exchange) -> None:
        """Write what running jobs said, before any of them is settled."""
        if operation.progress is not None:
            connection.execute(SQL["write_progress"], {"progress": operation.progress})
        if operation.logs is not None:
            connection.execute(SQL["insert_logs"], {"logs": operation.logs})

    def _settle(
        self, connection: sqlite3.Connection, operation: Exchange, effects: Effects, *, careful: bool
    ) -> list[int]:
        """Write outcomes; return the ``seq`` of those whose lease no longer held."""
        lost: list[int] = []
        if careful:
            text = connection.execute(SQL["lost_leases"], {"outcomes": operation.settlement.outcomes}).fetchone()[0]
            lost = json.loads(text)
        written = settle(connection, operation.settlement, self._wall())
        if not careful and written.held < operation.settlement.count:
            raise Irregular("some leases no longer hold")
        check_settled(operation.settlement, written, lost)
        effects.finished |= written.cancelled > 0
        follow_ups = [job for seq, jobs in operation.settlement.follow_ups if seq not in lost for job in jobs]
        if follow_ups:  # after the settle, which gives unique keys back. What is there stands: nobody is left to mind
            addition = make_insert([Addition(follow_ups, NoReply())], operation.schema_of)
            self._insert(connection, [addition], effects, refuses=False)
        return lost

    def _claim(self, connection: sqlite3.Connection, operation: Exchange) -> str:
        """Choose and take jobs; return the leases as a JSON array of arrays."""
        values: dict[str, Any] = {
            "worker_id": operation.worker_id,
            "queues": operation.queues,
            "suspect_tasks": operation.suspect_tasks,
        }
        for lane, (tasks, limit) in enumerate(operation.lanes):
            values[f"tasks_{lane}"] = tasks
            values[f"limit_{lane}"] = limit
        choose = choose_statement(len(operation.lanes), operation.suspect_tasks is not None)
        seqs, leases, with_settings = connection.execute(choose, values).fetchone()
        if seqs != "[]":
            values = {"seqs": seqs, "worker_id": operation.worker_id, "now": self._wall()}
            exactly(connection.execute(SQL["take"], values).rowcount, numbers_in(seqs), "claiming the chosen jobs")
        if with_settings:
            noted = connection.execute(SQL["note_start"], {"seqs": seqs}).rowcount
            exactly(noted, with_settings, "noting the start of jobs with limits")
        return str(leases)


def _all_are_claimed(inserts: Sequence[Insert], group: Sequence[Operation], answers: Sequence[Any]) -> bool:
    """Whether claims of the same group have taken all jobs that it added, so that nobody need be woken for them.

    Not found out for many: to look for them would cost more than a look of the woken.
    """
    claimed = claimed_by(group, answers).values()
    if not claimed or sum(operation.count for operation in inserts) > LOOKED_FOR:
        return False
    taken = {lease[_ID] for leases in claimed for lease in json.loads(leases)}
    queued = (
        job.id
        for operation in inserts
        for addition in operation.additions
        for job in addition.jobs
        if job.state is JobState.QUEUED
    )
    return taken.issuperset(queued)


def _find_all(connection: sqlite3.Connection, inserts: Sequence[Insert], conflicts: Conflicts) -> None:
    """Look for every single job, when fewer were stored than came: a replay finds them there. Raises when not."""
    jobs = [job.id for operation in inserts for addition in operation.additions for job in addition.jobs]
    ids = json.dumps([job_id for job_id in jobs if job_id not in conflicts])
    missing = connection.execute(SQL["count_missing"], {"ids": ids}).fetchone()[0]
    if missing:
        raise InvariantBroken("storing jobs", expected=f"all {len(jobs)} to be there", found=f"{missing} missing")


def claimed_by(group: Sequence[Operation], answers: Sequence[Any]) -> dict[int, str]:
    """Return the leases, as JSON, that each claim of a group took, by its number in the group."""
    return {
        number: "[]" if isinstance(answer, Exception) else answer[1]
        for number, (one, answer) in enumerate(zip(group, answers, strict=True))
        if isinstance(one, Exchange) and one.claims
    }


def still_held(connection: sqlite3.Connection, leases: str, worker_id: int) -> str:
    """Return those of a worker's leases that hold, as JSON too.

    Whose they are matters: if the claim was not stored, another worker may have got the same numbers since.
    """
    found = connection.execute(SQL["leases_of_worker"], {"worker_id": worker_id})
    held = {(seq, lease_no) for seq, lease_no, *_ in found}
    return json.dumps([lease for lease in json.loads(leases) if (lease[0], lease[1]) in held])


def without_claims(group: Iterable[Operation]) -> list[Operation]:
    """Return the group as it may be replayed after a failed COMMIT: what was claimed is dropped."""
    return [
        replace(operation, lanes=(), suspect_tasks=None) if isinstance(operation, Exchange) else operation
        for operation in group
    ]
