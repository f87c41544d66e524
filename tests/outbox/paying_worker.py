"""Another process with a worker whose task completes itself: ``python -m tests.outbox.paying_worker DATABASE``.

It says when it is ready, and goes on until it is killed. A job with a negative number says that it waits, and holds up
the whole process until a line comes in: nobody can tell it meanwhile that it has lost its lease.
"""

import asyncio
import json
import sys

from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session

from durableq import DurableQ, current_job, outbox
from durableq.errors import JobConflict

queue = DurableQ(sys.argv[1], lease=1.0, heartbeat=0.5, concurrency=8)
engine = create_engine(f"sqlite:///{sys.argv[1]}")
outbox.configure(engine)


@queue.task(name="tests.outbox.paying_worker:pay")
async def pay(x: int) -> None:
    if x < 0:
        say("waiting")
        sys.stdin.readline()
    with Session(engine) as session:
        session.execute(text("INSERT INTO mine VALUES (:x)"), {"x": x})
        try:
            await current_job().complete_within(session)
        except JobConflict:
            say("refused")
            raise
        session.commit()
    await asyncio.sleep(0.001)  # a moment in which the success is committed, and the engine does not know yet


def say(word: str) -> None:
    print(json.dumps(word), flush=True)


async def main() -> None:
    async with queue.running():
        say("ready")
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
