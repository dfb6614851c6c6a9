-- Schedules: runs enqueued at times that come again. The keeper says when the next time is; a tick and the move to the
-- next one are one transaction, and the key of the run is the schedule and the time, so that a tick is one run
-- however many keepers there were, whatever crashes, and also when it is made up for later.

-- Creates a schedule, or changes it. One whose times stay the same keeps the next one. Says whether it is new.
-- Without p_next: a schedule of an interval begins when that has passed; of a cron pattern, which is not reckoned here, the keeper
-- finds the first time as soon as it sees it. Until then it stands at the beginning of 1970, when no schedule has a tick.
create or replace function ambo.set_schedule(
    p_name text, p_workflow text, p_input json default 'null', p_queue text default 'default',
    p_priority integer default 0, p_attributes jsonb default null, p_timeout interval default null,
    p_attempts integer default 5, p_cron text default null, p_timezone text default null,
    p_every interval default null, p_overlap text default 'skip', p_jitter interval default '0',
    p_catch_up interval default '60 seconds', p_next timestamptz default null)
returns boolean
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
declare
    v_timezone text := coalesce(p_timezone, case when p_cron is not null then 'UTC' end);
    v_next timestamptz;
    v_new boolean;
begin
    if p_name is null or octet_length(p_name) not between 1 and 200 then
        raise exception 'AMBO001: the name of a schedule has 1 to 200 bytes, not %',
            coalesce(octet_length(p_name)::text, 'null') using errcode = 'AM001';
    elsif jsonb_typeof(p_attributes) <> 'object' then
        raise exception 'AMBO005: attributes are a JSON object, not %', jsonb_typeof(p_attributes)
            using errcode = 'AM005';
    elsif octet_length((p_attributes || jsonb_build_object('schedule', p_name))::text) > 65536 then
        raise exception 'AMBO004: the attributes have % bytes with the name of the schedule; the limit is 65536',
            octet_length((p_attributes || jsonb_build_object('schedule', p_name))::text) using errcode = 'AM004';
    elsif (p_cron is null) = (p_every is null) or p_every is not null and p_timezone is not null then
        raise exception 'AMBO005: a schedule has a cron pattern, in a time zone, or an interval' using errcode = 'AM005';
    elsif ambo.cron_fault(p_cron) is not null then
        raise exception 'AMBO005: the cron pattern % cannot be read: %', quote_literal(left(p_cron, 100)), ambo.cron_fault(p_cron)
            using errcode = 'AM005',
                hint = 'Five fields: minute, hour, day of month, month, day of week; or six, with seconds before them.';
    -- The list of them is read from files: not for the usual one.
    elsif v_timezone <> 'UTC' and not exists (select from pg_timezone_names z where lower(z.name) = lower(p_timezone)) then
        raise exception 'AMBO005: the server knows no time zone %', quote_literal(left(p_timezone, 100))
            using errcode = 'AM005', hint = 'IANA names are like Europe/Berlin: select name from pg_timezone_names.';
    elsif p_every < interval '1 second' or p_every > interval '10 years' then
        raise exception 'AMBO005: a schedule comes once a second at most and in 10 years at least, not every %', p_every
            using errcode = 'AM005';
    elsif p_overlap is null or p_overlap <> all ('{skip,queue,cancel,allow}'::text[]) then
        raise exception 'AMBO005: there is no overlap %', coalesce(quote_literal(left(p_overlap, 100)), 'null')
            using errcode = 'AM005', hint = 'Overlaps: skip, queue, cancel, allow.';
    elsif (p_jitter between interval '0' and interval '10 years' and p_catch_up between interval '0' and interval '10 years'
           and isfinite(coalesce(p_next, 'epoch'))) is not true then
        raise exception 'AMBO005: jitter and catch_up are from zero to 10 years, and next is a time' using errcode = 'AM005';
    end if;
    v_next := coalesce(p_next, clock_timestamp() + p_every, 'epoch');
    perform ambo.refuse_enqueue(p_workflow, p_input, p_queue, p_name, p_priority, null, null, p_timeout, p_attempts, null);
    insert into ambo.schedule as s (name, workflow, input, queue, priority, attributes, timeout, attempts, cron, timezone,
                                    every, overlap, jitter, catch_up, next_at)
    values (p_name, p_workflow, p_input, p_queue, p_priority, p_attributes, p_timeout, p_attempts, p_cron, v_timezone,
            p_every, p_overlap, p_jitter, p_catch_up, v_next)
    on conflict (name) do update
    set workflow = p_workflow, input = p_input, queue = p_queue, priority = p_priority, attributes = p_attributes,
        timeout = p_timeout, attempts = p_attempts, cron = p_cron, timezone = v_timezone, every = p_every,
        overlap = p_overlap, jitter = p_jitter, catch_up = p_catch_up,
        -- One that was stopped for having no next time goes on when it is given other times, and only then.
        (error, paused, next_at) = (
            select case when s.paused and t.are_same then s.error end, s.paused and (t.are_same or s.error is null),
                   case when t.are_same then s.next_at else v_next end
            from (values ((s.cron, s.timezone, s.every) is not distinct from (p_cron, v_timezone, p_every))) t (are_same))
    returning s.xmax = 0 into v_new;
    return v_new;
