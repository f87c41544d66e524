"""The story of the demo. Exits with 0 when every promise held, and says which one did not otherwise.

With a terminal to ask, it then leaves all running.
"""

import asyncio
import contextlib
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx2

from examples.demo.look_around import leave_running
from examples.demo.mail import REFUSED, MailServer
from examples.demo.people import SIGN_UPS, Person, acknowledged
from examples.demo.report import RED, Report, painted, verdict
from examples.demo.site import DemoFailed, Site, until
from examples.signup.tasks import CONNECTIONS

SECONDS_BETWEEN_SIGN_UPS: Final = 0.005
KILL_AFTER: Final = 100
"""Acknowledged sign-ups: half of them, so that others are on their way and are cut off."""
SECONDS_PER_MAIL: Final = 0.1
PUT_OFF_EVERY: Final = 15
"""Each 15th address is told once to try again later."""
MENDED: Final = "somebody@valid.example"
"""What the operator makes of the refused address."""


@dataclass
class Demo:
    """The steps, in their order, and what was noted on the way."""

    people: list[Person]
    mail: MailServer
    site: Site
    report: Report = field(default_factory=Report)
    began_at: float = field(default_factory=time.monotonic)
    killed_at: float = 0.0

    async def run(self) -> None:
        """Do all of it. Raises `DemoFailed` or a network error, perhaps in a group."""
        await self.start()
        async with asyncio.TaskGroup() as group:
            self.let_all_sign_up(group)
            await self.kill_in_the_middle()
            await self.start_again()
            await self.see_all_acknowledged()
        await self.see_all_delivered()
        for job in await self.see_the_dead_letter():
            await self.mend(job)
        await self.take_stock()

    async def start(self) -> None:
        self.say(f"mail server on port {self.mail.port}: {SECONDS_PER_MAIL} s for a mail, some put off at first")
        await self.site.start()
        self.say(f"app on {self.site.url}, pid {self.site.process.pid}: sends {CONNECTIONS} mails at a time")

    def let_all_sign_up(self, group: asyncio.TaskGroup) -> None:
        self.say(f"{SIGN_UPS} sign-ups within a second, one of them for {REFUSED}")
        for number, person in enumerate(self.people):
            group.create_task(person.sign_up(self.site, after_seconds=number * SECONDS_BETWEEN_SIGN_UPS))

    async def kill_in_the_middle(self) -> None:
        await until(lambda: len(acknowledged(self.people)) >= KILL_AFTER, f"{KILL_AFTER} sign-ups are acknowledged")
        await self.site.kill()
        self.killed_at = time.monotonic()
        self.report.acknowledged_before_kill = promised = len(acknowledged(self.people))
        self.report.delivered_before_kill = delivered = len(self.mail.addresses)
        self.say(f"kill -9 of pid {self.site.process.pid}: {promised} acknowledged, {delivered} delivered so far")

    async def start_again(self) -> None:
        promised = acknowledged(self.people)
        await self.site.start()
        known = len(await self.jobs_of(promised))
        self.say(f"restarted, pid {self.site.process.pid}: it knows {known} of the {len(promised)} acknowledged jobs")

    async def see_all_acknowledged(self) -> None:
        await until(lambda: len(acknowledged(self.people)) == SIGN_UPS, "all sign-ups are acknowledged")
        self.say(f"all {SIGN_UPS} acknowledged: those who got no answer have asked again")

    async def see_all_delivered(self) -> None:
        expected = {person.email for person in self.people} - {REFUSED}
        with contextlib.suppress(DemoFailed):  # the report will say whose mail did not come
            await until(lambda: expected <= self.mail.addresses, "all mails are delivered")
        self.report.undelivered = expected - self.mail.addresses
        self.say(f"{len(expected & self.mail.addresses)} mails delivered; {REFUSED} was refused")

    async def see_the_dead_letter(self) -> list[dict[str, Any]]:
        """Find it as an operator does: through the admin routes."""
        dead: list[dict[str, Any]] = await until(self.site.dead_letters, "the refused mail is a dead letter")
        for job in dead:
            self.report.dead.append(f"{job['args']['email']}, refused {len(job['attempts'])} times")
            self.say(f"dead letter after {job['attempt']} attempts:\n          {job['error']['message']}")
        return dead

    async def mend(self, job: dict[str, Any]) -> None:
        """Edit the address, which runs the job again, and see its mail come."""
        await self.site.edit(job["id"], job["args"] | {"email": MENDED})
        await until(lambda: MENDED in self.mail.addresses, "the mended mail is delivered")
        self.report.recovered += 1
        self.say(f"address edited to {MENDED}, retried: delivered")

    async def take_stock(self) -> None:
        """Compare what was promised with what the database and the mail server have."""
        counts = await until(self.site.final_counts, "every job has come to an end")
        jobs = await self.jobs_of(acknowledged(self.people))
        self.report.stored = sum(counts.values())
        self.report.succeeded = counts["succeeded"]
        self.report.interrupted = sum(job["crashes"] > 0 for job in jobs)
        self.count_people()
        self.count_mails()

    def count_people(self) -> None:
        self.report.acknowledged = len(acknowledged(self.people))
        self.report.asked_again = sum(person.unreachable + person.cut_off > 0 for person in self.people)
        self.report.unreachable = sum(person.unreachable for person in self.people)
        self.report.cut_off = sum(person.cut_off for person in self.people)

    def count_mails(self) -> None:
        self.report.delivered = len(self.mail.addresses)
        self.report.mails = len(self.mail.mails)
        self.report.put_off = len(self.mail.put_off)
        since_kill = [mail.at - self.killed_at for mail in self.mail.mails if mail.at > self.killed_at]
        self.report.kill_to_delivery = min(since_kill, default=0.0)

    async def jobs_of(self, people: list[Person]) -> list[dict[str, Any]]:
        """Return the acknowledged jobs as the app knows them, and note whose it has forgotten."""
        jobs = {person.email: await self.site.job(person.job) for person in people}
        self.report.forgotten |= {address for address, job in jobs.items() if job is None}
        return [job for job in jobs.values() if job is not None]

    def say(self, step: str) -> None:
        print(f"{time.monotonic() - self.began_at:6.1f} s  {step}", flush=True)


