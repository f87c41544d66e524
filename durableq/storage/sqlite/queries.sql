-- The life of a job, top to bottom. Each block says which transition it makes and which index serves it.
-- PAUSED is written out in statements.py.
-- Many-at-a-time only: a batch crosses to SQLite as one JSON array, because every call from Python hands over the
-- interpreter lock. SQL as old as SQLite 3.37. Values are bound, never spliced.

-- name: insert_jobs
-- (nothing) -> queued | scheduled. Idempotent by id, so a group may be replayed after a failed COMMIT. For connections
-- of the application; the writer's own form of it is `statements.insert_statement`.
INSERT INTO durableq_jobs (
    id, task, queue, priority, state, args, checksum, max_attempts, created_at, run_at
)
SELECT
    json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]'),
    json_extract(value, '$[3]'), json_extract(value, '$[4]'), json_extract(value, '$[5]'),
    json_extract(value, '$[6]'), json_extract(value, '$[7]'), json_extract(value, '$[8]'),
    json_extract(value, '$[9]')
FROM json_each(:jobs)
WHERE true
ON CONFLICT (id) DO NOTHING;

-- name: insert_special_jobs
-- The same for jobs with more columns. What conflicts with a unique key is left out; `unique_conflicts` finds it.
INSERT INTO durableq_jobs (
    id, task, queue, priority, state, args, checksum, max_attempts, created_at, run_at,
    expires_at, deadline_at, unique_key, unique_covers, result_ttl, tags, settings
)
SELECT
    json_extract(value, '$[0]'), json_extract(value, '$[1]'), json_extract(value, '$[2]'),
    json_extract(value, '$[3]'), json_extract(value, '$[4]'), json_extract(value, '$[5]'),
    json_extract(value, '$[6]'), json_extract(value, '$[7]'), json_extract(value, '$[8]'),
    json_extract(value, '$[9]'), json_extract(value, '$[10]'), json_extract(value, '$[11]'),
    json_extract(value, '$[12]'), json_extract(value, '$[13]'), json_extract(value, '$[14]'),
    json_extract(value, '$[15]'), json_extract(value, '$[16]')
FROM json_each(:jobs)
WHERE true
ON CONFLICT DO NOTHING;

-- name: unique_conflicts
-- Of jobs with a unique key, those that were not stored: [their id, the id of the job that is there]. Index: unique.
SELECT json_group_array(json_array(json_extract(value, '$[0]'), holder.id))
FROM json_each(:claims)
JOIN durableq_jobs AS holder ON holder.unique_key = json_extract(value, '$[1]')
WHERE holder.id <> json_extract(value, '$[0]')
    AND NOT EXISTS (SELECT 1 FROM durableq_jobs WHERE id = json_extract(value, '$[0]'));

-- name: repeated_jobs
-- Of jobs with an idempotency key, those that were there before: [id, the number of the given job, the stored
-- arguments where they differ]. Two may be made in the same microsecond; then other arguments tell them apart.
-- Index: unique id.
SELECT json_group_array(json_array(stored.id, key, nullif(stored.args, json_extract(value, '$[1]'))))
FROM json_each(:keyed)
JOIN durableq_jobs AS stored ON stored.id = json_extract(value, '$[0]')
WHERE stored.created_at <> json_extract(value, '$[2]') OR stored.args <> json_extract(value, '$[1]');

-- name: insert_aliases
INSERT INTO durableq_aliases (id, seq)
SELECT json_extract(value, '$[0]'), job.seq
FROM json_each(:aliases) JOIN durableq_jobs AS job ON job.id = json_extract(value, '$[1]')
WHERE true
ON CONFLICT DO NOTHING;

-- name: replace_jobs
-- What waits takes over the arguments, priority and time of the job that conflicted with it.
UPDATE durableq_jobs SET
    args = newer.args, checksum = newer.checksum, priority = newer.priority, run_at = newer.run_at,
    state = CASE WHEN durableq_jobs.state = 'blocked' THEN 'blocked' ELSE newer.state END,
    max_attempts = newer.max_attempts, expires_at = newer.expires_at, deadline_at = newer.deadline_at,
    result_ttl = newer.result_ttl, tags = newer.tags, settings = newer.settings, created_at = newer.created_at
