-- Enqueue: a run exists if and only if the caller's transaction commits.

-- Says what is wrong with an enqueue that failed the check, with a stable code.
create or replace function ambo.refuse_enqueue(
    p_workflow text, p_input json, p_queue text, p_key text, p_priority integer, p_delay interval,
    p_at timestamptz, p_timeout interval, p_attempts integer, p_key_lifetime interval, p_group text default null,
    p_weight integer default 1)
returns void
language plpgsql stable
as $$
begin
    if p_workflow is null or octet_length(p_workflow) not between 1 and 200 then
        raise exception 'AMBO001: the name of a workflow has 1 to 200 bytes, not %',
            coalesce(octet_length(p_workflow)::text, 'null')
            using errcode = 'AM001', hint = 'Pass the registered name of the workflow.';
    elsif strpos(p_workflow, chr(31)) > 0 then
        raise exception 'AMBO001: the name of a workflow holds a control character (U+001F)' using errcode = 'AM001';
    elsif p_queue is null or not exists (select from ambo.queue q where q.name = p_queue) then
        perform ambo.refuse_queue(p_queue);
    elsif p_input is null then
        raise exception 'AMBO005: the input is null' using errcode = 'AM005',
            hint = 'Pass JSON; the JSON value null is written ''null''.';
    elsif octet_length(p_input::text) > 2097152 then
        raise exception 'AMBO004: the input has % bytes; the limit is 2097152', octet_length(p_input::text)
            using errcode = 'AM004', hint = 'Store large data elsewhere and pass a reference.';
    elsif ambo.is_forged(p_input) then
        raise exception 'AMBO007: the input is an object whose first key begins with "ambo:", and no envelope'
            using errcode = 'AM007', hint = 'Such keys are Ambo''s own: name it otherwise.';
    elsif octet_length(p_key) not between 1 and 512 then
        raise exception 'AMBO001: a key has 1 to 512 bytes, not %', octet_length(p_key)
            using errcode = 'AM001';
    elsif p_priority is null or p_priority not between -32768 and 32767 then
        raise exception 'AMBO005: priority is from -32768 (first) to 32767, not %', coalesce(p_priority::text, 'null')
            using errcode = 'AM005';
    elsif p_delay is not null and p_at is not null then
        raise exception 'AMBO005: give delay or at, not both' using errcode = 'AM005';
    elsif p_delay < interval '0' then
        raise exception 'AMBO005: delay is negative: %', p_delay using errcode = 'AM005';
    elsif p_delay > interval '10 years' or p_at > now() + interval '10 years' then
        raise exception 'AMBO005: a run may be delayed for 10 years at most' using errcode = 'AM005';
    elsif p_timeout <= interval '0' or p_timeout > interval '10 years' then
        raise exception 'AMBO005: timeout is above zero and 10 years at most, not %', p_timeout using errcode = 'AM005';
    elsif p_attempts is null or p_attempts not between 1 and 1000 then
        raise exception 'AMBO005: attempts is from 1 to 1000, not %', coalesce(p_attempts::text, 'null')
            using errcode = 'AM005';
    elsif p_key_lifetime is not null and p_key is null then
        raise exception 'AMBO005: key_lifetime goes by a key' using errcode = 'AM005', hint = 'Pass key as well.';
    elsif p_key_lifetime <= interval '0' or p_key_lifetime > interval '100 years' then
        raise exception 'AMBO005: key_lifetime is above zero and 100 years at most, not %', p_key_lifetime
            using errcode = 'AM005';
    elsif octet_length(p_group) not between 1 and 200 or strpos(p_group, chr(31)) > 0 then
        raise exception 'AMBO001: a group_key has 1 to 200 bytes, none of them U+001F, not %', octet_length(p_group)
            using errcode = 'AM001';
    elsif p_weight is null or p_weight not between 1 and 10000 then
        raise exception 'AMBO005: weight is from 1 to 10000, not %', coalesce(p_weight::text, 'null')
            using errcode = 'AM005';
    elsif p_group is not null and not (select q.managed from ambo.queue q where q.name = p_queue) then
        raise exception 'AMBO008: queue % has no groups', quote_literal(p_queue) using errcode = 'AM008',
            hint = format('Give it groups, once: select ambo.set_queue(%L, ''{"groups": true}'').', p_queue);
    end if;
