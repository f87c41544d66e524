"""Arguments and results survive JSON unchanged, or are refused at the call in words that name the argument."""

import json
import math
import sys
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Generic, Literal, NamedTuple, TypeVar

import pytest
from pydantic import BaseModel, Field, SecretStr
from typing_extensions import TypedDict

from durableq.codec import ArgumentsCodec, checksum, encode_result
from durableq.errors import InvalidArguments, InvalidTask, PayloadTooLarge

if TYPE_CHECKING:
    from decimal import Decimal as OnlyForTypeCheckers

LIMIT = 1_000_000
T = TypeVar("T")


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Level(IntEnum):
    HIGH = 3


class Address(BaseModel):
    street: str
    since: datetime | None = None


class Person(BaseModel):
    name: str
    addresses: list[Address] = []


class Photo(BaseModel):
    data: bytes


class Reading(BaseModel):
    value: float
    correction: float | None = None


class Box(BaseModel):
    content: Any = None


class Envelope(BaseModel, Generic[T]):
    content: T


@dataclass
class Point:
    x: int
    y: float = 0.0


@dataclass
class Bag:
    content: Any = None


class Pair(NamedTuple):
    left: int
    right: str


class Settings(TypedDict, total=False):
    depth: int


def codec_of(hint: Any, default: Any = ...) -> ArgumentsCodec:
    """The codec of ``def work(value: hint)``."""

    def work(value: Any) -> None: ...

    work.__annotations__ = {"value": hint}
    if default is not ...:
        work.__defaults__ = (default,)
    return ArgumentsCodec(work, "tasks:work")


def round_trip(hint: Any, value: Any) -> Any:
    codec = codec_of(hint)
    encoded = codec.encode((value,), {}, LIMIT)
    json.loads(encoded, parse_constant=_no_constant)
    args, kwargs = codec.decode(encoded)
    assert args == []
    return kwargs["value"]


def _no_constant(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


def refusal(hint: Any, value: Any) -> InvalidArguments:
    with pytest.raises(InvalidArguments) as caught:
        codec_of(hint).encode((value,), {}, LIMIT)
    return caught.value


def nested(depth: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


class TestRoundTrips:
    @pytest.mark.parametrize(
        ("hint", "value"),
        [
            (datetime, datetime(2026, 3, 29, 2, 30, 0, 123456, tzinfo=UTC)),
            (datetime, datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=5, minutes=30)))),
            (datetime, datetime(2026, 1, 1)),
            (date, date(2026, 2, 28)),
            (timedelta, timedelta(days=3, microseconds=1)),
            (uuid.UUID, uuid.UUID(int=7)),
            (Colour, Colour.BLUE),
            (Level, Level.HIGH),
            (Decimal, Decimal("0.10000000000000000000000001")),
            (bytes, b"plain text"),
            (bytes, b"abcd"),
            (bytes, b"\xff\x00\xfe not UTF-8"),
            (bytes, b""),
            (list[bytes], [b"\x80", b"ab"]),
            (Path, Path("/tmp/a b")),
            (Point, Point(1, 2.5)),
            (Person, Person(name="Zoë", addresses=[Address(street="a", since=datetime(2026, 1, 1, tzinfo=UTC))])),
            (Envelope[Point], Envelope[Point](content=Point(1))),
            (Pair, Pair(1, "r")),
            (Settings, {"depth": 3}),
            (tuple[int, str], (1, "a")),
            (tuple[int, ...], (1, 2, 3)),
            (set[int], {1, 2}),
            (frozenset[str], frozenset({"a"})),
            (dict[int, str], {1: "a"}),
            (dict[str, list[Point]], {"a": [Point(1)]}),
            (int | str, 3),
            (int | str, "3"),
            (str | None, None),
            (Literal["a", 1], 1),
            (Annotated[int, Field(gt=0)], 5),
            (int, 2**70),
            (float, 1e300),
            (float, -0.0),
            (bool, True),
            (str, "a\x00b \U0001f600 \u2028"),
            (Any, {"a": [1, 2.5, True, None, "x", {"b": []}]}),
            (Any, 1.0),
            (Any, 10**18),
            (dict, {"a": 1}),
            (list, [1, "a"]),
            (object, "text"),
        ],
    )
    def test_a_value_comes_back_as_its_declared_type(self, hint: Any, value: Any) -> None:
        back = round_trip(hint, value)
        assert back == value
        assert type(back) is type(value)

    def test_a_value_of_another_type_is_converted_as_fastapi_does(self) -> None:
        assert round_trip(int, "5") == 5
        assert round_trip(Colour, "red") is Colour.RED
        assert round_trip(Point, {"x": 1}) == Point(1)
        assert refusal(int, "five").argument == "value"

    def test_an_unannotated_parameter_takes_plain_json_values(self) -> None:
        def work(value) -> None: ...  # type: ignore[no-untyped-def]

        codec = ArgumentsCodec(work, "tasks:work")
        assert codec.decode(codec.encode(({"a": [1]},), {}, LIMIT)) == ([], {"value": {"a": [1]}})
        with pytest.raises(InvalidArguments, match="'value'"):
            codec.encode(((1, 2),), {}, LIMIT)

    def test_what_is_stored_is_one_object_of_names(self) -> None:
        def work(to: str, *, copies: int = 1) -> None: ...

        assert json.loads(ArgumentsCodec(work, "t").encode(("ann",), {"copies": 2}, LIMIT)) == {
            "to": "ann",
            "copies": 2,
        }


