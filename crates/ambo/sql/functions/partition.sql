-- History is partitioned by range of the run id, whose order is time, and dropped a partition at a time.
-- Below the oldest partition stands `*_carried`, a partition too, so that every read and write knows it: runs
-- that outlive their partition are moved there in the transaction that drops it.
-- All DDL here gives up after 50 ms of waiting for a lock and is tried again later.

-- What the owner's default privileges give to others of a new table, or of all that a new installation has: nobody reads or writes here but
-- through functions. What is granted by hand later stays.
create or replace function ambo.revoke_defaults(p_table regclass) returns void
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
declare
    v_right record;
begin
    for v_right in
        select case c.relkind when 'S' then 'sequence' else 'table' end as kind, c.oid::regclass::text as name, a.grantee
        from pg_class c cross join lateral aclexplode(c.relacl) a
        where c.relnamespace = 'ambo'::regnamespace and c.relkind in ('r', 'p', 'S') and a.grantee <> c.relowner
          and (p_table is null or c.oid = p_table)
        union
        select 'function', p.oid::regprocedure::text, a.grantee
        from pg_proc p cross join lateral aclexplode(p.proacl) a
        where p.pronamespace = 'ambo'::regnamespace and a.grantee <> p.proowner and p_table is null
          and a.grantee not in (select r.oid from pg_roles r where r.rolname = any (ambo.roles()))
    loop
        execute format('revoke all on %s %s from %s', v_right.kind, v_right.name,
                       case v_right.grantee when 0 then 'public' else quote_ident(pg_get_userbyid(v_right.grantee)) end);
    end loop;
end $$;

-- Makes partitions until `partitions_ahead` of them lie in the future. Returns how many it made.
create or replace function ambo.make_partitions() returns integer
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp set lock_timeout = '50ms'
as $$
declare
    v_width interval;
    v_ahead integer;
    v_from timestamptz;
    v_to timestamptz;
    v_name text;
    v_table text;
    v_made integer := 0;
begin
    perform pg_advisory_xact_lock(hashtext('ambo.partition'));
    select i.partition_width, i.partitions_ahead into v_width, v_ahead from ambo.installation i;
    loop
        v_from := coalesce((select max(p.ends_at) from ambo.history_partition p),
                           date_trunc('day', now(), 'UTC'));
        exit when v_from > now() + v_width * v_ahead;
        v_to := v_from + v_width;
        v_name := to_char(v_from at time zone 'UTC', 'YYYYMMDD_HH24MI');
        foreach v_table in array array['run', 'outcome', 'child', 'attribute', 'checkpoint', 'signal', 'event'] loop
            -- Vacuum soon after the runs have come, not when a fifth more have: it writes the index of the rare.
            execute format('create table ambo.%I (like ambo.%I including all)', v_table || '_' || v_name, v_table)
                || case when v_table = 'run' then ' with (autovacuum_vacuum_insert_scale_factor = 0,
                                                          autovacuum_vacuum_insert_threshold = 50000)' else '' end;
            execute format('alter table ambo.%I attach partition ambo.%I for values from (%L) to (%L)',
                           v_table, v_table || '_' || v_name,
                           ambo.run_id_floor(v_from), ambo.run_id_floor(v_to));
            perform ambo.revoke_defaults(format('ambo.%I', v_table || '_' || v_name)::regclass);
            if not exists (select from ambo.history_partition) then
                -- The first one: the carried partition reaches up to it.
                execute format('alter table ambo.%I detach partition ambo.%I', v_table, v_table || '_carried');
                execute format('alter table ambo.%I attach partition ambo.%I for values from (minvalue) to (%L)',
                               v_table, v_table || '_carried', ambo.run_id_floor(v_from));
            end if;
        end loop;
        insert into ambo.history_partition values (v_from, v_to);
        v_made := v_made + 1;
    end loop;
    return v_made;
end $$;

-- Drops the oldest partition if all of it is older than the retention and few of its runs are alive, or awaited by such;
-- those are carried over. Returns true if it dropped one.
create or replace function ambo.drop_partition() returns boolean
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp set lock_timeout = '50ms' set enable_hashjoin = on set jit = off
as $$
declare
    v_since pg_snapshot := pg_current_snapshot();
    v_part ambo.history_partition%rowtype;
    v_name text;
    v_table text;
    v_key text;
    v_live uuid[];
    v_awaited uuid[];
    v_kept uuid[];
