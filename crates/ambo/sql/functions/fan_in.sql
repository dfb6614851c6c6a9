-- Fan-in: runs, and one that starts when all of them have ended, however that was.
--
-- The last one stands in timer, without a time, and the others, its members, are its children: whoever ends a member leaves a
-- row that wakes it, in the transaction of the end (see functions/wake.sql). The claimer that takes such a row looks whether a
-- member is left; two that end at once do not see each other, but the rows of both are looked at after both. There is no
-- counter: `upto` in fan_in says below which member all have ended, so that looking costs what has ended since.

-- Enqueues runs and `then_run`, each an object with the names of the arguments of enqueue_workflow. If the key of `then_run`
-- names a run that is there already, nothing is enqueued. Answers
-- {"then": {"run": id, "is_new": true}, "members": [{"run": id, "is_new": true}, ...]}, members in the order given.
create or replace function ambo.enqueue_fan_in(members json, then_run json) returns json
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
declare
    v_then record;
    v_asked record;
    v_ids uuid[];
    v_old uuid;
    v_differs boolean;
    v_nul text;
    v_slashes text;
begin
    -- PostgreSQL keeps JSON as text, but takes no object apart in which U+0000 is written: meanwhile something else stands for it.
    if strpos(concat(members, then_run), '\u0000') > 0 then
        v_nul := gen_random_uuid();
        v_slashes := gen_random_uuid();
        members := replace(replace(replace(members::text, '\\', v_slashes), '\u0000', v_nul), v_slashes, '\\');
        then_run := replace(replace(replace(then_run::text, '\\', v_slashes), '\u0000', v_nul), v_slashes, '\\');
    end if;
    perform ambo.check_terms(members, '{workflow,input,queue,key,priority,attributes,timeout,attempts,key_lifetime,delay,at,start_by,start_within,group_key,weight}');
    perform ambo.check_terms(json_build_array(then_run), '{workflow,input,queue,key,priority,attributes,timeout,attempts,key_lifetime,group_key,weight}');
    if v_nul is not null and exists (
        select from (select e from json_array_elements(members) e union all select then_run) r (run)
        cross join lateral json_each(r.run) f where f.key <> 'input' and strpos(f.value::text, v_nul) > 0)
    then
        raise exception 'AMBO001: a text holds a NUL character' using errcode = 'AM001';
    end if;
    select * into v_asked
    from json_to_record(then_run) as t (workflow text, input json, queue text, key text, priority integer,
                                        attributes jsonb, timeout interval, attempts integer, key_lifetime interval,
                                        group_key text, weight integer);
    v_asked.input := ambo.given_input(v_asked.input, v_nul);
    select e.run_id, e.is_new into v_then
    from ambo.enqueue(v_asked.workflow, v_asked.input, coalesce(v_asked.queue, 'default'), v_asked.key,
                      coalesce(v_asked.priority, 0), null, now() + interval '1 year', v_asked.attributes, v_asked.timeout,
                      coalesce(v_asked.attempts, 5), v_asked.key_lifetime, v_asked.group_key, coalesce(v_asked.weight, 1)) e;
    if v_then.is_new then
        with asked as (
            select r.*, n
            from json_array_elements(members) with ordinality e (member, n)
            cross join lateral json_to_record(e.member)
                as r (workflow text, input json, queue text, key text, priority integer, delay interval, at timestamptz,
                      attributes jsonb, timeout interval, attempts integer, key_lifetime interval, start_by timestamptz,
                      start_within interval, group_key text, weight integer)
        ), made as (
            select m.run_id, m.is_new
            from (select array_agg(a.workflow order by n) as workflows, array_agg(ambo.given_input(a.input, v_nul) order by n) as inputs,
                         array_agg(a.queue order by n) filter (where q) as queues,
                         array_agg(a.key order by n) filter (where k) as keys,
                         array_agg(a.priority order by n) filter (where p) as priorities,
                         array_agg(a.delay order by n) filter (where d) as delays,
                         array_agg(a.at order by n) filter (where t) as ats,
                         array_agg(a.attributes order by n) filter (where b) as attributes,
                         array_agg(a.timeout order by n) filter (where o) as timeouts,
                         array_agg(a.attempts order by n) filter (where m) as attempts,
                         array_agg(a.key_lifetime order by n) filter (where l) as key_lifetimes,
                         array_agg(a.start_by order by n) filter (where s) as start_bys,
                         array_agg(a.start_within order by n) filter (where v) as start_withins,
                         array_agg(a.group_key order by n) filter (where g) as group_keys,
                         array_agg(a.weight order by n) filter (where w) as weights
                  from asked a cross join (
                      select bool_or(queue is not null) as q, bool_or(key is not null) as k, bool_or(priority is not null) as p,
                             bool_or(delay is not null) as d, bool_or(at is not null) as t,
                             bool_or(attributes is not null) as b, bool_or(timeout is not null) as o,
                             bool_or(attempts is not null) as m, bool_or(key_lifetime is not null) as l,
                             bool_or(start_by is not null) as s, bool_or(start_within is not null) as v,
                             bool_or(group_key is not null) as g, bool_or(weight is not null) as w
                      from asked) given) u
            cross join lateral ambo.enqueue_workflows(
                u.workflows, u.inputs, u.queues, u.keys, u.priorities, u.delays, u.ats, u.attributes, u.timeouts, u.attempts,
                u.key_lifetimes, u.group_keys, u.weights, start_bys => u.start_bys, start_withins => u.start_withins, batch => v_then.run_id)
                with ordinality m (run_id, is_new, n)
            where u.workflows is not null
        )
        select array_agg(m.run_id), (array_agg(m.run_id) filter (where not m.is_new))[1] into v_ids, v_old from made m;
        if v_old is not null then
            raise exception 'AMBO005: run % is there already: it cannot be a member of a fan-in', v_old using errcode = 'AM005',
                hint = 'Give the run that comes last a key; then a repetition finds all of them.';
        end if;
        -- Without members it may start now.
        update ambo.timer t set due_at = case when v_ids is null then now() else 'infinity' end, xid = pg_current_xact_id()
        where t.run_id = v_then.run_id;
        insert into ambo.child (run_id, child_id, member) select v_then.run_id, i, true from unnest(v_ids) i;
        insert into ambo.fan_in (run_id, upto, looked_at)
        select v_then.run_id, '00000000-0000-0000-0000-000000000000', now() where v_ids is not null;
    else
        -- Only to who knows all of them, for an id lets its holder read. What it started itself is none of them.
        select array_agg(c.child_id order by c.child_id), count(*) filter (where r.workflow is distinct from e.workflow
            or ambo.is_same_payload(r.input, ambo.given_input(e.input, v_nul)) is not true) > 0 into v_ids, v_differs
        from (select m.workflow, m.input, n from json_array_elements(members) with ordinality e (member, n)
              cross join lateral json_to_record(e.member) as m (workflow text, input json)) e
        full join (select c.child_id, row_number() over (order by c.child_id) as n
                   from ambo.child c where c.run_id = v_then.run_id and c.member) c on c.n = e.n
        left join ambo.run r on r.id = c.child_id;
        if v_differs then
            raise exception 'AMBO003: key % of workflow % names a run that comes after other members',
                quote_literal(v_asked.key), quote_literal(v_asked.workflow)
                using errcode = 'AM003', hint = 'A key means one fan-in: use another key for other members.';
        end if;
    end if;
    return json_build_object(
        'then', json_build_object('run', v_then.run_id, 'is_new', v_then.is_new),
        'members', coalesce((select json_agg(json_build_object('run', i, 'is_new', v_then.is_new) order by n)
                             from unnest(v_ids) with ordinality u (i, n)), '[]'));
