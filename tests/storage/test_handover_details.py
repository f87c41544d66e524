"""From the event loop to the writer, and from other processes to the event loop."""

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from durableq.errors import (
    NotStored,
    StorageBusy,
)
from durableq.storage.sqlite import handover, host
from durableq.storage.sqlite.doorbells import Doorbells
from durableq.storage.sqlite.handover import TOGETHER, HandOver
from durableq.storage.sqlite.operation import Addition, Insert, Operation, make_insert
from durableq.storage.sqlite.writer import Writer
from tests.storage.support import Backend
from tests.storage.test_one_writer import Answer, rarer
from tests.support import eventually

# -- from the loop to the writer -----------------------------------------------------------------------------


class Desk:
    """Stands in for the writer: notes what is handed over to it, and in how many parts."""

    def __init__(self) -> None:
        self.is_idle = False
        self.lookout = SimpleNamespace(others=())
        self.parts: list[list[Operation]] = []
        self.admitted = 0
        self.is_full = False

    def admit(self, size: int) -> None:
        if self.is_full:
            raise StorageBusy("full")
        self.admitted += size

    def forget(self, size: int) -> None:
        self.admitted -= size

    def hand_over(self, operations: list[Operation]) -> None:
        self.parts.append(operations)

    def took(self) -> list[list[int | str]]:
        """The numbers of additions in each insert, or "other", of each part; since this was last asked."""
        parts, self.parts = self.parts, []
        return [[len(one.additions) if isinstance(one, Insert) else "other" for one in part] for part in parts]


class Turn:
    """A turn of the loop, and what is added in it."""

    def __init__(self, path: Path) -> None:
        self.desk = Desk()
        self.jobs = Backend(str(path))
        loop = asyncio.get_running_loop()
        self.hand_over = HandOver(loop, cast("Writer", self.desk), lambda name: None)

    def add(self, count: int = 1, *, impatient: bool = False, **fields: Any) -> Addition:
        jobs = [self.jobs.job(**fields) for _ in range(count)]
        addition = Addition(jobs, Answer(), impatient=impatient)
        self.hand_over.add(addition)
        return addition

    def submit(self) -> None:
        self.hand_over.submit(rarer()[0])


@pytest.fixture
async def turn(tmp_path: Path) -> Turn:
    return Turn(tmp_path / "unused.db")


async def test_what_one_turn_brings_goes_across_together_at_its_end(turn: Turn) -> None:
    for _ in range(2):
        turn.submit()
        for _ in range(TOGETHER - 1):
            turn.add()
        assert turn.desk.took() == []
        await asyncio.sleep(0)
        assert turn.desk.took() == [[TOGETHER - 1, "other"]], "a claim finds what goes before it"
        await asyncio.sleep(0)
        assert turn.desk.took() == []


async def test_many_additions_of_one_turn_go_across_in_parts(turn: Turn) -> None:
    for _ in range(2 * TOGETHER + 1):
        turn.add()
    assert turn.desk.took() == [[TOGETHER], [TOGETHER]]
    await asyncio.sleep(0)
    assert turn.desk.took() == [[1]]


async def test_a_writer_that_sleeps_is_given_everything_at_once(turn: Turn) -> None:
    turn.desk.is_idle = True
    turn.add()
    turn.submit()
    assert turn.desk.took() == [[1], ["other"]]
    await asyncio.sleep(0)
    assert turn.desk.took() == []


async def test_additions_that_wait_alike_are_joined_and_heavy_ones_go_by_themselves(
    turn: Turn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handover, "HEAVY", 2)
    first, heavy, heavier = turn.add(), turn.add(3), turn.add(4, impatient=True)
    second, third, last = turn.add(2), turn.add(impatient=True), turn.add()
    turn.hand_over.now()
    [part] = turn.desk.parts
    inserts = [one for one in part if isinstance(one, Insert)]
    assert [one.additions for one in inserts] == [[first, second], [third], [last], [heavy], [heavier]]
    assert [one.impatient for one in inserts] == [False, True, False, False, True]
    assert [one.count for one in inserts] == [3, 1, 1, 3, 4]
    assert turn.desk.admitted == sum(one.size for one in inserts)


async def test_what_is_refused_at_the_door_is_not_taken_over(turn: Turn) -> None:
    turn.desk.is_full = True
    with pytest.raises(StorageBusy):
        turn.add()
    with pytest.raises(StorageBusy):
        turn.submit()
    turn.hand_over.now()
    assert turn.desk.took() == []


