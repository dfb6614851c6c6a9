-- What the migrations make, read from the catalog. Renewed with UPDATE_EXPECT=1.
type status: succeeded, failed, cancelled, dead

partitioned table attribute
    run_id uuid not null
    attributes jsonb not null
    index attribute_attributes gin (attributes jsonb_path_ops)
    index attribute_forks btree (run_id) WHERE (attributes ? 'forked_from'::text)
    UNIQUE index attribute_pkey btree (run_id)

table attribute_carried
    run_id uuid not null
    attributes jsonb not null
    index attribute_carried_attributes_idx gin (attributes jsonb_path_ops)
    UNIQUE index attribute_carried_pkey btree (run_id)
    index attribute_carried_run_id_idx btree (run_id) WHERE (attributes ? 'forked_from'::text)

table cancel_request
    run_id uuid not null
    requested_at timestamp with time zone not null default now()
    reason text
    undo_by timestamp with time zone
    UNIQUE index cancel_request_pkey btree (run_id)
    index cancel_request_undo_by btree (undo_by) WHERE (undo_by IS NOT NULL)

partitioned table checkpoint
    run_id uuid not null
    recorded_at timestamp with time zone not null default now()
    attempt integer not null
    elapsed_ms integer not null
    position text not null
    name text not null
    output json
    error json
    UNIQUE index checkpoint_pkey btree (run_id, "position")

table checkpoint_carried
    run_id uuid not null
    recorded_at timestamp with time zone not null default now()
    attempt integer not null
    elapsed_ms integer not null
    position text not null
    name text not null
    output json
    error json
    UNIQUE index checkpoint_carried_pkey btree (run_id, "position")

partitioned table child
    run_id uuid not null
    child_id uuid not null
    member boolean
    UNIQUE index child_pkey btree (run_id, child_id)

table child_carried
    run_id uuid not null
    child_id uuid not null
    member boolean
    UNIQUE index child_carried_pkey btree (run_id, child_id)

table claim with (autovacuum_vacuum_scale_factor=0, autovacuum_vacuum_threshold=20000, autovacuum_vacuum_cost_delay=2, autovacuum_vacuum_cost_limit=200, vacuum_truncate=off)
    run_id uuid not null
    worker_id bigint not null
    claimed_at timestamp with time zone not null default now()
    attempt integer not null
    losses smallint not null
    begun boolean not null default true
    weight smallint
    slot bigint
    deadline timestamp with time zone
    queue text
    group_key text
    UNIQUE index claim_pkey btree (run_id)
    UNIQUE index claim_slot btree (queue, slot) WHERE (slot IS NOT NULL)

partitioned table event
    run_id uuid not null
    key text not null
    number integer not null
    published_at timestamp with time zone not null default now()
    value json not null
    UNIQUE index event_pkey btree (run_id, key, number)

table event_carried
    run_id uuid not null
    key text not null
    number integer not null
    published_at timestamp with time zone not null default now()
    value json not null
    UNIQUE index event_carried_pkey btree (run_id, key, number)

table fan_in with (fillfactor=50)
    run_id uuid not null
    upto uuid not null
    looked_at timestamp with time zone not null
    UNIQUE index fan_in_pkey btree (run_id)

table head with (autovacuum_vacuum_scale_factor=0, autovacuum_vacuum_threshold=20000, autovacuum_vacuum_cost_delay=2, autovacuum_vacuum_cost_limit=200, vacuum_truncate=off)
    queue text not null
    group_key text not null
    run_id uuid not null
    UNIQUE index head_pkey btree (queue, group_key, run_id)
    UNIQUE index head_run btree (run_id)

table heartbeat with (fillfactor=50)
    worker_id bigint not null
    at timestamp with time zone not null
    in_flight integer not null default 0
    draining boolean not null default false
    UNIQUE index heartbeat_pkey btree (worker_id)

table history_partition
    starts_at timestamp with time zone not null
    ends_at timestamp with time zone not null
    CHECK ((ends_at > starts_at))
    UNIQUE index history_partition_pkey btree (starts_at)

table installation
    only_row boolean not null default true
    schema_version integer not null
    tables_version integer not null
    serves_from integer not null
    system_identifier bigint not null
    database_oid oid not null
    lease interval not null default '00:00:15'::interval
    retention interval not null default '30 days'::interval
    key_lifetime interval not null default '30 days'::interval
    pin_grace interval not null default '00:01:00'::interval
    dead_lifetime interval
    partition_width interval not null default '1 day'::interval
    partitions_ahead integer not null default 7
    CHECK ((dead_lifetime > '00:00:00'::interval))
    CHECK ((key_lifetime > '00:00:00'::interval))
    CHECK ((lease >= '00:00:02'::interval))
    CHECK (only_row)
    CHECK ((partition_width >= '01:00:00'::interval))
    CHECK (((partitions_ahead >= 2) AND (partitions_ahead <= 100)))
    CHECK ((pin_grace >= '00:00:00'::interval))
    CHECK ((retention >= '01:00:00'::interval))
    UNIQUE index installation_pkey btree (only_row)

table keeper with (fillfactor=50)
    only_row boolean not null default true
    epoch bigint not null default 0
    worker_id bigint
    renewed_at timestamp with time zone not null default now()
    server text not null default ''::text
    grace_until timestamp with time zone not null default now()
    timer_mark json
    CHECK (only_row)
    UNIQUE index keeper_pkey btree (only_row)

partitioned table outcome
    run_id uuid not null
    ended_at timestamp with time zone not null default now()
    attempt integer not null
    status ambo.status not null
    output json
    error json
    UNIQUE index outcome_pkey btree (run_id)
    index outcome_status btree (status, run_id) WHERE (status <> 'succeeded'::ambo.status)

table outcome_carried
    run_id uuid not null
    ended_at timestamp with time zone not null default now()
    attempt integer not null
    status ambo.status not null
    output json
    error json
    UNIQUE index outcome_carried_pkey btree (run_id)
    index outcome_carried_status_run_id_idx btree (status, run_id) WHERE (status <> 'succeeded'::ambo.status)

table queue
    name text not null
    created_at timestamp with time zone not null default now()
    paused boolean not null default false
    draining boolean not null default false
    managed boolean not null default false
    concurrency integer
    worker_concurrency integer
    group_concurrency integer
    rate_limit integer
    rate_period interval
    rate_burst integer
    group_rate_limit integer
    group_rate_period interval
    group_rate_burst integer
    ordered text
    ageing interval
    CHECK ((ageing > '00:00:00'::interval))
    CHECK ((((rate_limit IS NULL) = (rate_period IS NULL)) AND ((rate_limit IS NULL) = (rate_burst IS NULL))))
    CHECK ((((group_rate_limit IS NULL) = (group_rate_period IS NULL)) AND ((group_rate_limit IS NULL) = (group_rate_burst IS NULL))))
    CHECK ((concurrency >= 0))
    CHECK ((group_concurrency >= 0))
    CHECK ((group_rate_burst > 0))
    CHECK ((group_rate_limit > 0))
    CHECK ((group_rate_period > '00:00:00'::interval))
    CHECK ((ordered = ANY (ARRAY['block'::text, 'skip'::text, 'dead'::text])))
    CHECK ((rate_burst > 0))
    CHECK ((rate_limit > 0))
    CHECK ((rate_period > '00:00:00'::interval))
    CHECK ((worker_concurrency >= 0))
    UNIQUE index queue_pkey btree (name)