begin
    perform pg_advisory_xact_lock(hashtext('ambo.partition'));
    select p.* into v_part from ambo.history_partition p order by p.starts_at limit 1;
    if not found or v_part.ends_at > now() - (select i.retention from ambo.installation i) then
        return false;
    end if;
    v_live := ambo.live_runs(v_part.starts_at, v_part.ends_at, 1001);
    if cardinality(v_live) > 1000
       or cardinality(ambo.awaited_runs(v_live, v_part.starts_at, v_part.ends_at, 10001)) > 10000
    then
        return false;
    end if;
    -- Whoever moves a run between ready, claim and timer reads ambo.run in the same transaction, so that with
    -- these locks nothing is on its way. Everybody waits for them: nothing is walked under them, only what is new since the look above is read.
    lock table ambo.run, ambo.outcome, ambo.child, ambo.attribute, ambo.checkpoint, ambo.signal, ambo.event
        in access exclusive mode;
    v_live := array(select unnest(v_live) union
                    select unnest(ambo.live_runs(v_part.starts_at, v_part.ends_at, null, v_since)));
    v_awaited := ambo.awaited_runs(v_live, v_part.starts_at, v_part.ends_at, null);
    v_kept := ambo.awaited_runs('{}', '-infinity', v_part.starts_at, null);
    v_name := to_char(v_part.starts_at at time zone 'UTC', 'YYYYMMDD_HH24MI');
    -- What was carried before and has ended long ago leaves now.
    delete from ambo.run_carried r using ambo.outcome_carried o
    where o.run_id = r.id
      and o.ended_at < now() - (select greatest(i.retention, case when o.status = 'dead' then i.dead_lifetime end)
                                from ambo.installation i)
      and not exists (select from unnest(v_kept) k where k = r.id);
    delete from ambo.outcome_carried o where not exists (select from ambo.run_carried r where r.id = o.run_id);
    delete from ambo.child_carried c where not exists (select from ambo.run_carried r where r.id = c.run_id);
    delete from ambo.attribute_carried a where not exists (select from ambo.run_carried r where r.id = a.run_id);
    delete from ambo.checkpoint_carried c where not exists (select from ambo.run_carried r where r.id = c.run_id);
    delete from ambo.signal_carried s where not exists (select from ambo.run_carried r where r.id = s.run_id);
    delete from ambo.event_carried e where not exists (select from ambo.run_carried r where r.id = e.run_id);
    foreach v_table in array array['run', 'outcome', 'child', 'attribute', 'checkpoint', 'signal', 'event'] loop
        v_key := case v_table when 'run' then 'id' else 'run_id' end;
        execute format('alter table ambo.%I detach partition ambo.%I', v_table, v_table || '_carried');
        execute format('alter table ambo.%I detach partition ambo.%I', v_table, v_table || '_' || v_name);
        -- By key: nobody waits for a scan of the whole partition.
        execute format('insert into ambo.%I select p.* from (select distinct k from unnest($1) k) k
                        cross join lateral (select * from ambo.%I p where p.%I = k.k offset 0) p',
                       v_table || '_carried', v_table || '_' || v_name, v_key) using v_live || v_awaited;
        execute format('alter table ambo.%I attach partition ambo.%I for values from (minvalue) to (%L)',
                       v_table, v_table || '_carried', ambo.run_id_floor(v_part.ends_at));
        execute format('drop table ambo.%I', v_table || '_' || v_name);
    end loop;
    delete from ambo.history_partition p where p.starts_at = v_part.starts_at;
    return true;
end $$;

-- The oldest partition, where all of it is older than the retention and it stands all the same, since there is more in it than is
-- carried over (see above), counted up to 100,000: runs that are alive, or, where those are few, runs that are awaited; of these
-- also the parent of most. No row where nothing keeps it.
create or replace function ambo.standing_partition(
    out partition text, out alive integer, out awaited integer, out parent uuid, out of_parent integer)
