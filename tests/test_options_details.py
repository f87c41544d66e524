"""Settings at the edge of what is allowed, from the environment too, and what is said of the rest."""

from datetime import timedelta

import pytest

from durableq.errors import ConfigurationError
from durableq.models import OnConflict
from durableq.options import Unique
from durableq.settings import ENVIRONMENT_PREFIX, queue_options


@pytest.mark.parametrize("on_conflict", ["return", "replace", "raise"])
def test_each_way_to_meet_a_duplicate_is_accepted(on_conflict: OnConflict) -> None:
    assert Unique(on_conflict=on_conflict).on_conflict == on_conflict


@pytest.mark.parametrize("period", [timedelta(microseconds=1), timedelta(hours=1), timedelta(days=1), 0.5])
def test_a_period_of_any_length_is_accepted_and_is_a_duration(period: timedelta | float) -> None:
    expected = period if isinstance(period, timedelta) else timedelta(seconds=period)
    assert Unique(period=period).period == expected


@pytest.mark.parametrize("period", [timedelta(0), 0, timedelta(microseconds=-1)])
def test_no_period_is_refused(period: timedelta | float) -> None:
    with pytest.raises(ConfigurationError, match="period"):
        Unique(period=period)


@pytest.mark.parametrize(
    ("text", "queues", "names"),
    [(" mail , print,", ("mail", "print"), ("mail", "print")), ("", None, ()), (" , ", None, ())],
)
def test_lists_come_from_the_environment(text: str, queues: tuple[str, ...] | None, names: tuple[str, ...]) -> None:
    given = {ENVIRONMENT_PREFIX + "QUEUES": text, ENVIRONMENT_PREFIX + "REDACT": text}
    options = queue_options({}, given)
    assert (options.queues, options.redact) == (queues, names)


def test_a_wrong_setting_is_told_in_one_plain_line() -> None:
    with pytest.raises(ConfigurationError) as caught:
        queue_options({"concurrency": 0}, {})
    assert str(caught.value) == "option 'concurrency': input should be greater than or equal to 1, got 0"
    with pytest.raises(ConfigurationError, match=r"^option 'queues': ") as caught:
        queue_options({"queues": ["fine", 7]}, {})
    assert str(caught.value).endswith("got 7")


def test_a_lease_of_exactly_two_heartbeats_is_accepted() -> None:
    assert queue_options({"lease": 2, "heartbeat": 1}, {}).lease == timedelta(seconds=2)
    with pytest.raises(ConfigurationError, match="at least two heartbeats"):
        queue_options({"lease": 1.9, "heartbeat": 1}, {})