table queue_group
    queue text not null
    group_key text not null
    paused boolean not null default false
    share smallint not null default 1
    draining boolean not null default false
    FOREIGN KEY (queue) REFERENCES ambo.queue(name)
    CHECK (((share >= 1) AND (share <= 100)))
    UNIQUE index queue_group_pkey btree (queue, group_key)
    index queue_group_queue_group_key_idx btree (queue, group_key) WHERE draining

table rate with (autovacuum_vacuum_scale_factor=0, autovacuum_vacuum_threshold=20000, autovacuum_vacuum_cost_delay=2, autovacuum_vacuum_cost_limit=200, vacuum_truncate=off)
    queue text not null
    group_key text not null
    seq bigint not null
    at timestamp with time zone not null
    tokens double precision not null
    UNIQUE index rate_pkey btree (queue, group_key, seq)

sequence rate_seq

table ready with (autovacuum_vacuum_scale_factor=0, autovacuum_vacuum_threshold=20000, autovacuum_vacuum_cost_delay=2, autovacuum_vacuum_cost_limit=200, vacuum_truncate=off)
    seq bigint not null
    xid xid8 not null
    run_id uuid not null
    attempt integer not null
    losses smallint not null
    priority smallint not null
    weight smallint not null default 1
    queue text not null
    workflow text not null
    timeout interval
    deadline timestamp with time zone
    wakes boolean not null default false
    start_by timestamp with time zone
    index ready_begun btree (run_id) WHERE (attempt > 0)
    index ready_pin btree (split_part(workflow, chr(31), 2)) WHERE (split_part(workflow, chr(31), 2) <> ''::text)
    UNIQUE index ready_pkey btree (queue, workflow, priority, seq)
    index ready_start_by btree (start_by, seq) WHERE (start_by IS NOT NULL)
    index ready_start_by_xid btree (xid) WHERE (start_by IS NOT NULL)
    index ready_xid btree (xid)

sequence ready_seq

partitioned table run
    id uuid not null
    attempts_max smallint not null
    priority smallint not null
    weight smallint not null default 1
    workflow text not null
    queue text not null
    input json not null
    key text
    group_key text
    timeout interval
    attributes jsonb
    parent_id uuid
    start_by timestamp with time zone
    dedup boolean
    UNIQUE index run_pkey btree (id)
    index run_rare brin (workflow text_bloom_ops (n_distinct_per_range='200'), queue text_bloom_ops (n_distinct_per_range='200'), group_key text_bloom_ops (n_distinct_per_range='1000')) WITH (pages_per_range='32')

table run_carried
    id uuid not null
    attempts_max smallint not null
    priority smallint not null
    weight smallint not null default 1
    workflow text not null
    queue text not null
    input json not null
    key text
    group_key text
    timeout interval
    attributes jsonb
    parent_id uuid
    start_by timestamp with time zone
    dedup boolean
    UNIQUE index run_carried_pkey btree (id)
    index run_carried_workflow_queue_group_key_idx brin (workflow text_bloom_ops (n_distinct_per_range='200'), queue text_bloom_ops (n_distinct_per_range='200'), group_key text_bloom_ops (n_distinct_per_range='1000')) WITH (pages_per_range='32')

table run_key
    workflow text not null
    key text not null
    rule "char" not null default 'k'::"char"
    run_id uuid not null
    input_digest bytea not null
    expires_at timestamp with time zone not null
    CHECK ((rule = ANY (ARRAY['k'::"char", 's'::"char", 'd'::"char", 't'::"char", 'b'::"char"])))
    index run_key_expiry btree (expires_at)
    UNIQUE index run_key_pkey btree (workflow, key, rule)

table schedule
    name text not null
    workflow text not null
    input json not null
    queue text not null
    priority integer not null
    attributes jsonb
    timeout interval
    attempts integer not null
    cron text
    timezone text
    every interval
    overlap text not null
    jitter interval not null
    catch_up interval not null
    paused boolean not null default false
    next_at timestamp with time zone not null
    last_at timestamp with time zone
    last_run uuid
    skipped bigint not null default 0
    error text
    CHECK ((catch_up >= '00:00:00'::interval))
    CHECK ((((cron IS NULL) <> (every IS NULL)) AND ((cron IS NULL) = (timezone IS NULL))))
    CHECK ((every >= '00:00:01'::interval))
    CHECK ((jitter >= '00:00:00'::interval))
    CHECK ((overlap = ANY (ARRAY['skip'::text, 'queue'::text, 'cancel'::text, 'allow'::text])))
    UNIQUE index schedule_pkey btree (name)

partitioned table signal
    run_id uuid not null
    seq bigint not null
    sent_at timestamp with time zone not null default now()
    topic text not null
    key text
    payload json not null
    UNIQUE index signal_key btree (run_id, key) WHERE (key IS NOT NULL)
    UNIQUE index signal_pkey btree (run_id, topic, seq)

table signal_carried
    run_id uuid not null
    seq bigint not null
    sent_at timestamp with time zone not null default now()
    topic text not null
    key text
    payload json not null
    UNIQUE index signal_carried_pkey btree (run_id, topic, seq)
    UNIQUE index signal_carried_run_id_key_idx btree (run_id, key) WHERE (key IS NOT NULL)

sequence signal_seq

sequence slot_seq

table timer
    run_id uuid not null
    due_at timestamp with time zone not null
    attempt integer not null
    losses smallint not null
    deadline timestamp with time zone
    xid xid8 not null default pg_current_xact_id()
    pin text
    awaits json
    index timer_due btree (due_at, run_id)
    UNIQUE index timer_pkey btree (run_id)
    index timer_xid btree (xid, due_at)

table transaction_marker
    run_id uuid not null
    position text not null
    xid xid8 not null
    UNIQUE index transaction_marker_pkey btree (run_id, "position")

table wake
    run_id uuid not null
    UNIQUE index wake_pkey btree (run_id)

table worker
    id bigint not null
    started_at timestamp with time zone not null default now()
    dead_at timestamp with time zone
    name text not null
    version text not null
    pid integer not null
    session boolean not null
    pinned boolean not null
    queues text[] not null
    workflows text[] not null
    max_in_flight integer
    UNIQUE index worker_pkey btree (id)

sequence worker_seq

table workflow
    name text not null
    declared_at timestamp with time zone not null default now()
    version text not null
    input text not null
    output text not null
    tries bigint not null
    graph json
    UNIQUE index workflow_pkey btree (name)

