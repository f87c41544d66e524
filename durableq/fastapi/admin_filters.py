"""Which jobs a request is about: the same filters in the query of a look, and in the body of what is done to many.

What is mistyped is refused rather than left out, so that it cannot widen what is done. Filters by a secret are refused:
the answer would tell whether it was guessed.
"""

from typing import Annotated, Final, Literal

from fastapi import HTTPException, Query, Request
from pydantic import AfterValidator, AwareDatetime, Field, TypeAdapter, ValidationError

from durableq.fastapi.admin_models import Asked, example
from durableq.fastapi.parameters import declared_in_query
from durableq.fastapi.showing import SecretFilter, refuse_secret_filters
from durableq.models import JobFilter, JobState
from durableq.queue import DurableQ
from durableq.redaction import cleaned

LOOK_AT: Final = 20_000
"""So many jobs are compared with a filter that no index answers, before a look says that it was cut short."""
AT_ONCE: Final = 1_000
"""Most jobs that one request may change."""
_ARGUMENTS: Final = 5

_NO_NUL: Final = {"pattern": r"^[^\x00]*$"}


def _without_nul(text: str) -> str:
    if "\0" in text:  # SQLite ends a pattern there, and the rest of it would match everything
        raise ValueError("expected a text without the character NUL (U+0000)")
    return text


Name = Annotated[str, Field(min_length=1, max_length=200, json_schema_extra=_NO_NUL), AfterValidator(_without_nul)]

_PATH: Final = r"[\w-]+(\.[\w-]+)*"
ArgumentPath = Annotated[str, Field(max_length=200, pattern=rf"^{_PATH}$")]
ArgumentValue = Annotated[str, Field(max_length=1_000, json_schema_extra=_NO_NUL), AfterValidator(_without_nul)]
_Argument = Annotated[str, Field(max_length=1_200, pattern=rf"^{_PATH}:[^\x00]*$")]
_PAIRS: Final[TypeAdapter[list[str]]] = TypeAdapter(list[_Argument])
_SPELLED: Final = "arg."
_SHOWN: Final = 200
"""So many characters are shown of the name of a parameter that there is not."""

_ERROR_TYPE: Final = "Type of the last error, as the job shows it."
_ERROR_TEXT: Final = "A part of the message of the last error."
_TAG: Final = "One of its tags."
_CREATED_AFTER: Final = "Added at this moment or later."
_CREATED_BEFORE: Final = "Added before this moment."
_FINISHED_AFTER: Final = "Finished at this moment or later."
_FINISHED_BEFORE: Final = "Finished before this moment."

NameQuery = Annotated[Name | None, Query()]


async def job_filter(
    request: Request,
    state: Annotated[JobState | None, Query(description="Where it is in its life.")] = None,
    task: NameQuery = None,
    queue: NameQuery = None,
    error_type: Annotated[Name | None, Query(description=_ERROR_TYPE)] = None,
    error_text: Annotated[Name | None, Query(description=_ERROR_TEXT)] = None,
    tag: Annotated[Name | None, Query(description=_TAG)] = None,
    arg: Annotated[
        list[_Argument] | None,
        Query(
            max_length=_ARGUMENTS,
            description="An argument and its value as text, `name:value`; `user.id:7` looks inside. May be repeated; "
            "`arg.name=value` says the same. Secrets cannot be asked for.",
            examples=[["order_id:4711", "user.country:NO"]],
        ),
    ] = None,
    created_after: Annotated[AwareDatetime | None, Query(description=_CREATED_AFTER)] = None,
    created_before: Annotated[AwareDatetime | None, Query(description=_CREATED_BEFORE)] = None,
    finished_after: Annotated[AwareDatetime | None, Query(description=_FINISHED_AFTER)] = None,
    finished_before: Annotated[AwareDatetime | None, Query(description=_FINISHED_BEFORE)] = None,
) -> JobFilter:
    """The filter that a query asks for. An unknown parameter is refused: left out it would widen the filter."""
    pairs = _arguments_and_no_others(request)
    # Age is a moment, not a number of seconds ago: it means the same on every page of a list, and in the retry
    # that follows the look.
    return JobFilter(
        state=state,
        task=task,
        queue=queue,
        error_type=error_type,
        error_text=error_text,
        tag=tag,
        arguments=_arguments([*(arg or []), *pairs]),
        created_after=created_after,
        created_before=created_before,
        finished_after=finished_after,
        finished_before=finished_before,
    )