FROM (
    SELECT
        json_extract(value, '$[0]') AS id, json_extract(value, '$[1][3]') AS priority,
        json_extract(value, '$[1][4]') AS state, json_extract(value, '$[1][5]') AS args,
        json_extract(value, '$[1][6]') AS checksum, json_extract(value, '$[1][7]') AS max_attempts,
        json_extract(value, '$[1][8]') AS created_at, json_extract(value, '$[1][9]') AS run_at,
        json_extract(value, '$[1][10]') AS expires_at, json_extract(value, '$[1][11]') AS deadline_at,
        json_extract(value, '$[1][14]') AS result_ttl, json_extract(value, '$[1][15]') AS tags,
        json_extract(value, '$[1][16]') AS settings
    FROM json_each(:replacements)
) AS newer
WHERE durableq_jobs.id = newer.id AND durableq_jobs.state IN ('blocked', 'scheduled', 'queued');

-- name: insert_queue_names
INSERT INTO durableq_queues (name) SELECT value FROM json_each(:names) WHERE true ON CONFLICT DO NOTHING;

-- name: insert_task_names
INSERT INTO durableq_tasks (name, arguments_schema)
SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]') FROM json_each(:names)
WHERE true
ON CONFLICT (name) DO UPDATE SET arguments_schema = excluded.arguments_schema
WHERE excluded.arguments_schema IS NOT arguments_schema;

-- name: promote_due
-- scheduled -> queued, the earliest first. Index: due.
UPDATE durableq_jobs SET state = 'queued'
WHERE seq IN (
    SELECT seq FROM durableq_jobs
    WHERE state = 'scheduled' AND run_at <= :now
    ORDER BY run_at LIMIT :limit
);

-- name: next_due
-- Index: due.
SELECT min(run_at) FROM durableq_jobs WHERE state = 'scheduled';

-- name: next_limit
-- When the next job expires, or should be finished. Index: expiring, deadline.
SELECT min(at) FROM (
    SELECT min(expires_at) AS at FROM durableq_jobs WHERE expires_at IS NOT NULL
    UNION ALL SELECT min(deadline_at) AS at FROM durableq_jobs WHERE deadline_at IS NOT NULL
);

-- name: choose_lane
-- What one runner may claim, by priority and age. Index: claim; the early stop is a property of its sorter.
-- (Put together once per lane, see statements.py.)
SELECT * FROM (
    SELECT seq, lease_no + 1 AS lease_no, id, task, queue, args, checksum, attempt + 1 AS attempt,
        max_attempts, crashes, created_at, priority, expires_at, deadline_at, settings
    FROM durableq_jobs
    WHERE state = 'queued' AND crashes = 0
        AND queue IN (SELECT value FROM json_each(:queues) WHERE value NOT IN PAUSED)
        AND task IN (SELECT value FROM json_each(:tasks_LANE))
    ORDER BY priority DESC, seq
    LIMIT :limit_LANE
)

-- name: choose_suspect
-- One job that has crashed a process before. Index: suspect.
SELECT * FROM (
    SELECT seq, lease_no + 1 AS lease_no, id, task, queue, args, checksum, attempt + 1 AS attempt,
        max_attempts, crashes, created_at, priority, expires_at, deadline_at, settings
    FROM durableq_jobs
    WHERE state = 'queued' AND crashes > 0
        AND queue IN (SELECT value FROM json_each(:queues) WHERE value NOT IN PAUSED)
        AND task IN (SELECT value FROM json_each(:suspect_tasks))
    ORDER BY priority DESC, seq
    LIMIT 1
)

-- name: take
-- queued -> running, in the transaction of the choice. Index: primary key.
UPDATE durableq_jobs SET
    state = 'running', attempt = attempt + 1, lease_no = lease_no + 1, worker_id = :worker_id, started_at = :now
WHERE seq IN (SELECT value FROM json_each(:seqs)) AND state = 'queued';

-- name: note_start
-- What a start means for jobs with limits or unique keys: they cannot expire any more. Index: primary key.
UPDATE durableq_jobs SET
    expires_at = NULL, unique_key = CASE WHEN unique_covers & 1 THEN unique_key END