function act_on_runs(p_act text, p_runs uuid[], p_position text DEFAULT NULL::text, p_reason text DEFAULT NULL::text, p_grace interval DEFAULT NULL::interval)
    returns TABLE(run_id uuid, answer text, code text)
    volatile, runs as its owner, set search_path=pg_catalog, pg_temp

function adopt()
    returns void
    volatile, runs as its owner, set search_path=pg_catalog, pg_temp

function arrivals(p_queue text, p_since pg_snapshot, OUT lanes text[], OUT priorities smallint[], OUT lows bigint[], OUT upto pg_snapshot)
    returns record
    stable, runs as its owner, set search_path=pg_catalog, pg_temp, plan_cache_mode=force_generic_plan, jit=off, enable_seqscan=off, enable_bitmapscan=off

function awaited_runs(p_live uuid[], p_from timestamp with time zone, p_to timestamp with time zone, p_limit integer)
    returns uuid[]
    volatile, set enable_hashjoin=on, jit=off

function backfill_schedule(p_name text, p_ticks timestamp with time zone[])
    returns uuid[]
    volatile, runs as its owner, set search_path=pg_catalog, pg_temp

function begin_runs(p_worker bigint, p_runs uuid[], p_begun boolean)
    returns void
    volatile, runs as its owner, set search_path=pg_catalog, pg_temp, jit=off, enable_seqscan=off, plan_cache_mode=force_generic_plan

function begin_step(p_worker bigint, p_run uuid, p_attempt integer, p_position text, p_idle_ms integer, OUT backend integer, OUT xid xid8)
    returns record
    volatile, runs as its owner, set search_path=pg_catalog, pg_temp

function blocked_groups(queue text DEFAULT NULL::text)
    returns TABLE(queue text, group_key text, run_id uuid, since timestamp with time zone, error json)
    stable, runs as its owner, set search_path=pg_catalog, pg_temp

function bury_worker(p_keeper bigint, p_worker bigint, p_limit integer, p_page bigint DEFAULT 0, p_left_behind boolean DEFAULT false, OUT recovered integer, OUT dead_lettered integer, OUT buried boolean, OUT held boolean, OUT left_behind boolean, OUT next_page bigint)
    returns record
    volatile, runs as its owner, set search_path=pg_catalog, pg_temp, plan_cache_mode=force_generic_plan, jit=off, enable_seqscan=off, enable_hashjoin=off, enable_mergejoin=off

function came_for(p_runs uuid[], OUT cancelled uuid[], OUT woken uuid[], OUT undo_by_us bigint[])
    returns record
    stable, runs as its owner, set search_path=pg_catalog, pg_temp, plan_cache_mode=force_generic_plan, jit=off, enable_seqscan=off, enable_bitmapscan=off, enable_hashjoin=off, enable_mergejoin=off

function cancel_children(p_run uuid, p_reason text, p_grace interval)
    returns void
    volatile

function cancel_one(p_run uuid, p_reason text, p_grace interval)
    returns text
    volatile

function cancel_reason(p_run uuid)
    returns text
    stable, runs as its owner, set search_path=pg_catalog, pg_temp

function cancel_run(p_run uuid, p_reason text DEFAULT NULL::text, p_grace interval DEFAULT NULL::interval)
    returns text
    volatile, runs as its owner, set search_path=pg_catalog, pg_temp, plan_cache_mode=force_generic_plan, jit=off, enable_seqscan=off

function check_installation()
    returns void
    stable, runs as its owner, set search_path=pg_catalog, pg_temp

function check_terms(p_runs json, p_names text[])
    returns void
    stable

function claim_piece(p_page bigint, OUT first tid, OUT upto tid, OUT next_page bigint)
    returns record
    stable

function claim_queue(p_worker bigint, p_queue text, p_limit integer, p_since text, p_lanes text[], p_priorities smallint[], p_turns integer[], p_classes integer[], p_lows bigint[], p_shares smallint[], p_mine_groups integer[], p_mine integer, p_here integer, p_others bigint[], p_seen bigint, OUT runs uuid[], OUT run_lanes integer[], OUT weights smallint[], OUT attempts integer[], OUT losses smallint[], OUT left_ms bigint[], OUT nudged uuid[], OUT open integer[], OUT tried integer[], OUT left_lanes integer[], OUT left_seqs bigint[], OUT upto text, OUT new_lanes text[], OUT new_priorities smallint[], OUT new_lows bigint[], OUT limited boolean, OUT others bigint[], OUT seen bigint, OUT wait_ms integer, OUT ordered text, OUT ageing_ms bigint, OUT group_limit integer, OUT group_keys text[], OUT shares smallint[])
    returns record
    volatile, runs as its owner, set search_path=pg_catalog, pg_temp, lock_timeout=250ms, plan_cache_mode=force_generic_plan, jit=off, enable_seqscan=off, enable_bitmapscan=off, enable_nestloop=off

function claimed_runs(p_runs uuid[])
    returns TABLE(run_id uuid, workflow text, queue text, input json, key text, attempts_max smallint, cancelled boolean, parent_id uuid, too_late boolean, undo_left_ms bigint)
    stable, runs as its owner, set search_path=pg_catalog, pg_temp, plan_cache_mode=force_generic_plan, jit=off, enable_seqscan=off

function claim(p_worker bigint, p_limit integer, p_queues text[], p_workflows text[], p_priorities smallint[], p_lows bigint[], p_late xid8[], p_held_lanes integer[] DEFAULT '{}'::integer[], p_held bigint[] DEFAULT '{}'::bigint[])
    returns TABLE(run_id uuid, workflow text, queue text, input json, attempt integer, losses smallint, priority smallint, key text, attempts_max smallint, time_left_ms bigint, cancelled boolean, seq bigint, lows bigint[], late xid8[], parent_id uuid, nudged uuid[], too_late boolean, undo_left_ms bigint, held_lanes integer[], held bigint[])
    volatile, runs as its owner, set search_path=pg_catalog, pg_temp, plan_cache_mode=force_generic_plan, jit=off, enable_seqscan=off, enable_bitmapscan=off, enable_hashjoin=off, enable_mergejoin=off

function claims_of(p_worker bigint, p_page bigint, OUT runs uuid[], OUT attempts integer[], OUT next_page bigint)
    returns record
    stable, runs as its owner, set search_path=pg_catalog, pg_temp, plan_cache_mode=force_generic_plan, jit=off, enable_seqscan=off

function complete_run(p_worker bigint, p_run uuid, p_attempt integer, p_position text, p_output json, p_parent uuid)
    returns void
    volatile, runs as its owner, set search_path=pg_catalog, pg_temp, plan_cache_mode=force_generic_plan, jit=off, enable_seqscan=off

function create_queue(name text)
    returns boolean
    volatile, runs as its owner, set search_path=pg_catalog, pg_temp

function cron_fault(p_cron text)
    returns text
    immutable

