"""Shapes in which secrets hide: pairs of name and value, aliases, nesting to the limit, texts cut anywhere."""

import json
import time
from collections import OrderedDict, namedtuple
from typing import Annotated, Any, NamedTuple

import pytest
from pydantic import BaseModel, Field, SecretStr, TypeAdapter
from typing_extensions import TypeAliasType

from durableq import redaction
from durableq.placeholders import PlaceholderSent, restored, too_deep
from durableq.redaction import HIDDEN, MASKED, Redactor, cleaned, one_line, redacted_text
from durableq.secret_names import Secret, secret_arguments

CANARY = "c4n4ry-5ea1"
LONG = "The quick brown fox jumps over the lazy dog; pack my box"


def wrapped(value: Any, depth: int) -> Any:
    for level in range(depth):
        value = {"a": value} if level % 2 else [value]
    return value


# -- what a signature declares -------------------------------------------------------------------------------


Phrase = TypeAliasType("Phrase", Annotated[str, Secret])


class Key(NamedTuple):
    name: str
    phrase: Annotated[str, Secret]


class Login(BaseModel):
    phrase: Annotated[str, Secret] = Field(description="kept by pydantic apart from the annotation")


class Tree(BaseModel):
    children: "list[Tree]" = []
    phrase: SecretStr | None = None


Bare = namedtuple("Bare", "left right")


def declared(
    alias: Phrase,
    row: Key,
    model: Login,
    tree: Tree,
    second_tree: Tree,
    plain: Bare,
    ordered: OrderedDict[str, int],
    number: int,
) -> int:
    return 0


def test_a_secret_is_found_behind_an_alias_in_a_row_in_a_model_and_in_what_refers_to_itself() -> None:
    assert secret_arguments(declared) == {"alias", "row", "model", "tree", "second_tree"}


def test_a_declared_secret_is_a_password_in_a_schema() -> None:
    assert TypeAdapter(Annotated[str, Secret]).json_schema() == {
        "type": "string",
        "format": "password",
        "writeOnly": True,
    }


def test_a_secret_of_pydantic_stays_a_secret_in_python() -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(Annotated[SecretStr, Secret])
    assert isinstance(adapter.dump_python(SecretStr(CANARY)), SecretStr)
    assert json.loads(adapter.dump_json(SecretStr(CANARY))) == CANARY


# -- hiding --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", ["name", "key"])
def test_a_pair_of_a_secret_name_and_its_value_is_hidden_wherever_the_value_turns_up(label: str) -> None:
    arguments = {"headers": [{label: "password", "value": CANARY}, {label: "colour", "value": "green"}]}
    redactor = Redactor.of((), arguments)
    assert redactor.arguments(arguments) == {
        "headers": [{label: "password", "value": HIDDEN}, {label: "colour", "value": "green"}]
    }
    assert redactor.text(f"green {CANARY}") == f"green {MASKED}"


@pytest.mark.parametrize("depth", [1, 2, 30, 62])
def test_a_secret_is_known_by_its_value_however_deep_it_stands(depth: int) -> None:
    arguments = {"outer": wrapped({"password": wrapped(CANARY, 30)}, depth)}
    redactor = Redactor.of((), arguments)
    assert redactor.text(f"was {CANARY}") == f"was {MASKED}"
    assert Redactor.of({"outer"}, {"outer": wrapped(CANARY, depth)}).text(CANARY) == MASKED


@pytest.mark.parametrize("depth", [64, 65, 66, 67, 70, 200, 900])
def test_no_depth_shows_a_secret(depth: int) -> None:
    for value in (wrapped(CANARY, depth), wrapped({"password": CANARY}, depth)):
        shown = json.dumps(Redactor({"phrase"}, [CANARY]).arguments({"plain": value}))
        assert CANARY not in shown


@pytest.mark.parametrize(("depth", "is_shown"), [(60, True), (61, True), (63, True), (64, False), (70, False)])
def test_numbers_are_shown_to_a_depth(depth: int, is_shown: bool) -> None:
    nested: Any = 7
    for _ in range(depth):
        nested = [nested]
    assert ("7" in json.dumps(Redactor().arguments({"plain": nested}))) is is_shown
    if is_shown:
        assert Redactor().arguments({"plain": nested}) == {"plain": nested}


