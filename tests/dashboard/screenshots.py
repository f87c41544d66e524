"""``python -m tests.dashboard.screenshots``: the pictures in ``docs/screenshots``, of a small shop one afternoon.

Its time, its jobs and their texts are the same at every run; only versions and sizes on the page "system" may differ.
"""

import asyncio
import contextlib
import json
import logging
import math
import random
import socket
import sqlite3
import sys
import tempfile
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import uvicorn
from fastapi import Depends, FastAPI
from playwright.sync_api import Browser

from durableq import DurableQ, current_job
from durableq.clock import SECOND, SystemClock, from_datetime, to_datetime
from durableq.dashboard import dashboard
from durableq.fastapi import Principal
from tests.dashboard.browser.conftest import PROJECT, Served, browsing, served_by
from tests.support import eventually_sync

PICTURES: Final = PROJECT / "docs" / "screenshots"
MOST_BYTES: Final = 200_000
NOW: Final = from_datetime(datetime(2026, 3, 17, 14, 32, 57, tzinfo=UTC))
RUNNING: Final = 4
SHOP: Final = {
    "mail.order_confirmation": ("mail", 9.0, 0.4),
    "webhook.deliver": ("webhooks", 6.0, 0.6),
    "thumbnail.make": ("images", 4.0, 1.8),
    "invoice.render": ("documents", 2.5, 0.9),
    "payment.capture": ("payments", 1.8, 0.7),
    "stock.sync": ("stock", 0.6, 6.0),
}
"""Each task, its queue, how often it runs in a minute, and for how many seconds."""
FAILURES: Final = {
    "webhook.deliver": ("ConnectError", "https://hooks.partner.example/orders: connection refused", 38),
    "thumbnail.make": ("UnidentifiedImageError", "cannot identify image file 'products/8812/front.heic'", 12),
    "payment.capture": ("CardDeclined", "order 10492: the bank answered 'insufficient funds'", 7),
    "mail.order_confirmation": ("SMTPRecipientsRefused", "550 mailbox of 'jo.marsh@gmial.example' not found", 5),
    "invoice.render": ("KeyError", "'vat_id'", 3),
}
TRACEBACK: Final = """Traceback (most recent call last):
  File "/app/shop/webhooks.py", line 41, in deliver
    answer = await client.post(url, json=order.as_message(), timeout=5)
             ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
  File "/app/shop/http.py", line 88, in post
    raise ConnectError(f"{url}: connection refused") from error
shop.http.ConnectError: https://hooks.partner.example/orders: connection refused"""


# -- the application -----------------------------------------------------------------------------------------


def shop(database: Path) -> DurableQ:
    """Return the queue of the shop. What it starts goes on for ever."""
    dq = DurableQ(database, concurrency=RUNNING, grace=0.1, clock=_StandsStill())

    for name, (queue, _, _) in SHOP.items():
        dq.task(name=name, queue=queue, max_attempts=3)(_work(name))
    dq.task(name="catalogue.import", queue="imports")(_import())
    return dq


class _StandsStill(SystemClock):
    def wall(self) -> int:
        return NOW


def _work(name: str) -> Any:
    async def work(order: int = 0, email: str = "", url: str = "", path: str = "") -> None:
        await asyncio.Event().wait()

    return work


def _import() -> Any:
    async def import_catalogue(file: str) -> None:
        current_job().progress(6_840, 12_000, "reading products")
        await asyncio.Event().wait()

    return import_catalogue


def serve(database: Path, descriptor: int) -> None:
    """Serve the dashboard of the shop. Time stands still there; leases are measured by another clock."""
    logging.disable()
    dq = shop(database)
    app = FastAPI(lifespan=dq.lifespan)
    app.include_router(dashboard(dq, auth=Depends(lambda: Principal("maria"))), prefix="/durableq")
    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=1)
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=descriptor)])


# -- its jobs ------------------------------------------------------------------------------------------------