WHERE seq IN (SELECT value FROM json_each(:seqs)) AND settings IS NOT NULL;

-- name: insert_attempts
-- History of the tries that failed, fenced like the settle that follows. Index: primary key.
INSERT INTO durableq_attempts (
    seq, lease_no, attempt, worker_id, started_at, finished_at, error_type, error_message, traceback
)
SELECT job.seq, job.lease_no, job.attempt, job.worker_id, job.started_at, :now,
    json_extract(value, '$[2]'), json_extract(value, '$[3]'), json_extract(value, '$[4]')
FROM json_each(:attempts)
JOIN durableq_jobs AS job
    ON job.seq = json_extract(value, '$[0]') AND job.lease_no = json_extract(value, '$[1]')
    AND job.state = 'running'
WHERE true
ON CONFLICT DO NOTHING;

-- name: settle
-- running -> succeeded | queued | scheduled | dead | cancelled, for leases that still hold. Index: primary key. A trigger
-- counts each in durableq_tallies, which is why it comes after `insert_attempts`.
UPDATE durableq_jobs SET
    state = outcome.state,
    attempt = attempt - outcome.handed_back,
    crashes = crashes + outcome.crashed,
    worker_id = NULL,
    run_at = coalesce(outcome.run_at, durableq_jobs.run_at),
    finished_at = outcome.finished_at,
    result = outcome.result,
    error_type = CASE WHEN outcome.handed_back THEN durableq_jobs.error_type ELSE outcome.error_type END,
    error_message = CASE WHEN outcome.handed_back THEN durableq_jobs.error_message ELSE outcome.error_message END
FROM (
    SELECT
        json_extract(value, '$[0]') AS seq, json_extract(value, '$[1]') AS lease_no,
        json_extract(value, '$[2]') AS state, json_extract(value, '$[3]') AS handed_back,
        json_extract(value, '$[4]') AS crashed, json_extract(value, '$[5]') AS run_at,
        json_extract(value, '$[6]') AS finished_at, json_extract(value, '$[7]') AS result,
        json_extract(value, '$[8]') AS error_type, json_extract(value, '$[9]') AS error_message
    FROM json_each(:outcomes)
) AS outcome
WHERE durableq_jobs.seq = outcome.seq
    AND durableq_jobs.lease_no = outcome.lease_no
    AND durableq_jobs.state = 'running';

-- name: succeed
-- running -> succeeded, for leases of one number, of jobs that returned nothing: what most settlements are, in 0.7 of
-- the time that `settle` takes. Writes `crashes` so that the trigger counts it. Index: primary key.
UPDATE durableq_jobs SET
    state = 'succeeded', crashes = crashes, worker_id = NULL, finished_at = :now,
    result = NULL, error_type = NULL, error_message = NULL
WHERE seq IN (SELECT value FROM json_each(:seqs)) AND lease_no = :lease_no AND state = 'running';

-- name: cancel_as_asked
-- queued | scheduled -> cancelled, for what was asked to end while it ran: it does not go back to waiting.
UPDATE durableq_jobs SET state = 'cancelled', finished_at = :now
WHERE seq IN (SELECT value FROM json_each(:seqs)) AND cancel_requested_at IS NOT NULL
    AND state IN ('queued', 'scheduled');

-- name: note_end
-- What the end means for jobs with limits, unique keys or results to be dropped. Index: primary key.
UPDATE durableq_jobs SET
    expires_at = NULL, deadline_at = NULL, cancel_requested_at = NULL,
    result_expires_at = CASE WHEN result IS NOT NULL THEN finished_at + result_ttl END,
    unique_key = CASE
        WHEN unique_covers & CASE state WHEN 'succeeded' THEN 2 WHEN 'dead' THEN 4 ELSE 8 END THEN unique_key
    END
WHERE seq IN (SELECT value FROM json_each(:seqs)) AND finished_at IS NOT NULL;

-- name: count_missing
-- How many of the given jobs are not stored. Index: unique id.
SELECT count(*) FROM json_each(:ids) WHERE NOT EXISTS (SELECT 1 FROM durableq_jobs WHERE id = value);

