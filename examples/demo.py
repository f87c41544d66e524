"""The main job on real input: 200 sign-ups, a ``kill -9`` in the middle, and not one welcome mail lost.

Runs the example app under a real uvicorn, in a process of its own, against a real SMTP server on loopback. That
mail server is slow, puts some mails off, and refuses one address for good. ``python -m examples.demo`` exits with 0
when every promise held, and says which one did not otherwise. With a terminal to ask, it then leaves all running.
"""

import asyncio
import contextlib
import email
import os
import random
import secrets
import signal
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

import httpx2
from aiosmtpd.smtp import SMTP, Envelope, Session
from anyio.from_thread import start_blocking_portal

from examples.signup.tasks import CONNECTIONS

SIGN_UPS: Final = 200
WAVE: Final = 20
"""So many people sign up at the same moment ..."""
WAVE_SECONDS: Final = 0.1
"""... and as many again after this."""
KILL_AFTER: Final = 101
"""Acknowledged sign-ups: the first of a wave, so that others still wait for their answer and are cut off."""
ASK_AGAIN_SECONDS: Final = 0.2

SECONDS_PER_MAIL: Final = 0.1
REFUSED: Final = "nobody@invalid.example"
"""The mail server never takes mail for this address."""
MENDED: Final = "somebody@valid.example"
EVERY_SO_MANY_PUT_OFF: Final = 15
"""Each 15th address is answered with "try again later", once."""

LOOK_AGAIN_SECONDS: Final = 0.02
STEP_SECONDS: Final = 15.0
"""No single step of the demo may take longer."""
WHOLE_SECONDS: Final = 55.0

LOG_CHARACTERS: Final = 4_000

RED: Final = "31"
GREEN: Final = "32"
T = TypeVar("T")

ROOT: Final = Path(__file__).resolve().parent.parent


class DemoFailed(Exception):
    """Something did not happen that had to."""


# -- the mail server -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mail:
    """A delivered mail."""

    address: str
    message_id: str
    at: float


class MailServer:
    """An SMTP server on loopback that takes its time, and not everything.

    A mail counts as delivered when it has been received whole, an instant before the sender is told so.
    """

    def __init__(self, *, refused: str, put_off: Iterable[str] = (), seconds_per_mail: float = 0.0) -> None:
        self.mails: list[Mail] = []
        """What was delivered, in the order of its coming."""
        self.put_off: set[str] = set()
        """Addresses that were told to try again later."""
        self.port = 0
        self._refused = refused
        self._to_put_off = set(put_off)
        self._seconds_per_mail = seconds_per_mail

    @contextlib.contextmanager
    def running(self) -> Iterator[None]:
        """Listen on a free port of 127.0.0.1 while the block runs, in a thread: what else happens is not its affair."""
        with start_blocking_portal() as portal, portal.wrap_async_context_manager(self._listening()):
            yield

    @contextlib.asynccontextmanager
    async def _listening(self) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: SMTP(self, hostname="localhost", loop=loop), "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield
        finally:
            server.close()

    @property
    def addresses(self) -> set[str]:
        """Who got a mail."""
        return {mail.address for mail in self.mails}

    async def has_delivered_to(self, addresses: set[str]) -> None:
        """Return when each of these addresses got a mail."""
        while True:
            if addresses <= self.addresses:
                return
            await asyncio.sleep(LOOK_AGAIN_SECONDS)

    async def handle_RCPT(
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if address == self._refused:
            return "550 5.1.1 there is no such mailbox"
        if address in self._to_put_off:
            self._to_put_off.discard(address)
            self.put_off.add(address)
            return "451 4.7.1 please try again later"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        await asyncio.sleep(self._seconds_per_mail * random.uniform(0.5, 1.5))
        raw = envelope.content
        message = email.message_from_bytes(raw if isinstance(raw, bytes) else (raw or "").encode())
        now = time.monotonic()
        self.mails += [Mail(address, str(message["Message-ID"]), now) for address in envelope.rcpt_tos]
        return "250 OK"


# -- the app -------------------------------------------------------------------------------------------------


class AppServer:
    """The example app under uvicorn, in a process that may be killed."""

    def __init__(self, directory: Path, smtp_port: int) -> None:
        self.token = secrets.token_urlsafe(16)
        self.database = directory / "signup.db"
        self.log = directory / "server.log"
        self._port = free_port()
        self._environment = os.environ | {
            "DATABASE": str(self.database),
            "SMTP_HOST": "127.0.0.1",
            "SMTP_PORT": str(smtp_port),
            "DEMO_ADMIN_TOKEN": self.token,
        }
        self._process: asyncio.subprocess.Process | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def pid(self) -> int:
        return self._running.pid

    async def start(self) -> None:
        """Start the process and return when it answers."""
        command = (sys.executable, "-m", "uvicorn", "examples.signup.app:app", "--log-level", "warning")
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *command, "--port", str(self._port), cwd=ROOT, env=self._environment, stdout=log, stderr=log
            )
        async with httpx2.AsyncClient(base_url=self.url, trust_env=False) as client:
            while True:
                if await self._answers(client):
                    return
                await asyncio.sleep(LOOK_AGAIN_SECONDS)

    async def kill(self) -> None:
        """End the process from one instruction to the next: it gets no chance to do anything."""
        self._running.send_signal(signal.SIGKILL)
        await self._running.wait()

    async def stop(self) -> None:
        """End the process in good order, and by force when that takes too long."""
        process = self._process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
            try:
                await asyncio.wait_for(process.wait(), STEP_SECONDS)
            except TimeoutError:
                process.kill()
                await process.wait()

    def last_words(self) -> str:
        """Return the end of its log."""
        return self.log.read_text(errors="replace")[-LOG_CHARACTERS:] if self.log.exists() else ""

    async def wait(self) -> None:
        """Return when the process has ended, for whatever reason."""
        await self._running.wait()

    @property
    def _running(self) -> asyncio.subprocess.Process:
        if self._process is None:
            raise DemoFailed("the app was not started")
        return self._process

    async def _answers(self, client: httpx2.AsyncClient) -> bool:
        if self._running.returncode is not None:
            raise DemoFailed("the app ended while starting")
        try:
            return (await client.get("/docs")).status_code == 200
        except httpx2.TransportError:
            return False


