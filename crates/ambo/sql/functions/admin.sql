-- What operators and handles ask: results, cancel, retry, queues, workers.

-- The state of a run and, when it has ended, its result. No row: there is no such run.
-- States: ready, delayed, running, parked, then succeeded, failed, cancelled or dead.
create or replace function ambo.run_result(p_run uuid)
returns table (state text, output json, error json)
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
-- Who polls asks often: planning it over all partitions takes longer than to look.
set plan_cache_mode = force_generic_plan set jit = off set enable_seqscan = off
as $$
begin
    return query
    select coalesce(o.status::text, ambo.live_state(r.id)), o.output, o.error
    from ambo.run r left join ambo.outcome o on o.run_id = r.id
    where r.id = p_run;
end $$;

create or replace function ambo.live_state(p_run uuid) returns text
language plpgsql stable
as $$
begin
    return case when exists (select from ambo.claim c where c.run_id = p_run) then 'running'
                when exists (select from ambo.timer t where t.run_id = p_run and t.attempt = 0) then 'delayed'
                when exists (select from ambo.timer t where t.run_id = p_run) then 'parked'
                else 'ready' end;
end $$;

-- The outcomes, so far, of the runs that somebody waits for. Of those in p_new it also says which do not exist
-- (status 'unknown'): whoever waits for one of them would wait for ever.
create or replace function ambo.outcomes(p_runs uuid[], p_new uuid[])
returns table (run_id uuid, status text, output json, error json)
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
set enable_seqscan = off set jit = off set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
begin
    return query
    select o.run_id, o.status::text, o.output, o.error
    from unnest(p_runs) g (id)
    cross join lateral (select o.* from ambo.outcome o where o.run_id = g.id offset 0) o;
    if cardinality(p_new) > 0 then
        return query
        select g.id, 'unknown', null::json, null::json from unnest(p_new) g (id)
        where not exists (select from ambo.run r where r.id = g.id);
    end if;
end $$;

-- Asks a run to end, and the children that it did not detach. One that has not begun ends at once; one that has, at
-- its next durable call, so that it can compensate: parked, it is woken for that.
-- With p_grace it ends within that, undone or not: what is left then makes it dead. Asked again, the earlier end counts.
-- Says what happened: 'cancelled', 'requested', or the state in which it had already ended.
create or replace function ambo.cancel_run(p_run uuid, p_reason text default null, p_grace interval default null)
returns text
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan set jit = off set enable_seqscan = off
as $$
begin
    if octet_length(p_reason) > 4000 then
        raise exception 'AMBO004: the reason of a cancel has % bytes; the limit is 4000', octet_length(p_reason)
            using errcode = 'AM004';
    end if;
    if (p_grace > interval '0' and p_grace <= interval '10 years') is false then
        raise exception 'AMBO005: the grace of a cancel is above zero and at most ten years, not %', p_grace
            using errcode = 'AM005';
    end if;
    if not exists (select from ambo.outcome o where o.run_id = p_run) then
        perform ambo.cancel_children(p_run, p_reason, p_grace);
    end if;
    return ambo.cancel_one(p_run, p_reason, p_grace);
end $$;

-- The same of one run alone, whatever it has for children.
create or replace function ambo.cancel_one(p_run uuid, p_reason text, p_grace interval) returns text
language plpgsql volatile
as $$
declare
    v_run record;
    v_ended boolean;
    v_undo_by timestamptz := clock_timestamp() + p_grace;
begin
    select r.queue, ambo.lane(r.workflow, null, r.group_key) as lane, r.priority, o.status into v_run
    from ambo.run r left join ambo.outcome o on o.run_id = r.id where r.id = p_run;
    if not found then
        perform ambo.refuse_unknown(p_run);
    elsif v_run.status is not null then
        return v_run.status;
    end if;
    insert into ambo.cancel_request (run_id, reason, undo_by) values (p_run, p_reason, v_undo_by)
    on conflict do nothing;
    if v_undo_by is not null then
        update ambo.cancel_request q set undo_by = v_undo_by
        where q.run_id = p_run and (q.undo_by is null or q.undo_by > v_undo_by);
    end if;
    with waiting as (
        delete from ambo.ready d where d.ctid = any (array(
            select r.ctid from ambo.ready r
            where r.queue = v_run.queue and r.workflow = v_run.lane and r.priority = v_run.priority
              and r.run_id = p_run and r.attempt = 0 and not r.wakes
            for update skip locked))
        returning 1
    ), sleeping as (
        delete from ambo.timer d where d.ctid = any (array(
            select t.ctid from ambo.timer t where t.run_id = p_run and t.attempt = 0 for update skip locked))
        returning 1
    )
    select true into v_ended from (select from waiting union all select from sleeping) w;
    if v_ended then
        insert into ambo.outcome (run_id, attempt, status, error)
        values (p_run, 0, 'cancelled', json_build_object(
            'code', 'AMBO025', 'message', coalesce('cancelled: ' || p_reason, 'cancelled')));
        delete from ambo.cancel_request q where q.run_id = p_run;
        delete from ambo.fan_in f where f.run_id = p_run;
        perform ambo.tell_waiters(array[p_run]);
        perform ambo.wake_parents(array[p_run]);
        return 'cancelled';
    end if;
    perform ambo.send_wakes(array[p_run]);
    perform ambo.send_hint('ambo.cancel', ambo.tags(array[p_run]));
    return 'requested';
