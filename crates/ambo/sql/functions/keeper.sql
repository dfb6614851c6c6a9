-- The keeper's acts: idempotent, bounded, short.

-- Takes the claims of a dead worker, up to p_limit of them, back to ready; a run that has lost too many
-- workers without progress goes to the dead letters with that reason; one that had not begun has lost nothing. The worker's fence lock is held
-- exclusively, so no flush of it is under way, and the next one sees that the claims are gone. Claims that a
-- committing transaction step has locked are left behind, for the next time. It goes by pieces of the table of claims, each from `p_page` on:
-- `next_page` is where to go on, null at the end. `buried` when nothing is left, in this piece nor, as `p_left_behind` says, in those before.
-- `held`: a backend has the lock for a worker that has been silent for two leases, and we may not end it.
create or replace function ambo.bury_worker(
    p_keeper bigint, p_worker bigint, p_limit integer, p_page bigint default 0, p_left_behind boolean default false,
    out recovered integer, out dead_lettered integer, out buried boolean, out held boolean, out left_behind boolean,
    out next_page bigint)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp set plan_cache_mode = force_generic_plan set jit = off
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
as $$
declare
    v_lease interval := (select i.lease from ambo.installation i);
    v_first tid;
    v_upto tid;
    v_next bigint;
    v_places tid[];
    v_dead uuid[];
    v_revived uuid[];
    v_placed uuid[];
    v_attempts integer[];
    v_losses smallint[];
    v_deadlines timestamptz[];
    v_pin text := ambo.pin_of(p_worker);
begin
    recovered := 0;
    dead_lettered := 0;
    buried := false;
    held := false;
    left_behind := p_left_behind;
    if not exists (select from ambo.keeper k where k.worker_id = p_keeper) then
        return;
    end if;
    if not pg_try_advisory_xact_lock(hashtext('ambo.fence'), p_worker::integer) then
        -- A flush or claim under way has it, for a moment; or for ever, where a process that was stopped reads no answer.
        if exists (select from ambo.heartbeat h where h.worker_id = p_worker
                   and h.at < pg_catalog.clock_timestamp() - 2 * v_lease)
        then
            held := not ambo.end_holders(p_worker);
        end if;
        return;
    end if;
    -- Once more, under the lock: it may have come back, or be buried already.
    update ambo.worker w set dead_at = coalesce(w.dead_at, clock_timestamp())
    where w.id = p_worker
      and (w.dead_at is not null
           or exists (select from ambo.heartbeat h where h.worker_id = p_worker
                      and (h.at < pg_catalog.clock_timestamp() - v_lease
                           or w.session and h.at < pg_catalog.clock_timestamp() - interval '2.5 seconds'
                              and pg_try_advisory_xact_lock(hashtext('ambo.worker'), p_worker::integer))));
    if not found then
        return;
    end if;
    -- Its open transaction steps hold row locks that would stall the heir. A worker of another installation in this database may have
    -- the same number: its steps have left no marker here.
    perform pg_terminate_backend(a.pid) from pg_stat_activity a
    where a.datname = current_database() and a.application_name = 'ambo step of worker ' || p_worker
      and pg_has_role(current_user, a.usesysid, 'member')
      and exists (select from pg_locks l where l.pid = a.pid and l.relation = 'ambo.transaction_marker'::regclass);
    -- One walk, for what to take and for whether that is all: none is added any more.
    select p.first, p.upto, p.next_page into v_first, v_upto, v_next from ambo.claim_piece(p_page) p;
    v_places := array(
        select o.ctid from ambo.claim o
        where o.ctid >= v_first and o.ctid < v_upto and o.worker_id = p_worker limit p_limit + 1);
    with taken as (
        delete from ambo.claim c where c.ctid = any (array(
            select o.ctid from ambo.claim o where o.ctid = any (v_places) and o.worker_id = p_worker
            limit p_limit for update skip locked))
        returning c.run_id, c.attempt, c.losses, c.begun, c.deadline, c.slot
    ), judged as materialized (
        select t.run_id, t.attempt, t.deadline, t.slot, r.attempts_max,
               case when not t.begun then t.losses
                    when exists (select from ambo.checkpoint c where c.run_id = t.run_id and c.attempt = t.attempt) then 1
                    else t.losses + 1 end as losses
        from taken t cross join lateral (select r.* from ambo.run r where r.id = t.run_id offset 0) r
    ), dropped as (
        insert into ambo.outcome (run_id, attempt, status, error)
        select j.run_id, j.attempt, 'dead', json_build_object(
                   'code', 'AMBO026',
                   'message', format('%s workers died with this run and it made no progress', j.losses))
        from judged j where j.losses >= j.attempts_max
        returning run_id
    )
    select array(select d.run_id from dropped d), array(select j.run_id from judged j where j.slot is not null),
           coalesce(array_agg(j.run_id), '{}'), array_agg(j.attempt), array_agg(j.losses::smallint), array_agg(j.deadline)
    into v_dead, v_placed, v_revived, v_attempts, v_losses, v_deadlines
    from judged j where j.losses < j.attempts_max;
    recovered := cardinality(v_revived);
    dead_lettered := cardinality(v_dead);
    if recovered > 0 then
        perform ambo.lead_groups(array(select r from unnest(v_revived) r where r = any (v_placed)), false);
        perform ambo.make_ready(v_revived, v_attempts, v_losses, v_deadlines, array_fill(v_pin, array[recovered]));
    end if;
    if dead_lettered > 0 then
        perform ambo.lead_groups(array(select d from unnest(v_dead) d where d = any (v_placed)), true);
        perform ambo.wake_parents(v_dead);
    end if;
    if recovered + dead_lettered > 0 then
        perform ambo.tell_waiters('{}');
    end if;
    if cardinality(v_places) > p_limit then
        next_page := p_page;
        return;
    end if;
    next_page := v_next;
    left_behind := left_behind or recovered + dead_lettered < cardinality(v_places);
    if next_page is null and not left_behind then
        delete from ambo.heartbeat h where h.worker_id = p_worker;
        delete from ambo.worker w where w.id = p_worker;
        buried := true;
    end if;
