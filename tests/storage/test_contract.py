"""The storage contract, run over every backend that ``conftest.py`` names."""

from tests.storage import (
    contract,
    contract_by_hand,
    contract_cancelling,
    contract_encryption,
    contract_idempotency,
    contract_leases,
    contract_notes,
    contract_operating,
    contract_time,
    contract_unique,
    contract_unique_life,
    contract_watching,
)


class TestAdding(contract.Adding): ...


class TestClaiming(contract.Claiming): ...


class TestSettling(contract.Settling): ...


class TestLeases(contract_leases.Leases): ...


class TestReaping(contract_leases.Reaping): ...


class TestByHand(contract_by_hand.ByHand): ...


class TestPruning(contract_by_hand.Pruning): ...


class TestLooking(contract_by_hand.Looking): ...


class TestUniqueKeys(contract_unique.UniqueKeys): ...


class TestRefusing(contract_unique.Refusing): ...


class TestReplacing(contract_unique.Replacing): ...


class TestKeysOverALife(contract_unique_life.KeysOverALife): ...


class TestKeysByHand(contract_unique_life.KeysByHand): ...


class TestIdempotencyKeys(contract_idempotency.IdempotencyKeys): ...


class TestFollowUps(contract_idempotency.FollowUps): ...


class TestOverdue(contract_time.Overdue): ...


class TestSnoozing(contract_time.Snoozing): ...


class TestResultsForAWhile(contract_time.ResultsForAWhile): ...


class TestCancellingWhatRuns(contract_cancelling.CancellingWhatRuns): ...


class TestBeingToldToCancel(contract_cancelling.BeingToldToCancel): ...


class TestCarrying(contract_notes.Carrying): ...


class TestSaying(contract_notes.Saying): ...


class TestStateOfLease(contract_notes.StateOfLease): ...


class TestFinishedAmong(contract_watching.FinishedAmong): ...


class TestWatching(contract_watching.Watching): ...


class TestPayloads(contract_encryption.Payloads): ...


class TestRewriting(contract_encryption.Rewriting): ...


class TestPausing(contract_operating.Pausing): ...


class TestTallying(contract_operating.Tallying): ...


class TestOverviews(contract_operating.Overviews): ...


class TestSearching(contract_operating.Searching): ...


class TestTogether(contract_operating.Together): ...