end $$;

-- The same of the children that a run did not detach, and of theirs, the lowest first: who waits for one finds it ended. Level by
-- level, for a chain may be longer than the server's stack is deep.
create or replace function ambo.cancel_children(p_run uuid, p_reason text, p_grace interval) returns void
language plpgsql volatile
as $$
declare
    v_below uuid[];
    v_run uuid;
begin
    with recursive below as (
        select p_run as id, 0 as level
        union all
        select c.child_id, b.level + 1
        from below b
        cross join lateral (select c.child_id from ambo.child c where c.run_id = b.id offset 0) c
        cross join lateral (
            select from ambo.run r where r.id = c.child_id and r.parent_id = b.id
              and not exists (select from ambo.outcome o where o.run_id = r.id) offset 0) r
        -- The members of a fan-in are not there for the sake of what comes after them.
        where not exists (select from ambo.fan_in f where f.run_id = b.id)
    )
    select array_agg(b.id order by b.level desc, b.id) into v_below from below b where b.level > 0;
    foreach v_run in array coalesce(v_below, '{}') loop
        perform ambo.cancel_one(v_run, p_reason, p_grace);
    end loop;
end $$;

-- Why somebody asked a run to end, if they said; what its worker asks.
create or replace function ambo.cancel_reason(p_run uuid) returns text
language sql stable security definer set search_path = pg_catalog, pg_temp
as $$
    select q.reason from ambo.cancel_request q where q.run_id = p_run
$$;

-- Refuses a run that there is not.
create or replace function ambo.refuse_unknown(p_run uuid) returns void
language plpgsql stable
as $$
begin
    if not exists (select from ambo.run r where r.id = p_run) then
        raise exception 'AMBO033: there is no run %', coalesce(p_run::text, 'null') using errcode = 'AM033';
    end if;
end $$;

-- Refuses a run that was undone, or is being undone: to begin where it stood is no use. `p_is_half`: it is not undone to its
-- end, and goes on with that when it is retried.
create or replace function ambo.refuse_undone(p_run uuid, p_act text, p_is_half boolean) returns void
language plpgsql stable
as $$
begin
    if not exists (select from ambo.checkpoint c where c.run_id = p_run and c.name = 'ambo:undo') then
        return;
    elsif p_is_half then
        raise exception 'AMBO034: run % is not undone to its end; a retry goes on with that, and until then it cannot be %', p_run, p_act
            using errcode = 'AM034', hint = '`ambo run retry ID`, when it is dead.';
    end if;
    raise exception 'AMBO034: what run % did was undone; it cannot be %', p_run, p_act using errcode = 'AM034',
        hint = 'Fork it from its beginning (`ambo run fork ID --at 1`), or enqueue a new run.';
end $$;

-- Lets a run that has ended into its queue again, if that takes runs and its key is its own: with p_due it waits until then, and the
-- last one of a fan-in that had not begun for its members. One that blocks its group may come back to a queue that is being drained, which
-- would not be worked off otherwise.
create or replace function ambo.readmit_run(p_run uuid, p_attempt integer, p_due timestamptz default null) returns void
language plpgsql volatile
set plan_cache_mode = force_generic_plan set jit = off set enable_seqscan = off
as $$
begin
    perform ambo.refuse_draining(array[r.queue], array[r.group_key])
    from ambo.run r join ambo.queue q on q.name = r.queue
    where r.id = p_run and not (q.ordered is not distinct from 'block'
                                and exists (select from ambo.head h where h.run_id = p_run));
    perform ambo.take_key_again(p_run);
    if p_attempt = 0 and ambo.wait_for_members(p_run) then
        return;
    elsif p_due > now() then
        -- By the clock of the transaction, which stands still: of those that take turns none is let in before one that waits.
        insert into ambo.timer (run_id, due_at, attempt, losses) values (p_run, p_due, p_attempt, 0);
    else
        perform ambo.make_ready(array[p_run], array[p_attempt], '{0}', array[null::timestamptz], array[null::text]);
    end if;
end $$;

-- Runs a run again that failed, was cancelled or is dead, from its checkpoints. The failures that ended it, of which its
-- error names the positions, are forgotten, and so are losses and the mark of a commit by hand. What its worker did not
-- end itself (it died) names none: a failure after which nothing was recorded, behind it where that was in one flush, is forgotten then.
-- One that was undone is refused; where that came to no end the run goes on with it. With p_due it waits until then.
create or replace function ambo.retry_run(p_run uuid, p_due timestamptz default null) returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
declare
    v_outcome record;
