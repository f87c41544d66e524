"""What type checkers say about an application: mistakes in a call are found before it runs, and right ones pass.

`tests.type_samples` is read by mypy in strict mode, and by pyright in its own standard mode. (basedpyright is pyright,
made to be installed by pip.)
"""

import json
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from textwrap import dedent

import pytest

from tests.type_samples import PREAMBLE, SAMPLES

Errors = dict[str, dict[int, str]]
"""By file and line."""


def source_of(title: str) -> str:
    return PREAMBLE + dedent(SAMPLES[title]).strip() + "\n"


def file_of(title: str) -> str:
    return f"sample_{list(SAMPLES).index(title)}.py"


def run_mypy(directory: Path, cache: Path) -> Errors:
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", f"--cache-dir={cache}"]
    command += ["--disable-error-code=empty-body", "--hide-error-context", "--no-pretty", "--no-error-summary", "."]
    output = output_of(command, directory)
    errors: Errors = defaultdict(dict)
    for line in output.splitlines():
        found = re.fullmatch(r"(sample_\d+\.py):(\d+): error: (.*)", line)
        if found is not None:
            errors[found[1]][int(found[2])] = found[3]
        else:
            assert ": note: " in line, output  # an error elsewhere: the samples were not checked as meant
    return errors


def run_pyright(directory: Path) -> Errors:
    (directory / "pyrightconfig.json").write_text(json.dumps({"typeCheckingMode": "standard"}))
    command = [sys.executable, "-m", "basedpyright", "--outputjson", f"--pythonpath={sys.executable}"]
    report = json.loads(output_of(command, directory))
    assert report["summary"]["filesAnalyzed"] == len(SAMPLES), report
    errors: Errors = defaultdict(dict)
    for one in report["generalDiagnostics"]:
        if one["severity"] == "error":
            errors[Path(one["file"]).name][one["range"]["start"]["line"] + 1] = one["message"]
    return errors


def output_of(command: list[str], directory: Path) -> str:
    ended = subprocess.run(command, cwd=directory, capture_output=True, text=True, timeout=170)
    assert ended.returncode in (0, 1), ended.stdout + ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> dict[str, Errors]:
    """What each checker finds, in one run over all samples, side by side. mypy keeps its cache for the next time."""
    directory = tmp_path_factory.mktemp("samples")
    for title in SAMPLES:
        (directory / file_of(title)).write_text(source_of(title))
    assert pytestconfig.cache is not None
    cache = pytestconfig.cache.mkdir("mypy")
    checkers: dict[str, Callable[[], Errors]] = {
        "mypy": lambda: run_mypy(directory, cache),
        "pyright": lambda: run_pyright(directory),
    }
    with ThreadPoolExecutor() as pool:
        running = {name: pool.submit(check) for name, check in checkers.items()}
        return {name: errors.result() for name, errors in running.items()}


def refused_lines(title: str, checker: str) -> dict[int, str]:
    lines = source_of(title).splitlines()
    marks = ("# refused", f"# refused by {checker}")
    return {number: line for number, line in enumerate(lines, 1) if line.endswith(marks)}


@pytest.mark.timeout(180)
@pytest.mark.parametrize("checker", ["mypy", "pyright"])
@pytest.mark.parametrize("title", SAMPLES)
def test_a_type_checker_finds_the_mistakes_and_nothing_else(found: dict[str, Errors], title: str, checker: str) -> None:
    errors, refused = found[checker].get(file_of(title), {}), refused_lines(title, checker)
    unexpected = {number: text for number, text in errors.items() if number not in refused}
    missed = {number: line for number, line in refused.items() if number not in errors}
    assert (unexpected, missed) == ({}, {})
