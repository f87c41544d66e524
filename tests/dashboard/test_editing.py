"""Arguments as a person types them: read exactly, or refused with the line that is meant."""

import json
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durableq.dashboard.editing import Misread, line_of, mistake, read_arguments

SCALARS = st.none() | st.booleans() | st.integers() | st.text(max_size=5)
VALUES = st.recursive(SCALARS, lambda part: st.lists(part, max_size=3) | st.dictionaries(st.text(max_size=3), part))


@pytest.mark.no_cover  # it would take thrice as long
@given(st.dictionaries(st.text(max_size=5), VALUES))
def test_what_json_can_say_is_read_exactly(values: dict[str, object]) -> None:
    assert read_arguments(json.dumps(values, indent=1)) == values


@pytest.mark.no_cover
@given(st.dictionaries(st.text(string.ascii_letters, min_size=1, max_size=5), VALUES, min_size=1))
def test_every_argument_is_found_on_its_line(values: dict[str, object]) -> None:
    lines = [f"{json.dumps(name)}: {json.dumps(value)}" for name, value in values.items()]
    text = "{\n" + ",\n".join(lines) + "\n}"
    assert [line_of(text, name) for name in values] == list(range(2, len(values) + 2))


def test_arguments_may_be_nested_as_deep_as_the_limit_says() -> None:
    assert read_arguments('{"a": ' + "[" * 99 + "]" * 99 + "}")["a"] == json.loads("[" * 99 + "]" * 99)


def test_a_name_inside_of_an_argument_is_not_taken_for_one() -> None:
    assert line_of('{\n"a": {"b": 1},\n"b": 2\n}', "b") == 3
    assert line_of('{\n"a": "\\"b\\": 1",\n"c": 2\n}', "b") is None


@pytest.mark.parametrize("text", ["", "[", "{", "{1: 2}", '{"a" 1}', "null", "\ufeff{", '{"a": 1}}'])
def test_a_line_is_looked_for_in_any_text(text: str) -> None:
    assert line_of(text, "b") is None


@pytest.mark.parametrize(
    ("text", "said", "line"),
    [
        ('{"a": 1,}', "this is not JSON", 1),
        ('{"a": 1', "ends before it is complete", 1),
        ('{\n"a": "x', "ends before it is complete", 2),
        ('{\n"a": {"b": 1,\n"b": 2}}', "the name 'b' stands twice", None),
        ('{\n"a": 1,\n"a": 2}', "the name 'a' stands twice", 2),
        ('{"a": Infinity}', "Infinity is not JSON", None),
        ("[" * 100_000, "cannot be read as JSON", None),
        ('{"a": 1,\n"b": ' + "[" * 100 + "]" * 100 + "}", "at most 100 levels deep, 'b' is deeper", 2),
        ('{"a": ' + '{"x":' * 400 + "1" + "}" * 401, "at most 100 levels deep", 1),
        ('"text"', "expected one object", 1),
    ],
)
def test_what_is_no_object_of_arguments_is_refused(text: str, said: str, line: int | None) -> None:
    with pytest.raises(Misread, match=said) as refused:
        read_arguments(text)
    assert refused.value.line == line


def test_the_lines_around_a_mistake_are_shown() -> None:
    shown = mistake("wrong", "\n".join("abcdefgh"), 4)
    assert [(line.number, line.text) for line in shown.excerpt] == [(2, "b"), (3, "c"), (4, "d"), (5, "e"), (6, "f")]
    assert [line.number for line in shown.excerpt if line.is_meant] == [4]


def test_a_mistake_at_the_edge_shows_what_there_is() -> None:
    assert [line.number for line in mistake("wrong", "a\nb", 1).excerpt] == [1, 2]
    assert mistake("wrong", "a\nb", None).excerpt == ()
