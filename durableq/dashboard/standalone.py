"""The dashboard by itself, beside an application or without one: ``python -m durableq dashboard --db app.db``.

It looks at a file that is there, and makes none. Only this machine reaches it unless it is told otherwise, and only
the browser that opens the printed address: what is secret in it works once. It runs no jobs.
"""

import getpass
import ipaddress
import secrets
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

from fastapi import Depends, FastAPI, Request
from starlette.responses import RedirectResponse, Response

from durableq.dashboard import dashboard
from durableq.dashboard.pages import RenderedPage
from durableq.dashboard.refusals import Refused
from durableq.dashboard.routes import PAGE_HEADERS
from durableq.errors import ConfigurationError
from durableq.fastapi.principals import Principal, Role
from durableq.queue import DurableQ
from durableq.storage import require_queue

PORT: Final = 8765
_GRACE_SECONDS: Final = 2


def serve(
    database: str | Path,
    *,
    host: str = "127.0.0.1",
    port: int = PORT,
    role: Role = "admin",
    allow_network: bool = False,
    tell: Callable[[str], None],
) -> None:
    """Serve the dashboard of a database until interrupted. ``tell`` is given the address to open.

    ``role`` is what whoever opens it may do. ``port`` 0 takes a free one. A ``host`` that other machines reach needs
    ``allow_network``: it is plain HTTP. Raises `ConfigurationError` for a file that is not there, a port that is
    taken, and without uvicorn.
    """
    require_queue(Path(database))
    check_host(host, allow_network)
    run = _server()
    with _listening(host, port) as listener:
        app, token = application(DurableQ(database, worker=False), role, listener.getsockname()[1])
        tell(address(listener, token))
        run(app, listener)


def application(dq: DurableQ, role: Role, port: int) -> tuple[FastAPI, str]:
    """Return an application with the dashboard, and the secret that opens it once."""
    door = _Door(role, f"durableq_session_{port}")
    app = FastAPI(lifespan=dq.lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    app.get("/enter")(door.enter)
    app.include_router(dashboard(dq, auth=Depends(door.who)))
    return app, door.token


def check_host(host: str, allow_network: bool) -> None:
    """Raise `ConfigurationError` for a host that other machines reach, unless that is wanted."""
    if not allow_network and not _is_loopback(host):
        raise ConfigurationError(
            f"host {host!r} can be reached from other machines, over HTTP that anybody on the way can read; allow the "
            "network explicitly, or keep 127.0.0.1 and come through a tunnel (ssh -L)"
        )


def address(listener: socket.socket, token: str) -> str:
    """Return where a browser finds it, with the secret."""
    host, port = listener.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}/enter?{urlencode({'token': token})}"


class _Door:
    """Lets in the browser that comes with the token first, and knows it again by a cookie."""

    def __init__(self, role: Role, cookie: str) -> None:
        self.token = secrets.token_urlsafe(32)
        self._session = secrets.token_urlsafe(32)
        self._cookie = cookie
        self._is_used = False
        self._principal = Principal(_user(), role)

    async def enter(self, request: Request, token: str = "") -> Response:
        is_known = self._knows(request)
        if not is_known and (self._is_used or not _are_equal(token, self.token)):
            refused = Refused(
                401,
                "This address does not open it",
                "It was used already, or it is not complete. Start the command again for a new one.",
            )
            return RenderedPage("bare.html", {"base": "", "error": refused}, 401, PAGE_HEADERS)
        self._is_used = True
        response = RedirectResponse("/", 303, headers=PAGE_HEADERS)
        # Not "strict": the address may be opened from a page, that of a terminal in the browser.
        response.set_cookie(self._cookie, self._session, httponly=True, samesite="lax")
        return response

    async def who(self, request: Request) -> Principal:
        if not self._knows(request):
            raise Refused(
                401,
                "Please open the printed address",
                "The command that serves this page has printed one that lets you in.",
            )
        return self._principal

    def _knows(self, request: Request) -> bool:
        return _are_equal(request.cookies.get(self._cookie, ""), self._session)


def _are_equal(given: str, secret: str) -> bool:
    return secrets.compare_digest(given.encode(), secret.encode())


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container may run as a number without a name
        return "admin"


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _listening(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise ConfigurationError(
            f"cannot listen on {host} port {port}: {error.strerror}; give another port, 0 for any that is free"
        ) from error


def _server() -> Callable[[FastAPI, socket.socket], None]:
    try:
        import uvicorn
    except ImportError as missing:
        raise ConfigurationError("serving the dashboard by itself needs uvicorn: pip install uvicorn") from missing

    def run(app: Any, listener: socket.socket) -> None:
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,  # it would show the token
            server_header=False,
            timeout_graceful_shutdown=_GRACE_SECONDS,
            lifespan="on",
        )
        uvicorn.Server(config).run(sockets=[listener])

    return run
