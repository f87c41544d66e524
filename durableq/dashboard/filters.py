"""What a person looks for, as a search text, as form fields, and as the query of a URL: all three say the same.

A `Search` keeps times as they were written, so that the URL of "the last hour" stays that; `Search.where` turns it
into a `JobFilter` at a given moment. What cannot be meant is refused with the reason, and nothing is widened by
leaving it out: with problems there is no search. Reading costs little whatever comes: too much is refused before
anything is made of it. Pure; reads no clock.
"""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple

from durableq.models import JobFilter, JobState

ARGUMENT: Final = "arg."
"""What stands before the name of an argument: ``arg.user_id=42``."""
LONGEST: Final = 200
"""Characters of one value."""
LONGEST_TEXT: Final = 2_000
"""Characters of a search text."""
_LONGEST_NAME: Final = 40
"""So much is shown of the name of a filter that there is not."""
_MOST_ARGUMENTS: Final = 10
_MOST_CONDITIONS: Final = 30
_MOST_PROBLEMS: Final = 10
_UNITS: Final = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_AGE: Final = re.compile(r"(?:last\s*)?([0-9]{1,6})\s*([smhdw])", re.IGNORECASE)
_QUOTED: Final = r'"(?:[^"\\]|\\.)*"'
_TOKEN: Final = re.compile(
    rf'(?P<key>arg\.{_QUOTED}|[^\s:"]+):(?:(?P<quoted>{_QUOTED})|(?P<plain>\S*))|(?P<phrase>{_QUOTED})|(?P<word>\S+)'
)
_JOB_ID: Final = re.compile(
    r'(?:id:)?"?([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})"?', re.IGNORECASE
)
_PART_OF_ID: Final = re.compile(r"[0-9a-f]{12}|[0-9a-f]{8}-[0-9a-f-]{0,27}", re.IGNORECASE)
_PLAIN: Final = re.compile(r'[^\s"]+')
_PLAIN_NAME: Final = re.compile(r'[^\s:"]+')
_STATES: Final = [state.value for state in JobState]
_SHORT: Final = {"error": "error_text"}
"""Keys of the search text that have a longer name in the URL; there they are taken too."""
_OF_PAGES: Final = frozenset(
    ("q", "cursor", "said", "n", "of", "csrf", "do", "id", "sure", "expected", "is_all", "typed", "done", "whole")
)
"""Fields of pages and their forms that say nothing of which jobs are looked for."""
_RETRYING: Final = "retrying"
"""What pages call a scheduled job that was tried before. It is no state of its own, and cannot be looked for."""
_ONLY_SCHEDULED: Final = "a job that is “retrying” is a scheduled one that was tried before; write state:scheduled"
_WHOLE_ID: Final = (
    "a job is found by its whole id, 36 characters and nothing else; its page and its title in the list have it"
)


