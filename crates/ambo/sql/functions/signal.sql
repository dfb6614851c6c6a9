-- Signals: messages to a run, sent in the caller's transaction.

-- Sends one. Signals of a topic are consumed in the order in which they were sent, as far as their transactions did not
-- overlap. The same key is the same signal: returns whether it was new. To a run that is not there: AMBO033; to one that
-- has ended: AMBO034.
create or replace function ambo.send_signal(
    run_id uuid, topic text, payload json default 'null', key text default null)
returns boolean
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
set plan_cache_mode = force_generic_plan set jit = off set enable_seqscan = off
as $$
#variable_conflict use_variable
declare
    v_known record;
begin
    if topic is null or octet_length(topic) not between 1 and 200 then
        raise exception 'AMBO001: the topic of a signal has 1 to 200 bytes, not %', coalesce(octet_length(topic)::text, 'null')
            using errcode = 'AM001';
    elsif starts_with(topic, 'ambo:') then
        raise exception 'AMBO001: topics that begin with "ambo:" are Ambo''s own' using errcode = 'AM001';
    elsif octet_length(key) not between 1 and 512 then
        raise exception 'AMBO001: a key has 1 to 512 bytes, not %', octet_length(key) using errcode = 'AM001';
    elsif payload is null then
        raise exception 'AMBO005: the payload is null' using errcode = 'AM005',
            hint = 'Pass JSON; the JSON value null is written ''null''.';
    elsif coalesce(starts_with(key, 'ambo:'), false) and not ambo.is_request(key, payload) then
        raise exception 'AMBO001: keys that begin with "ambo:" are Ambo''s own' using errcode = 'AM001',
            hint = 'To send a request that is answered: ambo.send_update.';
    elsif octet_length(payload::text) > 2097152 then
        raise exception 'AMBO004: the payload has % bytes; the limit is 2097152', octet_length(payload::text)
            using errcode = 'AM004', hint = 'Store large data elsewhere and send a reference.';
    elsif ambo.is_forged(payload) then
        raise exception 'AMBO007: the payload is an object whose first key begins with "ambo:", and no envelope'
            using errcode = 'AM007', hint = 'Such keys are Ambo''s own: name it otherwise.';
    elsif not exists (select from ambo.run r where r.id = send_signal.run_id) then
        perform ambo.refuse_unknown(run_id);
    end if;
    if key is not null then
        -- Before the question whether the run has ended: the same signal again is no error then.
        select case when octet_length(s.topic) > 200 then right(s.topic, -201) else s.topic end as topic, s.payload
        into v_known
        from ambo.signal s where s.run_id = send_signal.run_id and s.key = send_signal.key;
    end if;
    if key is null or not found then
        if exists (select from ambo.outcome o where o.run_id = send_signal.run_id) then
            raise exception 'AMBO034: run % has ended and takes no more signals', run_id using errcode = 'AM034';
        end if;
        insert into ambo.signal (run_id, seq, topic, key, payload)
        values (run_id, nextval('ambo.signal_seq'), topic, key, payload)
        on conflict do nothing;
        if found then
            perform ambo.send_wakes(array[run_id]);
            return true;
        end if;
        select case when octet_length(s.topic) > 200 then right(s.topic, -201) else s.topic end as topic, s.payload
        into v_known
        from ambo.signal s where s.run_id = send_signal.run_id and s.key = send_signal.key;
    end if;
    if v_known.topic is distinct from topic or ambo.is_same_payload(v_known.payload, payload) is not true then
        if starts_with(key, 'ambo:answer ') then
            raise exception 'AMBO003: key % of run % names another update', quote_literal(substr(key, 13)), run_id
                using errcode = 'AM003', hint = 'A key means one update: use another key for another one.';
        end if;
        raise exception 'AMBO003: key % of run % names another signal', quote_literal(key), run_id
            using errcode = 'AM003', hint = 'A key means one signal: use another key for another one.';
    end if;
    return false;
end $$;

