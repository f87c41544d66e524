"""The files that pages load: scripts, styles, and what they stand on. Known by name at import; nothing else is served.

They hold no secrets and are given to anybody. Their address changes with their content, so browsers keep them.
"""

import hashlib
from importlib.resources import files
from typing import Any, Final, NamedTuple

from fastapi import APIRouter, HTTPException
from starlette.responses import Response

_TYPES: Final = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}


class Asset(NamedTuple):
    """A file as it is served."""

    content: bytes
    media_type: str


def _read() -> dict[str, Asset]:
    static = files("durableq.dashboard") / "static"
    found = [*static.iterdir(), *(static / "vendor").iterdir()]
    return {
        file.name: Asset(file.read_bytes(), _TYPES[suffix])
        for file in found
        for suffix in _TYPES
        if file.is_file() and file.name.endswith(suffix)
    }


ASSETS: Final = _read()
VERSION: Final = hashlib.sha256(
    b"".join(name.encode() + asset.content for name, asset in sorted(ASSETS.items()))
).hexdigest()[:12]


def address(name: str) -> str:
    """Return where a file lies below the dashboard. Raises `KeyError` for one that there is not."""
    if name not in ASSETS:
        raise KeyError(f"no static file is named {name!r}; there are {', '.join(sorted(ASSETS))}")
    return f"static/{VERSION}/{name}"


def add(router: APIRouter, site: Any) -> None:
    @router.get("/static/{version}/{name}")
    async def static_file(version: str, name: str) -> Response:
        asset = ASSETS.get(name)
        if asset is None:
            raise HTTPException(404)
        # An address of another version is that of a page made before or after an update: not to be kept.
        caching = "public, max-age=31536000, immutable" if version == VERSION else "no-store"
        return Response(asset.content, media_type=asset.media_type, headers={"Cache-Control": caching})
