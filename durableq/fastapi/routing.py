"""`DurableRoute`: durable background tasks without touching a single signature.

``APIRouter(route_class=DurableRoute)`` stores what a route adds to FastAPI's own injected ``BackgroundTasks``, or
returns in ``Response(background=...)``, in one transaction before the response starts.
"""

from collections.abc import Callable, Coroutine
from typing import Any

from fastapi.routing import APIRoute
from starlette.background import BackgroundTask, BackgroundTasks
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from durableq.fastapi.background import queue_for, store
from durableq.models import Job
from durableq.queue import DurableQ

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class DurableRoute(APIRoute):
    """A route whose background tasks become durable jobs.

    Every function added must be one that can be a task; otherwise the request fails with `InvalidTask`, nothing
    of it stored. Set it per router: FastAPI does not hand a route class on to included routers.
    """

    def get_route_handler(self) -> Handler:
        handle = super().get_route_handler()

        async def handle_durably(request: Request) -> Response:
            response = await handle(request)
            background, response.background = response.background, None
            if background is None:
                return response
            dq = queue_for(request)
            return _CommitFirst(response, dq, [_job(dq, task) for task in _tasks(background)])

        return handle_durably


class _CommitFirst(Response):
    """Stores jobs, then sends a response.

    FastAPI sends a response after it has left the function-scoped dependencies, so everything that could still
    fail the request has succeeded by then.
    """

    def __init__(self, response: Response, dq: DurableQ, jobs: list[Job[Any]]) -> None:
        # Not super().__init__: this stands for another response and has no content of its own.
        self._response = response
        self._queue = dq
        self._jobs = jobs

    def __getattr__(self, name: str) -> Any:
        """What a route class built on this one reads or sets: status code, headers, cookies."""
        return getattr(self._response, name)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._jobs:
            await store(self._queue, self._jobs)
        await self._response(scope, receive, send)


def _tasks(background: BackgroundTask) -> list[BackgroundTask]:
    return background.tasks if isinstance(background, BackgroundTasks) else [background]


def _job(dq: DurableQ, task: BackgroundTask) -> Job[Any]:
    return dq.new_job(task.func, task.args, task.kwargs)
