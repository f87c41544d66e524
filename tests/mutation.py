"""Mutation testing: `python -m tests.mutation [GROUP ...]`, `make mutate`.

Small faults are put into the modules that promises rest on, one at a time; each must make a test fail. What survives
is either in tests/mutation_reasons.toml with the reason why that is right, or makes this program fail. What became of
each module's faults is kept in docs/mutation.json, and docs/mutation.md is written from it: a run of one group renews
the rows of its modules.

mutmut makes the faults and runs the tests: in a copy (under .venv/mutation), for each group of modules with the
tests of that group that take less than half a second. Left out is the wording of messages: strings in what is raised
or logged. Faults that the type checker refuses are not run; they are in the table, and not in the score.
"""

import ast
import difflib
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from fnmatch import fnmatch
from importlib.metadata import version
from itertools import takewhile
from pathlib import Path
from platform import python_version
from typing import TypeGuard

from tests.mutation_groups import GROUPS, Group

ROOT = Path(__file__).parents[1]
WORKSPACES = ROOT / ".venv" / "mutation"
REASONS = ROOT / "tests" / "mutation_reasons.toml"
REPORT = ROOT / "docs" / "mutation.md"
KEPT = ROOT / "docs" / "mutation.json"
SLOW_SECONDS = 0.5
PYTEST_OPTIONS = ("--timeout=8", "--hypothesis-seed=0", "-p", "no:cacheprovider")
STATUSES = {0: "survived", 1: "killed", 3: "killed", 37: "refused", 5: "untested", 33: "untested", None: "left out"}
"""By the exit code that mutmut notes. Anything else is a test that did not end, or took its process down."""

TYPES = "--types"
ONLY_REPORT = "--report"


def main(arguments: Sequence[str]) -> int:
    if arguments[:1] == [TYPES]:
        return check_types(arguments[2:])
    names = [name for name in arguments if name != ONLY_REPORT]
    chosen = [group for group in GROUPS if group.name in names or not names]
    if ONLY_REPORT not in arguments:
        for group in chosen:
            test(group)
    tested = [tested_in(group, module) for group in chosen for module in group.modules]
    reasons = reasons_given()
    print("\n".join(table(tested)))
    REPORT.write_text(report(keep(tested), reasons) + "\n")
    new = [result for one in tested for result in one.open if reason_of(result, reasons) is None]
    print("\n".join(["", *(result.shown() for result in new), f"{len(new)} without a reason in {REASONS.name}"]))
    return 1 if new else 0


@dataclass(frozen=True)
class Result:
    """What became of one fault."""

    module: str
    function: str
    was: str
    became: str
    status: str

    @property
    def is_open(self) -> bool:
        return self.status not in ("killed", "timed out", "refused")

    def shown(self) -> str:
        return f"{self.module}.{self.function} ({self.status})\n    - {self.was}\n    + {self.became}"


@dataclass(frozen=True)
class Tested:
    """What became of the faults of one module."""

    module: str
    day: str
    counts: Mapping[str, int]
    """How many faults, by what became of them."""
    open: Sequence[Result]
    """Those that no test has found."""


def tested_in(group: Group, module: str) -> Tested:
    results = list(results_in(WORKSPACES / group.name, module))
    counts = dict(Counter(result.status for result in results))
    return Tested(module, f"{date.today():%Y-%m-%d}", counts, [result for result in results if result.is_open])


def keep(tested: Sequence[Tested]) -> list[Tested]:
    """Renew what is kept of these modules; return all that is kept, in the order of the groups."""
    before = json.loads(KEPT.read_text()) if KEPT.exists() else []
    kept = {one["module"]: Tested(**one | {"open": [Result(**result) for result in one["open"]]}) for one in before}
    kept |= {one.module: one for one in tested}
    modules = [module for group in GROUPS for module in group.modules]
    found = [kept[module] for module in modules if module in kept]
    KEPT.write_text(json.dumps([asdict(one) for one in found], indent=1) + "\n")
    return found


