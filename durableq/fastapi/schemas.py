"""What the stored JSON schema of a task's arguments tells: which of them are secret, and what of it may be shown.

Schemas are how one app describes its tasks to another that does not have its code. They err on the side of hiding:
an argument that its schema does not describe counts as secret. Pure.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from durableq.redaction import Redactor
from durableq.secret_names import is_secret_name

_MARKS: Final = ("default", "const", "enum", "examples", "example")
"""Where a schema quotes values."""
_BY_NAME: Final = ("properties", "$defs", "patternProperties", "dependentSchemas")
"""Where schemas stand by name."""
_DEEPEST: Final = 60


@dataclass(frozen=True, slots=True)
class Declared:
    """Which arguments of a task are declared secret."""

    secret: frozenset[str] = frozenset()
    plain: frozenset[str] | None = None
    """Those that are known not to be; None: all others."""

    def hides(self, argument: str) -> bool:
        """Whether the value of an argument is to be hidden because of what the task declares."""
        return argument in self.secret or (self.plain is not None and argument not in self.plain)


NOTHING_KNOWN: Final = Declared(plain=frozenset())
"""For a task that nobody described: every argument may be secret."""


def declared_in(schema: str | None) -> Declared:
    """Return what a stored schema declares. Without one, or with one that cannot be read, nothing is known."""
    root = _read(schema)
    properties = root.get("properties") if isinstance(root, dict) else None
    if not isinstance(properties, dict):
        return NOTHING_KNOWN
    secret = frozenset(name for name, part in properties.items() if _is_secret(part, root, set()))
    return Declared(secret, frozenset(properties) - secret)


def shown_schema(schema: str | None) -> dict[str, Any] | None:
    """Return a stored schema as it may be shown: without the defaults and examples of what is secret."""
    root = _read(schema)
    return _shown(root, root, 0) if isinstance(root, dict) else None


def _read(schema: str | None) -> Any:
    try:
        return None if schema is None else json.loads(schema)
    except (ValueError, RecursionError):
        return None


def _is_secret(part: Any, root: Mapping[str, Any], seen: set[str], depth: int = 0) -> bool:
    """Whether anything secret is inside, wherever. ``seen``: references that were followed."""
    if depth > _DEEPEST:
        return True  # nobody can say
    if isinstance(part, list):
        return any(_is_secret(one, root, seen, depth + 1) for one in part)
    if not isinstance(part, dict):
        return False
    if part.get("writeOnly") is True or part.get("format") == "password":
        return True
    reference = part.get("$ref")
    if isinstance(reference, str) and reference not in seen:
        seen.add(reference)
        if _is_secret(_referred(reference, root), root, seen, depth + 1):
            return True
    return any(_is_secret(one, root, seen, depth + 1) for one in _inside(part))


def _inside(part: Mapping[str, Any]) -> Iterable[Any]:
    """The schemas within one. Under `_BY_NAME` any word is a name, none is the schema's own."""
    for word, value in part.items():
        if word in _BY_NAME and isinstance(value, dict):
            yield from value.values()
        elif word not in _MARKS:
            yield value


def _referred(reference: str, root: Any) -> Any:
    found = root
    for name in reference.removeprefix("#/").split("/"):
        if not isinstance(found, dict) or name not in found:
            return {"writeOnly": True}  # nobody can say what it is
        found = found[name]
    return found


def _shown(part: Any, root: Mapping[str, Any], depth: int, *, is_secret: bool = False) -> Any:
    if depth > _DEEPEST:
        return {}
    if isinstance(part, list):
        return [_shown(one, root, depth + 1) for one in part]
    if not isinstance(part, dict):
        return part
    quoted = [word for word in _MARKS if word in part]
    hides = is_secret or (bool(quoted) and _is_secret(part, root, set()))
    shown: dict[str, Any] = {}
    for word, value in part.items():
        if word in quoted:
            shown |= {} if hides else {word: Redactor().value(value)}
        elif word in _BY_NAME and isinstance(value, dict):
            shown[word] = {
                name: _shown(one, root, depth + 1, is_secret=is_secret_name(name)) for name, one in value.items()
            }
        else:
            shown[word] = _shown(value, root, depth + 1)
    return shown
