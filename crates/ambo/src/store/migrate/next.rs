//! A schema of the version to come, for the tests of upgrades until there is one: a migration that changes a table that every
//! run goes through, and functions with a parameter more.

/// Whether this process is a program of the version to come.
pub(super) fn is_wanted() -> bool {
    std::env::var_os("AMBO_NEXT_VERSION").is_some()
}

pub(super) const MIGRATION: &str = "
alter table ambo.run add column shade text;
alter table ambo.ready add column shade text;
create index ready_shade on ambo.ready (shade) where shade is not null;
";

/// A function keeps its signature: a new need is a new parameter with a default.
pub(super) const FUNCTIONS: &str = "
drop function if exists ambo.hold_worker(bigint);
create or replace function ambo.hold_worker(p_worker bigint, p_shade text default null) returns boolean
language sql volatile security definer set search_path = pg_catalog, pg_temp
as $$ select pg_try_advisory_lock(hashtext('ambo.worker'), p_worker::integer) $$;
";
