"""The values that are stored and passed around, and the clocks they are measured by."""

import dataclasses
import os
import time
import uuid
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone

import pytest

from durableq.clock import SystemClock, from_datetime, to_datetime, to_micros
from durableq.ids import new_job_id
from durableq.models import (
    FINISHED,
    Attempt,
    AuditEntry,
    ClaimRequest,
    Dead,
    Failure,
    Job,
    JobError,
    JobFilter,
    JobState,
    Lane,
    Lease,
    Page,
    Released,
    Retried,
    Succeeded,
)
from durableq.testing import ManualClock

NOW = datetime(2026, 11, 21, 8, 30, tzinfo=UTC)


def job(**changes: object) -> Job[object]:
    made: Job[object] = Job(
        id="x",
        task="t",
        queue="q",
        priority=0,
        state=JobState.QUEUED,
        args_json='{"to": "ann", "copies": 2}',
        max_attempts=5,
        created_at=NOW,
        run_at=NOW,
    )
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


class TestJobIds:
    def test_an_id_is_a_uuid_of_version_7(self) -> None:
        for _ in range(500):
            text = new_job_id(from_datetime(NOW))
            parsed = uuid.UUID(text)
            assert str(parsed) == text, "lower case, with hyphens"
            assert (parsed.version, parsed.variant) == (7, uuid.RFC_4122)
            assert parsed.int >> 80 == int(NOW.timestamp() * 1_000)

    def test_ids_sort_by_the_millisecond_they_were_made_in(self) -> None:
        start = from_datetime(NOW)
        ids = [new_job_id(start + 1_000 * number) for number in range(1_000)]
        assert ids == sorted(ids)

    def test_ids_of_one_moment_differ_in_all_their_random_bits(self) -> None:
        ids = [uuid.UUID(new_job_id(0)).int for _ in range(20_000)]
        assert len(set(ids)) == len(ids)
        random_bits = [bit for bit in range(74 + 2 + 4) if bit not in (62, 63, 76, 77, 78, 79)]
        for bit in random_bits:
            share = sum(one >> bit & 1 for one in ids) / len(ids)
            assert 0.45 < share < 0.55, f"bit {bit} is not random"

    def test_threads_share_no_id(self) -> None:
        def make(_: int) -> list[str]:
            return [new_job_id(0) for _ in range(3_000)]

        with ThreadPoolExecutor(8) as pool:
            ids = [one for made in pool.map(make, range(8)) for one in made]
        assert len(set(ids)) == len(ids)

    @pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
    def test_a_forked_process_shares_no_id_with_its_parent(self) -> None:
        new_job_id(0)
        reading, writing = os.pipe()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns when there are threads
            pid = os.fork()
        if pid == 0:
            os.write(writing, " ".join(new_job_id(0) for _ in range(100)).encode())
            os._exit(0)
        os.close(writing)
        with open(reading) as pipe:
            theirs = set(pipe.read().split())
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert len(theirs) == 100
        assert not theirs & {new_job_id(0) for _ in range(1_000)}

    @pytest.mark.parametrize("moment", [0, 1, 2**48 * 1_000 - 1])
    def test_the_first_and_last_moments_give_ids_too(self, moment: int) -> None:
        assert uuid.UUID(new_job_id(moment)).version == 7