function database_time()
    returns timestamp with time zone
    volatile, runs as its owner, set search_path=pg_catalog, pg_temp

function dead_errors(p_workflow text DEFAULT NULL::text, p_queue text DEFAULT NULL::text, p_since timestamp with time zone DEFAULT NULL::timestamp with time zone, p_until timestamp with time zone DEFAULT NULL::timestamp with time zone, p_before uuid DEFAULT NULL::uuid, p_attributes jsonb DEFAULT NULL::jsonb, p_parent uuid DEFAULT NULL::uuid, p_text text DEFAULT NULL::text, p_group text DEFAULT NULL::text)
    returns TABLE(workflow text, queue text, code text, message text, runs bigint, first_at timestamp with time zone, last_at timestamp with time zone, newest uuid, is_capped boolean)
    stable, runs as its owner, set search_path=pg_catalog, pg_temp, jit=off, enable_hashjoin=off, enable_mergejoin=off

function dead_letters(p_workflow text DEFAULT NULL::text, p_queue text DEFAULT NULL::text, p_before uuid DEFAULT NULL::uuid, p_limit integer DEFAULT 50, p_since timestamp with time zone DEFAULT NULL::timestamp with time zone, p_until timestamp with time zone DEFAULT NULL::timestamp with time zone, p_attributes jsonb DEFAULT NULL::jsonb, p_parent uuid DEFAULT NULL::uuid, p_text text DEFAULT NULL::text, p_group text DEFAULT NULL::text)
    returns TABLE(id uuid, workflow text, queue text, enqueued_at timestamp with time zone, died_at timestamp with time zone, attempts integer, tries bigint, code text, message text, error json, group_key text)
    stable, runs as its owner, set search_path=pg_catalog, pg_temp

function declare_workflows(p_version text, p_workflows json)
    returns void
    volatile, runs as its owner, set search_path=pg_catalog, pg_temp

function delete_schedule(name text)
    returns void
    volatile, runs as its owner, set search_path=pg_catalog, pg_temp

function drain_queue(p_queue text, p_draining boolean DEFAULT true, p_group text DEFAULT NULL::text)
    returns void
    volatile, runs as its owner, set search_path=pg_catalog, pg_temp

function drop_partition()
    returns boolean
    volatile, runs as its owner, set search_path=pg_catalog, pg_temp, lock_timeout=50ms, enable_hashjoin=on, jit=off

function drop_requests(p_runs uuid[])
    returns void
    volatile, set plan_cache_mode=force_generic_plan, jit=off, enable_seqscan=off

function drop_signal(run_id uuid, seq bigint)
    returns boolean
    volatile, runs as its owner, set search_path=pg_catalog, pg_temp

function due_schedules()
    returns TABLE(name text, cron text, timezone text, every_us bigint, next_at timestamp with time zone, horizon timestamp with time zone)
    volatile, runs as its owner, set search_path=pg_catalog, pg_temp

function end_children(p_run uuid)
    returns void
    volatile, runs as its owner, set search_path=pg_catalog, pg_temp, lock_timeout=50ms, plan_cache_mode=force_generic_plan, jit=off, enable_seqscan=off

function end_holders(p_worker bigint)
    returns boolean
    volatile, set search_path=pg_catalog, pg_temp

function end_unclaimed(p_limit integer, p_after timestamp with time zone DEFAULT NULL::timestamp with time zone, p_since pg_snapshot DEFAULT NULL::pg_snapshot, OUT ended integer, OUT after timestamp with time zone, OUT since pg_snapshot, OUT more boolean)
    returns record
    volatile, runs as its owner, set search_path=pg_catalog, pg_temp, plan_cache_mode=force_generic_plan, jit=off, enable_seqscan=off, enable_bitmapscan=off, enable_hashjoin=off, enable_mergejoin=off

function enqueue_fan_in(members json, then_run json)
    returns json
    volatile, runs as its owner, set search_path=pg_catalog, pg_temp

function enqueue_one_by_one(p_workflows text[], p_inputs json[], p_queues text[], p_keys text[], p_priorities integer[], p_delays interval[], p_ats timestamp with time zone[], p_attributes jsonb[], p_timeouts interval[], p_attempts integer[], p_key_lifetimes interval[], p_groups text[], p_weights integer[], p_dedups boolean[], p_throttles interval[], p_debounces interval[], p_debounce_maxes interval[], p_start_bys timestamp with time zone[], p_start_withins interval[], p_batch uuid)
    returns TABLE(run_id uuid, is_new boolean)
    volatile

function enqueue_tick(p_name text, p_tick timestamp with time zone, p_at timestamp with time zone)
    returns uuid
    volatile

function enqueue_workflows(workflows text[], inputs json[], queues text[] DEFAULT NULL::text[], keys text[] DEFAULT NULL::text[], priorities integer[] DEFAULT NULL::integer[], delays interval[] DEFAULT NULL::interval[], ats timestamp with time zone[] DEFAULT NULL::timestamp with time zone[], attributes jsonb[] DEFAULT NULL::jsonb[], timeouts interval[] DEFAULT NULL::interval[], attempts integer[] DEFAULT NULL::integer[], key_lifetimes interval[] DEFAULT NULL::interval[], group_keys text[] DEFAULT NULL::text[], weights integer[] DEFAULT NULL::integer[], dedups boolean[] DEFAULT NULL::boolean[], throttles interval[] DEFAULT NULL::interval[], debounces interval[] DEFAULT NULL::interval[], debounce_maxes interval[] DEFAULT NULL::interval[], start_bys timestamp with time zone[] DEFAULT NULL::timestamp with time zone[], start_withins interval[] DEFAULT NULL::interval[], batch uuid DEFAULT NULL::uuid)
    returns TABLE(run_id uuid, is_new boolean)
    volatile, runs as its owner, set search_path=pg_catalog, pg_temp, plan_cache_mode=force_generic_plan, jit=off

function enqueue_workflow(workflow text, input json DEFAULT 'null'::json, queue text DEFAULT 'default'::text, key text DEFAULT NULL::text, priority integer DEFAULT 0, delay interval DEFAULT NULL::interval, at timestamp with time zone DEFAULT NULL::timestamp with time zone, attributes jsonb DEFAULT NULL::jsonb, timeout interval DEFAULT NULL::interval, attempts integer DEFAULT 5, key_lifetime interval DEFAULT NULL::interval, group_key text DEFAULT NULL::text, weight integer DEFAULT 1, dedup boolean DEFAULT false, throttle interval DEFAULT NULL::interval, debounce interval DEFAULT NULL::interval, debounce_max interval DEFAULT NULL::interval, start_by timestamp with time zone DEFAULT NULL::timestamp with time zone, start_within interval DEFAULT NULL::interval)
    returns uuid
    volatile

