"""Settings are checked together before anything starts, and what is wrong is said with its remedy."""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from durableq import DurableQ, RetryPolicy
from durableq.errors import ConfigurationError
from durableq.options import (
    CODE_OPTIONS,
    QueueOptions,
    QueueSettings,
    RegistrationSettings,
    TaskOptions,
    TaskSettings,
    checked,
    queue_options,
)


def task_options(**given: Any) -> TaskOptions:
    return checked(TaskOptions, given)


def refusal(given: dict[str, Any], environment: dict[str, str] | None = None) -> str:
    with pytest.raises(ConfigurationError) as caught:
        queue_options(given, environment or {})
    return str(caught.value)


class TestQueueOptions:
    def test_the_defaults_are_those_that_are_documented(self) -> None:
        options = queue_options({}, {})
        assert options.durability == "full"
        assert options.worker
        assert options.queues is None
        assert (options.concurrency, options.threads) == (64, (os.cpu_count() or 1) + 4)
        assert (options.lease, options.heartbeat) == (timedelta(seconds=30), timedelta(seconds=5))
        assert (options.grace, options.loop_stall_warning) == (timedelta(seconds=10), timedelta(seconds=10))
        assert (options.max_crashes, options.max_payload_bytes) == (3, 1024 * 1024)
        assert (options.retain_finished, options.retain_dead) == (timedelta(days=7), None)
        assert not options.allow_network_filesystem

    @pytest.mark.parametrize(
        ("given", "expected"),
        [
            ({"concurency": 5}, "unknown option 'concurency', did you mean 'concurrency'?"),
            ({"max_atempts": 5}, "unknown option 'max_atempts'"),
            ({"zzz": 5}, "known: durability, worker"),
            ({"concurrency": 0}, "'concurrency'"),
            ({"concurrency": "many"}, "got 'many'"),
            ({"threads": -1}, "'threads'"),
            ({"durability": "fast"}, "'full' or 'normal'"),
            ({"lease": 0}, "'lease'"),
            ({"heartbeat": -5}, "'heartbeat'"),
            ({"grace": -1}, "'grace'"),
            ({"max_crashes": 0}, "'max_crashes'"),
            ({"max_payload_bytes": 10**9}, "'max_payload_bytes'"),
            ({"retain_finished": 0}, "'retain_finished'"),
            ({"queues": [""]}, "'queues'"),
            ({"lease": float("nan")}, "'lease'"),
            ({"lease": float("inf")}, "'lease'"),
        ],
    )
    def test_what_cannot_be_right_is_refused_by_name(self, given: dict[str, Any], expected: str) -> None:
        assert expected in refusal(given)

    def test_several_mistakes_are_said_at_once(self) -> None:
        text = refusal({"concurrency": 0, "concurency": 1})
        assert "option 'concurrency'" in text
        assert "unknown option 'concurency'" in text

    def test_a_lease_must_outlive_two_heartbeats(self) -> None:
        text = refusal({"lease": 5, "heartbeat": 3})
        assert text.startswith("expected lease to be at least two heartbeats (0:00:06)")
        assert queue_options({"lease": 6, "heartbeat": 3}, {}).lease == timedelta(seconds=6)

    def test_durations_are_seconds_or_timedeltas(self) -> None:
        options = queue_options({"grace": 1.5, "lease": timedelta(minutes=1)}, {})
        assert (options.grace, options.lease) == (timedelta(seconds=1.5), timedelta(minutes=1))

    def test_settings_do_not_change_afterwards(self) -> None:
        with pytest.raises(ValueError, match="frozen"):
            queue_options({}, {}).concurrency = 1

    def test_type_checkers_know_every_option(self) -> None:
        assert get_type_hints(QueueSettings).keys() == QueueOptions.model_fields.keys()
        assert get_type_hints(RegistrationSettings).keys() == TaskOptions.model_fields.keys()
        assert get_type_hints(TaskSettings).keys() == TaskOptions.model_fields.keys() - CODE_OPTIONS


