"""A parent to be killed: ``python -m tests.engine.process_parent MODE TASK NOTE [NOTE]``.

Its child runs the task, which writes to the note that it has begun; then this process waits to be killed. With MODE
``thread`` its event loop runs in a thread, with ``fork`` a copy of this process goes on living, with ``idle`` the
child is idle.
"""

import asyncio
import os
import sys
import threading
import time
from pathlib import Path

from durableq.engine.processes import ProcessRunner
from tests.engine import process_tasks
from tests.engine.process_support import Heard, call_of, value_of


async def run(mode: str, task: str, note: str) -> None:
    runner = ProcessRunner(1)
    if mode == "idle":
        process_tasks.write_note(note, await value_of(runner, process_tasks.where))
        await asyncio.sleep(3600)
    await runner.run(call_of(getattr(process_tasks, task), note), Heard())


def fork_a_copy(note: str, copy_note: str) -> None:
    """Once the child runs, leave a copy of this process that outlives it."""
    while not Path(note).exists():
        time.sleep(0.01)
    if os.fork() == 0:
        process_tasks.write_note(copy_note, os.getpid())
        time.sleep(20)
        os._exit(0)


def main() -> None:
    mode, task, note, *more = sys.argv[1:]
    if mode == "thread":
        loop_thread = threading.Thread(target=lambda: asyncio.run(run(mode, task, note)))
        loop_thread.start()
        loop_thread.join()
    if mode == "fork":
        threading.Thread(target=fork_a_copy, args=(note, more[0]), daemon=True).start()
    asyncio.run(run(mode, task, note))


if __name__ == "__main__":
    main()
