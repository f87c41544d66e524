"""The fault matrix: what can go wrong, and what has to happen then. Tests name its rows with ``pytest.mark.fault``."""

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True)
class Fault:
    id: str
    what: str
    expected: str


@dataclass(frozen=True)
class Section:
    title: str
    faults: tuple[Fault, ...]


PROCESSES: Final = Section(
    "Processes and the machine",
    (
        Fault(
            "F1",
            "kill -9 while jobs are being added, before COMMIT returns",
            "no 2xx is sent; of one request all jobs are there, or none",
        ),
        Fault(
            "F2",
            "kill -9 after COMMIT, before the response",
            "the job runs; a client that repeats its request with the same idempotency key gets the same job",
        ),
        Fault(
            "F3",
            "kill -9 between the claim and the first line of the task",
            "the attempt is counted, and the job is runnable again within a second",
        ),
        Fault(
            "F4",
            "kill -9 inside a task",
            "as before, and the crash is counted; at the third the job is dead, with the reason",
        ),
        Fault(
            "F5",
            "kill -9 after a task's effect, before its success is stored",
            "it runs again, as a later attempt with the same idempotency key",
        ),
        Fault(
            "F6",
            "kill -9 while a success, a retry, a death, a deletion or a migration is stored",
            "the old state or the new one, never a mixture",
        ),
        Fault(
            "F7",
            "a child process that runs a job is killed, or runs out of memory",
            "one attempt of one job fails; the next job has a fresh child",
        ),
        Fault(
            "F8",
            "the server runs out of memory",
            "as kill -9; the queue itself never holds more jobs in memory than it may run",
        ),
        Fault(
            "F9",
            "a task blocks the event loop",
            "the lease holds meanwhile and the task is named in a warning; beyond the lease others take over, "
            "and what the blocked one did has no effect",
        ),
        Fault(
            "F10",
            "a worker is frozen past its lease (SIGSTOP, a paused virtual machine) and wakes up",
            "another one runs the job; nothing that the old one writes has effect, and it cannot take its lease back",
        ),
        Fault(
            "F11",
            "SIGTERM while jobs run",
            "nothing new is started; what does not end within the grace is handed back uncounted; the process ends "
            "within grace and a second; leases hold until then",
        ),
        Fault(
            "F12",
            "a second SIGTERM or SIGINT, or an end without the lifespan's shutdown",
            "nothing is lost",
        ),
        Fault(
            "F13",
            "a plain function that never returns",
            "its attempt times out, its slot is replaced up to a bound, and no exit waits for its thread",
        ),
        Fault(
            "F14",
            "an end during start-up, or before it",
            "the process ends, nothing is left behind, and it can be started again",
        ),
        Fault(
            "F15",
            "the power fails",
            "everything acknowledged is on the disk, and the file is whole",
        ),
        Fault(
            "F16",
            "fork while the queue runs",
            "the child refuses to use it, the parent is unharmed",
        ),
        Fault(
            "F17",
            "several processes on one file, all started at once",
            "every one comes up, and each job is started once",
        ),
        Fault(
            "F18",
            "two versions of an app side by side",
            "each takes only the jobs that it knows; files of the version before are brought up to date",
        ),
        Fault("F19", "a file of a newer version", "refused in plain words, and untouched"),
        Fault("F20", "the machine reboots", "all leases of before are void at once, and no crash is charged"),
    ),
)

STORAGE: Final = Section(
    "Storage",
    (
        Fault(
            "F21",
            "the disk is full",
            "adding is refused; work that was done is settled later and not done again; no busy loop; it goes on alone",
        ),
        Fault(
            "F22",
            "fsync fails",
            "repeated once; if that fails too the outcome is called unknown, never 'not stored', and the job ids are "
            "named; adding the same jobs again stores them once",
        ),
        Fault("F23", "the file or its disk cannot be written", "refused at start; refused, and not stored, later"),
        Fault(
            "F24",
            "the database is locked by another",
            "a 503 with Retry-After after a bounded wait; no job ever fails of it",
        ),
        Fault(
            "F25",
            "a SQLite build with the WAL-reset bug (before 3.51.3) and several processes",
            "no checkpoint can race a commit: each holds the write lock",
        ),
        Fault(
            "F26",
            "a damaged page or header",
            "refused at start with the remedy; met while running, nothing more is acknowledged",
        ),
        Fault(
            "F27",
            "a bit flips in stored arguments, and SQLite does not notice",
            "the job is dead, and was never executed",
        ),
        Fault("F28", "the file is deleted or replaced while open", "nothing is acknowledged any more"),
        Fault("F29", "the write-ahead log is deleted while open", "nothing is acknowledged any more"),
        Fault("F30", "a backup is taken while the queue runs", "it is whole and consistent"),
        Fault("F31", "a backup is restored over a file in use", "it is refused"),
        Fault(
            "F32",
            "a long reader keeps the write-ahead log from being taken in",
            "an alarm that names the reason; no reader of our own ever does",
        ),
        Fault("F33", "an operator runs VACUUM, ANALYZE or a checkpoint", "it waits or goes on; nothing is lost"),
        Fault("F34", "a network file system", "refused unless allowed"),
        Fault("F35", "millions of finished jobs", "claims and lists cost what they did before"),
    ),
)

