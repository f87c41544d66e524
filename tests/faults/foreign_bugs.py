"""Bugs that other queues, schedulers and databases have had, each with a test here or a reason why it cannot happen.

Tests name them with ``pytest.mark.foreign_bug``. A thread is written as its project does: ``project#number``.
"""

from dataclasses import dataclass
from typing import Final

_NO_SCHEDULES: Final = "There are no recurring schedules: a job runs once, at an instant that is stored in UTC."
_NO_REPLICA: Final = "durableq ships no replication; a backup is made in one read transaction, and checked."
_NO_SHARED_KEY: Final = "There is no key that workers share: each has a row and a kernel lock of its own."


@dataclass(frozen=True)
class Bug:
    number: int
    threads: str
    what: str
    cannot_happen: str = ""
    """Why durableq cannot have it; empty when a test shows that it has not."""


@dataclass(frozen=True)
class Group:
    title: str
    bugs: tuple[Bug, ...]


GROUPS: Final = (
    Group(
        "Lost work",
        (
            Bug(1, "huey#571, huey#844, huey#733", "a killed consumer loses the task that it had taken"),
            Bug(2, "huey#815", "one bad scheduled row loses its whole batch"),
            Bug(3, "celery#14", "taken before a slot is free"),
            Bug(4, "celery#1628", "acknowledged although the out-of-memory killer struck"),
            Bug(5, "celery#3541", "work of a lost worker is not given back"),
            Bug(6, "celery#1789", "tasks lost when the broker restarts"),
            Bug(7, "rq (changes of 0.3)", "arguments that cannot be read drop the work silently"),
            Bug(8, "rq#708", "a bad deployment leaves jobs in limbo"),
            Bug(9, "rq#2061", "a job stuck between the queue and the worker"),
            Bug(10, "taskiq#222", "acknowledged before it is executed"),
            Bug(11, "taskiq#496", "a retry loses the id of its task"),
            Bug(12, "dbos-transact-py#716", "a database restart during recovery strands work"),
            Bug(13, "dbos-transact-py#761", "'database is locked' in a check becomes a final error"),
            Bug(14, "dbos-transact-py#804", "a process that is leaving claims again what was just released"),
            Bug(15, "dbos-transact-py#805", "a recovered job blocks a queue that runs one at a time"),
            Bug(16, "pgqueuer#693", "shutdown strands claimed rows"),
            Bug(17, "docket#68", "claimed tasks are abandoned"),
            Bug(18, "sidekiq#4141", "a failure during an outage loses the job"),
            Bug(19, "saq#124, saq#277", "the sweeper takes a job that was only just taken"),
            Bug(20, "good_job#303", "notifications are lost for ever after a reconnection"),
            Bug(21, "fastapi#15111, fastapi#11215", "tasks are dropped when the route returns its own response"),
            Bug(22, "starlette#3195", "one exception drops all tasks behind it"),
            Bug(23, "fastapi#5606, starlette#919", "middleware cancels or delays tasks"),
            Bug(24, "fastapi#2604", "tasks are dropped on an error response (here a rule, and kept)"),
            Bug(25, "nats-server#7564", "acknowledged before fsync"),
            Bug(26, "honker#80", "lost POSIX locks: a commit into a log that is no longer there"),
            Bug(27, "celery#8030, celery#8091, celery#10302", "a worker is alive and never takes work again"),
        ),
    ),
    Group(
        "Run twice, or by the wrong one",
        (
            Bug(
                28,
                "celery#2599, celery#3270, celery#2481, kombu#337",
                "a task scheduled further ahead than its visibility timeout runs several times",
            ),
            Bug(29, "celery#9348", "duplicates at shutdown"),
            Bug(30, "huey#123", "two workers take one row of SQLite"),
            Bug(31, "solid_queue@4f263b2", "a worker that was given up for dead finishes, and corrupts a semaphore"),
            Bug(32, "solid_queue#568", "heartbeats stop before the graceful shutdown ends"),
            Bug(33, "sidekiq#6379", "a job runs twice at once at shutdown"),
            Bug(34, "docket#209, docket#250", "added twice, or delivered again while it runs"),
            Bug(35, "dbos-transact-py#742", "a stale look is acted upon"),
            Bug(36, "agno#9512", "a starved event loop is swept though it lives"),
            Bug(37, "lion-reader#917", "a late heartbeat steals the lease back"),
            Bug(38, "apscheduler#160, apscheduler#655", "every worker process runs everything"),
            Bug(39, "good_job#1335", "a job that is run in place runs a second time"),
            Bug(40, "saq@45c80ef", "swept between being taken and being started"),
            Bug(41, "river#1331", "jobs without a timeout are taken for stuck"),
            Bug(42, "pgqueuer#474", "a stale job occupies its own slot and is never taken back"),
        ),
    ),
    Group(
        "Crash loops",
        (
            Bug(43, "sidekiq#3400, sidekiq#4633", "a job that kills its process is run for ever"),
            Bug(44, "faktory#99", "the same"),
            Bug(45, "hindsight#2675", "a crash does not count as an attempt"),
            Bug(46, "activepieces#15130", "recovery bypasses the attempts: a 17-hour loop that nobody can cancel"),
            Bug(47, "OasisPlatform#975", "a job that needs too much memory is queued again for ever"),
            Bug(48, "fastapi-jobs", "claims without looking at the number of attempts"),
        ),
    ),
    Group(
        "Locked, deadlocked, hung",
        (
            Bug(49, "solid_queue#133, solid_queue#309", "'database is locked' when adding"),
            Bug(50, "solid_queue#385", "'database is locked' at the heartbeat"),
            Bug(51, "huey#445", "'database is locked' when taking"),
            Bug(52, "django-q#617", "'database is locked' with a single worker"),
            Bug(53, "dstack#796", "the checkpoint of another program locks the queue out"),
            Bug(54, "taOS#2771", "cancelled between a write and its commit: everything is locked"),
            Bug(55, "aiosqlite#259", "a connection's thread is left behind"),
            Bug(56, "aiosqlite#290, aiosqlite#311", "an open connection keeps the process from ending"),
            Bug(57, "ogx#4587", "the same, after an upgrade that made the thread hold the process"),
            Bug(58, "exqlite#343", "a cancellation deadlocks in the busy handler"),
            Bug(59, "taskiq#380", "no graceful stop"),
            Bug(60, "taskiq#63", "SIGTERM is ignored"),
            Bug(61, "docket#262, docket#263", "shutdown waits for what is scheduled ahead, or cancels too early"),
            Bug(62, "procrastinate@0826080", "a stop during start-up is lost"),
            Bug(63, "river#376", "a hard stop beside a soft one hangs"),
            Bug(64, "arq#343, arq#316", "stuck for the whole job timeout after a crash"),
            Bug(65, "arq#291", "one worker's exit deletes the health key of all", _NO_SHARED_KEY),
            Bug(66, "river#1318", "recovery is starved by the paging of its query"),
            Bug(67, "pgqueuer#633", "recovery is blocked while all slots are taken"),
            Bug(68, "que#318, que#298", "a deadlock, and a lock that leaks"),
            Bug(69, "litestar-queues#122", "a task that swallows its cancellation blocks the exit for ever"),
        ),
    ),
    Group(
        "Growth and leaks",
        (
            Bug(70, "absurd#130", "completed rows fill the disk"),
            Bug(71, "bunqueue#118", "retention misses the rows outside of its window"),
            Bug(72, "console#2739", "each poll reads all finished rows"),
            Bug(73, "solid_queue#278", "no automatic clean-up"),
            Bug(
                74,
                "gotosocial#2808, loreai#1221, codebase-memory-mcp#1137",
                "the write-ahead log grows without bound",
            ),
            Bug(75, "openclaw#155636", "a snapshot that is kept open pins the log"),
            Bug(76, "celery#8882, celery#4843, celery#6132", "tracebacks hold memory in circles"),
            Bug(77, "river#240, river#243, river#1147", "goroutines and connections leak"),
            Bug(78, "docket#309, saq#100", "keys and connections leak"),
            Bug(79, "data-machine#3514", "clean-up that failed once is never tried again"),
        ),
    ),
    Group(
        "Clocks, daylight saving, sleep",
        (
            Bug(
                80,
                "celery#1604, celery#6438, celery#9653, celery#1061",
                "schedules run twice, late or never when daylight saving changes",
                _NO_SCHEDULES,
            ),
            Bug(
                81, "apscheduler#980, apscheduler#1059", "an endless loop at a time that does not exist", _NO_SCHEDULES
            ),
            Bug(82, "huey (changes of 3.0.2)", "a burst of what was missed during a suspension"),
            Bug(83, "robfig/cron#26", "720 runs when a laptop wakes up"),
            Bug(84, "node-cron#563", "not at all when daylight saving begins, twice when it ends", _NO_SCHEDULES),
            Bug(
                85,
                "good_job#1543, solid_queue@e43f204",
                "a drift of milliseconds fires a schedule twice",
                _NO_SCHEDULES,
            ),
            Bug(86, "meteor-synced-cron#152", "continuous runs for an hour", _NO_SCHEDULES),
            Bug(87, "nomad#7894", "runaway runs when daylight saving changes", _NO_SCHEDULES),
        ),
    ),
    Group(
        "Corruption and backup",
        (
            Bug(88, "litestream#1432", "the WAL-reset bug of SQLite loses committed pages"),
            Bug(89, "litestream#752", "a restore fails after a checkpoint that nobody saw"),
            Bug(90, "litestream#1337, litestream#1164, litestream#582", "a replica is corrupt", _NO_REPLICA),
        ),
    ),
    Group(
        "Security",
        (
            Bug(91, "flower#1217", "another site can make the admin page act"),
            Bug(92, "flower#1041", "script in the name of a queue"),
            Bug(93, "rq#2389", "stored pickles run code"),
            Bug(94, "arq (418sec/huntr#1494)", "the same"),
            Bug(95, "rq-dashboard#526", "script in a job's description"),
            Bug(96, "rq-dashboard#232", "secrets are shown in lists"),
            Bug(97, "hangfire#1441", "script in an exception"),
            Bug(98, "que-web#9", "script in an error"),
            Bug(99, "sidekiq#1297, sidekiq#2309", "script in an error or an argument"),
            Bug(100, "resque#1946", "templates that do not escape"),
            Bug(101, "redash#4311", "arguments in the logs"),
            Bug(
                102,
                "celery#9997",
                "the broker's password in the logs",
                "There is no broker and no password: what durableq names in its logs is the path of a file.",
            ),
            Bug(103, "que (changes of 0.12.2)", "JSON that is read back makes objects of any class"),
            Bug(104, "dkron#921", "script in the output of a job"),
        ),
    ),
    Group(
        "Herds",
        (
            Bug(105, "stacks#2298", "all retries of one outage come at once"),
            Bug(106, "delayed#26", "the same"),
            Bug(107, "posthog#71361", "what was stuck is taken back and run again in lockstep"),
        ),
    ),
)
BUGS: Final = tuple(bug for group in GROUPS for bug in group.bugs)