class TestRefusals:
    @pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize(
        ("hint", "wrap"),
        [
            (float, lambda bad: bad),
            (list[float], lambda bad: [1.0, bad]),
            (dict[str, float], lambda bad: {"a": bad}),
            (float | None, lambda bad: bad),
            (Any, lambda bad: bad),
            (Any, lambda bad: {"a": [bad]}),
            (Reading, lambda bad: Reading(value=bad)),
            (Reading, lambda bad: Reading(value=1, correction=bad)),
            (list[Reading], lambda bad: [Reading(value=1, correction=bad)]),
            (Point, lambda bad: Point(1, bad)),
            (Box, lambda bad: Box(content=bad)),
            (Bag, lambda bad: Bag([bad])),
        ],
    )
    def test_what_is_not_a_finite_number_is_refused(self, hint: Any, wrap: Callable[[float], Any], bad: float) -> None:
        error = refusal(hint, wrap(bad))
        assert error.argument == "value"
        assert "'value'" in str(error)

    @pytest.mark.parametrize(
        "value",
        [
            (1, 2),
            [(1, 2)],
            {1, 2},
            {1: "a"},
            {"a": {None: 1}},
            datetime(2026, 1, 1, tzinfo=UTC),
            Decimal("1.5"),
            uuid.UUID(int=1),
            b"bytes",
            Colour.RED,
            Path("/tmp"),
            Point(1),
            Person(name="x"),
            [Person(name="x")],
        ],
        ids=repr,
    )
    @pytest.mark.parametrize("hint", [Any, object, T])
    def test_what_json_would_silently_change_is_refused(self, hint: Any, value: Any) -> None:
        error = refusal(hint, value)
        assert error.argument == "value"
        assert "annotate" in str(error)

    @pytest.mark.parametrize(
        ("hint", "value"),
        [
            (list[Any], [(1, 2)]),
            (dict[str, Any], {"a": Decimal(1)}),
            (list, [(1,)]),
            (dict, {1: 2}),
            (Box, Box(content=(1, 2))),
            (Box, Box(content={1: 2})),
            (Box, Box(content=datetime(2026, 1, 1, tzinfo=UTC))),
            (Bag, Bag(content=(1, 2))),
            (list[Box], [Box(content={1})]),
            (SecretStr, SecretStr("its text would be lost")),
            (list[SecretStr], [SecretStr("its text would be lost")]),
        ],
        ids=repr,
    )
    def test_what_json_would_silently_change_deeper_down_is_refused(self, hint: Any, value: Any) -> None:
        assert refusal(hint, value).argument == "value"

    @pytest.mark.parametrize(
        ("hint", "value"),
        [
            (str, "lone \ud800 surrogate"),
            (Any, "lone \ud800 surrogate"),
            (Any, {"\ud800": 1}),
            (int, 10**5_000),
            (Any, 10**5_000),
            (Any, nested(100_000)),
            (list[Any], nested(100_000)),
            (Any, object()),
            (Any, print),
            (Any, [lambda: None]),
            (Photo, Photo(data=b"\xff\xfe")),
        ],
        ids=[
            "str",
            "any",
            "key",
            "int",
            "any int",
            "deep",
            "deep list",
            "object",
            "builtin",
            "lambda",
            "bytes in model",
        ],
    )
    def test_what_json_cannot_carry_is_refused(self, hint: Any, value: Any) -> None:
        error = refusal(hint, value)
        assert error.argument == "value"
        assert error.task == "tasks:work"
        assert len(str(error)) < 1_000

    def test_a_cycle_is_refused(self) -> None:
        cycle: list[Any] = []
        cycle.append(cycle)
        assert refusal(Any, cycle).argument == "value"

    def test_a_value_that_cannot_be_shown_is_refused_all_the_same(self) -> None:
        class Unspeakable:
            def __repr__(self) -> str:
                raise RuntimeError("no")

        assert "Unspeakable" in str(refusal(int, Unspeakable()))

    def test_the_blame_falls_on_the_right_argument(self) -> None:
        def work(first: Any, second: float, third: str) -> None: ...

        codec = ArgumentsCodec(work, "t")
        for values, name in (
            ((object(), 1.0, "x"), "first"),
            ((1, math.nan, "x"), "second"),
            ((1, 1.0, "\ud800"), "third"),
        ):
            with pytest.raises(InvalidArguments) as caught:
                codec.encode(values, {}, LIMIT)
            assert caught.value.argument == name

    def test_arguments_over_the_limit_are_refused_by_bytes(self) -> None:
        codec = codec_of(str)
        assert codec.encode(("é" * 10,), {}, 32)
        with pytest.raises(PayloadTooLarge, match=r"33 bytes.*limit is 32") as caught:
            codec.encode(("é" * 10 + "x",), {}, 32)
        assert caught.value.task == "tasks:work"
        with pytest.raises(PayloadTooLarge):
            codec.encode_object({"value": "x" * 100}, 32)