end $$;

-- What makes two inputs the same input: the JSON value, not its spelling; that of what jsonb cannot hold: half a surrogate pair,
-- a number with a million digits.
create or replace function ambo.input_digest(p_input json) returns bytea
language plpgsql immutable
as $$
begin
    return sha256(convert_to(p_input::jsonb::text, 'UTF8'));
exception when data_exception or program_limit_exceeded then
    return sha256(convert_to(p_input::text, 'UTF8'));
end $$;

-- The same of what an enqueue may be given besides: the rule of its key, and by when it is to start.
create or replace function ambo.refuse_terms(
    p_key text, p_dedup boolean, p_throttle interval, p_debounce interval, p_debounce_max interval,
    p_delay interval, p_at timestamptz, p_start_by timestamptz, p_start_within interval)
returns void
language plpgsql stable
as $$
declare
    v_due timestamptz := coalesce(p_at, now() + p_delay, now());
    v_rules integer := coalesce(p_dedup, false)::integer + num_nonnulls(p_throttle, p_debounce);
begin
    if v_rules > 1 then
        raise exception 'AMBO005: give one of dedup, throttle and debounce' using errcode = 'AM005';
    elsif v_rules = 1 and p_key is null then
        raise exception 'AMBO005: dedup, throttle and debounce go by a key' using errcode = 'AM005', hint = 'Pass key as well.';
    elsif p_throttle <= interval '0' or p_debounce <= interval '0' or p_throttle > interval '1 year'
          or p_debounce > interval '1 year'
    then
        raise exception 'AMBO005: throttle and debounce are above zero and a year at most, not %',
            coalesce(p_throttle, p_debounce) using errcode = 'AM005';
    elsif p_debounce is not null and (p_delay is not null or p_at is not null) then
        raise exception 'AMBO005: debounce is a delay already: give neither delay nor at' using errcode = 'AM005';
    elsif p_debounce_max is not null and (p_debounce_max >= p_debounce and p_debounce_max <= interval '100 years') is not true then
        raise exception 'AMBO005: debounce_max goes with debounce, is not below it and 100 years at most' using errcode = 'AM005';
    elsif p_start_by is not null and p_start_within is not null then
        raise exception 'AMBO005: give start_by or start_within, not both' using errcode = 'AM005';
    elsif p_start_by is not null and p_debounce is not null then
        raise exception 'AMBO005: a run that is debounced may be put off again, so that it has no start_by' using errcode = 'AM005',
            hint = 'Give start_within: it counts from the end of the debounce.';
    elsif p_start_within <= interval '0' or p_start_within > interval '10 years' then
        raise exception 'AMBO005: start_within is above zero and 10 years at most, not %', p_start_within
            using errcode = 'AM005';
    elsif p_start_by <= v_due then
        raise exception 'AMBO005: start_by is over before the run may start' using errcode = 'AM005';
    end if;
end $$;

-- The same for an input in an envelope, which brings one for each key that its writer knows; the first is kept.
create or replace function ambo.envelope_digests(p_input json) returns bytea[]
language sql immutable
return coalesce(
    (select array_agg(sha256(convert_to(d.digest, 'UTF8')) order by d.n)
     from unnest(ambo.payload_digests(p_input)) with ordinality as d (digest, n)),
    array[ambo.input_digest(p_input)]);

-- Takes a key for a run, or finds the run that has it. Two open transactions with one key: the second waits.
create or replace function ambo.take_key(
    p_workflow text, p_key text, p_input json, p_lifetime interval, p_run_id uuid,
    out run_id uuid, out is_new boolean)
language plpgsql volatile
as $$
declare
    v_digests bytea[] := case when starts_with(p_input::text, '{"ambo:') then ambo.envelope_digests(p_input)
                              else array[ambo.input_digest(p_input)] end;
    v_known bytea;
