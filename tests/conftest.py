"""What holds for all tests: their order, and the markers that tie one to the fault that it shows to be harmless."""

from pathlib import Path

import pytest

# Before anything imports them: a failing assert in there shall show its values.
for contract in Path(__file__).with_name("storage").glob("contract*.py"):
    pytest.register_assert_rewrite(f"tests.storage.{contract.stem}")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "fault(*ids): the rows of tests/faults/matrix.py that this test shows")
    config.addinivalue_line("markers", "foreign_bug(*numbers): the bugs of tests/faults/foreign_bugs.py it rules out")


LONGEST = ("test_checks.py", "test_model.py", "test_security_fuzz.py", "test_ledger.py", "test_power_cuts.py")


NOT_MEASURED = ("torture", "browser")
"""Folders of tests that see children and browsers at work: measuring coverage would only slow them down."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest begin first: at the end, one process would be busy with them alone."""
    for item in items:
        if item.path.parent.name in NOT_MEASURED:
            item.add_marker("no_cover")
    items.sort(key=lambda item: LONGEST.index(item.path.name) if item.path.name in LONGEST else len(LONGEST))
