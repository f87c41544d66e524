"""``INJECTED``: the default of a parameter that durableq gives to the task."""

from typing import Any, Final, NoReturn

_OPERATIONS: Final = (
    "call await bool len iter next aiter anext contains getitem setitem delitem setattr delattr enter exit aenter "
    "aexit lt le gt ge add radd sub rsub mul rmul truediv rtruediv floordiv rfloordiv mod rmod or ror and rand neg int "
    "float index str format fspath"
)


class _Injected:
    """Stands where a value will be injected; to use it is a mistake, which it explains."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "INJECTED"

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__") and name.endswith("__"):
            raise AttributeError(name)  # not a use: somebody asks what kind of object this is
        _refuse_use()


def _refuse_use(*_: object, **__: object) -> NoReturn:
    raise TypeError("this parameter is injected by durableq; pass it yourself when you call the function directly")


for _operation in _OPERATIONS.split():
    setattr(_Injected, f"__{_operation}__", _refuse_use)

INJECTED: Any = _Injected()
"""The default of an injected parameter: ``async def send(to: str, *, db: Db = INJECTED)``."""