begin
    run_id := p_run_id;
    is_new := true;
    insert into ambo.run_key (workflow, key, run_id, input_digest, expires_at)
    values (p_workflow, p_key, p_run_id, v_digests[1],
            now() + coalesce(p_lifetime, (select i.key_lifetime from ambo.installation i)))
    on conflict do nothing;
    if found then
        return;
    end if;
    is_new := false;
    select k.run_id, k.input_digest into run_id, v_known
    from ambo.run_key k where k.workflow = p_workflow and k.key = p_key and k.rule = 'k';
    if not found then
        raise exception 'AMBO003: the key was released while it was looked up; enqueue again'
            using errcode = '40001';
    elsif v_known <> all (v_digests) then
        -- Not which run: who knows a run's id may read how it ended.
        raise exception 'AMBO003: key % of workflow % names a run that has another input',
            quote_literal(p_key), quote_literal(p_workflow)
            using errcode = 'AM003', hint = 'A key means one run: use another key for another input.';
    end if;
end $$;

-- One run. The Rust adapters call this; SQL callers use enqueue_workflow. Most runs have no terms: one look at the arguments and
-- three statements then. PL/pgSQL sets up each expression and statement anew in each transaction, and a user's enqueues once.
create or replace function ambo.enqueue(
    p_workflow text, p_input json, p_queue text, p_key text, p_priority integer, p_delay interval,
    p_at timestamptz, p_attributes jsonb, p_timeout interval, p_attempts integer, p_key_lifetime interval,
    p_group text default null, p_weight integer default 1, p_dedup boolean default false, p_throttle interval default null,
    p_debounce interval default null, p_debounce_max interval default null, p_start_by timestamptz default null,
    p_start_within interval default null, out run_id uuid, out is_new boolean)
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
begin
    if num_nonnulls(p_key, p_delay, p_at, p_attributes, p_timeout, p_key_lifetime, p_group, p_throttle, p_debounce,
                    p_debounce_max, p_start_by, p_start_within) = 0
       and not p_dedup and octet_length(p_workflow) between 1 and 200 and strpos(p_workflow, chr(31)) = 0
       and octet_length(p_input::text) <= 2097152 and not starts_with(p_input::text, '{"ambo:')
       and p_priority between -32768 and 32767 and p_attempts between 1 and 1000 and p_weight between 1 and 10000
    then
        select ambo.new_run_id() into run_id from ambo.queue q where q.name = p_queue and not q.draining;
        if found then
            is_new := true;
            insert into ambo.run (id, attempts_max, priority, weight, workflow, queue, input)
            values (run_id, p_attempts, p_priority, p_weight, p_workflow, p_queue, p_input);
            -- The xid before the seq: a claimer's low-water mark rests on it. The row above has brought it.
            insert into ambo.ready (seq, xid, run_id, attempt, losses, priority, weight, queue, workflow)
            values (nextval('ambo.ready_seq'), pg_current_xact_id(), run_id, 0, 0, p_priority, p_weight, p_queue, p_workflow);
            if ambo.is_awaited(hashtext('ambo.sleep')) then
                perform ambo.wake();
            end if;
            return;
        end if;
    end if;
    -- Whatever else it may be given, or the error where something is wrong with that.
    declare
        -- What is beyond all bounds is refused below; here it must not be added.
        v_due timestamptz := coalesce(p_at, now() + case when p_delay between interval '0' and interval '11 years' then p_delay
                                                        when p_delay is not null then interval '11 years' end);
        v_good boolean;
        v_managed boolean;
        v_xid xid8;
        v_terms boolean := p_dedup or num_nonnulls(p_throttle, p_debounce, p_debounce_max, p_start_by, p_start_within) > 0;
    begin
        -- Two checks, for the first is a plain expression then: half of the time here is the starting of statements.
        v_good := (octet_length(p_workflow) between 1 and 200 and strpos(p_workflow, chr(31)) = 0
            and octet_length(p_input::text) <= 2097152 and not ambo.is_forged(p_input)
            and (p_key is null or octet_length(p_key) between 1 and 512)
            and p_priority between -32768 and 32767
            and (v_due is null or (p_delay is null or p_at is null) and v_due <= now() + interval '10 years'
                 and coalesce(p_delay >= interval '0', true))
            and (p_timeout is null or p_timeout > interval '0' and p_timeout <= interval '10 years')
            and p_attempts between 1 and 1000
            and (p_key_lifetime is null or p_key is not null and p_key_lifetime > interval '0' and p_key_lifetime <= interval '100 years')
            and (p_group is null or octet_length(p_group) between 1 and 200 and strpos(p_group, chr(31)) = 0)
            and p_weight between 1 and 10000);
        select q.managed into v_managed from ambo.queue q where q.name = p_queue and not q.draining;
        if v_managed is null or v_good is not true or p_group is not null and not v_managed
        then
            perform ambo.refuse_enqueue(p_workflow, p_input, p_queue, p_key, p_priority, p_delay, p_at,
                                        p_timeout, p_attempts, p_key_lifetime, p_group, p_weight);
            perform ambo.refuse_draining(array[p_queue]);
        end if;
        -- Two conditions, not one: as one it would be a statement, planned anew each time because a null makes it cheap.
        if p_group is not null then
            if exists (select from ambo.queue_group g where g.queue = p_queue and g.group_key = p_group and g.draining) then
                perform ambo.refuse_draining(array[p_queue], array[p_group]);
            end if;
        end if;
        run_id := ambo.new_run_id();
        is_new := true;
        if v_terms then
            perform ambo.refuse_terms(p_key, p_dedup, p_throttle, p_debounce, p_debounce_max, p_delay, p_at, p_start_by,
                                      p_start_within);
        end if;
        if v_terms and (p_dedup or num_nonnulls(p_throttle, p_debounce) > 0) then
            select t.run_id, t.is_new into run_id, is_new
            from ambo.take_key_by((case when p_dedup then 'd' when p_throttle is not null then 't' else 'b' end)::"char",
                                  p_workflow, p_key, p_input, coalesce(p_throttle, p_debounce), p_debounce_max, run_id) t;
            if not is_new then
                return;
            end if;
            v_due := coalesce(v_due, clock_timestamp() + p_debounce);
        elsif p_key is not null then
            select t.run_id, t.is_new into run_id, is_new
            from ambo.take_key(p_workflow, p_key, p_input, p_key_lifetime, run_id) t;
            if not is_new then
                return;
            end if;
        end if;
        if p_start_within is not null then
            p_start_by := greatest(v_due, now()) + p_start_within;
        end if;
        insert into ambo.run (id, attempts_max, priority, weight, workflow, queue, input, key, group_key, timeout, attributes,
                              start_by, dedup)
        values (run_id, p_attempts, p_priority, p_weight, p_workflow, p_queue, p_input, p_key, p_group, p_timeout,
                p_attributes, p_start_by, case when p_dedup then true end);
        if p_attributes is not null then
            perform ambo.give_attributes(array[run_id], array[p_attributes], '{true}');
        end if;
        if v_due > clock_timestamp() then
            insert into ambo.timer (run_id, due_at, attempt, losses) values (run_id, v_due, 0, 0);
        else
            -- The xid before the seq: a claimer's low-water mark rests on it.
            v_xid := pg_current_xact_id();
            insert into ambo.ready (seq, xid, run_id, attempt, losses, priority, weight, queue, workflow, timeout, start_by)
            values (nextval('ambo.ready_seq'), v_xid, run_id, 0, 0, p_priority, p_weight, p_queue,
                    case when p_group is null then p_workflow else ambo.lane(p_workflow, null, p_group) end, p_timeout,
                    p_start_by);
            perform ambo.wake();
        end if;
    end;
