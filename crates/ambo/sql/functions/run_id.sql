-- Run ids are UUIDv7 made in the database: their order is time, and partitions are ranges of them.
create or replace function ambo.new_run_id() returns uuid
language sql volatile parallel safe
return encode(
    set_bit(set_bit(
        overlay(uuid_send(gen_random_uuid()) placing
            substring(int8send((extract(epoch from clock_timestamp()) * 1000)::bigint) from 3) from 1 for 6),
        52, 1), 53, 1), 'hex')::uuid;

-- The smallest run id of an instant: the bound of a partition.
create or replace function ambo.run_id_floor(at timestamptz) returns uuid
language sql immutable parallel safe
return rpad(encode(substring(int8send((extract(epoch from at) * 1000)::bigint) from 3), 'hex'), 32, '0')::uuid;

-- When a run was enqueued, read from its id (milliseconds).
create or replace function ambo.run_time(run_id uuid) returns timestamptz
language sql immutable parallel safe
return to_timestamp(
    ('x' || substr(translate(run_id::text, '-', ''), 1, 12))::bit(48)::bigint / 1000.0);
