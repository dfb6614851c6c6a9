-- Events: what a run publishes under a key, for anyone to await; all values of a key are a stream.

-- Records what runs published, as far as they are still this worker's.
create or replace function ambo.publish(
    p_worker bigint, p_runs uuid[], p_attempts integer[], p_keys text[], p_numbers integer[], p_values json[])
returns void
language plpgsql volatile
set plan_cache_mode = force_generic_plan set jit = off set enable_seqscan = off
as $$
begin
    insert into ambo.event (run_id, key, number, value)
    select e.run_id, e.key, e.number, e.value
    from unnest(p_runs, p_attempts, p_keys, p_numbers, p_values) as e (run_id, attempt, key, number, value)
    cross join lateral (
        select from ambo.claim c
        where c.run_id = e.run_id and c.worker_id = p_worker and c.attempt = e.attempt offset 0) c
    on conflict do nothing;
    perform ambo.tell_waiters(p_runs);
end $$;

-- What a run published under a key after number p_after, in order; no row for a key under which there is nothing. Of a run
-- that is not there: AMBO033.
create or replace function ambo.read_events(
    p_run uuid, p_key text, p_after integer default 0, p_limit integer default 1000)
returns table (number integer, value json, published_at timestamptz)
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    return query
    select e.number, e.value, e.published_at from ambo.event e
    where e.run_id = p_run and e.key = p_key and e.number > p_after
    order by e.number limit greatest(least(p_limit, 1000000), 0);
    if not found then
        perform ambo.refuse_unknown(p_run);
    end if;
end $$;

-- The last value that a run published under a key; where there is none, whether it has ended, and so none will come. Of a run
-- that is not there: AMBO033.
create or replace function ambo.present_event(p_run uuid, p_key text, out value json, out ended boolean)
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
as $$
begin
    ended := false;
    select e.value into present_event.value from ambo.event e
    where e.run_id = p_run and e.key = p_key order by e.number desc limit 1;
    if found then
        return;
    end if;
    -- What it published in the commit of its end is seen with it.
    ended := exists (select from ambo.outcome o where o.run_id = p_run);
    if not ended then
        perform ambo.refuse_unknown(p_run);
    end if;
end $$;

-- The present value of each key under which a run has published. Of a run that is not there: AMBO033.
create or replace function ambo.list_events(p_run uuid)
returns table (key text, number integer, value json, published_at timestamptz)
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    return query
    select distinct on (e.key) e.key, e.number, e.value, e.published_at
    from ambo.event e where e.run_id = p_run order by e.key, e.number desc;
    if not found then
        perform ambo.refuse_unknown(p_run);
    end if;
end $$;