-- name: lost_leases
-- Those of the given leases that no longer hold. Index: primary key.
SELECT json_group_array(json_extract(value, '$[0]'))
FROM json_each(:outcomes)
WHERE NOT EXISTS (
    SELECT 1 FROM durableq_jobs
    WHERE seq = json_extract(value, '$[0]') AND lease_no = json_extract(value, '$[1]') AND state = 'running'
);

-- name: settle_waiting
-- blocked | scheduled | queued -> dead | cancelled, for what nobody started or finished in time; `note_end` follows.
-- Index: primary key.
UPDATE durableq_jobs SET
    state = outcome.state, finished_at = :now, error_type = outcome.error_type, error_message = outcome.error_message
FROM (
    SELECT
        json_extract(value, '$[0]') AS seq, json_extract(value, '$[2]') AS state,
        json_extract(value, '$[8]') AS error_type, json_extract(value, '$[9]') AS error_message
    FROM json_each(:outcomes)
) AS outcome
WHERE durableq_jobs.seq = outcome.seq AND durableq_jobs.state IN ('blocked', 'scheduled', 'queued');

-- name: overdue
-- What waits though its time to start, or to finish, is over. Index: expiring, deadline. (Each limited by itself, so
-- that a hundred thousand of them cost no more than a few.)
SELECT seq, lease_no, id, task, queue, args, checksum, attempt, max_attempts, crashes, created_at, priority,
    expires_at, deadline_at, settings
FROM durableq_jobs WHERE seq IN (
    SELECT * FROM (
        SELECT seq FROM durableq_jobs
        WHERE expires_at <= :now AND state IN ('blocked', 'scheduled', 'queued')
        LIMIT :limit
    )
    UNION
    SELECT * FROM (
        SELECT seq FROM durableq_jobs
        WHERE deadline_at <= :now AND state IN ('blocked', 'scheduled', 'queued')
        LIMIT :limit
    )
) LIMIT :limit;

-- name: write_progress
-- The latest word of running jobs, for leases that still hold. Index: primary key.
UPDATE durableq_jobs SET progress = note.progress
FROM (
    SELECT
        json_extract(value, '$[0]') AS seq, json_extract(value, '$[1]') AS lease_no,
        json_extract(value, '$[2]') AS progress
    FROM json_each(:progress)
) AS note
WHERE durableq_jobs.seq = note.seq AND durableq_jobs.lease_no = note.lease_no AND durableq_jobs.state = 'running';

-- name: insert_logs
-- What running jobs said, for leases that still hold. Index: primary key.
INSERT INTO durableq_logs (seq, lease_no, no, at, message)
SELECT job.seq, job.lease_no, json_extract(value, '$[2]'), json_extract(value, '$[3]'), json_extract(value, '$[4]')
FROM json_each(:logs)
JOIN durableq_jobs AS job
    ON job.seq = json_extract(value, '$[0]') AND job.lease_no = json_extract(value, '$[1]') AND job.state = 'running'
WHERE true
ON CONFLICT DO NOTHING;

-- name: cancelling
-- Running jobs whose end was asked for. Index: cancelling.
SELECT worker_id, seq, lease_no FROM durableq_jobs
WHERE cancel_requested_at IS NOT NULL AND state = 'running';

-- name: state_of_lease
-- What has become of one claim: its job's state, when the job was not claimed again. Index: primary key.
SELECT state FROM durableq_jobs WHERE seq = :seq AND lease_no = :lease_no;

-- name: finished_among
-- Of some ids, those whose job is finished, or gone. Index: unique id, primary key.
SELECT value FROM json_each(:ids)
WHERE NOT EXISTS (
    SELECT 1 FROM durableq_jobs WHERE finished_at IS NULL AND seq = coalesce(
        (SELECT seq FROM durableq_jobs WHERE id = value), (SELECT seq FROM durableq_aliases WHERE id = value)
    )
);

-- name: register_worker
INSERT INTO durableq_workers (pid, boot_id, expires_at, started_at) VALUES (:pid, :boot_id, :expires_at, :now);

