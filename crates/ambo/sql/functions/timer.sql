-- Timers: what becomes ready when its time comes. The keeper looks, once a second and whenever one is due.
--
-- A look does not walk over the dead: it reads the timers above a mark, in the order of (due_at, run_id), and below it what was
-- not to be seen at the last look. The mark goes from look to look: the keeper carries it, and leaves it with each heartbeat for the
-- next one. It holds
--   due, run   the place in that order up to which everything was seen
--   since      the snapshot of the last look, taken before it read
--   held       runs that were due and that somebody else had locked, or had just changed: they are looked up by their id.
--
-- Why no timer is lost. One that stands at or below the new mark, and that the snapshot `since` shows, was read by this look, since
-- it stood above the old mark, or was not shown by the snapshot before, or was held; it was then fired, or it is held. One that
-- `since` does not show belongs to a transaction that had not ended then: its xid is among those in progress in it, or not below its xmax,
-- and the next look reads these. It does not matter how such a timer came to stand below the mark: a commit that was
-- long in coming, a time that was past when it was asked for, a clock that went back. Whatever moves a timer gives it a new xid.

-- The ranges of xids that a look has to look for whose last one had the snapshot p_since: those of transactions that it did not
-- show, and that have ended by p_upto. Those that are in progress still are looked for when they have ended.
create or replace function ambo.unseen_xids(
    p_since pg_snapshot, p_upto pg_snapshot, out lows xid8[], out highs xid8[])
language sql immutable
as $$
    select array_agg(x.low), array_agg(x.high)
    from (select pg_snapshot_xmax(p_since) as low, '18446744073709551615'::xid8 as high where p_since is not null
          union all
          select i, i from pg_snapshot_xip(p_since) i where pg_visible_in_snapshot(i, p_upto)) x
$$;

-- Makes due timers ready, up to p_limit above the mark and as many below. `wait_ms`: until the next one is due, if that is soon; 0 where there
-- are more. Without a mark it begins at the head.
create or replace function ambo.fire_timers(
    p_limit integer, p_mark json default null, out fired integer, out mark json, out wait_ms bigint)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp set plan_cache_mode = force_generic_plan set jit = off
set enable_hashjoin = off set enable_mergejoin = off set enable_seqscan = off set enable_bitmapscan = off
set enable_sort = off set enable_incremental_sort = off
as $$
declare
    -- A variable: the volatile function itself would be no bound of an index scan.
    v_now timestamptz := clock_timestamp();
    v_limit integer := greatest(p_limit, 1);
    v_zero constant uuid := '00000000-0000-0000-0000-000000000000';
    v_last constant uuid := 'ffffffff-ffff-ffff-ffff-ffffffffffff';
    v_due timestamptz := coalesce((p_mark ->> 'due')::timestamptz, '-infinity');
    v_run uuid := coalesce((p_mark ->> 'run')::uuid, v_zero);
    v_since pg_snapshot := (p_mark ->> 'since')::pg_snapshot;
    v_held uuid[] := array(select h::uuid from json_array_elements_text(p_mark -> 'held') h);
    v_upto pg_snapshot;
    v_from xid8[];
    v_to xid8[];
    v_seen bigint;
    v_seen_due timestamptz;
    v_seen_run uuid;
    v_late bigint;
    v_back timestamptz;
    v_ids uuid[];
    v_attempts integer[];
    v_losses smallint[];
    v_deadlines timestamptz[];
    v_pins text[];
begin
    if v_due > v_now then
        -- The clock went back. What was seen there is seen again when its time comes.
        v_due := v_now;
        v_run := v_last;
    end if;
    -- Before the snapshot that reads, see above. What is in progress still is looked for when it has ended: the million timers
    -- of a transaction under way are not walked through meanwhile.
    v_upto := pg_current_snapshot();
    select u.lows, u.highs into v_from, v_to from ambo.unseen_xids(v_since, v_upto) u;
    with above as materialized (
        select t.ctid as place, t.due_at, t.run_id from ambo.timer t
        where (t.due_at, t.run_id) > (v_due, v_run) and t.due_at <= v_now
        order by t.due_at, t.run_id limit v_limit
    ), late as materialized (
        -- In the order of the one index that serves it.
        select l.* from unnest(v_from, v_to) x (lo, hi) cross join lateral (
            select t.ctid as place, t.due_at, t.run_id from ambo.timer t
            where t.xid between x.lo and x.hi and t.due_at <= v_due
            order by t.xid, t.due_at limit v_limit + 1) l
        limit v_limit + 1
    ), held as materialized (
        select h.* from unnest(v_held) g (id) cross join lateral (
            select t.ctid as place, t.due_at, t.run_id from ambo.timer t
            where t.run_id = g.id and t.due_at <= v_now offset 0) h
    ), due as materialized (
        select * from above union select * from late union select * from held
    ), locked as materialized (
        select t.ctid as place from ambo.timer t where t.ctid = any (array(select d.place from due d))
        for update skip locked
    ), gone as (
        delete from ambo.timer t where t.ctid = any (array(select l.place from locked l))
        returning t.run_id, t.due_at, t.attempt, t.losses, t.deadline, t.pin
    ), fire as materialized (
        select g.* from gone g order by g.due_at
    ), left_behind as materialized (
        select d.run_id, d.due_at from due d except select f.run_id, f.due_at from fire f
    )
    select array_agg(f.run_id), array_agg(f.attempt), array_agg(f.losses), array_agg(f.deadline), array_agg(f.pin), count(*),
           array(select l.run_id from left_behind l), (select min(l.due_at) from left_behind l),
           (select count(*) from late), (select count(*) from above),
           (select a.due_at from above a order by a.due_at desc, a.run_id desc limit 1),
           (select a.run_id from above a order by a.due_at desc, a.run_id desc limit 1)
    into v_ids, v_attempts, v_losses, v_deadlines, v_pins, fired, v_held, v_back, v_late, v_seen, v_seen_due, v_seen_run
    from fire f;
    if fired > 0 then
        perform ambo.make_ready(v_ids, v_attempts, v_losses, v_deadlines, v_pins);
    end if;

    if v_late > v_limit then
        -- One transaction brought more than is read below the mark: the mark goes back, and passes them in order.
        v_back := least(v_back, (
            select min(l.due_at) from unnest(v_from, v_to) x (lo, hi) cross join lateral (
                select t.due_at from ambo.timer t
                where t.xid between x.lo and x.hi and t.due_at <= v_due order by t.xid, t.due_at) l));
    end if;
    if v_late > v_limit or cardinality(v_held) > 200 then
        v_due := v_back;
        v_run := v_zero;
        v_held := '{}';
    elsif v_seen = v_limit then
        v_due := v_seen_due;
        v_run := v_seen_run;
    else
        v_due := v_now;
        v_run := v_last;
    end if;
    mark := json_build_object('due', v_due, 'run', v_run, 'since', v_upto, 'held', v_held);
    wait_ms := case when v_late > v_limit or v_seen = v_limit then 0 else (
        -- No further than needed: many of those that are due later are woken, and dead, before.
        select greatest(ceil(extract(epoch from t.due_at - clock_timestamp()) * 1000)::bigint, 0) from ambo.timer t
        where t.due_at > v_now and t.due_at <= v_now + interval '2 seconds' order by t.due_at limit 1) end;
end $$;