function enqueue(p_workflow text, p_input json, p_queue text, p_key text, p_priority integer, p_delay interval, p_at timestamp with time zone, p_attributes jsonb, p_timeout interval, p_attempts integer, p_key_lifetime interval, p_group text DEFAULT NULL::text, p_weight integer DEFAULT 1, p_dedup boolean DEFAULT false, p_throttle interval DEFAULT NULL::interval, p_debounce interval DEFAULT NULL::interval, p_debounce_max interval DEFAULT NULL::interval, p_start_by timestamp with time zone DEFAULT NULL::timestamp with time zone, p_start_within interval DEFAULT NULL::interval, OUT run_id uuid, OUT is_new boolean)
    returns record
    volatile, runs as its owner, set search_path=pg_catalog, pg_temp

function envelope_digests(p_input json)
    returns bytea[]
    immutable

function expire_dead(p_limit integer)
    returns integer
    volatile, runs as its owner, set search_path=pg_catalog, pg_temp, jit=off, enable_seqscan=off

function expire_heads(p_limit integer)
    returns integer
    volatile, runs as its owner, set search_path=pg_catalog, pg_temp

function expire_keys(p_limit integer)
    returns integer
    volatile, runs as its owner, set search_path=pg_catalog, pg_temp

function expire_runs(p_limit integer, p_mark json DEFAULT NULL::json, OUT expired integer, OUT mark json, OUT more boolean)
    returns record
    volatile, runs as its owner, set search_path=pg_catalog, pg_temp, plan_cache_mode=force_generic_plan, jit=off, enable_seqscan=off, enable_bitmapscan=off, enable_hashjoin=off, enable_mergejoin=off, enable_sort=off, enable_incremental_sort=off

function find_lanes(p_queues text[], p_workflows text[], p_known_queues text[], p_known_workflows text[], p_known_priorities smallint[])
    returns TABLE(queue text, workflow text, priority smallint)
    stable, runs as its owner, set search_path=pg_catalog, pg_temp, plan_cache_mode=force_generic_plan, jit=off, enable_seqscan=off, enable_bitmapscan=off

function finish_step(p_worker bigint, p_run uuid, p_attempt integer, p_position text, p_name text, p_output json, p_error json, p_elapsed_ms integer)
    returns void
    volatile, runs as its owner, set search_path=pg_catalog, pg_temp, plan_cache_mode=force_generic_plan, jit=off, enable_seqscan=off

function fire_timers(p_limit integer, p_mark json DEFAULT NULL::json, OUT fired integer, OUT mark json, OUT wait_ms bigint)
    returns record
    volatile, runs as its owner, set search_path=pg_catalog, pg_temp, plan_cache_mode=force_generic_plan, jit=off, enable_hashjoin=off, enable_mergejoin=off, enable_seqscan=off, enable_bitmapscan=off, enable_sort=off, enable_incremental_sort=off

function flush_all(p_worker bigint, p_runs uuid[], p_attempts integer[], p_positions text[], p_names text[], p_outputs json[], p_errors json[], p_elapsed_ms integer[], p_ended_runs uuid[], p_ended_attempts integer[], p_statuses text[], p_ended_outputs json[], p_ended_errors json[], p_event_runs uuid[], p_event_attempts integer[], p_event_keys text[], p_event_numbers integer[], p_event_values json[], p_parents uuid[], p_parent_attempts integer[], p_child_ids uuid[], p_child_workflows text[], p_child_inputs json[], p_child_queues text[], p_child_priorities integer[], p_child_delays interval[], p_child_attributes jsonb[], p_child_timeouts interval[], p_child_deadlines timestamp with time zone[], p_child_attempts integer[], p_child_detached boolean[], p_child_groups text[], p_child_weights integer[], p_parked_runs uuid[], p_parked_attempts integer[], p_parked_dues timestamp with time zone[], p_parked_awaits text[], p_parked_forgets text[], p_parked_states text[], p_woken uuid[], p_attribute_runs uuid[], p_attribute_attempts integer[], p_attribute_keys text[], p_attribute_values json[], p_freed uuid[])
    returns uuid[]
    volatile, runs as its owner, set search_path=pg_catalog, pg_temp, lock_timeout=2s

function flush(p_worker bigint, p_runs uuid[], p_attempts integer[], p_positions text[], p_names text[], p_outputs json[], p_errors json[], p_elapsed_ms integer[], p_ended_runs uuid[], p_ended_attempts integer[], p_statuses text[], p_ended_outputs json[], p_ended_errors json[], p_freed uuid[] DEFAULT '{}'::uuid[])
    returns uuid[]
    volatile, runs as its owner, set search_path=pg_catalog, pg_temp, plan_cache_mode=force_generic_plan, jit=off, enable_seqscan=off, enable_hashjoin=off, enable_mergejoin=off, enable_bitmapscan=off, lock_timeout=2s

function forget(p_run uuid, p_attempt integer, p_positions text, p_state text)
    returns void
    volatile, set jit=off, enable_seqscan=off

function fork_run(p_run uuid, p_position text DEFAULT NULL::text)
    returns uuid
    volatile, runs as its owner, set search_path=pg_catalog, pg_temp

function gather_members(p_runs uuid[])
    returns uuid[]
    volatile, set plan_cache_mode=force_generic_plan, jit=off, enable_seqscan=off, enable_bitmapscan=off, enable_hashjoin=off, enable_mergejoin=off

function give_attributes(p_runs uuid[], p_attributes jsonb[], p_new boolean[])
    returns void
    volatile

function given_input(p_input json, p_nul text)
    returns json
    immutable

function graces_over(p_after timestamp with time zone, p_now timestamp with time zone)
    returns boolean
    stable, set plan_cache_mode=force_generic_plan, jit=off, enable_seqscan=off, enable_bitmapscan=off

function grant_privileges()
    returns text[]
    volatile, set search_path=pg_catalog, pg_temp

function hand_back(p_worker bigint, p_runs uuid[], p_attempts integer[])
    returns integer
    volatile, runs as its owner, set search_path=pg_catalog, pg_temp, jit=off, enable_seqscan=off, plan_cache_mode=force_generic_plan

function has_no_room(p_weight integer, p_used bigint, p_limit integer)
    returns boolean
    immutable

function heartbeat(p_worker bigint, p_in_flight integer, p_draining boolean, p_timer_mark json DEFAULT NULL::json, p_graces_after timestamp with time zone DEFAULT NULL::timestamp with time zone, OUT alive boolean, OUT look boolean, OUT is_keeper boolean, OUT dead bigint[], OUT timer_mark json, OUT lease_ms integer, OUT now_us bigint, OUT schedules_due boolean, OUT next_beat_ms bigint, OUT managed text[], OUT graces_over boolean)
    returns record
    volatile, runs as its owner, set search_path=pg_catalog, pg_temp

function held_by(p_tables text[])
    returns text
    stable

function history(p_runs uuid[])
    returns TABLE(run_id uuid, "position" text, name text, output json, error json)
    stable, runs as its owner, set search_path=pg_catalog, pg_temp, enable_seqscan=off, jit=off, plan_cache_mode=force_generic_plan

