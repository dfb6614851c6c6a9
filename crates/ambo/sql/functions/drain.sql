-- Drain and purge: a queue, or a group of one, that takes no new runs, and one that loses those that wait.

-- Lets a queue, or with p_group one group of it, take no new runs (AMBO009) while those that wait are worked off, or lets it take runs again. Nor
-- does it take those that had ended. What runs themselves start there goes on being taken: the queue would never be empty otherwise.
create or replace function ambo.drain_queue(p_queue text, p_draining boolean default true, p_group text default null)
returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
begin
    if p_draining is null then
        raise exception 'AMBO005: draining is true or false, not null' using errcode = 'AM005';
    end if;
    if p_group is not null then
        perform ambo.set_group(p_queue, p_group, draining => p_draining);
        return;
    end if;
    update ambo.queue q set draining = p_draining where q.name = p_queue;
    if not found then
        raise exception 'AMBO002: there is no queue %', coalesce(quote_literal(left(p_queue, 200)), 'null')
            using errcode = 'AM002';
    end if;
end $$;

-- Refuses new runs for queues (null: the default one), and groups of them, that are being drained.
create or replace function ambo.refuse_draining(p_queues text[], p_groups text[] default null) returns void
language plpgsql stable
as $$
declare
    v_queue text;
    v_group text;
begin
    -- Mostly there is none, and it costs next to nothing to see that.
    if exists (select from ambo.queue q where q.draining) then
        select q.name into v_queue from ambo.queue q
        where q.draining and q.name in (select coalesce(u.name, 'default') from unnest(p_queues) u (name));
        if found then
            raise exception 'AMBO009: queue % is being drained and takes no new runs', quote_literal(v_queue)
                using errcode = 'AM009', hint = format('To let it take runs again: select ambo.drain_queue(%L, false).', v_queue);
        end if;
    end if;
    if p_groups is not null and exists (select from ambo.queue_group g where g.draining) then
        select g.queue, g.group_key into v_queue, v_group
        from unnest(p_queues, p_groups) as u (queue, group_key)
        cross join lateral (
            select g.queue, g.group_key from ambo.queue_group g
            where g.queue = coalesce(u.queue, 'default') and g.group_key = u.group_key and g.draining offset 0) g
        limit 1;
        if found then
            raise exception 'AMBO009: group % of queue % is being drained and takes no new runs', quote_literal(v_group),
                quote_literal(v_queue) using errcode = 'AM009',
                hint = format('To let it take runs again: select ambo.drain_queue(%L, false, %L).', v_queue, v_group);
        end if;
    end if;
end $$;

-- Ends, as cancelled, runs of a queue, or of one group of it, that wait and were never claimed: those that are ready, then
-- those that are delayed.
-- In batches of up to p_limit rows: `last`, given back with the next call, is null when all is done. With p_dry they are
-- only counted.
create or replace function ambo.purge_queue(
    p_queue text, p_workflow text default null, p_until timestamptz default null, p_dry boolean default false,
    p_limit integer default 1000, p_after text default null, p_group text default null,
    out purged integer, out last text)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp set jit = off set enable_seqscan = off set enable_bitmapscan = off set enable_hashjoin = off
set enable_mergejoin = off
as $$
declare
    v_at text[] := string_to_array(p_after, chr(30));
    v_ids uuid[];
    v_seen integer;
    v_below uuid := case when p_until is not null then ambo.run_id_floor(p_until) end;
begin
    if not exists (select from ambo.queue q where q.name = p_queue) then
        raise exception 'AMBO002: there is no queue %', coalesce(quote_literal(left(p_queue, 200)), 'null')
            using errcode = 'AM002';
    end if;
    p_limit := greatest(p_limit, 1);
    if v_at is null or v_at[1] = 'ready' then
        -- From lane to lane, and into those that are wanted: what waits elsewhere is not read.
        with recursive lane as (
            (select r.workflow from ambo.ready r
             where r.queue = p_queue and r.workflow >= coalesce(v_at[2], '') order by r.workflow limit 1)
            union all
            select n.workflow from lane l cross join lateral (
                select r.workflow from ambo.ready r
                where r.queue = p_queue and r.workflow > l.workflow order by r.workflow limit 1) n
        ), seen as materialized (
            select f.* from lane l cross join lateral (
                select r.ctid as place, r.run_id, r.workflow, r.priority, r.seq,
                       r.attempt = 0 and not r.wakes and (v_below is null or r.run_id < v_below) as wanted
                from ambo.ready r
                where r.queue = p_queue and r.workflow = l.workflow
                  and (l.workflow is distinct from v_at[2]
                       or (r.priority, r.seq) > (v_at[3]::smallint, v_at[4]::bigint))
                order by r.priority, r.seq limit p_limit) f
            where (p_workflow is null or split_part(l.workflow, chr(31), 1) = p_workflow)
              and (p_group is null or split_part(l.workflow, chr(31), 3) = p_group)
            limit p_limit
        ), dropped as (
            delete from ambo.ready d where not p_dry and d.ctid = any (array(
                select r.ctid from ambo.ready r
                where r.ctid = any (array(select s.place from seen s where s.wanted)) for update skip locked))
            returning d.run_id
        )
        select case when p_dry then array(select s.run_id from seen s where s.wanted) else array(select d.run_id from dropped d) end,
               (select count(*) from seen),
               (select concat_ws(chr(30), 'ready', s.workflow, s.priority, s.seq) from seen s
                order by s.workflow desc, s.priority desc, s.seq desc limit 1)
        into v_ids, v_seen, last;
        if v_seen < p_limit then
            last := 'timer';
        end if;
    else
        with seen as materialized (
            select t.ctid as place, t.run_id,
                   t.attempt = 0 and r.queue = p_queue and (v_below is null or t.run_id < v_below)
                   and (p_workflow is null or r.workflow = p_workflow)
                   and (p_group is null or r.group_key = p_group) as wanted
            from (select t.ctid, t.* from ambo.timer t
                  where t.run_id > coalesce(v_at[2]::uuid, '00000000-0000-0000-0000-000000000000')
                  order by t.run_id limit p_limit) t
            cross join lateral (select r.* from ambo.run r where r.id = t.run_id offset 0) r
        ), dropped as (
            delete from ambo.timer d where not p_dry and d.ctid = any (array(
                select t.ctid from ambo.timer t
                where t.ctid = any (array(select s.place from seen s where s.wanted)) for update skip locked))
            returning d.run_id
        )
        select case when p_dry then array(select s.run_id from seen s where s.wanted) else array(select d.run_id from dropped d) end,
               (select count(*) from seen),
               (select concat_ws(chr(30), 'timer', s.run_id) from seen s order by s.run_id desc limit 1)
        into v_ids, v_seen, last;
        if v_seen < p_limit then
            last := null;
        end if;
    end if;
    purged := cardinality(v_ids);
    if purged = 0 or p_dry then
        return;
    end if;
    insert into ambo.outcome (run_id, attempt, status, error)
    select i, 0, 'cancelled', json_build_object('code', 'AMBO025', 'message', 'cancelled: its queue was purged')
    from unnest(v_ids) i;
    perform ambo.drop_requests(v_ids);
    delete from ambo.fan_in f where f.run_id = any (v_ids);
    perform ambo.tell_waiters(v_ids);
    perform ambo.wake_parents(v_ids);
end $$;
