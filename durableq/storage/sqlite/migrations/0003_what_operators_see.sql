-- What operators are shown, and may stop.

-- A paused queue is left out of every claim.
ALTER TABLE durableq_queues ADD COLUMN paused_at INTEGER;
ALTER TABLE durableq_queues ADD COLUMN paused_by TEXT;
CREATE INDEX durableq_queues_paused ON durableq_queues (name) WHERE paused_at IS NOT NULL;

-- Where a worker runs, and what.
ALTER TABLE durableq_workers ADD COLUMN host TEXT NOT NULL DEFAULT '';
ALTER TABLE durableq_workers ADD COLUMN software TEXT NOT NULL DEFAULT '';

-- Tries that ended, counted in the transactions that settle them, so that no chart has to look at jobs. By the minute;
-- by the hour once they are a day old.
CREATE TABLE durableq_tallies (
    at INTEGER NOT NULL,                   -- begin of the minute, in seconds since the epoch
    queue TEXT NOT NULL,
    task TEXT NOT NULL,
    measure TEXT NOT NULL,                 -- see history.Measure
    bucket INTEGER NOT NULL,               -- see history.BUCKETS
    count INTEGER NOT NULL,
    PRIMARY KEY (at, queue, task, measure, bucket)
) WITHOUT ROWID;