end $$;

-- Ends the backends that hold the fence lock of a worker; their work is rolled back. False: we may not end one of them. The
-- owner of the schema may end those of roles that it is a member of, or any but a superuser's as one of pg_signal_backend.
create or replace function ambo.end_holders(p_worker bigint) returns boolean
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
declare
    v_pid integer;
    v_all boolean := true;
begin
    for v_pid in
        select l.pid from pg_locks l
        where l.locktype = 'advisory' and l.granted and l.pid <> pg_backend_pid() and l.objsubid = 2
          and l.database = (select d.oid from pg_database d where d.datname = current_database())
          and l.classid = (hashtext('ambo.fence')::bigint & 4294967295)::oid
          and l.objid = (p_worker::integer::bigint & 4294967295)::oid
    loop
        begin
            perform pg_terminate_backend(v_pid);
        exception
            when insufficient_privilege then v_all := false;
        end;
    end loop;
    return v_all;
end $$;

-- The versions that runs which may be claimed are pinned to and that no living worker pins to, and those that living
-- workers pin to; and how long the former wait for a worker. Reads only the gaps between versions that are alive, for
-- in their lanes are the dead rows.
create or replace function ambo.pins() returns table (version text, is_alive boolean, grace_ms bigint)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp set plan_cache_mode = force_generic_plan set jit = off
set enable_seqscan = off set enable_bitmapscan = off
as $$
#variable_conflict use_column
declare
    v_alive text[] := array(
        select distinct w.version collate "C" from ambo.worker w where w.pinned and w.dead_at is null order by 1);
    v_above text collate "C" := '';
    v_below text collate "C";
    v_found text collate "C";
begin
    grace_ms := (select (extract(epoch from i.pin_grace) * 1000)::bigint from ambo.installation i);
    is_alive := true;
    foreach version in array v_alive loop
        return next;
    end loop;
    is_alive := false;
    loop
        v_below := (select min(a.v) from unnest(v_alive) a (v) where a.v collate "C" > v_above);
        -- Two statements: with an `or` in one, the upper end would not be the index's to know.
        if v_below is null then
            v_found := (
                select split_part(r.workflow, chr(31), 2) from ambo.ready r
                where split_part(r.workflow, chr(31), 2) <> '' and split_part(r.workflow, chr(31), 2) > v_above
                order by split_part(r.workflow, chr(31), 2) limit 1);
        else
            v_found := (
                select split_part(r.workflow, chr(31), 2) from ambo.ready r
                where split_part(r.workflow, chr(31), 2) <> '' and split_part(r.workflow, chr(31), 2) > v_above
                  and split_part(r.workflow, chr(31), 2) < v_below
                order by split_part(r.workflow, chr(31), 2) limit 1);
        end if;
        if v_found is not null then
            version := v_found;
            return next;
            v_above := v_found;
        elsif v_below is not null then
            v_above := v_below;
        else
            exit;
        end if;
    end loop;
