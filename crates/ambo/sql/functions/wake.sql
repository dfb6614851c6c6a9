-- Wake-ups are hints, sent only when somebody sleeps: NOTIFY makes all commits of the instance take turns.
-- A sleeper holds 16 shared session locks; this probes one of them, chosen by backend so that two probes
-- hardly ever meet, and gives it back within the same expression, where no cancel can come between.
-- `set ambo.notify = off` for sessions that use PREPARE TRANSACTION, which forbids NOTIFY.
create or replace function ambo.is_awaited(p_lock integer) returns boolean
language sql volatile
return case when pg_try_advisory_lock(p_lock, pg_backend_pid() & 15)
            then not pg_advisory_unlock(p_lock, pg_backend_pid() & 15)
            else true end;

-- Sends one. Not where the server's queue of notifications is half full, since somebody who listens does not read: the commit that finds
-- it full fails, and that is the user's, or one of the journal.
create or replace function ambo.send_hint(p_channel text, p_payload text) returns void
language plpgsql volatile
as $$
begin
    if current_setting('ambo.notify', true) is distinct from 'off' and pg_notification_queue_usage() < 0.5 then
        perform pg_notify(p_channel, p_payload);
    end if;
end $$;

-- Tells sleeping claimers that something may be claimed.
create or replace function ambo.wake() returns void
language plpgsql volatile
as $$
begin
    if ambo.is_awaited(hashtext('ambo.sleep')) then
        perform ambo.send_hint('ambo.wake', '');
    end if;
end $$;

-- What a notification says of which runs it is about: the last digits of their ids, by which who has a run finds it among its own.
-- Everybody who may connect can listen, and to know an id is to be let in; and everybody can notify: a hint is looked into, not obeyed.
create or replace function ambo.tags(p_runs uuid[]) returns text
language sql immutable
return case when cardinality(p_runs) <= 1000
            then (select coalesce(string_agg(right(r.id::text, 4), ','), '') from unnest(p_runs) r (id)) else '' end;

-- Runs have ended: nobody has to be asked to cancel them any more. A request that an open transaction has locked, which asks for it once
-- more, stays: all runs of a flush would wait for that transaction otherwise. It means nothing, and a retry removes it.
create or replace function ambo.drop_requests(p_runs uuid[]) returns void
language plpgsql volatile
set plan_cache_mode = force_generic_plan set jit = off set enable_seqscan = off
as $$
begin
    if pg_relation_size('ambo.cancel_request') > 0 then
        delete from ambo.cancel_request r where r.ctid = any (array(
            select q.place from unnest(p_runs) e (id) cross join lateral (
                select q.ctid as place from ambo.cancel_request q where q.run_id = e.id offset 0 for update skip locked) q));
    end if;
end $$;

-- Leaves, for each run, a row that wakes it wherever it is. Unconditionally: nobody decides by looking at the other. It stands in the
-- lane of what goes on; in a managed queue in one of its own, for there those may have to wait for room.
create or replace function ambo.leave_wakes(p_runs uuid[]) returns void
language plpgsql volatile
-- Or one run in the array would look cheaper each time by less than it costs to plan that.
set plan_cache_mode = force_generic_plan set jit = off set enable_seqscan = off
as $$
declare
    v_xid xid8 := pg_current_xact_id();
begin
    insert into ambo.ready (seq, xid, run_id, attempt, losses, priority, weight, queue, workflow, wakes)
    select nextval('ambo.ready_seq'), v_xid, r.id, 0, 0, r.priority, 0, r.queue,
           r.workflow || repeat(chr(31), 3) || case when q.managed then '~' else '+' end, true
    from (select distinct u.id from unnest(p_runs) u (id)) g
    cross join lateral (select r.* from ambo.run r where r.id = g.id offset 0) r
    cross join lateral (select q.managed from ambo.queue q where q.name = r.queue offset 0) q;
end $$;

-- The same, and tells those who sleep.
create or replace function ambo.send_wakes(p_runs uuid[]) returns void
language plpgsql volatile
as $$
begin
    perform ambo.leave_wakes(p_runs);
    perform ambo.wake();
end $$;

-- Wakes the parents of runs that ended otherwise than by a flush, which knows them.
create or replace function ambo.wake_parents(p_runs uuid[]) returns void
language plpgsql volatile
as $$
declare
    v_parents uuid[] := array(select r.parent_id from ambo.run r where r.id = any (p_runs) and r.parent_id is not null);
begin
    if cardinality(v_parents) > 0 then
        perform ambo.send_wakes(v_parents);
    end if;