-- name: describe_worker
UPDATE durableq_workers SET host = :host, software = :software WHERE id = :worker_id;

-- name: renew_worker
UPDATE durableq_workers SET expires_at = :expires_at WHERE id = :worker_id;

-- name: delete_worker
DELETE FROM durableq_workers WHERE id = :worker_id;

-- name: list_workers
SELECT id, boot_id, expires_at FROM durableq_workers;

-- name: leases_of_worker
-- Everything a worker holds. Index: running.
SELECT seq, lease_no, id, task, queue, args, checksum, attempt, max_attempts, crashes, created_at, priority,
    NULL, deadline_at, settings
FROM durableq_jobs WHERE state = 'running' AND worker_id = :worker_id ORDER BY seq;

-- name: strays
-- Ids that running rows name though no such worker is registered. Index: running.
SELECT DISTINCT worker_id FROM durableq_jobs
WHERE state = 'running' AND worker_id NOT IN (SELECT id FROM durableq_workers);

-- name: restart_job
-- dead | cancelled -> queued, as new, with its history kept, and fresh deadlines. It claims its unique key again.
UPDATE durableq_jobs SET
    state = 'queued', attempt = 0, crashes = 0, run_at = :now, started_at = NULL, finished_at = NULL, result = NULL,
    error_type = NULL, error_message = NULL, progress = NULL, cancel_requested_at = NULL, result_expires_at = NULL,
    expires_at = CASE WHEN json_valid(settings) THEN :now + json_extract(settings, '$.expires') END,
    deadline_at = CASE WHEN json_valid(settings) THEN :now + json_extract(settings, '$.deadline') END,
    unique_key = coalesce(unique_key, CASE WHEN json_valid(settings) THEN json_extract(settings, '$.unique') END),
    args = coalesce(:args, args), checksum = coalesce(:checksum, checksum)
WHERE id = :id;

-- name: rival
-- Who holds the unique key that a job would claim again, and the key. Index: unique.
SELECT holder.id, holder.unique_key FROM durableq_jobs AS job
JOIN durableq_jobs AS holder ON holder.unique_key = json_extract(job.settings, '$.unique')
WHERE job.id = :id;

-- name: run_now
-- scheduled -> queued, ahead of its time.
UPDATE durableq_jobs SET state = 'queued', run_at = :now WHERE id = :id;

-- name: cancel_job
-- blocked | scheduled | queued -> cancelled; `note_end` follows.
UPDATE durableq_jobs SET state = 'cancelled', finished_at = :now WHERE id = :id;

-- name: forget_requests
-- Of jobs that have ended otherwise. Index: cancelling.
UPDATE durableq_jobs SET cancel_requested_at = NULL WHERE cancel_requested_at IS NOT NULL AND state <> 'running';

-- name: request_cancel
-- A running job shall end; its worker is told, and whatever comes of it does not go back to waiting.
UPDATE durableq_jobs SET cancel_requested_at = coalesce(cancel_requested_at, :now)
WHERE id = :id AND state = 'running';

-- name: delete_job
DELETE FROM durableq_jobs WHERE id = :id;

-- name: delete_attempts
DELETE FROM durableq_attempts WHERE seq = (SELECT seq FROM durableq_jobs WHERE id = :id);

-- name: delete_logs
DELETE FROM durableq_logs WHERE seq = (SELECT seq FROM durableq_jobs WHERE id = :id);

-- name: delete_aliases
DELETE FROM durableq_aliases WHERE seq = (SELECT seq FROM durableq_jobs WHERE id = :id);

-- name: prunable
-- Finished long enough ago. Index: finished.
SELECT json_group_array(seq) FROM (
    SELECT seq FROM durableq_jobs
    WHERE finished_at IS NOT NULL AND state = :state AND finished_at < :before LIMIT :limit
);

-- name: prune_attempts
DELETE FROM durableq_attempts WHERE seq IN (SELECT value FROM json_each(:seqs));

-- name: prune_logs
DELETE FROM durableq_logs WHERE seq IN (SELECT value FROM json_each(:seqs));

-- name: prune_aliases
DELETE FROM durableq_aliases WHERE seq IN (SELECT value FROM json_each(:seqs));

