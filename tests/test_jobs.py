"""What a call becomes: a job with everything that its task's options, and those of the call, make of it."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from durableq.errors import ConfigurationError, DuplicateJob, InvalidArguments, PayloadTooLarge
from durableq.ids import derived_job_id
from durableq.jobs import JobMaker
from durableq.models import COVERS, PLAIN, Job, JobState, UniqueClaim
from durableq.names import root_of_caller
from durableq.options import CODE_OPTIONS, TaskOptions, Unique
from durableq.registry import AnyTask, Registry
from durableq.retry import RetryPolicy
from durableq.testing import ManualClock

HERE = "tests.test_jobs"
NOW = datetime(2026, 1, 1, tzinfo=UTC)
HOUR = timedelta(hours=1)


def send(to: str, subject: str = "hello", copies: int = 1, **more: Any) -> None: ...


def plain(number: int = 0) -> None: ...


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(NOW)


@pytest.fixture
def registry() -> Registry:
    return Registry(root_of_caller())


@pytest.fixture
def maker(registry: Registry, clock: ManualClock) -> JobMaker:
    return JobMaker(registry=registry, clock=clock, max_payload_bytes=1_000)


@pytest.fixture
def task(registry: Registry) -> AnyTask:
    return registry.register(send, name="send", options={})


MakeJob = Callable[..., Job[Any]]


@pytest.fixture
def made(maker: JobMaker, task: AnyTask) -> MakeJob:
    """Makes a job of ``send("ann")`` with these options."""
    return lambda **options: maker.new(task.options(**options), ("ann",), {})


def key_of(job: Job[Any]) -> str:
    assert job.unique_key is not None
    return job.unique_key


class TestJobs:
    def test_a_plain_call_is_a_queued_job_with_the_defaults(self, maker: JobMaker) -> None:
        job = maker.new(send, ("ann",), {"copies": 2})
        assert (job.task, job.queue, job.priority, job.state) == (f"{HERE}:send", "default", 0, JobState.QUEUED)
        assert (job.args, job.max_attempts) == ({"to": "ann", "copies": 2}, 5)
        assert (job.created_at, job.run_at) == (NOW, NOW)
        assert (job.attempt, job.crashes, job.started_at, job.finished_at) == (0, 0, None, None)
        assert job.extras is PLAIN, "a plain job costs nothing for what it does without"

    def test_every_job_has_an_id_of_its_own_that_tells_its_age(self, maker: JobMaker, clock: ManualClock) -> None:
        ids = []
        for _ in range(100):
            ids.append(maker.new(plain, (), {}).id)
            clock.advance(0.001)
        assert sorted(set(ids)) == ids

    def test_arguments_are_checked_at_the_call(self, maker: JobMaker) -> None:
        with pytest.raises(InvalidArguments, match="'to' is missing"):
            maker.new(send, (), {})
        with pytest.raises(PayloadTooLarge, match="the limit is 1,000"):
            maker.new(send, ("x" * 1_000,), {})

    def test_options_of_the_task_are_those_of_its_jobs(self, registry: Registry, maker: JobMaker) -> None:
        options = {"queue": "mail", "priority": 3, "max_attempts": 2, "tags": ["a", "b"], "timeout": 5}
        registry.register(send, options=options)
        job = maker.new(send, ("ann",), {})
        assert (job.queue, job.priority, job.max_attempts) == ("mail", 3, 2)
        assert (job.tags, job.timeout) == (("a", "b"), timedelta(seconds=5))

    @pytest.mark.parametrize(
        ("option", "value", "kept", "seen"),
        [
            ("queue", "mail", "queue", "mail"),
            ("priority", -7, "priority", -7),
            ("max_attempts", 1, "max_attempts", 1),
            ("delay", 90, "run_at", NOW + timedelta(seconds=90)),
            ("run_at", NOW + HOUR, "run_at", NOW + HOUR),
            ("expires", 60, "expires_at", NOW + timedelta(minutes=1)),
            ("timeout", timedelta(milliseconds=1), "timeout", timedelta(milliseconds=1)),
            ("deadline", HOUR, "deadline_at", NOW + HOUR),
            ("tags", ["a", "b"], "tags", ("a", "b")),
            ("headers", {"tenant": "x"}, "headers", {"tenant": "x"}),
        ],
    )
    def test_an_option_of_a_call_is_its_jobs_alone(
        self, maker: JobMaker, task: AnyTask, option: str, value: Any, kept: str, seen: Any
    ) -> None:
        assert getattr(maker.new(task.options(**{option: value}), ("ann",), {}), kept) == seen
        assert getattr(maker.new(task, ("ann",), {}), kept) != seen

    def test_the_rest_of_the_options_are_for_the_worker_alone(self, registry: Registry, made: MakeJob) -> None:
        assert made(result_ttl=0).extras.result_ttl == 0
        assert made(result_ttl=HOUR).extras.result_ttl == 3_600_000_000
        assert made(result_ttl=None).extras.result_ttl is None
        registry.declare_policy(RetryPolicy(name="gentle"))
        assert made(retry=registry.policy_named("gentle")).extras.retry == "gentle"
        assert made(tags=["a"]).extras.retry is None

    def test_no_option_of_a_call_is_forgotten(self) -> None:
        """One that is new needs a test above."""
        of_calls = TaskOptions.model_fields.keys() - CODE_OPTIONS
        assert of_calls == {
            "queue", "priority", "max_attempts", "retry", "delay", "run_at", "expires", "timeout", "deadline", "unique",
            "idempotency_key", "result_ttl", "tags", "headers",
        }  # fmt: skip

    def test_the_name_of_a_declared_policy_goes_with_the_jobs_of_a_task_that_has_it(
        self, registry: Registry, maker: JobMaker
    ) -> None:
        gentle = RetryPolicy(name="gentle")
        registry.declare_policy(gentle)
        registry.register(plain, options={"retry": gentle})
        assert maker.new(plain, (), {}).extras.retry == "gentle"

    def test_a_job_starts_at_its_time(self, made: MakeJob) -> None:
        assert made(delay=0.5).state is JobState.SCHEDULED
        assert made(delay=0).state is JobState.QUEUED
        assert made(run_at=NOW + timedelta(microseconds=1)).state is JobState.SCHEDULED
        assert made(run_at=NOW - HOUR).state is JobState.QUEUED

    def test_times_are_utc_whatever_zone_they_were_given_in(self, made: MakeJob) -> None:
        elsewhere = datetime(2026, 6, 1, 12, tzinfo=timezone(timedelta(hours=5, minutes=30)))
        job = made(run_at=elsewhere)
        assert (job.run_at, job.run_at.tzinfo) == (elsewhere, UTC)
        with pytest.raises(ConfigurationError, match="'run_at'"):
            made(run_at=datetime(2026, 6, 1))

    def test_headers_are_inherited_below_those_of_the_task(self, maker: JobMaker, task: AnyTask) -> None:
        inherited = {"trace": "1", "tenant": "theirs"}
        own = task.options(headers={"tenant": "own"})
        assert maker.new(own, ("ann",), {}, headers=inherited).headers == {"trace": "1", "tenant": "own"}
        assert maker.new(task, ("ann",), {}, headers=inherited).headers == inherited
        assert maker.new(task, ("ann",), {}, headers={}).extras is PLAIN


class TestUniqueKeys:
    @pytest.fixture
    def key(self, maker: JobMaker, task: AnyTask) -> Callable[..., str]:
        """Gives the key of ``send(*args, **kwargs)`` for a `Unique`."""

        def key(unique: Unique | str, *args: Any, **kwargs: Any) -> str:
            return key_of(maker.new(task.options(unique=unique), args, kwargs))

        return key

    def test_without_it_a_job_has_no_key(self, made: MakeJob) -> None:
        assert made().unique_key is None
        assert made(unique=None, tags=["a"]).unique_key is None

    def test_all_arguments_count_by_default(self, key: Callable[..., str]) -> None:
        keys = {key(Unique(), *args) for args in [("ann",), ("bob",), ("ann", "hi"), ("ann", "hi", 2)]}
        assert len(keys) == 4
        assert key(Unique(), "ann", "hi") in keys

    def test_it_does_not_matter_how_and_in_which_order_arguments_are_given(self, key: Callable[..., str]) -> None:
        first = key(Unique(), "ann", "hi", 2, x={"a": 1, "b": [1, 2]}, y=3)
        assert key(Unique(), y=3, x={"b": [1, 2], "a": 1}, copies="2", to="ann", subject="hi") == first
        assert key(Unique(), "ann", "hi", 2, x={"a": 1, "b": [2, 1]}, y=3) != first
        assert key(Unique(args=["to", "copies"]), "ann", copies=2) == key(Unique(args=["copies", "to"]), "ann", "hi", 2)

    def test_only_the_named_arguments_count(self, key: Callable[..., str]) -> None:
        by_recipient = Unique(args=["to"])
        assert key(by_recipient, "ann", "hi") == key(by_recipient, "ann", "bye", 7)
        assert key(by_recipient, "ann") != key(by_recipient, "bob")
        assert key(Unique(args=[]), "ann") == key(Unique(args=()), "bob"), "of none, all jobs of the task are the same"

    def test_values_of_different_types_are_different(self, maker: JobMaker, registry: Registry) -> None:
        def take(value: Any) -> None: ...

        task = registry.register(take, name="take", options={"unique": Unique()})
        values = [1, "1", True, None, "", [], [1], {"a": 1}, {"a": None}]
        assert len({key_of(maker.new(task, (value,), {})) for value in values}) == len(values)

    def test_a_text_stands_in_place_of_the_arguments(self, key: Callable[..., str]) -> None:
        assert key("daily", "ann") == key(Unique(key="daily"), "bob")
        assert key("daily", "ann") != key("weekly", "ann")

    def test_tasks_do_not_share_keys(self, maker: JobMaker, registry: Registry) -> None:
        """Whatever stands in names and keys."""
        keys = set()
        for name, text in [("mail", "send:1"), ("mail:send", "1"), ('mail","send', "1"), ("mail", 'send","1')]:
            registry.register(plain, name=name, options={})
            task = registry.find(name)
            assert task is not None
            keys.add(key_of(maker.new(task.options(unique=text), (), {})))
        assert len(keys) == 4

    def test_a_period_is_a_stretch_of_time_since_1970(self, key: Callable[..., str], clock: ManualClock) -> None:
        hourly = Unique(args=["to"], period=HOUR)
        first = key(hourly, "ann")
        clock.advance(HOUR - timedelta(microseconds=1))
        assert key(hourly, "ann") == first
        clock.advance(timedelta(microseconds=1))
        second = key(hourly, "ann")
        assert second not in (first, key(Unique(args=["to"]), "ann"))
        clock.step_wall(-HOUR)
        assert key(hourly, "ann") == first, "the key is the wall clock's, on every host"

    def test_a_period_goes_with_a_text_too(self, key: Callable[..., str], clock: ManualClock) -> None:
        daily = Unique(key="report", period=timedelta(days=1))
        first = key(daily, "ann")
        clock.advance(timedelta(days=1))
        assert first != key(daily, "ann")
        assert key(Unique(key="report"), "ann") not in (first, key(daily, "ann"))

    @pytest.mark.parametrize(
        ("unique", "covers", "on_conflict"),
        [
            (Unique(), COVERS[JobState.RUNNING], "return"),
            (Unique(states=[]), 0, "return"),
            (Unique(states=["queued", JobState.SCHEDULED]), 0, "return"),
            (Unique(states=["succeeded", "dead"], on_conflict="raise"), 2 + 4, "raise"),
            (Unique(states=list(JobState), on_conflict="replace"), 1 + 2 + 4 + 8, "replace"),
        ],
    )
    def test_states_and_conflicts_go_into_the_claim(
        self, made: MakeJob, unique: Unique, covers: int, on_conflict: str
    ) -> None:
        claim = made(unique=unique).extras.unique
        assert isinstance(claim, UniqueClaim)
        assert (claim.covers, claim.on_conflict) == (covers, on_conflict)

    def test_who_knows_only_the_key_tells_it_without_the_hash(self, made: MakeJob) -> None:
        for unique, claim in (
            (Unique(), "the unique key that send makes of its arguments"),
            ("Zoë's", 'the unique key "Zoë\'s" of send'),
            (Unique(key="daily", period=HOUR), "the unique key 'daily' of send"),
        ):
            text = str(DuplicateJob("J1", key_of(made(unique=unique))))
            assert text == f"job J1 already holds {claim}; nothing was stored"
        assert "holds the unique key 'k'; nothing" in str(DuplicateJob("J1", "k"))

    def test_a_key_is_readable(self, made: MakeJob) -> None:
        assert json.loads(key_of(made(unique="Zoë's"))) == ["send", "Zoë's"]
        assert "Zoë" in key_of(made(unique="Zoë's"))


class TestDerivedIds:
    def test_jobs_of_one_key_have_one_id_whenever_and_wherever_they_are_made(
        self, made: MakeJob, clock: ManualClock
    ) -> None:
        first = made(idempotency_key="order-17")
        clock.advance(timedelta(days=400))
        assert made(idempotency_key="order-17").id == first.id == derived_job_id("send", "order-17")
        assert first.extras.is_idempotent
        assert not made(tags=["a"]).extras.is_idempotent

    def test_other_keys_and_other_tasks_have_other_ids(self, maker: JobMaker, registry: Registry) -> None:
        ids = set()
        for name in ("one", "two"):
            task: AnyTask = registry.register(plain, name=name, options={})
            ids |= {maker.new(task.options(idempotency_key=key), (), {}).id for key in ("a", "b", "A", " a")}
        assert len(ids) == 8

    def test_arguments_are_no_part_of_the_id(self, maker: JobMaker, task: AnyTask) -> None:
        """Storing tells a repetition from a key that is used for something else."""
        keyed = task.options(idempotency_key="k")
        assert maker.new(keyed, ("ann",), {}).id == maker.new(keyed, ("bob",), {}).id

    def test_a_derived_id_looks_like_any_other(self) -> None:
        groups = derived_job_id("send", "k").split("-")
        assert [len(group) for group in groups] == [8, 4, 4, 4, 12]
        assert groups[2][0] == "8", "a UUID of version 8"
        assert groups[3][0] in "89ab"
        int("".join(groups), 16)


class TestOptions:
    def test_options_are_added_to_those_of_the_task_which_stays_as_it_is(self, registry: Registry) -> None:
        task = registry.register(plain, options={"queue": "mail", "priority": 3})
        changed = task.options(priority=9, tags=["now"])
        assert (changed.settings.queue, changed.settings.priority, changed.settings.tags) == ("mail", 9, ("now",))
        assert (task.settings.priority, task.settings.tags) == (3, ())
        assert changed.options(queue="slow").settings.priority == 9

    def test_the_later_of_two_that_exclude_each_other_holds(self, registry: Registry) -> None:
        at = datetime(2030, 1, 1, tzinfo=UTC)
        by_delay = registry.register(plain, options={"delay": 60, "unique": "one"})
        by_time = by_delay.options(run_at=at)
        assert (by_time.settings.delay, by_time.settings.run_at) == (None, at)
        again = by_time.options(delay=5)
        assert (again.settings.delay, again.settings.run_at) == (timedelta(seconds=5), None)
        by_key = by_delay.options(idempotency_key="two")
        assert (by_key.settings.unique, by_key.settings.idempotency_key) == (None, "two")
        with pytest.raises(ConfigurationError, match="delay or run_at, got both"):
            by_delay.options(delay=1, run_at=at)

    @pytest.mark.parametrize(
        ("changes", "text"),
        [
            ({"retry_on": (OSError,)}, "'retry_on' of .*:plain is code and belongs to the task"),
            ({"runner": "process"}, "'runner' of .* is code"),
            ({"on_dead": print}, "'on_dead' of .* is code"),
            ({"priorty": 1}, "unknown option 'priorty', did you mean 'priority'?"),
            ({"name": "other"}, "unknown option 'name'"),
            ({"retry": RetryPolicy()}, "Declare it with a name"),
            (
                {"unique": Unique(args=["numbr"])},
                r"no argument 'numbr', named in Unique\(args=...\), did you mean 'number'",
            ),
        ],
    )
    def test_what_a_single_job_cannot_have_is_refused_by_name(
        self, registry: Registry, changes: dict[str, Any], text: str
    ) -> None:
        task = registry.register(plain, options={})
        with pytest.raises(ConfigurationError, match=text):
            task.options(**changes)

    def test_unique_arguments_are_checked_when_the_task_is_registered_too(self, registry: Registry) -> None:
        with pytest.raises(ConfigurationError, match=r"plain has no argument 'numbr'"):
            registry.register(plain, options={"unique": Unique(args=["numbr"])})

    def test_a_job_may_name_a_retry_policy_that_was_declared(self, registry: Registry) -> None:
        gentle = RetryPolicy(name="gentle")
        task = registry.register(plain, options={})
        with pytest.raises(ConfigurationError, match="Declare it"):
            task.options(retry=gentle)
        registry.declare_policy(gentle)
        assert task.options(retry=gentle).settings.retry.name == "gentle"
        assert registry.policy_named("gentle") is gentle
        assert registry.policy_named("harsh") is None

    def test_two_retry_policies_of_one_name_are_refused(self, registry: Registry) -> None:
        gentle = RetryPolicy(name="gentle")
        registry.declare_policy(gentle)
        registry.declare_policy(gentle)
        with pytest.raises(ConfigurationError, match="two retry policies are named 'gentle'"):
            registry.declare_policy(RetryPolicy(name="gentle", give_up_on=(OSError,)))
        assert registry.policy_named("gentle") is gentle
