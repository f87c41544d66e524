"""The story: orders come in, the service is killed and started again, an operator mends, and the books are compared."""

import asyncio
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx2

from examples.demo.site import DemoFailed, until
from examples.payments.books import complaints, figures
from examples.payments.service import SECRET, Program, Service, merchant

ORDERS: Final = 40
MOVED: Final = 3
"""So many of them, the last ones, are for a merchant who has moved without telling us."""
CUSTOMERS: Final = 4
"""How many place their orders at a time."""
SECONDS_BETWEEN_LOOKS: Final = 0.5
LONGEST_SECONDS: Final = 50.0


@dataclass
class Story:
    """The steps, in their order."""

    directory: Path
    service: Service
    merchant: Program
    stored: int = 0
    half_stored: asyncio.Event = field(default_factory=asyncio.Event)
    began_at: float = field(default_factory=time.monotonic)

    async def run(self) -> bool:
        """Tell it; return whether the books balance. Raises `DemoFailed` or a network error, perhaps in a group."""
        await self.start()
        async with asyncio.TaskGroup() as group:
            self.let_customers_order(group)
            await self.kill_in_the_middle()
            await self.start_again()
        self.say(f"all {self.stored} orders are stored: who got no answer has asked again")
        dead = await self.see_dead_letters()
        await self.see_alerts(dead)
        await self.mend(dead)
        await self.see_all_done()
        await self.service.stop()
        return self.compare_books()

    async def start(self) -> None:
        await asyncio.gather(self.merchant.start(), self.service.start())
        await self.register("tea-house", "/callbacks")
        await self.register("old-mill", "/old")
        self.say(f"the service is on {self.service.url}, two merchants on {self.merchant.url}")

    async def register(self, name: str, path: str) -> None:
        account = {"address": self.merchant.url + path, "secret": SECRET}
        await self.service.ask("PUT", f"/merchants/{name}", account)

    def let_customers_order(self, group: asyncio.TaskGroup) -> None:
        self.say(f"{ORDERS} orders come in; a third of all callbacks will fail, others are put off or hung up on")
        waiting = [order(number) for number in range(ORDERS, 0, -1)]
        for _ in range(CUSTOMERS):
            group.create_task(self.place(waiting))

    async def place(self, waiting: list[dict[str, Any]]) -> None:
        while waiting:
            await self.service.take(waiting.pop())
            self.stored += 1
            if self.stored == ORDERS // 2:
                self.half_stored.set()

    async def kill_in_the_middle(self) -> None:
        await self.half_stored.wait()
        await self.service.kill_amid_a_callback()
        self.say(f"kill -9 of the service, with {self.stored} orders stored")

    async def start_again(self) -> None:
        await self.service.start()
        self.say(f"restarted: {await self.unfinished()} callbacks to go")

    async def see_dead_letters(self) -> list[str]:
        """Find them as an operator does, and return the ids of their jobs."""

        async def all_of_them() -> Any:
            jobs = (await self.service.ask("GET", "/admin/jobs?state=dead"))["jobs"]
            return jobs if len(jobs) == MOVED else None

        dead = await until(all_of_them, f"{MOVED} callbacks are dead letters")
        if any(job["attempt"] > 1 for job in dead):
            raise DemoFailed("what is hopeless was tried more than once")
        self.say(f"{len(dead)} callbacks are dead letters at once: the merchant says 410")
        return [job["id"] for job in dead]

    async def see_alerts(self, dead: list[str]) -> None:
        async def all_of_them() -> Any:
            alerts = await self.service.ask("GET", "/alerts")
            return alerts if {alert["job"] for alert in alerts} == set(dead) else None

        alerts = await until(all_of_them, "each dead letter has its alert")
        self.say(f"{len(alerts)} alerts, such as: {alerts[0]['text']}")

    async def mend(self, dead: list[str]) -> None:
        """Do what an operator does about it."""
        await self.service.ask("PATCH", "/merchants/old-mill", {"address": f"{self.merchant.url}/callbacks"})
        for job in dead:
            await self.service.ask("POST", f"/admin/jobs/{job}/retry")
        self.say("the operator has corrected the merchant's address, and retried the dead letters")

    async def see_all_done(self) -> None:
        while to_go := await self.unfinished():
            self.say(f"{to_go} callbacks to go")
            await asyncio.sleep(SECONDS_BETWEEN_LOOKS)
        self.say("no callback is left to do")

    async def unfinished(self) -> int:
        counts = await self.service.ask("GET", "/admin/counts")
        return int(counts["scheduled"] + counts["queued"] + counts["running"])

    def compare_books(self) -> bool:
        files = self.directory / "payments.db", self.directory / "merchant.db"
        print("\n" + "\n".join(f"  {count:>4}  {what}" for what, count in figures(*files).items()) + "\n")
        wrong = complaints(*files)
        print("\n".join(wrong) or "The books balance: every merchant knows of every order, and none is booked twice.")
        return not wrong

    def say(self, step: str) -> None:
        print(f"{time.monotonic() - self.began_at:6.1f} s  {step}", flush=True)


def order(number: int) -> dict[str, Any]:
    """Return an order as a customer sends it."""
    name = "old-mill" if number > ORDERS - MOVED else "tea-house"
    return {"id": f"order-{number:02}", "merchant": name, "cents": 100 * number}


async def tell(directory: Path, seed: int) -> bool:
    """Run the story with its files in ``directory``; return whether the books balance."""
    if this := asyncio.current_task():  # a story that is stopped leaves no process behind
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, this.cancel)
    service, other_side = Service(directory), merchant(directory, seed)
    try:
        async with asyncio.timeout(LONGEST_SECONDS):
            return await Story(directory, service, other_side).run()
    except* (DemoFailed, httpx2.HTTPError, TimeoutError) as failures:
        print(f"FAILED {failures.exceptions[0]!r}\nThe log of the service ends with:", file=sys.stderr)
        print(service.log.read_text(errors="replace")[-4_000:], file=sys.stderr)
    finally:
        await service.kill()
        await other_side.kill()
    return False
