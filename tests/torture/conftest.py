"""Tests that fork are run in a process of their own: a fork copies one thread, and other tests leave some behind."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ALONE = "DURABLEQ_TESTS_ALONE"
FORKING = {"test_power_cuts.py"}


class Alone(pytest.Item):
    """All tests of a file."""

    def runtest(self) -> None:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(self.path)]
        ran = subprocess.run(
            command,
            cwd=self.config.rootpath,
            env=os.environ | {ALONE: "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, ran.stdout[-20_000:] + ran.stderr

    def reportinfo(self) -> tuple[Path, int, str]:
        return self.path, 0, f"{self.path.name}, in a process of its own"


class ForkingFile(pytest.File):
    def collect(self) -> Iterator[pytest.Item]:
        item = Alone.from_parent(self, name="alone")
        item.add_marker(pytest.mark.timeout(400))
        yield item


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    if module_path.name not in FORKING or ALONE in os.environ:
        return None
    forking: ForkingFile = ForkingFile.from_parent(parent, path=module_path)
    return forking
