-- Queues and their groups: what holds for them, changed while they run.

-- Creates a queue; to do so again is no error. Says whether it was new.
create or replace function ambo.create_queue(name text) returns boolean
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
    if name is null or octet_length(name) not between 1 and 200 then
        raise exception 'AMBO001: the name of a queue has 1 to 200 bytes, not %',
            coalesce(octet_length(name)::text, 'null') using errcode = 'AM001';
    end if;
    insert into ambo.queue (name) values (name) on conflict do nothing;
    return found;
end $$;

create or replace function ambo.refuse_queue(p_queue text) returns void
language plpgsql stable
as $$
begin
    raise exception 'AMBO002: there is no queue %', coalesce(quote_literal(left(p_queue, 200)), 'null')
        using errcode = 'AM002', hint = 'Create it with ambo.create_queue(name), or start a worker that serves it.';
end $$;

-- Stops or resumes the claiming of a queue's runs.
create or replace function ambo.pause_queue(p_queue text, p_paused boolean) returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
begin
    if p_paused is null then
        raise exception 'AMBO005: paused is true or false, not null' using errcode = 'AM005';
    end if;
    update ambo.queue q set paused = p_paused where q.name = p_queue;
    if not found then
        perform ambo.refuse_queue(p_queue);
    end if;
    perform ambo.wake();
end $$;

-- A whole number above zero out of a setting; null takes the limit away.
create or replace function ambo.read_setting(p_settings jsonb, p_name text, p_least integer, p_old integer)
returns integer
language plpgsql stable
as $$
declare
    v_value jsonb := p_settings -> p_name;
begin
    if v_value is null then
        return p_old;
    elsif v_value = 'null' then
        return null;
    elsif jsonb_typeof(v_value) = 'number' and v_value::numeric = trunc(v_value::numeric)
          and v_value::numeric between p_least and 2147483647 then
        return v_value::integer;
    end if;
    raise exception 'AMBO005: % is a whole number from %, or null', p_name, p_least using errcode = 'AM005';
end $$;

-- A span of time out of a setting, as PostgreSQL writes it: '1 minute'.
create or replace function ambo.read_span(p_value jsonb, p_name text, p_most interval default '1 year') returns interval
language plpgsql stable
as $$
declare
    v_span interval;
