"""Arguments and results to JSON and back, through pydantic.

Arguments are checked against the task's signature and encoded at the call, once, as one JSON object of names; the
encoded form is read back before it is accepted, so what is stored can be decoded and means the same. Nothing that
JSON would silently change gets through. Only JSON: reading a stored value never runs code that it names.
"""

import inspect
import json
import types
import typing
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any, Final, NoReturn, NotRequired

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError
from pydantic_core import CoreConfig, PydanticSerializationError, SchemaSerializer, from_json, to_json
from typing_extensions import TypedDict  # pydantic wants this one before Python 3.12

from durableq.errors import ConfigurationError, InvalidArguments, InvalidTask, PayloadTooLarge, ResultUnavailable, near
from durableq.options import CODE_OPTIONS, option_meant_by
from durableq.redaction import redacted_text
from durableq.secret_names import is_secret_name, secret_arguments

_CONFIG: Final = ConfigDict(
    extra="forbid", ser_json_bytes="base64", val_json_bytes="base64", ser_json_inf_nan="constants"
)
_RESULTS: Final = ConfigDict(val_json_bytes="base64")
_WRITING: Final = CoreConfig(ser_json_bytes="base64", ser_json_inf_nan="constants")
_POSITIONAL: Final = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_UNENCODABLE: Final = (PydanticSerializationError, UnicodeError, ValueError, TypeError, RecursionError)
_SURELY_READABLE: Final = 400
"""In so few bytes there is no integer, and no nesting, that is too large to be read back."""
_SCALARS: Final = frozenset({str, int, float, bool, type(None)})
_NOT_STORABLE: Final = "durableq:not-storable"
"""The key of the marker that stands for a result which could not be stored."""