@dataclass(frozen=True)
class Reason:
    """Why faults need not be found: those in modules and functions of these names whose change matches."""

    why: str
    modules: str
    functions: str
    change: str

    def covers(self, result: Result) -> bool:
        return (
            fnmatch(result.module, self.modules)
            and fnmatch(result.function, self.functions)
            and re.search(self.change, f"{result.was} ---> {result.became}") is not None
        )


def reasons_given() -> list[Reason]:
    accepted = tomllib.loads(REASONS.read_text())["accepted"]
    return [Reason(one["why"], one.get("module", "*"), one.get("function", "*"), one["change"]) for one in accepted]


def reason_of(result: Result, reasons: Sequence[Reason]) -> Reason | None:
    return next((reason for reason in reasons if reason.covers(result)), None)


def test(group: Group) -> None:
    """Test the faults of a group that have not been tested since their function, or the tests, changed."""
    workspace = WORKSPACES / group.name
    prepare(workspace, group)
    for module in group.modules:
        reopen(workspace, module)
    log = workspace / "mutmut.log"
    with log.open("w") as output:
        command = [tool("mutmut"), "run", "--max-children", "2"]
        ended = subprocess.run(command, cwd=workspace, env=environment(), stdout=output, stderr=output, check=False)
    if ended.returncode:
        sys.exit(log.read_text()[-5000:])


def prepare(workspace: Path, group: Group) -> None:
    """Copy what mutmut needs: sources without what is not to be mutated, tests, and a configuration."""
    workspace.mkdir(parents=True, exist_ok=True)
    for name in ("durableq", "tests"):
        refresh(ROOT / name, workspace / name)
    for module in group.modules:
        path = workspace / path_of(module)
        marked = without_wording(path.read_text())
        path.write_text(marked)
        os.utime(path, ns=(0, (ROOT / path_of(module)).stat().st_mtime_ns))
    original = (ROOT / "pyproject.toml").read_text()
    (workspace / "pyproject.toml").write_text(original)
    for path in (ROOT / "durableq").rglob("*.sql"):  # mutmut copies these once only
        used = workspace / "mutants" / path.relative_to(ROOT)
        if used.exists():
            shutil.copy(path, used)
    left_out = slow_tests(workspace, group)
    (workspace / "pyproject.toml").write_text(original + configuration(group, left_out))


def reopen(workspace: Path, module: str) -> None:
    """Have everything tested again that no test has failed for."""
    meta = Path(f"{workspace / 'mutants' / path_of(module)}.meta")
    if meta.exists():
        noted = json.loads(meta.read_text())
        codes = noted["exit_code_by_key"]
        noted["exit_code_by_key"] = {
            key: code if STATUSES.get(code) == "killed" else None for key, code in codes.items()
        }
        meta.write_text(json.dumps(noted))


def refresh(source: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))


def path_of(module: str) -> Path:
    return Path("durableq", *module.split(".")).with_suffix(".py")


def slow_tests(workspace: Path, group: Group) -> list[str]:
    """Return the tests that take too long to run for each fault; measured once."""
    kept = workspace / "slow_tests.json"
    if not kept.exists():
        times = workspace / "times.xml"
        command = [tool("python"), "-m", "pytest", "-q", f"--junitxml={times}", "-o", "junit_family=xunit1"]
        subprocess.run([*command, *group.tests], cwd=workspace, env=environment(), check=True)
        cases = ElementTree.parse(times).iter("testcase")
        slow = [id_of(case) for case in cases if float(case.get("time", 0)) > SLOW_SECONDS]
        kept.write_text(json.dumps(slow))
    return [test for test in json.loads(kept.read_text()) if group.slow_too not in test]


def id_of(case: ElementTree.Element) -> str:
    """Return pytest's name of a test from its report."""
    # Not by its file: that of a test in a base class is the base's.
    parts = case.get("classname", "").split(".")
    modules = list(takewhile(lambda part: not part.startswith("Test"), parts))
    return "::".join(["/".join(modules) + ".py", *parts[len(modules) :], case.get("name", "")])