class TestBinding:
    def test_missing_unknown_and_doubled_arguments_are_named(self) -> None:
        def work(to: str, subject: str, copies: int = 1) -> None: ...

        codec = ArgumentsCodec(work, "mail:work")
        cases: list[tuple[tuple[Any, ...], dict[str, Any], str, str | None]] = [
            (("ann",), {}, "'subject' is missing", "subject"),
            (("ann",), {"subjekt": "x"}, "unknown argument 'subjekt', did you mean 'subject'?", "subjekt"),
            (("ann", "hi"), {"to": "bob"}, "'to' was given twice", "to"),
            (("ann", "hi", 1, 2), {}, "at most 3 positional arguments, got 4", None),
        ]
        for args, kwargs, text, name in cases:
            with pytest.raises(InvalidArguments) as caught:
                codec.encode(args, kwargs, LIMIT)
            assert text in str(caught.value)
            assert str(caught.value).startswith("mail:work: ")
            assert caught.value.argument == name

    def test_defaults_are_left_to_the_function(self) -> None:
        """A default that the next deployment changes is the next deployment's, and need not be JSON."""
        codec = codec_of(int, default=object())
        assert codec.encode((), {}, LIMIT) == "{}"
        assert codec.decode("{}") == ([], {})

    def test_all_kinds_of_parameters_come_back_in_place(self) -> None:
        def work(a: int, /, b: int, *rest: int, c: int = 0, **more: str) -> Any:
            return a, b, rest, c, more

        codec = ArgumentsCodec(work, "t")
        calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
            ((1, 2), {}),
            ((1,), {"b": 2}),
            ((1, 2, 3, 4), {"c": 5}),
            ((1, 2), {"x": "y", "a": "also", "rest": "r", "more": "m"}),
        ]
        for args, kwargs in calls:
            back_args, back_kwargs = codec.decode(codec.encode(args, kwargs, LIMIT))
            assert work(*back_args, **back_kwargs) == work(*args, **kwargs)
        with pytest.raises(InvalidArguments, match="missing"):
            codec.encode((), {"b": 2}, LIMIT)

    def test_a_positional_only_default_is_left_out(self) -> None:
        def work(a: int = 1, b: int = 2, /, *, c: int = 3) -> Any:
            return a, b, c

        codec = ArgumentsCodec(work, "t")
        args, kwargs = codec.decode(codec.encode((9,), {"c": 4}, LIMIT))
        assert work(*args, **kwargs) == (9, 2, 4)
        with pytest.raises(InvalidArguments, match="positional-only"):
            codec.encode((), {"a": 1}, LIMIT)

    def test_odd_names_are_names(self) -> None:
        def work(self: int, fn: int, args: int, _x: int, items: int = 0) -> None: ...

        codec = ArgumentsCodec(work, "t")
        given = {"self": 1, "fn": 2, "args": 3, "_x": 4, "items": 5}
        assert codec.decode(codec.encode((), given, LIMIT)) == ([], given)

    def test_a_function_without_parameters_takes_nothing(self) -> None:
        def work() -> None: ...

        codec = ArgumentsCodec(work, "t")
        assert codec.encode((), {}, LIMIT) == "{}"
        with pytest.raises(InvalidArguments):
            codec.encode((1,), {}, LIMIT)

    def test_annotations_that_cannot_be_resolved_are_refused(self) -> None:
        def work(value: "OnlyForTypeCheckers") -> None: ...

        with pytest.raises(InvalidTask, match="TYPE_CHECKING"):
            ArgumentsCodec(work, "tasks:work")

    def test_a_type_that_pydantic_does_not_know_is_refused(self) -> None:
        class Connection: ...

        with pytest.raises(InvalidTask, match=r"tasks:work.*schema"):
            codec_of(Connection)