class Problem(NamedTuple):
    """Why something cannot be looked for, and which field says it."""

    field: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """Which jobs are looked for. An empty text is no condition. Times are an age (``1h``) or a moment (ISO 8601)."""

    state: str = ""
    task: str = ""
    queue: str = ""
    tag: str = ""
    error_type: str = ""
    error_text: str = ""
    since: str = ""
    """Added then or later."""
    until: str = ""
    """Added before."""
    finished_since: str = ""
    finished_until: str = ""
    arguments: tuple[tuple[str, str], ...] = ()

    def __bool__(self) -> bool:
        return bool(self.query())

    def query(self) -> list[tuple[str, str]]:
        """Return the pairs of its URL, in an order that is always the same."""
        pairs = [(name, getattr(self, name)) for name in NAMES if getattr(self, name)]
        return pairs + [(ARGUMENT + name, value) for name, value in self.arguments]

    def fields(self) -> dict[str, Any]:
        """Return the same by name, as `Visit.url` takes it."""
        return dict(self.query())

    def text(self) -> str:
        """Return it as one would type it into the search box."""
        return " ".join(f"{_as_typed(name)}:{_quoted(value)}" for name, value in self.query())

    @staticmethod
    def shown(name: str, value: str) -> str:
        """Return the value of one of its conditions as people read it: a moment to the second, and with its zone."""
        return _moment_in_words(value) if name in TIMES else value

    def without(self, name: str) -> "Search":
        """Return the same search without one of its conditions."""
        if name.startswith(ARGUMENT):
            kept = tuple(pair for pair in self.arguments if ARGUMENT + pair[0] != name)
            return replace(self, arguments=kept)
        return self._with({name: ""})

    def where(self, now: datetime) -> JobFilter:
        """Return what the storage is asked, ages counted from ``now``. It must have no `problems`."""
        return JobFilter(
            state=JobState(self.state) if self.state else None,
            task=self.task or None,
            queue=self.queue or None,
            error_type=self.error_type or None,
            error_text=self.error_text or None,
            tag=self.tag or None,
            arguments=dict(self.arguments),
            created_after=moment(self.since, now),
            created_before=moment(self.until, now),
            finished_after=moment(self.finished_since, now),
            finished_before=moment(self.finished_until, now),
        )

    def fixed(self, now: datetime) -> "Search":
        """Return it with moments in place of ages: it then means the same however long somebody thinks it over."""
        found = {name: moment(getattr(self, name), now) for name in TIMES}
        return self._with({name: at.isoformat() for name, at in found.items() if at is not None})

    def ending_before(self, name: str, now: datetime) -> "Search":
        """Return it narrowed to what happened before ``now``, by ``until`` or ``finished_until``."""
        own = moment(getattr(self, name), now)
        return self._with({name: (now if own is None else min(own, now)).isoformat()})

    def _with(self, texts: Mapping[str, Any]) -> "Search":
        return replace(self, **texts)

    def problems(self, now: datetime) -> list[Problem]:
        """Return why it cannot be looked for; nothing when it can."""
        found = [problem for name, value in self.query() for problem in _checked(name, value, now)]
        return found or [*_empty_span(self, "since", "until", now), *_empty_span(self, *_FINISHED, now)]


class Read(NamedTuple):
    """What was read from a text or a query."""

    search: Search
    problems: list[Problem]
    job_id: str | None = None
    """The text was nothing but the id of a job."""


NAMES: Final = tuple(one.name for one in fields(Search) if one.name != "arguments")
TIMES: Final = ("since", "until", "finished_since", "finished_until")
_FINISHED: Final = ("finished_since", "finished_until")


# -- reading -------------------------------------------------------------------------------------------------


def read_query(pairs: Iterable[tuple[str, str]], now: datetime, others: Set[str] = frozenset()) -> Read:
    """Read the query of a URL, or a sent form. Empty fields are passed over, and so are those of our own pages and
    ``others``.

    Any other name is a mistake: left out it would widen the search. An ``arg_name`` field names the argument that the
    next ``arg_value`` is compared with.
    """
    given: list[tuple[str, str]] = []
    problems: list[Problem] = []
    name = ""
    for key, value in ((key, value.strip()) for key, value in pairs):
        if key == "arg_name":
            name = value
        elif key == "arg_value":
            given += [(ARGUMENT + name, value)] if name or value else []
        elif value and (_SHORT.get(key, key) in NAMES or key.startswith(ARGUMENT)):
            given.append((_SHORT.get(key, key), value))
        elif value and key not in _OF_PAGES and key not in others and len(problems) < _MOST_PROBLEMS:
            problems.append(Problem("q", _unknown_name(key)))
    return _read(given, problems, now)


