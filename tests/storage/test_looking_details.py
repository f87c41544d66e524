"""What people are shown, at the edges: nothing known, just full, a moment too late, and marks that mean something."""

from pathlib import Path

import pytest

from durableq.models import Dead, Failure, JobFilter, JobState, Succeeded
from durableq.reports import Count
from durableq.storage.protocol import Storage
from durableq.storage.sqlite import mending
from durableq.storage.sqlite.connection import Location, begin, connect
from durableq.storage.sqlite.statements import SQL
from durableq.testing import ManualClock
from tests.storage.contract_by_hand import in_state
from tests.storage.support import DEAD, DONE, LEASE, Backend, settle, stored


def change(backend: Backend, sql: str, **values: object) -> None:
    """Change something in the file, as another process would."""
    connection = connect(Location(Path(backend.url)))
    begin(connection)
    connection.execute(sql, values)
    connection.execute("COMMIT")
    connection.close()


async def test_dead_letters_of_which_nothing_is_known_have_empty_texts(backend: Backend, storage: Storage) -> None:
    await backend.finished(storage, DEAD)
    change(backend, "UPDATE durableq_jobs SET error_type = NULL, error_message = NULL")
    [group] = (await storage.dead_letters(look_at=10)).groups
    assert (group.error_type, group.latest_message, group.number) == ("", "", 1)


async def test_a_task_is_told_with_the_schema_of_its_arguments(backend: Backend, storage: Storage) -> None:
    schemas = {name: f'{{"title": "{name}"}}' for name in ("added", "following")}
    storage.describe_tasks_with(schemas.get)
    await backend.added(storage, task="added")
    [lease] = await backend.claimed(storage, task="without")
    await settle(storage, [(lease, Succeeded(None, (backend.job(task="following"),)))])
    told = {one.name: one.arguments_schema for one in await storage.tasks()}
    assert told == {**schemas, "without": None}


async def test_newer_code_describes_the_tasks_that_are_there_when_it_starts(backend: Backend, storage: Storage) -> None:
    storage.describe_tasks_with({"changed": "{}", "gone": "{}"}.get)
    await backend.added(storage, task="changed")
    await backend.added(storage, task="gone")
    newer = backend.new_storage()
    newer.describe_tasks_with({"changed": '{"title": "new"}', "never used": "{}"}.get)
    await newer.open()
    await newer.register(None)
    told = {one.name: one.arguments_schema for one in await newer.tasks()}
    await newer.deregister()
    await newer.close()
    assert told == {"changed": '{"title": "new"}', "gone": "{}"}


async def test_a_worker_is_alive_to_the_end_of_its_lease(storage: Storage, clock: ManualClock) -> None:
    clock.advance(LEASE)
    [worker] = await storage.workers()
    assert worker.is_alive
    clock.advance(0.000001)
    [worker] = await storage.workers()
    assert not worker.is_alive


async def test_a_worker_whose_process_is_gone_is_shown_as_dead_before_it_is_buried(
    backend: Backend, storage: Storage, clock: ManualClock
) -> None:
    gone = {"pid": 1, "boot_id": clock.boot_id(), "expires_at": clock.boot() + 60_000_000, "now": clock.wall()}
    change(backend, SQL["register_worker"], **gone)
    assert [(one.is_alive, one.is_here) for one in await storage.workers()] == [(True, True), (False, False)]


async def test_a_page_of_what_people_did_that_is_just_full_is_the_last(backend: Backend, storage: Storage) -> None:
    for job in await backend.added(storage, 3):
        await storage.cancel(job.id, who="ann")
    page = await storage.audit(cursor=None, limit=3)
    assert (len(page.entries), page.next_cursor) == (3, None)


async def test_a_backslash_in_an_error_is_looked_for_as_it_is(backend: Backend, storage: Storage) -> None:
    [wanted] = await backend.finished(storage, Dead(Failure("E", r"no C:\%temp\x_1", "")))
    await backend.finished(storage, Dead(Failure("E", "no C:%tempXx_1", "")))
    for text, found in ((r":\%", [wanted.id]), (r"TEMP\x", [wanted.id]), (r"\\", [])):
        page = await storage.find(JobFilter(error_text=text), cursor=None, limit=10)
        assert [job.id for job in page.jobs] == found, text


@pytest.mark.parametrize("value", ['["hunter2"]', '{"password":"hunter2"}'])
async def test_whether_an_array_or_an_object_is_this_or_that_cannot_be_asked(
    backend: Backend, storage: Storage, value: str
) -> None:
    """Something inside may be secret: whoever is told that it is there knows it."""
    [job] = await backend.added(storage, args_json=f'{{"a":{value},"b":1}}')
    for arguments, found in (({"b": "1"}, [job.id]), ({"a": value}, [])):
        page = await storage.find(JobFilter(arguments=arguments), cursor=None, limit=10)
        assert [one.id for one in page.jobs] == found


@pytest.mark.parametrize(("number", "is_all"), [(4, True), (5, False)])
async def test_a_state_that_many_jobs_are_in_is_looked_through_in_stretches(
    backend: Backend, storage: Storage, number: int, is_all: bool
) -> None:
    await backend.added(storage, queue="rare")
    await backend.added(storage, number - 1)
    await backend.added(storage, 5, delay=60)
    where = JobFilter(state=JobState.QUEUED, queue="rare")
    page = await storage.find(where, cursor=None, limit=5, look_at=5)
    assert (len(page.jobs), page.is_cut_short) == ((1, False) if is_all else (0, True))
    assert await storage.count(where, look_at=5) == (Count(1) if is_all else Count(0, is_all=False))


@pytest.mark.parametrize("state", ["dead", "cancelled"])
async def test_other_states_are_not_gone_on_to_once_a_state_was_looked_through(
    backend: Backend, storage: Storage, state: str
) -> None:
    await backend.finished(storage, DONE)
    for _ in range(3):
        await in_state(state, backend, storage)
    page = await storage.find(JobFilter(state=JobState(state), queue="none"), cursor=None, limit=5, look_at=3)
    assert (page.jobs, page.next_cursor, page.is_cut_short) == ([], None, False)
    page = await storage.find(JobFilter(state=JobState(state), queue="none"), cursor=None, limit=5, look_at=2)
    assert page.is_cut_short


async def test_the_oldest_are_changed_together_up_to_the_last_that_was_asked_for(
    backend: Backend, storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mending, "AT_ONCE", 2)
    jobs = await backend.added(storage, 4)
    assert await storage.cancel_matching(JobFilter(), who="ann", limit=3) == 3
    states = [(await stored(storage, job.id)).state for job in jobs]
    assert states == [JobState.CANCELLED] * 3 + [JobState.QUEUED]


async def test_where_there_are_no_jobs_none_is_changed(storage: Storage) -> None:
    for act in (storage.retry_matching, storage.cancel_matching, storage.delete_matching):
        assert await act(JobFilter(), who="ann", limit=10) == 0
