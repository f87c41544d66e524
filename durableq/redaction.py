"""Keeps secrets out of whatever is shown: answers over HTTP, log lines, stored error messages and tracebacks.

Three nets, each for what the others let through: names that say what they hold (``password=...``, in objects and in
text), passwords in URLs, and the very values of the arguments that a task declares `Secret`, wherever they turn up.
It errs on the side of hiding. What is hidden is never written back over what is stored: see `restored`.
"""

import dataclasses
import functools
import json
import re
import typing
import weakref
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any, Final, cast
from urllib.parse import quote, quote_plus

from pydantic import BaseModel, GetCoreSchemaHandler, GetJsonSchemaHandler, SecretBytes, SecretStr
from pydantic_core import CoreSchema, core_schema
from typing_extensions import is_typeddict

HIDDEN: Final = "**********"
"""Stands for a hidden value; pydantic shows its own secrets so."""
MASKED: Final = "***"
"""Stands for a hidden part of a text."""
RESULT: Final = "return"
"""The name of the return value among those of arguments; no argument can have it."""

_SHORTEST: Final = 4
"""Shorter values are not looked for in text: hiding them would garble it and protect nothing."""
_HEAD: Final = 40
"""So much of a value is taken for the value: error messages cut what they quote."""
_CUT_AT: Final = 1_000
"""No text that is stored is cut to fewer characters."""
_MOST_VALUES: Final = 200
_DEEPEST: Final = 64
_CERTAIN: Final = (
    "password", "passwd", "passphrase", "passcode", "secret", "token", "authorization", "credential", "cookie",
    "apikey", "accesskey", "privatekey", "signingkey", "encryptionkey", "sessionid", "sessionkey", "creditcard",
    "cardnumber", "csrf", "xsrf", "connectionstring",
)  # fmt: skip
"""Hide a name that has one of these anywhere, whatever its case and separators: ``X-Api-Key``, ``dbPasswordOld``."""
_WORDS: Final = frozenset(
    {"pwd", "pw", "auth", "session", "sid", "bearer", "jwt", "otp", "totp", "cvv", "cvc", "ssn", "pin"}
)
"""Hide a name that has one of these as a whole word only: ``author``, ``pinned`` and ``possession`` are no secrets."""
_HARMLESS: Final = ("secretar", "tokeniz", "tokenis")
_MEASURES: Final = frozenset({"max", "min", "count", "length", "limit", "ttl", "expires", "expiry", "policy", "type"})
"""Words of names that tell of a secret, and are none: ``max_tokens``, ``password_min_length``."""

_NAME_PARTS: Final = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_KEY: Final = re.compile(
    r"(?<![\w.\-])(?P<key>[\w.\-]++)(?:\\*+[\"'])?+\]?+[ \t]{0,3}+(?:=>|[:=](?!=))[ \t]{0,3}+", re.ASCII
)
_VALUE: Final = re.compile(
    r"[bBrRuUfF]{0,2}+\"(?:[^\"\\\n]|\\.)*+\"?+"
    r"|[bBrRuUfF]{0,2}+'(?:[^'\\\n]|\\.)*+'?+"
    r"|(?P<escaped>\\++[\"'])[^\n]*?(?:(?P=escaped)|(?=\n)|\Z)"
    r"|[\[({][^\n]*+"
    r"|(?:(?i:bearer|basic|digest|token)[ \t]++)?+[^\s&;\"'<>]*[^\s&;\"'<>,.:)\]}]"
)
_REST_OF_LINE: Final = re.compile(r"[^\n\"']++")
_WHOLE_LINES: Final = ("authorization", "cookie")
"""Headers of which everything that follows is the secret."""
_URL_PASSWORD: Final = re.compile(
    r"(?P<before>[A-Za-z][A-Za-z0-9+.\-]{0,40}+://[^\s/:@'\"<>]{0,256}+:)[^\s'\"<>]{1,1024}@"
)
_BEARER: Final = re.compile(r"(?i)\b(?P<before>bearer[ \t]++)[A-Za-z0-9._~+/=\-]{8,}+")
_PRIVATE_KEY: Final = re.compile(r"(-----BEGIN [A-Z ]{0,30}PRIVATE KEY-----).*?(-----END|\Z)", re.DOTALL)
_PLAIN: Final = re.compile(r"[A-Za-z0-9]+")
_ANSI: Final = re.compile(
    r"\x1b(?:\[[0-?]*+[ -/]*+[@-~]?|\][^\x07\x1b\n]*+(?:\x07|\x1b\\)?|.?)|\x9b[0-?]*+[ -/]*+[@-~]?"
)
_CONTROL: Final = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
)


