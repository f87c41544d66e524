"""Keeps secrets out of whatever is shown: answers over HTTP, log lines, stored error messages and tracebacks.

Three nets, each for what the others let through: names that say what they hold (``password=...``, in objects and in
text), passwords in URLs, and the very values of the arguments that a task declares `Secret`, wherever they turn up.
It errs on the side of hiding. What is hidden is never written back over what is stored: see `placeholders.restored`.
"""

import functools
import json
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from typing import Any, Final
from urllib.parse import quote, quote_plus

from durableq.secret_names import RESULT, is_secret_name

HIDDEN: Final = "**********"
"""Stands for a hidden value; pydantic shows its own secrets so."""
MASKED: Final = "***"
"""Stands for a hidden part of a text."""

_SHORTEST: Final = 4
"""Shorter values are not looked for in text: hiding them would garble it and protect nothing."""
_HEAD: Final = 40
"""So much of a value is taken for the value: error messages cut what they quote."""
_CUT_AT: Final = 1_000
"""No text that is stored is cut to fewer characters."""
_PATIENCE: Final = 8
"""So many times its length is gone through in a text for what begins like a value and is none."""
_MOST_VALUES: Final = 200
_DEEPEST: Final = 64

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


class Redactor:
    """Hides what is secret for one job. ``names``: its arguments that are; ``values``: what they hold, or held.

    Without ``knows_all`` there are values that are not known here: of what the task `said` nothing is shown then.
    """

    def __init__(self, names: Collection[str] = (), values: Iterable[Any] = (), *, knows_all: bool = True) -> None:
        self.names = frozenset(names)
        self.knows_all = knows_all
        self._values = {text for value in values for text in _texts(value) if len(text) >= _SHORTEST} - {HIDDEN}
        self._hides_all_text = len(self._values) > _MOST_VALUES
        self._search = None if self._hides_all_text or not self._values else _Search(self._values)

    @property
    def hides_values(self) -> bool:
        """Whether there are values to be looked for in texts."""
        return bool(self._values)

    @classmethod
    def of(cls, names: Collection[str], *arguments: Any, knows_all: bool = True) -> "Redactor":
        """For a job of these arguments, and those it had before it was edited."""
        found: list[Any] = []
        for one in arguments:
            _collect(one, frozenset(names), found)
        return cls(names, found, knows_all=knows_all)

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
        if self._search is not None:
            text = self._search.hidden_in(text)
        return redacted_text(text, self.names)

    def said(self, text: str) -> str:
        """Return what a task said, a log line or a progress message, as it may be shown.

        Since these are redacted when they are stored this matters for older ones; hence nothing without all values.
        """
        return self.text(text) if self.knows_all else HIDDEN

    def _under(self, name: Any, value: Any, depth: int, is_secret: bool) -> Any:
        if value is None or isinstance(value, bool):  # tells whether there is one, and nothing of it
            return value
        return HIDDEN if is_secret or is_secret_name(str(name)) else self.value(value, depth)

    def _is_known(self, value: Any) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool) and str(value) in self._values


