-- Roles: who may execute what. Tables are granted to nobody; a role is what it may call.
--
-- producer: enqueues, and reads the end and the events of runs whose ids it has. An id has 62 random bits: who knows it was
-- told it. worker: what a worker process does, and the sessions of its transaction steps. observer: reads everything,
-- payloads too, and changes nothing. operator: that, and cancels, retries, pauses, schedules, sends signals.

-- Every function, and the roles that may execute it; those without one are called by other functions. A test fails when
-- a function is missing here.
create or replace function ambo.privileges() returns table (function_name text, roles text[])
language sql immutable
as $$
    select p.function_name, string_to_array(p.roles, ' ') from (values
        ('schema_version', 'producer worker observer operator'),
        ('database_time', 'producer worker observer operator'),
        -- Runs into the database.
        ('enqueue', 'producer worker operator'),
        ('enqueue_workflow', 'producer worker operator'),
        ('enqueue_workflows', 'producer worker operator'),
        ('enqueue_fan_in', 'producer worker operator'),
        -- One's own handle.
        ('run_result', 'producer worker observer operator'),
        ('outcomes', 'producer worker observer operator'),
        ('read_events', 'producer worker observer operator'),
        ('list_events', 'producer worker observer operator'),
        ('present_event', 'producer worker observer operator'),
        -- To another run.
        ('send_signal', 'worker operator'),
        ('send_update', 'worker operator'),
        ('cancel_run', 'worker operator'),
        -- A worker.
        ('register_worker', 'worker'), ('declare_workflows', 'worker'), ('hold_worker', 'worker'), ('heartbeat', 'worker'), ('leave', 'worker'),
        ('claim', 'worker'), ('claim_queue', 'worker'), ('claimed_runs', 'worker'), ('arrivals', 'worker'), ('claims_of', 'worker'),
        ('find_lanes', 'worker'), ('sweep', 'worker'),
        ('history', 'worker'), ('hand_back', 'worker'), ('start', 'worker'),
        ('flush', 'worker'), ('flush_all', 'worker'), ('recorded', 'worker'),
        ('begin_step', 'worker'), ('finish_step', 'worker'), ('complete_run', 'worker'), ('step_fate', 'worker'), ('step_is_open', 'worker'),
        ('step_is_marked', 'worker'), ('next_signal', 'worker'), ('take_wake', 'worker'), ('came_for', 'worker'), ('cancel_reason', 'worker'),
        -- The keeper, which any worker may be.
        ('bury_worker', 'worker'), ('fire_timers', 'worker'), ('expire_keys', 'worker'),
        ('expire_runs', 'worker'), ('expire_dead', 'worker'), ('expire_heads', 'worker'), ('begin_runs', 'worker'),
        ('object_horizon', 'worker'), ('kept_objects', 'worker'),
        ('pins', 'worker'), ('release_pins', 'worker'), ('end_unclaimed', 'worker'), ('end_children', 'worker'), ('make_partitions', 'worker'), ('drop_partition', 'worker'),
        ('due_schedules', 'worker'), ('tick_schedule', 'worker'), ('stop_schedule', 'worker'),
        -- What there is.
        ('list_runs', 'observer operator'), ('show_run', 'observer operator'), ('show_steps', 'observer operator'),
        ('list_signals', 'observer operator'),
        ('why_run', 'observer operator'), ('blocked_groups', 'observer operator'),
        ('list_queues', 'observer operator'), ('list_groups', 'observer operator'), ('list_workers', 'observer operator'),
        ('list_schedules', 'observer operator'), ('list_workflows', 'observer operator'),
        ('dead_letters', 'observer operator'), ('dead_errors', 'observer operator'), ('vital_signs', 'observer operator'),
        ('privileges', 'observer operator'), ('retention', 'observer operator'),
        -- What is to be done about it.
        ('act_on_runs', 'operator'), ('retry_run', 'operator'), ('rewind_run', 'operator'), ('fork_run', 'operator'), ('drop_signal', 'operator'),
        ('create_queue', 'operator'), ('pause_queue', 'operator'), ('drain_queue', 'operator'), ('purge_queue', 'operator'),
        ('set_queue', 'operator'), ('set_group', 'operator'), ('unblock_group', 'operator'),
        ('purge_dead', 'operator'), ('redrive_dead', 'operator'), ('set_retention', 'operator'), ('adopt', 'operator'),
        ('set_schedule', 'operator'), ('pause_schedule', 'operator'), ('delete_schedule', 'operator'),
        ('trigger_schedule', 'operator'), ('backfill_schedule', 'operator'),
        -- Parts of the others.
        ('check_installation', ''), ('end_holders', ''), ('graces_over', ''), ('check_terms', ''), ('given_input', ''), ('enqueue_one_by_one', ''), ('envelope_digests', ''), ('lead_groups', ''), ('is_same_payload', ''),
        ('make_ready', ''), ('payload_digests', ''), ('read_setting', ''), ('read_span', ''), ('refuse_queue', ''), ('spend', ''), ('tokens', ''),
        ('gather_members', ''), ('living_member', ''), ('wait_for_members', ''), ('cancel_children', ''), ('cancel_one', ''), ('refuse_draining', ''),
        ('readmit_run', ''), ('refuse_living', ''), ('revoke_defaults', ''), ('roles', ''), ('refuse_terms', ''), ('claim_piece', ''), ('refuse_undone', ''), ('refuse_unknown', ''), ('take_key_by', ''), ('awaited_runs', ''), ('standing_partition', ''), ('enqueue_tick', ''), ('forget', ''), ('give_attributes', ''), ('grant_privileges', ''),
        ('cron_fault', ''), ('input_digest', ''), ('is_awaited', ''), ('is_cron_field', ''), ('is_forged', ''), ('is_limited', ''), ('is_rare', ''), ('is_request', ''), ('lane', ''), ('lanes', ''), ('has_no_room', ''), ('runs_counted', ''), ('limit_reached', ''), ('lock_holders', ''), ('held_by', ''), ('lateness', ''), ('unseen_xids', ''),
        ('drop_requests', ''), ('leave_wakes', ''), ('list_query', ''),
        ('live_runs', ''), ('live_state', ''), ('new_run_id', ''), ('park', ''), ('pin_of', ''), ('publish', ''),
        ('read_position', ''), ('refuse_enqueue', ''), ('refuse_position', ''), ('refuse_schedule', ''), ('refuse_step', ''),
        ('restore_attributes', ''), ('run_id_floor', ''), ('run_time', ''), ('send_hint', ''), ('send_wakes', ''), ('set_attributes', ''),
        ('start_children', ''), ('tags', ''), ('take_changed', ''), ('take_key', ''), ('take_key_again', ''), ('tell_waiters', ''), ('wake', ''), ('wake_parents', ''), ('wake_up', '')
    ) as p (function_name, roles)