class Secret:
    """Declares an argument, or the return value, of a task secret: ``password: Annotated[str, Secret]``.

    It is stored as it is (protect the file), given to the task as it is, and shown nowhere. With pydantic's own
    types, ``Annotated[SecretStr, Secret]``, the task gets a `SecretStr`, whose text is what is stored.
    """

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema = handler(source)
        if not (isinstance(source, type) and issubclass(source, SecretStr | SecretBytes)):
            return schema
        serialization = core_schema.plain_serializer_function_ser_schema(_revealed, when_used="json")
        return cast("CoreSchema", {**schema, "serialization": serialization})

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {**handler(schema), "format": "password", "writeOnly": True}


def _revealed(secret: Any) -> Any:
    return secret.get_secret_value()


# -- which names are secret ----------------------------------------------------------------------------------

_also: Final[set[str]] = set()
_known: Final[weakref.WeakKeyDictionary[Callable[..., Any], frozenset[str]]] = weakref.WeakKeyDictionary()


def also_redact(names: Iterable[str]) -> None:
    """Hide these names too, in this process from now on, whatever their case and separators.

    For all queues of the process: its log lines are common to them, and what one calls secret, none should show.
    """
    _also.update(_joined(name) for name in names)
    is_secret_name.cache_clear()


@functools.lru_cache(maxsize=4_096)
def is_secret_name(name: str) -> bool:
    """Whether what stands under this name is to be hidden."""
    words = [part.lower() for part in _NAME_PARTS.findall(name[:200])]
    joined = "".join(words)
    if joined in _also:
        return True
    if not _MEASURES.isdisjoint(words) or any(word in joined for word in _HARMLESS):
        return False
    return any(word in joined for word in _CERTAIN) or not _WORDS.isdisjoint(words)


def _joined(name: str) -> str:
    return "".join(part.lower() for part in _NAME_PARTS.findall(name))


def secret_arguments(function: Callable[..., Any]) -> frozenset[str]:
    """Return the names of the arguments that a task's signature declares secret, `RESULT` for its return value.

    Those marked with `Secret`, and those that hold pydantic's secret types, anywhere inside.
    Remembered as long as the function lives.
    """
    try:
        known = _known.get(function)
    except TypeError:  # not hashable; it is asked every time
        return _secret_arguments(function)
    if known is None:
        known = _known[function] = _secret_arguments(function)
    return known


def _secret_arguments(function: Callable[..., Any]) -> frozenset[str]:
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except Exception:  # the registry refuses such a function, in words of its own
        return frozenset()
    return frozenset(name for name, hint in hints.items() if _is_secret(hint, set()))


def _is_secret(hint: Any, seen: set[int]) -> bool:
    if hint is Secret or isinstance(hint, Secret):
        return True
    if id(hint) in seen:
        return False
    seen.add(id(hint))
    # The last is what a `type` statement names.
    parts: Sequence[Any] = (
        *getattr(hint, "__metadata__", ()),
        *typing.get_args(hint),
        getattr(hint, "__value__", None),
    )
    if isinstance(hint, type):
        if issubclass(hint, SecretStr | SecretBytes):
            return True
        if issubclass(hint, BaseModel):
            parts = [*parts, *_of_model(hint)]
        elif dataclasses.is_dataclass(hint) or is_typeddict(hint) or hasattr(hint, "_fields"):
            parts = [*parts, *_hints_of(hint).values()]
    return any(_is_secret(part, seen) for part in parts)


def _of_model(model: type[BaseModel]) -> Iterable[Any]:
    for field in model.model_fields.values():
        yield field.annotation
        yield from field.metadata


def _hints_of(kind: type) -> dict[str, Any]:
    try:
        return typing.get_type_hints(kind, include_extras=True)
    except Exception:  # what pydantic can make of it, it makes without this
        return {}


# -- hiding --------------------------------------------------------------------------------------------------


