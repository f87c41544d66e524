"""The application that the browser visits: ``python -m tests.dashboard.browser.app DATABASE DESCRIPTOR [idle]``.

Its tasks fail, succeed, and go on for ever, as the tests ask for by ``POST /control/add``. One queue has its dashboard
under a prefix, in a mounted application, and behind two kinds of proxy. Who visits, a cookie says.
"""

import asyncio
import contextlib
import logging
import socket
import sys
from typing import Annotated, Any
from unittest.mock import patch
from urllib.parse import unquote

import tenacity
import uvicorn
from fastapi import Cookie, Depends, FastAPI, HTTPException
from pydantic import BaseModel, Field
from starlette.types import ASGIApp, Receive, Scope, Send

from durableq import DurableQ, Secret, call, current_job
from durableq.dashboard import dashboard, pages
from durableq.fastapi import Principal
from durableq.fastapi.principals import Role

FAR = 3_600


class Asked(BaseModel):
    """Jobs that a test wants."""

    task: str
    args: dict[str, Any] = Field(default_factory=dict)
    options: dict[str, Any] = Field(default_factory=dict)
    times: int = 1


def account(who: Annotated[str, Cookie()] = "", role: Annotated[Role, Cookie()] = "admin") -> Principal:
    """The visitor, as the cookie has it."""
    if not who:
        raise HTTPException(401, "who are you?")
    return Principal(unquote(who), role)


def tasks(dq: DurableQ) -> dict[str, Any]:
    """Register what an application may do in the background; return it by name."""
    soon_then_late = dq.retry_policy(
        "soon then late", wait=tenacity.wait_chain(tenacity.wait_fixed(0.01), tenacity.wait_fixed(FAR))
    )

    @dq.task(name="mail.send", queue="mail", max_attempts=1)
    def send(email: str, copies: int = 1, options: dict[str, Any] | None = None) -> dict[str, Any]:
        current_job().log(f"sending to {email}")
        if not email.startswith("good"):
            raise ValueError(f"no such address: {email}")
        return {"sent": copies, "to": email}

    @dq.task(name="account.login", max_attempts=1)
    def login(user: str, password: Annotated[str, Secret]) -> None:
        raise PermissionError(f"refused: {user}")

    @dq.task(name="invoice.render", queue="documents", retry=soon_then_late)
    def render(number: int, customer: str) -> None:
        current_job().log(f"rendering invoice {number}")
        raise TimeoutError(f"the printer of {customer} does not answer")

    @dq.task(name="products.import", queue="imports")
    async def import_products(file: str) -> None:
        job = current_job()
        for done in (10, 20, 30):
            job.log(f"{done} rows of {file}")
        job.progress(30, 100, "reading rows")
        await asyncio.Event().wait()

    @dq.task(name="wait", queue="imports")
    async def wait() -> None:
        await asyncio.Event().wait()

    return {one.name: one for one in (send, login, render, import_products, wait)}


def application(dq: DurableQ, offered: dict[str, Any]) -> FastAPI:
    """Return the application with its dashboard, once under a prefix and once in an application that is mounted."""
    app = FastAPI(lifespan=dq.lifespan)
    app.include_router(dashboard(dq, auth=Depends(account)), prefix="/durableq")
    inner = FastAPI()
    inner.include_router(dashboard(dq, auth=Depends(account)), prefix="/ops")
    app.mount("/inner", inner)

    @app.post("/control/add")
    async def add(asked: list[Asked]) -> list[str]:
        calls = [call(offered[one.task].options(**one.options), **one.args) for one in asked for _ in range(one.times)]
        return [job.id for job in await dq.add_tasks(calls)]

    @app.post("/control/pause/{queue}")
    async def pause(queue: str) -> None:
        await dq.pause(queue, who="night shift")

    return app


def behind_proxies(app: ASGIApp) -> ASGIApp:
    """Reach an application as through proxies too, whose servers tell it by ``root_path`` what stands before it.

    Under ``/behind`` the path has it as well, as with ``uvicorn --root-path``; under ``/stripped`` it has not, as with
    older servers and with ``FastAPI(root_path=...)``.
    """

    async def front(scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if path.startswith("/stripped/"):
            scope = {**scope, "path": path.removeprefix("/stripped"), "root_path": "/stripped"}
        elif path.startswith("/behind/"):
            scope = {**scope, "root_path": "/behind"}
        await app(scope, receive, send)

    return front


def serve(app: ASGIApp, descriptor: int) -> None:
    """Serve on a socket that is listening already, until a signal comes."""
    config = uvicorn.Config(app, lifespan="on", access_log=False, log_level="warning", timeout_graceful_shutdown=1)
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=descriptor)])


def main() -> None:
    logging.disable()  # jobs fail here, because they are asked to
    is_idle = "idle" in sys.argv
    dq = DurableQ(sys.argv[1], grace=0.2, threads=4, worker=not is_idle)
    # Pages rest so that additions and jobs go on beside them; in an idle application there are none.
    unrested = patch.object(pages, "REST_SECONDS", 0.0) if is_idle else contextlib.nullcontext()
    with unrested:
        serve(behind_proxies(application(dq, tasks(dq))), int(sys.argv[2]))


if __name__ == "__main__":
    main()
