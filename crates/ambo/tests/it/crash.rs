//! The crash sweep: a process is ended at each named point, another takes over, and every effect is counted.

use std::os::unix::process::ExitStatusExt as _;

use ambo::{FAILPOINTS, Worker};
use futures_util::StreamExt as _;

use crate::child::Child;
use crate::harness::{Database, database};
use crate::workflows::{self, Ledger};

/// Scenes at once: each mostly waits until its dead worker is found dead.
const AT_ONCE: usize = 6;
const SIGABRT: i32 = 6;

/// One scene: a worker is ended at `point`, the `time`th time it comes there.
async fn crash_at(point: &'static str, time: u32) {
    let scene = format!("{point}:{time}");
    let db = database().await;
    Ledger::prepare(&db).await;
    let role = if point == "start-answered" { "starter" } else { "worker" };
    if role == "worker" {
        for order in 0..3 {
            db.sql
                .batch_execute(&format!("select ambo.enqueue_workflow('charge', '{order}')"))
                .await
                .unwrap();
        }
    }
    // One run at a time: so the second time comes for every point, also for those of a claim.
    let settings = [("AMBO_FAILPOINT", scene.as_str()), ("AMBO_CHILD_IN_FLIGHT", "1")];
    let mut child = Child::start(role, &db.url, &settings);
    let ended = child.ended().await;
    assert_eq!(ended.signal(), Some(SIGABRT), "{scene}: the worker was not ended there");

    let recorded = "select coalesce(array_agg(run_id::text || name), '{}') from ambo.checkpoint";
    let recorded: Vec<String> = db.sql.query_one(recorded, &[]).await.unwrap().get(0);
    let effects_then = "select count(*) from effect where run || step = any ($1)";
    let before: i64 = db.sql.query_one(effects_then, &[&recorded]).await.unwrap().get(0);

    let heir = workflows::register(Worker::builder(&db.client), Ledger::open(&db.url).await);
    let heir = heir.start().await.expect("the heir");
    db.until("select count(*) = (select count(*) from ambo.run) and count(*) > 0 from ambo.outcome").await;
    db.until("select count(*) = 1 from ambo.worker").await;

    let after: i64 = db.sql.query_one(effects_then, &[&recorded]).await.unwrap().get(0);
    assert_eq!(before, after, "{scene}: a step ran again whose checkpoint had committed");
    assert_exact(&db, &scene).await;
    heir.drain(std::time::Duration::ZERO).await;
}

/// Exactly what should have happened has happened, and nothing is left over.
async fn assert_exact(db: &Database, scene: &str) {
    for (what, sql) in [
        (
            "a run did not succeed",
            "select count(*) from ambo.outcome where status <> 'succeeded' or output::text <> '4'",
        ),
        (
            "a transaction step took effect not exactly once",
            "select count(*) from ambo.run r
            where 1 <> (select count(*) from counted c where c.run = r.id::text)",
        ),
        ("the counter is off", "select abs(value - (select count(*) from ambo.run)) from counter"),
        (
            "a step had no effect",
            "select count(*) from ambo.run r, unnest('{one,two,three}'::text[]) s
            where not exists (select from effect e where e.run = r.id::text and e.step = s)",
        ),
        (
            "a step had two keys",
            "select count(*) from (select from effect group by run, step
            having count(distinct key) > 1) k",
        ),
        (
            "a key was used by two steps",
            "select count(*) from (select from effect group by key
            having count(distinct (run, step)) > 1) k",
        ),
        (
            "more than the one interrupted step of a run was repeated",
            "select count(*) from (select from effect
            group by run having count(*) > 4) e",
        ),
        (
            "checkpoints are not four a run",
            "select abs(count(*) - 4 * (select count(*) from ambo.run)) from ambo.checkpoint",
        ),
        (
            "something is left over",
            "select (select count(*) from ambo.claim) + (select count(*) from ambo.ready)
            + (select count(*) from ambo.timer) + (select count(*) from ambo.transaction_marker)
            + (select count(*) from ambo.cancel_request)",
        ),
    ] {
        assert_eq!(db.number(&format!("select ({sql})::int8")).await, 0, "{scene}: {what}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_crash_at_any_point_repeats_nothing_that_was_recorded_and_loses_nothing() {
    let scenes = FAILPOINTS.iter().flat_map(|point| [(*point, 1), (*point, 2)]);
    let scenes = futures_util::stream::iter(scenes)
        .map(|(point, time)| tokio::spawn(crash_at(point, time)))
        .buffer_unordered(AT_ONCE);
    let ended: Vec<_> = scenes.collect().await;
    assert_eq!(ended.len(), 2 * FAILPOINTS.len());
    for scene in ended {
        scene.expect("a scene failed; see above");
    }
}

/// Waits until the connections of a killed process are gone, and with them what they had open.
async fn until_alone(db: &Database) {
    db.until(
        "select count(*) = 0 from pg_stat_activity where datname = current_database()
             and backend_xid is not null and pid <> pg_backend_pid()",
    )
    .await;
}

async fn assert_orders_and_runs_agree(db: &Database) {
    let orders = "select array(select id from orders order by 1), array(select input::text::int from ambo.run order by 1)";
    let row = db.sql.query_one(orders, &[]).await.unwrap();
    let (orders, runs): (Vec<i32>, Vec<i32>) = (row.get(0), row.get(1));
    assert_eq!(orders, runs, "every order has its run, and every run its order");
    assert_eq!(db.number("select count(*) from ambo.ready").await, runs.len() as i64);
}

#[tokio::test]
async fn a_caller_killed_before_its_commit_leaves_neither_order_nor_run() {
    let db = database().await;
    Ledger::prepare(&db).await;
    let mut child = Child::start("enqueuer", &db.url, &[("AMBO_CHILD_HOLD", "1")]);
    child.says("holding").await;
    child.kill().await;
    until_alone(&db).await;
    assert_orders_and_runs_agree(&db).await;
    assert_eq!(db.number("select count(*) from orders").await, 3);
}

#[tokio::test]
async fn a_caller_killed_at_any_moment_leaves_both_or_neither() {
    let db = database().await;
    Ledger::prepare(&db).await;
    let mut placed = 0;
    for _ in 0..5 {
        db.sql.batch_execute("truncate orders, ambo.run, ambo.ready").await.unwrap();
        let mut child = Child::start("enqueuer", &db.url, &[]);
        for _ in 0..5 {
            placed = child.says("placed").await.parse::<i64>().unwrap() + 1;
        }
        child.kill().await;
        until_alone(&db).await;
        assert_orders_and_runs_agree(&db).await;
        let found = db.number("select count(*) from orders").await;
        assert!(found >= placed, "an order that was committed is gone");
    }
    assert!(placed > 0);
}
