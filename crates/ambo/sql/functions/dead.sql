-- Dead letters: runs that ended as dead. What they are, run again, and thrown away.

-- The dead, newest first, with why, when and how often. `attempts` counts claims, `tries` the failures that the retry policy
-- of the workflow has seen. The filters are those of list_runs.
create or replace function ambo.dead_letters(
    p_workflow text default null, p_queue text default null, p_before uuid default null, p_limit integer default 50,
    p_since timestamptz default null, p_until timestamptz default null, p_attributes jsonb default null,
    p_parent uuid default null, p_text text default null, p_group text default null)
returns table (id uuid, workflow text, queue text, enqueued_at timestamptz, died_at timestamptz, attempts integer,
               tries bigint, code text, message text, error json, group_key text)
language sql stable security definer set search_path = pg_catalog, pg_temp
as $$
    select r.id, r.workflow, r.queue, r.enqueued_at, r.ended_at, r.attempt,
           (select count(*) from ambo.checkpoint c where c.run_id = r.id and c.name = 'ambo:retry'),
           r.error ->> 'code', r.error ->> 'message', r.error, r.group_key
    from ambo.list_runs(p_workflow, p_queue, 'dead', p_before, p_limit, p_since, p_until, p_attributes, p_parent, p_text, p_group) r
$$;

-- The dead by what they died of, the most frequent first: numbers and ids in a message are taken for the same. The filters are those
-- of list_runs. Looks at the newest 100,000 that they leave; `is_capped` says that there are more.
create or replace function ambo.dead_errors(
    p_workflow text default null, p_queue text default null, p_since timestamptz default null,
    p_until timestamptz default null, p_before uuid default null, p_attributes jsonb default null,
    p_parent uuid default null, p_text text default null, p_group text default null)
returns table (workflow text, queue text, code text, message text, runs bigint, first_at timestamptz, last_at timestamptz,
               newest uuid, is_capped boolean)
language sql stable security definer
set search_path = pg_catalog, pg_temp set jit = off set enable_hashjoin = off set enable_mergejoin = off
as $$
    with dead as materialized (
        select r.id, r.workflow, r.queue, r.ended_at, r.error
        from ambo.list_runs(p_workflow, p_queue, 'dead', p_before, 100000, p_since, p_until, p_attributes, p_parent, p_text,
                            p_group) r
    )
    select d.workflow, d.queue, d.error ->> 'code',
           regexp_replace(left(d.error ->> 'message', 200),
                          '[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|[0-9]+', '#', 'g') as message,
           count(*), min(d.ended_at), max(d.ended_at), (array_agg(d.id order by d.id desc))[1],
           (select count(*) from dead) >= 100000
    from dead d
    group by 1, 2, 3, 4
    order by 5 desc, 7 desc
$$;

-- Refuses what is not dead.
create or replace function ambo.refuse_living(p_run uuid) returns void
language plpgsql stable
as $$
declare
    v_state text := (select s.state from ambo.run_result(p_run) s);
begin
    if v_state is null then
        perform ambo.refuse_unknown(p_run);
    elsif v_state <> 'dead' then
        raise exception 'AMBO034: run % is %, not dead', p_run, v_state using errcode = 'AM034';
    end if;
end $$;

-- Runs the dead again, from their checkpoints, each on its own, in the order in which they were enqueued (see act_on_runs): in the
-- queue where they died, or in another, and, with p_per_second, one after the other: they stand in timer at their times, so that
-- nobody need stay for it. `p_done`: how many of the same lot were given before. Says what became of each, or with the code of the
-- error why it was refused.
create or replace function ambo.redrive_dead(
    p_runs uuid[], p_queue text default null, p_per_second double precision default null, p_done integer default 0)
returns table (run_id uuid, answer text, code text)
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
declare
    v_place integer := p_done;
    v_due timestamptz;
