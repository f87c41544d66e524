"""What is hidden, what is left readable, and how what comes back is told from what was hidden."""

import contextvars
import json
import logging
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, SecretStr
from typing_extensions import TypedDict

import durableq
from durableq import DurableQ, secret_names
from durableq.codec import ArgumentsCodec
from durableq.context import set_current
from durableq.engine.decisions import failure_of
from durableq.models import Failure
from durableq.observability.logs import Guard
from durableq.placeholders import PlaceholderSent, restored
from durableq.redaction import HIDDEN, MASKED, Redactor, cleaned, one_line, redacted_text
from durableq.secret_names import RESULT, Secret, also_redact, is_secret_name, may_name_secrets, secret_arguments

CANARY = "c4n4ry-5ea1"


# -- names ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "password", "PASSWORD", "dbPasswordOld", "user_passwd", "passphrase", "secret", "client-secret", "secrets",
        "token", "accessToken", "X-Auth-Token", "Authorization", "proxy-authorization", "api_key", "apiKey",
        "X-API-KEY",
        "Cookie", "set-cookie", "session", "session_id", "sessionid", "credit_card", "creditCardNumber", "card number",
        "cvv", "pin", "pin_code", "credentials", "private_key", "aws_secret_access_key", "jwt", "csrftoken", "pwd",
        "auth",
        "connection_string",
    ],
)  # fmt: skip
def test_a_name_that_says_secret_is_hidden(name: str) -> None:
    assert is_secret_name(name)
    for arguments in ({"a": [{name: CANARY}]}, {"a": {"name": name, "value": CANARY}}):
        assert may_name_secrets(json.dumps(arguments)), "who asks this first would look for nothing else"


@pytest.mark.parametrize(
    "name",
    [
        "email", "author", "authority", "key", "idempotency_key", "unique_key", "keyboard", "pinned", "spinner",
        "secretary",
        "tokenizer", "max_tokens", "token_count", "token_type", "password_min_length", "possession", "opinion", "id",
        "",
        "description", "card", "obsession",
    ],
)  # fmt: skip
def test_a_name_that_only_looks_like_one_stays_readable(name: str) -> None:
    assert not is_secret_name(name)


def test_most_arguments_are_seen_to_name_no_secret_without_reading_them() -> None:
    assert not may_name_secrets('{"order_id": 7, "rows": [{"name": "né", "amount": 1.5}], "to": "a@example.com"}')
    assert may_name_secrets('{"p\\u0061ssword": 1}')


def test_an_application_adds_names_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(secret_names, "_also", set())
    assert not is_secret_name("iban")
    also_redact(["IBAN", "tax-id"])
    assert is_secret_name("iban")
    assert is_secret_name("taxId")
    assert may_name_secrets('{"Tax ID": 1}')
    assert not is_secret_name("urban")
    assert redacted_text(f"iban={CANARY}") == f"iban={MASKED}"
    is_secret_name.cache_clear()


# -- text ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        f"password={CANARY}",
        f"password = {CANARY} was refused",
        f"{{'password': '{CANARY}', 'user': 'bob'}}",
        f"{{'password': 'it\\'s {CANARY}'}}",
        f'{{"api_key": "{CANARY}"}}',
        json.dumps(json.dumps({"token": f"x {CANARY}"})),
        f"secrets = ['a', '{CANARY}']",
        f"password=b'{CANARY}'",
        f"password='half of {CANARY}",
        f"https://api.example.org/?user=1&access_token={CANARY}",
        f"Authorization: Bearer {CANARY}",
        f"Authorization: Digest a=1, response={CANARY}",
        f"curl said: bearer {CANARY}",
        f"Cookie: a=1; b={CANARY}\nnext",
        f"headers['x-api-key'] = '{CANARY}'",
        f"postgresql+psycopg://app:{CANARY}@db/app",
        f"redis://:{CANARY}@cache:6379/0",
        f"amqp://u:p@{CANARY}@mq",
        f"-----BEGIN RSA PRIVATE KEY-----\n{CANARY}\n-----END RSA PRIVATE KEY-----",
        f"-----BEGIN PRIVATE KEY-----\n{CANARY}",
    ],
)
def test_a_secret_in_a_text_is_hidden(text: str) -> None:
    hidden = redacted_text(text)
    assert CANARY not in hidden
    assert MASKED in hidden
    assert redacted_text(hidden) == hidden