class ArgumentsCodec:
    """Checks, encodes and decodes the arguments of one function, but for those that are ``injected`` when it runs.

    Raises `InvalidTask` when made for a function whose annotations pydantic cannot handle.
    """

    def __init__(self, function: Callable[..., Any], task_name: str, injected: frozenset[str] = frozenset()) -> None:
        self._task = task_name
        self._function_name = getattr(function, "__name__", task_name)
        self._injected = injected
        self._secret = secret_arguments(function)
        parameters = [p for name, p in inspect.signature(function).parameters.items() if name not in injected]
        self._positional = tuple(p.name for p in parameters if p.kind in _POSITIONAL)
        self._positional_only = frozenset(p.name for p in parameters if p.kind is p.POSITIONAL_ONLY)
        self._star = next((p.name for p in parameters if p.kind is p.VAR_POSITIONAL), None)
        self._double_star = next((p.name for p in parameters if p.kind is p.VAR_KEYWORD), None)
        self._names = tuple(p.name for p in parameters)
        self._is_plain = not (self._positional_only or self._star or self._double_star)
        declared = _type_hints(function, task_name)
        hints = {p.name: declared.get(p.name, Any) for p in parameters}
        self._is_simple = all(map(_is_simple, hints.values()))
        self._adapter = _adapter({p.name: _field(p, hints[p.name]) for p in parameters}, task_name)
        self._validator = self._adapter.validator
        self._loose = _loose_fields(self._adapter.core_schema)
        # Not the adapter's own: pydantic does not hand a TypedDict's configuration on to its serializer.
        self._serializer = SchemaSerializer(self._adapter.core_schema, _WRITING)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the arguments, but for those that are injected."""
        return self._names

    def encode(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], max_bytes: int) -> str:
        """Return the arguments as one JSON object of names.

        Checked in lax mode, as FastAPI checks; the validated values are what the task will get. Raises
        `InvalidArguments` naming the argument, or `PayloadTooLarge` over ``max_bytes`` of UTF-8.
        """
        return self._encoded(self._validate(self._bind(args, kwargs)), max_bytes)

    def _encoded(self, checked: dict[str, Any], max_bytes: int) -> str:
        try:
            encoded = self._serializer.to_json(checked, warnings=False)
        except _UNENCODABLE as error:
            self._name_the_unencodable(checked, error)
        if len(encoded) > max_bytes:
            raise PayloadTooLarge(
                f"{self._task}: the arguments take {len(encoded):,} bytes as JSON, the limit is {max_bytes:,}; "
                "store the data elsewhere and pass a reference, or raise max_payload_bytes",
                task=self._task,
            )
        self._check_round_trip(checked, encoded)
        return encoded.decode()

    def encode_object(self, values: Mapping[str, Any], max_bytes: int) -> str:
        """Encode arguments given as an object of names, as a person edits them. Raises as `encode`."""
        if not isinstance(values, Mapping):
            raise self._invalid("expected the arguments as one JSON object of names")
        try:
            text = to_json(dict(values))
            json.loads(text, parse_constant=_refuse_constant)
            checked = self._validator.validate_json(text)
        except ValidationError as error:
            raise self._refused(error) from None
        except _UNENCODABLE as error:
            raise self._invalid(f"the arguments cannot be written as JSON ({error})") from None
        return self._encoded(checked, max_bytes)

    def decode(self, encoded: str) -> tuple[list[Any], dict[str, Any]]:
        """Return positional and keyword arguments, rebuilt to the declared types.

        Raises `InvalidArguments` when they no longer fit the signature.
        """
        try:
            values = self._validator.validate_json(encoded)
        except ValidationError as error:
            raise self._refused(error) from None
        return ([], values) if self._is_plain else self._spread(values)

    @cached_property
    def json_schema(self) -> str | None:
        """The JSON schema of the stored arguments, as JSON; None where JSON Schema cannot say it.

        Made once: it takes pydantic milliseconds, and is asked for at every start, amid a transaction.
        """
        try:
            return json.dumps(self._adapter.json_schema())
        except PydanticUserError:
            return None

    def require_names(self, names: Iterable[str], where: str) -> None:
        """Raise `ConfigurationError` when the function has no argument of one of these names."""
        for name in names:
            if name not in self._names:
                raise ConfigurationError(
                    f"{self._task} has no argument {name!r}, named in {where}{near(name, self._names)}"
                )

    def _bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        values: dict[str, Any] = dict(zip(self._positional, args, strict=False))
        if len(args) > len(self._positional):
            if self._star is None:
                raise self._invalid(f"expected at most {len(self._positional)} positional arguments, got {len(args)}")
            values[self._star] = args[len(self._positional) :]
        if not kwargs:
            return values
        extra: dict[str, Any] = {}
        for name, value in kwargs.items():
            if name in self._names and name not in (self._star, self._double_star, *self._positional_only):
                if name in values:
                    raise self._invalid(f"argument {name!r} was given twice", name)
                values[name] = value
            elif name in self._injected:
                raise self._invalid(f"argument {name!r} is injected when the task runs; leave it out", name)
            elif self._double_star is not None:
                extra[name] = value
            elif name in self._positional_only:
                raise self._invalid(f"argument {name!r} is positional-only", name)
            else:
                raise self._invalid(f"unknown argument {name!r}{self._what_was_meant(name)}", name)
        if extra and self._double_star is not None:
            values[self._double_star] = extra
        return values

    def _what_was_meant(self, name: str) -> str:
        """Guess at an argument that the function does not have: it may be an option of the task, in the wrong place."""
        guess = near(name, self._names)
        option = option_meant_by(name)
        if option is None:
            return guess
        function = self._function_name
        way = (
            f"@dq.task({option}=...)" if option in CODE_OPTIONS else f"{function}.options({option}=...), with @dq.task"
        )
        return f"{guess + ' If' if guess else '; if'} the option is meant: {way} above {function}"

    def _spread(self, values: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
        args: list[Any] = []
        if self._star in values or self._positional_only & values.keys():
            for name in self._positional:
                if name not in values:
                    break  # it and what follows take their defaults, or stand in values by keyword
                args.append(values.pop(name))
        if self._star is not None:
            args.extend(values.pop(self._star, ()))
        if self._double_star is not None:
            values.update(values.pop(self._double_star, {}))
        return args, values

    def _validate(self, values: dict[str, Any]) -> dict[str, Any]:
        try:
            checked: dict[str, Any] = self._validator.validate_python(values)
        except ValidationError as error:
            raise self._refused(error) from None
        return checked

    def _check_round_trip(self, checked: dict[str, Any], encoded: bytes) -> None:
        if self._is_simple and len(encoded) < _SURELY_READABLE and self._is_plain_json(checked, encoded):
            return  # what JSON's own types hold comes back as it is; no need to try
        try:
            _refuse_constants_in(encoded)
            again = self._validator.validate_json(encoded)
        except (ValidationError, ValueError, RecursionError) as error:
            self._name_the_unencodable(checked, error)
        for name, value in checked.items():
            is_same = _unchanged if name in self._loose else _means_the_same
            if not is_same(value, again[name]):
                raise self._invalid(
                    f"argument {name!r} would not come back from JSON as it is: {self._quoted([name], value)}; "
                    "annotate the parameter with its type, or pass plain JSON values "
                    "(dict with text keys, list, str, int, float, bool, None)",
                    name,
                )

    def _is_plain_json(self, checked: Mapping[str, Any], encoded: bytes) -> bool:
        if b"NaN" in encoded or b"Infinity" in encoded:
            return False
        return all(_is_json(checked[name]) for name in self._loose if name in checked)

    def _name_the_unencodable(self, checked: Mapping[str, Any], error: Exception) -> NoReturn:
        """Find the argument that is to blame by trying them one at a time, and raise its error."""
        for name, value in checked.items():
            try:
                encoded = self._serializer.to_json({name: value}, warnings=False)
                _refuse_constants_in(encoded)  # in words that name it; the next line would only count columns
                from_json(encoded, allow_inf_nan=False)
            except _UNENCODABLE as cause:
                raise self._invalid(
                    f"argument {name!r} cannot be stored as JSON: {self._why([name], cause)}", name
                ) from None
        if isinstance(error, ValidationError):  # it was written, but does not read back
            first = error.errors()[0]
            blamed = str(first["loc"][0]) if first["loc"] else None
            raise self._invalid(f"argument {blamed!r} would not come back from JSON: {first['msg']}", blamed)
        raise self._invalid(f"the arguments cannot be stored as JSON: {_short(error)}")

    def _refused(self, error: ValidationError) -> InvalidArguments:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else None
        where = ".".join(str(part) for part in first["loc"])
        if first["type"] == "missing" and len(first["loc"]) == 1:
            return self._invalid(f"argument {name!r} is missing", name)
        if first["type"] == "extra_forbidden" and len(first["loc"]) == 1:
            return self._invalid(f"unknown argument {name!r}{near(name or '', self._names)}", name)
        message = first["msg"][0].lower() + first["msg"][1:]
        return self._invalid(f"argument {where!r}: {message}, got {self._quoted(first['loc'], first['input'])}", name)

    def _quoted(self, place: Sequence[Any], value: object) -> str:
        return _quoted(place, value, is_secret=bool(self._secret.intersection(place[:1])))

    def _why(self, place: Sequence[Any], cause: Exception) -> str:
        hidden = self._secret.intersection(place) or any(is_secret_name(str(part)) for part in place)
        return type(cause).__name__ if hidden else _short(cause)

    def _invalid(self, message: str, argument: str | None = None) -> InvalidArguments:
        return InvalidArguments(f"{self._task}: {message}", task=self._task, argument=argument)


class ResultCodec:
    """Rebuilds stored return values of one function to the type it declares."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._function = function

    @cached_property
    def _adapter(self) -> TypeAdapter[Any] | None:
        try:
            hint: Any = typing.get_type_hints(self._function, include_extras=True).get("return", Any)
            # In a list, for pydantic takes no configuration for a model or a dataclass alone.
            return TypeAdapter(list[hint], config=_RESULTS)
        except Exception:  # what its author did not mean for pydantic comes back as JSON has it
            return None

    def decode(self, result_json: str | None) -> Any:
        """Return the value. Raises `ResultUnavailable` for one that was not stored, or is not of the type."""
        if result_json is None:
            return None
        try:
            value = from_json(result_json)
        except ValueError as error:
            raise ResultUnavailable(f"the stored result cannot be read: {_short(error)}") from None
        if isinstance(value, dict) and value.keys() == {_NOT_STORABLE}:
            raise ResultUnavailable(f"the task succeeded, but its result was not stored: {value[_NOT_STORABLE]}")
        if self._adapter is None:
            return value
        try:
            return self._adapter.validate_json(f"[{result_json}]")[0]
        except ValidationError as error:
            raise ResultUnavailable(
                f"the stored result is not what the task declares to return: {_in_plain_words(error)}"
            ) from None


