"""Tokens by themselves: which are taken, of whom, until when. Links with tokens are in test_status.py."""

import pytest

from durableq import ConfigurationError
from durableq.fastapi.tokens import checked_secret, is_valid, signed

KEY = b"0123456789abcdef"
TOKEN = signed(KEY, "status", "job", 1_000)


def test_a_token_holds_until_the_second_of_its_expiry() -> None:
    found = [is_valid(KEY, "status", "job", TOKEN, now) for now in (0, 999.9, 1_000, 1_001)]
    assert found == [True, True, False, False]


def test_links_that_were_sent_out_hold_after_an_upgrade() -> None:
    assert (
        signed(KEY, "durableq_job", "job-1", 1_800_000_000) == "1800000000.l4XSZr84jcf8b3q_zNqjJX69b_Chub0hJSaJycIB6EU"
    )


def test_a_token_may_be_for_as_long_as_anybody_likes() -> None:
    expires_at = 999_999_999_999
    token = signed(KEY, "status", "job", expires_at)
    assert is_valid(KEY, "status", "job", token, expires_at - 1)


@pytest.mark.parametrize(
    "token",
    [
        *("", ".", "1000", "1000.", "-1.x", "٣.x", "1000.\ud800", "\ud800", "9" * 5_000 + ".x"),
        *(f"{TOKEN}=", f" {TOKEN}", f"0{TOKEN}", f"+{TOKEN}", TOKEN[:-1]),
        *(TOKEN.replace("1000", "2000"), TOKEN.swapcase()),
    ],
)
def test_what_is_not_the_very_token_is_not_taken(token: str) -> None:
    assert not is_valid(KEY, "status", "job", token, 0)


def test_a_token_is_of_one_key_one_route_and_one_job() -> None:
    assert is_valid(KEY, "status", "job", TOKEN, 0)
    assert not is_valid(b"another key, long enough", "status", "job", TOKEN, 0)
    assert not is_valid(KEY, "other", "job", TOKEN, 0)
    assert not is_valid(KEY, "status", "job2", TOKEN, 0)


def test_a_secret_has_sixteen_bytes_at_least() -> None:
    assert checked_secret(KEY) == KEY
    assert checked_secret("ü" * 8) == "ü".encode() * 8
    with pytest.raises(ConfigurationError, match="at least 16 bytes, got 15; make one with"):
        checked_secret(KEY[:15])