begin
    if p_due > now() + interval '10 years' then
        raise exception 'AMBO005: a run may be delayed for 10 years at most' using errcode = 'AM005';
    end if;
    delete from ambo.outcome o where o.run_id = p_run and o.status <> 'succeeded'
    returning o.attempt, o.error -> 'at' as failed_at,
              o.status = 'dead' and (o.error -> 'undone') is null as is_half into v_outcome;
    if not found then
        perform ambo.refuse_unknown(p_run);
        raise exception 'AMBO034: run % is %; only a failed, cancelled or dead run can be retried', p_run,
            (select s.state from ambo.run_result(p_run) s) using errcode = 'AM034';
    end if;
    if not v_outcome.is_half then
        perform ambo.refuse_undone(p_run, 'retried', false);
    end if;
    delete from ambo.checkpoint c
    where c.run_id = p_run and c.error is not null and c.name <> 'ambo:undo'
      and case when v_outcome.failed_at is null
          then not exists (
              select from ambo.checkpoint l where l.run_id = p_run
                and (l.recorded_at, string_to_array(l.position, '.')::integer[])
                    > (c.recorded_at, string_to_array(c.position, '.')::integer[]))
          else c.position in (select f from json_array_elements_text(v_outcome.failed_at) f) end;
    delete from ambo.checkpoint c where c.run_id = p_run and c.name = 'ambo:retry';
    delete from ambo.transaction_marker m where m.run_id = p_run;
    delete from ambo.cancel_request q where q.run_id = p_run;
    -- Whoever asks for it now wants it now.
    update ambo.run r set start_by = null where r.id = p_run and r.start_by is not null;
    perform ambo.readmit_run(p_run, v_outcome.attempt, p_due);
end $$;

-- Makes this database, restored or cloned from another, an installation of its own.
create or replace function ambo.adopt() returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
begin
    update ambo.installation i
    set system_identifier = (select s.system_identifier from pg_control_system() s),
        database_oid = (select d.oid from pg_database d where d.datname = current_database());
    -- The xids of the old server mean nothing here.
    update ambo.ready r set xid = pg_current_xact_id();
    update ambo.timer t set xid = pg_current_xact_id();
    delete from ambo.transaction_marker m where m.xid > pg_current_xact_id();
    update ambo.keeper k set server = '', worker_id = null, renewed_at = pg_catalog.now(), timer_mark = null;
end $$;

-- One run with its input and output, in the columns of list_runs and more. `undo_by`: when it has to have ended since it was
-- cancelled. `signals`: what waits for it, by topic, counted up to 10,000.
create or replace function ambo.show_run(p_run uuid)
returns table (id uuid, workflow text, queue text, state text, attempt integer, key text, priority smallint,
               enqueued_at timestamptz, ended_at timestamptz, worker_id bigint, error json, parent_id uuid,
               attributes json, group_key text, input json, output json, cancel_requested boolean, undo_by timestamptz, signals json)
language sql stable security definer set search_path = pg_catalog, pg_temp
as $$
    select r.id, r.workflow, r.queue, coalesce(o.status::text, ambo.live_state(r.id)),
           coalesce(o.attempt, c.attempt, (select t.attempt from ambo.timer t where t.run_id = r.id), 0), r.key, r.priority, ambo.run_time(r.id), o.ended_at, c.worker_id, o.error,
           r.parent_id, (select a.attributes from ambo.attribute a where a.run_id = r.id)::json, r.group_key, r.input, o.output,
           q.run_id is not null, q.undo_by,
           (select coalesce(json_agg(json_build_object('topic', t.topic, 'count', t.count, 'oldest_at', t.oldest_at)
                                     order by t.oldest_at, t.topic), '[]')
            from (select s.topic, count(*), min(s.sent_at) as oldest_at
                  from ambo.list_signals(r.id, 10000) s group by s.topic) t)
    from ambo.run r
    left join ambo.outcome o on o.run_id = r.id
    left join ambo.claim c on c.run_id = r.id
    left join ambo.cancel_request q on q.run_id = r.id
    where r.id = p_run
$$;

create or replace function ambo.show_steps(p_run uuid)
returns table ("position" text, name text, attempt integer, recorded_at timestamptz, elapsed_ms integer,
               output json, error json)
language sql stable security definer set search_path = pg_catalog, pg_temp
as $$
    select c.position, c.name, c.attempt, c.recorded_at, c.elapsed_ms, c.output, c.error
    from ambo.checkpoint c where c.run_id = p_run
    order by string_to_array(c.position, '.')::integer[]
$$;

create or replace function ambo.list_workers()
returns table (id bigint, name text, version text, pid integer, started_at timestamptz, silent_ms bigint,
               in_flight integer, draining boolean, is_keeper boolean, queues text[], workflows text[])
language sql stable security definer set search_path = pg_catalog, pg_temp
as $$
    select w.id, w.name, w.version, w.pid, w.started_at,
           (extract(epoch from pg_catalog.clock_timestamp() - h.at) * 1000)::bigint, h.in_flight, h.draining,
           k.worker_id is not distinct from w.id, w.queues, w.workflows
    from ambo.worker w join ambo.heartbeat h on h.worker_id = w.id cross join ambo.keeper k
    order by w.id
$$;