def free_port() -> int:
    """Find a port below those that the system gives to outgoing connections.

    While the app is down its clients go on trying, and one of their connections could be given the very port that
    they try to reach: it would then reach itself, and the app could not have its port back.
    """
    for port in random.sample(range(20_000, 30_000), 50):
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
    raise DemoFailed("no free port was found between 20,000 and 30,000")


# -- the people ----------------------------------------------------------------------------------------------


@dataclass
class Person:
    """Somebody who signs up, and asks again until the app says yes."""

    email: str
    name: str
    job: str | None = None
    """The job that the app acknowledged."""
    is_asking: bool = False
    unreachable: int = 0
    """Requests that found nobody listening, or a server that said "not stored, try again"."""
    cut_off: int = 0
    """Requests whose answer never came: stored, or not."""

    async def ask(self, client: httpx2.AsyncClient) -> None:
        """Post the sign-up once."""
        self.is_asking = True
        try:
            answer = await client.post("/signup", json={"email": self.email, "name": self.name})
            if answer.status_code == 503:
                self.unreachable += 1
            else:
                self.job = content(answer, 202)["job"]
        except httpx2.ConnectError:
            self.unreachable += 1
        except httpx2.TransportError:
            self.cut_off += 1
        finally:
            self.is_asking = False


class Crowd:
    """All who sign up, wave after wave."""

    def __init__(self) -> None:
        self.people = [Person(f"person-{n:03}@example.org", f"Person {n}") for n in range(1, SIGN_UPS + 1)]
        self.people[3].email = REFUSED  # in the first wave: it is acknowledged long before the kill
        self.put_off = [person.email for person in self.people[::EVERY_SO_MANY_PUT_OFF]]
        self._news = asyncio.Event()

    @property
    def acknowledged(self) -> list[Person]:
        """Those who were told yes."""
        return [person for person in self.people if person.job is not None]

    async def sign_up(self, client: httpx2.AsyncClient) -> None:
        """Return when all were acknowledged."""
        async with asyncio.TaskGroup() as group:
            for start in range(0, len(self.people), WAVE):
                for person in self.people[start : start + WAVE]:
                    group.create_task(self._sign_up(person, client))
                await asyncio.sleep(WAVE_SECONDS)

    async def is_in_the_middle(self) -> None:
        """Return when enough were acknowledged, and others are waiting for their answer."""
        while len(self.acknowledged) < KILL_AFTER or not any(person.is_asking for person in self.people):
            self._news.clear()
            await self._news.wait()

    async def _sign_up(self, person: Person, client: httpx2.AsyncClient) -> None:
        while person.job is None:
            self._news.set()
            await person.ask(client)
            self._news.set()
            if person.job is None:
                await asyncio.sleep(ASK_AGAIN_SECONDS)


