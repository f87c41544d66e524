"""What operators see and send back, and what of it is stored: without an application."""

from pathlib import Path
from typing import Annotated, Any

import pytest

from durableq import DurableQ, Secret
from durableq.errors import InvalidArguments
from durableq.fastapi.showing import Secrets, _is_envelope, as_stored, secrets_of
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


ENVELOPE = {"$encrypted": {"key": "2026", "nonce": "", "data": ""}}
SEALED = '{"$encrypted":{"key":"2026","nonce":"","data":""}}'
SCHEMA = '{"properties": {"email": {"type": "string"}}}'


@pytest.mark.parametrize(
    ("args_json", "other", "knows_all"),
    [('{"email":"a"}', {"email": "b"}, True), (SEALED, {"email": "b"}, False), ('{"email":"a"}', ENVELOPE, False)],
)
@pytest.mark.parametrize("schema", [SCHEMA, None, "the app has the code"])
def test_nothing_that_a_job_said_is_shown_while_some_of_its_arguments_are_encrypted(
    tmp_path: Path, args_json: str, other: Any, knows_all: bool, schema: str | None
) -> None:
    dq = DurableQ(tmp_path / "app.db")
    if schema == "the app has the code":
        dq.task(name="t")(elsewhere)
    secrets = Secrets(dq, {"t": schema})
    assert secrets.redactor(job(args_json=args_json), other).knows_all is knows_all


async def test_what_is_secret_of_a_task_without_code_here_says_its_stored_description(tmp_path: Path) -> None:
    maker = DurableQ(tmp_path / "app.db", worker=False)
    maker.task(name="elsewhere")(elsewhere)
    async with maker.running():
        await maker.add_task(elsewhere, "a@b", "1234")
    async with (dq := DurableQ(tmp_path / "app.db", worker=False)).running():
        declared = (await secrets_of(dq, ["elsewhere"])).declared("elsewhere")
        assert [declared.hides(name) for name in ("email", "pin", "unheard of")] == [False, True, True]
    known = await secrets_of(maker, ["elsewhere"])  # no I/O: it does not run
    assert known.declared("elsewhere").hides("pin")


def elsewhere(email: str, pin: Annotated[str, Secret]) -> None: ...
