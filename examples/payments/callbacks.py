"""The queue, and the one thing it does: tell a merchant of an order, until they have heard it."""

import json
import logging
import ssl
from collections.abc import AsyncIterator
from typing import Annotated, Any, Final

import httpx2
from fastapi import Depends
from tenacity import wait_exponential

from durableq import INJECTED, DurableQ, Job, PermanentFailure, Retry, RetryPolicy, current_job
from examples.payments.database import DATABASE, Alert, Merchant, Order, Session, new_session, only_read
from examples.payments.signature import HEADER, signature

logger = logging.getLogger("examples.payments")

CERTIFICATES: Final = ssl.create_default_context()  # once: reading them takes longer than a callback

CALLS_AT_A_TIME: Final = 8
"""Few: each ends with a write, and SQLite takes one writer at a time."""

dq = DurableQ(DATABASE, concurrency=CALLS_AT_A_TIME)

# Quick, so that whoever watches sees the retries. A service would rather keep the default: 1 s, 2 s, 4 s, ...
quickly = RetryPolicy(wait=wait_exponential(multiplier=0.05, max=0.5))


async def open_client() -> AsyncIterator[httpx2.AsyncClient]:
    """Give an HTTP client that goes straight to the merchant, and never to where a redirect would lead."""
    async with httpx2.AsyncClient(verify=CERTIFICATES, timeout=5, trust_env=False) as client:
        yield client


Client = Annotated[httpx2.AsyncClient, Depends(open_client)]


@dq.task(max_attempts=20, retry=quickly)
async def notify_merchant(order_id: str, session: Session = INJECTED, client: Client = INJECTED) -> None:
    """Tell the merchant of an order, and note that they know. Whatever is raised on the way becomes a retry."""
    await only_read(session)
    order = await session.get_one(Order, order_id)
    merchant = await session.get_one(Merchant, order.merchant)
    await session.commit()  # merchants are slow: no transaction may be open while we wait for one

    response = await call(client, merchant, order)
    match response.status_code:
        case 429 | 503:
            raise Retry.after(response)
        case 410:
            raise PermanentFailure(f"{merchant.name} is gone from {merchant.address}")
    response.raise_for_status()

    order.notified = True
    await current_job().complete_within(session)
    await session.commit()  # the order's mark and the job's success, together


async def call(client: httpx2.AsyncClient, merchant: Merchant, order: Order) -> httpx2.Response:
    """Send the callback. Its key is the same for all attempts, so the merchant can tell a repetition."""
    key = current_job().idempotency_key
    body = json.dumps({"order": order.id, "cents": order.cents}).encode()
    headers = {
        "Content-Type": "application/json",
        "Idempotency-Key": key,
        HEADER: signature(merchant.secret, key, body),
    }
    return await client.post(merchant.address, content=body, headers=headers)


@dq.exception_handler(PermanentFailure)
async def alert(job: Job[Any], failure: PermanentFailure) -> None:
    """Tell the operators of what will not mend itself."""
    logger.error("job %s needs a hand: %s", job.id, failure)
    async with new_session() as session:
        session.add(Alert(job=job.id, text=str(failure)))
        await session.commit()
