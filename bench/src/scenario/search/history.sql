-- What `search` looks through: rows as Ambo writes them, over ten days up to now. Run n of a total is the same in every table.

create schema bench;

-- Partitions for the days before the first one.
create function bench.make_past(p_days integer) returns void language plpgsql as $$
declare
    v_first timestamptz := (select min(p.starts_at) from ambo.history_partition p);
    v_from timestamptz;
    v_table text;
    v_part text;
begin
    foreach v_table in array array['run', 'outcome', 'child', 'attribute', 'checkpoint', 'signal', 'event'] loop
        execute format('alter table ambo.%I detach partition ambo.%I', v_table, v_table || '_carried');
        for n in 1 .. p_days loop
            v_from := v_first - n * interval '1 day';
            v_part := v_table || to_char(v_from at time zone 'UTC', '_YYYYMMDD_HH24MI');
            execute format('create table ambo.%I (like ambo.%I including all)', v_part, v_table);
            execute format('alter table ambo.%I attach partition ambo.%I for values from (%L) to (%L)', v_table, v_part,
                           ambo.run_id_floor(v_from), ambo.run_id_floor(v_from + interval '1 day'));
        end loop;
        execute format('alter table ambo.%I attach partition ambo.%I for values from (minvalue) to (%L)',
                       v_table, v_table || '_carried', ambo.run_id_floor(v_from));
    end loop;
    insert into ambo.history_partition
    select v_first - n * interval '1 day', v_first - (n - 1) * interval '1 day' from generate_series(1, p_days) n;
end $$;

-- The newest run is of the time of the installation, the others are spread evenly over the ten days before.
create table bench.total as select 0::bigint as runs, now() as until;

create function bench.at(n bigint) returns timestamptz language sql stable
return (select t.until - (t.runs - n) * (interval '10 days' / t.runs) from bench.total t);

create function bench.id(n bigint, at timestamptz) returns uuid language sql immutable
return (overlay(lpad(to_hex((extract(epoch from at) * 4096000)::bigint), 15, '0') placing '7' from 13 for 0)
        || '8' || substr(md5(n::text), 1, 15))::uuid;

-- A number below p_below for run n, another one for each p_salt.
create function bench.pick(n bigint, p_salt integer, p_below bigint) returns bigint language sql immutable
return (hashint8extended(n, p_salt) & 9223372036854775807) % p_below;

-- Of a hundred runs one failed, one sleeps, ten are children of the first. The newest hundredth is ready, before that are
-- a thousand at most in execution.
create function bench.runs(p_from bigint, p_to bigint)
returns table (n bigint, id uuid, at timestamptz, parent uuid, state text, workflow text, queue text, attributes jsonb)
language sql stable as $$
    select n, bench.id(n, a.at), a.at,
           case when n % 100 between 1 and 10 then bench.id(n - n % 100, bench.at(n - n % 100)) end,
           case when n > t.runs - t.runs / 100 then 'ready'
                when n > t.runs - t.runs / 100 - least(1000, t.runs / 1000) then 'running'
                when s < 10 then 'failed'
                when s < 20 then 'parked'
                when s = 20 then 'delayed'
                when s = 21 then 'cancelled'
                when s = 22 then 'dead'
                else 'succeeded' end,
           case when bench.pick(n, 2, t.runs / 100) = 0 then 'rare' else 'workflow ' || bench.pick(n, 3, 30) end,
           'queue ' || bench.pick(n, 4, 10),
           case when bench.pick(n, 5, 10) = 0
                then jsonb_build_object('customer', bench.pick(n, 6, t.runs / 100), 'region', bench.pick(n, 7, 8)) end
    from bench.total t
    cross join lateral (select n, t.until - (t.runs - n) * (interval '10 days' / t.runs) as at, bench.pick(n, 1, 1000) as s
                        from generate_series(p_from, p_to) n) a
$$;

-- Writes the runs from p_from to p_to.
create function bench.fill(p_from bigint, p_to bigint) returns void language sql volatile as $$
    insert into ambo.run (id, attempts_max, priority, workflow, queue, input, key, attributes, parent_id)
    select r.id, 5, 0, r.workflow, r.queue, json_build_object('order', r.n, 'note', md5((-r.n)::text)),
           case when bench.pick(r.n, 8, 10) = 0 then 'order ' || r.n end, r.attributes, r.parent
    from bench.runs(p_from, p_to) r;
    insert into ambo.child select r.parent, r.id from bench.runs(p_from, p_to) r where r.parent is not null;
    insert into ambo.attribute select r.id, r.attributes from bench.runs(p_from, p_to) r where r.attributes is not null;
    insert into ambo.outcome (run_id, ended_at, attempt, status, output, error)
    select r.id, r.at + interval '1 second', 1, r.state::ambo.status,
           case when r.state = 'succeeded' then to_json(r.n) end,
           case when r.state <> 'succeeded' then '{"code": "AMBO100", "message": "the card was declined"}'::json end
    from bench.runs(p_from, p_to) r where r.state in ('succeeded', 'failed', 'cancelled', 'dead');
    insert into ambo.checkpoint (run_id, recorded_at, attempt, elapsed_ms, position, name, output)
    select r.id, r.at + interval '1 second', 1, 12, '1', 'charge', to_json(r.n)
    from bench.runs(p_from, p_to) r where r.state not in ('ready', 'delayed');
    insert into ambo.timer (run_id, due_at, attempt, losses)
    select r.id, now() + interval '1 day', case r.state when 'parked' then 1 else 0 end, 0
    from bench.runs(p_from, p_to) r where r.state in ('parked', 'delayed');
    insert into ambo.claim (run_id, worker_id, attempt, losses)
    select r.id, 1, 1, 0 from bench.runs(p_from, p_to) r where r.state = 'running';
    insert into ambo.ready (seq, xid, run_id, attempt, losses, priority, queue, workflow)
    select nextval('ambo.ready_seq'), pg_current_xact_id(), r.id, 0, 0, 0, r.queue, r.workflow
    from bench.runs(p_from, p_to) r where r.state = 'ready';
$$;