begin
    begin
        v_span := (p_value #>> '{}')::interval;
    exception when others then
        v_span := null;
    end;
    if v_span is null or v_span <= interval '0' or v_span > p_most then
        raise exception 'AMBO005: % is a span of time above zero and up to %, such as "1 minute"', p_name, p_most
            using errcode = 'AM005';
    end if;
    return v_span;
end $$;

-- Sets what holds for a queue, from the next claim on; what is not named stays. The queue is made if there is none.
--   groups              true: its runs may have a group_key; for good
--   concurrency         weight in execution at once, of all workers
--   worker_concurrency  the same of each worker
--   group_concurrency   the same of each group
--   rate, group_rate    {"limit": 100, "period": "1 minute", "burst": 10}: weight that is claimed, of the queue or of each
--                       group; within any span not more than burst + limit * span / period. burst: limit, if not given
--   ordered             a group's runs one after the other; if one fails the group is blocked ("block"), goes on ("skip"), or
--                       goes on and the failed one is among the dead ("dead")
--   ageing              a lane that was passed over for so long is as urgent as one of the priority before its own
-- Null takes a limit away.
create or replace function ambo.set_queue(queue text, settings jsonb) returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
    q ambo.queue%rowtype;
    v_blocks boolean;
    v_name text;
    v_rate jsonb;
    v_limit integer;
begin
    if settings is null or jsonb_typeof(settings) <> 'object' then
        raise exception 'AMBO005: the settings of a queue are a JSON object' using errcode = 'AM005';
    end if;
    select k into v_name from jsonb_object_keys(settings) k
    where k <> all ('{groups,concurrency,worker_concurrency,group_concurrency,rate,group_rate,ordered,ageing}'::text[])
    limit 1;
    if found then
        raise exception 'AMBO005: there is no setting % of a queue', quote_literal(left(v_name, 100))
            using errcode = 'AM005', hint = 'Settings: groups, concurrency, worker_concurrency, group_concurrency, rate, '
                'group_rate, ordered, ageing.';
    end if;
    perform ambo.create_queue(queue);
    select * into q from ambo.queue k where k.name = queue for update;
    v_blocks := q.ordered = 'block';
    q.concurrency := ambo.read_setting(settings, 'concurrency', 0, q.concurrency);
    q.worker_concurrency := ambo.read_setting(settings, 'worker_concurrency', 0, q.worker_concurrency);
    q.group_concurrency := ambo.read_setting(settings, 'group_concurrency', 0, q.group_concurrency);
    foreach v_name in array '{rate,group_rate}'::text[] loop
        continue when not settings ? v_name;
        v_rate := settings -> v_name;
        if v_rate = 'null' then
            v_rate := null;
        elsif jsonb_typeof(v_rate) <> 'object' or v_rate - '{limit,period,burst}'::text[] <> '{}'
              or not v_rate ?& '{limit,period}' then
            raise exception 'AMBO005: % is {"limit": 100, "period": "1 minute", "burst": 10}, burst as you like, or null',
                v_name using errcode = 'AM005';
        end if;
        v_limit := ambo.read_setting(v_rate, 'limit', 1, null);
        if v_rate is not null and v_limit is null then
            raise exception 'AMBO005: limit is a whole number from 1' using errcode = 'AM005';
        elsif v_name = 'rate' then
            q.rate_limit := v_limit;
            q.rate_period := case when v_rate is not null then ambo.read_span(v_rate -> 'period', 'period') end;
            q.rate_burst := coalesce(ambo.read_setting(v_rate, 'burst', 1, v_limit), v_limit);
        else
            q.group_rate_limit := v_limit;
            q.group_rate_period := case when v_rate is not null then ambo.read_span(v_rate -> 'period', 'period') end;
            q.group_rate_burst := coalesce(ambo.read_setting(v_rate, 'burst', 1, v_limit), v_limit);
        end if;
    end loop;
    if settings ? 'ordered' then
        q.ordered := settings ->> 'ordered';
        if q.ordered <> all ('{block,skip,dead}'::text[]) then
            raise exception 'AMBO005: ordered is "block", "skip", "dead" or null' using errcode = 'AM005';
        end if;
    end if;
    if settings ? 'ageing' then
        q.ageing := case when settings -> 'ageing' <> 'null' then ambo.read_span(settings -> 'ageing', 'ageing') end;
    end if;
    if settings ? 'groups' and settings -> 'groups' <> 'true' then
        raise exception 'AMBO005: groups is true; a queue that has groups keeps them' using errcode = 'AM005';
    end if;
    -- Under the lock of those who claim: what they claim after this returns keeps to it.
    perform pg_advisory_xact_lock(hashtext('ambo.queue'), hashtext(queue));
    update ambo.queue k
    set managed = true, concurrency = q.concurrency, worker_concurrency = q.worker_concurrency,
        group_concurrency = q.group_concurrency, rate_limit = q.rate_limit, rate_period = q.rate_period,
        rate_burst = q.rate_burst, group_rate_limit = q.group_rate_limit, group_rate_period = q.group_rate_period,
        group_rate_burst = q.group_rate_burst, ordered = q.ordered, ageing = q.ageing
    where k.name = queue;
    if v_blocks and q.ordered is distinct from 'block' then
        -- Groups that stand still go on: nobody looks after them any more.
        delete from ambo.head d where d.ctid = any (array(
            select h.ctid from ambo.head h
            cross join lateral (select from ambo.outcome o where o.run_id = h.run_id offset 0) o where h.queue = queue));
    end if;
    perform ambo.wake();
end $$;

-- Sets what holds for one group of a queue; null leaves it as it is. `share`, 1 to 100: how many of its runs are claimed for
-- one of a group whose share is 1. `draining`: see drain_queue.
create or replace function ambo.set_group(
    queue text, group_key text, paused boolean default null, share integer default null, draining boolean default null)
returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
    if group_key is null or octet_length(group_key) not between 1 and 200 or strpos(group_key, chr(31)) > 0 then
        raise exception 'AMBO001: a group_key has 1 to 200 bytes, none of them U+001F, not %',
            coalesce(octet_length(group_key)::text, 'null') using errcode = 'AM001';
    elsif share not between 1 and 100 then
        raise exception 'AMBO005: share is from 1 to 100, not %', share using errcode = 'AM005';
    elsif not exists (select from ambo.queue q where q.name = queue) then
        perform ambo.refuse_queue(queue);
    elsif not (select q.managed from ambo.queue q where q.name = queue) then
        raise exception 'AMBO008: queue % has no groups', quote_literal(queue) using errcode = 'AM008',
            hint = format('Give it groups, once: select ambo.set_queue(%L, ''{"groups": true}'').', queue);
    end if;
    insert into ambo.queue_group as g (queue, group_key, paused, share, draining)
    values (queue, group_key, coalesce(paused, false), coalesce(share, 1), coalesce(draining, false))
    on conflict on constraint queue_group_pkey do update
    set paused = coalesce(set_group.paused, g.paused), share = coalesce(set_group.share, g.share),
        draining = coalesce(set_group.draining, g.draining);
    perform ambo.wake();
end $$;

-- Queues with what holds for them, their depth, counted up to 10,000, and the age of the oldest run that waits.
create or replace function ambo.list_queues()
returns table (name text, paused boolean, ready bigint, ready_is_capped boolean, oldest_ready_at timestamptz,
               settings json, draining boolean)
language sql stable security definer set search_path = pg_catalog, pg_temp
as $$
    select q.name, q.paused, d.ready, d.ready >= 10000, d.oldest,
           json_strip_nulls(json_build_object(
               'groups', case when q.managed then true end,
               'concurrency', q.concurrency, 'worker_concurrency', q.worker_concurrency,
               'group_concurrency', q.group_concurrency,
               'rate', case when q.rate_limit is not null then json_build_object(
                   'limit', q.rate_limit, 'period', q.rate_period::text, 'burst', q.rate_burst) end,
               'group_rate', case when q.group_rate_limit is not null then json_build_object(
                   'limit', q.group_rate_limit, 'period', q.group_rate_period::text, 'burst', q.group_rate_burst) end,
               'ordered', q.ordered, 'ageing', q.ageing::text)),
           q.draining
    from ambo.queue q cross join lateral (
        select count(*) as ready, min(ambo.run_time(r.run_id)) as oldest
        from (select r.run_id from ambo.ready r where r.queue = q.name and not r.wakes limit 10000) r) d
    order by q.name
$$;

-- Groups for which something is set, or that stand still: paused, drained, with a share of their own, or blocked by a run that failed.
create or replace function ambo.list_groups(queue text default null)
returns table (queue text, group_key text, paused boolean, draining boolean, share integer, blocked_by uuid)
language sql stable security definer set search_path = pg_catalog, pg_temp
as $$
    select coalesce(g.queue, b.queue), coalesce(g.group_key, b.group_key), coalesce(g.paused, false), coalesce(g.draining, false),
           coalesce(g.share, 1)::integer, b.run_id
    from (select g.* from ambo.queue_group g
          where (g.paused or g.draining or g.share <> 1)
            and (list_groups.queue is null or g.queue = list_groups.queue)) g
    full join ambo.blocked_groups(list_groups.queue) b on b.queue = g.queue and b.group_key = g.group_key
    order by 1, 2
$$;

-- Groups of ordered queues that stand still because a run of theirs failed: the run, and why.
create or replace function ambo.blocked_groups(queue text default null)
returns table (queue text, group_key text, run_id uuid, since timestamptz, error json)
language sql stable security definer set search_path = pg_catalog, pg_temp
as $$
    select ambo.refuse_queue(blocked_groups.queue)
    where blocked_groups.queue is not null
      and not exists (select from ambo.queue q where q.name = blocked_groups.queue);
    select h.queue, h.group_key, h.run_id, o.ended_at, o.error
    from ambo.head h join ambo.queue q on q.name = h.queue and q.ordered = 'block'
    join ambo.outcome o on o.run_id = h.run_id
    where blocked_groups.queue is null or h.queue = blocked_groups.queue
    order by h.queue, h.group_key
$$;

-- Lets a group that is blocked go on without the run that failed. Says whether it was blocked. To have the run itself run
-- again, retry it before, while its group still waits for it: it is the next of it then.
create or replace function ambo.unblock_group(queue text, group_key text) returns boolean
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
    delete from ambo.head h where h.queue = queue and h.group_key = group_key
        and exists (select from ambo.outcome o where o.run_id = h.run_id);
    if not found then
        if not exists (select from ambo.queue q where q.name = queue) then
            perform ambo.refuse_queue(queue);
        end if;
        return false;
    end if;
    perform ambo.wake();
    return true;
end $$;
