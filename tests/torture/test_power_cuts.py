"""The power is cut at every write; and the checker itself is put to the test."""

import contextlib
import random
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest

from durableq.torture import power_cuts
from durableq.torture.disk import SECTOR, Change, Disk, Fate, arriving, torn
from durableq.torture.evidence import Expectations, examine_alone
from durableq.torture.power_cuts import Report, examine_images, planned, recorded, what_normal_loses
from durableq.torture.recording import (
    Operation,
    Recording,
    Said,
    Sync,
    Truncate,
    Unlink,
    Untraceable,
    Write,
    operations_in,
)
from durableq.torture.strace import why_not
from durableq.torture.verdicts import QUICK
from durableq.torture.works_on import Reopened

SEED: Final = 20_261
SLOW: Final = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def strace() -> None:
    if (reason := why_not()) is not None:
        pytest.skip(reason)


@pytest.fixture(scope="module")
def recording(strace: None, tmp_path_factory: pytest.TempPathFactory) -> Recording:
    """A short recording of a sound queue, for lies to be planted in."""
    return recorded(tmp_path_factory.mktemp("recording"), SEED, rounds=8)


def report_of(recording: Recording, images: int = 1_000) -> Report:
    report = Report()
    examine_images(recording, images, SEED, report)
    return report


def without(recording: Recording, is_planted: Callable[[Operation], bool]) -> Recording:
    return replace(recording, operations=[one for one in recording.operations if not is_planted(one)])


# -- the promise -------------------------------------------------------------------------------------------