class Redactor:
    """Hides what is secret for one job. ``names``: its arguments that are; ``values``: what they hold, or held."""

    def __init__(self, names: Collection[str] = (), values: Iterable[Any] = ()) -> None:
        self.names = frozenset(names)
        texts = {text for value in values for text in _texts(value) if len(text) >= _SHORTEST} - {HIDDEN}
        self._hides_all_text = len(texts) > _MOST_VALUES
        self._values = sorted(texts, key=len, reverse=True)

    @classmethod
    def of(cls, names: Collection[str], *arguments: Any) -> "Redactor":
        """For a job of these arguments, and those it had before it was edited."""
        found: list[Any] = []
        for one in arguments:
            _collect(one, frozenset(names), found)
        return cls(names, found)

    def arguments(self, values: Any) -> Any:
        """Return arguments, by name, as they may be shown."""
        if not isinstance(values, dict):
            return self.value(values)
        return {name: self._under(name, value, 1, name in self.names) for name, value in values.items()}

    def result(self, value: Any) -> Any:
        """Return a task's return value as it may be shown."""
        return HIDDEN if value is not None and RESULT in self.names else self.value(value)

    def value(self, value: Any, depth: int = 0) -> Any:
        """Return a JSON value as it may be shown: under secret names nothing, elsewhere texts as by `text`."""
        if isinstance(value, str):
            return self.text(value)
        if depth > _DEEPEST:
            return value if value is None or isinstance(value, bool) else HIDDEN
        if isinstance(value, dict):
            pair = _secret_of_pair(value)
            return {key: self._under(key, part, depth + 1, key == pair) for key, part in value.items()}
        if isinstance(value, list | tuple):
            return [self.value(part, depth + 1) for part in value]
        return HIDDEN if self._is_known(value) else value

    def text(self, text: str) -> str:
        """Return a text as it may be shown: an error message, a traceback, a line of a log."""
        if self._hides_all_text:
            return MASKED
        for value in self._values:
            text = _without(value, text)
        return redacted_text(text, self.names)

    def _under(self, name: Any, value: Any, depth: int, is_secret: bool) -> Any:
        if value is None or isinstance(value, bool):  # tells whether there is one, and nothing of it
            return value
        return HIDDEN if is_secret or is_secret_name(str(name)) else self.value(value, depth)

    def _is_known(self, value: Any) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool) and str(value) in self._values


def _without(value: str, text: str) -> str:
    """Hide a value in a text, however it is quoted there, also where no more than its beginning was kept."""
    value = re.sub(r"\\+", r"\\", value)  # as many as one: how many there are is up to the quoting
    head = value[:_HEAD]
    if max(_PLAIN.findall(head), key=len, default="") in text:
        kept: list[str] = []
        done = 0
        pattern = re.compile("".join(map(_as_written, head)))
        while (found := pattern.search(text, done)) is not None:
            kept += text[done : found.start()], MASKED
            done = _end(text, found.end(), value[_HEAD:])
        text = "".join((*kept, text[done:]))
    return _without_cut(head, text) if len(text) >= _CUT_AT else text


def _end(text: str, at: int, rest: str) -> int:
    """Return where a value ends whose ``rest`` may follow in a text."""
    for char in rest:
        found = re.compile(_as_written(char)).match(text, at)
        if found is None:
            break
        at = found.end()
    return at


def _without_cut(head: str, text: str) -> str:
    """A text that was cut to its length may end in the very beginning of a value; the longest that fits is hidden."""
    end = text[-_SHORTEST:]
    at = head.rfind(end)
    while at >= 0 and not text.endswith(head[: at + _SHORTEST]):
        at = head.rfind(end, 0, at + _SHORTEST - 1)
    return text if at < 0 else text[: -at - _SHORTEST] + MASKED


@functools.lru_cache(maxsize=4_096)
def _as_written(char: str) -> str:
    """A pattern of a character as it is, and as Python, JSON and URLs write it, quoted however often."""
    if char.isascii() and char.isalnum():
        return char
    if char == "\\":
        return r"\\++"
    encoded = char.encode("utf-8", "replace")
    forms = {char, repr(char)[1:-1], json.dumps(char)[1:-1], quote(encoded), quote_plus(encoded)}
    # Behind the first character of what is escaped as two, there may be backslashes again.
    patterns = (re.escape(form.lstrip("\\")).replace(r"\\", r"\\++") for form in sorted(forms))
    return rf"\\*+(?:{'|'.join(patterns)})"