begin
    if (p_per_second > 0 and p_per_second < 'Infinity') is false then
        raise exception 'AMBO005: a rate is above zero a second, not %', p_per_second using errcode = 'AM005';
    elsif p_runs is null or (p_done between 0 and 1000000000) is not true then
        raise exception 'AMBO005: runs are an array of ids, and p_done is from 0 to 1000000000' using errcode = 'AM005';
    elsif p_done + cardinality(p_runs) > p_per_second * 315360000 then
        raise exception 'AMBO005: at % a second the last of them would go on in more than 10 years', p_per_second
            using errcode = 'AM005';
    elsif p_queue is not null and not exists (select from ambo.queue q where q.name = p_queue) then
        raise exception 'AMBO002: there is no queue %', quote_literal(left(p_queue, 200)) using errcode = 'AM002';
    end if;
    for run_id in select g.id from unnest(p_runs) g (id) order by g.id loop
        begin
            code := null;
            perform ambo.refuse_living(run_id);
            -- In a queue without groups it has none; and the group that it kept from going on goes on.
            update ambo.run r set queue = p_queue, group_key = case when q.managed then r.group_key end
            from ambo.queue q where q.name = p_queue and r.id = redrive_dead.run_id and r.queue <> p_queue;
            if found then
                delete from ambo.head h where h.run_id = redrive_dead.run_id;
            end if;
            v_due := now() + make_interval(secs => v_place / p_per_second);
            perform ambo.retry_run(run_id, v_due);
            answer := case ambo.live_state(run_id) when 'ready' then 'ready' else 'delayed' end;
            v_place := v_place + 1;
        exception when others then
            if left(sqlstate, 2) <> 'AM' then
                raise;
            end if;
            answer := sqlerrm;
            code := sqlstate;
        end;
        return next;
    end loop;
end $$;

-- Throws the dead away, with all that they recorded and the keys that name them. Says of each that it is gone, or why it was refused.
create or replace function ambo.purge_dead(p_runs uuid[]) returns table (run_id uuid, answer text, code text)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp set jit = off set enable_seqscan = off set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
declare
    v_gone uuid[];
begin
    -- The outcome first: whoever runs one again at the same time takes the same row.
    with gone as (
        delete from ambo.outcome o using (
            select g.id from unnest(p_runs) g (id)
            cross join lateral (
                select from ambo.outcome o where o.run_id = g.id and o.status = 'dead' offset 0 for update skip locked) d) d
        where o.run_id = d.id and o.status = 'dead' returning o.run_id
    )
    select coalesce(array_agg(g.run_id), '{}') into v_gone from gone g;
    delete from ambo.head h where h.run_id = any (v_gone);
    delete from ambo.checkpoint c where c.run_id = any (v_gone);
    delete from ambo.child c where c.run_id = any (v_gone);
    delete from ambo.attribute a where a.run_id = any (v_gone);
    delete from ambo.signal s where s.run_id = any (v_gone);
    delete from ambo.event e where e.run_id = any (v_gone);
    delete from ambo.transaction_marker m where m.run_id = any (v_gone);
    -- Or an enqueue would be answered with what is not there. A key that somebody has locked is about to name another run.
    delete from ambo.run_key d where d.ctid = any (array(
        select k.ctid from unnest(v_gone) g (id)
        cross join lateral (select r.workflow, r.key from ambo.run r where r.id = g.id and r.key is not null offset 0) r
        cross join lateral (
            select k.ctid from ambo.run_key k
            where k.workflow = r.workflow and k.key = r.key and k.run_id = g.id offset 0 for update skip locked) k));
    delete from ambo.run r where r.id = any (v_gone);
    return query
    select g.id, case when g.id = any (v_gone) then 'purged'
                      when s.state is null then format('AMBO033: there is no run %s', coalesce(g.id::text, 'null'))
                      else format('AMBO034: run %s is %s, not dead', g.id, s.state) end,
           case when g.id = any (v_gone) then null when s.state is null then 'AM033' else 'AM034' end
    from unnest(p_runs) g (id) left join lateral ambo.run_result(g.id) s on true;
end $$;

-- Throws away the dead whose lifetime is over, where one is set (`dead_lifetime` of installation), up to p_limit. Returns how many.
create or replace function ambo.expire_dead(p_limit integer) returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp set jit = off set enable_seqscan = off
as $$
declare
    v_before timestamptz := now() - (select i.dead_lifetime from ambo.installation i);
    v_runs uuid[];
begin
    if v_before is null then
        return 0;
    end if;
    -- Whoever died before then was enqueued before then.
    v_runs := array(
        select o.run_id from ambo.outcome o
        where o.status = 'dead' and o.run_id < ambo.run_id_floor(v_before) and o.ended_at < v_before
        order by o.run_id limit p_limit);
    return (select count(*) from ambo.purge_dead(v_runs) p where p.code is null);
end $$;
