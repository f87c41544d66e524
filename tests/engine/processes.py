"""Runs `tests.engine.program` in processes of their own."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support import eventually_sync

ROOT = Path(__file__).resolve().parents[2]


class Program:
    """A running `tests.engine.program`, and all that it has said."""

    def __init__(self, database: Path, options: dict[str, Any]) -> None:
        self.said: list[dict[str, Any]] = []
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.engine.program", str(database), json.dumps(options)],
            cwd=ROOT,
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self._complaints: list[str] = []
        self._listeners = [threading.Thread(target=one, daemon=True) for one in (self._listen, self._hear_complaints)]
        for listener in self._listeners:
            listener.start()

    @property
    def pid(self) -> int:
        return self.process.pid

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.said.append(json.loads(line))

    def _hear_complaints(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._complaints.append(line)

    def complaints(self) -> list[str]:
        """What it has logged, from WARNING up, line by line."""
        return list(self._complaints)

    def events(self, event: str, **facts: Any) -> list[dict[str, Any]]:
        return [one for one in self.said if one["event"] == event and facts.items() <= one.items()]

    def hear(self, event: str, within: float = 10.0, **facts: Any) -> dict[str, Any]:
        """Wait until it has said this, and return what it said first."""
        eventually_sync(lambda: self.events(event, **facts) != [], within)
        return self.events(event, **facts)[0]

    def tell(self, task: str, *args: Any, **options: Any) -> dict[str, Any]:
        """Have it add a job; return its answer."""
        before = self._answers()
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"add": task, "args": args, "options": options}) + "\n")
        self.process.stdin.flush()
        eventually_sync(lambda: len(self._answers()) > len(before))
        return self._answers()[-1]

    def _answers(self) -> list[dict[str, Any]]:
        return [one for one in self.said if one["event"] in ("added", "refused")]

    def end(self) -> None:
        """Let it leave in good order."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(15)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)
        for listener in self._listeners:
            listener.join()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None and not stream.closed:
                stream.close()


@contextmanager
def program(database: Path, **options: Any) -> Iterator[Program]:
    """Run the program for a block, once its queue is up; it is killed at the end if it has not left by then."""
    started = Program(database, options)
    try:
        started.hear("ready", within=20)
        yield started
    finally:
        started.kill()


def stop_outside_of_transactions(pid: int, database: Path) -> None:
    """SIGSTOP a process at a moment when it does not hold the write lock, which nobody could take from it."""
    probe = sqlite3.connect(database, timeout=0, isolation_level=None)
    while True:
        os.kill(pid, signal.SIGSTOP)
        try:
            probe.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            os.kill(pid, signal.SIGCONT)
            time.sleep(0.01)
        else:
            probe.execute("ROLLBACK")
            probe.close()
            return
