-- A transaction step: the user's SQL and its checkpoint in one commit.

-- First statement of the step's transaction. Leaves a marker that the last one removes: a marker that can be
-- seen from outside belongs to a body that committed by hand. Idle time is bounded by the lease, and
-- the application name lets the keeper end the transaction of a dead worker.
create or replace function ambo.begin_step(
    p_worker bigint, p_run uuid, p_attempt integer, p_position text, out backend integer, out xid xid8)
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
begin
    backend := pg_backend_pid();
    xid := pg_current_xact_id();
    insert into ambo.transaction_marker (run_id, position, xid) values (p_run, p_position, xid)
    on conflict do nothing;
    if not found then
        raise exception 'AMBO031: the body of the transaction step at position % of run % committed by hand',
            p_position, p_run using errcode = 'AM031',
            hint = 'Part of its effect stands without a checkpoint. Repair it, then: ambo run retry.';
    end if;
    perform set_config('application_name', 'ambo step of worker ' || p_worker, true),
            set_config('idle_in_transaction_session_timeout',
                (select (extract(epoch from i.lease) * 1000)::bigint::text from ambo.installation i), true);
end $$;

-- Last statement before its commit: locks the claim, so that nobody can take the run before the commit is
-- decided, removes the marker and records the checkpoint. In a snapshot older than the loss of the claim the
-- lock fails with 40001, which is the same answer.
create or replace function ambo.finish_step(
    p_worker bigint, p_run uuid, p_attempt integer, p_position text, p_name text, p_output json,
    p_error json, p_elapsed_ms integer)
returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
begin
    delete from ambo.transaction_marker m
    where m.run_id = p_run and m.position = p_position and m.xid = pg_current_xact_id();
    if not found then
        raise exception 'AMBO031: the body of the transaction step at position % of run % committed by hand',
            p_position, p_run using errcode = 'AM031',
            hint = 'A body must not run COMMIT or ROLLBACK: Ambo commits it together with its checkpoint.';
    end if;
    perform from ambo.claim c
    where c.run_id = p_run and c.worker_id = p_worker and c.attempt = p_attempt
    for key share;
    if not found then
        raise exception 'AMBO030: worker % no longer holds run %', p_worker, p_run using errcode = 'AM030';
    end if;
    insert into ambo.checkpoint (run_id, attempt, elapsed_ms, position, name, output, error)
    values (p_run, p_attempt, p_elapsed_ms, p_position, p_name, p_output, p_error);
end $$;

-- What became of a step whose commit was not answered: 'in progress', 'committed' or 'aborted'. Ends the backend
-- that may still hold it, where we may.
create or replace function ambo.step_fate(p_backend integer, p_xid xid8) returns text
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
begin
    if pg_xact_status(p_xid) = 'in progress' then
        perform pg_terminate_backend(a.pid) from pg_stat_activity a
        where a.pid = p_backend and a.backend_xid = xid(p_xid)
          and pg_has_role(current_user, a.usesysid, 'member');
        return 'in progress';
    end if;
    return coalesce(pg_xact_status(p_xid), 'aborted');
end $$;

-- Whether the transaction is still the one that the step began: after a body that failed.
create or replace function ambo.step_is_open(p_run uuid, p_position text) returns boolean
language sql stable security definer set search_path = pg_catalog, pg_temp
as $$
    select exists (select from ambo.transaction_marker m
                   where m.run_id = p_run and m.position = p_position
                     and m.xid = pg_current_xact_id_if_assigned())
$$;
