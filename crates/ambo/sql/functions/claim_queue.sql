-- The claim of a managed queue: fair to its groups, within its limits.
--
-- The worker keeps the lanes that hold runs and takes turns among them; a claim is given some of them, with a low-water mark
-- and a room each. It finds out about lanes by the no-gaps rule: `arrivals` are the rows visible now that were not in the
-- snapshot of the last call, whichever lane they stand in. A lane is forgotten when nothing is left in it: what comes to be
-- visible there later is an arrival, and brings the mark with it. So nothing is missed that commits late, and no empty lane
-- is ever looked at.
--
-- Limits hold exactly, for claims of a queue that has any take turns: the queue's lock is held from the count to the commit.
-- They are counted without walking over the dead: the worker remembers the slots (of ambo.claim) that it knew, of its own by weight, of
-- others by number; here those are looked up, and what is newer is read. A slot of its own whose claim's answer was lost is
-- newer than what it knows, and counts as somebody else's; and so does what it claimed while the queue had no limit.
--
-- Turns are taken by groups, and by workflows of runs that have none: the lanes of a group that are equally urgent are one unit, in which
-- what goes on (marked '+') comes first, and then what was enqueued first. The less urgent get what the more urgent leave.
--
-- A run counts with its weight; one that weighs more than a limit needs all of it for itself.
--
-- A place is held in execution only. Where the order of groups is kept, a run that leaves execution before its end, or fails where
-- that blocks, is the head of its group (ambo.head): the others of the group wait for it. It comes back in a lane of its own, of
-- its group and marked '+', and takes a place like any other.
--
-- Those who claim keep the lock for milliseconds. Who changes the settings keeps it until he commits, and who frees a group keeps its
-- head: the worker gives up then, and serves its other queues.
--
-- A claim answers no payloads: nothing large is sent while the locks are held, for a client that does not read would hold
-- up all others. See claimed_runs.

-- Lanes in which rows have come to be visible since a snapshot, each with the mark below the first of them; all lanes, where
-- there is no snapshot or too many rows have come.
create or replace function ambo.arrivals(
    p_queue text, p_since pg_snapshot, out lanes text[], out priorities smallint[], out lows bigint[], out upto pg_snapshot)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan set jit = off set enable_seqscan = off set enable_bitmapscan = off
as $$
begin
    upto := pg_current_snapshot();
    if p_since is not null then
        select array_agg(a.workflow), array_agg(a.priority), array_agg(a.low)
        into lanes, priorities, lows
        from (
            select r.workflow, r.priority, min(r.seq) - 1 as low
            from (
                select n.workflow, n.priority, n.seq from (
                    select r.* from ambo.ready r where r.xid >= pg_snapshot_xmax(p_since) offset 0) n
                where n.queue = p_queue
                union all
                -- Of those that have ended, as in ambo.claim.
                select l.workflow, l.priority, l.seq
                from (select x from pg_snapshot_xip(p_since) x where pg_visible_in_snapshot(x, upto) offset 0) e
                cross join lateral (select r.* from ambo.ready r where r.xid = e.x offset 0) l
                where l.queue = p_queue) r
            group by r.workflow, r.priority) a;
        return;
    end if;
    with recursive lane as (
        (select r.workflow, r.priority, r.seq from ambo.ready r
         where r.queue = p_queue order by r.workflow, r.priority, r.seq limit 1)
        union all
        select n.workflow, n.priority, n.seq from lane l cross join lateral (
            select r.workflow, r.priority, r.seq from ambo.ready r
            where r.queue = p_queue and (r.workflow, r.priority) > (l.workflow, l.priority)
            order by r.workflow, r.priority, r.seq limit 1) n
    )
    select array_agg(l.workflow), array_agg(l.priority), array_agg(l.seq - 1) into lanes, priorities, lows from lane l;
end $$;

-- What a rate has left for a queue (an empty group) or a group now.
create or replace function ambo.tokens(p_queue text, p_group text, p_limit integer, p_period interval, p_burst integer)
returns double precision
language plpgsql volatile
set plan_cache_mode = force_generic_plan set jit = off set enable_seqscan = off
as $$
declare
    v_tokens double precision;
begin
    select least(p_burst, r.tokens + extract(epoch from clock_timestamp() - r.at) * p_limit / extract(epoch from p_period))
    into v_tokens
    from ambo.rate r where r.queue = p_queue and r.group_key = p_group order by r.seq desc limit 1;
    return coalesce(v_tokens, p_burst);
end $$;

