"""Templates to HTML. Everything is escaped, and a name that a template misspells is an error, not an empty place."""

import asyncio
import threading
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any, Final

from starlette.responses import HTMLResponse
from starlette.types import Receive, Scope, Send

from durableq.dashboard.assets import address
from durableq.errors import ConfigurationError
from durableq.reports import Count
from durableq.version import __version__

try:
    import jinja2
except ImportError as missing:
    raise ConfigurationError("the dashboard needs Jinja2: pip install 'durableq[dashboard]'") from missing

SLICE_SECONDS: Final = 0.000_5
REST_SECONDS: Final = 0.001
_NOTHING: Final = "\N{EN DASH}"
_UNITS: Final = ("B", "KiB", "MiB", "GiB", "TiB")


class RenderedPage(HTMLResponse):
    """A page, which is rendered when it is sent: in slices, so that the application goes on meanwhile.

    A long page takes ten milliseconds of the interpreter that also adds and runs jobs. After each slice it rests
    longer than what else waits for its turn is likely to need, several turns of the event loop; of several pages at a
    time each rests for all, so that together they take no more.
    """

    def __init__(
        self, template: str, values: Mapping[str, Any], status: int, headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(b"", status, headers)
        self._template = template
        self._values = values

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not _compile_all.cache_info().currsize:
            await asyncio.to_thread(_compile_all)
        pieces = _environment().get_template(self._template).generate(self._values)
        self.body = (await _in_slices(pieces)).encode()
        self.headers["Content-Length"] = str(len(self.body))
        await super().__call__(scope, receive, send)


_under_way: Final[list[Iterator[str]]] = []


async def _in_slices(pieces: Iterator[str]) -> str:
    text = []
    _under_way.append(pieces)
    try:
        end = time.perf_counter() + SLICE_SECONDS
        for piece in pieces:
            text.append(piece)
            if time.perf_counter() >= end:
                await asyncio.sleep(REST_SECONDS * len(_under_way))
                end = time.perf_counter() + SLICE_SECONDS
    finally:
        _under_way.remove(pieces)
    return "".join(text)


_compiling: Final = threading.Lock()


@cache
def _compile_all() -> None:
    """Compile all templates, once: 30 to 40 ms each, which must not be spent on the event loop."""
    with _compiling:  # whoever comes meanwhile finds them compiled
        environment = _environment()
        for name in environment.list_templates():
            environment.get_template(name)


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("durableq.dashboard"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    environment.filters |= {
        "iso": iso,
        "utc": utc,
        "duration": duration,
        "number": number,
        "bytes": in_bytes,
        "share": share,
        "rate": rate,
    }
    environment.globals |= {"asset": address, "version": __version__}
    return environment


def iso(moment: datetime) -> str:
    """A moment for the ``datetime`` attribute."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def utc(moment: datetime) -> str:
    """A moment for people without JavaScript."""
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def duration(value: timedelta | float | None) -> str:
    """A length of time in two digits or two units: ``3.1 ms``, ``42 s``, ``3 min 20 s``, ``2 d 4 h``.

    Clocks that were set back make no negative one.
    """
    if value is None:
        return _NOTHING
    seconds = max(value.total_seconds() if isinstance(value, timedelta) else value, 0.0)
    if seconds < 0.9995:
        milliseconds = seconds * 1000
        text = f"{milliseconds:.1f} ms" if milliseconds < 9.95 else f"{milliseconds:.0f} ms"
        return text.replace(".0 ms", " ms")
    if seconds < 9.95:
        return f"{seconds:.1f} s".replace(".0 s", " s")
    whole = round(seconds)
    for unit, length, part, share in (("d", 86_400, "h", 3_600), ("h", 3_600, "min", 60), ("min", 60, "s", 1)):
        if whole >= length:
            rest = whole % length // share
            return f"{whole // length:,} {unit}" + (f" {rest} {part}" if rest else "")
    return f"{whole} s"


def number(value: float | Count | None) -> str:
    """A number with separators; one that was not counted to its end as ``10,000+``."""
    if value is None:
        return _NOTHING
    if isinstance(value, Count):
        return f"{value.number:,}" + ("" if value.is_all else "+")
    return f"{value:,}"


def rate(value: float) -> str:
    """A number of things in a time: with a digit behind the point as long as it is small."""
    return f"{value:,.1f}".replace(".0", "") if value < 9.95 else f"{value:,.0f}"


def in_bytes(value: int | None) -> str:
    """A size: ``0 B``, ``1.5 MiB``."""
    if value is None:
        return _NOTHING
    size = float(value)
    for unit in _UNITS:
        if size < 1024 or unit == _UNITS[-1]:
            break
        size /= 1024
    return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"


def share(value: float | None) -> str:
    """A share in percent: never ``100 %`` as long as something is missing, never ``0 %`` as long as there is some."""
    if value is None:
        return _NOTHING
    percent = value * 100
    if 0 < percent < 0.1:
        return "< 0.1 %"
    if 99.9 < percent < 100:
        return "> 99.9 %"
    return f"{percent:.1f} %".replace(".0 %", " %")
