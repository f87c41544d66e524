"""The order in which the dependencies of a task are set up: FastAPI's own, each cached one once."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from durableq.dependencies.signatures import Kind, Provider, Refused, Use, short_name

Overrides = Mapping[Callable[..., Any], Callable[..., Any]]


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """Makes one value."""

    open: Callable[..., Any]
    kind: Kind
    parameters: tuple[tuple[str, int], ...]
    """Each parameter's name, and the step that made its value."""
    limit: Any

    @property
    def has_teardown(self) -> bool:
        return self.kind is Kind.GENERATOR or self.kind is Kind.ASYNC_GENERATOR


class Plan:
    """The steps of one attempt, in the order in which FastAPI would take them."""

    __slots__ = ("has_teardown", "steps", "targets")

    def __init__(self, steps: tuple[Step, ...], targets: tuple[tuple[str, int], ...]) -> None:
        self.steps = steps
        self.targets = targets
        self.has_teardown = any(step.has_teardown for step in steps)


class Planner:
    """Puts a graph of dependencies in order. What is cached, as in FastAPI, is known by the call before overrides."""

    def __init__(self, provider_of: Callable[[Callable[..., Any]], Provider], overrides: Overrides) -> None:
        self.steps: list[Step] = []
        self._provider_of = provider_of
        self._overrides = overrides
        self._slots: dict[Callable[..., Any], int] = {}
        self._path: list[Callable[..., Any]] = []

    @property
    def where(self) -> str:
        """Where planning stopped, for an error."""
        return f"in {' -> '.join(map(short_name, self._path))}, " if self._path else ""

    def slot_of(self, use: Use) -> int:
        """Return the number of the step that makes this value; steps are added as needed."""
        if use.is_cached and use.call in self._slots:
            return self._slots[use.call]
        call = self._overrides.get(use.call, use.call)
        is_circular = call in self._path
        self._path.append(call)
        if is_circular:
            raise Refused("the dependencies are circular")
        provider = self._provider_of(call)
        parameters = tuple((one.parameter, self.slot_of(one)) for one in provider.uses)
        self._path.pop()
        self.steps.append(Step(provider.open, provider.kind, parameters, use.limit))
        slot = len(self.steps) - 1
        self._slots.setdefault(use.call, slot)
        return slot
