"""Tasks in the form of classes: options as attributes, the work in ``run``, what follows in methods of their own."""

import abc
import asyncio
import json
import os
import threading
from collections.abc import AsyncIterator, Iterator
from functools import wraps
from pathlib import Path
from typing import Annotated, Any

import pytest
from fastapi import Depends
from tenacity import wait_none

from durableq import INJECTED, DurableQ, Job, JobState, RetryPolicy, Unique, current_job
from durableq.errors import ConfigurationError, InvalidTask
from durableq.names import root_of_caller
from durableq.registry import Registry
from tests.engine.helpers import finished
from tests.support import eventually

HERE = "tests.test_class_tasks"
AT_ONCE = RetryPolicy(wait=wait_none())


class SendInvoice:
    """A task with options."""

    queue = "mail"
    max_attempts = 3
    retry = AT_ONCE
    tags = ("money",)
    _note = "not an option"
    currency = "EUR"

    async def run(self, order_id: int, *, copies: int = 1) -> str:
        assert isinstance(self, SendInvoice)
        return f"{order_id} x {copies} in {self.currency}"


class Draw:
    def run(self, page: int) -> list[int]:
        return [page]


class InAProcess:
    runner = "process"

    def run(self) -> int:
        return os.getpid()


class Base:
    queue = "reports"
    priority = 5
    title = "base"

    async def run(self, number: int) -> str:
        return f"{self.title} {number}"


class Daily(Base):
    priority = 7
    title = "daily"


class Weekly(Base):
    title = "weekly"


class Outer:
    class Inner:
        def run(self) -> str:
            return "inner"


class Failing:
    """Notes what is called on it, and when it was made."""

    max_attempts = 2
    retry = AT_ONCE
    said: list[tuple[Any, ...]] = []  # noqa: RUF012 - shared on purpose: a fresh instance knows nothing

    def __init__(self) -> None:
        self.attempt_seen = 0

    async def run(self, succeeds: bool) -> str:
        self.attempt_seen = current_job().attempt
        if not succeeds:
            raise ValueError("no")
        return "done"

    def on_success(self, job: Job[Any]) -> None:
        self.said.append(("success", job.id, job.state, self.attempt_seen))

    async def on_retry(self, job: Job[Any], error: BaseException) -> None:
        await asyncio.sleep(0)
        self.said.append(("retry", job.id, job.attempt, str(error), self.attempt_seen))

    @staticmethod
    def on_dead(job: Job[Any], error: BaseException) -> None:
        Failing.said.append(("dead", job.id, job.attempt, str(error)))


@pytest.fixture
def registry() -> Registry:
    return Registry(root_of_caller())


