-- Attributes: what a run is searched by, given when it is enqueued and set from inside.

-- Makes new runs found by the attributes that they are given.
create or replace function ambo.give_attributes(p_runs uuid[], p_attributes jsonb[], p_new boolean[]) returns void
language plpgsql volatile
as $$
begin
    if exists (select from unnest(p_attributes) a where jsonb_typeof(a) <> 'object') then
        raise exception 'AMBO005: attributes are a JSON object, not %',
            (select jsonb_typeof(a) from unnest(p_attributes) a where jsonb_typeof(a) <> 'object' limit 1)
            using errcode = 'AM005', hint = 'For example: {"customer": 1001}.';
    elsif exists (select from unnest(p_attributes) a where octet_length(a::text) > 65536) then
        raise exception 'AMBO004: the attributes have % bytes; the limit is 65536',
            (select max(octet_length(a::text)) from unnest(p_attributes) a)
            using errcode = 'AM004', hint = 'Data belongs into the input: attributes are what runs are found by.';
    end if;
    insert into ambo.attribute (run_id, attributes)
    select u.id, u.a from unnest(p_runs, p_attributes, p_new) as u (id, a, is_new) where u.a is not null and u.is_new;
end $$;

-- Sets attributes of runs as far as they are still this worker's; of two values for a key the later one stands.
create or replace function ambo.set_attributes(
    p_worker bigint, p_runs uuid[], p_attempts integer[], p_keys text[], p_values json[])
returns void
language plpgsql volatile
set plan_cache_mode = force_generic_plan set jit = off set enable_seqscan = off
as $$
declare
    v_run uuid;
begin
    with written as (
    insert into ambo.attribute as a (run_id, attributes)
    select s.run_id, s.attributes
    from (
        select u.run_id, u.attempt, jsonb_object_agg(u.key, u.value::jsonb order by u.n) as attributes
        from unnest(p_runs, p_attempts, p_keys, p_values) with ordinality as u (run_id, attempt, key, value, n)
        group by u.run_id, u.attempt) s
    cross join lateral (
        select from ambo.claim c
        where c.run_id = s.run_id and c.worker_id = p_worker and c.attempt = s.attempt offset 0) c
    on conflict (run_id) do update set attributes = a.attributes || excluded.attributes
    returning a.run_id, octet_length(a.attributes::text) as bytes)
    select w.run_id into v_run from written w where w.bytes > 262144;
    if found then
        -- Each history of a run may set a fourth of it: it has gone on as new too often with other keys.
        raise exception 'AMBO004: the attributes of run % have more than 262144 bytes', v_run using errcode = 'AM004';
    end if;
end $$;

-- Makes the attributes of a run what its checkpoints say, beside those that it was given: after some were taken away.
create or replace function ambo.restore_attributes(p_run uuid) returns void
language plpgsql volatile
as $$
begin
    delete from ambo.attribute a where a.run_id = p_run;
    insert into ambo.attribute (run_id, attributes)
    select p_run, coalesce(r.attributes, '{}') || coalesce(s.attributes, '{}')
    from ambo.run r cross join (
        select jsonb_object_agg(substr(c.name, 16), c.output::jsonb
                                order by c.recorded_at, string_to_array(c.position, '.')::integer[]) as attributes
        from ambo.checkpoint c where c.run_id = p_run and starts_with(c.name, 'ambo:attribute ') and c.output is not null) s
    where r.id = p_run and coalesce(r.attributes, s.attributes) is not null;
end $$;
