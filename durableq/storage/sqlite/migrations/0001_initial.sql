-- Tables are prefixed so that they can live in the application's own database file.
-- Instants are integers: microseconds since the Unix epoch, except where "boot" is said.

CREATE TABLE durableq_jobs (
    seq INTEGER PRIMARY KEY AUTOINCREMENT, -- the order of adding; never reused, kept by a retry
    id TEXT NOT NULL UNIQUE,               -- UUIDv7, made by the client
    task TEXT NOT NULL,
    queue TEXT NOT NULL,
    priority INTEGER NOT NULL,             -- higher first
    state TEXT NOT NULL CHECK (
        state IN ('blocked', 'scheduled', 'queued', 'running', 'succeeded', 'dead', 'cancelled')
    ),
    args TEXT NOT NULL,                    -- one JSON object of names
    checksum INTEGER NOT NULL,             -- CRC-32 of args: a flipped bit passes SQLite's own checks
    max_attempts INTEGER NOT NULL CHECK (max_attempts >= 1),
    attempt INTEGER NOT NULL DEFAULT 0 CHECK (attempt >= 0),
    crashes INTEGER NOT NULL DEFAULT 0 CHECK (crashes >= 0),
    lease_no INTEGER NOT NULL DEFAULT 0,   -- how often the row was claimed; only grows; the fence
    worker_id INTEGER,
    created_at INTEGER NOT NULL,
    run_at INTEGER NOT NULL,
    started_at INTEGER,
    finished_at INTEGER,
    result TEXT,
    error_type TEXT,
    error_message TEXT,
    CHECK ((finished_at IS NOT NULL) = (state IN ('succeeded', 'dead', 'cancelled'))),
    CHECK ((worker_id IS NOT NULL) = (state = 'running'))
);

-- Claiming: jobs whose crash count is zero, by queue, task, priority and age.
CREATE INDEX durableq_jobs_claim ON durableq_jobs (queue, task, priority DESC, seq)
    WHERE state = 'queued' AND crashes = 0;
-- Claiming: jobs that have crashed a process before, taken one at a time.
CREATE INDEX durableq_jobs_suspect ON durableq_jobs (priority DESC, seq)
    WHERE state = 'queued' AND crashes > 0;
CREATE INDEX durableq_jobs_due ON durableq_jobs (run_at) WHERE state = 'scheduled';
CREATE INDEX durableq_jobs_running ON durableq_jobs (worker_id) WHERE state = 'running';
-- Pruning, and counting what is finished.
CREATE INDEX durableq_jobs_finished ON durableq_jobs (state, finished_at) WHERE finished_at IS NOT NULL;
-- Listing the states that are rare among many rows, newest first. (OR, not IN: SQLite has to see that
-- "state = 'dead'" implies the condition.)
CREATE INDEX durableq_jobs_failed ON durableq_jobs (state, seq) WHERE state = 'dead' OR state = 'cancelled';

-- One row for each try that did not succeed.
CREATE TABLE durableq_attempts (
    seq INTEGER NOT NULL,
    lease_no INTEGER NOT NULL,
    attempt INTEGER NOT NULL,
    worker_id INTEGER NOT NULL,
    started_at INTEGER NOT NULL,
    finished_at INTEGER NOT NULL,
    error_type TEXT NOT NULL,
    error_message TEXT NOT NULL,
    traceback TEXT NOT NULL,
    PRIMARY KEY (seq, lease_no)
) WITHOUT ROWID;

-- Every process that works on this file. A worker's lease covers all it holds.
CREATE TABLE durableq_workers (
    id INTEGER PRIMARY KEY AUTOINCREMENT,  -- never reused; also the byte of the lock file that it holds
    pid INTEGER NOT NULL,
    boot_id TEXT NOT NULL,
    expires_at INTEGER,                    -- boot time, microseconds; NULL: only adds jobs, holds none
    started_at INTEGER NOT NULL
);

-- Every queue and task name that was ever used. The schema is that of the task's arguments, as JSON.
CREATE TABLE durableq_queues (
    name TEXT PRIMARY KEY
) WITHOUT ROWID;
CREATE TABLE durableq_tasks (
    name TEXT PRIMARY KEY,
    arguments_schema TEXT
) WITHOUT ROWID;

-- Administrative writes, each in the transaction of what it did.
CREATE TABLE durableq_audit (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    at INTEGER NOT NULL,
    who TEXT NOT NULL,
    action TEXT NOT NULL,
    job_id TEXT NOT NULL,
    detail TEXT NOT NULL
);
CREATE INDEX durableq_audit_job ON durableq_audit (job_id);
