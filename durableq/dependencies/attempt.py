"""One attempt's dependencies: set up step by step, torn down in reverse, whatever happens in between."""

import types
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, Final
from weakref import WeakKeyDictionary

from anyio import CancelScope, Semaphore
from anyio.lowlevel import RunVar

from durableq.dependencies.plan import Plan, Step
from durableq.dependencies.signatures import Kind
from durableq.dependencies.threads import threads


class Resolution:
    """The values of one attempt, and what has to be torn down after it."""

    __slots__ = ("_exits", "_plan", "_scope")

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._exits: AsyncExitStack | None = None

    async def __aenter__(self) -> dict[str, Any]:
        values: list[Any] = []
        if self._plan.has_teardown:
            self._exits = AsyncExitStack()
            # Around all scopes that dependencies may open: it keeps an anyio cancellation from their teardown.
            self._scope = self._exits.enter_context(CancelScope())
        try:
            for step in self._plan.steps:
                arguments = {name: values[slot] for name, slot in step.parameters}
                if step.limit is None and step.kind is Kind.COROUTINE:
                    values.append(await step.open(**arguments))
                else:
                    values.append(await self._take(step, arguments))
        except BaseException as error:
            await self.__aexit__(type(error), error, error.__traceback__)
            raise
        return {name: values[slot] for name, slot in self._plan.targets}

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        if self._exits is not None:
            self._scope.shield = True
            await self._exits.__aexit__(kind, error, trace)

    async def _take(self, step: Step, arguments: dict[str, Any]) -> Any:
        if step.limit is None:
            return await self._open(step, arguments)
        semaphore = _semaphore_of(step.limit)
        if self._exits is not None and step.has_teardown:
            await self._exits.enter_async_context(semaphore)
            return await self._open(step, arguments)
        async with semaphore:
            return await self._open(step, arguments)

    async def _open(self, step: Step, arguments: dict[str, Any]) -> Any:
        if step.kind is Kind.COROUTINE:
            return await step.open(**arguments)
        if step.kind is Kind.FUNCTION or self._exits is None:
            return await threads().run(partial(step.open, **arguments))
        if step.kind is Kind.GENERATOR:
            return await threads().run(partial(_enter, step, arguments, self._exits))
        manager = step.open(**arguments)
        value = await manager.__aenter__()
        self._exits.push_async_exit(partial(_leave, manager))
        return value


# Neither of the two says that an error was swallowed: those who come later in the teardown must see it too, a session
# that would commit for one, and the attempt has failed.


async def _leave(manager: Any, *error: Any) -> None:
    await manager.__aexit__(*error)


async def _leave_in_thread(manager: Any, *error: Any) -> None:
    # Not limited in number: all threads may be waiting for what just this teardown gives back.
    await threads().run_at_once(partial(manager.__exit__, *error))


def _enter(step: Step, arguments: dict[str, Any], exits: AsyncExitStack) -> Any:
    """In a thread: set a generator up, and see to its teardown there and then, whoever was cancelled meanwhile."""
    manager = step.open(**arguments)
    value = manager.__enter__()
    exits.push_async_exit(partial(_leave_in_thread, manager))
    return value


_semaphores_here: Final[RunVar["WeakKeyDictionary[Any, Semaphore]"]] = RunVar("durableq_dependency_semaphores")


def _semaphore_of(marker: Any) -> Semaphore:
    """Return what keeps one ``Depends(..., max_concurrency=...)`` within its limit, among the tasks of this loop."""
    semaphores = _semaphores_here.get(None)
    if semaphores is None:
        semaphores = WeakKeyDictionary()
        _semaphores_here.set(semaphores)
    semaphore = semaphores.get(marker)
    if semaphore is None:
        semaphore = semaphores[marker] = Semaphore(marker.max_concurrency)
    return semaphore
