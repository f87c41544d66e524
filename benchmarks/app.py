"""The application that is served: one route, with no task, with Starlette's in-memory task, or with a durable one.

``python -m benchmarks.app KIND DATABASE DESCRIPTOR`` serves it by uvicorn (uvloop, httptools) on a socket that is
listening already. The worker runs the durable jobs in this same process. The route reads no body and does nothing
else that would thin out the cost of the task itself.
"""

import gc
import socket
import sys
import time
from collections.abc import Callable
from typing import Any, Final

import fastapi
import uvicorn
from fastapi import FastAPI

from benchmarks.figures import MESSAGE
from durableq import DurableQ
from durableq.fastapi import BackgroundTasks

ACCEPTED: Final = {"accepted": True}


class Counts:
    """Everything happens on one event loop, so plain integers do."""

    accepted = 0
    ran = 0


async def send(number: int, message: dict[str, str]) -> None:
    """The work of both kinds of task: nothing, counted."""
    Counts.ran += 1


async def accept_without_task() -> dict[str, bool]:
    Counts.accepted += 1
    return ACCEPTED


async def accept_in_memory(background_tasks: fastapi.BackgroundTasks) -> dict[str, bool]:
    Counts.accepted += 1
    background_tasks.add_task(send, Counts.accepted, MESSAGE)
    return ACCEPTED


async def accept_durably(background_tasks: BackgroundTasks) -> dict[str, bool]:
    Counts.accepted += 1
    background_tasks.add_task(send, Counts.accepted, MESSAGE)
    return ACCEPTED


async def report() -> dict[str, float]:
    """Tell how many tasks have run, and what CPU time this process has used."""
    return {"ran": Counts.ran, "cpu_seconds": time.process_time()}


ROUTES: Final[dict[str, Callable[..., Any]]] = {
    "plain": accept_without_task,
    "memory": accept_in_memory,
    "durable": accept_durably,
}


def application(kind: str, database: str) -> FastAPI:
    """Build an app with one kind of route; only the durable one has a queue."""
    app = FastAPI(lifespan=DurableQ(database).lifespan) if kind == "durable" else FastAPI()
    app.post("/accept", status_code=202)(ROUTES[kind])
    app.get("/report")(report)
    return app


def serve(app: FastAPI, descriptor: int) -> None:
    """Serve until a signal comes, as an application that is tuned: what it consists of is no garbage, ever.

    Python would else go through all of it again and again while requests wait, whatever they wait for.
    """
    gc.freeze()
    config = uvicorn.Config(app, loop="uvloop", http="httptools", lifespan="on", access_log=False, log_level="warning")
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=descriptor)])


if __name__ == "__main__":
    serve(application(sys.argv[1], sys.argv[2]), int(sys.argv[3]))