end $$;

-- The input of a run in a fan-in, with U+0000 where p_nul stands for it.
create or replace function ambo.given_input(p_input json, p_nul text) returns json
language sql immutable
return case when p_input is null then 'null' when p_nul is null then p_input else replace(p_input::text, p_nul, '\u0000')::json end;

-- Refuses what is not an array of objects with these names: one that is misspelt would be passed over.
create or replace function ambo.check_terms(p_runs json, p_names text[]) returns void
language plpgsql stable
as $$
declare
    v_name text;
begin
    if p_runs is null or json_typeof(p_runs) <> 'array'
       or exists (select from json_array_elements(p_runs) e where json_typeof(e) <> 'object')
    then
        raise exception 'AMBO005: runs are JSON objects, members an array of them' using errcode = 'AM005';
    end if;
    begin
        select k into v_name from json_array_elements(p_runs) e cross join lateral json_object_keys(e) k
        where k <> all (p_names) limit 1;
        if found then
            raise exception 'AMBO005: a run in a fan-in has no %', quote_literal(left(v_name, 100)) using errcode = 'AM005',
                hint = 'There are: ' || array_to_string(p_names, ', ') || '.';
        end if;
        perform from json_array_elements(p_runs) e cross join lateral json_to_record(e)
            as r (priority integer, delay interval, at timestamptz, timeout interval, attempts integer, key_lifetime interval,
                  start_by timestamptz, start_within interval, weight integer);
    exception when data_exception then
        raise exception 'AMBO005: an option of a run in a fan-in cannot be read: %', sqlerrm using errcode = 'AM005';
    end;
