-- What `ambo doctor` looks at, as name and figure.
create or replace function ambo.vital_signs() returns table (name text, value text)
language sql stable security definer set search_path = pg_catalog, pg_temp
as $$
    select 'schema_version', i.schema_version::text from ambo.installation i
    union all select 'server_version', current_setting('server_version')
    union all select 'oldest_snapshot_seconds', coalesce(max(extract(epoch from now() - a.xact_start))::bigint, 0)::text
        from pg_stat_activity a where a.backend_xmin is not null and a.pid <> pg_backend_pid()
    union all select 'dead_rows_' || s.relname, s.n_dead_tup::text
        from pg_stat_user_tables s where s.schemaname = 'ambo' and s.relname in ('ready', 'claim', 'timer', 'heartbeat', 'keeper')
    union all select 'partitions_ahead', count(*)::text from ambo.history_partition p where p.starts_at > now()
    union all select 'partition_now', (count(*) > 0)::text from ambo.history_partition p where now() >= p.starts_at and now() < p.ends_at
    union all select 'workers_alive', count(*)::text from ambo.heartbeat h where h.at > clock_timestamp() - interval '5 seconds'
    union all select 'keeper_silent_ms', coalesce((extract(epoch from clock_timestamp() - k.renewed_at) * 1000)::bigint::text, 'never') from ambo.keeper k
        where k.renewed_at > '-infinity'
    union all select 'fsync', current_setting('fsync')
    union all select 'synchronous_commit', current_setting('synchronous_commit')
$$;
