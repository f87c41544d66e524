"""Where one argument, one byte or one nested value makes the difference: edges of what is stored and refused."""

import inspect
import json
from collections.abc import Callable, Sequence
from typing import Annotated, Any, cast

import pytest
from pydantic import AfterValidator, BaseModel, Field, PlainSerializer
from typing_extensions import TypedDict

from durableq.codec import ArgumentsCodec, encode_result
from durableq.errors import InvalidArguments, PayloadTooLarge
from durableq.secret_names import Secret
from tests.codec_types import LIMIT, Box, codec_of, nested, refusal, round_trip

CANARY = "c4n4ry-5ea1"


class Node(BaseModel):
    """Refers to itself, so its schema stands among the definitions."""

    label: Any = None
    children: "list[Node]" = []


class StrictNode(BaseModel):
    """Refers to itself too, and holds nothing but declared types."""

    label: tuple[int, ...] = ()
    children: "list[StrictNode]" = []


class Branch(TypedDict):
    """The same as a dictionary, which is compared part by part."""

    label: Any
    branches: "list[Branch]"


Lossy = Annotated[int, PlainSerializer(lambda value: value + 1)]
"""An integer that does not come back as it was."""


class Opaque:
    """No type that JSON or pydantic knows."""

    def __repr__(self) -> str:
        return "<opaque thing>"


class Unspeakable:
    def __repr__(self) -> str:
        raise RuntimeError("no")


def refused(codec: ArgumentsCodec, *args: Any, **kwargs: Any) -> InvalidArguments:
    with pytest.raises(InvalidArguments) as caught:
        codec.encode(args, kwargs, LIMIT)
    return caught.value


class TestHowArgumentsReachTheFunction:
    """What is decoded binds exactly as the call did."""

    @staticmethod
    def only_star(*values: int) -> Any: ...

    @staticmethod
    def only_double_star(**values: int) -> Any: ...

    @staticmethod
    def star_after_others(first: int, second: int = 2, *rest: int, named: int = 0) -> Any: ...

    @pytest.mark.parametrize(
        ("function", "args", "kwargs"),
        [
            (only_star, (1, 2), {}),
            (only_double_star, (), {"a": 1}),
            (star_after_others, (1, 3, 5), {"named": 7}),
            (star_after_others, (1,), {"named": 7}),
        ],
    )
    def test_variable_arguments_come_back_where_they_were_given(
        self, function: Callable[..., Any], args: tuple[int, ...], kwargs: dict[str, int]
    ) -> None:
        codec = ArgumentsCodec(function, "tasks:work")
        decoded_args, decoded_kwargs = codec.decode(codec.encode(args, kwargs, LIMIT))
        bind = inspect.signature(function).bind
        assert bind(*decoded_args, **decoded_kwargs).arguments == bind(*args, **kwargs).arguments

    def test_what_takes_no_annotation_takes_any_json(self) -> None:
        def work(value, other=None):  # type: ignore[no-untyped-def]
            ...

        codec = ArgumentsCodec(work, "tasks:work")
        assert json.loads(codec.encode(({"a": [1, None]},), {}, LIMIT)) == {"value": {"a": [1, None]}}
        assert "'value'" in str(refused(codec, (1, 2)))