returns setof record
language plpgsql stable
as $$
declare
    v_part ambo.history_partition%rowtype;
    v_live uuid[];
    v_awaited uuid[];
begin
    select p.* into v_part from ambo.history_partition p order by p.starts_at limit 1;
    if not found or v_part.ends_at > now() - (select i.retention from ambo.installation i) then
        return;
    end if;
    partition := to_char(v_part.starts_at at time zone 'UTC', 'YYYYMMDD_HH24MI');
    v_live := ambo.live_runs(v_part.starts_at, v_part.ends_at, 100000);
    alive := cardinality(v_live);
    if alive <= 1000 then
        v_awaited := ambo.awaited_runs(v_live, v_part.starts_at, v_part.ends_at, 100000);
        awaited := cardinality(v_awaited);
        if awaited <= 10000 then
            return;
        end if;
        select r.parent_id, count(*) into parent, of_parent
        from unnest(v_awaited) a (id)
        cross join lateral (select r.parent_id from ambo.run r where r.id = a.id offset 0) r
        group by 1 order by 2 desc, 1 limit 1;
    end if;
    return next;
end $$;

-- The runs of a time range that are not to be dropped, up to p_limit: those that have not ended, which stand in ready, claim
-- or timer, and the dead, where they are kept longer than other history. Of ready, which has no index by run, all is walked over,
-- what is dead and cannot be vacuumed too; with p_since, only what that snapshot did not show.
create or replace function ambo.live_runs(
    p_from timestamptz, p_to timestamptz, p_limit integer, p_since pg_snapshot default null) returns uuid[]
language sql volatile
as $$
    select array(
        select l.run_id from (
            select r.run_id from ambo.ready r where p_since is null union all
            select r.run_id
            from ambo.unseen_xids(p_since, pg_current_snapshot()) u
            cross join lateral unnest(u.lows, u.highs) x (low, high)
            cross join lateral (select r.run_id from ambo.ready r where r.xid between x.low and x.high offset 0) r
            where p_since is not null union all
            select c.run_id from ambo.claim c union all
            select t.run_id from ambo.timer t union all
            select o.run_id from ambo.outcome o
            where o.status = 'dead' and o.run_id >= ambo.run_id_floor(p_from) and o.run_id < ambo.run_id_floor(p_to)
              and o.ended_at > now() - (select i.dead_lifetime from ambo.installation i)) l
        where l.run_id >= ambo.run_id_floor(p_from) and l.run_id < ambo.run_id_floor(p_to)
        limit p_limit)
$$;

-- The runs of a time range whose results others may still ask for, up to p_limit: children that are not detached, and members
-- of a fan-in, of p_live and of what was carried over and goes on, or may be run again. A run that continued as new can only
-- ask for those that it has started since. What they started in their turn is not among them.
create or replace function ambo.awaited_runs(p_live uuid[], p_from timestamptz, p_to timestamptz, p_limit integer)
returns uuid[]
language sql volatile set enable_hashjoin = on set jit = off
as $$
    with parent as materialized (
        -- Counted, so that it is looked up by key.
        select l.id, (select count(*) from ambo.checkpoint c where c.run_id = l.id and c.position = '0.0') > 0 as continued
        from (
            select unnest(p_live) as id
            union
            select r.id from ambo.run_carried r left join ambo.outcome_carried o on o.run_id = r.id
            where o.run_id is null or o.status <> 'succeeded' and o.ended_at > now() - (
                select greatest(i.retention, case when o.status = 'dead' then i.dead_lifetime end)
                from ambo.installation i)) l
    )
    select array(
        select c.id
        from parent p
        cross join lateral (
            select c.child_id as id from ambo.child c
            where not p.continued and c.run_id = p.id
              and c.child_id >= ambo.run_id_floor(p_from) and c.child_id < ambo.run_id_floor(p_to)
            union all
            select (k.output #>> '{}')::uuid from ambo.checkpoint k
            where p.continued and k.run_id = p.id and starts_with(k.name, 'ambo:child ')
            offset 0) c
        cross join lateral (select from ambo.run r where r.id = c.id and r.parent_id = p.id offset 0) r
        where c.id >= ambo.run_id_floor(p_from) and c.id < ambo.run_id_floor(p_to)
        limit p_limit)
$$;