end $$;

-- Whether there is a cancel whose grace came to be over after p_after and by p_now, and whose run may not have ended. Apart, for the
-- index that it goes by, above the mark, whatever the planner last saw of the table.
create or replace function ambo.graces_over(p_after timestamptz, p_now timestamptz) returns boolean
language plpgsql stable
set plan_cache_mode = force_generic_plan set jit = off set enable_seqscan = off set enable_bitmapscan = off
as $$
begin
    return pg_relation_size('ambo.cancel_request') > 0 and exists (
        select from ambo.cancel_request q
        where q.undo_by > coalesce(p_after, '-infinity') and q.undo_by <= p_now order by q.undo_by limit 1);
end $$;

-- Ends runs whose cancel's grace is over and that nobody has in execution, parked or ready as they are, whatever the reason: their
-- queue is paused or full, nobody serves it, or no worker is there of the version that they are pinned to, whose code alone is sure to undo
-- them. Nobody is to wait for any of that longer than was asked for. That such a run only undoes from here on is recorded, as
-- by a worker: a retry goes on with that. Up to p_limit at a time, in the order of the ends of their graces.
-- A run is ended where it stood already at the last look, whose snapshot is p_since: whoever was about to claim it has
-- done so meanwhile, and says what is left to undo. `since` is for the next look, which comes a moment later, or at once where there
-- is `more` of what has stood for long enough.
-- `after`: there is no grace that was over by then, above p_after, and whose run had not ended. A cancel that committed after its own grace
-- is below that: it is found by a look from the beginning (p_after null).
create or replace function ambo.end_unclaimed(
    p_limit integer, p_after timestamptz default null, p_since pg_snapshot default null,
    out ended integer, out after timestamptz, out since pg_snapshot, out more boolean)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp set plan_cache_mode = force_generic_plan set jit = off
set enable_seqscan = off set enable_bitmapscan = off set enable_hashjoin = off set enable_mergejoin = off
as $$
declare
    v_now timestamptz := clock_timestamp();
    v_limit integer := greatest(p_limit, 1);
    v_after timestamptz := coalesce(p_after, '-infinity');
    v_upto pg_snapshot := pg_current_snapshot();
    v_ended uuid[];
    v_seen bigint;
    v_last timestamptz;
    v_left timestamptz;
begin
    with over as materialized (
        select q.run_id, q.undo_by from ambo.cancel_request q
        where q.undo_by > v_after and q.undo_by <= v_now
        order by q.undo_by limit v_limit
    ), waiting as (
        delete from ambo.ready r where r.ctid = any (array(
            select s.place from over o cross join lateral (
                select r.ctid as place from ambo.ready r
                where r.run_id = o.run_id and r.attempt > 0 and pg_visible_in_snapshot(r.xid, p_since)
                offset 0 for update skip locked) s))
        returning r.run_id, r.attempt, nullif(split_part(r.workflow, chr(31), 2), '') as pin
    ), parked as (
        delete from ambo.timer t where t.ctid = any (array(
            select s.place from over o cross join lateral (
                select t.ctid as place from ambo.timer t
                where t.run_id = o.run_id and t.attempt > 0 and pg_visible_in_snapshot(t.xid, p_since)
                offset 0 for update skip locked) s))
        returning t.run_id, t.attempt, t.pin
    ), gone as materialized (
        select * from waiting union all select * from parked
    ), begun as (
        insert into ambo.checkpoint (run_id, attempt, elapsed_ms, position, name, error)
        select g.run_id, g.attempt, 0, '0', 'ambo:undo', json_build_object(
            'code', 'AMBO025', 'permanent', true,
            'message', 'the run was cancelled' || coalesce(': ' || ambo.cancel_reason(g.run_id), ''))
        from gone g
        where not exists (select from ambo.checkpoint c where c.run_id = g.run_id and c.position = '0' offset 0)
    ), dead as (
        insert into ambo.outcome (run_id, attempt, status, error)
        select g.run_id, g.attempt, 'dead', json_build_object(
            'code', 'AMBO039', 'at', json_build_array(),
            'message', case
                when g.pin is not null and not exists (
                    select from ambo.worker w where w.pinned and w.dead_at is null and w.version = g.pin)
                then format('the grace of the cancel was over before a worker of version %s, to which the run is pinned, was there '
                            'to undo it', quote_literal(g.pin))
                else 'the grace of the cancel was over while the run was not in execution: its queue is paused or full, or no '
                     'worker serves it; nothing more was undone, and a retry goes on with that once the run has a place' end)
        from gone g
        returning run_id
    ), left_behind as materialized (
        select o.run_id from over o except select g.run_id from gone g
    )
    select (select array_agg(d.run_id) from dead d), (select count(*) from over), (select max(o.undo_by) from over o),
           -- In execution, locked, or there for no longer than a moment; not one whose request outlived it.
           (select min(q.undo_by) from left_behind l cross join lateral (
                select q.undo_by from ambo.cancel_request q where q.run_id = l.run_id offset 0) q
            where exists (select from ambo.run r where r.id = l.run_id offset 0)
              and not exists (select from ambo.outcome o where o.run_id = l.run_id offset 0))
    into v_ended, v_seen, v_last, v_left;
    ended := coalesce(cardinality(v_ended), 0);
    if ended > 0 then
        perform ambo.drop_requests(v_ended);
        perform ambo.lead_groups(v_ended, true);
        perform ambo.tell_waiters(v_ended);
        perform ambo.wake_parents(v_ended);
    end if;
    more := ended > 0 and v_seen = v_limit;
    since := case when more then p_since else v_upto end;
    -- Others may have the same time as the last one that was seen.
    after := least(v_left - interval '1 microsecond',
                   case when v_seen = v_limit then v_last - interval '1 microsecond' else v_now end);