function hold_worker(p_worker bigint)
    returns boolean
    volatile, runs as its owner, set search_path=pg_catalog, pg_temp

function input_digest(p_input json)
    returns bytea
    immutable

function is_awaited(p_lock integer)
    returns boolean
    volatile

function is_cron_field(p_place integer, p_field text)
    returns boolean
    immutable

function is_forged(p_payload json)
    returns boolean
    immutable

function is_limited(q ambo.queue)
    returns boolean
    immutable

function is_rare(p_workflow text, p_queue text, p_limit integer, p_group text DEFAULT NULL::text)
    returns boolean
    volatile

function is_request(p_key text, p_payload json)
    returns boolean
    immutable

function is_same_payload(p_one json, p_other json)
    returns boolean
    immutable

function kept_objects()
    returns SETOF text
    stable, runs as its owner, set search_path=pg_catalog, pg_temp, jit=off

function lane(p_workflow text, p_pin text, p_group text DEFAULT NULL::text, p_goes_on boolean DEFAULT false)
    returns text
    immutable

function lanes()
    returns TABLE(queue text, workflow text)
    stable, set jit=off, enable_seqscan=off

function lateness(p_due timestamp with time zone)
    returns text
    stable

function lead_groups(p_runs uuid[], p_ended boolean)
    returns void
    volatile, set plan_cache_mode=force_generic_plan, enable_seqscan=off, jit=off

function leave_wakes(p_runs uuid[])
    returns void
    volatile, set plan_cache_mode=force_generic_plan, jit=off, enable_seqscan=off

function leave(p_worker bigint, p_runs uuid[] DEFAULT '{}'::uuid[], p_attempts integer[] DEFAULT '{}'::integer[])
    returns integer
    volatile, runs as its owner, set search_path=pg_catalog, pg_temp

function limit_reached(p_whose text, p_weight integer, p_used bigint, p_limit integer)
    returns text
    immutable

function list_events(p_run uuid)
    returns TABLE(key text, number integer, value json, published_at timestamp with time zone)
    stable, runs as its owner, set search_path=pg_catalog, pg_temp

function list_groups(queue text DEFAULT NULL::text)
    returns TABLE(queue text, group_key text, paused boolean, draining boolean, share integer, blocked_by uuid)
    stable, runs as its owner, set search_path=pg_catalog, pg_temp

function list_query(p_source text)
    returns text
    immutable

function list_queues()
    returns TABLE(name text, paused boolean, ready bigint, ready_is_capped boolean, oldest_ready_at timestamp with time zone, settings json, draining boolean)
    stable, runs as its owner, set search_path=pg_catalog, pg_temp

function list_runs(p_workflow text DEFAULT NULL::text, p_queue text DEFAULT NULL::text, p_state text DEFAULT NULL::text, p_before uuid DEFAULT NULL::uuid, p_limit integer DEFAULT 50, p_since timestamp with time zone DEFAULT NULL::timestamp with time zone, p_until timestamp with time zone DEFAULT NULL::timestamp with time zone, p_attributes jsonb DEFAULT NULL::jsonb, p_parent uuid DEFAULT NULL::uuid, p_text text DEFAULT NULL::text, p_group text DEFAULT NULL::text)
    returns TABLE(id uuid, workflow text, queue text, state text, attempt integer, key text, priority smallint, enqueued_at timestamp with time zone, ended_at timestamp with time zone, worker_id bigint, error json, parent_id uuid, attributes json, group_key text)
    volatile, runs as its owner, set search_path=pg_catalog, pg_temp, enable_seqscan=off, jit=off

function list_schedules()
    returns TABLE(name text, workflow text, queue text, cron text, timezone text, every interval, overlap text, jitter interval, catch_up interval, paused boolean, next_at timestamp with time zone, last_at timestamp with time zone, last_run uuid, skipped bigint, error text)
    stable, runs as its owner, set search_path=pg_catalog, pg_temp

function list_signals(p_run uuid, p_limit integer DEFAULT 1000)
    returns TABLE(seq bigint, topic text, key text, sent_at timestamp with time zone, payload json)
    stable, runs as its owner, set search_path=pg_catalog, pg_temp

function list_workers()
    returns TABLE(id bigint, name text, version text, pid integer, started_at timestamp with time zone, silent_ms bigint, in_flight integer, draining boolean, is_keeper boolean, queues text[], workflows text[])
    stable, runs as its owner, set search_path=pg_catalog, pg_temp

function list_workflows(p_name text DEFAULT NULL::text)
    returns TABLE(name text, declared_at timestamp with time zone, version text, input text, output text, tries bigint, graph json, workers bigint, versions text[])
    stable, runs as its owner, set search_path=pg_catalog, pg_temp

function live_runs(p_from timestamp with time zone, p_to timestamp with time zone, p_limit integer, p_since pg_snapshot DEFAULT NULL::pg_snapshot)
    returns uuid[]
    volatile

function live_state(p_run uuid)
    returns text
    stable

function living_member(p_run uuid, p_from uuid)
    returns uuid
    volatile

function lock_holders()
    returns TABLE(holder text, ending text, seconds bigint, tables text[])
    stable

function make_partitions()
    returns integer
    volatile, runs as its owner, set search_path=pg_catalog, pg_temp, lock_timeout=50ms

function make_ready(p_runs uuid[], p_attempts integer[], p_losses smallint[], p_deadlines timestamp with time zone[], p_pins text[])
    returns void
    volatile, set plan_cache_mode=force_generic_plan, enable_seqscan=off, jit=off

function new_run_id()
    returns uuid
    volatile

function next_signal(p_run uuid, p_topic text, p_consumed bigint[], OUT again boolean, OUT seq bigint, OUT key text, OUT payload json)
    returns record
    volatile, runs as its owner, set search_path=pg_catalog, pg_temp, jit=off, enable_seqscan=off, plan_cache_mode=force_generic_plan

function object_horizon()
    returns timestamp with time zone
    stable, runs as its owner, set search_path=pg_catalog, pg_temp

function outcomes(p_runs uuid[], p_new uuid[])
    returns TABLE(run_id uuid, status text, output json, error json)
    stable, runs as its owner, set search_path=pg_catalog, pg_temp, enable_seqscan=off, jit=off, plan_cache_mode=force_generic_plan

function park(p_worker bigint, p_runs uuid[], p_attempts integer[], p_dues timestamp with time zone[], p_awaits text[], p_freed uuid[])
    returns uuid[]
    volatile, set jit=off, enable_nestloop=off, enable_seqscan=off, plan_cache_mode=force_generic_plan

function pause_queue(p_queue text, p_paused boolean)
    returns void
    volatile, runs as its owner, set search_path=pg_catalog, pg_temp

function pause_schedule(name text, paused boolean DEFAULT true)
    returns void
    volatile, runs as its owner, set search_path=pg_catalog, pg_temp

function payload_digests(p_payload json)
    returns text[]
    immutable

function pin_of(p_worker bigint)
    returns text
    stable

