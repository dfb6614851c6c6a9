-- Fork and rewind: from a position of a run on, in a new run or in the same one.

-- A position as what it is, a path; null is the end.
create or replace function ambo.read_position(p_position text) returns integer[]
language plpgsql immutable
as $$
begin
    if p_position !~ '^[1-9][0-9]{0,8}(\.[1-9][0-9]{0,8}){0,63}$' then
        raise exception 'AMBO005: % is not a position', quote_literal(left(p_position, 100)) using errcode = 'AM005',
            hint = 'A position is what `ambo run show` prints before a step, such as 3 or 3.1.';
    end if;
    return string_to_array(p_position, '.')::integer[];
end $$;

-- Refuses a position that a run has not come to: it may be one that is recorded, one before such, the next one, or that of
-- what it is parked for: what undoes and other calls that record nothing may lie before it. In a branch that counts within it.
-- The first is the beginning, also of what continued as new and counts on: nothing is recorded that lies before its present history.
create or replace function ambo.refuse_position(p_run uuid, p_position integer[]) returns void
language plpgsql stable
as $$
declare
    v_depth constant integer := cardinality(p_position);
    v_branch constant integer[] := p_position[:v_depth - 1];
    v_last integer;
    v_waits integer;
    -- One that continued as new counts on.
    v_from integer := (select c.output ->> 'from' from ambo.checkpoint c
                       where c.run_id = p_run and c.position = '0.0' and v_depth = 1);
begin
    if p_position = '{1}' then
        return;
    end if;
    select max(c.path[v_depth]) into v_last
    from (select string_to_array(k.position, '.')::integer[] as path from ambo.checkpoint k where k.run_id = p_run) c
    where c.path[:v_depth - 1] = v_branch;
    select max(c.path[v_depth]) into v_waits
    from (select string_to_array(e.value ->> 'position', '.')::integer[] as path
          from ambo.timer t cross join json_array_elements(t.awaits) e where t.run_id = p_run) c
    where c.path[:v_depth - 1] = v_branch;
    if v_depth > 1 and v_last is null and v_waits is null then
        raise exception 'AMBO005: run % has no position %: nothing is recorded in branch %', p_run,
            array_to_string(p_position, '.'), array_to_string(v_branch, '.')
            using errcode = 'AM005', hint = '`ambo run show ID` prints the positions.';
    end if;
    v_from := coalesce(v_from, 0) + 1;
    v_last := greatest(v_last + 1, v_waits, v_from);
    if p_position[v_depth] not between v_from and v_last then
        raise exception 'AMBO005: run % has no position %: its positions are % to %', p_run,
            array_to_string(p_position, '.'), array_to_string(v_branch || v_from, '.'), array_to_string(v_branch || v_last, '.')
            using errcode = 'AM005', hint = '`ambo run show ID` prints the positions.';
    end if;
end $$;

-- A new run that begins with what another one had recorded before a position (null: with all of it), and executes the
-- rest. The other one stays as it is, and so do the effects of both: what it did before the position is not done again.
-- Values that it had published before the position are published by the new run too, and the keys of signals that
-- it had consumed mean the same to it; those that it had not consumed are not sent on. The attribute "forked_from" of the new
-- run names it.
create or replace function ambo.fork_run(p_run uuid, p_position text default null) returns uuid
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
declare
    v_position integer[] := ambo.read_position(p_position);
    v_fork uuid := ambo.new_run_id();
    v_is_half boolean;
begin
    -- A key names one run. That of a tick goes along all the same, for the time of the tick is read from it; it goes on naming the other one.
    insert into ambo.run (id, attempts_max, priority, weight, workflow, queue, input, key, group_key, timeout, attributes)
    select v_fork, r.attempts_max, r.priority, r.weight, r.workflow, r.queue, r.input,
           case when starts_with(r.key, (r.attributes ->> 'schedule') || '@') then r.key end, r.group_key, r.timeout,
           coalesce(r.attributes, '{}') || jsonb_build_object('forked_from', p_run)
    from ambo.run r where r.id = p_run;
    if not found then
        perform ambo.refuse_unknown(p_run);
    end if;
    perform ambo.refuse_draining(array[r.queue], array[r.group_key]) from ambo.run r where r.id = v_fork;
    -- One that was undone may begin anew: with nothing of what it did.
    v_is_half := not exists (select from ambo.outcome o where o.run_id = p_run
                             and (o.status <> 'dead' or (o.error -> 'undone') is not null));
    if v_is_half or v_position is null or exists (
        select from ambo.checkpoint c
        where c.run_id = p_run and string_to_array(c.position, '.')::integer[] between '{1}' and v_position
          and string_to_array(c.position, '.')::integer[] < v_position)
    then
        perform ambo.refuse_undone(p_run, 'forked', v_is_half);
    end if;
    perform ambo.refuse_position(p_run, v_position);
    -- As recorded by the claim before the first one of the new run.
    insert into ambo.checkpoint (run_id, recorded_at, attempt, elapsed_ms, position, name, output, error)
    select v_fork, c.recorded_at, 1, c.elapsed_ms, c.position, c.name, c.output, c.error
    from ambo.checkpoint c
    where c.run_id = p_run and c.name not in ('ambo:undo', 'ambo:retry')
      and (v_position is null or string_to_array(c.position, '.')::integer[] < v_position);
    insert into ambo.event (run_id, key, number, published_at, value)
    select v_fork, e.key, e.number, e.published_at, e.value
    from ambo.checkpoint c join ambo.event e
        on e.run_id = p_run and e.key = substr(c.name, 12) and e.number::text = c.output::text
    where c.run_id = v_fork and starts_with(c.name, 'ambo:event ');
    insert into ambo.signal (run_id, seq, sent_at, topic, key, payload)
    select v_fork, s.seq, s.sent_at, s.topic, s.key, s.payload
    from ambo.signal s
    -- Of what it had consumed before it continued as new the keys are left, under topics that nobody asks for.
    where s.run_id = p_run and (octet_length(s.topic) > 200 or s.seq in (
        select (c.output ->> 'seq')::bigint from ambo.checkpoint c
        where c.run_id = v_fork and starts_with(c.name, 'ambo:signal ')));
    perform ambo.restore_attributes(v_fork);
    -- One that takes nothing over has not begun.
    perform ambo.make_ready(
        array[v_fork], array[(exists (select from ambo.checkpoint c where c.run_id = v_fork))::integer], '{0}', array[null::timestamptz], array[null::text]);
    return v_fork;
