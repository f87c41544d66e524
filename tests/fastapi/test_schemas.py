"""What a stored JSON schema tells of secrets, however it is built, and what is left of it when it is shown."""

import json
from dataclasses import dataclass
from typing import Annotated, Any, NotRequired

import pytest
from pydantic import BaseModel, Field, SecretBytes, SecretStr, TypeAdapter
from typing_extensions import TypedDict

from durableq import DurableQ, Secret
from durableq.fastapi.schemas import NOTHING_KNOWN, declared_in, shown_schema
from durableq.secret_names import secret_arguments


class Login(BaseModel):
    user: str = "somebody"
    key: SecretStr = SecretStr("a-default-of-pydantics")
    marked: Annotated[str, Secret] = "a-default-of-ours"
    password: str = "a-default-by-name"
    settings: dict[str, str] = {"token": "a-default-inside"}
    default: str = "shown"
    count: Annotated[int, Field(examples=[7])] = 3


class Account(BaseModel):
    logins: list[Login] = []
    parent: "Account | None" = None


@dataclass
class Card:
    number: Annotated[str, Secret]


class Options(TypedDict):
    colour: NotRequired[str]
    code: NotRequired[SecretBytes]


def task(
    plain: int,
    model: Login,
    nested: dict[str, list[Account]],
    card: Card | None,
    options: Options,
    marked: Annotated[str, Secret],
    either: Annotated[int, Secret] | None = None,
) -> None: ...


def stored(function: Any) -> str:
    dq = DurableQ("app.db")
    registered = dq.task(name="task")(function)
    return registered.codec.json_schema or ""


def test_a_schema_tells_the_same_secrets_as_the_signature() -> None:
    declared = declared_in(stored(task))
    assert declared.secret == secret_arguments(task)
    assert declared.secret == {"model", "nested", "card", "options", "marked", "either"}
    assert [declared.hides(name) for name in ("plain", "marked", "unheard_of")] == [False, True, True]


@pytest.mark.parametrize(
    "schema",
    [None, "", "{", "[]", "7", "{}", '{"properties": []}', '{"properties": 7}', '{"$ref": "#/$defs/x"}', "[" * 100_000],
)
def test_of_a_schema_that_says_nothing_everything_is_a_secret(schema: str | None) -> None:
    assert declared_in(schema) == NOTHING_KNOWN
    assert declared_in(schema).hides("anything")


@pytest.mark.parametrize("reference", ["#/$defs/lost", "elsewhere.json", "#", "#/properties/a", ""])
def test_what_a_reference_leads_to_is_a_secret_unless_it_can_be_read(reference: str) -> None:
    schema = {"properties": {"a": {"type": "string"}, "b": {"$ref": reference}}}
    assert declared_in(json.dumps(schema)).hides("b") == (reference != "#/properties/a")


def test_a_schema_is_shown_without_the_values_of_secrets() -> None:
    shown = shown_schema(stored(task))
    assert shown is not None
    text = json.dumps(shown)
    for place in ("of-ours", "by-name", "of-pydantics", "inside"):
        assert f"a-default-{place}" not in text
    assert shown["required"] == ["plain", "model", "nested", "card", "options", "marked"]
    login = shown["$defs"]["Login"]["properties"]
    assert login.keys() == Login.model_fields.keys()
    assert [login[name]["default"] for name in ("user", "default", "count")] == ["somebody", "shown", 3]
    assert login["count"]["examples"] == [7]


def test_a_secret_that_is_named_like_a_word_of_schemas_is_found() -> None:
    class Odd(BaseModel):
        default: SecretStr

    assert declared_in(json.dumps(TypeAdapter(Odd).json_schema())).hides("default")
    schema = {"$defs": {"Odd": Odd.model_json_schema()}, "properties": {"part": {"$ref": "#/$defs/Odd"}}}
    assert declared_in(json.dumps(schema)).hides("part")


def test_a_schema_that_cannot_be_read_is_not_shown() -> None:
    assert [shown_schema(one) for one in (None, "{", "[]")] == [None] * 3


def test_a_schema_that_is_very_deep_is_shown_as_far_as_it_goes() -> None:
    schema: Any = {}
    for _ in range(500):
        schema = {"items": schema}
    assert shown_schema(json.dumps({"properties": {"a": schema}})) is not None
