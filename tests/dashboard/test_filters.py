"""What is looked for: as text, as form fields and as a URL it says the same, and what cannot be meant is refused."""

from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qsl, urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from durableq.dashboard.filters import NAMES, TIMES, Read, Search, moment, read_query, read_text
from durableq.models import JobFilter, JobState

NOW = datetime(2030, 5, 17, 12, 0, tzinfo=UTC)
EVERYTHING = Search(
    state="dead",
    task="main:send_email",
    queue="mail",
    tag="x",
    error_type="TimeoutError",
    error_text='said "no" \\ twice',
    since="7d",
    until="2030-05-17T11:00:00+00:00",
    finished_since="1h",
    finished_until="10m",
    arguments=(("user_id", "42"), ("user.mail", "a b")),
)


def text(typed: str) -> Read:
    return read_text(typed, NOW)


def complaint(read: Read) -> str:
    assert len(read.problems) == 1, read.problems
    return read.problems[0].message


def test_the_search_text_names_every_field() -> None:
    read = text('state:dead task:main:send_email queue:mail arg.user_id:42 tag:x error:"timed out" since:1h')
    assert read.problems == []
    assert read.search == Search(
        state="dead",
        task="main:send_email",
        queue="mail",
        tag="x",
        error_text="timed out",
        since="1h",
        arguments=(("user_id", "42"),),
    )


def test_a_search_is_the_same_filter_as_text_and_as_url() -> None:
    assert text(EVERYTHING.text()) == Read(EVERYTHING, [])
    pairs = parse_qsl(urlencode(EVERYTHING.query()), strict_parsing=True)
    assert read_query(pairs, NOW) == Read(EVERYTHING, [])


VALUES = st.text(st.characters(codec="utf-8", exclude_categories=("Cc", "Zs", "Zl", "Zp")), min_size=1, max_size=20)
SPACED = st.lists(VALUES, min_size=1, max_size=3).map(" ".join)


@given(tag=SPACED, error_text=SPACED, name=SPACED, value=SPACED)
def test_any_value_survives_the_way_through_text_and_url(tag: str, error_text: str, name: str, value: str) -> None:
    search = Search(tag=tag, error_text=error_text, arguments=((name, value),))
    assert text(search.text()) == Read(search, [])
    assert read_query(parse_qsl(urlencode(search.query())), NOW) == Read(search, [])


def test_every_field_reaches_the_storage() -> None:
    assert EVERYTHING.where(NOW) == JobFilter(
        state=JobState.DEAD,
        task="main:send_email",
        queue="mail",
        tag="x",
        error_type="TimeoutError",
        error_text='said "no" \\ twice',
        arguments={"user_id": "42", "user.mail": "a b"},
        created_after=NOW - timedelta(days=7),
        created_before=NOW - timedelta(hours=1),
        finished_after=NOW - timedelta(hours=1),
        finished_before=NOW - timedelta(minutes=10),
    )


def test_without_conditions_every_job_matches() -> None:
    assert not Search()
    assert Search().where(NOW) == JobFilter()
    assert text("  ") == Read(Search(), [])


def test_empty_form_fields_are_no_conditions() -> None:
    sent = [(name, "  ") for name in NAMES] + [("arg_name", ""), ("arg_value", ""), ("arg.x", "")]
    assert read_query(sent, NOW) == Read(Search(), [])


def test_what_is_a_page_and_no_search_is_passed_over() -> None:
    assert read_query([("cursor", "12"), ("said", "retried"), ("state", "dead")], NOW).search == Search(state="dead")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("stat", "did you mean 'state'?"),
        ("Task", "did you mean 'task'?"),
        ("nonsense", "there are state, task"),
        ("x" * 60_000, f"no filter '{'x' * 40}…'"),
    ],
)
def test_an_unknown_name_in_an_address_is_refused_and_does_not_widen_the_search(name: str, said: str) -> None:
    assert said in complaint(read_query([("tag", "x"), (name, "1")], NOW))


def test_what_others_take_from_an_address_is_passed_over_unless_it_is_a_filter() -> None:
    pairs = [("state", "dead"), ("token", "x")]
    assert read_query(pairs, NOW, {"state", "token"}) == Read(Search(state="dead"), [])


def test_unknown_names_are_told_of_ten_times_at_most() -> None:
    assert len(read_query([(f"x{number}", "1") for number in range(2_000)], NOW).problems) == 10


def test_an_address_may_say_error_as_the_search_text_does() -> None:
    assert read_query([("error", "timed out")], NOW) == Read(Search(error_text="timed out"), [])


def test_the_form_takes_the_name_and_the_value_of_an_argument_in_two_fields() -> None:
    assert read_query([("arg_name", "user_id"), ("arg_value", "42")], NOW).search.arguments == (("user_id", "42"),)


def test_a_value_without_the_name_of_its_argument_is_refused() -> None:
    assert "needs its name" in complaint(read_query([("arg_name", ""), ("arg_value", "42")], NOW))


@pytest.mark.parametrize(
    ("typed", "micros"),
    [("90s", 90), ("15m", 900), ("1h", 3600), ("last 1h", 3600), ("last7D", 604_800), ("2 w", 1_209_600)],
)
def test_an_age_counts_from_now(typed: str, micros: int) -> None:
    assert moment(typed, NOW) == NOW - timedelta(seconds=micros)


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("2030-05-01", datetime(2030, 5, 1, tzinfo=UTC)),
        ("2030-05-01T10:30", datetime(2030, 5, 1, 10, 30, tzinfo=UTC)),
        ("2030-05-01T10:30Z", datetime(2030, 5, 1, 10, 30, tzinfo=UTC)),
        ("2030-05-01T10:30+02:00", datetime(2030, 5, 1, 8, 30, tzinfo=UTC)),
    ],
)
def test_a_moment_without_a_zone_is_utc(typed: str, meant: datetime) -> None:
    assert moment(typed, NOW) == meant


