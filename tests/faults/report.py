"""Writes docs/reliability.md: ``python -m tests.faults.report``.

A torture run is published in docs/torture.json, as ``durableq torture --json`` writes it: an object whose ``checks``
are the verdicts; all else in it (seed, versions) is shown as it is.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from tests.faults.evidence import Evidence, Proof, read_evidence
from tests.faults.foreign_bugs import GROUPS, Bug
from tests.faults.matrix import NOT_APPLICABLE, SECTIONS, Fault

DOCS: Final = Path(__file__).resolve().parents[2] / "docs"
REPORT: Final = DOCS / "reliability.md"
TORTURE: Final = DOCS / "torture.json"
NORMAL: Final = 'with durability="normal"'
"""The figure of the power cuts that shows that the check can fail."""

PROMISES: Final = """\
# Reliability

What durableq promises, what can go wrong, and the test that shows each answer. This page is written by
`python -m tests.faults.report` from the tests themselves, and a test fails when the two differ.

## What is promised

1. **When the response is sent, its jobs are on the disk.** All jobs of a request are committed and synced
   (`synchronous=FULL`) in one transaction before the response starts: all of them, or none.
2. **A request that fails stores nothing.** Nor does one whose dependency or response model fails. When the commit is
   known to have failed, the client gets a 503 with Retry-After. When nobody can say whether it happened, it gets a
   500 that names the jobs; such an outcome is never called "not stored".
3. **A stored job never disappears.** It ends as succeeded, dead or cancelled, or is still there to be seen, until
   its retention is over or a person deletes it, which is recorded.
4. **While a worker's lease holds, no other worker starts the job.** Once it is lost, nothing that the old worker
   writes has effect.
5. **Every start is counted before the task's code runs.** A job that kills its process three times is dead, with
   the reason. What a graceful shutdown hands back is not counted.
6. **After a kill -9, interrupted jobs are runnable again within a second** of a live worker on the same machine; those
   of a worker that hangs, when its lease of 30 seconds is over.
7. **Nothing that a task does stops the server, the worker or another job**, as far as Python lets us: an `async def`
   that blocks the event loop blocks the server, as anywhere in asyncio; it is noticed and named.
8. **A shutdown ends within its grace and a second**, whatever the tasks do.
9. **Steps of the clock, suspension and daylight saving lose nothing and double nothing.**
10. **Disk, memory, threads, file descriptors and the write-ahead log stay bounded.**
11. **What cannot work is refused early and in plain words**: a network file system, a newer schema, a damaged or
    replaced file, an argument that cannot be stored, a lambda as a task.
12. **It is safe by default**: JSON only, no pickle, no import of names that the app did not offer, no admin route
    without authentication, files that only their owner can read.

Not promised: that effects outside the database happen exactly once (a task may run again after a crash; it has an
`idempotency_key` for that), an order across retries, network file systems.

## What `durability="normal"` gives up

By default each commit is synced to the disk before it is acknowledged. With `durability="normal"` SQLite syncs only
when it moves its write-ahead log into the database file. A killed or crashed *process* still loses nothing, because
the system keeps what was written. A power cut, or a crash of the system itself, may lose the newest acknowledged
jobs, and may undo successes that were stored, so that those jobs run again. The file stays whole in either case.
"""

NO_TORTURE: Final = (
    "`durableq torture` kills processes, fails and fills disks, cuts the power and steals leases on the machine where\n"
    "it is run, and checks after each blow that everything acknowledged is there. No run is published with this page.\n"
)


def report() -> str:
    """Return the whole page. Depends on the sources of the tests and on the published torture run alone."""
    evidence = read_evidence()
    run = json.loads(TORTURE.read_text()) if TORTURE.exists() else None
    parts = [PROMISES + _seen_of_normal(run), _torture(run), _matrix(evidence), _foreign_bugs(evidence)]
    return "\n".join(parts)


def _seen_of_normal(run: dict[str, Any] | None) -> str:
    checks = [] if run is None else run["checks"]
    seen = [check["figures"][NORMAL] for check in checks if NORMAL in check["figures"]]
    return "".join(f"\nSeen when the power was cut in the run below: {figure}.\n" for figure in seen)


def _torture(run: dict[str, Any] | None) -> str:
    return "## Torture\n\n" + (NO_TORTURE if run is None else "".join(_torture_lines(run)))


def _torture_lines(run: dict[str, Any]) -> Iterable[str]:
    """Yield what a run says of itself, then a row for each check."""
    checks = run.get("checks", [])
    for name, value in run.items():
        if name != "checks":
            yield f"- {name.replace('_', ' ')}: {_plain(value)}\n"
    yield "\n| Check | What has to hold | Tried | Wrong | Took | Measured |\n|---|---|---|---|---|---|\n"
    for check in checks:
        skipped = check.get("skipped")
        wrong = f"skipped: {skipped}" if skipped else _plain(check.get("wrong") or 0)
        took = f"{check['seconds']:.0f} s"
        yield _row(check["name"], check["promise"], f"{check['tried']:,}", wrong, took, _plain(check["figures"]))


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_plain(one)}" for name, one in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _matrix(evidence: Evidence) -> str:
    lines = ["## Faults\n", "What can happen, what has to follow, and the tests that show it.\n"]
    for section in SECTIONS:
        lines.append(f"### {section.title}\n")
        lines += [_fault(fault, evidence.faults.get(fault.id, [])) for fault in section.faults]
        lines.append("")
    return "\n".join(lines)


def _fault(fault: Fault, proofs: Sequence[Proof]) -> str:
    shown = _links(proofs) if proofs else f"  - Not met today. {NOT_APPLICABLE.get(fault.id, '')}"
    return f"- **{fault.id}** {fault.what}: *{fault.expected}*.\n{shown}"


def _foreign_bugs(evidence: Evidence) -> str:
    lines = ["## Bugs of others\n"]
    lines.append(
        "What queues, schedulers and their databases have got wrong, gathered from their public threads, and why\n"
        "durableq does not.\n"
    )
    for group in GROUPS:
        lines.append(f"### {group.title}\n")
        lines += [_bug(bug, evidence.foreign_bugs.get(bug.number, [])) for bug in group.bugs]
        lines.append("")
    return "\n".join(lines)


def _bug(bug: Bug, proofs: Sequence[Proof]) -> str:
    answer = f"  - Cannot happen. {bug.cannot_happen}" if bug.cannot_happen else _links(proofs)
    return f"- **{bug.number}** {bug.threads}: *{bug.what}*.\n{answer}"


def _links(proofs: Sequence[Proof]) -> str:
    return "\n".join(f"  - [{proof.promise}](../{proof.path})" for proof in proofs)


def _row(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n"


if __name__ == "__main__":
    REPORT.write_text(report())
