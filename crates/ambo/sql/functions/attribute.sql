-- Attributes: what a run is searched by, given when it is enqueued and set from inside.

-- The attributes of a run as they stand.
create or replace function ambo.attributes_of(p_run uuid, p_given jsonb) returns jsonb
language sql stable
return coalesce((select a.attributes from ambo.attribute a where a.run_id = p_run), p_given);

-- Sets attributes of runs as far as they are still this worker's; of two values for a key the later one stands.
create or replace function ambo.set_attributes(
    p_worker bigint, p_runs uuid[], p_attempts integer[], p_keys text[], p_values json[])
returns void
language plpgsql volatile
as $$
begin
    insert into ambo.attribute as a (run_id, attributes)
    select s.run_id, coalesce(r.attributes, '{}') || s.attributes
    from (
        select u.run_id, u.attempt, jsonb_object_agg(u.key, u.value::jsonb order by u.n) as attributes
        from unnest(p_runs, p_attempts, p_keys, p_values) with ordinality as u (run_id, attempt, key, value, n)
        group by u.run_id, u.attempt) s
    cross join lateral (
        select from ambo.claim c
        where c.run_id = s.run_id and c.worker_id = p_worker and c.attempt = s.attempt offset 0) c
    cross join lateral (
        select coalesce(a.attributes, r.attributes) as attributes
        from ambo.run r left join ambo.attribute a on a.run_id = r.id where r.id = s.run_id offset 0) r
    on conflict (run_id) do update set attributes = excluded.attributes;
end $$;

-- Makes the attributes of a run what its checkpoints say, beside those that it was given: after some were taken away.
create or replace function ambo.restore_attributes(p_run uuid) returns void
language plpgsql volatile
as $$
begin
    delete from ambo.attribute a where a.run_id = p_run;
    insert into ambo.attribute (run_id, attributes)
    select p_run, coalesce(r.attributes, '{}') || s.attributes
    from ambo.run r cross join (
        select jsonb_object_agg(substr(c.name, 16), c.output::jsonb
                                order by c.recorded_at, string_to_array(c.position, '.')::integer[]) as attributes
        from ambo.checkpoint c where c.run_id = p_run and starts_with(c.name, 'ambo:attribute ')) s
    where r.id = p_run and s.attributes is not null;
end $$;