-- Whether a payload is a request under this key: as send_update writes it, as a program does, or in an envelope. A NUL in the value
-- keeps PostgreSQL from reading the whole.
create or replace function ambo.is_request(p_key text, p_payload json) returns boolean
language sql immutable
return starts_with(p_key, 'ambo:answer ') and case
    when starts_with(p_payload::text, '{"ambo:') then true
    when right(p_payload::text, 8 + length(to_json(substr(p_key, 13))::text)) = ',"key":' || to_json(substr(p_key, 13))::text || '}' then true
    when strpos(p_payload::text, '\u0000') > 0 then false
    else coalesce(p_payload ->> 'key' = substr(p_key, 13), false) end;

-- Sends a request that the run answers, once for each key of 1 to 180 bytes. Answers the key of the event that will be the
-- answer: ambo.read_events(run_id, that) has it once the run has given it. One that begins with {"ambo:refused": holds the
-- error of a request that the run could not take.
create or replace function ambo.send_update(run_id uuid, topic text, payload json, key text) returns text
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
    if key is null or octet_length(key) not between 1 and 180 then
        raise exception 'AMBO001: the key of an update has 1 to 180 bytes, not %',
            coalesce(octet_length(key)::text, 'null') using errcode = 'AM001';
    end if;
    -- In the spelling of the program, which may send it again.
    perform ambo.send_signal(run_id, topic, ('{"value":' || payload || ',"key":' || to_json(key) || '}')::json,
                             'ambo:answer ' || key);
    return 'ambo:answer ' || key;
end $$;

-- The signals that wait for a run, the oldest first: those that it has not taken, and once it has ended those of which it
-- failed, for it takes them again when it is retried. The key of an update begins with "ambo:answer ".
create or replace function ambo.list_signals(p_run uuid, p_limit integer default 1000)
returns table (seq bigint, topic text, key text, sent_at timestamptz, payload json)
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    perform ambo.refuse_unknown(p_run);
    return query
    select s.seq, s.topic, s.key, s.sent_at, s.payload from ambo.signal s
    -- Under longer topics are the keys of what it had taken before it continued as new.
    where s.run_id = p_run and octet_length(s.topic) <= 200
      and s.seq <> all (array(
          select (c.output ->> 'seq')::bigint from ambo.checkpoint c
          where c.run_id = p_run and starts_with(c.name, 'ambo:signal ') and c.output ->> 'seq' is not null
            and (c.error is null or not exists (select from ambo.outcome o where o.run_id = p_run))))
    order by s.seq limit greatest(least(p_limit, 1000000), 0);
end $$;

-- Takes a signal back, by its number: one that the run has not taken, or that did not fit the type that it waited for. Its key
-- is free then. Says whether there was one.
create or replace function ambo.drop_signal(run_id uuid, seq bigint) returns boolean
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
begin
    if exists (select from ambo.checkpoint c
               where c.run_id = drop_signal.run_id and starts_with(c.name, 'ambo:signal ') and c.error is null
                 and c.output ->> 'seq' = drop_signal.seq::text)
    then
        raise exception 'AMBO034: run % has taken signal %', run_id, seq using errcode = 'AM034';
    end if;
    delete from ambo.signal s where s.run_id = drop_signal.run_id and s.seq = drop_signal.seq;
    if not found then
        perform ambo.refuse_unknown(run_id);
        return false;
    end if;
    return true;
end $$;

-- The next signal of a topic that the run has not consumed. `again` says that something had come for the run since the
-- last look: whatever else it waits for should look as well.
create or replace function ambo.next_signal(
    p_run uuid, p_topic text, p_consumed bigint[], out again boolean, out seq bigint, out key text, out payload json)
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
set jit = off set enable_seqscan = off set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
begin
    again := ambo.take_wake(p_run);
    select s.seq, s.key, s.payload into next_signal.seq, next_signal.key, next_signal.payload from ambo.signal s
    where s.run_id = p_run and s.topic = p_topic and s.seq <> all (p_consumed)
    order by s.seq limit 1;
end $$;

-- Takes the row that says that something came for a run in memory. Look only after it.
create or replace function ambo.take_wake(p_run uuid) returns boolean
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp set jit = off set enable_seqscan = off
as $$
begin
    delete from ambo.wake w where w.run_id = p_run;
    if found then
        -- Should a crash bring the row back, somebody looks once too often.
        perform set_config('synchronous_commit', 'off', true);
        return true;
    end if;
    return false;
end $$;
