"""What operators send back, and what of it is stored: without an application."""

from typing import Any

import pytest

from durableq.errors import InvalidArguments
from durableq.fastapi.showing import _is_envelope, as_stored
from durableq.models import Job, JobState
from durableq.redaction import Redactor
from tests.fastapi.test_admin_details import job


def nested(levels: int) -> Any:
    value: Any = []
    for _ in range(levels - 1):
        value = [value]
    return value


def test_edited_arguments_may_be_as_deep_as_any_can_be() -> None:
    of: Job[Any] = job(state=JobState.DEAD, args_json='{"a": 1}')
    assert as_stored({"a": nested(99)}, of, Redactor()) == {"a": nested(99)}
    with pytest.raises(InvalidArguments, match="at most 100 levels deep, argument 'a' is deeper"):
        as_stored({"a": nested(100)}, of, Redactor())


@pytest.mark.parametrize(
    ("arguments", "is_one"),
    [
        ({"$encrypted": {"key": "2026"}}, True),
        ('{"$encrypted":{"key":"2026"', True),
        ({"email": "a@b"}, False),
        ({"email": "a@b", "$encrypted": 1}, False),
        ({}, False),
        ("damaged", False),
        (None, False),
        (7, False),
    ],
)
def test_encrypted_arguments_are_told_from_others(arguments: Any, is_one: bool) -> None:
    assert _is_envelope(arguments) is is_one
