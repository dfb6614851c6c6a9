-- Envelopes: what stands in place of a payload that is encrypted or stored apart. Their shape is stated in src/vault/envelope.rs
-- and in docs/guide/payloads.md.

-- The digests by which an envelope is compared, the current key's first; null for any other payload. Two payloads in
-- envelopes are equal if they have one in common.
create or replace function ambo.payload_digests(p_payload json) returns text[]
language sql immutable
return case when starts_with(ltrim(p_payload::text), '{"ambo:') then
    (select array_agg(d.digest order by d.n) from json_array_elements_text(coalesce(
        p_payload -> 'ambo:sealed' -> 'digests', p_payload -> 'ambo:object' -> 'digests'))
        with ordinality as d (digest, n)) end;

-- Whether a payload begins as an envelope and has not the shape of one. An envelope that has, and that no program of ours wrote,
-- cannot be told here: whoever opens it finds out.
create or replace function ambo.is_forged(p_payload json) returns boolean
language sql immutable
return case when starts_with(p_payload::text, '{"ambo:') then
    coalesce(json_typeof(p_payload -> 'ambo:sealed' -> 'key') = 'string'
             and json_typeof(p_payload -> 'ambo:sealed' -> 'text') = 'string'
             or json_typeof(p_payload -> 'ambo:object' -> 'path') = 'string'
             and json_typeof(p_payload -> 'ambo:object' -> 'bytes') = 'number', false) is not true
    or json_typeof(coalesce(p_payload -> 'ambo:sealed' -> 'digests', p_payload -> 'ambo:object' -> 'digests', '[]')) <> 'array'
    else false end;

-- Whether two payloads are the same, as far as that can be told without reading them.
create or replace function ambo.is_same_payload(p_one json, p_other json) returns boolean
language sql immutable
return p_one::text = p_other::text
    or coalesce(ambo.payload_digests(p_one) && ambo.payload_digests(p_other), false);

-- Objects that were written before this time are referred to by nobody but runs that were carried over or forked. A day is
-- left to whoever writes the object first and the fact later, perhaps by another clock.
create or replace function ambo.object_horizon() returns timestamptz
language sql stable security definer set search_path = pg_catalog, pg_temp
return (select min(p.starts_at) - interval '1 day' from ambo.history_partition p);

-- The paths of the objects that those refer to. Also within what they recorded of a signal, or continued as new with.
create or replace function ambo.kept_objects() returns setof text
language sql stable security definer set search_path = pg_catalog, pg_temp set jit = off
as $$
    with payload (text) as (
        select r.input::text from ambo.run_carried r union all
        select concat(o.output, o.error) from ambo.outcome_carried o union all
        select concat(c.output, c.error) from ambo.checkpoint_carried c union all
        select e.value::text from ambo.event_carried e union all
        select s.payload::text from ambo.signal_carried s union all
        select p.text
        from ambo.attribute a
        cross join lateral (
            select r.input::text from ambo.run r where r.id = a.run_id union all
            select concat(c.output, c.error) from ambo.checkpoint c where c.run_id = a.run_id union all
            select e.value::text from ambo.event e where e.run_id = a.run_id union all
            select s.payload::text from ambo.signal s where s.run_id = a.run_id
            offset 0) p (text)
        where a.attributes ? 'forked_from'
    )
    select distinct m.path[1]
    from payload p cross join lateral regexp_matches(p.text, '"ambo:object":\{"path":"([^"]+)"', 'g') m (path)
    where strpos(p.text, '"ambo:object"') > 0
$$;