class TestRegistering:
    def test_attributes_are_options(self, registry: Registry) -> None:
        task = registry.register(SendInvoice, options={})
        assert task.name == f"{HERE}:SendInvoice"
        assert (task.settings.queue, task.settings.max_attempts, task.settings.tags) == ("mail", 3, ("money",))
        assert task.settings.retry is AT_ONCE
        assert task.settings.priority == 0
        assert set(json.loads(task.codec.json_schema or "")["properties"]) == {"order_id", "copies"}

    def test_an_option_of_the_decorator_goes_before_an_attribute(self, registry: Registry) -> None:
        task = registry.register(SendInvoice, options={"queue": "slow", "priority": 1})
        assert (task.settings.queue, task.settings.priority, task.settings.max_attempts) == ("slow", 1, 3)

    def test_a_class_is_found_again_by_its_name(self, registry: Registry) -> None:
        task = registry.register(SendInvoice, aliases=["old:SendInvoice"], options={})
        assert registry.find(f"{HERE}:SendInvoice") is registry.find("old:SendInvoice") is task
        assert registry.task_for(SendInvoice) is task

    def test_registering_a_class_again_replaces_its_options(self, registry: Registry) -> None:
        registry.register(SendInvoice, options={"priority": 1})
        registry.register(SendInvoice, options={"priority": 2})
        assert registry.task_for(SendInvoice).settings.priority == 2

    def test_a_class_that_nobody_registered_is_no_task(self, registry: Registry) -> None:
        with pytest.raises(InvalidTask, match="expected a function, got a class"):
            registry.task_for(SendInvoice)
        assert registry.find(f"{HERE}:SendInvoice") is None

    def test_attributes_are_checked_as_options_are(self, registry: Registry) -> None:
        class Wrong:
            max_attempts = 0

            def run(self) -> None: ...

        with pytest.raises(ConfigurationError, match="'max_attempts': input should be greater than or equal to 1"):
            registry.register(Wrong, name="wrong", options={})

    @pytest.mark.parametrize(
        ("attribute", "meant"), [("max_atempts", "max_attempts"), ("prioritty", "priority"), ("retryon", "retry_on")]
    )
    def test_a_misspelt_attribute_is_refused(self, registry: Registry, attribute: str, meant: str) -> None:
        misspelt = type("Misspelt", (Draw,), {attribute: 3})
        below = type("Below", (misspelt,), {})
        for cls in (misspelt, below):
            with pytest.raises(
                ConfigurationError, match=f"Misspelt: unknown option '{attribute}', did you mean '{meant}'"
            ):
                registry.register(cls, name="work", options={})

    def test_a_misspelt_handler_is_refused(self, registry: Registry) -> None:
        class Misspelt:
            def run(self) -> None: ...
            def on_sucess(self, job: Job[Any]) -> None: ...

        with pytest.raises(ConfigurationError, match="unknown option 'on_sucess', did you mean 'on_success'"):
            registry.register(Misspelt, name="work", options={})

    def test_a_handler_of_a_class_that_cannot_be_called_is_refused(self, registry: Registry) -> None:
        class Wrong:
            def run(self) -> None: ...
            def on_dead(self, job: Job[Any]) -> None: ...

        with pytest.raises(ConfigurationError, match=r"takes \(job, error\), got .*Wrong.on_dead\(job\): too many"):
            registry.register(Wrong, name="work", options={})

    def test_attributes_and_methods_of_its_own_are_left_alone(self, registry: Registry) -> None:
        class Own:
            template = "invoice.html"
            _queue = "private"

            def run(self) -> None: ...
            def queues(self) -> None: ...
            def retry_later(self) -> None: ...

        assert registry.register(Own, name="own", options={}).settings.model_fields_set == set()

    def test_options_and_run_are_inherited(self, registry: Registry) -> None:
        daily, weekly = registry.register(Daily, options={}), registry.register(Weekly, options={})
        assert (daily.name, weekly.name) == (f"{HERE}:Daily", f"{HERE}:Weekly")
        assert (daily.settings.queue, daily.settings.priority) == ("reports", 7)
        assert (weekly.settings.queue, weekly.settings.priority) == ("reports", 5)
        assert registry.task_for(Daily) is daily

    def test_two_classes_with_one_inherited_run_are_not_the_same(self, registry: Registry) -> None:
        registry.register(Daily, name="report", options={})
        with pytest.raises(ConfigurationError, match=r"two tasks are named 'report': Daily .* and Weekly"):
            registry.register(Weekly, name="report", options={})

    def test_unique_arguments_are_those_of_run(self, registry: Registry) -> None:
        registry.register(SendInvoice, options={"unique": Unique(args=["order_id"])})
        with pytest.raises(ConfigurationError, match="no argument 'order'"):
            registry.register(SendInvoice, options={"unique": Unique(args=["order"])})

    def test_runs_go_where_functions_of_their_kind_go(self, registry: Registry) -> None:
        assert registry.register(SendInvoice, options={}).runner == "loop"
        assert registry.register(Draw, options={}).runner == "thread"
        assert registry.register(InAProcess, options={}).runner == "process"
        with pytest.raises(ConfigurationError, match=r"Draw is a plain def"):
            registry.register(Draw, options={"runner": "loop"})
        with pytest.raises(ConfigurationError, match=r"SendInvoice is an async def"):
            registry.register(SendInvoice, options={"runner": "thread"})

    def test_a_class_inside_another_needs_a_name(self, registry: Registry) -> None:
        with pytest.raises(InvalidTask, match="it belongs to a class"):
            registry.register(Outer.Inner, options={})
        assert registry.register(Outer.Inner, name="inner", options={}).function() == "inner"

    def test_a_class_inside_a_function_needs_a_name(self, registry: Registry) -> None:
        class Local:
            def run(self) -> str:
                return "local"

        with pytest.raises(InvalidTask, match="it is defined inside another function"):
            registry.register(Local, options={})
        assert registry.register(Local, name="local", options={}).function() == "local"
        again = registry.register(Local, name="local", options={"priority": 1})
        assert registry.task_for(Local) is registry.find("local") is again


class TestRefused:
    """What could not be made, or run, is said when the app is imported."""

    def refusal(self, cls: type) -> str:
        with pytest.raises(InvalidTask) as caught:
            Registry(root_of_caller()).register(cls, name="work", options={})
        return str(caught.value)

    def test_a_class_without_run(self) -> None:
        class Empty: ...

        class Static:
            @staticmethod
            def run() -> None: ...

        class OfClass:
            @classmethod
            def run(cls) -> None: ...

        class Below(Static): ...

        for cls in (Empty, Static, OfClass, Below):
            assert "expected a class with a method run(self, ...), it has none" in self.refusal(cls)

    def test_a_class_that_needs_arguments(self) -> None:
        class Made:
            def __init__(self, url: str) -> None: ...
            def run(self) -> None: ...

        class ByNew:
            def __new__(cls, *, url: str) -> "ByNew":
                return super().__new__(cls)

            def run(self) -> None: ...

        class Abstract(abc.ABC):
            @abc.abstractmethod
            def run(self) -> None: ...

        for cls in (Made, ByNew, Abstract):
            assert "it must be possible to make one without arguments" in self.refusal(cls)

    def test_a_run_that_runs_nothing(self) -> None:
        class Generates:
            def run(self) -> Iterator[int]:
                yield 1

        class GeneratesAsync:
            async def run(self) -> AsyncIterator[int]:
                yield 1

        for cls in (Generates, GeneratesAsync):
            assert "it is a generator, calling it runs nothing" in self.refusal(cls)

    def test_a_run_that_takes_what_cannot_be_stored(self) -> None:
        class Takes:
            def run(self, draw: Draw) -> None: ...

        assert "schema" in self.refusal(Takes)

    def test_a_constructor_with_defaults_is_no_hindrance(self, registry: Registry) -> None:
        class Made:
            def __init__(self, url: str = "http://here", *more: str, **options: str) -> None:
                self.url = url

            def run(self) -> str:
                return self.url

        assert registry.register(Made, name="made", options={}).function() == "http://here"


