"""What comes back from whoever edits arguments that were shown with their secrets hidden."""

from collections.abc import Iterable, Mapping
from typing import Any, Final

from durableq.redaction import HIDDEN, MASKED

MOST_LEVELS: Final = 100
"""Edited arguments may be nested so deep."""


class PlaceholderSent(ValueError):
    """Edited arguments hold the placeholder of a secret where there is none to put in its place."""

    def __init__(self, where: str) -> None:
        super().__init__(
            f"argument {where!r} holds {MASKED!r}, which stands for something hidden; leave what you do not want to "
            "change exactly as it was shown, or give it in full"
        )
        self.argument = where.partition(".")[0]


def restored(edited: Mapping[str, Any], shown: Mapping[str, Any], stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return edited arguments in which whatever came back as it was shown is again what is stored.

    Raises `PlaceholderSent` rather than let a placeholder overwrite a secret. Takes time in proportion to the size of
    the arguments; `too_deep` is asked before.
    """
    restored_all: dict[str, Any] = _Restoring().value(dict(edited), dict(shown), dict(stored), "")
    return restored_all


def too_deep(value: Any, depth: int = MOST_LEVELS) -> bool:
    """Whether lists and objects stand in one another more than so many levels deep."""
    level = [value]
    for _ in range(depth):
        level = [part for one in level for part in _parts(one)]
        if not level:
            return False
    return any(isinstance(one, dict | list) for one in level)


def _parts(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


class _Restoring:
    """Compares JSON values fast: each list and each object gets a number once, from inside out; equal ones the same."""

    def __init__(self) -> None:
        self._number_of: dict[Any, int] = {}
        self._seen: dict[int, tuple[Any, int]] = {}
        """By identity, with what has it: a value that was let go of could leave it to another."""

    def value(self, edited: Any, shown: Any, stored: Any, where: str) -> Any:
        if self._same(edited, shown):
            return stored
        if isinstance(edited, dict):
            known = shown if isinstance(shown, dict) and isinstance(stored, dict) else {}
            return {
                name: self.value(
                    value, known.get(name), stored[name] if name in known else None, f"{where}.{name}".strip(".")
                )
                for name, value in edited.items()
            }
        if isinstance(edited, list):
            return self._items(edited, shown, stored, where)
        was_hidden = not self._same(shown, stored)
        if edited == HIDDEN or (was_hidden and isinstance(edited, str) and MASKED in edited):
            raise PlaceholderSent(where)
        return edited

    def _items(self, edited: list[Any], shown: Any, stored: Any, where: str) -> list[Any]:
        """The items of a list, which may have been moved: then only where it is plain which one it was."""
        pairs = list(zip(shown, stored, strict=False)) if isinstance(shown, list) and isinstance(stored, list) else []
        meant: dict[Any, list[Any]] = {}
        for one_shown, one_stored in pairs:
            meant.setdefault(self._key(one_shown), []).append(one_stored)
        plain = {key: found[0] for key, found in meant.items() if len({self._key(one) for one in found}) == 1}
        items = []
        for at, item in enumerate(edited):
            key = self._key(item)
            if key in plain:
                items.append(plain[key])
            else:
                its_shown, its_stored = pairs[at] if at < len(pairs) else (None, None)
                items.append(self.value(item, its_shown, its_stored, f"{where}.{at}"))
        return items

    def _same(self, one: Any, other: Any) -> bool:
        return one is other or bool(self._key(one) == self._key(other))

    def _key(self, value: Any) -> Any:
        """Equal for equal JSON values, and only for those: 1, 1.0 and true are three."""
        if not isinstance(value, dict | list):
            return (type(value), repr(value) if isinstance(value, float) else value)
        if id(value) not in self._seen:
            self._number(value)
        return self._seen[id(value)][1]

    def _number(self, value: Any) -> None:
        """Give a list or an object its number, after all inside of it: no recursion, it may be stored at any depth."""
        open_ones = [value]
        while open_ones:
            one = open_ones[-1]
            inside = [part for part in _parts(one) if isinstance(part, dict | list) and id(part) not in self._seen]
            if inside:
                open_ones += inside
                continue
            open_ones.pop()
            content: Any
            if isinstance(one, dict):
                content = frozenset((name, self._key(part)) for name, part in one.items())
            else:
                content = tuple(map(self._key, one))
            self._seen[id(one)] = one, self._number_of.setdefault(content, len(self._number_of))
