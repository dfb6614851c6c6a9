-- Search: runs by what they are, newest first, a page at a time.

-- Runs below the cursor p_before, newest first; a filter that is null is open. Each filter that leads to few runs has an
-- index of its own, and the search begins there: a parent, states, attributes. A workflow, queue or group is looked for from the
-- newest run on, or, if it is rare, where an index says that it may be (see ambo.is_rare).
-- `p_text` is looked for, in whatever case, in the id, workflow, key, input, output and error of what the others leave:
-- bound it by p_since. The children of p_parent are also those that it detached; of these `parent_id` is null.
--
-- The statement is planned anew for what was asked; compiling it would take longer than it runs. Reading all is never the
-- answer, though the planner believes that the index of the rare leads to as much. Volatile for the sake of an `explain`.
create or replace function ambo.list_runs(
    p_workflow text default null, p_queue text default null, p_state text default null,
    p_before uuid default null, p_limit integer default 50, p_since timestamptz default null,
    p_until timestamptz default null, p_attributes jsonb default null, p_parent uuid default null,
    p_text text default null, p_group text default null)
returns table (id uuid, workflow text, queue text, state text, attempt integer, key text, priority smallint,
               enqueued_at timestamptz, ended_at timestamptz, worker_id bigint, error json, parent_id uuid,
               attributes json, group_key text)
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
set enable_seqscan = off set jit = off
as $$
begin
    if p_state is not null
       and p_state <> all ('{ready,delayed,running,parked,succeeded,failed,cancelled,dead}'::text[])
    then
        raise exception 'AMBO005: there is no state %', quote_literal(left(p_state, 100))
            using errcode = 'AM005',
                hint = 'States: ready, delayed, running, parked, succeeded, failed, cancelled, dead.';
    elsif p_attributes is not null and jsonb_typeof(p_attributes) <> 'object' then
        raise exception 'AMBO005: attributes are a JSON object, not %', jsonb_typeof(p_attributes)
            using errcode = 'AM005', hint = 'For example: {"customer": 1001}.';
    end if;
    return query execute ambo.list_query(case
        when p_parent is not null then 'parent'
        when p_state <> 'succeeded' then p_state
        when p_attributes is not null then 'attributes'
        when coalesce(p_workflow, p_queue, p_group) is null then coalesce(p_state, 'run')
        when ambo.is_rare(p_workflow, p_queue, p_limit, p_group) then 'rare'
        else 'run' end)
    using p_workflow, p_queue, p_state,
        least(p_before, case when p_until is not null then ambo.run_id_floor(p_until) end),
        greatest(least(p_limit, 1000000), 0), case when p_since is not null then ambo.run_id_floor(p_since) end,
        p_attributes, p_parent, lower(p_text), p_group;
end $$;

-- Whether a page of these runs is found sooner by the index of the rare than from the newest run on. The index leads to about
-- a thousand runs for each that there is; the other way reads what lies between two of them, for each on the page.
create or replace function ambo.is_rare(p_workflow text, p_queue text, p_limit integer, p_group text default null)
returns boolean
language plpgsql volatile
as $$
declare
    v_plan json;
    v_found float8;
    v_all float8;
begin
    -- The planner's guess, from samples.
    execute format('explain (format json) select from ambo.run r where (%1$L is null or r.workflow = %1$L)
                    and (%2$L is null or r.queue = %2$L) and (%3$L is null or r.group_key = %3$L)',
                   p_workflow, p_queue, p_group) into v_plan;
    v_found := (v_plan -> 0 -> 'Plan' ->> 'Plan Rows')::float8;
    select sum(greatest(c.reltuples, 0)) into v_all
    from pg_inherits i join pg_class c on c.oid = i.inhrelid where i.inhparent = 'ambo.run'::regclass;
    return v_found * v_found < v_all * p_limit / 1000;
end $$;

-- The text of the search that begins at a source: fixed parts only, what was asked for are parameters.
create or replace function ambo.list_query(p_source text) returns text
language plpgsql immutable
as $$
declare
    v_within constant text := '($4 is null or %1$s < $4) and ($6 is null or %1$s >= $6)';
    v_of constant text := '($1 is null or %1$s.workflow = $1) and ($2 is null or %1$s.queue = $2)
          and ($10 is null or %1$s.group_key = $10)';
    v_source text;
    v_query text;
begin
    v_source := case p_source
        when 'parent' then 'select s.child_id as id from ambo.child s where s.run_id = $8 and ' || format(v_within, 's.child_id')
        when 'running' then 'select s.run_id as id from ambo.claim s where ' || format(v_within, 's.run_id')
        when 'delayed' then 'select s.run_id as id from ambo.timer s where s.attempt = 0 and ' || format(v_within, 's.run_id')
        when 'parked' then 'select s.run_id as id from ambo.timer s where s.attempt > 0 and ' || format(v_within, 's.run_id')
        -- `offset 0`: no index has the order. All that there are are sorted, and only then looked up, until enough are found.
        when 'ready' then 'select s.run_id as id from ambo.ready s where not s.wakes and ($2 is null or s.queue = $2)
                and ($10 is null or split_part(s.workflow, chr(31), 3) = $10) and '
            || format(v_within, 's.run_id') || ' order by s.run_id desc offset 0'
        when 'attributes' then 'select s.run_id as id from ambo.attribute s where s.attributes @> $7 and '
            || format(v_within, 's.run_id') || ' order by s.run_id desc offset 0'
        when 'run' then 'select s.id from ambo.run s where ' || format(v_of, 's') || ' and ' || format(v_within, 's.id')
        when 'rare' then 'select s.id from (select s.id from ambo.run s where ' || format(v_of, 's') || ' and '
            || format(v_within, 's.id') || ' offset 0) s order by s.id desc offset 0'
        -- The live are not among the outcomes: many that are newer do not stand in the way of those that succeeded.
        else format('select s.run_id as id from ambo.outcome s where s.status = %L and ', p_source)
            || format(v_within, 's.run_id') end;
    v_query := 'select r.id, r.workflow, r.queue, x.state, x.attempt, r.key, r.priority, ambo.run_time(r.id), o.ended_at,
            c.worker_id, o.error, r.parent_id, t.attributes::json, r.group_key
        from (%s) s
        cross join lateral (select r.* from ambo.run r where r.id = s.id offset 0) r
        left join lateral (select o.* from ambo.outcome o where o.run_id = s.id offset 0) o on true
        left join lateral (select c.* from ambo.claim c where c.run_id = s.id offset 0) c on true
        cross join lateral (select coalesce(o.status::text, ambo.live_state(s.id)) as state,
                                   coalesce(o.attempt, c.attempt, (select t.attempt from ambo.timer t where t.run_id = s.id), 0) as attempt offset 0) x
        left join lateral (select a.attributes from ambo.attribute a where a.run_id = s.id offset 0) t on true
        where ' || format(v_of, 'r') || ' and ($3 is null or x.state = $3)
          and ($7 is null or t.attributes @> $7)
          and ($9 is null or strpos(lower(concat_ws('' '', r.id, r.workflow, r.key, r.input, o.output, o.error)), $9) > 0)
        order by s.id desc limit $5';
    return format(v_query, v_source);
end $$;