def _in_plain_words(error: ValidationError) -> str:
    """What is wrong with a result first of all, and where in it; the list that stands around it is only ours."""
    first = error.errors()[0]
    place = first["loc"][1:]
    where = f"{'.'.join(map(str, place))!r}: " if place else ""
    return f"{where}{first['msg'][0].lower()}{first['msg'][1:]}, got {_quoted(place, first['input'])}"


def encode_result(value: Any, max_bytes: int) -> tuple[str | None, str | None]:
    """Return a task's return value as JSON, and why it could not be kept (None when it could).

    A value that JSON cannot carry, or one over ``max_bytes``, is replaced by a marker: the task has succeeded
    all the same, and is not run again for it.
    """
    if value is None:
        return None, None
    try:
        encoded = to_json(value, bytes_mode="base64", inf_nan_mode="constants")
        _refuse_constants_in(encoded)
        if len(encoded) >= _SURELY_READABLE:
            from_json(b"[%b]" % encoded)  # as it is read: more deeply nested than that, or a longer integer, is no use
    except Exception as error:  # whatever a user's object does while it is written
        reason = f"a {type(value).__name__} cannot be stored as JSON: {_short(error)}"
    else:
        if len(encoded) <= max_bytes:
            return encoded.decode(), None
        reason = f"the result takes {len(encoded):,} bytes as JSON, the limit is {max_bytes:,}"
    return json.dumps({_NOT_STORABLE: reason}), reason