class TestWhatTheTypesDoNotSay:
    def test_loose_values_inside_a_type_that_refers_to_itself_are_checked_too(self) -> None:
        assert round_trip(Node, Node(children=[Node(label=[1])])) == Node(children=[Node(label=[1])])
        error = refusal(Node, Node(children=[Node(label=(1, 2))]))
        assert error.argument == "value"

    def test_declared_values_inside_a_type_that_refers_to_itself_come_back_as_declared(self) -> None:
        value = StrictNode(children=[StrictNode(label=(1, 2))])
        assert round_trip(StrictNode, value) == value

    def test_a_declared_tuple_beside_a_type_that_refers_to_itself_is_not_taken_for_a_loose_value(self) -> None:
        def work(pair: tuple[int, ...], tree: Node) -> None: ...

        codec = ArgumentsCodec(work, "tasks:work")
        _, values = codec.decode(codec.encode(((1, 2), Node()), {}, LIMIT))
        assert values == {"pair": (1, 2), "tree": Node()}

    def test_loose_values_in_dictionaries_that_refer_to_themselves_are_checked_too(self) -> None:
        def work(items: Sequence[int], tree: Branch) -> None: ...

        codec = ArgumentsCodec(work, "tasks:work")
        leaf: Branch = {"label": [1], "branches": []}
        _, values = codec.decode(codec.encode(([1, 2], {"label": "x", "branches": [leaf]}), {}, LIMIT))
        assert values == {"items": [1, 2], "tree": {"label": "x", "branches": [leaf]}}
        leaf["label"] = (1, 2)
        assert refused(codec, [1, 2], {"label": "x", "branches": [leaf]}).argument == "tree"
        leaf["label"] = None
        _, values = codec.decode(codec.encode(((1, 2), leaf), {}, LIMIT))
        assert list(values["items"]) == [1, 2], "a declared sequence may come as a tuple"

    def test_a_loose_value_that_is_too_long_for_the_short_way_is_stored_when_nothing_changes(self) -> None:
        value = {"a": {"b": [{"c": 1}, ["x" * 400, None, 1.5, True]]}}
        assert round_trip(Any, value) == value
        assert refusal(Any, value | {"z": {"a": (1,)}}).argument == "value"
        assert refusal(Any, value | {"z": [{"a": [(1,)]}]}).argument == "value"

    @pytest.mark.parametrize(
        ("hint", "value"),
        [
            (Lossy, 1),
            (dict[str, Lossy], {"a": 1}),
            (list[Lossy], [1]),
            (dict[str, dict[str, Lossy]], {"a": {"b": 1}}),
            (dict[str, list[Lossy]], {"a": [1]}),
        ],
    )
    def test_what_its_own_type_writes_as_something_else_is_refused(self, hint: Any, value: Any) -> None:
        assert refusal(hint, value).argument == "value"

    def test_constraints_of_an_annotation_hold(self) -> None:
        assert "greater than 0" in str(refusal(Annotated[int, Field(gt=0)], 0))
        assert round_trip(Annotated[int, Field(gt=0)], 1) == 1

    @pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", '"NaN', "a NaN in Infinity"])
    def test_text_that_only_looks_like_no_number_is_stored(self, text: str) -> None:
        assert round_trip(str, text) == text
        assert round_trip(Any, [text]) == [text]
        assert encode_result(text, LIMIT) == (json.dumps(text), None)

    @pytest.mark.parametrize("constant", [float("nan"), float("inf"), float("-inf")])
    def test_what_is_no_number_is_refused_beside_whatever_else(self, constant: float) -> None:
        assert refusal(Any, {"a": constant, "b": "Infinity NaN"}).argument == "value"
        assert refusal(dict[str, float], {"a": constant}).argument == "value"
        assert refusal(float, constant).argument == "value"

    def test_a_missing_loose_argument_is_none_of_the_checks_business(self) -> None:
        def work(a: int, b: Any = ()) -> None: ...

        assert json.loads(ArgumentsCodec(work, "tasks:work").encode((1,), {}, LIMIT)) == {"a": 1}

    @pytest.mark.parametrize("value", [{"a": {1: 2}}, {"a": (1,)}, [{1, 2}], [(1,)], {"a": {"b": Opaque()}}])
    def test_what_json_changes_inside_plain_containers_is_refused(self, value: Any) -> None:
        assert refusal(dict[str, Any] if isinstance(value, dict) else list[Any], value).argument == "value"

    def test_a_model_that_holds_loose_values_is_compared_by_value(self) -> None:
        assert refusal(Box, Box(content=(1, 2))).argument == "value"
        assert round_trip(Box, Box(content=[1, 2])) == Box(content=[1, 2])
        assert refusal(list[Box], [Box(content={"a": {1: 2}})]).argument == "value"