end $$;

-- The first member, from p_from on, that has not ended; null: there is none.
create or replace function ambo.living_member(p_run uuid, p_from uuid) returns uuid
language plpgsql volatile
as $$
begin
    return (select c.child_id from ambo.child c
            where c.run_id = p_run and c.child_id >= p_from
              and not exists (select from ambo.outcome o where o.run_id = c.child_id)
              and exists (select from ambo.run m where m.id = c.child_id)
            order by c.child_id limit 1);
end $$;

-- Has a run that had ended before it began wait for its members again. Says whether one is left to wait for. One that ends at this
-- moment may have woken nobody, so this wakes: the claimer that takes the row looks again, when both are there to be seen.
create or replace function ambo.wait_for_members(p_run uuid) returns boolean
language plpgsql volatile
as $$
declare
    v_next uuid := ambo.living_member(p_run, '00000000-0000-0000-0000-000000000000');
begin
    if v_next is null then
        return false;
    end if;
    insert into ambo.timer (run_id, due_at, attempt, losses) values (p_run, 'infinity', 0, 0);
    insert into ambo.fan_in (run_id, upto, looked_at) values (p_run, v_next, clock_timestamp());
    perform ambo.send_wakes(array[p_run]);
    return true;
end $$;

-- Of runs that something came for, looks after those that wait for their members: one that has none left becomes ready.
-- Returns the others, for whom it was something else.
create or replace function ambo.gather_members(p_runs uuid[]) returns uuid[]
language plpgsql volatile
set plan_cache_mode = force_generic_plan set jit = off
set enable_seqscan = off set enable_bitmapscan = off set enable_hashjoin = off set enable_mergejoin = off
as $$
declare
    v_others uuid[] := p_runs;
    v_locked uuid[];
    v_next uuid;
    v_timer ambo.timer%rowtype;
    r record;
begin
    -- Locked first, then looked: whoever looks at the same time does so with what has ended until then. One that is locked, by
    -- a transaction of a user's that cancels it perhaps, is nobody's to wait for: what has come for it goes back.
    for r in
        select f.* from unnest(p_runs) g (id)
        cross join lateral (select f.* from ambo.fan_in f where f.run_id = g.id offset 0 for update skip locked) f
    loop
        v_others := array_remove(v_others, r.run_id);
        v_next := ambo.living_member(r.run_id, r.upto);
        if v_next is not null then
            if r.looked_at < clock_timestamp() - interval '100 milliseconds' then
                update ambo.fan_in f set upto = v_next, looked_at = clock_timestamp() where f.run_id = r.run_id;
            end if;
            continue;
        end if;
        delete from ambo.timer d where d.ctid = any (array(
            select t.ctid from ambo.timer t where t.run_id = r.run_id and t.attempt = 0 for update skip locked))
        returning d.* into v_timer;
        if found then
            perform ambo.make_ready(array[r.run_id], '{0}', array[v_timer.losses], array[v_timer.deadline], array[v_timer.pin]);
        elsif exists (select from ambo.timer t where t.run_id = r.run_id and t.attempt = 0) then
            v_locked := v_locked || r.run_id;
            continue;
        end if;
        delete from ambo.fan_in f where f.run_id = r.run_id;
    end loop;
    v_locked := v_locked || array(
        select f.run_id from unnest(v_others) g (id)
        cross join lateral (select f.run_id from ambo.fan_in f where f.run_id = g.id offset 0) f);
    if cardinality(v_locked) > 0 then
        perform ambo.leave_wakes(v_locked);
        v_others := array(select u.id from unnest(v_others) u (id) where u.id <> all (v_locked));
    end if;
    return v_others;
end $$;
