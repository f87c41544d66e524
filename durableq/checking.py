"""Arguments checked by the JSON schema that is stored of a task: for apps that do not have its code."""

import json
from collections.abc import Mapping
from typing import Any

from pydantic_core import PydanticSerializationError, to_json

from durableq.errors import ConfigurationError, InvalidArguments, PayloadTooLarge


def encode_by_schema(task: str, schema: str, values: Mapping[str, Any], max_bytes: int) -> str:
    """Encode arguments, by name, of a task that is not known here. Needs `jsonschema` (extra ``dashboard``).

    Raises `InvalidArguments`, which names the argument, and `ConfigurationError`.
    """
    try:
        from jsonschema import Draft202012Validator
    except ImportError:
        raise ConfigurationError(
            f"task {task!r} is not known here; to check its arguments by what is stored of it, install "
            "'durableq[dashboard]'"
        ) from None
    try:
        encoded = to_json(dict(values), inf_nan_mode="constants")
        given = json.loads(encoded, parse_constant=_refuse_constant)
    except (PydanticSerializationError, ValueError, RecursionError) as error:
        raise InvalidArguments(f"{task}: the arguments cannot be written as JSON ({error})", task=task) from None
    errors = sorted(
        Draft202012Validator(json.loads(schema)).iter_errors(given), key=lambda one: list(map(str, one.path))
    )
    if errors:
        argument = str(errors[0].path[0]) if errors[0].path else None
        where = f"argument {argument!r}" if argument else "the arguments"
        raise InvalidArguments(f"{task}: {where}: {errors[0].message}", task=task, argument=argument)
    if len(encoded) > max_bytes:
        raise PayloadTooLarge(
            f"{task}: the arguments take {len(encoded):,} bytes as JSON, the limit is {max_bytes:,}", task=task
        )
    return encoded.decode()


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
