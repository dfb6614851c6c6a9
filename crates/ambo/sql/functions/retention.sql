-- How long what has ended is kept.

-- What holds, as PostgreSQL writes spans of time. `dead` is null: the dead are kept as long as other history.
create or replace function ambo.retention(out history text, out dead text, out keys text)
language sql stable security definer set search_path = pg_catalog, pg_temp
as $$
    select i.retention::text, i.dead_lifetime::text, i.key_lifetime::text from ambo.installation i
$$;

-- Sets it, from now on, for what has ended before too; what is not named stays.
--   history  what has ended leaves after this, a partition at a time
--   dead     the dead leave after this, sooner or later than other history; null: with it
--   keys     an idempotency key names its run for this long at least, if its enqueue says nothing else
create or replace function ambo.set_retention(settings jsonb) returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
declare
    i ambo.installation%rowtype;
    v_name text;
begin
    if settings is null or jsonb_typeof(settings) <> 'object' then
        raise exception 'AMBO005: retention is a JSON object, such as {"history": "30 days"}' using errcode = 'AM005';
    end if;
    select k into v_name from jsonb_object_keys(settings) k where k <> all ('{history,dead,keys}'::text[]) limit 1;
    if found then
        raise exception 'AMBO005: there is no retention of %', quote_literal(left(v_name, 100))
            using errcode = 'AM005', hint = 'There is one of history, dead and keys.';
    end if;
    select * into i from ambo.installation for update;
    if settings ? 'history' then
        i.retention := ambo.read_span(settings -> 'history', 'history', interval '100 years');
        if i.retention < interval '1 hour' then
            raise exception 'AMBO005: history is kept for an hour at least, not %', i.retention using errcode = 'AM005';
        end if;
    end if;
    if settings ? 'dead' then
        i.dead_lifetime := case when settings -> 'dead' <> 'null'
                                then ambo.read_span(settings -> 'dead', 'dead', interval '100 years') end;
    end if;
    if settings ? 'keys' then
        i.key_lifetime := ambo.read_span(settings -> 'keys', 'keys', interval '100 years');
    end if;
    update ambo.installation n
    set retention = justify_hours(i.retention), dead_lifetime = justify_hours(i.dead_lifetime),
        key_lifetime = justify_hours(i.key_lifetime);
end $$;
