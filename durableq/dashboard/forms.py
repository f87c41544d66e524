"""What a person sends by pressing a button: fields of a form, believed only when they come from one of our own pages.

A page carries a random token twice, in a cookie and in a hidden field of each form; another site can read neither.
Nothing is kept on the server for it, so several processes understand each other's forms.
"""

import hashlib
import secrets
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qsl

from fastapi import Request

from durableq.dashboard.refusals import Refused

FIELD: Final = "csrf"
"""The name of the hidden field."""
MOST_FIELDS: Final = 2_000
_MEDIA_TYPE: Final = "application/x-www-form-urlencoded"


@dataclass(frozen=True, slots=True)
class Form:
    """The fields of a form, in their order; a name may occur several times, as ticked boxes do."""

    fields: tuple[tuple[str, str], ...]

    def text(self, name: str, default: str = "") -> str:
        """Return the first value of a field, or ``default``."""
        return next((value for field, value in self.fields if field == name), default)

    def texts(self, name: str) -> list[str]:
        """Return all values of a field."""
        return [value for field, value in self.fields if field == name]

    def number(self, name: str, default: int = 0) -> int:
        """Return a whole number, ``default`` when the field is missing. Raises `Refused` for what is none."""
        text = self.text(name).strip().replace(",", "").replace("\u202f", "")
        if not text:
            return default
        if not (text.isascii() and text.isdigit() and len(text) <= 18):
            raise Refused(400, "That is not a number", f"Expected a whole number in the field “{name}”.")
        return int(text)


async def read_form(request: Request) -> Form:
    """Read and check a form. Raises `Refused` for one that is none, is too large, or is not from our own page."""
    media_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != _MEDIA_TYPE:
        raise Refused(415, "This is not a form", f"Expected the header “Content-Type: {_MEDIA_TYPE}”.")
    try:
        text = (await request.body()).decode()
        fields = parse_qsl(text, keep_blank_values=True, max_num_fields=MOST_FIELDS, errors="strict")
    except ValueError:  # also of UnicodeDecodeError
        raise Refused(
            400, "This form cannot be read", f"Expected at most {MOST_FIELDS:,} fields of UTF-8 text. Nothing was done."
        ) from None
    return Form(tuple(fields))


def check_token(form: Form, cookie: str | None) -> None:
    """Refuse a form that does not carry the token of this browser."""
    sent = form.text(FIELD)
    if not cookie or not secrets.compare_digest(sent.encode(), cookie.encode()):
        raise Refused(
            403,
            "This form is out of date",
            "Nothing was done. Go back, reload the page and try again; the page needs cookies to be on.",
        )


def new_token() -> str:
    return secrets.token_urlsafe(24)


def is_token(text: str | None) -> bool:
    """Whether a cookie may be one of ours: what somebody planted there must not end up in a page."""
    return (
        text is not None and len(text) == 32 and text.replace("-", "a").replace("_", "a").isalnum() and text.isascii()
    )


def cookie_name(base: str) -> str:
    """The name of the cookie of the dashboard at a path: two on one host, one below the other, keep apart."""
    return f"durableq_form_{hashlib.sha256(base.encode()).hexdigest()[:8]}"
