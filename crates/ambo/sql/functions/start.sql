-- Start: runs that begin at once in the worker that asks, without a queue. A run, its key and its claim
-- are durable before its first effect. A key that names an older run starts nothing.
create or replace function ambo.start(
    p_worker bigint, p_workflows text[], p_inputs json[], p_queues text[], p_keys text[],
    p_priorities integer[], p_attributes jsonb[], p_timeouts interval[], p_attempts integer[],
    p_key_lifetimes interval[], p_groups text[] default null, p_weights integer[] default null)
returns table (run_id uuid, is_new boolean)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp set plan_cache_mode = force_generic_plan set jit = off
as $$
#variable_conflict use_column
declare
    v_ids uuid[];
    v_new boolean[];
    r record;
begin
    perform ambo.refuse_enqueue(u.w, u.i, u.q, u.k, u.p, null, null, u.o, u.m, u.l, u.g, coalesce(u.h, 1))
    from unnest(p_workflows, p_inputs, p_queues, p_keys, p_priorities, p_timeouts, p_attempts, p_key_lifetimes, p_groups,
                p_weights) as u (w, i, q, k, p, o, m, l, g, h)
    where (octet_length(u.w) between 1 and 200 and strpos(u.w, chr(31)) = 0 and octet_length(u.i::text) <= 2097152
        and u.k is null and u.l is null and u.q = 'default' and u.p = 0 and u.o is null and u.m = 5 and u.g is null
        and coalesce(u.h, 1) = 1) is not true;
    perform ambo.refuse_draining(p_queues, p_groups);
    -- The fence before the claim: a worker that was declared dead starts nothing.
    perform pg_advisory_xact_lock_shared(hashtext('ambo.fence'), p_worker::integer);
    if not exists (select from ambo.worker w where w.id = p_worker and w.dead_at is null) then
        raise exception 'AMBO030: worker % lost its lease', p_worker using errcode = 'AM030';
    end if;
    select array_agg(ambo.new_run_id() order by g), array_agg(true)
    into v_ids, v_new from generate_series(1, cardinality(p_workflows)) g;
    if array_remove(p_keys, null) <> '{}' then
        for r in
            select u.n, t.run_id, t.is_new
            from (select * from unnest(p_workflows, p_keys, p_inputs, v_ids, p_key_lifetimes) with ordinality
                      as u (w, k, i, id, l, n)
                  where k is not null order by w, k, n offset 0) u,
                 lateral ambo.take_key(u.w, u.k, u.i, u.l, u.id) t
        loop
            v_ids[r.n] := r.run_id;
            v_new[r.n] := r.is_new;
        end loop;
    end if;
    insert into ambo.run (id, attempts_max, priority, weight, workflow, queue, input, key, group_key, timeout, attributes)
    select u.id, u.m, u.p, coalesce(u.h, 1), u.w, u.q, u.i, u.k, u.g, u.o, u.a
    from unnest(v_ids, v_new, p_attempts, p_priorities, p_weights, p_workflows, p_queues, p_inputs, p_keys, p_groups,
                p_timeouts, p_attributes) as u (id, is_new, m, p, h, w, q, i, k, g, o, a)
    where u.is_new;
    if array_remove(p_attributes, null) <> '{}' then
        perform ambo.give_attributes(v_ids, p_attributes, v_new);
    end if;
    insert into ambo.claim (run_id, worker_id, attempt, losses, deadline)
    select u.id, p_worker, 1, 0, now() + u.o
    from unnest(v_ids, v_new, p_timeouts) as u (id, is_new, o) where u.is_new;
    return query select * from unnest(v_ids, v_new);
end $$;
