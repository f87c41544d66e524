"""The payments example: what its README promises, checked in the files that a real run with its kill leaves behind."""

import contextlib
import itertools
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

import httpx2
import pytest

from examples.demo.site import free_port
from examples.payments.books import complaints
from examples.payments.merchant import Books, Callbacks, Mood, mood
from examples.payments.service import Service, merchant
from examples.payments.signature import HEADER, is_genuine, signature
from examples.payments.story import MOVED, ORDERS, Story
from tests.support import eventually_sync

ROOT = Path(__file__).resolve().parent.parent
TOKEN = "a token of the tests"
OPERATOR = {"Authorization": f"Bearer {TOKEN}"}
SECRET = "a secret of the tests"
SEED = 1
STORY_SECONDS = 35

CALLBACK_OF = "json_extract(args, '$.order_id')"


def rows(database: Path, query: str, *values: Any) -> list[Any]:
    with contextlib.closing(sqlite3.connect(database)) as connection:
        return connection.execute(query, values).fetchall()


def column(database: Path, query: str, *values: Any) -> list[Any]:
    return [row[0] for row in rows(database, query, *values)]


# -- the story -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Told:
    """What a run of the story left behind."""

    status: int
    said: str
    directory: Path

    @property
    def service(self) -> Path:
        return self.directory / "payments.db"

    @property
    def merchant(self) -> Path:
        return self.directory / "merchant.db"

    @property
    def cut_off(self) -> set[str]:
        """The orders whose callback was running when the service was killed."""
        query = f"""
            SELECT {CALLBACK_OF} FROM durableq_jobs JOIN durableq_attempts USING (seq)
            WHERE durableq_attempts.error_type = 'durableq.WorkerDied'
        """
        return set(column(self.service, query))


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Told:
    """Run the story once, in a process group of its own, so that nothing of it is left whatever happens."""
    directory = tmp_path_factory.mktemp("story")
    with subprocess.Popen(
        [sys.executable, "-m", "examples.payments", "--directory", str(directory)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            said, _ = process.communicate(timeout=STORY_SECONDS)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    return Told(process.returncode, said, directory)


ALL = [f"order-{number:02}" for number in range(1, ORDERS + 1)]
OF_THE_ONE_WHO_MOVED = set(ALL[-MOVED:])


def test_the_story_ends_well(told: Told) -> None:
    assert told.status == 0, told.said
    assert "kill -9 of the service" in told.said
    assert "The books balance" in told.said


def test_every_order_is_in_the_merchants_books_exactly_once(told: Told) -> None:
    booked = rows(told.merchant, 'SELECT "order", cents FROM bookings ORDER BY 1')

    assert booked == [(one, 100 * number) for number, one in enumerate(ALL, start=1)]


def test_every_order_is_marked_and_every_callback_has_succeeded(told: Told) -> None:
    assert rows(told.service, "SELECT id, notified FROM orders ORDER BY 1") == [(one, 1) for one in ALL]
    jobs = rows(told.service, f"SELECT {CALLBACK_OF}, state FROM durableq_jobs ORDER BY 1")
    assert jobs == [(one, "succeeded") for one in ALL]


def test_orders_are_booked_under_the_key_of_their_job(told: Told) -> None:
    keys = rows(told.merchant, 'SELECT "order", key FROM bookings ORDER BY 1')

    assert keys == rows(told.service, f"SELECT {CALLBACK_OF}, id FROM durableq_jobs ORDER BY 1")


def test_the_story_had_what_it_takes_to_go_wrong(told: Told) -> None:
    answers = Counter(column(told.merchant, "SELECT answer FROM calls"))

    assert answers.total() > ORDERS
    assert answers[500] > ORDERS / 4
    assert min(answers[429], answers[503], answers[None]) > 0  # None: booked, but nothing said
    assert told.cut_off, "the kill interrupted nothing"


def test_all_callbacks_were_signed(told: Told) -> None:
    assert column(told.merchant, "SELECT count(*) FROM calls WHERE answer = 401") == [0]


def test_who_says_when_to_come_back_is_not_called_before(told: Told) -> None:
    calls = rows(told.merchant, 'SELECT "order", at, answer, not_before FROM calls ORDER BY "order", at')
    honoured = set()
    for (one, _, answer, not_before), (following, at, *_) in itertools.pairwise(calls):
        # What a killed service was just told it cannot know.
        if not_before is not None and one not in told.cut_off:
            assert following == one
            assert at >= not_before, f"{one} was called {not_before - at:.3f} s too soon after a {answer}"
            honoured.add(answer)

    assert honoured == {429, 503}


def test_the_hopeless_are_tried_once_and_alerted(told: Told) -> None:
    gone = Counter(column(told.merchant, 'SELECT "order" FROM calls WHERE answer = 410'))
    alerted = column(
        told.service, f"SELECT {CALLBACK_OF} FROM alert JOIN durableq_jobs ON durableq_jobs.id = alert.job"
    )

    assert gone == Counter(OF_THE_ONE_WHO_MOVED)
    assert Counter(alerted) == Counter(OF_THE_ONE_WHO_MOVED)


def test_what_the_operator_did_is_audited(told: Told) -> None:
    query = f"SELECT who, action, {CALLBACK_OF} FROM durableq_audit AS a JOIN durableq_jobs AS j ON j.id = a.job_id"

    assert sorted(rows(told.service, query)) == [("operator", "retry", one) for one in sorted(OF_THE_ONE_WHO_MOVED)]


def test_a_story_that_is_stopped_leaves_no_process_behind() -> None:
    command = [sys.executable, "-m", "examples.payments"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout is not None
        ports = re.findall(r"127\.0\.0\.1:(\d+)", process.stdout.readline())
        process.terminate()
        process.communicate(timeout=20)

    assert process.returncode == 130
    assert len(ports) == 2
    for port in ports:
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", int(port)), timeout=5)


def test_a_directory_with_files_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    command = [sys.executable, "-m", "examples.payments", "--directory", str(tmp_path)]

    refused = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=20)

    assert refused.returncode == 2
    assert "expected an empty directory" in refused.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


# -- comparing the books -------------------------------------------------------------------------------------


@pytest.fixture
def files(told: Told, tmp_path: Path) -> tuple[Path, Path]:
    """The books of the story, to tamper with."""
    for path in (told.service, told.merchant):
        shutil.copy(path, tmp_path)
    return tmp_path / told.service.name, tmp_path / told.merchant.name


def test_the_books_of_the_story_balance(files: tuple[Path, Path]) -> None:
    assert complaints(*files) == []


@pytest.mark.parametrize(
    ("tampering", "complaint"),
    [
        ("UPDATE orders SET notified = 0 WHERE id = 'order-07'", "not marked as notified: order-07"),
        ("DELETE FROM bookings WHERE \"order\" = 'order-07'", "not in the merchant's books: order-07"),
        ("INSERT INTO bookings VALUES ('key', 'order-99', 1)", "booked, but never ordered: order-99"),
        ("INSERT INTO bookings VALUES ('key', 'order-07', 700)", "booked more than once: order-07"),
        ("UPDATE bookings SET cents = 1 WHERE \"order\" = 'order-07'", "booked with another amount: order-07"),
        (
            f"UPDATE durableq_jobs SET state = 'dead' WHERE {CALLBACK_OF} = 'order-07'",
            "callback has not succeeded: order-07",
        ),
        (
            f"DELETE FROM durableq_jobs WHERE {CALLBACK_OF} = 'order-07'",
            "does not have exactly one callback: order-07",
        ),
    ],
)
def test_books_that_do_not_balance_are_told_from_those_that_do(
    files: tuple[Path, Path], tampering: str, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    service, other_side = files
    with contextlib.closing(sqlite3.connect(other_side if "bookings" in tampering else service)) as connection:
        connection.execute(tampering)
        connection.commit()
    directory = service.parent

    assert complaints(service, other_side) == [complaint]
    assert Story(directory, Service(directory), merchant(directory, SEED)).compare_books() is False
    assert complaint in capsys.readouterr().out


# -- the signature -------------------------------------------------------------------------------------------


def test_a_signature_covers_the_secret_the_key_and_the_body() -> None:
    given = signature(SECRET, "key", b"body")  # compared with what openssl makes of "key.body"

    assert given == "sha256=908cd4e94335a36b0ca8676735fe28654862dbb1a5e3fe4b06284de3e97836ab"
    assert is_genuine(given, SECRET, "key", b"body")
    assert not is_genuine(given, "another secret", "key", b"body")
    assert not is_genuine(given, SECRET, "another key", b"body")
    assert not is_genuine(given, SECRET, "key", b"another body")
    assert not is_genuine("", SECRET, "key", b"body")
    assert not is_genuine("sha256=\xe9", SECRET, "key", b"body")


# -- the merchant --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shop:
    """The merchant's server in a thread, its address and its books."""

    url: str
    books: Path

    def call(self, one: str, *, key: str = "key", secret: str = SECRET, path: str = "/callbacks") -> httpx2.Response:
        body = f'{{"order": "{one}", "cents": 100}}'.encode()
        headers = {"Idempotency-Key": key, HEADER: signature(secret, key, body)}
        return httpx2.post(self.url + path, content=body, headers=headers, trust_env=False)

    @property
    def bookings(self) -> list[Any]:
        return rows(self.books, 'SELECT key, "order" FROM bookings')


@pytest.fixture(scope="module")
def shops(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shop]:
    books = tmp_path_factory.mktemp("shop") / "merchant.db"
    with contextlib.closing(Books(books)) as kept, Callbacks(0, kept, SECRET, SEED) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield Shop(f"http://127.0.0.1:{server.server_address[1]}", books)
        server.shutdown()
        thread.join()


@pytest.fixture
def shop(shops: Shop) -> Shop:
    """The same merchant, with empty books."""
    with contextlib.closing(sqlite3.connect(shops.books)) as connection:
        connection.executescript("DELETE FROM calls; DELETE FROM bookings;")
    return shops


NUMBERS = itertools.count()


def order_in(*moods: Mood) -> str:
    """Find a new order for which the merchant will be in these moods, one after the other."""
    names = (f"new-{number}" for number in NUMBERS)
    return next(one for one in names if all(mood(SEED, one, no) is wanted for no, wanted in enumerate(moods)))


def test_a_wrong_signature_is_refused_and_nothing_booked(shop: Shop) -> None:
    one = order_in(Mood.GOOD)

    assert shop.call(one, secret="another secret").status_code == 401
    assert httpx2.post(f"{shop.url}/callbacks", content=b"{}", trust_env=False).status_code == 401

    assert shop.bookings == []


def test_the_merchant_books_a_key_once(shop: Shop) -> None:
    one = order_in(Mood.GOOD, Mood.GOOD, Mood.GOOD)

    assert [shop.call(one, key=key).status_code for key in ("first", "first", "second")] == [200, 200, 200]

    assert shop.bookings == [("first", one), ("second", one)]


def test_the_merchant_says_in_both_ways_when_to_come_back(shop: Shop) -> None:
    busy, closed = shop.call(order_in(Mood.BUSY)), shop.call(order_in(Mood.CLOSED))

    assert (busy.status_code, busy.headers["Retry-After"]) == (429, "1")
    assert closed.status_code == 503
    opens_at = parsedate_to_datetime(closed.headers["Retry-After"]).timestamp()
    assert opens_at == column(shop.books, "SELECT not_before FROM calls WHERE answer = 503")[0]
    assert shop.bookings == []


def test_the_merchant_may_book_and_hang_up(shop: Shop) -> None:
    one = order_in(Mood.HANGS_UP)

    with pytest.raises(httpx2.RemoteProtocolError):
        shop.call(one)

    assert shop.bookings == [("key", one)]


def test_a_merchant_who_has_moved_is_gone(shop: Shop) -> None:
    assert shop.call(order_in(Mood.GOOD), path="/old").status_code == 410
    assert shop.bookings == []


def test_the_moods_are_those_of_the_seed_and_a_third_of_them_bad() -> None:
    moods = [mood(SEED, str(number), 0) for number in range(2_000)]

    assert moods == [mood(SEED, str(number), 0) for number in range(2_000)]
    assert moods != [mood(SEED + 1, str(number), 0) for number in range(2_000)]
    assert 0.3 < moods.count(Mood.BROKEN) / len(moods) < 0.37


# -- the service ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def serving(directory: Path, **environment: str) -> Iterator[httpx2.Client]:
    """Serve the service in a process, as its README says, and give a client of it."""
    port = free_port()
    command = [sys.executable, "-m", "examples.payments", "--serve", "--port", str(port)]
    settings = {"DATABASE": str(directory / "payments.db"), "ADMIN_TOKEN": ""} | environment
    with (
        subprocess.Popen(command, cwd=ROOT, env=os.environ | settings) as process,
        httpx2.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False) as client,
    ):
        try:
            eventually_sync(lambda: answers(client), within=20)
            yield client
        finally:
            process.terminate()
            process.wait(timeout=20)


def answers(client: httpx2.Client) -> bool:
    try:
        return client.get("/openapi.json").is_success
    except httpx2.TransportError:
        return False


@dataclass(frozen=True)
class Payments:
    """The service, with the merchant of the tests taken in as "shop"."""

    client: httpx2.Client
    database: Path

    def place(self, one: str, merchant: str = "shop") -> int:
        return self.client.post("/orders", json={"id": one, "merchant": merchant, "cents": 100}).status_code

    def register(self, name: str, address: str, secret: str) -> None:
        account = {"address": address, "secret": secret}
        assert self.client.put(f"/merchants/{name}", json=account, headers=OPERATOR).status_code == 204

    def is_notified(self, one: str) -> bool:
        return self.client.get(f"/orders/{one}").json()["notified"] is True

    def jobs(self, one: str) -> list[Any]:
        return column(self.database, f"SELECT id FROM durableq_jobs WHERE {CALLBACK_OF} = ?", one)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Payments]:
    directory = tmp_path_factory.mktemp("service")
    with serving(directory, ADMIN_TOKEN=TOKEN) as client:
        yield Payments(client, directory / "payments.db")


@pytest.fixture
def payments(service: Payments, shop: Shop) -> Payments:
    service.register("shop", f"{shop.url}/callbacks", SECRET)
    return service


def test_an_order_is_told_to_its_merchant(payments: Payments, shop: Shop) -> None:
    one = order_in(Mood.HANGS_UP, Mood.BROKEN, Mood.GOOD)

    assert payments.place(one) == 201

    eventually_sync(lambda: payments.is_notified(one))
    assert shop.bookings == [(payments.jobs(one)[0], one)]
    assert column(shop.books, "SELECT answer FROM calls") == [None, 500, 200]


def test_an_order_is_marked_in_the_very_transaction_in_which_its_job_succeeds(payments: Payments) -> None:
    one = order_in(Mood.GOOD)
    refuse_anything_else = f"""
        CREATE TRIGGER not_before_its_job BEFORE UPDATE ON orders
        WHEN NEW.id = '{one}' AND 'succeeded' NOT IN (SELECT state FROM durableq_jobs WHERE {CALLBACK_OF} = NEW.id)
        BEGIN SELECT RAISE(ABORT, 'marked before its job has succeeded'); END
    """
    with contextlib.closing(sqlite3.connect(payments.database)) as connection:
        connection.execute(refuse_anything_else)

    assert payments.place(one) == 201

    eventually_sync(lambda: payments.is_notified(one))


def test_an_order_that_is_rolled_back_leaves_no_job(payments: Payments) -> None:
    one = order_in(Mood.GOOD, Mood.GOOD)
    assert payments.place(one) == 201

    assert payments.place(one) == 409

    assert len(payments.jobs(one)) == 1
    eventually_sync(lambda: payments.is_notified(one))


def test_an_order_for_a_stranger_is_refused(payments: Payments) -> None:
    assert payments.place("for nobody", merchant="nobody") == 422
    assert payments.jobs("for nobody") == []
    assert payments.client.get("/orders/for nobody").status_code == 404


def test_a_merchant_who_does_not_know_our_secret_is_not_marked_as_told(payments: Payments, shop: Shop) -> None:
    one = order_in(*[Mood.GOOD] * 3)
    payments.register("shop", f"{shop.url}/callbacks", "not what the merchant knows")
    payments.place(one)
    eventually_sync(lambda: column(shop.books, "SELECT answer FROM calls")[:2] == [401, 401])
    assert not payments.is_notified(one)

    payments.register("shop", f"{shop.url}/callbacks", SECRET)

    eventually_sync(lambda: payments.is_notified(one))


OPERATORS_ROUTES = [
    ("GET", "/admin/counts"),
    ("GET", "/alerts"),
    ("PUT", "/merchants/shop"),
    ("PATCH", "/merchants/shop"),
]


@pytest.mark.parametrize(("method", "path"), OPERATORS_ROUTES)
def test_operators_need_the_token(payments: Payments, method: str, path: str) -> None:
    body = {"address": "http://127.0.0.1:1/stolen", "secret": "a secret of somebody else"}
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Bearer"}, {"Authorization": TOKEN}):
        answer = payments.client.request(method, path, json=None if method == "GET" else body, headers=headers)
        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"] == "Bearer"
    assert column(payments.database, "SELECT count(*) FROM merchant WHERE address LIKE '%stolen'") == [0]


def test_without_a_token_nobody_is_an_operator(tmp_path: Path) -> None:
    with serving(tmp_path) as client:
        for headers in ({}, {"Authorization": "Bearer"}):
            assert client.get("/admin/counts", headers=headers).status_code == 401
            assert client.get("/alerts", headers=headers).status_code == 401