class TestEdges:
    def test_arguments_of_exactly_the_limit_are_stored(self) -> None:
        codec = codec_of(str)
        size = len(codec.encode(("x" * 50,), {}, LIMIT))
        assert codec.encode(("x" * 50,), {}, size)
        assert codec.encode_object({"value": "x" * 50}, size)
        with pytest.raises(PayloadTooLarge):
            codec.encode(("x" * 50,), {}, size - 1)
        with pytest.raises(PayloadTooLarge):
            codec.encode_object({"value": "x" * 50}, size - 1)

    def test_a_result_of_exactly_the_limit_is_stored(self) -> None:
        assert encode_result("x" * 50, 52) == (json.dumps("x" * 50), None)
        stored, reason = encode_result("x" * 50, 51)
        assert stored is not None
        assert json.loads(stored) == {"durableq:not-storable": reason}
        assert reason == "the result takes 52 bytes as JSON, the limit is 51"

    @pytest.mark.parametrize("length", [395, 396, 397, 398, 399, 400, 401])
    def test_no_length_lets_through_what_does_not_come_back(self, length: int) -> None:
        def work(value: Any, padding: str) -> None: ...

        codec = ArgumentsCodec(work, "tasks:work")
        padding = "x" * (length - len('{"value":[1],"padding":""}'))
        assert len(codec.encode(([1], padding), {}, LIMIT)) == length
        assert refused(codec, (1,), padding).argument == "value"

    def test_a_result_that_is_nested_too_deeply_to_be_read_is_replaced_by_its_reason(self) -> None:
        stored, reason = encode_result(nested(250), LIMIT)
        assert reason is not None
        assert reason.startswith("a list cannot be stored as JSON: ")
        assert stored is not None
        assert json.loads(stored) == {"durableq:not-storable": reason}

    def test_a_value_of_the_wrong_kind_is_stored_without_a_word_of_pydantics(self) -> None:
        # It warns of what it did not expect, and a warning is an error here.
        box = Box.model_construct(content=1)
        reading = Node.model_construct(label="x", children="not a list")
        assert round_trip(Box, box) == box
        assert refusal(Node, reading).argument in ("value", None)

    def test_what_a_validator_makes_of_an_edited_argument_is_stored_without_a_word_of_pydantics(self) -> None:
        codec = codec_of(Annotated[int, AfterValidator(str)])  # it writes a text, and would warn of it
        assert codec.encode_object({"value": 7}, LIMIT) == '{"value":"7"}'

    def test_one_signature_is_described_alike_by_every_version(self) -> None:
        # It is stored: two versions that are at work beside each other must not overwrite it in turns.
        def work(number: int, text: str = "x") -> None: ...

        assert json.loads(ArgumentsCodec(work, "tasks:work").json_schema or "") == {
            "type": "object",
            "title": "Arguments",
            "properties": {
                "number": {"type": "integer", "title": "Number"},
                "text": {"type": "string", "title": "Text"},
            },
            "required": ["number"],
            "additionalProperties": False,
        }


