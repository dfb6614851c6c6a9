-- Children: runs that a run starts. The id was drawn by the worker, by the database's clock, and is recorded in the
-- parent's checkpoint in the same flush: one child per parent and position, whatever crashes. `child` also has those that
-- are detached, for whoever looks for them; in `run` they have no parent.
create or replace function ambo.start_children(
    p_worker bigint, p_parents uuid[], p_parent_attempts integer[], p_ids uuid[], p_workflows text[], p_inputs json[],
    p_queues text[], p_priorities integer[], p_delays interval[], p_attributes jsonb[], p_timeouts interval[],
    p_deadlines timestamptz[], p_attempts integer[], p_detached boolean[], p_groups text[], p_weights integer[])
returns void
language plpgsql volatile
as $$
declare
    v_xid xid8 := pg_current_xact_id();
    v_new uuid[];
begin
    perform ambo.refuse_enqueue(u.w, u.i, u.q, null, u.p, u.d, null, u.o, u.m, null, u.g, u.h)
    from unnest(p_workflows, p_inputs, p_queues, p_priorities, p_delays, p_timeouts, p_attempts, p_groups, p_weights)
        as u (w, i, q, p, d, o, m, g, h)
    where (octet_length(u.w) between 1 and 200 and strpos(u.w, chr(31)) = 0 and octet_length(u.i::text) <= 2097152
        and u.q = any (array(select q.name from ambo.queue q)) and u.p between -32768 and 32767 and u.d is null and u.o is null and u.m = 5 and u.g is null
        and u.h = 1) is not true;
    with asked as (
        select u.*
        from unnest(p_parents, p_parent_attempts, p_ids, p_workflows, p_inputs, p_queues, p_priorities, p_timeouts,
                    p_attempts, p_attributes, p_detached, p_groups, p_weights)
            as u (parent, attempt, id, w, i, q, p, o, m, a, detached, g, h)
        cross join lateral (
            select from ambo.claim c
            where c.run_id = u.parent and c.worker_id = p_worker and c.attempt = u.attempt offset 0) c
    ), born as (
        insert into ambo.child (run_id, child_id) select u.parent, u.id from asked u on conflict do nothing
    ), made as (
        insert into ambo.run (id, attempts_max, priority, weight, workflow, queue, input, group_key, timeout, attributes,
                              parent_id)
        select u.id, u.m, u.p, u.h, u.w, u.q, u.i, u.g, u.o, u.a, case when not u.detached then u.parent end from asked u
        on conflict do nothing
        returning id)
    select coalesce(array_agg(m.id), '{}') into v_new from made m;
    if array_remove(p_attributes, null) <> '{}' then
        perform ambo.give_attributes(p_ids, p_attributes, array(select i = any (v_new) from unnest(p_ids) i));
    end if;
    insert into ambo.timer (run_id, due_at, attempt, losses, deadline)
    select u.id, now() + u.d, 0, 0, u.l from unnest(p_ids, p_delays, p_deadlines) as u (id, d, l)
    where u.d > interval '0' and exists (select from unnest(v_new) n where n = u.id);
    insert into ambo.ready (seq, xid, run_id, attempt, losses, priority, weight, queue, workflow, timeout, deadline)
    select nextval('ambo.ready_seq'), v_xid, u.id, 0, 0, u.p, u.h, u.q, ambo.lane(u.w, null, u.g), u.o, u.l
    from unnest(p_ids, p_priorities, p_queues, p_workflows, p_timeouts, p_delays, p_deadlines, p_groups, p_weights)
        as u (id, p, q, w, o, d, l, g, h)
    where (u.d > interval '0') is not true and exists (select from unnest(v_new) n where n = u.id);
    perform ambo.wake();
end $$;

-- Asks the children of a run to end that it did not detach, for it has failed and is about to be undone. Somebody may hold what a cancel
-- locks, in a transaction of his own: its worker has other things to do meanwhile, and asks again.
create or replace function ambo.end_children(p_run uuid) returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp set lock_timeout = '50ms'
set plan_cache_mode = force_generic_plan set jit = off set enable_seqscan = off
as $$
begin
    perform ambo.cancel_children(p_run, 'its parent has failed and is being undone', null);
end $$;
