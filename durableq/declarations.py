"""`Declarations`: what an app tells its queue before it runs: tasks, retry policies, handlers and middlewares.

A part of `DurableQ`. No I/O, and nothing of an event loop: decorators work while modules are imported.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, Protocol, TypeVar, Unpack, cast, overload

from durableq.context import TaskClass
from durableq.engine.hooks import ExceptionHandler, Hooks, Middleware
from durableq.errors import ConfigurationError, near
from durableq.models import Job
from durableq.options import RegistrationSettings
from durableq.registry import AnyTask, Registry, Task
from durableq.retry import RetryPolicy

P = ParamSpec("P")
R = TypeVar("R")
E = TypeVar("E", bound=BaseException)
M = TypeVar("M", bound=Middleware)


class RegisterTask(Protocol):
    """What ``@dq.task(...)`` gives: makes a function, or a class with a ``run``, a task of the same signature."""

    @overload
    def __call__(self, cls: type[TaskClass[P, R]], /) -> Task[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> Task[P, R]: ...


class RegisterHandler(Protocol[E]):
    """What ``@dq.exception_handler(kind)`` gives: takes a handler of that kind, and hands it back as it is."""

    def __call__(self, handler: Callable[[Job[Any], E], R], /) -> Callable[[Job[Any], E], R]: ...


class Declarations:
    """Declaring what a queue runs, and how. `DurableQ` is one; it is not made by itself."""

    _registry: Registry
    _hooks: Hooks

    @overload
    def task(self, cls: type[TaskClass[P, R]], /) -> Task[P, R]: ...
    @overload
    def task(self, fn: Callable[P, R], /) -> Task[P, R]: ...
    @overload
    def task(
        self,
        fn: None = None,
        /,
        *,
        name: str | None = None,
        aliases: Sequence[str] = (),
        **options: Unpack[RegistrationSettings],
    ) -> RegisterTask: ...
    def task(
        self,
        fn: Callable[..., Any] | None = None,
        /,
        *,
        name: str | None = None,
        aliases: Sequence[str] = (),
        **options: Unpack[RegistrationSettings],
    ) -> Any:
        """Register a task, with options: ``@dq.task`` or ``@dq.task(max_attempts=3)``.

        A function, or a class with a method ``run`` and options as attributes. ``name`` replaces the derived
        ``module:qualname``, and allows a function that is not at module level. ``aliases`` are names it had before:
        jobs stored under them run as this task. `durableq.options.TaskOptions` tells the options. Raises
        `InvalidTask` for what cannot be found again after a restart, `ConfigurationError` for an option that cannot
        be right and for a second task of one name.
        """

        def register(function: Callable[..., Any]) -> AnyTask:
            given = cast("Mapping[str, Any]", options)
            task = self._registry.register(function, name=name, aliases=aliases, options=given)
            if task.settings.on_success is not None:
                self._hooks.expect_successes()
            return task

        return register if fn is None else register(fn)

    def retry_policy(self, name: str, **strategies: Any) -> RetryPolicy:
        """Declare a retry policy by a name that a job's row can hold: for ``send.options(retry=gentle)``.

        Takes the fields of `RetryPolicy`. Declare it where the worker imports it too. Raises `ConfigurationError`.
        """
        known = {field.name for field in dataclasses.fields(RetryPolicy)} - {"name"}
        for word in strategies:
            if word not in known:
                raise ConfigurationError(f"unknown option {word!r} of a retry policy{near(word, known)}")
        policy = RetryPolicy(**strategies, name=name)
        self._registry.declare_policy(policy)
        return policy

    def exception_handler(self, kind: type[E]) -> RegisterHandler[E]:
        """Call the decorated ``handler(job, error)`` for failures of any task by this exception type.

        For every failed attempt (``job.state`` is then scheduled or queued) and for every death (dead), once it is
        stored. The handler of the nearest type is taken, as in FastAPI. What it raises is logged. Raises
        `ConfigurationError` for a second one of a type, and for one that cannot be called so.
        """

        def register(handler: Callable[[Job[Any], E], R], /) -> Callable[[Job[Any], E], R]:
            self._hooks.handle(kind, cast("ExceptionHandler", handler))
            return handler

        return register

    def middleware(self, function: M) -> M:
        """Run the decorated async generator around every attempt: ``async def timed(job): ...; yield; ...``.

        ``job`` is what `current_job` gives; its ``headers`` may be read, and added to for follow-up jobs. An
        exception of the attempt is thrown in at the ``yield``; it cannot be hidden. What the middleware raises itself
        fails the attempt. The first registered stands outermost.
        """
        self._hooks.wrap(function)
        return function

    def find_task(self, name: str) -> AnyTask | None:
        """Return the task of a stored name, or None when this app does not offer it."""
        return self._registry.find(name)
