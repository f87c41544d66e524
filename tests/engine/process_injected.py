"""Tasks for child processes that ask for dependencies; apart, as importing FastAPI takes a while."""

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import Depends

from durableq.context import current_job
from durableq.dependencies import INJECTED
from tests.engine.process_tasks import append, task


async def get_resource() -> AsyncIterator[str]:
    journal = current_job().headers["journal"]
    append(journal, "set up")
    try:
        yield f"of {current_job().id}"
    except Exception as error:
        append(journal, f"saw {type(error).__name__}")
        raise
    finally:
        append(journal, "torn down")


Resource = Annotated[str, Depends(get_resource)]


@task()
def with_resource(number: int, *, resource: Resource = INJECTED) -> list[Any]:
    """Plain code may use an event loop of its own."""
    journal = current_job().headers["journal"]
    append(journal, "used")
    if number < 0:
        raise StopIteration
    return [number, resource, asyncio.run(asyncio.sleep(0, "done")), os.getpid()]


@task()
async def with_resource_async(number: int, *, resource: Resource = INJECTED) -> list[Any]:
    append(current_job().headers["journal"], "used")
    if number < 0:
        raise ValueError
    return [number, resource, await asyncio.sleep(0, "done"), os.getpid()]
