"""What changed between two sets of arguments: lines of JSON, side by side with their numbers. Pure.

Time is bounded by the size of the texts: where comparing every line with every other would take long, the whole
stretch counts as replaced.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from itertools import zip_longest
from typing import Any, Final, Literal, NamedTuple

Kind = Literal["same", "removed", "added", "gap"]

CONTEXT: Final = 3
"""So many lines that did not change are shown around those that did."""
_MOST_COMPARISONS: Final = 1_000_000
_LINE: Final = 80
"""Characters."""


class Part(NamedTuple):
    """A piece of a line, and whether it is what changed in it."""

    text: str
    is_changed: bool = False


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a diff. A ``gap`` stands for lines left out because nothing changed in them."""

    kind: Kind
    parts: tuple[Part, ...]
    old_number: int | None = None
    new_number: int | None = None

    @property
    def text(self) -> str:
        return "".join(part.text for part in self.parts)


def as_json(value: Any) -> str:
    """Return a JSON value as people read it: indented, keys in their order, every digit, every character itself.

    A list of plain values stays on its line where it fits.
    """
    try:
        return _indented(value, 0)
    except RecursionError:  # nobody reads that either way
        return _compact(value)


def _indented(value: Any, depth: int) -> str:
    if isinstance(value, dict) and value:
        parts = [f"{_compact(name)}: {_indented(part, depth + 1)}" for name, part in value.items()]
        return _block("{", parts, "}", depth)
    if isinstance(value, list) and value:
        if not any(isinstance(part, dict | list) for part in value):
            line = _compact(value)
            if len(line) + 2 * depth <= _LINE:
                return line
        return _block("[", [_indented(part, depth + 1) for part in value], "]", depth)
    return _compact(value)


def _block(begin: str, parts: Sequence[str], end: str, depth: int) -> str:
    lines = ",".join(f"\n{'  ' * (depth + 1)}{part}" for part in parts)
    return f"{begin}{lines}\n{'  ' * depth}{end}"


def _compact(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def difference(old: str, new: str) -> list[Line]:
    """Return the lines of two texts that differ, with some around them; nothing when the texts are the same."""
    before, after = old.splitlines(), new.splitlines()
    return [] if before == after else _with_gaps(list(_lines(before, after)))


def hidden_changes(before: Mapping[str, Any], after: Mapping[str, Any], shown: Mapping[str, Any]) -> list[str]:
    """Return the names of arguments that change although both are shown alike, because they are secret.

    ``shown`` is what a person sees of ``after``; ``before`` and ``after`` are the values themselves.
    """
    return [
        name
        for name in after
        if name in before and _text(before[name]) != _text(after[name]) and _text(shown.get(name)) != _text(after[name])
    ]


def _text(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _lines(before: Sequence[str], after: Sequence[str]) -> Iterator[Line]:
    for tag, i1, i2, j1, j2 in _opcodes(before, after):
        if tag == "equal":
            for offset, text in enumerate(before[i1:i2]):
                yield Line("same", (Part(text),), i1 + offset + 1, j1 + offset + 1)
        else:
            yield from _replaced(before[i1:i2], after[j1:j2], i1, j1)


def _opcodes(before: Sequence[str], after: Sequence[str]) -> Sequence[tuple[str, int, int, int, int]]:
    if len(before) * len(after) <= _MOST_COMPARISONS:
        return SequenceMatcher(None, before, after, autojunk=False).get_opcodes()
    head = _shared(before, after)
    tail = _shared(before[head:][::-1], after[head:][::-1])
    end, other_end = len(before) - tail, len(after) - tail
    return [
        ("equal", 0, head, 0, head),
        ("replace", head, end, head, other_end),
        ("equal", end, len(before), other_end, len(after)),
    ]


def _shared(one: Sequence[str], other: Sequence[str]) -> int:
    return next(
        (at for at, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]), min(len(one), len(other))
    )


def _replaced(removed: Sequence[str], added: Sequence[str], old_from: int, new_from: int) -> Iterator[Line]:
    """Lines that went, then lines that came. As many of both: each pair shows what changed within."""
    pairs = [_marked(*pair) for pair in zip(removed, added, strict=False)] if len(removed) == len(added) else []
    for at, (text, pair) in enumerate(zip_longest(removed, pairs)):
        yield Line("removed", pair[0] if pair else (Part(text),), old_number=old_from + at + 1)
    for at, (text, pair) in enumerate(zip_longest(added, pairs)):
        yield Line("added", pair[1] if pair else (Part(text),), new_number=new_from + at + 1)


def _marked(old: str, new: str) -> tuple[tuple[Part, ...], tuple[Part, ...]]:
    head = _shared(old, new)
    tail = _shared(old[head:][::-1], new[head:][::-1])
    return _split(old, head, tail), _split(new, head, tail)


def _split(text: str, head: int, tail: int) -> tuple[Part, ...]:
    end = len(text) - tail
    parts = (Part(text[:head]), Part(text[head:end], is_changed=True), Part(text[end:]))
    return tuple(part for part in parts if part.text)


def _with_gaps(lines: list[Line]) -> list[Line]:
    """Leave out lines that are far from any change."""
    changed = [at for at, line in enumerate(lines) if line.kind != "same"]
    near = {at for change in changed for at in range(change - CONTEXT, change + CONTEXT + 1)}
    kept: list[Line] = []
    for at, line in enumerate(lines):
        if at in near:
            kept.append(line)
        elif not kept or kept[-1].kind != "gap":
            kept.append(Line("gap", ()))
    return kept
