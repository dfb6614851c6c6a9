-- Claim: takes up to p_limit runs from the lanes given, in their order, and returns all that is needed to
-- run them. Nothing here walks over the dead: each lane is read above its low-water mark, and what
-- committed late, below the mark, is found by the transactions that were in progress at the last claim.
--
-- Why no row is lost. A row's seq is drawn after its transaction has an xid. The mark of a lane is moved,
-- by this statement's own snapshot S, to just below the lowest row that S sees and that was not taken, or,
-- where S sees none, to a value that the sequence had reached before S. A row below it that S does not see
-- then belongs to a transaction that had its xid before S and was not seen as ended by S: one of those in
-- progress in S, or one from xmax of S (which is only the last *ended* xid plus one) to the last xid given out.
-- All these are in p_late of the next claim; of those whose rows it leaves below the mark, of the one after, or the mark goes
-- back below all that they brought. A row that S sees but that somebody else had locked holds the mark, or its xid, until it is
-- gone. One that held the mark at the last claim already is passed, so that a transaction that stays open does not make each claim
-- walk over all that died since; it is looked for by name until it is gone, for its xid may have enqueued a million others.
--
-- The first row returned has no run_id and carries the marks (`lows`, in the order given), `late`, the rows that were passed (`held`,
-- and of which lane, by its number from 1), and the runs in the memory of this worker for which something came (`nudged`; empty, not
-- null, where rows that wake were taken and none was).
--
-- A row that only wakes leads to its run, wherever that is: parked, and it is claimed; in a worker's memory, and that
-- worker is told; on the way from there, and the row goes back into its lane; elsewhere, and there is nothing to do.
create or replace function ambo.claim(
    p_worker bigint, p_limit integer, p_queues text[], p_workflows text[], p_priorities smallint[],
    p_lows bigint[], p_late xid8[], p_held_lanes integer[] default '{}', p_held bigint[] default '{}')
returns table (run_id uuid, workflow text, queue text, input json, attempt integer, losses smallint,
               priority smallint, key text, attempts_max smallint, time_left_ms bigint, cancelled boolean,
               seq bigint, lows bigint[], late xid8[], parent_id uuid, nudged uuid[], too_late boolean, undo_left_ms bigint,
               held_lanes integer[], held bigint[])
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp set plan_cache_mode = force_generic_plan set jit = off
set enable_seqscan = off set enable_bitmapscan = off set enable_hashjoin = off set enable_mergejoin = off
as $$
#variable_conflict use_column
declare
    v_last bigint;
    v_ids uuid[];
    v_attempts integer[];
    v_losses smallint[];
    v_seqs bigint[];
    v_deadlines timestamptz[];
    v_lows bigint[];
    v_late xid8[];
    v_held_lanes integer[];
    v_held bigint[];
    v_xmax xid8;
    v_flood boolean;
    -- Late rows that are looked at; the turn of those beyond is not known.
    v_most constant integer := p_limit + 1000;
    v_woken uuid[];
    r record;
