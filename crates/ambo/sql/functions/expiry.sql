-- Expiry: a run that has to start by a time, and has not, is dead. The claim says of a run that it is too late and its worker
-- ends it; what nobody claims the keeper ends.

-- Ends waiting runs whose time to start is over, up to p_limit. Returns how many.
create or replace function ambo.expire_runs(p_limit integer) returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp set plan_cache_mode = force_generic_plan set jit = off
set enable_seqscan = off set enable_bitmapscan = off set enable_hashjoin = off set enable_mergejoin = off
as $$
declare
    v_now timestamptz := clock_timestamp();
    v_late uuid[];
begin
    with late as (
        delete from ambo.ready r where r.ctid = any (array(
            select w.ctid from ambo.ready w where w.start_by <= v_now
            order by w.start_by limit p_limit for update skip locked))
        returning r.run_id, r.start_by
    ), ended as (
        insert into ambo.outcome (run_id, attempt, status, error)
        select l.run_id, 0, 'dead', json_build_object(
            'code', 'AMBO032', 'message', format('the run had to start by %s and did not', l.start_by))
        from late l
        returning run_id
    )
    select array_agg(e.run_id) into v_late from ended e;
    if v_late is null then
        return 0;
    end if;
    delete from ambo.cancel_request q where q.run_id = any (v_late);
    perform ambo.tell_waiters(v_late);
    perform ambo.wake_parents(v_late);
    return cardinality(v_late);
end $$;