end $$;

-- Those whose time has come, with what the next time follows from.
create or replace function ambo.due_schedules()
returns table (name text, cron text, timezone text, every_us bigint, next_at timestamptz, horizon timestamptz)
language sql volatile security definer set search_path = pg_catalog, pg_temp
as $$
    select s.name, s.cron, s.timezone, (extract(epoch from s.every) * 1000000)::bigint, s.next_at,
           case when s.next_at = 'epoch' then clock_timestamp() when s.overlap = 'queue' then s.next_at
                else clock_timestamp() - s.catch_up end
    from ambo.schedule s where s.next_at <= clock_timestamp() and not s.paused order by s.next_at limit 100
$$;

-- One tick, if it is still the next one: 'ran', 'skipped' (the run before has not ended), 'missed' (longer ago than the
-- schedule makes up for), 'waits' (for the run before), 'refused' (its error is kept in the schedule) or 'gone'. 'reckoned': it
-- was none, and now there is a next one.
-- Gives up after 50 ms of waiting for a lock, as a cancel of the run before may have to, and is tried again with the next heartbeat: the
-- keeper's own heart beats between two ticks, and must not wait for the transaction of a user.
create or replace function ambo.tick_schedule(p_name text, p_tick timestamptz, p_next timestamptz) returns text
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp set lock_timeout = '50ms'
as $$
declare
    v_schedule ambo.schedule%rowtype;
    v_run uuid;
    v_busy boolean;
    v_did text := 'ran';
begin
    select * into v_schedule from ambo.schedule s where s.name = p_name and s.next_at = p_tick and not s.paused
    for update skip locked;
    if not found then
        return 'gone';
    elsif p_tick = 'epoch' then
        update ambo.schedule s set next_at = p_next where s.name = p_name;
        return 'reckoned';
    end if;
    v_busy := v_schedule.overlap <> 'allow' and v_schedule.last_run is not null
        and exists (select from ambo.run r where r.id = v_schedule.last_run)
        and not exists (select from ambo.outcome o where o.run_id = v_schedule.last_run);
    if v_busy and v_schedule.overlap = 'queue' then
        return 'waits';
    elsif p_tick < clock_timestamp() - v_schedule.catch_up and v_schedule.overlap <> 'queue' then
        v_did := 'missed';
    elsif v_busy and v_schedule.overlap = 'skip' then
        v_did := 'skipped';
    else
        if v_busy then
            perform ambo.cancel_run(v_schedule.last_run, 'its schedule came round again');
        end if;
        begin
            v_run := ambo.enqueue_tick(p_name, p_tick, p_tick + v_schedule.jitter * random());
        exception when others then
            -- A disk that is full, a lock, a conflict: that passes, and the tick is not lost by it.
            if left(sqlstate, 2) in ('08', '25', '40', '53', '55', '57', '58') then
                raise;
            end if;
            -- The queue was dropped, a limit was changed: one schedule must not keep the others from their ticks.
            update ambo.schedule s set error = sqlerrm where s.name = p_name;
            v_did := 'refused';
        end;
    end if;
    update ambo.schedule s
    set next_at = p_next, last_at = case when v_run is not null then p_tick else s.last_at end,
        last_run = coalesce(v_run, s.last_run), skipped = s.skipped + (v_run is null)::integer,
        error = case when v_run is null then s.error end
    where s.name = p_name;
    return v_did;
end $$;

-- Stops a schedule that has no next tick, for this reason, if it still stands at the tick from which there is none.
create or replace function ambo.stop_schedule(p_name text, p_tick timestamptz, p_reason text) returns void
language sql volatile security definer set search_path = pg_catalog, pg_temp
as $$
    update ambo.schedule s set paused = true, error = p_reason where s.name = p_name and s.next_at = p_tick