begin
    -- The fence before the claim: whoever takes a worker's claims away, or lets it leave, holds this lock
    -- exclusively. Without it, claims could come to stand under a worker that nobody buries any more.
    perform pg_advisory_xact_lock_shared(hashtext('ambo.fence'), p_worker::integer);
    if not exists (select from ambo.worker w where w.id = p_worker and w.dead_at is null) then
        raise exception 'AMBO030: worker % lost its lease', p_worker using errcode = 'AM030';
    end if;
    -- Before the snapshot, see above. Not by `select last_value`: that reads the row without its lock, and while PostgreSQL logs a
    -- sequence, each 32 draws, it holds what is reserved, so that the mark could pass rows whose transaction has no xid yet.
    v_last := coalesce(pg_sequence_last_value('ambo.ready_seq'), 0);
    with lane as materialized (
        select l.* from unnest(p_queues, p_workflows, p_priorities, p_lows)
            with ordinality as l (queue, workflow, priority, low, n)
        where not exists (select from ambo.queue q where q.name = l.queue and (q.paused or q.managed))
    ), late_seen as materialized (
        -- Of those that have ended: what an open one has enqueued so far, a million rows perhaps, is not walked.
        -- `offset 0`: by the index on xid, whatever the planner believes. What lies above its mark, as all of it does where much
        -- is waiting, has its turn without being remembered, and, like rows of other queues, hides nothing from this limit.
        select r.place, r.xid, r.seq, l.n
        from (select x from unnest(p_late) x where pg_visible_in_snapshot(x, (select pg_current_snapshot())) offset 0) e
        cross join lateral (select r.ctid as place, r.* from ambo.ready r where r.xid = e.x offset 0) r
        cross join lateral (select l.n from lane l where l.queue = r.queue and l.workflow = r.workflow
                                                     and l.priority = r.priority and r.seq <= l.low limit 1) l
        limit v_most
    ), held_seen as materialized (
        select r.place, r.seq, l.n
        from unnest(p_held_lanes, p_held) as h (n, seq)
        cross join lateral (select l.* from lane l where l.n = h.n and h.seq <= l.low offset 0) l
        cross join lateral (select r.ctid as place, r.seq from ambo.ready r
                            where r.queue = l.queue and r.workflow = l.workflow and r.priority = l.priority
                              and r.seq = h.seq offset 0) r
    ), locked as materialized (
        -- In the order of lanes, and in each what came late, below its mark, before the rest.
        select f.place from lane l cross join lateral (
            select b.place from (
                select s.place from (select s.place, s.seq from late_seen s where s.n = l.n
                                     union all select h.place, h.seq from held_seen h where h.n = l.n) s
                order by s.seq) s
            cross join lateral (
                select r.ctid as place from ambo.ready r where r.ctid = s.place offset 0 for update skip locked) b
            union all
            select a.place from (
                select r.ctid as place from ambo.ready r
                where r.queue = l.queue and r.workflow = l.workflow and r.priority = l.priority
                  and r.seq > l.low
                order by r.seq limit p_limit
                for update skip locked) a) f
        limit p_limit
    ), taken as (
        delete from ambo.ready r where r.ctid = any (array(select k.place from locked k))
        returning r.*
    ), claimed as (
        insert into ambo.claim (run_id, worker_id, attempt, losses, begun, deadline)
        select t.run_id, p_worker, t.attempt + 1, t.losses, t.losses = 0, least(t.deadline, now() + t.timeout) from taken t
        where not t.wakes
    ), ordered as materialized (
        select t.run_id, t.attempt + 1 as attempt, t.losses, t.seq, t.queue, t.workflow, t.priority, t.wakes,
               least(t.deadline, now() + t.timeout) as deadline
        from taken t order by t.priority, t.seq
    ), mark as (
        -- Seen and taken, both in order: the first place where they differ is the lowest row left behind.
        select l.n, coalesce(
            (select min(p.seen) - 1
             from unnest(s.seen, case when h.passed then l.low + 1 || t.taken else t.taken end) as p (seen, taken)
             where p.seen is distinct from p.taken),
            greatest(l.low, v_last, (select max(o.seq) from ordered o))) as low,
            l.low + 1 as held, h.passed
        from lane l cross join lateral (
            select array(select o.seq from ordered o
                         where o.queue = l.queue and o.workflow = l.workflow and o.priority = l.priority
                           and o.seq > l.low) as taken offset 0) t
        cross join lateral (
            select array(select r.seq from ambo.ready r
                         where r.queue = l.queue and r.workflow = l.workflow and r.priority = l.priority
                           and r.seq > l.low
                         order by r.seq limit 2 + cardinality(t.taken)) as seen offset 0) s
        -- The row just above the mark, where the lane was read beyond it. As many at a time as can be looked for.
        cross join lateral (
            select s.seen[1] = l.low + 1 and s.seen[1] is distinct from t.taken[1] and cardinality(p_held) < 1000
                   and (t.taken[1] is not null or (select count(*) from locked) < p_limit) as passed offset 0) h
    ), kept as materialized (
        select m.n, m.held as seq from mark m where m.passed
        union all
        select h.n, h.seq from held_seen h where h.place <> all (array(select k.place from locked k))
    )
    select array_agg(o.run_id) filter (where not o.wakes), array_agg(o.attempt) filter (where not o.wakes),
        array_agg(o.losses) filter (where not o.wakes), array_agg(o.seq) filter (where not o.wakes),
        array_agg(o.deadline) filter (where not o.wakes),
        -- Apart: from version 16 on the planner would sort the input of all of these for one `distinct` among them.
        (select array_agg(distinct w.run_id) from ordered w where w.wakes),
        -- A lane of a paused queue is not read: when it goes on, it is read from its beginning. Nor is one of a managed
        -- queue: see claim_queue.
        (select array_agg(coalesce(m.low, 0) order by g.n)
         from unnest(p_lows) with ordinality as g (low, n) left join mark m on m.n = g.n),
        array(select x from pg_snapshot_xip(pg_current_snapshot()) x
              union select s.xid from late_seen s where s.place <> all (array(select k.place from locked k))),
        (select array_agg(k.n::integer order by k.n, k.seq) from kept k), (select array_agg(k.seq order by k.n, k.seq) from kept k),
        pg_snapshot_xmax(pg_current_snapshot()),
        (select count(*) = v_most from late_seen)
    into v_ids, v_attempts, v_losses, v_seqs, v_deadlines, v_woken, v_lows, v_late, v_held_lanes, v_held, v_xmax, v_flood
    from ordered o;

    -- Our own xid was given out after S, by the first write; where nothing was written, age() reads the counter.
    v_late := v_late || array(
        select x::text::xid8
        from generate_series(
            v_xmax::text::bigint,
            coalesce(pg_current_xact_id_if_assigned()::text::bigint,
                     v_xmax::text::bigint + age(xid(v_xmax))) - 1) x);

    if v_flood then
        -- Late transactions brought so much that not all of it was seen.
        v_flood := (select count(*) > 5000 from (
            select from unnest(p_late) e (x)
            cross join lateral (select from ambo.ready r where r.xid = e.x offset 0) r limit 5001) f);
        if not v_flood then
            -- The next claim looks once more for those that are below a mark.
            v_late := array(
                select unnest(v_late)
                union
                select f.xid
                from (
                    select r.xid, r.queue, r.workflow, r.priority, min(r.seq) as seq from unnest(p_late) e (x)
                    cross join lateral (select r.* from ambo.ready r where r.xid = e.x offset 0) r
                    group by 1, 2, 3, 4) f
                join unnest(p_queues, p_workflows, p_priorities, v_lows) as g (queue, workflow, priority, low)
                    on g.queue = f.queue and g.workflow = f.workflow and g.priority = f.priority and f.seq <= g.low);
        else
            -- So many that to pass over those which were taken would take longer each time: the lanes go back below all of them, and
            -- they are found there. By xid here too: at the head of a lane stand all that died since the last vacuum.
            select array_agg(least(g.low, f.low) order by g.n),
                   array(select l from unnest(v_late) l
                         where l <> all (p_late) or not pg_visible_in_snapshot(l, (select pg_current_snapshot())))
            into v_lows, v_late
            from unnest(p_queues, p_workflows, p_priorities, v_lows)
                with ordinality as g (queue, workflow, priority, low, n)
            left join (
                select r.queue, r.workflow, r.priority, min(r.seq) - 1 as low from unnest(p_late) e (x)
                cross join lateral (select r.* from ambo.ready r where r.xid = e.x offset 0) r
                group by 1, 2, 3
            ) f on f.queue = g.queue and f.workflow = g.workflow and f.priority = g.priority;
        end if;
    end if;
    if v_woken is not null then
        nudged := '{}';
        for r in select w.* from ambo.wake_up(p_worker, v_woken) w loop
            if r.attempt is null then
                nudged := nudged || r.run_id;
                continue;
            end if;
            v_ids := v_ids || r.run_id;
            v_attempts := v_attempts || r.attempt;
            v_losses := v_losses || r.losses;
            v_seqs := v_seqs || 0::bigint;
            v_deadlines := v_deadlines || r.deadline;
        end loop;
    end if;
    if v_ids is null and v_woken is not null then
        -- Rows that wake were only passed on: should a crash undo that, they are passed on once more.
        perform set_config('synchronous_commit', 'off', true);
    end if;
    lows := v_lows;
    late := v_late;
    held_lanes := v_held_lanes;
    held := v_held;
    return next;
    nudged := null;
    if v_ids is not null then
        return query
        select r.id, r.workflow, r.queue, r.input, t.attempt, t.losses, r.priority, r.key, r.attempts_max,
               (extract(epoch from t.deadline - now()) * 1000)::bigint,
               q.run_id is not null, t.seq,
               null::bigint[], null::xid8[], r.parent_id, null::uuid[], t.attempt = 1 and r.start_by <= now(),
               (extract(epoch from q.undo_by - clock_timestamp()) * 1000)::bigint, null::integer[], null::bigint[]
        from unnest(v_ids, v_attempts, v_losses, v_deadlines, v_seqs)
                 with ordinality as t (id, attempt, losses, deadline, seq, n)
        cross join lateral (select r.* from ambo.run r where r.id = t.id offset 0) r
        left join lateral (select q.* from ambo.cancel_request q where q.run_id = t.id offset 0) q on true
        order by t.n;
    end if;
