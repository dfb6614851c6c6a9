-- Whether a run of this weight finds no room where so much is in execution: one that weighs more than the limit needs all of it.
create or replace function ambo.has_no_room(p_weight integer, p_used bigint, p_limit integer) returns boolean
language sql immutable
return p_limit <= 0 or coalesce(p_used, 0) > 0 and p_weight + coalesce(p_used, 0) > p_limit;

create or replace function ambo.limit_reached(p_whose text, p_weight integer, p_used bigint, p_limit integer) returns text
language sql immutable
return format('%s %s of %s in execution', p_whose, coalesce(p_used, 0), p_limit)
       || case when p_weight > 1 then format('; it weighs %s', p_weight) else '' end;

-- How many runs there are, of those that were counted up to 10,000.
create or replace function ambo.runs_counted(p_count bigint) returns text
language sql immutable
return case when p_count = 1 then '1 run' when p_count < 10000 then p_count || ' runs' else '10000 or more runs' end;

-- Who has long had rows of these tables locked, as the end of a sentence: of the first of these tables that somebody has, the
-- oldest. Ambo passes over what is locked, so that the run itself shows nothing of it. Empty where there is nobody.
create or replace function ambo.held_by(p_tables text[]) returns text
language sql stable
as $$
    select coalesce((
        select format('; %s has %s that has locked or written rows of %s', h.holder,
                      coalesce('had a transaction open for ' || h.seconds || ' s', 'a transaction open'), of.tables)
        from ambo.lock_holders() h
        cross join lateral (
            select min(p.n) as first, string_agg('ambo.' || p.name, ' and ' order by p.n) as tables
            from unnest(p_tables) with ordinality p (name, n) where p.name = any (h.tables)) of
        where of.first is not null
        order by of.first, h.seconds desc nulls last limit 1), '')
$$;

-- That a timer should have been fired some seconds ago, as the end of a sentence; null where that is not so.
create or replace function ambo.lateness(p_due timestamptz) returns text
language sql stable
as $$
    select format('; its time came %s s ago, and %s', floor(extract(epoch from clock_timestamp() - p_due)),
                  case when k.worker_id is null or k.renewed_at = '-infinity' then 'there is no keeper to make it ready'
                       when k.renewed_at < pg_catalog.clock_timestamp() - interval '5 seconds'
                           then format('the keeper, silent for %s s, has not made it ready',
                                       floor(extract(epoch from pg_catalog.clock_timestamp() - k.renewed_at)))
                       else 'the keeper has not made it ready' end)
    from ambo.keeper k where isfinite(p_due) and p_due < clock_timestamp() - interval '5 seconds'
$$;

-- Why is it not running? Every reason that holds, the first one first. `run_id`: the run that stands in the way; `until`: when
-- it will be over, as far as that is known.
create or replace function ambo.why_run(p_run uuid)
returns table (reason text, explanation text, run_id uuid, until timestamptz)
language plpgsql stable security definer set search_path = pg_catalog, pg_temp set jit = off set enable_seqscan = off
as $$
declare
    r ambo.run%rowtype;
    q ambo.queue%rowtype;
    v_ready ambo.ready%rowtype;
    v_claim ambo.claim%rowtype;
    v_timer ambo.timer%rowtype;
    v_status text;
    v_pin text;
    v_count bigint;
    v_weight bigint;
    v_tokens double precision;
    v_before text;
    v_first uuid;
    v_told boolean := false;
    v_late text;
    v_more text;
    v_full record;
