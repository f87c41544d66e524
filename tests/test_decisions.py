"""What is recorded of a failure, whatever the exception does, and what becomes of a job whose worker died."""

from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

import durableq
from durableq.engine.decisions import (
    MESSAGE_CHARACTERS,
    TRACEBACK_CHARACTERS,
    WORKER_DIED,
    after_crash,
    failure_of,
)
from durableq.models import Dead, Failure, Lease, Retried

PACKAGE = Path(durableq.__file__).resolve().parent


def lease(attempt: int = 1, max_attempts: int = 5, crashes: int = 0) -> Lease:
    return Lease(1, attempt, "id", "tasks:work", "default", "{}", 0, attempt, max_attempts, crashes, 0)


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

    def test_endless_recursion_is_recorded_in_short(self) -> None:
        def recurse() -> None:
            recurse()

        failure = failure_of(caught(recurse))
        assert failure.type == "RecursionError"
        assert len(failure.traceback) < TRACEBACK_CHARACTERS + 100

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

    def test_the_last_crash_ends_it_with_the_reason(self) -> None:
        kinds = [type(after_crash(lease(crashes=n), "it died", charged=True, max_crashes=3)) for n in range(4)]
        assert kinds == [Retried, Retried, Dead, Dead]
        outcome = after_crash(lease(crashes=2), "it died", charged=True, max_crashes=3)
        assert isinstance(outcome, Dead)
        assert outcome.crashed
        assert "it died" in outcome.failure.message
        assert "crash 3 of at most 3" in outcome.failure.message

    def test_a_death_that_is_nobodys_fault_is_not_charged(self) -> None:
        outcome = after_crash(lease(crashes=2), "the host was restarted", charged=False, max_crashes=3)
        assert isinstance(outcome, Retried)
        assert not outcome.crashed

    @pytest.mark.parametrize("charged", [True, False])
    def test_the_last_attempt_is_the_last_also_when_its_worker_died(self, charged: bool) -> None:
        outcome = after_crash(lease(attempt=5), "it died", charged=charged, max_crashes=3)
        assert isinstance(outcome, Dead)
        assert outcome.crashed is charged