def content(answer: httpx2.Response, expected: int = 200) -> Any:
    """Return what the app said, if it said it with the status that was expected."""
    if answer.status_code != expected:
        raise DemoFailed(f"{answer.request.method} {answer.url} gave {answer.status_code}: {answer.text[:500]}")
    return answer.json()


# -- what came of it -----------------------------------------------------------------------------------------


@dataclass
class Report:
    """What the table shows, and what the verdict rests on."""

    acknowledged: int = 0
    acknowledged_before_kill: int = 0
    delivered_before_kill: int = 0
    forgotten: set[str] = field(default_factory=set)
    """Addresses whose acknowledged job the app did not know any more."""
    undelivered: set[str] = field(default_factory=set)
    """Addresses that were acknowledged and whose mail never came."""
    delivered: int = 0
    """Different addresses that got their mail."""
    mails: int = 0
    """All mails, those that came twice included."""
    stored: int = 0
    """Jobs in the database: more than were acknowledged when an answer was cut off after the commit."""
    succeeded: int = 0
    asked_again: int = 0
    """People who had to."""
    unreachable: int = 0
    """Requests that found nobody listening."""
    cut_off: int = 0
    """Requests whose answer never came."""
    put_off: int = 0
    interrupted: int = 0
    """Jobs that were running when the process was killed."""
    dead: list[str] = field(default_factory=list)
    """One line for each dead letter."""
    recovered: int = 0
    kill_to_serving: float = 0.0
    kill_to_delivery: float = 0.0
    kill_to_last: float = 0.0
    whole: float = 0.0

    @property
    def lost(self) -> int:
        return len(self.forgotten | self.undelivered)

    @property
    def signed_up_twice(self) -> int:
        """Stored just before the kill, but the answer did not get out, and the client asked again."""
        return max(0, self.stored - self.acknowledged)

    @property
    def delivered_twice(self) -> int:
        """Sent just before the kill, but that was not written down yet."""
        return max(0, self.mails - max(self.succeeded, self.delivered))

    def broken_promises(self) -> list[str]:
        """Say what did not hold; nothing, when all is well."""
        checks = [
            (self.acknowledged == SIGN_UPS, f"{self.acknowledged} of {SIGN_UPS} sign-ups were acknowledged"),
            (not self.forgotten, f"{len(self.forgotten)} acknowledged jobs were forgotten: {some(self.forgotten)}"),
            (not self.undelivered, f"{len(self.undelivered)} promised mails never came: {some(self.undelivered)}"),
            (self.succeeded == self.stored, f"{self.succeeded} of {self.stored} stored jobs succeeded in the end"),
            (len(self.dead) == 1, f"expected one dead letter, found {len(self.dead)}"),
            (self.recovered == 1, f"expected one dead letter to be recovered, {self.recovered} were"),
            (
                self.stored <= self.acknowledged + self.cut_off,
                f"{self.stored} jobs are stored for {self.acknowledged} people, of whom {self.cut_off} were cut off",
            ),
            (self.mails >= self.succeeded, f"{self.succeeded} jobs succeeded, but only {self.mails} mails came"),
            (
                self.delivered_twice <= CONNECTIONS,
                f"{self.delivered_twice} mails came twice; a kill explains no more than the {CONNECTIONS} under way",
            ),
            (
                self.delivered_before_kill < self.acknowledged_before_kill,
                "the kill came when all was delivered already, which proves nothing",
            ),
        ]
        return [broken for held, broken in checks if not held]

    def table(self) -> str:
        """Lay out the numbers, with a remark to each."""
        after_kill = self.acknowledged - self.acknowledged_before_kill
        failed = f"{self.unreachable} requests found no app, {self.cut_off} were cut off by the kill"
        retried = f"{self.put_off} put off by the mail server, {self.interrupted} interrupted by the kill"
        rows: list[tuple[str, object, str]] = [
            ("acknowledged", self.acknowledged, f"{self.acknowledged_before_kill} before the kill, {after_kill} after"),
            ("lost", self.lost, "acknowledged, but forgotten or never delivered"),
            ("delivered", self.delivered, "different addresses, the mended one included"),
            ("delivered twice", self.delivered_twice, "sent, but killed before it was written down (same Message-ID)"),
            ("asked again", self.asked_again, failed),
            ("signed up twice", self.signed_up_twice, "stored, but killed before the answer, so asked again"),
            ("retried", self.put_off + self.interrupted, retried),
            ("dead letters", len(self.dead), "; ".join(self.dead)),
            ("recovered", self.recovered, f"address edited to {MENDED}, retried, delivered"),
            ("", "", ""),
            ("kill to serving", f"{self.kill_to_serving:.1f} s", "the start of a process"),
            ("kill to delivery", f"{self.kill_to_delivery:.1f} s", "the first mail after the restart"),
            ("kill to the last", f"{self.kill_to_last:.1f} s", "of all that could be delivered"),
            ("whole run", f"{self.whole:.1f} s", ""),
        ]
        return "\n".join(f"  {label:<16}  {value!s:>6}   {remark}".rstrip() for label, value, remark in rows)


