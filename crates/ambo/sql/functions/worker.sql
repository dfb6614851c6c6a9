-- Workers: registration under an id never used before, one heartbeat a second, and leaving.

-- The clock that decides.
create or replace function ambo.database_time() returns timestamptz
language sql volatile security definer set search_path = pg_catalog, pg_temp
as $$ select clock_timestamp() $$;

-- Refuses a database that was restored or cloned until `ambo adopt` has been run on it.
create or replace function ambo.check_installation() returns void
language plpgsql stable security definer set search_path = pg_catalog, pg_temp
as $$
begin
    if not exists (
        select from ambo.installation i, pg_control_system() s, pg_database d
        where i.system_identifier = s.system_identifier and i.database_oid = d.oid
          and d.datname = current_database())
    then
        raise exception 'AMBO011: this database was restored or cloned from the one that Ambo was installed in'
            using errcode = 'AM011',
                hint = 'Its runs may still be running elsewhere. If they are not: ambo adopt.';
    end if;
end $$;

create or replace function ambo.register_worker(
    p_name text, p_version text, p_pid integer, p_queues text[], p_workflows text[], p_session boolean,
    p_pinned boolean default false, p_max_in_flight integer default null, out worker_id bigint)
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
begin
    perform ambo.check_installation();
    perform ambo.create_queue(q) from unnest(p_queues) q
    where not exists (select from ambo.queue k where k.name = q);
    worker_id := nextval('ambo.worker_seq');
    insert into ambo.worker (id, name, version, pid, queues, workflows, session, pinned, max_in_flight)
    values (worker_id, p_name, p_version, p_pid, p_queues, p_workflows, p_session, p_pinned, p_max_in_flight);
    insert into ambo.heartbeat (worker_id, at) values (worker_id, pg_catalog.clock_timestamp());
end $$;

-- The session lock that shows at once when a worker's connection died.
create or replace function ambo.hold_worker(p_worker bigint) returns boolean
language sql volatile security definer set search_path = pg_catalog, pg_temp
as $$ select pg_try_advisory_lock(hashtext('ambo.worker'), p_worker::integer) $$;

-- One call a second. Renews the lease and, if this worker is the keeper or finds none alive, the keepership.
-- `alive` is false when the worker was declared dead: it drops all that it holds and registers anew. `look` says that
-- something may have come for one of its runs.
-- `managed`: of the queues that it serves, those that are claimed by claim_queue.
-- To the keeper it also says which workers are dead, when to call again if that is sooner (`next_beat_ms`: a tick is due then, or one
-- that is silent may be dead), and where the looks for due timers go on (`timer_mark`, see fire_timers): where
-- it is itself, or where the keeper before it was; and whether the grace of a cancel is over that was not by p_graces_after (`graces_over`,
-- see end_unclaimed).
create or replace function ambo.heartbeat(
    p_worker bigint, p_in_flight integer, p_draining boolean, p_timer_mark json default null,
    p_graces_after timestamptz default null,
    out alive boolean, out look boolean, out is_keeper boolean, out dead bigint[],
    out timer_mark json, out lease_ms integer, out now_us bigint, out schedules_due boolean,
    out next_beat_ms bigint, out managed text[], out graces_over boolean)
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
declare
    v_now timestamptz := clock_timestamp();
    -- Signs of life are dated by the server's own clock, which a test cannot move.
    v_alive timestamptz := pg_catalog.clock_timestamp();
    v_keeper ambo.keeper%rowtype;
    v_server text;
    v_lease interval := (select i.lease from ambo.installation i);
    v_silence constant interval := interval '2.5 seconds';
    -- By so much the time of a beat may be ahead of ours though nobody touched the clock.
    v_skew constant interval := interval '1 second';
    r record;
begin
    is_keeper := false;
    lease_ms := extract(epoch from v_lease) * 1000;
    now_us := extract(epoch from v_now) * 1000000;
    update ambo.heartbeat h set at = v_alive, in_flight = p_in_flight, draining = p_draining
    where h.worker_id = p_worker
      and exists (select from ambo.worker w where w.id = p_worker and w.dead_at is null);
    alive := found;
    if not alive then
        return;
    end if;
    look := pg_relation_size('ambo.cancel_request') > 0 or pg_relation_size('ambo.wake') > 0;
    managed := array(select q.name from ambo.queue q join ambo.worker w on q.name = any (w.queues)
                     where w.id = p_worker and q.managed);
    select * into v_keeper from ambo.keeper for update skip locked;
    if not found or (p_draining and v_keeper.worker_id is distinct from p_worker) then
        return;
    end if;
    -- A keeper that has missed a beat is relieved: two who both believe to be it do no harm, and the dead wait for one that acts. One
    -- whose beat is to come has beaten before the clock went back.
    if v_keeper.worker_id <> p_worker and v_keeper.renewed_at > v_alive - v_silence / 2
       and v_keeper.renewed_at <= v_alive + v_skew
    then
        return;
    end if;
    is_keeper := true;
    -- Signs of life that are to come count from now on: who lives beats within a second.
    update ambo.heartbeat h set at = v_alive
    where h.worker_id = any (array(
        select f.worker_id from ambo.heartbeat f where f.at > v_alive + v_skew for update skip locked));
    v_keeper.grace_until := least(v_keeper.grace_until, v_alive + v_lease);
    graces_over := ambo.graces_over(p_graces_after, v_now);
    schedules_due := exists (select from ambo.schedule s where s.next_at <= v_now and not s.paused);
    -- A restarted or promoted server has lost all session locks: nobody is dead for one lease.
    v_server := pg_postmaster_start_time()::text || ' ' || left(pg_walfile_name(pg_current_wal_lsn()), 8);
    if v_keeper.server = v_server then
        timer_mark := case when v_keeper.worker_id = p_worker then coalesce(p_timer_mark, v_keeper.timer_mark)
                           else v_keeper.timer_mark end;
    elsif v_keeper.server <> '' then
        -- Nor does the snapshot in the mark mean anything on a server that was promoted.
        v_keeper.grace_until := v_alive + v_lease;
    end if;
    update ambo.keeper k
    set worker_id = p_worker, renewed_at = v_alive, server = v_server, grace_until = v_keeper.grace_until,
        timer_mark = heartbeat.timer_mark,
        epoch = k.epoch + (k.worker_id is distinct from p_worker)::integer;
    dead := array(select w.id from ambo.worker w where w.dead_at is not null);
    if v_alive > v_keeper.grace_until then
        for r in
            select h.worker_id, h.at, w.session from ambo.heartbeat h join ambo.worker w on w.id = h.worker_id
            where w.dead_at is null and h.at < v_alive - v_silence / 2
        loop
            if r.at >= v_alive - v_silence then
                if r.session then
                    next_beat_ms := least(next_beat_ms, (extract(epoch from r.at + v_silence - v_alive) * 1000)::bigint + 1);
                end if;
            elsif r.at < v_alive - v_lease
               or (r.session and pg_try_advisory_xact_lock(hashtext('ambo.worker'), r.worker_id::integer))
            then
                dead := dead || r.worker_id;
            end if;
        end loop;
    end if;
    -- A schedule whose time is past waits for something else than the time.
    next_beat_ms := least(next_beat_ms, (
        select (extract(epoch from min(s.next_at) - v_now) * 1000)::bigint
        from ambo.schedule s where s.next_at > v_now and not s.paused));
