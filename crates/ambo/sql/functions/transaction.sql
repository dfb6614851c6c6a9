-- A transaction step: the user's SQL and its checkpoint in one commit.

-- First statement of the step's transaction. Leaves a marker that the last one removes: a marker that can be
-- seen from outside belongs to a body that committed by hand. Idle time is bounded by the lease, and
-- the application name lets the keeper end the transaction of a dead worker.
create or replace function ambo.begin_step(
    p_worker bigint, p_run uuid, p_attempt integer, p_position text, p_idle_ms integer,
    out backend integer, out xid xid8)
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
declare
    v_set text;
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
    -- Assignments, not statements: an expression costs a tenth.
    v_set := set_config('application_name', 'ambo step of worker ' || p_worker, true);
    v_set := set_config('idle_in_transaction_session_timeout', p_idle_ms::text, true);
end $$;

-- Last statement before its commit: locks the claim, so that nobody can take the run before the commit is
-- decided, removes the marker and records the checkpoint. In a snapshot older than the loss of the claim the
-- lock fails with 40001: the step is tried again and finds itself fenced in the new snapshot.
-- The run goes on when this has committed, and its next step is recorded by another session: the commit waits for the disk though
-- the user's session does without.
create or replace function ambo.finish_step(
    p_worker bigint, p_run uuid, p_attempt integer, p_position text, p_name text, p_output json,
    p_error json, p_elapsed_ms integer)
returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp set plan_cache_mode = force_generic_plan set jit = off set enable_seqscan = off
as $$
declare
    v_set text;
begin
    if current_setting('synchronous_commit') in ('off', 'local') then
        v_set := set_config('synchronous_commit', 'on', true);
    end if;
    with held as materialized (
        select from ambo.claim c
        where c.run_id = p_run and c.worker_id = p_worker and c.attempt = p_attempt
        for key share
    ), unmarked as (
        delete from ambo.transaction_marker m
        where m.run_id = p_run and m.position = p_position and m.xid = pg_current_xact_id()
        returning 1
    )
    insert into ambo.checkpoint (run_id, attempt, elapsed_ms, position, name, output, error)
    select p_run, p_attempt, p_elapsed_ms, p_position, p_name, p_output, p_error from held, unmarked;
    if not found then
        perform ambo.refuse_step(p_worker, p_run, p_attempt, p_position);
    end if;
end $$;

-- Last statement of a transaction that ends its run: the outcome in place of a checkpoint. To delete the claim is to lock it, and
-- in a snapshot older than its loss that fails with 40001, as above. What waits for the run is told.
create or replace function ambo.complete_run(
    p_worker bigint, p_run uuid, p_attempt integer, p_position text, p_output json, p_parent uuid)
returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp set plan_cache_mode = force_generic_plan set jit = off set enable_seqscan = off
as $$
declare
    v_set text;
begin
    if current_setting('synchronous_commit') in ('off', 'local') then
        v_set := set_config('synchronous_commit', 'on', true);
    end if;
    with unmarked as (
        delete from ambo.transaction_marker m
        where m.run_id = p_run and m.position = p_position and m.xid = pg_current_xact_id()
        returning 1
    ), ended as (
        delete from ambo.claim c
        where c.run_id = p_run and c.worker_id = p_worker and c.attempt = p_attempt
          -- Or the claim would be out of sight of whoever says what is wrong.
          and exists (select from unmarked)
        returning 1
    )
    insert into ambo.outcome (run_id, attempt, status, output)
    select p_run, p_attempt, 'succeeded', p_output from ended;
    if not found then
        perform ambo.refuse_step(p_worker, p_run, p_attempt, p_position);
    end if;
    perform ambo.drop_requests(array[p_run]);
    if pg_relation_size('ambo.wake') > 0 then
        delete from ambo.wake w where w.run_id = p_run;
    end if;
    perform ambo.tell_waiters(array[p_run]);
    if p_parent is not null then
        perform ambo.send_wakes(array[p_parent]);
    end if;
end $$;

-- Says why the last statement of a step recorded nothing.
create or replace function ambo.refuse_step(p_worker bigint, p_run uuid, p_attempt integer, p_position text)
returns void
language plpgsql volatile
as $$
begin
    if not exists (select from ambo.run r where r.id = p_run) then
        raise exception 'AMBO041: run % is not of this database', p_run using errcode = 'AM041',
            hint = 'A transaction step runs in the database that its run lives in; for another one, use a witness.';
    elsif exists (select from ambo.claim c
                  where c.run_id = p_run and c.worker_id = p_worker and c.attempt = p_attempt) then
        raise exception 'AMBO031: the body of the transaction step at position % of run % committed or rolled back by hand',
            p_position, p_run using errcode = 'AM031',
            hint = 'A body must not run COMMIT or ROLLBACK: Ambo commits it together with its checkpoint.';
    end if;
    raise exception 'AMBO030: worker % no longer holds run %', p_worker, p_run using errcode = 'AM030';
end $$;

-- What became of a step whose end is unknown: 'in progress', 'committed', 'by hand' or 'aborted'. Ends the
-- backend that may still hold it, where we may. The checkpoint is what decides: after a failover the xid may belong
-- to somebody else, or not have been given out yet. Of one that was to end its run under p_attempt, the outcome.
create or replace function ambo.step_fate(
    p_backend integer, p_xid xid8, p_run uuid, p_position text, p_attempt integer default null)
returns text
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
begin
    begin
        if pg_xact_status(p_xid) = 'in progress' then
            perform pg_terminate_backend(a.pid) from pg_stat_activity a
            where a.pid = p_backend and a.backend_xid = xid(p_xid)
              and pg_has_role(current_user, a.usesysid, 'member');
            return 'in progress';
        end if;
    exception when invalid_parameter_value then
        null;
    end;
    return case
        when exists (select from ambo.checkpoint c where c.run_id = p_run and c.position = p_position)
            then 'committed'
        when exists (select from ambo.outcome o
                     where o.run_id = p_run and o.attempt = p_attempt and o.status = 'succeeded')
            then 'committed'
        when exists (select from ambo.transaction_marker m where m.run_id = p_run and m.position = p_position)
            then 'by hand'
        else 'aborted'
    end;
end $$;

-- Whether the transaction is still the one that the step began: after a body that failed.
create or replace function ambo.step_is_open(p_run uuid, p_position text) returns boolean
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
as $$
begin
    return exists (select from ambo.transaction_marker m
                   where m.run_id = p_run and m.position = p_position
                     and m.xid = pg_current_xact_id_if_assigned());
end $$;

-- Whether a body committed by hand: after its transaction was rolled back.
create or replace function ambo.step_is_marked(p_run uuid, p_position text) returns boolean
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
as $$
begin
    return exists (select from ambo.transaction_marker m
                   where m.run_id = p_run and m.position = p_position);
end $$;