begin
    select * into r from ambo.run k where k.id = p_run;
    if not found then
        perform ambo.refuse_unknown(p_run);
    end if;
    -- Of an error what is no payload; of one that is encrypted nothing.
    select o.status::text || coalesce(', ' || (o.error ->> 'code') || ': ' || (o.error ->> 'message'), '') into v_status
    from ambo.outcome o where o.run_id = p_run;
    if found then
        return query select 'ended', format('it has ended: %s', v_status), null::uuid, null::timestamptz;
        return;
    end if;
    select * into v_claim from ambo.claim c where c.run_id = p_run;
    if found then
        -- Not heard of for as long as the doctor takes it for silent.
        select '; the worker has been silent for ' || s.seconds || ' s' || case
                   when s.seconds < s.lease then format(', and loses its runs to others after %s s', s.lease)
                   else format(', longer than its lease of %s s, and the keeper has not given its runs to others', s.lease)
                        || ambo.held_by('{keeper,claim,heartbeat}') end
        into v_more
        from (select floor(extract(epoch from pg_catalog.clock_timestamp() - h.at)) as seconds,
                     floor(extract(epoch from i.lease)) as lease
              from ambo.heartbeat h cross join ambo.installation i
              where h.worker_id = v_claim.worker_id and isfinite(h.at)) s
        where s.seconds >= 5;
        return query select 'running', format('it is running, in worker %s since %s', v_claim.worker_id,
                                              date_trunc('second', v_claim.claimed_at)) || coalesce(v_more, ''), null::uuid, v_claim.deadline;
        return;
    end if;
    select * into v_timer from ambo.timer t where t.run_id = p_run;
    v_told := found;
    select ambo.living_member(p_run, f.upto) into v_first from ambo.fan_in f where f.run_id = p_run;
    if v_told and found then
        return query select 'members', coalesce('it begins when its members have ended; run ' || v_first || ' has not',
                                                'its members have ended; it begins when a worker of its queue has seen that'),
                            v_first, null::timestamptz;
    elsif v_told then
        v_late := ambo.lateness(v_timer.due_at);
        -- What came for it goes back while its own row is locked.
        v_more := case when exists (
            select from (values ('+'), ('~')) l (mark) cross join lateral (
                select from ambo.ready y
                where y.queue = r.queue and y.workflow = r.workflow || repeat(chr(31), 3) || l.mark
                  and y.priority = r.priority and y.run_id = p_run and y.wakes limit 1) w)
            then '; something has come for it that no worker has taken yet' end;
        if v_late is not null or v_more is not null then
            v_more := concat(v_more, v_late, ambo.held_by(case when v_late is null then '{timer,queue,ready}'
                                                               else '{keeper,timer}' end::text[]));
        end if;
        return query select
            case when v_timer.attempt = 0 then 'delayed' else 'parked' end,
            concat(
                case when v_timer.attempt = 0 then 'it is delayed'
                     when json_array_length(v_timer.awaits) > 0 then
                         (select 'it is parked and waits for '
                                 || string_agg(format('%s at position %s', e.value ->> 'for', e.value ->> 'position'), ', ' order by e.n)
                          from json_array_elements(v_timer.awaits) with ordinality e (value, n))
                     when v_timer.due_at = 'infinity' then 'it is parked until something comes for it: a signal, an event, a child''s end'
                     when v_timer.awaits is null then 'it was retried, or tries again by itself, and goes on at a time'
                     else 'it is parked until its time comes, or something comes for it' end,
                v_more),
            (select (e.value ->> 'run')::uuid from json_array_elements(v_timer.awaits) with ordinality e (value, n)
             where e.value ->> 'run' is not null order by e.n limit 1),
            case when v_late is null then nullif(v_timer.due_at, 'infinity') end;
    end if;
    if v_told then
        v_pin := v_timer.pin;
    else
        select w.* into v_ready from (
            select null as pin union select p.version from ambo.pins() p) p
        cross join (values (false), (true)) h (goes_on)
        cross join lateral (
            select y.* from ambo.ready y
            where y.queue = r.queue and y.workflow = ambo.lane(r.workflow, p.pin, r.group_key, h.goes_on)
              and y.priority = r.priority and y.run_id = p_run and not y.wakes limit 1) w;
        if not found then
            return query select 'moving', 'it is on its way from one place to another; ask again', null::uuid, null::timestamptz;
            return;
        end if;
        v_pin := nullif(split_part(v_ready.workflow, chr(31), 2), '');
    end if;
    select * into q from ambo.queue k where k.name = r.queue;
    if not exists (select from ambo.worker w join ambo.heartbeat h on h.worker_id = w.id
                   where w.dead_at is null and not h.draining and r.queue = any (w.queues)
                     and r.workflow = any (w.workflows) and (v_pin is null or w.version = v_pin and w.pinned)) then
        return query select 'no worker', case
            when not exists (select from ambo.worker w where w.dead_at is null and r.queue = any (w.queues))
                then format('no live worker serves the queue %s', quote_literal(r.queue))
            when v_pin is null then format('no live worker of the queue knows the workflow %s', quote_literal(r.workflow))
            else format('no live worker of version %s, to which it is pinned, is left', quote_literal(v_pin)) end,
            null::uuid, null::timestamptz;
        v_told := v_told or found;
    end if;
    if q.paused then
        return query select 'queue paused', format('the queue %s is paused', quote_literal(q.name)), null::uuid, null::timestamptz;
        v_told := v_told or found;
    end if;
    if exists (select from ambo.queue_group g where g.queue = q.name and g.group_key = r.group_key and g.paused) then
        return query select 'group paused', format('the group %s is paused', quote_literal(r.group_key)),
            null::uuid, null::timestamptz;
        v_told := v_told or found;
    end if;
    if v_timer.run_id is not null then
        -- Limits and the order count when it comes.
        return;
    end if;
    if q.ordered is not null and r.group_key is not null then
        return query
        select 'group in order', format('the run %s of its group comes first; it %s', s.run_id,
                                        coalesce('has ended as ' || o.status || ': the group is blocked', 'has not ended')),
               s.run_id, null::timestamptz
        from (select c.run_id from ambo.claim c where c.queue = q.name and c.slot is not null and c.group_key = r.group_key
              union all
              select h.run_id from ambo.head h where h.queue = q.name and h.group_key = r.group_key) s
        left join ambo.outcome o on o.run_id = s.run_id
        where s.run_id <> p_run and (o.run_id is null or q.ordered = 'block');
        v_told := v_told or found;
    elsif q.group_concurrency is not null and r.group_key is not null then
        select sum(c.weight) into v_weight from ambo.claim c
        where c.queue = q.name and c.slot is not null and c.group_key = r.group_key;
        if ambo.has_no_room(r.weight, v_weight, q.group_concurrency) then
            return query
            select 'group limit', ambo.limit_reached('its group has', r.weight, v_weight, q.group_concurrency),
                   (select c.run_id from ambo.claim c where c.queue = q.name and c.slot is not null and c.group_key = r.group_key
                    order by c.slot limit 1),
                   null::timestamptz;
            v_told := v_told or found;
        end if;
    end if;
    select sum(c.weight) into v_weight from ambo.claim c where c.queue = q.name and c.slot is not null;
    if ambo.has_no_room(r.weight, v_weight, q.concurrency) then
        return query
        select 'queue limit', ambo.limit_reached('the queue has', r.weight, v_weight, q.concurrency),
               (select c.run_id from ambo.claim c where c.queue = q.name and c.slot is not null order by c.slot limit 1), null::timestamptz;
        v_told := v_told or found;
    end if;
    -- Of the workers that could take it the one that has most room.
    select coalesce(sum(c.weight), 0) into v_weight
    from ambo.worker w join ambo.heartbeat h on h.worker_id = w.id
    left join ambo.claim c on c.worker_id = w.id and c.queue = q.name and c.slot is not null
    where w.dead_at is null and not h.draining and r.queue = any (w.queues) and r.workflow = any (w.workflows)
      and (v_pin is null or w.version = v_pin and w.pinned)
    group by w.id order by 1 limit 1;
    if ambo.has_no_room(r.weight, v_weight, q.worker_concurrency) then
        return query
        select 'worker limit', ambo.limit_reached('each worker that could take it has', r.weight, v_weight, q.worker_concurrency),
               (select c.run_id from ambo.claim c where c.queue = q.name and c.slot is not null order by c.slot limit 1), null::timestamptz;
        v_told := v_told or found;
    end if;
    -- As of their last heartbeats.
    select count(*) as workers, sum(h.in_flight) as held, sum(w.max_in_flight) as most,
           bool_and(coalesce(h.in_flight >= w.max_in_flight, false)) as all_full into v_full
    from ambo.worker w join ambo.heartbeat h on h.worker_id = w.id
    where w.dead_at is null and not h.draining and r.queue = any (w.queues) and r.workflow = any (w.workflows)
      and (v_pin is null or w.version = v_pin and w.pinned);
    if v_full.all_full then
        return query
        select 'workers full', format('each worker that could take it has as many runs in memory as it may (max_in_flight): %s of %s',
                                      v_full.held, v_full.most)
                               || case when v_full.workers > 1 then format(' in %s workers', v_full.workers) else '' end,
               null::uuid, null::timestamptz;
        v_told := true;
    end if;
    if q.rate_limit is not null then
        v_tokens := ambo.tokens(q.name, '', q.rate_limit, q.rate_period, q.rate_burst);
        if v_tokens < least(r.weight, q.rate_burst) then
            return query select 'rate', format('the rate of the queue, %s in %s, is used up', q.rate_limit, q.rate_period),
                null::uuid, clock_timestamp() + q.rate_period * ((least(r.weight, q.rate_burst) - v_tokens) / q.rate_limit);
            v_told := v_told or found;
        end if;
    end if;
    if q.group_rate_limit is not null and r.group_key is not null then
        v_tokens := ambo.tokens(q.name, r.group_key, q.group_rate_limit, q.group_rate_period, q.group_rate_burst);
        if v_tokens < least(r.weight, q.group_rate_burst) then
            return query
            select 'group rate', format('the rate of its group, %s in %s, is used up', q.group_rate_limit, q.group_rate_period),
                   null::uuid,
                   clock_timestamp() + q.group_rate_period * ((least(r.weight, q.group_rate_burst) - v_tokens) / q.group_rate_limit);
            v_told := v_told or found;
        end if;
    end if;
    -- What goes on comes before what is to begin.
    v_before := case when split_part(v_ready.workflow, chr(31), 4) = '+' then null
                     else ambo.lane(r.workflow, v_pin, r.group_key, true) end;
    with before as materialized (
        (select y.run_id, 1 as place, y.seq from ambo.ready y
         where y.queue = r.queue and y.workflow = v_before and y.priority = r.priority and not y.wakes
         order by y.seq limit 10000)
        union all
        (select y.run_id, 2, y.seq from ambo.ready y
         where y.queue = r.queue and y.workflow = v_ready.workflow and y.priority = r.priority and y.seq < v_ready.seq
           and not y.wakes
         order by y.seq limit 10000)
    )
    select least(count(*), 10000), (select b.run_id from before b order by b.place, b.seq limit 1) into v_count, v_first from before;
    if v_count > 0 then
        return query
        select 'behind others', format('%s of its lane %s before it', ambo.runs_counted(v_count),
                                       case when v_count = 1 then 'comes' else 'come' end) || ambo.held_by('{queue}'),
               v_first, null::timestamptz;
        v_told := v_told or found;
    end if;
    with urgent as materialized (
        select y.run_id, y.priority, l.goes_on, y.seq from (values (false), (true)) l (goes_on)
        cross join lateral (
            select y.* from ambo.ready y
            where y.queue = r.queue and y.workflow = ambo.lane(r.workflow, v_pin, r.group_key, l.goes_on)
              and y.priority < r.priority and not y.wakes
            order by y.priority, y.seq limit 10000) y
    )
    select least(count(*), 10000), (select u.run_id from urgent u order by u.priority, u.goes_on desc, u.seq limit 1)
    into v_count, v_first from urgent;
    if v_count > 0 then
        return query
        select 'less urgent', format('%s of its workflow %s more urgent and %s too', ambo.runs_counted(v_count),
                                     case when v_count = 1 then 'is' else 'are' end, case when v_count = 1 then 'waits' else 'wait' end),
               v_first, null::timestamptz;
        v_told := v_told or found;
    end if;
    return query
    select 'ready', 'it waits for its turn: a worker claims it when it has room (how many runs each holds is known to the second)'
                    || ambo.held_by('{queue,head,ready}'),
           null::uuid, null::timestamptz
    where not v_told;
end $$;
