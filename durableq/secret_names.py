"""What is secret: names that say what stands under them, and the arguments that a task declares `Secret`."""

import dataclasses
import functools
import re
import typing
import weakref
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, cast

from pydantic import BaseModel, GetCoreSchemaHandler, GetJsonSchemaHandler, SecretBytes, SecretStr
from pydantic_core import CoreSchema, core_schema
from typing_extensions import is_typeddict

RESULT: Final = "return"
"""The name of the return value among those of arguments; no argument can have it."""

_CERTAIN: Final = (
    "password", "passwd", "passphrase", "passcode", "secret", "token", "authorization", "credential", "cookie",
    "apikey", "accesskey", "privatekey", "signingkey", "encryptionkey", "sessionid", "sessionkey", "creditcard",
    "cardnumber", "csrf", "xsrf", "connectionstring",
)  # fmt: skip
"""Hide a name that has one of these anywhere, whatever its case and separators: ``X-Api-Key``, ``dbPasswordOld``."""
_WORDS: Final = frozenset(
    {"pwd", "pw", "auth", "session", "sid", "bearer", "jwt", "otp", "totp", "cvv", "cvc", "ssn", "pin"}
)
"""Hide a name that has one of these as a whole word only: ``author``, ``pinned`` and ``possession`` are no secrets."""
_HARMLESS: Final = ("secretar", "tokeniz", "tokenis")
_MEASURES: Final = frozenset({"max", "min", "count", "length", "limit", "ttl", "expires", "expiry", "policy", "type"})
"""Words of names that tell of a secret, and are none: ``max_tokens``, ``password_min_length``."""

_NAME_PARTS: Final = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")
_NO_NAME_PART: Final = bytes(code for code in range(128) if not chr(code).isalnum())


class Secret:
    """Declares an argument, or the return value, of a task secret: ``password: Annotated[str, Secret]``.

    It is stored as it is (protect the file), given to the task as it is, and shown nowhere. With pydantic's own
    types, ``Annotated[SecretStr, Secret]``, the task gets a `SecretStr`, whose text is what is stored.
    """

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        schema = handler(source)
        if not (isinstance(source, type) and issubclass(source, SecretStr | SecretBytes)):
            return schema
        serialization = core_schema.plain_serializer_function_ser_schema(_revealed, when_used="json")
        return cast("CoreSchema", {**schema, "serialization": serialization})

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {**handler(schema), "format": "password", "writeOnly": True}


def _revealed(secret: Any) -> Any:
    return secret.get_secret_value()


# -- which names are secret ----------------------------------------------------------------------------------

_also: Final[set[str]] = set()
_known: Final[weakref.WeakKeyDictionary[Callable[..., Any], frozenset[str]]] = weakref.WeakKeyDictionary()


def also_redact(names: Iterable[str]) -> None:
    """Hide these names too, in this process from now on, whatever their case and separators.

    For all queues of the process: its log lines are common to them, and what one calls secret, none should show.
    """
    _also.update(_joined(name) for name in names)
    is_secret_name.cache_clear()


@functools.lru_cache(maxsize=4_096)
def is_secret_name(name: str) -> bool:
    """Whether what stands under this name is to be hidden."""
    words = [part.lower() for part in _NAME_PARTS.findall(name[:200])]
    joined = "".join(words)
    if joined in _also:
        return True
    if not _MEASURES.isdisjoint(words) or any(word in joined for word in _HARMLESS):
        return False
    return any(word in joined for word in _CERTAIN) or not _WORDS.isdisjoint(words)


def may_name_secrets(args_json: str) -> bool:
    """Whether arguments, as JSON, may hold a name that says secret. Fast: yes when in doubt, no only when sure."""
    if "\\" in args_json:  # a name may be written otherwise than it is
        return True
    text = args_json.encode("ascii", "ignore").lower().translate(None, _NO_NAME_PART)
    return any(word.encode() in text for word in (*_CERTAIN, *_WORDS, *_also.copy()))


def _joined(name: str) -> str:
    return "".join(part.lower() for part in _NAME_PARTS.findall(name))


def secret_arguments(function: Callable[..., Any]) -> frozenset[str]:
    """Return the names of the arguments that a task's signature declares secret, `RESULT` for its return value.

    Those marked with `Secret`, and those that hold pydantic's secret types, anywhere inside.
    Remembered as long as the function lives.
    """
    try:
        known = _known.get(function)
    except TypeError:  # not hashable; it is asked every time
        return _secret_arguments(function)
    if known is None:
        known = _known[function] = _secret_arguments(function)
    return known


def _secret_arguments(function: Callable[..., Any]) -> frozenset[str]:
    try:
        hints = typing.get_type_hints(function, include_extras=True)
    except Exception:  # the registry refuses such a function, in words of its own
        return frozenset()
    return frozenset(name for name, hint in hints.items() if _is_secret(hint, set()))


def _is_secret(hint: Any, seen: set[int]) -> bool:
    if hint is Secret or isinstance(hint, Secret):
        return True
    if id(hint) in seen:
        return False
    seen.add(id(hint))
    # Those of `Annotated` are its metadata too; the last is what a `type` statement names.
    parts: Sequence[Any] = (*typing.get_args(hint), getattr(hint, "__value__", None))
    if isinstance(hint, type):
        if issubclass(hint, SecretStr | SecretBytes):
            return True
        if issubclass(hint, BaseModel):
            parts = [*parts, *_of_model(hint)]
        elif dataclasses.is_dataclass(hint) or is_typeddict(hint) or hasattr(hint, "_fields"):
            parts = [*parts, *_hints_of(hint).values()]
    return any(_is_secret(part, seen) for part in parts)


def _of_model(model: type[BaseModel]) -> Iterable[Any]:
    for field in model.model_fields.values():
        yield field.annotation
        yield from field.metadata


def _hints_of(kind: type) -> dict[str, Any]:
    try:
        return typing.get_type_hints(kind, include_extras=True)
    except Exception:  # what pydantic can make of it, it makes without this
        return {}
