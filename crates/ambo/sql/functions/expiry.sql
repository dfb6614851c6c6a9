-- Expiry: a run that has to start by a time, and has not, is dead. The claim says of a run that it is too late and its worker
-- ends it; what nobody claims the keeper ends.

-- Ends waiting runs whose time to start is over, up to p_limit above the mark and as many below. `more`: there may be more. A look does
-- not walk over what was claimed in time: it goes by a mark, as that of timers does (timer.sql has the proof). It holds
--   by, seq   the place in the order of (start_by, seq) up to which everything was seen and ended
--   since     the snapshot of the last look, taken before it read: what that does not show is looked for by its xid.
-- Where somebody has a run locked, the mark stays before it, and before what came below the mark and was not ended. Without a mark
-- it begins at the head.
create or replace function ambo.expire_runs(
    p_limit integer, p_mark json default null, out expired integer, out mark json, out more boolean)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp set plan_cache_mode = force_generic_plan set jit = off
set enable_seqscan = off set enable_bitmapscan = off set enable_hashjoin = off set enable_mergejoin = off
set enable_sort = off set enable_incremental_sort = off
as $$
declare
    v_now timestamptz := clock_timestamp();
    v_limit integer := greatest(p_limit, 1);
    v_by timestamptz := coalesce((p_mark ->> 'by')::timestamptz, '-infinity');
    v_seq bigint := coalesce((p_mark ->> 'seq')::bigint, 0);
    v_since pg_snapshot := (p_mark ->> 'since')::pg_snapshot;
    v_last constant bigint := 9223372036854775807;
    v_upto pg_snapshot;
    v_from xid8[];
    v_to xid8[];
    v_above bigint;
    v_below bigint;
    v_seen_by timestamptz;
    v_seen_seq bigint;
    v_left_by timestamptz;
    v_late uuid[];
begin
    if v_by > v_now then
        -- The clock went back. What was seen there is seen again when its time comes.
        v_by := v_now;
        v_seq := v_last;
    end if;
    v_upto := pg_current_snapshot();
    select u.lows, u.highs into v_from, v_to from ambo.unseen_xids(v_since, v_upto) u;
    with above as materialized (
        select r.ctid as place, r.start_by, r.seq from ambo.ready r
        where (r.start_by, r.seq) > (v_by, v_seq) and r.start_by <= v_now
        order by r.start_by, r.seq limit v_limit
    ), below as materialized (
        select l.* from unnest(v_from, v_to) x (lo, hi) cross join lateral (
            select r.ctid as place, r.start_by, r.seq from ambo.ready r
            where r.xid between x.lo and x.hi and r.start_by is not null
              and (r.start_by, r.seq) <= (v_by, v_seq)
            order by r.xid limit v_limit) l
        limit v_limit
    ), late as materialized (
        select * from above union all select * from below
    ), locked as materialized (
        select r.ctid as place from ambo.ready r where r.ctid = any (array(select l.place from late l))
        for update skip locked
    ), gone as (
        delete from ambo.ready r where r.ctid = any (array(select l.place from locked l))
        returning r.run_id, r.start_by, r.seq
    ), ended as (
        insert into ambo.outcome (run_id, attempt, status, error)
        select g.run_id, 0, 'dead', json_build_object(
            'code', 'AMBO032', 'message', format('the run had to start by %s and did not', g.start_by))
        from gone g
        returning run_id
    ), left_behind as materialized (
        select l.start_by, l.seq from late l except select g.start_by, g.seq from gone g
    )
    select array_agg(e.run_id), count(*), (select count(*) from above), (select count(*) from below),
           (select a.start_by from above a order by a.start_by desc, a.seq desc limit 1),
           (select a.seq from above a order by a.start_by desc, a.seq desc limit 1),
           (select min(l.start_by) from left_behind l)
    into v_late, expired, v_above, v_below, v_seen_by, v_seen_seq, v_left_by
    from ended e;
    if expired > 0 then
        perform ambo.drop_requests(v_late);
        -- Where failure blocks, it does so too.
        perform ambo.lead_groups(v_late, true);
        perform ambo.tell_waiters(v_late);
        perform ambo.wake_parents(v_late);
    end if;
    more := expired > 0 and greatest(v_above, v_below) >= v_limit;
    if v_below < v_limit then
        v_since := v_upto;
    end if;
    if v_above = v_limit then
        v_by := v_seen_by;
        v_seq := v_seen_seq;
    else
        v_by := v_now;
        v_seq := v_last;
    end if;
    if v_left_by <= v_by then
        v_by := v_left_by;
        v_seq := 0;
    end if;
    mark := json_build_object('by', v_by, 'seq', v_seq, 'since', coalesce(v_since, v_upto));
end $$;
