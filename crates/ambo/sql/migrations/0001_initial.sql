-- Tables of Ambo: a table for each fact, inserted and deleted, not updated.
-- The schema is written `ambo` here and renamed when it is installed under another name.

create type ambo.status as enum ('succeeded', 'failed', 'cancelled', 'dead');

-- One row: which database this is, and the settings that hold for all workers.
create table ambo.installation (
    only_row boolean primary key default true check (only_row),
    schema_version integer not null,
    -- The migration that the tables have come to: the functions follow in a transaction of their own.
    tables_version integer not null,
    -- The oldest version of a program that this schema serves.
    serves_from integer not null,
    -- A restored or cloned database differs in one of these two and starts paused until `ambo adopt`.
    system_identifier bigint not null,
    database_oid oid not null,
    -- How long a worker may be silent, its connection open, before its runs are given to others.
    lease interval not null default '15 seconds' check (lease >= '2 seconds'),
    -- History older than this is dropped, a partition at a time.
    retention interval not null default '30 days' check (retention >= '1 hour'),
    -- How long an idempotency key names its run at least; never shorter than the run.
    key_lifetime interval not null default '30 days' check (key_lifetime > '0'),
    -- How long runs that are pinned to a version wait for a worker of it, once there is none.
    pin_grace interval not null default '1 minute' check (pin_grace >= '0'),
    -- How long the dead are kept; null: as long as other history.
    dead_lifetime interval check (dead_lifetime > '0'),
    partition_width interval not null default '1 day' check (partition_width >= '1 hour'),
    partitions_ahead integer not null default 7 check (partitions_ahead between 2 and 100)
);

-- What was asked: immutable.
create table ambo.run (
    id uuid not null,
    attempts_max smallint not null,
    priority smallint not null,
    weight smallint not null default 1,
    workflow text collate "C" not null,
    queue text collate "C" not null,
    input json not null,
    key text collate "C",
    -- Whose it is: what a managed queue is fair to, limits and keeps in order.
    group_key text collate "C",
    timeout interval,
    attributes jsonb,
    -- The run that started this one and awaits or at least owns it; null if it was detached.
    parent_id uuid,
    -- It is claimed for the first time by then, or not at all.
    start_by timestamptz,
    -- True: its key names one run at a time that lives, also when it lives again.
    dedup boolean,
    primary key (id)
) partition by range (id);

-- Where runs of a rare workflow, queue or group may be: vacuum writes a few hundred bytes for each 32 pages of runs, enqueues nothing.
create index run_rare on ambo.run using brin (
    workflow text_bloom_ops (n_distinct_per_range = 200), queue text_bloom_ops (n_distinct_per_range = 200),
    group_key text_bloom_ops (n_distinct_per_range = 1000))
    with (pages_per_range = 32);

-- How it ended: immutable. `attempt` is the claim under which it ended.
create table ambo.outcome (
    run_id uuid not null,
    ended_at timestamptz not null default now(),
    attempt integer not null,
    status ambo.status not null,
    output json,
    error json,
    primary key (run_id)
) partition by range (run_id);

-- What an operator looks for: the few that did not succeed. The many that did cost nothing here.
create index outcome_status on ambo.outcome (status, run_id) where status <> 'succeeded';

-- The children of a run that it did not detach. Apart from `run`, where an index on the parent would cost every enqueue.
create table ambo.child (
    run_id uuid not null,
    child_id uuid not null,
    -- True: a member of the fan-in after which the run comes; the run did not start it.
    member boolean,
    primary key (run_id, child_id)
) partition by range (run_id);

-- What a run is searched by: the attributes that it was given, as in `run`, and those that it has set since, as in its
-- checkpoints. Apart from both, so that a run without attributes costs nothing here.
create table ambo.attribute (
    run_id uuid not null,
    attributes jsonb not null,
    primary key (run_id)
) partition by range (run_id);
create index attribute_attributes on ambo.attribute using gin (attributes jsonb_path_ops);
-- Forks, which may refer to objects that are older than they are.
create index attribute_forks on ambo.attribute (run_id) where attributes ? 'forked_from';

-- What was done: append-only. A position is a path: `3`, or `3.1` for the first call of the branch made at 3.
create table ambo.checkpoint (
    run_id uuid not null,
    recorded_at timestamptz not null default now(),
    attempt integer not null,
    elapsed_ms integer not null,
    position text collate "C" not null,
    name text collate "C" not null,
    output json,
    error json,
    primary key (run_id, position)
) partition by range (run_id);

-- The order of claims. Drawn after the transaction has its xid (see functions/enqueue.sql), cached by nobody.
create sequence ambo.ready_seq as bigint cache 1;

