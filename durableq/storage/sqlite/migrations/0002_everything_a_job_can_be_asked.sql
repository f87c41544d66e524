-- What a job can be asked for beside its arguments. All of it is NULL for a plain job. The indexes name none of the
-- columns that claiming and settling write: each that does would be asked at every transition of every job.

ALTER TABLE durableq_jobs ADD COLUMN expires_at INTEGER;          -- not started by then: cancelled; cleared by the start
ALTER TABLE durableq_jobs ADD COLUMN deadline_at INTEGER;         -- not finished by then: dead; cleared by the end
ALTER TABLE durableq_jobs ADD COLUMN unique_key TEXT;             -- cleared when the job leaves the states it covers
ALTER TABLE durableq_jobs ADD COLUMN unique_covers INTEGER;       -- see models.COVERS
ALTER TABLE durableq_jobs ADD COLUMN result_ttl INTEGER;          -- microseconds
ALTER TABLE durableq_jobs ADD COLUMN result_expires_at INTEGER;
ALTER TABLE durableq_jobs ADD COLUMN tags TEXT;                   -- a JSON array
ALTER TABLE durableq_jobs ADD COLUMN settings TEXT;               -- a JSON object of what only the worker reads
ALTER TABLE durableq_jobs ADD COLUMN progress TEXT;               -- a JSON array: done, total, message
ALTER TABLE durableq_jobs ADD COLUMN cancel_requested_at INTEGER; -- somebody asked for the end of a running job

CREATE UNIQUE INDEX durableq_jobs_unique ON durableq_jobs (unique_key) WHERE unique_key IS NOT NULL;
CREATE INDEX durableq_jobs_expiring ON durableq_jobs (expires_at) WHERE expires_at IS NOT NULL;
CREATE INDEX durableq_jobs_deadline ON durableq_jobs (deadline_at) WHERE deadline_at IS NOT NULL;
CREATE INDEX durableq_jobs_cancelling ON durableq_jobs (cancel_requested_at) WHERE cancel_requested_at IS NOT NULL;
CREATE INDEX durableq_jobs_result ON durableq_jobs (result_expires_at) WHERE result_expires_at IS NOT NULL;

-- Ids that were handed out for jobs which turned out to be there already.
CREATE TABLE durableq_aliases (
    id TEXT PRIMARY KEY,
    seq INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX durableq_aliases_seq ON durableq_aliases (seq);

-- What jobs said by current_job().log.
CREATE TABLE durableq_logs (
    seq INTEGER NOT NULL,
    lease_no INTEGER NOT NULL,
    no INTEGER NOT NULL,
    at INTEGER NOT NULL,
    message TEXT NOT NULL,
    PRIMARY KEY (seq, lease_no, no)
) WITHOUT ROWID;
