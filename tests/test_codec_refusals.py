"""What JSON cannot carry unchanged is refused at the call, in words that name the argument."""

import math
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from durableq.codec import ArgumentsCodec
from durableq.errors import InvalidArguments, PayloadTooLarge
from tests.codec_types import (
    LIMIT,
    Bag,
    Box,
    Colour,
    Person,
    Photo,
    Point,
    Reading,
    T,
    codec_of,
    nested,
    refusal,
)


class TestRefusals:
    @pytest.mark.fault("F43")
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

    @pytest.mark.parametrize(("bad", "name"), [(math.nan, "NaN"), (math.inf, "Infinity"), (-math.inf, "-Infinity")])
    @pytest.mark.parametrize(("hint", "wrap"), [(float, lambda bad: bad), (Any, lambda bad: {"a": [bad]})])
    def test_what_is_not_a_finite_number_is_named(
        self, hint: Any, wrap: Callable[[float], Any], bad: float, name: str
    ) -> None:
        text = str(refusal(hint, wrap(bad)))
        assert f"argument 'value' cannot be stored as JSON: {name} is not JSON, which has neither NaN nor inf" in text

    @pytest.mark.fault("F43")
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

    @pytest.mark.fault("F43")
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

    @pytest.mark.fault("F43")
    def test_what_is_nested_too_deeply_to_be_read_back_is_refused(self) -> None:
        """What can be written as JSON is nested deeper than what can be read: both limits are pydantic's."""
        for depth in range(150, 300):
            codec = codec_of(Any)
            try:
                encoded = codec.encode((nested(depth),), {}, LIMIT)
            except InvalidArguments as error:
                assert error.argument == "value"
            else:
                assert codec.decode(encoded) == ([], {"value": nested(depth)})

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

    @pytest.mark.fault("F44")
    def test_arguments_over_the_limit_are_refused_by_bytes(self) -> None:
        codec = codec_of(str)
        assert codec.encode(("é" * 10,), {}, 32)
        with pytest.raises(PayloadTooLarge, match=r"33 bytes.*limit is 32") as caught:
            codec.encode(("é" * 10 + "x",), {}, 32)
        assert caught.value.task == "tasks:work"
        with pytest.raises(PayloadTooLarge):
            codec.encode_object({"value": "x" * 100}, 32)
