"""A task and dependencies whose annotations are text until somebody asks for them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import Depends

from durableq.dependencies import INJECTED

if TYPE_CHECKING:
    from decimal import Decimal


def named(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return wrapper


def get_name() -> str:
    return "db"


@dataclass(frozen=True)
class Session:
    name: Annotated[str, Depends(get_name)]


class Pages:
    @functools.cache  # noqa: B019 - a wrapper that knows nothing of this module's names
    def __call__(self, session: Annotated[Session, Depends()], limit: int = 50) -> int:
        return limit


class SessionFactory:
    def make(self, session: Annotated[Session, Depends()]) -> Iterator[Session]:
        yield session


@named
def get_session(session: Annotated[Session, Depends(SessionFactory().make)]) -> Session:
    return session


@dataclass(frozen=True)
class Repository:
    session: Annotated[Session, Depends(get_session)]
    limit: Annotated[int, Depends(functools.partial(Pages()))]


async def send(to: str, *, repository: Annotated[Repository, Depends()] = INJECTED) -> None: ...


def get_amount(name: Decimal = Depends(get_name)) -> Decimal:  # FastAPI does not ask for the types here
    return name


async def with_names_for_type_checkers(*, value: Decimal = Depends(get_amount)) -> Decimal:
    return value


def needs_an_amount(amount: Decimal = INJECTED) -> str:
    return str(amount)


async def with_a_dependency_that_cannot_be_understood(*, value: str = Depends(needs_an_amount)) -> str:
    return value


async def that_cannot_be_understood(amount: Decimal, *, value: str = Depends(get_name)) -> None: ...


async def one(other: Annotated[int, Depends(another)]) -> int:
    return other


async def another(one: Annotated[int, Depends(one)]) -> int:
    return one


async def circular(*, value: Annotated[int, Depends(one)]) -> None: ...
