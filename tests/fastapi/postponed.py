"""Routes in a module whose annotations are strings until FastAPI reads them."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends

from durableq.fastapi import TaskCollector
from durableq.fastapi.background import collect, collect_by_yield
from tests.fastapi.helpers import note

Bottom = Annotated[TaskCollector, Depends(collect)]
ByYield = Annotated[TaskCollector, Depends(collect_by_yield, scope="function")]

router = APIRouter()


def greet_from_the_bottom(tasks: Bottom) -> None:
    tasks.add_task(note, "dependency")


def greet_by_yield(tasks: ByYield) -> None:
    tasks.add_task(note, "dependency")


@router.post("/bottom")
async def from_the_bottom(tasks: Bottom, greeted: Annotated[None, Depends(greet_from_the_bottom)]) -> str:
    return tasks.add_task(note, "route").id


@router.post("/yield")
def by_yield(tasks: ByYield, greeted: Annotated[None, Depends(greet_by_yield)]) -> str:
    return tasks.add_task(note, "route").id