@pytest.mark.parametrize(("depth", "is_shown"), [(64, True), (65, False)])
def test_of_bare_values_too(depth: int, is_shown: bool) -> None:
    for inside in (lambda value: [value], lambda value: {"a": value}):
        nested: Any = 7
        for _ in range(depth):
            nested = inside(nested)
        assert ("7" in json.dumps(Redactor().value(nested))) is is_shown


def test_a_secret_that_holds_another_is_hidden_whole() -> None:
    for values in ([CANARY, f"{CANARY}-and-more"], [f"{CANARY}-and-more", CANARY]):
        assert Redactor((), values).text(f"<{CANARY}-and-more>") == f"<{MASKED}>"


def test_the_longest_secret_is_hidden_first() -> None:
    for values in (["ween", "between"], ["between", "ween"]):
        assert Redactor((), values).text("what lies between") == f"what lies {MASKED}"


def test_a_secret_is_known_by_its_value_beside_whatever_else_there_is() -> None:
    arguments = {
        "count": 3,
        "ratio": 0.5,
        "is_new": True,
        "none": None,
        "text": "abc",
        "in": [1, {"pin": CANARY}, None],
    }
    assert Redactor.of((), arguments).text(f"abc {CANARY} 3") == f"abc {MASKED} 3"


def test_values_too_deep_to_be_gathered_do_no_harm() -> None:
    for arguments in ({"plain": wrapped(CANARY, 5_000)}, {"password": wrapped(CANARY, 5_000)}):
        redactor = Redactor.of((), arguments, {"token": CANARY})
        assert redactor.text(CANARY) == MASKED


def test_arguments_that_are_no_object_are_hidden_by_value() -> None:
    assert Redactor((), [CANARY]).arguments([f"x {CANARY}", 1]) == [f"x {MASKED}", 1]
    assert Redactor((), [CANARY]).arguments(CANARY) == MASKED


def test_names_that_say_nothing_are_hidden_where_a_task_declares_them() -> None:
    redactor = Redactor({"phrase"})
    assert redactor.arguments({"phrase": 1, "other": 1}) == {"phrase": HIDDEN, "other": 1}
    assert redactor.text("phrase=abcdef other=abcdef") == f"phrase={MASKED} other=abcdef"
    assert redactor.arguments({"password": CANARY}) == {"password": HIDDEN}


def test_two_hundred_values_are_looked_for_one_by_one() -> None:
    values = [f"value-{number:04}" for number in range(201)]
    assert Redactor((), values[:200]).text("plain value-0007 text") == f"plain {MASKED} text"
    assert Redactor((), values).text("plain") == MASKED


def test_values_that_overlap_in_a_text_are_hidden_whole() -> None:
    for values in (["xyzSE", "SECRET-LONG"], ["SECRET-LONG", "LONGish"]):
        assert Redactor((), values).text("a xyzSECRET-LONGish b") in (f"a {MASKED}ish b", f"a xyz{MASKED} b")


def test_of_values_that_begin_alike_each_is_hidden_to_its_end() -> None:
    values = [f"{LONG} and {more}" for more in ("on", "onwards", "off")]
    for value in values:
        assert Redactor((), values).text(f"<{value}>") == f"<{MASKED}>"


def test_a_token_that_stands_in_another_value_is_hidden_to_its_own_end() -> None:
    alike = "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiI0NzExIiwi"  # of the same user, by the same key
    old, new = f"{alike}aWF0IjoxfQ.signed-at-one", f"{alike}aWF0IjoyfQ.signed-at-two"
    for values in ([f"Session {old}", new], [f"{old},{old}", new]):
        for before in ("Session ", f"{old},"):
            assert Redactor((), values).text(f"sent {before}{new} to").endswith(f"{MASKED} to")
            assert "signed" not in Redactor((), [*values, old]).text(f"sent {before}{new} to")


@pytest.mark.parametrize("length", [4, 39, 40])
def test_a_value_that_ends_as_it_begins_is_hidden_where_the_next_begins_with_its_end(length: int) -> None:
    rule = "=" * length
    assert Redactor((), [f"{rule}one{rule}"]).text(f"<{rule}one{rule}one{rule}>") == f"<{MASKED}>"