def configuration(group: Group, left_out: Sequence[str]) -> str:
    settings = {
        "source_paths": ["durableq"],
        "only_mutate": [str(path_of(module)) for module in group.modules],
        "pytest_add_cli_args_test_selection": list(group.tests),
        "pytest_add_cli_args": [*PYTEST_OPTIONS, *(f"--deselect={test}" for test in left_out)],
        "type_check_command": [
            sys.executable,
            "-m",
            "tests.mutation",
            TYPES,
            "mypy",
            *(str(path_of(module)) for module in group.modules),
        ],
        "process_isolation": "forkserver",
        "timeout_multiplier": 3.0,
        "timeout_constant": 5.0,
        "track_dependencies": False,
        "use_git_change_detection": False,
    }
    return "\n[tool.mutmut]\n" + "".join(f"{name} = {json.dumps(value)}\n" for name, value in settings.items())


def tool(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


def environment() -> dict[str, str]:
    """The environment, with this one's tools first."""
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}


MYPY_OPTIONS = (
    "--no-warn-unused-ignores",
    "--no-warn-unreachable",
    "--disable-error-code=ignore-without-code",
    "--disable-error-code=redundant-expr",
    "--disable-error-code=truthy-bool",
)
"""What mutmut's own additions would break: its markers, and conditions that it makes constant."""


def check_types(paths: Sequence[str]) -> int:
    """Print mypy's errors, in its JSON, that a fault has and its original has not: what mutmut asks for."""
    command = [tool("mypy"), "--output=json", *MYPY_OPTIONS]
    printed = subprocess.run([*command, *paths], capture_output=True, text=True, check=False).stdout
    functions = {path: functions_of(Path(path).read_text()) for path in paths}
    errors = [json.loads(line) for line in printed.splitlines() if line.startswith("{")]
    found = [(function_at(functions.get(error["file"], []), error["line"]), error) for error in errors]
    known = {(name, error["message"]) for name, error in found if name.endswith("__mutmut_orig")}
    for name, error in found:
        original = re.sub(r"__mutmut_\d+$", "__mutmut_orig", name)
        if original != name and (original, error["message"]) not in known and error["severity"] == "error":
            print(json.dumps(error))
    return 0


def functions_of(source: str) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [node for node in ast.walk(ast.parse(source)) if isinstance(node, FUNCTIONS)]


def function_at(functions: Sequence[ast.FunctionDef | ast.AsyncFunctionDef], line: int) -> str:
    """Return the name of the fault, or of the original, whose code a line is; of none: nothing."""
    around = (one.name for one in functions if one.lineno <= line <= (one.end_lineno or one.lineno))
    return next((name for name in around if "__mutmut_" in name), "")


def without_wording(source: str) -> str:
    """Mark the lines that hold the text of an error or of a log entry, as mutmut wants lines marked that it leaves."""
    lines = source.splitlines()
    for number in sorted(wording(ast.parse(source))):
        lines[number - 1] += "  # pragma: no mutate"
    return "\n".join(lines) + "\n"


def wording(tree: ast.AST) -> set[int]:
    """Return the numbers of the lines with texts in what is raised, logged or warned of."""
    messages = (node for node in ast.walk(tree) if isinstance(node, ast.Raise) or is_a_message(node))
    texts = (text for message in messages for text in ast.walk(message) if is_a_text(text))
    return {line for text in texts for line in range(text.lineno, (text.end_lineno or text.lineno) + 1)}


def is_a_message(node: ast.AST) -> bool:
    if not isinstance(node, ast.Call):
        return False
    called = ast.unparse(node.func)
    return re.fullmatch(r"logger\.\w+|warnings\.warn|[A-Z]\w*(Error|Warning)", called) is not None


def is_a_text(node: ast.AST) -> "TypeGuard[ast.expr]":
    return isinstance(node, ast.JoinedStr) or (isinstance(node, ast.Constant) and isinstance(node.value, str))


def results_in(workspace: Path, module: str) -> Iterator[Result]:
    path = workspace / "mutants" / path_of(module)
    codes = json.loads(path.with_name(path.name + ".meta").read_text())["exit_code_by_key"]
    source = path.read_text()
    functions = {node.name: node for node in ast.walk(ast.parse(source)) if isinstance(node, FUNCTIONS)}
    lines = source.splitlines()
    for key, code in codes.items():
        name = key.rpartition(".")[2]
        function = name.partition("__mutmut_")[0]
        status = STATUSES.get(code, "timed out")
        was, became = "", ""
        if status not in ("killed", "refused"):
            original = functions[f"{function}__mutmut_orig"]
            was, became = difference(body(lines, original), body(lines, functions[name]))
        yield Result(module, function.removeprefix("x_").removeprefix("xǁ").replace("ǁ", "."), was, became, status)


FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def body(lines: Sequence[str], function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    # The first line holds the name, which differs; but defaults there may differ too.
    taken = [
        line.replace("# type: ignore # mutmut generated", "").strip()
        for line in lines[function.lineno - 1 : function.end_lineno]
    ]
    return [re.sub(r"def x(_|ǁ[^ǁ]+ǁ)|__mutmut_\w+", plain, taken[0]), *taken[1:]]


def plain(mangled: re.Match[str]) -> str:
    """What mutmut makes of a function's name, taken back."""
    return "def " if mangled[0].startswith("def") else ""


def difference(was: Sequence[str], became: Sequence[str]) -> tuple[str, str]:
    """Return the lines that one has and the other has not, in one line each."""
    delta = list(difflib.ndiff(was, became))
    gone, new = (" ".join(line[2:] for line in delta if line.startswith(sign)) for sign in ("- ", "+ "))
    return gone, new


# -- what is told --------------------------------------------------------------------------------------------


COLUMNS = ("faults", "killed", "timed out", "survived", "untested", "refused", "score", "with types")


def table(tested: Collection[Tested]) -> list[str]:
    """Return the figures of each module, and of all, as the lines of a table in Markdown."""
    lines = [f"| module | {' | '.join(COLUMNS)} | run on |", "|---|" + "---:|" * len(COLUMNS) + "---|"]
    total = sum((Counter(one.counts) for one in tested), Counter[str]())
    return [*lines, *(row(f"`{one.module}`", one.counts, one.day) for one in tested), row("**all**", total, "")]


def row(name: str, counts: Mapping[str, int], day: str) -> str:
    killed, late, survived, untested, refused = (counts.get(column, 0) for column in COLUMNS[1:6])
    found = killed + late
    run = found + survived + untested + counts.get("left out", 0)
    figures = [str(sum(counts.values())), *map(str, (killed, late, survived, untested, refused))]
    return f"| {name} | {' | '.join([*figures, share(found, run), share(found + refused, run + refused)])} | {day} |"


def share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"


def report(tested: Sequence[Tested], reasons: Sequence[Reason]) -> str:
    """Return docs/mutation.md: figures, and every fault that no test has found, under the reason why."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("mutmut", "pytest", "mypy"))
    lines = [INTRODUCTION.strip(), "", f"Python {python_version()}, {versions}.", ""]
    lines += [*table(tested), "", "## What no test finds, and why", ""]
    remaining = [result for one in tested for result in one.open]
    for reason in (*reasons, None):
        covered = [result for result in remaining if reason_of(result, reasons) is reason]
        if covered:
            lines += ["**No reason yet.**" if reason is None else f"{reason.why}", "", *diffs(covered), ""]
    return "\n".join(lines)


def diffs(results: Sequence[Result]) -> list[str]:
    listed = [
        line
        for result in results
        for line in (f"  {result.module}.{result.function}", f"- {result.was}", f"+ {result.became}")
    ]
    return ["```diff", *listed, "```"]


INTRODUCTION = """
# Mutation testing

`make mutate` puts small faults into the modules that the promises rest on, one at a time, and runs the tests that
stand for that module: a fault that no test notices shows a rule that nothing guards. Written by `tests/mutation.py`;
the reasons are kept by hand in `tests/mutation_reasons.toml`, and a survivor without one makes `make mutate` fail.

*killed*: a test failed. *timed out*: a test never came to its end. *untested*: none of the chosen tests runs the code.
*refused*: mypy does not let it through `make check`, so it is not run. *score*: killed and timed out among all that
were run; *with types* counts what was refused as found. Left out from the start are the texts of errors and log lines,
and (mutmut does not touch them) module level constants, SQL among them, decorated functions and annotations.
"""


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