end $$;

-- One run, from psql, a trigger or any driver: `select ambo.enqueue_workflow('fulfil', '{"id": 1001}')`.
-- Runs whose `priority` is lower are claimed first. `attempts`: how many workers may die with the run,
-- without progress, before it is dead-lettered. What a key means: see key.sql; `start_by`, `start_within`: expiry.sql.
create or replace function ambo.enqueue_workflow(
    workflow text, input json default 'null', queue text default 'default', key text default null,
    priority integer default 0, delay interval default null, at timestamptz default null,
    attributes jsonb default null, timeout interval default null, attempts integer default 5,
    key_lifetime interval default null, group_key text default null, weight integer default 1,
    dedup boolean default false, throttle interval default null, debounce interval default null,
    debounce_max interval default null, start_by timestamptz default null, start_within interval default null)
returns uuid
language sql volatile
-- One expression without settings or rights of its own, bound to what it names when it is created: it dissolves in the statement
-- that calls it and costs nothing. Whoever may execute it must be allowed to execute ambo.enqueue.
return (ambo.enqueue(workflow, input, queue, key, priority, delay, at, attributes, timeout, attempts, key_lifetime,
                     group_key, weight, dedup, throttle, debounce, debounce_max, start_by, start_within)).run_id;

-- Many runs in one call; `batch` is for enqueue_fan_in alone. An array that is not given, or an element that is null, means the default.
-- Keys are taken in sorted order, so that two bulk calls cannot deadlock on them.
create or replace function ambo.enqueue_workflows(
    workflows text[], inputs json[], queues text[] default null, keys text[] default null,
    priorities integer[] default null, delays interval[] default null, ats timestamptz[] default null,
    attributes jsonb[] default null, timeouts interval[] default null, attempts integer[] default null,
    key_lifetimes interval[] default null, group_keys text[] default null, weights integer[] default null,
    dedups boolean[] default null, throttles interval[] default null, debounces interval[] default null,
    debounce_maxes interval[] default null, start_bys timestamptz[] default null, start_withins interval[] default null,
    batch uuid default null)
