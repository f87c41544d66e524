"""What changed between two texts: every line of both is told, and what is secret is not."""

import time

from hypothesis import given
from hypothesis import strategies as st

from durableq.dashboard.diff import CONTEXT, Line, Part, as_json, difference, hidden_changes

OLD = as_json({"email": "bad@example.org", "copies": 1})
NEW = as_json({"email": "good@example.org", "copies": 1})


def marks(lines: list[Line]) -> list[tuple[str, str]]:
    return [(line.kind, line.text.strip()) for line in lines]


def test_equal_texts_have_no_difference() -> None:
    assert difference(OLD, OLD) == []


def test_a_changed_line_is_told_as_it_was_and_as_it_is() -> None:
    assert marks(difference(OLD, NEW)) == [
        ("same", "{"),
        ("removed", '"email": "bad@example.org",'),
        ("added", '"email": "good@example.org",'),
        ("same", '"copies": 1'),
        ("same", "}"),
    ]


def test_within_a_changed_line_it_shows_what_changed() -> None:
    removed, added = (line for line in difference(OLD, NEW) if line.kind in ("removed", "added"))
    assert removed.parts == (Part('  "email": "'), Part("ba", is_changed=True), Part('d@example.org",'))
    assert added.parts == (Part('  "email": "'), Part("goo", is_changed=True), Part('d@example.org",'))


def test_lines_have_the_numbers_they_have_in_their_text() -> None:
    lines = difference("a\nb\nc", "a\nx\ny\nc")
    assert [(line.text, line.old_number, line.new_number) for line in lines] == [
        ("a", 1, 1),
        ("b", 2, None),
        ("x", None, 2),
        ("y", None, 3),
        ("c", 3, 4),
    ]


def test_lines_far_from_a_change_are_left_out_and_the_gap_is_told() -> None:
    before = [str(number) for number in range(50)]
    after = [*before[:25], "new", *before[26:]]
    lines = difference("\n".join(before), "\n".join(after))
    assert [line.kind for line in lines] == ["gap", *["same"] * CONTEXT, "removed", "added", *["same"] * CONTEXT, "gap"]


@given(st.lists(st.sampled_from("abc"), max_size=12), st.lists(st.sampled_from("abc"), max_size=12))
def test_no_line_that_differs_is_left_out(before: list[str], after: list[str]) -> None:
    lines = difference("\n".join(before), "\n".join(after))
    removed = {line.old_number: line.text for line in lines if line.kind == "removed"}
    added = {line.new_number: line.text for line in lines if line.kind == "added"}
    assert all(before[number - 1] == text for number, text in removed.items() if number)
    assert all(after[number - 1] == text for number, text in added.items() if number)
    kept_before = [text for number, text in enumerate(before, 1) if number not in removed]
    kept_after = [text for number, text in enumerate(after, 1) if number not in added]
    assert kept_before == kept_after


def test_large_texts_are_compared_in_time_that_grows_with_their_size_only() -> None:
    before = "\n".join(str(number % 7) for number in range(20_000))
    after = "\n".join(str(number % 5 + 1) for number in range(20_000))
    began = time.process_time()
    lines = difference(f"head\n{before}\nold\ntail", f"head\n{after}\nnew\ntail")
    assert time.process_time() - began < 5
    assert [line.text for line in lines if line.kind == "same"] == ["head", "tail"]
    assert sum(line.kind == "removed" for line in lines) == sum(line.kind == "added" for line in lines) == 20_001


def test_json_is_shown_exactly() -> None:
    assert as_json({"b": 2**70, "a": "é"}) == '{\n  "b": 1180591620717411303424,\n  "a": "é"\n}'


def test_a_change_of_what_is_hidden_is_told_by_name() -> None:
    before = {"password": "old", "email": "a", "token": "same", "gone": 1}
    after = {"password": "new", "email": "b", "token": "same", "added": 1}
    shown = {"password": "**********", "email": "b", "token": "**********", "added": 1}
    assert hidden_changes(before, after, shown) == ["password"]
