"""One transaction for a group of operations: run it, commit it, and know whether it is stored.

It is run batched, and with care, each operation by itself, when that does not work. An error at COMMIT is answered by
running it once more: whoever gets an answer can rely on it.
"""

import contextlib
import logging
import sqlite3
from pathlib import Path
from typing import Any

from durableq.errors import InvariantBroken, OutcomeUnknown
from durableq.storage.sqlite.connection import begin, is_fatal, is_full
from durableq.storage.sqlite.group import Effects, GroupRunner, Irregular, claimed_by, still_held, without_claims
from durableq.storage.sqlite.operation import Exchange, Operation

logger = logging.getLogger("durableq.storage")


class Committer:
    """Runs groups on one writing connection. The writer begins the transactions: it may have to wait for the lock."""

    def __init__(self, connection: sqlite3.Connection, path: Path, runner: GroupRunner) -> None:
        self._connection = connection
        self._path = path
        self._runner = runner

    def commit(self, group: list[Operation]) -> tuple[list[Any], Effects]:
        """Run a group in the transaction that was begun for it, and commit; return the answers, and what they changed.

        Raises `OutcomeUnknown` when COMMIT failed twice; else what SQLite raised, or `InvariantBroken`: then nothing
        of it is stored, and the transaction may be open still.
        """
        answers, effects = self._run(group)
        try:
            self._connection.execute("COMMIT")
        except sqlite3.Error as error:
            if is_full(error):
                raise  # the log could not take the commit: known not to be stored
            logger.warning("COMMIT to %s failed (%s); trying once more", self._path, error)
            return self._replay(group, error, claimed_by(group, answers))
        return answers, effects

    def _run(self, group: list[Operation]) -> tuple[list[Any], Effects]:
        """Run the group batched; if that fails with the transaction intact, once more with care."""
        effects = Effects()
        before = self._connection.total_changes
        try:
            answers = self._runner.run(self._connection, group, effects)
        except (sqlite3.Error, Irregular) as error:
            if not self._connection.in_transaction:
                raise  # SQLite undid everything: disk full, I/O error. Going on would commit pieces
            if isinstance(error, sqlite3.Error) and is_fatal(error):
                raise
            self._connection.execute("ROLLBACK")
            begin(self._connection)
            effects = Effects()
            answers = self._runner.run_carefully(self._connection, group, effects)
        effects.changed_rows = self._connection.total_changes - before
        return answers, effects

    def _replay(
        self, group: list[Operation], first: sqlite3.Error, claimed: dict[int, str]
    ) -> tuple[list[Any], Effects]:
        """After an error at COMMIT: run the group once in a fresh transaction.

        Inserts are idempotent by id and settles are fenced, so a commit that did happen does no harm. If this one
        commits, the outcome is known; if not, nobody can say. Claims are not made again: they are answered with what
        they took if that commit did happen, and whoever may claim is woken to look anew.
        """
        try:
            self.roll_back()
            begin(self._connection)
            answers, effects = self._run(without_claims(group))
            for number, leases in claimed.items():
                claim = group[number]
                if isinstance(claim, Exchange) and not isinstance(answers[number], Exception):
                    answers[number] = answers[number][0], still_held(self._connection, leases, claim.worker_id)
            effects.made_work |= bool(claimed)
            self._connection.execute("COMMIT")
        except (sqlite3.Error, Irregular, InvariantBroken) as error:
            raise OutcomeUnknown(
                f"COMMIT to {self._path} failed ({first}) and so did its repetition ({error}): "
                "the jobs may or may not be stored"
            ) from error
        return answers, effects

    def roll_back(self) -> None:
        """End the transaction that is open, if one is. Never raises."""
        if self._connection.in_transaction:
            with contextlib.suppress(sqlite3.Error):
                self._connection.execute("ROLLBACK")