returns table (run_id uuid, is_new boolean)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp set plan_cache_mode = force_generic_plan set jit = off
as $$
#variable_conflict use_column
declare
    v_n integer := cardinality(workflows);
    v_ids uuid[];
    v_new boolean[];
    v_xid xid8;
    v_terms boolean := num_nonnulls(dedups, throttles, debounces, debounce_maxes, start_bys, start_withins) > 0;
    v_at bigint;
    v_state text;
    v_text text;
    v_hint text;
    r record;
begin
    if v_n is null or cardinality(inputs) is distinct from v_n
       or coalesce(cardinality(queues), v_n) <> v_n or coalesce(cardinality(keys), v_n) <> v_n
       or coalesce(cardinality(priorities), v_n) <> v_n or coalesce(cardinality(delays), v_n) <> v_n
       or coalesce(cardinality(ats), v_n) <> v_n or coalesce(cardinality(attributes), v_n) <> v_n
       or coalesce(cardinality(timeouts), v_n) <> v_n or coalesce(cardinality(attempts), v_n) <> v_n
       or coalesce(cardinality(key_lifetimes), v_n) <> v_n or coalesce(cardinality(dedups), v_n) <> v_n
       or coalesce(cardinality(throttles), v_n) <> v_n or coalesce(cardinality(debounces), v_n) <> v_n
       or coalesce(cardinality(debounce_maxes), v_n) <> v_n or coalesce(cardinality(start_bys), v_n) <> v_n
       or coalesce(cardinality(start_withins), v_n) <> v_n or coalesce(cardinality(group_keys), v_n) <> v_n
       or coalesce(cardinality(weights), v_n) <> v_n
    then
        select string_agg(format('%s has %s', a.name, coalesce(a.n, 0)), ', ' order by a.nth) into v_text
        from unnest('{workflows,inputs,queues,keys,priorities,delays,ats,attributes,timeouts,attempts,key_lifetimes,group_keys,weights,'
                    'dedups,throttles,debounces,debounce_maxes,start_bys,start_withins}'::text[],
                    array[v_n, cardinality(inputs), cardinality(queues), cardinality(keys), cardinality(priorities), cardinality(delays),
                          cardinality(ats), cardinality(attributes), cardinality(timeouts), cardinality(attempts),
                          cardinality(key_lifetimes), cardinality(group_keys), cardinality(weights), cardinality(dedups),
                          cardinality(throttles), cardinality(debounces), cardinality(debounce_maxes), cardinality(start_bys),
                          cardinality(start_withins)]) with ordinality as a (name, n, nth)
        where a.nth = 1 or a.n is distinct from v_n and (a.n is not null or a.nth = 2);
        raise exception 'AMBO006: arrays of one call have one length; %', v_text
            using errcode = 'AM006', hint = 'Give each array the length of workflows, with null where a run has the default.';
    elsif v_n > 100000 then
        raise exception 'AMBO006: one call takes 100000 runs at most, not %', v_n using errcode = 'AM006';
    elsif batch is not null and not exists (
        select from ambo.timer t where t.run_id = batch and t.xid = pg_current_xact_id_if_assigned())
    then
        -- Or somebody's run would be told of ours, and would end ours with it.
        raise exception 'AMBO005: batch is for enqueue_fan_in alone' using errcode = 'AM005';
    end if;
    -- What is not plainly good, before anything is written: then a block that catches what is refused costs no transaction of its own.
    select min(u.n) into v_at
    from unnest(workflows, inputs, queues, keys, priorities, delays, ats, timeouts, attempts, key_lifetimes, group_keys, weights)
        with ordinality as u (w, i, q, k, p, d, t, o, m, l, g, h, n)
    where (not v_terms and octet_length(u.w) between 1 and 200 and strpos(u.w, chr(31)) = 0
        and octet_length(u.i::text) <= 2097152 and not ambo.is_forged(u.i)
        and (u.k is null or octet_length(u.k) between 1 and 512)
        and coalesce(u.p, 0) between -32768 and 32767
        and u.d is null and u.t is null and u.o is null and u.m is null and u.l is null
        and (u.g is null or octet_length(u.g) between 1 and 200 and strpos(u.g, chr(31)) = 0
             and coalesce(u.q, 'default') = any (array(select q.name from ambo.queue q where q.managed)))
        and (u.h is null or u.h between 1 and 10000)
        and coalesce(u.q, 'default') = any (array(select q.name from ambo.queue q))) is not true;
    if v_at is not null then
        begin
            for r in
                select u.*
                from unnest(workflows, inputs, queues, keys, priorities, delays, ats, timeouts, attempts, key_lifetimes, group_keys,
                            weights, dedups, throttles, debounces, debounce_maxes, start_bys, start_withins)
                    with ordinality as u (w, i, q, k, p, d, t, o, m, l, g, h, c, e, b, x, s, v, n)
                where u.n >= v_at
            loop
                v_at := r.n;
                perform ambo.refuse_enqueue(r.w, r.i, coalesce(r.q, 'default'), r.k, coalesce(r.p, 0), r.d, r.t, r.o,
                                            coalesce(r.m, 5), r.l, r.g, coalesce(r.h, 1));
                if v_terms then
                    perform ambo.refuse_terms(r.k, coalesce(r.c, false), r.e, r.b, r.x, r.d, r.t, r.s, r.v);
                end if;
            end loop;
        exception when others then
            if v_n = 1 or sqlstate not like 'AM%' then
                raise;
            end if;
            get stacked diagnostics v_state = returned_sqlstate, v_text = message_text, v_hint = pg_exception_hint;
            v_text := format('%s (element %s of %s)', v_text, v_at, v_n);
            if v_hint = '' then
                raise exception using errcode = v_state, message = v_text;
            end if;
            raise exception using errcode = v_state, message = v_text, hint = v_hint;
        end;
    end if;
    if v_terms then
        -- The slow way: one by one, as one call after the other would.
        return query
        select e.run_id, e.is_new
        from ambo.enqueue_one_by_one(workflows, inputs, queues, keys, priorities, delays, ats, attributes, timeouts, attempts,
                                     key_lifetimes, group_keys, weights, dedups, throttles, debounces, debounce_maxes,
                                     start_bys, start_withins, batch) e;
        return;
    end if;
    perform ambo.refuse_draining(coalesce(queues, '{default}'), group_keys);

    select array_agg(ambo.new_run_id() order by g), array_agg(true)
    into v_ids, v_new from generate_series(1, v_n) g;
    if keys is not null then
        for r in
            select u.n, t.run_id, t.is_new
            from (select * from unnest(workflows, keys, inputs, v_ids, key_lifetimes) with ordinality
                      as u (w, k, i, id, l, n)
                  where k is not null order by w, k, n offset 0) u,
                 lateral ambo.take_key(u.w, u.k, u.i, u.l, u.id) t
        loop
            v_ids[r.n] := r.run_id;
            v_new[r.n] := r.is_new;
        end loop;
    end if;

    insert into ambo.run (id, attempts_max, priority, weight, workflow, queue, input, key, group_key, timeout, attributes,
                          parent_id)
    select u.id, coalesce(u.m, 5), coalesce(u.p, 0), coalesce(u.h, 1), u.w, coalesce(u.q, 'default'), u.i, u.k, u.g, u.o,
           u.a, batch
    from unnest(v_ids, v_new, attempts, priorities, weights, workflows, queues, inputs, keys, group_keys, timeouts,
                attributes) as u (id, is_new, m, p, h, w, q, i, k, g, o, a)
    where u.is_new;
    if attributes is not null then
        perform ambo.give_attributes(v_ids, attributes, v_new);
    end if;
    if delays is not null or ats is not null then
        insert into ambo.timer (run_id, due_at, attempt, losses)
        select u.id, coalesce(u.t, now() + u.d), 0, 0
        from unnest(v_ids, v_new, delays, ats) as u (id, is_new, d, t)
        where u.is_new and coalesce(u.t, now() + u.d) > now();
    end if;
    v_xid := pg_current_xact_id();
    insert into ambo.ready (seq, xid, run_id, attempt, losses, priority, weight, queue, workflow, timeout)
    select nextval('ambo.ready_seq'), v_xid, u.id, 0, 0, coalesce(u.p, 0), coalesce(u.h, 1), coalesce(u.q, 'default'),
           ambo.lane(u.w, null, u.g), u.o
    from unnest(v_ids, v_new, priorities, weights, queues, workflows, group_keys, timeouts, delays, ats)
        as u (id, is_new, p, h, q, w, g, o, d, t)
    where u.is_new and (coalesce(u.t, now() + u.d) > now()) is not true;
    perform ambo.wake();
    return query select * from unnest(v_ids, v_new);
