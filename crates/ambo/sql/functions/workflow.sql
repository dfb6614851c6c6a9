-- Workflows: what workers say of theirs, for operators to look at. Nothing is decided by it.

-- What a worker of this version knows; written only where it differs from what stands. In the order of the names, so that
-- workers that begin together do not wait for each other in a circle.
create or replace function ambo.declare_workflows(p_version text, p_workflows json) returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
begin
    insert into ambo.workflow as k (name, version, input, output, tries, graph)
    select w.name, p_version, w.input, w.output, w.tries, w.graph
    from json_to_recordset(p_workflows) as w (name text, input text, output text, tries bigint, graph json)
    where not exists (
        select from ambo.workflow o
        where o.name = w.name and (o.version, o.input, o.output, o.tries) = (p_version, w.input, w.output, w.tries)
          and o.graph::text is not distinct from w.graph::text)
    order by w.name
    on conflict (name) do update
    set declared_at = now(), version = excluded.version, input = excluded.input, output = excluded.output,
        tries = excluded.tries, graph = excluded.graph;
end $$;

-- The workflows that workers have registered; p_name: only this one.
create or replace function ambo.list_workflows(p_name text default null)
returns table (name text, declared_at timestamptz, version text, input text, output text, tries bigint, graph json,
               workers bigint, versions text[])
language sql stable security definer set search_path = pg_catalog, pg_temp
as $$
    select k.name, k.declared_at, k.version, k.input, k.output, k.tries, k.graph, l.workers, l.versions
    from ambo.workflow k cross join lateral (
        select count(*) as workers,
               coalesce(array_agg(distinct w.version order by w.version) filter (where w.version <> ''), '{}') as versions
        from ambo.worker w where w.dead_at is null and k.name = any (w.workflows)) l
    where p_name is null or k.name = p_name
    order by k.name
$$;
