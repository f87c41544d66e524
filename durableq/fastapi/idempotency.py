"""The ``Idempotency-Key`` request header: a client that repeats a request, because it never saw the answer, is safe.

Same key, same job: the job's id is derived from the key, so the route answers the same without storing or looking
anything up, and the job runs once.
"""

from typing import Annotated

from fastapi import Header

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=200,
        description="Repeat a request with the same key, and it is done once.",
    ),
]
"""Annotate a route's parameter with this, and hand it on: ``add_task(charge.options(idempotency_key=key), ...)``.

None when the client sent none; the job is then like any other. Put who is asking into the key, so that one user's key
never leads to another's job: ``f"{user.id}:{key}"``. The same key with other arguments is refused with a 422. A key is
remembered as long as its job is kept.
"""