def read_text(text: str, now: datetime) -> Read:
    """Read a search text: ``state:dead task:mail.send arg.user_id:42 error:"timed out" since:1h``, or a job's id.

    Words without a key are part of an error's message; the name of a state is that state.
    """
    found = _JOB_ID.fullmatch(text.strip())
    if found is not None:
        return Read(Search(), [], found[1].lower())
    if len(text) > LONGEST_TEXT:
        return _refused("q", f"expected a search of at most {LONGEST_TEXT:,} characters, got {len(text):,}")
    given: list[tuple[str, str]] = []
    problems: list[Problem] = []
    words: list[str] = []
    for token in _TOKEN.finditer(text):
        if token["key"] is not None:
            _read_pair(token, given, problems)
        elif token["phrase"] is not None:
            words.append(_unquoted(token["phrase"]))
        else:
            _read_word(token["word"], given, words, problems)
        if len(problems) >= _MOST_PROBLEMS:
            return Read(Search(), problems)
    if phrase := " ".join(words).strip():
        given.append(("error_text", phrase))
    return _read(given, problems, now)


def _read(given: Sequence[tuple[str, str]], problems: list[Problem], now: datetime) -> Read:
    if len(given) > _MOST_CONDITIONS:
        return _refused("q", f"expected at most {_MOST_CONDITIONS} conditions, got {len(given):,}")
    found: dict[str, str] = {}
    for name, value in given:
        if found.get(name, value) != value:
            problems.append(Problem(name, f"{_as_typed(name)} is asked for twice, and a search takes one of it"))
        found.setdefault(name, value)
    arguments = tuple((name.removeprefix(ARGUMENT), value) for name, value in found.items() if name not in NAMES)
    if len(arguments) > _MOST_ARGUMENTS:
        return _refused(ARGUMENT, f"expected at most {_MOST_ARGUMENTS} arguments, got {len(arguments)}")
    longest = max((len(part) for pair in found.items() for part in pair), default=0)
    if longest > LONGEST:
        name = next(name for name, value in found.items() if longest in (len(name), len(value)))
        return _refused(name, f"expected at most {LONGEST} characters, got {longest:,}")
    search = Search(**{name: value for name, value in found.items() if name in NAMES}, arguments=arguments)
    return Read(search, [*problems, *search.problems(now)][:_MOST_PROBLEMS])


def _refused(field: str, message: str) -> Read:
    """Too much was asked for: nothing of it is kept, so that a page does not repeat it."""
    return Read(Search(), [Problem(field, message)])


def _read_pair(token: re.Match[str], given: list[tuple[str, str]], problems: list[Problem]) -> None:
    key, quoted = token["key"], token["quoted"]
    value = token["plain"] if quoted is None else _unquoted(quoted)
    name = ARGUMENT + _unquoted(key.removeprefix(ARGUMENT)) if key.endswith('"') else _SHORT.get(key, key)
    if key == "id":
        problems.append(Problem("q", _WHOLE_ID))
    elif name not in NAMES and not name.startswith(ARGUMENT):
        problems.append(Problem("q", _unknown_key(key, value)))
    elif not value:
        example = _EXAMPLES.get(name, "arg.user_id:42")
        problems.append(Problem("q", f"{key}: has nothing behind it; write what to look for, as in {example}"))
    elif quoted is None and value.startswith('"'):
        problems.append(Problem("q", f'{key}:{value} opens a quotation that nothing closes; add a second "'))
    else:
        given.append((name, value))


def _read_word(word: str, given: list[tuple[str, str]], words: list[str], problems: list[Problem]) -> None:
    if word in _STATES:
        given.append(("state", word))
    elif word == _RETRYING:
        problems.append(Problem("q", _ONLY_SCHEDULED))
    elif _PART_OF_ID.fullmatch(word):
        problems.append(Problem("q", f"{word!r} looks like a part of an id: {_WHOLE_ID}"))
    elif '"' in word:
        problems.append(Problem("q", f'{word} opens a quotation that nothing closes; add a second "'))
    else:
        words.append(word)


def _unknown_name(name: str) -> str:
    shown = name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}…"
    near = difflib.get_close_matches(shown, NAMES, 1)
    known = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(NAMES)}, and {ARGUMENT} with a name"
    return f"there is no filter {shown!r}; {known}"


