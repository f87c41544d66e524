-- What operators are shown, and may stop.

-- A paused queue is left out of every claim.
ALTER TABLE durableq_queues ADD COLUMN paused_at INTEGER;
ALTER TABLE durableq_queues ADD COLUMN paused_by TEXT;
CREATE INDEX durableq_queues_paused ON durableq_queues (name) WHERE paused_at IS NOT NULL;

-- Where a worker runs, and what.
ALTER TABLE durableq_workers ADD COLUMN host TEXT NOT NULL DEFAULT '';
ALTER TABLE durableq_workers ADD COLUMN software TEXT NOT NULL DEFAULT '';

-- Tries that ended, so that no chart has to look at jobs. By the minute; by longer spans when they are older.
CREATE TABLE durableq_tallies (
    at INTEGER NOT NULL,                   -- begin of the minute, in seconds since the epoch
    queue TEXT NOT NULL,
    task TEXT NOT NULL,
    measure TEXT NOT NULL,                 -- see history.Measure
    bucket INTEGER NOT NULL,               -- see history.BUCKETS
    count INTEGER NOT NULL,
    PRIMARY KEY (at, queue, task, measure, bucket)
) WITHOUT ROWID;

-- Counts a try by how it ended, how long it ran and how long it had waited, in the statement that settles it: a lost
-- lease counts for nothing, and no other statement has to be run (2 us a job; one of its own took 10 for a single job,
-- and handed over the interpreter lock once more). Only settling writes `crashes` of a job that runs; a try that is
-- handed back is none. The buckets are those of history.BUCKETS, in microseconds.
CREATE TRIGGER durableq_jobs_tally AFTER UPDATE OF crashes ON durableq_jobs
WHEN OLD.state = 'running' AND NEW.attempt = OLD.attempt
BEGIN
    INSERT INTO durableq_tallies (at, queue, task, measure, bucket, count)
    SELECT ended / 60000000 * 60, NEW.queue, NEW.task,
        CASE WHEN NEW.state IN ('queued', 'scheduled') THEN 'retried' ELSE NEW.state END,
        CASE
            WHEN us <= 1000 THEN 0 WHEN us <= 2000 THEN 1 WHEN us <= 5000 THEN 2
            WHEN us <= 10000 THEN 3 WHEN us <= 20000 THEN 4 WHEN us <= 50000 THEN 5
            WHEN us <= 100000 THEN 6 WHEN us <= 200000 THEN 7 WHEN us <= 500000 THEN 8
            WHEN us <= 1000000 THEN 9 WHEN us <= 2000000 THEN 10 WHEN us <= 5000000 THEN 11
            WHEN us <= 10000000 THEN 12 WHEN us <= 20000000 THEN 13 WHEN us <= 50000000 THEN 14
            WHEN us <= 100000000 THEN 15 WHEN us <= 200000000 THEN 16 WHEN us <= 500000000 THEN 17
            WHEN us <= 1000000000 THEN 18 WHEN us <= 2000000000 THEN 19 WHEN us <= 5000000000 THEN 20
            ELSE 21
        END, 1
    FROM (SELECT ended, ended - OLD.started_at AS us FROM (
        SELECT coalesce(NEW.finished_at, (
            SELECT finished_at FROM durableq_attempts WHERE seq = OLD.seq AND lease_no = OLD.lease_no
        ), OLD.started_at) AS ended
    ))
    WHERE ended IS NOT NULL
    ON CONFLICT DO UPDATE SET count = count + 1;
    INSERT INTO durableq_tallies (at, queue, task, measure, bucket, count)
    SELECT ended / 60000000 * 60, NEW.queue, NEW.task,
        'waited',
        CASE
            WHEN us <= 1000 THEN 0 WHEN us <= 2000 THEN 1 WHEN us <= 5000 THEN 2
            WHEN us <= 10000 THEN 3 WHEN us <= 20000 THEN 4 WHEN us <= 50000 THEN 5
            WHEN us <= 100000 THEN 6 WHEN us <= 200000 THEN 7 WHEN us <= 500000 THEN 8
            WHEN us <= 1000000 THEN 9 WHEN us <= 2000000 THEN 10 WHEN us <= 5000000 THEN 11
            WHEN us <= 10000000 THEN 12 WHEN us <= 20000000 THEN 13 WHEN us <= 50000000 THEN 14
            WHEN us <= 100000000 THEN 15 WHEN us <= 200000000 THEN 16 WHEN us <= 500000000 THEN 17
            WHEN us <= 1000000000 THEN 18 WHEN us <= 2000000000 THEN 19 WHEN us <= 5000000000 THEN 20
            ELSE 21
        END, 1
    FROM (SELECT ended, OLD.started_at - OLD.run_at AS us FROM (
        SELECT coalesce(NEW.finished_at, (
            SELECT finished_at FROM durableq_attempts WHERE seq = OLD.seq AND lease_no = OLD.lease_no
        ), OLD.started_at) AS ended
    ))
    WHERE ended IS NOT NULL
    ON CONFLICT DO UPDATE SET count = count + 1;
END;
