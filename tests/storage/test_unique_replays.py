"""Keys when a COMMIT fails: the group is written once more, and nobody is told of a conflict with himself."""

import asyncio
from typing import Any

import pytest

from durableq.errors import DuplicateJob, IdempotencyConflict, OutcomeUnknown
from durableq.models import Job, JobState, Succeeded
from durableq.testing import ManualClock
from tests.storage.contract_unique import keyed_job, live, numbered, unique_job
from tests.storage.faults import FailingCommits
from tests.storage.support import Backend, claim, settle, stored


@pytest.fixture
def commits(monkeypatch: pytest.MonkeyPatch) -> FailingCommits:
    """For writers that are opened from now on."""
    return FailingCommits(monkeypatch)


@pytest.fixture(params=[False, True], ids=["commit did not happen", "commit happened"])
def hidden(request: pytest.FixtureRequest) -> bool:
    is_hidden: bool = request.param
    return is_hidden


async def test_new_keys_are_stored_once_and_told_of_no_conflict(
    commits: FailingCommits, backend: Backend, hidden: bool
) -> None:
    storage = await backend.worker()
    jobs = [unique_job(backend, str(number), on_conflict="raise") for number in range(5)]
    jobs += [keyed_job(backend, str(number), args_json=numbered(number)) for number in range(5)]
    commits.count, commits.hidden = 1, hidden
    answers = await asyncio.gather(*(storage.insert([job]) for job in jobs))
    assert commits.count == 0
    assert not any(answers)
    assert [lease.id for lease in await claim(storage)] == [job.id for job in jobs]


async def test_each_addition_is_told_the_same_as_if_the_commit_had_not_failed(
    commits: FailingCommits, backend: Backend, clock: ManualClock, hidden: bool
) -> None:
    storage = await backend.worker()
    await storage.insert([holder := unique_job(backend, args_json=numbered(1))])
    await storage.insert([keyed_job(backend, args_json=numbered(1))])
    clock.advance(1)
    shared, replacing = unique_job(backend), unique_job(backend, on_conflict="replace", args_json=numbered(2))
    refused = [backend.job(), unique_job(backend, on_conflict="raise")]
    first, second = unique_job(backend, "new"), unique_job(backend, "new")
    repeated, other = (keyed_job(backend, args_json=numbered(number)) for number in (1, 2))
    additions: list[list[Job[Any]]] = [[shared], [replacing], refused, [first], [second], [repeated], [other]]
    commits.count, commits.hidden = 1, hidden
    answers = await asyncio.gather(*(storage.insert(jobs) for jobs in additions), return_exceptions=True)
    assert commits.count == 0
    assert answers[0] == {shared.id: holder.id}
    assert answers[1] == {replacing.id: holder.id}
    assert isinstance(answers[2], DuplicateJob)
    assert not answers[3]
    assert answers[4] == {second.id: first.id}
    assert answers[5] == {repeated.id: repeated.id}
    assert isinstance(answers[6], IdempotencyConflict)
    assert [job.id for job in await live(storage)] == [holder.id, repeated.id, first.id]
    assert (await stored(storage, holder.id)).args_json == numbered(2)
    for alias in (shared, replacing):
        assert (await stored(storage, alias.id)).id == holder.id
    assert await storage.get(refused[0].id) is None


async def test_after_an_unknown_outcome_the_same_jobs_may_be_added_again(
    commits: FailingCommits, backend: Backend, hidden: bool
) -> None:
    storage = await backend.worker()
    await storage.insert([holder := unique_job(backend)])
    jobs = [unique_job(backend, "new", on_conflict="raise"), unique_job(backend), keyed_job(backend)]
    commits.count, commits.hidden = 2, hidden
    with pytest.raises(OutcomeUnknown):
        await storage.insert(jobs)
    assert await storage.insert(jobs) == {jobs[1].id: holder.id}
    assert {job.id for job in await live(storage)} == {holder.id, jobs[0].id, jobs[2].id}


async def test_follow_ups_are_stored_once(commits: FailingCommits, backend: Backend, hidden: bool) -> None:
    storage = await backend.worker()
    await storage.insert([unique_job(backend)])
    [lease] = await claim(storage)
    following, plain = unique_job(backend), backend.job()
    commits.count, commits.hidden = 1, hidden
    await settle(storage, [(lease, Succeeded("1", (following, plain)))])
    assert commits.count == 0
    assert (await stored(storage, lease.id)).state is JobState.SUCCEEDED
    assert {(job.id, job.unique_key) for job in await live(storage)} == {(following.id, "k"), (plain.id, None)}


async def test_a_retry_that_claims_its_key_again_holds_it_once(commits: FailingCommits, backend: Backend) -> None:
    storage = await backend.worker()
    await storage.insert([job := unique_job(backend)])
    await storage.cancel(job.id, who="ann")
    commits.count, commits.hidden = 1, False
    assert (await storage.retry(job.id, who="ann")).unique_key == "k"
    assert await storage.insert([second := unique_job(backend)]) == {second.id: job.id}