-- Writes down what is left. The row before it goes.
create or replace function ambo.spend(p_queue text, p_groups text[], p_tokens double precision[]) returns void
language plpgsql volatile
set plan_cache_mode = force_generic_plan set jit = off set enable_seqscan = off
as $$
begin
    delete from ambo.rate d where d.ctid = any (array(
        select o.place from unnest(p_groups) g (group_key) cross join lateral (
            select r.ctid as place from ambo.rate r where r.queue = p_queue and r.group_key = g.group_key
            order by r.seq desc limit 1) o));
    insert into ambo.rate (queue, group_key, seq, at, tokens)
    select p_queue, u.g, nextval('ambo.rate_seq'), clock_timestamp(), u.t from unnest(p_groups, p_tokens) as u (g, t);
end $$;

-- Whether there is anything to count.
create or replace function ambo.is_limited(q ambo.queue) returns boolean
language sql immutable
as $$
    select num_nonnulls(q.concurrency, q.worker_concurrency, q.group_concurrency, q.rate_limit, q.group_rate_limit, q.ordered) > 0
$$;

-- `p_lanes` are tried in their order, those of a unit in one turn (`p_turns`), those of one priority in one class (`p_classes`).
-- `p_mine`: the weight in execution in this worker that it counts, in all and in the group of each lane; `p_here`: all that is in
-- execution in it, whoever counts it; `p_others`: the slots of others, as they were known at the last call, up to `p_seen`.
--
-- `open` are the lanes that might have had a turn, of those that need one. In those that were `tried` stands, as far as was looked, what is
-- named in `left_lanes` and `left_seqs`; one in which nothing is named is empty: what becomes visible there after this snapshot, which
-- is newer than that of the arrivals, is an arrival at the next call.
create or replace function ambo.claim_queue(
    p_worker bigint, p_queue text, p_limit integer, p_since text,
    p_lanes text[], p_priorities smallint[], p_turns integer[], p_classes integer[], p_lows bigint[], p_shares smallint[],
    p_mine_groups integer[],
    p_mine integer, p_here integer, p_others bigint[], p_seen bigint,
    out runs uuid[], out run_lanes integer[], out weights smallint[],
    out attempts integer[], out losses smallint[], out left_ms bigint[], out nudged uuid[],
    out open integer[], out tried integer[], out left_lanes integer[], out left_seqs bigint[],
    out upto text, out new_lanes text[], out new_priorities smallint[], out new_lows bigint[],
    out limited boolean, out others bigint[], out seen bigint, out wait_ms integer,
    out ordered text, out ageing_ms bigint, out group_limit integer,
    out group_keys text[], out shares smallint[])
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp set lock_timeout = '250ms' set plan_cache_mode = force_generic_plan set jit = off
set enable_seqscan = off set enable_bitmapscan = off set enable_nestloop = off
as $$
declare
    q ambo.queue%rowtype;
    v_other_groups text[];
    v_other_weights integer[];
    -- What there is room for by the limits: for what fits, and for one that weighs more than a limit of which nothing is taken. Null: any.
    v_room integer;
    v_alone integer;
    v_places integer;
    v_used integer;
    v_tokens double precision;
    v_woken uuid[];
    v_groups text[];
    v_left double precision[];
    v_claimed integer;
    -- Every lane is a unit and a group of its own, all are equally urgent, and none is free.
    v_alike boolean := p_turns[1] = 1 and p_turns[cardinality(p_turns)] = cardinality(p_turns)
                       and p_classes[1] = p_classes[cardinality(p_classes)];
    v_paused boolean := exists (select from ambo.queue_group g where g.queue = p_queue and g.paused);