def some(names: set[str]) -> str:
    """Name the first few."""
    return ", ".join(sorted(names)[:3]) + (" ..." if len(names) > 3 else "")


# -- the run -------------------------------------------------------------------------------------------------


class Demo:
    """The steps, in their order, and what was noted on the way."""

    def __init__(self, mail: MailServer, crowd: Crowd, app: AppServer) -> None:
        self._mail = mail
        self._crowd = crowd
        self._app = app
        self._report = Report()
        self._dead: list[dict[str, Any]] = []
        self._began_at = self._killed_at = self._restarted_at = time.monotonic()

    async def run(self) -> Report:
        """Do all of it. Raises `DemoFailed`, perhaps in a group, when a step is not completed in time."""
        await self._start()
        async with self._client(kept_open=SIGN_UPS) as posting, self._client(kept_open=0) as client:
            async with asyncio.TaskGroup() as group:
                self._say(f"posting {SIGN_UPS} sign-ups, {WAVE} at a time; {REFUSED} is one of them ...")
                signing_up = group.create_task(self._crowd.sign_up(posting))
                await self._kill_in_the_middle()
                await self._start_again(client)
                await within(signing_up, "all sign-ups are acknowledged")
            self._say(f"all {SIGN_UPS} acknowledged; those whom the dead app did not answer have asked again")
            await self._see_all_delivered()
            await self._see_the_dead_letter(client)
            await self._mend_it(client)
            await self._take_stock(client)
        return self._report

    def _client(self, kept_open: int) -> httpx2.AsyncClient:
        """Connect to the app. A connection that is kept open may prove dead; those who post expect that."""
        limits = httpx2.Limits(max_connections=SIGN_UPS, max_keepalive_connections=kept_open)
        return httpx2.AsyncClient(base_url=self._app.url, limits=limits, trust_env=False)

    async def _start(self) -> None:
        self._say(
            f"mail server on port {self._mail.port}: takes {SECONDS_PER_MAIL} s for a mail, and puts some off at first"
        )
        await within(self._app.start(), "the app answers")
        self._say(f"app on {self._app.url}, pid {self._app.pid}; {CONNECTIONS} mails may be on their way at once")

    async def _kill_in_the_middle(self) -> None:
        await within(self._crowd.is_in_the_middle(), f"{KILL_AFTER} sign-ups are acknowledged")
        pid = self._app.pid
        await within(self._app.kill(), "the app is dead")
        self._killed_at = time.monotonic()
        self._report.acknowledged_before_kill = len(self._crowd.acknowledged)
        self._report.delivered_before_kill = len(self._mail.addresses)
        self._say(
            f"kill -9 of pid {pid}: {self._report.acknowledged_before_kill} acknowledged, "
            f"{self._report.delivered_before_kill} delivered so far"
        )

    async def _start_again(self, client: httpx2.AsyncClient) -> None:
        promised = self._crowd.acknowledged
        self._restarted_at = time.monotonic()
        await within(self._app.start(), "the app answers again")
        self._report.kill_to_serving = time.monotonic() - self._killed_at
        await self._look_for(promised, client)
        known = len(promised) - len(self._report.forgotten)
        self._say(f"restarted, pid {self._app.pid}: it knows {known} of the {len(promised)} acknowledged jobs")

    async def _look_for(self, promised: list[Person], client: httpx2.AsyncClient) -> None:
        """Note those whose acknowledged job the app does not know."""
        for person in promised:
            answer = await client.get(f"/jobs/{person.job}")
            if answer.status_code == 404:
                self._report.forgotten.add(person.email)

    async def _see_all_delivered(self) -> None:
        expected = {person.email for person in self._crowd.people} - {REFUSED}
        with contextlib.suppress(DemoFailed):  # the report will say whose mail did not come
            await within(self._mail.has_delivered_to(expected), "all mails are delivered")
        self._say(f"{len(expected & self._mail.addresses)} mails delivered; {REFUSED} was refused")

    async def _see_the_dead_letter(self, client: httpx2.AsyncClient) -> None:
        """Read it as an operator does: through the admin routes."""
        with contextlib.suppress(DemoFailed):  # the report will say that there was none
            self._dead = await within(self._dead_letters(client), "the refused mail is a dead letter")
        for job in self._dead:
            self._report.dead.append(f"{job['args']['email']}, refused {len(job['attempts'])} times")
            self._say(f"dead letter after {job['attempt']} attempts: {job['error']['message']}")

    async def _mend_it(self, client: httpx2.AsyncClient) -> None:
        """Edit the address, which runs the job again, and see its mail come."""
        for job in self._dead:
            args = job["args"] | {"email": MENDED}
            content(await client.post(f"/admin/jobs/{job['id']}/edit", json={"args": args}, headers=self._operator))
            await within(self._mail.has_delivered_to({MENDED}), "the mended mail is delivered")
            self._report.recovered += 1
            self._say(f"address edited to {MENDED} through the admin routes, retried: delivered")

    async def _take_stock(self, client: httpx2.AsyncClient) -> None:
        """Compare what was promised with what the mail server and the database have."""
        report, crowd, mail = self._report, self._crowd, self._mail
        counts = await within(self._final_counts(client), "every job has come to an end")
        await self._look_for(crowd.acknowledged, client)
        report.acknowledged = len(crowd.acknowledged)
        mended = {REFUSED} if MENDED in mail.addresses else set()
        report.undelivered = {person.email for person in crowd.acknowledged} - mail.addresses - mended
        report.delivered = len(mail.addresses)
        report.mails = len(mail.mails)
        report.stored = sum(counts.values())
        report.succeeded = counts["succeeded"]
        report.asked_again = sum(person.unreachable + person.cut_off > 0 for person in crowd.people)
        report.unreachable = sum(person.unreachable for person in crowd.people)
        report.cut_off = sum(person.cut_off for person in crowd.people)
        report.put_off = len(mail.put_off)
        report.interrupted = sum(job["crashes"] > 0 for job in await self._all_jobs(client))
        ordinary = [one.at for one in mail.mails if one.address != MENDED and one.at > self._restarted_at]
        report.kill_to_delivery = min(ordinary, default=self._killed_at) - self._killed_at
        report.kill_to_last = max(ordinary, default=self._killed_at) - self._killed_at
        report.whole = time.monotonic() - self._began_at

    # -- what the admin routes say -------------------------------------------------------------------------

    @property
    def _operator(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self._app.token}"}

    async def _admin(self, client: httpx2.AsyncClient, path: str, **query: str | int) -> Any:
        return content(await client.get(f"/admin{path}", params=query, headers=self._operator))

    async def _dead_letters(self, client: httpx2.AsyncClient) -> list[dict[str, Any]]:
        """Return them with all their details, once there are any."""
        while True:
            found = (await self._admin(client, "/jobs", state="dead"))["jobs"]
            if found:
                return [await self._admin(client, f"/jobs/{job['id']}") for job in found]
            await asyncio.sleep(LOOK_AGAIN_SECONDS)

    async def _final_counts(self, client: httpx2.AsyncClient) -> dict[str, int]:
        """Return how many jobs are in each state, once nothing is under way any more."""
        while True:
            counts: dict[str, int] = await self._admin(client, "/counts")
            if not any(counts[state] for state in ("blocked", "scheduled", "queued", "running")):
                return counts
            await asyncio.sleep(LOOK_AGAIN_SECONDS)

    async def _all_jobs(self, client: httpx2.AsyncClient) -> list[dict[str, Any]]:
        page = await self._admin(client, "/jobs", limit=200)
        jobs: list[dict[str, Any]] = page["jobs"]
        while page["next_cursor"] is not None:
            page = await self._admin(client, "/jobs", limit=200, cursor=page["next_cursor"])
            jobs += page["jobs"]
        return jobs

    def _say(self, step: str) -> None:
        print(f"{time.monotonic() - self._began_at:6.1f} s  {step}", flush=True)


