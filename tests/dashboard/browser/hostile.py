"""A file in which every text that anybody could have put there is one that attacks the page that shows it.

Written with SQL: what the library would refuse or clean on its way in is in the file as well.
"""

import contextlib
import itertools
import json
import sqlite3
import time
import uuid
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

STATES = ("dead", "cancelled", "succeeded", "scheduled", "queued", "running")
FAILED = ("dead", "cancelled", "scheduled")
FINISHED = ("dead", "cancelled", "succeeded")
_AT = (time.time_ns() // 1_000) - 3_600_000_000
_MINUTE = 60_000_000


def payloads() -> list[str]:
    """Return all of `payloads.json`."""
    groups = json.loads((Path(__file__).parent / "payloads.json").read_text())
    return [one for group in groups.values() for one in group]


def state_of(number: int) -> str:
    """The state of the job that was given the payload of a number."""
    return STATES[number % len(STATES)]


def fill(database: Path, texts: list[str]) -> list[str]:
    """Add a job for each text, with the text wherever a job, its tries and its history have one. Return their ids."""
    ids = [str(uuid.UUID(int=(0x01900000_0000_7000_8000_000000000000 + number))) for number in range(len(texts))]
    with contextlib.closing(sqlite3.connect(database, timeout=20)) as connection, connection:
        connection.execute("PRAGMA synchronous = OFF")
        for number, text in enumerate(texts):
            seq = _insert(connection, "durableq_jobs", _job(number, ids[number], text))
            for table, values in _history(seq, ids[number], text):
                _insert(connection, table, values)
    return ids


def _insert(connection: sqlite3.Connection, table: str, values: dict[str, Any]) -> int:
    marks = ", ".join("?" * len(values))
    cursor = connection.execute(
        f"INSERT OR IGNORE INTO {table} ({', '.join(values)}) VALUES ({marks})", tuple(values.values())
    )
    return cursor.lastrowid or 0


def _job(number: int, job_id: str, text: str) -> dict[str, Any]:
    state = state_of(number)
    args = json.dumps({text: text, "nested": [{text: [text]}], "text": text})
    has_failed, is_finished = state in FAILED, state in FINISHED
    return {
        "id": job_id,
        "task": text,
        "queue": text,
        "priority": 0,
        "state": state,
        "args": args,
        "checksum": zlib.crc32(args.encode()),
        "max_attempts": 5,
        "attempt": 1,
        "lease_no": 1,
        "worker_id": 9_999 if state == "running" else None,
        "created_at": _AT,
        "run_at": _AT + 100 * _MINUTE if state == "scheduled" else _AT,
        "started_at": _AT + _MINUTE,
        "finished_at": _AT + 2 * _MINUTE if is_finished else None,
        "result": json.dumps({text: text}) if state == "succeeded" else None,
        "error_type": text if has_failed else None,
        "error_message": text if has_failed else None,
        "tags": json.dumps([text]),
        "settings": json.dumps({"tags": [text], "headers": {text: text, "trace": text}}),
        "progress": json.dumps([30, 100, text]),
    }


def _history(seq: int, job_id: str, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """What happened to a job: a try that failed, lines that it logged, and what somebody of that name did to it."""
    yield (
        "durableq_attempts",
        {
            "seq": seq,
            "lease_no": 1,
            "attempt": 1,
            "worker_id": 1,
            "started_at": _AT + _MINUTE,
            "finished_at": _AT + 2 * _MINUTE,
            "error_type": text,
            "error_message": text,
            "traceback": f'Traceback:\n  File "{text}", line 1\n{text}: {text}',
        },
    )
    for lease_no, no in itertools.product((1, 2), (1, 2)):
        at = _AT + no * _MINUTE
        yield "durableq_logs", {"seq": seq, "lease_no": lease_no, "no": no, "at": at, "message": text}
    edited = {"was": text, text: text, "args_before": {text: text}, "args_after": {text: [text]}}
    yield "durableq_audit", _deed(job_id, text, "edit and retry", edited)
    yield "durableq_audit", _deed("", text, text, {"queue": text, "number": 1, text: text})
    yield "durableq_queues", {"name": text, "paused_at": _AT, "paused_by": text}
    yield "durableq_tasks", {"name": text, "arguments_schema": json.dumps(_schema(text))}
    yield (
        "durableq_workers",
        {"pid": 1, "boot_id": text, "expires_at": 2**60, "started_at": _AT, "host": text, "software": text},
    )
    for bucket, measure in enumerate(("dead", "retried", "succeeded", "waited")):
        at = _AT // 1_000_000 // 60 * 60
        row = {"at": at, "queue": text, "task": text, "measure": measure, "bucket": bucket, "count": 1}
        yield "durableq_tallies", row


def _deed(job_id: str, who: str, action: str, detail: dict[str, Any]) -> dict[str, Any]:
    return {"at": _AT, "who": who, "action": action, "job_id": job_id, "detail": json.dumps(detail)}


def _schema(text: str) -> dict[str, Any]:
    properties = {text: {"title": text, "description": text, "type": "string"}, "nested": {}, "text": {"enum": [text]}}
    return {"type": "object", "title": text, "properties": properties}