@pytest.mark.parametrize(
    "typed", ["yesterday", "1y", "-1h", "h", "999999w", "2030-13-01", "\N{ARABIC-INDIC DIGIT ONE}h"]
)
@pytest.mark.parametrize("name", TIMES)
def test_what_is_no_time_is_refused_with_examples(name: str, typed: str) -> None:
    read = read_query([(name, typed)], NOW)
    assert [problem.field for problem in read.problems] == [name]
    assert "15m, 1h or 7d" in complaint(read)


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("state:deed", "did you mean 'dead'?"),
        ("state:xyz", "there are blocked, scheduled"),
        ("task:send_*", "names are looked up whole"),
        ("queue:mail*", "names are looked up whole"),
        ("tsk:x", "did you mean 'task'?"),
        ("user_id:42", "write arg.user_id:…"),
        ("task:", "has nothing behind it"),
        ('"timed', "nothing closes"),
        ("retrying", "write state:scheduled"),
        ("state:retrying", "write state:scheduled"),
        ("0123456789ab", "found by its whole id"),
        ("0197c8e1-7b5a", "found by its whole id"),
        ("id:0197c8e1", "found by its whole id"),
        ("main:send_email", "task:main:send_email"),
        ('error:"timed', "nothing closes"),
        ("state:dead state:queued", "asked for twice"),
        ("tag:a tag:b", "asked for twice"),
        ("arg.x:1 arg.x:2", "asked for twice"),
        ("arg.:1", "needs its name"),
        ("since:1h until:2h", "nothing lies between since (1h) and until (2h)"),
        ("finished_since:1h finished_until:1h", "nothing lies between"),
        ("tag:" + "x" * 201, "at most 200 characters, got 201"),
        ("arg." + "x" * 300 + ":1", "at most 200 characters, got 304"),
        ("x" * 2_001, "at most 2,000 characters, got 2,001"),
        (" ".join(f"arg.a{n}:1" for n in range(11)), "at most 10 arguments, got 11"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_words(typed: str, said: str) -> None:
    assert said in complaint(text(typed))


@pytest.mark.parametrize("name", [*NAMES, "arg.x"])
def test_the_character_at_which_the_storage_ends_a_text_is_refused(name: str) -> None:
    assert "NUL (U+0000)" in complaint(read_query([(name, "\0x")], NOW))
    assert "NUL (U+0000)" in complaint(read_query([("arg.\0", "x")], NOW))


def test_saying_the_same_twice_is_saying_it() -> None:
    assert text("tag:a tag:a") == Read(Search(tag="a"), [])


def test_words_without_a_key_are_part_of_the_error() -> None:
    assert text("dead timed out") == Read(Search(state="dead", error_text="timed out"), [])
    assert text('"timed: out"') == Read(Search(error_text="timed: out"), [])


def test_what_asks_for_too_much_is_refused_before_anything_is_made_of_it() -> None:
    many = read_query([(f"arg.{number}", "1") for number in range(4_000)], NOW)
    assert not many.search
    assert "at most 30 conditions, got 4,000" in complaint(many)
    long = read_query([("tag", "x" * 60_000)], NOW)
    assert not long.search
    assert "at most 200 characters, got 60,000" in complaint(long)
    assert not text(" ".join(f"arg.{number}:1" for number in range(11))).search


def test_no_more_than_ten_problems_are_told() -> None:
    assert len(text(" ".join(f"unknown{number}:1" for number in range(150))).problems) == 10


def test_the_name_of_a_state_alone_means_the_state() -> None:
    assert text("dead queue:mail") == Read(Search(state="dead", queue="mail"), [])


def test_the_id_of_a_job_alone_leads_to_it() -> None:
    job_id = "0197c8e1-7b5a-7c3d-8e2f-0123456789ab"
    assert text(f" {job_id.upper()} ").job_id == job_id
    assert text(f"id:{job_id}").job_id == job_id
    assert text(f"task:{job_id}").job_id is None


def test_a_condition_can_be_taken_out() -> None:
    assert EVERYTHING.without("state").state == ""
    assert EVERYTHING.without("arg.user_id").arguments == (("user.mail", "a b"),)


def test_a_fixed_search_means_the_same_later() -> None:
    later = NOW + timedelta(hours=5)
    assert EVERYTHING.fixed(NOW).where(later) == EVERYTHING.where(NOW)
    assert EVERYTHING.where(later) != EVERYTHING.where(NOW)


def test_an_end_is_only_ever_moved_forward() -> None:
    earlier = Search(until="1h")
    assert earlier.ending_before("until", NOW).where(NOW) == earlier.where(NOW)
    assert Search().ending_before("until", NOW).where(NOW).created_before == NOW
    later = Search(finished_until="2031-01-01").ending_before("finished_until", NOW)
    assert later.where(NOW).finished_before == NOW


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("1h", "1h"),
        ("2030-05-01", "2030-05-01 UTC"),
        ("2030-05-01T10:30", "2030-05-01 10:30 UTC"),
        ("2030-05-01T10:30Z", "2030-05-01 10:30:00 UTC"),
        ("2030-05-17T12:00:00.123456+00:00", "2030-05-17 12:00:00 UTC"),
        ("2030-05-01T10:30+02:00", "2030-05-01T10:30+02:00"),
        ("yesterday", "yesterday"),
    ],
)
def test_a_moment_is_shown_with_its_zone(value: str, shown: str) -> None:
    assert Search.shown("since", value) == shown
    assert Search.shown("tag", value) == value