end $$;

-- Many runs, of which some have more terms than a batch knows. Keys in sorted order, so that two calls cannot deadlock.
create or replace function ambo.enqueue_one_by_one(
    p_workflows text[], p_inputs json[], p_queues text[], p_keys text[], p_priorities integer[], p_delays interval[],
    p_ats timestamptz[], p_attributes jsonb[], p_timeouts interval[], p_attempts integer[], p_key_lifetimes interval[],
    p_groups text[], p_weights integer[], p_dedups boolean[], p_throttles interval[], p_debounces interval[],
    p_debounce_maxes interval[], p_start_bys timestamptz[], p_start_withins interval[], p_batch uuid)
returns table (run_id uuid, is_new boolean)
language plpgsql volatile
as $$
#variable_conflict use_column
declare
    v_ids uuid[] := array_fill(null::uuid, array[cardinality(p_workflows)]);
    v_new boolean[] := array_fill(false, array[cardinality(p_workflows)]);
    r record;
begin
    for r in
        select u.n, e.run_id, e.is_new
        from (select * from unnest(p_workflows, p_inputs, p_queues, p_keys, p_priorities, p_delays, p_ats, p_attributes,
                                   p_timeouts, p_attempts, p_key_lifetimes, p_groups, p_weights, p_dedups,
                                   p_throttles, p_debounces, p_debounce_maxes, p_start_bys, p_start_withins)
                  with ordinality as u (w, i, q, k, p, d, t, a, o, m, l, g, c, u, h, b, x, s, v, n)
              order by w, k, n offset 0) u
        cross join lateral ambo.enqueue(u.w, u.i, coalesce(u.q, 'default'), u.k, coalesce(u.p, 0), u.d, u.t, u.a, u.o,
                                        coalesce(u.m, 5), u.l, u.g, coalesce(u.c, 1), coalesce(u.u, false), u.h, u.b, u.x,
                                        u.s, u.v) e
    loop
        v_ids[r.n] := r.run_id;
        v_new[r.n] := r.is_new;
    end loop;
    if p_batch is not null then
        update ambo.run g set parent_id = p_batch
        from unnest(v_ids, v_new) as u (id, is_new) where g.id = u.id and u.is_new;
    end if;
    return query select * from unnest(v_ids, v_new);
end $$;
