"""Markers that tie a test to the fault, or to the bug of another queue, that it shows to be harmless here."""

from pathlib import Path

import pytest

# Before anything imports them: a failing assert in there shall show its values.
for contract in Path(__file__).with_name("storage").glob("contract*.py"):
    pytest.register_assert_rewrite(f"tests.storage.{contract.stem}")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "fault(*ids): the rows of tests/faults/matrix.py that this test shows")
    config.addinivalue_line("markers", "foreign_bug(*numbers): the bugs of tests/faults/foreign_bugs.py it rules out")
