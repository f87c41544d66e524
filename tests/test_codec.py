"""Arguments and results survive JSON unchanged, and are rebuilt to the declared types."""

import json
import math
import socket
import sys
import uuid
from collections.abc import Awaitable, Callable
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import pytest
from pydantic import Field

from durableq.codec import ArgumentsCodec, ResultCodec, checksum, encode_result
from durableq.errors import ConfigurationError, InvalidArguments, InvalidTask, ResultUnavailable
from tests.codec_types import (
    LIMIT,
    Address,
    Colour,
    Envelope,
    Level,
    Pair,
    Person,
    Photo,
    Point,
    Scan,
    Settings,
    codec_of,
    nested,
    refusal,
    result_codec_of,
    round_trip,
)

if TYPE_CHECKING:
    from decimal import Decimal as OnlyForTypeCheckers


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

    @pytest.mark.foreign_bug(103)
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

    @pytest.mark.parametrize(
        ("given", "hint"),
        [
            ("delay", "'delay'; if the option is meant: work.options(delay=...), with @dq.task above work"),
            ("_defer_by", "'_defer_by'; if the option is meant: work.options(delay=...), with @dq.task above work"),
            ("on_dead", "'on_dead'; if the option is meant: @dq.task(on_dead=...) above work"),
            (
                "queue",
                "'queue', did you mean 'queues'? If the option is meant: work.options(queue=...), "
                "with @dq.task above work",
            ),
        ],
    )
    def test_an_option_among_the_arguments_is_told_where_it_belongs(self, given: str, hint: str) -> None:
        def work(queues: int = 1) -> None: ...

        with pytest.raises(InvalidArguments) as caught:
            ArgumentsCodec(work, "t").encode((), {given: 5}, LIMIT)
        assert str(caught.value) == f"t: unknown argument {hint}"

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


class TestInjected:
    """Parameters that are injected when the task runs are no part of what is stored."""

    def codec(self, function: Callable[..., Any]) -> ArgumentsCodec:
        return ArgumentsCodec(function, "tasks:work", frozenset({"db"}))

    def test_the_others_keep_their_places(self) -> None:
        def work(to: str, db: object, copies: int = 1) -> None: ...

        codec = self.codec(work)
        stored = codec.encode(("ann", 2), {}, LIMIT)
        assert json.loads(stored) == {"to": "ann", "copies": 2}
        assert codec.decode(stored) == ([], {"to": "ann", "copies": 2})
        assert set(json.loads(codec.json_schema or "")["properties"]) == {"to", "copies"}
        with pytest.raises(InvalidArguments, match="at most 2 positional arguments, got 3"):
            codec.encode(("ann", object(), 2), {}, LIMIT)

    def test_no_job_brings_its_own(self) -> None:
        def work(to: str, *, db: object) -> None: ...

        def take(to: str, *, db: object, **more: int) -> None: ...

        for function in (work, take):
            with pytest.raises(InvalidArguments, match="'db' is injected when the task runs; leave it out") as caught:
                self.codec(function).encode(("ann",), {"db": 1}, LIMIT)
            assert caught.value.argument == "db"

    def test_their_types_need_not_be_json(self) -> None:
        class Connection: ...

        def work(to: str, *, db: Connection) -> None: ...

        work.__annotations__["db"] = Connection
        assert self.codec(work).encode(("ann",), {}, LIMIT) == '{"to":"ann"}'
        with pytest.raises(InvalidTask, match="schema"):
            ArgumentsCodec(work, "tasks:work")

    def test_they_are_not_found_in_what_was_edited(self) -> None:
        def work(to: str, *, db: object) -> None: ...

        with pytest.raises(InvalidArguments, match="unknown argument 'db'"):
            self.codec(work).encode_object({"to": "ann", "db": 1}, LIMIT)

    def test_they_cannot_be_named_as_arguments(self) -> None:
        def work(to: str, *, db: object) -> None: ...

        codec = self.codec(work)
        codec.require_names(["to"], "Unique(args=...)")
        with pytest.raises(ConfigurationError, match=r"tasks:work has no argument 'db', named in Unique\(args=...\)"):
            codec.require_names(["to", "db"], "Unique(args=...)")


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

    def test_a_number_that_json_has_not_is_refused_also_as_a_text(self) -> None:
        with pytest.raises(InvalidArguments):
            codec_of(float).encode_object({"value": "NaN"}, LIMIT)

    def test_edited_bytes_are_base64_as_they_were_shown(self) -> None:
        codec = codec_of(bytes)
        shown = json.loads(codec.encode((b"\xff\x00",), {}, LIMIT))
        assert codec.decode(codec.encode_object(shown, LIMIT))[1] == {"value": b"\xff\x00"}

    def test_the_schema_names_every_argument(self) -> None:
        def work(to: str, copies: int = 1) -> None: ...

        schema = json.loads(ArgumentsCodec(work, "t").json_schema or "")
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

    @pytest.mark.fault("F45")
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

    @pytest.mark.fault("F44")
    def test_a_result_over_the_limit_leaves_a_marker(self) -> None:
        stored, reason = encode_result("x" * 200, 100)
        assert reason is not None
        assert "limit is 100" in reason
        assert stored is not None
        assert json.loads(stored)["durableq:not-storable"] == reason

    @pytest.mark.parametrize("value", [nested(200), nested(250), 10**4301, {"a": [10**5000]}], ids=lambda _: "")
    def test_a_result_that_would_not_be_read_back_leaves_a_marker(self, value: Any) -> None:
        stored, reason = encode_result(value, LIMIT)
        assert reason is not None
        assert stored is not None
        assert json.loads(stored)["durableq:not-storable"] == reason

    @pytest.mark.parametrize("value", [nested(199), 10**4299, "x" * 100_000, [{}] * 1_000], ids=lambda _: "")
    def test_a_large_result_is_kept(self, value: Any) -> None:
        stored, reason = encode_result(value, LIMIT)
        assert reason is None
        assert result_codec_of(Any).decode(stored) == value


