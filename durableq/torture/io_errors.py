"""Lets each system call that changes files fail, once and for ever, one after the other, until none is left to fail."""

import itertools
from pathlib import Path
from typing import Final, NamedTuple

from durableq.torture import strace
from durableq.torture.blows import Site, after
from durableq.torture.crash_points import MAIN_CALLS, MOST, chosen
from durableq.torture.verdicts import Check, Progress, Sizes, Verdict

_KINDS: Final = (("EIO", False), ("ENOSPC", True), ("EIO", True), ("ENOSPC", False))
"""(error, whether it lasts)"""
_QUICK_KINDS: Final = _KINDS[:2]
_INJECTED: Final = "(INJECTED)"


class _Fault(NamedTuple):
    call: str
    error: str
    number: int
    lasts: bool

    def __str__(self) -> str:
        return f"{self.error} at {self.call} {self.number}{' and from then on' if self.lasts else ''}"

    @property
    def injection(self) -> str:
        return f"inject={self.call}:error={self.error}:when={self.number}{'+' if self.lasts else ''}"


def _run(directory: Path, sizes: Sizes, seed: int, progress: Progress) -> Verdict:
    verdict = Verdict(skipped=strace.why_not())
    if verdict.skipped:
        return verdict
    faults: dict[str, int] = {}
    sites = list(chosen(directory, sizes))
    for done, site in enumerate(sites):
        progress(done, len(sites))
        before = verdict.tried
        kinds = _KINDS if sizes.all_operations else _QUICK_KINDS
        for call, (error, lasts) in itertools.product(MAIN_CALLS, kinds):
            for number in range(1, MOST):
                if not _blow(site, _Fault(call, error, number, lasts), verdict):
                    break
        faults[str(site)] = verdict.tried - before
    verdict.figures["I/O errors"] = ", ".join(f"{name} {count}" for name, count in faults.items())
    return verdict


def _blow(site: Site, fault: _Fault, verdict: Verdict) -> bool:
    """Deal one; return whether there was a call left for it. The operation may be refused, but not go astray."""
    site.refresh()
    log = site.database.with_name("strace.log")
    tracing = ("-e", f"trace={fault.call}", "-e", fault.injection, "-o", str(log))
    with site.performing() as child, strace.attached(child.pid, *tracing):
        aftermath = after(site, child)
    was_felt = _INJECTED in log.read_text()
    verdict.tried += was_felt
    verdict.wrong += [f"{site}, {fault}: {one}" for one in aftermath.wrong]
    return was_felt


CHECK: Final = Check(
    "I/O errors",
    "Whichever write or fsync fails, what was acknowledged is there, and what was reported as not stored is not.",
    _run,
)
