-- Run ids are UUIDv7 made in the database: their order is time, to a quarter of a microsecond, and partitions are ranges of
-- them. The milliseconds, the version, the part of the millisecond in 4096ths (RFC 9562, 6.2, method 3), and chance.
create or replace function ambo.new_run_id() returns uuid
language sql volatile parallel safe
return (overlay(lpad(to_hex((extract(epoch from clock_timestamp()) * 4096000)::bigint), 15, '0') placing '7' from 13 for 0)
        || substr(gen_random_uuid()::text, 20))::uuid;

-- The smallest run id of an instant, within what an id can hold: the bound of a partition, or of a search.
create or replace function ambo.run_id_floor(at timestamptz) returns uuid
language sql immutable parallel safe
return rpad(encode(substring(int8send((extract(epoch from
    case when at < 'epoch' then 'epoch' when at > '9999-12-31 00:00+00' then '9999-12-31 00:00+00' else at end)
    * 1000)::bigint) from 3), 'hex'), 32, '0')::uuid;

-- When a run was enqueued, read from its id (milliseconds).
create or replace function ambo.run_time(run_id uuid) returns timestamptz
language sql immutable parallel safe
return to_timestamp(
    ('x' || substr(translate(run_id::text, '-', ''), 1, 12))::bit(48)::bigint / 1000.0);