def redacted_text(text: str, names: Collection[str] = ()) -> str:
    """Hide in a text what stands behind a secret name or one of ``names``, passwords in URLs, and private keys.

    Takes time in proportion to the text's length, whatever it holds.
    """
    text = _PRIVATE_KEY.sub(rf"\g<1>{MASKED}\g<2>", text)
    if "://" in text:
        text = _URL_PASSWORD.sub(rf"\g<before>{MASKED}@", text)
    text = _BEARER.sub(rf"\g<before>{MASKED}", text)
    kept: list[str] = []
    at = 0
    for key in _KEY.finditer(text):
        name = key["key"]
        if key.start() < at or not (name in names or is_secret_name(name)):
            continue
        value = (_REST_OF_LINE if name.lower().endswith(_WHOLE_LINES) else _VALUE).match(text, key.end())
        value = value or _VALUE.match(text, key.end())
        if value is not None:
            kept.append(text[at : key.end()] + MASKED)
            at = value.end()
    return "".join((*kept, text[at:]))


def _collect(value: Any, names: Collection[str], found: list[Any], depth: int = 0) -> None:
    """Gather the values that are hidden because of what they stand under."""
    if isinstance(value, dict):
        pair = _secret_of_pair(value)
        for name, part in value.items():
            if name in names or name == pair or is_secret_name(str(name)):
                found.append(part)
            elif depth < _DEEPEST:
                _collect(part, (), found, depth + 1)
    elif isinstance(value, list) and depth < _DEEPEST:
        for part in value:
            _collect(part, (), found, depth + 1)


def _secret_of_pair(value: Mapping[Any, Any]) -> str | None:
    """``{"name": "password", "value": "..."}`` is a pair too."""
    name = value.get("name", value.get("key"))
    return "value" if isinstance(name, str) and is_secret_name(name) else None


def _texts(value: Any, depth: int = 0) -> Iterable[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield str(value)
    elif isinstance(value, dict | list) and depth <= _DEEPEST:
        for part in value.values() if isinstance(value, dict) else value:
            yield from _texts(part, depth + 1)


# -- what comes back -----------------------------------------------------------------------------------------


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

    Raises `PlaceholderSent` rather than let a placeholder overwrite a secret.
    """
    restored_all: dict[str, Any] = _restored(dict(edited), dict(shown), dict(stored), "")
    return restored_all


def _restored(edited: Any, shown: Any, stored: Any, where: str) -> Any:
    if _same(edited, shown):
        return stored
    if isinstance(edited, dict):
        known = shown if isinstance(shown, dict) and isinstance(stored, dict) else {}
        return {
            name: _restored(
                value, known.get(name), stored[name] if name in known else None, f"{where}.{name}".strip(".")
            )
            for name, value in edited.items()
        }
    if isinstance(edited, list):
        pairs = list(zip(shown, stored, strict=False)) if isinstance(shown, list) and isinstance(stored, list) else []
        return [_restored_item(item, at, pairs, where) for at, item in enumerate(edited)]
    was_hidden = not _same(shown, stored)
    if edited == HIDDEN or (was_hidden and isinstance(edited, str) and MASKED in edited):
        raise PlaceholderSent(where)
    return edited


def _restored_item(item: Any, at: int, pairs: Sequence[tuple[Any, Any]], where: str) -> Any:
    """An item of a list, which may have been moved: then only if it is plain which one it was."""
    shown, stored = pairs[at] if at < len(pairs) else (None, None)
    if not _same(item, shown):
        meant = [pair for pair in pairs if _same(item, pair[0])]
        if meant and all(_same(one[1], meant[0][1]) for one in meant):
            return meant[0][1]
    return _restored(item, shown, stored, f"{where}.{at}")


def _same(one: Any, other: Any) -> bool:
    return one is other or json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


# -- control characters --------------------------------------------------------------------------------------


def one_line(text: str) -> str:
    """Return a text without line breaks, control characters, terminal escapes and marks that turn its direction."""
    return " ".join(cleaned(text).split("\n")).replace("\t", " ")


def cleaned(text: str) -> str:
    """The same, with line breaks and tabs kept."""
    return _CONTROL.sub("", _ANSI.sub("", text.replace("\r\n", "\n")))
