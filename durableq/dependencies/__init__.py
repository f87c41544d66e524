"""FastAPI's own ``Depends`` in a task's signature, resolved anew for each attempt, without a request.

What needs a request is refused when the task is registered, and named. A ``yield`` dependency that was set up is
always torn down after the attempt, in reverse order; it sees the attempt's error at its ``yield``, a cancellation
too, and cannot turn a failed attempt into a success. Plain ``def`` dependencies run in daemon threads of our own.
FastAPI is never imported: its public marker is known by the name of its class.
"""

import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Final

from durableq.dependencies.attempt import Resolution
from durableq.dependencies.plan import Overrides, Plan, Planner
from durableq.dependencies.sentinel import INJECTED
from durableq.dependencies.signatures import (
    Provider,
    Refused,
    Use,
    analyse,
    parameters_of,
    require_passable_by_name,
    use_in_task,
)
from durableq.errors import InvalidTask

__all__ = ["INJECTED", "Injection", "injection_of"]

_KEPT_PROVIDERS: Final = 256


class Injection:
    """The injected parameters of one task, and how their values are made."""

    __slots__ = ("_places", "_plan", "_providers", "_task", "_uses", "names")

    names: frozenset[str]
    """The function's parameters that are injected, and left out of the stored arguments."""

    def __init__(self, task_name: str, uses: Sequence[Use], places: Mapping[str, int]) -> None:
        self.names = frozenset(use.parameter for use in uses)
        self._task = task_name
        self._uses = tuple(uses)
        self._places = tuple((name, places[name]) for name in places if name in self.names)
        self._providers: dict[int, Provider] = {}
        self._plan = self._make_plan({})

    def resolve(self, overrides: Overrides) -> AbstractAsyncContextManager[dict[str, Any]]:
        """Return the context of one attempt: ``async with ... as values`` gives the value of each parameter.

        ``overrides`` is the application's ``dependency_overrides``, read anew for each attempt. Raises `InvalidTask`
        when an override cannot be used in a task. Entering raises what a dependency raises. Leaving it with an error
        raises that error again, or the one that a teardown raised because of it. Cancelled at any point, what was
        set up is torn down; a plain ``def`` that is running in its thread is waited for first.
        """
        return Resolution(self._make_plan(overrides) if overrides else self._plan)

    def check_direct_call(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Raise `TypeError` when a direct call of the task leaves out what only durableq would inject.

        For ``Task.__call__``: ``args`` and ``kwargs`` are those of the call, and nothing else about them is checked.
        """
        for name, position in self._places:
            if name not in kwargs and len(args) <= position:
                raise TypeError(
                    f"parameter {name!r} of {self._task!r} is injected by durableq; "
                    "pass it when calling the function directly"
                )

    def _make_plan(self, overrides: Overrides) -> Plan:
        planner = Planner(self._provider_of, overrides)
        targets: list[tuple[str, int]] = []
        for use in self._uses:
            try:
                targets.append((use.parameter, planner.slot_of(use)))
            except Refused as refusal:
                raise InvalidTask(
                    f"{self._task}: parameter {use.parameter!r} cannot be injected: {planner.where}{refusal}"
                ) from refusal.__cause__
        return Plan(tuple(planner.steps), tuple(targets))

    def _provider_of(self, call: Callable[..., Any]) -> Provider:
        known = self._providers.get(id(call))
        if known is None:
            if len(self._providers) >= _KEPT_PROVIDERS:  # overrides come and go
                self._providers.clear()
            known = self._providers[id(call)] = analyse(call)
        return known


def injection_of(function: Callable[..., Any], task_name: str) -> Injection | None:
    """Return what is to be injected into a task, or None when nothing is.

    Raises `InvalidTask`, naming the parameter and the dependency, for what cannot work without a request.
    """
    try:
        parameters = parameters_of(function)
        uses = [use for parameter, hint in parameters if (use := use_in_task(parameter, hint)) is not None]
        if not uses:
            return None
        kinds = {parameter.name: parameter.kind for parameter, _ in parameters}
        require_passable_by_name(uses, kinds)
    except Refused as refusal:
        raise InvalidTask(f"{task_name}: {refusal}") from refusal.__cause__
    places = {
        name: sys.maxsize if kind is inspect.Parameter.KEYWORD_ONLY else place
        for place, (name, kind) in enumerate(kinds.items())
    }
    return Injection(task_name, uses, places)
