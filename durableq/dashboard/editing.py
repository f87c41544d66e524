"""Reads arguments as a person typed them, and says where in the text something is wrong. Pure.

What JSON leaves open is refused rather than guessed at: a name that stands twice, NaN, a value that is no object.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, NamedTuple, NoReturn

from durableq.encryption import is_sealed
from durableq.models import Job
from durableq.placeholders import MOST_LEVELS, too_deep

_AROUND: Final = 2
"""So many lines are shown before and after the one that is meant."""
_LONGEST: Final = 160
"""So much of a line is shown."""
_SPACE: Final = re.compile(r"[ \t\n\r]*")


class Misread(ValueError):
    """The text is no JSON object. ``line`` is where, counted from 1; None where no place can be told."""

    def __init__(self, message: str, line: int | None) -> None:
        super().__init__(message)
        self.message = message
        self.line = line


class ShownLine(NamedTuple):
    """A line of what was typed."""

    number: int
    text: str
    is_meant: bool


@dataclass(frozen=True, slots=True)
class Mistake:
    """What is wrong with what was typed, and the lines around the place."""

    message: str
    line: int | None = None
    excerpt: tuple[ShownLine, ...] = ()


def read_arguments(text: str) -> dict[str, Any]:
    """Return the object that a text holds. Raises `Misread`."""
    try:
        value = json.loads(text, object_pairs_hook=_object, parse_constant=_constant)
    except json.JSONDecodeError as error:
        raise Misread(_in_words(error, text), error.lineno) from None
    except _Named as error:
        raise Misread(error.message, line_of(text, error.name)) from None
    except (ValueError, RecursionError) as error:
        raise Misread(f"this cannot be read as JSON: {error}", None) from None
    if not isinstance(value, dict):
        raise Misread("expected one object, { … }, with the arguments by name", 1)
    for name, argument in value.items():
        if too_deep(argument, MOST_LEVELS - 1):
            raise Misread(
                f"expected lists and objects in one another at most {MOST_LEVELS} levels deep, {name!r} is deeper",
                line_of(text, name),
            )
    return value


def key_needed(job: Job[Any]) -> str | None:
    """Return the name of the key that a job's arguments are still encrypted with; None for those in clear."""
    return _key_of(job.args_json)


def result_key_needed(job: Job[Any]) -> str | None:
    """Return the same of its result."""
    return None if job.result_json is None else _key_of(job.result_json)


def _key_of(stored: str) -> str | None:
    if not is_sealed(stored):
        return None
    try:
        return str(json.loads(stored)["$encrypted"]["key"])
    except (ValueError, KeyError, TypeError, RecursionError):  # it begins like an envelope, and is damaged
        return "unknown"


def line_of(text: str, argument: str | None) -> int | None:
    """Return the line, counted from 1, on which an argument's name stands; None when it is not there."""
    if argument is None:
        return None
    at = next((at for name, at in _names(text) if name == argument), None)
    return None if at is None else text.count("\n", 0, at) + 1


def mistake(message: str, text: str, line: int | None) -> Mistake:
    """Return what is wrong, with the lines around it."""
    if line is None:
        return Mistake(message)
    lines = text.split("\n")
    first, last = max(0, line - 1 - _AROUND), min(len(lines), line + _AROUND)
    shown = (ShownLine(at + 1, lines[at].rstrip("\r")[:_LONGEST], at + 1 == line) for at in range(first, last))
    return Mistake(message, line, tuple(shown))


class _Named(ValueError):
    """Something is wrong with what stands under a name."""

    def __init__(self, message: str, name: str) -> None:
        super().__init__(message)
        self.message = message
        self.name = name


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise _Named(f"the name {name!r} stands twice; which one is meant? Take one of them out", name)
        found[name] = value
    return found


def _constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")


def _in_words(error: json.JSONDecodeError, text: str) -> str:
    if error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated"):
        return "the text ends before it is complete; is a bracket or a quotation mark missing?"
    return f"this is not JSON: {error.msg[:1].lower()}{error.msg[1:]} (line {error.lineno}, character {error.colno})"


def _names(text: str) -> Iterator[tuple[str, int]]:
    """The names of an object's members, and where each stands in the text, as far as the text can be read."""
    decoder = json.JSONDecoder()
    at = _after_space(text, 0)
    while text[at : at + 1] in ("{", ","):
        begin = _after_space(text, at + 1)
        try:
            name, end = decoder.raw_decode(text, begin)
            yield str(name), begin
            _, end = decoder.raw_decode(text, _after_space(text, _after_space(text, end) + 1))
        except (ValueError, RecursionError):
            return
        at = _after_space(text, end)


def _after_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return at if found is None else found.end()
