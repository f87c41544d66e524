"""Types of arguments that an application might use, for the tests of the codec, and codecs that take them."""

import json
from dataclasses import dataclass
from datetime import datetime
from enum import Enum, IntEnum
from typing import Any, Generic, NamedTuple, TypeVar

import pytest
from pydantic import BaseModel
from typing_extensions import TypedDict

from durableq.codec import ArgumentsCodec, ResultCodec
from durableq.errors import InvalidArguments

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


class Data(TypedDict):
    data: bytes


@dataclass
class Scan:
    image: bytes
    more: Data


def codec_of(hint: Any, default: Any = ...) -> ArgumentsCodec:
    """The codec of ``def work(value: hint)``."""

    def work(value: Any) -> None: ...

    work.__annotations__ = {"value": hint}
    if default is not ...:
        work.__defaults__ = (default,)
    return ArgumentsCodec(work, "tasks:work")


def result_codec_of(hint: Any) -> ResultCodec:
    """The codec of what ``def work() -> hint`` returns."""

    def work() -> Any: ...

    work.__annotations__ = {"return": hint}
    return ResultCodec(work)


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