def _arguments_and_no_others(request: Request) -> list[str]:
    """Return what is asked for as ``arg.name=value``, in the spelling ``name:value``."""
    known = declared_in_query(request)
    given = [pair for pair in request.query_params.multi_items() if pair[0] not in known]
    for name, _ in given:
        if not name.startswith(_SPELLED):
            shown = cleaned(name)[:_SHOWN]
            raise _refused(["query", shown], f"there is no parameter {shown!r}; there are {', '.join(sorted(known))}")
    return _checked([f"{name.removeprefix(_SPELLED)}:{value}" for name, value in given])


def _checked(pairs: list[str]) -> list[str]:
    try:
        return _PAIRS.validate_python(pairs)
    except ValidationError:
        raise _refused(
            ["query", "arg"], "expected arg.name=value, the name of letters, digits, _, - and dots between its parts"
        ) from None


def _arguments(given: list[str]) -> dict[str, str]:
    if len(given) > _ARGUMENTS:
        raise _refused(["query", "arg"], f"expected at most {_ARGUMENTS} arguments, got {len(given)}")
    found: dict[str, str] = {}
    for one in given:
        name, _, value = one.partition(":")
        if name in found:
            raise _refused(["query", "arg"], f"argument {name!r} is asked for twice; a job has one value of it")
        found[name] = value
    return found


class Matching(Asked):
    """Which jobs are meant; every given field must match."""

    task: Name | None = None
    queue: Name | None = None
    error_type: Name | None = Field(None, description=_ERROR_TYPE)
    error_text: Name | None = Field(None, description=_ERROR_TEXT)
    tag: Name | None = Field(None, description=_TAG)
    arguments: dict[ArgumentPath, ArgumentValue] = Field(
        default_factory=dict,
        max_length=_ARGUMENTS,
        description="Values of arguments as text, by name; `user.id` looks inside. Secrets cannot be asked for.",
    )
    created_after: AwareDatetime | None = Field(None, description=_CREATED_AFTER)
    created_before: AwareDatetime | None = Field(None, description=_CREATED_BEFORE)
    limit: int = Field(100, ge=1, le=AT_ONCE, description="At most so many, the oldest first.")

    def as_filter(self) -> JobFilter:
        return JobFilter(**self.model_dump(exclude={"limit"}))


class _FinishedMatching(Matching):
    finished_after: AwareDatetime | None = Field(None, description=_FINISHED_AFTER)
    finished_before: AwareDatetime | None = Field(None, description=_FINISHED_BEFORE)


class RetryMatching(_FinishedMatching):
    """Which dead jobs to retry; every given field must match. Without any, all dead jobs match."""

    model_config = example(
        {"task": "app.mail:send", "error_type": "TimeoutError", "finished_before": "2026-03-01T09:30:00Z"}
    )

    def as_filter(self) -> JobFilter:
        return JobFilter(state=JobState.DEAD, **self.model_dump(exclude={"limit"}))


class CancelMatching(Matching):
    """Which unfinished jobs to cancel; every given field must match. Without any, all unfinished jobs match."""

    model_config = example({"queue": "bulk", "created_before": "2026-03-01T09:30:00Z", "limit": 500})

    state: Literal[JobState.BLOCKED, JobState.SCHEDULED, JobState.QUEUED, JobState.RUNNING] | None = None


class DeleteMatching(_FinishedMatching):
    """Which finished jobs to delete: of one state, and every other given field must match too."""

    model_config = example({"state": "cancelled", "tag": "import-7"})

    state: Literal[JobState.SUCCEEDED, JobState.DEAD, JobState.CANCELLED]


class QueueMeant(Asked):
    """Which queue to pause or resume. A name that was never used may be paused ahead."""

    model_config = example({"queue": "bulk"})  # in a body, because a name may hold anything, slashes too

    queue: Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00-\x1f\x7f]*$")]


async def refuse_secrets(dq: DurableQ, where: JobFilter, *location: str) -> None:
    """Answer 422 to a filter that would tell whether a guess at a secret is right."""
    try:
        await refuse_secret_filters(dq, where)
    except SecretFilter as error:
        raise _refused([*location, error.argument], str(error)) from None


def _refused(location: list[str], message: str) -> HTTPException:
    # The shape of FastAPI's own 422, so that clients read one.
    return HTTPException(422, [{"type": "filter_refused", "loc": location, "msg": message}])