end $$;

-- Lanes that hold runs and that the worker does not know yet: reads only the gaps between known priorities, one probe each, and again
-- those in which there was something. All at once: for a worker with many queues and workflows these are thousands.
create or replace function ambo.find_lanes(
    p_queues text[], p_workflows text[], p_known_queues text[], p_known_workflows text[],
    p_known_priorities smallint[])
returns table (queue text, workflow text, priority smallint)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp set plan_cache_mode = force_generic_plan set jit = off
set enable_seqscan = off set enable_bitmapscan = off
as $$
#variable_conflict use_column
declare
    v_queues text[];
    v_workflows text[];
    v_above integer[];
    v_below integer[];
begin
    select array_agg(g.queue), array_agg(g.workflow), array_agg(g.above), array_agg(g.below)
    into v_queues, v_workflows, v_above, v_below
    from (
        select k.queue, k.workflow, k.priority as above, lead(k.priority, 1, 32768) over priorities as below,
               first_value(k.priority) over priorities = -32769 as is_asked_for
        from (select q as queue, w as workflow, -32769 as priority from unnest(p_queues) q, unnest(p_workflows) w
              union all
              select k.q, k.w, k.p::integer from unnest(p_known_queues, p_known_workflows, p_known_priorities) as k (q, w, p)) k
        window priorities as (partition by k.queue collate "C", k.workflow collate "C" order by k.priority)) g
    where g.is_asked_for;
    loop
        select array_agg(g.queue), array_agg(g.workflow), array_agg(f.priority::integer), array_agg(g.below)
        into v_queues, v_workflows, v_above, v_below
        from unnest(v_queues, v_workflows, v_above, v_below) as g (queue, workflow, above, below)
        cross join lateral (
            select r.priority from ambo.ready r
            where r.queue = g.queue and r.workflow = g.workflow and r.priority > g.above and r.priority < g.below
            order by r.priority limit 1) f;
        exit when v_queues is null;
        return query select u.queue, u.workflow, u.priority::smallint
                     from unnest(v_queues, v_workflows, v_above) as u (queue, workflow, priority);
    end loop;
