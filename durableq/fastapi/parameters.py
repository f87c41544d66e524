"""Which parameters a request may carry in its query: those that its route, or what ``auth`` stands on, declares."""

from collections.abc import Iterator
from typing import Any

from fastapi import Request
from fastapi.security import APIKeyQuery
from pydantic import BaseModel


def declared_in_query(request: Request) -> set[str]:
    """Return the names that the route of a request knows."""
    return set(_names(request.scope["route"].dependant))


def _names(dependant: Any) -> Iterator[str]:
    if isinstance(dependant.call, APIKeyQuery):  # it reads the query by itself
        yield dependant.call.model.name
    for parameter in dependant.query_params:
        annotation = parameter.field_info.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):  # each of its fields is a parameter
            yield from (field.alias or name for name, field in annotation.model_fields.items())
        else:
            yield parameter.alias
    for one in dependant.dependencies:
        yield from _names(one)