def utf8_length(text: str) -> int:
    """Return how many bytes a text takes, mostly without encoding it."""
    return len(text) if text.isascii() else len(text.encode())


def checksum(args_json: str) -> int:
    """Return the CRC-32 of stored arguments. It finds damage, not malice."""
    return zlib.crc32(args_json.encode())


def _type_hints(function: Callable[..., Any], task_name: str) -> dict[str, Any]:
    try:
        return typing.get_type_hints(function, include_extras=True)
    except Exception as error:
        raise InvalidTask(
            f"{task_name}: its annotations cannot be resolved ({error}); "
            "import the names they use at module level, not under TYPE_CHECKING"
        ) from error


def _field(parameter: inspect.Parameter, hint: Any) -> Any:
    if parameter.kind is parameter.VAR_POSITIONAL:
        return NotRequired[list[hint]]
    if parameter.kind is parameter.VAR_KEYWORD:
        return NotRequired[dict[str, hint]]
    return hint if parameter.default is parameter.empty else NotRequired[hint]


def _adapter(fields: dict[str, Any], task_name: str) -> TypeAdapter[Any]:
    make: Any = TypedDict  # type checkers want its fields spelt out; these are known at run time only
    arguments = make("Arguments", fields)
    arguments.__pydantic_config__ = _CONFIG
    try:
        return TypeAdapter(arguments)
    except Exception as error:
        raise InvalidTask(f"{task_name}: pydantic cannot build a schema for its parameters: {error}") from error


