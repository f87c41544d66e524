"""``python -m benchmarks.peers.app ADAPTER DESCRIPTOR``: a route that adds one job to a peer, on a listening socket.

As `benchmarks.app`, whose routes it is compared to, and which is not imported: not all peers can be installed beside
durableq. What blocks is called by a plain ``def`` route, on FastAPI's threads.
"""

import contextlib
import gc
import importlib
import itertools
import socket
import sys
from collections.abc import AsyncIterator
from typing import Any, Final

import uvicorn
from fastapi import FastAPI

from benchmarks.figures import MESSAGE
from benchmarks.peers.adapter import Adapter, Producer

ACCEPTED: Final = {"accepted": True}


async def ready() -> bool:
    return True


def application(adapter: Adapter) -> FastAPI:
    numbers = itertools.count()
    producer: Producer

    @contextlib.asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        nonlocal producer
        async with adapter.producer() as producer:
            app.post("/accept", status_code=202)(accept_blocking if producer.blocks else accept)
            yield

    async def accept() -> dict[str, bool]:
        await producer.add(next(numbers), MESSAGE)
        return ACCEPTED

    def accept_blocking() -> dict[str, bool]:
        producer.add(next(numbers), MESSAGE)
        return ACCEPTED

    app = FastAPI(lifespan=lifespan)
    app.get("/ready")(ready)
    return app


if __name__ == "__main__":
    app = application(importlib.import_module(f"benchmarks.peers.adapters.{sys.argv[1]}").ADAPTER)
    gc.freeze()
    config = uvicorn.Config(app, loop="uvloop", http="httptools", lifespan="on", access_log=False, log_level="warning")
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=int(sys.argv[2]))])