class TestDeclaredResults:
    """A stored result is rebuilt to the type that the task declares to return."""

    @pytest.mark.parametrize(
        ("hint", "value"),
        [
            (int, 3),
            (None, None),
            (str | None, None),
            (bytes, b"abcd"),
            (bytes, b"\xff\x00"),
            (list[bytes], [b"\xff"]),
            (datetime, datetime(2026, 3, 29, 2, 30, tzinfo=UTC)),
            (timedelta, timedelta(days=2, microseconds=1)),
            (Decimal, Decimal("1.10")),
            (uuid.UUID, uuid.UUID(int=7)),
            (Path, Path("/tmp/a b")),
            (Colour, Colour.BLUE),
            (Point, Point(1, 2.5)),
            (Scan, Scan(b"\xff", {"data": b"\x80"})),
            (dict[str, Scan], {"a": Scan(b"abcd", {"data": b""})}),
            (Person, Person(name="Zoë", addresses=[Address(street="a", since=datetime(2026, 1, 1, tzinfo=UTC))])),
            (Photo, Photo(data=b"abcd")),
            (list[Person], [Person(name="a"), Person(name="b")]),
            (Envelope[Point], Envelope[Point](content=Point(1))),
            (Pair, Pair(1, "r")),
            (tuple[int, str], (1, "a")),
            (set[int], {1, 2}),
            (dict[date, int], {date(2026, 1, 1): 1}),
            (Annotated[int, Field(gt=0)], 5),
            (int | str, "3"),
            (Any, {"a": [1, None]}),
            (object, [1]),
        ],
    )
    def test_a_value_comes_back_as_its_declared_type(self, hint: Any, value: Any) -> None:
        back = result_codec_of(hint).decode(encode_result(value, LIMIT)[0])
        assert back == value
        assert type(back) is type(value)

    def test_what_declares_no_type_comes_back_as_json_has_it(self) -> None:
        def undeclared():  # type: ignore[no-untyped-def]
            ...

        assert ResultCodec(undeclared).decode('{"x": 1, "y": 0.5}') == {"x": 1, "y": 0.5}

    @pytest.mark.parametrize("hint", [socket.socket, "NobodyKnows", Awaitable[int]], ids=repr)
    def test_a_type_that_pydantic_does_not_know_comes_back_as_json_has_it(self, hint: Any) -> None:
        """Nobody asked for one when the task was registered, so it is no reason to lose the value."""
        assert result_codec_of(hint).decode("[1]") == [1]

    def test_the_declaration_under_all_wrappers_counts(self) -> None:
        async def work() -> Point:
            return Point(0)

        @wraps(work)
        def wrapper(*args: Any, **kwargs: Any) -> Any: ...

        assert ResultCodec(wrapper).decode('{"x":1,"y":2.5}') == Point(1, 2.5)

    def test_what_was_not_stored_says_why(self) -> None:
        for hint in (int, Any):
            with pytest.raises(ResultUnavailable, match="succeeded, but its result was not stored: a float cannot be"):
                result_codec_of(hint).decode(encode_result(math.nan, LIMIT)[0])

    @pytest.mark.parametrize(("hint", "stored"), [(int, '"x"'), (Point, '{"y":1}'), (Person, "[]"), (Colour, '"teal"')])
    def test_what_an_earlier_version_returned_may_no_longer_fit(self, hint: Any, stored: str) -> None:
        with pytest.raises(ResultUnavailable, match="is not what the task declares to return"):
            result_codec_of(hint).decode(stored)

    @pytest.mark.parametrize(
        ("hint", "stored", "words"),
        [
            (int, '"x"', "input should be a valid integer, unable to parse string as an integer, got 'x' (str)"),
            (Point, '{"x":1,"y":"far"}', "'y': input should be a valid number, unable to parse string as a number, "),
            (dict[str, list[int]], '{"a":[1,null]}', "'a.1': input should be a valid integer, got None (NoneType)"),
            (dict[str, int], '{"password":"s3cr3t"}', "'password': input should be a valid integer, unable to parse"),
            (int, '{"password":"s3cr3t"}', "input should be a valid integer, got {'password': "),
        ],
    )
    def test_what_does_not_fit_is_told_without_the_list_we_put_around_it(
        self, hint: Any, stored: str, words: str
    ) -> None:
        with pytest.raises(ResultUnavailable) as caught:
            result_codec_of(hint).decode(stored)
        assert str(caught.value).startswith(f"the stored result is not what the task declares to return: {words}")
        assert "s3cr3t" not in str(caught.value)

    @pytest.mark.parametrize("stored", ["", "nonsense", "[" * 300 + "]" * 300, "1] [2"])
    def test_a_damaged_result_cannot_be_read(self, stored: str) -> None:
        for hint in (list[int], Any):
            with pytest.raises(ResultUnavailable, match="the stored result cannot be read"):
                result_codec_of(hint).decode(stored)


def test_a_flipped_bit_changes_the_checksum() -> None:
    text = '{"amount": 100}'
    assert checksum(text) == checksum('{"amount": 100}')
    assert checksum(text) != checksum('{"amount": 900}')


def test_encoding_leaves_pythons_limits_alone() -> None:
    assert sys.get_int_max_str_digits() == sys.int_info.default_max_str_digits
