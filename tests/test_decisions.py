"""What is recorded of a failure, whatever the exception does, and what becomes of its job: pure decisions."""

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some
from tenacity import stop_after_delay, wait_fixed

import durableq
from durableq.clock import SECOND, to_datetime
from durableq.engine.decisions import (
    CANCELLED,
    DEADLINE_PASSED,
    DIE,
    EXPIRED,
    MESSAGE_CHARACTERS,
    TRACEBACK_CHARACTERS,
    WORKER_DIED,
    RemoteFailure,
    Ruling,
    after_cancellation,
    after_crash,
    after_error,
    before_start,
    failure_of,
    ruling_on,
    storable,
    time_limit,
    timed_out,
)
from durableq.errors import AttemptTimedOut, WorkerDied
from durableq.models import Cancelled, Dead, Failure, Lease, Retried, Snoozed
from durableq.retry import PermanentFailure, Retry, RetryPolicy, Snooze

PACKAGE = Path(durableq.__file__).resolve().parent
NOW = 1_000_000 * SECOND
IN_5_SECONDS = RetryPolicy(wait=wait_fixed(5))


def lease(
    attempt: int = 1,
    max_attempts: int = 5,
    crashes: int = 0,
    *,
    created_at: int = 0,
    expires_at: int | None = None,
    deadline_at: int | None = None,
) -> Lease:
    made = Lease(1, attempt, "id", "tasks:work", "default", "{}", 0, attempt, max_attempts, crashes, created_at)
    return made._replace(expires_at=expires_at, deadline_at=deadline_at)


def caught(run: Callable[[], object]) -> BaseException:
    try:
        run()
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


def failing(error: BaseException) -> Failure:
    def run() -> None:
        raise error

    return failure_of(caught(run))


def calling(file: Path | str, name: str = "run") -> Callable[[Callable[[], object]], object]:
    """Return a function that calls another, whose code says that it stands in ``file``."""
    names: dict[str, Any] = {}
    exec(compile(f"def {name}(then):\n    return then()\n", str(file), "exec"), names)
    made: Callable[[Callable[[], object]], object] = names[name]
    return made