-- name: drop_results
-- Return values past their time to live. Index: result.
UPDATE durableq_jobs SET result = NULL, result_expires_at = NULL WHERE seq IN (
    SELECT seq FROM durableq_jobs WHERE result_expires_at <= :now LIMIT :limit
);

-- name: prune_jobs
DELETE FROM durableq_jobs WHERE seq IN (SELECT value FROM json_each(:seqs)) AND finished_at IS NOT NULL;

-- name: insert_audit
INSERT INTO durableq_audit (at, who, action, job_id, detail) VALUES (:now, :who, :action, :id, :detail);

-- name: job_columns
-- The columns of models.Job, in the order of rows.job_from_row.
SELECT id, task, queue, priority, state, args, max_attempts, created_at, run_at, attempt, crashes, started_at,
    finished_at, result, error_type, error_message, expires_at, deadline_at, unique_key, unique_covers, result_ttl,
    tags, settings, progress, CASE WHEN state = 'running' THEN cancel_requested_at END, seq
FROM durableq_jobs

-- name: by_id
-- A job by its id, or by one that was handed out in its stead.
WHERE seq = coalesce(
    (SELECT seq FROM durableq_jobs WHERE id = :id), (SELECT seq FROM durableq_aliases WHERE id = :id)
)

-- name: attempts_of_job
SELECT lease_no, attempt, worker_id, started_at, finished_at, error_type, error_message, traceback
FROM durableq_attempts WHERE seq = coalesce(
    (SELECT seq FROM durableq_jobs WHERE id = :id), (SELECT seq FROM durableq_aliases WHERE id = :id)
) ORDER BY lease_no;

-- name: logs_of_job
SELECT lease_no, at, message FROM durableq_logs WHERE seq = coalesce(
    (SELECT seq FROM durableq_jobs WHERE id = :id), (SELECT seq FROM durableq_aliases WHERE id = :id)
) ORDER BY lease_no, no LIMIT -1 OFFSET :skip;

-- name: audit_of_job
SELECT at, who, action, job_id, detail FROM durableq_audit WHERE job_id IN (
    :id, (SELECT job.id FROM durableq_aliases AS alias JOIN durableq_jobs AS job USING (seq) WHERE alias.id = :id)
) ORDER BY seq;

-- name: count_states
-- Each state counted up to a limit. Index: claim, suspect, due, running, finished.
SELECT 'queued', count(*) FROM (
    SELECT 1 FROM (
        SELECT 1 FROM durableq_jobs WHERE state = 'queued' AND crashes = 0
        UNION ALL SELECT 1 FROM durableq_jobs WHERE state = 'queued' AND crashes > 0
    ) LIMIT :at_most
)
UNION ALL SELECT 'scheduled', count(*) FROM (SELECT 1 FROM durableq_jobs WHERE state = 'scheduled' LIMIT :at_most)
UNION ALL SELECT 'running', count(*) FROM (SELECT 1 FROM durableq_jobs WHERE state = 'running' LIMIT :at_most)
UNION ALL SELECT 'succeeded', count(*) FROM (
    SELECT 1 FROM durableq_jobs WHERE finished_at IS NOT NULL AND state = 'succeeded' LIMIT :at_most
)
UNION ALL SELECT 'dead', count(*) FROM (
    SELECT 1 FROM durableq_jobs WHERE finished_at IS NOT NULL AND state = 'dead' LIMIT :at_most
)
UNION ALL SELECT 'cancelled', count(*) FROM (
    SELECT 1 FROM durableq_jobs WHERE finished_at IS NOT NULL AND state = 'cancelled' LIMIT :at_most
);

