"""What of a failure is kept to the last character, and what of a job's age a policy is told."""

from typing import Annotated, Any, cast

import pytest
from tenacity import stop_after_delay, wait_fixed

from durableq.clock import SECOND
from durableq.context import CurrentJob
from durableq.engine.decisions import (
    DEADLINE_PASSED,
    EXPIRED,
    MESSAGE_CHARACTERS,
    RemoteFailure,
    Ruling,
    after_error,
    before_start,
    failure_of,
    redactor_of,
    storable,
)
from durableq.models import Cancelled, Dead, Failure, Lease, Retried
from durableq.redaction import HIDDEN, MASKED
from durableq.retry import RetryPolicy
from durableq.secret_names import Secret

NOW = 1_000_000 * SECOND
TEN_SECONDS_OLD = NOW - 10 * SECOND
CANARY = "c4n4ry-5ea1"


def lease(*, created_at: int = 0, deadline_at: int | None = None, expires_at: int | None = None) -> Lease:
    made = Lease(1, 1, "id", "tasks:work", "default", "{}", 0, 1, 5, 0, created_at)
    return made._replace(expires_at=expires_at, deadline_at=deadline_at)


@pytest.mark.parametrize(("seconds", "kind"), [(9.9, Dead), (10.0, Dead), (10.1, Retried), (11.0, Retried)])
def test_a_policy_that_stops_by_age_is_told_the_jobs_age_in_seconds(seconds: float, kind: type) -> None:
    policy = RetryPolicy(wait=wait_fixed(1), stop=stop_after_delay(seconds))
    assert type(after_error(lease(created_at=TEN_SECONDS_OLD), ValueError("no"), policy, NOW)) is kind


def test_a_job_that_is_out_of_tries_carries_the_error_that_ended_it() -> None:
    error = ValueError("no")
    last = lease()._replace(attempt=5)
    outcome = after_error(last, error, RetryPolicy(), NOW)
    assert isinstance(outcome, Dead)
    assert outcome.error is error


def test_a_job_that_comes_too_late_says_so_in_the_same_words_everywhere() -> None:
    dead = before_start(lease(deadline_at=NOW), NOW)
    assert isinstance(dead, Dead)
    text = "the job's deadline passed before it could be finished"
    assert dead.failure == Failure(DEADLINE_PASSED, text, text)
    assert str(dead.error) == text
    expired = before_start(lease(expires_at=NOW), NOW)
    assert isinstance(expired, Cancelled)
    text = "the job expired: nobody started it in time"
    assert expired.failure == Failure(EXPIRED, text, text)


def test_a_failure_in_a_child_reads_as_its_type_and_message() -> None:
    failure = Failure("app.Broken", "no water", "Traceback ...")
    assert str(RemoteFailure(failure, Ruling("die"), ("app.Broken",))) == "app.Broken: no water"


class Mute(Exception):
    def __str__(self) -> str:
        raise LookupError("no words")


class Untraceable(Exception):
    __cause__: Any = property(lambda self: 1 / 0)


def test_an_error_that_cannot_speak_is_named_with_what_its_str_raised() -> None:
    assert failure_of(Mute()).message == "<Mute: its __str__ raised LookupError>"


def test_a_traceback_that_cannot_be_formatted_says_what_was_in_the_way() -> None:
    assert failure_of(Untraceable()).traceback == "<the traceback could not be formatted: ZeroDivisionError>"


def test_the_lines_of_a_traceback_follow_each_other() -> None:
    assert failure_of(ValueError("first\nsecond")).traceback == "ValueError: first\nsecond\n"
    try:
        raise ValueError("no")
    except ValueError as error:
        lines = failure_of(error).traceback.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[-1] == "ValueError: no"
    assert lines[1].startswith('  File "')


def test_what_a_database_cannot_hold_is_written_as_an_escape() -> None:
    assert storable("a\0b\udc80c") == "a\\x00b\\udc80c"


@pytest.mark.parametrize("extra", [0, 1, 1_000])
def test_of_a_message_that_is_too_long_both_ends_are_kept_and_the_rest_is_counted(extra: int) -> None:
    text = "a" * 1_500 + "b" * (MESSAGE_CHARACTERS - 1_500 + extra)
    message = failure_of(ValueError(text)).message
    if not extra:
        assert message == text
    else:
        half = MESSAGE_CHARACTERS // 2
        assert message == f"{text[:half]}\n... {extra:,} characters left out ...\n{text[-half:]}"


def test_a_jobs_secrets_are_known_by_its_tasks_signature_and_its_arguments() -> None:
    def task(phrase: Annotated[str, Secret], plain: str) -> None: ...

    class Running:
        @property
        def args(self) -> Any:
            return {"phrase": CANARY, "plain": "readable", "password": "hunter-two"}

    redactor = redactor_of(task, cast(CurrentJob, Running()))
    assert redactor.text(f"{CANARY} readable hunter-two") == f"{MASKED} readable {MASKED}"
    assert redactor.arguments({"phrase": "other"}) == {"phrase": HIDDEN}


def test_the_secrets_of_a_job_with_damaged_arguments_are_known_by_name() -> None:
    def task(phrase: Annotated[str, Secret]) -> None: ...

    class Damaged:
        @property
        def args(self) -> Any:
            raise ValueError("not JSON")

    redactor = redactor_of(task, cast(CurrentJob, Damaged()))
    assert redactor.arguments({"phrase": "x", "plain": "y"}) == {"phrase": HIDDEN, "plain": "y"}