class Sample:
    """Writes the afternoon of the shop into a file."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self.connection = connection
        self.chance = random.Random(7)

    def write(self) -> str:
        """Write all of it. Return the id of the job that is shown by itself."""
        for queue in ("newsletter", *(queue for queue, _, _ in SHOP.values()), "imports"):
            self.insert("durableq_queues", name=queue)
        for task in (*SHOP, "mail.newsletter", "catalogue.import"):
            self.insert("durableq_tasks", name=task)
        paused = "UPDATE durableq_queues SET paused_at = ?, paused_by = 'tom' WHERE name = 'newsletter'"
        self.connection.execute(paused, (NOW - 38 * 60 * SECOND,))
        for number in range(340):
            self.job("mail.newsletter", "queued", 40 * 60 - number * 0.1, queue="newsletter")
        self.failures()
        self.tallies()
        self.deeds()
        shown = self.delivery()
        self.latest()
        return shown

    def latest(self) -> None:
        """The last quarter of an hour, with what runs and waits now at its end."""
        tasks = list(SHOP)
        weights = [rate for _, rate, _ in SHOP.values()]
        for number in range(60):
            task = self.chance.choices(tasks, weights)[0]
            self.job(task, "succeeded", 880 - number * 14, lasted=SHOP[task][2] * self.chance.uniform(0.6, 1.6))
        self.job("webhook.deliver", "scheduled", 34, failed=1, error=FAILURES["webhook.deliver"][:2])
        self.job("mail.order_confirmation", "scheduled", 32, tags=("follow-up",))
        self.job("payment.capture", "dead", 30, failed=3, error=FAILURES["payment.capture"][:2], lasted=0.7)
        self.job("stock.sync", "cancelled", 27, lasted=0.1)
        self.job("catalogue.import", "queued", 26, queue="imports", tags=("spring", "nightly"))
        for number, task in enumerate(
            ("thumbnail.make", "invoice.render", "webhook.deliver", "mail.order_confirmation")
        ):
            self.job(task, "queued", 24 - 3 * number)
        self.job("thumbnail.make", "succeeded", 9, lasted=2.1)
        self.job("payment.capture", "succeeded", 7, lasted=0.6, tags=("gift card",))
        self.job("webhook.deliver", "queued", 4, tags=("partner:north", "orders"))

    def failures(self) -> None:
        """What died in the last two days, the kinds among each other."""
        kinds = [(task, kind, text) for task, (kind, text, number) in FAILURES.items() for _ in range(number)]
        self.chance.shuffle(kinds)
        for number, (task, kind, text) in enumerate(kinds):
            self.job(task, "dead", 160_000 - number * 2_400, failed=3, error=(kind, text), lasted=0.4)

    def delivery(self) -> str:
        """The job that is shown: retried once by hand, and dead again."""
        headers = {"traceparent": "00-5b8efff798038103d269b633813fc60c-eee19b7ec3c1b174-01", "tenant": "green-grocer"}
        job_id, seq = self.job(
            "webhook.deliver",
            "dead",
            1_260,
            failed=3,
            error=FAILURES["webhook.deliver"][:2],
            lasted=0.6,
            tags=("partner:north", "orders"),
            headers=headers,
            spread=(0, 9, 42),
        )
        at = NOW - 1_250 * SECOND
        for number, line in enumerate(("order 10481 has 4 items, 61.20 EUR", "signing the message with key 'north-2'")):
            self.insert("durableq_logs", seq=seq, lease_no=3, no=number, at=at + number * 4_000, message=line)
        self.deed(2_000, "maria", "retry", job_id, {"was": "dead", "attempt": 3})
        return job_id

    def deeds(self) -> None:
        self.deed(2_280, "tom", "pause", "", {"queue": "newsletter"})
        for number in range(4):
            self.deed(5_000 - number * 60, "maria", "retry", self.new_id(5_000), {"was": "dead", "attempt": 3})
        self.deed(9_400, "nightly-cleaner", "delete", self.new_id(90_000), {"was": "succeeded"})

    def tallies(self) -> None:
        """How busy it was, minute by minute: more towards the afternoon, with a partner that fell away."""
        for minute in range(26 * 60):
            at = (NOW // SECOND - minute * 60) // 60 * 60
            swing = 1 + 0.35 * math.sin(minute / 17) + 0.25 * math.sin(minute / 191)
            for task, (queue, rate, seconds) in SHOP.items():
                ended = max(0, round(rate * swing * self.chance.uniform(0.8, 1.2)))
                bad = task == "webhook.deliver" and 12 < minute < 26
                failed = round(ended * (0.6 if bad else 0.02))
                row = {"at": at, "queue": queue, "task": task}
                self.tally(row, "succeeded", seconds, ended - failed)
                self.tally(row, "retried", seconds, failed)
                self.tally(row, "dead", seconds, failed // 3)
                self.tally(row, "waited", 0.02 * swing, ended)

    # -- rows ------------------------------------------------------------------------------------------------

    def job(
        self,
        task: str,
        state: str,
        seconds_ago: float,
        *,
        queue: str = "",
        lasted: float = 0.0,
        failed: int = 0,
        error: tuple[str, str] | None = None,
        tags: tuple[str, ...] = (),
        headers: dict[str, str] | None = None,
        spread: tuple[float, ...] = (0, 2, 6),
    ) -> tuple[str, int]:
        """Add a job that was added so long ago, with its failed tries. Return its id and its number."""
        added = NOW - round(seconds_ago * SECOND)
        started = None if state == "queued" else added + round(spread[max(failed - 1, 0)] * SECOND) + 21_000
        is_over = state in ("succeeded", "dead", "cancelled")
        args = json.dumps(self.arguments(task))
        job_id = self.new_id(seconds_ago)
        seq = self.insert(
            "durableq_jobs",
            id=job_id,
            task=task,
            queue=queue or SHOP[task][0],
            priority=0,
            state=state,
            args=args,
            checksum=zlib.crc32(args.encode()),
            max_attempts=3,
            attempt=failed or int(is_over),
            lease_no=failed or int(is_over),
            created_at=added,
            run_at=NOW + 95 * SECOND if state == "scheduled" else added,
            started_at=started if failed or is_over else None,
            finished_at=(started or 0) + round(lasted * SECOND) if is_over else None,
            result=json.dumps({"status": 200}) if state == "succeeded" else None,
            error_type=error and error[0],
            error_message=error and error[1],
            tags=json.dumps(tags) if tags else None,
            settings=json.dumps({"tags": tags, "headers": headers}) if headers else None,
        )
        for number in range(failed):
            begin = added + round(spread[number] * SECOND) + 21_000
            self.insert(
                "durableq_attempts",
                seq=seq,
                lease_no=number + 1,
                attempt=number + 1,
                worker_id=1,
                started_at=begin,
                finished_at=begin + round(lasted * SECOND),
                error_type=error and error[0],
                error_message=error and error[1],
                traceback=TRACEBACK,
            )
        return job_id, seq

    def arguments(self, task: str) -> dict[str, Any]:
        order = self.chance.randrange(10_200, 10_600)
        match task:
            case "webhook.deliver":
                return {"url": "https://hooks.partner.example/orders", "order": order}
            case "thumbnail.make":
                return {"path": f"products/{order}/front.jpg"}
            case "catalogue.import":
                return {"file": "spring-catalogue.csv"}
            case "mail.order_confirmation" | "mail.newsletter":
                return {"email": f"customer{order}@example.org", "order": order}
        return {"order": order}

    def tally(self, row: dict[str, Any], measure: str, seconds: float, number: int) -> None:
        """Count tries about as long as they take: most of them so long, some twice."""
        bucket = 1 + max(0, round(3 * math.log10(max(seconds, 0.001) / 0.001)))
        for step, count in ((0, number - number // 4), (1, number // 4)):
            if count:
                self.insert("durableq_tallies", **row, measure=measure, bucket=bucket + step, count=count)

    def deed(self, seconds_ago: float, who: str, action: str, job_id: str, detail: dict[str, Any]) -> None:
        at = NOW - round(seconds_ago * SECOND)
        self.insert("durableq_audit", at=at, who=who, action=action, job_id=job_id, detail=json.dumps(detail))

    def new_id(self, seconds_ago: float) -> str:
        millis = (NOW - round(seconds_ago * SECOND)) // 1_000
        text = f"{millis:012x}7{self.chance.getrandbits(12):03x}{0x8000 | self.chance.getrandbits(14):04x}"
        text += f"{self.chance.getrandbits(48):012x}"
        return f"{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}"

    def insert(self, table: str, **values: Any) -> int:
        marks = ", ".join("?" * len(values))
        sql = f"INSERT INTO {table} ({', '.join(values)}) VALUES ({marks})"
        return self.connection.execute(sql, tuple(values.values())).lastrowid or 0


def make(database: Path) -> str:
    """Make the file of the shop. Return the id of the job that is shown by itself."""

    async def open_once() -> None:
        async with DurableQ(database, worker=False).running():
            pass

    asyncio.run(open_once())
    with contextlib.closing(sqlite3.connect(database)) as connection, connection:
        return Sample(connection).write()


# -- the pictures --------------------------------------------------------------------------------------------


def pictures(job_id: str) -> Iterator[tuple[str, str, int]]:
    """Yield the name, the page and the width of each picture."""
    pages = {
        "overview": "",
        "jobs": "jobs",
        "job": f"jobs/{job_id}",
        "dead": "dead",
        "queues": "queues",
        "system": "system",
    }
    for name, path in pages.items():
        yield name, path, 1280
    yield "overview-390", "", 390
    yield "jobs-390", "jobs", 390


def take(browser: Browser, served: Served, job_id: str, theme: str) -> None:
    for name, path, width in pictures(job_id):
        context = browser.new_context(
            viewport={"width": width, "height": 900 if width > 400 else 844},
            color_scheme="dark" if theme == "dark" else "light",
            reduced_motion="reduce",
            timezone_id="UTC",
        )
        page = context.new_page()
        page.clock.set_fixed_time(to_datetime(NOW))
        page.goto(f"{served.base}/durableq/{path}")
        page.wait_for_load_state("load")
        file = PICTURES / f"{name}-{theme}.png"
        page.screenshot(path=file, animations="disabled")
        context.close()
        size = file.stat().st_size
        print(f"{file.relative_to(PROJECT)}: {size:,} bytes")
        if size > MOST_BYTES:
            raise SystemExit(f"expected at most {MOST_BYTES:,} bytes; is there something new on the page?")


def main() -> None:
    PICTURES.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as directory:
        database = Path(directory) / "shop.db"
        job_id = make(database)
        with browsing() as browser, served_by("tests.dashboard.screenshots", database) as served:
            run_for_a_while(served)
            for theme in ("light", "dark"):
                take(browser, served, job_id, theme)


def run_for_a_while(served: Served) -> None:
    """Wait until all runs that can, and put back when it began."""
    running = "SELECT count(*) FROM durableq_jobs WHERE state = 'running'"
    eventually_sync(lambda: served.row(running) == (RUNNING,))
    eventually_sync(lambda: bool(served.row("SELECT 1 FROM durableq_jobs WHERE progress IS NOT NULL")))
    began = "UPDATE durableq_jobs SET started_at = created_at + 21000 WHERE state = 'running'"
    served.execute(began)
    served.execute("UPDATE durableq_workers SET started_at = ?, host = 'shop-1', pid = 412", NOW - 187_000 * SECOND)


if __name__ == "__main__":
    if len(sys.argv) == 3:
        serve(Path(sys.argv[1]), int(sys.argv[2]))
    else:
        main()
