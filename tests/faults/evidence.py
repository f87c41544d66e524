"""Which tests show what: read from the markers in the sources of the tests, without running them."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

TESTS: Final = Path(__file__).resolve().parents[1]
MARKERS: Final = ("fault", "foreign_bug")


@dataclass(frozen=True, order=True)
class Proof:
    """A test, by the file that holds it and its name."""

    path: str
    """Below the repository, with slashes."""
    name: str

    @property
    def promise(self) -> str:
        """The test's name as a sentence, without the number of the bug it may be named after."""
        return re.sub(r"^test_(bug_\d+_)?", "", self.name).replace("_", " ")


@dataclass(frozen=True)
class Evidence:
    """The tests that carry a marker, by what it names."""

    faults: Mapping[str, list[Proof]]
    foreign_bugs: Mapping[int, list[Proof]]


def read_evidence(root: Path = TESTS) -> Evidence:
    """Return every marked test below a directory of tests, in the order of files and lines."""
    faults: dict[str, list[Proof]] = defaultdict(list)
    bugs: dict[int, list[Proof]] = defaultdict(list)
    for path in sorted(root.rglob("*.py")):
        for marker, named, proof in _marked(path, path.relative_to(root.parent).as_posix()):
            if marker == "fault":
                faults[str(named)].append(proof)
            else:
                assert isinstance(named, int), f"{proof}: {named!r} is not a number"
                bugs[named].append(proof)
    return Evidence(dict(faults), dict(bugs))


def _marked(path: Path, shown: str) -> Iterator[tuple[str, str | int, Proof]]:
    source = path.read_text()
    if not any(f"pytest.mark.{marker}" in source for marker in MARKERS):
        return
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            for marker, named in _markers(node.decorator_list):
                yield marker, named, Proof(shown, node.name)


def _markers(decorators: Iterable[ast.expr]) -> Iterator[tuple[str, str | int]]:
    for decorator in decorators:
        if isinstance(decorator, ast.Call) and (marker := _marker(decorator.func)) in MARKERS:
            for argument in decorator.args:
                yield marker, ast.literal_eval(argument)


def _marker(function: ast.expr) -> str:
    """Return the last word of ``pytest.mark.<word>``, or nothing."""
    name = ast.unparse(function)
    return name.removeprefix("pytest.mark.") if name.startswith("pytest.mark.") else ""