def test_each_value_is_hidden_to_its_own_end() -> None:
    values = [f"{LONG} to the first", f"A {LONG} to the second", f"It was {LONG} to the third"]
    for value in values:
        assert Redactor((), values).text(f"<{value}>") == f"<{MASKED}>"
        assert Redactor((), values).text(f"{value}th") == f"{MASKED}th"


def test_many_values_in_many_texts_are_found_in_bounded_time() -> None:
    values = ["a" * 40 + f"{number:05}" for number in range(100)] + [f"{number:04}-value" for number in range(90)]
    text = ("a" * 39 + " \n\"'\\x" + "0007-value") * 300
    before = time.process_time()
    for _ in range(50):
        redactor = Redactor((), values)
        assert "0007" not in redactor.text(text)
    assert time.process_time() - before < 10


@pytest.mark.parametrize("value", ["a" * 5_000, "ab" * 2_500])
def test_a_value_that_repeats_itself_takes_no_more_than_time_in_proportion(value: str) -> None:
    before = time.process_time()
    assert Redactor((), [value, value[1:]]).text(f"<{value * 12}>") == f"<{MASKED}>"
    assert time.process_time() - before < 5


def test_a_value_with_backslashes_is_found_however_they_are_written() -> None:
    value = r"C:\\Users\me"
    for text in (value, repr(value), json.dumps(value), value.replace("\\\\", "\\")):
        assert "Users" not in Redactor((), [value]).text(f"path {text} end")


def test_a_value_without_letters_is_found() -> None:
    assert Redactor((), ["/+/=", "----"]).text("a /+/= b ---- c") == f"a {MASKED} b {MASKED} c"


def test_the_longest_word_of_a_value_tells_whether_to_look() -> None:
    assert Redactor((), ["ab-longest-z"]).text("x ab-longest-z y") == f"x {MASKED} y"


@pytest.mark.parametrize("kept", [4, 5, 6, 10, 14, 20, 39, 40])
@pytest.mark.parametrize("value", [LONG, "pack-pick-pack-up " + LONG, "abab" * 15])
def test_a_text_that_was_cut_in_a_value_shows_nothing_of_it(value: str, kept: int) -> None:
    text = "." * 1_000 + value[:kept]
    hidden = Redactor((), [value]).text(text)
    assert hidden == "." * 1_000 + MASKED


def test_a_text_of_a_thousand_characters_may_have_been_cut() -> None:
    assert Redactor((), [LONG]).text("." * 990 + LONG[:10]) == "." * 990 + MASKED
    assert Redactor((), [LONG]).text("." * 989 + LONG[:10]) == "." * 989 + LONG[:10]


def test_a_long_text_that_only_ends_as_a_value_goes_on_stays_as_it_is() -> None:
    text = "." * 1_000 + " lazy"
    assert Redactor((), [f"over the lazy dog {LONG}"]).text(text) == text


def test_three_characters_at_the_end_of_a_long_text_are_no_cut_value() -> None:
    text = "." * 1_000 + LONG[:3]
    assert Redactor((), [LONG]).text(text) == text


@pytest.mark.parametrize("before", ["", "{", "at "])
def test_what_stands_behind_a_secret_name_is_hidden_from_the_very_beginning_of_a_text(before: str) -> None:
    assert redacted_text(f"{before}password:hunter2") == f"{before}password:{MASKED}"
    assert redacted_text(f"{before}task=password:hunter2") == f"{before}task=password:hunter2", "the name of a task"


@pytest.mark.parametrize(
    "text", [f"Authorization: '{CANARY}'", f'"cookie": "{CANARY}"', f"Proxy-Authorization='{CANARY}' and more"]
)
def test_a_quoted_header_is_hidden(text: str) -> None:
    assert CANARY not in redacted_text(f"some text before, {text}")
    assert redacted_text(f"some text before, {text}").startswith("some text before, ")


# -- what comes back -----------------------------------------------------------------------------------------


def test_an_item_that_was_moved_and_changed_keeps_what_was_hidden_at_its_place() -> None:
    stored = {"servers": [{"host": "a", "token": "t-one"}, {"host": "b", "token": "t-two"}]}
    shown = Redactor().arguments(stored)
    edited = {"servers": [{"host": "a2", "token": HIDDEN}, {"host": "b", "token": HIDDEN}]}
    assert restored(edited, shown, stored) == {
        "servers": [{"host": "a2", "token": "t-one"}, {"host": "b", "token": "t-two"}]
    }


