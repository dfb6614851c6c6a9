-- Only in the databases of `ambo::testing`: a clock that a test can move, and what a test asks.
--
-- There `clock_timestamp()` and `now()` of everything that is installed after this are the two functions below. What is written
-- `pg_catalog.clock_timestamp()` stays: signs of life do not age with a test's time.

create table ambo.test_clock (
    only_row boolean primary key default true check (only_row),
    skipped interval not null default '0'
);
insert into ambo.test_clock default values;

create or replace function ambo.clock_timestamp() returns timestamptz
language sql volatile security definer set search_path = pg_catalog, pg_temp
as $$ select pg_catalog.clock_timestamp() + (select c.skipped from ambo.test_clock c) $$;

create or replace function ambo.now() returns timestamptz
language sql stable security definer set search_path = pg_catalog, pg_temp
as $$ select pg_catalog.now() + (select c.skipped from ambo.test_clock c) $$;

create or replace function ambo.skip_time(p_span interval) returns void
language sql volatile security definer set search_path = pg_catalog, pg_temp
as $$ update ambo.test_clock c set skipped = c.skipped + p_span $$;

-- How long it is, in microseconds, until something becomes due by itself; null: nothing will. Stable, as the next one: asked in one
-- statement, the two see the same moment.
create or replace function ambo.next_due_us() returns bigint
language sql stable security definer set search_path = pg_catalog, pg_temp
as $$
    -- No row, no greatest(): that would make a null to 0, which means now.
    select greatest((extract(epoch from min(d.at) - ambo.clock_timestamp()) * 1000000)::bigint, 0)
    from (select t.due_at as at from ambo.timer t where t.due_at < 'infinity'
          union all select s.next_at from ambo.schedule s where not s.paused and s.next_at > ambo.clock_timestamp()) d
    having min(d.at) is not null
$$;

-- A run that is neither parked nor delayed nor ended, or for which something came that has not been looked at, or which is due;
-- or a schedule that is. Null: none.
create or replace function ambo.run_at_work() returns text
language sql stable security definer set search_path = pg_catalog, pg_temp
as $$
    select w.what from (
        select r.workflow || ' ' || r.id from (
            select y.run_id from ambo.ready y union all select c.run_id from ambo.claim c
            union all select t.run_id from ambo.timer t where t.due_at <= ambo.clock_timestamp()) b
        join ambo.run r on r.id = b.run_id
        union all
        -- One that queues its ticks waits for the run before, not for the time.
        select 'schedule ' || s.name from ambo.schedule s
        where s.next_at <= ambo.clock_timestamp() and not s.paused and s.overlap <> 'queue' and s.error is null) w (what)
    limit 1
$$;

-- A worker that is known to be gone is buried at the next heartbeat of another.
create or replace function ambo.disown_worker(p_worker bigint) returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
begin
    update ambo.heartbeat h set at = '-infinity' where h.worker_id = p_worker;
    update ambo.keeper k set renewed_at = '-infinity', grace_until = '-infinity' where k.worker_id = p_worker;
end $$;

-- The runs that the caller's own transaction has enqueued, or p_mine false, those of all that committed; in their order.
create or replace function ambo.enqueued_runs(p_workflow text, p_mine boolean) returns json
language sql volatile security definer set search_path = pg_catalog, pg_temp
as $$
    select coalesce(json_agg(json_build_object(
        'run', r.id, 'workflow', r.workflow, 'queue', r.queue, 'key', r.key, 'priority', r.priority,
        'attributes', r.attributes, 'input', r.input, 'parent', r.parent_id,
        'due_at', to_char(t.due_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"')) order by r.id), '[]')
    from ambo.run r left join ambo.timer t on t.run_id = r.id and t.attempt = 0
    where (p_workflow is null or r.workflow = p_workflow)
      -- What is visible and in progress is this transaction's own, savepoints and all.
      and (not p_mine or pg_xact_status(r.xmin::text::xid8) = 'in progress')
$$;
