"""Writes down what a workload does to its disk and what it said meanwhile, in the order in which it happened.

strace sees every write, fsync, truncation and unlinking of the database, its log and its journal, and every
acknowledgement that the workload speaks through its pipe. A write counts from the moment the call began, an fsync
only when it has returned: nothing is taken for durable that was not promised by the kernel.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

from pydantic_core import from_json

from durableq.torture.children import Child, Say
from durableq.torture.strace import attached

_WORKLOAD_SECONDS: Final = 300.0
_CALLS: Final = "write,pwrite64,pwritev,pwritev2,writev,fsync,fdatasync,ftruncate,unlink,unlinkat,rename,renameat2"
_SUFFIXES: Final = ("", "-wal", "-journal")
"""The files of a database that outlive a power cut; ``-shm`` is shared memory, and made anew."""


class Write(NamedTuple):
    """Bytes handed to the kernel for a place in a file."""

    file: str
    offset: int
    data: bytes


class Truncate(NamedTuple):
    file: str
    size: int


class Sync(NamedTuple):
    """All that was written to the file before is on the disk now."""

    file: str


class Unlink(NamedTuple):
    file: str


class Said(NamedTuple):
    """What the workload told the world."""

    value: Any


Operation = Write | Truncate | Sync | Unlink | Said


@dataclass(frozen=True, slots=True)
class Recording:
    """What happened, in order."""

    database: str
    """The name of the database file; those of its companions begin with it."""
    operations: Sequence[Operation]


class Untraceable(Exception):
    """This SQLite, or this strace, does what the recorder cannot follow."""


def record(directory: Path, function: Callable[[Path, Say], None]) -> Recording:
    """Run ``function(path of a database that does not exist yet, say)`` in a child, and return what it did.

    Raises `Untraceable`, or `RuntimeError` when the child fails.
    """
    path, trace = directory / "recorded.db", directory / "trace"
    with Child.start(lambda say: function(path, say)) as child:
        arguments = ("-y", "-xx", "-s", "1000000", "-e", f"trace={_CALLS}", "-e", "signal=none", "-o", str(trace))
        with attached(child.pid, *arguments):
            child.resume()
            code = child.wait(_WORKLOAD_SECONDS)
        if code:
            raise RuntimeError(f"the workload of the recording ended with {code}")
        said = len(child.said())
        with trace.open() as lines:
            operations = list(operations_in(lines, path, child.ack_fd))
    trace.unlink()
    heard = sum(isinstance(operation, Said) for operation in operations)
    if heard != said:
        raise Untraceable(f"the workload spoke {said} times, strace heard it {heard} times")
    return Recording(path.name, operations)


def operations_in(trace: Iterable[str], path: Path, ack_fd: int) -> Iterator[Operation]:
    """Read strace's lines: what was done to the database at ``path``, and said through the descriptor ``ack_fd``.

    Raises `Untraceable`.
    """
    return _Reader(path, ack_fd).operations(trace)


_CALL: Final = re.compile(r"(\d+) +(\w+)\((.*)")
_RESUMED: Final = re.compile(r"(\d+) +<\.\.\. (\w+) resumed>(.*)")
_UNFINISHED: Final = " <unfinished ...>"
_RESULT: Final = re.compile(r"\)? += (-?\d+)[^=]*$")
_WRITTEN: Final = re.compile(r'\d+<([^>]*)>, "([^"]*)"(\.*), \d+, (\d+)')
_SPOKEN: Final = re.compile(r'(\d+)<([^>]*)>, "([^"]*)"')
_DESCRIPTOR: Final = re.compile(r"\d+<([^>]*)>(?:, (\d+))?")
_QUOTED: Final = re.compile(r'"([^"]*)"')


class _Reader:
    """Reads strace's lines. Calls of several threads overlap: begun in one line, resumed in another."""

    def __init__(self, path: Path, ack_fd: int) -> None:
        self._files = {str(path) + suffix: path.name + suffix for suffix in _SUFFIXES}
        self._ack_fd = str(ack_fd)
        self._begun: dict[str, str] = {}
        """By thread: the arguments of the call that it is in."""
        self._unsaid = b""

    def operations(self, lines: Iterable[str]) -> Iterator[Operation]:
        for line in lines:
            if match := _CALL.match(line):
                yield from self._call(*match.groups())
            elif match := _RESUMED.match(line):
                yield from self._resumed(*match.groups())

    def _call(self, thread: str, call: str, rest: str) -> Iterator[Operation]:
        is_over = not rest.endswith(_UNFINISHED)
        if not is_over:
            self._begun[thread] = rest.removesuffix(_UNFINISHED)
        yield from self._beginning(call, rest)
        if is_over:
            yield from self._end(call, rest, rest)

    def _resumed(self, thread: str, call: str, rest: str) -> Iterator[Operation]:
        yield from self._end(call, self._begun.pop(thread, ""), rest)

    def _beginning(self, call: str, arguments: str) -> Iterator[Operation]:
        """What may have happened as soon as the call began."""
        if call == "pwrite64":
            match = _WRITTEN.match(arguments)
            if match and (file := self._file(match[1])):
                yield Write(file, int(match[4]), _unhexed(match[2]))
        elif call == "write":
            yield from self._spoken(arguments)
        elif call == "ftruncate":
            match = _DESCRIPTOR.match(arguments)
            if match and (file := self._file(match[1])):
                yield Truncate(file, int(match[2]))
        elif call in ("unlink", "unlinkat"):
            match = _QUOTED.search(arguments)
            if match and (file := self._file(match[1])):
                yield Unlink(file)
        elif call not in ("fsync", "fdatasync"):
            self._refuse(call, arguments)

    def _spoken(self, arguments: str) -> Iterator[Operation]:
        match = _SPOKEN.match(arguments)
        if match is None:
            return
        if match[1] != self._ack_fd:
            self._refuse("write", arguments)
            return
        *complete, self._unsaid = (self._unsaid + _unhexed(match[3])).split(b"\n")
        for one in complete:
            yield Said(from_json(one))

    def _end(self, call: str, arguments: str, result: str) -> Iterator[Operation]:
        """What is certain only when the call has returned."""
        match = _DESCRIPTOR.match(arguments)
        if match is None or not (file := self._file(match[1])):
            return
        code = _RESULT.search(result)
        if code is None or int(code[1]) < 0:
            raise Untraceable(f"{call} of {file} failed while it was recorded: {result[-80:].strip()}")
        if call in ("fsync", "fdatasync"):
            yield Sync(file)

    def _file(self, escaped: str) -> str | None:
        return self._files.get(_unhexed(escaped).decode())

    def _refuse(self, call: str, arguments: str) -> None:
        for escaped in re.findall(r'[<"]([^>"]*)[>"]', arguments):
            if file := self._file(escaped):
                raise Untraceable(f"this SQLite changes {file} by {call}, which the recorder does not follow")


def _unhexed(text: str) -> bytes:
    """Undo strace's ``\\x`` notation."""
    return bytes.fromhex(text.replace("\\x", "")) if "\\x" in text else text.encode()
