"""What holds for every answer about jobs, of the admin routes and of those for users, whoever gives it: the handler,
``auth``, FastAPI, or a defect.

No cache keeps it, no browser takes it for a page or puts it in one, and no other site gets leave to read it. An error
says in plain words what to do, and nothing of the inside: a 5xx carries an id, under which the log has the rest.
"""

import logging
import secrets
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final

from fastapi import HTTPException, Request
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException as AnyHTTPException
from starlette.responses import JSONResponse, Response
from starlette.types import Message, Receive, Scope, Send

from durableq.errors import (
    DurableQError,
    FileReplaced,
    JobConflict,
    JobNotFound,
    OutcomeUnknown,
    QueueNotRunning,
    StorageBusy,
    StorageError,
    StorageFull,
)
from durableq.fastapi.admin_models import ProblemAnswer, StateProblemAnswer
from durableq.fastapi.background import RETRY_AFTER_SECONDS
from durableq.redaction import cleaned, redacted_text

logger = logging.getLogger("durableq.fastapi")

Answers = dict[int | str, dict[str, Any]]
Handler = Callable[[Request], Coroutine[Any, Any, Response]]

HEADERS: Final = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
"""On every answer. It is data, never a page: nothing in it may be loaded, run, framed or guessed at."""

_ALWAYS: Final = (401, 403, 503)
_ANSWERS: Final[Answers] = {
    401: {"description": "Not authenticated, where the application says so"},
    403: {"description": "The role does not allow it, or the request comes from another site", "model": ProblemAnswer},
    404: {"description": "No such job is stored", "model": ProblemAnswer},
    409: {"description": "The job's state, or this application, does not allow it", "model": StateProblemAnswer},
    413: {"description": "The body is too large", "model": ProblemAnswer},
    415: {"description": "The body is not declared as JSON", "model": ProblemAnswer},
    500: {"description": "It may or may not have been done", "model": ProblemAnswer},
    503: {
        "description": "The queue, or its storage, is not available",
        "model": ProblemAnswer,
        "headers": {"Retry-After": {"description": "Seconds", "schema": {"type": "string"}}},
    },
}
_UNAVAILABLE: Final[tuple[tuple[type[DurableQError], str], ...]] = (
    (QueueNotRunning, "the queue is not running in this application"),
    (StorageBusy, "the database is busy, nothing was done; try again"),
    (StorageFull, "the disk is full, nothing was done"),
    (
        FileReplaced,
        "the database file was deleted or replaced while it was open; the latest writes may be lost, look again",
    ),
    (StorageError, "the database cannot be used now, nothing was done"),
)


def answers(*statuses: int) -> Answers:
    """The answers of a route beside its success, for its documentation. FastAPI itself documents 422."""
    return {status: _ANSWERS[status] for status in sorted({*_ALWAYS, *statuses})}


def in_http_words(error: DurableQError) -> HTTPException | None:
    """Return what HTTP says for an error, or None for one that is a defect of the application."""
    match error:
        case JobNotFound():
            return HTTPException(404, {"message": _plain(str(error))})
        case JobConflict():
            return HTTPException(409, {"message": _plain(str(error)), "state": error.state})
        case OutcomeUnknown():
            problem = _logged("it may or may not have been done, look before you repeat", error)
            return HTTPException(500, problem)
        case QueueNotRunning() | StorageError():
            words = next(words for kind, words in _UNAVAILABLE if isinstance(error, kind))
            return unavailable(words, error)
    return None


def unavailable(words: str, error: BaseException) -> HTTPException:
    """Return a 503; the log gets what is behind it."""
    return HTTPException(503, _logged(words, error), headers={"Retry-After": RETRY_AFTER_SECONDS})


def _logged(words: str, error: BaseException) -> dict[str, str]:
    incident = secrets.token_hex(8)
    logger.error("a request about jobs failed, id=%s: %s: %s", incident, type(error).__name__, error)
    return {"message": words, "id": incident}


def _plain(text: str) -> str:
    return redacted_text(cleaned(text))


def _unfit(error: RequestValidationError) -> HTTPException:
    """FastAPI's own 422, without what came in: it may be a secret, or text that cannot be sent back."""
    problems = [
        {"type": one["type"], "loc": [_location(part) for part in one["loc"]], "msg": _plain(str(one["msg"]))}
        for one in error.errors()
    ]
    return HTTPException(422, problems)


def _location(part: Any) -> int | str:
    return part if isinstance(part, int) else cleaned(str(part))[:200]


class AdminRoute(APIRoute):
    """A route that shows jobs or changes them."""

    body_limit: int

    def get_route_handler(self) -> Handler:
        handle = super().get_route_handler()

        async def handle_in_http_words(request: Request) -> Response:
            try:
                return await handle(request)
            except RequestValidationError as error:
                raise _unfit(error) from None
            except DurableQError as error:
                answer = in_http_words(error)
                if answer is None:
                    raise
                raise answer from error

        return handle_in_http_words

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        answer = Answer(send, HEADERS)
        try:
            await super().handle(scope, at_most(self.body_limit, receive, _too_much), answer)
        except AnyHTTPException as error:  # a method that the route does not have
            if answer.has_begun:
                raise
            await _problem(error.status_code, {"message": error.detail}, error.headers)(scope, receive, answer)
        except Exception as error:
            # The server, and what tracks errors in it, hear of it as of any other; the client hears no details.
            if not answer.has_begun:
                problem = _logged("this went wrong inside of the application", error)
                await _problem(500, problem, None)(scope, receive, answer)
            raise


def _problem(status: int, detail: dict[str, str], headers: Any) -> Response:
    return JSONResponse({"detail": detail}, status, headers=None if headers is None else dict(headers))


class Answer:
    """Sends an answer, with the headers of all. ``may_differ``: those that it has itself stay."""

    def __init__(self, send: Send, headers: Mapping[str, str], *, may_differ: bool = False) -> None:
        self.has_begun = False
        self._send = send
        self._headers = headers
        self._may_differ = may_differ

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.has_begun = True
            headers = MutableHeaders(scope=message)
            for name, value in self._headers.items():
                if name not in headers or not self._may_differ:
                    headers[name] = value
        await self._send(message)


def at_most(limit: int, receive: Receive, refusal: Callable[[int], Exception]) -> Receive:
    """Stop reading a body at ``limit`` bytes: FastAPI reads it whole before it asks ``auth``."""
    received = 0

    async def receive_at_most() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > limit:
            raise refusal(limit)
        return message

    return receive_at_most


def _too_much(limit: int) -> HTTPException:
    return HTTPException(413, {"message": f"expected at most {limit:,} bytes"})