-- Runs that may be claimed now; deleted by the claim. A lane is (queue, workflow, priority). Runs that are pinned to a
-- version of their workers, and those of a group, stand in lanes of their own, under the name that ambo.lane gives.
-- `xid` is the top-level transaction that made the row: by it a claimer finds what committed late.
--
-- A live run has exactly one row that carries it: here, in claim or in timer. A row that only `wakes` is beside that:
-- whatever may wake a run inserts one, unconditionally, in its own transaction, and the claimer that takes it
-- finds out where the run is. It carries nothing, so it may be dropped where there is nothing to wake.
--
-- Vacuumed often and without haste, here and in the tables below through which runs pass: at this pace, some 100,000 dead
-- rows a second, it keeps up, and what an old snapshot has left does not take a core and the disk from those who work.
create table ambo.ready (
    seq bigint not null,
    xid xid8 not null,
    run_id uuid not null,
    attempt integer not null,
    losses smallint not null,
    priority smallint not null,
    weight smallint not null default 1,
    queue text collate "C" not null,
    workflow text collate "C" not null,
    timeout interval,
    deadline timestamptz,
    wakes boolean not null default false,
    start_by timestamptz,
    primary key (queue, workflow, priority, seq)
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000,
        autovacuum_vacuum_cost_delay = 2, autovacuum_vacuum_cost_limit = 200, vacuum_truncate = off);
create index ready_xid on ambo.ready (xid);
create index ready_start_by on ambo.ready (start_by, seq) where start_by is not null;
-- For what came to be too late below the mark of the looks.
create index ready_start_by_xid on ambo.ready (xid) where start_by is not null;
-- Where a run that has begun stands, if here, for who wants it by its id; one that begins, and what only wakes, costs nothing here.
create index ready_begun on ambo.ready (run_id) where attempt > 0;
-- By the version that a run is pinned to; a run that is not costs nothing here.
create index ready_pin on ambo.ready (split_part(workflow, chr(31), 2)) where split_part(workflow, chr(31), 2) <> '';

-- Runs in execution; deleted by the outcome, or by the keeper when the worker is dead.
-- `losses` counts the workers that died with this run since it last made progress. One that has some is in its worker's memory
-- before it is `begun`: it loses nothing by what kills that worker until then, nor while it does nothing but wait, which is told as not
-- `begun` too.
-- In a queue that has limits it has a `slot`, a place that no claim had before, with what it takes of the limits: workers remember
-- the slots that are taken, and look them up by number, so that counting walks over nothing dead. Drawn under the queue's lock:
-- within a queue it is the order of commits.
create sequence ambo.slot_seq as bigint cache 1;
create table ambo.claim (
    run_id uuid primary key,
    worker_id bigint not null,
    claimed_at timestamptz not null default now(),
    attempt integer not null,
    losses smallint not null,
    begun boolean not null default true,
    weight smallint,
    slot bigint,
    deadline timestamptz,
    queue text collate "C",
    group_key text collate "C"
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000,
        autovacuum_vacuum_cost_delay = 2, autovacuum_vacuum_cost_limit = 200, vacuum_truncate = off);
create unique index claim_slot on ambo.claim (queue, slot) where slot is not null;

-- What becomes ready later: runs that were delayed, and runs that are parked, out of every worker's memory. One that
-- waits for something other than the time is due at infinity; a row in ready that wakes it takes it out. `xid`: of the
-- transaction that made it, or set its time.
create table ambo.timer (
    run_id uuid primary key,
    due_at timestamptz not null,
    attempt integer not null,
    losses smallint not null,
    deadline timestamptz,
    xid xid8 not null default pg_current_xact_id(),
    -- The version of the workers that it goes on in.
    pin text collate "C",
    -- What it waits for: [{"position", "for", "run"}], for whoever asks.
    awaits json
);
create index timer_due on ambo.timer (due_at, run_id);
-- For what came to be due below the mark of the looks.
create index timer_xid on ambo.timer (xid, due_at);

-- Runs in some worker's memory for which something has come. The worker takes the row before it looks; one that
-- parks a run finds it there, and the run is ready again.
create table ambo.wake (
    run_id uuid primary key
);

-- Messages to a run, in the order of `seq` within a topic: append-only. That one was consumed says a checkpoint.
create sequence ambo.signal_seq as bigint cache 1;
create table ambo.signal (
    run_id uuid not null,
    seq bigint not null,
    sent_at timestamptz not null default now(),
    topic text collate "C" not null,
    key text collate "C",
    payload json not null,
    primary key (run_id, topic, seq)
) partition by range (run_id);
create unique index signal_key on ambo.signal (run_id, key) where key is not null;