def _loose_fields(schema: Any) -> frozenset[str]:
    """The arguments that hold, anywhere inside, values that are encoded as whatever they happen to be."""
    definitions = schema.get("definitions", [])
    fields = (schema["schema"] if schema["type"] == "definitions" else schema)["fields"]
    loose_definitions = any(map(_has_any, definitions))
    return frozenset(
        name
        for name, field in fields.items()
        if _has_any(field) or (loose_definitions and "definition-ref" in repr(field))
    )


def _has_any(schema: Any) -> bool:
    if isinstance(schema, dict):
        return schema.get("type") == "any" or any(map(_has_any, schema.values()))
    return isinstance(schema, list | tuple) and any(map(_has_any, schema))


def _is_simple(hint: Any) -> bool:
    """Whether every value of this annotation, once validated, is either of JSON's own types or found by `_is_json`."""
    if hint in (str, int, float, bool, None, type(None), Any, dict, list, inspect.Parameter.empty):
        return True
    if typing.get_origin(hint) in (dict, list, typing.Union, types.UnionType):
        return all(_is_simple(part) for part in typing.get_args(hint))
    return False


def _is_json(value: Any) -> bool:
    """Whether a value is made of nothing but JSON's own types. (A loop, no generator: every add comes by here.)"""
    kind = type(value)
    if kind in _SCALARS:
        return True
    if kind is dict:
        for key, part in value.items():
            if type(key) is not str or not (type(part) in _SCALARS or _is_json(part)):
                return False
        return True
    return kind is list and all(map(_is_json, value))


def _unchanged(before: Any, after: Any) -> bool:
    """Whether a value came back from JSON with the same types and the same content."""
    if type(before) is not type(after):
        return False
    if isinstance(before, dict):
        return before.keys() == after.keys() and all(_unchanged(before[key], after[key]) for key in before)
    if isinstance(before, list | tuple):
        return len(before) == len(after) and all(map(_unchanged, before, after))
    return bool(before == after)


def _means_the_same(before: Any, after: Any) -> bool:
    """Whether a value of a declared type came back as it was; a sequence may be a list where it was a tuple."""
    if isinstance(before, dict) and isinstance(after, dict):
        return before.keys() == after.keys() and all(_means_the_same(before[key], after[key]) for key in before)
    if isinstance(before, list | tuple) and isinstance(after, list | tuple):
        return len(before) == len(after) and all(map(_means_the_same, before, after))
    has_no_equality = getattr(type(before), "__eq__", None) is getattr(object, "__eq__", None)
    return has_no_equality or bool(before == after)


def _refuse_constants_in(encoded: bytes) -> None:
    if b"NaN" in encoded or b"Infinity" in encoded:  # it may be a text that says so
        json.loads(encoded, parse_constant=_refuse_constant)


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON, which has neither NaN nor infinity; use None or a text in its place")


def _quoted(place: Sequence[Any], value: object, *, is_secret: bool = False) -> str:
    """Show a value in an error, unless it is secret: errors are logged, and sent to clients."""
    if is_secret or any(is_secret_name(str(part)) for part in place):
        return f"a value that is not shown ({type(value).__name__})"
    return redacted_text(_short(value))


def _short(value: object) -> str:
    """Show a value in an error: its type, and not more of it than fits a line."""
    if isinstance(value, Exception):
        return _cut(_text(value, str))
    return f"{_cut(_text(value, repr))} ({type(value).__name__})"


def _text(value: object, show: Callable[[object], str]) -> str:
    try:
        return show(value)
    except Exception:
        return f"<{type(value).__name__}>"


def _cut(text: str) -> str:
    return text if len(text) <= 120 else text[:117] + "..."