$$;

-- The run of a tick: there is one, however often this is asked, also where the schedule has another input since. Its key has a rule of its
-- own: who may enqueue cannot take that of a tick to come.
create or replace function ambo.enqueue_tick(p_name text, p_tick timestamptz, p_at timestamptz) returns uuid
language plpgsql volatile
as $$
declare
    v_key text := p_name || '@' || to_char(p_tick at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"');
    v_run uuid;
begin
    insert into ambo.run_key (workflow, key, rule, run_id, input_digest, expires_at)
    select s.workflow, v_key, 's', ambo.new_run_id(), '', now() + i.key_lifetime
    from ambo.schedule s cross join ambo.installation i where s.name = p_name
    on conflict do nothing;
    if not found then
        return (select k.run_id from ambo.schedule s join ambo.run_key k on k.workflow = s.workflow
                where s.name = p_name and k.key = v_key and k.rule = 's');
    end if;
    select (ambo.enqueue(
        s.workflow, s.input, s.queue, null, s.priority, null, case when p_at > clock_timestamp() then p_at end,
        coalesce(s.attributes, '{}') || jsonb_build_object('schedule', s.name), s.timeout, s.attempts, null)).run_id
    into v_run from ambo.schedule s where s.name = p_name;
    update ambo.run r set key = v_key where r.id = v_run;
    update ambo.run_key k set run_id = v_run from ambo.run r
    where r.id = v_run and k.workflow = r.workflow and k.key = v_key and k.rule = 's';
    return v_run;
end $$;

-- Enqueues a run of a schedule now, beside its ticks, also of one that is paused.
create or replace function ambo.trigger_schedule(name text) returns uuid
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
    v_run uuid := ambo.enqueue_tick(name, clock_timestamp(), null);
begin
    if v_run is null then
        perform ambo.refuse_schedule(name);
    end if;
    return v_run;
end $$;

-- Enqueues the runs of ticks that are past, those that there were not: times that the keeper's program reckoned.
create or replace function ambo.backfill_schedule(p_name text, p_ticks timestamptz[]) returns uuid[]
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
begin
    if not exists (select from ambo.schedule s where s.name = p_name) then
        perform ambo.refuse_schedule(p_name);
    elsif not (select coalesce(bool_and(isfinite(t) is true), true) from unnest(p_ticks) t) then
        raise exception 'AMBO005: a tick is a time, neither null nor infinite' using errcode = 'AM005';
    end if;
    return array(select ambo.enqueue_tick(p_name, t, null) from unnest(p_ticks) with ordinality as u (t, n) order by n);
end $$;

-- Stops the ticks of a schedule, or lets it go on: with the ticks that it still makes up for.
create or replace function ambo.pause_schedule(name text, paused boolean default true) returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
    if paused is null then
        raise exception 'AMBO005: paused is true or false, not null' using errcode = 'AM005';
    end if;
    -- One that goes on may have been mended; if not, its next tick says so again.
    update ambo.schedule s set paused = pause_schedule.paused, error = case when pause_schedule.paused then s.error end
    where s.name = pause_schedule.name;
    if not found then
        perform ambo.refuse_schedule(name);
    end if;
end $$;

-- Deletes a schedule; its runs stay.
create or replace function ambo.delete_schedule(name text) returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
    delete from ambo.schedule s where s.name = delete_schedule.name;
    if not found then
        perform ambo.refuse_schedule(name);
    end if;
end $$;

create or replace function ambo.refuse_schedule(p_name text) returns void
language plpgsql stable
as $$
begin
    raise exception 'AMBO035: there is no schedule %', coalesce(quote_literal(left(p_name, 200)), 'null')
        using errcode = 'AM035', hint = 'ambo schedule list shows those that there are.';
end $$;

create or replace function ambo.list_schedules()
returns table (name text, workflow text, queue text, cron text, timezone text, every interval, overlap text,
               jitter interval, catch_up interval, paused boolean, next_at timestamptz, last_at timestamptz,
               last_run uuid, skipped bigint, error text)
language sql stable security definer set search_path = pg_catalog, pg_temp
as $$
    select s.name, s.workflow, s.queue, s.cron, s.timezone, s.every, s.overlap, s.jitter, s.catch_up, s.paused,
           s.next_at, s.last_at, s.last_run, s.skipped, s.error
    from ambo.schedule s order by s.name
$$;