-- What a run publishes under a key, numbered from 1 within the key: append-only. The last one is the event's value, all
-- of them are a stream.
create table ambo.event (
    run_id uuid not null,
    key text collate "C" not null,
    number integer not null,
    published_at timestamptz not null default now(),
    value json not null,
    primary key (run_id, key, number)
) partition by range (run_id);

-- Keys, with their own lifetime. What a key means says its rule: k, an idempotency key; s, the tick of a schedule; d, dedup; t, throttle; b, debounce
-- (see functions/key.sql). Each rule has its own keys.
create table ambo.run_key (
    workflow text collate "C" not null,
    key text collate "C" not null,
    rule "char" not null default 'k' check (rule in ('k', 's', 'd', 't', 'b')),
    run_id uuid not null,
    input_digest bytea not null,
    expires_at timestamptz not null,
    primary key (workflow, key, rule)
);
create index run_key_expiry on ambo.run_key (expires_at);

-- Runs that start when all of others have ended; those are their children. Below `upto` all have; looked at last then.
create table ambo.fan_in (
    run_id uuid primary key,
    upto uuid not null,
    looked_at timestamptz not null
) with (fillfactor = 50);

-- A cancel is a recorded request: the owner of the run acts on it, or whoever claims it next.
create table ambo.cancel_request (
    run_id uuid primary key,
    requested_at timestamptz not null default now(),
    reason text,
    -- By then the run has ended, undone or not; null: however long that takes.
    undo_by timestamptz
);
create index cancel_request_undo_by on ambo.cancel_request (undo_by) where undo_by is not null;

-- Written before the body of a transaction step and deleted after it, in the same transaction: a row that
-- anyone can see proves that a body committed by hand.
create table ambo.transaction_marker (
    run_id uuid not null,
    position text collate "C" not null,
    xid xid8 not null,
    primary key (run_id, position)
);

-- A queue, with what holds for it. One that is `managed` has groups or limits and is claimed by ambo.claim_queue; all
-- others take the short way. Null: no limit.
create table ambo.queue (
    name text collate "C" primary key,
    created_at timestamptz not null default now(),
    paused boolean not null default false,
    -- Takes no new runs; those that wait are worked off.
    draining boolean not null default false,
    managed boolean not null default false,
    -- Weight in execution at once: of all workers, of each, of each group.
    concurrency integer check (concurrency >= 0),
    worker_concurrency integer check (worker_concurrency >= 0),
    group_concurrency integer check (group_concurrency >= 0),
    -- Weight that is claimed: `rate_limit` a `rate_period` in the long run, `rate_burst` at once.
    rate_limit integer check (rate_limit > 0),
    rate_period interval check (rate_period > '0'),
    rate_burst integer check (rate_burst > 0),
    group_rate_limit integer check (group_rate_limit > 0),
    group_rate_period interval check (group_rate_period > '0'),
    group_rate_burst integer check (group_rate_burst > 0),
    -- One run of a group after the other, the next when the last has ended; and what then if it failed.
    ordered text check (ordered in ('block', 'skip', 'dead')),
    -- A lane that was passed over for so long is as urgent as one of the priority before its own.
    ageing interval check (ageing > '0'),
    check ((rate_limit is null) = (rate_period is null) and (rate_limit is null) = (rate_burst is null)),
    check ((group_rate_limit is null) = (group_rate_period is null)
           and (group_rate_limit is null) = (group_rate_burst is null))
);
insert into ambo.queue (name) values ('default');

-- What holds for one group of a queue. `share`: how many of its runs are claimed for one of another group.
create table ambo.queue_group (
    queue text collate "C" not null references ambo.queue,
    group_key text collate "C" not null,
    paused boolean not null default false,
    share smallint not null default 1 check (share between 1 and 100),
    draining boolean not null default false,
    primary key (queue, group_key)
);
create index on ambo.queue_group (queue, group_key) where draining;

-- Where a queue is ordered: the run that comes first in its group while it is not in execution, as it is parked, on its way to
-- another worker, or has failed where that blocks. The group waits for it; a place of the queue it has not.
create table ambo.head (
    queue text collate "C" not null,
    group_key text collate "C" not null,
    run_id uuid not null,
    primary key (queue, group_key, run_id)
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000,
        autovacuum_vacuum_cost_delay = 2, autovacuum_vacuum_cost_limit = 200, vacuum_truncate = off);
create unique index head_run on ambo.head (run_id);