class TestRunning:
    async def test_a_unit_test_calls_a_class_task_as_a_function(self, registry: Registry) -> None:
        send: Any = registry.register(SendInvoice, options={})
        assert await send(3, copies=2) == "3 x 2 in EUR"
        assert registry.register(Draw, options={})(7) == [7]
        with pytest.raises(TypeError, match="order_id"):
            await send()

    async def test_jobs_of_classes_run_and_give_results(self, tmp_path: Path) -> None:
        dq = DurableQ(tmp_path / "jobs.db")
        send, draw, daily = dq.task(SendInvoice), dq.task(Draw), dq.task(priority=1)(Daily)
        async with dq.running():
            jobs = [await dq.add_task(send, 3, copies=2), await dq.add_task(SendInvoice, order_id=4)]
            assert [await dq.result(job) for job in jobs] == ["3 x 2 in EUR", "4 x 1 in EUR"]
            assert await dq.result(await dq.add_task(draw, 7)) == [7]
            assert await dq.result(await dq.add_task(daily, 1)) == "daily 1"
            changed = await dq.get(await dq.add_task(send.options(queue="slow", tags=["b"]), 5))
        assert [(job.task, job.queue, job.tags) for job in (jobs[0], changed)] == [
            (f"{HERE}:SendInvoice", "mail", ("money",)),
            (f"{HERE}:SendInvoice", "slow", ("b",)),
        ]

    async def test_every_attempt_has_an_instance_of_its_own(self, tmp_path: Path) -> None:
        dq = DurableQ(tmp_path / "jobs.db")
        made: list[int] = []

        @dq.task(name="count", retry=AT_ONCE)
        class Count:
            def __init__(self) -> None:
                made.append(threading.get_ident())
                self.runs = 0
                if len(made) == 1:
                    raise ConnectionError("not yet")

            def run(self) -> int:
                self.runs += 1
                if current_job().attempt < 3:
                    raise ConnectionError("not yet")
                return self.runs

        async with dq.running():
            job = await finished(dq, await dq.add_task(Count))
        assert (job.state, job.attempt, job.result) == (JobState.SUCCEEDED, 3, 1)
        assert len(made) == 3, "a constructor that raises fails its attempt"
        assert threading.get_ident() not in made, "a plain run is constructed where it runs, off the event loop"

    async def test_what_follows_an_attempt_is_a_method_of_a_fresh_instance(self, tmp_path: Path) -> None:
        Failing.said.clear()
        dq = DurableQ(tmp_path / "jobs.db")
        failing = dq.task(Failing)
        async with dq.running():
            good, bad = await dq.add_task(failing, True), await dq.add_task(failing, False)
            await eventually(lambda: len(Failing.said) == 3)
        assert sorted(Failing.said) == [
            ("dead", bad.id, 2, "no"),
            ("retry", bad.id, 1, "no", 0),
            ("success", good.id, JobState.SUCCEEDED, 0),
        ]

    async def test_what_is_injected_comes_to_run(self, tmp_path: Path) -> None:
        Db = Annotated[str, Depends(lambda: "a session")]
        dq = DurableQ(tmp_path / "jobs.db")

        class Save:
            async def run(self, value: int, *, db: Any = INJECTED) -> str:
                return f"{value} in {db}"

        Save.run.__annotations__["db"] = Db
        save = dq.task(name="save")(Save)
        async with dq.running():
            job = await dq.add_task(save, 1)
            assert await dq.result(job) == "1 in a session"
        assert job.args == {"value": 1}
        assert await save(1, db="my own") == "1 in my own"
        with pytest.raises(TypeError, match="'db' of 'save' is injected by durableq"):
            await save(1)

    async def test_a_wrapped_run_is_awaited_when_it_is_awaitable(self, tmp_path: Path) -> None:
        def noted(function: Any) -> Any:
            @wraps(function)
            def wrapper(*args: Any, **kwargs: Any) -> Any:
                return function(*args, **kwargs)

            return wrapper

        class Wrapped:
            @noted
            async def run(self, number: int) -> int:
                return number + 1

        dq = DurableQ(tmp_path / "jobs.db")
        wrapped = dq.task(name="wrapped")(Wrapped)
        async with dq.running():
            assert await dq.result(await dq.add_task(wrapped, 1)) == 2

    async def test_a_class_runs_in_a_child_process(self, tmp_path: Path) -> None:
        dq = DurableQ(tmp_path / "jobs.db")
        in_a_process = dq.task(InAProcess)
        async with dq.running():
            assert await dq.result(await dq.add_task(in_a_process), timeout=30) != os.getpid()
