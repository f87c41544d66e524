"""Markers that tie a test to the fault, or to the bug of another queue, that it shows to be harmless here."""

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "fault(*ids): the rows of tests/faults/matrix.py that this test shows")
    config.addinivalue_line("markers", "foreign_bug(*numbers): the bugs of tests/faults/foreign_bugs.py it rules out")
