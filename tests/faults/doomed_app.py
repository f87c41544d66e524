"""An application that dies at the worst moment; the environment says which one.

``DOOMED_DATABASE`` names its file, ``DOOMED_LEDGER`` the file to which each payment appends its key and attempt.
``DOOMED_AT=response`` kills the process when a response is about to leave, after its commit; ``DOOMED_AT=effect``
after a payment was made and before its job is settled.
"""

import os
import signal

from fastapi import FastAPI
from starlette.types import Message, Receive, Scope, Send

from durableq import DurableQ, current_job
from durableq.fastapi import BackgroundTasks, IdempotencyKey

DIES_AT = os.environ.get("DOOMED_AT")
LEDGER = os.open(os.environ["DOOMED_LEDGER"], os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
dq = DurableQ(os.environ["DOOMED_DATABASE"])
api = FastAPI(lifespan=dq.lifespan)


@dq.task
async def pay(order: int) -> None:
    os.write(LEDGER, f"{order} {current_job().idempotency_key} {current_job().attempt}\n".encode())
    if DIES_AT == "effect":
        os.kill(os.getpid(), signal.SIGKILL)


@api.post("/orders/{order}", status_code=202)
async def add_order(order: int, background_tasks: BackgroundTasks, key: IdempotencyKey = None) -> str:
    return background_tasks.add_task(pay.options(idempotency_key=key), order).id


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """The application, inside of what strikes when a response is about to start."""

    async def strike_or_send(message: Message) -> None:
        if message["type"] == "http.response.start" and DIES_AT == "response":
            os.kill(os.getpid(), signal.SIGKILL)
        await send(message)

    await api(scope, receive, strike_or_send)
