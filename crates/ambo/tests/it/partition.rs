//! Partitions: made ahead, dropped past the retention, and the runs that outlive them carried over.

use ambo::{Ctx, Error, Failure, Result, RunId, Worker};

use crate::harness::{Database, database};

/// A partition of forty days ago, with one run that ended then and one that is still waiting.
pub(crate) const OLD_PARTITION: &str = "
    do $$
    declare
        v_from timestamptz := date_trunc('day', now(), 'UTC') - interval '41 days';
        v_to timestamptz := (select min(starts_at) from ambo.history_partition);
        v_table text;
        v_name text;
    begin
        foreach v_table in array array['run', 'outcome', 'child', 'attribute', 'checkpoint', 'signal', 'event'] loop
            v_name := v_table || '_' || to_char(v_from at time zone 'UTC', 'YYYYMMDD_HH24MI');
            execute format('alter table ambo.%I detach partition ambo.%I', v_table, v_table || '_carried');
            execute format('alter table ambo.%I attach partition ambo.%I for values from (minvalue) to (%L)',
                v_table, v_table || '_carried', ambo.run_id_floor(v_from));
            execute format('create table ambo.%I (like ambo.%I including all)', v_name, v_table);
            execute format('alter table ambo.%I attach partition ambo.%I for values from (%L) to (%L)',
                v_table, v_name, ambo.run_id_floor(v_from), ambo.run_id_floor(v_to));
        end loop;
        -- It ends where the retention began; the first regular partition follows.
        insert into ambo.history_partition values (v_from, v_to - interval '35 days');
        insert into ambo.run (id, attempts_max, priority, workflow, queue, input)
        select ambo.run_id_floor(v_from + n * interval '1 hour'), 5, 0, 'wait', 'default', to_json(n)
        from generate_series(1, 2) n;
        insert into ambo.checkpoint (run_id, attempt, elapsed_ms, position, name, output)
        select r.id, 1, 0, '1', 'first', '40' from ambo.run r;
        insert into ambo.outcome (run_id, attempt, status) select min(r.id::text)::uuid, 1, 'succeeded' from ambo.run r;
        insert into ambo.ready (seq, xid, run_id, attempt, losses, priority, queue, workflow)
        select nextval('ambo.ready_seq'), pg_current_xact_id(), max(r.id::text)::uuid, 1, 0, 0, 'default', 'wait'
        from ambo.run r;
    end $$";

async fn wait(mut cx: Ctx<'_>, _: i64) -> Result<i64> {
    let first = cx.step("first", || async { Ok::<i64, ambo::Error>(-1) }).await?;
    Ok(cx.step("second", || async { Ok::<_, ambo::Error>(first + 2) }).await?)
}

async fn partitions(db: &Database) -> i64 {
    db.number("select count(*) from pg_inherits where inhparent = 'ambo.run'::regclass").await
}