class TestWhatIsSaid:
    def test_a_missing_argument_is_named(self) -> None:
        error = refused(codec_of(int))
        assert (str(error), error.argument) == ("tasks:work: argument 'value' is missing", "value")

    def test_an_unknown_name_in_an_edited_object_is_named_with_what_was_meant(self) -> None:
        with pytest.raises(InvalidArguments) as caught:
            codec_of(int).encode_object({"value": 1, "valu": 2}, LIMIT)
        assert caught.value.argument == "valu"
        assert "unknown argument 'valu'" in str(caught.value)
        assert "value" in str(caught.value).replace("'valu'", "")

    def test_the_place_of_what_is_wrong_is_given_with_what_was_found_there(self) -> None:
        error = refusal(dict[str, list[int]], {"a": [1, "x"]})
        assert error.argument == "value"
        assert str(error) == (
            "tasks:work: argument 'value.a.1': input should be a valid integer, unable to parse string as an integer, "
            "got 'x' (str)"
        )

    def test_what_is_too_long_to_be_shown_is_cut(self) -> None:
        whole = refusal(int, "x" * 118)
        assert str(whole).endswith(f"got '{'x' * 118}' (str)")
        cut = refusal(int, "x" * 119)
        assert str(cut).endswith(f"got '{'x' * 116}... (str)")

    def test_what_cannot_be_shown_is_named_by_its_type(self) -> None:
        assert str(refusal(int, Unspeakable())).endswith("got <Unspeakable> (Unspeakable)")
        assert str(refusal(int, Opaque())).endswith("got <opaque thing> (Opaque)")

    def test_why_something_cannot_be_stored_is_told(self) -> None:
        assert "Opaque" in str(refusal(Any, Opaque()))
        stored, reason = encode_result(Opaque(), LIMIT)
        assert stored is not None
        assert reason is not None
        assert reason.startswith("a Opaque cannot be stored as JSON: ")
        assert "Unable to serialize unknown type" in reason

    def test_an_unreadable_value_is_blamed_on_its_argument(self) -> None:
        def work(first: int, second: float) -> None: ...

        error = refused(ArgumentsCodec(work, "tasks:work"), 1, float("nan"))
        assert error.argument == "second"

    @pytest.mark.parametrize(
        "value",
        [pytest.param((CANARY,), id="changed"), pytest.param(Opaque(), id="unstorable"), pytest.param({1: CANARY})],
    )
    def test_a_declared_secret_is_in_no_refusal(self, value: Any) -> None:
        def work(phrase: Annotated[Any, Secret]) -> None: ...

        text = str(refused(ArgumentsCodec(work, "tasks:work"), value))
        assert CANARY not in text
        assert "opaque" not in text
        assert "'phrase'" in text

    def test_what_stands_under_a_secret_name_is_in_no_refusal(self) -> None:
        def work(settings: dict[str, int], password: Any = None) -> None: ...

        codec = ArgumentsCodec(work, "tasks:work")
        text = str(refused(codec, {"api_key": CANARY}))
        assert CANARY not in text
        assert "settings.api_key" in text
        assert text.endswith("got a value that is not shown (str)")
        assert str(refused(codec, {}, Opaque())).endswith("cannot be stored as JSON: PydanticSerializationError")

    def test_a_declared_secret_is_in_no_refusal_of_its_type(self) -> None:
        def work(phrase: Annotated[int, Secret], plain: int = 0) -> None: ...

        codec = ArgumentsCodec(work, "tasks:work")
        assert str(refused(codec, CANARY)).endswith("got a value that is not shown (str)")
        assert str(refused(codec, 1, "readable")).endswith("got 'readable' (str)")

    def test_a_name_of_a_declared_secret_deeper_down_hides_nothing(self) -> None:
        def work(phrase: Annotated[int, Secret], plain: dict[str, int]) -> None: ...

        assert str(refused(ArgumentsCodec(work, "tasks:work"), 1, {"phrase": "x"})).endswith("got 'x' (str)")


def test_objects_that_know_no_equality_are_stored_as_their_type_writes_them() -> None:
    class Marker:
        def __init__(self, name: str) -> None:
            self.name = name

        @classmethod
        def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
            from pydantic_core import core_schema

            return core_schema.no_info_plain_validator_function(
                lambda given: given if isinstance(given, cls) else cls(cast(str, given)),
                serialization=core_schema.plain_serializer_function_ser_schema(lambda one: one.name),
            )

    assert round_trip(Marker, Marker("a")).name == "a"
    assert [one.name for one in round_trip(list[Marker], [Marker("a"), Marker("b")])] == ["a", "b"]