end $$;

-- The safety net below a lane's mark: the lowest run that stands in (p_above, p_upto], if any. Those of p_late
-- and p_held are not forgotten: the next claim looks for them.
create or replace function ambo.sweep(
    p_queue text, p_workflow text, p_priority smallint, p_above bigint, p_upto bigint, p_late xid8[], p_held bigint[])
returns bigint
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp set plan_cache_mode = force_generic_plan
set jit = off set enable_seqscan = off set enable_bitmapscan = off
as $$
begin
    return (
        select r.seq from ambo.ready r
        where r.queue = p_queue and r.workflow = p_workflow and r.priority = p_priority
          and r.seq > p_above and r.seq <= p_upto and r.xid <> all (p_late) and r.seq <> all (p_held)
        order by r.seq limit 1);
end $$;

-- The checkpoints of runs that were claimed before.
create or replace function ambo.history(p_runs uuid[])
returns table (run_id uuid, "position" text, name text, output json, error json)
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
set enable_seqscan = off set jit = off set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
begin
    -- One partition a run: pruned for each, which `= any` is not.
    return query
    select c.run_id, c.position, c.name, c.output, c.error
    from unnest(p_runs) g (id)
    cross join lateral (select c.* from ambo.checkpoint c where c.run_id = g.id offset 0) c;
end $$;

-- The queues and workflows that have a row in ready, 10,000 at most: one index probe each, however many rows there are.
create or replace function ambo.lanes() returns table (queue text, workflow text)
language sql stable set jit = off set enable_seqscan = off
as $$
    with recursive lane as (
        (select r.queue, r.workflow from ambo.ready r order by r.queue, r.workflow limit 1)
        union all
        select n.queue, n.workflow from lane l cross join lateral (
            select r.queue, r.workflow from ambo.ready r
            where (r.queue, r.workflow) > (l.queue, l.workflow)
            order by r.queue, r.workflow limit 1) n
    )
    select l.queue, l.workflow from lane l limit 10000
$$;

-- The name of the lane of a workflow's runs: its own, or, where they are pinned to a version of their workers or of a group,
-- with that behind it. What had begun goes on before anything begins, so it stands in a lane of its own, marked '+', which comes first
-- among those of its priority; in a queue that keeps the order of groups it is the head of its group.
create or replace function ambo.lane(p_workflow text, p_pin text, p_group text default null, p_goes_on boolean default false)
returns text
language sql immutable
-- Of nothing that is not immutable itself, such as concat_ws: it dissolves in the statement that calls it.
return case when p_goes_on
            then p_workflow || chr(31) || coalesce(p_pin, '') || chr(31) || coalesce(p_group, '') || chr(31) || '+'
            when p_group is not null then p_workflow || chr(31) || coalesce(p_pin, '') || chr(31) || p_group
            when p_pin is not null then p_workflow || chr(31) || p_pin
            else p_workflow end;