end $$;

-- Runs a run again from a position: forgets what it recorded from there on, and how it ended. What it did there is not
-- undone; signals that it had consumed there are there to be consumed again, children that it had started there are
-- cancelled, values that it had published there are gone. A run in a worker's memory is refused: cancel it first.
create or replace function ambo.rewind_run(p_run uuid, p_position text) returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
declare
    v_position integer[] := ambo.read_position(coalesce(p_position, ''));
    v_attempt integer;
    v_is_half boolean;
    v_is_parked boolean := false;
begin
    delete from ambo.outcome o where o.run_id = p_run
    returning o.attempt, o.status = 'dead' and (o.error -> 'undone') is null into v_attempt, v_is_half;
    if not found and exists (select from ambo.timer t where t.run_id = p_run and t.attempt > 0) then
        -- While it can be seen what it is parked for.
        perform ambo.refuse_position(p_run, v_position);
        v_is_parked := true;
        delete from ambo.timer t where t.run_id = p_run and t.attempt > 0 returning t.attempt into v_attempt;
    end if;
    if v_attempt is null then
        perform ambo.refuse_unknown(p_run);
        raise exception 'AMBO034: run % is %; only one that has ended or is parked can be rewound', p_run,
            (select s.state from ambo.run_result(p_run) s) using errcode = 'AM034',
            hint = 'Cancel it and wait for its end, or fork it.';
    end if;
    perform ambo.refuse_undone(p_run, 'rewound', coalesce(v_is_half, true));
    if not v_is_parked then
        perform ambo.refuse_position(p_run, v_position);
    end if;
    perform ambo.cancel_run((c.output #>> '{}')::uuid, 'its parent was rewound')
    from ambo.checkpoint c
    where c.run_id = p_run and starts_with(c.name, 'ambo:child ')
      and string_to_array(c.position, '.')::integer[] >= v_position
      and exists (select from ambo.run r where r.id = (c.output #>> '{}')::uuid and r.parent_id = p_run);
    delete from ambo.event e using ambo.checkpoint c
    where c.run_id = p_run and starts_with(c.name, 'ambo:event ')
      and string_to_array(c.position, '.')::integer[] >= v_position
      and e.run_id = p_run and e.key = substr(c.name, 12) and e.number::text = c.output::text;
    delete from ambo.checkpoint c
    where c.run_id = p_run and (string_to_array(c.position, '.')::integer[] >= v_position or c.name = 'ambo:retry');
    perform ambo.restore_attributes(p_run);
    delete from ambo.transaction_marker m where m.run_id = p_run;
    delete from ambo.cancel_request q where q.run_id = p_run;
    -- As with a retry: whoever asks for it now wants it now.
    update ambo.run r set start_by = null where r.id = p_run and r.start_by is not null;
    if v_is_parked then
        perform ambo.make_ready(array[p_run], array[v_attempt], '{0}', array[null::timestamptz], array[null::text]);
    else
        perform ambo.readmit_run(p_run, v_attempt);
    end if;
end $$;

-- One act on many runs, each on its own: `cancel`, `retry`, `rewind` or `fork`. In the order in which they were enqueued, that of
-- their ids, however they are given: lists are newest first, and the runs of a group go on in the order in which they are let in again.
-- Says what became of each: what the act answers, or with the code of the error why it was refused.
create or replace function ambo.act_on_runs(
    p_act text, p_runs uuid[], p_position text default null, p_reason text default null, p_grace interval default null)
returns table (run_id uuid, answer text, code text)
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
begin
    if p_act is null or p_act <> all ('{cancel,retry,rewind,fork}'::text[]) then
        raise exception 'AMBO005: there is no act %', coalesce(quote_literal(left(p_act, 100)), 'null')
            using errcode = 'AM005', hint = 'Acts: cancel, retry, rewind, fork.';
    elsif p_runs is null then
        raise exception 'AMBO005: act_on_runs takes an array of runs, not null' using errcode = 'AM005';
    end if;
    for run_id in select g.id from unnest(p_runs) g (id) order by g.id loop
        begin
            code := null;
            if p_act = 'cancel' then
                answer := ambo.cancel_run(run_id, p_reason, p_grace);
            elsif p_act = 'retry' then
                perform ambo.retry_run(run_id);
                answer := ambo.live_state(run_id);
            elsif p_act = 'rewind' then
                perform ambo.rewind_run(run_id, p_position);
                answer := ambo.live_state(run_id);
            else
                answer := ambo.fork_run(run_id, p_position)::text;
            end if;
        exception when others then
            if left(sqlstate, 2) <> 'AM' then
                raise;
            end if;
            answer := sqlerrm;
            code := sqlstate;
        end;
        return next;
    end loop;
end $$;
