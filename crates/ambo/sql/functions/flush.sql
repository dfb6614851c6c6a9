-- Flush: one batch of the journal. Checkpoints and outcomes of many runs in one statement of the client.
--
-- The fence is a lock, then a look: the worker's fence lock is taken shared, and only then, with a newer
-- snapshot, the claims are read. Whoever takes claims away from a worker holds that lock exclusively.
--
-- Here and elsewhere `cross join lateral (... offset 0)` looks each row up by its key: a join would be planned by what the
-- planner last knew of a table that is empty now and full a moment later, and may read all of it for every row.
-- Returns the runs of which facts were refused because their claim is gone. `p_freed`: of the runs that end or are parked
-- here, those that hold a slot of their queue.
create or replace function ambo.flush(
    p_worker bigint,
    p_runs uuid[], p_attempts integer[], p_positions text[], p_names text[], p_outputs json[],
    p_errors json[], p_elapsed_ms integer[],
    p_ended_runs uuid[], p_ended_attempts integer[], p_statuses text[], p_ended_outputs json[],
    p_ended_errors json[], p_freed uuid[] default '{}')
returns uuid[]
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp set plan_cache_mode = force_generic_plan set jit = off
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set enable_bitmapscan = off
set lock_timeout = '2s'
as $$
declare
    v_count integer;
    v_fenced uuid[] := '{}';
    v_ended uuid[];
    v_ended_attempts integer[];
    v_all boolean;
begin
    perform pg_advisory_xact_lock_shared(hashtext('ambo.fence'), p_worker::integer);
    if cardinality(p_runs) > 0 then
        insert into ambo.checkpoint (run_id, attempt, elapsed_ms, position, name, output, error)
        select f.run_id, f.attempt, f.elapsed_ms, f.position, f.name, f.output, f.error
        from unnest(p_runs, p_attempts, p_positions, p_names, p_outputs, p_errors, p_elapsed_ms)
            as f (run_id, attempt, position, name, output, error, elapsed_ms)
        cross join lateral (
            select from ambo.claim c
            where c.run_id = f.run_id and c.worker_id = p_worker and c.attempt = f.attempt offset 0) c;
        get diagnostics v_count = row_count;
        if v_count < cardinality(p_runs) then
            select array_agg(distinct f.run_id) into v_fenced from unnest(p_runs, p_attempts) as f (run_id, attempt)
            where not exists (select from ambo.claim c where c.run_id = f.run_id
                              and c.worker_id = p_worker and c.attempt = f.attempt);
        end if;
    end if;
    if cardinality(p_ended_runs) > 0 then
        with ended as (
            delete from ambo.claim c
            where c.ctid = any (array(
                select h.place
                from unnest(p_ended_runs, p_ended_attempts) as e (run_id, attempt)
                cross join lateral (
                    select c.ctid as place from ambo.claim c
                    where c.run_id = e.run_id and c.worker_id = p_worker and c.attempt = e.attempt offset 0) h))
            returning c.run_id, c.attempt)
        select array_agg(e.run_id), array_agg(e.attempt) into v_ended, v_ended_attempts from ended e;
        if coalesce(cardinality(v_ended), 0) < cardinality(p_ended_runs) then
            select v_ended || array_agg(e.run_id), v_ended_attempts || array_agg(e.attempt) into v_ended, v_ended_attempts
            from ambo.take_changed(p_worker, p_ended_runs, p_ended_attempts) e;
        end if;
        v_all := coalesce(cardinality(v_ended), 0) = cardinality(p_ended_runs);
        insert into ambo.outcome (run_id, attempt, status, output, error)
        select e.run_id, e.attempt, e.status::ambo.status, e.output, e.error
        from unnest(p_ended_runs, p_ended_attempts, p_statuses, p_ended_outputs, p_ended_errors)
            as e (run_id, attempt, status, output, error)
        where v_all or (e.run_id, e.attempt) in (select * from unnest(v_ended, v_ended_attempts));
        if not v_all then
            select v_fenced || coalesce(array_agg(e.run_id), '{}') into v_fenced
            from unnest(p_ended_runs, p_ended_attempts) as e (run_id, attempt)
            where not exists (select from ambo.outcome o
                              where o.run_id = e.run_id and o.attempt = e.attempt);
        end if;
        if cardinality(p_freed) > 0 then
            perform ambo.lead_groups(array(select e from unnest(v_ended) e where e = any (p_freed)), true);
        end if;
        -- Mostly these tables have no pages. Whether they have rows could only be told by a walk over the dead ones.
        perform ambo.drop_requests(p_ended_runs);
        if pg_relation_size('ambo.wake') > 0 then
            delete from ambo.wake w where w.ctid = any (array(
                select k.place from unnest(p_ended_runs) e (id) cross join lateral (
                    select k.ctid as place from ambo.wake k where k.run_id = e.id offset 0) k));
        end if;
        perform ambo.tell_waiters(p_ended_runs);
    end if;
    return v_fenced;
end $$;

