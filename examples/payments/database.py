"""The tables of the service, and sessions on them. They live in the queue's own file: one commit covers both.

``DATABASE`` in the environment names the file.
"""

import os
from collections.abc import AsyncIterator
from typing import Annotated, Final

from fastapi import Depends
from sqlalchemy.ext.asyncio import create_async_engine
from sqlmodel import Field, SQLModel
from sqlmodel.ext.asyncio.session import AsyncSession

from durableq import outbox

DATABASE: Final = os.environ.get("DATABASE", "./payments.db")

engine = create_async_engine(f"sqlite+aiosqlite:///{DATABASE}")
outbox.configure(engine)


class Merchant(SQLModel, table=True):
    """Who is paid, where to tell them, and the secret that signs what they are told."""

    name: str = Field(primary_key=True)
    address: str
    secret: str


class Order(SQLModel, table=True):
    """What somebody paid for. The customer chooses the id, and so can ask again after a lost answer."""

    __tablename__ = "orders"

    id: str = Field(primary_key=True)
    merchant: str
    cents: int
    notified: bool = False


class Alert(SQLModel, table=True):
    """What an operator should look at."""

    id: int | None = Field(default=None, primary_key=True)
    job: str
    text: str


def new_session() -> AsyncSession:
    """Return a session whose objects stay readable after its commit."""
    return AsyncSession(engine, expire_on_commit=False)


async def open_session() -> AsyncIterator[AsyncSession]:
    """Give a session to a route or to a task, and close it afterwards. What was not committed is rolled back."""
    async with new_session() as session:
        yield session


async def only_read(session: AsyncSession) -> None:
    """Begin a transaction that waits for nobody, and nobody for it. Others take the file's one write lock at once."""
    await session.connection(execution_options={outbox.READ_ONLY: True})


Session = Annotated[AsyncSession, Depends(open_session)]