class TestJobs:
    def test_arguments_and_result_are_read_as_values(self) -> None:
        assert job().args == {"to": "ann", "copies": 2}
        assert job().result is None
        assert job(result_json='{"sent": [1, null]}').result == {"sent": [1, None]}

    @pytest.mark.parametrize("state", JobState)
    def test_three_states_are_finished(self, state: JobState) -> None:
        assert job(state=state).is_finished is (state in ("succeeded", "dead", "cancelled"))
        assert (state in FINISHED) is job(state=state).is_finished

    def test_a_state_is_its_word(self) -> None:
        assert [str(state) for state in JobState] == [
            "blocked",
            "scheduled",
            "queued",
            "running",
            "succeeded",
            "dead",
            "cancelled",
        ]

    @pytest.mark.parametrize(
        "value",
        [
            job(),
            JobError("E", "m"),
            Failure("E", "m", "t"),
            Succeeded(None),
            Retried(Failure("E", "m", "t"), None),
            Dead(Failure("E", "m", "t")),
            Released(),
            JobFilter(),
            Page([], None),
            ClaimRequest((), ()),
        ],
        ids=lambda value: type(value).__name__,
    )
    def test_values_cannot_be_changed(self, value: object) -> None:
        names = [field.name for field in dataclasses.fields(value)]  # type: ignore[arg-type]
        for name in names:
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(value, name, None)
        assert not hasattr(value, "__dict__"), "slots: thousands of them are held at once"

    def test_how_long_an_attempt_took(self) -> None:
        attempt = Attempt(
            lease_no=1,
            attempt=1,
            worker_id=1,
            started_at=NOW,
            finished_at=NOW + timedelta(seconds=3),
            error_type="E",
            error_message="m",
            traceback="t",
        )
        assert attempt.duration == timedelta(seconds=3)
        assert AuditEntry(at=NOW, who="ann", action="retry", job_id="x").detail == {}

    def test_what_names_a_claim(self) -> None:
        assert Lease(4, 2, "x", "t", "q", "{}", 0, 1, 5, 0, 0).key == (4, 2)

    def test_the_most_a_claim_can_bring(self) -> None:
        lanes = (Lane("loop", ("a",), 3), Lane("thread", ("b",), 4))
        assert ClaimRequest(("q",), lanes).size == 7
        assert ClaimRequest(("q",), lanes, ("a",)).size == 8
        assert ClaimRequest(("q",), ()).size == 0


class TestClock:
    @pytest.mark.parametrize(
        "moment",
        [
            datetime(1970, 1, 1, tzinfo=UTC),
            datetime(2026, 3, 29, 1, 30, 0, 999_999, tzinfo=UTC),
            datetime(1969, 12, 31, 23, 59, 59, 1, tzinfo=UTC),
            datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC),
        ],
    )
    def test_instants_are_stored_exactly(self, moment: datetime) -> None:
        assert to_datetime(from_datetime(moment)) == moment
        assert to_datetime(from_datetime(moment)).tzinfo is UTC

    def test_an_instant_is_the_same_in_every_zone(self) -> None:
        there = NOW.astimezone(timezone(timedelta(hours=-9, minutes=-30)))
        assert from_datetime(there) == from_datetime(NOW)

    def test_a_naive_instant_is_refused_with_the_remedy(self) -> None:
        with pytest.raises(ValueError, match="add tzinfo=UTC"):
            from_datetime(NOW.replace(tzinfo=None))

    @pytest.mark.parametrize(
        ("duration", "micros"), [(timedelta(seconds=1), 10**6), (1, 10**6), (0.0000014, 1), (0, 0)]
    )
    def test_durations_are_microseconds(self, duration: timedelta | float, micros: int) -> None:
        assert to_micros(duration) == micros

    @pytest.mark.parametrize("read", [SystemClock().wall, SystemClock().boot])
    def test_the_hosts_clocks_move_in_microseconds(self, read: Callable[[], int]) -> None:
        before, started = read(), time.monotonic()
        while (took := time.monotonic() - started) < 0.02:
            pass
        assert took * 0.5 < (read() - before) / 10**6 < took * 50

    def test_the_hosts_wall_clock_is_utc(self) -> None:
        assert abs(to_datetime(SystemClock().wall()) - datetime.now(UTC)) < timedelta(seconds=5)
        assert SystemClock().boot_id() == SystemClock().boot_id() != ""

    def test_a_manual_clock_moves_when_it_is_told(self) -> None:
        clock = ManualClock(NOW)
        boot, name = clock.boot(), clock.boot_id()
        clock.advance(1.5)
        assert (clock.now, clock.boot() - boot) == (NOW + timedelta(seconds=1.5), 1_500_000)
        clock.step_wall(timedelta(days=-1))
        assert (clock.now, clock.boot() - boot) == (NOW + timedelta(days=-1, seconds=1.5), 1_500_000)
        clock.reboot()
        assert clock.boot() < boot
        assert clock.boot_id() != name
