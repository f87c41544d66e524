"""The web application: place an order, look at it; for operators, merchants and dead letters.

Run it with ``python -m examples.payments --serve`` or ``uvicorn examples.payments.app:app``. Operators send what
``ADMIN_TOKEN`` was set to as ``Authorization: Bearer <token>``; while it is not set, nobody is an operator. Who may
place orders is left out here.
"""

import os
import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import Depends, FastAPI, HTTPException
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, Field, HttpUrl
from sqlalchemy.exc import IntegrityError
from sqlmodel import SQLModel, col, select

from durableq.fastapi import admin_router
from examples.payments.callbacks import dq, notify_merchant
from examples.payments.database import Alert, Merchant, Order, Session, engine, only_read

Text = Annotated[str, Field(min_length=1, max_length=100)]


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
    """Run the queue while the application runs; its file holds our tables too."""
    async with dq.running(app) as state:
        async with engine.begin() as connection:
            await connection.run_sync(SQLModel.metadata.create_all)
        yield state
    await engine.dispose()


app = FastAPI(title="Payments", lifespan=lifespan)


class NewOrder(BaseModel):
    """What a customer sends."""

    id: Text
    merchant: Text
    cents: int = Field(gt=0, lt=2**53)


@app.post("/orders", status_code=201)
async def place_order(new: NewOrder, session: Session) -> Order:
    """Store an order and the callback to its merchant: both, or neither."""
    if await session.get(Merchant, new.merchant) is None:
        raise HTTPException(422, "no such merchant")
    order = Order(**new.model_dump())
    session.add(order)
    await dq.within(session).add_task(notify_merchant, order.id)
    try:
        await session.commit()
    except IntegrityError as error:
        raise HTTPException(409, "there is an order of this id already") from error
    return order


@app.get("/orders/{order_id}")
async def show_order(order_id: str, session: Session) -> Order:
    """Show an order, and whether its merchant knows."""
    await only_read(session)
    order = await session.get(Order, order_id)
    if order is None:
        raise HTTPException(404, "no such order")
    return order


# -- for operators -------------------------------------------------------------------------------------------

bearer = HTTPBearer(auto_error=False, description="What ADMIN_TOKEN was set to when the service was started.")


async def operator(credentials: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]) -> str:
    """Let only those in who know the token; give the name for the audit trail."""
    token = os.environ.get("ADMIN_TOKEN", "")
    given = "" if credentials is None else credentials.credentials
    if not token or not secrets.compare_digest(given.encode(), token.encode()):
        raise HTTPException(401, "this is for operators", headers={"WWW-Authenticate": "Bearer"})
    return "operator"


class Address(BaseModel):
    """Where a merchant takes callbacks."""

    address: HttpUrl


class Account(Address):
    """What a merchant gives us when they join."""

    secret: Annotated[str, Field(min_length=16, max_length=200)]


@app.put("/merchants/{name}", status_code=204, dependencies=[Depends(operator)])
async def register(name: Text, account: Account, session: Session) -> None:
    """Take a merchant in, or replace all that is known of them."""
    await session.merge(Merchant(name=name, address=str(account.address), secret=account.secret))
    await session.commit()


@app.patch("/merchants/{name}", status_code=204, dependencies=[Depends(operator)])
async def move(name: Text, new: Address, session: Session) -> None:
    """Note a merchant's new address. Callbacks go there from now on, those that are retried too."""
    merchant = await session.get(Merchant, name)
    if merchant is None:
        raise HTTPException(404, "no such merchant")
    merchant.address = str(new.address)
    await session.commit()


@app.get("/alerts", dependencies=[Depends(operator)])
async def alerts(session: Session) -> Sequence[Alert]:
    """Show the latest alerts, the newest first."""
    await only_read(session)
    return (await session.exec(select(Alert).order_by(col(Alert.id).desc()).limit(100))).all()


app.include_router(admin_router(dq, auth=Depends(operator)), prefix="/admin")
