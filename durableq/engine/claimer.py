"""Decides what a worker can take: which queues and tasks it serves, and how many jobs per runner."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Final

from durableq.engine.runners import Slots
from durableq.events import Emitter, UnknownTasks
from durableq.models import ClaimRequest, Lane, Lease, Names
from durableq.registry import Registry

_SUSPECT: Final = "suspect"
"""Stands among the runners for jobs that have crashed a process before."""


class Claimer:
    """Keeps the names this worker serves, and turns free slots into claim requests.

    Jobs of a task that this app does not know are left alone: another worker, or a later deployment, may know it.
    A runner whose claim came back with less than asked is not asked for again until there is news.
    """

    def __init__(
        self,
        *,
        registry: Registry,
        runners: Mapping[str, Slots],
        emitter: Emitter,
        queues: Collection[str] | None,
    ) -> None:
        self._registry = registry
        self._runners = runners
        self._emitter = emitter
        self._only_queues = None if queues is None else frozenset(queues)
        self._queues: tuple[str, ...] = ()
        self._tasks: dict[str, tuple[str, ...]] = {}
        self._unknown: frozenset[str] = frozenset()
        self._hungry: set[str] = set()
        self._news = 0

    def learn(self, names: Names) -> None:
        """Take note of all names in the storage, and resolve those of tasks."""
        served = names.queues if self._only_queues is None else names.queues & self._only_queues
        self._queues = tuple(sorted(served))
        found = {name: self._registry.find(name) for name in names.tasks}
        self._tasks = {
            runner: tuple(sorted(name for name, task in found.items() if task and task.runner == runner))
            for runner in self._runners
        }
        unknown = frozenset(name for name, task in found.items() if task is None)
        if unknown - self._unknown:
            self._emitter.emit(UnknownTasks(tuple(sorted(unknown))))
        self._unknown = unknown
        self.there_may_be_work()

    def there_may_be_work(self) -> None:
        """Ask for every runner again."""
        self._news += 1
        self._hungry.update(self._runners, (_SUSPECT,))

    def there_are_new_jobs(self) -> None:
        """Ask for every runner again, but not for jobs that have crashed a process before."""
        self._news += 1
        self._hungry.update(self._runners)

    def suspect_finished(self) -> None:
        """The next job that has crashed a process before may be taken."""
        self._hungry.add(_SUSPECT)

    @property
    def unknown(self) -> frozenset[str]:
        """Names of tasks in the storage that no code here has."""
        return self._unknown

    @property
    def queues(self) -> tuple[str, ...]:
        return self._queues

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks of these names that this worker can run."""
        return tuple(name for names in self._tasks.values() for name in names)

    @property
    def news(self) -> int:
        """Counts how often there may have been more work."""
        return self._news

    def request(self, *, runs_a_suspect: bool) -> ClaimRequest | None:
        """Return what can be taken now, or None when there is no room, or nothing to expect."""
        if not self._queues or not self._hungry:
            return None
        lanes = tuple(
            Lane(name, self._tasks[name], runner.free)
            for name, runner in self._runners.items()
            if runner.free > 0 and self._tasks.get(name)
        )
        hungry = tuple(lane for lane in lanes if lane.runner in self._hungry)
        suspects: tuple[str, ...] = ()
        if _SUSPECT in self._hungry and not runs_a_suspect:
            suspects = tuple(name for lane in lanes for name in lane.tasks)
        return ClaimRequest(self._queues, hungry, suspects) if hungry or suspects else None

    def note(self, claim: ClaimRequest, leases: Sequence[Lease], news_before: int) -> None:
        """Take note of what a claim brought, unless news came while it was under way."""
        if self._news != news_before:
            return
        if claim.suspect_tasks:
            self._hungry.discard(_SUSPECT)  # one at a time: `suspect_finished` asks for the next
        brought = Counter(lease.task for lease in leases if lease.crashes == 0)
        for lane in claim.lanes:
            if sum(brought[name] for name in lane.tasks if name in brought) < lane.limit:
                self._hungry.discard(lane.runner)
