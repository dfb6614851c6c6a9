-- Park: a run that waits leaves its worker's memory, until its time comes or something wakes it.
--
-- First the claims go, then, with a newer snapshot, what came for these runs meanwhile is looked at: whoever wakes a
-- run locks its claim first, so that its row in ambo.wake is seen here, or it finds the run parked.
-- Returns the runs whose claim was gone.
create or replace function ambo.park(
    p_worker bigint, p_runs uuid[], p_attempts integer[], p_dues timestamptz[], p_awaits text[], p_freed uuid[])
returns uuid[]
language plpgsql volatile set jit = off set enable_nestloop = off set enable_seqscan = off set plan_cache_mode = force_generic_plan
as $$
declare
    v_ids uuid[];
    v_attempts integer[];
    v_deadlines timestamptz[];
    v_dues timestamptz[];
    v_awaits text[];
    v_woken uuid[] := '{}';
    v_back uuid[];
    v_now timestamptz := clock_timestamp();
    v_pin text := ambo.pin_of(p_worker);
begin
    with held as materialized (
        select p.run_id, p.attempt, p.due, p.awaits, h.place
        from unnest(p_runs, p_attempts, p_dues, p_awaits) as p (run_id, attempt, due, awaits)
        cross join lateral (
            select c.ctid as place from ambo.claim c
            where c.run_id = p.run_id and c.worker_id = p_worker and c.attempt = p.attempt offset 0) h
        order by p.run_id
    ), parked as (
        delete from ambo.claim c where c.ctid = any (array(select h.place from held h))
        returning c.run_id, c.deadline
    )
    select array_agg(h.run_id), array_agg(h.attempt), array_agg(g.deadline),
           array_agg(least(coalesce(h.due, 'infinity'), g.deadline)), array_agg(h.awaits)
    into v_ids, v_attempts, v_deadlines, v_dues, v_awaits
    -- Both in the order of the ids: a merge, whatever the planner believes.
    from held h join parked g on g.run_id = h.run_id;
    if coalesce(cardinality(v_ids), 0) < cardinality(p_runs) then
        select v_ids || array_agg(p.run_id), v_attempts || array_agg(p.attempt), v_deadlines || array_agg(g.deadline),
               v_dues || array_agg(least(coalesce(p.due, 'infinity'), g.deadline)), v_awaits || array_agg(p.awaits)
        into v_ids, v_attempts, v_deadlines, v_dues, v_awaits
        from ambo.take_changed(p_worker, p_runs, p_attempts) g
        join unnest(p_runs, p_attempts, p_dues, p_awaits) as p (run_id, attempt, due, awaits) using (run_id);
    end if;
    if pg_relation_size('ambo.wake') > 0 then
        with woken as (
            delete from ambo.wake w where w.ctid = any (array(
                select k.place from unnest(v_ids) p (id) cross join lateral (
                    select k.ctid as place from ambo.wake k where k.run_id = p.id offset 0) k))
            returning w.run_id)
        select coalesce(array_agg(w.run_id), '{}') into v_woken from woken w;
    end if;
    if cardinality(p_freed) > 0 then
        perform ambo.lead_groups(array(select i from unnest(v_ids) i where i = any (p_freed)), false);
    end if;
    insert into ambo.timer (run_id, due_at, attempt, losses, deadline, pin, awaits)
    select p.id, p.due, p.attempt, 0, p.deadline, v_pin, p.awaits::json
    from unnest(v_ids, v_attempts, v_deadlines, v_dues, v_awaits) as p (id, attempt, deadline, due, awaits)
    where p.id <> all (v_woken) and p.due > v_now;
    if cardinality(v_woken) > 0 or exists (select from unnest(v_dues) d where d <= v_now) then
        select array_agg(p.id), array_agg(p.attempt), array_agg(p.deadline)
        into v_back, v_attempts, v_deadlines
        from unnest(v_ids, v_attempts, v_deadlines, v_dues) as p (id, attempt, deadline, due)
        where p.id = any (v_woken) or p.due <= v_now;
        perform ambo.make_ready(v_back, v_attempts, array_fill(0::smallint, array[cardinality(v_back)]), v_deadlines,
                                array_fill(v_pin, array[cardinality(v_back)]));
    end if;
    return array(select r from unnest(p_runs) r where r <> all (coalesce(v_ids, '{}')));
end $$;

-- What a run that left memory has recorded is not what it goes on with: failures that are tried again are forgotten, or
-- all of it, in exchange for what it continues as new with. Signals that it has consumed go too; of one that had a key, what
-- refuses its repetition stays.
create or replace function ambo.forget(p_run uuid, p_attempt integer, p_positions text, p_state text) returns void
language plpgsql volatile set jit = off set enable_seqscan = off
as $$
declare
    v_consumed bigint[];
begin
    if p_state is null then
        delete from ambo.checkpoint c where c.run_id = p_run and c.position = any (string_to_array(p_positions, ','));
        return;
    end if;
    v_consumed := array(
        select (c.output ->> 'seq')::bigint from ambo.checkpoint c
        where c.run_id = p_run and starts_with(c.name, 'ambo:signal ') and c.output is not null);
    delete from ambo.signal s where s.run_id = p_run and s.seq = any (v_consumed) and s.key is null;
    -- No topic is so long: nobody asks for it.
    update ambo.signal s set topic = repeat(chr(31), 201) || s.topic where s.run_id = p_run and s.seq = any (v_consumed);
    delete from ambo.checkpoint c where c.run_id = p_run;
    insert into ambo.checkpoint (run_id, attempt, elapsed_ms, position, name, output)
    values (p_run, p_attempt, 0, '0.0', 'ambo:continued', p_state::json);
end $$;