end $$;

-- Gives runs that are pinned to versions of which no worker is left to any worker, up to p_limit. Returns how many.
create or replace function ambo.release_pins(p_versions text[], p_limit integer) returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp set jit = off set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
as $$
declare
    v_xid xid8 := pg_current_xact_id();
    v_count integer;
begin
    with released as (
        delete from ambo.ready r where r.ctid = any (array(
            select p.place from unnest(p_versions) v cross join lateral (
                select r.ctid as place from ambo.ready r
                where split_part(r.workflow, chr(31), 2) <> '' and split_part(r.workflow, chr(31), 2) = v
                limit p_limit for update skip locked) p
            limit p_limit))
        returning r.*
    )
    insert into ambo.ready (seq, xid, run_id, attempt, losses, priority, weight, queue, workflow, timeout, deadline)
    select nextval('ambo.ready_seq'), v_xid, r.run_id, r.attempt, r.losses, r.priority, r.weight, r.queue,
           ambo.lane(split_part(r.workflow, chr(31), 1), null, nullif(split_part(r.workflow, chr(31), 3), ''),
                     split_part(r.workflow, chr(31), 4) = '+'), r.timeout, r.deadline
    from released r;
    get diagnostics v_count = row_count;
    if v_count > 0 then
        perform ambo.wake();
    end if;
    return v_count;
end $$;

-- Lets groups go on whose head is gone with its history: nobody has unblocked them until then.
create or replace function ambo.expire_heads(p_limit integer) returns integer
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
declare
    v_count integer;
begin
    delete from ambo.head d where d.ctid = any (array(
        select h.ctid from ambo.head h where not exists (select from ambo.run r where r.id = h.run_id) limit p_limit));
    get diagnostics v_count = row_count;
    return v_count;
end $$;

-- Releases keys whose lifetime is over and whose run has ended, up to p_limit. Returns how many it looked at. One that names a
-- run only while that lives, and it does, is looked at again later.
create or replace function ambo.expire_keys(p_limit integer) returns integer
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
declare
    v_count integer;
    v_live integer;
begin
    with due as materialized (
        select k.ctid as place, k.rule = 't' or exists (select from ambo.outcome o where o.run_id = k.run_id)
               or not exists (select from ambo.run r where r.id = k.run_id) as free
        from ambo.run_key k where k.expires_at < now()
          and (k.rule in ('d', 't', 'b') or exists (select from ambo.outcome o where o.run_id = k.run_id)
               or not exists (select from ambo.run r where r.id = k.run_id))
        order by k.expires_at limit p_limit for update skip locked
    ), released as (
        delete from ambo.run_key k where k.ctid = any (array(select d.place from due d where d.free)) returning 1
    ), kept as (
        update ambo.run_key k set expires_at = now() + interval '10 minutes'
        where k.ctid = any (array(select d.place from due d where not d.free)) returning 1
    )
    select (select count(*) from released), (select count(*) from kept) into v_count, v_live;
    return v_count + v_live;
end $$;