function pins()
    returns TABLE(version text, is_alive boolean, grace_ms bigint)
    stable, runs as its owner, set search_path=pg_catalog, pg_temp, plan_cache_mode=force_generic_plan, jit=off, enable_seqscan=off, enable_bitmapscan=off

function present_event(p_run uuid, p_key text, OUT value json, OUT ended boolean)
    returns record
    stable, runs as its owner, set search_path=pg_catalog, pg_temp

function privileges()
    returns TABLE(function_name text, roles text[])
    immutable

function publish(p_worker bigint, p_runs uuid[], p_attempts integer[], p_keys text[], p_numbers integer[], p_values json[])
    returns void
    volatile, set plan_cache_mode=force_generic_plan, jit=off, enable_seqscan=off

function purge_dead(p_runs uuid[])
    returns TABLE(run_id uuid, answer text, code text)
    volatile, runs as its owner, set search_path=pg_catalog, pg_temp, jit=off, enable_seqscan=off, plan_cache_mode=force_generic_plan

function purge_queue(p_queue text, p_workflow text DEFAULT NULL::text, p_until timestamp with time zone DEFAULT NULL::timestamp with time zone, p_dry boolean DEFAULT false, p_limit integer DEFAULT 1000, p_after text DEFAULT NULL::text, p_group text DEFAULT NULL::text, OUT purged integer, OUT last text)
    returns record
    volatile, runs as its owner, set search_path=pg_catalog, pg_temp, jit=off, enable_seqscan=off, enable_bitmapscan=off, enable_hashjoin=off, enable_mergejoin=off

function read_events(p_run uuid, p_key text, p_after integer DEFAULT 0, p_limit integer DEFAULT 1000)
    returns TABLE(number integer, value json, published_at timestamp with time zone)
    stable, runs as its owner, set search_path=pg_catalog, pg_temp

function read_position(p_position text)
    returns integer[]
    immutable

function read_setting(p_settings jsonb, p_name text, p_least integer, p_old integer)
    returns integer
    stable

function read_span(p_value jsonb, p_name text, p_most interval DEFAULT '1 year'::interval)
    returns interval
    stable

function readmit_run(p_run uuid, p_attempt integer, p_due timestamp with time zone DEFAULT NULL::timestamp with time zone)
    returns void
    volatile, set plan_cache_mode=force_generic_plan, jit=off, enable_seqscan=off

function recorded(p_runs uuid[])
    returns TABLE(run_id uuid, "position" text, attempt integer)
    stable, runs as its owner, set search_path=pg_catalog, pg_temp, enable_seqscan=off, jit=off, plan_cache_mode=force_generic_plan

function redrive_dead(p_runs uuid[], p_queue text DEFAULT NULL::text, p_per_second double precision DEFAULT NULL::double precision, p_done integer DEFAULT 0)
    returns TABLE(run_id uuid, answer text, code text)
    volatile, runs as its owner, set search_path=pg_catalog, pg_temp

function refuse_draining(p_queues text[], p_groups text[] DEFAULT NULL::text[])
    returns void
    stable

function refuse_enqueue(p_workflow text, p_input json, p_queue text, p_key text, p_priority integer, p_delay interval, p_at timestamp with time zone, p_timeout interval, p_attempts integer, p_key_lifetime interval, p_group text DEFAULT NULL::text, p_weight integer DEFAULT 1)
    returns void
    stable

function refuse_living(p_run uuid)
    returns void
    stable

function refuse_position(p_run uuid, p_position integer[])
    returns void
    stable

function refuse_queue(p_queue text)
    returns void
    stable

function refuse_schedule(p_name text)
    returns void
    stable

function refuse_step(p_worker bigint, p_run uuid, p_attempt integer, p_position text)
    returns void
    volatile

function refuse_terms(p_key text, p_dedup boolean, p_throttle interval, p_debounce interval, p_debounce_max interval, p_delay interval, p_at timestamp with time zone, p_start_by timestamp with time zone, p_start_within interval)
    returns void
    stable

function refuse_undone(p_run uuid, p_act text, p_is_half boolean)
    returns void
    stable

function refuse_unknown(p_run uuid)
    returns void
    stable

function register_worker(p_name text, p_version text, p_pid integer, p_queues text[], p_workflows text[], p_session boolean, p_pinned boolean DEFAULT false, p_max_in_flight integer DEFAULT NULL::integer, OUT worker_id bigint)
    returns bigint
    volatile, runs as its owner, set search_path=pg_catalog, pg_temp

function release_pins(p_versions text[], p_limit integer)
    returns integer
    volatile, runs as its owner, set search_path=pg_catalog, pg_temp, jit=off, enable_seqscan=off, enable_hashjoin=off, enable_mergejoin=off

function restore_attributes(p_run uuid)
    returns void
    volatile

function retention(OUT history text, OUT dead text, OUT keys text)
    returns record
    stable, runs as its owner, set search_path=pg_catalog, pg_temp

function retry_run(p_run uuid, p_due timestamp with time zone DEFAULT NULL::timestamp with time zone)
    returns void
    volatile, runs as its owner, set search_path=pg_catalog, pg_temp

function revoke_defaults(p_table regclass)
    returns void
    volatile, set search_path=pg_catalog, pg_temp

function rewind_run(p_run uuid, p_position text)
    returns void
    volatile, runs as its owner, set search_path=pg_catalog, pg_temp

function roles()
    returns text[]
    immutable

function run_id_floor(at timestamp with time zone)
    returns uuid
    immutable

function run_result(p_run uuid)
    returns TABLE(state text, output json, error json)
    stable, runs as its owner, set search_path=pg_catalog, pg_temp, plan_cache_mode=force_generic_plan, jit=off, enable_seqscan=off

function run_time(run_id uuid)
    returns timestamp with time zone
    immutable

function runs_counted(p_count bigint)
    returns text
    immutable

function schema_version(OUT version integer, OUT tables_version integer, OUT serves_from integer)
    returns record
    stable, runs as its owner, set search_path=pg_catalog, pg_temp

function send_hint(p_channel text, p_payload text)
    returns void
    volatile

function send_signal(run_id uuid, topic text, payload json DEFAULT 'null'::json, key text DEFAULT NULL::text)
    returns boolean
    volatile, runs as its owner, set search_path=pg_catalog, pg_temp, plan_cache_mode=force_generic_plan, jit=off, enable_seqscan=off

function send_update(run_id uuid, topic text, payload json, key text)
    returns text
    volatile, runs as its owner, set search_path=pg_catalog, pg_temp

function send_wakes(p_runs uuid[])
    returns void
    volatile

function set_attributes(p_worker bigint, p_runs uuid[], p_attempts integer[], p_keys text[], p_values json[])
    returns void
    volatile, set plan_cache_mode=force_generic_plan, jit=off, enable_seqscan=off

function set_group(queue text, group_key text, paused boolean DEFAULT NULL::boolean, share integer DEFAULT NULL::integer, draining boolean DEFAULT NULL::boolean)
    returns void
    volatile, runs as its owner, set search_path=pg_catalog, pg_temp