$$;

-- The version of the schema, for whoever connects.
-- `tables_version`: what the tables have come to in the midst of an upgrade. `serves_from`: the oldest program that it serves.
create or replace function ambo.schema_version(out version integer, out tables_version integer, out serves_from integer)
language sql stable security definer set search_path = pg_catalog, pg_temp
as $$ select i.schema_version, i.tables_version, i.serves_from from ambo.installation i $$;

-- The four roles. Roles belong to the whole server, so each installation has its own by name.
create or replace function ambo.roles() returns text[]
language sql immutable
return array['ambo' || '_producer', 'ambo' || '_worker', 'ambo' || '_observer', 'ambo' || '_operator'];

-- Makes the roles, where we may, and grants them what they may execute, no more. Where we may not make them, somebody who may
-- does so, and the owner of the schema calls this again. Returns the roles that
-- there are.
create or replace function ambo.grant_privileges() returns text[]
language plpgsql volatile set search_path = pg_catalog, pg_temp
as $$
declare
    v_name text;
    v_functions text;
    v_granted text[] := '{}';
begin
    perform pg_advisory_xact_lock(hashtext('ambo.migrate'));
    foreach v_name in array ambo.roles() loop
        begin
            if not exists (select from pg_roles r where r.rolname = v_name) then
                execute format('create role %I nologin', v_name);
            end if;
        exception
            -- Another database of this server was faster.
            when duplicate_object or unique_violation then null;
            when insufficient_privilege then continue;
        end;
        select string_agg(p.oid::regprocedure::text, ', ') into v_functions
        from pg_proc p join ambo.privileges() g on g.function_name = p.proname
        where p.pronamespace = 'ambo'::regnamespace and substr(v_name, length('ambo') + 2) = any (g.roles);
        execute format('revoke all on all functions in schema %I from %I', 'ambo', v_name);
        execute format('grant usage on schema %I to %I', 'ambo', v_name);
        execute format('grant execute on function %s to %I', v_functions, v_name);
        v_granted := v_granted || v_name;
    end loop;
    return v_granted;
end $$;