class TestReadingBack:
    @pytest.mark.parametrize("stored", ["{}", '{"value": "x"}', '{"value": 1, "other": 2}', "[1]", "nonsense", ""])
    def test_arguments_that_no_longer_fit_are_refused(self, stored: str) -> None:
        with pytest.raises(InvalidArguments):
            codec_of(int).decode(stored)

    def test_edited_arguments_are_checked(self) -> None:
        codec = codec_of(datetime)
        edited = codec.encode_object({"value": "2026-01-01T00:00:00Z"}, LIMIT)
        assert codec.decode(edited)[1] == {"value": datetime(2026, 1, 1, tzinfo=UTC)}
        bad: list[Any] = [{}, {"value": "soon"}, {"value": 1, "x": 2}, {"value": object()}, [1], "text", None]
        for values in bad:
            with pytest.raises(InvalidArguments):
                codec.encode_object(values, LIMIT)

    @pytest.mark.parametrize("hint", [float, Any])
    def test_edited_arguments_are_json_as_well(self, hint: Any) -> None:
        with pytest.raises(InvalidArguments):
            codec_of(hint).encode_object({"value": math.nan}, LIMIT)

    def test_edited_bytes_are_base64_as_they_were_shown(self) -> None:
        codec = codec_of(bytes)
        shown = json.loads(codec.encode((b"\xff\x00",), {}, LIMIT))
        assert codec.decode(codec.encode_object(shown, LIMIT))[1] == {"value": b"\xff\x00"}

    def test_the_schema_names_every_argument(self) -> None:
        def work(to: str, copies: int = 1) -> None: ...

        schema = ArgumentsCodec(work, "t").json_schema()
        assert set(schema["properties"]) == {"to", "copies"}
        assert schema["required"] == ["to"]


class TestResults:
    @pytest.mark.parametrize(
        ("value", "stored"),
        [
            ({"a": [1, None]}, '{"a":[1,null]}'),
            (Person(name="x"), '{"name":"x","addresses":[]}'),
            (Point(1), '{"x":1,"y":0.0}'),
            ((1, 2), "[1,2]"),
            ("NaN is only a word here", '"NaN is only a word here"'),
            (0, "0"),
            (False, "false"),
        ],
    )
    def test_a_result_is_kept_as_json(self, value: Any, stored: str) -> None:
        assert encode_result(value, LIMIT) == (stored, None)

    def test_no_result_is_no_result(self) -> None:
        assert encode_result(None, LIMIT) == (None, None)

    def test_a_result_that_cannot_be_kept_leaves_a_marker_and_a_reason(self) -> None:
        class Hostile:
            def __getattribute__(self, name: str) -> Any:
                raise RuntimeError("no")

        bad: list[Any] = [math.nan, {"a": math.inf}, object(), "\ud800", nested(100_000), print]
        bad += [Hostile(), [Hostile()]]
        for value in bad:
            stored, reason = encode_result(value, LIMIT)
            assert reason
            assert stored is not None
            assert json.loads(stored) == {"durableq:not-storable": reason}
            assert len(stored) < 1_000

    def test_a_result_over_the_limit_leaves_a_marker(self) -> None:
        stored, reason = encode_result("x" * 200, 100)
        assert reason is not None
        assert "limit is 100" in reason
        assert stored is not None
        assert json.loads(stored)["durableq:not-storable"] == reason


def test_a_flipped_bit_changes_the_checksum() -> None:
    text = '{"amount": 100}'
    assert checksum(text) == checksum('{"amount": 100}')
    assert checksum(text) != checksum('{"amount": 900}')


def test_encoding_leaves_pythons_limits_alone() -> None:
    assert sys.get_int_max_str_digits() == sys.int_info.default_max_str_digits
