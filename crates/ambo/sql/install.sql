-- After tables and functions: who this database is, and nobody may touch anything unless granted.
insert into ambo.installation (schema_version, tables_version, serves_from, system_identifier, database_oid)
select 0, 0, 0, s.system_identifier, d.oid
from pg_control_system() s, pg_database d
where d.datname = current_database()
on conflict do nothing;
revoke all on all tables in schema ambo from public;
revoke all on all sequences in schema ambo from public;
revoke all on all functions in schema ambo from public;
select ambo.grant_privileges();