begin
    -- The fence before the claim, as in ambo.claim.
    perform pg_advisory_xact_lock_shared(hashtext('ambo.fence'), p_worker::integer);
    if not exists (select from ambo.worker w where w.id = p_worker and w.dead_at is null) then
        raise exception 'AMBO030: worker % lost its lease', p_worker using errcode = 'AM030';
    end if;
    select a.lanes, a.priorities, a.lows, a.upto::text into new_lanes, new_priorities, new_lows, upto
    from ambo.arrivals(p_queue, p_since::pg_snapshot) a;
    select * into q from ambo.queue k where k.name = p_queue;
    limited := ambo.is_limited(q);
    -- Without a limit nothing is counted: what is known is kept for the next one, which finds the slots that were given meanwhile.
    others := p_others;
    seen := p_seen;
    if not limited then
        -- Who sets one waits for those who claim without.
        perform pg_advisory_xact_lock_shared(hashtext('ambo.queue'), hashtext(p_queue));
        if (select ambo.is_limited(k) from ambo.queue k where k.name = p_queue) then
            p_limit := 0;
        end if;
    else
        perform pg_advisory_xact_lock(hashtext('ambo.queue'), hashtext(p_queue));
        select * into q from ambo.queue k where k.name = p_queue;
        select coalesce(array_agg(s.slot), '{}'), coalesce(array_agg(s.group_key), '{}'), coalesce(array_agg(s.weight::integer), '{}')
        into others, v_other_groups, v_other_weights
        from (
            select s.slot, s.group_key, s.weight from unnest(p_others) o (slot) cross join lateral (
                select c.* from ambo.claim c where c.queue = p_queue and c.slot = o.slot offset 0) s
            union all
            select c.slot, c.group_key, c.weight from ambo.claim c where c.queue = p_queue and c.slot > p_seen) s;
        v_used := p_mine + (select coalesce(sum(w), 0) from unnest(v_other_weights) w);
        v_room := least(q.worker_concurrency - p_here, q.concurrency - v_used);
        v_alone := least(case when p_here > 0 then q.worker_concurrency - p_here end,
                         case when v_used > 0 then q.concurrency - v_used end);
        if q.ordered is not null then
            q.group_concurrency := 1;
        end if;
        if q.rate_limit is not null then
            v_tokens := ambo.tokens(p_queue, '', q.rate_limit, q.rate_period, q.rate_burst);
            v_room := least(v_room, floor(v_tokens));
            if v_tokens < q.rate_burst then
                v_alone := least(v_alone, floor(v_tokens));
            end if;
            if v_tokens < 1 then
                wait_ms := ceil((1 - v_tokens) * extract(epoch from q.rate_period) * 1000 / q.rate_limit);
            end if;
        end if;
    end if;

    v_places := greatest(least(p_limit, v_room), 0);

    -- Rows that wake need no room: their lanes are free. Of the others as many units are tried as there is room for, and what they
    -- have is taken in turns, so that the last of the room goes round too. Where all lanes are alike, the rule, each is tried for itself;
    -- else those of a unit, of a class and of a group are brought together first.
    with lane as materialized (
        select n, nullif(split_part(p_lanes[n], chr(31), 3), '') as group_key,
               split_part(p_lanes[n], chr(31), 4) = '~' as is_free, split_part(p_lanes[n], chr(31), 4) = '+' as goes_on
        from generate_series(1, cardinality(p_lanes)) n
    ), other as materialized (
        select u.g as group_key, sum(u.w) as weight from unnest(v_other_groups, v_other_weights) as u (g, w) group by u.g
    ), unread as materialized (
        -- Where the order of groups is kept, what has come in a lane that is not read here may come before what is.
        select a.group_key, min(a.priority) as priority
        from (select split_part(a.lane, chr(31), 3) as group_key, a.lane, a.priority
              from unnest(new_lanes, new_priorities) as a (lane, priority)
              where q.ordered is not null and split_part(a.lane, chr(31), 3) <> '') a
        left join lane l on p_lanes[l.n] = a.lane and p_priorities[l.n] = a.priority
        where l.n is null group by a.group_key
    ), eligible as materialized (
        select f.n, f.group_key, f.is_free, f.goes_on,
               least(q.group_concurrency - f.used, f.tokens) as group_room,
               least(case when f.used > 0 then q.group_concurrency - f.used end,
                     case when f.tokens < q.group_rate_burst then f.tokens end) as group_alone
        from (
            select l.*, p_mine_groups[l.n] + coalesce(o.weight, 0) as used,
                   case when q.group_rate_limit is not null and l.group_key is not null then floor(ambo.tokens(
                       p_queue, l.group_key, q.group_rate_limit, q.group_rate_period, q.group_rate_burst))::bigint end as tokens
            from lane l left join other o on o.group_key = l.group_key left join unread u on u.group_key = l.group_key
            where not q.paused and (coalesce(v_room, 1) > 0 or l.is_free)
              and (u.priority <= p_priorities[l.n]) is not true
              -- A lookup for each, if there is any.
              and case when v_paused then (
                      select g.paused from ambo.queue_group g where g.queue = p_queue and g.group_key = l.group_key) end is not true
              -- This snapshot is newer than that of the slots: a run is seen as one or the other.
              and case when q.ordered is not null and l.group_key is not null and not l.goes_on then (
                      select true from ambo.head h where h.queue = p_queue and h.group_key = l.group_key
                        and (q.ordered = 'block' or not exists (select from ambo.outcome o where o.run_id = h.run_id))
                      limit 1) end is not true
            offset 0) f
        where f.is_free or f.group_key is null or coalesce(least(q.group_concurrency - f.used, f.tokens), 1) > 0
    ), counted as (
        (select e.*, (select count(*) from eligible) as units from eligible e where v_alike limit v_places)
        union all
        select c.n, c.group_key, c.is_free, c.goes_on, c.group_room, c.group_alone, c.units from (
            select e.*, max(e.k) over (partition by p_classes[e.n]) - min(e.k) over (partition by p_classes[e.n]) + 1 as units
            from (select e.*, dense_rank() over (partition by e.is_free order by p_turns[e.n]) as k
                  from eligible e where not v_alike) e) c
        where c.is_free or c.k <= v_places
    ), tried as materialized (
        select c.n, c.group_key, c.goes_on, c.group_room, c.group_alone, case when c.is_free then p_limit else least(
                   p_shares[c.n] * ((v_places + least(v_places, c.units) - 1) / least(v_places, c.units)),
                   case when c.group_key is not null then c.group_room end) end as quota
        from counted c
    ), seen as materialized (
        -- One more than may be taken: where the mark is to be.
        select t.*, f.* from tried t cross join lateral (
            select r.ctid as place, r.seq, case when r.wakes then 0 else r.weight::integer end as weight,
                   row_number() over upwards as rank, sum(case when r.wakes then 0 else r.weight::integer end) over upwards as in_lane
            from (select r.ctid, r.seq, r.weight, r.wakes from ambo.ready r
                  where r.queue = p_queue and r.workflow = p_lanes[t.n] and r.priority = p_priorities[t.n] and r.seq > p_lows[t.n]
                  order by r.seq limit t.quota + 1) r
            window upwards as (order by r.seq rows unbounded preceding)) f
    ), in_line as (
        select s.*, s.rank as of_unit, s.in_lane as in_group from seen s where v_alike and s.rank <= s.quota
        union all
        select u.*, sum(u.weight) over (partition by u.group_key order by p_classes[u.n], (u.of_unit - 1) / p_shares[u.n], p_turns[u.n], u.of_unit)
        from (select s.*, row_number() over (partition by p_classes[s.n], p_turns[s.n] order by s.goes_on desc, s.seq) as of_unit
              from seen s where not v_alike and s.rank <= s.quota) u
        where u.of_unit <= u.quota
    ), in_turn as (
        select i.place, i.weight, sum(i.weight) over turns as in_all, row_number() over turns as nth
        from in_line i
        where i.weight = 0 or i.group_key is null or coalesce(i.in_group <= i.group_room, true)
              or i.in_group = i.weight and coalesce(i.weight <= i.group_alone, true)
        window turns as (order by i.weight > 0, p_classes[i.n], (i.of_unit - 1) / p_shares[i.n], p_turns[i.n], i.of_unit
                         rows unbounded preceding)
    ), locked as materialized (
        select r.ctid as place from ambo.ready r where r.ctid = any (array(
            select t.place from in_turn t
            where t.nth <= p_limit
              and (t.weight = 0 or coalesce(t.in_all <= v_room, true)
                   or t.in_all = t.weight and coalesce(t.weight <= v_alone, true))))
        for update skip locked
    ), taken as (
        delete from ambo.ready r where r.ctid = any (array(select l.place from locked l))
        returning r.seq, r.run_id, r.weight, r.wakes, r.attempt, r.losses, least(r.deadline, now() + r.timeout) as deadline
    ), given as materialized (
        -- A slot each, numbered in their order. Nothing is joined with what was inserted: a planner that expects next to
        -- nothing would compare each with all.
        select o.*, case when not o.wakes then nextval('ambo.slot_seq') end as slot
        from (select t.*, s.n, s.group_key, s.goes_on from seen s join taken t on t.seq = s.seq order by s.n, s.seq) o
    ), claimed as (
        insert into ambo.claim (run_id, worker_id, attempt, losses, begun, deadline, slot, weight, queue, group_key)
        select g.run_id, p_worker, g.attempt + 1, g.losses, g.losses = 0, g.deadline, g.slot, g.weight, p_queue, g.group_key
        from given g where not g.wakes
    ), led as (
        delete from ambo.head h where h.run_id = any (array(select g.run_id from given g where g.goes_on))
    ), left_over as materialized (
        select array_agg(s.n) as lanes, array_agg(s.seq) as seqs from seen s where s.seq not in (select d.seq from taken d)
    )
    select array_agg(g.run_id) filter (where not g.wakes),
           array_agg(g.n) filter (where not g.wakes),
           array_agg(g.weight) filter (where not g.wakes),
           array_agg(g.attempt + 1) filter (where not g.wakes),
           array_agg(g.losses) filter (where not g.wakes),
           array_agg((extract(epoch from g.deadline - now()) * 1000)::bigint) filter (where not g.wakes),
           (select array_agg(distinct w.run_id) from given w where w.wakes),
           (select array_agg(e.n) from eligible e where not e.is_free),
           (select array_agg(t.n) from tried t),
           (select l.lanes from left_over l), (select l.seqs from left_over l)
    into runs, run_lanes, weights, attempts, losses, left_ms, v_woken, open, tried, left_lanes, left_seqs
    from given g;
    if v_room <= 0 then
        -- Nobody's turn is over.
        open := array(select generate_subscripts(p_lanes, 1));
    end if;
    if limited then
        -- Not by `select last_value`: see claim.sql.
        seen := coalesce(pg_sequence_last_value('ambo.slot_seq'), 0);
        if runs is not null and (q.rate_limit is not null or q.group_rate_limit is not null) then
            v_claimed := (select sum(w) from unnest(weights) w);
            if q.rate_limit is not null and v_claimed > 0 then
                perform ambo.spend(p_queue, '{""}', array[greatest(v_tokens - v_claimed, 0)]);
            end if;
            if q.group_rate_limit is not null then
                select array_agg(g.group_key), array_agg(greatest(
                    ambo.tokens(p_queue, g.group_key, q.group_rate_limit, q.group_rate_period, q.group_rate_burst) - g.weight, 0))
                into v_groups, v_left
                from (select split_part(p_lanes[u.n], chr(31), 3) as group_key, sum(u.weight) as weight
                      from unnest(run_lanes, weights) u (n, weight) group by 1) g
                where g.group_key <> '';
                if v_groups is not null then
                    perform ambo.spend(p_queue, v_groups, v_left);
                end if;
            end if;
        end if;
    end if;
    if v_woken is not null then
        nudged := array(select w.run_id from ambo.wake_up(p_worker, v_woken, true) w);
    end if;
    ordered := q.ordered;
    group_limit := q.group_concurrency;
    ageing_ms := extract(epoch from q.ageing) * 1000;
    select array_agg(g.group_key), array_agg(g.share) into group_keys, shares
    from ambo.queue_group g where g.queue = p_queue and g.share > 1;