end $$;

-- Of the runs in a worker's memory, those that somebody asked to cancel and those for which something has come: what a
-- notification should have told. `undo_by_us`: by when those that are cancelled have ended. By key: neither table is walked.
create or replace function ambo.came_for(
    p_runs uuid[], out cancelled uuid[], out woken uuid[], out undo_by_us bigint[])
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp set plan_cache_mode = force_generic_plan set jit = off
set enable_seqscan = off set enable_bitmapscan = off set enable_hashjoin = off set enable_mergejoin = off
as $$
begin
    select coalesce(array_agg(q.run_id), '{}'),
           coalesce(array_agg((extract(epoch from q.undo_by) * 1000000)::bigint), '{}')
    into cancelled, undo_by_us
    from unnest(p_runs) r (id) cross join lateral (
        select q.run_id, q.undo_by from ambo.cancel_request q where q.run_id = r.id offset 0) q;
    woken := array(
        select w.run_id from unnest(p_runs) r (id) cross join lateral (
            select w.run_id from ambo.wake w where w.run_id = r.id offset 0) w);
end $$;

-- A worker leaves: what it still holds is handed back, without a loss counted; what it knows of, and what it does not.
create or replace function ambo.leave(p_worker bigint, p_runs uuid[] default '{}', p_attempts integer[] default '{}') returns integer
language plpgsql volatile security definer set search_path = pg_catalog, pg_temp
as $$
declare
    v_count integer;
    v_rest record;
begin
    -- Waits for a claim or flush that is still under way; none comes after.
    perform pg_advisory_xact_lock(hashtext('ambo.fence'), p_worker::integer);
    v_count := ambo.hand_back(p_worker, p_runs, p_attempts);
    v_rest := ambo.claims_of(p_worker, 0);
    v_count := v_count + ambo.hand_back(p_worker, v_rest.runs, v_rest.attempts);
    if v_rest.next_page is null then
        delete from ambo.heartbeat h where h.worker_id = p_worker;
        delete from ambo.worker w where w.id = p_worker;
    else
        -- The keeper walks over the rest.
        update ambo.worker w set dead_at = clock_timestamp() where w.id = p_worker;
    end if;
    update ambo.keeper k set renewed_at = '-infinity' where k.worker_id = p_worker;
    return v_count;
end $$;

-- The piece of ambo.claim from a page on. No index leads from a worker to its claims, which would cost each run; whoever looks for them walks over the
-- table, and over what is dead in it and cannot be vacuumed, gigabytes behind a snapshot that is old enough. So it goes by pieces of
-- 32 MB, well below 100 ms each, with heartbeats between them.
create or replace function ambo.claim_piece(p_page bigint, out first tid, out upto tid, out next_page bigint)
language sql stable
return (format('(%s,0)', p_page)::tid, format('(%s,0)', p_page + 4096)::tid,
        case when (p_page + 4096) * current_setting('block_size')::bigint < pg_relation_size('ambo.claim') then p_page + 4096 end);

-- The claims of a worker in a piece of the table, to compare with what it knows after the answer to a claim was lost. `next_page`
-- is null at the end.
create or replace function ambo.claims_of(
    p_worker bigint, p_page bigint, out runs uuid[], out attempts integer[], out next_page bigint)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp set plan_cache_mode = force_generic_plan set jit = off set enable_seqscan = off
as $$
declare
    v_first tid;
    v_upto tid;
begin
    select p.first, p.upto, p.next_page into v_first, v_upto, next_page from ambo.claim_piece(p_page) p;
    select coalesce(array_agg(c.run_id), '{}'), coalesce(array_agg(c.attempt), '{}') into runs, attempts
    from ambo.claim c where c.ctid >= v_first and c.ctid < v_upto and c.worker_id = p_worker;
end $$;