-- What is left of a rate: the newest row counts, and is replaced by a newer one, so that it is found first, however many
-- dead ones stand behind it. An empty group_key stands for the whole queue.
create sequence ambo.rate_seq as bigint cache 1;
create table ambo.rate (
    queue text collate "C" not null,
    group_key text collate "C" not null,
    seq bigint not null,
    at timestamptz not null,
    tokens double precision not null,
    primary key (queue, group_key, seq)
) with (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 20000,
        autovacuum_vacuum_cost_delay = 2, autovacuum_vacuum_cost_limit = 200, vacuum_truncate = off);

-- What is enqueued at times that come again: `cron` in a time zone, or `every` so long.
create table ambo.schedule (
    name text collate "C" primary key,
    workflow text collate "C" not null,
    input json not null,
    queue text collate "C" not null,
    priority integer not null,
    attributes jsonb,
    timeout interval,
    attempts integer not null,
    cron text,
    timezone text,
    every interval check (every >= '1 second'),
    -- What a tick does while the run of the one before has not ended.
    overlap text not null check (overlap in ('skip', 'queue', 'cancel', 'allow')),
    -- A run begins by so much later at most.
    jitter interval not null check (jitter >= '0'),
    -- A tick that is past by more than this is not made up for.
    catch_up interval not null check (catch_up >= '0'),
    paused boolean not null default false,
    next_at timestamptz not null,
    last_at timestamptz,
    last_run uuid,
    -- Ticks without a run.
    skipped bigint not null default 0,
    -- Why the last tick could not be enqueued.
    error text,
    check ((cron is null) <> (every is null) and (cron is null) = (timezone is null))
);

create sequence ambo.worker_seq as bigint cache 1;

-- A worker's registration. `dead_at` is set by the keeper, which then takes the claims and deletes the row.
create table ambo.worker (
    id bigint primary key,
    started_at timestamptz not null default now(),
    dead_at timestamptz,
    name text not null,
    version text not null,
    pid integer not null,
    -- Whether it holds its session lock; behind a transaction pooler it cannot.
    session boolean not null,
    -- Whether the runs that it claims are pinned to its version.
    pinned boolean not null,
    queues text[] not null,
    workflows text[] not null,
    -- How many runs it has in memory at most; null: it did not say.
    max_in_flight integer
);

-- What workers said of their workflows when they registered; the last one stands.
create table ambo.workflow (
    name text collate "C" primary key,
    declared_at timestamptz not null default now(),
    version text not null,
    -- The types, as the code names them.
    input text not null,
    output text not null,
    -- How often a run is tried in all.
    tries bigint not null,
    -- Nodes and edges, if it is declared as a graph.
    graph json
);

-- The one row that a worker updates, once a second: narrow, and apart from everything that is locked.
create table ambo.heartbeat (
    worker_id bigint primary key,
    at timestamptz not null,
    in_flight integer not null default 0,
    draining boolean not null default false
) with (fillfactor = 50);

-- The keeper: an epoch in a row. `grace_until`: nobody is dead before (a server start or a promotion). `timer_mark`: see fire_timers.
create table ambo.keeper (
    only_row boolean primary key default true check (only_row),
    epoch bigint not null default 0,
    worker_id bigint,
    renewed_at timestamptz not null default now(),
    server text not null default '',
    grace_until timestamptz not null default now(),
    timer_mark json
) with (fillfactor = 50);
insert into ambo.keeper default values;

-- The ranges that run, outcome, child, attribute, checkpoint, signal and event are partitioned by; what is older stands in the *_carried ones.
create table ambo.history_partition (
    starts_at timestamptz primary key,
    ends_at timestamptz not null check (ends_at > starts_at)
);
create table ambo.run_carried partition of ambo.run
    for values from (minvalue) to ('00000000-0000-0000-0000-000000000001');
create table ambo.outcome_carried partition of ambo.outcome
    for values from (minvalue) to ('00000000-0000-0000-0000-000000000001');
create table ambo.child_carried partition of ambo.child
    for values from (minvalue) to ('00000000-0000-0000-0000-000000000001');
create table ambo.attribute_carried partition of ambo.attribute
    for values from (minvalue) to ('00000000-0000-0000-0000-000000000001');
create table ambo.checkpoint_carried partition of ambo.checkpoint
    for values from (minvalue) to ('00000000-0000-0000-0000-000000000001');
create table ambo.signal_carried partition of ambo.signal
    for values from (minvalue) to ('00000000-0000-0000-0000-000000000001');
create table ambo.event_carried partition of ambo.event
    for values from (minvalue) to ('00000000-0000-0000-0000-000000000001');