def _unknown_key(key: str, value: str) -> str:
    known = [_as_typed(name) for name in NAMES]
    near = difflib.get_close_matches(key, known, 1)
    if near:
        return f"there is no key {key!r}; did you mean {near[0]!r}?"
    return (
        f"there is no key {key!r}; for an argument of that name write {ARGUMENT}{key}:…, for a task of such a name "
        f"task:{key}:{value or '…'}; keys are {', '.join(known)}"
    )


# -- checking ------------------------------------------------------------------------------------------------


def _checked(name: str, value: str, now: datetime) -> list[Problem]:
    message = _what_is_wrong(name, value, now)
    return [] if message is None else [Problem(name, message)]


def _what_is_wrong(name: str, value: str, now: datetime) -> str | None:
    if "\0" in name + value:
        return "a search cannot hold the character NUL (U+0000)"
    if name == "state":
        return _check_state(value)
    if name in ("task", "queue"):
        return _check_name(value)
    if name in TIMES:
        return _check_time(value, now)
    return "an argument needs its name, as in arg.user_id:42" if name == ARGUMENT else None


def _check_state(value: str) -> str | None:
    if value in _STATES:
        return None
    if value == _RETRYING:
        return _ONLY_SCHEDULED
    near = difflib.get_close_matches(value, _STATES, 1)
    return f"there is no state {value!r}; {f'did you mean {near[0]!r}?' if near else 'there are ' + ', '.join(_STATES)}"


def _check_name(value: str) -> str | None:
    if "*" in value:
        return (
            f"{value!r} is a pattern, and names are looked up whole; leave the field empty, or write one name in full"
        )
    return None


def _check_time(value: str, now: datetime) -> str | None:
    try:
        moment(value, now)
    except (ValueError, OverflowError):
        return f"expected an age such as 15m, 1h or 7d, or a moment such as 2030-01-31T10:00Z (UTC), got {value!r}"
    return None


_EXAMPLES: Final[dict[str, str]] = {
    "state": "state:dead",
    "task": "task:mail.send",
    "queue": "queue:mail",
    "tag": "tag:import",
    "error_type": "error_type:TimeoutError",
    "error_text": 'error:"timed out"',
    **dict.fromkeys(TIMES, "since:1h"),
}


def _empty_span(search: Search, first: str, last: str, now: datetime) -> list[Problem]:
    begin, end = moment(getattr(search, first), now), moment(getattr(search, last), now)
    if begin is None or end is None or begin < end:
        return []
    return [
        Problem(last, f"nothing lies between {first} ({getattr(search, first)}) and {last} ({getattr(search, last)})")
    ]


# -- times and texts -----------------------------------------------------------------------------------------


def moment(text: str, now: datetime) -> datetime | None:
    """Return the moment that a text names, None for an empty one. Without a time zone it is UTC.

    Raises `ValueError` or `OverflowError` for what is neither an age nor a moment.
    """
    if not text:
        return None
    age = _AGE.fullmatch(text)
    if age is not None:
        return now - timedelta(seconds=int(age[1]) * _UNITS[age[2].lower()])
    at = datetime.fromisoformat(text)
    return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)


def _moment_in_words(text: str) -> str:
    if _AGE.fullmatch(text):
        return text
    try:
        at = datetime.fromisoformat(text)
    except ValueError:  # refused beside it
        return text
    if at.tzinfo is None:  # it may be a day alone
        return f"{text.replace('T', ' ')} UTC"
    return f"{at:%Y-%m-%d %H:%M:%S} UTC" if at.utcoffset() == timedelta(0) else text


def _as_typed(name: str) -> str:
    if name.startswith(ARGUMENT):
        argument = name.removeprefix(ARGUMENT)
        return name if _PLAIN_NAME.fullmatch(argument) or not argument else ARGUMENT + _in_quotes(argument)
    return next((short for short, long in _SHORT.items() if long == name), name)


def _quoted(value: str) -> str:
    if _PLAIN.fullmatch(value):
        return value
    return _in_quotes(value)


def _in_quotes(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _unquoted(text: str) -> str:
    """Return what stands between the two quotation marks of a text."""
    return re.sub(r"\\(.)", r"\1", text[1:-1])