end $$;

-- Of runs that are to be woken, claims those that are parked and returns them; those in the memory of this worker are
-- returned without an attempt, other workers are told of theirs. The order of the looks is what makes it
-- right: a claim that is locked with `for key share` cannot be parked before this transaction ends, and whoever
-- parks it then finds the row in ambo.wake; one that is locked by somebody else is on its way to a place not known
-- yet; one that is not there at the first look stands in ambo.timer at the second, if anywhere, and where somebody has
-- locked it there, the row that wakes goes back.
create or replace function ambo.wake_up(p_worker bigint, p_runs uuid[], p_managed boolean default false)
returns table (run_id uuid, attempt integer, losses smallint, deadline timestamptz)
language plpgsql volatile set jit = off set enable_seqscan = off set enable_bitmapscan = off set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
declare
    v_held uuid[];
    v_others uuid[];
    v_moving uuid[];
    v_back uuid[];
    v_attempts integer[];
    v_losses smallint[];
    v_deadlines timestamptz[];
    v_pins text[];
    v_pin text := ambo.pin_of(p_worker);
begin
    if exists (select from ambo.fan_in) then
        p_runs := ambo.gather_members(p_runs);
    end if;
    v_held := array(
        select c.run_id from unnest(p_runs) g (id)
        cross join lateral (
            select c.run_id from ambo.claim c where c.run_id = g.id offset 0 for key share skip locked) c);
    if cardinality(v_held) > 0 then
        insert into ambo.wake (run_id) select h from unnest(v_held) h on conflict do nothing;
        return query
        select c.run_id, null::integer, null::smallint, null::timestamptz from unnest(v_held) g (id)
        cross join lateral (select c.* from ambo.claim c where c.run_id = g.id offset 0) c where c.worker_id = p_worker;
        v_others := array(
            select c.run_id from unnest(v_held) g (id)
            cross join lateral (select c.* from ambo.claim c where c.run_id = g.id offset 0) c
            where c.worker_id <> p_worker);
        if cardinality(v_others) > 0 then
            perform ambo.send_hint('ambo.signal', ambo.tags(v_others));
        end if;
    end if;
    v_moving := array(
        select c.run_id from unnest(p_runs) g (id)
        cross join lateral (select c.run_id from ambo.claim c where c.run_id = g.id offset 0) c
        where c.run_id <> all (v_held));
    if cardinality(v_moving) > 0 then
        perform ambo.send_wakes(v_moving);
    end if;
    -- One that is pinned to another version goes to a worker of that; one of a managed queue waits for its turn.
    with up as (
        delete from ambo.timer t where t.ctid = any (array(
            select p.place from unnest(p_runs) g (id)
            cross join lateral (
                select t.ctid as place from ambo.timer t
                where t.run_id = g.id and (p_managed or t.pin <> coalesce(v_pin, '')) offset 0 for update skip locked) p))
        returning t.run_id, t.attempt, t.losses, t.deadline, t.pin
    )
    select array_agg(u.run_id), array_agg(u.attempt), array_agg(u.losses), array_agg(u.deadline), array_agg(u.pin)
    into v_back, v_attempts, v_losses, v_deadlines, v_pins from up u;
    if v_back is not null then
        perform ambo.make_ready(v_back, v_attempts, v_losses, v_deadlines, v_pins);
    end if;
    if not p_managed then
        return query
        with up as (
            delete from ambo.timer t where t.ctid = any (array(
                select p.place from unnest(p_runs) g (id)
                cross join lateral (
                    select t.ctid as place from ambo.timer t
                    where t.run_id = g.id and (t.pin is null or t.pin = v_pin) offset 0 for update skip locked) p))
            returning t.run_id, t.attempt, t.losses, t.deadline
        )
        insert into ambo.claim (run_id, worker_id, attempt, losses, begun, deadline)
        select u.run_id, p_worker, u.attempt + 1, u.losses, u.losses = 0, u.deadline from up u
        returning run_id, attempt, losses, deadline;
    end if;
    -- One that is still there is locked, by an operator's rewind perhaps: should that be rolled back, the run must be
    -- woken all the same. Nobody is told: the lock may last, and the poll is soon enough.
    v_moving := array(
        select t.run_id from unnest(p_runs) g (id)
        cross join lateral (select t.run_id from ambo.timer t where t.run_id = g.id offset 0) t);
    if cardinality(v_moving) > 0 then
        perform ambo.leave_wakes(v_moving);
    end if;
end $$;