def test_large_edits_are_compared_in_time_in_proportion_to_their_size() -> None:
    deep: Any = {"text": "x" * 10_000}
    for _ in range(60):
        deep = {"in": deep, "beside": ["y" * 10_000]}
    stored = {"deep": deep, "many": list(range(60_000)), "password": CANARY}
    edited = json.loads(json.dumps(Redactor().arguments(stored)))
    edited["many"] = edited["many"][1:]
    edited["deep"]["new"] = 1
    before = time.process_time()
    found = restored(edited, Redactor().arguments(stored), stored)
    assert time.process_time() - before < 5
    assert found == {"deep": deep | {"new": 1}, "many": list(range(1, 60_000)), "password": CANARY}


def test_numbers_and_truth_values_are_told_apart() -> None:
    stored = {"list": [1, True, 1.0, {"password": CANARY}], "n": 1}
    edited = {"list": [True, 1.0, 1, {"password": HIDDEN}], "n": True}
    found = restored(edited, Redactor().arguments(stored), stored)
    assert json.dumps(found) == json.dumps({"list": [True, 1.0, 1, {"password": CANARY}], "n": True})


@pytest.mark.parametrize(("stored", "edited"), [(1.5, 2.5), (0.0, -0.0), (1, 2), ("1", 1), (None, False), ([], {})])
def test_every_edit_is_taken_however_little_it_changes(stored: Any, edited: Any) -> None:
    for before, after in ((stored, edited), ([stored, 0], [edited, 0]), ({"a": stored}, {"a": edited})):
        found = restored({"of": after}, {"of": before}, {"of": before})
        assert json.dumps(found) == json.dumps({"of": after})


@pytest.mark.parametrize("depth", [64, 99, 101, 600])
def test_what_is_stored_may_be_deeper_than_what_is_shown_and_edited(depth: int) -> None:
    one, two = wrapped({"a": 1, "b": 2}, depth), wrapped({"a": 1, "b": 3}, depth)
    stored = {"list": [one, two, wrapped({"b": 2, "a": 1}, depth)], "password": CANARY}
    shown = json.loads(json.dumps(Redactor().arguments(stored)))
    found = restored(shown | {"list": [*shown["list"], "new"]}, shown, stored)
    assert json.dumps(found) == json.dumps(stored | {"list": [*stored["list"], "new"]})
    alike = {"list": [stored["list"][2], one], "password": CANARY}
    shown = Redactor().arguments(alike)
    assert restored({"list": ["new", *shown["list"]]}, shown, alike)["list"] == ["new", one, one]


@pytest.mark.parametrize(("depth", "expected"), [(99, False), (100, False), (101, True), (200_000, True)])
def test_what_is_nested_more_than_a_hundred_levels_deep_is_too_deep(depth: int, expected: bool) -> None:
    nested: Any = 1
    for _ in range(depth):
        nested = [nested]
    assert too_deep(nested) is expected
    while isinstance(nested, list):  # let go of from outside in: all at once is deep, too
        nested = nested[0]


def test_the_order_of_keys_makes_no_difference() -> None:
    stored = {"one": {"a": 1, "token": CANARY}, "list": [{"a": 1, "token": CANARY}, 2]}
    shown = Redactor().arguments(stored)
    edited = {"list": [2, {"token": HIDDEN, "a": 1}], "one": {"token": HIDDEN, "a": 1}}
    assert restored(edited, shown, stored) == {"list": [2, {"a": 1, "token": CANARY}], "one": stored["one"]}


def test_nor_does_the_order_in_which_they_were_stored() -> None:
    stored = {"list": [{"z": 1, "token": CANARY, "a": 2}, "x"]}
    edited = {"list": ["x", {"a": 2, "token": HIDDEN, "z": 1}]}
    assert restored(edited, Redactor().arguments(stored), stored) == {"list": ["x", stored["list"][0]]}


def test_what_was_hidden_whole_is_given_anew_or_left_alone() -> None:
    stored: dict[str, Any] = {"password": {"word": CANARY}, "secret": [CANARY]}
    shown = Redactor().arguments(stored)
    assert shown == {"password": HIDDEN, "secret": HIDDEN}
    assert restored({"password": {"word": "new"}, "secret": ["*"]}, shown, stored) == {
        "password": {"word": "new"},
        "secret": ["*"],
    }
    assert restored({"password": HIDDEN, "secret": HIDDEN}, shown, stored) == stored