TIME: Final = Section(
    "Time",
    (
        Fault(
            "F36",
            "the wall clock is set forward or back",
            "leases are unaffected; nothing is lost, nothing runs twice",
        ),
        Fault("F37", "a night of suspension, with schedules", "each schedule fires once at most"),
        Fault("F38", "daylight saving begins or ends, with schedules", "each schedule fires once"),
        Fault("F39", "the clocks of several machines differ", "the database's clock is the only one compared"),
        Fault("F40", "one instant of a schedule is seen twice", "it fires once"),
    ),
)

JOBS: Final = Section(
    "Jobs, arguments and people",
    (
        Fault("F41", "a task that no longer exists after a deployment", "its jobs wait in sight, and do not fail"),
        Fault(
            "F42",
            "stored arguments that no longer fit",
            "a dead letter at once, without burning retries; it can be mended and run again",
        ),
        Fault(
            "F43",
            "arguments that cannot be stored: NaN, surrogates, deep nesting, what JSON would silently change",
            "refused at the call, naming the argument",
        ),
        Fault("F44", "huge arguments, results or tracebacks", "refused at the call; cut short with a marker"),
        Fault("F45", "a result that cannot be stored", "the job has succeeded, with a marker in place of the result"),
        Fault(
            "F46",
            "exceptions whose text cannot be had, is huge, or leads in circles",
            "recorded, and capped",
        ),
        Fault(
            "F47",
            "SystemExit, KeyboardInterrupt, GeneratorExit, RecursionError, MemoryError in a task",
            "the attempt fails, the server lives",
        ),
        Fault("F48", "a task that cancels itself", "has failed; only a cancellation from outside is one"),
        Fault(
            "F49",
            "the client disconnects, or the request is cancelled",
            "its jobs are stored or not, never half",
        ),
        Fault("F50", "ten thousand retries due at once", "spread out, and made ready a bounded number at a time"),
        Fault(
            "F51",
            "a job that kills every worker",
            "three crashes, then dead; no innocent job is taken to the limit with it",
        ),
        Fault("F52", "one row among many that cannot be read", "only that row is put aside"),
        Fault(
            "F53",
            "a dead worker that held very many jobs, and survivors that are busy",
            "all are taken back at once, whatever slots are free",
        ),
        Fault("F54", "two people act on one job at once", "one does, the other is told"),
        Fault("F55", "recovery itself crashes, or the database fails meanwhile", "it is tried again, for ever"),
        Fault("F56", "the database server restarts or fails over", "reconnected; nothing is lost"),
        Fault(
            "F57",
            "add_task after the end of the request",
            "raises, and never drops silently",
        ),
    ),
)

RULES: Final = Section(
    "Rules that each had to be learnt",
    (
        Fault(
            "R1",
            "all writing stops for longer than a lease, then goes on",
            "nobody takes the living for dead: a reaper that was itself held up does not judge",
        ),
        Fault(
            "R2",
            "SQLite rolls a whole transaction back at one failed statement",
            "nothing of its group is committed in pieces",
        ),
        Fault(
            "R3",
            "a claim is committed, and its answer lost",
            "the lease is handed back, uncounted, and the job runs",
        ),
        Fault(
            "R4",
            "a second open() of the database or of the lock file drops the locks of the process",
            "neither is ever opened a second time; a worker's lock holds as long as its process",
        ),
        Fault("R5", "two SQLite libraries in one process", "refused where they would share the file"),
        Fault("R6", "a dependency swallows the exception of a route", "nothing of that request is stored"),
        Fault(
            "R7",
            "a poison job strikes again and again while others run beside it",
            "suspects run one at a time, so that it takes nobody along to the limit",
        ),
        Fault("R8", "the queue writes without pause", "an application's own transactions get the lock in time"),
        Fault(
            "R9",
            "add_task waits for a lock that its own coroutine holds",
            "it raises at once, or says within a second which session has to commit",
        ),
    ),
)

SECTIONS: Final = (PROCESSES, STORAGE, TIME, JOBS, RULES)
FAULTS: Final = {fault.id: fault for section in SECTIONS for fault in section.faults}

_NO_SERVER: Final = "durableq runs on SQLite only: one machine, one clock, no server that could restart."
_NO_SCHEDULES: Final = "There are no recurring schedules: a job runs once, at one instant."
NOT_APPLICABLE: Final = {
    "F37": _NO_SCHEDULES,
    "F38": _NO_SCHEDULES,
    "F39": _NO_SERVER,
    "F40": _NO_SCHEDULES,
    "F56": _NO_SERVER,
}
"""Rows that nothing in durableq can meet today, with the reason. Remove one when its feature is built."""