def _below(error: BaseException, name: str) -> TracebackType | None:
    """The traceback from the frame of that name on: what is left when the frames of this test are gone."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_name != name:
        trace = trace.tb_next
    return trace


class BadText(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text for you")

    __repr__ = __str__


class WorseText(Exception):
    """Ends the process when its text is asked for, while it is armed. (pytest asks as well.)"""

    is_armed = False

    def __str__(self) -> str:
        if self.is_armed:
            raise SystemExit(3)
        return "harmless"

    __repr__ = __str__


class NoText(Exception):
    def __str__(self) -> str:
        return 5  # type: ignore[return-value]


class EndlessText(Exception):
    def __str__(self) -> str:
        return str(self)


class TestWhatIsRecorded:
    def test_type_message_and_traceback(self) -> None:
        failure = failing(ValueError("boom"))
        assert (failure.type, failure.message) == ("ValueError", "boom")
        assert failure.traceback.startswith("Traceback (most recent call last):")
        assert failure.traceback.rstrip().endswith("ValueError: boom")
        assert "raise error" in failure.traceback

    def test_a_type_of_ones_own_is_named_with_its_module(self) -> None:
        assert failing(NoText()).type == f"{__name__}.NoText"

    def test_the_cause_is_told(self) -> None:
        def run() -> None:
            try:
                raise KeyError("inner")
            except KeyError as error:
                raise ValueError("outer") from error

        text = failure_of(caught(run)).traceback
        assert "KeyError: 'inner'" in text
        assert "direct cause" in text
        assert "ValueError: outer" in text

    def test_no_variables_are_recorded(self) -> None:
        def run() -> None:
            password = "hunter" + "2"
            raise ValueError(len(password))

        assert "hunter2" not in failure_of(caught(run)).traceback

    def test_durableqs_own_frames_are_left_out(self) -> None:
        ours = calling(PACKAGE / "engine" / "executor.py", "frame_of_durableq")

        def work() -> None:
            raise ValueError("boom")

        error = caught(lambda: ours(work))
        error.__traceback__ = _below(error, "frame_of_durableq")
        text = failure_of(error).traceback
        assert "frame_of_durableq" not in text
        assert "in work" in text

    def test_frames_of_packages_with_a_similar_name_are_kept(self) -> None:
        theirs = calling(f"{PACKAGE}_plugins/tasks.py", "frame_of_another")

        def work() -> None:
            raise ValueError("boom")

        error = caught(lambda: theirs(work))
        error.__traceback__ = _below(error, "frame_of_another")
        assert "frame_of_another" in failure_of(error).traceback

    def test_an_error_of_durableq_itself_keeps_its_frames(self) -> None:
        ours = calling(PACKAGE / "codec.py", "frame_of_durableq")
        error = caught(lambda: ours(lambda: int("five")))
        error.__traceback__ = _below(error, "frame_of_durableq")
        assert error.__traceback__ is not None
        error.__traceback__.tb_next = None
        assert "frame_of_durableq" in failure_of(error).traceback

    def test_an_error_that_was_never_raised_is_recorded(self) -> None:
        failure = failure_of(ValueError("boom"))
        assert failure.traceback.strip() == "ValueError: boom"


class TestHostileExceptions:
    @pytest.mark.fault("F46")
    @pytest.mark.parametrize("error", [BadText(), NoText(), EndlessText()], ids=["bad", "none", "endless"])
    def test_a_text_that_cannot_be_had_is_said_to_be_missing(self, error: Exception) -> None:
        failure = failing(error)
        assert failure.type.endswith(type(error).__name__)
        assert type(error).__name__ in failure.message
        assert failure.traceback

    def test_a_text_that_would_end_the_process_does_not(self) -> None:
        error = WorseText()
        failure: Failure | None = None
        error.is_armed = True
        try:
            failure = failing(error)
        except SystemExit:
            pass  # told below: pytest itself would ask for the text
        finally:
            error.is_armed = False
        assert failure is not None
        assert "WorseText" in failure.message

    @pytest.mark.fault("F44", "F46")
    def test_a_huge_message_keeps_its_ends(self) -> None:
        failure = failing(ValueError("begin" + "x" * 10_000_000 + "end"))
        assert len(failure.message) < MESSAGE_CHARACTERS + 100
        assert failure.message.startswith("begin")
        assert failure.message.endswith("end")
        assert "characters left out" in failure.message
        assert len(failure.traceback) < TRACEBACK_CHARACTERS + 100

    def test_a_message_within_the_limit_is_whole(self) -> None:
        text = "x" * MESSAGE_CHARACTERS
        assert failing(ValueError(text)).message == text

    @pytest.mark.fault("F46")
    def test_endless_recursion_is_recorded_in_short(self) -> None:
        def recurse() -> None:
            recurse()

        failure = failure_of(caught(recurse))
        assert failure.type == "RecursionError"
        assert len(failure.traceback) < TRACEBACK_CHARACTERS + 100

    @pytest.mark.fault("F46")
    def test_causes_in_a_circle_come_to_an_end(self) -> None:
        first, second = ValueError("first"), KeyError("second")
        first.__cause__, second.__cause__ = second, first
        text = failing(first).traceback
        assert "first" in text
        assert "second" in text

    def test_a_long_chain_of_causes_is_capped(self) -> None:
        error = ValueError("last")
        for number in range(5_000):
            cause, error = error, ValueError(f"error {number}")
            error.__cause__ = cause
        failure = failing(error)
        assert failure.message == "error 4999"
        assert len(failure.traceback) < TRACEBACK_CHARACTERS + 100

    def test_a_group_tells_of_its_members(self) -> None:
        group = ExceptionGroup("several", [ValueError("a"), ExceptionGroup("more", [KeyError("b")])])
        failure = failing(group)
        assert failure.type == "ExceptionGroup"
        assert "ValueError: a" in failure.traceback
        assert "KeyError: 'b'" in failure.traceback

    @pytest.mark.parametrize("text", ["lone \ud800 surrogate", "nul \x00 byte"])
    def test_text_that_a_database_cannot_hold_is_made_visible(self, text: str) -> None:
        failure = failing(ValueError(text + " and the rest"))
        for recorded in (failure.message, failure.traceback):
            recorded.encode()
            assert "\x00" not in recorded, "SQLite's JSON functions end a text there"
            assert "and the rest" in recorded

    def test_a_type_with_an_odd_name_is_recorded(self) -> None:
        odd = type("Odd", (Exception,), {"__module__": "m\ud800", "__qualname__": "N" * 100_000})
        failure = failing(odd())
        failure.type.encode()
        assert len(failure.type) < 1_000

    @pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit(), MemoryError()], ids=repr)
    def test_what_is_no_ordinary_error_is_recorded_as_well(self, error: BaseException) -> None:
        assert failing(error).type == type(error).__name__


class TestCrashes:
    def test_a_job_whose_worker_died_runs_again_at_once(self) -> None:
        outcome = after_crash(lease(), "the worker's process died", charged=True, max_crashes=3)
        assert isinstance(outcome, Retried)
        assert (outcome.run_at, outcome.crashed) == (None, True)
        assert outcome.failure.type == WORKER_DIED
        assert "process died" in outcome.failure.message

    @pytest.mark.fault("F51")
    @pytest.mark.foreign_bug(43, 44)
    def test_the_last_crash_ends_it_with_the_reason(self) -> None:
        kinds = [type(after_crash(lease(crashes=n), "it died", charged=True, max_crashes=3)) for n in range(4)]
        assert kinds == [Retried, Retried, Dead, Dead]
        outcome = after_crash(lease(crashes=2), "it died", charged=True, max_crashes=3)
        assert isinstance(outcome, Dead)
        assert outcome.crashed
        assert "it died" in outcome.failure.message
        assert "crash 3 of at most 3" in outcome.failure.message

    @pytest.mark.fault("F20")
    def test_a_death_that_is_nobodys_fault_is_not_charged(self) -> None:
        outcome = after_crash(lease(crashes=2), "the host was restarted", charged=False, max_crashes=3)
        assert isinstance(outcome, Retried)
        assert not outcome.crashed

    @pytest.mark.foreign_bug(45, 46, 48)
    @pytest.mark.parametrize("charged", [True, False])
    def test_the_last_attempt_is_the_last_also_when_its_worker_died(self, charged: bool) -> None:
        outcome = after_crash(lease(attempt=5), "it died", charged=charged, max_crashes=3)
        assert isinstance(outcome, Dead)
        assert outcome.crashed is charged

    def test_whoever_wants_to_hear_of_it_gets_an_error(self) -> None:
        for crashes, attempt in ((0, 1), (2, 1), (0, 5)):
            outcome = after_crash(lease(attempt, crashes=crashes), "it died", charged=True, max_crashes=3)
            assert isinstance(outcome.error, WorkerDied)
            assert str(outcome.error) == outcome.failure.message


class TestWhatAnExceptionAsksFor:
    def test_a_retry_with_a_delay_is_taken_at_its_word(self) -> None:
        policy = RetryPolicy(wait=wait_fixed(5), give_up_on=Exception)
        assert ruling_on(Retry(delay=90), policy, 1, 0.0, NOW) == Ruling("retry", 90.0)
        assert ruling_on(Retry(delay=timedelta(minutes=2)), policy, 1, 0.0, NOW) == Ruling("retry", 120.0)
        assert ruling_on(Retry(delay=0), policy, 1, 0.0, NOW) == Ruling("retry", 0.0)

    def test_a_retry_without_one_leaves_it_to_the_policy(self) -> None:
        assert ruling_on(Retry(), IN_5_SECONDS, 1, 0.0, NOW) == Ruling("retry", 5.0)
        assert ruling_on(Retry(), RetryPolicy(stop=stop_after_delay(60)), 1, 61.0, NOW) == DIE

    def test_a_retry_at_a_moment_is_measured_from_now(self) -> None:
        retry = Retry()
        retry.at = to_datetime(NOW) + timedelta(seconds=30)
        assert ruling_on(retry, IN_5_SECONDS, 1, 0.0, NOW) == Ruling("retry", 30.0)
        assert ruling_on(retry, IN_5_SECONDS, 1, 0.0, NOW + 60 * SECOND) == Ruling("retry", 0.0)

    def test_a_snooze_is_no_failure_whatever_the_policy_says(self) -> None:
        assert ruling_on(Snooze(7), RetryPolicy(give_up_on=Exception), 1, 0.0, NOW) == Ruling("snooze", 7.0)

    def test_a_permanent_failure_is_final_whatever_the_policy_says(self) -> None:
        assert ruling_on(PermanentFailure("no"), RetryPolicy(retry_on=PermanentFailure), 1, 0.0, NOW) == DIE

    def test_any_other_error_is_the_policys_business(self) -> None:
        assert ruling_on(ValueError(), IN_5_SECONDS, 1, 0.0, NOW) == Ruling("retry", 5.0)
        assert ruling_on(ValueError(), RetryPolicy(give_up_on=ValueError), 1, 0.0, NOW) == DIE

    def test_what_was_ruled_in_a_child_process_holds_here(self) -> None:
        failure = Failure("ValueError", "no", "Traceback ...")
        for ruling in (Ruling("retry", 3.0), Ruling("snooze", 4.0), DIE):
            remote = RemoteFailure(failure, ruling, ("builtins.ValueError", "builtins.Exception"))
            assert ruling_on(remote, RetryPolicy(give_up_on=Exception), 1, 0.0, NOW) == ruling
            assert failure_of(remote) is failure


class TestAfterAnError:
    def test_a_retry_goes_back_to_wait_until_its_time(self) -> None:
        error = Retry("busy", delay=90)
        outcome = after_error(lease(), error, IN_5_SECONDS, NOW)
        assert isinstance(outcome, Retried)
        assert (outcome.run_at, outcome.error) == (NOW + 90 * SECOND, error)
        assert (outcome.failure.type, outcome.failure.message) == ("durableq.Retry", "busy")

    def test_a_retry_does_not_go_beyond_the_last_attempt(self) -> None:
        assert isinstance(after_error(lease(5), Retry(delay=1), IN_5_SECONDS, NOW), Dead)

    @pytest.mark.parametrize("attempt", [1, 5, 6])
    def test_a_snooze_does_not_look_at_attempts(self, attempt: int) -> None:
        assert after_error(lease(attempt), Snooze(60), IN_5_SECONDS, NOW) == Snoozed(NOW + 60 * SECOND)

    def test_a_permanent_failure_is_dead_on_its_first_attempt(self) -> None:
        error = PermanentFailure("no such customer")
        outcome = after_error(lease(), error, IN_5_SECONDS, NOW)
        assert isinstance(outcome, Dead)
        assert (outcome.error, outcome.crashed) == (error, False)

    @pytest.mark.parametrize("error", [ValueError("no"), Retry(delay=5), Snooze(5)], ids=repr)
    @pytest.mark.parametrize(("until_deadline", "is_dead"), [(4, True), (5, True), (6, False)])
    def test_what_would_run_again_at_the_deadline_or_later_is_dead_now(
        self, error: Exception, until_deadline: int, is_dead: bool
    ) -> None:
        outcome = after_error(lease(deadline_at=NOW + until_deadline * SECOND), error, IN_5_SECONDS, NOW)
        assert isinstance(outcome, Dead) is is_dead

    def test_the_dead_keep_their_own_error_not_the_deadlines(self) -> None:
        outcome = after_error(lease(deadline_at=NOW), ConnectionError("refused"), IN_5_SECONDS, NOW)
        assert isinstance(outcome, Dead)
        assert (outcome.failure.type, outcome.failure.message) == ("ConnectionError", "refused")

    def test_expiry_is_no_concern_of_a_job_that_was_started(self) -> None:
        assert isinstance(after_error(lease(expires_at=NOW), ValueError(), IN_5_SECONDS, NOW), Retried)


class TestBeforeAStart:
    def test_a_job_without_limits_is_never_too_late(self) -> None:
        assert before_start(lease(), 10**18) is None

    @pytest.mark.parametrize(("now", "is_late"), [(NOW - 1, False), (NOW, True), (NOW + 1, True)])
    def test_an_expired_job_is_cancelled(self, now: int, is_late: bool) -> None:
        outcome = before_start(lease(expires_at=NOW), now)
        assert (outcome is not None) is is_late
        if is_late:
            assert isinstance(outcome, Cancelled)
            assert outcome.failure.type == EXPIRED

    @pytest.mark.parametrize(("now", "is_late"), [(NOW - 1, False), (NOW, True), (NOW + 1, True)])
    def test_a_job_past_its_deadline_is_dead(self, now: int, is_late: bool) -> None:
        outcome = before_start(lease(deadline_at=NOW), now)
        assert (outcome is not None) is is_late
        if is_late:
            assert isinstance(outcome, Dead)
            assert outcome.failure.type == DEADLINE_PASSED
            assert isinstance(outcome.error, AttemptTimedOut)

    def test_the_deadline_counts_more_than_the_expiry(self) -> None:
        assert isinstance(before_start(lease(expires_at=NOW, deadline_at=NOW), NOW), Dead)


class TestTimeLimits:
    @pytest.mark.parametrize(
        ("timeout", "until_deadline", "seconds"),
        [(2, None, 2.0), (None, 3, 3.0), (2, 3, 2.0), (3, 2, 2.0), (3, -1, 0.0), (None, 0, 0.0)],
    )
    def test_the_shorter_one_counts_and_is_never_negative(
        self, timeout: int | None, until_deadline: int | None, seconds: float
    ) -> None:
        deadline_at = None if until_deadline is None else NOW + until_deadline * SECOND
        limit = time_limit(lease(deadline_at=deadline_at), None if timeout is None else timeout * SECOND, NOW)
        assert limit == seconds

    def test_the_error_says_which_one_it_was(self) -> None:
        by_timeout = timed_out(lease(2, deadline_at=NOW + 1), 1.5, NOW)
        assert str(by_timeout) == "attempt 2 was stopped: it took longer than its timeout of 1.5 s"
        by_deadline = timed_out(lease(2, deadline_at=NOW), 1.5, NOW)
        assert str(by_deadline) == "attempt 2 was stopped at the job's deadline, after 1.5 s"
        assert isinstance(by_timeout, TimeoutError)


class TestCancellations:
    def test_what_the_task_raised_is_kept_as_the_traceback(self) -> None:
        def run() -> None:
            raise OSError("while cleaning up")

        failure = after_cancellation(caught(run)).failure
        assert (failure.type, failure.message) == (CANCELLED, "cancelled while running")
        assert "OSError: while cleaning up" in failure.traceback

    def test_a_job_that_was_never_started_has_nothing_to_show(self) -> None:
        assert after_cancellation(None).failure.traceback == "cancelled while running"


@given(some.text())
def test_any_text_becomes_fit_for_a_database_and_stays_itself_if_it_was(text: str) -> None:
    made = storable(text)
    made.encode()
    assert "\0" not in made
    assert storable(made) == made
    if "\0" not in text and text.encode("utf-8", "ignore").decode() == text:
        assert made == text


@given(some.datetimes(datetime(1970, 1, 1), datetime(3000, 1, 1)), some.floats(0, 10**9))
def test_an_outcome_never_lies_in_the_past(moment: datetime, delay: float) -> None:
    now = int(moment.timestamp() * SECOND)
    for error, kind in ((Retry(delay=delay), Retried), (Snooze(delay), Snoozed)):
        outcome = after_error(lease(), error, IN_5_SECONDS, now)
        assert isinstance(outcome, kind)
        assert outcome.run_at is not None
        assert outcome.run_at >= now
