"""The storage contract, run over every backend that ``conftest.py`` names."""

from tests.storage import contract, contract_by_hand, contract_leases


class TestAdding(contract.Adding): ...


class TestClaiming(contract.Claiming): ...


class TestSettling(contract.Settling): ...


class TestLeases(contract_leases.Leases): ...


class TestReaping(contract_leases.Reaping): ...


class TestByHand(contract_by_hand.ByHand): ...


class TestPruning(contract_by_hand.Pruning): ...


class TestLooking(contract_by_hand.Looking): ...