@pytest.mark.fault("F15", "F1")
@pytest.mark.foreign_bug(25)
@SLOW
@pytest.mark.usefixtures("strace")
def test_no_power_cut_loses_what_was_acknowledged_or_damages_the_file(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []

    verdict = power_cuts.CHECK.run(tmp_path, QUICK, SEED, lambda done, total: told.append((done, total)))

    assert verdict.holds, "\n".join([*verdict.wrong, str(verdict.skipped)])
    assert verdict.tried == QUICK.images
    assert verdict.figures["images that lost what was acknowledged"] == "0"
    assert verdict.figures["images that were not whole"] == "0"
    assert int(verdict.figures["images on which durableq was started again"]) >= 20
    assert told[-1] == (QUICK.images, QUICK.images)
    assert list(tmp_path.iterdir()) == []


@SLOW
@pytest.mark.usefixtures("strace")
def test_durability_normal_is_seen_to_lose_acknowledged_jobs_but_no_file(tmp_path: Path) -> None:
    report = what_normal_loses(tmp_path, replace(QUICK, images=1_000), SEED)

    assert report.images == 100
    assert report.losing > 20
    assert report.most_lost > 20
    assert "was acknowledged and is not there" in report.losses[0]
    assert report.damage == []


def test_without_strace_it_says_so_and_tries_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    why_not.cache_clear()
    monkeypatch.setenv("PATH", "")
    try:
        verdict = power_cuts.CHECK.run(tmp_path, QUICK, SEED, lambda done, total: None)
    finally:
        why_not.cache_clear()

    assert verdict.skipped is not None
    assert "strace is not installed" in verdict.skipped
    assert not verdict.holds
    assert verdict.tried == 0


# -- lies in a recording are found -------------------------------------------------------------------------


def test_a_sound_recording_passes(recording: Recording) -> None:
    report = report_of(recording, 200)

    assert report.images == 200
    assert report.wrong == []


def test_a_queue_that_never_syncs_its_log_is_found_out(recording: Recording) -> None:
    report = report_of(without(recording, lambda one: isinstance(one, Sync) and one.file.endswith("-wal")), 300)

    assert report.losing > 30
    assert "was acknowledged and is not there" in report.losses[0]
    assert "(seed '20261:" in report.losses[0]


def test_a_queue_that_forgets_a_sync_now_and_then_is_found_out(recording: Recording) -> None:
    syncs = [one for one in recording.operations if isinstance(one, Sync) and one.file.endswith("-wal")]
    forgotten = {id(one) for one in syncs[3::8]}

    report = report_of(without(recording, lambda one: id(one) in forgotten), 1_000)

    assert 0 < report.losing < report.images // 2
    assert report.damage == []


def test_a_database_that_is_not_synced_before_its_log_is_deleted_is_found_out(recording: Recording) -> None:
    report = report_of(without(recording, lambda one: isinstance(one, Sync) and one.file == recording.database))

    assert report.losing > 0


def test_a_damaged_page_is_found_out(recording: Recording) -> None:
    def damaged(one: Operation) -> Operation:
        if isinstance(one, Write) and one.file == recording.database and one.offset == 5 * 4096:
            return one._replace(data=bytes(len(one.data)))
        return one

    report = report_of(replace(recording, operations=[damaged(one) for one in recording.operations]), 600)

    assert report.broken > 0
    assert any("corrupt" in sentence or "cannot be read" in sentence for sentence in report.damage)


@pytest.mark.parametrize("args", ["NULL", "1", "x'00'"])
def test_arguments_that_are_no_text_at_all_are_found_out(tmp_path: Path, args: str) -> None:
    """As a torn page may give them, whatever the table's definition forbids."""
    database = tmp_path / "torn.db"
    with contextlib.closing(sqlite3.connect(database)) as connection:
        connection.execute("CREATE TABLE durableq_jobs (id, state, args, checksum)")
        connection.execute(f"INSERT INTO durableq_jobs VALUES ('a', 'queued', {args}, 0)")
        connection.commit()

    assert examine_alone(database, frozenset({"a"})) == ["the arguments of job a do not have their checksum"]


def test_arguments_that_do_not_have_their_checksum_are_found_out(recording: Recording) -> None:
    def damaged(one: Operation) -> Operation:
        if isinstance(one, Write) and one.file == recording.database:
            return one._replace(data=one.data.replace(b'{"text": "', b'{"TEXT": "'))
        return one

    report = report_of(replace(recording, operations=[damaged(one) for one in recording.operations]), 600)

    assert any("do not have their checksum" in sentence for sentence in report.damage)


def test_an_acknowledgement_of_what_never_happened_is_found_out(recording: Recording) -> None:
    lie = [Said(["adding", 99_999, ["a", "b"], None]), Said(["added", 99_999, ["a", "b"]])]
    half = len(recording.operations) // 2

    report = report_of(
        replace(recording, operations=[*recording.operations[:half], *lie, *recording.operations[half:]]), 300
    )

    assert report.losing >= report.images // 3
    assert report.most_lost == 2


def test_the_first_wrong_disks_are_kept_to_be_looked_at(recording: Recording, tmp_path: Path) -> None:
    report = Report(evidence=tmp_path)

    examine_images(without(recording, lambda one: isinstance(one, Sync)), 100, SEED, report)

    assert report.losing > 10
    kept = sorted(tmp_path.iterdir())
    assert [one.name for one in kept] == ["wrong-1", "wrong-2", "wrong-3"]
    assert all((one / recording.database).exists() for one in kept)


def test_a_file_that_durableq_cannot_go_on_with_is_told(tmp_path: Path) -> None:
    database = tmp_path / "lost.db"
    database.write_bytes(b"no database at all " * 1_000)
    reopened = Reopened(tmp_path)

    reopened.add("some power cut", database, frozenset())
    reopened.finish()

    [sentence] = reopened.wrong
    assert sentence.startswith("some power cut, then opened by durableq: StorageUnusable")
    assert list(tmp_path.iterdir()) == [database]


def test_a_job_that_is_gone_after_durableq_went_on_is_told(tmp_path: Path) -> None:
    (tmp_path / "empty.db").touch(mode=0o600)
    reopened = Reopened(tmp_path)

    reopened.add("some power cut", tmp_path / "empty.db", frozenset({"a"}))
    reopened.finish()

    assert reopened.tried == 1
    assert reopened.wrong == ["some power cut, then opened by durableq: job a was acknowledged and is not there"]


# -- what has to be on a disk ------------------------------------------------------------------------------

ADDED: Final = [["adding", 1, ["a", "b"], None], ["added", 1, ["a", "b"]]]
ADDED_THREE: Final = [["adding", 1, ["a", "b", "c"], None], ["added", 1, ["a", "b", "c"]]]
ENDING: Final = [*ADDED, ["ending", {"a": "dead"}]]
ENDED: Final = [*ENDING, ["ended", {"a": "dead"}]]
RETRIED: Final = [*ENDED, ["reviving", "a"], ["revived", "a"]]
FOLLOWED: Final = [*ADDED, ["adding", 2, ["c", "d"], "a"], ["ending", {"a": "succeeded"}]]


@pytest.mark.parametrize(
    ("said", "found", "lost", "broken"),
    [
        (ADDED, {"a": "queued"}, "job b was acknowledged and is not there", "of the 2 jobs of addition 1, 1 are there"),
        (ADDED, {}, "job a was acknowledged and is not there", None),
        (ADDED[:1], {"b": "queued"}, None, "of the 2 jobs of addition 1, 1 are there"),
        (ADDED, {"a": "queued", "b": "queued", "c": "queued"}, None, "job c is there, and nobody has added it"),
        (ADDED, {"a": "dead", "b": "queued"}, None, "job a is dead, and nobody has asked for that"),
        (ENDING, {"a": "cancelled", "b": "queued"}, None, "job a is cancelled, and nobody has asked for that"),
        (ENDED, {"a": "running", "b": "queued"}, "job a was acknowledged as dead and is running", None),
        (RETRIED, {"a": "dead", "b": "queued"}, "job a is dead again, though its retry was acknowledged", None),
        ([*ENDED, ["deleting", ["a"]], ["deleted", ["a"]]], {"a": "dead", "b": "queued"}, "job a is there again", None),
        ([*ADDED_THREE, ["deleting", ["a"]]], {"c": "queued"}, "job b was acknowledged and is not there", None),
        (FOLLOWED, {"a": "succeeded", "b": "queued"}, None, "job a is succeeded, but 0 of the jobs"),
        (FOLLOWED, {"a": "running", "b": "queued", "c": "queued", "d": "queued"}, None, "job a is running, but 2 of"),
    ],
)
def test_what_contradicts_an_acknowledgement_is_found(
    said: Sequence[list[Any]], found: dict[str, str], lost: str | None, broken: str | None
) -> None:
    findings = heard(said).weigh(found)

    assert any(lost in sentence for sentence in findings.lost) if lost else findings.lost == []
    assert any(broken in sentence for sentence in findings.broken) if broken else findings.broken == []


@pytest.mark.parametrize(
    ("said", "found"),
    [
        (ADDED[:1], {}),
        (ADDED[:1], {"a": "running", "b": "queued"}),
        (ADDED, {"a": "scheduled", "b": "running"}),
        (ENDING, {"a": "dead", "b": "queued"}),
        (ENDING, {"a": "running", "b": "queued"}),
        (ENDED, {"a": "dead", "b": "queued"}),
        (RETRIED[:-1], {"a": "dead", "b": "queued"}),
        (RETRIED[:-1], {"a": "queued", "b": "queued"}),
        ([*RETRIED[:-1], ["ending", {"a": "dead"}], ["revived", "a"]], {"a": "dead", "b": "queued"}),
        ([*RETRIED, ["ending", {"a": "dead"}]], {"a": "dead", "b": "queued"}),
        ([*ENDED, ["deleting", ["a"]]], {"a": "dead", "b": "queued"}),
        ([*ENDED, ["deleting", ["a"]]], {"b": "queued"}),
        ([*ENDED, ["deleting", ["a"]], ["deleted", ["a"]]], {"b": "queued"}),
        (FOLLOWED, {"a": "running", "b": "queued"}),
        (FOLLOWED, {"a": "succeeded", "b": "queued", "c": "queued", "d": "running"}),
    ],
)
def test_what_was_not_acknowledged_may_be_there_or_not(said: Sequence[list[Any]], found: dict[str, str]) -> None:
    assert not heard(said).weigh(found)


def heard(said: Sequence[list[Any]]) -> Expectations:
    expectations = Expectations()
    for one in said:
        expectations.hear(one)
    return expectations


# -- the disk ----------------------------------------------------------------------------------------------


def test_a_synced_write_survives_every_power_cut_and_an_image_leaves_no_trace(tmp_path: Path) -> None:
    chance = random.Random(SEED)
    expected = bytearray()
    with Disk(tmp_path, "some.db") as disk:
        for _ in range(60):
            for _ in range(chance.randrange(4)):
                disk.replay(some_change(chance))
            for fate in Fate:
                with disk.after_a_power_cut(fate, chance) as path:
                    if fate == Fate.LOST:
                        assert path.read_bytes() == expected
                    elif fate == Fate.KEPT:
                        kept = path.read_bytes()
                assert path.read_bytes() == expected
            disk.replay(Sync("some.db"))
            expected[:] = kept
            assert path.read_bytes() == expected


def some_change(chance: random.Random) -> Operation:
    if chance.random() < 0.2:
        return Truncate("some.db", chance.randrange(6_000))
    return Write("some.db", chance.randrange(5_000), chance.randbytes(chance.randrange(1, 3_000)))


def test_a_deleted_file_is_gone_and_may_come_again(tmp_path: Path) -> None:
    with Disk(tmp_path, "some.db") as disk:
        disk.replay(Write("some.db-journal", 0, b"x"))
        disk.replay(Sync("some.db-journal"))
        assert (tmp_path / "some.db-journal").read_bytes() == b"x"
        disk.replay(Unlink("some.db-journal"))
        assert [file.name for file in tmp_path.iterdir()] == ["some.db"]
        disk.replay(Write("some.db-journal", 0, b"y"))
        with disk.after_a_power_cut(Fate.KEPT, random.Random(SEED)) as path:
            assert path.with_name("some.db-journal").read_bytes() == b"y"


def test_what_sqlite_makes_itself_does_not_stay(tmp_path: Path) -> None:
    with Disk(tmp_path, "some.db") as disk:
        with disk.after_a_power_cut(Fate.LOST, random.Random(SEED)) as path:
            for suffix in ("-shm", "-wal"):
                path.with_name(path.name + suffix).touch()
        assert [file.name for file in tmp_path.iterdir()] == ["some.db"]


def test_writes_under_way_arrive_in_part_in_any_order_and_torn_or_whole() -> None:
    writes: list[Change] = [Write("some.db", 4_096 * page, b"x" * 4_096) for page in range(12)]

    seen = [arriving(writes, Fate.SOME, random.Random(seed)) for seed in range(60)]

    whole = [[one for one in arrived if one in writes] for arrived in seen]
    assert any(one not in writes for arrived in seen for one in arrived)
    assert any(len(arrived) > 6 for arrived in whole)
    assert min(len(arrived) for arrived in seen) < 3
    assert any(arrived != sorted(arrived, key=writes.index) for arrived in whole)


def test_a_torn_write_is_torn_between_sectors() -> None:
    write = Write("some.db-wal", 1_000, bytes(range(256)) * 16)

    for seed in range(50):
        for part in torn(write, random.Random(seed)):
            assert isinstance(part, Write)
            start = part.offset - write.offset
            assert part.data == write.data[start : start + len(part.data)]
            assert start == 0 or part.offset % SECTOR == 0
            assert (part.offset + len(part.data)) % SECTOR == 0 or start + len(part.data) == len(write.data)


def test_images_are_spread_over_all_moments(recording: Recording) -> None:
    few, many = planned(recording, 100, SEED), planned(recording, 5_000, SEED)

    assert len(few) == 100
    assert len(many) == 5_000
    assert many == planned(recording, 5_000, SEED)
    assert len(set(many)) == 5_000
    assert few[0].cut == many[0].cut == 1
    assert few[-1].cut == many[-1].cut == len(recording.operations)
    changes = [cut for cut, one in enumerate(recording.operations) if not isinstance(one, Said)]
    assert {image.cut for image in many} == {*changes[1:], len(recording.operations)}
    assert {image.fate for image in few} == set(Fate)


def test_a_moment_with_nothing_under_way_gets_one_image() -> None:
    write = Write("some.db", 0, b"x")
    images = planned(Recording("some.db", [write, write, Sync("some.db"), Said(["added"]), write]), 31, SEED)

    assert [sum(image.cut == cut for image in images) for cut in range(6)] == [0, 10, 10, 0, 1, 10]


# -- reading strace ----------------------------------------------------------------------------------------

DATABASE: Final = Path("/data/some.db")


def read(*lines: str) -> list[Operation]:
    return list(operations_in([line + "\n" for line in lines], DATABASE, 7))


def test_a_sync_counts_only_when_it_has_returned() -> None:
    assert read(
        '11 pwrite64(5</data/some.db-wal>, "\\x61\\x62", 2, 4096) = 2',
        "11 fdatasync(5</data/some.db-wal> <unfinished ...>",
        '10 write(7<pipe:[1]>, "\\x5b\\x31\\x5d\\x0a", 4) = 4',
        "11 <... fdatasync resumed>) = 0",
    ) == [Write("some.db-wal", 4096, b"ab"), Said([1]), Sync("some.db-wal")]


def test_a_write_counts_from_its_beginning_and_once() -> None:
    escaped = "".join(f"\\x{byte:02x}" for byte in b"/data/some.db")

    assert read(
        f'11 pwrite64(5<{escaped}>, "\\x61", 1, 0 <unfinished ...>',
        '10 write(7<pipe:[1]>, "\\x31\\x0a", 2) = 2',
        "11 <... pwrite64 resumed>) = 1",
        "11 ftruncate(5</data/some.db>, 8192) = 0",
        '11 unlink("/data/some.db-journal") = 0',
    ) == [Write("some.db", 0, b"a"), Said(1), Truncate("some.db", 8192), Unlink("some.db-journal")]


def test_what_is_said_in_pieces_is_heard_as_one() -> None:
    assert read(
        '10 write(7<pipe:[1]>, "\\x5b\\x31", 2) = 2',
        '10 write(7<pipe:[1]>, "\\x5d\\x0a\\x32\\x0a", 4) = 4',
    ) == [Said([1]), Said(2)]


def test_other_files_and_descriptors_are_none_of_its_business() -> None:
    assert (
        read(
            '10 pwrite64(5</data/other.db>, "\\x61", 1, 0) = 1',
            '10 pwrite64(5</data/some.db-shm>, "\\x61", 1, 0) = 1',
            '10 write(2</dev/pts/0>, "\\x61\\x0a", 2) = 2',
            "10 fsync(6</data>) = 0",
            '10 rename("/data/a", "/data/b") = 0',
            "10 +++ exited with 0 +++",
        )
        == []
    )


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("10 fdatasync(5</data/some.db-wal>) = -1 EIO (Input/output error)", "fdatasync of some.db-wal failed"),
        ('10 write(5</data/some.db>, "\\x61", 1) = 1', "changes some.db by write"),
        ('10 pwritev(5</data/some.db>, [{iov_base="\\x61", iov_len=1}], 1, 0) = 1', "changes some.db by pwritev"),
        ('10 rename("/data/some.db", "/data/b") = 0', "changes some.db by rename"),
    ],
)
def test_what_it_cannot_follow_is_refused(line: str, why: str) -> None:
    with pytest.raises(Untraceable, match=why):
        read(line)
