-- Keys that mean something else than one run for good. All of it in the caller's transaction: two open transactions with one
-- key wait for each other, as with idempotency keys.
--
--   dedup     the key names its run while that is queued or running. Another enqueue gets that run, whatever its input; once
--             the run has ended, the key is free.
--   throttle  the key names its run for a period from its enqueue on, whatever became of it.
--   debounce  the run is delayed by a quiet period. Until that is over another enqueue gets that run, gives it its own input
--             and delays it anew, by `debounce_max` from its first enqueue at most. After it, the next enqueue is a new run.
--             By when it has to start moves with the delay.
create or replace function ambo.take_key_by(
    p_rule "char", p_workflow text, p_key text, p_input json, p_period interval, p_max interval, p_run_id uuid,
    out run_id uuid, out is_new boolean)
language plpgsql volatile
as $$
declare
    v_expires timestamptz;
    v_known uuid;
    v_until timestamptz;
    v_losses smallint;
    v_deadline timestamptz;
    v_pin text;
    v_due timestamptz;
    v_before timestamptz;
    v_round integer := 0;
begin
    loop
        -- A key of a run that has ended is free at once; this is when its row goes too.
        v_expires := clock_timestamp() + case when p_rule = 't' then p_period else interval '10 minutes' end;
        insert into ambo.run_key (workflow, key, rule, run_id, input_digest, expires_at)
        values (p_workflow, p_key, p_rule, p_run_id, '', v_expires) on conflict do nothing;
        is_new := found;
        if is_new then
            run_id := p_run_id;
            return;
        end if;
        select k.run_id, k.expires_at into v_known, v_until
        from ambo.run_key k where k.workflow = p_workflow and k.key = p_key and k.rule = p_rule;
        run_id := v_known;
        if not found then
            -- It was released meanwhile; in an old snapshot it stays out of sight.
            v_round := v_round + 1;
            if v_round > 10 then
                raise exception 'AMBO003: the key was taken or released while it was looked up; enqueue again'
                    using errcode = '40001';
            end if;
            continue;
        elsif p_rule = 't' then
            exit when v_until > clock_timestamp();
        elsif p_rule = 'd' then
            exit when not exists (select from ambo.outcome o where o.run_id = v_known)
                      and exists (select from ambo.run r where r.id = v_known);
        else
            -- The row in timer is what says that it has not started; whoever has locked it is waited for. Once its time is up at
            -- the latest, this enqueue starts it: the keeper passes over what is locked, and by a key that is busy it always is.
            delete from ambo.timer t
            where t.run_id = v_known and t.attempt = 0 and ambo.run_time(v_known) + p_max <= clock_timestamp()
            returning t.losses, t.deadline, t.pin, t.due_at into v_losses, v_deadline, v_pin, v_before;
            if found then
                update ambo.run r set input = p_input, start_by = r.start_by + make_interval(secs => extract(epoch from clock_timestamp() - v_before))
                where r.id = v_known;
                perform ambo.make_ready(array[v_known], array[0], array[v_losses], array[v_deadline], array[v_pin]);
                exit;
            end if;
            -- Locked first: what it was before is what nobody else changes any more.
            select t.due_at into v_before from ambo.timer t where t.run_id = v_known and t.attempt = 0 for update;
            update ambo.timer t
            set due_at = least(clock_timestamp() + p_period, ambo.run_time(v_known) + p_max), xid = pg_current_xact_id()
            where t.run_id = v_known and t.attempt = 0
            returning t.due_at into v_due;
            if found then
                update ambo.run r set input = p_input, start_by = r.start_by + make_interval(secs => extract(epoch from v_due - v_before))
                where r.id = v_known;
                exit;
            end if;
        end if;
        -- Free: it is ours if nobody was faster, and that run does not live again; then we look again.
        update ambo.run_key k set run_id = p_run_id, expires_at = v_expires
        where k.workflow = p_workflow and k.key = p_key and k.rule = p_rule and k.run_id = v_known and k.expires_at = v_until;
        if found then
            run_id := p_run_id;
            is_new := true;
            return;
        end if;
    end loop;
end $$;

-- A run that had ended is to live again: takes the key of which only one run lives at a time. The row is written though it names this run
-- already: an enqueue that found it ended, and waits for us, sees by that to look again.
create or replace function ambo.take_key_again(p_run uuid) returns void
language plpgsql volatile
set plan_cache_mode = force_generic_plan set jit = off set enable_seqscan = off
as $$
declare
    v_run record;
    v_holder uuid;
begin
    select r.workflow, r.key into v_run from ambo.run r where r.id = p_run and r.dedup;
    if not found then
        return;
    end if;
    loop
        v_holder := (ambo.take_key_by('d', v_run.workflow, v_run.key, null, null, null, p_run)).run_id;
        if v_holder <> p_run then
            raise exception 'AMBO034: run % cannot live again now: run % has its key, and only one of them lives at a time', p_run,
                v_holder using errcode = 'AM034', hint = 'Ask again when that one has ended.';
        end if;
        -- Not found: it has changed hands since.
        update ambo.run_key k set expires_at = clock_timestamp() + interval '10 minutes'
        where k.workflow = v_run.workflow and k.key = v_run.key and k.rule = 'd' and k.run_id = p_run;
        exit when found;
    end loop;
end $$;