-- name: runnable
-- Whether anything queued, running or due is left among these tasks, in queues that are not paused. Index: claim, suspect, running, due.
SELECT EXISTS (
    SELECT 1 FROM durableq_jobs WHERE state = 'queued' AND crashes = 0
        AND queue IN (SELECT value FROM json_each(:queues) WHERE value NOT IN PAUSED) AND task IN (SELECT value FROM json_each(:tasks))
) OR EXISTS (
    SELECT 1 FROM durableq_jobs WHERE state = 'queued' AND crashes > 0
        AND queue IN (SELECT value FROM json_each(:queues) WHERE value NOT IN PAUSED) AND task IN (SELECT value FROM json_each(:tasks))
) OR EXISTS (
    SELECT 1 FROM durableq_jobs WHERE state = 'running'
) OR EXISTS (
    SELECT 1 FROM durableq_jobs WHERE state = 'scheduled' AND run_at <= :now
        AND queue IN (SELECT value FROM json_each(:queues) WHERE value NOT IN PAUSED) AND task IN (SELECT value FROM json_each(:tasks))
);

-- name: oldest_due
-- By queue and task: since when the job has been due that is next. Goes from the first job of one to that of the next,
-- and looks at those that have crashed a process before. Indexes: claim, suspect.
WITH RECURSIVE head(seq) AS (
    SELECT * FROM (
        SELECT seq FROM durableq_jobs WHERE state = 'queued' AND crashes = 0
        ORDER BY queue, task, priority DESC, seq LIMIT 1
    )
    UNION ALL
    SELECT coalesce((
        SELECT next.seq FROM durableq_jobs AS next
        WHERE next.state = 'queued' AND next.crashes = 0 AND next.queue = here.queue AND next.task > here.task
        ORDER BY next.task, next.priority DESC, next.seq LIMIT 1
    ), (
        SELECT next.seq FROM durableq_jobs AS next
        WHERE next.state = 'queued' AND next.crashes = 0 AND next.queue > here.queue
        ORDER BY next.queue, next.task, next.priority DESC, next.seq LIMIT 1
    )) FROM head JOIN durableq_jobs AS here ON here.seq = head.seq
    LIMIT 1000
), suspect(seq) AS (
    SELECT seq FROM durableq_jobs WHERE state = 'queued' AND crashes > 0 ORDER BY priority DESC, seq LIMIT 100
)
SELECT queue, task, min(run_at), queue IN PAUSED
FROM (SELECT seq FROM head UNION ALL SELECT seq FROM suspect) JOIN durableq_jobs USING (seq) GROUP BY queue, task;

-- name: queue_reports
-- Of each queue: what waits, up to a limit, what runs, and since when and by whom it is paused. Index: claim, suspect,
-- running.
WITH suspects AS MATERIALIZED (
    SELECT queue, count(*) AS number FROM durableq_jobs WHERE state = 'queued' AND crashes > 0 GROUP BY queue
), busy AS MATERIALIZED (
    SELECT queue, count(*) AS number FROM durableq_jobs WHERE state = 'running' GROUP BY queue
)
SELECT known.name,
    (SELECT count(*) FROM (
        SELECT 1 FROM durableq_jobs WHERE state = 'queued' AND crashes = 0 AND queue = known.name LIMIT :one_more
    )) + coalesce((SELECT number FROM suspects WHERE queue = known.name), 0),
    coalesce((SELECT number FROM busy WHERE queue = known.name), 0),
    known.paused_at, known.paused_by
FROM durableq_queues AS known ORDER BY known.name;

-- name: pause_queue
INSERT INTO durableq_queues (name, paused_at, paused_by) VALUES (:queue, :now, :who)
ON CONFLICT (name) DO UPDATE SET paused_at = excluded.paused_at, paused_by = excluded.paused_by
WHERE paused_at IS NULL;

-- name: resume_queue
UPDATE durableq_queues SET paused_at = NULL, paused_by = NULL WHERE name = :queue AND paused_at IS NOT NULL;

-- name: worker_reports
-- Every process, and how many jobs it holds. Index: running.
SELECT worker.id, worker.pid, worker.boot_id, worker.expires_at, worker.started_at, worker.host, worker.software,
    (SELECT count(*) FROM durableq_jobs WHERE state = 'running' AND worker_id = worker.id)
FROM durableq_workers AS worker ORDER BY worker.started_at, worker.id;

