"""The commands of ``python -m durableq`` (extra ``cli``)."""

import asyncio
import contextlib
import json
import platform
import random
import shutil
import sqlite3
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, cast

import typer

from durableq import DurableQ, DurableQError, __version__
from durableq.clock import SystemClock
from durableq.encryption import Rotation, new_key
from durableq.storage import back_up, require_queue
from durableq.storage import restore as put_back
from durableq.torture.checks import CHECKS
from durableq.torture.verdicts import FULL, QUICK, Check, Sizes, Verdict

if TYPE_CHECKING:
    from durableq.fastapi.principals import Role

app: Final = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
_NAMES: Final = [one.name for one in CHECKS]
_TOLD_AT_MOST: Final = 20


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"durableq {__version__}, SQLite {sqlite3.sqlite_version}, Python {platform.python_version()}")
        raise typer.Exit


@app.callback()
def durableq(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show it, and SQLite's.")
    ] = False,
) -> None:
    """Background tasks that survive."""


@app.command()
def torture(
    directory: Annotated[
        Path | None, typer.Argument(help="On the disk to be tried; a temporary one by default.")
    ] = None,
    *,
    full: Annotated[bool, typer.Option("--full", help="Everything, within the hour; else some minutes.")] = False,
    only: Annotated[list[str] | None, typer.Option(help=f"One of: {', '.join(_NAMES)}. May be repeated.")] = None,
    seed: Annotated[int | None, typer.Option(help="Repeat a run; a random one by default, and told.")] = None,
    report: Annotated[Path | None, typer.Option("--json", help="Write the figures there.")] = None,
) -> None:
    """Try to make durableq break its promises, on this machine and disk, and print a verdict.

    Kills processes at every system call, lets the disk fail, cuts the power in simulation, stops workers past their
    lease. Works in files of its own. Exits 1 when a promise was broken.
    """
    chosen = [one for one in CHECKS if not only or one.name in only]
    if unknown := set(only or ()) - set(_NAMES):
        raise typer.BadParameter(f"no check is named {', '.join(sorted(unknown))}; there are {', '.join(_NAMES)}")
    seed = random.randrange(1, 1_000_000) if seed is None else seed
    machine = _machine(seed)
    place = Path(tempfile.mkdtemp(prefix="durableq-torture-", dir=directory))
    print(f"durableq {__version__}, {machine['sqlite']}, Python {machine['python']}, seed {seed}, in\n{place}\n")
    try:
        verdicts = [_tried(one, place, FULL if full else QUICK, seed) for one in chosen]
    finally:
        shutil.rmtree(place, ignore_errors=True)
    if report is not None:
        report.write_text(json.dumps(_report(machine, verdicts), indent=2) + "\n")
    broken = sum(len(verdict.wrong) for _, verdict, _ in verdicts)
    blows = sum(verdict.tried for _, verdict, _ in verdicts)
    print(f"\n{blows:,} blows. " + (f"{broken:,} broke a promise." if broken else "Every promise was kept."))
    raise typer.Exit(1 if broken else 0)


@app.command("new-key")
def make_key() -> None:
    """Print a new encryption key, for DURABLEQ_ENCRYPTION_KEYS or a KeyRing."""
    print(new_key())


@app.command("rotate-keys")
def rotate_keys(
    database: Annotated[Path, typer.Argument(exists=True, dir_okay=False, help="The queue's SQLite file.")],
) -> None:
    """Encrypt all stored arguments and results with the newest key of DURABLEQ_ENCRYPTION_KEYS.

    Runs beside working processes, and may be stopped and started again. Exits 1 when something could not be read.
    """
    with _refusals_in_words():
        require_queue(database)
        rotation = asyncio.run(_rotated(database))
    print(f"{rotation.looked_at:,} jobs: {rotation.args:,} arguments and {rotation.results:,} results encrypted anew.")
    if rotation.unreadable:
        print(
            f"{rotation.unreadable:,} could not be read: a key is missing, or they are damaged; they stay as they are."
        )
    raise typer.Exit(1 if rotation.unreadable else 0)


@app.command()
def backup(
    database: Annotated[Path, typer.Argument(help="The queue's SQLite file; whoever works on it goes on.")],
    copy: Annotated[Path, typer.Argument(help="A new file, which its owner alone can read.")],
) -> None:
    """Copy a queue's file, and all else that is in it, while it is in use.

    Never copy it by other means: what it was told last stands in its -wal file. Exits 2, with no copy, when it fails.
    """
    with _refusals_in_words():
        jobs = back_up(database, copy)
        print(f"{copy} holds {_number_of_jobs(jobs)}, and is whole.")


