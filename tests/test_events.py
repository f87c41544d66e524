"""Events reach whoever subscribed; a subscriber that raises harms nobody; and what is logged can be searched."""

import dataclasses
import inspect
import logging

import pytest

from durableq import events
from durableq.events import (
    AttemptOverran,
    Emitter,
    JobCancelled,
    JobDied,
    JobReleased,
    JobRetried,
    JobSnoozed,
    JobStarted,
    JobSucceeded,
    LeaseLost,
    LoopStalled,
    ResultNotStored,
    StorageBroken,
    StorageTrouble,
    UnknownTasks,
    WorkerEvicted,
    WorkerReaped,
    WorkerStarted,
    WorkerStopped,
)
from durableq.models import Failure, Lease
from durableq.observability.logs import log_events

LEASE = Lease(1, 2, "0190-id", "mail:send", "default", '{"secret": "hunter2"}', 0, 2, 5, 0, 0)
FAILURE = Failure("ValueError", "boom", "Traceback: the whole of it")

ALL = [
    JobStarted(LEASE),
    JobSucceeded(LEASE),
    JobRetried(LEASE, FAILURE, 5),
    JobDied(LEASE, FAILURE),
    JobReleased(LEASE),
    LeaseLost(LEASE),
    JobCancelled(LEASE, Failure("durableq.Cancelled", "cancelled while running", "trace")),
    JobSnoozed(LEASE, 5_000_000),
    AttemptOverran(LEASE, "thread", 2),
    ResultNotStored(LEASE, "too large"),
    UnknownTasks(("gone:work",)),
    WorkerStarted(7),
    WorkerStopped(7, 3),
    WorkerReaped(6, "the worker's process died", 4),
    WorkerEvicted(7),
    LoopStalled(12.5, "main.py:10 in route"),
    StorageTrouble("settling", RuntimeError("disk")),
    StorageBroken(RuntimeError("disk")),
]


class TestEmitter:
    def test_an_event_reaches_those_who_subscribed_to_its_type_in_order(self) -> None:
        emitter, heard = Emitter(), list[tuple[str, object]]()
        emitter.subscribe(WorkerStarted, lambda event: heard.append(("first", event)))
        emitter.subscribe(WorkerStarted, lambda event: heard.append(("second", event)))
        emitter.subscribe(WorkerStopped, lambda event: heard.append(("other", event)))
        emitter.emit(WorkerStarted(1))
        assert heard == [("first", WorkerStarted(1)), ("second", WorkerStarted(1))]

    def test_nobody_listening_is_no_trouble(self) -> None:
        emitter = Emitter()
        emitter.emit(WorkerStarted(1))
        assert not emitter.wants(WorkerStarted)

    def test_a_subscription_can_be_ended(self) -> None:
        emitter, heard = Emitter(), list[WorkerStarted]()
        end = emitter.subscribe(WorkerStarted, heard.append)
        assert emitter.wants(WorkerStarted)
        end()
        end()
        assert not emitter.wants(WorkerStarted)
        emitter.emit(WorkerStarted(1))
        assert heard == []

    def test_a_subscriber_that_raises_is_logged_and_kept_and_harms_nobody(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        emitter, heard = Emitter(), list[WorkerStarted]()

        def broken(event: WorkerStarted) -> None:
            raise RuntimeError("a defect of a subscriber")

        emitter.subscribe(WorkerStarted, broken)
        emitter.subscribe(WorkerStarted, heard.append)
        emitter.emit(WorkerStarted(1))
        emitter.emit(WorkerStarted(2))
        assert heard == [WorkerStarted(1), WorkerStarted(2)]
        assert [record.levelname for record in caplog.records] == ["ERROR", "ERROR"]
        assert "a subscriber to WorkerStarted raised" in caplog.records[0].getMessage()
        assert caplog.records[0].exc_info is not None

    def test_a_subscriber_may_unsubscribe_while_it_is_called(self) -> None:
        emitter, heard = Emitter(), list[int]()

        def once(event: WorkerStarted) -> None:
            heard.append(event.worker_id)
            end()

        end = emitter.subscribe(WorkerStarted, once)
        emitter.subscribe(WorkerStarted, lambda event: heard.append(-event.worker_id))
        emitter.emit(WorkerStarted(1))
        emitter.emit(WorkerStarted(2))
        assert heard == [1, -1, -2]


class TestLogs:
    def test_there_is_an_example_here_of_every_event(self) -> None:
        kinds = {
            kind
            for _, kind in inspect.getmembers(events, dataclasses.is_dataclass)
            if inspect.isclass(kind) and kind.__module__ == events.__name__
        }
        assert {type(event) for event in ALL} == kinds

    @pytest.mark.parametrize("event", ALL, ids=lambda event: type(event).__name__)
    def test_every_event_is_frozen(self, event: object) -> None:
        name = dataclasses.fields(event)[0].name  # type: ignore[arg-type]
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(event, name, None)

    @pytest.mark.parametrize(
        ("event", "level", "words"),
        [
            (ALL[2], "WARNING", ["job failed", "job_id=0190-id", "task=mail:send", "attempt=2/5", "ValueError: boom"]),
            (ALL[3], "ERROR", ["job is dead", "job_id=0190-id", "ValueError", "Traceback: the whole of it"]),
            (ALL[4], "INFO", ["handed back", "job_id=0190-id"]),
            (ALL[5], "WARNING", ["lease lost", "job_id=0190-id"]),
            (ALL[6], "INFO", ["job cancelled", "job_id=0190-id", "cancelled while running"]),
            (ALL[7], "DEBUG", ["job snoozed", "job_id=0190-id"]),
            (ALL[8], "ERROR", ["code goes on in the thread runner", "job_id=0190-id", "2 such now", "process"]),
            (ALL[9], "WARNING", ["result was not kept", "too large"]),
            (ALL[10], "WARNING", ["gone:work", "@dq.task"]),
            (ALL[11], "INFO", ["worker 7 started"]),
            (ALL[12], "INFO", ["worker 7 stopped", "3 jobs handed back"]),
            (ALL[13], "WARNING", ["took back 4 jobs of worker 6", "process died"]),
            (ALL[14], "ERROR", ["worker 7 was taken for dead"]),
            (ALL[15], "WARNING", ["has not moved for 12.5 s", "main.py:10 in route"]),
            (ALL[16], "ERROR", ["settling", "disk"]),
        ],
        ids=lambda value: type(value).__name__,
    )
    def test_what_an_operator_wants_to_read_is_logged_in_searchable_words(
        self, caplog: pytest.LogCaptureFixture, event: object, level: str, words: list[str]
    ) -> None:
        emitter = Emitter()
        log_events(emitter)
        with caplog.at_level(logging.DEBUG, "durableq"):
            emitter.emit(event)
        [record] = caplog.records
        assert record.levelname == level
        assert all(word in record.getMessage() for word in words)
        assert "hunter2" not in record.getMessage(), "arguments are not for the log"

    def test_a_job_that_simply_succeeds_is_not_news(self, caplog: pytest.LogCaptureFixture) -> None:
        emitter = Emitter()
        log_events(emitter)
        with caplog.at_level(logging.DEBUG, "durableq"):
            emitter.emit(JobStarted(LEASE))
            emitter.emit(JobSucceeded(LEASE))
        assert caplog.records == []
        assert not emitter.wants(JobStarted), "so that nothing is built for nobody"