end $$;

-- What is needed, besides what the claim answered, to execute runs that this worker has just claimed.
create or replace function ambo.claimed_runs(p_runs uuid[])
returns table (run_id uuid, workflow text, queue text, input json, key text, attempts_max smallint, cancelled boolean,
               parent_id uuid, too_late boolean, undo_left_ms bigint)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp set plan_cache_mode = force_generic_plan set jit = off set enable_seqscan = off
as $$
#variable_conflict use_column
declare
    v_cancels boolean := pg_relation_size('ambo.cancel_request') > 0;
begin
    return query
    select r.id, r.workflow, r.queue, r.input, r.key, r.attempts_max, q.run_id is not null, r.parent_id,
           coalesce(r.start_by <= now(), false), (extract(epoch from q.undo_by - clock_timestamp()) * 1000)::bigint
    from unnest(p_runs) g (id)
    cross join lateral (select r.* from ambo.run r where r.id = g.id offset 0) r
    left join lateral (
        select q.* from ambo.cancel_request q where v_cancels and q.run_id = g.id offset 0) q on true;
end $$;

-- Of runs that had slots and left execution, or ended: in a queue that is ordered one of a group is the head of it until it has
-- ended, and, where failure blocks, also then.
create or replace function ambo.lead_groups(p_runs uuid[], p_ended boolean) returns void
language plpgsql volatile
set plan_cache_mode = force_generic_plan set enable_seqscan = off set jit = off
as $$
begin
    if not exists (select from ambo.queue q where q.ordered is not null) then
        return;
    end if;
    insert into ambo.head (queue, group_key, run_id)
    select r.queue, r.group_key, r.id from unnest(p_runs) g (id)
    cross join lateral (select r.* from ambo.run r where r.id = g.id offset 0) r
    cross join lateral (select q.ordered from ambo.queue q where q.name = r.queue offset 0) q
    where q.ordered is not null and r.group_key is not null
      and (not p_ended or q.ordered = 'block' and exists (
              select from ambo.outcome o where o.run_id = r.id and o.status in ('failed', 'dead')))
    on conflict do nothing;
end $$;