class _Search:
    """Finds values in texts, all in one go, however they are quoted, also where no more than a beginning was kept."""

    def __init__(self, values: Iterable[str]) -> None:
        # As many backslashes as one: how many there are is up to the quoting.
        plain = sorted({re.sub(r"\\+", r"\\", value) for value in values}, key=lambda value: (-len(value), value))
        self._rests: dict[str, list[str]] = {}
        for value in plain:
            self._rests.setdefault(value[:_HEAD], []).append(value[_HEAD:])
        self._words = {max(_PLAIN.findall(head), key=len, default="") for head in self._rests}

    def hidden_in(self, text: str) -> str:
        """Return a text without the values."""
        if any(word in text for word in self._words):
            text = self._without_found(text)
        return self._without_cut(text) if len(text) >= _CUT_AT else text

    def _without_found(self, text: str) -> str:
        kept: list[str] = []
        done = 0
        for start, end in self._spans(text):
            if start >= done:  # else it goes on with one that is hidden already
                kept += text[done:start], MASKED
            done = max(done, end)
        return "".join((*kept, text[done:]))

    def _spans(self, text: str) -> Iterable[tuple[int, int]]:
        """From where to where there are values, in order; those that overlap too."""
        pattern, rests = self._compiled
        reached: defaultdict[tuple[int, str], int] = defaultdict(int)
        patience = _PATIENCE * len(text)
        for found in pattern.finditer(text):
            group = found.lastindex or 0
            end = found.end(group)
            for rest in rests[group - 1]:
                # Of each value by itself: one that begins within another may go on behind it.
                if end < reached[group, rest]:
                    continue
                done, is_whole = _end(text, end, rest)
                yield found.start(), done
                # Within one that was found it is not looked for again. Within what only begins like it, it is, but not
                # for ever: where a long value repeats itself, each character is such a beginning.
                patience -= 0 if is_whole else done - end
                if is_whole or patience < 0:
                    reached[group, rest] = done

    @functools.cached_property
    def _compiled(self) -> tuple[re.Pattern[str], list[list[str]]]:
        """One pattern, a group for each beginning of a value; and by group how these may go on.

        Grouped by first character, by which a position is passed over fast; a longer one is tried before a shorter.
        Looks ahead only, so that no match hides another that begins inside of it.
        """
        by_first: dict[str, list[str]] = {}
        for head in self._rests:
            by_first.setdefault(head[0], []).append(head)
        heads = [head for group in by_first.values() for head in group]
        groups = (
            _as_written(first) + f"(?:{'|'.join(f'({_written(head[1:])})' for head in group)})"
            for first, group in by_first.items()
        )
        return re.compile(f"(?={'|'.join(groups)})"), [self._rests[head] for head in heads]

    def _without_cut(self, text: str) -> str:
        """A text that was cut to its length may end in a value's very beginning: the longest that fits is hidden."""
        longest = max(_cut_length(head, text) for head in self._rests)
        return text[:-longest] + MASKED if longest else text


def _cut_length(head: str, text: str) -> int:
    """How many characters of a value's beginning a text ends in; 0 for fewer than are looked for."""
    lengths = range(len(head), _SHORTEST - 1, -1)
    return next((length for length in lengths if text.endswith(head[:length])), 0)


def _end(text: str, at: int, rest: str) -> tuple[int, bool]:
    """Return where a value ends whose ``rest`` may follow in a text, and whether all of that does."""
    for char in rest:
        found = _one(char).match(text, at)
        if found is None:
            return at, False
        at = found.end()
    return at, True


@functools.lru_cache(maxsize=4_096)
def _one(char: str) -> re.Pattern[str]:
    return re.compile(_as_written(char))


def _written(text: str) -> str:
    return "".join(map(_as_written, text))


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

    In ``task=secrets.tool:mail`` the module only names the task: that stays.
    Takes time in proportion to the text's length, whatever it holds.
    """
    text = _PRIVATE_KEY.sub(rf"\g<1>{MASKED}\g<2>", text)
    if "://" in text:
        text = _URL_PASSWORD.sub(rf"\g<before>{MASKED}@", text)
    text = _BEARER.sub(rf"\g<before>{MASKED}", text)
    kept: list[str] = []
    at = 0
    task_at: int | None = None
    for key in _KEY.finditer(text):
        name = key["key"]
        is_module = key.start() == task_at and key[0] == f"{name}:"
        task_at = key.end() if key[0] == "task=" else None
        if key.start() < at or is_module or not (name in names or is_secret_name(name)):
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


# -- control characters --------------------------------------------------------------------------------------


def one_line(text: str) -> str:
    """Return a text without line breaks, control characters, terminal escapes and marks that turn its direction."""
    return " ".join(cleaned(text).split("\n")).replace("\t", " ")


def cleaned(text: str) -> str:
    """The same, with line breaks and tabs kept."""
    return _CONTROL.sub("", _ANSI.sub("", text))