-- The version that a worker pins its runs to, if it does.
create or replace function ambo.pin_of(p_worker bigint) returns text
language sql stable
return (select w.version from ambo.worker w where w.id = p_worker and w.pinned);

-- Runs that workers died with are about to be executed, or runs that only waited go on: from now on it counts if this worker
-- dies too. p_begun false: runs do nothing but wait, and lose nothing by its death.
create or replace function ambo.begin_runs(p_worker bigint, p_runs uuid[], p_begun boolean) returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp set jit = off set enable_seqscan = off set plan_cache_mode = force_generic_plan
as $$
begin
    perform pg_advisory_xact_lock_shared(hashtext('ambo.fence'), p_worker::integer);
    update ambo.claim c set begun = p_begun
    where c.run_id = any (p_runs) and c.worker_id = p_worker and c.begun <> p_begun;
    -- Should a crash of the server take it back, a death is counted wrongly, once.
    perform set_config('synchronous_commit', 'off', true);
end $$;

-- Gives runs back that were not finished (shutdown, a claim whose answer was lost): no loss is counted.
create or replace function ambo.hand_back(p_worker bigint, p_runs uuid[], p_attempts integer[])
returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp set jit = off set enable_seqscan = off set plan_cache_mode = force_generic_plan
as $$
declare
    v_ids uuid[];
    v_attempts integer[];
    v_losses smallint[];
    v_deadlines timestamptz[];
    v_count integer;
    v_placed uuid[];
begin
    -- Exclusively, as whoever takes claims away: a flush of this worker may have looked at one and not committed yet.
    perform pg_advisory_xact_lock(hashtext('ambo.fence'), p_worker::integer);
    with returned as (
        delete from ambo.claim c where c.ctid = any (array(
            select h.place from unnest(p_runs, p_attempts) as g (id, attempt)
            cross join lateral (
                select c.ctid as place from ambo.claim c
                where c.run_id = g.id and c.worker_id = p_worker and c.attempt = g.attempt offset 0) h))
        returning c.run_id, c.attempt, c.losses, c.deadline, c.slot)
    select array_agg(r.run_id), array_agg(r.attempt), array_agg(r.losses), array_agg(r.deadline), count(*),
           array_agg(r.run_id) filter (where r.slot is not null)
    into v_ids, v_attempts, v_losses, v_deadlines, v_count, v_placed
    from returned r;
    if v_count > 0 then
        perform ambo.lead_groups(v_placed, false);
        perform ambo.make_ready(v_ids, v_attempts, v_losses, v_deadlines, array_fill(ambo.pin_of(p_worker), array[v_count]));
    end if;
    return v_count;
end $$;

-- Puts runs that had begun, or whose time has come, back into their lanes. In a queue that keeps the order of groups only the head of
-- its group goes on before the others: another one, as one that is retried after a failure that does not block, waits like them.
create or replace function ambo.make_ready(
    p_runs uuid[], p_attempts integer[], p_losses smallint[], p_deadlines timestamptz[], p_pins text[])
returns void
language plpgsql volatile
set plan_cache_mode = force_generic_plan set enable_seqscan = off set jit = off
as $$
declare
    v_xid xid8 := pg_current_xact_id();
begin
    insert into ambo.ready (seq, xid, run_id, attempt, losses, priority, weight, queue, workflow, timeout, deadline,
                            start_by)
    select nextval('ambo.ready_seq'), v_xid, r.id, u.attempt, u.losses, r.priority, r.weight, r.queue,
           ambo.lane(r.workflow, u.pin, r.group_key,
                     case when r.group_key is not null and q.ordered is not null
                          then exists (select from ambo.head h where h.run_id = r.id)
                          else u.attempt > 0 end),
           r.timeout, u.deadline, case when u.attempt = 0 then r.start_by end
    from unnest(p_runs, p_attempts, p_losses, p_deadlines, p_pins) as u (id, attempt, losses, deadline, pin)
    cross join lateral (select r.* from ambo.run r where r.id = u.id offset 0) r
    cross join lateral (select q.ordered from ambo.queue q where q.name = r.queue offset 0) q;
    perform ambo.wake();
end $$;
