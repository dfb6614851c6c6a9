-- Wake-ups are hints, sent only when somebody sleeps: NOTIFY makes all commits of the instance take turns.
-- A sleeper holds 16 shared session locks; this probes one of them, chosen by backend so that two probes
-- hardly ever meet, and gives it back within the same expression, where no cancel can come between.
-- `set ambo.notify = off` for sessions that use PREPARE TRANSACTION, which forbids NOTIFY.
create or replace function ambo.is_awaited(p_lock integer) returns boolean
language sql volatile
return case when pg_try_advisory_lock(p_lock, pg_backend_pid() & 15)
            then not pg_advisory_unlock(p_lock, pg_backend_pid() & 15)
            else true end;

create or replace function ambo.wake() returns void
language plpgsql volatile
as $$
begin
    if ambo.is_awaited(hashtext('ambo.sleep'))
       and current_setting('ambo.notify', true) is distinct from 'off'
    then
        perform pg_notify('ambo.wake', '');
    end if;
end $$;