def test_more_and_fewer_items_than_were_stored_are_taken() -> None:
    stored = {"hosts": ["a", "b"], "user": "bob"}
    assert restored({"hosts": ["a", "b", "c"]}, stored, stored) == {"hosts": ["a", "b", "c"]}
    assert restored({"hosts": ["x"]}, stored, stored) == {"hosts": ["x"]}


@pytest.mark.parametrize(
    ("edited", "where"),
    [
        ({"password": [HIDDEN]}, "password.0"),
        ({"password": {"x": HIDDEN}}, "password.x"),
        ({"list": {"0": HIDDEN}}, "list.0"),
        ({"new": {"deep": [1, HIDDEN]}}, "new.deep.1"),
        ({"XX": HIDDEN}, "XX"),
    ],
)
def test_a_placeholder_in_another_shape_is_refused_with_its_place(edited: dict[str, Any], where: str) -> None:
    stored = {"password": CANARY, "list": [CANARY, "b"]}
    shown = Redactor({"list"}).arguments(stored)
    with pytest.raises(PlaceholderSent, match=f"argument '{where}' holds") as caught:
        restored(edited, shown, stored)
    assert caught.value.argument == where.partition(".")[0]


# -- control characters --------------------------------------------------------------------------------------


def test_line_breaks_and_tabs_become_spaces_in_one_line_and_nothing_else_does() -> None:
    assert one_line("a\nb\r\nc\td  e") == "a b c d  e"
    assert cleaned("a\r\nb\rc\td") == "a\nbc\td"


# -- what is not known ---------------------------------------------------------------------------------------


def test_of_what_a_task_said_nothing_is_shown_while_some_of_its_secrets_are_not_known() -> None:
    for redactor in (Redactor((), [CANARY]), Redactor.of({"pin"}, {"pin": CANARY})):
        assert redactor.knows_all
        assert redactor.said(f"it was {CANARY}, he said") == f"it was {MASKED}, he said"
    for redactor in (Redactor((), [CANARY], knows_all=False), Redactor.of({"pin"}, {"pin": CANARY}, knows_all=False)):
        assert not redactor.knows_all
        assert redactor.said("nothing of interest") == HIDDEN


@pytest.mark.parametrize("before", ["", "0", "000", "000000"])
@pytest.mark.parametrize("zeros", [38, 42, 44, 60])
def test_a_secret_that_repeats_itself_is_hidden_whatever_stands_before_it(zeros: int, before: str) -> None:
    secret = "0" * zeros + "7f3aSECRET"
    shown = Redactor.of({"key"}, {"key": secret}).text(
        f"got {before}{secret}. The rest of it can be read: {'word ' * 40}"
    )
    assert "7f3a" not in shown
    assert "SECRET" not in shown
    assert "word word" in shown


def test_a_secret_that_begins_within_another_like_it_is_hidden_too() -> None:
    values = "a" * 50 + "X", "a" * 41 + "XSECRET"
    assert Redactor((), values).text("a" * 50 + "XSECRET!") == f"{MASKED}!"


@pytest.mark.parametrize(
    ("value", "text", "most"),
    [
        pytest.param("a" * 5_000, "a" * 60_000, 2, id="found again and again"),
        pytest.param("a" * 5_000 + "b", "a" * 60_000, redaction._PATIENCE, id="never found, though all begins like it"),
        pytest.param("a" * 50 + "b", "a" * 60_000, redaction._PATIENCE, id="never found, and short"),
    ],
)
def test_a_text_is_gone_through_a_few_times_at_most(
    value: str, text: str, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed: list[int] = []
    end_of = redaction._end

    def noted(text: str, at: int, rest: str) -> tuple[int, bool]:
        end, is_whole = end_of(text, at, rest)
        passed.append(end - at)
        return end, is_whole

    monkeypatch.setattr(redaction, "_end", noted)
    Redactor((), [value]).text(text)
    assert sum(passed) <= (most + 1) * len(text)
    assert sum(passed) >= most * len(text) // 2, "as often as that takes no longer"