async def within(awaitable: Awaitable[T], what: str, seconds: float = STEP_SECONDS) -> T:
    """Wait until something has happened. Raises `DemoFailed` when it takes too long."""
    try:
        async with asyncio.timeout(seconds):
            return await awaitable
    except TimeoutError:
        raise DemoFailed(f"waited {seconds:.0f} s in vain until {what}") from None


# -- the whole -----------------------------------------------------------------------------------------------


async def demonstrate(stay: bool) -> bool:
    """Run the demo and show what came of it; then leave the app running if asked to. Return whether all held."""
    loop = asyncio.get_running_loop()
    this = asyncio.current_task()
    if this is not None:
        loop.add_signal_handler(signal.SIGTERM, this.cancel)  # so that the app is not left behind
    crowd = Crowd()
    mail = MailServer(refused=REFUSED, put_off=crowd.put_off, seconds_per_mail=SECONDS_PER_MAIL)
    held = False
    with tempfile.TemporaryDirectory(prefix="durableq-demo-") as directory, mail.running():
        app = AppServer(Path(directory), mail.port)
        try:
            try:
                report = await within(Demo(mail, crowd, app).run(), "the demo is through", WHOLE_SECONDS)
                held = verdict(report)
                if held and stay:
                    await leave_running(app)
            finally:
                await app.stop()
        except* (DemoFailed, httpx2.HTTPError) as failures:
            held = False
            print(painted("FAILED", RED), in_words(first_of(failures)), file=sys.stderr)
            print(f"The log of the app ends with:\n{app.last_words()}", file=sys.stderr)
    return held


