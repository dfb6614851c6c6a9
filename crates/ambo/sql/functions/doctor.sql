-- Transactions that are not Ambo's own, older than 5 s, and have rows of Ambo's tables locked or written, the oldest first: who it
-- is, the statement that ends it, how old it is, and the tables. Ambo passes over rows that are locked, or waits for a moment only, so that nothing
-- else shows what it stands still for. One of a user's that has enqueued is among them. `seconds` is null, whatever the age, of a session
-- whose user's activity the owner of the schema may not see: he is not of pg_read_all_stats.
create or replace function ambo.lock_holders() returns table (holder text, ending text, seconds bigint, tables text[])
language sql stable
as $$
    with lock as materialized (
        select * from pg_locks l where l.granted and l.locktype in ('relation', 'transactionid')
    ), held as materialized (
        select l.pid, l.virtualtransaction, array_agg(distinct t.relname::text order by t.relname::text) as tables
        from lock l
        join pg_class c on c.oid = l.relation and c.relnamespace = 'ambo'::regnamespace and c.relkind in ('r', 'p')
        join pg_class t on t.oid = coalesce(pg_partition_root(c.oid), c.oid)
        where l.locktype = 'relation' and l.database = (select d.oid from pg_database d where d.datname = current_database())
          -- Not ShareUpdateExclusiveLock: a vacuum has it, and holds up no row.
          and l.mode in ('RowShareLock', 'RowExclusiveLock', 'ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
        group by l.pid, l.virtualtransaction
    ), holder as (
        select format('session %s (%s)', a.pid, concat_ws(', ', a.usename, nullif(a.application_name, ''))) as holder,
               format('select pg_terminate_backend(%s)', a.pid) as ending, a.xact_start as since, h.tables
        from held h join pg_stat_activity a on a.pid = h.pid
        where a.usename is not null and coalesce(a.application_name, '') not like 'ambo %'
          and coalesce(a.backend_type, '') not in ('autovacuum worker', 'parallel worker')
          -- What may be seen and has no age any more has ended since its locks were read.
          and (a.xact_start is not null or a.backend_type is null)
        union all
        -- The locks of one that is prepared name no process. What they have in common with it is the lock on its xid.
        select format('prepared transaction %L (%s)', p.gid, p.owner), format('rollback prepared %L', p.gid), p.prepared, h.tables
        from held h
        join lock x on x.locktype = 'transactionid' and x.pid is null and x.virtualtransaction = h.virtualtransaction
        join pg_prepared_xacts p on p.transaction = x.transactionid
        where h.pid is null
    )
    select h.holder, h.ending, floor(extract(epoch from pg_catalog.clock_timestamp() - h.since))::bigint, h.tables
    from holder h where h.since is null or h.since < pg_catalog.clock_timestamp() - interval '5 seconds'
    order by h.since
$$;

-- What `ambo doctor` looks at, as name and figure. A name may come several times, once for each thing that it is
-- true of: missing_role, paused_queue, draining_queue, and of groups (as JSON: queue, group) paused_group, draining_group, blocked_group; unserved_lane (as JSON: queue, workflow), and unserved_pin (as JSON: queue, workflow, version), of runs that are
-- pinned to a version of which no worker lives. standing_partition is of one that is older than the retention (as JSON: name, runs
-- alive, runs awaited, the parent of most of these, how many are its). blocked is of a session of Ambo's that waits for a lock (as JSON:
-- what it is for, who holds the lock): everybody who may connect may take such locks. lock_holder is what lock_holders() says of one (as JSON: who,
-- the statement that ends it, seconds or null, tables).
create or replace function ambo.vital_signs() returns table (name text, value text)
language sql stable security definer set search_path = pg_catalog, pg_temp
as $$
    with alive as (
        select w.queues, w.workflows, case when w.pinned then w.version end as version
        from ambo.worker w join ambo.heartbeat h on h.worker_id = w.id
        where w.dead_at is null and h.at > pg_catalog.clock_timestamp() - interval '5 seconds'
    ), lane as materialized (
        select l.queue, split_part(l.workflow, chr(31), 1) as workflow, split_part(l.workflow, chr(31), 2) as version
        from (select * from ambo.lanes() limit 1000) l
    ), unserved as (
        select distinct l.queue, l.workflow from lane l
        where not exists (select from alive a where l.queue = any (a.queues) and l.workflow = any (a.workflows))
        limit 20
    ), unserved_pin as (
        select distinct l.* from lane l
        where l.version <> '' and not exists (
            select from alive a where l.queue = any (a.queues) and l.workflow = any (a.workflows) and a.version = l.version)
        limit 20
    ), oldest as (
        -- What vacuum has to wait for: a snapshot or a transaction that has written, of this database.
        select (extract(epoch from pg_catalog.clock_timestamp() - s.since))::bigint as seconds, s.holder
        from (
            select a.xact_start as since,
                   concat_ws(', ', 'process ' || a.pid, 'user ' || a.usename, nullif(a.application_name, ''), a.state)
                       as holder
            from pg_stat_activity a
            where (a.backend_xmin is not null or a.backend_xid is not null) and a.xact_start is not null
              and a.datname = current_database() and a.pid <> pg_backend_pid()
              and a.backend_type <> 'autovacuum worker'
            union all
            select p.prepared, 'prepared transaction ' || quote_literal(p.gid)
            from pg_prepared_xacts p where p.database = current_database()
        ) s
        order by s.since limit 1
    ), blocked as (
        select distinct w.application_name as waits,
               concat_ws(', ', 'process ' || h.pid, 'user ' || h.usename, nullif(h.application_name, ''), h.state) as holder
        from pg_locks l
        join pg_stat_activity w on w.pid = l.pid and w.datname = current_database() and w.application_name like 'ambo %'
        cross join unnest(pg_blocking_pids(l.pid)) b (pid)
        join pg_stat_activity h on h.pid = b.pid
        -- Ours wait for each other for a moment, and give up after two seconds, to come again.
        where not l.granted and l.waitstart < pg_catalog.clock_timestamp() - interval '200 ms'
        limit 20
    )
    select 'schema_version', i.schema_version::text from ambo.installation i
    union all select 'server_version', current_setting('server_version')
    union all select 'in_recovery', pg_is_in_recovery()::text
    union all select 'adopted', exists (
        select from ambo.installation i, pg_control_system() s, pg_database d
        where i.system_identifier = s.system_identifier and i.database_oid = d.oid
          and d.datname = current_database())::text
    union all select 'oldest_snapshot_seconds', coalesce((select o.seconds from oldest o), 0)::text
    union all select 'oldest_snapshot_holder', o.holder from oldest o
    union all select 'blocked', json_build_array(b.waits, b.holder)::text from blocked b
    union all select 'lock_holder', json_build_array(h.holder, h.ending, h.seconds, h.tables)::text
        from (select * from ambo.lock_holders() limit 20) h
    union all select 'dead_rows_' || s.relname, s.n_dead_tup::text
        from pg_stat_user_tables s
        where s.schemaname = 'ambo' and s.relname in ('ready', 'claim', 'timer', 'heartbeat', 'keeper')
    union all select 'notification_queue_percent', floor(pg_notification_queue_usage() * 100)::text
    union all select 'partitions_ahead', count(*)::text from ambo.history_partition p where p.starts_at > now()
    union all select 'partition_now', (count(*) > 0)::text
        from ambo.history_partition p where now() >= p.starts_at and now() < p.ends_at
    union all select 'standing_partition', json_build_array(s.partition, s.alive, s.awaited, s.parent, s.of_parent)::text
        from ambo.standing_partition() s
    union all select 'workers_registered', count(*)::text from ambo.worker
    union all select 'workers_alive', count(*)::text from alive
    union all select 'keeper_silent_ms', (extract(epoch from pg_catalog.clock_timestamp() - k.renewed_at) * 1000)::bigint::text
        from ambo.keeper k where k.worker_id is not null and k.renewed_at > '-infinity'
    union all select 'missing_role', r.name from unnest(ambo.roles()) r (name)
        where not exists (select from pg_roles p where p.rolname = r.name)
    union all select 'paused_queue', q.name from ambo.queue q where q.paused
    union all select 'draining_queue', q.name from ambo.queue q where q.draining
    union all select s.name, json_build_array(g.queue, g.group_key)::text
        from (select * from ambo.list_groups() limit 1000) g
        cross join lateral (values ('paused_group', g.paused), ('draining_group', g.draining),
                                   ('blocked_group', g.blocked_by is not null)) s (name, holds)
        where s.holds
    union all select 'dead_runs', count(*)::text
        from (select from ambo.outcome o where o.status = 'dead' limit 10000) d
    union all select 'unserved_lane', json_build_array(u.queue, u.workflow)::text from unserved u
    union all select 'unserved_pin', json_build_array(p.queue, p.workflow, p.version)::text from unserved_pin p
    union all select 'fsync', current_setting('fsync')
    -- The default of the role and database: Ambo's own sessions set it to on.
    union all select 'synchronous_commit', s.reset_val from pg_settings s where s.name = 'synchronous_commit'
$$;