/// Chores may take long: what holds up one of them is not to cost the keeper its life.
#[tokio::test(flavor = "multi_thread")]
async fn the_heartbeat_does_not_wait_for_the_chores_and_a_drain_ends_them() {
    let db = database().await;
    let endless = "create or replace function ambo.make_partitions() returns integer language plpgsql as
        $$ begin perform pg_sleep(50); return 0; end $$";
    db.sql.batch_execute(endless).await.unwrap();
    let worker = Worker::builder(&db.client).workflow_fn("wait", wait).start().await.unwrap();
    let at_work = "select count(*) from pg_stat_activity
        where datname = current_database() and application_name = 'ambo worker chores' and state = 'active'";
    db.until(&format!("select ({at_work}) = 1")).await;
    db.heartbeats(3).await;
    assert_eq!(db.number(at_work).await, 1);
    worker.drain(std::time::Duration::ZERO).await;
    assert_eq!(db.number(at_work).await, 0, "the worker has left and its chores go on");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_partition_past_retention_is_dropped_and_its_living_run_carried_over() {
    let db = database().await;
    db.sql.batch_execute(OLD_PARTITION).await.unwrap();
    let before = partitions(&db).await;
    let living: uuid::Uuid = db.sql.query_one("select run_id from ambo.ready", &[]).await.unwrap().get(0);

    db.until("select ambo.drop_partition()").await;
    assert_eq!(partitions(&db).await, before - 1);
    assert_eq!(db.number("select count(*) from ambo.run").await, 1, "the run that had ended is gone");
    assert_eq!(db.number("select count(*) from ambo.run_carried").await, 1);
    assert_eq!(db.number("select count(*) from ambo.checkpoint_carried").await, 1);
    assert!(!db.sql.query_one("select ambo.drop_partition()", &[]).await.unwrap().get::<_, bool>(0));

    // It goes on from its checkpoint, and its outcome finds its place.
    let _worker = Worker::builder(&db.client).workflow_fn("wait", wait).start().await.unwrap();
    let handle = db.client.handle::<ambo::Untyped>(RunId::from(living));
    let result: Result<i64, Failure<ambo::Error>> = handle.result_as().await;
    assert_eq!(result.unwrap(), 42);
    assert_eq!(db.number("select count(*) from ambo.outcome_carried").await, 1);
}

/// An open transaction has enqueued: the lock on the table of runs is not to be had. The keeper comes back for it soon, not in a minute.
#[tokio::test(flavor = "multi_thread")]
async fn a_partition_that_was_in_use_is_dropped_soon_after() {
    let db = database().await;
    db.sql.batch_execute(&old_partition(41, 35)).await.unwrap();
    let user = crate::harness::connect(&db.url).await;
    user.batch_execute("begin; select ambo.enqueue_workflow('wait')").await.unwrap();
    let _worker = Worker::builder(&db.client).workflow_fn("wait", wait).start().await.unwrap();
    let tried = "select exists (select from pg_locks where relation = 'ambo.run'::regclass and not granted)";
    db.until(tried).await;
    user.batch_execute("rollback").await.unwrap();
    let stands = "select count(*) = 0 from ambo.history_partition where ends_at < now() - interval '30 days'";
    db.until(stands).await;
}

/// The partition alone, from so many days ago to so many.
fn old_partition(from: u32, to: u32) -> String {
    let (partition, _) = OLD_PARTITION.split_once("insert into ambo.run (").unwrap();
    let days = |days: u32| format!("{days} days");
    format!("{partition} end $$").replace("35 days", &days(to)).replace("41 days", &days(from))
}

#[ambo::workflow]
async fn leaf(_cx: Ctx<'_>, _: ()) -> Result<i64> {
    Ok(0)
}

#[ambo::workflow]
async fn gathers(mut cx: Ctx<'_>, _: ()) -> Result<i64> {
    let child = cx.child::<leaf>(()).start()?;
    Ok(cx.result_of(child).await? + 2)
}

/// Runs of forty-one days ago, by the hour, and what became of them: who lives has no end, who was started has a parent.
const OLD_FAMILIES: &str = "
    create function old(n bigint) returns uuid language sql
        return ambo.run_id_floor(date_trunc('day', now(), 'UTC') - interval '41 days' + n * interval '1 hour');
    create temporary table old_run as select * from (values
        (1, 'gathers', null, true, 'lives'), (2, 'leaf', 1, true, 'ended'), (3, 'leaf', 1, false, 'ended'), (4, 'leaf', 2, true, 'ended'),
        (5, 'continued', null, true, 'lives'), (6, 'leaf', 5, true, 'ended'), (7, 'leaf', 5, true, 'ended'),
        (8, 'gathers', null, true, 'ended'), (9, 'leaf', 8, true, 'ended'),
        (10, 'fan-in', null, true, 'lives'), (11, 'leaf', 10, true, 'ended'),
        (12, 'gathers', null, true, 'dead'), (13, 'leaf', 12, true, 'ended')) r (n, workflow, parent, attached, fate);
    insert into ambo.run (id, attempts_max, priority, workflow, queue, input, parent_id)
    select old(n), 5, 0, workflow, 'default', 'null', case when attached then old(parent) end from old_run;
    insert into ambo.child (run_id, child_id) select old(parent), old(n) from old_run where parent is not null;
    insert into ambo.outcome (run_id, attempt, status, output, ended_at)
    select old(n), 1, (case fate when 'ended' then 'succeeded' else fate end)::ambo.status, '40', now() - interval '40 days'
    from old_run where fate <> 'lives';
    insert into ambo.timer (run_id, due_at, attempt, losses)
    select old(n), case n when 1 then now() else 'infinity' end, 1, 0 from old_run where fate = 'lives';
    insert into ambo.checkpoint (run_id, attempt, elapsed_ms, position, name, output) values
        (old(1), 1, 0, '1', 'ambo:child leaf', to_json(old(2))),
        (old(2), 1, 0, '1', 'a step', '1'),
        (old(5), 1, 0, '0.0', 'ambo:continued', '{}'),
        (old(5), 1, 0, '1', 'ambo:child leaf', to_json(old(7)));
    insert into ambo.event (run_id, key, number, value) values (old(2), 'status', 1, '1');
    update ambo.installation set dead_lifetime = '60 days'";

#[tokio::test(flavor = "multi_thread")]
async fn what_a_living_run_may_still_ask_for_is_carried_over_with_it() {
    let db = database().await;
    db.sql.batch_execute(&old_partition(41, 35)).await.unwrap();
    db.sql.batch_execute(OLD_FAMILIES).await.unwrap();
    let kept = async || -> Vec<i32> {
        let sql = "select coalesce(array_agg(n order by n), '{}') from old_run where exists (select from ambo.run where id = old(n))";
        db.sql.query_one(sql, &[]).await.unwrap().get(0)
    };
    db.until("select ambo.drop_partition()").await;
    // Not what is detached, what an ended run started, and what one started before it continued as new.
    assert_eq!(kept().await, [1, 2, 5, 7, 10, 11, 12, 13]);
    let whole = "select (select count(*) from ambo.outcome where run_id = old(2))
        + (select count(*) from ambo.checkpoint where run_id = old(2)) + (select count(*) from ambo.event where run_id = old(2))";
    assert_eq!(db.number(whole).await, 3, "with all that is known of it");

    // Nor does the next one, who clears away what was carried over and has ended.
    db.sql.batch_execute(&old_partition(35, 34)).await.unwrap();
    db.until("select ambo.drop_partition()").await;
    assert_eq!(kept().await, [1, 2, 5, 7, 10, 11, 12, 13]);

    let worker = Worker::builder(&db.client).workflow::<gathers>().start().await.unwrap();
    let parent: uuid::Uuid = db.sql.query_one("select old(1)", &[]).await.unwrap().get(0);
    let result: Result<i64, Failure<ambo::Error>> =
        db.client.handle::<gathers>(RunId::from(parent)).result_as().await;
    assert_eq!(result.unwrap(), 42);
    worker.drain(std::time::Duration::from_secs(5)).await;

    // Its parent has ended and asks no more; the dead are past even their own time.
    db.sql.batch_execute("update ambo.installation set dead_lifetime = '35 days'").await.unwrap();
    db.sql.batch_execute(&old_partition(34, 33)).await.unwrap();
    db.until("select ambo.drop_partition()").await;
    assert_eq!(kept().await, [1, 5, 7, 10, 11]);
    assert_eq!(db.number("select count(*) from ambo.event_carried").await, 0);
}

#[tokio::test]
async fn a_transaction_that_holds_a_table_makes_the_keeper_come_back_later() {
    let mut db = database().await;
    db.sql.batch_execute(OLD_PARTITION).await.unwrap();
    let other = crate::harness::connect(&db.url).await;
    let holding = db.sql.transaction().await.unwrap();
    holding.execute("select ambo.enqueue_workflow('wait', '1')", &[]).await.unwrap();
    let refused = other.query_one("select ambo.drop_partition()", &[]).await.unwrap_err();
    assert_eq!(refused.code().map(|code| code.code()), Some("55P03"), "it waits 50 ms and gives up");
    // Nobody was blocked for good, and nothing was half done.
    holding.commit().await.unwrap();
    db.until("select ambo.drop_partition()").await;
}

#[tokio::test]
async fn partitions_lie_ahead_and_are_made_once() {
    let db = database().await;
    assert_eq!(db.number("select count(*) from ambo.history_partition where starts_at > now()").await, 7);
    assert_eq!(db.number("select ambo.make_partitions()::bigint").await, 0);
    db.sql.execute("update ambo.installation set partitions_ahead = 9", &[]).await.unwrap();
    assert_eq!(db.number("select ambo.make_partitions()::bigint").await, 2);
    let gaps = "select count(*) from ambo.history_partition a where a.ends_at <> (select max(ends_at) from ambo.history_partition)
        and not exists (select from ambo.history_partition b where b.starts_at = a.ends_at)";
    assert_eq!(db.number(gaps).await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_keeper_whose_chores_fail_goes_on_beating() {
    let db = database().await;
    let broken = "create or replace function ambo.make_partitions() returns integer language plpgsql as
        $$ begin raise exception 'no space left' using errcode = 'XX000'; end $$";
    db.sql.batch_execute(broken).await.unwrap();
    let _worker = Worker::builder(&db.client)
        .workflow_fn("nothing", async |_: Ctx<'_>, (): ()| Ok::<_, Error>(()))
        .start()
        .await;
    let pid = "select coalesce(max(pid), 0)::bigint from pg_stat_activity
        where datname = current_database() and application_name = 'ambo worker control'";
    db.until("select count(*) = 1 from ambo.heartbeat").await;
    db.until("select exists (select from ambo.keeper where worker_id = 1)").await;
    let before = db.number(pid).await;
    db.heartbeats(3).await;
    assert_eq!(db.number(pid).await, before, "it lost its session over a chore");
    assert_ne!(before, 0);
}