@pytest.mark.parametrize(
    "text",
    [
        "no such address: bad@example.org",
        "KeyError: 'token'",
        "the password was wrong",
        "http://localhost:8000/path?page=2",
        "mailto:me@example.org at 12:30",
        "if password == other:",
        "max_tokens=100, attempt=2/5",
        'File "/srv/app/tokens.py", line 3, in refresh',
        "",
    ],
)
def test_what_holds_no_secret_stays_as_it_is(text: str) -> None:
    assert redacted_text(text) == text


def test_a_task_keeps_its_name_whatever_its_module_is_called() -> None:
    line = "job failed: job_id=1 task=secrets1:mailer.send attempt=1/3"
    assert redacted_text(line) == line
    assert redacted_text("task=secrets1:mailer secrets1:hunter2 password=hunter2") == (
        "task=secrets1:mailer secrets1:*** password=***"
    )
    assert "hunter2" not in redacted_text("task: secret:hunter2 task=password=hunter2 task=password: hunter2")


def test_what_stands_beside_a_secret_stays_readable() -> None:
    text = f"login failed (user=bob, password={CANARY}) for postgres://app:{CANARY}@db:5432/shop"
    assert redacted_text(text) == f"login failed (user=bob, password={MASKED}) for postgres://app:{MASKED}@db:5432/shop"