async def demonstrate(stay: bool) -> bool:
    """Run the demo and show what came of it; then leave all running if asked to. Return whether every promise held."""
    if this := asyncio.current_task():
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, this.cancel)  # so that the app is not left behind
    people = [Person(f"person-{number:03}@example.org", f"Person {number}") for number in range(1, SIGN_UPS + 1)]
    people[3].email = REFUSED  # early: it is acknowledged long before the kill
    put_off = [person.email for person in people[::PUT_OFF_EVERY]]
    mail = MailServer(put_off=put_off, seconds_per_mail=SECONDS_PER_MAIL)
    with tempfile.TemporaryDirectory(prefix="durableq-demo-") as directory, mail.running():
        site = Site(Path(directory), mail.port)
        try:
            demo = Demo(people, mail, site)
            await demo.run()
            held = verdict(demo.report)
            if held and stay:
                await leave_running(site)
            return held
        except* (DemoFailed, httpx2.HTTPError) as failures:
            first = failures.exceptions[0]
            print(painted("FAILED", RED), str(first) or repr(first), file=sys.stderr)
            print(f"The log of the app ends with:\n{site.log.read_text(errors='replace')[-4_000:]}", file=sys.stderr)
        finally:
            await site.kill()
    return False


def main() -> int:
    """Run the demo; return 0 when every promise was kept."""
    stay = sys.stdin is not None and sys.stdin.isatty()
    try:
        return 0 if asyncio.run(demonstrate(stay)) else 1
    except (KeyboardInterrupt, asyncio.CancelledError):
        return 130


if __name__ == "__main__":
    sys.exit(main())