-- Takes those of a worker's claims that are still there after others were taken by their places: a heartbeat may have changed one
-- since, which then has another place. By their keys, for that is what a statement that met such a change looks at again.
create or replace function ambo.take_changed(p_worker bigint, p_runs uuid[], p_attempts integer[])
returns table (run_id uuid, attempt integer, deadline timestamptz)
language sql volatile
set plan_cache_mode = force_generic_plan set jit = off
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
as $$
    delete from ambo.claim c using unnest(p_runs, p_attempts) as e (id, attempt)
    where c.run_id = e.id and c.worker_id = p_worker and c.attempt = e.attempt
    returning c.run_id, c.attempt, c.deadline
$$;

-- A batch that holds more than checkpoints and outcomes: children, events and attributes go in before the checkpoints
-- that name them, parks and the waking of parents come last.
create or replace function ambo.flush_all(
    p_worker bigint,
    p_runs uuid[], p_attempts integer[], p_positions text[], p_names text[], p_outputs json[],
    p_errors json[], p_elapsed_ms integer[],
    p_ended_runs uuid[], p_ended_attempts integer[], p_statuses text[], p_ended_outputs json[],
    p_ended_errors json[],
    p_event_runs uuid[], p_event_attempts integer[], p_event_keys text[], p_event_numbers integer[],
    p_event_values json[],
    p_parents uuid[], p_parent_attempts integer[], p_child_ids uuid[], p_child_workflows text[],
    p_child_inputs json[], p_child_queues text[], p_child_priorities integer[], p_child_delays interval[],
    p_child_attributes jsonb[], p_child_timeouts interval[], p_child_deadlines timestamptz[],
    p_child_attempts integer[], p_child_detached boolean[], p_child_groups text[], p_child_weights integer[],
    p_parked_runs uuid[], p_parked_attempts integer[], p_parked_dues timestamptz[], p_parked_awaits text[],
    p_parked_forgets text[], p_parked_states text[],
    p_woken uuid[],
    p_attribute_runs uuid[], p_attribute_attempts integer[], p_attribute_keys text[], p_attribute_values json[],
    p_freed uuid[])
returns uuid[]
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp set lock_timeout = '2s'
as $$
declare
    v_fenced uuid[];
    v_gone uuid[];
begin
    perform pg_advisory_xact_lock_shared(hashtext('ambo.fence'), p_worker::integer);
    if cardinality(p_child_ids) > 0 then
        perform ambo.start_children(p_worker, p_parents, p_parent_attempts, p_child_ids, p_child_workflows,
                                    p_child_inputs, p_child_queues, p_child_priorities, p_child_delays,
                                    p_child_attributes, p_child_timeouts, p_child_deadlines, p_child_attempts,
                                    p_child_detached, p_child_groups, p_child_weights);
    end if;
    if cardinality(p_event_runs) > 0 then
        perform ambo.publish(p_worker, p_event_runs, p_event_attempts, p_event_keys, p_event_numbers, p_event_values);
    end if;
    if cardinality(p_attribute_runs) > 0 then
        perform ambo.set_attributes(p_worker, p_attribute_runs, p_attribute_attempts, p_attribute_keys,
                                    p_attribute_values);
    end if;
    v_fenced := ambo.flush(p_worker, p_runs, p_attempts, p_positions, p_names, p_outputs, p_errors, p_elapsed_ms,
                           p_ended_runs, p_ended_attempts, p_statuses, p_ended_outputs, p_ended_errors,
                           p_freed);
    if cardinality(p_parked_runs) > 0 then
        v_gone := ambo.park(p_worker, p_parked_runs, p_parked_attempts, p_parked_dues, p_parked_awaits, p_freed);
        v_fenced := v_fenced || v_gone;
        perform ambo.forget(f.run_id, f.attempt, f.positions, f.state)
        from unnest(p_parked_runs, p_parked_attempts, p_parked_forgets, p_parked_states)
            as f (run_id, attempt, positions, state)
        where (f.positions is not null or f.state is not null) and f.run_id <> all (v_gone);
    end if;
    if cardinality(p_woken) > 0 then
        perform ambo.send_wakes(p_woken);
    end if;
    return v_fenced;
end $$;

-- Tells the processes that wait for outcomes, if there are any; a hint like every NOTIFY of ours.
create or replace function ambo.tell_waiters(p_runs uuid[]) returns void
language plpgsql volatile
as $$
begin
    if ambo.is_awaited(hashtext('ambo.wait')) then
        perform ambo.send_hint('ambo.outcome', ambo.tags(p_runs));
    end if;
end $$;

-- Which facts of a batch are there, after the answer to its commit was lost: positions by run, and outcomes
-- (position null), each with the attempt that recorded it: another attempt's fact is not ours.
create or replace function ambo.recorded(p_runs uuid[])
returns table (run_id uuid, "position" text, attempt integer)
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
set enable_seqscan = off set jit = off set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
begin
    return query
    select c.run_id, c.position, c.attempt from unnest(p_runs) g (id)
    cross join lateral (select c.* from ambo.checkpoint c where c.run_id = g.id offset 0) c
    union all
    select o.run_id, null, o.attempt from unnest(p_runs) g (id)
    cross join lateral (select o.* from ambo.outcome o where o.run_id = g.id offset 0) o;
end $$;