async def test_a_worker_rides_along_with_jobs_that_may_run_at_once(turn: Turn) -> None:
    turn.hand_over.before_adding = turn.submit
    turn.desk.is_idle = True
    turn.add()
    assert turn.desk.took() == [[1, "other"]]
    turn.add(delay=60)
    assert turn.desk.took() == [[1]]
    turn.desk.is_idle = False
    turn.add(delay=60)
    turn.add()
    turn.hand_over.now()
    assert turn.desk.took() == [[2, "other"]]
    turn.hand_over.now()
    turn.submit()
    turn.hand_over.now()
    assert turn.desk.took() == [["other"]], "with no jobs there is nothing to ride along with"
    turn.hand_over.add(Addition([], Answer()))
    turn.hand_over.now()
    assert turn.desk.took() == [[1]]


async def test_nobody_rides_along_where_other_processes_work(turn: Turn) -> None:
    turn.hand_over.before_adding = turn.submit
    turn.desk.lookout.others = (7,)
    turn.add()
    turn.hand_over.now()
    assert turn.desk.took() == [[1]]


async def test_after_a_worker_that_failed_to_ride_along_everything_goes_on(turn: Turn) -> None:
    turn.hand_over.before_adding = lambda: 1 / 0  # type: ignore[assignment]
    turn.desk.is_idle = True
    turn.add()
    turn.hand_over.before_adding = None
    turn.submit()
    assert turn.desk.took() == [[1], ["other"]]


@pytest.mark.parametrize("number", [1, 2, 3])
async def test_an_addition_that_cannot_be_encoded_is_answered_and_counted_out(
    turn: Turn, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    bad: list[Addition] = []

    def encode(additions: list[Addition], schema_of: Callable[[str], str | None]) -> Insert:
        if bad[0] in additions:
            raise ZeroDivisionError("a defect")
        return make_insert(additions, schema_of)

    monkeypatch.setattr(handover, "make_insert", encode)
    bad.append(turn.add())
    good = [turn.add() for _ in range(number - 1)]
    turn.hand_over.now()
    parts = [one.additions for part in turn.desk.parts for one in part if isinstance(one, Insert)]
    assert parts == [[addition] for addition in good]
    assert turn.desk.admitted == sum(addition.size for addition in good)
    assert isinstance(bad[0].reply, Answer)
    assert isinstance(told := bad[0].reply.result(0), NotStored)
    assert "ZeroDivisionError" in str(told)


def test_the_loop_is_asked_once_for_the_end_of_each_turn(tmp_path: Path) -> None:
    scheduled: list[Callable[[], None]] = []
    loop = cast("asyncio.AbstractEventLoop", SimpleNamespace(call_soon=scheduled.append))
    hand_over = HandOver(loop, cast("Writer", Desk()), lambda name: None)
    for turns in (1, 2):
        for _ in range(3):
            hand_over.submit(rarer()[0])
        assert len(scheduled) == turns
        scheduled[-1]()


# -- doorbells -----------------------------------------------------------------------------------------------


def names_in(directory: Path) -> list[str]:
    return [path.name for path in directory.iterdir()]


async def test_a_bell_is_heard_each_time_it_is_rung_until_it_is_taken_down(tmp_path: Path) -> None:
    bells, ringer = Doorbells(asyncio.get_running_loop(), tmp_path), host.Ringer(tmp_path)
    rung: list[str] = []

    async def heard(*kinds: host.Bell) -> list[str]:
        for kind in kinds:
            ringer.ring(1, kind)
        await eventually(lambda: bool(rung))
        for _ in range(5):
            await asyncio.sleep(0)  # a bell that was not silenced would be heard again
        heard = sorted(rung)
        rung.clear()
        return heard

    for kind in (host.WORK, host.FINISHED):
        bells.hang(kind, 1, partial(rung.append, kind))
    for _ in range(2):
        assert await heard(host.WORK) == ["sock"]
        assert await heard(host.FINISHED) == ["done"]
    assert await heard(host.FINISHED, host.FINISHED) == ["done"]
    bells.take_down(host.FINISHED)
    assert names_in(tmp_path) == ["1.sock"]
    assert await heard(host.FINISHED, host.WORK) == ["sock"]
    bells.hang(host.FINISHED, 1, partial(rung.append, "again"))
    assert await heard(host.FINISHED) == ["again"]
    bells.take_down()
    assert names_in(tmp_path) == []
    bells.take_down()
    ringer.close()


async def test_a_bell_that_cannot_be_hung_is_left_out(tmp_path: Path) -> None:
    bells = Doorbells(asyncio.get_running_loop(), tmp_path / "missing")
    bells.hang(host.WORK, 1, lambda: None)
    bells.take_down()


def test_a_loop_that_cannot_listen_to_sockets_has_no_bells(tmp_path: Path) -> None:
    def refuse(*_: object) -> None:
        raise NotImplementedError

    loop = cast("asyncio.AbstractEventLoop", SimpleNamespace(add_reader=refuse, remove_reader=lambda socket: False))
    bells = Doorbells(loop, tmp_path)
    bells.hang(host.WORK, 1, lambda: None)
    bells.take_down()
