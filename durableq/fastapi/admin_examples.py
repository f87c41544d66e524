"""The examples in the documentation of the admin routes: one shop's queue on one morning."""

from typing import Any, Final

_JOB_ID: Final = "0199c1f0-6d3a-7b41-9c55-1f0a5f0a2b3c"
_MORNING: Final = "2026-03-01T09:30:00Z"
_LATER: Final = "2026-03-01T09:30:12Z"

SUMMARY: Final[dict[str, Any]] = {
    "id": _JOB_ID,
    "task": "app.mail:send",
    "queue": "default",
    "priority": 0,
    "state": "dead",
    "attempt": 3,
    "max_attempts": 3,
    "crashes": 0,
    "created_at": _MORNING,
    "run_at": _MORNING,
    "started_at": "2026-03-01T09:30:10Z",
    "finished_at": _LATER,
    "expires_at": None,
    "deadline_at": None,
    "tags": ["import-7"],
    "progress": {"done": 2.0, "total": 5.0, "message": "2 of 5 recipients"},
    "cancel_requested": False,
    "error": {"type": "TimeoutError", "message": "no answer from mail.example.org"},
}
LIST: Final = {"jobs": [SUMMARY], "next_cursor": 4711, "is_cut_short": False}
ATTEMPT: Final = {
    "attempt": 3,
    "worker_id": 12,
    "started_at": "2026-03-01T09:30:10Z",
    "finished_at": _LATER,
    "error_type": "TimeoutError",
    "error_message": "no answer from mail.example.org",
    "traceback": "Traceback (most recent call last):\n  ...\nTimeoutError: no answer from mail.example.org",
}
LINE: Final = {"lease_no": 31, "at": _LATER, "message": "two recipients are done"}
_DONE: Final = {"at": _LATER, "who": "anna", "action": "retry", "detail": {"was": "dead", "attempt": 3}}
DETAIL: Final = {
    **SUMMARY,
    "args": {"to": "ann@example.org", "api_key": "**********"},
    "args_text": None,
    "result": None,
    "headers": {},
    "attempts": [ATTEMPT],
    "logs": [LINE],
    "audit": [_DONE],
}
AUDIT: Final = {"entries": [{**_DONE, "job_id": _JOB_ID}], "next_cursor": None}
COUNTS: Final = {
    "blocked": 0,
    "scheduled": 14,
    "queued": 210,
    "running": 8,
    "succeeded": 10_000,
    "dead": 3,
    "cancelled": 1,
    "at_most": 10_000,
}
QUEUE: Final = {
    "name": "default",
    "queued": {"number": 210, "is_all": True},
    "running": 8,
    "oldest_due": _MORNING,
    "is_paused": True,
    "paused_at": _LATER,
    "paused_by": "anna",
}
WORKER: Final = {
    "id": 12,
    "pid": 4021,
    "host": "web-1",
    "software": "durableq 1.0.0, Python 3.13.2",
    "started_at": _MORNING,
    "runs_jobs": True,
    "is_alive": True,
    "running": 8,
    "is_here": True,
}
TASK: Final = {
    "name": "app.mail:send",
    "is_known": True,
    "arguments_schema": {
        "type": "object",
        "properties": {
            "to": {"type": "string"},
            "api_key": {"type": "string", "format": "password", "writeOnly": True},
        },
        "required": ["to", "api_key"],
    },
}
DEAD_LETTERS: Final = {
    "task": "app.mail:send",
    "error_type": "TimeoutError",
    "number": 214,
    "first_at": _MORNING,
    "last_at": _LATER,
    "latest_id": _JOB_ID,
    "latest_message": "no answer from mail.example.org",
}
FIGURES: Final[dict[str, Any]] = {
    "succeeded": 118,
    "retried": 3,
    "dead": 1,
    "cancelled": 0,
    "ended": 122,
    "success_share": 0.967,
    "wait_p50": 0.004,
    "wait_p95": 0.09,
    "run_p50": 0.12,
    "run_p95": 0.9,
}
HISTORY: Final = {
    "step_seconds": 60.0,
    "points": [{"at": _MORNING, "figures": FIGURES}],
    "total": FIGURES,
    "tasks": [{"task": "app.mail:send", "figures": FIGURES}],
    "queues": [{"queue": "default", "figures": FIGURES}],
}
SYSTEM: Final = {
    "durableq": "1.0.0",
    "python": "3.13.2",
    "health": {
        "status": "degraded",
        "reasons": ["the heartbeat is late: the lease was last prolonged 21 s ago"],
        "worker": "running",
        "worker_id": 12,
        "leases_held": 8,
        "seconds_since_heartbeat": 21.4,
        "longest_wait_seconds": 3.2,
        "storage": {
            "software": "SQLite 3.51.3",
            "has_known_bug": False,
            "durability": "full",
            "is_shared": False,
            "database_bytes": 41_943_040,
            "log_bytes": 4_120_032,
            "log_bytes_alarm": 67_108_864,
        },
    },
}
EVENTS: Final = (
    f'event: status\ndata: {{"id":"{_JOB_ID}","task":"app.mail:send","state":"running"}}\nid: 0\n\n'
    'event: log\ndata: {"at":"2026-03-01T09:30:12+00:00","message":"two recipients are done"}\nid: 1\n\n'
    "event: end\ndata: {}\nid: 1.end\n\n"
)
PROBLEM: Final = {"detail": {"message": "no job '0199c1f0' is stored"}}
STATE_PROBLEM: Final = {
    "detail": {
        "message": "cannot retry job 0199c1f0: expected it to be dead or cancelled, it is running",
        "state": "running",
    }
}
