-- The witness: what a transaction step leaves in a database other than Ambo's, in one commit with the user's writes.
-- Functions and table have a schema of their own; it is granted to nobody but its owner.

create schema if not exists ambo_witness;

-- `open`: a body runs, in a transaction that is not over; a row in this state that others can see was
-- committed by hand. `done`: the step took effect, with this output. `void`: it did not, and no worker of
-- this attempt or an earlier one may still make it do so.
create table if not exists ambo_witness.witness (
    run_id uuid not null,
    position text collate "C" not null,
    attempt integer not null,
    state text not null check (state in ('open', 'done', 'void')),
    xid xid8 not null,
    recorded_at timestamptz not null default clock_timestamp(),
    output json,
    primary key (run_id, position)
);
create index if not exists witness_recorded_at on ambo_witness.witness (recorded_at);

-- First statement of a step: takes the position. Where another worker's transaction has it, waits for its end; idle
-- transactions end by themselves. `done` comes with the output: the body is not to be run again.
create or replace function ambo_witness.open_step(
    p_run uuid, p_position text, p_attempt integer, p_worker bigint, p_idle_ms integer,
    out state text, out backend integer, out xid xid8, out output json)
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    v_attempt integer;
begin
    backend := pg_backend_pid();
    xid := pg_current_xact_id();
    insert into ambo_witness.witness as w (run_id, position, attempt, state, xid)
    values (p_run, p_position, p_attempt, 'open', open_step.xid)
    on conflict (run_id, position) do update
    set attempt = excluded.attempt, state = 'open', xid = excluded.xid, recorded_at = clock_timestamp()
    where w.state = 'void' and w.attempt < excluded.attempt;
    if found then
        state := 'open';
        perform set_config('application_name', 'ambo step of worker ' || p_worker, true),
                set_config('idle_in_transaction_session_timeout', p_idle_ms::text, true);
        return;
    end if;
    select w.state, w.attempt, w.output into state, v_attempt, output
    from ambo_witness.witness w where w.run_id = p_run and w.position = p_position;
    if state = 'void' then
        raise exception 'AMBO030: attempt % of run % ended this step; attempt % comes too late', v_attempt, p_run, p_attempt
            using errcode = 'AM030';
    elsif state = 'open' then
        raise exception 'AMBO031: the body of the transaction step at position % of run % committed by hand',
            p_position, p_run using errcode = 'AM031',
            hint = 'Part of its effect stands. Repair it, delete its row in ambo_witness.witness, then: ambo run retry.';
    end if;
end $$;

-- Last statement before its commit, which waits for the disk though the user's session does without: the run goes on after it.
create or replace function ambo_witness.close_step(p_run uuid, p_position text, p_output json) returns void
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
begin
    if current_setting('synchronous_commit') in ('off', 'local') then
        perform set_config('synchronous_commit', 'on', true);
    end if;
    update ambo_witness.witness w
    set state = 'done', output = p_output, recorded_at = clock_timestamp()
    where w.run_id = p_run and w.position = p_position and w.state = 'open' and w.xid = pg_current_xact_id();
    if not found then
        raise exception 'AMBO031: the body of the transaction step at position % of run % committed or rolled back by hand',
            p_position, p_run using errcode = 'AM031',
            hint = 'A body must not run COMMIT or ROLLBACK: Ambo commits it together with its witness.';
    end if;
end $$;

-- Before a run goes past a step that did not take effect: a tombstone, with which the witness of a worker that was
-- thought dead conflicts. Answers `done`, with the output, where that worker was faster.
create or replace function ambo_witness.void_step(
    p_run uuid, p_position text, p_attempt integer, out state text, out output json)
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    if current_setting('synchronous_commit') in ('off', 'local') then
        perform set_config('synchronous_commit', 'on', true);
    end if;
    insert into ambo_witness.witness as w (run_id, position, attempt, state, xid)
    values (p_run, p_position, p_attempt, 'void', pg_current_xact_id())
    on conflict (run_id, position) do update
    set attempt = greatest(w.attempt, excluded.attempt), recorded_at = clock_timestamp()
    where w.state = 'void';
    select w.state, w.output into state, output
    from ambo_witness.witness w where w.run_id = p_run and w.position = p_position;
    if state = 'open' then
        raise exception 'AMBO031: the body of the transaction step at position % of run % committed by hand',
            p_position, p_run using errcode = 'AM031',
            hint = 'Part of its effect stands. Repair it, delete its row in ambo_witness.witness, then: ambo run retry.';
    end if;
end $$;

-- What became of a step whose end is unknown: 'in progress', 'committed', 'by hand' or 'aborted'. Ends the backend
-- that may still hold it, where we may.
create or replace function ambo_witness.step_fate(p_backend integer, p_xid xid8, p_run uuid, p_position text)
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
    return coalesce((
        select case w.state when 'done' then 'committed' when 'open' then 'by hand' else 'aborted' end
        from ambo_witness.witness w where w.run_id = p_run and w.position = p_position), 'aborted');
end $$;

-- Whether the transaction is still the one that the step began: after a body that failed.
create or replace function ambo_witness.step_is_open(p_run uuid, p_position text) returns boolean
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
as $$
begin
    return exists (select from ambo_witness.witness w
                   where w.run_id = p_run and w.position = p_position and w.state = 'open'
                     and w.xid = pg_current_xact_id_if_assigned());
end $$;

-- Whether a body committed by hand: after its transaction was rolled back.
create or replace function ambo_witness.step_is_marked(p_run uuid, p_position text) returns boolean
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
as $$
begin
    return exists (select from ambo_witness.witness w
                   where w.run_id = p_run and w.position = p_position and w.state = 'open');
end $$;

-- Deletes witnesses older than this, up to p_limit of them. Only those of runs that have ended may go: choose an age
-- that no run reaches. Returns how many went.
create or replace function ambo_witness.prune(p_older_than interval, p_limit integer default 10000) returns bigint
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
declare
    v_count bigint;
begin
    delete from ambo_witness.witness d
    where d.ctid = any (array(
        select w.ctid from ambo_witness.witness w
        where w.recorded_at < now() - p_older_than and w.state <> 'open'
        order by w.recorded_at limit p_limit for update skip locked));
    get diagnostics v_count = row_count;
    return v_count;
end $$;

-- To a role that runs steps here and did not install this:
-- grant usage on schema ambo_witness to shop; grant execute on all functions in schema ambo_witness to shop;
revoke all on all tables in schema ambo_witness from public;
revoke all on all functions in schema ambo_witness from public;
