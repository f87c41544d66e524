"""Kills a process at every system call that changes files, one after the other, until the operation completes."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from durableq.torture import strace
from durableq.torture.blows import Aftermath, Site, after
from durableq.torture.children import be_ready_to_fork
from durableq.torture.operations import OPERATIONS
from durableq.torture.verdicts import Check, Progress, Sizes, Verdict

CALLS: Final = ("pwrite64", "fdatasync", "fsync", "ftruncate", "unlink", "unlinkat", "mkdir", "bind", "fcntl")
"""All that change a file, a directory entry or a lock. (What goes to -shm goes by memory, and is lost with nobody.)"""
MAIN_CALLS: Final = ("pwrite64", "fdatasync", "fsync", "ftruncate", "unlink")
_KILLED: Final = -9
MOST: Final = 2_000
"""More calls than any operation makes: a bound, should one never complete."""


def chosen(directory: Path, sizes: Sizes) -> Iterator[Site]:
    """The operations that are tried, alone, and the main ones beside another process too."""
    be_ready_to_fork()
    for operation in OPERATIONS:
        if operation.is_main or sizes.all_operations:
            yield Site(directory / operation.name, operation)
        if operation.is_main and operation.may_have_company and sizes.all_operations:
            yield Site(directory / f"{operation.name}-beside", operation, beside_another=True)


def _run(directory: Path, sizes: Sizes, seed: int, progress: Progress) -> Verdict:
    verdict = Verdict(skipped=strace.why_not())
    if verdict.skipped:
        return verdict
    points: dict[str, int] = {}
    sites = list(chosen(directory, sizes))
    for done, site in enumerate(sites):
        progress(done, len(sites))
        before = verdict.tried
        for call in CALLS if sizes.all_operations else MAIN_CALLS:
            enumerate_crashes(site, call, verdict)
        points[str(site)] = verdict.tried - before
    verdict.figures["crash points"] = ", ".join(f"{name} {count}" for name, count in points.items())
    return verdict


def enumerate_crashes(site: Site, call: str, verdict: Verdict) -> None:
    """Kill the operation at its first such call, its second, and so on until it completes."""
    for number in itertools.count(1):
        aftermath = _blow(site, call, number)
        verdict.tried += aftermath.status == _KILLED
        verdict.wrong += [f"{site}, killed at {call} {number}: {one}" for one in aftermath.wrong]
        if aftermath.status != _KILLED or number == MOST:
            if aftermath.status != 0:
                verdict.wrong.append(f"{site}, {call} {number}: it ended with {aftermath.status}")
            return


def _blow(site: Site, call: str, number: int) -> Aftermath:
    site.refresh()
    injection = f"inject={call}:signal=SIGKILL:when={number}"
    with (
        site.performing() as child,
        strace.attached(child.pid, "-e", f"trace={call}", "-e", injection, "-o", "/dev/null"),
    ):
        return after(site, child)


CHECK: Final = Check(
    "crash points",
    "Wherever a process is killed, what it was told to be stored is there, and everything else is whole or absent.",
    _run,
)