function set_queue(queue text, settings jsonb)
    returns void
    volatile, runs as its owner, set search_path=pg_catalog, pg_temp

function set_retention(settings jsonb)
    returns void
    volatile, runs as its owner, set search_path=pg_catalog, pg_temp

function set_schedule(p_name text, p_workflow text, p_input json DEFAULT 'null'::json, p_queue text DEFAULT 'default'::text, p_priority integer DEFAULT 0, p_attributes jsonb DEFAULT NULL::jsonb, p_timeout interval DEFAULT NULL::interval, p_attempts integer DEFAULT 5, p_cron text DEFAULT NULL::text, p_timezone text DEFAULT NULL::text, p_every interval DEFAULT NULL::interval, p_overlap text DEFAULT 'skip'::text, p_jitter interval DEFAULT '00:00:00'::interval, p_catch_up interval DEFAULT '00:01:00'::interval, p_next timestamp with time zone DEFAULT NULL::timestamp with time zone)
    returns boolean
    volatile, runs as its owner, set search_path=pg_catalog, pg_temp

function show_run(p_run uuid)
    returns TABLE(id uuid, workflow text, queue text, state text, attempt integer, key text, priority smallint, enqueued_at timestamp with time zone, ended_at timestamp with time zone, worker_id bigint, error json, parent_id uuid, attributes json, group_key text, input json, output json, cancel_requested boolean, undo_by timestamp with time zone, signals json)
    stable, runs as its owner, set search_path=pg_catalog, pg_temp

function show_steps(p_run uuid)
    returns TABLE("position" text, name text, attempt integer, recorded_at timestamp with time zone, elapsed_ms integer, output json, error json)
    stable, runs as its owner, set search_path=pg_catalog, pg_temp

function spend(p_queue text, p_groups text[], p_tokens double precision[])
    returns void
    volatile, set plan_cache_mode=force_generic_plan, jit=off, enable_seqscan=off

function standing_partition(OUT partition text, OUT alive integer, OUT awaited integer, OUT parent uuid, OUT of_parent integer)
    returns SETOF record
    stable

function start_children(p_worker bigint, p_parents uuid[], p_parent_attempts integer[], p_ids uuid[], p_workflows text[], p_inputs json[], p_queues text[], p_priorities integer[], p_delays interval[], p_attributes jsonb[], p_timeouts interval[], p_deadlines timestamp with time zone[], p_attempts integer[], p_detached boolean[], p_groups text[], p_weights integer[])
    returns void
    volatile

function start(p_worker bigint, p_workflows text[], p_inputs json[], p_queues text[], p_keys text[], p_priorities integer[], p_attributes jsonb[], p_timeouts interval[], p_attempts integer[], p_key_lifetimes interval[], p_groups text[] DEFAULT NULL::text[], p_weights integer[] DEFAULT NULL::integer[])
    returns TABLE(run_id uuid, is_new boolean)
    volatile, runs as its owner, set search_path=pg_catalog, pg_temp, plan_cache_mode=force_generic_plan, jit=off

function step_fate(p_backend integer, p_xid xid8, p_run uuid, p_position text, p_attempt integer DEFAULT NULL::integer)
    returns text
    volatile, runs as its owner, set search_path=pg_catalog, pg_temp

function step_is_marked(p_run uuid, p_position text)
    returns boolean
    stable, runs as its owner, set search_path=pg_catalog, pg_temp

function step_is_open(p_run uuid, p_position text)
    returns boolean
    stable, runs as its owner, set search_path=pg_catalog, pg_temp

function stop_schedule(p_name text, p_tick timestamp with time zone, p_reason text)
    returns void
    volatile, runs as its owner, set search_path=pg_catalog, pg_temp

function sweep(p_queue text, p_workflow text, p_priority smallint, p_above bigint, p_upto bigint, p_late xid8[], p_held bigint[])
    returns bigint
    stable, runs as its owner, set search_path=pg_catalog, pg_temp, plan_cache_mode=force_generic_plan, jit=off, enable_seqscan=off, enable_bitmapscan=off

function tags(p_runs uuid[])
    returns text
    immutable

function take_changed(p_worker bigint, p_runs uuid[], p_attempts integer[])
    returns TABLE(run_id uuid, attempt integer, deadline timestamp with time zone)
    volatile, set plan_cache_mode=force_generic_plan, jit=off, enable_seqscan=off, enable_hashjoin=off, enable_mergejoin=off

function take_key_again(p_run uuid)
    returns void
    volatile, set plan_cache_mode=force_generic_plan, jit=off, enable_seqscan=off

function take_key_by(p_rule "char", p_workflow text, p_key text, p_input json, p_period interval, p_max interval, p_run_id uuid, OUT run_id uuid, OUT is_new boolean)
    returns record
    volatile

function take_key(p_workflow text, p_key text, p_input json, p_lifetime interval, p_run_id uuid, OUT run_id uuid, OUT is_new boolean)
    returns record
    volatile

function take_wake(p_run uuid)
    returns boolean
    volatile, runs as its owner, set search_path=pg_catalog, pg_temp, jit=off, enable_seqscan=off

function tell_waiters(p_runs uuid[])
    returns void
    volatile

function tick_schedule(p_name text, p_tick timestamp with time zone, p_next timestamp with time zone)
    returns text
    volatile, runs as its owner, set search_path=pg_catalog, pg_temp, lock_timeout=50ms

function tokens(p_queue text, p_group text, p_limit integer, p_period interval, p_burst integer)
    returns double precision
    volatile, set plan_cache_mode=force_generic_plan, jit=off, enable_seqscan=off

function trigger_schedule(name text)
    returns uuid
    volatile, runs as its owner, set search_path=pg_catalog, pg_temp

function unblock_group(queue text, group_key text)
    returns boolean
    volatile, runs as its owner, set search_path=pg_catalog, pg_temp

function unseen_xids(p_since pg_snapshot, p_upto pg_snapshot, OUT lows xid8[], OUT highs xid8[])
    returns record
    immutable

function vital_signs()
    returns TABLE(name text, value text)
    stable, runs as its owner, set search_path=pg_catalog, pg_temp

function wait_for_members(p_run uuid)
    returns boolean
    volatile

function wake()
    returns void
    volatile

function wake_parents(p_runs uuid[])
    returns void
    volatile

function wake_up(p_worker bigint, p_runs uuid[], p_managed boolean DEFAULT false)
    returns TABLE(run_id uuid, attempt integer, losses smallint, deadline timestamp with time zone)
    volatile, set jit=off, enable_seqscan=off, enable_bitmapscan=off, plan_cache_mode=force_generic_plan

function why_run(p_run uuid)
    returns TABLE(reason text, explanation text, run_id uuid, until timestamp with time zone)
    stable, runs as its owner, set search_path=pg_catalog, pg_temp, jit=off, enable_seqscan=off
