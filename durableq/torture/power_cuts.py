"""Cuts the power at every write.

A workload on the real storage is recorded once; then every disk that a power cut during it may have left is rebuilt
and opened again. Each must be whole, and hold everything that had been acknowledged by then. With
``durability="normal"`` the same check must see acknowledged jobs lost: that shows that it can fail.
"""

import contextlib
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

from durableq.torture import workload
from durableq.torture.children import Say
from durableq.torture.disk import Disk, Fate
from durableq.torture.evidence import Expectations, Findings, examine
from durableq.torture.recording import Recording, Said, Sync, Unlink, Untraceable, record
from durableq.torture.strace import why_not
from durableq.torture.verdicts import Check, Progress, Sizes, Verdict
from durableq.torture.works_on import Reopened, copied

_ROUNDS: Final = 80
"""Additions of each producer: some 6,000 operations, with two checkpoints and the one at the end."""
_IMAGES_PER_RECORDING: Final = 50_000
_REOPEN_EVERY: Final = 250
"""Of so many images one is opened by durableq itself."""
_NORMAL_SHARE: Final = 10
_FEWEST_IMAGES: Final = 100
_TOLD: Final = 20
"""So many sentences are kept of what is wrong; the rest is counted."""
_TOLD_OF_EACH: Final = 3
_KEPT: Final = 3
"""So many images are kept with which something is wrong: nobody writes the same twice in the same order."""
_PROGRESS_EVERY: Final = 500
_MEMORY_BYTES: Final = 512 * 1024 * 1024


class Image(NamedTuple):
    """One disk to rebuild: the power goes after so many operations, and this becomes of what was under way."""

    cut: int
    fate: Fate
    seed: str

    def __str__(self) -> str:
        return f"power cut after operation {self.cut}, the writes under way: {self.fate} (seed {self.seed!r})"


@dataclass(slots=True)
class Report:
    """What the images of one recording, or of several, showed."""

    operations: int = 0
    images: int = 0
    reopened: int = 0
    """Images that durableq itself was started on."""
    losing: int = 0
    """Images in which something acknowledged was not there."""
    most_lost: int = 0
    broken: int = 0
    """Images that were damaged, half done or impossible."""
    seconds: float = 0.0
    """Spent on images, without those that were reopened."""
    damage: list[str] = field(default_factory=list)
    """The first sentences about images that were not whole, or that durableq could not go on with."""
    losses: list[str] = field(default_factory=list)
    """The same about what was lost."""
    evidence: Path | None = None
    """Where the first images with which something is wrong are kept."""

    def note(self, image: Image, findings: Findings, database: Path) -> None:
        self.images += 1
        self.losing += bool(findings.lost)
        self.most_lost = max(self.most_lost, len(findings.lost))
        self.broken += bool(findings.broken)
        if findings and self.evidence:
            self._keep(self.evidence, database)
        if findings.lost:
            _tell(self.losses, f"{image}: {'; '.join(findings.lost[:_TOLD_OF_EACH])}")
        if findings.broken:
            _tell(self.damage, f"{image}: {'; '.join(findings.broken[:_TOLD_OF_EACH])}")

    def _keep(self, directory: Path, database: Path) -> None:
        number = sum(1 for _ in directory.glob("wrong-*")) + 1
        if number <= _KEPT:
            copied(database, directory / f"wrong-{number}")

    def note_reopened(self, reopened: Reopened) -> None:
        self.reopened += reopened.tried
        for sentence in reopened.wrong:
            _tell(self.damage, sentence)

    @property
    def wrong(self) -> list[str]:
        return self.damage + self.losses

    @property
    def milliseconds_per_image(self) -> float:
        return 1_000 * self.seconds / max(self.images, 1)


def _tell(sentences: list[str], sentence: str) -> None:
    if len(sentences) < _TOLD:
        sentences.append(sentence)


def run(directory: Path, sizes: Sizes, seed: int, progress: Progress) -> Verdict:
    """Record and examine as many images as ``sizes`` says; then see what ``durability="normal"`` loses.

    Of the images with which something is wrong, the first are kept in the directory.
    """
    if (reason := why_not()) is not None:
        return Verdict(skipped=reason)
    try:
        report = _cut_the_power(directory, sizes.images, seed, progress)
        normal = what_normal_loses(directory, sizes, seed)
    except Untraceable as error:
        return Verdict(skipped=str(error))
    verdict = Verdict(tried=report.images, wrong=report.wrong, figures=_figures(report, normal))
    verdict.wrong += [f'with durability="normal": {sentence}' for sentence in normal.damage]
    if not normal.losing:
        verdict.wrong.append('durability="normal" was not seen to lose anything: this check may be blind')
    return verdict


