"""Settings are checked together before anything starts, and what is wrong is said with its remedy."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from tenacity import retry_if_exception_type, wait_fixed

from durableq import DurableQ, JobState, RetryPolicy, Unique
from durableq.encryption import ENVIRONMENT_VARIABLE
from durableq.errors import ConfigurationError
from durableq.fastapi.background import HANDOVER_VARIABLE
from durableq.models import COVERS
from durableq.options import CODE_OPTIONS, RegistrationSettings, TaskOptions, TaskSettings, checked
from durableq.settings import QueueOptions, QueueSettings, queue_options, warn_of_misspelt
from durableq.words import ELSEWHERE, MEANT_BY


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
        assert (options.concurrency, options.threads) == (64, 40)
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

    @pytest.mark.parametrize("name", ["contraseña", "密码", "--"])
    def test_a_name_that_could_not_be_told_from_others_is_not_redacted(self, name: str) -> None:
        with pytest.raises(ConfigurationError) as caught:
            queue_options({"redact": ["ssn", name]}, {})
        assert str(caught.value) == (
            f"option 'redact': expected names of ASCII letters and digits, got {name!r}; "
            "declare such an argument by Annotated[..., Secret]"
        )

    def test_settings_do_not_change_afterwards(self) -> None:
        with pytest.raises(ValueError, match="frozen"):
            queue_options({}, {}).concurrency = 1

    def test_the_words_of_other_queues_lead_to_options_that_there_are(self) -> None:
        assert set(ELSEWHERE) <= TaskOptions.model_fields.keys()
        assert not set(MEANT_BY) & TaskOptions.model_fields.keys()
        assert len(MEANT_BY) == sum(map(len, ELSEWHERE.values())), "no word may mean two things"

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

    def test_misspelt_variables_are_warned_of_when_a_queue_is_made(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        for name in ("DURABLEQ_LEAZE", "DURABLEQ_ENCRYPTION_KEY", "DURABLEQ_HANDOVR", "DURABLEQ_WORKER"):
            monkeypatch.setenv(name, "1")
        DurableQ(tmp_path / "a.db")
        assert [record.getMessage() for record in caplog.records] == [
            "environment variables that durableq does not know, and ignores: "
            "DURABLEQ_ENCRYPTION_KEY (did you mean DURABLEQ_ENCRYPTION_KEYS?), "
            "DURABLEQ_HANDOVR (did you mean DURABLEQ_HANDOVER?), DURABLEQ_LEAZE (did you mean DURABLEQ_LEASE?)"
        ]

    def test_variables_that_are_known_or_far_from_it_are_not_warned_of(self, caplog: pytest.LogCaptureFixture) -> None:
        read = [f"DURABLEQ_{name.upper()}" for name in QueueOptions.model_fields]
        own = ["DB", "URL", "TORTURE_SEED", "MODEL_EXAMPLES", "FUZZ_CASES", "LARGE", "TESTS_ALONE", "JOBS", "TASKS"]
        others = [f"DURABLEQ_{name}" for name in own]
        warn_of_misspelt(dict.fromkeys([*read, ENVIRONMENT_VARIABLE, HANDOVER_VARIABLE, *others, "LEAZE"], "1"))
        assert caplog.records == []

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
            ({"retries": 3}, "unknown option 'retries', did you mean 'max_attempts'? It counts the first try too"),
            ({"max_tries": 3}, "unknown option 'max_tries', did you mean 'max_attempts'?"),
            ({"countdown": 5}, "unknown option 'countdown', did you mean 'delay'?"),
            ({"_defer_by": 5}, "unknown option '_defer_by', did you mean 'delay'?"),
            ({"eta": 5}, "unknown option 'eta', did you mean 'run_at'?"),
            ({"soft_time_limit": 5}, "unknown option 'soft_time_limit', did you mean 'timeout'?"),
            ({"max_attempts": 0}, "greater than or equal to 1, got 0"),
            ({"priority": 10**9}, "'priority'"),
            ({"queue": ""}, "'queue'"),
            ({"queue": "q" * 201}, "'queue'"),
            ({"delay": -1}, "'delay'"),
            ({"run_at": datetime(2026, 1, 1)}, "timezone"),
            ({"delay": 5, "run_at": datetime(2026, 1, 1, tzinfo=UTC)}, "expected delay or run_at, got both"),
            (
                {"retry": 3},
                "option 'retry': expected a RetryPolicy, got 3; how often it is tried is max_attempts=3",
            ),
            ({"retry": RetryPolicy}, "option 'retry': expected a RetryPolicy, got <class "),
            ({"expires": 0}, "'expires'"),
            ({"timeout": 0}, "'timeout'"),
            ({"timeout": -1}, "'timeout'"),
            ({"timeout": "soon"}, "'timeout'"),
            ({"deadline": float("nan")}, "'deadline'"),
            ({"deadline": timedelta(0)}, "'deadline'"),
            ({"result_ttl": -1}, "'result_ttl'"),
            ({"delay": timedelta.max}, "'delay'"),
            ({"expires": timedelta.max}, "'expires'"),
            ({"timeout": timedelta.max}, "'timeout'"),
            ({"deadline": timedelta.max}, "'deadline'"),
            ({"result_ttl": timedelta.max}, "'result_ttl'"),
            ({"delay": 60, "expires": 60}, "expected delay to be shorter than expires (0:01:00), got 0:01:00"),
            ({"delay": 90, "deadline": 60}, "expected delay to be shorter than deadline (0:01:00), got 0:01:30"),
            (
                {"retry_on": (OSError, ValueError), "give_up_on": ValueError},
                "expected ValueError in retry_on or give_up_on, got it in both",
            ),
            ({"unique": "a", "idempotency_key": "b"}, "expected unique or idempotency_key, got both"),
            ({"unique": ""}, "'unique'"),
            ({"unique": "x" * 1_001}, "'unique'"),
            ({"idempotency_key": ""}, "'idempotency_key'"),
            ({"idempotency_key": 5}, "'idempotency_key'"),
            ({"tags": "urgent"}, "'tags'"),
            ({"tags": [""]}, "'tags'"),
            ({"tags": ["x"] * 51}, "'tags'"),
            ({"headers": {"": "x"}}, "'headers'"),
            ({"headers": {"a": 5}}, "'headers'"),
            ({"headers": {"a": "x" * 4_001}}, "'headers'"),
            ({"headers": {f"h{number}": "x" for number in range(51)}}, "'headers'"),
            ({"headers": {"a": "lone \ud800 surrogate"}}, "'headers'"),
            ({"runner": "fibre"}, "'runner'"),
            ({"retry_on": "ValueError"}, "'retry_on'"),
            ({"retry_on": int}, "'retry_on'"),
            ({"give_up_on": (ValueError, "KeyError")}, "'give_up_on'"),
            ({"on_dead": "mail me"}, "'on_dead'"),
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


class TestWhatAJobCanBeAsked:
    def test_nothing_is_asked_by_default(self) -> None:
        options = task_options()
        assert (options.expires, options.timeout, options.deadline, options.result_ttl) == (None,) * 4
        assert (options.unique, options.idempotency_key, options.tags, options.headers) == (None, None, (), {})
        assert (options.runner, options.on_success, options.on_retry, options.on_dead) == (None,) * 4

    def test_durations_are_seconds_or_timedeltas(self) -> None:
        options = task_options(timeout=1.5, expires=timedelta(hours=1), deadline=7200, result_ttl=0)
        assert (options.timeout, options.expires) == (timedelta(seconds=1.5), timedelta(hours=1))
        assert (options.deadline, options.result_ttl) == (timedelta(hours=2), timedelta(0))
        assert options.timeout_micros == 1_500_000
        assert task_options().timeout_micros is None

    @pytest.mark.parametrize(
        ("given", "is_plain"),
        [
            ({}, True),
            ({"queue": "mail", "priority": 1, "max_attempts": 9, "delay": 5, "retry": RetryPolicy()}, True),
            ({"retry_on": OSError, "on_dead": print, "runner": "thread"}, True),
            ({"timeout": 5}, False),
            ({"timeout": None}, False),
            ({"tags": ()}, False),
            ({"result_ttl": 0}, False),
        ],
    )
    def test_a_job_without_wishes_costs_nothing_for_those_of_others(self, given: Any, is_plain: bool) -> None:
        assert task_options(**given).is_plain is is_plain

    @pytest.mark.parametrize("name", sorted(CODE_OPTIONS))
    def test_code_belongs_to_the_task_and_cannot_be_changed_for_one_call(self, tmp_path: Path, name: str) -> None:
        dq = DurableQ(tmp_path / "a.db")

        @dq.task(name="work")
        def work() -> None: ...

        given: Any = {name: None}
        with pytest.raises(ConfigurationError, match=f"option '{name}' of work is code"):
            work.options(**given)

    def test_everything_else_can(self, tmp_path: Path) -> None:
        dq = DurableQ(tmp_path / "a.db")
        gentle = dq.retry_policy("gentle", wait=wait_fixed(60))

        @dq.task(name="work", timeout=5, tags=["a"], headers={"a": "b"})
        def work() -> None: ...

        changed = work.options(timeout=9, expires=60, deadline=90, result_ttl=0, tags=[], headers={}, retry=gentle)
        assert (changed.settings.timeout, changed.settings.tags) == (timedelta(seconds=9), ())
        assert (changed.settings.headers, changed.settings.retry) == ({}, gentle)
        assert (work.settings.timeout, work.settings.tags) == (timedelta(seconds=5), ("a",))
        assert work.options(timeout=None).settings.timeout is None

    @pytest.mark.parametrize(
        ("given", "expected"),
        [
            ({"timeout": 10, "deadline": 5}, "expected timeout to be no longer than deadline (0:00:05), got 0:00:10"),
            ({"expires": 5, "deadline": 5}, "expected expires to be shorter than deadline (0:00:05), got 0:00:05"),
            ({"timeout": 5, "expires": 4, "deadline": 5}, None),
            ({"timeout": 5, "expires": 4, "deadline": None}, None),
        ],
    )
    def test_a_limit_that_can_do_nothing_beside_the_deadline_is_refused(
        self, tmp_path: Path, given: dict[str, Any], expected: str | None
    ) -> None:
        dq = DurableQ(tmp_path / "a.db")

        def work() -> None: ...

        other = dq.task(name="other")(work)
        ways: list[Any] = [lambda: dq.task(name="work", **given)(work), lambda: other.options(**given)]
        for declare in ways:
            if expected is None:
                declare()
                continue
            with pytest.raises(ConfigurationError) as caught:
                declare()
            assert str(caught.value) == expected

    def test_the_deadline_of_one_call_goes_before_the_limits_of_its_task(self, tmp_path: Path) -> None:
        @DurableQ(tmp_path / "a.db").task(name="work", timeout=60, expires=60, deadline=600)
        def work() -> None: ...

        assert work.options(deadline=5).settings.deadline == timedelta(seconds=5)
        assert work.options(deadline=5, timeout=4).settings.timeout == timedelta(seconds=4)

    def test_a_policy_for_one_call_needs_a_name_that_a_row_can_hold(self, tmp_path: Path) -> None:
        dq, other = DurableQ(tmp_path / "a.db"), DurableQ(tmp_path / "b.db")

        @dq.task(name="work")
        def work() -> None: ...

        for stranger in (RetryPolicy(), RetryPolicy(name="gentle"), other.retry_policy("gentle")):
            with pytest.raises(ConfigurationError, match="a job's row cannot hold"):
                work.options(retry=stranger)

    def test_a_policy_is_declared_once_and_its_fields_are_checked(self, tmp_path: Path) -> None:
        dq = DurableQ(tmp_path / "a.db")
        gentle = dq.retry_policy("gentle", wait=wait_fixed(60))
        assert (gentle.name, gentle.delay(1, ValueError(), 0)) == ("gentle", 60)
        with pytest.raises(ConfigurationError, match="two retry policies are named 'gentle'"):
            dq.retry_policy("gentle", wait=wait_fixed(5))
        with pytest.raises(ConfigurationError, match="unknown option 'waits' of a retry policy, did you mean 'wait'"):
            dq.retry_policy("other", waits=wait_fixed(5))


class TestExceptionTypes:
    @pytest.mark.parametrize("types", [ValueError, (ValueError,), [ValueError]])
    def test_one_type_or_several_may_be_given(self, types: Any) -> None:
        assert task_options(retry_on=types).retry_on == (ValueError,)
        assert task_options(give_up_on=types).give_up_on == (ValueError,)

    def test_they_go_into_the_policy(self) -> None:
        policy = task_options(retry_on=OSError, give_up_on=FileNotFoundError).policy
        assert policy.delay(1, PermissionError(), 0) is not None
        assert policy.delay(1, FileNotFoundError(), 0) is None
        assert policy.delay(1, ValueError(), 0) is None

    def test_what_the_policy_gives_up_on_holds_as_well(self) -> None:
        own = RetryPolicy(wait=wait_fixed(5), give_up_on=KeyError, retry_on=LookupError)
        policy = task_options(retry=own, give_up_on=IndexError).policy
        assert [policy.delay(1, kind(), 0) for kind in (KeyError, IndexError, LookupError, ValueError)] == [
            None,
            None,
            5,
            None,
        ]

    def test_what_the_task_retries_stands_in_place_of_what_the_policy_does(self) -> None:
        own = RetryPolicy(wait=wait_fixed(5), retry_on=KeyError, retry=retry_if_exception_type(Exception))
        policy = task_options(retry=own, retry_on=(OSError, ValueError)).policy
        assert policy.delay(1, KeyError(), 0) is None
        assert policy.delay(1, ValueError(), 0) == 5

    def test_without_them_the_policy_is_as_it_was_given(self) -> None:
        own = RetryPolicy(wait=wait_fixed(5))
        assert task_options(retry=own).policy is own


class TestUnique:
    def test_by_default_all_arguments_count_while_the_first_is_unfinished(self) -> None:
        unique = Unique()
        assert (unique.args, unique.period, unique.key, unique.on_conflict) == (None, None, None, "return")
        assert unique.covers == COVERS[JobState.RUNNING]

    @pytest.mark.parametrize(
        ("states", "covers"),
        [
            ([], 0),
            (["queued", "scheduled", "blocked"], 0),
            (["running", JobState.SUCCEEDED], 1 + 2),
            (["dead", "cancelled"], 4 + 8),
            (list(JobState), 15),
            (["running", "running", JobState.RUNNING], 1),
        ],
    )
    def test_states_are_counted_once_each_however_they_are_written(self, states: Any, covers: int) -> None:
        assert Unique(states=states).covers == covers

    @pytest.mark.parametrize(
        ("given", "expected"),
        [
            ({"args": "to"}, "expected Unique(args=...) to be a list of names, got the text 'to'"),
            ({"args": ["to"], "key": "k"}, "expected Unique(args=...) or Unique(key=...), got both"),
            ({"period": timedelta(0)}, "expected Unique(period=...) to be longer than nothing, got 0:00:00"),
            ({"on_conflict": "ignore"}, "expected on_conflict to be 'return', 'replace' or 'raise', got 'ignore'"),
            ({"states": ["runing"]}, "unknown state 'runing' in Unique(states=...), did you mean 'running'?"),
            ({"key": ""}, "'key'"),
            ({"key": "x" * 1_001}, "'key'"),
            ({"key": 5}, "'key'"),
            ({"key": "lone \ud800 surrogate"}, "'key'"),
        ],
    )
    def test_what_cannot_be_right_is_refused(self, given: dict[str, Any], expected: str) -> None:
        with pytest.raises(ConfigurationError) as caught:
            Unique(**given)
        assert expected in str(caught.value)

    def test_a_task_may_have_one_or_a_text_for_it(self) -> None:
        assert task_options(unique="k").unique == "k"
        assert task_options(unique=Unique(args=["a"])).unique == Unique(args=["a"])