class TestEnvironment:
    @pytest.mark.parametrize(
        ("name", "text", "expected"),
        [
            ("worker", "false", False),
            ("worker", "0", False),
            ("worker", "1", True),
            ("worker", "yes", True),
            ("allow_network_filesystem", "true", True),
            ("concurrency", "8", 8),
            ("max_payload_bytes", "65536", 65536),
            ("lease", "60", timedelta(minutes=1)),
            ("grace", "0.5", timedelta(milliseconds=500)),
            ("retain_dead", "86400", timedelta(days=1)),
            ("lease", "PT1M", timedelta(minutes=1)),
            ("durability", "normal", "normal"),
            ("queues", "mail, bulk", ("mail", "bulk")),
            ("queues", "mail", ("mail",)),
        ],
    )
    def test_each_setting_may_come_from_the_environment(self, name: str, text: str, expected: Any) -> None:
        options = queue_options({}, {f"DURABLEQ_{name.upper()}": text})
        assert getattr(options, name) == expected
        assert type(getattr(options, name)) is type(expected)

    def test_what_the_code_says_wins(self) -> None:
        environment = {"DURABLEQ_CONCURRENCY": "8", "DURABLEQ_QUEUES": "mail"}
        options = queue_options({"concurrency": 2, "queues": None}, environment)
        assert (options.concurrency, options.queues) == (2, None)

    @pytest.mark.parametrize(
        ("name", "text"),
        [("CONCURRENCY", "many"), ("CONCURRENCY", "1.5"), ("WORKER", "perhaps"), ("LEASE", ""), ("LEASE", "nan")],
    )
    def test_what_the_environment_gets_wrong_is_refused_by_name(self, name: str, text: str) -> None:
        assert f"'{name.lower()}'" in refusal({}, {f"DURABLEQ_{name}": text})

    def test_the_environment_is_checked_together_with_the_code(self) -> None:
        assert "two heartbeats" in refusal({"lease": 10}, {"DURABLEQ_HEARTBEAT": "9"})

    def test_other_variables_are_ignored(self) -> None:
        assert queue_options({}, {"CONCURRENCY": "1", "durableq_concurrency": "1"}).concurrency == 64

    def test_a_queue_reads_its_environment_when_it_is_made(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("DURABLEQ_CONCURRENCY", "3")
        assert DurableQ(tmp_path / "a.db").settings.concurrency == 3
        assert DurableQ(tmp_path / "a.db", concurrency=4).settings.concurrency == 4


class TestTaskOptions:
    @pytest.mark.parametrize(
        ("given", "expected"),
        [
            ({"max_atempts": 3}, "unknown option 'max_atempts', did you mean 'max_attempts'?"),
            ({"max_attempts": 0}, "greater than or equal to 1, got 0"),
            ({"priority": 10**9}, "'priority'"),
            ({"queue": ""}, "'queue'"),
            ({"queue": "q" * 201}, "'queue'"),
            ({"delay": -1}, "'delay'"),
            ({"run_at": datetime(2026, 1, 1)}, "timezone"),
            ({"delay": 5, "run_at": datetime(2026, 1, 1, tzinfo=UTC)}, "expected delay or run_at, got both"),
            ({"retry": 3}, "'retry'"),
            ({"retry": RetryPolicy}, "'retry'"),
        ],
    )
    def test_what_cannot_be_right_is_refused_by_name(self, given: dict[str, Any], expected: str) -> None:
        with pytest.raises(ConfigurationError) as caught:
            task_options(**given)
        assert expected in str(caught.value)

    def test_the_decorator_refuses_at_import(self, tmp_path: Path) -> None:
        dq = DurableQ(tmp_path / "a.db")
        with pytest.raises(ConfigurationError, match="did you mean 'max_attempts'"):
            dq.task(max_atempts=3)(print)  # type: ignore[call-overload]

    def test_options_of_a_call_leave_the_task_as_it_is(self, tmp_path: Path) -> None:
        dq = DurableQ(tmp_path / "a.db")

        @dq.task(name="work", priority=1, delay=60)
        def work() -> None: ...

        later = work.options(run_at=datetime(2027, 1, 1, tzinfo=UTC))
        assert (later.settings.priority, later.settings.delay) == (1, None)
        assert later.settings.run_at == datetime(2027, 1, 1, tzinfo=UTC)
        sooner = later.options(delay=5)
        assert (sooner.settings.run_at, sooner.settings.delay) == (None, timedelta(seconds=5))
        assert work.settings.delay == timedelta(seconds=60)
        with pytest.raises(ConfigurationError, match="got both"):
            work.options(delay=5, run_at=datetime(2027, 1, 1, tzinfo=UTC))
        with pytest.raises(ConfigurationError, match="unknown option"):
            work.options(queu="x")  # type: ignore[call-arg]