def what_normal_loses(directory: Path, sizes: Sizes, seed: int) -> Report:
    """Do the same to ``durability="normal"``: acknowledged jobs get lost, but the file stays whole."""
    images = max(sizes.images // _NORMAL_SHARE, _FEWEST_IMAGES)
    report = Report()
    examine_images(recorded(directory, seed, durability="normal"), images, seed, report)
    return report


def _cut_the_power(directory: Path, images: int, seed: int, progress: Progress) -> Report:
    def tell(done: int) -> None:
        progress(done, images)

    report = Report(evidence=directory)
    recordings = -(-images // _IMAGES_PER_RECORDING)
    for number in range(recordings):
        share = images * (number + 1) // recordings - images * number // recordings
        recording = recorded(directory, seed + number)
        examine_images(recording, share, seed + number, report, reopen=True, progress=tell)
    return report


def recorded(directory: Path, seed: int, *, durability: str = "full", rounds: int = _ROUNDS) -> Recording:
    """Run the workload on a fresh database and return all it did. Raises `Untraceable`."""
    with tempfile.TemporaryDirectory(dir=directory) as fresh:
        return record(Path(fresh), partial(_work, durability, rounds, seed))


def _work(durability: str, rounds: int, seed: int, path: Path, say: Say) -> None:
    workload.work(path, durability, rounds, seed, say)


def examine_images(
    recording: Recording,
    images: int,
    seed: int,
    report: Report,
    *,
    reopen: bool = False,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Rebuild so many images of a recording, in one pass over it, and add what they show to the report."""
    plan = planned(recording, images, seed)
    expectations = Expectations()
    with _memory() as directory, Disk(directory, recording.database) as disk:
        reopened = Reopened(directory)
        done = 0
        for image in plan:
            for operation in recording.operations[done : image.cut]:
                disk.replay(operation)
                if isinstance(operation, Said):
                    expectations.hear(operation.value)
            done = image.cut
            _examine(image, disk, expectations, report, reopened if reopen else None)
            if progress and report.images % _PROGRESS_EVERY == 0:
                progress(report.images)
        reopened.finish()
    report.operations += len(recording.operations)
    report.note_reopened(reopened)


def _examine(image: Image, disk: Disk, expectations: Expectations, report: Report, reopened: Reopened | None) -> None:
    started = time.perf_counter()
    with disk.after_a_power_cut(image.fate, random.Random(image.seed)) as database:
        findings = examine(database, expectations, writable=disk.rolls_back)
        report.seconds += time.perf_counter() - started
        report.note(image, findings, database)
        if reopened is not None and report.images % _REOPEN_EVERY == 1:
            reopened.add(str(image), database, expectations.stored)
        started = time.perf_counter()
    report.seconds += time.perf_counter() - started


def planned(recording: Recording, images: int, seed: int) -> list[Image]:
    """Spread so many images over all moments of a recording; those with nothing under way get one at most."""
    cuts = list(_cuts(recording))
    busy = [cut for cut, is_busy in cuts if is_busy]
    if images <= len(cuts):
        apart = (len(cuts) - 1) / max(images - 1, 1)
        chosen = {cuts[round(number * apart)][0]: 1 for number in range(images)}
    else:
        chosen = dict.fromkeys((cut for cut, _ in cuts), 1)
        rest = images - len(cuts)
        for number, cut in enumerate(busy):
            chosen[cut] += rest * (number + 1) // len(busy) - rest * number // len(busy)
    return [image for cut, count in chosen.items() for image in _images_at(cut, count, seed)]


def _images_at(cut: int, count: int, seed: int) -> Iterator[Image]:
    first = random.Random(f"{seed}:{cut}").sample(list(Fate), min(count, len(Fate)))
    for number in range(count):
        fate = first[number] if number < len(first) else Fate.SOME
        yield Image(cut, fate, f"{seed}:{cut}:{number}")


def _cuts(recording: Recording) -> Iterator[tuple[int, bool]]:
    """Each moment just before the disk changes again, and whether writes are under way then.

    So late, because what is acknowledged up to that very moment has to be there.
    """
    under_way: dict[str, int] = {}
    has_begun = False
    for cut, operation in enumerate(recording.operations):
        if isinstance(operation, Said):
            continue
        if has_begun:
            yield cut, any(under_way.values())
        has_begun = True
        if isinstance(operation, Sync | Unlink):
            under_way[operation.file] = 0
        else:
            under_way[operation.file] = under_way.get(operation.file, 0) + 1
    yield len(recording.operations), any(under_way.values())


@contextlib.contextmanager
def _memory() -> Iterator[Path]:
    """A directory for images: in memory where there is enough, for the bytes matter and not the disk."""
    shared = Path("/dev/shm")  # noqa: S108 - only looked at; what is made in it has a name of its own
    fits = shared.is_dir() and os.access(shared, os.W_OK) and shutil.disk_usage(shared).free > _MEMORY_BYTES
    with tempfile.TemporaryDirectory(dir=shared if fits else None) as directory:
        yield Path(directory)


def _figures(report: Report, normal: Report) -> dict[str, str]:
    return {
        "operations recorded": f"{report.operations:,}",
        "images": f"{report.images:,}",
        "images that lost what was acknowledged": f"{report.losing:,}",
        "images that were not whole": f"{report.broken:,}",
        "images on which durableq was started again": f"{report.reopened:,}",
        "per image": f"{report.milliseconds_per_image:.2f} ms",
        'with durability="normal"': (
            f"{normal.losing:,} of {normal.images:,} images lost what was acknowledged, at most {normal.most_lost:,} "
            f"things at once; {normal.broken:,} were not whole"
        ),
    }


CHECK: Final = Check(
    name="power cuts",
    promise="Whenever the power goes, what was acknowledged is on the disk, and the file is whole.",
    run=run,
)