-- name: dead_letters
-- The newest dead jobs by task and type of error. Index: failed.
SELECT kind.task, kind.error_type, kind.number, kind.first_at, kind.last_at, latest.id, latest.error_message
FROM (
    SELECT task, error_type, count(*) AS number, min(finished_at) AS first_at, max(finished_at) AS last_at,
        max(seq) AS latest_seq
    FROM (
        SELECT seq, task, error_type, finished_at FROM durableq_jobs WHERE state = 'dead' ORDER BY seq DESC LIMIT :look_at
    )
    GROUP BY task, error_type
) AS kind
JOIN durableq_jobs AS latest ON latest.seq = kind.latest_seq
ORDER BY kind.number DESC, kind.last_at DESC;

-- name: tallies
-- Summed up in one way: what it does not tell apart is empty, and the begin that of all. Index: primary key.
-- (Put together once per way, see statements.py: a scan for each is sooner done than all from the finest sums.)
SELECT WAY, STEP, QUEUE, TASK, measure, bucket, sum(count)
FROM durableq_tallies
WHERE at >= :since AND at < :until
    AND (:queue IS NULL OR queue = :queue) AND (:task IS NULL OR task = :task)
GROUP BY GROUPED measure, bucket

-- name: oldest_fine_tally
-- Before some moment: the first that is finer than a span. Index: primary key.
SELECT min(at) FROM durableq_tallies WHERE at < :before AND at % :span <> 0;

-- name: condense_tallies
-- Sums up those of one span; `drop_condensed` follows. Index: primary key.
INSERT INTO durableq_tallies (at, queue, task, measure, bucket, count)
SELECT :begin, queue, task, measure, bucket, sum(count) FROM durableq_tallies
WHERE at > :begin AND at < :begin + :span
GROUP BY queue, task, measure, bucket
ON CONFLICT DO UPDATE SET count = count + excluded.count;

-- name: drop_condensed
DELETE FROM durableq_tallies WHERE at > :begin AND at < :begin + :span;

-- name: drop_tallies
-- Too old, or of a clock that was ahead. Index: primary key.
DELETE FROM durableq_tallies WHERE at < :before OR at > :after;

-- name: audit
-- Index: primary key.
SELECT at, who, action, job_id, detail, seq FROM durableq_audit
WHERE :cursor IS NULL OR seq < :cursor ORDER BY seq DESC LIMIT :limit;

-- name: live_tasks
-- Names with jobs that wait to be claimed. Index: claim, suspect.
SELECT name FROM durableq_tasks AS known WHERE EXISTS (
    SELECT 1 FROM durableq_jobs WHERE state = 'queued' AND crashes = 0 AND task = known.name
        AND queue IN (SELECT name FROM durableq_queues)
) OR EXISTS (
    SELECT 1 FROM durableq_jobs WHERE state = 'queued' AND crashes > 0 AND task = known.name
);

-- name: payloads
-- The next jobs, up to so many characters of arguments and results; values that begin with the prefix are left out.
-- Index: primary key.
SELECT seq, id, task, checksum,
    CASE WHEN substr(args, 1, length(:prefix)) <> :prefix THEN args END,
    CASE WHEN substr(result, 1, length(:prefix)) <> :prefix THEN result END
FROM durableq_jobs
JOIN (
    SELECT seq, sum(characters) OVER (ORDER BY seq) AS characters_so_far
    FROM (
        SELECT seq, length(args) + coalesce(length(result), 0) AS characters
        FROM durableq_jobs WHERE seq > :after ORDER BY seq LIMIT :limit
    )
) USING (seq)
WHERE characters_so_far <= :characters OR seq = (SELECT min(seq) FROM durableq_jobs WHERE seq > :after)
ORDER BY seq;

-- name: rewrite_args
-- Arguments that are still the same -> the same, encrypted otherwise. Index: primary key.
UPDATE durableq_jobs SET args = json_extract(value, '$[2]'), checksum = json_extract(value, '$[3]')
FROM json_each(:rewrites)
WHERE seq = json_extract(value, '$[0]') AND args = json_extract(value, '$[1]');

-- name: rewrite_results
-- The same for results. Index: primary key.
UPDATE durableq_jobs SET result = json_extract(value, '$[2]')
FROM json_each(:rewrites)
WHERE seq = json_extract(value, '$[0]') AND result = json_extract(value, '$[1]');
