"""What operators see of jobs, and what they may send back, is without secrets: one way for routes and for pages.

Which arguments are secret says the task's signature where the app has its code, else the schema that an app which has
it stored; with neither every argument is one. What was hidden comes back as the placeholder it was shown as, and is
then again what is stored. Looking for jobs by a secret value is refused: the answer would tell whether it was right.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

from durableq.encryption import is_sealed
from durableq.errors import InvalidArguments
from durableq.fastapi.admin_models import JobSummary
from durableq.fastapi.schemas import Declared, declared_in
from durableq.models import Job, JobFilter
from durableq.placeholders import MOST_LEVELS, restored, too_deep
from durableq.queue import DurableQ
from durableq.redaction import Redactor, cleaned
from durableq.secret_names import RESULT, is_secret_name, secret_arguments

_BESIDE_A_NAME: Final = "value"
"""Of ``{"name": "password", "value": "..."}`` this is the secret."""
_ENVELOPE: Final = "$encrypted"
"""The only name in encrypted arguments; no parameter has it."""


class SecretFilter(ValueError):
    """Somebody looks for jobs by the value of an argument that is, or may be, secret."""

    def __init__(self, argument: str, why: str) -> None:
        super().__init__(f"jobs cannot be looked for by argument {argument!r}: {why}")
        self.argument = argument


class Secrets:
    """Knows what is secret of the jobs of some tasks. Made by `secrets_of`."""

    def __init__(self, dq: DurableQ, schemas: Mapping[str, str | None]) -> None:
        self._dq = dq
        self._schemas = schemas
        self._declared: dict[str, Declared] = {}

    def declared(self, task: str) -> Declared:
        """Return which arguments of a task are declared secret."""
        if task not in self._declared:
            known = self._dq.find_task(task)
            self._declared[task] = (
                declared_in(self._schemas.get(task)) if known is None else Declared(secret_arguments(known.function))
            )
        return self._declared[task]

    def redactor(self, job: Job[Any], *other_arguments: Any) -> Redactor:
        """Return what hides a job's secrets: those of its arguments, and of what they were or shall be."""
        arguments = (arguments_of(job), *other_arguments)
        knows_all = not (is_sealed(job.args_json) or any(map(_is_envelope, other_arguments)))
        declared = self.declared(job.task)
        if declared.plain is None:
            return Redactor.of(declared.secret, *arguments, knows_all=knows_all)
        # The schema does not tell of what is returned.
        names = {name for one in arguments if isinstance(one, dict) for name in one if declared.hides(name)}
        return Redactor.of(declared.secret | names | {RESULT}, *arguments, knows_all=knows_all)

    def summary(self, job: Job[Any]) -> JobSummary:
        """Return a job as it is shown in a list."""
        return JobSummary.shown(job, self.redactor(job))

    def tasks_hiding(self, argument: str) -> list[str]:
        """Return those of the tasks with a stored description, or none, that keep an argument secret, by name."""
        return sorted(task for task in self._schemas if self.declared(task).hides(argument))


async def secrets_of(dq: DurableQ, tasks: Iterable[str]) -> Secrets:
    """Return what is secret of jobs of these tasks. Reads the stored descriptions of those that the app has not."""
    if all(dq.find_task(task) is not None for task in set(tasks)):
        return Secrets(dq, {})
    return await all_secrets(dq)


async def all_secrets(dq: DurableQ) -> Secrets:
    """The same for every task that was ever stored."""
    return Secrets(dq, {task.name: task.arguments_schema for task in await dq.tasks()})


async def refuse_secret_filters(dq: DurableQ, where: JobFilter) -> None:
    """Raise `SecretFilter` for a filter that would tell whether a guess at a secret is right."""
    for path in where.arguments:
        argument, *inside = path.split(".")
        if any(map(is_secret_name, (argument, *inside))):
            raise SecretFilter(path, "its name says that it is secret")
        if _BESIDE_A_NAME in inside:
            raise SecretFilter(path, "what stands in a 'value' may be secret, by the name beside it")
        if where.task is not None:
            if (await secrets_of(dq, [where.task])).declared(where.task).hides(argument):
                raise SecretFilter(path, f"task {where.task!r} declares it secret, or nothing is known about it")
        elif hiding := (await all_secrets(dq)).tasks_hiding(argument):
            raise SecretFilter(path, f"it is, or may be, a secret of task {hiding[0]!r}; give the task you mean, too")


def as_stored(edited: Mapping[str, Any], job: Job[Any], redactor: Redactor) -> dict[str, Any]:
    """Return edited arguments, with what came back hidden as it is stored. For large ones call it in a thread.

    Raises `PlaceholderSent`, and `InvalidArguments` for what is nested too deep.
    """
    for name, value in edited.items():
        if too_deep(value, MOST_LEVELS - 1):
            raise InvalidArguments(
                f"expected lists and objects in one another at most {MOST_LEVELS} levels deep, argument {name!r} is "
                "deeper; bring it into a flatter shape",
                task=job.task,
                argument=name,
            )
    stored = arguments_of(job)
    return restored(edited, redactor.arguments(stored), stored) if isinstance(stored, dict) else dict(edited)


def what_is_wrong(error: InvalidArguments, redactor: Redactor) -> str:
    """Return in words why arguments were refused, without the secrets that the error quotes.

    ``redactor`` is one that knows the refused arguments too.
    """
    argument = error.argument or ""
    if argument in redactor.names or is_secret_name(argument):  # the error shows what came
        return f"argument {argument!r} is not what the task's signature asks for; it is a secret, so no more is said"
    return cleaned(redactor.text(str(error)))


def _is_envelope(arguments: Any) -> bool:
    """Whether arguments, as the audit trail has them, are encrypted still."""
    if isinstance(arguments, dict):
        return next(iter(arguments), None) == _ENVELOPE
    return isinstance(arguments, str) and is_sealed(arguments)


def arguments_of(job: Job[Any]) -> Any:
    """Return a job's arguments as stored, by name; nothing for damaged ones."""
    try:
        return json.loads(job.args_json)
    except (ValueError, RecursionError):
        return {}