@pytest.mark.parametrize(
    "part",
    ["a", "password=", "a=b ", "x://", "x://a:", "\\", 'password=\\"', "'", "\x1b[", "bearer ", "password=.,", "="],
)
def test_no_text_takes_long(part: str) -> None:
    text = part * (200_000 // len(part))
    begun = time.perf_counter()
    redacted_text(cleaned(text))
    assert time.perf_counter() - begun < 5  # some 0.2 s where it takes longest; quadratic would be minutes


@given(st.text())
def test_any_text_can_be_redacted_and_cleaned(text: str) -> None:
    Redactor.of({"a"}, {"a": text}).text(cleaned(redacted_text(text)))
    assert one_line(text).encode().decode().splitlines() in ([], [one_line(text)])


# -- values --------------------------------------------------------------------------------------------------


def test_what_stands_under_a_secret_name_is_hidden_however_deep() -> None:
    value = {
        "user": "bob",
        "password": CANARY,
        "pin": 918273,
        "has_token": True,
        "token": None,
        "nested": [{"config": {"apiKey": [CANARY]}}, {"name": "client_secret", "value": CANARY}],
        "url": f"redis://:{CANARY}@cache",
    }
    assert Redactor().value(value) == {
        "user": "bob",
        "password": HIDDEN,
        "pin": HIDDEN,
        "has_token": True,
        "token": None,
        "nested": [{"config": {"apiKey": HIDDEN}}, {"name": "client_secret", "value": HIDDEN}],
        "url": f"redis://:{MASKED}@cache",
    }


def test_a_value_too_deep_to_look_at_is_hidden() -> None:
    value: Any = CANARY
    for _ in range(200):
        value = {"a": value}
    assert CANARY not in json.dumps(Redactor().value({"a": value, "b": [value]}))


def test_the_value_of_a_secret_argument_is_hidden_wherever_it_turns_up() -> None:
    arguments = {"licence": "it's a\n“licence”/42", "user": {"password": CANARY}, "city": "Bern"}
    hide = Redactor.of({"licence"}, arguments)
    assert hide.arguments(arguments) == {"licence": HIDDEN, "user": {"password": HIDDEN}, "city": "Bern"}
    licence = arguments["licence"]
    for text in (licence, repr(licence), json.dumps(licence), "it%27s%20a%0A%E2%80%9Clicence%E2%80%9D/42", CANARY):
        hidden = hide.text(f"refused {text} in Bern")
        assert ("licence" in hidden, CANARY in hidden, "in Bern" in hidden) == (False, False, True)
    assert hide.value([{"seen": f"<{CANARY}>"}]) == [{"seen": f"<{MASKED}>"}]
    assert Redactor.of({"code"}, {"code": 918273}).value([918273, 1, "at 918273"]) == [HIDDEN, 1, f"at {MASKED}"]


@given(st.text(min_size=4, max_size=60), st.integers(0, 3))
def test_a_secret_is_found_however_often_it_was_quoted(secret: str, times: int) -> None:
    text = f"<before {secret} after>"
    for _ in range(times):
        text = json.dumps(repr(text))
    hidden = Redactor(["a"], [secret]).text(text)
    assert MASKED in hidden
    assert hidden.count("before") + hidden.count("after") + (secret in "before after") >= 2


def test_the_beginning_of_a_secret_that_was_cut_is_hidden_too() -> None:
    secret = "".join(chr(97 + at % 26) + str(at) for at in range(200))
    hide = Redactor.of({"licence"}, {"licence": secret})
    assert secret[:45] not in hide.text(f"argument: got '{secret[:117]}... (str)")
    assert secret[100:117] not in hide.text(f"argument: got '{secret[:117]}... (str)")
    assert hide.text("x" * 1_990 + secret[:10]).endswith(f"x{MASKED}")


def test_more_secrets_than_can_be_looked_for_hide_the_whole_text() -> None:
    hide = Redactor.of({"codes"}, {"codes": [f"code-{at}" for at in range(1_000)]})
    assert hide.text("failed on code-999") == MASKED


# -- what a signature declares -------------------------------------------------------------------------------


class Account(BaseModel):
    user: str
    key: SecretStr


@dataclass
class Card:
    number: Annotated[str, Secret]


class Row(TypedDict):
    code: Annotated[str, Secret]


def declared(
    a: Annotated[str, Secret],
    b: Annotated[str, Secret] | None,
    c: list[Annotated[str, Secret()]],
    d: SecretStr,
    e: dict[str, Account],
    f: Card,
    g: Row,
    plain: str,
    number: int = 0,
) -> Annotated[str, Secret]:
    return ""


def test_a_signature_declares_secrets_by_annotation_anywhere_inside() -> None:
    assert secret_arguments(declared) == {"a", "b", "c", "d", "e", "f", "g", RESULT}
    assert secret_arguments(declared) is secret_arguments(declared)


def test_a_declared_result_is_hidden_and_a_missing_one_is_none() -> None:
    assert Redactor({RESULT}).result({"a": CANARY}) == HIDDEN
    assert Redactor({RESULT}).result(None) is None
    assert Redactor().result("fine") == "fine"


def test_a_secret_of_pydantic_is_stored_as_it_is_and_comes_back_as_a_secret() -> None:
    def task(a: Annotated[SecretStr, Secret], b: Annotated[str, Secret] = "") -> None: ...

    codec = ArgumentsCodec(task, "task")
    stored = codec.encode((CANARY,), {"b": "x"}, 1_000)
    assert json.loads(stored) == {"a": CANARY, "b": "x"}
    _, arguments = codec.decode(stored)
    assert arguments["a"].get_secret_value() == CANARY
    assert json.loads(codec.json_schema or "")["properties"]["b"]["writeOnly"] is True


# -- what comes back -----------------------------------------------------------------------------------------

STORED = {
    "password": CANARY,
    "user": "bob",
    "url": f"redis://:{CANARY}@cache",
    "servers": [{"host": "a", "token": "t-one"}, {"host": "b", "token": "t-two"}],
}
SHOWN = Redactor().arguments(STORED)


def test_what_comes_back_as_it_was_shown_is_what_is_stored() -> None:
    edited = json.loads(json.dumps(SHOWN)) | {"user": "eve"}
    assert restored(edited, SHOWN, STORED) == STORED | {"user": "eve"}


def test_a_hidden_value_can_be_replaced() -> None:
    edited = SHOWN | {"password": "new", "url": "redis://cache"}
    assert restored(edited, SHOWN, STORED) == STORED | {"password": "new", "url": "redis://cache"}


def test_items_of_a_list_keep_their_own_secrets_when_one_is_added_moved_or_removed() -> None:
    first, second = SHOWN["servers"]
    edited = SHOWN | {"servers": [second, {"host": "c", "token": "t-3"}, first]}
    one, two = STORED["servers"]
    assert restored(edited, SHOWN, STORED)["servers"] == [two, {"host": "c", "token": "t-3"}, one]


@pytest.mark.parametrize(
    "edit",
    [
        {"other": HIDDEN},
        {"user": HIDDEN},
        {"url": f"redis://:{MASKED}@elsewhere"},
        {"servers": [{"host": "c", "token": HIDDEN}, {"host": "d", "token": "t-3"}, {"host": "d", "token": HIDDEN}]},
        {"user": {"password": HIDDEN}},
        {"list": [HIDDEN]},
    ],
)
def test_a_placeholder_never_becomes_a_value(edit: dict[str, Any]) -> None:
    with pytest.raises(PlaceholderSent, match=r"something hidden; leave .* or give it in full$") as caught:
        restored(SHOWN | edit, SHOWN, STORED)
    assert caught.value.argument in edit


def test_a_text_that_holds_asterisks_itself_can_be_edited() -> None:
    stored = {"markdown": "a *** b"}
    assert restored({"markdown": "c *** d"}, stored, stored) == {"markdown": "c *** d"}


# -- failures ------------------------------------------------------------------------------------------------


class Running:
    """What `current_job` gives while a job runs, as far as it matters here."""

    def __init__(self, function: Any, args: dict[str, Any]) -> None:
        self.function, self.args = function, args


def raised(message: str, cause: str) -> BaseException:
    try:
        try:
            raise KeyError(cause)
        except KeyError as error:
            raise ValueError(message) from error
    except ValueError as error:
        return error


def test_a_failure_is_described_without_the_secrets_of_the_job_that_runs() -> None:
    job: Any = Running(declared, {"a": CANARY, "plain": "readable"})
    error = raised(f"{CANARY} is not readable", f"password=x{CANARY[:6]} {CANARY}")

    def fail() -> Failure:
        set_current(job)
        return failure_of(error)

    failure = contextvars.copy_context().run(fail)
    assert failure.message == f"{MASKED} is not readable"
    assert CANARY[:6] not in failure.traceback
    assert "KeyError" in failure.traceback
    assert "in raised" in failure.traceback


def test_the_default_of_a_secret_argument_is_no_less_secret() -> None:
    def send(to: str, code: Annotated[str, Secret] = CANARY, note: str = "hello") -> None: ...

    def fail() -> Failure:
        job: Any = Running(send, {"to": "ann"})
        set_current(job)
        return failure_of(ValueError(f"{CANARY} of ann, hello"))

    assert contextvars.copy_context().run(fail).message == f"{MASKED} of ann, hello"


def test_a_failure_outside_of_a_job_is_described_without_what_its_text_calls_secret() -> None:
    failure = failure_of(raised(f"password={CANARY}", f"x://u:{CANARY}@h"), None)
    assert CANARY not in f"{failure}"


# -- control characters and log lines ------------------------------------------------------------------------


def test_control_characters_and_terminal_escapes_are_left_out() -> None:
    hostile = "\x1b[31mred\x1b[0m \x1b]0;title\x07bell\x07 \x9b2Jclear nul\x00 \u202eturned\u2066 a\r\nb\u2028c\ud800"
    assert one_line(hostile) == "red bell clear nul turned a bc"
    assert cleaned("two\n\tlines") == "two\n\tlines"


@pytest.fixture
def lines(caplog: pytest.LogCaptureFixture) -> Any:
    logger = logging.getLogger("durableq.test_of_redaction")
    guard = Guard()
    logger.addFilter(guard)
    yield lambda: [logging.Formatter("%(levelname)s %(message)s").format(record) for record in caplog.records]
    logger.removeFilter(guard)


def test_no_log_line_shows_a_secret_or_lets_what_is_logged_pass_for_another_line(lines: Any) -> None:
    logger = logging.getLogger("durableq.test_of_redaction")
    error = raised(f"password={CANARY}\nERROR forged", "\x1b[2Jx")
    logger.warning("job %s failed: %s %r %d", "a\nERROR forged", error, error, 3)
    logger.error("it broke", exc_info=error)
    said = "\n".join(lines())
    assert CANARY not in said
    assert "\x1b" not in said
    assert "in raised" in said
    assert [line for line in said.splitlines() if line.startswith("ERROR")] == ["ERROR it broke"]
    assert said.splitlines()[0] == "WARNING job a"


def test_every_logger_of_durableq_is_guarded() -> None:
    named = {
        name
        for source in Path(durableq.__file__).parent.rglob("*.py")
        for name in re.findall(r'getLogger\("(durableq[\w.]*)"\)', source.read_text())
    }
    assert len(named) > 2
    DurableQ("unused.db")
    assert [name for name in named if not any(isinstance(one, Guard) for one in logging.getLogger(name).filters)] == []