@app.command()
def restore(
    copy: Annotated[Path, typer.Argument(help="What 'durableq backup' has made.")],
    database: Annotated[
        Path, typer.Argument(help="A new file; to put a copy in a file's place, move that away first.")
    ],
) -> None:
    """Make a copy of a queue a queue's file again, under a name that none has.

    Jobs that ran when the copy was made, or have run since, run again. Exits 2, with nothing changed, when there is a
    file of that name, a queue runs under it still, or the copy cannot be used.
    """
    with _refusals_in_words():
        jobs = put_back(copy, database, SystemClock())
        print(
            f"{database} holds {_number_of_jobs(jobs)}, and can be used. It belongs to you, and you alone can read it."
        )


def _number_of_jobs(jobs: int) -> str:
    return f"{jobs:,} {'job' if jobs == 1 else 'jobs'}"


@app.command()
def dashboard(
    *,
    db: Annotated[Path, typer.Option("--db", help="The queue's SQLite file. Arguments may be encrypted: see new-key.")],
    host: Annotated[str, typer.Option(help="Where to listen. Others than this machine need --allow-network.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one.")] = 8765,
    role: Annotated[str, typer.Option(help="What whoever opens it may do: read, operate or admin.")] = "admin",
    allow_network: Annotated[
        bool, typer.Option("--allow-network", help="Let other machines in, over plain HTTP.")
    ] = False,
) -> None:
    """Look at a queue in the browser, beside the application or without it. Runs no jobs.

    Prints an address that lets one browser in, once. Needs 'durableq[dashboard]' and uvicorn. Ends with Ctrl-C.
    """
    try:
        with _refusals_in_words():
            from durableq.dashboard.standalone import serve

            serve(db, host=host, port=port, role=cast("Role", role), allow_network=allow_network, tell=_tell_address)
    except KeyboardInterrupt:  # as it was told to end it
        print()


@contextlib.contextmanager
def _refusals_in_words() -> Iterator[None]:
    try:
        yield
    except DurableQError as error:
        print(error, file=sys.stderr)
        raise typer.Exit(2) from None


def _tell_address(address: str) -> None:
    print(f"The dashboard is at\n\n  {address}\n\nThe address works once. Ctrl-C ends it.", flush=True)


async def _rotated(database: Path) -> Rotation:
    dq = DurableQ(database, worker=False)
    async with dq.running():
        return await dq.rotate_keys()


def _tried(check: Check, place: Path, sizes: Sizes, seed: int) -> tuple[Check, Verdict, float]:
    directory = place / check.name.replace(" ", "-").replace("/", "-")
    directory.mkdir()
    began = time.monotonic()
    verdict = check.run(directory, sizes, seed, lambda done, of: _show(check, f"{done:,} of {of:,}"))
    shutil.rmtree(directory, ignore_errors=True)
    seconds = time.monotonic() - began
    _tell(check, verdict, seconds)
    return check, verdict, seconds


def _show(check: Check, text: str) -> None:
    if sys.stdout.isatty():
        print(f"\r\033[K  {check.name:<16} {text}", end="", flush=True)


def _tell(check: Check, verdict: Verdict, seconds: float) -> None:
    _show(check, "")
    end = "\r" if sys.stdout.isatty() else ""
    if verdict.skipped:
        print(f"{end}  {check.name:<16} skipped: {verdict.skipped}")
        return
    print(
        f"{end}  {check.name:<16} {verdict.tried:>9,}   {'holds' if verdict.holds else 'BROKEN':<7} {seconds:>6.0f} s"
    )
    _say(check.promise)
    for name, figure in verdict.figures.items():
        _say(f"{name}: {figure}")
    for wrong in verdict.wrong[:_TOLD_AT_MOST]:
        _say(f"WRONG: {wrong}")
    if len(verdict.wrong) > _TOLD_AT_MOST:
        _say(f"... and {len(verdict.wrong) - _TOLD_AT_MOST:,} more")


def _say(text: str) -> None:
    width = min(shutil.get_terminal_size().columns, 120)
    print(textwrap.fill(text, width, initial_indent="    ", subsequent_indent="      ", break_on_hyphens=False))


def _machine(seed: int) -> dict[str, Any]:
    return {
        "durableq": __version__,
        "sqlite": f"SQLite {sqlite3.sqlite_version}",
        "python": platform.python_version(),
        "system": f"{platform.system()}, {platform.machine()}",
        "seed": seed,
    }


def _report(machine: dict[str, Any], verdicts: list[tuple[Check, Verdict, float]]) -> dict[str, Any]:
    checks = [
        {
            "name": check.name,
            "promise": check.promise,
            "tried": verdict.tried,
            "wrong": verdict.wrong,
            "figures": verdict.figures,
            "skipped": verdict.skipped,
            "seconds": round(seconds, 1),
        }
        for check, verdict, seconds in verdicts
    ]
    return machine | {"checks": checks}