def verdict(report: Report) -> bool:
    """Print the table and whether every promise was kept."""
    print(f"\n{report.table()}\n")
    broken = report.broken_promises()
    for one in broken:
        print(painted("BROKEN", RED), one)
    if not broken:
        print(painted("Every promise was kept.", GREEN))
    return not broken


async def leave_running(app: AppServer) -> None:
    """Say where to look, and return at Ctrl-C. Whoever kills the app sees it start again."""
    print(
        f"""
The app is still running, and so is the mail server. Look around; Ctrl-C ends both.

  docs      {app.url}/docs
  admin     curl -H 'Authorization: Bearer {app.token}' '{app.url}/admin/jobs?limit=3'
  sign up   curl {app.url}/signup -H 'Content-Type: application/json' \\
                 -d '{{"email": "{REFUSED}", "name": "Nobody"}}'
  database  {app.database}
  its log   {app.log}
  kill it   kill -9 {app.pid}
""",
        flush=True,
    )
    enough = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, enough.set)
    asking = asyncio.create_task(enough.wait())
    try:
        while True:
            ended = asyncio.create_task(app.wait())
            await asyncio.wait({ended, asking}, return_when=asyncio.FIRST_COMPLETED)
            ended.cancel()
            if enough.is_set():
                return
            print("the app has ended; starting it again ...", flush=True)
            await within(app.start(), "the app answers again")
            print(f"pid {app.pid}", flush=True)
    finally:
        asking.cancel()


def first_of(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return the failure that a group of them began with."""
    first = group.exceptions[0]
    return first_of(first) if isinstance(first, BaseExceptionGroup) else first


def in_words(failure: BaseException) -> str:
    """Say what happened; many network errors carry no text."""
    return str(failure) or repr(failure)


def painted(text: str, color: str) -> str:
    """Color a text, if there are eyes to see it."""
    if not sys.stdout.isatty() or os.environ.get("NO_COLOR"):
        return text
    return f"\033[{color}m{text}\033[0m"


def main() -> int:
    """Run the demo; return 0 when every promise was kept."""
    stay = sys.stdin is not None and sys.stdin.isatty()
    try:
        return 0 if asyncio.run(demonstrate(stay)) else 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        return 130


if __name__ == "__main__":
    sys.exit(main())
